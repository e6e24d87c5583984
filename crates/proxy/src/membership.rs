//! The shell around `member`: reads, watches and writes Leases, and tells the pool who is alive.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::{Value, json};
use tailwharf_kube_types::contract::label;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::cluster::{ApiError, Cluster};
use crate::member::{LIFE, LeaseReading, Members, OwnLease, RETRY_PAUSE, Step, Tenure};
use crate::metrics::Metrics;
use crate::reconcile::View;

/// Time for one request about a Lease: two attempts and a bit fit between a renewal and the fence.
const LEASE_TIMEOUT: Duration = Duration::from_millis(500);
/// A watch is renewed this often, in seconds, so that one that died silently is noticed.
pub(crate) const WATCH_SECONDS: u32 = 60;
/// On the Lease of a member that takes no new identities and hands its own over.
const DRAINING: &str = "tailwharf.dev/draining";
/// An hour from now stands for "nothing is due".
const NOTHING_DUE: Duration = Duration::from_secs(3600);

/// The pool as this pod sees it, and the token that ends with its tenure.
#[derive(Debug, Clone, Default)]
pub(crate) struct Membership {
    /// Who is alive.
    pub view: View,
    /// Cancelled when this pod must not host any more what it hosts in this tenure.
    pub fence: CancellationToken,
}

/// Who this member is.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    /// Name of the pod and of its Lease.
    pub pod: String,
    /// UID of the pod.
    pub uid: String,
    /// The pool.
    pub pool: String,
}

enum OwnDone {
    Read(Result<Option<Lease>, ApiError>),
    Written(Result<Lease, ApiError>),
}

/// Keeps our Lease and watches those of the others.
pub(crate) struct Keeper {
    cluster: Arc<Cluster>,
    metrics: Arc<Metrics>,
    member: Member,
    own: OwnLease,
    others: Members,
    draining: bool,
    /// The request under way tells that this pod drains.
    telling: bool,
    /// The others can see that this pod drains.
    told: bool,
    published: watch::Sender<Membership>,
    inquiries: mpsc::UnboundedReceiver<String>,
    /// When the request for our Lease that is under way was sent.
    sent: Instant,
}

impl Keeper {
    /// For a member that does not hold its Lease yet. `inquiries` are names of members that identities name as hosts.
    #[must_use]
    pub(crate) fn new(
        cluster: Arc<Cluster>,
        metrics: Arc<Metrics>,
        member: Member,
        inquiries: mpsc::UnboundedReceiver<String>,
    ) -> Self {
        Self {
            own: OwnLease::new(&member.uid),
            cluster,
            metrics,
            member,
            others: Members::default(),
            draining: false,
            telling: false,
            told: false,
            published: watch::Sender::default(),
            inquiries,
            sent: Instant::now(),
        }
    }

    /// The pool as it is seen, now and after each change.
    #[must_use]
    pub(crate) fn membership(&self) -> watch::Receiver<Membership> {
        self.published.subscribe()
    }

    /// Keeps the membership until `leave`, then gives the Lease back. From `drain` on, the others know that this pod takes
    /// no identities.
    pub(crate) async fn run(mut self, drain: CancellationToken, leave: CancellationToken) {
        let selector = format!("{}={}", label::POOL, self.member.pool);
        let config = watcher::Config::default()
            .labels(&selector)
            .timeout(WATCH_SECONDS);
        let mut leases = watcher(self.cluster.leases.clone(), config)
            .default_backoff()
            .boxed();
        let mut own: Option<BoxFuture<'static, OwnDone>> = None;
        let mut confirm: Option<BoxFuture<'static, Confirmation>> = None;
        loop {
            let now = Instant::now();
            self.publish(now);
            let mut wake = now + NOTHING_DUE;
            if own.is_none() {
                match self.own.poll(now) {
                    Step::Wait(until) => wake = wake.min(until),
                    step => own = Some(self.start(step, now)),
                }
            }
            if confirm.is_none() {
                match self.others.suspects(now).into_iter().next() {
                    Some(member) => confirm = Some(confirmation(self.cluster.clone(), member)),
                    None => wake = self.others.next_expiry().map_or(wake, |expiry| wake.min(expiry)),
                }
            }
            if let Some(fence) = self.own.fence_at().filter(|fence| *fence > now) {
                wake = wake.min(fence);
            }
            tokio::select! {
                biased;
                () = leave.cancelled() => break,
                () = drain.cancelled(), if !self.draining => {
                    self.draining = true;
                    self.own.hurry(Instant::now());
                }
                () = sleep_until(wake) => {}
                done = pending(&mut own) => self.handle_own(done),
                done = pending(&mut confirm) => self.handle_confirmation(done),
                Some(host) = self.inquiries.recv() => self.others.inquire(&host, Instant::now()),
                Some(event) = leases.next() => self.handle_watch(event),
            }
        }
        self.leave().await;
    }

