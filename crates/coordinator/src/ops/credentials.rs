//! Auth keys, OAuth clients and API tokens.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tailwharf_wire::tailcfg::UserId;

use super::{Context, Decision, OpError, Operations, check_tags};
use crate::{
    model::{Actor, ApiToken, AuthKey, CredentialId, OauthClient, Tag},
    scope::{self, Scope},
    secret::{self, CredentialKind, Secret},
    world::{Change, World},
};

/// How long an auth key lives when nothing else is asked for, and at most.
pub const AUTH_KEY_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
/// How long the token of an OAuth client lives.
pub const CLIENT_TOKEN_LIFE: Duration = Duration::from_secs(3600);
const DESCRIPTION_LIMIT: usize = 200;

/// A record, and the credential that belongs to it, which can be shown this once.
#[derive(Clone, Debug)]
pub struct Minted<T> {
    /// What is kept.
    pub record: Arc<T>,
    /// What to hand out.
    pub secret: Secret,
}

/// An auth key to create.
#[derive(Clone, Debug)]
pub struct NewAuthKey {
    /// Who asks.
    pub creator: Actor,
    /// Whose the untagged nodes made with the key are; the creator, when the creator is a person.
    pub owner: Option<UserId>,
    /// Free text.
    pub description: String,
    /// Whether more than one node may be made with it.
    pub reusable: bool,
    /// Whether its nodes are ephemeral.
    pub ephemeral: bool,
    /// Whether its nodes need no approval.
    pub preauthorized: bool,
    /// The tags of its nodes.
    pub tags: BTreeSet<Tag>,
    /// How long it lives; [`AUTH_KEY_LIFE`] when absent or zero.
    pub lifetime: Option<Duration>,
}

/// An OAuth client to create.
#[derive(Clone, Debug)]
pub struct NewOauthClient {
    /// Who asks.
    pub creator: Actor,
    /// Free text.
    pub description: String,
    /// What its tokens may do at most.
    pub scopes: BTreeSet<String>,
    /// With which tags it acts.
    pub tags: BTreeSet<Tag>,
}

/// An API token of a person to create.
#[derive(Clone, Debug)]
pub struct NewApiToken {
    /// On whose behalf it acts.
    pub actor: Actor,
    /// Free text.
    pub description: String,
    /// What it may do.
    pub scopes: BTreeSet<String>,
    /// How long it lives.
    pub lifetime: Duration,
}

/// What a valid API token allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// On whose behalf the request is made.
    pub actor: Actor,
    /// What it may do.
    pub scopes: BTreeSet<String>,
}

/// Why a credential of the API is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// Not a credential, not one of ours, or revoked.
    #[error("the API token is not valid")]
    Unknown,
    /// It was one.
    #[error("the API token has expired: ask for a new one")]
    Expired,
    /// The OAuth client asks for more than it has.
    #[error("the OAuth client may not ask for this scope or tag")]
    Exceeds,
}

impl Operations {
    /// Creates an auth key.
    ///
    /// # Errors
    /// `Invalid` without a person or tag that could own its nodes, or for a life beyond the limit; `TagNotPermitted`.
    pub async fn create_auth_key(&self, new: NewAuthKey) -> Result<Minted<AuthKey>, OpError> {
        self.submit(move |world, context| create_auth_key(world, context, new))
            .await
    }

