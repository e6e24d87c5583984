//! Changes, and whom they concern.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, OnceLock};

use ipnet::IpNet;
use tailwharf_wire::tailcfg::NodeId;

use super::bits::Bits;
use super::peers::speaks_of;
use super::plan::{PartyId, RulePlan, Side};
use super::{Affected, Change, Entry, Graph, Slot, SourceAddresses, Visibility};
use crate::{Node, Policy};

/// Whom a change concerns, by slot.
#[derive(Default)]
pub(super) struct Concerned {
    pub(super) filters: Bits,
    ssh: Bits,
    steering: Bits,
}

impl Graph {
    /// Applies one change and says whom it concerns. The work follows the number of nodes that are concerned; only a new
    /// policy is applied to all.
    pub fn apply(&mut self, change: Change) -> Affected {
        match change {
            Change::PutUser(user) => {
                let id = user.id;
                self.users.insert_mut(id, user);
                self.refresh(self.devices_of(Some(id)).collect())
            }
            Change::DeleteUser(id) => {
                self.users.remove_mut(&id);
                self.refresh(self.devices_of(Some(id)).collect())
            }
            Change::PutNode(node) => {
                let slot = self.take_slot(node.id);
                self.replace(slot, Some(Arc::new(node)))
            }
            Change::DeleteNode(id) => match self.by_id.get(&id).copied() {
                Some(slot) => self.replace(slot, None),
                None => Affected::default(),
            },
            Change::PutService(service) => {
                let name = service.name.clone();
                self.services.insert_mut(name.clone(), Arc::new(service));
                self.refresh(self.hosts_of(&name))
            }
            Change::DeleteService(name) => {
                self.services.remove_mut(&name);
                self.refresh(self.hosts_of(&name))
            }
            Change::SetPolicy(policy) => self.set_policy(policy),
        }
    }

    fn hosts_of(&self, service: &str) -> BTreeSet<Slot> {
        self.hosts.get(service).cloned().unwrap_or_default()
    }

    /// Classifies nodes anew, after something changed that they refer to.
    fn refresh(&mut self, slots: BTreeSet<Slot>) -> Affected {
        let mut affected = Affected::default();
        for slot in slots {
            if let Some(node) = self.entry(slot).map(|entry| Arc::clone(&entry.node)) {
                affected.extend(self.replace(slot, Some(node)));
            }
        }
        affected
    }

    /// Puts a node into a slot, or takes the one there out.
    fn replace(&mut self, slot: Slot, node: Option<Arc<Node>>) -> Affected {
        let old = self.entry(slot).cloned();
        let new = node.map(|node| self.classify(node));
        let Some(id) = new.as_ref().or(old.as_ref()).map(|entry| entry.node.id) else {
            return Affected::default();
        };
        let peers = self.peer_slots(slot);
        let mut concerned = Concerned::default();
        let (before, after) = (old.as_ref(), new.as_ref());
        let parties = union(before, after);
        let changed: Vec<PartyId> = parties
            .iter()
            .copied()
            .filter(|party| self.differs(before, after, *party))
            .collect();
        self.note_own_devices(&parties, before, after, &mut concerned);
        self.note_routers(before, after, &mut concerned);
        for party in &parties {
            let present = after.is_some_and(|entry| entry.parties.binary_search(party).is_ok());
            if let Some(state) = self.parties.get_mut(*party as usize)
                && state.members.contains(slot) != present
            {
                state.members.set(slot, present);
            }
        }
        self.register(slot, before, after);
        self.slots.set_mut(slot as usize, new.clone());
        for party in changed {
            self.note_source(party, &mut concerned);
        }
        self.note_routes(&mut concerned);
        self.note_own_devices(&parties, before, after, &mut concerned);
        self.note_routers(before, after, &mut concerned);
        if after.is_some() && target_differs(self, before, after) {
            concerned.filters.set(slot, true);
            concerned.ssh.set(slot, true);
        }
        let mut affected = Affected {
            filters: self.ids(&concerned.filters),
            ssh: self.ids(&concerned.ssh),
            steering: self.ids(&concerned.steering),
            visibility: self.visibility(id, &peers, &self.peer_slots(slot)),
            ..Affected::default()
        };
        let attributes = |entry: &Entry| self.attributes_of(entry);
        if after.is_some() && before.map(attributes) != after.map(attributes) {
            affected.capabilities.insert(id);
        }
        if new.is_none() {
            self.by_id.remove_mut(&id);
            Arc::make_mut(&mut self.free).push(slot);
        }
        affected
    }

