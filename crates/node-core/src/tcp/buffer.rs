//! Buffers of a connection. They hold chunks only where there are bytes: an empty one costs nothing, and growing moves nothing.

use std::collections::VecDeque;
use std::sync::Arc;

use super::segment::SackBlocks;
use super::seq::Seq;
use crate::budget::{MemoryBudget, Purpose};

/// Bytes of one chunk: a page, three full segments.
pub(super) const CHUNK: usize = 4096;
/// Ranges beyond a gap that are remembered; what would make more is dropped, and sent again.
const MAX_RANGES: usize = 64;

/// Bytes in chunks, addressed by their distance from the first one.
#[derive(Debug)]
struct Rope {
    chunks: VecDeque<Option<Box<[u8]>>>,
    /// Where the first byte is in the first chunk.
    head: usize,
    budget: Arc<MemoryBudget>,
    /// Chunks that exist.
    held: usize,
}

impl Rope {
    fn new(budget: Arc<MemoryBudget>) -> Self {
        Self {
            chunks: VecDeque::new(),
            head: 0,
            budget,
            held: 0,
        }
    }

    /// Makes sure that bytes can be written from `at` on. Returns to how many there is room, which is fewer than `length` when the budget ends.
    fn reserve(&mut self, at: usize, length: usize) -> usize {
        let (from, to) = (self.head + at, self.head + at + length);
        for index in from / CHUNK..to.div_ceil(CHUNK) {
            if self.chunks.get(index).is_some_and(Option::is_some) {
                continue;
            }
            let purpose = if self.held == 0 {
                Purpose::Start
            } else {
                Purpose::Growth
            };
            if !self.budget.take(CHUNK, purpose) {
                return (index * CHUNK).saturating_sub(from);
            }
            self.held += 1;
            if self.chunks.len() <= index {
                self.chunks.resize_with(index + 1, || None);
            }
            self.chunks[index] = Some(vec![0; CHUNK].into_boxed_slice());
        }
        length
    }

    /// Writes as many bytes as the budget gives room for and returns their number.
    fn write(&mut self, at: usize, bytes: &[u8]) -> usize {
        let length = self.reserve(at, bytes.len());
        let mut bytes = &bytes[..length];
        let mut place = self.head + at;
        while !bytes.is_empty() {
            let offset = place % CHUNK;
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK - offset));
            if let Some(Some(chunk)) = self.chunks.get_mut(place / CHUNK) {
                chunk[offset..offset + now.len()].copy_from_slice(now);
            }
            place += now.len();
            bytes = later;
        }
        length
    }

    /// Copies bytes that were written.
    fn copy(&self, at: usize, mut room: &mut [u8]) {
        let mut place = self.head + at;
        while !room.is_empty() {
            let offset = place % CHUNK;
            let (now, later) = room.split_at_mut(room.len().min(CHUNK - offset));
            if let Some(Some(chunk)) = self.chunks.get(place / CHUNK) {
                now.copy_from_slice(&chunk[offset..offset + now.len()]);
            }
            place += now.len();
            room = later;
        }
    }

    /// Drops the first `length` bytes. `is_empty` tells that none is left behind them.
    fn advance(&mut self, length: usize, is_empty: bool) {
        self.head += length;
        let whole = if is_empty {
            self.chunks.len()
        } else {
            (self.head / CHUNK).min(self.chunks.len())
        };
        for chunk in self.chunks.drain(..whole) {
            if chunk.is_some() {
                self.held -= 1;
                self.budget.give(CHUNK);
            }
        }
        if is_empty {
            self.head = 0;
            self.chunks = VecDeque::new();
        } else {
            self.head -= whole * CHUNK;
        }
    }
}

impl Drop for Rope {
    fn drop(&mut self) {
        self.budget.give(self.held * CHUNK);
    }
}

/// What the application wrote and the other side has not acknowledged.
#[derive(Debug)]
pub(super) struct SendBuffer {
    rope: Rope,
    len: usize,
}

