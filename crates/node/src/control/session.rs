//! How a node joins, and stays: connect, register if need be, follow the map; again after each failure.
//!
//! ```text
//! connect ──► registered? ──no──► register ──► follow the map ──┐
//!    ▲             └──────yes──────────────────────▲            │
//!    └───────────── backoff ◄── error ◄────────────┴────────────┘
//! ```

use std::convert::Infallible;
use std::error::Error;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use tailwharf_node_core::NetFacts;
use tailwharf_wire::key::{DiscoPublic, NodePrivate};
use tailwharf_wire::tailcfg::{
    CapabilityVersion, Hostinfo, NetInfo, RegionId, RegisterResponse, SetDnsRequest, SetDnsResponse,
};
use tokio::sync::watch;
use tokio::time::Instant;

use super::announce::Announced;
use super::client::{CallError, ControlClient};
use super::dial::ControlServer;
use super::follow::Follower;
use super::register::{Registration, Step, logout_request};
use super::tell::Teller;
use super::{DialError, SessionError};
use crate::api::{AuthKey, Phase};
use crate::backoff::Backoff;
use crate::engine::Engine;
use crate::host::Host;
use crate::state::StateKeeper;

/// From the first packet to a connection that takes requests, for one attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// How long the server may hold a request that waits for a person to sign in.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(600);

/// A server that does not hold such a request is asked no more often than this.
const LOGIN_PAUSE: Duration = Duration::from_secs(2);

const FIRST_RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// The version told to the control server: the release of the official client whose protocol is spoken, then our own.
const CLIENT_VERSION: &str = concat!("1.92.0-tailwharf", env!("CARGO_PKG_VERSION"));

/// What a node says about itself, apart from what changes.
#[derive(Debug, Clone)]
pub(crate) struct Introduction {
    pub(crate) app: String,
    pub(crate) log_id: String,
    pub(crate) os_version: String,
    pub(crate) disco_key: DiscoPublic,
}

impl Introduction {
    pub(crate) fn new(app: String, disco_key: DiscoPublic, rng: &mut StdRng) -> Self {
        let mut log_id = [0; 32];
        rng.fill_bytes(&mut log_id);
        let os_version = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            app,
            log_id: hex::encode(log_id),
            os_version: os_version.trim().to_owned(),
            disco_key,
        }
    }

    pub(super) fn hostinfo(
        &self,
        announced: &Announced,
        home: Option<RegionId>,
        facts: NetFacts,
    ) -> Hostinfo {
        Hostinfo {
            ipn_version: CLIENT_VERSION.to_owned(),
            backend_log_id: self.log_id.clone(),
            os: std::env::consts::OS.to_owned(),
            os_version: self.os_version.clone(),
            app: self.app.clone(),
            hostname: announced.prefs.hostname.clone(),
            no_logs_no_support: true,
            machine: std::env::consts::ARCH.to_owned(),
            request_tags: announced.prefs.tags.clone(),
            routable_ips: announced.routes(),
            app_connector: announced.prefs.app_connector.then_some(true),
            services: announced.hostinfo_services(),
            services_hash: announced.services_hash(),
            ingress_enabled: announced.funnel,
            net_info: Some(NetInfo {
                preferred_derp: home.unwrap_or_default(),
                mapping_varies_by_dest_ip: facts.mapping_varies,
                working_udp: facts.udp,
                ..NetInfo::default()
            }),
            userspace: Some(true),
            userspace_router: Some(true),
            ..Hostinfo::default()
        }
    }
}

/// The control side of one node.
pub(crate) struct Session {
    pub(crate) engine: Arc<Engine>,
    pub(crate) server: ControlServer,
    pub(crate) keeper: Arc<StateKeeper>,
    pub(crate) introduction: Introduction,
    pub(crate) auth_key: Option<AuthKey>,
    pub(crate) ephemeral: bool,
    pub(crate) force_reauth: bool,
    pub(crate) announced: watch::Receiver<Announced>,
    pub(crate) rng: StdRng,
}

