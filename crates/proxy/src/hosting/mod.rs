//! The life of one identity in this pod: claim it, read its Secret, run its node and listeners, tell its status, let go.

mod device;
mod job;
mod web;

use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rand::rngs::OsRng;
use tailwharf_kube_types::secret::SecretText;
use tailwharf_kube_types::{Identity, IdentitySpec, IdentityStatus};
use tailwharf_node::splice::Buffers;
use tailwharf_node::{
    AuthKey, Backoff, Host, Node, NodeConfig, NodeStatus, Phase, Prefs, StartError, TailnetNode,
};
use tailwharf_wire::tailcfg::StableId;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, info, warn};

pub use self::device::Device;
pub(crate) use self::job::{Job, Order, Report, disown};
use self::job::{facts, reached};
pub(crate) use self::web::WebHosting;
use crate::DeviceService;
use crate::carrier::{Carrier, Health};
use crate::certificates::Issuer;
use crate::cluster::Cluster;
use crate::limits::{Limits, Room};
use crate::metrics::Metrics;
use crate::serving::Serving;
use crate::state::{Context, device};
use crate::status::{Claim, Facts, Obstacle};
use crate::store::{Opened, SecretStore, SecretStoreError};
use crate::writer::{StatusWriter, Written};

/// What a node tells the control server that it is; the Go operator's proxies use the same.
const INGRESS_APP: &str = "k8s-operator-ingress-proxy";
const EGRESS_APP: &str = "k8s-operator-egress-proxy";
const API_SERVER_PROXY_APP: &str = "k8s-operator-proxy";
const CONNECTOR_APP: &str = "k8s-operator-connector-resource";
/// Time for a node to end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);
/// The same when this pod lost its Lease: over before others take over.
const FENCED_SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(500);
/// Time to tell that the identity is free; after that, others find out when our Lease ends.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);
/// A Secret that cannot be read for less than this is not worth a status: the operator extends the Role just before.
const SECRET_GRACE: Duration = Duration::from_millis(500);

/// What all identities of the pod share.
pub(crate) struct Shared {
    /// The Kubernetes API.
    pub cluster: Arc<Cluster>,
    /// What nodes share.
    pub nodes: Host,
    /// Copy buffers.
    pub buffers: Arc<Buffers>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Limits in force.
    pub limits: Limits,
    /// Room for connections.
    pub room: Arc<Semaphore>,
    /// UID of this pod.
    pub pod_uid: String,
    /// Addresses of this pod in the cluster.
    pub pod_addresses: Vec<IpAddr>,
    /// UDP port of direct paths, for whichever node has it first.
    pub udp_port: Option<u16>,
    /// What runs on each device besides its listeners.
    pub service: Option<Arc<dyn DeviceService>>,
    /// Orders certificates.
    pub issuer: Arc<Issuer>,
}

/// Why something was interrupted.
enum Interrupt {
    /// The spec has changed.
    Spec,
    /// The identity is to end here.
    End(Order),
}

/// Hosts an identity until it is told to end, or another pod has claimed it.
pub(crate) async fn host(mut job: Job) {
    let reports = (job.reports.clone(), job.name.clone(), job.serial);
    if let Some(identity) = job.claim().await {
        job.report(Report::Seen(Box::new(identity.clone())));
        job.report(Report::Claimed);
        let mut hosting = Hosting::new(job, &identity);
        let order = hosting.run().await;
        if order == Order::HandOver {
            hosting.release().await;
        }
    }
    let (reports, name, serial) = reports;
    // The pool is gone only when the process ends.
    let _ = reports.send((name, serial, Report::Ended));
}

/// An identity that this pod has claimed.
struct Hosting {
    job: Job,
    writer: StatusWriter,
    facts: Facts,
    /// The identity's spec as it is being served.
    identity: Arc<Identity>,
    retry: Backoff,
}

/// What a running node is attended for.
enum Event {
    Node,
    Health,
    Probed,
    ProbeDue,
    OpenDue,
    RetryDue,
}

impl Hosting {
    fn new(job: Job, claimed: &Identity) -> Self {
        let shared = &job.shared;
        let writer = StatusWriter::new(
            shared.cluster.clone(),
            shared.metrics.clone(),
            job.name.clone(),
            job.claim.clone(),
            claimed,
        );
        let identity = Arc::new(claimed.clone());
        let retry = Backoff::new(Duration::from_secs(2), Duration::from_secs(30));
        Self {
            facts: facts(&identity),
            writer,
            identity,
            job,
            retry,
        }
    }

