//! What people ask a node: how it and its peers are, and pings.

use std::sync::Arc;
use std::time::Duration;

use tailwharf_node_core::netmap::{Netmap, Peer};
use tailwharf_node_core::{Path, PathState, PingError, PingId, PingKind};
use tailwharf_wire::tailcfg::RegionId;
use tokio::sync::oneshot;

use crate::api::{NodeStatus, Phase};
use crate::engine::Engine;
use crate::local::{Kind, NetworkReport, PathReport, PeerReport, Pong, StatusReport, Via};
use crate::node::Node;

/// Most peers whose path is told.
const MAX_PATHS: usize = 4096;

/// A ping without answer.
#[derive(Debug, thiserror::Error)]
pub enum PingFailure {
    /// There is no such peer.
    #[error("no device {0} is visible on the tailnet")]
    UnknownPeer(String),
    /// The ping could not be sent.
    #[error("the ping cannot be sent: {0}")]
    NotSent(#[from] PingError),
    /// No answer came within 5 s.
    #[error("no answer within 5 s")]
    TimedOut,
}

/// Who waits for the answers of pings.
#[derive(Default)]
pub(crate) struct PingWaiters(Vec<(PingId, oneshot::Sender<Answered>)>);

/// The answer to a ping.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answered {
    pub(crate) latency: Duration,
    pub(crate) path: Path,
    /// The port of the peer's API, if the answer tells it.
    pub(crate) peer_api_port: Option<u16>,
}

impl PingWaiters {
    pub(crate) fn answered(&mut self, ping: PingId, answer: Answered) {
        if let Some(waiter) = self.take(ping) {
            // Whoever asked may have gone.
            let _ = waiter.send(answer);
        }
    }

    /// Whoever waits is told by the end of its channel.
    pub(crate) fn timed_out(&mut self, ping: PingId) {
        drop(self.take(ping));
    }

    fn take(&mut self, ping: PingId) -> Option<oneshot::Sender<Answered>> {
        let at = self.0.iter().position(|(id, _)| *id == ping)?;
        Some(self.0.swap_remove(at).1)
    }
}

/// Pings the peer that `find` finds, and waits for the answer.
pub(crate) async fn ping(
    engine: &Engine,
    kind: PingKind,
    find: impl FnOnce(&Netmap) -> Result<Arc<Peer>, PingFailure>,
) -> Result<(Netmap, Arc<Peer>, Answered), PingFailure> {
    let (netmap, peer, answer) = engine.with(|running, now| {
        let netmap = running.core.netmap().clone();
        let peer = find(&netmap)?;
        let ping = running.core.ping(peer.id, kind, now)?;
        let (sender, answer) = oneshot::channel();
        running.waiters.pings.0.push((ping, sender));
        Ok::<_, PingFailure>((netmap, peer, answer))
    })?;
    let answered = answer.await.map_err(|_| PingFailure::TimedOut)?;
    Ok((netmap, peer, answered))
}

impl Node {
    /// Pings a peer, which is named by its MagicDNS name, short or full, or its address.
    ///
    /// # Errors
    /// [`PingFailure`] says what is in the way.
    pub async fn ping(&self, peer: &str, kind: Kind) -> Result<Pong, PingFailure> {
        let (netmap, peer, answered) = ping(self.engine(), kind.into(), |netmap| {
            find(netmap, peer).ok_or_else(|| PingFailure::UnknownPeer(peer.to_owned()))
        })
        .await?;
        Ok(Pong {
            name: peer.first_label().to_owned(),
            address: peer.addresses.first().copied().unwrap_or_else(|| [0; 4].into()),
            latency_ms: milliseconds(answered.latency),
            via: match answered.path {
                Path::Udp(address) => Via::Direct(address),
                Path::Derp { region, .. } => Via::Relay(region_name(&netmap, region)),
            },
        })
    }

    /// How the node and its peers are.
    #[must_use]
    pub fn report(&self) -> StatusReport {
        let status = self.engine().watch_status().borrow().clone();
        let (netmap, paths, endpoints, facts) = self.engine().with_core(|core, now| {
            (
                core.netmap().clone(),
                core.peer_paths(MAX_PATHS, now),
                core.endpoints(),
                core.net_facts(),
            )
        });
        let path_of = |peer: &Arc<Peer>| {
            let path = paths.iter().find(|path| path.peer.id == peer.id)?;
            Some(match path.path {
                PathState::Direct { address, latency } => PathReport::Direct {
                    address,
                    latency_ms: milliseconds(latency),
                },
                PathState::Relay { region, why } => PathReport::Relay {
                    region: region_name(&netmap, region),
                    why: why.to_string(),
                },
            })
        };
        let mut peers: Vec<_> = netmap
            .peers()
            .map(|peer| PeerReport {
                fqdn: peer.name.to_string(),
                addresses: peer.addresses.to_vec(),
                os: peer.os.to_string(),
                tags: peer.tags.to_vec(),
                online: peer.online,
                path: path_of(peer),
            })
            .collect();
        peers.sort_by(|one, other| one.fqdn.cmp(&other.fqdn));
        StatusReport {
            phase: phase(&status),
            relay: status.home_region.map(|region| region_name(&netmap, region)),
            fqdn: status.fqdn,
            addresses: status.addresses,
            relay_connected: status.relay_connected,
            network: NetworkReport {
                udp: facts.udp,
                mapping_varies: facts.mapping_varies,
                translated: facts.translated,
                endpoints: endpoints.into_iter().map(|(at, _)| at).collect(),
            },
            health: status.health,
            clusters: netmap
                .self_node()
                .and_then(|own| own.cap_map.get(tailwharf_wire::cluster::CAPABILITY).cloned())
                .unwrap_or_default(),
            peers,
        }
    }
}

fn find(netmap: &Netmap, peer: &str) -> Option<Arc<Peer>> {
    let by_address = peer
        .parse()
        .ok()
        .and_then(|address| netmap.peer_by_address(address));
    by_address.or_else(|| netmap.peer_by_name(peer)).cloned()
}

pub(crate) fn region_name(netmap: &Netmap, region: RegionId) -> String {
    netmap
        .derp_map()
        .and_then(|map| map.regions.get(&region))
        .map(|region| region.region_code.clone())
        .filter(|code| !code.is_empty())
        .unwrap_or_else(|| region.0.to_string())
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 100.0
}

fn phase(status: &NodeStatus) -> String {
    match &status.phase {
        Phase::Starting => "starting".to_owned(),
        Phase::NeedsLogin { url } => format!("open {url} and sign in"),
        Phase::NeedsApproval => "an administrator of the tailnet has to approve this node".to_owned(),
        Phase::Refused { reason } => format!("the control server refused this node: {reason}"),
        Phase::Registered => "registered".to_owned(),
        Phase::Online => "online".to_owned(),
        Phase::Disconnected { reason } => format!("the control server is out of reach: {reason}"),
        Phase::Stopped => "stopped".to_owned(),
    }
}
