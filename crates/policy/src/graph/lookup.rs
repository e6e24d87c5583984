//! Which sets a node belongs to.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

use super::plan::{Plan, SetId, SetKey, Side};
use crate::ipset::{IpRange, IpSet};
use crate::model::{Autogroup, Selector};
use crate::posture::Attributes;
use crate::{Node, Owner, Policy, Service, Tag, User};

/// A node with what is known of its owner and of what it hosts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subject<'a> {
    pub(super) node: &'a Node,
    /// The owner, if it is a user who exists.
    pub(super) user: Option<&'a User>,
    pub(super) services: &'a [&'a Service],
}

/// Finds the sets that may concern a node without looking at the others.
#[derive(Debug, Default)]
pub(super) struct Lookup {
    /// The sets of each selector.
    sets: Vec<Vec<SetId>>,
    /// `*` and the like.
    always: Vec<u32>,
    /// Login → selectors of the user and of groups with the user.
    users: HashMap<String, Vec<u32>>,
    domains: HashMap<String, u32>,
    autogroups: Vec<(Autogroup, u32)>,
    tags: HashMap<Tag, u32>,
    services: HashMap<String, u32>,
    prefixes: Prefixes,
}

/// Selectors by the prefixes that they are made of.
#[derive(Debug, Default)]
struct Prefixes {
    by_network: BTreeMap<(IpAddr, u8), Vec<u32>>,
    /// The lengths that there are.
    lengths: BTreeSet<u8>,
}

impl Prefixes {
    fn insert(&mut self, prefix: IpNet, selector: u32) {
        self.lengths.insert(prefix.prefix_len());
        self.by_network
            .entry((prefix.network(), prefix.prefix_len()))
            .or_default()
            .push(selector);
    }

    /// Adds the selectors that share an address with a prefix.
    fn overlapping(&self, prefix: IpNet, found: &mut BTreeSet<u32>) {
        let inside = (prefix.network(), 0)..=(prefix.broadcast(), u8::MAX);
        found.extend(self.by_network.range(inside).flat_map(|(_, selectors)| selectors));
        for length in self.lengths.range(..prefix.prefix_len()) {
            if let Ok(wider) = IpNet::new(prefix.network(), *length) {
                found.extend(
                    self.by_network
                        .get(&(wider.network(), *length))
                        .into_iter()
                        .flatten(),
                );
            }
        }
    }
}

impl Lookup {
    pub(super) fn new(policy: &Policy, plan: &Plan) -> Self {
        let mut lookup = Self::default();
        let mut ids: HashMap<&Selector, u32> = HashMap::new();
        for (set, key) in (0..).zip(&plan.sets) {
            let next = u32::try_from(ids.len()).unwrap_or(u32::MAX);
            let id = *ids.entry(&key.selector).or_insert(next);
            if id == next {
                lookup.sets.push(Vec::new());
                lookup.insert(policy, &key.selector, id);
            }
            lookup.sets[id as usize].push(set);
        }
        lookup
    }

    fn insert(&mut self, policy: &Policy, selector: &Selector, id: u32) {
        match selector {
            Selector::Any | Selector::Auto(Autogroup::DangerAll) => self.always.push(id),
            Selector::User(login) => self.users.entry(login.clone()).or_default().push(id),
            Selector::Domain(domain) => {
                self.domains.insert(domain.clone(), id);
            }
            Selector::Group(group) => {
                for login in policy.groups.get(group).into_iter().flatten() {
                    self.users.entry(login.clone()).or_default().push(id);
                }
            }
            Selector::Tag(tag) => {
                self.tags.insert(tag.clone(), id);
            }
            Selector::Service(name) => {
                self.services.insert(name.clone(), id);
            }
            Selector::Addresses(set) => {
                for prefix in set.ranges().iter().flat_map(IpRange::prefixes) {
                    self.prefixes.insert(prefix, id);
                }
            }
            Selector::Auto(group) => self.autogroups.push((*group, id)),
        }
    }

    /// The sets that a node belongs to, in order.
    pub(super) fn sets_of(&self, policy: &Policy, plan: &Plan, subject: &Subject<'_>) -> Vec<SetId> {
        let mut postures = vec![None; plan.postures.len()];
        let mut sets: Vec<SetId> = self
            .candidates(subject)
            .into_iter()
            .flat_map(|selector| &self.sets[selector as usize])
            .copied()
            .filter(|set| {
                let key = plan.set(*set);
                subject.belongs(policy, plan, key)
                    && satisfies(plan, key, &subject.node.attributes, &mut postures)
            })
            .collect();
        sets.sort_unstable();
        sets
    }

    /// The selectors that may name the node; all that do are among them.
    fn candidates(&self, subject: &Subject<'_>) -> BTreeSet<u32> {
        let mut found: BTreeSet<u32> = self.always.iter().copied().collect();
        if let Some(user) = subject.user {
            let login = user.login.to_ascii_lowercase();
            found.extend(self.users.get(&login).into_iter().flatten());
            found.extend(domain_of(&login).and_then(|domain| self.domains.get(domain)));
        }
        if let Owner::Tags(tags) = &subject.node.owner {
            found.extend(tags.iter().filter_map(|tag| self.tags.get(tag)));
        }
        for service in subject.services {
            found.extend(self.services.get(&service.name));
            found.extend(service.tags.iter().filter_map(|tag| self.tags.get(tag)));
        }
        found.extend(self.autogroups.iter().map(|(_, selector)| selector));
        for ip in subject.addresses() {
            self.prefixes.overlapping(ip.into(), &mut found);
        }
        for route in &subject.node.routes {
            self.prefixes.overlapping(route.trunc(), &mut found);
        }
        found
    }
}