    /// Runs the node, again and again if need be, until the end.
    async fn run(&mut self) -> Order {
        loop {
            match self.run_once().await {
                Ok(()) => {}
                Err(Interrupt::Spec) => {
                    self.identity = self.job.identity.borrow().clone();
                    self.facts
                        .control_server
                        .clone_from(&self.identity.spec.login_server);
                    self.facts.listeners = self.identity.spec.listeners.len();
                    self.facts.reached = reached(&self.identity);
                }
                Err(Interrupt::End(order)) => return order,
            }
        }
    }

    /// From reading the Secret to a reason to start over.
    async fn run_once(&mut self) -> Result<(), Interrupt> {
        let opened = self.open_secret().await?;
        let (id, fqdn, addresses) = device(&opened.secret);
        self.facts.known = (id, fqdn, addresses);
        self.facts.with_auth_key = opened.auth_key.is_some();
        if opened.auth_key.is_none() && !opened.registered {
            self.facts.obstacle = Some(Obstacle::AuthKeyMissing);
            return self.pause().await;
        }
        self.facts.obstacle = None;
        let Some(config) = self.node_config(opened.auth_key.as_ref()) else {
            let why = format!("{:?} is not a URL", self.identity.spec.login_server);
            self.facts.obstacle = Some(Obstacle::NotStarted { why });
            return self.pause().await;
        };
        let (nodes, store) = (self.job.shared.nodes.clone(), opened.store.clone());
        let node = match self.attend(nodes.start(config, store)).await? {
            Ok(node) => node,
            Err(error) => {
                self.facts.obstacle = Some(start_obstacle(&error));
                return self.pause().await;
            }
        };
        info!("the node is started");
        self.facts.mapped = false;
        let end = CancellationToken::new();
        if let Some(service) = &self.job.shared.service {
            let device = Device::new(&self.job, node.clone(), &self.identity.spec.login_server);
            tokio::spawn(service.serve(device, end.clone()).in_current_span());
        }
        let result = self.attend_node(&node, &opened.store, end.clone()).await;
        end.cancel();
        let limit = if self.job.fence.is_cancelled() {
            FENCED_SHUTDOWN_TIMEOUT
        } else {
            SHUTDOWN_TIMEOUT
        };
        if timeout(limit, node.shutdown()).await.is_err() {
            warn!("the node takes long to end");
        }
        result
    }