    /// Revokes an auth key: no further node can be made with it. Its nodes stay.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn revoke_auth_key(&self, id: CredentialId) -> Result<(), OpError> {
        self.submit(move |world, context| {
            let key = world
                .auth_key(&id.0)
                .ok_or_else(|| OpError::not_found("auth key", &id))?;
            let revoked = key.revoked.or(Some(context.now));
            let key = Arc::new(AuthKey {
                revoked,
                ..key.as_ref().clone()
            });
            Ok(Decision::new(vec![Change::PutAuthKey(key)], ()))
        })
        .await
    }

    /// Creates an OAuth client.
    ///
    /// # Errors
    /// `TagNotPermitted`; `Invalid` without a scope.
    pub async fn create_oauth_client(&self, new: NewOauthClient) -> Result<Minted<OauthClient>, OpError> {
        self.submit(move |world, context| create_oauth_client(world, context, new))
            .await
    }

    /// Deletes an OAuth client and its tokens.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete_oauth_client(&self, id: CredentialId) -> Result<(), OpError> {
        self.submit(move |world, _| {
            world
                .oauth_client(&id.0)
                .ok_or_else(|| OpError::not_found("OAuth client", &id))?;
            let tokens = world
                .tokens()
                .filter(|t| matches!(&t.actor, Actor::Client { id: of, .. } if *of == id));
            let mut changes: Vec<_> = tokens
                .map(|token| Change::DeleteToken(token.id.clone()))
                .collect();
            changes.push(Change::DeleteOauthClient(id));
            Ok(Decision::new(changes, ()))
        })
        .await
    }

    /// Trades the secret of an OAuth client for a token of [`CLIENT_TOKEN_LIFE`].
    ///
    /// `scopes` and `tags` narrow what the token may do; empty means all that the client has.
    ///
    /// # Errors
    /// The inner error, when id and secret do not belong together or more is asked for than the client has.
    pub async fn grant_client_token(
        &self,
        client_id: String,
        client_secret: &str,
        scopes: BTreeSet<String>,
        tags: BTreeSet<Tag>,
    ) -> Result<Result<Minted<ApiToken>, AccessError>, OpError> {
        let presented = client_secret.to_owned();
        self.submit(move |world, context| {
            let client = match check_client(world, &client_id, &presented, &scopes, &tags) {
                Ok(client) => client,
                Err(refused) => return Ok(Decision::unchanged(Err(refused))),
            };
            let actor = Actor::Client {
                id: client.id.clone(),
                tags: if tags.is_empty() {
                    client.tags.clone()
                } else {
                    tags
                },
            };
            let scopes = if scopes.is_empty() {
                client.scopes.clone()
            } else {
                scopes
            };
            let (change, minted) = mint_token(context, actor, scopes, String::new(), CLIENT_TOKEN_LIFE)?;
            Ok(Decision::new(vec![change], Ok(minted)))
        })
        .await
    }

    /// Creates an API token of a person.
    ///
    /// # Errors
    /// `NotFound` for an unknown person; `Invalid` for a life that does not fit the calendar.
    pub async fn create_api_token(&self, new: NewApiToken) -> Result<Minted<ApiToken>, OpError> {
        self.submit(move |world, context| {
            check_actor(world, &new.actor)?;
            let (change, minted) = mint_token(
                context,
                new.actor,
                new.scopes,
                limited(new.description)?,
                new.lifetime,
            )?;
            Ok(Decision::new(vec![change], minted))
        })
        .await
    }

    /// Deletes an API token.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete_api_token(&self, id: CredentialId) -> Result<(), OpError> {
        self.submit(move |world, _| {
            world
                .token(&id.0)
                .ok_or_else(|| OpError::not_found("API token", &id))?;
            Ok(Decision::new(vec![Change::DeleteToken(id)], ()))
        })
        .await
    }

    /// What the bearer of an API token may do.
    ///
    /// # Errors
    /// When the token is unknown or has expired.
    pub fn authenticate(&self, token: &str, now: Timestamp) -> Result<Access, AccessError> {
        let presented = secret::parse(CredentialKind::Api, token).ok_or(AccessError::Unknown)?;
        let world = self.world();
        let token = world.token(presented.id).ok_or(AccessError::Unknown)?;
        if !token.secret.matches(presented.secret) {
            return Err(AccessError::Unknown);
        }
        if token.expires <= now {
            return Err(AccessError::Expired);
        }
        Ok(Access {
            actor: token.actor.clone(),
            scopes: token.scopes.clone(),
        })
    }

    /// Removes tokens that have expired.
    pub(crate) async fn drop_expired_tokens(&self) -> Result<(), OpError> {
        self.submit(|world, context| {
            let expired = world.tokens().filter(|token| token.expires <= context.now);
            Ok(Decision::new(
                expired
                    .map(|token| Change::DeleteToken(token.id.clone()))
                    .collect(),
                (),
            ))
        })
        .await
    }
}

