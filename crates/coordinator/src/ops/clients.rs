//! OAuth clients and the tokens that they get for their proof.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use zeroize::Zeroizing;

use super::{
    AccessError, Context, Decision, Minted, OpError, Operations, Subject, check_tags,
    credentials::{check_actor, limited, mint_token},
};
use crate::{
    model::{Action, Actor, ApiToken, CredentialId, Federation, OauthClient, Proof, Tag, TargetKind},
    scope::{self, Scope},
    secret::{self, CredentialKind},
    world::{Change, World},
};

/// How long the token of an OAuth client lives.
pub const CLIENT_TOKEN_LIFE: Duration = Duration::from_secs(3600);
/// Characters of an issuer, a subject, an audience or a claim at most.
const CLAIM_LIMIT: usize = 512;
/// Further claims that a client may be bound to.
const CLAIMS_LIMIT: usize = 16;

/// An OAuth client to create, or what a client shall be from now on.
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

/// What the token of a platform must say, by which a client proves who it is.
#[derive(Clone, Debug, Default)]
pub struct NewFederation {
    /// The URL of the issuer.
    pub issuer: String,
    /// Whom the token is about; `*` stands for any text.
    pub subject: String,
    /// For whom the token is made; `api.tailscale.com/<id of the client>` when empty, which official charts use.
    pub audience: String,
    /// Further claims, by name, and what they must be.
    pub claims: BTreeMap<String, String>,
}

impl Operations {
    /// Creates an OAuth client that proves who it is by a secret.
    ///
    /// # Errors
    /// `TagNotPermitted`; `Invalid` without a scope.
    pub async fn create_oauth_client(&self, new: NewOauthClient) -> Result<Minted<OauthClient>, OpError> {
        self.submit(move |world, context| {
            let (id, secret, hash) = secret::mint(CredentialKind::Client, &mut context.rng);
            let record = client(world, context, id, Proof::Secret(hash), new)?;
            let decision = put(world, context, &record.creator, Action::Create, &record);
            Ok(decision.answering(Minted { record, secret }))
        })
        .await
    }

    /// Creates an OAuth client that proves who it is by a token of its platform.
    ///
    /// # Errors
    /// `TagNotPermitted`; `Invalid` without a scope, an issuer or a subject.
    pub async fn create_federated_client(
        &self,
        new: NewOauthClient,
        federation: NewFederation,
    ) -> Result<Arc<OauthClient>, OpError> {
        self.submit(move |world, context| {
            let (id, _, _) = secret::mint(CredentialKind::Client, &mut context.rng);
            let proof = Proof::Federation(bind(&id, federation)?);
            let record = client(world, context, id, proof, new)?;
            let decision = put(world, context, &record.creator, Action::Create, &record);
            Ok(decision.answering(record))
        })
        .await
    }

    /// Replaces what a client may do, and what binds it if `federation` is there. Its secret stays. Tokens that it has end, for they may do what the
    /// client may not do any more.
    ///
    /// # Errors
    /// `NotFound`; as for its creation; `Invalid` for a client of the other kind.
    pub async fn replace_oauth_client(
        &self,
        id: CredentialId,
        new: NewOauthClient,
        federation: Option<NewFederation>,
    ) -> Result<Arc<OauthClient>, OpError> {
        self.submit(move |world, context| {
            let old = world
                .oauth_client(&id.0)
                .ok_or_else(|| OpError::not_found("OAuth client", &id))?;
            let proof = match (&old.proof, federation) {
                (Proof::Secret(hash), None) => Proof::Secret(hash.clone()),
                (Proof::Federation(_), Some(federation)) => Proof::Federation(bind(&id, federation)?),
                (Proof::Secret(_), Some(_)) | (Proof::Federation(_), None) => {
                    return Err(OpError::Invalid(format!(
                        "`{id}` is a client of another kind: delete it and create a new one"
                    )));
                }
            };
            let actor = new.creator.clone();
            let record = client(world, context, id.clone(), proof, new)?;
            let record = Arc::new(OauthClient {
                creator: old.creator.clone(),
                created: old.created,
                ..record.as_ref().clone()
            });
            let mut decision = put(world, context, &actor, Action::Update, &record);
            decision.changes.extend(drop_tokens(world, &id));
            Ok(decision.answering(record))
        })
        .await
    }

