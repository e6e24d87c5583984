//! Auth keys and API tokens.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tailwharf_wire::tailcfg::UserId;

use super::{Context, Decision, OpError, Operations, Subject, check_tags};
use crate::{
    model::{Action, Actor, ApiToken, AuthKey, CredentialId, Tag, TargetKind},
    secret::{self, CredentialKind, Secret},
    world::{Change, World},
};

/// How long an auth key lives when nothing else is asked for, and at most.
pub const AUTH_KEY_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
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
    /// The token.
    pub token: CredentialId,
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
    pub async fn revoke_auth_key(&self, actor: Actor, id: CredentialId) -> Result<(), OpError> {
        self.submit(move |world, context| {
            let key = world
                .auth_key(&id.0)
                .ok_or_else(|| OpError::not_found("auth key", &id))?;
            let revoked = key.revoked.or(Some(context.now));
            let key = Arc::new(AuthKey {
                revoked,
                ..key.as_ref().clone()
            });
            let subject = Subject::new(TargetKind::AuthKey, &id, &key.description);
            let decision = Decision::new(vec![Change::PutAuthKey(key)], ());
            Ok(decision.noted(world, context, &actor, Action::Revoke, subject))
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
            let record = &minted.record;
            let subject = Subject::new(TargetKind::ApiToken, &record.id, &record.description);
            let author = record.actor.clone();
            let decision = Decision::new(vec![change], minted);
            Ok(decision.noted(world, context, author, Action::Create, subject))
        })
        .await
    }

    /// Deletes an API token.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete_api_token(&self, actor: Actor, id: CredentialId) -> Result<(), OpError> {
        self.submit(move |world, context| {
            let token = world
                .token(&id.0)
                .ok_or_else(|| OpError::not_found("API token", &id))?;
            let subject = Subject::new(TargetKind::ApiToken, &id, &token.description);
            let decision = Decision::new(vec![Change::DeleteToken(id)], ());
            Ok(decision.noted(world, context, &actor, Action::Revoke, subject))
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
            token: token.id.clone(),
            actor: token.actor.clone(),
            scopes: token.scopes.clone(),
        })
    }
}

fn create_auth_key(
    world: &World,
    context: &mut Context,
    new: NewAuthKey,
) -> Result<Decision<Minted<AuthKey>>, OpError> {
    check_actor(world, &new.creator)?;
    check_tags(world, &new.creator, &new.tags)?;
    mint_auth_key(world, context, new)
}

/// Makes an auth key, whoever may give its tags.
pub(super) fn mint_auth_key(
    world: &World,
    context: &mut Context,
    new: NewAuthKey,
) -> Result<Decision<Minted<AuthKey>>, OpError> {
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
    let tags: Vec<&str> = record.tags.iter().map(Tag::as_str).collect();
    let subject = Subject::new(TargetKind::AuthKey, &record.id, &record.description).detail(tags.join(", "));
    let author = record.creator.clone();
    let decision = Decision::new(
        vec![Change::PutAuthKey(record.clone())],
        Minted { record, secret },
    );
    Ok(decision.noted(world, context, author, Action::Create, subject))
}

pub(super) fn mint_token(
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

pub(super) fn check_actor(world: &World, actor: &Actor) -> Result<(), OpError> {
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

pub(super) fn limited(description: String) -> Result<String, OpError> {
    if description.chars().count() > DESCRIPTION_LIMIT {
        return Err(OpError::Invalid(format!(
            "a description has {DESCRIPTION_LIMIT} characters at most"
        )));
    }
    Ok(description)
}