fn create_auth_key(
    world: &World,
    context: &mut Context,
    new: NewAuthKey,
) -> Result<Decision<Minted<AuthKey>>, OpError> {
    check_actor(world, &new.creator)?;
    check_tags(world, &new.creator, &new.tags)?;
    let owner = new.owner.or(match new.creator {
        Actor::User(user) => Some(user),
        Actor::Administrator | Actor::Client { .. } => None,
    });
    if let Some(owner) = owner {
        world
            .user(owner)
            .ok_or_else(|| OpError::not_found("user", owner.0))?;
    } else if new.tags.is_empty() {
        return Err(OpError::Invalid(
            "an auth key needs tags, or a user who owns its nodes: add one".to_owned(),
        ));
    }
    let lifetime = new
        .lifetime
        .filter(|life| !life.is_zero())
        .unwrap_or(AUTH_KEY_LIFE);
    if lifetime > AUTH_KEY_LIFE {
        return Err(OpError::Invalid(
            "an auth key lives 90 days at most: ask for less".to_owned(),
        ));
    }
    let (id, secret, hash) = secret::mint(CredentialKind::Auth, &mut context.rng);
    let record = Arc::new(AuthKey {
        id,
        secret: hash,
        creator: new.creator,
        owner: if new.tags.is_empty() { owner } else { None },
        description: limited(new.description)?,
        reusable: new.reusable,
        ephemeral: new.ephemeral,
        preauthorized: new.preauthorized,
        tags: new.tags,
        created: context.now,
        expires: after(context.now, lifetime)?,
        used: None,
        revoked: None,
    });
    Ok(Decision::new(
        vec![Change::PutAuthKey(record.clone())],
        Minted { record, secret },
    ))
}

fn create_oauth_client(
    world: &World,
    context: &mut Context,
    new: NewOauthClient,
) -> Result<Decision<Minted<OauthClient>>, OpError> {
    check_actor(world, &new.creator)?;
    check_tags(world, &new.creator, &new.tags)?;
    if new.scopes.is_empty() {
        return Err(OpError::Invalid(
            "an OAuth client needs at least one scope".to_owned(),
        ));
    }
    let (id, secret, hash) = secret::mint(CredentialKind::Client, &mut context.rng);
    let record = Arc::new(OauthClient {
        id,
        secret: hash,
        creator: new.creator,
        description: limited(new.description)?,
        scopes: new.scopes,
        tags: new.tags,
        created: context.now,
    });
    Ok(Decision::new(
        vec![Change::PutOauthClient(record.clone())],
        Minted { record, secret },
    ))
}

fn check_client<'a>(
    world: &'a World,
    client_id: &str,
    presented: &str,
    scopes: &BTreeSet<String>,
    tags: &BTreeSet<Tag>,
) -> Result<&'a OauthClient, AccessError> {
    let presented = secret::parse(CredentialKind::Client, presented).ok_or(AccessError::Unknown)?;
    let client = world.oauth_client(presented.id).ok_or(AccessError::Unknown)?;
    // Official clients know the id from the secret and may leave `client_id` out.
    if !(client_id.is_empty() || client_id == presented.id) || !client.secret.matches(presented.secret) {
        return Err(AccessError::Unknown);
    }
    let acting = Actor::Client {
        id: client.id.clone(),
        tags: client.tags.clone(),
    };
    let covered =
        |text: &String| Scope::parse(text).is_some_and(|scope| scope::covered(&client.scopes, scope));
    let scopes_fit = scopes.iter().all(covered);
    let tags_fit = tags
        .iter()
        .all(|tag| client.tags.contains(tag) || world.may_assign_tag(&acting, tag));
    if scopes_fit && tags_fit {
        Ok(client)
    } else {
        Err(AccessError::Exceeds)
    }
}

fn mint_token(
    context: &mut Context,
    actor: Actor,
    scopes: BTreeSet<String>,
    description: String,
    lifetime: Duration,
) -> Result<(Change, Minted<ApiToken>), OpError> {
    let (id, secret, hash) = secret::mint(CredentialKind::Api, &mut context.rng);
    let record = Arc::new(ApiToken {
        id,
        secret: hash,
        actor,
        scopes,
        description,
        created: context.now,
        expires: after(context.now, lifetime)?,
    });
    Ok((Change::PutToken(record.clone()), Minted { record, secret }))
}

fn check_actor(world: &World, actor: &Actor) -> Result<(), OpError> {
    match actor {
        Actor::User(user) => world
            .user(*user)
            .map(|_| ())
            .ok_or_else(|| OpError::not_found("user", user.0)),
        Actor::Administrator | Actor::Client { .. } => Ok(()),
    }
}

fn after(now: Timestamp, lifetime: Duration) -> Result<Timestamp, OpError> {
    SignedDuration::try_from(lifetime)
        .ok()
        .and_then(|lifetime| now.checked_add(lifetime).ok())
        .ok_or_else(|| OpError::Invalid("the life asked for is too long".to_owned()))
}

fn limited(description: String) -> Result<String, OpError> {
    if description.chars().count() > DESCRIPTION_LIMIT {
        return Err(OpError::Invalid(format!(
            "a description has {DESCRIPTION_LIMIT} characters at most"
        )));
    }
    Ok(description)
}
