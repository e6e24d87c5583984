//! What a node has to be told so that it sees a new world instead of an old one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tailwharf_wire::tailcfg::{Node as WireNode, NodeId, PeerChange, UserId};

use super::{
    Dirty,
    message::{Message, Told},
    view::{View, filters, known_users, profile},
};
use crate::world::World;

/// The message that takes `me` from what it saw in `old` to what it sees in `new`; `None` when that is the same.
///
/// Only what `dirty` names is compared. A message keeps to what official clients expect: full nodes where a patch cannot say it, profiles with the
/// nodes that need them, everything sorted by id.
pub(crate) fn delta(old: &World, new: &World, me: NodeId, dirty: &Dirty) -> Option<Message> {
    let (old, new) = (View { world: old, me }, View { world: new, me });
    let mut message = Message::default();
    if dirty.everything {
        compare_all_peers(&old, &new, &mut message);
    } else {
        for id in dirty.nodes.iter().filter(|id| **id != me) {
            compare_peer(&old, &new, *id, &mut message);
        }
    }
    if dirty.everything || dirty.own {
        compare_self(&old, &new, &mut message);
    }
    if dirty.everything || dirty.filter {
        let filter = new.filter();
        if filter != old.filter() {
            message.rest.packet_filters = Some(filters(filter));
        }
    }
    if dirty.everything && !Arc::ptr_eq(old.world.derp_map(), new.world.derp_map()) {
        message.rest.derp_map = Some(new.world.derp_map().as_ref().clone());
    }
    compare_profiles(&old, &new, dirty, &mut message);
    (!message.is_empty()).then_some(message)
}

fn compare_all_peers(old: &View<'_>, new: &View<'_>, message: &mut Message) {
    let mut former: BTreeMap<NodeId, Told> = old.peers().map(|peer| (peer.node().id, peer)).collect();
    for peer in new.peers() {
        match former.remove(&peer.node().id) {
            None => message.peers_changed.push(peer),
            Some(former) => tell(&former, peer, message),
        }
    }
    message.rest.peers_removed = former.into_keys().collect();
}

fn compare_peer(old: &View<'_>, new: &View<'_>, id: NodeId, message: &mut Message) {
    match (old.peer(id), new.peer(id)) {
        (None, None) => {}
        (Some(_), None) => message.rest.peers_removed.push(id),
        (None, Some(peer)) => message.peers_changed.push(peer),
        (Some(former), Some(peer)) => tell(&former, peer, message),
    }
}

/// Adds how a peer differs from what was told of it.
fn tell(former: &Told, peer: Told, message: &mut Message) {
    if former.is_same(&peer) || former.node() == peer.node() {
        return;
    }
    let patch = difference(former.node(), peer.node());
    if is_expressed_by(former.node(), peer.node(), &patch) {
        message.rest.peers_changed_patch.push(patch);
    } else {
        message.peers_changed.push(peer);
    }
}

fn compare_self(old: &View<'_>, new: &View<'_>, message: &mut Message) {
    let node = new.own_message();
    if node != old.own_message() {
        message.rest.node = node;
    }
    let dns = new.dns();
    if dns != old.dns() {
        message.rest.dns_config = Some(dns);
    }
    let ssh = new.ssh();
    if ssh != old.ssh() {
        // Absent would mean unchanged; a policy without rules lets nobody in.
        message.rest.ssh_policy = Some(ssh.unwrap_or_default());
    }
}

/// Adds the profiles that the nodes of the message need, and those of visible users that changed.
///
/// Official clients show owners as they were in the last map that they built anew, and a profile alone does not make them build one: the node itself
/// does. So it comes along with a profile that is new.
fn compare_profiles(old: &View<'_>, new: &View<'_>, dirty: &Dirty, message: &mut Message) {
    let has_changed = |id: &UserId| profile(old.world, *id) != profile(new.world, *id);
    let mut needed: BTreeSet<UserId> = message
        .peers_changed
        .iter()
        .map(|peer| peer.node().user)
        .collect();
    needed.extend(message.rest.node.iter().map(|node| node.user));
    if dirty.everything {
        needed.extend(known_users(new).into_iter().filter(has_changed));
    } else if dirty.users.iter().any(has_changed) {
        let visible = known_users(new);
        needed.extend(
            dirty
                .users
                .iter()
                .filter(|id| visible.contains(id) && has_changed(id)),
        );
    }
    if needed.is_empty() {
        return;
    }
    if message.rest.node.is_none() {
        let known = known_users(old);
        if needed.iter().any(|id| !known.contains(id) || has_changed(id)) {
            message.rest.node = new.own_message();
            needed.extend(message.rest.node.iter().map(|node| node.user));
        }
    }
    message.rest.user_profiles = needed
        .into_iter()
        .filter_map(|id| profile(new.world, id))
        .collect();
}

/// The fields of a patch that differ.
fn difference(old: &WireNode, new: &WireNode) -> PeerChange {
    PeerChange {
        node_id: new.id,
        derp_region: if old.home_derp == new.home_derp {
            Default::default()
        } else {
            new.home_derp
        },
        cap: if old.cap == new.cap {
            Default::default()
        } else {
            new.cap
        },
        endpoints: if old.endpoints == new.endpoints {
            Vec::new()
        } else {
            new.endpoints.clone()
        },
        key: (old.key != new.key).then_some(new.key),
        disco_key: (old.disco_key != new.disco_key).then_some(new.disco_key),
        online: if old.online == new.online {
            None
        } else {
            new.online
        },
        last_seen: if old.last_seen == new.last_seen {
            None
        } else {
            new.last_seen
        },
        key_expiry: if old.key_expiry == new.key_expiry {
            None
        } else {
            new.key_expiry
        },
        ..PeerChange::default()
    }
}

/// Whether `patch` makes `new` out of `old`. A patch cannot clear a field; that a node which is online was last seen at some time is no difference.
fn is_expressed_by(old: &WireNode, new: &WireNode, patch: &PeerChange) -> bool {
    let mut patched = old.clone();
    if !patch.derp_region.is_none() {
        patched.home_derp = patch.derp_region;
        patched.legacy_derp = format!("127.3.3.40:{}", patch.derp_region);
    }
    if patch.cap != Default::default() {
        patched.cap = patch.cap;
    }
    if !patch.endpoints.is_empty() {
        patched.endpoints.clone_from(&patch.endpoints);
    }
    patched.key = patch.key.unwrap_or(patched.key);
    patched.disco_key = patch.disco_key.unwrap_or(patched.disco_key);
    patched.online = patch.online.or(patched.online);
    patched.last_seen = if patched.online == Some(true) {
        None
    } else {
        patch.last_seen.or(patched.last_seen)
    };
    patched.key_expiry = patch.key_expiry.or(patched.key_expiry);
    patched == *new
}
