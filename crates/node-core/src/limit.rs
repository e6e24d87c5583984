//! How often something is done for strangers.

use std::time::{Duration, Instant};

const WINDOW: Duration = Duration::from_secs(1);

/// Lets so many actions pass in a second.
#[derive(Debug)]
pub(crate) struct Limiter {
    most: u32,
    window: Option<Instant>,
    done: u32,
}

impl Limiter {
    pub(crate) fn new(most: u32) -> Self {
        Self {
            most,
            window: None,
            done: 0,
        }
    }

    /// Whether one more may be done now, which counts.
    pub(crate) fn allow(&mut self, now: Instant) -> bool {
        if self
            .window
            .is_none_or(|start| now.duration_since(start) >= WINDOW)
        {
            self.window = Some(now);
            self.done = 0;
        }
        if self.done == self.most {
            return false;
        }
        self.done += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_a_second() {
        let (mut limiter, now) = (Limiter::new(3), Instant::now());
        let allowed = |limiter: &mut Limiter, at| (0..10).filter(|_| limiter.allow(at)).count();
        assert_eq!(allowed(&mut limiter, now), 3);
        assert_eq!(allowed(&mut limiter, now + WINDOW / 2), 0);
        assert_eq!(allowed(&mut limiter, now + WINDOW), 3);
    }
}
