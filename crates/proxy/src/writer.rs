//! Writes an identity's status: at once when something changes, never two writes at a time, bounded in number.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use rand::rngs::OsRng;
use tailwharf_kube_types::{Identity, IdentityStatus};
use tailwharf_node::Backoff;
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use crate::cluster::{ApiError, Cluster, is_newer};
use crate::metrics::Metrics;
use crate::status::Claim;

/// So many writes may follow each other at once; further ones wait for this time each, so that a flapping node does not load the API server.
const BURST: u32 = 12;
const INTERVAL: Duration = Duration::from_secs(2);

/// What came of a write.
#[derive(Debug)]
pub(crate) enum Written {
    /// The identity as it is now.
    Done(Box<Identity>),
    /// Another pod has claimed the identity, or it is gone.
    Lost(Option<Box<Identity>>),
}

enum Outcome {
    Done(Box<Identity>),
    /// Someone wrote meanwhile; the identity as it is now.
    Newer(Box<Identity>),
    Gone,
    Failed(ApiError),
}

/// Writes the status of one identity that this pod has claimed.
pub(crate) struct StatusWriter {
    cluster: Arc<Cluster>,
    metrics: Arc<Metrics>,
    name: Arc<str>,
    claim: Claim,
    version: String,
    /// As the API server has it.
    written: IdentityStatus,
    wanted: IdentityStatus,
    /// What the write under way carries.
    sent: IdentityStatus,
    writing: Option<BoxFuture<'static, Outcome>>,
    not_before: Option<Instant>,
    backoff: Backoff,
    /// When the whole burst is there again.
    full: Instant,
}

impl StatusWriter {
    /// For an identity as the claim left it.
    #[must_use]
    pub(crate) fn new(
        cluster: Arc<Cluster>,
        metrics: Arc<Metrics>,
        name: Arc<str>,
        claim: Claim,
        identity: &Identity,
    ) -> Self {
        let written = identity.status.clone().unwrap_or_default();
        Self {
            cluster,
            metrics,
            name,
            claim,
            version: identity.metadata.resource_version.clone().unwrap_or_default(),
            wanted: written.clone(),
            sent: written.clone(),
            written,
            writing: None,
            not_before: None,
            backoff: Backoff::new(Duration::from_millis(50), Duration::from_secs(10)),
            full: Instant::now(),
        }
    }

    /// The last status wanted: what the next one follows.
    #[must_use]
    pub(crate) fn wanted(&self) -> &IdentityStatus {
        &self.wanted
    }

    /// The status is to become this.
    pub(crate) fn want(&mut self, status: IdentityStatus) {
        self.wanted = status;
    }

    /// Whether the API server has what is wanted.
    #[must_use]
    pub(crate) fn settled(&self) -> bool {
        self.writing.is_none() && self.written == self.wanted
    }

    /// A watch showed this version of the identity.
    pub(crate) fn handle_version(&mut self, identity: &Identity) {
        if is_newer(identity, &self.version) {
            self.take_version(identity);
        }
    }

    /// Writes what is wanted and waits for the outcome; waits for ever when nothing is to be written. May be dropped at any
    /// point and called again.
    pub(crate) async fn next(&mut self) -> Written {
        loop {
            let outcome = match &mut self.writing {
                Some(writing) => {
                    let outcome = writing.await;
                    self.writing = None;
                    outcome
                }
                None if self.written == self.wanted => std::future::pending().await,
                None => {
                    if let Some(at) = self.not_before {
                        sleep_until(at).await;
                    }
                    self.start();
                    continue;
                }
            };
            match outcome {
                Outcome::Done(identity) => {
                    self.backoff.reset();
                    self.written.clone_from(&self.sent);
                    self.take_version(&identity);
                    return Written::Done(identity);
                }
                Outcome::Newer(identity) if self.is_ours(&identity) => self.take_version(&identity),
                Outcome::Newer(identity) => return Written::Lost(Some(identity)),
                Outcome::Gone => return Written::Lost(None),
                Outcome::Failed(error) => {
                    warn!(
                        error = &error as &dyn std::error::Error,
                        "the status could not be written"
                    );
                    self.not_before = Some(Instant::now() + self.backoff.next(&mut OsRng));
                }
            }
        }
    }

    fn is_ours(&self, identity: &Identity) -> bool {
        let status = identity.status.as_ref();
        status.is_some_and(|status| {
            status.host.as_deref() == Some(&*self.claim.host)
                && status.claim.as_deref() == Some(&*self.claim.name)
        })
    }

    fn take_version(&mut self, identity: &Identity) {
        self.version = identity.metadata.resource_version.clone().unwrap_or_default();
    }

    fn start(&mut self) {
        self.full = self.full.max(Instant::now()) + INTERVAL;
        self.not_before = self.full.checked_sub(INTERVAL * (BURST - 1));
        self.metrics.status_writes.increment();
        let (cluster, name) = (self.cluster.clone(), self.name.clone());
        self.sent.clone_from(&self.wanted);
        let (version, status) = (self.version.clone(), self.wanted.clone());
        self.writing = Some(
            async move {
                match cluster.write_status(&name, &version, &status).await {
                    Ok(identity) => Outcome::Done(Box::new(identity)),
                    Err(ApiError::NotFound) => Outcome::Gone,
                    Err(ApiError::Conflict) => match cluster.identity(&name).await {
                        Ok(identity) => Outcome::Newer(Box::new(identity)),
                        Err(ApiError::NotFound) => Outcome::Gone,
                        Err(error) => Outcome::Failed(error),
                    },
                    Err(error) => Outcome::Failed(error),
                }
            }
            .boxed(),
        );
    }
}
