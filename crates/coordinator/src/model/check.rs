//! Fresh sign-ins: what a person was asked to confirm, and what they confirmed.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tailwharf_wire::{
    key::NodePublic,
    tailcfg::{NodeId, UserId},
};
use tokio_util::sync::CancellationToken;

use super::ServiceName;

/// How long a confirmation is remembered: no rule may ask for an older one.
pub const CONFIRMATION_MEMORY: SignedDuration = SignedDuration::from_hours(24 * 7);

/// Who asks for the confirmation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckTarget {
    /// The SSH server of a node.
    Ssh(NodeId),
    /// A program of a node.
    Node(NodeId),
    /// A program of each host of a service.
    Service(ServiceName),
}

impl fmt::Display for CheckTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ssh(node) => write!(f, "ssh:{node}"),
            Self::Node(node) => write!(f, "node:{node}"),
            Self::Service(name) => name.fmt(f),
        }
    }
}

/// The unguessable part of the page at which a person confirms.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CheckId(pub String);

impl fmt::Display for CheckId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a person was asked to confirm. Lives in memory: after a restart it is asked anew.
#[derive(Clone, Debug)]
pub struct PendingCheck {
    /// The last part of the page's address.
    pub id: CheckId,
    /// What the page and the program both show.
    pub code: String,
    /// The device that wants something.
    pub source: NodeId,
    /// Its owner, who alone can confirm.
    pub user: UserId,
    /// Who asks.
    pub target: CheckTarget,
    /// What for, in words for the person.
    pub purpose: String,
    /// When it was asked.
    pub created: Timestamp,
    /// From when on the page is worth nothing.
    pub expires: Timestamp,
    /// Whether the person said no.
    pub denied: bool,
    /// Cancelled once it is decided.
    pub(crate) decided: CancellationToken,
}

impl PendingCheck {
    /// Whether the person can still decide.
    pub fn is_open(&self, now: Timestamp) -> bool {
        !self.denied && now < self.expires
    }
}

/// What a person confirmed: that it was they who used a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmation {
    /// The device.
    pub source: NodeId,
    /// The key that it had. With another one, nothing was confirmed.
    pub key: NodePublic,
    /// Who confirmed.
    pub user: UserId,
    /// For whom.
    pub target: CheckTarget,
    /// When.
    pub at: Timestamp,
}

impl Confirmation {
    /// The key of the confirmation of a device for somebody: there is one at most.
    pub fn id(source: NodeId, target: &CheckTarget) -> String {
        format!("{source}/{target}")
    }
}
