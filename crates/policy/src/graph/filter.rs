//! The packet filter of one node.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use ipnet::IpNet;
use tailwharf_wire::tailcfg::{CapGrant, CapMap, FilterRule, NetPortRange, NodeId, PortRange, UserId};

use super::lookup::{is_exit_node, routed};
use super::plan::{FlowPlan, PartyId, RuleId, RulePlan, SetId};
use super::{Entry, Graph, Slot, SourceAddresses};
use crate::ipset::{IpRange, IpSet};
use crate::model::{Autogroup, Selector};

/// The public internet: everything but private, shared, link-local, loopback, multicast and reserved addresses.
pub(super) static INTERNET: LazyLock<IpSet> = LazyLock::new(|| {
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
    TEXTS
        .iter()
        .filter_map(|text| text.parse::<IpRange>().ok())
        .collect()
});

/// A rule of a packet filter that shares what it can with those of other nodes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Reduced {
    sources: Arc<Vec<String>>,
    what: What,
}

#[derive(Clone, Debug, PartialEq)]
enum What {
    Ports(Vec<NetPortRange>, Vec<i32>),
    Capabilities(Vec<IpNet>, Arc<CapMap>),
}

impl From<Reduced> for FilterRule {
    fn from(rule: Reduced) -> Self {
        let src_ips = rule.sources.to_vec();
        match rule.what {
            What::Ports(dst_ports, ip_proto) => Self {
                src_ips,
                dst_ports,
                ip_proto,
                ..Self::default()
            },
            What::Capabilities(dsts, capabilities) => Self {
                src_ips,
                cap_grant: vec![CapGrant {
                    dsts,
                    cap_map: CapMap::clone(&capabilities),
                    ..CapGrant::default()
                }],
                ..Self::default()
            },
        }
    }
}

impl Graph {
    /// The packet filter of a node: the rules that let something reach it, narrowed to what concerns it. Empty if nothing
    /// may, or if there is no such node.
    pub fn rules_for(&self, node: NodeId) -> Vec<FilterRule> {
        let rules = self.by_id.get(&node).map(|slot| self.reduced(*slot));
        rules
            .unwrap_or_default()
            .into_iter()
            .map(FilterRule::from)
            .collect()
    }

    /// The packet filter of a node in the form that is cheap to compare.
    pub(super) fn reduced(&self, slot: Slot) -> Vec<Reduced> {
        let mut filter = Vec::new();
        let Some(entry) = self.entry(slot) else {
            return filter;
        };
        for (id, reached) in self.inbound(entry) {
            let rule = self.plan.rule(id);
            if reached {
                let sources = &self.addresses_of(rule.source).texts;
                self.add_rules(&mut filter, rule, false, sources, entry);
            }
            if rule.own
                && let Some(user) = entry.user
            {
                let sources = Arc::new(self.own_sources(rule.source, user).to_texts());
                self.add_rules(&mut filter, rule, true, &sources, entry);
            }
        }
        filter
    }

    /// The rules that may let something reach a node, in order, and whether they name it by more than `autogroup:self`.
    fn inbound(&self, entry: &Entry) -> Vec<(RuleId, bool)> {
        let mut rules: Vec<(RuleId, bool)> = Vec::new();
        for party in &entry.parties {
            rules.extend(self.plan.party(*party).rules_to.iter().map(|rule| (*rule, true)));
        }
        if entry.user.is_some() {
            for party in &self.plan.own_parties {
                rules.extend(
                    self.plan
                        .party(*party)
                        .own_rules
                        .iter()
                        .map(|rule| (*rule, false)),
                );
            }
        }
        // Of two entries for one rule, the one that names the node stays.
        rules.sort_unstable_by_key(|(rule, reached)| (*rule, !reached));
        rules.dedup_by_key(|(rule, _)| *rule);
        rules
    }

    /// Adds what one rule says for one node: ports and capabilities, for the sources given.
    fn add_rules(
        &self,
        filter: &mut Vec<Reduced>,
        rule: &RulePlan,
        own: bool,
        sources: &Arc<Vec<String>>,
        entry: &Entry,
    ) {
        if sources.is_empty() {
            return;
        }
        let mut add = |what| {
            filter.push(Reduced {
                sources: Arc::clone(sources),
                what,
            });
        };
        for flow in &rule.flows {
            let ports = self.net_ports(flow, own, entry);
            if !ports.is_empty() {
                let protocols = flow.protocols.iter().copied().map(i32::from).collect();
                add(What::Ports(ports, protocols));
            }
        }
        if let Some(capabilities) = &rule.capabilities {
            let targets = rule.targets.iter().filter(|target| target.is_none() == own);
            let prefixes: BTreeSet<IpNet> = targets
                .flat_map(|target| self.own_prefixes(*target, entry))
                .collect();
            if !prefixes.is_empty() {
                add(What::Capabilities(
                    prefixes.into_iter().collect(),
                    self.with_recorders(rule, capabilities),
                ));
            }
        }
    }

    /// The destinations of a flow as a filter of this node says them.
    fn net_ports(&self, flow: &FlowPlan, own: bool, entry: &Entry) -> Vec<NetPortRange> {
        let mut all = Vec::new();
        for (target, ports) in flow.targets.iter().filter(|(target, _)| target.is_none() == own) {
            for ip in self.destinations(*target, entry) {
                all.extend(ports.iter().map(|ports: &PortRange| NetPortRange {
                    ip: ip.clone(),
                    ports: *ports,
                }));
            }
        }
        all
    }