impl Session {
    /// Runs until the node is refused. The caller drops it to stop.
    pub(crate) async fn run(mut self) {
        let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
        let mut registration = None;
        let mut registered = self.keeper.read(|state| state.stable_id.is_some());
        if registered && self.force_reauth {
            let mut again = self.registration();
            again.rotate(&mut self.rng);
            self.keep_rotated(&again);
            registration = Some(again);
            registered = false;
        }
        loop {
            let error = match self
                .attempt(&mut registered, &mut registration, &mut backoff)
                .await
            {
                Ok(never) => match never {},
                Err(error) => error,
            };
            let wait = match &error {
                SessionError::Refused { reason } => {
                    self.engine.relays().close();
                    self.engine.set_home(None, false);
                    self.set_phase(Phase::Refused {
                        reason: reason.clone(),
                    });
                    return;
                }
                SessionError::Unregistered | SessionError::KeyExpired => {
                    registered = false;
                    backoff.next(&mut self.rng)
                }
                SessionError::Call(CallError::Status {
                    retry_after: Some(wait),
                    ..
                }) => backoff.next(&mut self.rng).max(*wait),
                _ => backoff.next(&mut self.rng),
            };
            let reason = describe(&error);
            tracing::debug!(reason, ?wait, "control session ended");
            self.engine.update_status(|status| match status.phase {
                // What a person has to do stands until it is done.
                Phase::NeedsLogin { .. } | Phase::NeedsApproval => {}
                _ => status.phase = Phase::Disconnected { reason },
            });
            self.wait(wait).await;
        }
    }

    /// Waits before the next attempt; a change of the network ends the wait, as it may have brought the server back.
    async fn wait(&self, wait: Duration) {
        let mut network = self.engine.host().interfaces();
        network.mark_unchanged();
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            Ok(()) = network.changed() => {}
        }
    }

    async fn attempt(
        &mut self,
        registered: &mut bool,
        registration: &mut Option<Registration>,
        backoff: &mut Backoff,
    ) -> Result<Infallible, SessionError> {
        let host = self.engine.host().clone();
        // A node key must not be known to the server before it is known to the store.
        let (client, saved) = tokio::join!(
            connect(&host, &self.server, &self.keeper, &mut self.rng),
            self.keeper.save()
        );
        let client = client?;
        if !*registered {
            saved?;
            self.register(&client, registration).await?;
            *registration = None;
            *registered = true;
        }
        let node_key = self.keeper.read(|state| state.node_key.public());
        let mut teller = Teller {
            engine: &self.engine,
            keeper: &self.keeper,
            client: &client,
            introduction: &self.introduction,
            announced: self.announced.clone(),
            node_key,
        };
        let mut follower = Follower {
            engine: &self.engine,
            keeper: &self.keeper,
            client: &client,
            server: &self.server,
            introduction: &self.introduction,
            announced: self.announced.clone(),
            node_key,
            backoff,
        };
        let mut rng = StdRng::from_rng(&mut self.rng).unwrap_or_else(|_| StdRng::from_entropy());
        tokio::select! {
            // The update goes out first, so that the server has it when it computes the first map.
            biased;
            ended = Box::pin(teller.run(&mut rng)) => ended,
            ended = Box::pin(follower.run()) => ended,
            () = address_gone(&host, client.local()) => Err(SessionError::Moved),
        }
    }

    async fn register(
        &mut self,
        client: &ControlClient,
        registration: &mut Option<Registration>,
    ) -> Result<(), SessionError> {
        let registration = registration.get_or_insert_with(|| self.registration());
        loop {
            let hostinfo = self.introduction.hostinfo(
                &self.announced.borrow(),
                self.keeper.read(|state| state.home_region),
                self.engine.watch_reach().borrow().facts,
            );
            let request = registration.request(hostinfo);
            let limit = registration.waits_for_login().then_some(LOGIN_TIMEOUT);
            let sent = Instant::now();
            let answer: RegisterResponse = client
                .call("/machine/register", request.node_key, &request, limit)
                .await?;
            match registration.handle(answer, &mut self.rng) {
                Step::Registered { profile, approved } => {
                    self.keeper.update(|state| {
                        state.old_node_key = None;
                        state.profile = Some(profile);
                        true
                    });
                    self.set_phase(if approved {
                        Phase::Registered
                    } else {
                        Phase::NeedsApproval
                    });
                    return Ok(());
                }
                Step::Login { url } => {
                    self.set_phase(Phase::NeedsLogin { url });
                    if limit.is_some() && sent.elapsed() < LOGIN_PAUSE {
                        tokio::time::sleep(LOGIN_PAUSE).await;
                    }
                }
                Step::KeyRotated => {
                    self.keep_rotated(registration);
                    self.keeper.save().await?;
                }
                Step::Refused { reason } => return Err(SessionError::Refused { reason }),
            }
        }
    }

    /// The registration of the node key that the state holds.
    fn registration(&self) -> Registration {
        let (node_key, old) = self
            .keeper
            .read(|state| (state.node_key.clone(), state.old_node_key));
        Registration::new(node_key, old, self.auth_key.clone(), self.ephemeral)
    }

    /// Takes the new node key of a registration into state and engine. The server does not know it yet.
    fn keep_rotated(&self, registration: &Registration) {
        let (node_key, old) = registration.keys();
        self.keeper.update(|state| {
            state.node_key = node_key.clone();
            state.old_node_key = old;
            state.stable_id = None;
            true
        });
        self.engine.set_node_key(node_key.clone());
    }

    fn set_phase(&self, phase: Phase) {
        self.engine.update_status(|status| status.phase = phase);
    }
}

