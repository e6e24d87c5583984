//! The state of the tailnet at one moment.
//!
//! A [`World`] never changes once it is published: readers hold an `Arc` of it as long as one answer needs it. The writer makes the next one by
//! applying [`Change`]s to a clone. All tables are persistent: two worlds share whatever is alike, so a step costs what it changes.

mod apply;
mod change;
mod classify;
mod index;
mod record;

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use ipnet::IpNet;
use rpds::RedBlackTreeMapSync as Table;
use tailwharf_policy::{Graph, Principal};
use tailwharf_wire::{
    key::{MachinePublic, NodePublic},
    tailcfg::{DerpMap, NodeId, UserId},
};

pub(crate) use self::apply::LOG_LIMIT;
pub use self::change::{ActivePolicy, Change, Counters, Effects, Presence};
use self::index::Index;
pub(crate) use self::record::{PeerRecord, TAGGED_DEVICES, Version, node_of_profile, own_profile_id};
use crate::{
    hosts::{Choice, Hosts},
    ipam::Prefixes,
    model::{
        Actor, ApiToken, AuthKey, CheckId, Confirmation, CredentialId, DnsSettings, DnsTxt, LogEntry, Node,
        NodeOwner, OauthClient, PendingCheck, PendingRegistration, RegistrationId, ServiceName, Settings,
        Tag, User, VipService,
    },
    names::{self, Suffix},
    routes::Primaries,
};

/// What is true for the whole run of the process.
#[derive(Clone, Debug)]
pub struct Facts {
    /// From which prefixes nodes get their addresses.
    pub prefixes: Prefixes,
    /// The MagicDNS domain.
    pub suffix: Suffix,
    /// The ports at which the public gateway listens; none without one.
    pub funnel_ports: BTreeSet<u16>,
}

/// The state of the tailnet at one moment. Cloning shares all tables.
#[derive(Clone, Debug)]
pub struct World {
    facts: Arc<Facts>,
    counters: Counters,
    users: Table<UserId, Arc<User>>,
    nodes: Table<NodeId, Arc<Node>>,
    services: Table<ServiceName, Arc<VipService>>,
    index: Index,
    presence: Table<NodeId, Presence>,
    records: Table<NodeId, Arc<PeerRecord>>,
    primaries: Primaries,
    hosts: Hosts,
    auth_keys: Table<CredentialId, Arc<AuthKey>>,
    oauth_clients: Table<CredentialId, Arc<OauthClient>>,
    tokens: Table<CredentialId, Arc<ApiToken>>,
    dns_txt: Table<String, Arc<DnsTxt>>,
    registrations: Table<RegistrationId, Arc<PendingRegistration>>,
    checks: Table<CheckId, Arc<PendingCheck>>,
    confirmations: Table<String, Arc<Confirmation>>,
    log: Table<i64, Arc<LogEntry>>,
    settings: Arc<Settings>,
    dns: Arc<DnsSettings>,
    derp_map: Arc<DerpMap>,
    policy: Arc<ActivePolicy>,
    graph: Graph,
    /// The nodes as `graph` was told of them: approved ones only.
    classified: Table<NodeId, Arc<tailwharf_policy::Node>>,
}

