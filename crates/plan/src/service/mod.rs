//! Services that are exposed on the tailnet: by the annotation `tailscale.com/expose: "true"` or by `loadBalancerClass: tailscale`.
//!
//! [`validate()`] says what a Service asks for, [`build()`] what to do about it, [`status()`] what to tell the user.

mod build;
mod snapshot;
mod status;
mod validate;

pub use build::build;
pub use snapshot::Snapshot;
pub use status::{Status, StatusPatch, status};
pub use validate::{Exposure, Problem, Release, Validated, validate};
