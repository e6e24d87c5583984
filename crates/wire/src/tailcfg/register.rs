//! Registration of a node.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{CapabilityVersion, Hostinfo, Login, User};
use crate::key::{NlPublic, NodePublic};

/// `POST /machine/register`: log in, prove a login again, or log out.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct RegisterRequest {
    /// The client's capability version.
    pub version: CapabilityVersion,
    /// The node key to register.
    pub node_key: NodePublic,
    /// The node key that it replaces, or zero.
    pub old_node_key: NodePublic,
    /// Public key of tailnet lock.
    #[serde(rename = "NLKey")]
    pub nl_key: NlPublic,
    /// Proof that the node may join.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<RegisterAuth>,
    /// When the key should end. A time in the past means: log out now.
    #[serde(with = "crate::json::time")]
    pub expiry: Option<Timestamp>,
    /// The login page that an earlier answer named; the request waits until the login there is finished.
    pub followup: String,
    /// What the node says about itself.
    pub hostinfo: Option<Hostinfo>,
    /// Whether the node is deleted when it is gone for a while.
    #[serde(skip_serializing_if = "crate::json::is_zero")]
    pub ephemeral: bool,
    /// Signature of the node key, with tailnet lock.
    #[serde(with = "crate::json::base64")]
    pub node_key_signature: Vec<u8>,
    /// How `signature` was made.
    #[serde(skip_serializing_if = "crate::json::is_zero")]
    pub signature_type: i32,
    /// When the request was made.
    #[serde(with = "crate::json::time", skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<Timestamp>,
    /// Certificate of the device.
    #[serde(with = "crate::json::base64", skip_serializing_if = "Vec::is_empty")]
    pub device_cert: Vec<u8>,
    /// Signature by the device's certificate.
    #[serde(with = "crate::json::base64", skip_serializing_if = "Vec::is_empty")]
    pub signature: Vec<u8>,
    /// The tailnet that the user wants to join, by name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tailnet: String,
}

impl std::fmt::Debug for RegisterRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegisterRequest")
            .field("version", &self.version)
            .field("node_key", &self.node_key)
            .field("old_node_key", &self.old_node_key)
            .field("auth", &self.auth)
            .field("expiry", &self.expiry)
            .field("ephemeral", &self.ephemeral)
            .field("hostinfo", &self.hostinfo)
            .finish_non_exhaustive()
    }
}

/// Proof that a node may join.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct RegisterAuth {
    /// A pre-authentication key.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub auth_key: String,
}

impl std::fmt::Debug for RegisterAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RegisterAuth(redacted)")
    }
}

/// Answer to a [`RegisterRequest`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct RegisterResponse {
    /// The user to whom the node belongs.
    pub user: User,
    /// The login by which it was registered.
    pub login: Login,
    /// Whether the node has to make a new node key and register that.
    pub node_key_expired: bool,
    /// Whether the node may use the tailnet.
    pub machine_authorized: bool,
    /// Where the user has to log in before the node is registered; empty: nowhere.
    #[serde(rename = "AuthURL")]
    pub auth_url: String,
    /// Signature of the node key, with tailnet lock.
    #[serde(with = "crate::json::base64")]
    pub node_key_signature: Vec<u8>,
    /// Why the registration was refused, for people; empty: it was not.
    pub error: String,
}
