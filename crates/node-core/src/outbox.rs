//! Sealed packets on their way out, in reused buffers.

use std::collections::VecDeque;
use std::ops::Range;

use crate::paths::{Path, Ways};

/// Bytes of one buffer. Twelve full packets: an idle node that sends one message holds no more than this, and a busy one allocates rarely.
const CHUNK: usize = 16 * 1024;

/// One datagram for the shell to send.
#[derive(Debug)]
pub struct Transmit<'a> {
    /// Where to send it.
    pub path: Path,
    /// The bytes to send.
    pub payload: &'a [u8],
}

/// A queue of datagrams.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// The buffers in use, oldest first.
    chunks: VecDeque<Vec<u8>>,
    items: VecDeque<Item>,
    /// Number of the oldest buffer in `chunks`.
    first: u64,
}

#[derive(Debug)]
struct Item {
    path: Path,
    chunk: u64,
    range: Range<usize>,
}

impl Outbox {
    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Lets `fill` write a datagram of at most `room` bytes; it returns how long it became, or `None` to send nothing.
    pub(crate) fn push_with(
        &mut self,
        path: Path,
        room: usize,
        fill: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) {
        if self
            .chunks
            .back()
            .is_none_or(|chunk| chunk.capacity() - chunk.len() < room)
        {
            self.chunks.push_back(Vec::with_capacity(room.max(CHUNK)));
        }
        let number = self.first + self.chunks.len() as u64 - 1;
        let Some(chunk) = self.chunks.back_mut() else {
            return;
        };
        let start = chunk.len();
        chunk.resize(start + room, 0);
        let length = fill(&mut chunk[start..]).unwrap_or(0);
        chunk.truncate(start + length);
        if length > 0 {
            self.items.push_back(Item {
                path,
                chunk: number,
                range: start..start + length,
            });
        }
    }

    /// As [`Self::push_with`], for a datagram that may take several ways. Without any it is not made.
    pub(crate) fn push_ways(
        &mut self,
        ways: Ways,
        room: usize,
        fill: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) {
        let mut ways = ways.iter();
        let Some(first) = ways.next() else { return };
        let before = self.items.len();
        self.push_with(first, room, fill);
        if self.items.len() > before
            && let Some((chunk, range)) = self.items.back().map(|item| (item.chunk, item.range.clone()))
        {
            self.items.extend(ways.map(|path| Item {
                path,
                chunk,
                range: range.clone(),
            }));
        }
    }

    pub(crate) fn push(&mut self, path: Path, payload: &[u8]) {
        self.push_with(path, payload.len(), |room| {
            room.copy_from_slice(payload);
            Some(payload.len())
        });
    }

    /// The next datagram. Buffers whose datagrams are all sent go back first.
    pub(crate) fn pop(&mut self) -> Option<Transmit<'_>> {
        let Some(item) = self.items.pop_front() else {
            self.release();
            return None;
        };
        while self.first < item.chunk {
            self.chunks.pop_front();
            self.first += 1;
        }
        let payload = self.chunks.front()?.get(item.range)?;
        Some(Transmit {
            path: item.path,
            payload,
        })
    }

    /// Gives all memory back. Only called when nothing is queued.
    fn release(&mut self) {
        self.first += self.chunks.len() as u64;
        self.chunks = VecDeque::new();
        if self.items.capacity() > 256 {
            self.items = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_come_out_in_order_and_memory_goes_back() {
        let mut outbox = Outbox::default();
        let path = Path::Udp("127.0.0.1:1".parse().unwrap());
        for round in 0..3u8 {
            for byte in 0..100u8 {
                outbox.push(path, &[byte ^ round; 700]);
            }
            for byte in 0..100u8 {
                assert_eq!(outbox.pop().unwrap().payload, &[byte ^ round; 700]);
            }
            assert!(outbox.pop().is_none());
            assert!(outbox.chunks.is_empty());
        }
    }

    #[test]
    fn nothing_written_is_nothing_sent() {
        let mut outbox = Outbox::default();
        outbox.push_with(Path::Udp("127.0.0.1:1".parse().unwrap()), 100, |_| None);
        assert!(outbox.is_empty());
        assert!(outbox.pop().is_none());
    }
}
