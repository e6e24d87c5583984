//! What a node has to be told so that it sees a new world instead of an old one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tailwharf_wire::tailcfg::{MapResponse, Node as WireNode, NodeId, PeerChange, UserId};

use super::{
    Dirty,
    view::{View, profile, profile_id},
};
use crate::world::World;

/// The message that takes `me` from what it saw in `old` to what it sees in `new`; `None` when that is the same.
///
/// Only what `dirty` names is compared. A message keeps to what official clients expect: full nodes where a patch cannot say it, profiles with the
/// nodes that need them, everything sorted by id.
pub(crate) fn delta(old: &World, new: &World, me: NodeId, dirty: &Dirty) -> Option<MapResponse> {
    let (old, new) = (View { world: old, me }, View { world: new, me });
    let mut message = MapResponse::default();
    let peers: Vec<NodeId> = if dirty.everything {
        let mut all: Vec<NodeId> = old.peers().chain(new.peers()).map(|node| node.id).collect();
        all.sort_unstable();
        all.dedup();
        all
    } else {
        dirty.nodes.iter().copied().filter(|id| *id != me).collect()
    };
    for id in peers {
        compare_peer(&old, &new, id, &mut message);
    }
    if dirty.everything || dirty.nodes.contains(&me) {
        compare_self(&old, &new, &mut message);
    }
    let may_filter_differ = dirty.everything || !Arc::ptr_eq(old.world.compiled(), new.world.compiled());
    if may_filter_differ && old.filter() != new.filter() {
        message.packet_filters = Some(new.filters());
    }
    compare_profiles(&old, &new, dirty.everything, &mut message);
    (message != MapResponse::default()).then_some(message)
}

fn compare_peer(old: &View<'_>, new: &View<'_>, id: NodeId, message: &mut MapResponse) {
    match (old.peer(id), new.peer(id)) {
        (None, None) => {}
        (Some(_), None) => message.peers_removed.push(id),
        (None, Some(peer)) => message.peers_changed.push(new.peer_message(peer)),
        (Some(former), Some(peer)) => {
            let (former, peer) = (old.peer_message(former), new.peer_message(peer));
            if former == peer {
                return;
            }
            let patch = difference(&former, &peer);
            if is_expressed_by(&former, &peer, &patch) {
                message.peers_changed_patch.push(patch);
            } else {
                message.peers_changed.push(peer);
            }
        }
    }
}

fn compare_self(old: &View<'_>, new: &View<'_>, message: &mut MapResponse) {
    let node = new.own_message();
    if node != old.own_message() {
        message.node = node;
    }
    let dns = new.dns();
    if dns != old.dns() {
        message.dns_config = Some(dns);
    }
}

/// Adds the profiles that the nodes of the message need, and those of visible users that changed.
///
/// Official clients show owners as they were in the last map that they built anew, and a profile alone does not make them build one: the node itself
/// does. So it comes along with a profile that is new.
fn compare_profiles(old: &View<'_>, new: &View<'_>, everything: bool, message: &mut MapResponse) {
    let mut needed: BTreeMap<UserId, bool> = message
        .peers_changed
        .iter()
        .chain(&message.node)
        .map(|node| (node.user, true))
        .collect();
    if everything {
        let visible = new.own().into_iter().chain(new.peers());
        for id in visible.map(profile_id) {
            needed
                .entry(id)
                .or_insert_with(|| profile(old.world, id) != profile(new.world, id));
        }
    }
    needed.retain(|_, needed| *needed);
    if needed.is_empty() {
        return;
    }
    let known: BTreeSet<UserId> = old.own().into_iter().chain(old.peers()).map(profile_id).collect();
    let is_news = |id: &UserId| !known.contains(id) || profile(old.world, *id) != profile(new.world, *id);
    if message.node.is_none() && needed.keys().any(is_news) {
        message.node = new.own_message();
    }
    message.user_profiles = needed
        .into_keys()
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
