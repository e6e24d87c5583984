//! Certificates of the names that devices serve.
//!
//! `keeper.rs` sees to those of one device: what people provide, and what it has the pod's one issuer (`issuer.rs`) order. A certificate
//! is stored in the identity's Secret before it is served (`<name>.crt`, `<name>.key`, as the Go client has it), so whoever hosts the
//! identity next finds it; a failed order stands there with the time before which none is made again (`attempts.rs`).

mod attempts;
mod counters;
mod issuer;
mod keeper;
mod loaded;

pub(crate) use self::counters::CertificateCounters;
pub(crate) use self::issuer::Issuer;
pub(crate) use self::keeper::{Keeper, Wanted};
#[cfg(test)]
pub(crate) use self::loaded::{Loaded, tests};
