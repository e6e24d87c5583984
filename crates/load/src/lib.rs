//! Thousands of simulated nodes against a coordinator: real control sessions, without WireGuard behind them.
//!
//! [`Fleet`] is the nodes, [`measure`] what a coordinator of a certain size promises. Never part of the image.
#![forbid(unsafe_code)]

mod client;
mod compile;
mod fleet;
mod measure;
mod tailnet;

pub use compile::compile;
pub use fleet::Fleet;
pub use measure::{Report, measure};
