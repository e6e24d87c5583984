//! Data that crosses a border of the tailnet: keys, control messages, records and packets.
//!
//! Everything here is pure: bytes in, values out, and back. There is no clock, no source of randomness and no I/O; what a
//! function needs of them comes in by argument. Every decoder has limits, and answers bad input with an error.
//!
//! | module | what |
//! | --- | --- |
//! | [`key`] | node, machine, disco and challenge keys, NaCl boxes |
//! | [`noise`] | the ts2021 handshake and the records after it |
//! | [`cluster`] | definitions of Kubernetes clusters, published by a policy |
//! | [`tailcfg`] | messages between a node and its control server |
//! | [`json`] | JSON by the rules of Go, in which these messages are written |
//! | [`map_frame`] | framing and compression of map responses |
//! | [`derp`] | frames between a node and a relay |
//! | [`disco`] | path discovery between nodes |
//! | [`stun`] | discovery of one's own public address |
//! | [`tsmp`] | the small control protocol inside tunnels |

#![forbid(unsafe_code)]

pub mod cluster;
pub mod derp;
pub mod disco;
pub mod json;
pub mod key;
pub mod map_frame;
pub mod noise;
pub mod stun;
pub mod tailcfg;
pub mod tsmp;
