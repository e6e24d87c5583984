//! Who may log in to a node by SSH.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::StableId;

/// What a node decides SSH connections by: the first rule that matches.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SshPolicy {
    /// The rules, in the order in which they are tried.
    pub rules: Vec<SshRule>,
}

/// Whom a rule is for, and what happens to them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SshRule {
    /// When the rule ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule_expires: Option<Timestamp>,
    /// Whom it is for. One of them must match.
    pub principals: Vec<SshPrincipal>,
    /// The name that is asked for, or `*` → the local user; `=` is the name itself, an empty text nobody.
    pub ssh_users: BTreeMap<String, String>,
    /// What happens. None refuses.
    pub action: Option<SshAction>,
    /// Names of environment variables that the client may set; `*` and `?` stand for others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub accept_env: Vec<String>,
}

/// The origin of a connection. One field is set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SshPrincipal {
    /// A node.
    #[serde(skip_serializing_if = "crate::json::is_zero")]
    pub node: StableId,
    /// A node by its address.
    #[serde(rename = "nodeIP", skip_serializing_if = "String::is_empty")]
    pub node_ip: String,
    /// The login of a user.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user_login: String,
    /// Everybody.
    #[serde(skip_serializing_if = "crate::json::is_zero")]
    pub any: bool,
}

/// What happens to a connection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(clippy::struct_excessive_bools, reason = "the form of the protocol")]
pub struct SshAction {
    /// Shown to the user first.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The connection is refused.
    #[serde(skip_serializing_if = "crate::json::is_zero")]
    pub reject: bool,
    /// The connection is accepted.
    #[serde(skip_serializing_if = "crate::json::is_zero")]
    pub accept: bool,
    /// How long the session may last, in nanoseconds. 0: no limit.
    #[serde(skip_serializing_if = "crate::json::is_zero")]
    pub session_duration: i64,
    /// Whether the agent may be forwarded.
    #[serde(skip_serializing_if = "crate::json::is_zero")]
    pub allow_agent_forwarding: bool,
    /// A URL at the control server that answers with the action to take, once that is known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hold_and_delegate: String,
    /// Whether local ports may be forwarded.
    #[serde(skip_serializing_if = "crate::json::is_zero")]
    pub allow_local_port_forwarding: bool,
    /// Whether remote ports may be forwarded.
    #[serde(skip_serializing_if = "crate::json::is_zero")]
    pub allow_remote_port_forwarding: bool,
    /// Recorders of the session, as `ip:port`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub recorders: Vec<String>,
    /// What happens when recording fails. None: the session goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_recording_failure: Option<SshRecorderFailureAction>,
}

/// What happens when a session cannot be recorded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct SshRecorderFailureAction {
    /// Not empty: the session is refused with these words.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reject_session_with_message: String,
    /// Not empty: a session that runs is ended with these words.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub terminate_session_with_message: String,
    /// Where to tell of it.
    #[serde(rename = "NotifyURL", skip_serializing_if = "String::is_empty")]
    pub notify_url: String,
}
