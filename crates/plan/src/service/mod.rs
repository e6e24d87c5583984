//! Services that are exposed on the tailnet: by the annotation `tailscale.com/expose: "true"` or by `loadBalancerClass: tailscale`; and those that stand
//! for something on the tailnet, whose stages are in [`crate::egress`].
//!
//! [`validate()`] says what a Service asks for, [`build()`] what to do about it, [`status()`] what to tell the user.

mod build;
mod snapshot;
mod status;
mod validate;

pub use build::build;
pub use snapshot::Snapshot;
pub use status::status;
pub(crate) use validate::{Asker, CarriedPort, carried_ports};
pub use validate::{Exposure, LeftOut, Problem, Validated, validate};
