//! Nodes on a tailnet of this process: coordinator, relay and nodes on loopback.

mod command;
mod common;
mod nodes;
