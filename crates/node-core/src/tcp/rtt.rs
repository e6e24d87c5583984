//! Round-trip time and retransmission timeout (RFC 6298).

use std::time::Duration;

/// The timeout while nothing was measured.
const INITIAL: Duration = Duration::from_secs(1);
/// The shortest timeout: peers acknowledge late by up to 40 ms, and a busy one is late by more.
const MIN: Duration = Duration::from_millis(200);
/// How far repeated timeouts grow at first. A path that was cut is usable again within this time once it works, at the price of one packet a second.
const PATIENT: Duration = Duration::from_secs(1);
/// How far they grow when that went on for [`PATIENT_ROUNDS`].
const MAX: Duration = Duration::from_secs(8);
const PATIENT_ROUNDS: u32 = 60;

/// What was measured of one connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rtt {
    smoothed: Option<Duration>,
    variation: Duration,
    least: Duration,
}

impl Default for Rtt {
    fn default() -> Self {
        Self {
            smoothed: None,
            variation: Duration::ZERO,
            least: Duration::MAX,
        }
    }
}

impl Rtt {
    pub(super) fn sample(&mut self, rtt: Duration) {
        self.least = self.least.min(rtt);
        match self.smoothed {
            None => {
                self.smoothed = Some(rtt);
                self.variation = rtt / 2;
            }
            Some(smoothed) => {
                self.variation = (self.variation * 3 + smoothed.abs_diff(rtt)) / 4;
                self.smoothed = Some((smoothed * 7 + rtt) / 8);
            }
        }
    }

    pub(super) fn smoothed(&self) -> Option<Duration> {
        self.smoothed
    }

    /// The shortest that was seen.
    pub(super) fn least(&self) -> Duration {
        self.least
    }

    /// The timeout after `rounds` timeouts in a row.
    pub(super) fn timeout(&self, rounds: u32) -> Duration {
        let base = match self.smoothed {
            Some(smoothed) => (smoothed + self.variation * 4).max(MIN),
            None => INITIAL,
        };
        let ceiling = match (self.smoothed, rounds) {
            (Some(_), ..PATIENT_ROUNDS) => PATIENT,
            _ => MAX,
        };
        base.saturating_mul(1 << rounds.min(16)).min(ceiling.max(base))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_follow_the_path_and_double_up_to_a_bound() {
        let mut rtt = Rtt::default();
        assert_eq!(rtt.timeout(0), Duration::from_secs(1));
        assert_eq!(rtt.timeout(2), Duration::from_secs(4));
        for _ in 0..50 {
            rtt.sample(Duration::from_millis(10));
        }
        assert_eq!(rtt.timeout(0), MIN);
        assert_eq!(rtt.timeout(1), MIN * 2);
        assert_eq!(rtt.timeout(10), PATIENT);
        assert_eq!(rtt.timeout(PATIENT_ROUNDS), MAX);
        rtt.sample(Duration::from_secs(3));
        assert!(rtt.timeout(0) > Duration::from_secs(1) && rtt.timeout(9) == rtt.timeout(0));
        assert_eq!(rtt.least(), Duration::from_millis(10));
    }
}
