//! How much may be under way: CUBIC (RFC 9438).

use std::time::{Duration, Instant};

/// Segments that may be sent before anything was heard (RFC 6928).
const INITIAL_SEGMENTS: usize = 10;
/// What remains of the window after a loss.
const BETA: f64 = 0.7;
/// How steep the window grows back, in segments per second cubed.
const C: f64 = 0.4;
/// Growth per round trip while the estimate of a Reno flow is larger.
const RENO: f64 = 3.0 * (1.0 - BETA) / (1.0 + BETA);

/// The congestion window of one connection, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cubic {
    window: f64,
    threshold: f64,
    mss: f64,
    /// The window before the last loss.
    peak: f64,
    /// When growth after the last loss began, and with which window.
    epoch: Option<(Instant, f64)>,
    /// The window that a Reno flow would have.
    reno: f64,
    /// Window and threshold before the last loss, should it turn out to have been none.
    before: (f64, f64),
}

impl Cubic {
    pub(super) fn new(mss: usize) -> Self {
        let mss = mss as f64;
        let window = INITIAL_SEGMENTS as f64 * mss;
        Self {
            window,
            threshold: f64::INFINITY,
            mss,
            peak: 0.0,
            epoch: None,
            reno: window,
            before: (window, f64::INFINITY),
        }
    }

    pub(super) fn set_mss(&mut self, mss: usize) {
        let segments = self.window / self.mss;
        self.mss = mss as f64;
        self.window = segments * self.mss;
    }

    pub(super) fn window(&self) -> usize {
        self.window as usize
    }

    /// Bytes were acknowledged while the window was the limit.
    pub(super) fn acked(&mut self, bytes: usize, rtt: Duration, now: Instant) {
        let bytes = bytes as f64;
        if self.window < self.threshold {
            self.window += bytes;
            return;
        }
        let (since, start) = *self.epoch.get_or_insert_with(|| {
            self.reno = self.window;
            (now, self.window)
        });
        let peak = self.peak.max(start);
        let k = ((peak - start) / self.mss / C).cbrt();
        let t = (now.duration_since(since) + rtt).as_secs_f64();
        let cubic = (peak + C * (t - k).powi(3) * self.mss).clamp(self.window, self.window * 1.5);
        let gain = if self.reno < self.peak { RENO } else { 1.0 };
        self.reno += gain * self.mss * bytes / self.window;
        self.window += (cubic - self.window) * bytes / self.window;
        self.window = self.window.max(self.reno);
    }

    /// Something was lost, for the first time in a round trip.
    pub(super) fn lost(&mut self) {
        self.before = (self.window, self.threshold);
        // A flow that loses before it was back at its peak makes room for others.
        self.peak = if self.window < self.peak {
            self.window * (1.0 + BETA) / 2.0
        } else {
            self.window
        };
        self.threshold = (self.window * BETA).max(2.0 * self.mss);
        self.window = self.threshold;
        self.epoch = None;
    }

    /// What was taken for lost had only been late.
    pub(super) fn undo(&mut self) {
        let (window, threshold) = self.before;
        self.window = self.window.max(window);
        self.threshold = self.threshold.max(threshold);
        self.epoch = None;
    }

    /// Nothing was heard for the whole timeout.
    pub(super) fn timed_out(&mut self) {
        self.lost();
        self.window = self.mss;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MSS: usize = 1240;
    const RTT: Duration = Duration::from_millis(20);

    /// Windows after each round trip in which all of the window was acknowledged.
    fn run(cubic: &mut Cubic, now: &mut Instant, rounds: usize) {
        for _ in 0..rounds {
            *now += RTT;
            cubic.acked(cubic.window(), RTT, *now);
        }
    }

    #[test]
    fn grows_fast_backs_off_and_comes_back() {
        let (mut cubic, mut now) = (Cubic::new(MSS), Instant::now());
        run(&mut cubic, &mut now, 5);
        assert_eq!(cubic.window(), 10 * MSS * 32);
        let peak = cubic.window();
        cubic.lost();
        assert_eq!(cubic.window(), (peak as f64 * BETA) as usize);
        run(&mut cubic, &mut now, 30);
        let early = cubic.window();
        assert!(early > peak * 7 / 10 && early < peak);
        run(&mut cubic, &mut now, 1000);
        assert!(cubic.window() > peak);
    }

    #[test]
    fn what_was_no_loss_is_undone() {
        let mut cubic = Cubic::new(MSS);
        let before = cubic.window();
        cubic.timed_out();
        cubic.undo();
        assert_eq!(cubic.window(), before);
        assert!(cubic.window < cubic.threshold);
    }

    #[test]
    fn a_timeout_starts_from_one_segment() {
        let (mut cubic, mut now) = (Cubic::new(MSS), Instant::now());
        cubic.timed_out();
        assert_eq!(cubic.window(), MSS);
        run(&mut cubic, &mut now, 3);
        assert!(cubic.window() >= 7 * MSS);
    }
}
