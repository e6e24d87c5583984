//! The state of the tailnet at one moment.
//!
//! A [`World`] never changes once it is published: readers hold an `Arc` of it as long as one answer needs it. The writer makes the next one by
//! applying [`Change`]s to a clone, which shares all tables that the changes do not touch.

mod classify;
mod index;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use ipnet::IpNet;
use jiff::Timestamp;
use tailwharf_policy::{Compiled, Policy, Principal};
use tailwharf_wire::{
    key::{MachinePublic, NodePublic},
    tailcfg::{DerpMap, NodeId, UserId},
};

use self::index::NodeIndex;
use crate::{
    ipam::Prefixes,
    model::{Actor, ApiToken, AuthKey, CredentialId, DnsTxt, Node, OauthClient, PolicyVersion, Tag, User},
    names::{self, Suffix},
    routes::{self, Primaries},
    store::Saved,
};

/// What is true for the whole run of the process.
#[derive(Clone, Debug)]
pub struct Facts {
    /// From which prefixes nodes get their addresses.
    pub prefixes: Prefixes,
    /// The MagicDNS domain.
    pub suffix: Suffix,
    /// The relays.
    pub derp_map: DerpMap,
}

/// A policy in force.
#[derive(Debug)]
pub struct ActivePolicy {
    /// Its text and origin. Version 0 is the default that holds before one was ever set.
    pub version: Arc<PolicyVersion>,
    /// What the text says.
    pub policy: Policy,
}

/// What is known of a node only as long as the process runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Presence {
    /// Whether the node has a map stream.
    pub online: bool,
    /// Whether peers are not told of the node yet, because it could not be reached by them.
    pub held: bool,
    /// Whether the node key has ended.
    pub expired: bool,
}

/// Numbers that only ever grow, so that no id or address comes back at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// The id of the next node.
    pub next_node: i64,
    /// The id of the next user.
    pub next_user: i64,
    /// The IPv4 address that was given last.
    pub last_v4: Option<Ipv4Addr>,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            next_node: 1,
            next_user: 1,
            last_v4: None,
        }
    }
}

/// One step from a world to the next.
#[derive(Clone, Debug)]
pub enum Change {
    /// Creates or replaces a user.
    PutUser(Arc<User>),
    /// Deletes a user.
    DeleteUser(UserId),
    /// Creates or replaces a node.
    PutNode(Arc<Node>),
    /// Deletes a node.
    DeleteNode(NodeId),
    /// Creates or replaces an auth key.
    PutAuthKey(Arc<AuthKey>),
    /// Deletes an auth key.
    DeleteAuthKey(CredentialId),
    /// Creates or replaces an OAuth client.
    PutOauthClient(Arc<OauthClient>),
    /// Deletes an OAuth client.
    DeleteOauthClient(CredentialId),
    /// Creates or replaces an API token.
    PutToken(Arc<ApiToken>),
    /// Deletes an API token.
    DeleteToken(CredentialId),
    /// Puts a policy in force.
    PutPolicy(Arc<ActivePolicy>),
    /// Creates or replaces a TXT record.
    PutDnsTxt(Arc<DnsTxt>),
    /// Deletes a TXT record.
    DeleteDnsTxt(String),
    /// Changes what is known of a running node. Not stored.
    SetPresence(NodeId, Presence),
}

/// Whom changes concern.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Nodes that look different to their peers or to themselves.
    pub nodes: BTreeSet<NodeId>,
    /// Those of them whose own view may differ: the policy treats them differently, or they became or ceased to be members.
    pub reclassified: BTreeSet<NodeId>,
    /// Whether every node's view may differ.
    pub everyone: bool,
    /// Whether the policy has to be compiled again.
    pub recompile: bool,
}

/// The state of the tailnet at one moment. Cloning shares all tables.
#[derive(Clone, Debug)]
pub struct World {
    facts: Arc<Facts>,
    counters: Counters,
    users: Arc<BTreeMap<UserId, Arc<User>>>,
    nodes: Arc<BTreeMap<NodeId, Arc<Node>>>,
    index: Arc<NodeIndex>,
    presence: Arc<BTreeMap<NodeId, Presence>>,
    primaries: Arc<Primaries>,
    auth_keys: Arc<BTreeMap<CredentialId, Arc<AuthKey>>>,
    oauth_clients: Arc<BTreeMap<CredentialId, Arc<OauthClient>>>,
    tokens: Arc<BTreeMap<CredentialId, Arc<ApiToken>>>,
    dns_txt: Arc<BTreeMap<String, Arc<DnsTxt>>>,
    policy: Arc<ActivePolicy>,
    compiled: Arc<Compiled>,
}

