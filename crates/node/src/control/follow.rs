//! The map stream: the state of the tailnet as this node may see it, and each change of it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::Incoming;
use jiff::Timestamp;
use tailwharf_node_core::netmap::Netmap;
use tailwharf_wire::key::NodePublic;
use tailwharf_wire::map_frame::{self, Compression};
use tailwharf_wire::tailcfg::{CapabilityVersion, MapRequest, MapResponse, PingRequest};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::SessionError;
use super::announce::Announced;
use super::c2n;
use super::client::{CallError, ControlClient};
use super::dial::ControlServer;
use super::health::{self, Health};
use super::ping;
use super::session::Introduction;
use crate::api::Phase;
use crate::backoff::Backoff;
use crate::engine::Engine;
use crate::funnel;
use crate::service;
use crate::state::StateKeeper;

/// The server sends a keep-alive at least each minute. A stream that is silent for two is dead.
const WATCHDOG: Duration = Duration::from_secs(120);

/// How many requests of the server are answered at the same time; more are not answered.
const MAX_PINGS: usize = 4;

/// Follows the map during one session.
pub(super) struct Follower<'a> {
    pub(super) engine: &'a Arc<Engine>,
    pub(super) keeper: &'a Arc<StateKeeper>,
    pub(super) client: &'a ControlClient,
    pub(super) server: &'a ControlServer,
    pub(super) introduction: &'a Introduction,
    pub(super) announced: watch::Receiver<Announced>,
    pub(super) node_key: NodePublic,
    pub(super) backoff: &'a mut Backoff,
}