    /// Deletes an OAuth client and its tokens.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete_oauth_client(&self, actor: Actor, id: CredentialId) -> Result<(), OpError> {
        self.submit(move |world, context| {
            let client = world
                .oauth_client(&id.0)
                .ok_or_else(|| OpError::not_found("OAuth client", &id))?;
            let subject = subject(client);
            let mut changes = drop_tokens(world, &id);
            changes.push(Change::DeleteOauthClient(id));
            Ok(Decision::new(changes, ()).noted(world, context, &actor, Action::Revoke, subject))
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
        // Asked here already, so that a flood of wrong secrets does not stand in the writer's queue.
        if let Err(refused) = by_secret(&self.world(), &client_id, client_secret) {
            return Ok(Err(refused));
        }
        let presented = Zeroizing::new(client_secret.to_owned());
        self.submit(move |world, context| {
            let proved = by_secret(world, &client_id, &presented);
            match proved.and_then(|client| narrow(world, client, scopes, tags)) {
                Ok((actor, scopes)) => grant(context, actor, scopes),
                Err(refused) => Ok(Decision::unchanged(Err(refused))),
            }
        })
        .await
    }

    /// A token of [`CLIENT_TOKEN_LIFE`] with all that a federated client has, once its platform's token was checked against `proved`.
    ///
    /// # Errors
    /// The inner error, when the client is gone or bound to something else meanwhile.
    pub async fn grant_federated_token(
        &self,
        client_id: CredentialId,
        proved: Federation,
    ) -> Result<Result<Minted<ApiToken>, AccessError>, OpError> {
        self.submit(move |world, context| {
            let client = world
                .oauth_client(&client_id.0)
                .filter(|client| client.proof == Proof::Federation(proved));
            match client {
                Some(client) => grant(context, acting(client), client.scopes.clone()),
                None => Ok(Decision::unchanged(Err(AccessError::Unknown))),
            }
        })
        .await
    }
}

fn client(
    world: &World,
    context: &Context,
    id: CredentialId,
    proof: Proof,
    new: NewOauthClient,
) -> Result<Arc<OauthClient>, OpError> {
    check_actor(world, &new.creator)?;
    check_tags(world, &new.creator, &new.tags)?;
    if new.scopes.is_empty() {
        return Err(OpError::Invalid(
            "an OAuth client needs at least one scope".to_owned(),
        ));
    }
    Ok(Arc::new(OauthClient {
        id,
        proof,
        creator: new.creator,
        description: limited(new.description)?,
        scopes: new.scopes,
        tags: new.tags,
        created: context.now,
    }))
}

fn subject(client: &OauthClient) -> Subject {
    let scopes: Vec<&str> = client.scopes.iter().map(String::as_str).collect();
    Subject::new(TargetKind::OauthClient, &client.id, &client.description).detail(scopes.join(" "))
}

fn put(
    world: &World,
    context: &Context,
    actor: &Actor,
    action: Action,
    client: &Arc<OauthClient>,
) -> Decision<()> {
    let decision = Decision::new(vec![Change::PutOauthClient(client.clone())], ());
    decision.noted(world, context, actor, action, subject(client))
}

fn bind(id: &CredentialId, new: NewFederation) -> Result<Federation, OpError> {
    let NewFederation {
        issuer,
        subject,
        audience,
        claims,
    } = new;
    if issuer.is_empty() || subject.is_empty() {
        return Err(OpError::Invalid(
            "a federated client needs an issuer and a subject".to_owned(),
        ));
    }
    // A pattern that everybody fits would let every program of the platform act as this client.
    if subject.chars().all(|c| c == '*') {
        return Err(OpError::Invalid(
            "the subject `*` would let in everybody: name a part of it at least".to_owned(),
        ));
    }
    let texts = [&issuer, &subject, &audience].into_iter();
    let texts = texts.chain(claims.iter().flat_map(|(name, value)| [name, value]));
    if claims.len() > CLAIMS_LIMIT || texts.into_iter().any(|text| text.len() > CLAIM_LIMIT) {
        return Err(OpError::Invalid(format!(
            "a client is bound to {CLAIMS_LIMIT} further claims at most, and each text has {CLAIM_LIMIT} bytes at most"
        )));
    }
    let audience = if audience.is_empty() {
        format!("api.tailscale.com/{id}")
    } else {
        audience
    };
    Ok(Federation {
        issuer,
        subject,
        audience,
        claims,
    })
}

fn drop_tokens(world: &World, id: &CredentialId) -> Vec<Change> {
    let tokens = world
        .tokens()
        .filter(|token| matches!(&token.actor, Actor::Client { id: of, .. } if of == id));
    tokens
        .map(|token| Change::DeleteToken(token.id.clone()))
        .collect()
}

fn acting(client: &OauthClient) -> Actor {
    Actor::Client {
        id: client.id.clone(),
        tags: client.tags.clone(),
    }
}

/// The client to which id and secret belong.
fn by_secret<'w>(world: &'w World, client_id: &str, presented: &str) -> Result<&'w OauthClient, AccessError> {
    let presented = secret::parse(CredentialKind::Client, presented).ok_or(AccessError::Unknown)?;
    let client = world.oauth_client(presented.id).ok_or(AccessError::Unknown)?;
    // Official clients know the id from the secret and may leave `client_id` out.
    let same = client_id.is_empty() || client_id == presented.id;
    match &client.proof {
        Proof::Secret(hash) if same && hash.matches(presented.secret) => Ok(client),
        Proof::Secret(_) | Proof::Federation(_) => Err(AccessError::Unknown),
    }
}

/// As whom and with which scopes a token acts that was asked for with these scopes and tags.
fn narrow(
    world: &World,
    client: &OauthClient,
    scopes: BTreeSet<String>,
    tags: BTreeSet<Tag>,
) -> Result<(Actor, BTreeSet<String>), AccessError> {
    let covered =
        |text: &String| Scope::parse(text).is_some_and(|scope| scope::covered(&client.scopes, scope));
    let whole = acting(client);
    let tags_fit = tags
        .iter()
        .all(|tag| client.tags.contains(tag) || world.may_assign_tag(&whole, tag));
    if !scopes.iter().all(covered) || !tags_fit {
        return Err(AccessError::Exceeds);
    }
    let actor = if tags.is_empty() {
        whole
    } else {
        Actor::Client {
            id: client.id.clone(),
            tags,
        }
    };
    let scopes = if scopes.is_empty() {
        client.scopes.clone()
    } else {
        scopes
    };
    Ok((actor, scopes))
}

fn grant(
    context: &mut Context,
    actor: Actor,
    scopes: BTreeSet<String>,
) -> Result<Decision<Result<Minted<ApiToken>, AccessError>>, OpError> {
    let (change, minted) = mint_token(context, actor, scopes, String::new(), CLIENT_TOKEN_LIFE)?;
    Ok(Decision::new(vec![change], Ok(minted)))
}