impl World {
    /// A world without users and nodes.
    pub fn empty(facts: Facts, counters: Counters, policy: ActivePolicy) -> Self {
        let tailnet = tailwharf_policy::Tailnet {
            prefixes: facts.prefixes.both().to_vec(),
            ..tailwharf_policy::Tailnet::default()
        };
        let compiled = tailwharf_policy::compile(&policy.policy, &tailnet);
        Self {
            facts: Arc::new(facts),
            counters,
            users: Arc::default(),
            nodes: Arc::default(),
            index: Arc::default(),
            presence: Arc::default(),
            primaries: Arc::default(),
            auth_keys: Arc::default(),
            oauth_clients: Arc::default(),
            tokens: Arc::default(),
            dns_txt: Arc::default(),
            policy: Arc::new(policy),
            compiled: Arc::new(compiled),
        }
    }

    /// The world that a store holds.
    pub(crate) fn load(facts: Facts, policy: ActivePolicy, saved: Saved, now: Timestamp) -> Self {
        let mut world = Self::empty(facts, saved.counters, policy);
        let mut effects = Effects {
            everyone: true,
            recompile: true,
            ..Effects::default()
        };
        let expired = |node: &Node| {
            Change::SetPresence(
                node.id,
                Presence {
                    expired: true,
                    ..Presence::default()
                },
            )
        };
        let ended: Vec<_> = saved
            .nodes
            .iter()
            .filter(|node| node.is_expired(now))
            .map(expired)
            .collect();
        let puts = (saved.users.into_iter().map(|user| Change::PutUser(user.into())))
            .chain(saved.nodes.into_iter().map(|node| Change::PutNode(node.into())))
            .chain(
                saved
                    .auth_keys
                    .into_iter()
                    .map(|key| Change::PutAuthKey(key.into())),
            )
            .chain(
                saved
                    .oauth_clients
                    .into_iter()
                    .map(|client| Change::PutOauthClient(client.into())),
            )
            .chain(
                saved
                    .tokens
                    .into_iter()
                    .map(|token| Change::PutToken(token.into())),
            )
            .chain(
                saved
                    .dns_txt
                    .into_iter()
                    .map(|record| Change::PutDnsTxt(record.into())),
            )
            .chain(ended);
        for change in puts {
            world.apply(&change, &mut effects);
        }
        world.counters = saved.counters;
        world.settle(&mut effects);
        world
    }

    /// What is true for the whole run.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The numbers that only ever grow.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The id of the next user.
    pub fn next_user_id(&self) -> UserId {
        UserId(self.counters.next_user)
    }

    /// The id of the next node.
    pub fn next_node_id(&self) -> NodeId {
        NodeId(self.counters.next_node)
    }

    /// The user with this id.
    pub fn user(&self, id: UserId) -> Option<&Arc<User>> {
        self.users.get(&id)
    }

    /// The user with this login name.
    pub fn user_by_login(&self, login: &str) -> Option<&Arc<User>> {
        self.users
            .values()
            .find(|user| user.login.eq_ignore_ascii_case(login))
    }

    /// All users, by id.
    pub fn users(&self) -> impl Iterator<Item = &Arc<User>> {
        self.users.values()
    }

    /// The node with this id.
    pub fn node(&self, id: NodeId) -> Option<&Arc<Node>> {
        self.nodes.get(&id)
    }

    /// The node with this node key.
    pub fn node_by_key(&self, key: &NodePublic) -> Option<&Arc<Node>> {
        self.nodes.get(self.index.by_key.get(key)?)
    }

    /// The nodes that a machine has registered.
    pub fn nodes_of_machine(&self, machine: &MachinePublic) -> impl Iterator<Item = &Arc<Node>> {
        self.index
            .by_machine
            .get(machine)
            .into_iter()
            .flatten()
            .filter_map(|id| self.nodes.get(id))
    }

    /// The node with this DNS label.
    pub fn node_by_name(&self, name: &str) -> Option<&Arc<Node>> {
        self.nodes.get(self.index.by_name.get(name)?)
    }

