//! Which node serves a route, where several offer it.
//!
//! A client sends a prefix to one peer only. The one chosen keeps the route as long as it can be relied on, so that a node that comes back does not
//! move connections; without any such node the last one keeps it.

use std::{collections::BTreeSet, sync::Arc};

use ipnet::IpNet;
use rpds::RedBlackTreeMapSync as Table;
use tailwharf_wire::tailcfg::NodeId;

use crate::world::World;

/// The serving node of each route. Exit routes are not among them: each exit node has both.
#[derive(Clone, Debug, Default)]
pub(crate) struct Primaries {
    offers: Table<IpNet, Arc<BTreeSet<NodeId>>>,
    offered: Table<NodeId, Arc<BTreeSet<IpNet>>>,
    holder: Table<IpNet, NodeId>,
    held: Table<NodeId, Arc<Vec<IpNet>>>,
}

impl Primaries {
    /// The routes that a node serves, in order.
    pub(crate) fn of(&self, id: NodeId) -> &[IpNet] {
        self.held.get(&id).map_or(&[], |routes| routes.as_slice())
    }

    /// Takes up what has changed at some nodes, and says which nodes serve other routes than before.
    pub(crate) fn settle(&mut self, world: &World, changed: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        let mut concerned = BTreeSet::new();
        for id in changed {
            let offered: BTreeSet<IpNet> = world
                .node(*id)
                .into_iter()
                .flat_map(|node| node.enabled_routes())
                .filter(|route| !is_exit(route))
                .collect();
            let former = self.offered.get(id).cloned().unwrap_or_default();
            for route in former.difference(&offered) {
                self.withdraw(*id, route);
            }
            for route in offered.difference(&former) {
                let mut nodes = self.offers.get(route).cloned().unwrap_or_default();
                Arc::make_mut(&mut nodes).insert(*id);
                self.offers.insert_mut(*route, nodes);
            }
            concerned.extend(former.union(&offered).copied());
            if offered.is_empty() {
                self.offered.remove_mut(id);
            } else if *former != offered {
                self.offered.insert_mut(*id, Arc::new(offered));
            }
        }
        let mut moved = BTreeSet::new();
        for route in concerned {
            let former = self.holder.get(&route).copied();
            let next = self.elect(world, &route, former);
            if next != former {
                self.hand_over(route, former, next);
                moved.extend(former.into_iter().chain(next));
            }
        }
        moved
    }

    fn withdraw(&mut self, id: NodeId, route: &IpNet) {
        let Some(mut nodes) = self.offers.get(route).cloned() else {
            return;
        };
        Arc::make_mut(&mut nodes).remove(&id);
        if nodes.is_empty() {
            self.offers.remove_mut(route);
        } else {
            self.offers.insert_mut(*route, nodes);
        }
    }

    fn elect(&self, world: &World, route: &IpNet, former: Option<NodeId>) -> Option<NodeId> {
        let offers = self.offers.get(route)?;
        let former = former.filter(|id| offers.contains(id));
        former
            .filter(|id| world.is_dependable(*id))
            .or_else(|| offers.iter().copied().find(|id| world.is_dependable(*id)))
            .or(former)
            .or_else(|| offers.first().copied())
    }

    fn hand_over(&mut self, route: IpNet, from: Option<NodeId>, to: Option<NodeId>) {
        if let Some(from) = from {
            let mut routes = self.of(from).to_vec();
            routes.retain(|held| *held != route);
            if routes.is_empty() {
                self.held.remove_mut(&from);
            } else {
                self.held.insert_mut(from, Arc::new(routes));
            }
        }
        match to {
            Some(to) => {
                let mut routes = self.of(to).to_vec();
                routes.push(route);
                routes.sort_unstable();
                self.held.insert_mut(to, Arc::new(routes));
                self.holder.insert_mut(route, to);
            }
            None => {
                self.holder.remove_mut(&route);
            }
        }
    }

    /// Whether another node could take over a route of this one.
    pub(crate) fn has_rival(&self, id: NodeId) -> bool {
        self.offered.get(&id).is_some_and(|routes| {
            let mut offers = routes.iter().filter_map(|route| self.offers.get(route));
            offers.any(|nodes| nodes.len() > 1)
        })
    }
}

impl Primaries {
    /// The nodes of which each has a route that another has, too.
    pub(crate) fn contested(&self) -> impl Iterator<Item = NodeId> {
        let contested = self.offers.values().filter(|nodes| nodes.len() > 1);
        contested.flat_map(|nodes| nodes.iter().copied())
    }
}

/// Whether a route is half of an exit node.
pub(crate) fn is_exit(route: &IpNet) -> bool {
    route.prefix_len() == 0
}
