//! A policy applied to a tailnet, kept up to date change by change.
//!
//! ```text
//! Policy ──Plan──► sets, parties, rules between parties          (once for each policy)
//! Node ──Lookup──► its sets ──► its parties                      (once for each change of the node)
//! party ──rules──► the parties it reaches, and is reached from   (edges: whom a change concerns)
//! ```
//!
//! A change of a node touches the parties that it is in, and what is led to from there. Nothing looks at all pairs of nodes.

mod access;
mod bits;
mod change;
mod filter;
mod lookup;
mod peers;
mod plan;
mod recorders;
mod replace;
mod ssh;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use ipnet::IpNet;
use rpds::{HashTrieMapSync, VectorSync};
use tailwharf_wire::tailcfg::{CapMap, NodeId, UserId};

use self::bits::Bits;
use self::lookup::Subject;
use self::plan::{PartyId, Plan, SetId};
use crate::ipset::{IpRange, IpSet};
use crate::{Node, Owner, Policy, Service, Tailnet, User};

pub use self::access::{Grant, Unfulfilled};
pub use self::change::{Affected, Change, Visibility};
pub(crate) use self::verdict::SshQuestion;

/// The answers of a policy for a tailnet. Cloning is cheap: clones share what no later change touches, so a snapshot can be
/// kept while the next one is made.
#[derive(Clone, Debug)]
pub struct Graph {
    policy: Arc<Policy>,
    plan: Arc<Plan>,
    /// The ranges that node addresses come from.
    prefixes: Arc<[IpNet]>,
    users: HashTrieMapSync<UserId, User>,
    services: HashTrieMapSync<String, Arc<Service>>,
    /// The nodes. A slot of a node that was deleted is used again.
    slots: VectorSync<Option<Entry>>,
    free: Arc<Vec<Slot>>,
    by_id: HashTrieMapSync<NodeId, Slot>,
    /// The devices of each user.
    devices: HashTrieMapSync<UserId, BTreeSet<Slot>>,
    /// The nodes that host each service.
    hosts: HashTrieMapSync<String, BTreeSet<Slot>>,
    /// How many nodes have each route, exit routes aside.
    routes: Arc<BTreeMap<IpNet, u32>>,
    /// What `*` covers as a source: the prefixes and all routes.
    everywhere: Arc<IpSet>,
    parties: VectorSync<Party>,
}

/// Number of a node inside a graph.
type Slot = u32;

/// What is kept of a node.
#[derive(Clone, Debug)]
struct Entry {
    node: Arc<Node>,
    /// The owner, if it is a user who exists, and that user's login.
    user: Option<UserId>,
    login: Option<Arc<str>>,
    /// The services that it hosts and that exist.
    services: Vec<Arc<Service>>,
    /// In order.
    sets: Vec<SetId>,
    /// In order.
    parties: Vec<PartyId>,
}

/// The nodes of a party.
#[derive(Clone, Debug, Default)]
struct Party {
    members: Bits,
    /// The addresses of the party as a source, once they were asked for.
    addresses: OnceLock<Arc<SourceAddresses>>,
}

/// The addresses of a party as a source.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
struct SourceAddresses {
    set: IpSet,
    /// In the form of packet filters.
    texts: Arc<Vec<String>>,
}

