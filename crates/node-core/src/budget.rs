//! How much memory the TCP connections of a process may take, and how it is shared out.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const KIB: usize = 1024;

/// How much one direction of a connection may hold by how much of the budget is in use: few busy connections get fast windows, many get small ones.
/// The largest fills 1 Gbit/s at 8 ms round trip; more than that leaves the processor's caches. The smallest still holds six full segments.
const TIERS: [(usize, usize); 4] = [
    (50, 1024 * KIB),
    (75, 256 * KIB),
    (90, 64 * KIB),
    (usize::MAX, SMALLEST),
];
/// What one direction may hold when the budget is nearly spent.
const SMALLEST: usize = 8 * KIB;
/// Percentage of the budget up to which a buffer may grow. The rest is for buffers that hold nothing yet, so that a few full ones cannot keep the others
/// from moving at all.
const GROWTH: usize = 95;

/// A process-wide bound on what TCP connections hold, shared by all its cores.
///
/// What is counted is memory in use: buffers take it with the data and give it back as they drain, so an idle connection counts for little more than its
/// state.
#[derive(Debug)]
pub struct MemoryBudget {
    limit: usize,
    used: AtomicUsize,
}

/// What memory is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A connection, or the first bytes of a buffer.
    Start,
    /// More of a buffer that holds something.
    Growth,
}

impl MemoryBudget {
    /// A budget of `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used: AtomicUsize::new(0),
        })
    }

    /// Bytes that connections hold now.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// How much one direction of a connection may hold now.
    pub(crate) fn allowance(&self) -> usize {
        let percent = self
            .used()
            .saturating_mul(100)
            .checked_div(self.limit)
            .unwrap_or(usize::MAX);
        TIERS
            .into_iter()
            .find(|(below, _)| percent < *below)
            .map_or(SMALLEST, |(_, each)| each)
    }

    /// Counts `bytes`, if they are within the limit.
    pub(crate) fn take(&self, bytes: usize, purpose: Purpose) -> bool {
        let limit = match purpose {
            Purpose::Start => self.limit,
            Purpose::Growth => self.limit / 100 * GROWTH,
        };
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                let after = used.checked_add(bytes)?;
                (after <= limit).then_some(after)
            })
            .is_ok()
    }

    /// Gives back what was taken.
    pub(crate) fn give(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Takes what one connection's state needs, until the share is dropped.
    pub(crate) fn share(self: &Arc<Self>, bytes: usize) -> Option<Share> {
        self.take(bytes, Purpose::Start).then(|| Share {
            budget: Arc::clone(self),
            bytes,
        })
    }
}

/// A part of a [`MemoryBudget`], given back when dropped.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<MemoryBudget>,
    bytes: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.give(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allowances_shrink_and_starts_go_before_growth() {
        let budget = MemoryBudget::new(1000 * KIB);
        assert_eq!(budget.allowance(), 1024 * KIB);
        assert!(budget.take(600 * KIB, Purpose::Growth));
        assert_eq!(budget.allowance(), 256 * KIB);
        assert!(budget.take(340 * KIB, Purpose::Growth));
        assert_eq!(budget.allowance(), SMALLEST);
        assert!(!budget.take(20 * KIB, Purpose::Growth));
        assert!(budget.take(60 * KIB, Purpose::Start));
        assert!(!budget.take(1, Purpose::Start));
        budget.give(1000 * KIB);
        assert_eq!((budget.used(), budget.allowance()), (0, 1024 * KIB));
    }

    #[test]
    fn a_share_comes_back() {
        let budget = MemoryBudget::new(KIB);
        let share = budget.share(KIB);
        assert!(share.is_some() && budget.share(1).is_none());
        drop(share);
        assert_eq!(budget.used(), 0);
        assert!(MemoryBudget::new(0).share(1).is_none());
    }
}