/// The domain of a login.
fn domain_of(login: &str) -> Option<&str> {
    login.rsplit_once('@').map(|(_, domain)| domain)
}

/// Whether a node with these attributes satisfies the postures of a set. `known` keeps what was found out.
fn satisfies(plan: &Plan, key: &SetKey, attributes: &Attributes, known: &mut [Option<bool>]) -> bool {
    let Side::Source(choice @ 1..) = key.side else {
        return true;
    };
    *known[choice as usize].get_or_insert_with(|| {
        plan.postures[choice as usize]
            .iter()
            .any(|posture| posture.holds(attributes))
    })
}

impl Subject<'_> {
    /// The own addresses and those of the services that the node hosts.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let virtual_ips = self.services.iter().flat_map(|service| &service.addresses);
        self.node.addresses.iter().chain(virtual_ips).copied()
    }

    /// Whether a selector names the node by whose it is.
    fn is_named(&self, policy: &Policy, selector: &Selector) -> bool {
        let login = || self.user.map(|user| user.login.to_ascii_lowercase());
        match selector {
            Selector::User(name) => login().as_ref() == Some(name),
            Selector::Domain(domain) => login().is_some_and(|login| domain_of(&login) == Some(domain)),
            Selector::Group(group) => {
                let members = policy.groups.get(group);
                members.is_some_and(|members| login().is_some_and(|login| members.contains(&login)))
            }
            Selector::Tag(tag) => matches!(&self.node.owner, Owner::Tags(tags) if tags.contains(tag)),
            Selector::Auto(Autogroup::Tagged) => {
                matches!(&self.node.owner, Owner::Tags(tags) if !tags.is_empty())
            }
            Selector::Auto(Autogroup::FunnelGateway) => self.node.owner == Owner::FunnelGateway,
            Selector::Auto(group) => self.user.is_some_and(|user| group.has_role(user.role)),
            Selector::Any | Selector::Addresses(_) | Selector::Service(_) => false,
        }
    }

    /// Whether the node belongs to a set, postures aside.
    pub(super) fn belongs(&self, policy: &Policy, plan: &Plan, key: &SetKey) -> bool {
        if self.node.owner == Owner::FunnelGateway {
            // What `*` and its address mean is for the devices of the tailnet.
            return key.selector == Selector::Auto(Autogroup::FunnelGateway);
        }
        match (&key.selector, key.side) {
            (Selector::Any | Selector::Auto(Autogroup::DangerAll), _) => true,
            (Selector::Addresses(set), Side::Source(postures)) => {
                self.holds(set) || (postures == 0 && self.routes_into(set))
            }
            (Selector::Addresses(set), Side::Target(0)) => {
                self.holds(set) || self.hosts_in(set) || self.carries(set)
            }
            (Selector::Addresses(set), Side::Target(via)) => self.is_via(plan, via) && self.carries(set),
            (Selector::Addresses(set), Side::Attributes) => self.holds(set),
            (Selector::Auto(Autogroup::Internet), Side::Target(via)) => {
                self.is_exit_node() && self.is_via(plan, via)
            }
            (Selector::Service(name), Side::Target(_)) => {
                self.services.iter().any(|service| service.name == *name)
            }
            (Selector::Tag(tag), Side::Target(_)) => {
                self.is_named(policy, &key.selector)
                    || self.services.iter().any(|service| service.tags.contains(tag))
            }
            (selector, _) => self.is_named(policy, selector),
        }
    }

    /// Whether one of the node's own addresses is in the set.
    fn holds(&self, set: &IpSet) -> bool {
        self.node.addresses.iter().any(|ip| set.contains(*ip))
    }

    /// Whether the node hosts a service with an address in the set.
    fn hosts_in(&self, set: &IpSet) -> bool {
        let mut virtual_ips = self.services.iter().flat_map(|service| &service.addresses);
        virtual_ips.any(|ip| set.contains(*ip))
    }

    /// Whether the node routes to an address of the set, exit routes aside.
    fn routes_into(&self, set: &IpSet) -> bool {
        routed(self.node).any(|route| set.overlaps(&route.into()))
    }

    /// Whether traffic to the set may arrive at this node on its way. Exit routes count only if all of a family is meant: the
    /// internet is opened by name, not by way of a rule for some other network.
    fn carries(&self, set: &IpSet) -> bool {
        self.routes_into(set) || (self.is_exit_node() && set.has_everything())
    }

    fn is_exit_node(&self) -> bool {
        is_exit_node(self.node)
    }

    fn is_via(&self, plan: &Plan, via: u32) -> bool {
        via == 0 || is_router_of(self.node, &plan.via[via as usize])
    }
}

/// Whether the node has one of the tags.
pub(super) fn is_router_of(node: &Node, via: &[Tag]) -> bool {
    matches!(&node.owner, Owner::Tags(tags) if via.iter().any(|tag| tags.contains(tag)))
}

/// The approved routes of a node except those of exit nodes.
pub(super) fn routed(node: &Node) -> impl Iterator<Item = IpNet> {
    node.routes.iter().filter(|route| route.prefix_len() > 0).copied()
}

/// Whether the node is an approved exit node.
pub(super) fn is_exit_node(node: &Node) -> bool {
    node.routes.iter().any(|route| route.prefix_len() == 0)
}
