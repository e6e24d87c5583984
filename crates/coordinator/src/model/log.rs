//! The log of changes: who did what, and when.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tailwharf_wire::tailcfg::StableId;

use super::Actor;

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Counts up by one.
    pub id: i64,
    /// When it was done.
    pub at: Timestamp,
    /// Who did it.
    pub author: Author,
    /// What was done.
    pub action: Action,
    /// To what kind of thing.
    pub kind: TargetKind,
    /// By which id the thing is known.
    pub target: String,
    /// How people call the thing.
    pub name: String,
    /// What is worth knowing beside: the new value, or by what it was allowed. Never a secret.
    pub detail: String,
}

/// Who changed something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Author {
    /// A caller of the API.
    Actor(Actor),
    /// A node, about itself.
    Node(StableId),
    /// The coordinator, by its own rules.
    Coordinator,
}

impl From<Actor> for Author {
    fn from(actor: Actor) -> Self {
        Self::Actor(actor)
    }
}

impl From<&Actor> for Author {
    fn from(actor: &Actor) -> Self {
        Self::Actor(actor.clone())
    }
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// It exists from now on.
    Create,
    /// It differs from before.
    Update,
    /// It is gone.
    Delete,
    /// It may be used from now on.
    Approve,
    /// It may not be used.
    Deny,
    /// A person signed in for it anew.
    Confirm,
    /// Its key has ended, or was ended.
    Expire,
    /// A device logged in again.
    Login,
    /// A device logged out.
    Logout,
    /// A credential is worth nothing from now on.
    Revoke,
}

/// What kind of thing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TargetKind {
    /// A device.
    Node,
    /// A person.
    User,
    /// An auth key.
    AuthKey,
    /// An OAuth client.
    OauthClient,
    /// An API token of a person.
    ApiToken,
    /// The policy.
    Policy,
    /// Rules for devices.
    Settings,
    /// How names are resolved.
    Dns,
    /// A VIP service.
    Service,
    /// A device that wants to join.
    Registration,
}
