//! The control server of a tailnet: registration, maps, policy, API v2 and store.
//!
//! ```text
//! node ──ts2021──► noise ──► machine ──► register, poll ──┐ decisions             ┌──► store
//! API, administrator ──────► api, admin ──► ops ──────────┴──► writer (one thread)┴──► World ──► sessions ──► mapper ──► map streams
//! ```
//!
//! - A [`world::World`] is the state at one moment and never changes.
//! - A decision is a pure function of a world; the one writer runs it, stores its changes, and then publishes the next world.
//! - What a node sees follows from a world alone; a map stream sends the difference of two.
//!
//! Start reading at [`server`].
#![forbid(unsafe_code)]

pub mod admin;
pub mod api;
pub mod config;
mod derp_map;
mod gc;
pub mod hosts;
mod http;
pub mod ipam;
#[cfg(test)]
mod lab;
mod machine;
mod mapper;
mod metrics;
pub mod model;
pub mod names;
mod noise;
mod oidc;
pub mod ops;
mod poll;
mod questions;
mod register;
mod routes;
mod scope;
pub mod secret;
pub mod server;
mod sessions;
mod site;
pub mod store;
mod tls;
mod web;
mod workload;
pub mod world;
mod writer;

pub use self::{
    config::{Config, ConfigError},
    derp_map::DerpMapError,
    noise::NoiseStream,
    oidc::OidcError,
    ops::{OpError, Operations},
    server::{Coordinator, Handle, StartError},
    tls::TlsError,
};
