//! Who sees whom, and which routers lead where.

use ipnet::IpNet;
use tailwharf_wire::tailcfg::NodeId;

use super::bits::Bits;
use super::lookup::is_router_of;
use super::plan::Side;
use super::{Entry, Graph, Slot};
use crate::model::{Autogroup, Selector};

impl Graph {
    /// Whether two nodes are peers: one of them may reach the other.
    pub fn can_see(&self, a: NodeId, b: NodeId) -> bool {
        let slot = |node| self.by_id.get(node).copied();
        match (slot(&a), slot(&b)) {
            (Some(a), Some(b)) => a != b && (self.may_reach(a, b) || self.may_reach(b, a)),
            _ => false,
        }
    }

    /// All peers of a node, in the order of their ids.
    pub fn peers_of(&self, node: NodeId) -> Vec<NodeId> {
        let slot = self.by_id.get(&node);
        let peers = slot.map(|slot| self.ids(&self.peer_slots(*slot)));
        peers.unwrap_or_default().into_iter().collect()
    }

    fn may_reach(&self, from: Slot, to: Slot) -> bool {
        let (Some(source), Some(target)) = (self.entry(from), self.entry(to)) else {
            return false;
        };
        let leads = |party: &u32| {
            let reached = &self.plan.party(*party).leads_to;
            match reached.len() <= target.parties.len() {
                true => reached.iter().any(|party| self.members(*party).contains(to)),
                false => target
                    .parties
                    .iter()
                    .any(|party| reached.binary_search(party).is_ok()),
            }
        };
        source.parties.iter().any(leads) || (same_user(source, target) && self.is_own_source(from))
    }

    /// Whether a rule lets this device reach the other devices of its user.
    fn is_own_source(&self, slot: Slot) -> bool {
        self.plan
            .own_parties
            .iter()
            .any(|party| self.members(*party).contains(slot))
    }

    /// The peers of a node.
    pub(super) fn peer_slots(&self, slot: Slot) -> Bits {
        let mut peers = Bits::default();
        let Some(entry) = self.entry(slot) else {
            return peers;
        };
        let mut seen = vec![false; self.plan.parties.len()];
        for party in &entry.parties {
            let party = self.plan.party(*party);
            for other in party.leads_to.iter().chain(&party.led_from) {
                if !std::mem::replace(&mut seen[*other as usize], true) {
                    peers.add(self.members(*other));
                }
            }
        }
        if !self.plan.own_parties.is_empty() {
            let is_source = self.is_own_source(slot);
            for device in self.devices_of(entry.user) {
                if is_source || self.is_own_source(device) {
                    peers.set(device, true);
                }
            }
        }
        peers.set(slot, false);
        peers
    }

    /// What the grants with `via` say about a viewer's use of a route of a router: `Some(true)` if the viewer must use this
    /// router for it, `Some(false)` if it must use others, `None` if they say nothing or it has no such route. `0.0.0.0/0` and `::/0` are the routes
    /// of exit nodes.
    pub fn steering(&self, viewer: NodeId, router: NodeId, route: &IpNet) -> Option<bool> {
        let viewer = *self.by_id.get(&viewer)?;
        let router = self.entry(*self.by_id.get(&router)?)?;
        if !router.node.routes.contains(route) {
            return None;
        }
        let mut verdict = None;
        for rule in self.plan.via_rules.iter().map(|rule| self.plan.rule(*rule)) {
            if !self.members(rule.source).contains(viewer) {
                continue;
            }
            for set in &self.plan.party(rule.target).sets {
                let key = self.plan.set(*set);
                let (true, Side::Target(via)) = (speaks_of(&key.selector, route), key.side) else {
                    continue;
                };
                if is_router_of(&router.node, &self.plan.via[via as usize]) {
                    return Some(true);
                }
                verdict = Some(false);
            }
        }
        verdict
    }
}

/// Whether a destination lies behind a route.
pub(super) fn speaks_of(selector: &Selector, route: &IpNet) -> bool {
    let is_exit = route.prefix_len() == 0;
    match selector {
        Selector::Auto(Autogroup::Internet) => is_exit,
        Selector::Addresses(set) if is_exit => set.has_everything(),
        Selector::Addresses(set) => set.overlaps(&(*route).into()),
        _ => false,
    }
}

/// Whether two nodes are devices of one user.
pub(super) fn same_user(a: &Entry, b: &Entry) -> bool {
    a.user.is_some() && a.user == b.user
}
