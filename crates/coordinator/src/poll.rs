//! Map requests: what a node tells of itself, and what it asks for.

use std::{collections::BTreeSet, sync::Arc};

use ipnet::IpNet;
use tailwharf_wire::tailcfg::{EndpointType, Hostinfo, MapRequest, NodeId};

use crate::{
    model::{Endpoint, Node},
    names,
    ops::{Context, Decision, OpError, replacement},
    world::{Change, Presence, World},
};

/// Endpoints of one node that are kept and told to its peers.
const ENDPOINT_LIMIT: usize = 64;
/// Routes that one node may offer.
const ROUTE_LIMIT: usize = 1024;
/// Entries that other lists of a node may have.
const LIST_LIMIT: usize = 128;
/// The longest text that a node may say about itself, in bytes.
const TEXT_LIMIT: usize = 512;
/// The longest public key of an SSH server: RSA of 16,384 bits.
const SSH_KEY_LIMIT: usize = 4096;

/// What a map request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// To be told of the tailnet from now on.
    Stream,
    /// To tell what has changed at the node.
    Update,
    /// To be told of the tailnet once.
    Peek,
}

impl Kind {
    pub(crate) fn of(request: &MapRequest) -> Self {
        match request {
            MapRequest { stream: true, .. } => Self::Stream,
            MapRequest { read_only: true, .. } => Self::Peek,
            MapRequest { .. } => Self::Update,
        }
    }
}

/// Stores what a lite update says.
pub(crate) fn update(
    world: &World,
    context: &Context,
    id: NodeId,
    request: MapRequest,
) -> Result<Decision<()>, OpError> {
    let node = world.node(id).ok_or_else(|| OpError::not_found("node", id))?;
    let mut next = node.as_ref().clone();
    take_keys(&mut next, &request);
    next.endpoints = endpoints(&request);
    if let Some(hostinfo) = request.hostinfo {
        take_hostinfo(world, &mut next, hostinfo);
    }
    Ok(Decision::new(changes(world, context, node, next), ()))
}

/// Notes that a node has a stream, and what its request says that is not known better.
///
/// A stream's request may be older than a lite update that overtook it, so it does not replace what updates told. Under a new disco key it does: then
/// what is known comes from a process that has ended.
pub(crate) fn connect(
    world: &World,
    context: &Context,
    id: NodeId,
    request: MapRequest,
) -> Result<Decision<()>, OpError> {
    let node = world.node(id).ok_or_else(|| OpError::not_found("node", id))?;
    let mut next = node.as_ref().clone();
    let is_new_process = !request.disco_key.is_zero() && next.disco_key != Some(request.disco_key);
    take_keys(&mut next, &request);
    if !request.endpoints.is_empty() && (is_new_process || next.endpoints.is_empty()) {
        next.endpoints = endpoints(&request);
    }
    if let Some(hostinfo) = request.hostinfo
        && (is_new_process || next.home_region().is_none())
    {
        take_hostinfo(world, &mut next, hostinfo);
    }
    let mut changes = changes(world, context, node, next);
    let before = changes.iter().rev().find_map(|change| match change {
        Change::SetPresence(_, presence) => Some(*presence),
        _ => None,
    });
    let presence = Presence {
        online: true,
        silent: false,
        ..before.unwrap_or_else(|| world.presence(id))
    };
    if presence != world.presence(id) {
        changes.push(Change::SetPresence(id, presence));
    }
    Ok(Decision::new(changes, ()))
}

/// Notes that a node has no stream any more.
pub(crate) fn disconnect(world: &World, context: &Context, id: NodeId) -> Decision<()> {
    let Some(node) = world.node(id) else {
        return Decision::unchanged(());
    };
    let presence = Presence {
        online: false,
        silent: false,
        ..world.presence(id)
    };
    let node = Node {
        last_seen: Some(context.now),
        ..node.as_ref().clone()
    };
    Decision::new(
        vec![Change::PutNode(Arc::new(node)), Change::SetPresence(id, presence)],
        (),
    )
}

/// Notes whether a node has a stream, and nothing that needs the store.
pub(crate) fn set_online(world: &World, id: NodeId, online: bool) -> Decision<()> {
    let presence = world.presence(id);
    if presence.online == online || world.node(id).is_none() {
        return Decision::unchanged(());
    }
    Decision::new(vec![Change::SetPresence(id, Presence { online, ..presence })], ())
}

