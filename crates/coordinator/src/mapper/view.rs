//! What one node sees in one world.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use jiff::Timestamp;
use tailwharf_wire::tailcfg::{
    CapMap, Debug, DnsConfig, FilterRule, Hostinfo, MapResponse, Node as WireNode, NodeId, UserId,
    UserProfile,
};

use crate::{
    model::{Node, NodeOwner, Role, User},
    routes,
    world::World,
};

/// The profile that all tagged nodes share. Above every id that is given to a person.
const TAGGED_DEVICES: UserId = UserId(2_147_455_555);
/// The one part of the packet filter that is sent.
pub(super) const FILTER_NAME: &str = "base";

/// What `me` sees in `world`.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) world: &'a World,
    pub(super) me: NodeId,
}

impl<'a> View<'a> {
    pub(super) fn own(&self) -> Option<&'a Node> {
        self.world.node(self.me).map(AsRef::as_ref)
    }

    /// Whether this node takes part in the tailnet at all.
    fn is_member(&self) -> bool {
        self.own().is_some_and(|node| node.authorized) && !self.world.presence(self.me).expired
    }

    /// The peer with this id, if there is one and this node may know of it.
    pub(super) fn peer(&self, id: NodeId) -> Option<&'a Node> {
        let node = self.world.node(id)?;
        let visible = id != self.me
            && node.authorized
            && !self.world.presence(id).held
            && self.is_member()
            && self.world.compiled().can_see(self.me, id);
        visible.then_some(node.as_ref())
    }

    /// All peers, by id.
    pub(super) fn peers(&self) -> impl Iterator<Item = &'a Node> + use<'a> {
        let view = *self;
        self.world
            .compiled()
            .peers_of(self.me)
            .into_iter()
            .filter_map(move |id| view.peer(id))
    }

    /// The node itself, as it is told to itself.
    pub(super) fn own_message(&self) -> Option<WireNode> {
        let node = self.own()?;
        let mut message = describe(self.world, node);
        message.hostinfo = Some(Box::new(node.hostinfo.clone()));
        message.cap_map = self.capabilities(node);
        message.online = Some(true);
        message.last_seen = None;
        message.allowed_ips.get_or_insert_default().sort();
        Some(message)
    }

    /// A peer, as it is told to this node. The same for all who see it.
    pub(super) fn peer_message(&self, peer: &Node) -> WireNode {
        describe(self.world, peer)
    }

    /// What official clients have to be told that they may do.
    fn capabilities(&self, node: &Node) -> CapMap {
        let mut capabilities = self.world.compiled().attributes_of(self.me);
        capabilities.insert("https://tailscale.com/cap/file-sharing".to_owned(), Vec::new());
        let role = node
            .owner
            .user()
            .and_then(|id| self.world.user(id))
            .map(|user| user.role);
        if role.is_some_and(|role| role >= Role::Admin) {
            capabilities.insert("https://tailscale.com/cap/is-admin".to_owned(), Vec::new());
        }
        if role == Some(Role::Owner) {
            capabilities.insert("https://tailscale.com/cap/is-owner".to_owned(), Vec::new());
        }
        capabilities
    }

    /// The packet filter of this node.
    pub(super) fn filter(&self) -> Vec<FilterRule> {
        if self.is_member() {
            self.world.compiled().rules_for(self.me)
        } else {
            Vec::new()
        }
    }

    pub(super) fn filters(&self) -> BTreeMap<String, Option<Vec<FilterRule>>> {
        BTreeMap::from([(FILTER_NAME.to_owned(), Some(self.filter()))])
    }

    /// How this node resolves names: those of the tailnet by itself, all others as before.
    pub(super) fn dns(&self) -> DnsConfig {
        let suffix = self.world.facts().suffix.as_str().to_owned();
        DnsConfig {
            routes: BTreeMap::from([(suffix.clone(), Vec::new())]),
            domains: vec![suffix],
            proxied: true,
            ..DnsConfig::default()
        }
    }

    /// The profiles behind this node and `peers`, each once.
    pub(super) fn profiles(&self, peers: impl Iterator<Item = &'a Node>) -> Vec<UserProfile> {
        let ids: BTreeSet<UserId> = self.own().into_iter().chain(peers).map(profile_id).collect();
        ids.into_iter().filter_map(|id| profile(self.world, id)).collect()
    }
}

