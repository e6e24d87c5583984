//! Ingresses of the operator's class: an HTTPS server on a device of its own.
//!
//! [`validate()`] says what an Ingress asks for, [`build()`] what to do about it, [`status()`] what to tell the user. An Ingress has no conditions, so
//! what is wrong with it is the condition `Accepted` of its Identity, and events.

mod build;
mod hosts;
mod options;
mod problem;
mod routes;
mod snapshot;
mod status;
mod validate;

pub use build::build;
pub use hosts::{Copy, hostname};
pub use problem::Problem;
pub use snapshot::{
    CertificateFacts, CertificateSecret, Rival, Snapshot, Target, backend_services, certificate_secrets,
    is_ours,
};
pub use status::status;
pub use validate::{Rejection, Serving, Validated, validate};