    /// Sends the request that the machine asks for.
    fn start(&mut self, step: Step, now: Instant) -> BoxFuture<'static, OwnDone> {
        self.sent = now;
        self.telling = self.draining;
        let (cluster, name) = (self.cluster.clone(), self.member.pod.clone());
        match step {
            Step::Create => {
                let lease = self.new_lease();
                async move { OwnDone::Written(cluster.create_lease(&lease, LEASE_TIMEOUT).await) }.boxed()
            }
            Step::Renew { version } => {
                let patch = self.renewal(&version, Some(&self.member.uid));
                async move { OwnDone::Written(cluster.patch_lease(&name, patch, LEASE_TIMEOUT).await) }
                    .boxed()
            }
            Step::Read | Step::Wait(_) => {
                async move { OwnDone::Read(cluster.lease(&name, LEASE_TIMEOUT).await) }.boxed()
            }
        }
    }

    fn handle_own(&mut self, done: OwnDone) {
        let now = Instant::now();
        match done {
            OwnDone::Read(Ok(lease)) => {
                self.own
                    .handle_read(lease.map(|lease| self.reading(&lease)), self.sent, now);
            }
            OwnDone::Written(Ok(lease)) => {
                self.told |= self.telling;
                self.own
                    .handle_written(self.reading(&lease).version, self.sent, now);
            }
            OwnDone::Written(Err(ApiError::Conflict | ApiError::NotFound)) => self.own.handle_failed(now),
            OwnDone::Read(Err(error)) | OwnDone::Written(Err(error)) => {
                warn!(
                    error = &error as &dyn std::error::Error,
                    "the member Lease could not be renewed"
                );
                self.own.handle_failed(now);
            }
        }
    }

    fn handle_confirmation(&mut self, confirmation: Confirmation) {
        match confirmation.read {
            Ok(lease) => {
                let read = lease.as_ref().map(|lease| self.reading(lease));
                self.others
                    .confirm(&confirmation.member, read, confirmation.started, Instant::now());
            }
            // Asked again at the next turn; until then the member counts as alive.
            Err(error) => {
                warn!(
                    member = confirmation.member,
                    error = &error as &dyn std::error::Error,
                    "cannot tell whether a member is alive"
                );
            }
        }
    }

    fn handle_watch(&mut self, event: Result<watcher::Event<Lease>, watcher::Error>) {
        use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
        match event {
            Ok(Apply(lease) | InitApply(lease)) => {
                if let Some(name) = self.other(&lease) {
                    self.others.observe(name, self.reading(&lease), Instant::now());
                }
            }
            // A Lease that is gone runs out like any other.
            Ok(Delete(_) | Init | InitDone) => {}
            Err(error) => warn!(
                error = &error as &dyn std::error::Error,
                "the watch of member Leases broke off"
            ),
        }
    }

    fn reading(&self, lease: &Lease) -> LeaseReading {
        reading(lease, &self.member.pool)
    }

    /// The name of a Lease that is not ours.
    fn other<'a>(&self, lease: &'a Lease) -> Option<&'a str> {
        lease
            .metadata
            .name
            .as_deref()
            .filter(|name| *name != self.member.pod)
    }

    /// Tells the pool what has changed.
    fn publish(&self, now: Instant) {
        let tenure = self.own.tenure(now);
        let mut candidates = self.others.candidates();
        if tenure.is_some() && !self.told {
            candidates.insert(self.member.pod.clone());
        }
        let view = View {
            tenure,
            candidates,
            dead: self.others.dead(),
        };
        self.published.send_if_modified(|membership| {
            if membership.view == view {
                return false;
            }
            if membership.view.tenure != view.tenure {
                membership.fence.cancel();
                membership.fence = CancellationToken::new();
                self.tell_tenure(view.tenure.as_ref());
            }
            membership.view = view;
            true
        });
    }

    fn tell_tenure(&self, tenure: Option<&Tenure>) {
        if tenure.is_some() {
            self.metrics.tenures.increment();
            info!(pod = self.member.pod, "this pod is a member of its pool");
        } else {
            warn!(
                pod = self.member.pod,
                "this pod lost its member Lease and hosts nothing until it has it again"
            );
        }
    }

    /// Gives the Lease back, so that the others need not wait for its end.
    async fn leave(self) {
        let now = Instant::now();
        self.published.send_modify(|membership| {
            membership.fence.cancel();
            membership.view = View::default();
        });
        if self.own.tenure(now).is_none() {
            return;
        }
        // A renewal may have been under way: the version is read anew.
        let read = self.cluster.lease(&self.member.pod, LEASE_TIMEOUT).await;
        let given_back = match read {
            Ok(Some(lease)) if self.reading(&lease).holder.as_deref() == Some(&*self.member.uid) => {
                let patch = self.renewal(&self.reading(&lease).version, None);
                self.cluster
                    .patch_lease(&self.member.pod, patch, LEASE_TIMEOUT)
                    .await
                    .map(drop)
            }
            other => other.map(drop),
        };
        if let Err(error) = given_back {
            warn!(
                error = &error as &dyn std::error::Error,
                "the member Lease could not be given back; it ends by itself"
            );
        }
    }

    fn labels(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            (label::POOL.to_owned(), self.member.pool.clone()),
            (label::MANAGED.to_owned(), "true".to_owned()),
        ])
    }

    fn new_lease(&self) -> Lease {
        let now = MicroTime(Timestamp::now());
        Lease {
            metadata: ObjectMeta {
                name: Some(self.member.pod.clone()),
                labels: Some(self.labels()),
                annotations: self
                    .draining
                    .then(|| BTreeMap::from([(DRAINING.to_owned(), "true".to_owned())])),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.member.uid.clone()),
                lease_duration_seconds: i32::try_from(LIFE.as_secs()).ok(),
                acquire_time: Some(now.clone()),
                renew_time: Some(now),
                ..LeaseSpec::default()
            }),
        }
    }

    /// The merge patch that renews our Lease, or gives it back when there is no holder.
    fn renewal(&self, version: &str, holder: Option<&str>) -> Value {
        json!({
            "metadata": {
                "resourceVersion": version,
                "labels": self.labels(),
                "annotations": { DRAINING: self.draining.then_some("true") },
            },
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": LIFE.as_secs(),
                "renewTime": MicroTime(Timestamp::now()),
            },
        })
    }
}