/// The first message of a stream: everything that a node sees.
pub(crate) fn full(world: &World, me: NodeId, now: Timestamp) -> Option<MapResponse> {
    let view = View { world, me };
    let node = view.own_message()?;
    Some(MapResponse {
        node: Some(node),
        derp_map: Some(world.facts().derp_map.clone()),
        peers: view.peers().map(|peer| view.peer_message(peer)).collect(),
        dns_config: Some(view.dns()),
        domain: world.facts().suffix.as_str().to_owned(),
        collect_services: Some(false),
        packet_filters: Some(view.filters()),
        user_profiles: view.profiles(view.peers()),
        control_time: Some(now),
        // Clients of this server have no log service to talk to.
        debug: Some(Debug {
            disable_log_tail: true,
            ..Debug::default()
        }),
        ..MapResponse::default()
    })
}

/// The id under which a node's owner is told.
pub(crate) fn profile_id(node: &Node) -> UserId {
    match &node.owner {
        NodeOwner::User(user) => *user,
        NodeOwner::Tags(_) => TAGGED_DEVICES,
    }
}

/// What peers are told of a user.
pub(crate) fn profile(world: &World, id: UserId) -> Option<UserProfile> {
    if id == TAGGED_DEVICES {
        return Some(UserProfile {
            id,
            login_name: "tagged-devices".to_owned(),
            display_name: "Tagged Devices".to_owned(),
            ..UserProfile::default()
        });
    }
    let user: &User = world.user(id)?;
    Some(UserProfile {
        id,
        login_name: user.login.clone(),
        display_name: user.display_name.clone(),
        ..UserProfile::default()
    })
}

/// A node, as its peers are told of it.
fn describe(world: &World, node: &Node) -> WireNode {
    let presence = world.presence(node.id);
    let region = node.home_region().unwrap_or_default();
    let primary_routes = world.primary_routes(node.id);
    let mut allowed_ips: Vec<IpNet> = node.addresses().to_vec();
    allowed_ips.extend(&primary_routes);
    allowed_ips.extend(exit_routes(node));
    WireNode {
        id: node.id,
        stable_id: node.stable_id.clone(),
        name: format!("{}.", world.facts().suffix.fqdn(&node.name)),
        user: profile_id(node),
        key: node.node_key,
        key_expiry: node.expires,
        machine: node.machine_key,
        disco_key: node.disco_key.unwrap_or_default(),
        addresses: node.addresses().to_vec(),
        allowed_ips: Some(allowed_ips),
        endpoints: node.endpoints.iter().map(|endpoint| endpoint.addr).collect(),
        legacy_derp: format!("127.3.3.40:{region}"),
        home_derp: region,
        hostinfo: Some(Box::new(public_part(&node.hostinfo))),
        created: Some(node.created),
        cap: node.capability_version,
        tags: node
            .owner
            .tags()
            .into_iter()
            .flatten()
            .map(ToString::to_string)
            .collect(),
        primary_routes,
        last_seen: if presence.online { None } else { node.last_seen },
        online: Some(presence.online),
        machine_authorized: node.authorized,
        expired: presence.expired,
        ..WireNode::default()
    }
}

/// Both exit routes, when both are enabled: one alone would leave the traffic of a family behind.
fn exit_routes(node: &Node) -> Vec<IpNet> {
    let routes: Vec<IpNet> = node.enabled_routes().filter(routes::is_exit).collect();
    if routes.len() == 2 { routes } else { Vec::new() }
}

/// What peers need of what a node says about itself.
fn public_part(hostinfo: &Hostinfo) -> Hostinfo {
    Hostinfo {
        os: hostinfo.os.clone(),
        hostname: hostinfo.hostname.clone(),
        app: hostinfo.app.clone(),
        services: hostinfo.services.clone(),
        routable_ips: hostinfo.routable_ips.clone(),
        shields_up: hostinfo.shields_up,
        ssh_host_keys: hostinfo.ssh_host_keys.clone(),
        ..Hostinfo::default()
    }
}
