//! The pool member: watches the identities of its pool and runs those that fall to this pod.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use futures::StreamExt;
use kube::ResourceExt;
use kube::runtime::{WatchStreamExt, watcher};
use tailwharf_kube_types::contract::label;
use tailwharf_kube_types::{ConditionStatus, ConditionType, Identity};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, info, info_span, warn};

use crate::board::{Board, Hosted};
use crate::cluster::{is_newer, lean};
use crate::hosting::{Job, Order, Report, Shared, disown, host};
use crate::membership::{Membership, WATCH_SECONDS};
use crate::reconcile::{Action, Host, Running, Stage, decide};
use crate::status::Claim;

/// Everything is looked at again this often, whatever the watches brought.
const SLOW_PASS: Duration = Duration::from_secs(30);
/// After the end of a tenure, everything of it must have ended within this; others take over soon after.
const FENCE_GRACE: Duration = Duration::from_millis(700);
/// Time to hand everything over at the end; less than a pod's grace period.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);

/// One identity that runs here.
struct Hosting {
    serial: u64,
    running: Running,
    orders: watch::Sender<Order>,
    identity: watch::Sender<Arc<Identity>>,
}

/// One identity of the pool.
struct Known {
    identity: Arc<Identity>,
    /// When its present host and claim were first seen.
    since: Instant,
}

/// The pool as this pod runs it.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    name: String,
    board: Arc<Board>,
    membership: watch::Receiver<Membership>,
    inquiries: mpsc::UnboundedSender<String>,
    identities: BTreeMap<Arc<str>, Known>,
    hosting: BTreeMap<Arc<str>, Hosting>,
    /// Identities that are being let go without running here.
    disowning: BTreeSet<Arc<str>>,
    /// Names of a list that is being received.
    listed: Option<BTreeSet<Arc<str>>>,
    serial: u64,
    reports: mpsc::UnboundedSender<(Arc<str>, u64, Report)>,
}

impl Pool {
    /// The member of the pool `name` with nothing running.
    #[must_use]
    pub(crate) fn new(
        shared: Arc<Shared>,
        name: String,
        board: Arc<Board>,
        membership: watch::Receiver<Membership>,
        inquiries: mpsc::UnboundedSender<String>,
    ) -> (Self, mpsc::UnboundedReceiver<(Arc<str>, u64, Report)>) {
        let (reports, received) = mpsc::unbounded_channel();
        let pool = Self {
            shared,
            name,
            board,
            membership,
            inquiries,
            identities: BTreeMap::new(),
            hosting: BTreeMap::new(),
            disowning: BTreeSet::new(),
            listed: None,
            serial: 0,
            reports,
        };
        (pool, received)
    }

    /// Runs until `drain` is cancelled and everything is handed over.
    ///
    /// # Errors
    /// When something goes on running though it should have ended. The process must end then.
    pub(crate) async fn run(
        mut self,
        mut received: mpsc::UnboundedReceiver<(Arc<str>, u64, Report)>,
        drain: CancellationToken,
    ) -> anyhow::Result<()> {
        let config = watcher::Config::default()
            .labels(&format!("{}={}", label::POOL, self.name))
            .timeout(WATCH_SECONDS);
        let mut watch = watcher(self.shared.cluster.identities.clone(), config)
            .default_backoff()
            .boxed();
        let mut slow_pass = interval(SLOW_PASS);
        slow_pass.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut end_by: Option<Instant> = None;
        let mut fence_by: Option<Instant> = None;
        loop {
            if end_by.is_some() && self.hosting.is_empty() && self.disowning.is_empty() {
                return Ok(());
            }
            tokio::select! {
                biased;
                () = drain.cancelled(), if end_by.is_none() => end_by = Some(Instant::now() + DRAIN_TIMEOUT),
                () = at(end_by) => bail!("{} identities could not be handed over in time", self.hosting.len()),
                () = at(fence_by) => {
                    if self.outlives_tenure() {
                        bail!("an identity could not be ended in time after the member Lease was lost");
                    }
                    fence_by = None;
                }
                Ok(()) = self.membership.changed() => {
                    self.consider_all();
                    if self.outlives_tenure() && fence_by.is_none() {
                        fence_by = Some(Instant::now() + FENCE_GRACE);
                    }
                }
                Some((name, serial, report)) = received.recv() => self.handle_report(&name, serial, report),
                Some(event) = watch.next() => self.handle_watch(event),
                _ = slow_pass.tick() => self.consider_all(),
            }
        }
    }

