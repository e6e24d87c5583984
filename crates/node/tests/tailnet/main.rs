//! Nodes on a tailnet of this process: coordinator, relay and nodes on loopback.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by a panic, also in its helpers"
)]

mod certificates;
mod command;
mod common;
mod direct;
mod dns;
mod doh;
mod funnel;
mod hostile;
mod http_proxy;
mod local;
mod login;
mod nodes;
mod peerapi;
mod pings;
mod quirks;
mod scripted;
mod services;
mod transit;
