//! Real peers, clusters and tailnets for tests, the demo and the bench. Never part of the image.
//!
//! Everything here is blocking and owns what it starts: dropping a value ends its processes (by pid) and removes its
//! interfaces and files. Nothing waits by sleeping a guessed time; [`wait`] holds the only pause, between two looks at
//! a condition that has a deadline.
//!
//! Start reading at [`lab::Lab`], which puts the pieces together.

#![forbid(unsafe_code)]

pub mod apiserver;
pub mod cluster;
pub mod helm;
pub mod kubectl;
pub mod lab;
pub mod nat;
pub mod network;
pub mod official;
pub mod outside;
pub mod pebble;
pub mod process;
pub mod requirements;
pub mod sessions;
pub mod tailnet;
pub mod txt;
pub mod wait;
pub mod workspace;

pub use apiserver::ApiServer;
pub use cluster::Cluster;
pub use kubectl::Kubectl;
pub use lab::Lab;
pub use network::{Bridge, Namespace};
pub use official::OfficialClient;
pub use outside::Outside;
pub use pebble::Pebble;
pub use process::Process;
pub use tailnet::{NodeProcess, Tailnet};
pub use wait::{eventually, eventually_within};
