//! What one node sees in one world.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;
use jiff::Timestamp;
use tailwharf_policy::FUNNEL;
use tailwharf_wire::tailcfg::{
    CapMap, Debug, DnsConfig, FilterRule, MapResponse, Node as WireNode, NodeId, RegionId, SshPolicy, UserId,
    UserProfile,
};

use super::{
    dns,
    message::{Message, Told},
};
use crate::{
    machine::ssh_check_url,
    model::{Node, Role, User, VipService},
    world::{TAGGED_DEVICES, World, node_of_profile, own_profile_id},
};

/// The one part of the packet filter that is sent.
pub(super) const FILTER_NAME: &str = "base";
/// Tells a node for which services it may answer, and at which addresses.
const SERVICE_HOST: &str = "service-host";

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

    fn region(&self) -> Option<RegionId> {
        self.own().and_then(Node::home_region)
    }

    /// The peer with this id, if there is one and this node may know of it.
    pub(super) fn peer(&self, id: NodeId) -> Option<Told> {
        let visible =
            id != self.me && self.world.is_member(self.me) && self.world.graph().can_see(self.me, id);
        visible.then(|| self.told(id)).flatten()
    }

    /// All peers, by id.
    pub(super) fn peers(&self) -> impl Iterator<Item = Told> + use<'a> {
        let view = *self;
        let ids = if self.world.is_member(self.me) {
            self.world.graph().peers_of(self.me)
        } else {
            Vec::new()
        };
        ids.into_iter().filter_map(move |id| view.told(id))
    }

    fn told(&self, id: NodeId) -> Option<Told> {
        let record = self.world.record(id).filter(|record| !record.held)?;
        let told = Told::new(record.clone(), self.region());
        let router = self.world.node(id)?;
        match self.steered(router, told.node()) {
            Some(node) => Some(Told::steered(node)),
            None => Some(told),
        }
    }

    /// A router as the grants with `via` have this node see it: with routes that it shall use there, without those that it shall use elsewhere.
    fn steered(&self, router: &Node, plain: &WireNode) -> Option<WireNode> {
        let mut allowed: BTreeSet<IpNet> = plain.allowed_ips.iter().flatten().copied().collect();
        for route in router.enabled_routes() {
            match self.world.graph().steering(self.me, router.id, &route) {
                Some(true) => allowed.insert(route),
                Some(false) => allowed.remove(&route),
                None => false,
            };
        }
        let differs = allowed.len() != plain.allowed_ips.as_ref().map_or(0, Vec::len)
            || plain
                .allowed_ips
                .iter()
                .flatten()
                .any(|route| !allowed.contains(route));
        differs.then(|| WireNode {
            allowed_ips: Some(allowed.into_iter().collect()),
            ..plain.clone()
        })
    }

    /// The node itself, as it is told to itself.
    pub(super) fn own_message(&self) -> Option<WireNode> {
        let node = self.own()?;
        let mut message = self
            .world
            .record(self.me)?
            .seen_from(self.region())
            .node()
            .clone();
        message.user = own_profile_id(node);
        message.hostinfo = Some(Box::new(node.hostinfo.clone()));
        message.cap_map = self.capabilities(node);
        message.online = Some(true);
        message.last_seen = None;
        let allowed: BTreeSet<IpNet> = message
            .allowed_ips
            .into_iter()
            .flatten()
            .chain(self.hosted_services().flat_map(|service| service.prefixes()))
            .collect();
        message.allowed_ips = Some(allowed.into_iter().collect());
        Some(message)
    }

    /// The services that this node may answer for.
    pub(super) fn hosted_services(&self) -> impl Iterator<Item = &'a Arc<VipService>> + use<'a> {
        let view = *self;
        let offered = self.own().into_iter().flat_map(|node| &node.services);
        offered
            .filter(move |name| {
                let choice = view.world.service_choice(name);
                choice.is_some_and(|choice| choice.candidates.contains(&view.me))
            })
            .filter_map(move |name| view.world.service(name))
    }

    /// Whether the node may know that a service exists: it sees a host, or is one.
    pub(super) fn may_know(&self, service: &VipService) -> bool {
        let hosts = self.world.service_choice(&service.name);
        hosts.is_some_and(|choice| {
            let mut hosts = choice.candidates.iter();
            hosts.any(|id| *id == self.me || self.world.graph().can_see(self.me, *id))
        }) && self.world.is_member(self.me)
    }

    /// What official clients have to be told that they may do.
    fn capabilities(&self, node: &Node) -> CapMap {
        let mut capabilities = self.world.graph().cap_map_for(self.me);
        let mut grant = |name: &str| {
            capabilities.entry(name.to_owned()).or_default();
        };
        grant("https://tailscale.com/cap/file-sharing");
        let user = node.owner.user().and_then(|id| self.world.user(id));
        let role = user.map(|user| user.role);
        if role.is_some_and(|role| role >= Role::Admin) {
            grant("https://tailscale.com/cap/is-admin");
        }
        if role == Some(Role::Owner) {
            grant("https://tailscale.com/cap/is-owner");
        }
        if self.ssh().is_some() {
            grant("https://tailscale.com/cap/ssh");
        }
        if self.world.settings().https {
            grant("https");
        }
        let ports = &self.world.facts().funnel_ports;
        if ports.is_empty() || !self.world.settings().https {
            // Without a gateway, or certificates, clients had better say so than wait.
            capabilities.remove(FUNNEL);
        } else if capabilities.contains_key(FUNNEL) {
            let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
            let name = format!("https://tailscale.com/cap/funnel-ports?ports={}", ports.join(","));
            capabilities.entry(name).or_default();
        }
        let hosted: BTreeMap<String, Vec<String>> = self
            .hosted_services()
            .map(|service| {
                let addresses = service.addresses().iter().map(ToString::to_string).collect();
                (service.name.to_string(), addresses)
            })
            .collect();
        if !hosted.is_empty() {
            let value = serde_json::to_value(hosted).unwrap_or_default();
            capabilities.insert(SERVICE_HOST.to_owned(), vec![value]);
        }
        capabilities
    }

    /// The packet filter of this node.
    pub(super) fn filter(&self) -> Vec<FilterRule> {
        if self.world.is_member(self.me) {
            self.world.graph().rules_for(self.me)
        } else {
            Vec::new()
        }
    }

    /// Who may log in to this node by SSH.
    pub(super) fn ssh(&self) -> Option<SshPolicy> {
        self.world.graph().ssh_policy_for(self.me, Some(&ssh_check_url()))
    }

    pub(super) fn dns(&self) -> DnsConfig {
        dns::config(self)
    }
}