    /// Whether something runs that was started in a tenure that is over.
    fn outlives_tenure(&self) -> bool {
        let membership = self.membership.borrow();
        let now = membership.view.tenure.as_ref();
        self.hosting
            .values()
            .any(|hosting| Some(&hosting.running.tenure) != now)
    }

    fn handle_watch(&mut self, event: Result<watcher::Event<Identity>, watcher::Error>) {
        use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
        match event {
            Ok(Init) => self.listed = Some(BTreeSet::new()),
            Ok(InitApply(identity)) => {
                let name: Arc<str> = identity.name_any().into();
                if let Some(listed) = &mut self.listed {
                    listed.insert(name.clone());
                }
                self.take(&name, lean(identity));
            }
            Ok(InitDone) => {
                let listed = self.listed.take().unwrap_or_default();
                let gone: Vec<_> = self
                    .identities
                    .keys()
                    .filter(|name| !listed.contains(*name))
                    .cloned()
                    .collect();
                for name in gone {
                    self.forget(&name, Order::HandOver);
                }
                self.board.set_synced();
            }
            Ok(Apply(identity)) => self.take(&identity.name_any().into(), lean(identity)),
            Ok(Delete(identity)) => self.forget(&identity.name_any(), Order::HandOver),
            Err(error) => warn!(
                error = &error as &dyn std::error::Error,
                "the watch of identities broke off"
            ),
        }
    }

    fn handle_report(&mut self, name: &Arc<str>, serial: u64, report: Report) {
        match report {
            Report::Seen(identity) => {
                if self.identities.contains_key(name) {
                    self.take(name, *identity);
                }
            }
            Report::Claimed => {
                if let Some(hosting) = self.job(name, serial)
                    && hosting.running.stage == Stage::Claiming
                {
                    hosting.running.stage = Stage::Claimed;
                }
                self.consider(name);
            }
            Report::Ended => {
                if self.job(name, serial).is_some() {
                    self.hosting.remove(name);
                    self.board.remove(name);
                } else {
                    self.disowning.remove(name);
                }
                self.consider(name);
            }
        }
    }

    fn job(&mut self, name: &Arc<str>, serial: u64) -> Option<&mut Hosting> {
        self.hosting
            .get_mut(name)
            .filter(|hosting| hosting.serial == serial)
    }

    /// Takes a version of an identity, if it is newer than the one at hand.
    fn take(&mut self, name: &Arc<str>, identity: Identity) {
        if identity.metadata.deletion_timestamp.is_some() {
            return self.forget(name, Order::Stop);
        }
        let mut since = Instant::now();
        if let Some(known) = self.identities.get(name) {
            let (old, new) = (&known.identity.metadata, &identity.metadata);
            if old.uid != new.uid {
                self.forget(name, Order::Stop);
            } else if !is_newer(&identity, old.resource_version.as_deref().unwrap_or_default()) {
                return;
            } else if claim_of(&known.identity) == claim_of(&identity) {
                since = known.since;
            }
        }
        let identity = Arc::new(identity);
        if let Some(hosting) = self.hosting.get(name) {
            hosting.identity.send_replace(identity.clone());
            self.board.set(name, hosted(&identity));
        }
        self.identities.insert(name.clone(), Known { identity, since });
        self.consider(name);
    }

    /// An identity is gone, or in another pool now: the watch does not tell which. Another pool waits until it is told that the identity is free.
    fn forget(&mut self, name: &str, order: Order) {
        self.identities.remove(name);
        if let Some(hosting) = self.hosting.get_mut(name) {
            hosting.running.stage = Stage::Leaving;
            hosting.orders.send_replace(order);
        }
    }

    fn consider_all(&mut self) {
        let names: Vec<_> = self.identities.keys().cloned().collect();
        for name in names {
            self.consider(&name);
        }
    }