    /// The addresses of a target as a filter of this node says them. No set stands for the devices of the same user.
    fn destinations(&self, target: Option<SetId>, entry: &Entry) -> Vec<String> {
        let own = || entry.node.addresses.iter().map(IpAddr::to_string);
        let Some(set) = target else {
            return own().collect();
        };
        if entry.sets.binary_search(&set).is_err() {
            return Vec::new();
        }
        match &self.plan.set(set).selector {
            Selector::Any => vec!["*".to_owned()],
            Selector::Addresses(set) => {
                let relevant = |range: &&IpRange| entry.answers_for(range);
                set.ranges()
                    .iter()
                    .filter(relevant)
                    .map(ToString::to_string)
                    .collect()
            }
            Selector::Auto(Autogroup::Internet) => INTERNET.to_texts(),
            selector => entry.valid_addresses(selector).map(|ip| ip.to_string()).collect(),
        }
    }

    /// The own addresses of a node, and those of its services, at which a target's capabilities are valid.
    pub(super) fn own_prefixes(&self, target: Option<SetId>, entry: &Entry) -> Vec<IpNet> {
        let prefixes = |ips: &mut dyn Iterator<Item = IpAddr>| ips.map(IpNet::from).collect();
        let Some(set) = target else {
            return prefixes(&mut entry.node.addresses.iter().copied());
        };
        if entry.sets.binary_search(&set).is_err() {
            return Vec::new();
        }
        prefixes(&mut entry.valid_addresses(&self.plan.set(set).selector))
    }

    /// The addresses of a party as a source.
    pub(super) fn addresses_of(&self, party: PartyId) -> Arc<SourceAddresses> {
        let Some(state) = self.parties.get(party as usize) else {
            return Arc::default();
        };
        Arc::clone(
            state
                .addresses
                .get_or_init(|| Arc::new(self.find_addresses(party))),
        )
    }

    pub(super) fn find_addresses(&self, party: PartyId) -> SourceAddresses {
        let plan = self.plan.party(party);
        let mut ranges = plan.fixed.ranges().to_vec();
        if plan.has_everywhere {
            ranges.extend_from_slice(self.everywhere.ranges());
        }
        for slot in self.members(party).iter() {
            if let Some(entry) = self.entry(slot) {
                ranges.extend(self.contribution(entry, party).into_iter().map(IpRange::from));
            }
        }
        let set: IpSet = ranges.into_iter().collect();
        SourceAddresses {
            texts: Arc::new(set.to_texts()),
            set,
        }
    }

    /// The addresses that a node adds to a party that it is in, beyond those that belong to the party anyway. A node that was
    /// named is meant with all its addresses; others only with those that were written.
    pub(super) fn contribution(&self, entry: &Entry, party: PartyId) -> Vec<IpAddr> {
        let plan = self.plan.party(party);
        let own: Vec<&Selector> = plan
            .sets
            .iter()
            .filter(|set| entry.sets.binary_search(set).is_ok())
            .map(|set| &self.plan.set(*set).selector)
            .collect();
        let counts = |ip: &&IpAddr| {
            let ip = **ip;
            let written = own.iter().any(|selector| match selector {
                Selector::Any => self.everywhere.contains(ip),
                Selector::Addresses(set) => set.contains(ip),
                _ => true,
            });
            let anyway = plan.fixed.contains(ip) || (plan.has_everywhere && self.everywhere.contains(ip));
            written && !anyway
        };
        entry.node.addresses.iter().filter(counts).copied().collect()
    }

    /// The addresses of those sources of a rule that are devices of a user.
    fn own_sources(&self, party: PartyId, user: UserId) -> IpSet {
        let members = self.members(party);
        self.devices_of(Some(user))
            .filter(|slot| members.contains(*slot))
            .filter_map(|slot| self.entry(slot))
            .flat_map(|entry| entry.node.addresses.iter().copied().map(IpRange::from))
            .collect()
    }
}

impl Entry {
    /// The addresses of the services that the node hosts.
    pub(super) fn virtual_ips(&self) -> impl Iterator<Item = IpAddr> {
        self.services
            .iter()
            .flat_map(|service| &service.addresses)
            .copied()
    }

    /// Whether traffic to the range may arrive at this node.
    fn answers_for(&self, range: &IpRange) -> bool {
        self.node.addresses.iter().any(|ip| range.contains(*ip))
            || self.virtual_ips().any(|ip| range.contains(ip))
            || routed(&self.node).any(|route| range.overlaps(&route.into()))
            || (is_exit_node(&self.node) && range.is_everything())
    }

    /// The own addresses, and those of hosted services, that a selector to whose set the node belongs means.
    fn valid_addresses(&self, selector: &Selector) -> Box<dyn Iterator<Item = IpAddr> + '_> {
        let own = self.node.addresses.iter().copied();
        let hosted = |is_meant: &dyn Fn(&crate::Service) -> bool| -> Vec<IpAddr> {
            let services = self.services.iter().filter(|service| is_meant(service));
            services.flat_map(|service| service.addresses.clone()).collect()
        };
        match selector {
            Selector::Any => Box::new(own.chain(self.virtual_ips())),
            Selector::Addresses(set) => {
                let all: Vec<IpAddr> = own
                    .chain(self.virtual_ips())
                    .filter(|ip| set.contains(*ip))
                    .collect();
                Box::new(all.into_iter())
            }
            Selector::Tag(tag) => {
                let has_tag = matches!(&self.node.owner, crate::Owner::Tags(tags) if tags.contains(tag));
                let hosted = hosted(&|service| service.tags.contains(tag));
                Box::new(own.filter(move |_| has_tag).chain(hosted))
            }
            Selector::Service(name) => Box::new(hosted(&|service| service.name == *name).into_iter()),
            Selector::Auto(Autogroup::Internet) => Box::new(std::iter::empty()),
            _ => Box::new(own),
        }
    }
}
