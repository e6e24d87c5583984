//! Selectors → the nodes they name and the addresses they cover.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tailwharf_wire::tailcfg::UserId;

use crate::compile::{Members, NodeEntry, Sources, Target};
use crate::ipset::{IpRange, IpSet};
use crate::model::{Autogroup, Rule, Selector};
use crate::{Node, Owner, Policy, Tag, Tailnet, User};

/// Indices over a tailnet, and what each selector was resolved to.
pub(crate) struct Resolver<'a> {
    policy: &'a Policy,
    /// In the order of the ids, as everywhere in a compiled policy.
    pub(crate) nodes: Vec<&'a Node>,
    users: &'a [User],
    by_login: HashMap<String, UserId>,
    by_user: HashMap<UserId, Members>,
    by_tag: HashMap<&'a Tag, Members>,
    by_address: BTreeMap<IpAddr, u32>,
    routers: Members,
    exit_nodes: Members,
    /// What `*` covers as a source.
    everywhere: Vec<IpRange>,
    resolved: HashMap<&'a Selector, Arc<Members>>,
}

impl<'a> Resolver<'a> {
    pub(crate) fn new(policy: &'a Policy, tailnet: &'a Tailnet) -> Self {
        let mut nodes: Vec<&Node> = tailnet.nodes.iter().collect();
        nodes.sort_unstable_by_key(|node| node.id);
        let mut resolver = Self {
            policy,
            nodes: Vec::new(),
            users: &tailnet.users,
            by_login: tailnet
                .users
                .iter()
                .map(|user| (user.login.to_ascii_lowercase(), user.id))
                .collect(),
            by_user: HashMap::new(),
            by_tag: HashMap::new(),
            by_address: BTreeMap::new(),
            routers: Members::new(),
            exit_nodes: Members::new(),
            everywhere: tailnet.prefixes.iter().copied().map(IpRange::from).collect(),
            resolved: HashMap::new(),
        };
        for (index, node) in (0..).zip(&nodes) {
            match &node.owner {
                Owner::User(user) => resolver.by_user.entry(*user).or_default().push(index),
                Owner::Tags(tags) => {
                    for tag in tags {
                        resolver.by_tag.entry(tag).or_default().push(index);
                    }
                }
            }
            resolver
                .by_address
                .extend(node.addresses.iter().map(|ip| (*ip, index)));
            let (exit, routes): (Vec<IpNet>, Vec<IpNet>) =
                node.routes.iter().partition(|net| net.prefix_len() == 0);
            if !exit.is_empty() {
                resolver.exit_nodes.push(index);
            }
            if !routes.is_empty() {
                resolver.routers.push(index);
                resolver.everywhere.extend(routes.into_iter().map(IpRange::from));
            }
        }
        resolver.nodes = nodes;
        resolver
    }

    /// The nodes that a selector names. An address names the node that has it.
    pub(crate) fn members(&mut self, selector: &'a Selector) -> Arc<Members> {
        if let Some(members) = self.resolved.get(selector) {
            return Arc::clone(members);
        }
        let members = Arc::new(self.find_members(selector));
        self.resolved.insert(selector, Arc::clone(&members));
        members
    }

    fn find_members(&self, selector: &Selector) -> Members {
        match selector {
            Selector::Any | Selector::Auto(Autogroup::DangerAll) => {
                (0..).zip(&self.nodes).map(|(i, _)| i).collect()
            }
            Selector::User(login) => self.devices_of(self.by_login.get(login).copied()),
            Selector::Group(group) => {
                let logins = self.policy.groups.get(group).into_iter().flatten();
                self.devices_of(logins.filter_map(|login| self.by_login.get(login).copied()))
            }
            Selector::Tag(tag) => self.by_tag.get(tag).cloned().unwrap_or_default(),
            Selector::Range(range) => self.holders_of(range),
            Selector::Auto(Autogroup::Tagged) => union(self.by_tag.values()),
            Selector::Auto(Autogroup::Internet) => self.exit_nodes.clone(),
            Selector::Auto(Autogroup::OwnDevices) => Members::new(),
            Selector::Auto(group @ (Autogroup::Member | Autogroup::Admin | Autogroup::Owner)) => self
                .devices_of(
                    self.users
                        .iter()
                        .filter(|user| group.has_role(user.role))
                        .map(|user| user.id),
                ),
        }
    }

