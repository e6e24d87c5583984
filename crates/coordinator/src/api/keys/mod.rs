//! Auth keys, OAuth clients and API tokens.

mod view;

use std::collections::BTreeSet;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde_json::Value;
use tailwharf_wire::tailcfg::UserId;

pub(crate) use self::view::{
    Binding, Capabilities, CreateCapabilities, DeviceCapabilities, KeyList, KeyRequest, KeyType, KeyView,
};
use super::caller::{Body, Caller, Path};
use super::{Api, ApiError, done};
use crate::model::{Actor, ApiToken, CredentialId, Role, Tag};
use crate::ops::{NewApiToken, NewAuthKey, NewFederation, NewOauthClient};
use crate::scope::{self, Scope};
use crate::workload::IssuerError;
use crate::world::World;

/// The keys that the caller may read.
pub(super) async fn list(State(api): State<Api>, caller: Caller) -> Result<Json<KeyList>, ApiError> {
    let readable = KeyType::ALL.map(|kind| (kind, caller.may(kind.scope().read())));
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
) -> Result<Json<Value>, ApiError> {
    let key = find(&api.operations.world(), id)?;
    caller.require(key.key_type.scope())?;
    let (actor, id) = (caller.actor().clone(), CredentialId::from(key.id.as_str()));
    match key.key_type {
        KeyType::Auth => api.operations.revoke_auth_key(actor, id).await?,
        KeyType::Client | KeyType::Federated => api.operations.delete_oauth_client(actor, id).await?,
        KeyType::Api => api.operations.delete_api_token(actor, id).await?,
    }
    Ok(done())
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
        KeyType::Federated => {
            let federation = federation(&api, request.binding.clone())?;
            let client = api
                .operations
                .create_federated_client(new_client(&caller, request)?, federation)
                .await?;
            return Ok(Json(KeyView::of_client(&client)));
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

/// Replaces what an OAuth client may do and, of a federated one, what binds it.
pub(super) async fn replace(
    State(api): State<Api>,
    caller: Caller,
    Path((_, id)): Path<(String, String)>,
    Body(request): Body<KeyRequest>,
) -> Result<Json<KeyView>, ApiError> {
    let old = find(&api.operations.world(), id)?;
    caller.require(old.key_type.scope())?;
    let federation = match old.key_type {
        KeyType::Client => None,
        KeyType::Federated => Some(federation(&api, request.binding.clone())?),
        KeyType::Auth | KeyType::Api => {
            return Err(ApiError::Invalid(
                "only OAuth clients and federated clients can be changed: create a new key".to_owned(),
            ));
        }
    };
    if request.key_type != old.key_type {
        return Err(ApiError::Invalid(format!(
            "`{}` is a key of another type than the request says",
            old.id
        )));
    }
    // Who changes a client could use it: so it may hold, before and after, only what they hold themselves.
    check_scopes(&caller, &old.scopes)?;
    let id = CredentialId::from(old.id.as_str());
    let client = api
        .operations
        .replace_oauth_client(id, new_client(&caller, request)?, federation)
        .await?;
    Ok(Json(KeyView::of_client(&client)))
}

/// What a federated client is bound to, if its issuer is believed.
fn federation(api: &Api, binding: Binding) -> Result<NewFederation, ApiError> {
    if !api.issuers.knows(&binding.issuer) {
        return Err(ApiError::Invalid(
            IssuerError::Unknown(binding.issuer).to_string(),
        ));
    }
    Ok(binding.into())
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
