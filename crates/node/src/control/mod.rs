//! The control connection of one node: registration, the map stream, and what the node tells about itself.

mod announce;
mod c2n;
mod check;
mod client;
mod dial;
mod follow;
mod health;
mod noise_stream;
mod ping;
mod register;
mod session;
mod tell;

use tailwharf_wire::map_frame::MapFrameError;

pub(crate) use self::announce::Announced;
pub use self::check::CheckError;
pub(crate) use self::check::check;
use self::client::CallError;
pub(crate) use self::dial::ControlServer;
use self::dial::DialError;
pub(crate) use self::session::{Introduction, Session, logout, set_dns};
use crate::api::StoreError;

/// Why a session with the control server ended. All but a refusal are followed by another attempt.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error("cannot connect to the control server")]
    Dial(#[from] DialError),
    #[error("connecting to the control server took too long")]
    TimedOut,
    #[error("a request to the control server failed")]
    Call(#[from] CallError),
    #[error("the map stream cannot be read")]
    Map(#[from] MapFrameError),
    #[error("the map stream ended")]
    Ended,
    #[error("the map stream broke off")]
    Broken(#[source] hyper::Error),
    #[error("the machine has moved to another network")]
    Moved,
    #[error("the control server is silent")]
    Silent,
    #[error("the control server does not know this node any more")]
    Unregistered,
    #[error("the node key has expired")]
    KeyExpired,
    #[error("the node's state cannot be saved")]
    Store(#[from] StoreError),
    #[error("{reason}")]
    Refused { reason: String },
}