/// A packet filter, as it is told.
pub(super) fn filters(rules: Vec<FilterRule>) -> BTreeMap<String, Option<Vec<FilterRule>>> {
    BTreeMap::from([(FILTER_NAME.to_owned(), Some(rules))])
}

/// The first message of a stream: everything that a node sees.
pub(crate) fn full(world: &World, me: NodeId, now: Timestamp) -> Option<Message> {
    let view = View { world, me };
    let node = view.own_message()?;
    let peers: Vec<Told> = view.peers().collect();
    let users: BTreeSet<UserId> = peers
        .iter()
        .map(|peer| peer.node().user)
        .chain([node.user])
        .collect();
    let rest = MapResponse {
        node: Some(node),
        derp_map: Some(world.derp_map().as_ref().clone()),
        dns_config: Some(view.dns()),
        domain: world.facts().suffix.as_str().to_owned(),
        collect_services: Some(false),
        packet_filters: Some(filters(view.filter())),
        ssh_policy: view.ssh(),
        user_profiles: users.into_iter().filter_map(|id| profile(world, id)).collect(),
        control_time: Some(now),
        // Clients of this server have no log service to talk to.
        debug: Some(Debug {
            disable_log_tail: true,
            ..Debug::default()
        }),
        ..MapResponse::default()
    };
    Some(Message {
        peers,
        rest,
        ..Message::default()
    })
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
    if let Some(node) = node_of_profile(id) {
        return own_profile(world, world.node(node)?).filter(|profile| profile.id == id);
    }
    let user: &User = world.user(id)?;
    Some(UserProfile {
        id,
        login_name: user.login.clone(),
        display_name: user.display_name.clone(),
        ..UserProfile::default()
    })
}

/// What a node is told of the user as whom it is told to itself.
pub(crate) fn own_profile(world: &World, node: &Node) -> Option<UserProfile> {
    let id = own_profile_id(node);
    if node.owner.user().is_some() {
        return profile(world, id);
    }
    let name = world.facts().suffix.fqdn(&node.name);
    Some(UserProfile {
        id,
        login_name: name.trim_end_matches('.').to_owned(),
        display_name: node.name.clone(),
        ..UserProfile::default()
    })
}

/// The users whose profiles a node has been told.
pub(super) fn known_users(view: &View<'_>) -> BTreeSet<UserId> {
    let own = view.own().map(own_profile_id);
    view.peers().map(|peer| peer.node().user).chain(own).collect()
}