impl World {
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
            .get(self.index.user_by_login.get(&login.to_ascii_lowercase())?)
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
            .flat_map(|nodes| nodes.iter())
            .filter_map(|id| self.nodes.get(id))
    }

    /// The untagged nodes of a person.
    pub fn nodes_of_user(&self, user: UserId) -> impl Iterator<Item = &Arc<Node>> {
        self.index
            .by_user
            .get(&user)
            .into_iter()
            .flat_map(|nodes| nodes.iter())
            .filter_map(|id| self.nodes.get(id))
    }

    /// The nodes that offer to be a host of a service.
    pub fn nodes_offering(&self, service: &ServiceName) -> impl Iterator<Item = &Arc<Node>> {
        self.index
            .by_service
            .get(service)
            .into_iter()
            .flat_map(|nodes| nodes.iter())
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

    /// Whether a node takes part in the tailnet: approved, and its key has not ended.
    pub fn is_member(&self, id: NodeId) -> bool {
        self.node(id).is_some_and(|node| node.authorized) && !self.presence(id).expired
    }

    /// Whether a node may be entrusted with what another could do as well: a route, a service.
    pub fn is_dependable(&self, id: NodeId) -> bool {
        let presence = self.presence(id);
        presence.online && !presence.silent && !presence.held && self.is_member(id)
    }

    /// Whether another node could take over a route or service of this one.
    pub(crate) fn has_rival(&self, id: NodeId) -> bool {
        self.primaries.has_rival(id) || self.hosts.has_rival(id)
    }

    /// The nodes that serve what others could serve as well.
    pub(crate) fn nodes_with_rivals(&self) -> Vec<NodeId> {
        let mut nodes: Vec<_> = self.primaries.contested().chain(self.hosts.contested()).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    /// A node, as its peers are told of it.
    pub(crate) fn record(&self, id: NodeId) -> Option<&Arc<PeerRecord>> {
        self.records.get(&id)
    }

    /// The routes that the node serves, as no other does.
    pub fn primary_routes(&self, id: NodeId) -> &[IpNet] {
        self.primaries.of(id)
    }

    /// The service with this name.
    pub fn service(&self, name: &ServiceName) -> Option<&Arc<VipService>> {
        self.services.get(name)
    }

    /// All services, by name.
    pub fn services(&self) -> impl Iterator<Item = &Arc<VipService>> {
        self.services.values()
    }

    /// Which nodes answer for a service; none that is known when no approved host is there.
    pub fn service_choice(&self, name: &ServiceName) -> Option<&Arc<Choice>> {
        self.hosts.choice(name)
    }

    /// Whether a node may be a host of a service: by word of an administrator, else by the policy.
    pub fn is_service_host_approved(&self, service: &VipService, node: &Node) -> bool {
        let decided = service.hosts.get(&node.id).copied();
        decided.unwrap_or_else(|| self.may_host(node, service))
    }

    /// Whether the policy lets a node be a host of a service.
    pub fn may_host(&self, node: &Node, service: &VipService) -> bool {
        let policy = &self.policy.policy;
        let principal = self.principal(&node.owner);
        principal.is_some_and(|principal| policy.may_host(&principal, service.name.as_str(), &service.tags))
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

    /// The TXT record with this full name, in lower case and without a final dot.
    pub fn txt(&self, name: &str) -> Option<&Arc<DnsTxt>> {
        self.dns_txt.get(name)
    }

    /// All TXT records.
    pub fn dns_txt(&self) -> impl Iterator<Item = &Arc<DnsTxt>> {
        self.dns_txt.values()
    }

    /// The registration with this id, decided or not.
    pub fn registration(&self, id: &RegistrationId) -> Option<&Arc<PendingRegistration>> {
        self.registrations.get(id)
    }

    /// All registrations that were not let in yet, by id.
    pub fn registrations(&self) -> impl Iterator<Item = &Arc<PendingRegistration>> {
        self.registrations.values()
    }

    /// The question to a person with this id, decided or not.
    pub fn check(&self, id: &CheckId) -> Option<&Arc<PendingCheck>> {
        self.checks.get(id)
    }

    /// All questions to people that were not confirmed yet.
    pub fn checks(&self) -> impl Iterator<Item = &Arc<PendingCheck>> {
        self.checks.values()
    }

    /// What a person confirmed, by [`Confirmation::id`].
    pub fn confirmation(&self, id: &str) -> Option<&Arc<Confirmation>> {
        self.confirmations.get(id)
    }

    /// All that people confirmed.
    pub fn confirmations(&self) -> impl Iterator<Item = &Arc<Confirmation>> {
        self.confirmations.values()
    }

    /// The log of changes, the latest first.
    pub fn log(&self) -> impl Iterator<Item = &Arc<LogEntry>> {
        self.log.values().rev()
    }

    /// Rules for devices.
    pub fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    /// Rules for names.
    pub fn dns(&self) -> &Arc<DnsSettings> {
        &self.dns
    }

    /// The relays.
    pub fn derp_map(&self) -> &Arc<DerpMap> {
        &self.derp_map
    }

    /// The policy in force.
    pub fn policy(&self) -> &ActivePolicy {
        &self.policy
    }

    /// The policy as it applies to the nodes of this world.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// A DNS label for a node with this host name that neither a service nor another node than `except` has.
    pub fn free_name(&self, hostname: &str, except: Option<NodeId>) -> String {
        names::first_free(&names::sanitise(hostname), |name| {
            self.is_service_label(name)
                || self
                    .index
                    .by_name
                    .get(name)
                    .is_some_and(|holder| Some(*holder) != except)
        })
    }

    /// Whether a service is called by this DNS label.
    pub fn is_service_label(&self, label: &str) -> bool {
        format!("svc:{label}")
            .parse::<ServiceName>()
            .is_ok_and(|name| self.services.contains_key(&name))
    }

    /// Whether a node or service has this address.
    pub fn is_address_taken(&self, addr: IpAddr) -> bool {
        self.index.by_address.contains_key(&addr) || self.index.service_by_address.contains_key(&addr)
    }

    /// The address that was given last.
    pub fn last_v4(&self) -> Option<Ipv4Addr> {
        self.counters.last_v4
    }

    /// A node's owner, as the policy's rules of ownership see it; none when the person is gone.
    pub fn principal(&self, owner: &NodeOwner) -> Option<Principal> {
        match owner {
            NodeOwner::Tags(tags) => Some(Principal::Tags(tags.clone())),
            NodeOwner::User(id) => self.user(*id).map(|user| user.principal()),
        }
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
            nodes: (self.nodes.values())
                .filter(|node| node.authorized)
                .map(|node| classify::node(self, node))
                .collect(),
            services: self
                .services
                .values()
                .map(|service| classify::service(service))
                .collect(),
        }
    }
}
