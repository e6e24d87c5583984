//! Policy and tailnet → the packet filter of each node.
//!
//! Each selector is resolved once, to the nodes it names and the addresses it covers; rules share the result. Each rule is
//! then entered at the nodes that it concerns, so that the questions about one node look at the rules of that node alone.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use ipnet::IpNet;
use tailwharf_wire::tailcfg::{CapGrant, CapMap, FilterRule, NetPortRange, NodeId, PortRange, UserId};

use crate::ipset::{IpRange, IpSet};
use crate::model::{Rule, WITH_PORTS};
use crate::resolve::Resolver;
use crate::{Owner, Policy, Tailnet};

/// The answers of a policy for a tailnet at one moment.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    /// In the order of the ids.
    nodes: Vec<NodeEntry>,
    rules: Vec<CompiledRule>,
    attributes: Vec<(Members, CapMap)>,
}

/// Indices of nodes, in order.
pub(crate) type Members = Vec<u32>;

/// What is kept of a node.
#[derive(Clone, Debug)]
pub(crate) struct NodeEntry {
    id: NodeId,
    /// None for tagged nodes.
    pub(crate) user: Option<UserId>,
    addresses: Vec<IpAddr>,
    /// Approved routes except those of exit nodes.
    pub(crate) routes: Vec<IpRange>,
    is_exit_node: bool,
    /// The rules that may let something reach this node, in order.
    inbound: Vec<u32>,
    /// The rules of which this node is a source.
    outbound: Vec<u32>,
}

#[derive(Clone, Debug)]
struct CompiledRule {
    sources: Sources,
    flows: Vec<CompiledFlow>,
    application: Option<CompiledApplication>,
    /// The nodes that it lets be reached, without those of `autogroup:self`.
    reached: Members,
    /// The nodes that it lets be reached by devices of the same user.
    reached_by_owner: Members,
}

/// Who may use a rule.
#[derive(Clone, Debug)]
pub(crate) struct Sources {
    /// Nodes with an address, or a route, among the sources.
    pub(crate) nodes: Members,
    pub(crate) ips: IpSet,
    /// `ips` in the form of packet filters.
    pub(crate) texts: Vec<String>,
}

#[derive(Clone, Debug)]
struct CompiledFlow {
    protocols: Vec<u8>,
    targets: Vec<(Target, Vec<PortRange>)>,
}

#[derive(Clone, Debug)]
struct CompiledApplication {
    targets: Vec<Target>,
    capabilities: CapMap,
}

/// Where a rule leads.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Any,
    /// The own addresses of some nodes.
    Nodes(Arc<Members>),
    Range(IpRange),
    /// Devices of the source's user.
    OwnDevices,
    Internet,
}

/// The protocols of a rule that names none: ICMP, TCP, UDP, ICMPv6.
const DEFAULT_PROTOCOLS: &[u8] = &[1, 6, 17, 58];

/// The public internet: everything but private, shared, link-local, loopback, multicast and reserved addresses.
static INTERNET: LazyLock<Vec<IpRange>> = LazyLock::new(|| {
    const TEXTS: &[&str] = &[
        "1.0.0.0-9.255.255.255",
        "11.0.0.0-100.63.255.255",
        "100.128.0.0-126.255.255.255",
        "128.0.0.0-169.253.255.255",
        "169.255.0.0-172.15.255.255",
        "172.32.0.0-192.167.255.255",
        "192.169.0.0-223.255.255.255",
        "2000::/3",
    ];
    TEXTS.iter().filter_map(|text| text.parse().ok()).collect()
});