impl Graph {
    /// Applies a policy to a tailnet.
    pub fn new(policy: Arc<Policy>, tailnet: &Tailnet) -> Self {
        let mut graph = Self {
            plan: Arc::default(),
            policy: Arc::new(Policy::default()),
            prefixes: tailnet.prefixes.clone().into(),
            users: tailnet.users.iter().map(|user| (user.id, user.clone())).collect(),
            services: tailnet
                .services
                .iter()
                .map(|service| (service.name.clone(), Arc::new(service.clone())))
                .collect(),
            slots: VectorSync::new_sync(),
            free: Arc::default(),
            by_id: HashTrieMapSync::new_sync(),
            devices: HashTrieMapSync::new_sync(),
            hosts: HashTrieMapSync::new_sync(),
            routes: Arc::default(),
            everywhere: Arc::default(),
            parties: VectorSync::new_sync(),
        };
        for node in &tailnet.nodes {
            let slot = graph.take_slot(node.id);
            let entry = Entry {
                node: Arc::new(node.clone()),
                user: None,
                login: None,
                services: Vec::new(),
                sets: Vec::new(),
                parties: Vec::new(),
            };
            graph.register(slot, None, Some(&entry));
            graph.slots.set_mut(slot as usize, Some(entry));
        }
        graph.everywhere = Arc::new(graph.cover_everywhere());
        graph.rebuilt(policy)
    }

    /// The same tailnet under another policy. Nodes keep their slots.
    fn rebuilt(&self, policy: Arc<Policy>) -> Self {
        let plan = Arc::new(Plan::new(&policy));
        let mut next = Self {
            policy,
            plan,
            slots: VectorSync::new_sync(),
            parties: VectorSync::new_sync(),
            ..self.clone()
        };
        let mut members = vec![Bits::default(); next.plan.parties.len()];
        for (slot, entry) in (0..).zip(self.slots.iter()) {
            let entry = entry.as_ref().map(|entry| next.classify(Arc::clone(&entry.node)));
            for party in entry.iter().flat_map(|entry| &entry.parties) {
                members[*party as usize].set(slot, true);
            }
            next.slots.push_back_mut(entry);
        }
        next.parties = members
            .into_iter()
            .map(|members| Party {
                members,
                addresses: OnceLock::new(),
            })
            .collect();
        next
    }

    /// The policy in force.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// The capabilities that the policy gives to a node for itself: those of `nodeAttrs`, and the settings of the whole
    /// tailnet that are told as capabilities.
    pub fn cap_map_for(&self, node: NodeId) -> CapMap {
        let mut merged = CapMap::new();
        let Some(entry) = self.by_id.get(&node).and_then(|slot| self.entry(*slot)) else {
            return merged;
        };
        merged.clone_from(&self.plan.settings);
        for number in self.attributes_of(entry) {
            for (name, values) in &*self.plan.attributes[number as usize] {
                merged.entry(name.clone()).or_default().extend_from_slice(values);
            }
        }
        merged
    }

    /// The entries of `nodeAttrs` for a node, in order.
    fn attributes_of(&self, entry: &Entry) -> Vec<u32> {
        let parties = entry.parties.iter().map(|party| self.plan.party(*party));
        let mut numbers: Vec<u32> = parties.flat_map(|party| &party.attributes).copied().collect();
        numbers.sort_unstable();
        numbers
    }

    fn entry(&self, slot: Slot) -> Option<&Entry> {
        self.slots.get(slot as usize).and_then(Option::as_ref)
    }

    fn members(&self, party: PartyId) -> &Bits {
        static NOBODY: Bits = Bits::new();
        self.parties
            .get(party as usize)
            .map_or(&NOBODY, |party| &party.members)
    }

    /// The ids of nodes.
    fn ids(&self, slots: &Bits) -> BTreeSet<NodeId> {
        slots
            .iter()
            .filter_map(|slot| Some(self.entry(slot)?.node.id))
            .collect()
    }

    /// Nodes in the order of their ids.
    fn entries(&self, slots: &Bits) -> Vec<&Entry> {
        let mut entries: Vec<&Entry> = slots.iter().filter_map(|slot| self.entry(slot)).collect();
        entries.sort_unstable_by_key(|entry| entry.node.id);
        entries
    }

    /// The other devices of the user of a device, and itself.
    fn devices_of(&self, user: Option<UserId>) -> impl Iterator<Item = Slot> {
        let devices = user.and_then(|user| self.devices.get(&user));
        devices.into_iter().flatten().copied()
    }

