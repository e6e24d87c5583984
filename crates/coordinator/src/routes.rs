//! Which node serves a route, where several offer it.
//!
//! A client sends a prefix to one peer only. The one chosen keeps the route as long as it is online, so that a node that comes back does not move
//! connections; without any online node the last one keeps it.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use tailwharf_wire::tailcfg::NodeId;

use crate::{model::Node, world::Presence};

/// The serving node of each route. Exit routes are not among them: each exit node has both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Primaries(BTreeMap<IpNet, NodeId>);

impl Primaries {
    /// The routes that a node serves.
    pub(crate) fn of(&self, id: NodeId) -> Vec<IpNet> {
        self.0
            .iter()
            .filter(|(_, holder)| **holder == id)
            .map(|(route, _)| *route)
            .collect()
    }

    /// The nodes that serve other routes than in `former`.
    pub(crate) fn differing(&self, former: &Self) -> BTreeSet<NodeId> {
        let lost = former
            .0
            .iter()
            .filter(|(route, id)| self.0.get(route) != Some(id));
        let won = self
            .0
            .iter()
            .filter(|(route, id)| former.0.get(route) != Some(id));
        lost.chain(won).map(|(_, id)| *id).collect()
    }
}

/// Whether a route is half of an exit node.
pub(crate) fn is_exit(route: &IpNet) -> bool {
    route.prefix_len() == 0
}

/// Whether a change of these nodes can move a route.
pub(crate) fn concern<'a>(
    primaries: &Primaries,
    changed: impl Iterator<Item = &'a std::sync::Arc<Node>>,
) -> bool {
    !primaries.0.is_empty()
        || changed
            .into_iter()
            .any(|node| node.enabled_routes().next().is_some())
}

/// Chooses the serving nodes anew. `nodes` come in the order of their ids.
pub(crate) fn elect<'a>(
    former: &Primaries,
    nodes: impl Iterator<Item = (&'a std::sync::Arc<Node>, Presence)>,
) -> Primaries {
    let mut offers: BTreeMap<IpNet, Vec<(NodeId, bool)>> = BTreeMap::new();
    for (node, presence) in nodes {
        let usable = presence.online && node.authorized && !presence.expired;
        for route in node.enabled_routes().filter(|route| !is_exit(route)) {
            offers.entry(route).or_default().push((node.id, usable));
        }
    }
    let choose = |route: &IpNet, offers: &[(NodeId, bool)]| {
        let former = former
            .0
            .get(route)
            .and_then(|id| offers.iter().find(|offer| offer.0 == *id));
        let kept = former.filter(|offer| offer.1);
        let online = offers.iter().find(|offer| offer.1);
        kept.or(online)
            .or(former)
            .or_else(|| offers.first())
            .map(|offer| offer.0)
    };
    Primaries(
        offers
            .iter()
            .filter_map(|(route, offers)| Some((*route, choose(route, offers)?)))
            .collect(),
    )
}
