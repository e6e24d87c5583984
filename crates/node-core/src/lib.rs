//! One tailnet node as a state machine, without clock, randomness or sockets.
//!
//! [`Core`] is driven in four classes of methods: `handle_*` takes what came from outside, verbs are what an application wants, getters look, and `poll_*`
//! tells what to do: [`Core::poll_transmit`] until it is empty, [`Core::poll_event`] until it is empty, and [`Core::poll_timeout`] for when to call
//! [`Core::handle_timeout`]. Packets run to completion: `handle_*` for a batch, then one drain of `poll_transmit`, in which all TCP connections that the batch
//! touched answer together. What goes to one path leaves as one batch, see [`Transmit`].
//!
//! | module | what |
//! | --- | --- |
//! | [`netmap`] | the tailnet as a snapshot, map responses applied to it, records shared between identities |
//! | [`filter`] | the packet filter and capabilities |
//! | `paths`, `endpoints` | which way packets take to a peer, and where peers may find this node |
//! | `tunnel`, `session` | sessions with the peers that talk |
//! | `disco`, `tsmp` | pings of both kinds |
//! | `tcp`, `udp` | the userspace stack |
//! | `transit` | what peers send to networks that this node routes without a kernel |
//! | `app_connector` | the domains that peers reach through a node, and what it learns of them |
//! | `core` | all of it together |
//!
//! **Exception to purity**: `boringtun` reads the monotonic and the system clock and the system's randomness inside `session`, the only module that uses it;
//! when it does so follows from our own deadlines alone.

#![forbid(unsafe_code)]

mod app_connector;
mod budget;
mod buffers;
mod core;
mod disco;
pub mod dns;
mod endpoints;
mod event;
pub mod filter;
mod fragments;
mod icmp;
mod limit;
pub mod netmap;
pub mod offload;
mod outbox;
pub mod packet;
mod paths;
mod pings;
mod session;
mod slab;
mod tcp;
mod transit;
mod tsmp;
mod tunnel;
mod udp;
mod whois;

pub use self::app_connector::AppConnector;
pub use self::budget::MemoryBudget;
pub use self::buffers::{BUFFER_LEN, BufferPool};
pub use self::core::{Core, CoreConfig, Counters};
pub use self::endpoints::NetFacts;
pub use self::event::{
    Accepted, AdmitError, AskedId, BindError, CloseReason, ConnError, ConnId, ConnectError, Event, Io,
    ListenerId, PingError, PingId, PingKind, Reason, UdpError, UdpId,
};
pub use self::outbox::Transmit;
pub use self::paths::{Path, PathState, PeerPath, RelayReason};
pub use self::transit::{Echo, Transit, VIA, via};
pub use self::udp::Datagram;
pub use self::whois::{CapabilityError, WhoIs};
