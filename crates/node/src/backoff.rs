//! How long to wait before the next attempt.

use std::time::Duration;

use rand::Rng;

/// Exponential backoff with jitter: each wait lies between the half and the whole of a doubling bound.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    attempts: u32,
}

impl Backoff {
    /// The first wait is at most `first`, none is longer than `longest`.
    #[must_use]
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            attempts: 0,
        }
    }

    /// The wait after one more failure.
    pub fn next(&mut self, rng: &mut impl Rng) -> Duration {
        let bound = self
            .first
            .saturating_mul(2_u32.saturating_pow(self.attempts))
            .min(self.longest);
        self.attempts = self.attempts.saturating_add(1);
        bound.mul_f64(rng.gen_range(0.5..=1.0))
    }

    /// The next failure counts as the first again.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn waits_double_within_bounds_and_start_over_after_success() {
        let mut rng = StdRng::seed_from_u64(1);
        let first = Duration::from_millis(100);
        let longest = Duration::from_secs(30);
        let mut backoff = Backoff::new(first, longest);
        let mut bound = first;
        for _ in 0..100 {
            let wait = backoff.next(&mut rng);
            assert!(
                wait >= bound / 2 && wait <= bound,
                "{wait:?} outside the half and the whole of {bound:?}"
            );
            bound = (bound * 2).min(longest);
        }
        backoff.reset();
        assert!(backoff.next(&mut rng) <= first);
    }

    #[test]
    fn two_nodes_do_not_wait_alike() {
        let waits = |seed| {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));
            (0..5).map(|_| backoff.next(&mut rng)).collect::<Vec<_>>()
        };
        assert_ne!(waits(1), waits(2));
    }
}
