//! Waiting on conditions with a deadline.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// How long [`eventually`] waits; far above what any condition takes on a loaded machine with two cores.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Looks at a condition until it yields a value, for at most [`PATIENCE`].
///
/// # Errors
/// Names `what` and the last failure when the deadline passes.
pub fn eventually<T>(what: &str, look: impl FnMut() -> Result<T>) -> Result<T> {
    eventually_within(PATIENCE, what, look)
}

/// Looks at a condition until it yields a value, for at most `limit`.
///
/// # Errors
/// Names `what` and the last failure when the deadline passes.
pub fn eventually_within<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match look() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(anyhow!("not within {limit:?}: {what}: {error:#}"));
            }
            Err(_) => pause(Duration::from_millis(20)),
        }
    }
}

/// The pause between two looks at a condition.
#[expect(
    clippy::disallowed_methods,
    reason = "the one pause between two looks at a condition"
)]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}