    /// Does what is to be done about one identity.
    fn consider(&mut self, name: &Arc<str>) {
        let Some(Known { identity, since }) = self.identities.get(name) else {
            return;
        };
        let host = claim_of(identity).0.map(|pod| Host { pod, since: *since });
        let running = self.hosting.get(name).map(|hosting| &hosting.running);
        let me = self.shared.cluster.pod();
        let action = decide(me, name, host, running, &self.membership.borrow().view);
        match action {
            Action::Nothing => {}
            Action::Start => self.start(name),
            Action::Inquire => {
                // The keeper is gone only when the process ends.
                let _ = self.inquiries.send(host.map_or("", |host| host.pod).to_owned());
            }
            Action::HandOver => self.order(name, Order::HandOver),
            Action::Stop => self.order(name, Order::Stop),
            Action::Disown => self.disown(name),
        }
    }

    fn start(&mut self, name: &Arc<str>) {
        let Some(Known { identity, .. }) = self.identities.get(name) else {
            return;
        };
        let membership = self.membership.borrow();
        let Some(tenure) = membership.view.tenure.clone() else {
            return;
        };
        if self.disowning.contains(name) {
            return;
        }
        info!(identity = %name, "this pod hosts the identity");
        self.serial += 1;
        let (orders, ordered) = watch::channel(Order::Run);
        let (identities, newest) = watch::channel(identity.clone());
        let job = Job {
            name: name.clone(),
            claimed: identity.clone(),
            identity: newest,
            orders: ordered,
            claim: Claim {
                host: self.shared.cluster.pod().to_owned(),
                addresses: self.shared.pod_addresses.clone(),
                name: format!("{}.{}", tenure.as_str(), self.serial),
            },
            fence: membership.fence.clone(),
            reports: self.reports.clone(),
            serial: self.serial,
            shared: self.shared.clone(),
        };
        self.board.set(name, hosted(identity));
        let running = Running {
            tenure,
            stage: Stage::Claiming,
        };
        self.hosting.insert(
            name.clone(),
            Hosting {
                serial: self.serial,
                running,
                orders,
                identity: identities,
            },
        );
        tokio::spawn(host(job).instrument(info_span!("device", identity = %name)));
    }

    fn order(&mut self, name: &Arc<str>, order: Order) {
        let Some(hosting) = self.hosting.get_mut(name) else {
            return;
        };
        if *hosting.orders.borrow() != order {
            info!(identity = %name, ?order, "this pod does not host the identity any more");
            hosting.running.stage = Stage::Leaving;
            hosting.orders.send_replace(order);
        }
    }

    /// Lets go an identity that names this pod without running here.
    fn disown(&mut self, name: &Arc<str>) {
        let Some(identity) = self.identities.get(name).map(|known| known.identity.clone()) else {
            return;
        };
        if !self.disowning.insert(name.clone()) {
            return;
        }
        let (shared, reports, name) = (self.shared.clone(), self.reports.clone(), name.clone());
        tokio::spawn(async move {
            // The pool is gone only when the process ends.
            if let Some(newer) = disown(&shared, &identity).await {
                let _ = reports.send((name.clone(), 0, Report::Seen(Box::new(newer))));
            }
            let _ = reports.send((name, 0, Report::Ended));
        });
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Who hosts an identity, and by which claim.
fn claim_of(identity: &Identity) -> (Option<&str>, Option<&str>) {
    let status = identity.status.as_ref();
    (
        status.and_then(|status| status.host.as_deref()),
        status.and_then(|status| status.claim.as_deref()),
    )
}

/// What readiness tells about a hosted identity.
fn hosted(identity: &Identity) -> Hosted {
    let ready = identity
        .status
        .as_ref()
        .and_then(|status| status.condition(ConditionType::Ready));
    match ready {
        Some(ready) if ready.status == ConditionStatus::True.as_str() => Hosted::Ready,
        Some(ready) => Hosted::NotReady {
            reason: ready.reason.clone(),
            message: ready.message.clone(),
        },
        None => Hosted::NotReady {
            reason: "Starting".to_owned(),
            message: "Nothing is known yet.".to_owned(),
        },
    }
}
