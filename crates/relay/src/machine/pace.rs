//! How fast a client may send.

use std::time::{Duration, Instant};

/// A number of bytes each second, and how many may come at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Bytes each second; at least 1.
    pub bytes_per_second: u64,
    /// Bytes at once.
    pub burst: u64,
}

/// What is left of a [`Rate`].
#[derive(Debug)]
pub(super) struct Bucket {
    rate: Rate,
    /// When the bucket is full again if nothing is taken.
    full_at: Instant,
}

impl Bucket {
    pub(super) const fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, full_at: now }
    }

    /// Takes `bytes`, whether they are there or not.
    pub(super) fn take(&mut self, bytes: usize, now: Instant) {
        self.full_at = self.full_at.max(now) + self.time_for(bytes as u64);
    }

    /// When something may be taken again. `None`: now.
    pub(super) fn empty_until(&self, now: Instant) -> Option<Instant> {
        let whole = self.time_for(self.rate.burst);
        let wait = self.full_at.saturating_duration_since(now + whole);
        (!wait.is_zero()).then(|| now + wait)
    }

    fn time_for(&self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate.bytes_per_second.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}
