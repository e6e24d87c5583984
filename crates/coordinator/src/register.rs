//! Registration: who may have a node, and which one.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;
use tailwharf_policy::Principal;
use tailwharf_wire::{
    key::MachinePublic,
    tailcfg::{
        CapabilityVersion, Login, LoginId, NodeId, RegisterRequest, RegisterResponse, StableId,
        User as WireUser,
    },
};

use tokio_util::sync::CancellationToken;

mod person;

pub(crate) use self::person::admit;
use crate::{
    mapper,
    model::{Action, AuthKey, Author, Node, NodeOwner, Tag},
    ops::{Context, Decision, OpError, Subject, removal, replacement},
    secret::{self, CredentialKind},
    world::{Change, Presence, World, own_profile_id},
};

/// Why a node may not register. The text is what the client shows to its user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// An administrator turned the device down.
    #[error("an administrator turned this device down")]
    Denied,
    /// A text that is not an auth key.
    #[error("this is not an auth key: it should begin with `tskey-auth-`")]
    Malformed,
    /// There is no such key, or its secret part is wrong.
    #[error("auth key `{0}` is not known here: create a new one")]
    Unknown(String),
    /// The key has ended.
    #[error("auth key `{0}` has expired: create a new one")]
    Expired(String),
    /// The key was for one node, which it has.
    #[error("auth key `{0}` was for one use and is used up: create a new one, or a reusable one")]
    UsedUp(String),
    /// The key was taken back.
    #[error("auth key `{0}` was revoked: create a new one")]
    Revoked(String),
    /// The person who made the key is gone.
    #[error("auth key `{0}` belongs to a user who no longer exists: create a new one")]
    Orphaned(String),
    /// Tags that the node may not have.
    #[error(
        "requested tags {0} are not permitted: add an owner to `tagOwners` in the policy, or use an auth key with these tags"
    )]
    Tags(String),
    /// The node key belongs to another machine.
    #[error("this node key belongs to another machine: log out and in again to get a new one")]
    OtherMachine,
    /// No node key.
    #[error("the request has no node key")]
    NoNodeKey,
}

/// The answer to a client.
#[derive(Debug, Default)]
pub(crate) struct Registered {
    pub(crate) response: RegisterResponse,
    /// Which node is new because of it.
    pub(crate) created: Option<NodeId>,
    /// Cancelled once a person has decided, where one has to.
    pub(crate) waits: Option<CancellationToken>,
}

impl Registered {
    fn of(response: RegisterResponse) -> Self {
        Self {
            response,
            ..Self::default()
        }
    }

    /// The client has to make a new node key.
    fn expired() -> Self {
        Self::of(RegisterResponse {
            node_key_expired: true,
            ..RegisterResponse::default()
        })
    }
}

/// By what right a node is made, or logs in again.
struct Grant {
    owner: NodeOwner,
    ephemeral: bool,
    authorized: bool,
    key: Option<Arc<AuthKey>>,
}

/// Decides on a registration. A refusal is an answer, too; the errors are those that the client shall try again after.
pub(crate) fn register(
    world: &World,
    context: &mut Context,
    machine: MachinePublic,
    request: RegisterRequest,
) -> Result<Decision<Registered>, OpError> {
    let mut attempt = Attempt {
        world,
        context,
        machine,
        request,
    };
    match attempt.decide() {
        Ok(decision) => Ok(decision),
        Err(Stop::Refused(refusal)) => {
            tracing::info!(machine = %machine, reason = %refusal, "registration refused");
            let response = RegisterResponse {
                error: refusal.to_string(),
                ..RegisterResponse::default()
            };
            Ok(Decision::unchanged(Registered::of(response)))
        }
        Err(Stop::Failed(error)) => Err(error),
    }
}

enum Stop {
    Refused(Refusal),
    Failed(OpError),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

struct Attempt<'a> {
    world: &'a World,
    context: &'a mut Context,
    machine: MachinePublic,
    request: RegisterRequest,
}