/// Shows a node to its peers that was held back.
pub(crate) fn reveal(world: &World, id: NodeId) -> Decision<()> {
    let presence = world.presence(id);
    if !presence.held || world.node(id).is_none() {
        return Decision::unchanged(());
    }
    Decision::new(
        vec![Change::SetPresence(
            id,
            Presence {
                held: false,
                ..presence
            },
        )],
        (),
    )
}

/// Takes over what a node says about itself: its name follows, and routes that the policy approves are approved.
pub(crate) fn take_hostinfo(world: &World, node: &mut Node, mut hostinfo: Hostinfo) {
    limit(&mut hostinfo);
    if hostinfo.net_info.is_none() {
        // Sent before the node has looked at the network: the last known home is the best guess.
        hostinfo.net_info = node.hostinfo.net_info.take();
    }
    let renamed = names::sanitise(&hostinfo.hostname) != names::sanitise(&node.hostinfo.hostname);
    if node.name.is_empty() || (renamed && !node.name_is_fixed) {
        node.name = world.free_name(&hostinfo.hostname, Some(node.id));
    }
    node.approved_routes
        .extend(approved_by_policy(world, node, &hostinfo.routable_ips));
    node.hostinfo = hostinfo;
}

fn approved_by_policy(world: &World, node: &Node, routes: &[IpNet]) -> BTreeSet<IpNet> {
    let Some(principal) = world.principal(&node.owner) else {
        return BTreeSet::new();
    };
    let policy = &world.policy().policy;
    let approved = routes
        .iter()
        .filter(|route| policy.may_advertise(&principal, route));
    approved.copied().collect()
}

/// Cuts what a node says about itself down to what is kept and told to others.
pub(crate) fn limit(hostinfo: &mut Hostinfo) {
    hostinfo.routable_ips.truncate(ROUTE_LIMIT);
    hostinfo.services.truncate(LIST_LIMIT);
    hostinfo.request_tags.truncate(LIST_LIMIT);
    hostinfo.wol_macs.truncate(LIST_LIMIT);
    hostinfo.ssh_host_keys.truncate(LIST_LIMIT);
    let texts = [
        &mut hostinfo.ipn_version,
        &mut hostinfo.frontend_log_id,
        &mut hostinfo.backend_log_id,
        &mut hostinfo.os,
        &mut hostinfo.os_version,
        &mut hostinfo.env,
        &mut hostinfo.distro,
        &mut hostinfo.distro_version,
        &mut hostinfo.distro_code_name,
        &mut hostinfo.app,
        &mut hostinfo.package,
        &mut hostinfo.device_model,
        &mut hostinfo.push_device_token,
        &mut hostinfo.hostname,
        &mut hostinfo.machine,
        &mut hostinfo.go_arch,
        &mut hostinfo.go_arch_var,
        &mut hostinfo.go_version,
        &mut hostinfo.cloud,
        &mut hostinfo.services_hash,
    ];
    let services = hostinfo.services.iter_mut();
    let lists = (hostinfo.request_tags.iter_mut())
        .chain(&mut hostinfo.wol_macs)
        .chain(services.flat_map(|service| [&mut service.proto, &mut service.description]));
    for text in texts.into_iter().chain(lists) {
        text.truncate(text.floor_char_boundary(TEXT_LIMIT));
    }
    for key in &mut hostinfo.ssh_host_keys {
        key.truncate(key.floor_char_boundary(SSH_KEY_LIMIT));
    }
    if let Some(net_info) = &mut hostinfo.net_info {
        net_info
            .derp_latency
            .retain(|region, _| region.len() <= TEXT_LIMIT);
        while net_info.derp_latency.len() > LIST_LIMIT {
            net_info.derp_latency.pop_last();
        }
    }
}

fn take_keys(node: &mut Node, request: &MapRequest) {
    node.capability_version = request.version;
    if !request.disco_key.is_zero() {
        node.disco_key = Some(request.disco_key);
    }
}

fn endpoints(request: &MapRequest) -> Vec<Endpoint> {
    let kinds = request
        .endpoint_types
        .iter()
        .copied()
        .chain(std::iter::repeat(EndpointType::UNKNOWN));
    let endpoints = request.endpoints.iter().zip(kinds).take(ENDPOINT_LIMIT);
    endpoints
        .map(|(addr, kind)| Endpoint { addr: *addr, kind })
        .collect()
}

fn changes(world: &World, context: &Context, old: &Node, next: Node) -> Vec<Change> {
    if *old == next {
        Vec::new()
    } else {
        replacement(world, context, &Arc::new(next))
    }
}