/// Compiles a policy for a tailnet. The work grows with the nodes and with the sources and destinations of the rules, not
/// with pairs of nodes.
pub fn compile(policy: &Policy, tailnet: &Tailnet) -> Compiled {
    let allow_all = [Rule::allow_all()];
    let rules = policy.rules.as_deref().unwrap_or(&allow_all);
    let mut resolver = Resolver::new(policy, tailnet);
    let mut nodes: Vec<NodeEntry> = resolver.nodes.iter().map(|node| NodeEntry::new(node)).collect();
    let rules: Vec<CompiledRule> = rules
        .iter()
        .map(|rule| CompiledRule::new(rule, &mut resolver, &nodes))
        .collect();
    for (index, rule) in (0..).zip(&rules) {
        for &node in &rule.sources.nodes {
            nodes[node as usize].outbound.push(index);
        }
        let inbound: BTreeSet<u32> = rule
            .reached
            .iter()
            .chain(&rule.reached_by_owner)
            .copied()
            .collect();
        for node in inbound {
            nodes[node as usize].inbound.push(index);
        }
    }
    let mut attributes = Vec::with_capacity(policy.node_attributes.len());
    for entry in &policy.node_attributes {
        let targets: BTreeSet<u32> = entry
            .targets
            .iter()
            .flat_map(|target| resolver.members(target).to_vec())
            .collect();
        attributes.push((targets.into_iter().collect(), entry.attributes.clone()));
    }
    Compiled {
        nodes,
        rules,
        attributes,
    }
}

impl Compiled {
    /// The packet filter of a node: the rules that let something reach it, narrowed to what concerns it. Empty if nothing
    /// may, or if there is no such node.
    pub fn rules_for(&self, node: NodeId) -> Vec<FilterRule> {
        let mut filter = Vec::new();
        let Some(index) = self.index(node) else {
            return filter;
        };
        let entry = &self.nodes[index as usize];
        for rule in entry.inbound.iter().map(|rule| &self.rules[*rule as usize]) {
            self.add_rules(&mut filter, rule, index, entry);
        }
        filter
    }

    /// The capabilities that `nodeAttrs` gives to a node.
    pub fn attributes_of(&self, node: NodeId) -> CapMap {
        let mut merged = CapMap::new();
        let Some(index) = self.index(node) else {
            return merged;
        };
        for (_, attributes) in self
            .attributes
            .iter()
            .filter(|(targets, _)| targets.binary_search(&index).is_ok())
        {
            for (name, values) in attributes {
                merged.entry(name.clone()).or_default().extend_from_slice(values);
            }
        }
        merged
    }

    /// Whether two nodes are peers: one of them may reach the other.
    pub fn can_see(&self, a: NodeId, b: NodeId) -> bool {
        match (self.index(a), self.index(b)) {
            (Some(a), Some(b)) => a != b && (self.may_reach(a, b) || self.may_reach(b, a)),
            _ => false,
        }
    }

    /// All peers of a node, in the order of their ids.
    pub fn peers_of(&self, node: NodeId) -> Vec<NodeId> {
        let Some(index) = self.index(node) else {
            return Vec::new();
        };
        let entry = &self.nodes[index as usize];
        let mut peers: BTreeSet<u32> = BTreeSet::new();
        for rule in entry.inbound.iter().map(|rule| &self.rules[*rule as usize]) {
            peers.extend(
                rule.sources
                    .nodes
                    .iter()
                    .filter(|source| self.rule_joins(rule, **source, index)),
            );
        }
        for rule in entry.outbound.iter().map(|rule| &self.rules[*rule as usize]) {
            let reached = rule.reached.iter().chain(&rule.reached_by_owner);
            peers.extend(reached.filter(|target| self.rule_joins(rule, index, **target)));
        }
        peers.remove(&index);
        peers
            .into_iter()
            .map(|peer| self.nodes[peer as usize].id)
            .collect()
    }

    /// Whether the policy as a whole lets a packet pass, wherever its destination is. `protocol` is an IP protocol number;
    /// the port counts only for protocols that have ports.
    pub fn allows(&self, source: IpAddr, destination: IpAddr, protocol: u8, port: u16) -> bool {
        let sender = self.nodes.iter().find(|node| node.addresses.contains(&source));
        let receiver = (0..)
            .zip(&self.nodes)
            .find(|(_, node)| node.addresses.contains(&destination));
        let leads_there = |target: &Target| match target {
            Target::Any => true,
            Target::Nodes(members) => {
                receiver.is_some_and(|(index, _)| members.binary_search(&index).is_ok())
            }
            Target::Range(range) => range.contains(destination),
            Target::OwnDevices => match (
                sender.and_then(|node| node.user),
                receiver.and_then(|(_, node)| node.user),
            ) {
                (Some(a), Some(b)) => a == b,
                _ => false,
            },
            Target::Internet => INTERNET.iter().any(|range| range.contains(destination)),
        };
        let port_fits = |ports: &[PortRange]| {
            !WITH_PORTS.contains(&protocol) || ports.iter().any(|range| range.contains(port))
        };
        self.rules
            .iter()
            .filter(|rule| rule.sources.ips.contains(source))
            .flat_map(|rule| &rule.flows)
            .any(|flow| {
                let protocols = if flow.protocols.is_empty() {
                    DEFAULT_PROTOCOLS
                } else {
                    &flow.protocols
                };
                protocols.contains(&protocol)
                    && flow
                        .targets
                        .iter()
                        .any(|(target, ports)| leads_there(target) && port_fits(ports))
            })
    }

