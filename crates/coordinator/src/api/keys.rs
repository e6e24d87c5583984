//! Auth keys, OAuth clients and API tokens.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tailwharf_wire::tailcfg::UserId;

use super::caller::{Body, Caller, Path};
use super::{Api, ApiError};
use crate::model::{Actor, ApiToken, AuthKey, CredentialId, OauthClient, Role, Tag};
use crate::ops::{NewApiToken, NewAuthKey, NewOauthClient};
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
}

/// What a key is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum KeyType {
    #[default]
    Auth,
    Client,
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

/// Clients in Go write empty lists as `null`.
fn null_is_empty<'de, D: serde::Deserializer<'de>>(from: D) -> Result<BTreeSet<String>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
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
}

/// Answer of the list.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct KeyList {
    pub(crate) keys: Vec<KeyView>,
}

/// The keys that the caller may read.
pub(super) async fn list(State(api): State<Api>, caller: Caller) -> Result<Json<KeyList>, ApiError> {
    let readable =
        [KeyType::Auth, KeyType::Client, KeyType::Api].map(|kind| (kind, caller.may(kind.scope().read())));
    if readable.iter().all(|(_, may)| !may) {
        caller.require(scope::AUTH_KEYS.read())?;
    }
    let world = api.operations.world();
    let all = all_keys(&world).filter(|key| readable.contains(&(key.key_type, true)));
    Ok(Json(KeyList { keys: all.collect() }))
}

/// One key.
pub(super) async fn get(
    State(api): State<Api>,
    caller: Caller,
    Path((_, id)): Path<(String, String)>,
) -> Result<Json<KeyView>, ApiError> {
    let key = find(&api.operations.world(), id)?;
    caller.require(key.key_type.scope().read())?;
    Ok(Json(key))
}

/// Revokes an auth key; deletes a client or token.
pub(super) async fn delete(
    State(api): State<Api>,
    caller: Caller,
    Path((_, id)): Path<(String, String)>,
) -> Result<Json<serde_json::Value>, ApiError> {
    let key = find(&api.operations.world(), id)?;
    caller.require(key.key_type.scope())?;
    let id = CredentialId::from(key.id.as_str());
    match key.key_type {
        KeyType::Auth => api.operations.revoke_auth_key(id).await?,
        KeyType::Client => api.operations.delete_oauth_client(id).await?,
        KeyType::Api => api.operations.delete_api_token(id).await?,
    }
    Ok(Json(serde_json::Value::Object(serde_json::Map::new())))
}

/// Creates a key. The answer is the only one that carries its secret.
pub(super) async fn create(
    State(api): State<Api>,
    caller: Caller,
    Body(request): Body<KeyRequest>,
) -> Result<Json<KeyView>, ApiError> {
    caller.require(request.key_type.scope())?;
    let world = api.operations.world();
    let (view, secret) = match request.key_type {
        KeyType::Auth => {
            let minted = api
                .operations
                .create_auth_key(new_auth_key(&world, &caller, request)?)
                .await?;
            (KeyView::of_auth_key(&world, &minted.record), minted.secret)
        }
        KeyType::Client => {
            let minted = api
                .operations
                .create_oauth_client(new_client(&caller, request)?)
                .await?;
            (KeyView::of_client(&minted.record), minted.secret)
        }
        KeyType::Api => {
            let minted = api
                .operations
                .create_api_token(new_token(&world, &caller, request)?)
                .await?;
            (KeyView::of_token(&world, &minted.record), minted.secret)
        }
    };
    Ok(Json(view.with_secret(&secret)))
}

fn new_auth_key(world: &World, caller: &Caller, request: KeyRequest) -> Result<NewAuthKey, ApiError> {
    let create = request.capabilities.devices.create;
    let owner = request
        .user
        .map(|login| user_id(world, caller, &login))
        .transpose()?;
    Ok(NewAuthKey {
        creator: caller.actor().clone(),
        owner,
        description: request.description,
        reusable: create.reusable,
        ephemeral: create.ephemeral,
        preauthorized: create.preauthorized,
        tags: parse_tags(&create.tags)?,
        lifetime: Some(Duration::from_secs(request.expiry_seconds)),
    })
}

fn new_client(caller: &Caller, request: KeyRequest) -> Result<NewOauthClient, ApiError> {
    let tags = parse_tags(&request.tags)?;
    check_scopes(caller, &request.scopes)?;
    let needs_tags = [scope::AUTH_KEYS, scope::DEVICES]
        .into_iter()
        .find(|needed| scope::covered(&request.scopes, *needed));
    if let Some(scope) = needs_tags.filter(|_| tags.is_empty()) {
        let message = format!(
            "an OAuth client with the scope `{scope}` needs at least one tag, with which it acts: add one"
        );
        return Err(ApiError::Invalid(message));
    }
    let creator = caller.actor().clone();
    Ok(NewOauthClient {
        creator,
        description: request.description,
        scopes: request.scopes,
        tags,
    })
}

fn new_token(world: &World, caller: &Caller, request: KeyRequest) -> Result<NewApiToken, ApiError> {
    let login = request
        .user
        .ok_or_else(|| ApiError::Invalid("an API token needs a user, in whose name it acts".to_owned()))?;
    let id = user_id(world, caller, &login)?;
    if world.user(id).is_none_or(|user| user.role < Role::Admin) {
        let message =
            format!("an API token acts as an administrator, and `{login}` is none: name another user");
        return Err(ApiError::Invalid(message));
    }
    let actor = Actor::User(id);
    let scopes = if request.scopes.is_empty() {
        [scope::ALL.to_string()].into()
    } else {
        request.scopes
    };
    check_scopes(caller, &scopes)?;
    let seconds = if request.expiry_seconds == 0 {
        TOKEN_SECONDS
    } else {
        request.expiry_seconds
    };
    Ok(NewApiToken {
        actor,
        description: request.description,
        scopes,
        lifetime: Duration::from_secs(seconds),
    })
}

