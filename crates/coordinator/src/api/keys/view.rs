//! Keys as the API writes them.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tailwharf_wire::tailcfg::UserId;

use super::super::null_is_empty;
use crate::model::{Actor, ApiToken, AuthKey, CredentialId, OauthClient, Proof, Tag};
use crate::ops::NewFederation;
use crate::scope::{self, Scope};
use crate::secret::Secret;
use crate::world::World;

/// A key to create.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct KeyRequest {
    pub(crate) key_type: KeyType,
    pub(crate) capabilities: Capabilities,
    pub(crate) expiry_seconds: u64,
    pub(crate) description: String,
    /// Of an OAuth client or API token.
    #[serde(deserialize_with = "null_is_empty")]
    pub(crate) scopes: BTreeSet<String>,
    /// Of an OAuth client.
    #[serde(deserialize_with = "null_is_empty")]
    pub(crate) tags: BTreeSet<String>,
    /// The login of the person who owns the nodes made with an auth key, or in whose name an API token acts. Only administrators name one.
    pub(crate) user: Option<String>,
    /// Of a federated client.
    #[serde(flatten)]
    pub(crate) binding: Binding,
}

/// What the token of its platform must say, of a federated client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Binding {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) issuer: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) subject: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) audience: String,
    #[serde(
        deserialize_with = "null_is_empty",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub(crate) custom_claim_rules: BTreeMap<String, String>,
}

/// What a key is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum KeyType {
    #[default]
    Auth,
    Client,
    /// An OAuth client that shows a token of its platform instead of a secret.
    Federated,
    Api,
}

/// What may be done with an auth key. The nesting is that of API v2.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Capabilities {
    pub(crate) devices: DeviceCapabilities,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct DeviceCapabilities {
    pub(crate) create: CreateCapabilities,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct CreateCapabilities {
    pub(crate) reusable: bool,
    pub(crate) ephemeral: bool,
    pub(crate) preauthorized: bool,
    #[serde(deserialize_with = "null_is_empty")]
    pub(crate) tags: BTreeSet<String>,
}

/// A key as it is shown.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct KeyView {
    pub(crate) id: String,
    pub(crate) key_type: KeyType,
    /// Only in the answer to the call that created the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<String>,
    pub(crate) description: String,
    pub(crate) created: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) expires: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) revoked: Option<Timestamp>,
    /// Whether the key is of no use any more: expired, revoked, or used up.
    pub(crate) invalid: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) capabilities: Option<Capabilities>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) scopes: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) tags: BTreeSet<String>,
    /// The login of the person who owns it, or its nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<String>,
    /// The id of that person.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user_id: Option<String>,
    #[serde(default, flatten)]
    pub(crate) binding: Binding,
}

/// Answer of the list.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct KeyList {
    pub(crate) keys: Vec<KeyView>,
}

impl KeyType {
    pub(super) const ALL: [Self; 4] = [Self::Auth, Self::Client, Self::Federated, Self::Api];

    pub(super) fn scope(self) -> Scope<'static> {
        match self {
            Self::Auth => scope::AUTH_KEYS,
            Self::Client => scope::OAUTH_KEYS,
            Self::Federated => scope::FEDERATED_KEYS,
            Self::Api => scope::API_TOKENS,
        }
    }
}

impl From<Binding> for NewFederation {
    fn from(binding: Binding) -> Self {
        Self {
            issuer: binding.issuer,
            subject: binding.subject,
            audience: binding.audience,
            claims: binding.custom_claim_rules,
        }
    }
}

impl KeyView {
    pub(super) fn with_secret(self, secret: &Secret) -> Self {
        Self {
            key: Some(secret.reveal().to_owned()),
            ..self
        }
    }

    /// What all kinds of keys have.
    fn new(id: &CredentialId, key_type: KeyType, description: &str, created: Timestamp) -> Self {
        Self {
            id: id.to_string(),
            key_type,
            key: None,
            description: description.to_owned(),
            created,
            expires: None,
            revoked: None,
            invalid: false,
            capabilities: None,
            scopes: BTreeSet::new(),
            tags: BTreeSet::new(),
            user: None,
            user_id: None,
            binding: Binding::default(),
        }
    }

    /// Names the person who owns it.
    fn of(self, world: &World, user: Option<UserId>) -> Self {
        let known = user.and_then(|id| world.user(id));
        Self {
            user: known.map(|user| user.login.clone()),
            user_id: user.map(|id| id.to_string()),
            ..self
        }
    }

    pub(super) fn of_auth_key(world: &World, key: &AuthKey) -> Self {
        let used_up = key.used.is_some() && !key.reusable;
        let create = CreateCapabilities {
            reusable: key.reusable,
            ephemeral: key.ephemeral,
            preauthorized: key.preauthorized,
            tags: texts(&key.tags),
        };
        let view = Self::new(&key.id, KeyType::Auth, &key.description, key.created).of(world, key.owner);
        Self {
            expires: Some(key.expires),
            revoked: key.revoked,
            invalid: used_up || key.revoked.is_some() || key.expires <= Timestamp::now(),
            capabilities: Some(Capabilities {
                devices: DeviceCapabilities { create },
            }),
            ..view
        }
    }

    pub(super) fn of_client(client: &OauthClient) -> Self {
        let (key_type, binding) = match &client.proof {
            Proof::Secret(_) => (KeyType::Client, Binding::default()),
            Proof::Federation(bound) => (
                KeyType::Federated,
                Binding {
                    issuer: bound.issuer.clone(),
                    subject: bound.subject.clone(),
                    audience: bound.audience.clone(),
                    custom_claim_rules: bound.claims.clone(),
                },
            ),
        };
        Self {
            scopes: client.scopes.clone(),
            tags: texts(&client.tags),
            binding,
            ..Self::new(&client.id, key_type, &client.description, client.created)
        }
    }

    pub(super) fn of_token(world: &World, token: &ApiToken) -> Self {
        let user = match &token.actor {
            Actor::User(id) => Some(*id),
            Actor::Administrator | Actor::Client { .. } => None,
        };
        let view = Self::new(&token.id, KeyType::Api, &token.description, token.created).of(world, user);
        Self {
            expires: Some(token.expires),
            invalid: token.expires <= Timestamp::now(),
            scopes: token.scopes.clone(),
            ..view
        }
    }
}

fn texts(tags: &BTreeSet<Tag>) -> BTreeSet<String> {
    tags.iter().map(ToString::to_string).collect()
}