    fn index(&self, node: NodeId) -> Option<u32> {
        self.nodes
            .binary_search_by_key(&node, |entry| entry.id)
            .ok()
            .and_then(|index| u32::try_from(index).ok())
    }

    fn may_reach(&self, source: u32, target: u32) -> bool {
        let inbound = &self.nodes[target as usize].inbound;
        inbound
            .iter()
            .any(|rule| self.rule_joins(&self.rules[*rule as usize], source, target))
    }

    /// Whether the rule lets one node reach the other.
    fn rule_joins(&self, rule: &CompiledRule, source: u32, target: u32) -> bool {
        let has = |members: &Members, node: u32| members.binary_search(&node).is_ok();
        let same_user = || {
            let user = self.nodes[source as usize].user;
            user.is_some() && user == self.nodes[target as usize].user
        };
        has(&rule.sources.nodes, source)
            && (has(&rule.reached, target) || (has(&rule.reached_by_owner, target) && same_user()))
    }

    /// Adds what one rule says for one node: ports and capabilities, each for the rule's sources and, where
    /// `autogroup:self` is a destination, for the devices of the node's own user.
    fn add_rules(&self, filter: &mut Vec<FilterRule>, rule: &CompiledRule, index: u32, node: &NodeEntry) {
        let own = match node.user {
            Some(user) if rule.reached_by_owner.binary_search(&index).is_ok() => {
                self.addresses_of(rule, user)
            }
            _ => Vec::new(),
        };
        for (for_owner, sources) in [(false, &rule.sources.texts), (true, &own)] {
            if sources.is_empty() {
                continue;
            }
            for flow in &rule.flows {
                let targets = flow
                    .targets
                    .iter()
                    .filter(|(target, _)| matches!(target, Target::OwnDevices) == for_owner);
                let dst_ports: Vec<NetPortRange> = targets
                    .flat_map(|(target, ports)| net_ports(target, ports, index, node))
                    .collect();
                if !dst_ports.is_empty() {
                    let ip_proto = flow.protocols.iter().copied().map(i32::from).collect();
                    filter.push(FilterRule {
                        src_ips: sources.clone(),
                        dst_ports,
                        ip_proto,
                        ..FilterRule::default()
                    });
                }
            }
            let Some(application) = &rule.application else {
                continue;
            };
            let targets = application
                .targets
                .iter()
                .filter(|target| matches!(target, Target::OwnDevices) == for_owner);
            let dsts: BTreeSet<IpNet> = targets
                .flat_map(|target| own_prefixes(target, index, node))
                .collect();
            if !dsts.is_empty() {
                let cap_map = application.capabilities.clone();
                let grant = CapGrant {
                    dsts: dsts.into_iter().collect(),
                    cap_map,
                    ..CapGrant::default()
                };
                filter.push(FilterRule {
                    src_ips: sources.clone(),
                    cap_grant: vec![grant],
                    ..FilterRule::default()
                });
            }
        }
    }

    /// The addresses of those sources of a rule that belong to a user.
    fn addresses_of(&self, rule: &CompiledRule, user: UserId) -> Vec<String> {
        let nodes = rule
            .sources
            .nodes
            .iter()
            .map(|index| &self.nodes[*index as usize]);
        let own = nodes.filter(|node| node.user == Some(user));
        own.flat_map(|node| node.addresses.iter().copied().map(IpRange::from))
            .collect::<IpSet>()
            .to_texts()
    }
}