/// How long an API token of a person lives when nothing else is asked for: 90 days.
const TOKEN_SECONDS: u64 = 90 * 24 * 3600;

/// The id of the user whom an administrator names.
fn user_id(world: &World, caller: &Caller, login: &str) -> Result<UserId, ApiError> {
    if *caller.actor() != Actor::Administrator {
        return Err(ApiError::Invalid(
            "only an administrator at the socket may name a user: leave `user` out".to_owned(),
        ));
    }
    let user = world.user_by_login(login).map(|user| user.id);
    user.ok_or_else(|| ApiError::NotFound {
        kind: "user",
        id: login.to_owned(),
    })
}

/// Nobody may give a scope that they do not have.
fn check_scopes(caller: &Caller, scopes: &BTreeSet<String>) -> Result<(), ApiError> {
    for text in scopes {
        let unknown = || {
            ApiError::Invalid(format!(
                "there is no scope `{text}`; with or without `:read`, there are {}",
                scope::names()
            ))
        };
        caller.require(Scope::parse(text).ok_or_else(unknown)?)?;
    }
    Ok(())
}

/// Tags from their texts.
pub(super) fn parse_tags(texts: &BTreeSet<String>) -> Result<BTreeSet<Tag>, ApiError> {
    texts
        .iter()
        .map(|text| {
            text.parse::<Tag>()
                .map_err(|error| ApiError::Invalid(error.to_string()))
        })
        .collect()
}

fn find(world: &World, id: String) -> Result<KeyView, ApiError> {
    let auth = world.auth_key(&id).map(|key| KeyView::of_auth_key(world, key));
    let client = || world.oauth_client(&id).map(|client| KeyView::of_client(client));
    let token = || {
        world
            .token(&id)
            .filter(|token| is_personal(token))
            .map(|token| KeyView::of_token(world, token))
    };
    auth.or_else(client)
        .or_else(token)
        .ok_or(ApiError::NotFound { kind: "key", id })
}

fn all_keys(world: &World) -> impl Iterator<Item = KeyView> {
    let auth = world.auth_keys().map(|key| KeyView::of_auth_key(world, key));
    let clients = world.oauth_clients().map(|client| KeyView::of_client(client));
    let tokens = world
        .tokens()
        .filter(|token| is_personal(token))
        .map(|token| KeyView::of_token(world, token));
    auth.chain(clients).chain(tokens)
}

/// Whether a token is a person's. Those of OAuth clients live for an hour and are not listed.
fn is_personal(token: &ApiToken) -> bool {
    !matches!(token.actor, Actor::Client { .. })
}

impl KeyType {
    fn scope(self) -> Scope<'static> {
        match self {
            Self::Auth => scope::AUTH_KEYS,
            Self::Client => scope::OAUTH_KEYS,
            Self::Api => scope::API_TOKENS,
        }
    }
}

impl KeyView {
    fn with_secret(self, secret: &Secret) -> Self {
        Self {
            key: Some(secret.reveal().to_owned()),
            ..self
        }
    }

    fn of_auth_key(world: &World, key: &AuthKey) -> Self {
        let used_up = key.used.is_some() && !key.reusable;
        let create = CreateCapabilities {
            reusable: key.reusable,
            ephemeral: key.ephemeral,
            preauthorized: key.preauthorized,
            tags: key.tags.iter().map(ToString::to_string).collect(),
        };
        Self {
            id: key.id.to_string(),
            key_type: KeyType::Auth,
            key: None,
            description: key.description.clone(),
            created: key.created,
            expires: Some(key.expires),
            revoked: key.revoked,
            invalid: used_up || key.revoked.is_some() || key.expires <= Timestamp::now(),
            capabilities: Some(Capabilities {
                devices: DeviceCapabilities { create },
            }),
            scopes: BTreeSet::new(),
            tags: BTreeSet::new(),
            user: key
                .owner
                .and_then(|id| world.user(id))
                .map(|user| user.login.clone()),
        }
    }

    fn of_client(client: &OauthClient) -> Self {
        Self {
            id: client.id.to_string(),
            key_type: KeyType::Client,
            key: None,
            description: client.description.clone(),
            created: client.created,
            expires: None,
            revoked: None,
            invalid: false,
            capabilities: None,
            scopes: client.scopes.clone(),
            tags: client.tags.iter().map(ToString::to_string).collect(),
            user: None,
        }
    }

    fn of_token(world: &World, token: &ApiToken) -> Self {
        let user = match &token.actor {
            Actor::User(id) => world.user(*id).map(|user| user.login.clone()),
            Actor::Administrator | Actor::Client { .. } => None,
        };
        Self {
            id: token.id.to_string(),
            key_type: KeyType::Api,
            key: None,
            description: token.description.clone(),
            created: token.created,
            expires: Some(token.expires),
            revoked: None,
            invalid: token.expires <= Timestamp::now(),
            capabilities: None,
            scopes: token.scopes.clone(),
            tags: BTreeSet::new(),
            user,
        }
    }
}
