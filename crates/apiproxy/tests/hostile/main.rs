//! The hostile list: what clients, policies and API servers do to a proxy. Each test has the id of its case in its name.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that fails says where"
)]

mod backend;
mod bed;
mod browser;
mod check;
mod framing;
mod http2;
mod identity;
mod paths;
mod recording;
#[path = "../shared/mod.rs"]
mod shared;
mod streams;
mod upgrades;
