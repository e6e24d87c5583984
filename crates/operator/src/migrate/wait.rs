//! Waiting for what others do.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::time::{Instant, sleep};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Looks until it is so, for a limited time. A look says what is still missing.
pub(super) async fn until(
    limit: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> Result<(), Missing>,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let missing = match look().await {
            Ok(()) => return Ok(()),
            Err(missing) => missing,
        };
        if Instant::now() > deadline {
            return Err(match missing {
                Missing::Yet(text) => anyhow::anyhow!(text),
                Missing::Unknown(error) => error.into(),
            })
            .with_context(|| format!("not within {} s: {what}", limit.as_secs()));
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Why it is not so yet.
pub(super) enum Missing {
    /// It was looked at.
    Yet(String),
    /// The cluster did not answer.
    Unknown(kube::Error),
}

impl From<kube::Error> for Missing {
    fn from(error: kube::Error) -> Self {
        Self::Unknown(error)
    }
}
