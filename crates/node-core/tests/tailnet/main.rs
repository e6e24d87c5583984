//! Whole nodes in a tailnet of memory and virtual time.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "clippy knows the body of a test from the helpers of one only where it stands in a `cfg(test)` module"
)]

mod handshake;
mod hostile;
mod nat;
mod net;
mod node;
mod paths;
mod tcp;
mod transit;
mod tun;