    /// The node with this tailnet address.
    pub fn node_by_address(&self, addr: IpAddr) -> Option<&Arc<Node>> {
        self.nodes.get(self.index.by_address.get(&addr)?)
    }

    /// The node that a person or API call means: by number, stable id, DNS label, full name or address.
    pub fn find_node(&self, reference: &str) -> Option<&Arc<Node>> {
        if let Some(id) = self.index.by_stable_id.get(reference) {
            return self.nodes.get(id);
        }
        if let Some(node) = reference
            .parse()
            .ok()
            .and_then(|number| self.nodes.get(&NodeId(number)))
        {
            return Some(node);
        }
        if let Ok(addr) = reference.parse() {
            return self.node_by_address(addr);
        }
        let name = reference.trim_end_matches('.').to_ascii_lowercase();
        let label = name
            .strip_suffix(self.facts.suffix.as_str())
            .and_then(|rest| rest.strip_suffix('.'));
        self.node_by_name(label.unwrap_or(&name))
    }

    /// All nodes, by id.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// What is known of a node while it runs.
    pub fn presence(&self, id: NodeId) -> Presence {
        self.presence.get(&id).copied().unwrap_or_default()
    }

    /// The routes that the node serves, as no other does.
    pub fn primary_routes(&self, id: NodeId) -> Vec<IpNet> {
        self.primaries.of(id)
    }

    /// The auth key with this id.
    pub fn auth_key(&self, id: &str) -> Option<&Arc<AuthKey>> {
        self.auth_keys.get(id)
    }

    /// All auth keys.
    pub fn auth_keys(&self) -> impl Iterator<Item = &Arc<AuthKey>> {
        self.auth_keys.values()
    }

    /// The OAuth client with this id.
    pub fn oauth_client(&self, id: &str) -> Option<&Arc<OauthClient>> {
        self.oauth_clients.get(id)
    }

    /// All OAuth clients.
    pub fn oauth_clients(&self) -> impl Iterator<Item = &Arc<OauthClient>> {
        self.oauth_clients.values()
    }

    /// The API token with this id.
    pub fn token(&self, id: &str) -> Option<&Arc<ApiToken>> {
        self.tokens.get(id)
    }

    /// All API tokens.
    pub fn tokens(&self) -> impl Iterator<Item = &Arc<ApiToken>> {
        self.tokens.values()
    }

    /// All TXT records.
    pub fn dns_txt(&self) -> impl Iterator<Item = &Arc<DnsTxt>> {
        self.dns_txt.values()
    }

    /// The policy in force.
    pub fn policy(&self) -> &ActivePolicy {
        &self.policy
    }

    /// The policy as it applies to the nodes of this world.
    pub fn compiled(&self) -> &Arc<Compiled> {
        &self.compiled
    }

    /// A DNS label for a node with this host name that no other node than `except` has.
    pub fn free_name(&self, hostname: &str, except: Option<NodeId>) -> String {
        names::first_free(&names::sanitise(hostname), |name| {
            self.index
                .by_name
                .get(name)
                .is_some_and(|holder| Some(*holder) != except)
        })
    }

    /// Whether a node has this address.
    pub fn is_address_taken(&self, addr: IpAddr) -> bool {
        self.index.by_address.contains_key(&addr)
    }

    /// Whether `actor` may give `tag` to a node or key.
    pub fn may_assign_tag(&self, actor: &Actor, tag: &Tag) -> bool {
        let policy = &self.policy.policy;
        match actor {
            Actor::Administrator => policy.has_tag(tag),
            Actor::User(id) => self
                .user(*id)
                .is_some_and(|user| policy.may_assign_tag(&user.principal(), tag)),
            Actor::Client { tags, .. } => policy.may_assign_tag(&Principal::Tags(tags.clone()), tag),
        }
    }

    /// How an actor is named in messages.
    pub fn describe(&self, actor: &Actor) -> String {
        match actor {
            Actor::Administrator => "the administrator".to_owned(),
            Actor::User(id) => self
                .user(*id)
                .map_or_else(|| format!("user {id}"), |user| user.login.clone()),
            Actor::Client { tags, .. } => tags.iter().map(Tag::as_str).collect::<Vec<_>>().join(", "),
        }
    }

    /// The view of this world that the policy is compiled against.
    pub fn tailnet(&self) -> tailwharf_policy::Tailnet {
        tailwharf_policy::Tailnet {
            prefixes: self.facts.prefixes.both().to_vec(),
            users: self.users.values().map(|user| classify::user(user)).collect(),
            nodes: self.nodes.values().map(|node| classify::node(node)).collect(),
            services: Vec::new(),
        }
    }