impl Follower<'_> {
    pub(super) async fn run(&mut self) -> Result<Infallible, SessionError> {
        let mut body = self.open().await?;
        let mut read = BytesMut::new();
        // A stream begins with everything, so what an earlier one told is void.
        let mut netmap = Netmap::default();
        let mut health = Health::default();
        let mut expiry = None;
        let mut pings = JoinSet::new();
        let mut last_ping = String::new();
        loop {
            while let Some(mut message) = map_frame::decode(&mut read, Compression::Zstd)? {
                if let Some(request) = message.ping_request.take()
                    && request.url != last_ping
                {
                    last_ping.clone_from(&request.url);
                    self.answer(request, &mut pings);
                }
                if !message.keep_alive {
                    self.backoff.reset();
                    health.apply(&message);
                    let now = message.control_time.unwrap_or_else(Timestamp::now);
                    netmap = self.take(&netmap, &message, &health, now)?;
                    let ends = netmap.self_node().and_then(|own| own.key_expiry);
                    expiry = health::until_expiry(ends, now).map(|left| Instant::now() + left);
                }
            }
            if read.is_empty() {
                read = BytesMut::new();
            }
            let silent = Instant::now() + WATCHDOG;
            let until = expiry.map_or(silent, |expiry| expiry.min(silent));
            match timeout_at(until, body.frame()).await {
                Err(_) if until < silent => return Err(SessionError::KeyExpired),
                Err(_) => return Err(SessionError::Silent),
                Ok(None) => return Err(SessionError::Ended),
                Ok(Some(Err(error))) => return Err(SessionError::Broken(error)),
                Ok(Some(Ok(frame))) => {
                    if let Some(data) = frame.data_ref() {
                        read.extend_from_slice(data);
                    }
                }
            }
        }
    }

    async fn open(&self) -> Result<Incoming, SessionError> {
        let home = self.keeper.read(|state| state.home_region);
        let reach = self.engine.watch_reach().borrow().clone();
        let (endpoints, endpoint_types) = reach.endpoints.into_iter().unzip();
        let request = MapRequest {
            version: CapabilityVersion::CURRENT,
            compress: "zstd".to_owned(),
            keep_alive: true,
            node_key: self.node_key,
            disco_key: self.introduction.disco_key,
            stream: true,
            hostinfo: Some(
                self.introduction
                    .hostinfo(&self.announced.borrow(), home, reach.facts),
            ),
            endpoints,
            endpoint_types,
            ..MapRequest::default()
        };
        match timeout(
            WATCHDOG,
            self.client.open("/machine/map", self.node_key, &request),
        )
        .await
        {
            Err(_) => Err(SessionError::Silent),
            Ok(Err(CallError::Status {
                status: StatusCode::NOT_FOUND | StatusCode::UNAUTHORIZED,
                ..
            })) => Err(SessionError::Unregistered),
            Ok(result) => Ok(result?),
        }
    }

    /// Applies one message: to the netmap, the engine, the status and the state.
    fn take(
        &self,
        netmap: &Netmap,
        message: &MapResponse,
        health: &Health,
        now: Timestamp,
    ) -> Result<Netmap, SessionError> {
        let (netmap, problems) = netmap.apply(message, self.engine.host().interner());
        for error in problems {
            tracing::warn!(%error, "a rule of the packet filter cannot be read and allows nothing");
        }
        if netmap.is_locked() {
            let reason =
                "tailnet lock is on, and this node cannot verify signatures; turn the lock off to use it";
            self.engine.set_netmap(Netmap::default());
            return Err(SessionError::Refused {
                reason: reason.to_owned(),
            });
        }
        self.engine.set_netmap(netmap.clone());
        if let Some(map) = netmap.derp_map() {
            self.engine
                .relays()
                .set_map(map.clone(), self.keeper.read(|state| state.home_region));
        }
        let Some(own) = netmap.self_node() else {
            return Ok(netmap);
        };
        if own.expired || own.key_expiry.is_some_and(|expiry| expiry <= now) {
            return Err(SessionError::KeyExpired);
        }
        self.tell_status(&netmap, health.texts(own.key_expiry, now));
        self.keep(&netmap);
        Ok(netmap)
    }

    fn tell_status(&self, netmap: &Netmap, health: Vec<String>) {
        let Some(own) = netmap.self_node() else { return };
        let phase = if own.machine_authorized {
            Phase::Online
        } else {
            Phase::NeedsApproval
        };
        self.engine.update_status(|status| {
            status.phase = phase;
            status.device_id = Some(own.stable_id.clone());
            status.fqdn = Some(own.name.trim_end_matches('.').to_owned());
            status.addresses = netmap.addresses().collect();
            status.tags.clone_from(&own.tags);
            status.key_expiry = own.key_expiry;
            status.services = service::hosted(&own.cap_map);
            status.funnel_ports = funnel::ports(&own.cap_map);
            status.cert_domains = netmap
                .dns()
                .map(|dns| dns.cert_domains.clone())
                .unwrap_or_default();
            status.health = health;
        });
    }

    fn keep(&self, netmap: &Netmap) {
        let Some(own) = netmap.self_node() else { return };
        let name = own.name.trim_end_matches('.');
        let addresses: Vec<_> = netmap.addresses().collect();
        let derp_map = netmap.derp_map();
        let profile = netmap.user(own.user);
        self.keeper.update(|state| {
            let same = state.stable_id.as_ref() == Some(&own.stable_id)
                && state.fqdn.as_deref() == Some(name)
                && state.addresses == addresses
                && state.derp_map.as_ref() == derp_map.map(AsRef::as_ref)
                && (profile.is_none() || state.profile.as_ref() == profile.map(AsRef::as_ref));
            if !same {
                state.stable_id = Some(own.stable_id.clone());
                state.fqdn = Some(name.to_owned());
                state.addresses = addresses;
                state.derp_map = derp_map.map(|map| (**map).clone());
                state.profile = profile
                    .map(|profile| (**profile).clone())
                    .or_else(|| state.profile.take());
            }
            !same
        });
    }

    fn answer(&self, request: PingRequest, pings: &mut JoinSet<()>) {
        while pings.try_join_next().is_some() {}
        if pings.len() >= MAX_PINGS {
            return;
        }
        let (client, server, node_key) = (self.client.clone(), self.server.clone(), self.node_key);
        let engine = self.engine.clone();
        let about = c2n::About {
            announced: self.announced.borrow().clone(),
            status: self.engine.watch_status().borrow().clone(),
        };
        pings.spawn(async move {
            let answered = ping::answer(&request, &server, &engine, &client, node_key, &about);
            match timeout(Duration::from_secs(30), answered).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "a ping of the control server was not answered"),
                Err(_) => tracing::debug!("a ping of the control server was not answered in time"),
            }
        });
    }
}