impl Attempt<'_> {
    fn decide(&mut self) -> Result<Decision<Registered>, Stop> {
        if self.request.node_key.is_zero() {
            return Err(Refusal::NoNodeKey.into());
        }
        let now = self.context.now;
        let known = self.known()?;
        if self.request.expiry.is_some_and(|expiry| expiry <= now) {
            return Ok(self.log_out(known.as_deref()));
        }
        if let Some(node) = known
            .as_ref()
            .filter(|node| node.node_key == self.request.node_key)
        {
            if !node.is_expired(now) {
                // Also when the auth key has ended meanwhile: a pod that starts again brings the one it was made with.
                return self.refresh(node);
            }
            if self.auth_text().is_none() {
                return Ok(Decision::unchanged(Registered::expired()));
            }
        }
        if self.auth_text().is_some() {
            let key = self.auth_key()?;
            return self.log_in_by_key(known, key);
        }
        match known {
            // A new key for a node whose old key is still good needs no proof but the machine key; it gains no time.
            Some(node) if !node.is_expired(now) => self.rotate(&node),
            known => self.wait_for_person(known.as_deref()),
        }
    }

    /// The node that this client speaks for: by its node key, else by the key that it replaces.
    fn known(&self) -> Result<Option<Arc<Node>>, Refusal> {
        for key in [&self.request.node_key, &self.request.old_node_key] {
            if let Some(node) = self.world.node_by_key(key).filter(|_| !key.is_zero()) {
                if node.machine_key != self.machine {
                    return Err(Refusal::OtherMachine);
                }
                return Ok(Some(node.clone()));
            }
        }
        Ok(None)
    }

    fn log_out(&self, known: Option<&Node>) -> Decision<Registered> {
        let answer = Registered::expired();
        let Some(node) = known else {
            return Decision::unchanged(answer);
        };
        let changes = if node.ephemeral {
            removal(self.world, node.id)
        } else {
            let node = Arc::new(Node {
                expires: Some(self.context.now),
                ..node.clone()
            });
            replacement(self.world, self.context, &node)
        };
        self.noted(Decision::new(changes, answer), node, Action::Logout, "")
    }

    /// A client that is logged in says so again, perhaps with other wishes.
    fn refresh(&self, node: &Arc<Node>) -> Result<Decision<Registered>, Stop> {
        let mut next = node.as_ref().clone();
        next.owner = self.owner_with_wishes(&node.owner)?;
        if next.owner.tags().is_some() {
            next.expires = None;
        }
        self.describe(&mut next);
        self.answer(node.as_ref() != &next, next)
    }

    fn rotate(&self, node: &Node) -> Result<Decision<Registered>, Stop> {
        let mut next = Node {
            node_key: self.request.node_key,
            ..node.clone()
        };
        next.owner = self.owner_with_wishes(&node.owner)?;
        self.describe(&mut next);
        self.answer(true, next)
    }

    fn log_in_by_key(
        &mut self,
        known: Option<Arc<Node>>,
        key: Arc<AuthKey>,
    ) -> Result<Decision<Registered>, Stop> {
        let owner = match key.owner {
            Some(user) => NodeOwner::User(user),
            None => NodeOwner::Tags(key.tags.clone()),
        };
        let grant = Grant {
            owner: self.owner_with_wishes(&owner)?,
            ephemeral: key.ephemeral || self.request.ephemeral,
            authorized: key.preauthorized || !self.world.settings().device_approval,
            key: Some(key),
        };
        let (node, created) = self.log_in(known, &grant)?;
        let (id, name) = (node.id, node.auth_key.clone());
        let mut decision = self.answer(true, node.clone())?;
        if let Some(key) = grant.key.filter(|key| key.used.is_none()) {
            let used = AuthKey {
                used: Some(self.context.now),
                ..key.as_ref().clone()
            };
            decision.changes.push(Change::PutAuthKey(Arc::new(used)));
        }
        if created {
            let held = decision.answer.response.machine_authorized;
            decision.changes.push(Change::SetPresence(
                id,
                Presence {
                    held,
                    ..Presence::default()
                },
            ));
            decision.answer.created = Some(id);
        }
        let action = if created { Action::Create } else { Action::Login };
        let detail = name.map(|key| format!("auth key {key}")).unwrap_or_default();
        Ok(self.noted(decision, &node, action, &detail))
    }

    /// Makes a node, or takes up the one that this machine had. Whether it is new.
    fn log_in(&mut self, known: Option<Arc<Node>>, grant: &Grant) -> Result<(Node, bool), Stop> {
        let owner = &grant.owner;
        let former = known.or_else(|| self.former(owner));
        let created = former.is_none();
        let mut node = match former {
            Some(node) => node.as_ref().clone(),
            None => self.blank(owner.clone()).map_err(Stop::Failed)?,
        };
        node.node_key = self.request.node_key;
        node.expires = self.expiry(owner);
        node.owner = owner.clone();
        node.ephemeral = grant.ephemeral;
        node.authorized |= grant.authorized;
        node.auth_key = grant.key.as_ref().map(|key| key.id.clone());
        self.describe(&mut node);
        Ok((node, created))
    }

    /// Adds what the node itself did to the log.
    fn noted<T>(&self, decision: Decision<T>, node: &Node, action: Action, detail: &str) -> Decision<T> {
        let author = Author::Node(node.stable_id.clone());
        let subject = Subject::node(node).detail(detail);
        decision.noted(self.world, self.context, author, action, subject)
    }

    /// The node that this machine logged out of before, if it had the same owner.
    fn former(&self, owner: &NodeOwner) -> Option<Arc<Node>> {
        let now = self.context.now;
        let mut candidates = self.world.nodes_of_machine(&self.machine);
        candidates
            .find(|node| node.is_expired(now) && node.owner == *owner)
            .cloned()
    }

    /// A new node with addresses and without a name.
    fn blank(&mut self, owner: NodeOwner) -> Result<Node, OpError> {
        let world = self.world;
        let taken = |addr| world.is_address_taken(addr);
        let prefixes = self.context.prefixes;
        let ipv4 = prefixes
            .next_v4(world.counters().last_v4, taken)
            .map_err(OpError::AddressesExhausted)?;
        let ipv6 = prefixes
            .v6_for(ipv4, taken)
            .map_err(OpError::AddressesExhausted)?;
        let stable = secret::random_text(11, &mut self.context.rng);
        Ok(Node {
            id: world.next_node_id(),
            stable_id: StableId(format!("n{stable}CNTRL")),
            machine_key: self.machine,
            node_key: self.request.node_key,
            disco_key: None,
            owner,
            name: String::new(),
            name_is_fixed: false,
            ipv4,
            ipv6,
            ephemeral: false,
            authorized: false,
            created: self.context.now,
            last_seen: None,
            expires: None,
            auth_key: None,
            capability_version: CapabilityVersion::default(),
            hostinfo: Default::default(),
            endpoints: Vec::new(),
            approved_routes: BTreeSet::new(),
            attributes: Default::default(),
            attribute_ends: Default::default(),
            services: BTreeSet::new(),
            services_hash: String::new(),
        })
    }

    fn auth_text(&self) -> Option<&str> {
        self.request
            .auth
            .as_ref()
            .map(|auth| auth.auth_key.as_str())
            .filter(|text| !text.is_empty())
    }

    fn auth_key(&self) -> Result<Arc<AuthKey>, Refusal> {
        let text = self.auth_text().unwrap_or_default();
        let presented = secret::parse(CredentialKind::Auth, text).ok_or(Refusal::Malformed)?;
        let id = || presented.id.to_owned();
        let key = self
            .world
            .auth_key(presented.id)
            .filter(|key| key.secret.matches(presented.secret))
            .ok_or_else(|| Refusal::Unknown(id()))?;
        if key.revoked.is_some() {
            return Err(Refusal::Revoked(id()));
        }
        if key.expires <= self.context.now {
            return Err(Refusal::Expired(id()));
        }
        if key.used.is_some() && !key.reusable {
            return Err(Refusal::UsedUp(id()));
        }
        if key.owner.is_some_and(|owner| self.world.user(owner).is_none()) {
            return Err(Refusal::Orphaned(id()));
        }
        Ok(key.clone())
    }

    /// The owner, once the tags are taken into account that the client asks for.
    fn owner_with_wishes(&self, owner: &NodeOwner) -> Result<NodeOwner, Refusal> {
        let wishes = self
            .request
            .hostinfo
            .as_ref()
            .map(|info| info.request_tags.as_slice())
            .unwrap_or_default();
        if wishes.is_empty() {
            return Ok(owner.clone());
        }
        let principal = self.world.principal(owner);
        let principal = principal.unwrap_or_else(|| Principal::Tags(BTreeSet::new()));
        let mut tags = BTreeSet::new();
        let mut refused = Vec::new();
        for wish in wishes {
            match wish.parse::<Tag>() {
                Ok(tag)
                    if has_tag(owner, &tag)
                        || self.world.policy().policy.may_assign_tag(&principal, &tag) =>
                {
                    tags.insert(tag);
                }
                Ok(_) | Err(_) => refused.push(format!("`{wish}`")),
            }
        }
        if !refused.is_empty() {
            return Err(Refusal::Tags(refused.join(", ")));
        }
        // The tags of the auth key win: asking for a part of them does not drop the others.
        Ok(match owner {
            NodeOwner::Tags(own) if tags.is_subset(own) => owner.clone(),
            NodeOwner::Tags(_) | NodeOwner::User(_) => NodeOwner::Tags(tags),
        })
    }

    /// When the key of a node that logs in now ends.
    fn expiry(&self, owner: &NodeOwner) -> Option<Timestamp> {
        if owner.tags().is_some() {
            return None;
        }
        let regular = self.world.settings().key_end(self.context.now);
        match (regular, self.request.expiry) {
            (Some(regular), Some(wanted)) => Some(regular.min(wanted)),
            (regular, wanted) => regular.or(wanted),
        }
    }

    /// Takes over what the client says about itself.
    fn describe(&self, node: &mut Node) {
        node.capability_version = self.request.version;
        if let Some(hostinfo) = &self.request.hostinfo {
            crate::poll::take_hostinfo(self.world, node, hostinfo.clone());
        } else if node.name.is_empty() {
            node.name = self.world.free_name("", Some(node.id));
        }
    }

    fn answer(&self, differs: bool, node: Node) -> Result<Decision<Registered>, Stop> {
        let id = own_profile_id(&node);
        let profile = mapper::own_profile(self.world, &node).unwrap_or_default();
        let created = node
            .owner
            .user()
            .and_then(|user| self.world.user(user))
            .map(|user| user.created);
        let response = RegisterResponse {
            user: WireUser {
                id,
                display_name: profile.display_name.clone(),
                created,
                ..WireUser::default()
            },
            login: Login {
                id: LoginId(id.0),
                login_name: profile.login_name,
                display_name: profile.display_name,
                ..Login::default()
            },
            machine_authorized: node.authorized,
            ..RegisterResponse::default()
        };
        let node = Arc::new(node);
        let changes = if differs {
            replacement(self.world, self.context, &node)
        } else {
            Vec::new()
        };
        Ok(Decision::new(changes, Registered::of(response)))
    }
}

fn has_tag(owner: &NodeOwner, tag: &Tag) -> bool {
    owner.tags().is_some_and(|tags| tags.contains(tag))
}

#[cfg(test)]
mod tests;