    /// Applies a change and says whom it concerns.
    pub(crate) fn apply(&mut self, change: &Change, effects: &mut Effects) {
        match change {
            Change::PutUser(user) => {
                self.counters.next_user = self.counters.next_user.max(user.id.0 + 1);
                effects.everyone |= Arc::make_mut(&mut self.users)
                    .insert(user.id, user.clone())
                    .is_some();
                effects.recompile = true;
            }
            Change::DeleteUser(id) => {
                Arc::make_mut(&mut self.users).remove(id);
                effects.recompile = true;
            }
            Change::PutNode(node) => self.put_node(node, effects),
            Change::DeleteNode(id) => self.delete_node(*id, effects),
            Change::SetPresence(id, presence) => {
                let old = Arc::make_mut(&mut self.presence)
                    .insert(*id, *presence)
                    .unwrap_or_default();
                effects.nodes.insert(*id);
                if old.expired != presence.expired {
                    effects.reclassified.insert(*id);
                }
            }
            Change::PutAuthKey(key) => {
                Arc::make_mut(&mut self.auth_keys).insert(key.id.clone(), key.clone());
            }
            Change::DeleteAuthKey(id) => {
                Arc::make_mut(&mut self.auth_keys).remove(id);
            }
            Change::PutOauthClient(client) => {
                Arc::make_mut(&mut self.oauth_clients).insert(client.id.clone(), client.clone());
            }
            Change::DeleteOauthClient(id) => {
                Arc::make_mut(&mut self.oauth_clients).remove(id);
            }
            Change::PutToken(token) => {
                Arc::make_mut(&mut self.tokens).insert(token.id.clone(), token.clone());
            }
            Change::DeleteToken(id) => {
                Arc::make_mut(&mut self.tokens).remove(id);
            }
            Change::PutDnsTxt(record) => {
                Arc::make_mut(&mut self.dns_txt).insert(record.name.clone(), record.clone());
            }
            Change::DeleteDnsTxt(name) => {
                Arc::make_mut(&mut self.dns_txt).remove(name);
            }
            Change::PutPolicy(policy) => {
                self.policy = policy.clone();
                effects.everyone = true;
                effects.recompile = true;
            }
        }
    }

    /// Brings what is derived from the tables up to date, once all changes of a batch are applied.
    pub(crate) fn settle(&mut self, effects: &mut Effects) {
        if effects.recompile {
            self.compiled = Arc::new(tailwharf_policy::compile(&self.policy.policy, &self.tailnet()));
        }
        if effects.everyone
            || routes::concern(
                &self.primaries,
                effects.nodes.iter().filter_map(|id| self.node(*id)),
            )
        {
            let next = routes::elect(
                &self.primaries,
                self.nodes().map(|node| (node, self.presence(node.id))),
            );
            effects.nodes.extend(next.differing(&self.primaries));
            self.primaries = Arc::new(next);
        }
    }

    fn put_node(&mut self, node: &Arc<Node>, effects: &mut Effects) {
        self.counters.next_node = self.counters.next_node.max(node.id.0 + 1);
        let old = Arc::make_mut(&mut self.nodes).insert(node.id, node.clone());
        if !old.as_ref().is_some_and(|old| self.index.covers(old, node)) {
            let index = Arc::make_mut(&mut self.index);
            if let Some(old) = &old {
                index.remove(old);
            } else {
                self.counters.last_v4 = Some(node.ipv4);
            }
            index.insert(node);
        }
        effects.nodes.insert(node.id);
        let is_member_as_before = old.as_ref().is_some_and(|old| old.authorized == node.authorized);
        let is_alike = old.is_some_and(|old| classify::alike(&old, node));
        if !is_member_as_before || !is_alike {
            effects.reclassified.insert(node.id);
        }
        effects.recompile |= !is_alike;
    }

    fn delete_node(&mut self, id: NodeId, effects: &mut Effects) {
        if let Some(node) = Arc::make_mut(&mut self.nodes).remove(&id) {
            Arc::make_mut(&mut self.index).remove(&node);
            Arc::make_mut(&mut self.presence).remove(&id);
            effects.nodes.insert(id);
            effects.reclassified.insert(id);
            effects.recompile = true;
        }
    }
}
