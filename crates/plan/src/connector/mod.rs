//! Connectors: devices that route networks outside of the tailnet, or the whole internet, or the domains of applications.
//!
//! [`validate()`] says what a Connector asks for, [`build()`] what to do about it, [`status()`] what to tell the user.

mod build;
mod routes;
mod snapshot;
mod status;
mod validate;

pub use build::build;
pub use routes::RouteProblem;
pub use snapshot::Snapshot;
pub use status::status;
pub use validate::{Problem, Serving, Validated, validate};
