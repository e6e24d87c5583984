//! Tailnet nodes of one process: control connection, relay connections, sockets, state.
//!
//! [`Host`] holds what all nodes of a process share. [`Host::start`] starts a [`Node`]; everything above uses it through
//! the trait [`TailnetNode`]. What a node *decides* (sessions, paths, filter, TCP) is in `tailwharf-node-core`; this crate
//! obeys it, and speaks with the control server (`control`), the relays (`derp`) and peers (`direct`).
//!
//! Start reading at `api.rs`, then `engine.rs` (how packets move) and `control/session.rs` (how a node joins).

pub mod acme;
pub mod all_ports;
mod api;
mod app_connector;
mod backoff;
mod control;
mod derp;
mod direct;
pub mod dns;
mod engine;
mod fetch;
mod funnel;
mod host;
mod http1;
mod http_proxy;
mod inquiry;
pub mod layout;
pub mod local;
mod mark;
mod netlink;
mod node;
mod offload;
mod peerapi;
mod routing;
pub mod run;
mod service;
pub mod splice;
mod state;
mod store;
mod stream;
mod sync;
mod tcp;
#[cfg(test)]
mod testing;
mod tls;
mod transit;
pub mod tun;
mod udp;

pub use api::{
    AuthKey, DialError, LogoutError, NodeConfig, NodeState, NodeStatus, PathKind, PeerPath, Phase, Prefs,
    SocketError, StartError, StateStore, StoreError, TailnetNode,
};
pub use backoff::Backoff;
pub use control::CheckError;
pub use funnel::{FunnelConnection, FunnelListener, FunnelStream};
pub use host::{Host, HostConfig, HostError};
pub use http_proxy::{HttpProxies, HttpProxyError};
pub use inquiry::PingFailure;
pub use node::Node;
pub use offload::{NamedOffload, OffloadState, OffloadSwitches, UnknownOffload, offload_counts};
pub use service::{ParseServiceNameError, ServiceListener, ServiceName};
pub use store::{FileStore, MemoryStore, StoredLogin, write_atomically};
pub use tailwharf_node_core::{CapabilityError, Datagram, RelayReason, UdpError, WhoIs, netmap::Peer};
pub use tcp::{TcpListener, TcpStream};
pub use transit::TransitCounts;
pub use udp::{SendError, UdpSocket};