/// Returns when the machine has lost an address: connections from it are dead, although nobody says so.
async fn address_gone(host: &Host, local: IpAddr) {
    let mut network = host.interfaces();
    // What is not listed as long as it is in use, such as an address of a TUN device, cannot be missed either.
    if !network.borrow_and_update().contains(&local) {
        return std::future::pending().await;
    }
    let watch_ended = network
        .wait_for(|addresses| !addresses.contains(&local))
        .await
        .is_err();
    if watch_ended {
        std::future::pending::<()>().await;
    }
}

/// Opens a connection to the control server.
pub(super) async fn connect(
    host: &Host,
    server: &ControlServer,
    keeper: &StateKeeper,
    rng: &mut StdRng,
) -> Result<ControlClient, SessionError> {
    let machine_key = keeper.read(|state| state.machine_key.clone());
    let opening = async {
        // A closed semaphore would be a shut down process; there is none such.
        let _place = host
            .handshakes()
            .acquire()
            .await
            .map_err(|_| SessionError::TimedOut)?;
        let server_key = match host.server_key(server) {
            Some(key) => key,
            None => {
                let key = server.fetch_key(host).await?;
                host.remember_server_key(server, key);
                key
            }
        };
        let (stream, local) = server
            .open(host, &machine_key, server_key, rng)
            .await
            .inspect_err(|_: &DialError| {
                host.forget_server_key(server);
            })?;
        Ok(ControlClient::start(stream, server.authority(), local).await?)
    };
    tokio::time::timeout(CONNECT_TIMEOUT, Box::pin(opening))
        .await
        .map_err(|_| SessionError::TimedOut)?
}

/// Has the control server set a TXT record below a name of this node.
pub(crate) async fn set_dns(
    host: &Host,
    server: &ControlServer,
    keeper: &StateKeeper,
    name: String,
    value: String,
) -> Result<(), SessionError> {
    let node_key = keeper.read(|state| state.node_key.public());
    let client = connect(host, server, keeper, &mut StdRng::from_entropy()).await?;
    let request = SetDnsRequest {
        version: CapabilityVersion::CURRENT,
        node_key,
        name,
        kind: "TXT".to_owned(),
        value,
    };
    let _: SetDnsResponse = client.call("/machine/set-dns", node_key, &request, None).await?;
    Ok(())
}

/// Tells the control server that the node key is no longer used, then replaces it in the state.
pub(crate) async fn logout(
    host: &Host,
    server: &ControlServer,
    keeper: &Arc<StateKeeper>,
) -> Result<(), SessionError> {
    let mut rng = StdRng::from_entropy();
    if keeper.read(|state| state.stable_id.is_some()) {
        let node_key = keeper.read(|state| state.node_key.public());
        let client = connect(host, server, keeper, &mut rng).await?;
        let answer: RegisterResponse = client
            .call("/machine/register", node_key, &logout_request(node_key), None)
            .await?;
        if !answer.error.is_empty() {
            return Err(SessionError::Refused { reason: answer.error });
        }
    }
    keeper.update(|state| {
        state.node_key = NodePrivate::generate(&mut rng);
        state.old_node_key = None;
        state.stable_id = None;
        state.fqdn = None;
        state.addresses.clear();
        state.profile = None;
        true
    });
    Ok(keeper.save().await?)
}

/// An error with its causes, in one line.
fn describe(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.ends_with(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = error.source();
    }
    text
}
