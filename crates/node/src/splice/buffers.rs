//! Copy buffers, shared by all connections of the process.
//!
//! A connection holds a buffer only while bytes are under way, so an idle one costs none. Memory under load is bounded:
//! at most [`MAX_LARGE`] large buffers exist, and whoever comes later copies through a small one.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of a small buffer: enough for requests and single datagrams.
pub(super) const SMALL: usize = 8 * 1024;
/// Bytes of a large buffer, for a direction that filled a small one. Larger ones gain nothing.
pub(super) const LARGE: usize = 64 * 1024;
/// Large buffers in use at once.
pub(super) const MAX_LARGE: usize = 256;
/// Small buffers kept for reuse.
const KEEP_SMALL: usize = 64;
/// Large buffers kept for reuse.
const KEEP_LARGE: usize = 16;

/// The buffers of the process.
#[derive(Debug, Default)]
pub struct Buffers {
    small: Mutex<Vec<Box<[u8]>>>,
    large: Mutex<Vec<Box<[u8]>>>,
    large_in_use: AtomicUsize,
}

impl Buffers {
    /// A small buffer. Its content is arbitrary.
    #[must_use]
    pub fn small(self: &Arc<Self>) -> Buffer {
        Buffer {
            data: take(&self.small, SMALL),
            home: self.clone(),
        }
    }

    /// A large buffer, or a small one when too many large ones are in use. Its content is arbitrary.
    #[must_use]
    pub fn large(self: &Arc<Self>) -> Buffer {
        let free = |used: usize| (used < MAX_LARGE).then_some(used + 1);
        match self
            .large_in_use
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, free)
        {
            Ok(_) => Buffer {
                data: take(&self.large, LARGE),
                home: self.clone(),
            },
            Err(_) => self.small(),
        }
    }
}

fn take(shelf: &Mutex<Vec<Box<[u8]>>>, size: usize) -> Box<[u8]> {
    let kept = shelf.lock().unwrap_or_else(PoisonError::into_inner).pop();
    kept.unwrap_or_else(|| vec![0; size].into_boxed_slice())
}

/// A buffer on loan; dropping it gives it back.
#[derive(Debug)]
pub struct Buffer {
    data: Box<[u8]>,
    home: Arc<Buffers>,
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.data
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.data
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        let (shelf, keep) = if data.len() == LARGE {
            self.home.large_in_use.fetch_sub(1, Ordering::Relaxed);
            (&self.home.large, KEEP_LARGE)
        } else {
            (&self.home.small, KEEP_SMALL)
        };
        let mut shelf = shelf.lock().unwrap_or_else(PoisonError::into_inner);
        if shelf.len() < keep {
            shelf.push(data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_buffers_are_bounded_and_come_back() {
        let buffers = Arc::new(Buffers::default());
        let held: Vec<Buffer> = (0..MAX_LARGE).map(|_| buffers.large()).collect();
        assert!(held.iter().all(|buffer| buffer.len() == LARGE));
        assert_eq!(buffers.large().len(), SMALL);
        drop(held);
        assert_eq!(buffers.large().len(), LARGE);
        assert_eq!(buffers.large.lock().unwrap().len(), KEEP_LARGE);
    }
}
