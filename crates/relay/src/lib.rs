//! DERP relay and STUN server.
//!
//! A relay carries packets between nodes that cannot, or cannot yet, reach each other directly. Nodes connect to it by TLS and
//! are known by their node keys, which they prove; packets are sealed by WireGuard and mean nothing to the relay.
//!
//! | module | what |
//! | --- | --- |
//! | [`machine`] | who is connected, what is queued for whom, who is told that whom is gone: no sockets, no clock |
//! | `server` | listeners and limits |
//! | `shared` | what all connections share |
//! | `http` | the paths a relay answers, and the upgrade to DERP |
//! | `connection` | one client: frames in, frames out |
//! | `websocket` | DERP for clients in browsers |
//! | `stun` | answers binding requests |
//! | `identity` | the relay's key and its self-signed certificate, which clients pin |
//!
//! Start with [`Relay::start`].

#![forbid(unsafe_code)]

mod connection;
mod http;
mod identity;
pub mod machine;
mod metrics;
mod server;
mod shared;
mod stun;
mod websocket;

pub use self::identity::IdentityError;
pub use self::machine::{Rate, Rates};
pub use self::metrics::Metrics;
pub use self::server::{Admission, Limits, Relay, RelayConfig, RelayError, RelayHandle};