    /// The slot of a node, a new one if it has none.
    fn take_slot(&mut self, node: NodeId) -> Slot {
        if let Some(slot) = self.by_id.get(&node) {
            return *slot;
        }
        let slot = Arc::make_mut(&mut self.free).pop().unwrap_or_else(|| {
            self.slots.push_back_mut(None);
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        self.by_id.insert_mut(node, slot);
        slot
    }

    /// Finds out what a node is to the policy.
    fn classify(&self, node: Arc<Node>) -> Entry {
        let user = match &node.owner {
            Owner::User(user) => self.users.get(user),
            Owner::Tags(_) | Owner::FunnelGateway => None,
        };
        let services: Vec<Arc<Service>> = node
            .services
            .iter()
            .filter_map(|name| self.services.get(name).cloned())
            .collect();
        let hosted: Vec<&Service> = services.iter().map(AsRef::as_ref).collect();
        let subject = Subject {
            node: &node,
            user,
            services: &hosted,
        };
        let sets = self.plan.lookup.sets_of(&self.policy, &self.plan, &subject);
        let mut parties: Vec<PartyId> = sets
            .iter()
            .flat_map(|set| self.plan.parties_of(*set))
            .copied()
            .collect();
        parties.sort_unstable();
        parties.dedup();
        Entry {
            user: user.map(|user| user.id),
            login: user.map(|user| user.login.as_str().into()),
            services,
            sets,
            parties,
            node,
        }
    }

    /// Keeps the tables by owner, service and route up to date with a node.
    fn register(&mut self, slot: Slot, old: Option<&Entry>, new: Option<&Entry>) {
        fn owner(entry: Option<&Entry>) -> Option<UserId> {
            match entry?.node.owner {
                Owner::User(user) => Some(user),
                Owner::Tags(_) | Owner::FunnelGateway => None,
            }
        }
        if owner(old) != owner(new) {
            put(&mut self.devices, owner(old), slot, false);
            put(&mut self.devices, owner(new), slot, true);
        }
        let services =
            |entry: Option<&Entry>| entry.map(|entry| entry.node.services.clone()).unwrap_or_default();
        let (before, after) = (services(old), services(new));
        for name in before.difference(&after) {
            put(&mut self.hosts, Some(name.clone()), slot, false);
        }
        for name in after.difference(&before) {
            put(&mut self.hosts, Some(name.clone()), slot, true);
        }
        let routes = |entry: Option<&Entry>| -> Vec<IpNet> {
            entry
                .into_iter()
                .flat_map(|entry| lookup::routed(&entry.node))
                .collect()
        };
        let (before, after) = (routes(old), routes(new));
        if before == after {
            return;
        }
        let counts = Arc::make_mut(&mut self.routes);
        for route in after {
            *counts.entry(route).or_default() += 1;
        }
        for route in before {
            if let Some(count) = counts.get_mut(&route) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&route);
                }
            }
        }
    }

    fn cover_everywhere(&self) -> IpSet {
        self.prefixes
            .iter()
            .chain(self.routes.keys())
            .copied()
            .map(IpRange::from)
            .collect()
    }

    /// The node that has an address of its own.
    fn holder_of(&self, ip: IpAddr) -> Option<(Slot, &Entry)> {
        let entries = (0..).zip(self.slots.iter());
        entries
            .filter_map(|(slot, entry)| Some((slot, entry.as_ref()?)))
            .find(|(_, entry)| entry.node.addresses.contains(&ip))
    }
}

/// Puts a slot into a table of slots, or takes it out.
fn put<K: Eq + std::hash::Hash>(
    table: &mut HashTrieMapSync<K, BTreeSet<Slot>>,
    key: Option<K>,
    slot: Slot,
    present: bool,
) {
    let Some(key) = key else { return };
    let mut slots = table.get(&key).cloned().unwrap_or_default();
    if present {
        slots.insert(slot);
    } else {
        slots.remove(&slot);
    }
    if slots.is_empty() {
        table.remove_mut(&key);
    } else {
        table.insert_mut(key, slots);
    }
}