    /// Whether a party has other addresses as a source because of what a node was and is.
    fn differs(&self, before: Option<&Entry>, after: Option<&Entry>, party: PartyId) -> bool {
        let contribution = |entry: Option<&Entry>| {
            let entry = entry.filter(|entry| entry.parties.binary_search(&party).is_ok());
            entry.map(|entry| (self.contribution(entry, party), entry.login.clone()))
        };
        let (before, after) = (contribution(before), contribution(after));
        let addresses = |side: &Option<(Vec<std::net::IpAddr>, Option<Arc<str>>)>| {
            side.as_ref()
                .map(|(addresses, _)| addresses.clone())
                .unwrap_or_default()
        };
        let has_ssh = !self.plan.party(party).ssh_from.is_empty();
        addresses(&before) != addresses(&after) || (has_ssh && before != after)
    }

    /// Notes who is led to from a party whose addresses changed, and forgets those addresses.
    fn note_source(&mut self, party: PartyId, concerned: &mut Concerned) {
        if let Some(state) = self.parties.get_mut(party as usize) {
            state.addresses = OnceLock::new();
        }
        let plan = self.plan.party(party);
        for reached in &plan.leads_to {
            concerned.filters.add(self.members(*reached));
        }
        self.note_recorders(party, concerned);
        for rule in plan.ssh_from.iter().chain(&plan.ssh_recorded) {
            concerned
                .ssh
                .add(self.members(self.plan.ssh[*rule as usize].target));
        }
        // The devices that `autogroup:self` means stand in no party.
        for rule in plan
            .ssh_recorded
            .iter()
            .map(|rule| &self.plan.ssh[*rule as usize])
        {
            if !rule.own {
                continue;
            }
            let sources = self
                .members(rule.source)
                .iter()
                .filter_map(|slot| self.entry(slot));
            for device in sources.flat_map(|source| self.devices_of(source.user)) {
                concerned.ssh.set(device, true);
            }
        }
    }

    /// Notes who has `*` as a source, if there are other routes than before.
    fn note_routes(&mut self, concerned: &mut Concerned) {
        let everywhere = self.cover_everywhere();
        if everywhere == *self.everywhere {
            return;
        }
        self.everywhere = Arc::new(everywhere);
        for party in self.plan.clone().everywhere.iter().copied() {
            self.note_source(party, concerned);
        }
    }

    /// Notes the devices of the same user that rules with `autogroup:self` open to this one.
    fn note_own_devices(
        &self,
        parties: &[PartyId],
        before: Option<&Entry>,
        after: Option<&Entry>,
        concerned: &mut Concerned,
    ) {
        let is_same = match (before, after) {
            (Some(before), Some(after)) => {
                before.login == after.login
                    && before.user == after.user
                    && before.node.addresses == after.node.addresses
                    && before.parties == after.parties
            }
            _ => false,
        };
        if is_same {
            return;
        }
        let opens = parties
            .iter()
            .map(|party| self.plan.party(*party))
            .any(|party| !party.own_rules.is_empty());
        for entry in before.iter().chain(&after) {
            for device in self.devices_of(entry.user) {
                if opens {
                    concerned.filters.set(device, true);
                }
                if !self.plan.own_ssh.is_empty() {
                    concerned.ssh.set(device, true);
                }
            }
        }
    }

    /// Notes the viewers of rules with `via`, if this node is one or routes for them.
    fn note_routers(&self, before: Option<&Entry>, after: Option<&Entry>, concerned: &mut Concerned) {
        if self.plan.via_rules.is_empty() {
            return;
        }
        let facts =
            |entry: Option<&Entry>| entry.map(|entry| (entry.node.routes.clone(), entry.node.owner.clone()));
        let routes_differ = facts(before) != facts(after);
        let is_in = |entry: Option<&Entry>, party: PartyId| {
            entry.is_some_and(|entry| entry.parties.binary_search(&party).is_ok())
        };
        for rule in self.plan.via_rules.iter().map(|rule| self.plan.rule(*rule)) {
            let mut routers = before.iter().chain(&after);
            let carries = routers.any(|entry| self.is_spoken_of(rule, &entry.node.routes));
            let viewer_differs = is_in(before, rule.source) != is_in(after, rule.source);
            if carries && routes_differ {
                concerned.steering.add(self.members(rule.source));
            }
            if viewer_differs && let Some(entry) = after.or(before) {
                concerned.steering.add(&self.slot_bits(entry.node.id));
            }
        }
    }