/// The ports of a target as a filter of this node says them.
fn net_ports(target: &Target, ports: &[PortRange], index: u32, node: &NodeEntry) -> Vec<NetPortRange> {
    let own = || node.addresses.iter().map(IpAddr::to_string).collect();
    let ips: Vec<String> = match target {
        Target::Any => vec!["*".to_owned()],
        Target::Nodes(members) if members.binary_search(&index).is_ok() => own(),
        Target::Range(range) if node.answers_for(range) => vec![range.to_string()],
        Target::OwnDevices => own(),
        Target::Internet if node.is_exit_node => INTERNET.iter().map(IpRange::to_string).collect(),
        Target::Nodes(_) | Target::Range(_) | Target::Internet => Vec::new(),
    };
    let each = |ip: &String| {
        let ip = ip.clone();
        ports.iter().map(move |ports| NetPortRange {
            ip: ip.clone(),
            ports: *ports,
        })
    };
    ips.iter().flat_map(each).collect()
}

/// The own addresses of a node at which a target's capabilities are valid.
fn own_prefixes(target: &Target, index: u32, node: &NodeEntry) -> Vec<IpNet> {
    let valid = |ip: &IpAddr| match target {
        Target::Any | Target::OwnDevices => true,
        Target::Nodes(members) => members.binary_search(&index).is_ok(),
        Target::Range(range) => range.contains(*ip),
        Target::Internet => false,
    };
    node.addresses
        .iter()
        .filter(|ip| valid(ip))
        .copied()
        .map(IpNet::from)
        .collect()
}

impl NodeEntry {
    fn new(node: &crate::Node) -> Self {
        let (exit, routes): (Vec<IpNet>, Vec<IpNet>) =
            node.routes.iter().partition(|route| route.prefix_len() == 0);
        Self {
            id: node.id,
            user: match node.owner {
                Owner::User(user) => Some(user),
                Owner::Tags(_) => None,
            },
            addresses: node.addresses.clone(),
            routes: routes.into_iter().map(IpRange::from).collect(),
            is_exit_node: !exit.is_empty(),
            inbound: Vec::new(),
            outbound: Vec::new(),
        }
    }

    /// Whether traffic to the range may arrive at this node. The routes of an exit node count only if all of a family is
    /// meant: the internet is opened by name, not by way of a rule for some other network.
    pub(crate) fn answers_for(&self, range: &IpRange) -> bool {
        self.addresses.iter().any(|ip| range.contains(*ip))
            || self.routes.iter().any(|route| route.overlaps(range))
            || (self.is_exit_node && range.is_everything())
    }
}

impl CompiledRule {
    fn new<'a>(rule: &'a Rule, resolver: &mut Resolver<'a>, nodes: &[NodeEntry]) -> Self {
        let sources = resolver.sources(rule, nodes);
        let destinations = || {
            let flows = rule
                .flows
                .iter()
                .flat_map(|flow| flow.targets.iter().map(|(selector, _)| selector));
            flows.chain(
                rule.application
                    .iter()
                    .flat_map(|application| &application.destinations),
            )
        };
        let mut reached = BTreeSet::new();
        for selector in destinations() {
            reached.extend(resolver.reached(selector, nodes).iter().copied());
        }
        let mut flows = Vec::with_capacity(rule.flows.len());
        for flow in &rule.flows {
            let mut targets = Vec::with_capacity(flow.targets.len());
            for (selector, ports) in &flow.targets {
                targets.push((resolver.target(selector), ports.clone()));
            }
            flows.push(CompiledFlow {
                protocols: flow.protocols.clone(),
                targets,
            });
        }
        let application = rule.application.as_ref().map(|application| CompiledApplication {
            targets: application
                .destinations
                .iter()
                .map(|selector| resolver.target(selector))
                .collect(),
            capabilities: application.capabilities.clone(),
        });
        let own_devices = destinations().any(|selector| selector.is_own_devices());
        let reached_by_owner = match own_devices {
            true => resolver.devices_of_same_users(&sources.nodes, nodes),
            false => Members::new(),
        };
        Self {
            sources,
            flows,
            application,
            reached: reached.into_iter().collect(),
            reached_by_owner,
        }
    }
}