    /// Reads the Secret, until that succeeds.
    async fn open_secret(&mut self) -> Result<Opened, Interrupt> {
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(5));
        let began = Instant::now();
        loop {
            let context = Context {
                identity: self.job.name.to_string(),
                login: tailwharf_node::layout::Login {
                    control_url: self.identity.spec.login_server.clone(),
                    hostname: self.identity.spec.hostname.as_str().to_owned(),
                    seed: self.job.name.to_string(),
                },
                pod_uid: self.job.shared.pod_uid.clone(),
            };
            let read = SecretStore::open(self.job.shared.cluster.clone(), context, self.job.fence.clone());
            match self.attend(read).await? {
                Ok(opened) => return Ok(opened),
                Err(error) => {
                    let obstacle = secret_obstacle(&error);
                    let lasting = !matches!(obstacle, Obstacle::SecretUnavailable { .. });
                    if lasting || began.elapsed() >= SECRET_GRACE {
                        self.facts.obstacle = Some(obstacle);
                    }
                }
            }
            self.attend(sleep(backoff.next(&mut OsRng))).await?;
        }
    }

    /// Waits before the next try, with growing pauses.
    async fn pause(&mut self) -> Result<(), Interrupt> {
        let pause = self.retry.next(&mut OsRng);
        self.attend(sleep(pause)).await
    }

    fn node_config(&self, key: Option<&SecretText>) -> Option<NodeConfig> {
        let spec = &self.identity.spec;
        let router = spec.router.clone().unwrap_or_default();
        Some(NodeConfig {
            auth_key: key.and_then(|key| AuthKey::new(key.reveal())),
            tags: spec.tags.iter().map(|tag| tag.as_str().to_owned()).collect(),
            ephemeral: spec.ephemeral,
            app: if self.job.shared.service.is_some() {
                API_SERVER_PROXY_APP
            } else if spec.egress.is_some() {
                EGRESS_APP
            } else if spec.router.is_some() {
                CONNECTOR_APP
            } else {
                INGRESS_APP
            }
            .to_owned(),
            routes: router.routes,
            accept_routes: reaches_routes(spec),
            app_connector: router.app_connector,
            wake: self.recent_peers(),
            udp_port: self.job.shared.udp_port,
            ..NodeConfig::new(spec.login_server.parse().ok()?, spec.hostname.as_str())
        })
    }

    /// Who talked to the device lately, here or at its last host.
    fn recent_peers(&self) -> Vec<StableId> {
        let peers = &self.writer.wanted().recent_peers;
        peers.iter().map(|id| StableId(id.clone())).collect()
    }

    /// Serves a running node. `Ok` when it has to be started anew.
    async fn attend_node(
        &mut self,
        node: &Node,
        store: &Arc<SecretStore>,
        end: CancellationToken,
    ) -> Result<(), Interrupt> {
        let shared = self.job.shared.clone();
        let room = Room::of_identity(&shared.room, &shared.limits);
        let carrier = Carrier::new(
            self.job.name.clone(),
            shared.buffers.clone(),
            shared.metrics.clone(),
            shared.limits,
            room,
            end,
        );
        let mut health = carrier.health();
        let web = WebHosting::new(&self.job, node.clone(), carrier.clone());
        let mut serving = Serving::new(node, &carrier, web);
        let mut status = node.status();
        let mut probes = Backoff::new(Duration::from_secs(1), Duration::from_secs(15));
        let mut timers = Timers::default();
        self.serve_spec(&mut serving, &mut timers);
        let mut probing = Some(Box::pin(serving.probe()));
        loop {
            self.note_node(&status.borrow_and_update());
            self.facts.backends.clone_from(&health.borrow_and_update());
            self.facts.web = serving.web.facts();
            self.facts.refused = serving.refused();
            self.after_status(store, &mut timers);
            let event = async {
                tokio::select! {
                    changed = status.changed() => if changed.is_ok() { Event::Node } else { Event::RetryDue },
                    _ = health.changed() => Event::Health,
                    () = serving.web.changed() => Event::Node,
                    () = probe_ends(&mut probing) => Event::Probed,
                    () = due(timers.probe), if probing.is_none() => Event::ProbeDue,
                    () = due(timers.open) => Event::OpenDue,
                    () = due(timers.retry) => Event::RetryDue,
                }
            };
            match self.attend(event).await {
                Ok(Event::Node) => {
                    // The control server may have given the device another name.
                    serving.web.apply(&self.identity.spec, false);
                }
                Ok(Event::Health | Event::Probed) => {
                    let bad = serving.web.has_trouble()
                        || health
                            .borrow()
                            .values()
                            .any(|health| matches!(health, Health::Unreachable(_)));
                    if !bad {
                        probes.reset();
                        timers.probe = None;
                    } else if timers.probe.is_none() {
                        timers.probe = Some(Instant::now() + probes.next(&mut OsRng));
                    }
                }
                Ok(Event::ProbeDue) => {
                    timers.probe = None;
                    probing = Some(Box::pin(serving.probe()));
                }
                Ok(Event::OpenDue) => {
                    self.serve_spec(&mut serving, &mut timers);
                    probing = Some(Box::pin(serving.probe()));
                }
                Ok(Event::RetryDue) => return Ok(()),
                Err(Interrupt::Spec) => {
                    if !self.take_spec(node) {
                        return Err(Interrupt::Spec);
                    }
                    self.serve_spec(&mut serving, &mut timers);
                    probing = Some(Box::pin(serving.probe()));
                }
                Err(end) => return Err(end),
            }
        }
    }

    /// Notes the status of the node. While a node starts anew after it was refused, the refusal stays to be seen.
    fn note_node(&mut self, status: &NodeStatus) {
        self.facts.mapped |= status.phase == Phase::Online;
        let refused =
            |node: &NodeStatus| matches!(node.phase, Phase::Refused { .. } | Phase::NeedsLogin { .. });
        if status.phase != Phase::Starting || !self.facts.node.as_ref().is_some_and(refused) {
            self.facts.node = Some(status.clone());
        }
    }

    /// What the phase of the node asks for.
    fn after_status(&mut self, store: &SecretStore, timers: &mut Timers) {
        match self.facts.node.as_ref().map(|node| &node.phase) {
            Some(Phase::Online) => {
                self.retry.reset();
                timers.retry = None;
                store.settle();
            }
            // A new auth key may come into the Secret.
            Some(Phase::Refused { .. } | Phase::NeedsLogin { .. } | Phase::Stopped)
                if timers.retry.is_none() =>
            {
                timers.retry = Some(Instant::now() + self.retry.next(&mut OsRng));
            }
            _ => {}
        }
    }

    /// Brings what is served to the spec.
    fn serve_spec(&mut self, serving: &mut Serving, timers: &mut Timers) {
        serving.apply(&self.identity.spec);
        self.facts.hostname = self.identity.spec.hostname.as_str().to_owned();
        self.facts.listeners = self.identity.spec.listeners.len();
        self.facts.reached = reached(&self.identity);
        self.facts.failed = serving.failed();
        timers.open = (!self.facts.failed.is_empty()).then(|| Instant::now() + Duration::from_secs(1));
    }

    /// Takes over a new spec. False when the node has to be started anew for it.
    fn take_spec(&mut self, node: &Node) -> bool {
        let new = self.job.identity.borrow().clone();
        let old = std::mem::replace(&mut self.identity, new);
        let (old, new) = (&old.spec, &self.identity.spec);
        if old.login_server != new.login_server || old.ephemeral != new.ephemeral {
            self.facts.control_server.clone_from(&new.login_server);
            return false;
        }
        let wanted = prefs(new);
        if prefs(old) != wanted {
            node.set_prefs(wanted);
        }
        true
    }

    /// Waits for `work` while the status is written and orders and changes of the spec are looked after.
    async fn attend<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Interrupt> {
        let mut work = pin!(work);
        self.publish();
        loop {
            tokio::select! {
                biased;
                () = self.job.fence.cancelled() => return Err(Interrupt::End(Order::Stop)),
                order = ended(&mut self.job.orders) => return Err(Interrupt::End(order)),
                done = &mut work => return Ok(done),
                Ok(()) = self.job.identity.changed() => {
                    let newest = self.job.identity.borrow_and_update().clone();
                    self.writer.handle_version(&newest);
                    if newest.metadata.generation != self.identity.metadata.generation {
                        return Err(Interrupt::Spec);
                    }
                }
                written = self.writer.next() => match written {
                    Written::Done(identity) => self.job.report(Report::Seen(identity)),
                    Written::Lost(identity) => {
                        if let Some(identity) = identity {
                            self.job.report(Report::Seen(identity));
                        }
                        return Err(Interrupt::End(Order::Stop));
                    }
                },
            }
        }
    }

    fn publish(&mut self) {
        let status = self.status(Some(&self.job.claim));
        self.writer.want(status);
    }

    fn status(&self, claim: Option<&Claim>) -> IdentityStatus {
        self.facts.status(
            self.writer.wanted(),
            claim,
            self.identity.metadata.generation,
            Timestamp::now(),
        )
    }

    /// Tells that the identity is free.
    async fn release(&mut self) {
        self.facts.leaving = true;
        let status = self.status(None);
        self.writer.want(status);
        let told = async {
            while !self.writer.settled() {
                match self.writer.next().await {
                    Written::Done(identity) => self.job.report(Report::Seen(identity)),
                    Written::Lost(_) => return,
                }
            }
        };
        tokio::select! {
            () = self.job.fence.cancelled() => {}
            told = timeout(RELEASE_TIMEOUT, told) => if told.is_err() {
                warn!("could not tell that the identity is free; others wait for our Lease to end");
            },
        }
    }
}