    fn devices_of(&self, users: impl IntoIterator<Item = UserId>) -> Members {
        union(users.into_iter().filter_map(|user| self.by_user.get(&user)))
    }

    /// The nodes with an address in the range.
    fn holders_of(&self, range: &IpRange) -> Members {
        let holders: BTreeSet<u32> = self
            .by_address
            .range(range.bounds())
            .map(|(_, index)| *index)
            .collect();
        holders.into_iter().collect()
    }

    /// The sources of a rule. With postures, only nodes that satisfy one count, for nothing is known of other addresses.
    pub(crate) fn sources(&mut self, rule: &'a Rule, entries: &[NodeEntry]) -> Sources {
        let mut named = BTreeSet::new();
        let mut ranges = Vec::new();
        for selector in &rule.sources {
            match selector {
                Selector::Any => ranges.extend_from_slice(&self.everywhere),
                Selector::Range(range) => ranges.push(*range),
                Selector::Auto(Autogroup::DangerAll) => {
                    ranges.extend(
                        [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())].map(IpRange::from),
                    );
                }
                _ => named.extend(self.members(selector).iter().copied()),
            }
        }
        let covered = &ranges.iter().copied().collect::<IpSet>();
        let holders = rule.sources.iter().filter(|selector| !selector.is_identity());
        let mut nodes: BTreeSet<u32> = holders
            .flat_map(|selector| self.members(selector).to_vec())
            .collect();
        nodes.extend(&named);
        if !rule.postures.is_empty() {
            nodes.retain(|index| {
                let attributes = &self.nodes[*index as usize].attributes;
                rule.postures
                    .iter()
                    .any(|posture| posture.iter().all(|assertion| assertion.holds(attributes)))
            });
            ranges.clear();
        }
        // A node that was named is meant with all its addresses; others only with those that were written.
        let addresses = nodes.iter().flat_map(|index| {
            let all = named.contains(index);
            self.nodes[*index as usize]
                .addresses
                .iter()
                .copied()
                .filter(move |ip| all || covered.contains(*ip))
        });
        let ips: IpSet = addresses
            .map(IpRange::from)
            .chain(ranges.iter().copied())
            .collect();
        // A router carries traffic of its routes, so it must see, and be seen by, those whom its routes may reach.
        for &index in &self.routers {
            if ranges.iter().any(|range| {
                entries[index as usize]
                    .routes
                    .iter()
                    .any(|route| route.overlaps(range))
            }) {
                nodes.insert(index);
            }
        }
        Sources {
            nodes: nodes.into_iter().collect(),
            texts: ips.to_texts(),
            ips,
        }
    }

    /// Where a destination leads.
    pub(crate) fn target(&mut self, selector: &'a Selector) -> Target {
        match selector {
            Selector::Any | Selector::Auto(Autogroup::DangerAll) => Target::Any,
            Selector::Range(range) => Target::Range(*range),
            Selector::Auto(Autogroup::OwnDevices) => Target::OwnDevices,
            Selector::Auto(Autogroup::Internet) => Target::Internet,
            _ => Target::Nodes(self.members(selector)),
        }
    }

    /// The nodes at which a destination arrives, without `autogroup:self`.
    pub(crate) fn reached(&mut self, selector: &'a Selector, entries: &[NodeEntry]) -> Arc<Members> {
        let members = self.members(selector);
        let Selector::Range(range) = selector else {
            return members;
        };
        let carriers = self.routers.iter().chain(&self.exit_nodes).copied();
        let routed: Members = carriers
            .filter(|index| entries[*index as usize].answers_for(range))
            .collect();
        Arc::new(union([&*members, &routed]))
    }

    /// The devices of all users who have one among the given nodes.
    pub(crate) fn devices_of_same_users(&self, nodes: &[u32], entries: &[NodeEntry]) -> Members {
        let users: HashSet<UserId> = nodes
            .iter()
            .filter_map(|index| entries[*index as usize].user)
            .collect();
        self.devices_of(users)
    }
}

/// All members of some sets, in order.
fn union<'m>(sets: impl IntoIterator<Item = &'m Members>) -> Members {
    let all: BTreeSet<u32> = sets.into_iter().flatten().copied().collect();
    all.into_iter().collect()
}
