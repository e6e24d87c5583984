//! How an OAuth client proves who it is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::secret::SecretHash;

/// The proof that an OAuth client gives for its tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Proof {
    /// A secret, of which the hash is kept.
    Secret(SecretHash),
    /// A token of a platform that knows the client; nothing is kept.
    Federation(Federation),
}

/// What the token of a platform must say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Federation {
    /// Who signs: the URL of an issuer of the configuration.
    pub issuer: String,
    /// Whom the token is about, like `system:serviceaccount:tailscale:operator`; `*` stands for any text.
    pub subject: String,
    /// For whom it was made; one of its audiences must be this.
    pub audience: String,
    /// Further claims, by name, and what they must be; `*` stands for any text.
    pub claims: BTreeMap<String, String>,
}