/// Whether a device goes by what peers route: targets of egress may stand behind a subnet router, or in a site of 4via6.
fn reaches_routes(spec: &IdentitySpec) -> bool {
    spec.egress.is_some()
}

/// What a node tells the control server of a spec, and may change while it runs.
fn prefs(spec: &IdentitySpec) -> Prefs {
    let router = spec.router.clone().unwrap_or_default();
    Prefs {
        hostname: spec.hostname.as_str().to_owned(),
        tags: spec.tags.iter().map(|tag| tag.as_str().to_owned()).collect(),
        routes: router.routes,
        accept_routes: reaches_routes(spec),
        app_connector: router.app_connector,
        ..Prefs::default()
    }
}

#[derive(Debug, Default)]
struct Timers {
    /// When unreachable backends are tried again.
    probe: Option<Instant>,
    /// When listeners that failed are opened again.
    open: Option<Instant>,
    /// When the node is started anew.
    retry: Option<Instant>,
}

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn probe_ends(probing: &mut Option<std::pin::Pin<Box<impl Future<Output = ()>>>>) {
    match probing {
        Some(probe) => probe.await,
        None => std::future::pending().await,
    }
    *probing = None;
}

/// The order to end, when it comes. A pool that is gone means the end as well.
async fn ended(orders: &mut watch::Receiver<Order>) -> Order {
    orders
        .wait_for(|order| *order != Order::Run)
        .await
        .map_or(Order::Stop, |order| *order)
}

fn secret_obstacle(error: &SecretStoreError) -> Obstacle {
    match error {
        SecretStoreError::Api { source, .. } => Obstacle::SecretUnavailable {
            why: source.to_string(),
        },
        SecretStoreError::Content { source, .. } => Obstacle::SecretInvalid {
            why: with_sources(source),
        },
        SecretStoreError::Fenced => Obstacle::SecretUnavailable {
            why: error.to_string(),
        },
    }
}

fn start_obstacle(error: &StartError) -> Obstacle {
    match error {
        StartError::Store(_) => Obstacle::SecretInvalid {
            why: with_sources(error),
        },
        StartError::ControlUrl { .. } | StartError::Thread(_) => Obstacle::NotStarted {
            why: error.to_string(),
        },
    }
}

/// An error and what caused it, in one line.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
