//! What a running `tailwharf node` tells other processes of its user, through a socket in the file system.
//!
//! One line of JSON is the question, [`Question`], one line the answer.

mod client;
mod server;

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use tailwharf_node_core::PingKind;

pub use self::client::{LocalError, ask_ping, ask_status};
pub(crate) use self::server::Server;

/// Longest question in bytes.
const MAX_QUESTION: u64 = 4096;
/// Longest answer in bytes: a tailnet of some ten thousand devices.
const MAX_ANSWER: u64 = 16 << 20;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum Question {
    /// How the node and its peers are.
    Status,
    /// Ping a peer.
    Ping { peer: String, kind: Kind },
}

/// Kinds of ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// Between the path layers; needs no session.
    Disco,
    /// Through the tunnel, answered by the node itself.
    Tsmp,
    /// Through the tunnel and the peer's packet filter.
    Icmp,
}

impl From<Kind> for PingKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Disco => Self::Disco,
            Kind::Tsmp => Self::Tsmp,
            Kind::Icmp => Self::Icmp,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Answer {
    Status(Box<StatusReport>),
    Pong(Pong),
    /// Why there is no other answer.
    Failed(String),
}

/// A node and its peers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusReport {
    /// How far the node has come, in words.
    pub phase: String,
    /// The full name without a final dot.
    pub fqdn: Option<String>,
    /// The addresses on the tailnet, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// The relay where peers find the node.
    pub relay: Option<String>,
    /// Whether the connection to that relay stands.
    pub relay_connected: bool,
    /// The network around the node.
    pub network: NetworkReport,
    /// Warnings.
    pub health: Vec<String>,
    /// Clusters that the tailnet publishes to the node, as they are written: values of [`tailwharf_wire::cluster::CAPABILITY`].
    #[serde(default)]
    pub clusters: Vec<serde_json::Value>,
    /// The peers by name.
    pub peers: Vec<PeerReport>,
}

/// What is known of the network around a node. `None`: not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkReport {
    /// Whether UDP gets out and back.
    pub udp: Option<bool>,
    /// Whether a NAT gives each destination another port.
    pub mapping_varies: Option<bool>,
    /// Whether a NAT is between this node and the relays.
    pub translated: Option<bool>,
    /// Where peers may find the node by UDP.
    pub endpoints: Vec<SocketAddr>,
}

/// A peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerReport {
    /// The full name without a final dot.
    pub fqdn: String,
    /// Its addresses on the tailnet.
    pub addresses: Vec<IpAddr>,
    /// Its operating system.
    pub os: String,
    /// Its tags.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Whether it is connected to the control server, if known.
    pub online: Option<bool>,
    /// How packets go to it; `None` while there is no session.
    pub path: Option<PathReport>,
}

/// How packets go to a peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum PathReport {
    /// By UDP.
    #[serde(rename_all = "camelCase")]
    Direct {
        /// The peer's address.
        address: SocketAddr,
        /// Round trip time.
        latency_ms: f64,
    },
    /// Through a relay.
    Relay {
        /// The relay's region.
        region: String,
        /// Why not by UDP, and what helps.
        why: String,
    },
}

/// The answer to a ping.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pong {
    /// Host name of the peer.
    pub name: String,
    /// Its address on the tailnet.
    pub address: IpAddr,
    /// Time from question to answer.
    pub latency_ms: f64,
    /// The way of the answer.
    pub via: Via,
}

/// The way of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Via {
    /// By UDP from this address.
    Direct(SocketAddr),
    /// Through the relay of this region.
    Relay(String),
}
