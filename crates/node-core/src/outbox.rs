//! Sealed packets on their way out: batches per path, in reused buffers.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::buffers::{Arena, BufferPool, Span};
use crate::paths::{Path, Ways};

/// Most datagrams of one batch: what Linux takes in one `sendmsg` with `UDP_SEGMENT`.
const MAX_SEGMENTS: usize = 64;
/// Most bytes of one batch: what fits one IPv6 packet behind its headers.
const MAX_BATCH: usize = 65_535 - 40 - 8;
/// A datagram may join one of so many batches that were begun last: while a path is in doubt each goes two ways.
const OPEN_BATCHES: usize = 2;

/// Datagrams for the shell to send, all to one place, in this order.
///
/// They lie end to end, each `segment` bytes long but for the last, which may be shorter: the form in which a kernel that segments (UDP GSO) takes them in one
/// call.
#[derive(Debug)]
pub struct Transmit<'a> {
    /// Where to send them.
    pub path: Path,
    /// The bytes of all, never empty.
    pub payload: &'a [u8],
    /// Bytes of each but the last, never zero.
    pub segment: usize,
}

impl<'a> Transmit<'a> {
    /// The datagrams one by one.
    pub fn datagrams(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.payload.chunks(self.segment)
    }
}

/// A queue of batches.
#[derive(Debug)]
pub(crate) struct Outbox {
    arena: Arena,
    batches: VecDeque<Batch>,
}

#[derive(Debug)]
struct Batch {
    path: Path,
    span: Span,
    segment: usize,
}

impl Batch {
    /// Takes one more datagram if the batch may have it.
    fn join(&mut self, path: Path, span: &Span) -> bool {
        let fits = self.path == path
            && self.span.touches(span)
            && span.len() <= self.segment
            && self.span.len().is_multiple_of(self.segment)
            && self.span.len() / self.segment < MAX_SEGMENTS
            && self.span.len() + span.len() <= MAX_BATCH;
        if fits {
            self.span.range.end = span.range.end;
        }
        fits
    }
}

impl Outbox {
    pub(crate) fn new(pool: Arc<BufferPool>) -> Self {
        Self {
            arena: Arena::new(pool),
            batches: VecDeque::new(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Lets `fill` write a datagram of at most `room` bytes; it returns how long it became, or `None` to send nothing.
    pub(crate) fn push_with(
        &mut self,
        path: Path,
        room: usize,
        fill: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) {
        if let Some(span) = self.arena.write(room, fill).filter(|span| span.len() > 0) {
            self.add(path, span);
        }
    }

    /// As [`Self::push_with`], for a datagram that may take several ways. Without any it is not made.
    pub(crate) fn push_ways(
        &mut self,
        ways: Ways,
        room: usize,
        fill: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) {
        if ways.surest().is_none() {
            return;
        }
        if let Some(span) = self.arena.write(room, fill).filter(|span| span.len() > 0) {
            for path in ways.iter() {
                self.add(path, span.clone());
            }
        }
    }

    pub(crate) fn push(&mut self, path: Path, payload: &[u8]) {
        self.push_with(path, payload.len(), |room| {
            room.copy_from_slice(payload);
            Some(payload.len())
        });
    }

    fn add(&mut self, path: Path, span: Span) {
        let mut open = self.batches.iter_mut().rev().take(OPEN_BATCHES);
        // Only the latest batch of a path, so that order on it holds.
        let joined = open
            .find(|batch| batch.path == path)
            .is_some_and(|batch| batch.join(path, &span));
        if !joined {
            self.batches.push_back(Batch {
                path,
                segment: span.len(),
                span,
            });
        }
    }

    /// The next batch. Buffers whose datagrams are all sent go back first.
    pub(crate) fn pop(&mut self) -> Option<Transmit<'_>> {
        let Some(batch) = self.batches.pop_front() else {
            self.release();
            return None;
        };
        self.arena.release_before(batch.span.buffer);
        let payload = self.arena.get(&batch.span)?;
        Some(Transmit {
            path: batch.path,
            payload,
            segment: batch.segment,
        })
    }

    /// Gives all memory back. Only called when nothing is queued.
    fn release(&mut self) {
        self.arena.release();
        if self.batches.capacity() > 256 {
            self.batches = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(port: u16) -> Path {
        Path::Udp(([127, 0, 0, 1], port).into())
    }

    #[test]
    fn datagrams_of_one_size_leave_together_and_a_shorter_one_ends_the_batch() {
        let mut outbox = Outbox::new(BufferPool::new());
        for length in [700, 700, 300, 700, 900] {
            outbox.push(path(1), &vec![7; length]);
        }
        let mut sizes = Vec::new();
        while let Some(batch) = outbox.pop() {
            sizes.push(batch.datagrams().map(<[u8]>::len).collect::<Vec<_>>());
        }
        assert_eq!(sizes, [vec![700, 700, 300], vec![700], vec![900]]);
    }

    #[test]
    fn datagrams_that_go_two_ways_are_batched_on_each() {
        let mut outbox = Outbox::new(BufferPool::new());
        let ways = Ways {
            direct: Some(path(1)),
            relay: Some(path(2)),
        };
        for _ in 0..3 {
            outbox.push_ways(ways, 500, |room| {
                room.fill(1);
                Some(500)
            });
        }
        for port in [1, 2] {
            let batch = outbox.pop().unwrap();
            assert_eq!((batch.path, batch.datagrams().count()), (path(port), 3));
        }
        assert!(outbox.pop().is_none());
    }

    #[test]
    fn nothing_written_is_nothing_sent() {
        let mut outbox = Outbox::new(BufferPool::new());
        outbox.push_with(path(1), 100, |_| None);
        outbox.push_with(path(1), 100, |_| Some(0));
        assert!(outbox.is_empty());
        assert!(outbox.pop().is_none());
    }

    proptest! {
        /// Whatever is pushed comes out once, in order on each path, in batches that a kernel takes.
        #[test]
        fn each_path_keeps_its_datagrams_in_order(
            pushes in proptest::collection::vec((0..3u16, 1..1500usize), 0..400)
        ) {
            let mut outbox = Outbox::new(BufferPool::new());
            let mut expected = vec![Vec::new(); 3];
            for (number, (port, length)) in pushes.into_iter().enumerate() {
                let payload = vec![number as u8; length];
                outbox.push(path(port), &payload);
                expected[usize::from(port)].push(payload);
            }
            let mut got = vec![Vec::new(); 3];
            while let Some(batch) = outbox.pop() {
                prop_assert!(batch.payload.len() <= MAX_BATCH && batch.datagrams().count() <= MAX_SEGMENTS);
                let Path::Udp(to) = batch.path else { unreachable!() };
                got[usize::from(to.port())].extend(batch.datagrams().map(<[u8]>::to_vec));
            }
            prop_assert_eq!(got, expected);
        }
    }
}
