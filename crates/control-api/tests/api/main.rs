//! The client against API v2 over HTTP in this process, and the contract that it shares with the fake.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod contract;
mod faults;
mod server;
