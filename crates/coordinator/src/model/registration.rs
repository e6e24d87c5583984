//! Devices that wait for a person to let them in.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tailwharf_wire::{
    key::MachinePublic,
    tailcfg::{NodeId, RegisterRequest},
};
use tokio_util::sync::CancellationToken;

/// The unguessable part of the page at which a registration is decided. Worth nothing once it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RegistrationId(pub String);

impl fmt::Display for RegistrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A device without auth key that wants to join, or to log in again. Lives in memory: after a restart the client asks anew.
#[derive(Clone, Debug)]
pub struct PendingRegistration {
    /// The last part of the page's address.
    pub id: RegistrationId,
    /// The machine that asks, which alone can make use of the approval.
    pub machine: MachinePublic,
    /// What it says about itself. Without any credential.
    pub request: RegisterRequest,
    /// The node that logs in again, if it is one.
    pub node: Option<NodeId>,
    /// When it asked.
    pub created: Timestamp,
    /// From when on the request is worth nothing.
    pub expires: Timestamp,
    /// Whether it was turned down.
    pub denied: bool,
    /// Cancelled once it is decided.
    pub(crate) decided: CancellationToken,
}

impl PendingRegistration {
    /// Whether a person can still decide.
    pub fn is_open(&self, now: Timestamp) -> bool {
        !self.denied && now < self.expires
    }
}
