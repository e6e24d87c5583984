//! How long to wait before a call is repeated.

use std::time::Duration;

use rand::Rng;

/// The most often a call is tried.
pub(crate) const MAX_ATTEMPTS: u32 = 4;
/// The longest a call waits at a server's request. A longer wish becomes [`crate::Error::RateLimited`], so that the
/// caller can schedule it.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(5);
const BASE: Duration = Duration::from_millis(100);

/// The wait before attempt `attempt + 1`, where the first attempt has number 1: a random part of a doubling span, so that
/// many clients do not come back together.
pub(crate) fn delay(attempt: u32, rng: &mut impl Rng) -> Duration {
    let span = BASE.saturating_mul(1 << attempt.min(8)).min(MAX_WAIT);
    span.mul_f64(rng.gen_range(0.5..1.0))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn delays_grow_with_jitter_and_stay_bounded() {
        let mut rng = StdRng::seed_from_u64(1);
        for attempt in 1..40 {
            let wait = delay(attempt, &mut rng);
            assert!(wait >= BASE && wait <= MAX_WAIT, "attempt {attempt}: {wait:?}");
        }
        let first: Vec<_> = (0..8).map(|_| delay(1, &mut rng)).collect();
        assert!(first.windows(2).any(|pair| pair[0] != pair[1]));
    }
}
