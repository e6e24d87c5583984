//! Which replica writes: the holder of one Lease. The others keep their caches warm.
//!
//! Clocks of different machines are never compared: a Lease counts as abandoned when it was not renewed for its
//! duration by *this* machine's clock, and this replica stops to write before others may take over.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, ResourceExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::error::is_conflict;

/// How long a Lease lives without renewal.
const DURATION: Duration = Duration::from_secs(15);
/// The holder stops to write this long before the Lease ends: the longest that one write may be under way.
const MARGIN: Duration = Duration::from_secs(5);
const RENEW_EVERY: Duration = Duration::from_secs(5);
const RETRY_EVERY: Duration = Duration::from_secs(2);
/// A request that takes longer is given up and repeated.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);

/// Tells whether this replica may write.
#[derive(Clone)]
pub(crate) struct Leadership(watch::Receiver<Option<Instant>>);

impl Leadership {
    /// Whether it may write at this moment.
    pub(crate) fn holds(&self) -> bool {
        self.0.borrow().is_some_and(|until| Instant::now() < until)
    }

    /// Returns once it may write.
    pub(crate) async fn held(&mut self) {
        let leads = |until: &Option<Instant>| until.is_some_and(|until| Instant::now() < until);
        if self.0.wait_for(leads).await.is_err() {
            // The elector is gone, and with it this process.
            std::future::pending::<()>().await;
        }
    }

    /// Returns once it was told that another replica leads.
    pub(crate) async fn lost(&mut self) {
        if self.0.wait_for(Option::is_none).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Takes and renews the Lease.
pub(crate) struct Elector {
    api: Api<Lease>,
    name: String,
    holder: String,
    until: watch::Sender<Option<Instant>>,
    /// The Lease as last seen, and since when it looks like that.
    seen: Option<(Lease, Instant)>,
}

/// What one look at the Lease led to.
enum Outcome {
    Ours,
    Theirs(String),
    Contended,
}

impl Elector {
    pub(crate) fn new(client: Client, namespace: &str, name: &str, holder: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            holder: holder.to_owned(),
            until: watch::Sender::new(None),
            seen: None,
        }
    }

    pub(crate) fn leadership(&self) -> Leadership {
        Leadership(self.until.subscribe())
    }

    /// Runs until `stop`, then gives the Lease back so that another replica need not wait.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let wait = self.round().await;
            tokio::select! {
                () = sleep(wait) => {}
                () = stop.cancelled() => {}
            }
        }
        if self.until.send_replace(None).is_some() {
            self.release().await;
        }
    }

    async fn round(&mut self) -> Duration {
        let start = Instant::now();
        let led = self.until.borrow().is_some();
        match timeout(REQUEST_TIMEOUT, self.attempt()).await {
            Ok(Ok(Outcome::Ours)) => {
                if !led {
                    tracing::info!(lease = self.name, "this replica leads");
                }
                self.until.send_replace(Some(start + DURATION - MARGIN));
                return RENEW_EVERY;
            }
            Ok(Ok(Outcome::Theirs(holder))) => {
                if led {
                    tracing::warn!(lease = self.name, holder, "another replica leads now");
                }
                self.until.send_replace(None);
            }
            Ok(Ok(Outcome::Contended)) => self.seen = None,
            Ok(Err(error)) => {
                tracing::warn!(lease = self.name, error = %error, "the Lease could not be renewed; trying again");
                self.seen = None;
            }
            Err(_) => tracing::warn!(
                lease = self.name,
                "the API server did not answer about the Lease; trying again"
            ),
        }
        RETRY_EVERY
    }

    async fn attempt(&mut self) -> Result<Outcome, kube::Error> {
        let current = match self.ours() {
            Some(lease) => Some(lease),
            None => self.api.get_opt(&self.name).await?,
        };
        let Some(current) = current else {
            let fresh = Lease {
                metadata: ObjectMeta {
                    name: Some(self.name.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.spec(0, None)),
            };
            let written = self.api.create(&PostParams::default(), &fresh).await;
            return self.took(written);
        };
        let spec = current.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        if !holder.is_empty() && holder != self.holder && !self.abandoned(&current, &spec) {
            return Ok(Outcome::Theirs(holder));
        }
        let transitions = spec.lease_transitions.unwrap_or(0) + i32::from(holder != self.holder);
        let acquired = if holder == self.holder {
            spec.acquire_time
        } else {
            None
        };
        let renewed = Lease {
            metadata: current.metadata,
            spec: Some(self.spec(transitions, acquired)),
        };
        let written = self
            .api
            .replace(&self.name, &PostParams::default(), &renewed)
            .await;
        self.took(written)
    }

    /// The Lease as we wrote it last, which saves a read; a conflict tells if another wrote since.
    fn ours(&self) -> Option<Lease> {
        let (lease, _) = self.seen.as_ref()?;
        let holder = lease.spec.as_ref()?.holder_identity.as_ref()?;
        (*holder == self.holder).then(|| lease.clone())
    }

    fn took(&mut self, written: Result<Lease, kube::Error>) -> Result<Outcome, kube::Error> {
        match written {
            Ok(lease) => {
                self.seen = Some((lease, Instant::now()));
                Ok(Outcome::Ours)
            }
            Err(error) if is_conflict(&error) => Ok(Outcome::Contended),
            Err(error) => Err(error),
        }
    }

    /// Whether the Lease has looked the same for longer than it lives.
    fn abandoned(&mut self, current: &Lease, spec: &LeaseSpec) -> bool {
        let version = current.resource_version();
        match &self.seen {
            Some((seen, since)) if seen.resource_version() == version => {
                let life = u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0);
                since.elapsed() > Duration::from_secs(life)
            }
            _ => {
                self.seen = Some((current.clone(), Instant::now()));
                false
            }
        }
    }

    fn spec(&self, transitions: i32, acquired: Option<MicroTime>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.holder.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: Some(acquired.unwrap_or_else(|| now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    async fn release(&mut self) {
        let Some(mut lease) = self.ours() else { return };
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = None;
        }
        let written = timeout(
            REQUEST_TIMEOUT,
            self.api.replace(&self.name, &PostParams::default(), &lease),
        )
        .await;
        if !matches!(written, Ok(Ok(_))) {
            tracing::info!(
                lease = self.name,
                "the Lease was not given back; it ends on its own"
            );
        }
    }
}
