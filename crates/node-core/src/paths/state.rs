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
    #[error(
        "the peer does not answer at its addresses; let UDP through between the networks, and let machines that translate addresses for pods drop UDP that nobody asked for"
    )]
    NoAnswer,
}

/// A peer that this node talks with, and how.
#[derive(Clone, Debug)]
pub struct PeerPath {
    /// The peer.
    pub peer: Arc<Peer>,
    /// The way.
    pub path: PathState,
}