impl SendBuffer {
    pub(super) fn new(budget: &Arc<MemoryBudget>) -> Self {
        Self {
            rope: Rope::new(Arc::clone(budget)),
            len: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Appends bytes, holding at most `limit`. Returns how many were taken.
    pub(super) fn push(&mut self, bytes: &[u8], limit: usize) -> usize {
        let most = limit.saturating_sub(self.len).min(bytes.len());
        let length = self.rope.write(self.len, &bytes[..most]);
        self.len += length;
        length
    }

    pub(super) fn copy(&self, at: usize, room: &mut [u8]) {
        self.rope.copy(at, room);
    }

    /// Forgets the first bytes, which were acknowledged.
    pub(super) fn advance(&mut self, length: usize) {
        let length = length.min(self.len);
        self.len -= length;
        self.rope.advance(length, self.len == 0);
    }
}

/// What the other side sent and the application has not read.
#[derive(Debug)]
pub(super) struct ReceiveBuffer {
    rope: Rope,
    /// Bytes in order.
    ready: usize,
    /// What lies beyond gaps, in order, apart from each other.
    ranges: Vec<Range>,
}

#[derive(Clone, Copy, Debug)]
struct Range {
    from: Seq,
    to: Seq,
    /// In how many acknowledgements it was told since it grew.
    told: u8,
}

impl ReceiveBuffer {
    pub(super) fn new(budget: &Arc<MemoryBudget>) -> Self {
        Self {
            rope: Rope::new(Arc::clone(budget)),
            ready: 0,
            ranges: Vec::new(),
        }
    }

    pub(super) fn ready(&self) -> usize {
        self.ready
    }

    pub(super) fn has_gaps(&self) -> bool {
        !self.ranges.is_empty()
    }

    /// Takes bytes with the number `seq`, where `next` is the first that is missing and not after them. Returns by how much `next` moves.
    pub(super) fn insert(&mut self, next: Seq, seq: Seq, bytes: &[u8]) -> u32 {
        if seq == next && self.ranges.is_empty() {
            let length = self.rope.write(self.ready, bytes);
            self.ready += length;
            return length as u32;
        }
        self.insert_around_gaps(next, seq, bytes)
    }

    fn insert_around_gaps(&mut self, next: Seq, seq: Seq, bytes: &[u8]) -> u32 {
        let at = self.ready + (seq - next) as usize;
        let length = self.rope.write(at, bytes);
        let (mut from, mut to) = (seq, seq + length as u32);
        if from == to {
            return 0;
        }
        let first = self.ranges.partition_point(|range| range.to < from);
        let last = self.ranges.partition_point(|range| range.from <= to);
        let mut told = 0;
        for range in &self.ranges[first..last] {
            if range.from <= from && to <= range.to {
                told = range.told;
            }
            from = from.min(range.from);
            to = to.max(range.to);
        }
        if from == next {
            self.ranges.drain(..last);
            self.ready += (to - next) as usize;
            return to - next;
        }
        if first < last || self.ranges.len() < MAX_RANGES {
            self.ranges.splice(first..last, [Range { from, to, told }]);
        }
        0
    }

    /// Whether a range is not told yet since it grew.
    pub(super) fn has_news(&self) -> bool {
        self.ranges.iter().any(|range| range.told == 0)
    }

    /// What lies beyond gaps, what was told least first, since acknowledgements may get lost; they count as told now.
    pub(super) fn sack(&mut self, blocks: &mut SackBlocks) {
        while blocks.has_room() {
            let next = self
                .ranges
                .iter_mut()
                .filter(|range| blocks.iter().all(|(from, _)| from != range.from));
            let Some(range) = next.min_by_key(|range| range.told) else {
                return;
            };
            range.told = range.told.saturating_add(1);
            blocks.push(range.from, range.to);
        }
    }

    /// Moves bytes that are in order out.
    pub(super) fn read(&mut self, room: &mut [u8]) -> usize {
        let length = room.len().min(self.ready);
        self.rope.copy(0, &mut room[..length]);
        self.ready -= length;
        self.rope
            .advance(length, self.ready == 0 && self.ranges.is_empty());
        length
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: usize = 40_000;

    fn content() -> Vec<u8> {
        (0..SIZE).map(|n| (n * 7 + n / 251) as u8).collect()
    }

    proptest! {
        #[test]
        fn segments_in_any_order_come_out_in_order(
            start: u32,
            pieces in proptest::collection::vec((0..SIZE, 1usize..3000), 1..200),
            reads in proptest::collection::vec(1usize..9000, 1..10),
        ) {
            let content = content();
            let budget = MemoryBudget::new(1 << 20);
            let mut buffer = ReceiveBuffer::new(&budget);
            let mut next = Seq(start);
            let mut out = Vec::new();
            let whole = (0..SIZE).step_by(1000).map(|at| (at, 1000));
            for (turn, (at, length)) in pieces.into_iter().chain(whole).enumerate() {
                let (at, end) = (at.max((next - Seq(start)) as usize), (at + length).min(SIZE));
                if at < end {
                    let moved = buffer.insert(next, Seq(start) + at as u32, &content[at..end]);
                    next += moved;
                }
                while buffer.has_news() {
                    let mut blocks = SackBlocks::default();
                    buffer.sack(&mut blocks);
                    for (from, to) in blocks.iter() {
                        prop_assert!(from > next && to > from);
                    }
                }
                let mut room = vec![0; reads[turn % reads.len()]];
                let length = buffer.read(&mut room);
                out.extend_from_slice(&room[..length]);
            }
            let mut room = vec![0; SIZE];
            let length = buffer.read(&mut room);
            out.extend_from_slice(&room[..length]);
            prop_assert!(out == content);
            prop_assert_eq!(budget.used(), 0);
        }

        #[test]
        fn what_is_pushed_is_copied(pushes in proptest::collection::vec(1usize..9000, 1..20), drops in proptest::collection::vec(0usize..9000, 1..20)) {
            let budget = MemoryBudget::new(1 << 20);
            let mut buffer = SendBuffer::new(&budget);
            let mut model: Vec<u8> = Vec::new();
            for (turn, length) in pushes.into_iter().enumerate() {
                let bytes: Vec<u8> = (0..length).map(|n| (n ^ turn) as u8).collect();
                let taken = buffer.push(&bytes, 30_000);
                prop_assert_eq!(taken, length.min(30_000 - model.len()));
                model.extend_from_slice(&bytes[..taken]);
                let gone = drops[turn % drops.len()].min(model.len());
                buffer.advance(gone);
                model.drain(..gone);
                let mut copy = vec![0; model.len()];
                buffer.copy(0, &mut copy);
                prop_assert!(copy == model);
            }
            drop(buffer);
            prop_assert_eq!(budget.used(), 0);
        }
    }

    #[test]
    fn the_budget_bounds_what_is_taken() {
        let budget = MemoryBudget::new(4 * CHUNK);
        let mut one = SendBuffer::new(&budget);
        let taken = one.push(&vec![1; 10 * CHUNK], usize::MAX);
        assert_eq!(taken, 3 * CHUNK, "growth leaves room for the start of others");
        let mut other = ReceiveBuffer::new(&budget);
        assert_eq!(other.insert(Seq(0), Seq(0), &vec![1; 2 * CHUNK]), CHUNK as u32);
        one.advance(taken);
        assert_eq!(budget.used(), CHUNK);
    }
}
