//! Definitions of Kubernetes clusters that a tailnet publishes to its nodes.
//!
//! They are values of the capability [`CAPABILITY`], which a policy gives by `nodeAttrs`, so that each node learns those that are meant for it with its
//! map, whichever control server it has.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The capability whose values are definitions.
pub const CAPABILITY: &str = "tailwharf.dev/cap/cluster";

/// The longest name of a cluster.
const NAME_LIMIT: usize = 253;
/// Fields of a user section that hold secrets, or name files of one machine.
const PRIVATE: &[&str] = &[
    "token",
    "tokenFile",
    "password",
    "client-key-data",
    "client-key",
    "client-certificate",
    "auth-provider",
];

/// A cluster, as `kubectl` has to be told of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterDefinition {
    /// The name of its context: lower-case letters, digits, `-` and `.`.
    pub name: String,
    /// The address of its API, like `https://edge.tail1234.ts.net`. Plain `http` is for addresses on the tailnet, which encrypts.
    pub server: String,
    /// The certificates to trust, as base64 of PEM; those of the system when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_authority_data: Option<String>,
    /// The namespace of the context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The user section of a kubeconfig as it is written there: how people prove to the cluster who they are. Every node that is told of the cluster
    /// can read it, so there is no secret in it. Empty for a cluster whose proxy knows people by the tailnet.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub user: Map<String, Value>,
}

/// Why a definition cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// The name is none.
    Name,
    /// The address is none.
    Server,
    /// The user section has this field, which is a secret or means nothing elsewhere.
    Private(&'static str),
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name => f.write_str("`name` has to be lower-case letters, digits, `-` and `.`"),
            Self::Server => {
                f.write_str("`server` has to be an address, such as `https://edge.tail1234.ts.net`")
            }
            Self::Private(field) => write!(
                f,
                "`user` may not have `{field}`: every device that is told of the cluster could read it; use `exec`"
            ),
        }
    }
}

impl ClusterDefinition {
    /// Finds what makes the definition useless or dangerous.
    ///
    /// # Errors
    /// The first flaw.
    pub fn check(&self) -> Result<(), Flaw> {
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
        if self.name.is_empty() || self.name.len() > NAME_LIMIT || !self.name.chars().all(legal) {
            return Err(Flaw::Name);
        }
        let host = ["https://", "http://"]
            .iter()
            .find_map(|scheme| self.server.strip_prefix(scheme));
        let plain = |text: &str| !text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '@');
        if !host.is_some_and(|host| !host.is_empty() && !host.starts_with('/') && plain(host)) {
            return Err(Flaw::Server);
        }
        match PRIVATE.iter().find(|field| self.user.contains_key(**field)) {
            Some(field) => Err(Flaw::Private(field)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn definition(value: Value) -> ClusterDefinition {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_definition_needs_a_name_and_an_address_and_holds_no_secret() {
        let good = json!({
            "name": "edge", "server": "https://edge.tail1234.ts.net", "namespace": "shop",
            "user": {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "kubelogin"}},
        });
        assert_eq!(definition(good.clone()).check(), Ok(()));
        for (field, value, flaw) in [
            ("name", json!("Edge"), Flaw::Name),
            ("name", json!(""), Flaw::Name),
            ("server", json!("edge"), Flaw::Server),
            ("server", json!("https://u:p@edge"), Flaw::Server),
            ("server", json!("https:///x"), Flaw::Server),
            ("user", json!({"token": "t"}), Flaw::Private("token")),
            (
                "user",
                json!({"client-key-data": "k"}),
                Flaw::Private("client-key-data"),
            ),
        ] {
            let mut bad = good.clone();
            bad[field] = value;
            assert_eq!(definition(bad).check(), Err(flaw));
        }
    }

    #[test]
    fn unknown_fields_are_refused() {
        let odd = json!({"name": "a", "server": "https://a", "color": "red"});
        assert!(serde_json::from_value::<ClusterDefinition>(odd).is_err());
    }
}
