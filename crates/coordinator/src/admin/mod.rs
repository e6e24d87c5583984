//! The administrator's commands: the API's calls on a unix socket in the data directory, a client for them, and the command line.
//!
//! Who may open the socket is the administrator; there is no token to keep. The socket's mode is 0600.

mod args;
pub mod cli;
pub mod client;
mod output;
mod server;

pub(crate) use self::server::{bind, serve};
