//! What every HTTP proxy of tailwharf does alike.
//!
//! - [`serve`]: a connection of HTTP/1.1 or HTTP/2, served under limits.
//! - [`hop`]: headers that concern one hop only, and what may not be passed on at all.
//! - [`relay`]: copies between two connections that have left HTTP behind.
//! - [`stall`]: a stream that fails when its peer takes or sends nothing for too long.
#![forbid(unsafe_code)]

pub mod hop;
pub mod relay;
pub mod serve;
pub mod stall;

pub use hop::{HopError, Target};
pub use relay::relay;
pub use serve::{HttpLimits, Server, Version};
pub use stall::{Stall, StallLimits};
