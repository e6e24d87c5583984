//! Reused buffers for packets: taken from a pool when a batch comes, given back when it has left.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of one buffer: a full batch for one system call, and the largest datagram.
pub const BUFFER_LEN: usize = 64 * 1024;
/// So many buffers are kept for the next batches, by all cores of a process together.
const MAX_SPARE: usize = 8;

/// Buffers shared by all cores of a process. A core holds some only while it has packets to give out.
#[derive(Debug, Default)]
pub struct BufferPool {
    spare: Mutex<Vec<Box<[u8]>>>,
}

impl BufferPool {
    /// A pool without buffers yet.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A buffer of [`BUFFER_LEN`] bytes. What it holds is old.
    fn take(&self) -> Box<[u8]> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.unwrap_or_else(|| vec![0; BUFFER_LEN].into_boxed_slice())
    }

    fn give(&self, buffer: Box<[u8]>) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < MAX_SPARE {
            spare.push(buffer);
        }
    }
}

/// Bytes laid one after the other into buffers of a pool.
#[derive(Debug)]
pub(crate) struct Arena {
    pool: Arc<BufferPool>,
    /// The buffers in use, oldest first.
    buffers: VecDeque<Box<[u8]>>,
    /// Number of the oldest one.
    first: u64,
    /// Bytes used of the newest one.
    used: usize,
}

/// Where bytes are in an [`Arena`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// Number of the buffer.
    pub(crate) buffer: u64,
    pub(crate) range: Range<usize>,
}

impl Span {
    pub(crate) fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether `next` begins where this ends.
    pub(crate) fn touches(&self, next: &Self) -> bool {
        self.buffer == next.buffer && self.range.end == next.range.start
    }
}

impl Arena {
    pub(crate) fn new(pool: Arc<BufferPool>) -> Self {
        Self {
            pool,
            buffers: VecDeque::new(),
            first: 0,
            used: 0,
        }
    }

    /// Lets `fill` write at most `room` bytes, no more than [`BUFFER_LEN`]; it returns how many it wrote. What is there before is old.
    pub(crate) fn write(
        &mut self,
        room: usize,
        fill: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> Option<Span> {
        let length = fill(self.room(room))?;
        Some(self.commit(length))
    }

    /// Room for at most [`BUFFER_LEN`] bytes behind what was committed.
    pub(crate) fn room(&mut self, length: usize) -> &mut [u8] {
        let length = length.min(BUFFER_LEN);
        if self.buffers.is_empty() || BUFFER_LEN - self.used < length {
            self.buffers.push_back(self.pool.take());
            self.used = 0;
        }
        let start = self.used;
        self.buffers
            .back_mut()
            .map_or(&mut [], |buffer| &mut buffer[start..start + length])
    }

    /// The first bytes of the last [`Self::room`].
    pub(crate) fn written(&self, length: usize) -> &[u8] {
        let buffer = self.buffers.back().map_or(&[][..], |buffer| &buffer[self.used..]);
        &buffer[..length.min(buffer.len())]
    }

    /// Keeps the first bytes of the last [`Self::room`].
    pub(crate) fn commit(&mut self, length: usize) -> Span {
        let start = self.used;
        self.used = (start + length).min(BUFFER_LEN);
        Span {
            buffer: (self.first + self.buffers.len() as u64).saturating_sub(1),
            range: start..self.used,
        }
    }

    pub(crate) fn get(&self, span: &Span) -> Option<&[u8]> {
        let buffer = self.buffers.get(span.buffer.checked_sub(self.first)? as usize)?;
        buffer.get(span.range.clone())
    }

    pub(crate) fn get_mut(&mut self, span: &Span) -> Option<&mut [u8]> {
        let buffer = self
            .buffers
            .get_mut(span.buffer.checked_sub(self.first)? as usize)?;
        buffer.get_mut(span.range.clone())
    }

    /// Gives back the buffers before this one.
    pub(crate) fn release_before(&mut self, buffer: u64) {
        while self.first < buffer {
            let Some(old) = self.buffers.pop_front() else {
                break;
            };
            self.pool.give(old);
            self.first += 1;
        }
    }

    /// Gives all buffers back.
    pub(crate) fn release(&mut self) {
        self.release_before(self.first + self.buffers.len() as u64);
        self.used = 0;
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        self.release();
    }
}
