//! How packets to a peer go, for people.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tailwharf_wire::tailcfg::RegionId;

use crate::netmap::Peer;

/// The way of packets to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathState {
    /// By UDP.
    Direct {
        /// The peer's address.
        address: SocketAddr,
        /// Round trip time.
        latency: Duration,
    },
    /// Through a relay.
    Relay {
        /// The relay's region; zero if none is known.
        region: RegionId,
        /// Why not by UDP.
        why: RelayReason,
    },
}

/// Why packets to a peer go through a relay. The text says what helps, if anything does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RelayReason {
    /// Direct paths are switched off.
    #[error("direct paths are switched off")]
    Off,
    /// No relay answers by UDP.
    #[error("no STUN server answers; let UDP out of this network")]
    NoUdp,
    /// The peer has not told any address.
    #[error("the peer tells no address")]
    NoAddress,
    /// The search has begun.
    #[error("a direct path is being looked for")]
    Searching,
    /// The peer does not answer at any of its addresses.
    #[error("the peer does not answer at its addresses; let UDP through between the networks")]
    NoAnswer,
    /// The same, and the NAT of this node's network gives it another port for each destination, so no peer can know where to find it.
    #[error(
        "the NAT of this network gives each destination another port; lead a fixed port of it to this node and tell that as an endpoint of the node"
    )]
    MappingVaries,
    /// The same, and a NAT is between, as where a Kubernetes node translates the addresses of pods. One that takes what comes unasked for its own
    /// gives the node another port than the one that peers know.
    #[error(
        "the peer does not answer through the NAT of this network; let the machine that translates addresses drop UDP that nobody asked for, or lead a port of it (NodePort) to this node and tell that as an endpoint of the node"
    )]
    Translated,
}

/// A peer that this node talks with, and how.
#[derive(Clone, Debug)]
pub struct PeerPath {
    /// The peer.
    pub peer: Arc<Peer>,
    /// The way.
    pub path: PathState,
}
