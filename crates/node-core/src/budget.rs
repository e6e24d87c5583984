//! How much memory the TCP buffers of a process may take, and how it is shared out.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Sizes of one direction's buffer by how much of the budget is in use: few connections get fast ones, many get small ones, and the sum has a bound. The
/// largest fills 1 Gbit/s at 2 ms round trip; the smallest still holds six full segments.
const TIERS: [(usize, usize); 4] = [(25, 256 * KIB), (50, 64 * KIB), (75, 16 * KIB), (100, 8 * KIB)];
const KIB: usize = 1024;

/// A process-wide bound on TCP buffers, shared by all its cores.
///
/// What is counted is capacity. A page of a buffer takes real memory only once data has been in it, and a ring that runs empty starts again at its first page,
/// so an idle connection costs far less than its share.
#[derive(Debug)]
pub struct MemoryBudget {
    limit: usize,
    used: AtomicUsize,
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

    /// A share for one connection's two buffers, or `None` when the budget is spent.
    pub(crate) fn take(self: &Arc<Self>) -> Option<Share> {
        let mut used = self.used.load(Ordering::Relaxed);
        loop {
            let percent = used.saturating_mul(100).checked_div(self.limit)?;
            let (_, each) = TIERS.into_iter().find(|(below, _)| percent < *below)?;
            let each = if used + 2 * each <= self.limit {
                each
            } else {
                SMALLEST
            };
            let after = used + 2 * each;
            if after > self.limit {
                return None;
            }
            match self
                .used
                .compare_exchange_weak(used, after, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => {
                    return Some(Share {
                        budget: Arc::clone(self),
                        each,
                    });
                }
                Err(now) => used = now,
            }
        }
    }
}

/// The smallest buffer of one direction.
const SMALLEST: usize = TIERS[TIERS.len() - 1].1;

/// One connection's part of a [`MemoryBudget`], given back when dropped.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<MemoryBudget>,
    each: usize,
}

impl Share {
    /// Bytes of one direction's buffer.
    pub(crate) fn each(&self) -> usize {
        self.each
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(2 * self.each, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_shrink_and_end_at_the_limit() {
        let budget = MemoryBudget::new(8 * 1024 * KIB);
        let mut shares = Vec::new();
        while let Some(share) = budget.take() {
            shares.push(share);
        }
        assert!(shares.windows(2).all(|pair| pair[0].each() >= pair[1].each()));
        assert_eq!(shares.first().map(Share::each), Some(256 * KIB));
        assert_eq!(shares.last().map(Share::each), Some(SMALLEST));
        assert!(budget.used() <= 8 * 1024 * KIB);
        assert!(shares.len() > 200);
        drop(shares);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_tiny_budget_refuses() {
        assert!(MemoryBudget::new(KIB).take().is_none());
        assert!(MemoryBudget::new(0).take().is_none());
    }
}