    /// Whether a rule has a destination behind one of these routes.
    fn is_spoken_of(&self, rule: &RulePlan, routes: &[IpNet]) -> bool {
        let mut sets = self.plan.party(rule.target).sets.iter();
        sets.any(|set| {
            routes
                .iter()
                .any(|route| speaks_of(&self.plan.set(*set).selector, route))
        })
    }

    fn slot_bits(&self, node: NodeId) -> Bits {
        let mut bits = Bits::default();
        if let Some(slot) = self.by_id.get(&node) {
            bits.set(*slot, true);
        }
        bits
    }

    /// The pairs in which a node became, or ceased to be, a peer.
    fn visibility(&self, node: NodeId, before: &Bits, after: &Bits) -> Vec<Visibility> {
        before
            .differing(after)
            .iter()
            .filter_map(|slot| {
                let other = self.entry(slot)?.node.id;
                Some(Visibility::new(node, other, after.contains(slot)))
            })
            .collect()
    }

    /// Puts a policy in force and compares what it says for each node with what was said before.
    fn set_policy(&mut self, policy: Arc<Policy>) -> Affected {
        let next = self.rebuilt(policy);
        let old = std::mem::replace(self, next);
        self.share_addresses(&old);
        let mut affected = Affected::default();
        let viewers = |graph: &Self| -> Bits {
            let rules = graph.plan.via_rules.iter().map(|rule| graph.plan.rule(*rule));
            rules.fold(Bits::default(), |mut all, rule| {
                all.add(graph.members(rule.source));
                all
            })
        };
        let mut steered = viewers(&old);
        steered.add(&viewers(self));
        affected.steering = self.ids(&steered);
        for (slot, entry) in (0..).zip(self.slots.iter()) {
            let Some(entry) = entry else { continue };
            let id = entry.node.id;
            if old.reduced(slot) != self.reduced(slot) {
                affected.filters.insert(id);
            }
            if old.cap_map_for(id) != self.cap_map_for(id) {
                affected.capabilities.insert(id);
            }
            if old.ssh_policy_for(id, Some("")) != self.ssh_policy_for(id, Some("")) {
                affected.ssh.insert(id);
            }
            let pairs = self.visibility(id, &old.peer_slots(slot), &self.peer_slots(slot));
            affected
                .visibility
                .extend(pairs.into_iter().filter(|pair| pair.a == id));
        }
        affected
    }

    /// Lets source parties share their addresses with equal ones of another graph, so that filters compare quickly.
    fn share_addresses(&mut self, other: &Self) {
        let known: HashSet<Arc<SourceAddresses>> = other
            .parties
            .iter()
            .filter_map(|party| party.addresses.get().cloned())
            .collect();
        for party in 0..u32::try_from(self.parties.len()).unwrap_or(u32::MAX) {
            if self.plan.party(party).rules_from.is_empty() {
                continue;
            }
            let found = self.find_addresses(party);
            let shared = known.get(&found).cloned().unwrap_or_else(|| Arc::new(found));
            if let Some(state) = self.parties.get_mut(party as usize) {
                state.addresses = OnceLock::from(shared);
            }
        }
    }
}

/// The parties that a node was in or is in, in order.
fn union(before: Option<&Entry>, after: Option<&Entry>) -> Vec<PartyId> {
    let all = before.iter().chain(&after).flat_map(|entry| &entry.parties);
    let parties: BTreeSet<PartyId> = all.copied().collect();
    parties.into_iter().collect()
}

/// Whether what a node may be reached at and by which selectors differs.
fn target_differs(graph: &Graph, before: Option<&Entry>, after: Option<&Entry>) -> bool {
    let (Some(before), Some(after)) = (before, after) else {
        return true;
    };
    let is_target = |set: &&u32| matches!(graph.plan.set(**set).side, Side::Target(_));
    // A tag may name the node or only a service that it hosts, in one and the same set.
    before.node.owner != after.node.owner
        || before.user != after.user
        || before.services != after.services
        || before.node.addresses != after.node.addresses
        || before.node.routes != after.node.routes
        || !before
            .sets
            .iter()
            .filter(is_target)
            .eq(after.sets.iter().filter(is_target))
}
