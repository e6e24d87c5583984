//! A node, as its peers are told of it.

use std::{collections::BTreeMap, sync::OnceLock};

use ipnet::IpNet;
use tailwharf_wire::tailcfg::{Hostinfo, Node as WireNode, NodeId, RegionId, UserId};

use super::World;
use crate::{
    model::{Node, NodeOwner},
    routes,
};

/// The profile that all tagged nodes share. Above every id that is given to a person.
pub(crate) const TAGGED_DEVICES: UserId = UserId(2_147_455_555);
/// Ids of the users as whom tagged nodes are told to themselves: this, and the id of the node. Far above those of people.
const OWN_PROFILES: i64 = 1 << 40;

/// One version of a node as its peers are told of it: made once, encoded once, and shared by all worlds and messages that it is in.
#[derive(Debug)]
pub(crate) struct PeerRecord {
    /// Whether nobody is told of the node yet.
    pub(crate) held: bool,
    common: Version,
    /// Where the services that the node answers for depend on the region of who asks.
    regional: BTreeMap<RegionId, Version>,
}

/// The same for all who are told it.
#[derive(Debug)]
pub(crate) struct Version {
    node: WireNode,
    json: OnceLock<Box<[u8]>>,
}

impl PartialEq for PeerRecord {
    fn eq(&self, other: &Self) -> bool {
        self.held == other.held && self.common == other.common && self.regional == other.regional
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.node == other.node
    }
}

impl PeerRecord {
    pub(super) fn new(world: &World, id: NodeId) -> Option<Self> {
        let node = world.node(id)?;
        let plain = describe(world, node);
        let common = world.hosts.prefixes_of(id, None);
        let regional = world.hosts.regions_of(id);
        Some(Self {
            held: world.presence(id).held,
            regional: regional
                .map(|region| {
                    (
                        region,
                        Version::new(&plain, world.hosts.prefixes_of(id, Some(region))),
                    )
                })
                .collect(),
            common: Version::new(&plain, common),
        })
    }

    /// What those in a region are told.
    pub(crate) fn seen_from(&self, region: Option<RegionId>) -> &Version {
        region
            .and_then(|region| self.regional.get(&region))
            .unwrap_or(&self.common)
    }
}

impl Version {
    fn new(plain: &WireNode, services: Vec<IpNet>) -> Self {
        let mut node = plain.clone();
        node.allowed_ips.get_or_insert_default().extend(services);
        Self::of(node)
    }

    /// A version that is told as it is.
    pub(crate) fn of(node: WireNode) -> Self {
        Self {
            node,
            json: OnceLock::new(),
        }
    }

    pub(crate) fn node(&self) -> &WireNode {
        &self.node
    }

    /// The node as JSON.
    pub(crate) fn json(&self) -> &[u8] {
        self.json.get_or_init(|| {
            let json = tailwharf_wire::json::to_vec(&self.node);
            // Encoding plain data into memory does not fail.
            json.unwrap_or_else(|_| b"null".to_vec()).into_boxed_slice()
        })
    }
}

/// The id under which a node's owner is told.
pub(crate) fn profile_id(node: &Node) -> UserId {
    match &node.owner {
        NodeOwner::User(user) => *user,
        NodeOwner::Tags(_) => TAGGED_DEVICES,
    }
}

/// The id of the user as whom a node is told to itself. Of a tagged node that is one of its own, by whose login name clients know their own profile:
/// the official operator reads the tailnet's domain from there.
pub(crate) fn own_profile_id(node: &Node) -> UserId {
    match &node.owner {
        NodeOwner::User(id) => *id,
        NodeOwner::Tags(_) => UserId(OWN_PROFILES + node.id.0),
    }
}

/// The tagged node of which this is [`own_profile_id`].
pub(crate) fn node_of_profile(id: UserId) -> Option<NodeId> {
    (id.0 > OWN_PROFILES).then(|| NodeId(id.0 - OWN_PROFILES))
}

fn describe(world: &World, node: &Node) -> WireNode {
    let presence = world.presence(node.id);
    let region = node.home_region().unwrap_or_default();
    let primary_routes = world.primary_routes(node.id).to_vec();
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
