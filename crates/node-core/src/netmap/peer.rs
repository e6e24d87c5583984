//! A peer's record.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use tailwharf_wire::key::{DiscoPublic, NodePublic};
use tailwharf_wire::tailcfg::{
    CapMap, CapabilityVersion, Node, NodeId, PeerChange, RegionId, StableId, UserId,
};

/// What a node needs to know of a peer (or of itself, for [`crate::WhoIs`]). Two records of one content are one record in memory, see
/// [`super::Interner`].
#[derive(Clone, Debug, PartialEq)]
pub struct Peer {
    /// Number at the control server.
    pub id: NodeId,
    /// Stable name at the control server.
    pub stable_id: StableId,
    /// Fully qualified domain name, without the final dot.
    pub name: Box<str>,
    /// Host name as the node gave it.
    pub hostname: Box<str>,
    /// Operating system as the node gave it.
    pub os: Box<str>,
    /// Who owns the node; the profile that tagged nodes share, if it has tags.
    pub user: UserId,
    /// Tags.
    pub tags: Box<[String]>,
    /// Node key.
    pub key: NodePublic,
    /// Disco key of the running process; zero if none is known.
    pub disco: DiscoPublic,
    /// Own addresses.
    pub addresses: Box<[IpAddr]>,
    /// What the peer may send from: its addresses and the routes it serves.
    pub allowed_ips: Box<[IpNet]>,
    /// Where it may be reached by UDP.
    pub endpoints: Box<[SocketAddr]>,
    /// Home region at the relays.
    pub home: RegionId,
    /// Whether it is connected to the control server, if known.
    pub online: Option<bool>,
    /// Its capability version.
    pub cap: CapabilityVersion,
    /// Capabilities of the node itself.
    pub cap_map: CapMap,
    /// Whether its key has ended: no packet is exchanged then.
    pub expired: bool,
    /// Whether it may only answer, never open a connection.
    pub answers_only: bool,
}

impl Peer {
    /// The record for a node of a map response.
    #[must_use]
    pub fn from_node(node: &Node) -> Self {
        let hostinfo = node.hostinfo.as_deref();
        let mut cap_map = node.cap_map.clone();
        for cap in &node.capabilities {
            cap_map.entry(cap.clone()).or_default();
        }
        Self {
            id: node.id,
            stable_id: node.stable_id.clone(),
            name: node.name.strip_suffix('.').unwrap_or(&node.name).into(),
            hostname: hostinfo.map_or("", |info| &info.hostname).into(),
            os: hostinfo.map_or("", |info| &info.os).into(),
            user: node.user,
            tags: node.tags.as_slice().into(),
            key: node.key,
            disco: node.disco_key,
            addresses: node.addresses.iter().map(IpNet::addr).collect(),
            allowed_ips: node.routes().iter().map(IpNet::trunc).collect(),
            endpoints: node.endpoints.as_slice().into(),
            home: home_region(node),
            online: node.online,
            cap: node.cap,
            cap_map,
            expired: node.expired,
            answers_only: node.is_jailed || node.unsigned_peer_api_only,
        }
    }

    /// This record with the changes of a patch.
    #[must_use]
    pub(super) fn patched(&self, patch: &PeerChange) -> Self {
        let mut peer = self.clone();
        if !patch.derp_region.is_none() {
            peer.home = patch.derp_region;
        }
        if patch.cap.0 != 0 {
            peer.cap = patch.cap;
        }
        if let Some(cap_map) = &patch.cap_map {
            peer.cap_map.clone_from(cap_map);
        }
        if !patch.endpoints.is_empty() {
            peer.endpoints = patch.endpoints.as_slice().into();
        }
        peer.key = patch.key.unwrap_or(peer.key);
        peer.disco = patch.disco_key.unwrap_or(peer.disco);
        peer.online = patch.online.or(peer.online);
        peer
    }

    /// Whether a packet from this peer may have this source.
    #[must_use]
    pub fn may_send_from(&self, source: IpAddr) -> bool {
        self.addresses.contains(&source) || self.allowed_ips.iter().any(|net| net.contains(&source))
    }

    /// The first label of [`Self::name`].
    #[must_use]
    pub fn first_label(&self) -> &str {
        self.name.split('.').next().unwrap_or_default()
    }
}

/// The home region, from the old field where the new one is absent.
fn home_region(node: &Node) -> RegionId {
    if !node.home_derp.is_none() {
        return node.home_derp;
    }
    let legacy = node.legacy_derp.strip_prefix("127.3.3.40:");
    RegionId(legacy.and_then(|region| region.parse().ok()).unwrap_or(0))
}