/// What a read of a suspect's Lease gave.
struct Confirmation {
    member: String,
    started: Instant,
    read: Result<Option<Lease>, ApiError>,
}

fn confirmation(cluster: Arc<Cluster>, member: String) -> BoxFuture<'static, Confirmation> {
    async move {
        let started = Instant::now();
        let read = cluster.lease(&member, LEASE_TIMEOUT).await;
        if read.is_err() {
            sleep(RETRY_PAUSE).await;
        }
        Confirmation {
            member,
            started,
            read,
        }
    }
    .boxed()
}

/// The outcome of what is under way, if anything is.
async fn pending<T>(slot: &mut Option<BoxFuture<'static, T>>) -> T {
    let Some(future) = slot else {
        return std::future::pending().await;
    };
    let done = future.await;
    *slot = None;
    done
}

/// What a Lease says to a member of `pool`.
fn reading(lease: &Lease, pool: &str) -> LeaseReading {
    let metadata = &lease.metadata;
    let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone());
    let labels = metadata.labels.as_ref();
    let annotations = metadata.annotations.as_ref();
    let draining = annotations.is_some_and(|annotations| annotations.contains_key(DRAINING));
    // An identity that moved here from another pool names a member of that one, which is asked about.
    let of_pool = labels.is_some_and(|labels| labels.get(label::POOL).is_some_and(|named| named == pool));
    LeaseReading {
        holder: holder.filter(|holder| !holder.is_empty()),
        version: metadata.resource_version.clone().unwrap_or_default(),
        willing: of_pool && !draining,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_in_another_pool_or_drains_takes_no_identity_of_this_one() {
        let willing = |pool: &str, annotations: Value| {
            let lease = json!({
                "metadata": {"labels": {label::POOL: pool}, "annotations": annotations},
                "spec": {"holderIdentity": "uid"},
            });
            reading(&serde_json::from_value(lease).unwrap(), "mine").willing
        };
        assert!(willing("mine", json!({})));
        assert!(!willing("mine", json!({DRAINING: "true"})));
        assert!(!willing("other", json!({})));
    }
}
