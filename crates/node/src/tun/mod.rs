//! A TUN device: the node's packets are those of the kernel.
//!
//! | module | what |
//! | --- | --- |
//! | [`device`] | opens the device, its offloads, reads and writes packets |
//! | [`carrier`] | the one thread that carries packets between device, core and UDP socket |
//! | [`system`] | the machine around the device: addresses, MTU, routes, names, and what it passes on for peers |

mod carrier;
mod device;
mod system;

pub(crate) use self::carrier::start;
pub use self::device::{Device, TunError};
pub use self::system::TunSettings;
pub(crate) use self::system::follow;
