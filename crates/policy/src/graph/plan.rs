//! What a policy means before it is known which nodes there are.
//!
//! Each selector of a rule becomes a *set* of nodes, each list of selectors a *party*: the union of sets. Rules lead from one
//! party to another. Sets and parties that are written several times are the same ones.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use tailwharf_wire::tailcfg::{CapMap, PortRange};

use super::lookup::Lookup;
use crate::ipset::IpSet;
use crate::model::{Autogroup, Postures, Rule, Selector, SshEntry};
use crate::{Policy, Tag};

/// Number of a set.
pub(super) type SetId = u32;
/// Number of a party.
pub(super) type PartyId = u32;
/// Number of a rule, in the order of the policy.
pub(super) type RuleId = u32;

/// Which nodes belong to a set.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct SetKey {
    pub(super) selector: Selector,
    pub(super) side: Side,
}

/// On which side of a rule a selector stands. That decides what a route of a node means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Side {
    /// As a source, with a choice of postures; see [`Plan::postures`].
    Source(u32),
    /// As a destination, by way of certain routers; see [`Plan::via`].
    Target(u32),
    /// As a target of node attributes.
    Attributes,
}

/// A union of sets.
#[derive(Clone, Debug, Default)]
pub(super) struct PartyPlan {
    /// In order.
    pub(super) sets: Vec<SetId>,
    /// Addresses that belong to the party whatever nodes there are. `*` is not among them.
    pub(super) fixed: IpSet,
    /// Whether `*` without postures is one of the sets.
    pub(super) has_everywhere: bool,
    /// The parties that this one is let reach, and those that are let reach this one, in order.
    pub(super) leads_to: Vec<PartyId>,
    pub(super) led_from: Vec<PartyId>,
    /// The rules of which this party is the source, or the target.
    pub(super) rules_from: Vec<RuleId>,
    pub(super) rules_to: Vec<RuleId>,
    /// The rules of which this party is the source, and which lead to devices of the same user.
    pub(super) own_rules: Vec<RuleId>,
    /// The same for SSH rules.
    pub(super) ssh_from: Vec<RuleId>,
    pub(super) ssh_to: Vec<RuleId>,
    /// The entries of `nodeAttrs` for this party.
    pub(super) attributes: Vec<u32>,
    /// SSH rules that record to this party.
    pub(super) ssh_recorded: Vec<RuleId>,
    /// Rules with capabilities that name the recorders of this party.
    pub(super) recorded: Vec<RuleId>,
}

/// A rule between parties.
#[derive(Clone, Debug)]
pub(super) struct RulePlan {
    pub(super) source: PartyId,
    /// Everything that is reached, without `autogroup:self`.
    pub(super) target: PartyId,
    /// Whether `autogroup:self` is a destination.
    pub(super) own: bool,
    pub(super) has_via: bool,
    pub(super) flows: Vec<FlowPlan>,
    /// Where `capabilities` are valid. No set stands for `autogroup:self`.
    pub(super) targets: Vec<Option<SetId>>,
    pub(super) capabilities: Option<Arc<CapMap>>,
    /// The recorders that values of these name.
    pub(super) recorders: Vec<RecorderPlan>,
}

/// Recorders that one value of a capability names.
#[derive(Clone, Debug)]
pub(super) struct RecorderPlan {
    pub(super) capability: String,
    pub(super) position: usize,
    pub(super) party: PartyId,
}

/// Ports of destinations. No set stands for `autogroup:self`.
#[derive(Clone, Debug)]
pub(super) struct FlowPlan {
    pub(super) protocols: Vec<u8>,
    pub(super) targets: Vec<(Option<SetId>, Arc<[PortRange]>)>,
}

/// An SSH rule between parties.
#[derive(Clone, Debug)]
pub(super) struct SshPlan {
    pub(super) source: PartyId,
    pub(super) target: PartyId,
    pub(super) own: bool,
    pub(super) recorders: Option<PartyId>,
    pub(super) entry: SshEntry,
}

/// What a policy means before it is known which nodes there are.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) sets: Vec<SetKey>,
    pub(super) parties: Vec<PartyPlan>,
    parties_of_set: Vec<Vec<PartyId>>,
    pub(super) rules: Vec<RulePlan>,
    /// Rules with action `check` come first, so that the stricter one counts.
    pub(super) ssh: Vec<SshPlan>,
    /// What the entries of `nodeAttrs` give.
    pub(super) attributes: Vec<Arc<CapMap>>,
    /// What the settings of the whole tailnet give to every node.
    pub(super) settings: CapMap,
    /// Choices of postures. The first is the empty one.
    pub(super) postures: Vec<Postures>,
    /// Choices of routers. The first is the empty one.
    pub(super) via: Vec<Vec<Tag>>,
    /// Sources of rules that lead to devices of the same user.
    pub(super) own_parties: Vec<PartyId>,
    /// SSH rules that lead to devices of the same user.
    pub(super) own_ssh: Vec<RuleId>,
    /// Rules with `via`.
    pub(super) via_rules: Vec<RuleId>,
    /// Parties with `*` without postures.
    pub(super) everywhere: Vec<PartyId>,
    pub(super) lookup: Lookup,
}

impl Plan {
    pub(super) fn new(policy: &Policy) -> Self {
        let mut planner = Planner::default();
        planner.postures.id(Postures::new());
        planner.via.id(Vec::new());
        let allow_all = [Rule::allow_all()];
        for rule in policy.rules.as_deref().unwrap_or(&allow_all) {
            planner.add_rule(rule);
        }
        for rule in policy.node_attributes.iter().filter_map(Rule::funnel) {
            planner.add_rule(&rule);
        }
        let (checks, accepts): (Vec<_>, Vec<_>) = policy.ssh.iter().partition(|entry| entry.check.is_some());
        for entry in checks.into_iter().chain(accepts) {
            planner.add_ssh(entry);
        }
        for entry in &policy.node_attributes {
            let party = planner.party(entry.targets.iter(), Side::Attributes);
            planner
                .attributes
                .push((party, Arc::new(entry.attributes.clone())));
        }
        planner.finish(policy)
    }

    pub(super) fn party(&self, id: PartyId) -> &PartyPlan {
        &self.parties[id as usize]
    }

    /// The parties that a set is part of.
    pub(super) fn parties_of(&self, set: SetId) -> &[PartyId] {
        &self.parties_of_set[set as usize]
    }

    pub(super) fn rule(&self, id: RuleId) -> &RulePlan {
        &self.rules[id as usize]
    }

    pub(super) fn set(&self, id: SetId) -> &SetKey {
        &self.sets[id as usize]
    }
}

/// Numbers things in the order of their first appearance.
#[derive(Debug)]
struct Interner<T> {
    ids: HashMap<T, u32>,
    list: Vec<T>,
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Self {
            ids: HashMap::new(),
            list: Vec::new(),
        }
    }
}

impl<T: Clone + Eq + Hash> Interner<T> {
    fn id(&mut self, thing: T) -> u32 {
        if let Some(id) = self.ids.get(&thing) {
            return *id;
        }
        let id = u32::try_from(self.list.len()).unwrap_or(u32::MAX);
        self.list.push(thing.clone());
        self.ids.insert(thing, id);
        id
    }
}

/// A plan in the making.
#[derive(Default)]
struct Planner {
    sets: Interner<SetKey>,
    parties: Interner<Vec<SetId>>,
    /// Choices of postures, told apart by the definitions they share.
    postures: PostureLists,
    via: Interner<Vec<Tag>>,
    rules: Vec<RulePlan>,
    ssh: Vec<SshPlan>,
    attributes: Vec<(PartyId, Arc<CapMap>)>,
}

/// Choices of postures. Assertions have no hash, but each posture is defined once and shared.
#[derive(Default)]
struct PostureLists {
    ids: HashMap<Vec<usize>, u32>,
    list: Vec<Postures>,
}

impl PostureLists {
    fn id(&mut self, postures: Postures) -> u32 {
        let key = postures
            .iter()
            .map(|posture| Arc::as_ptr(posture).addr())
            .collect();
        *self.ids.entry(key).or_insert_with(|| {
            self.list.push(postures);
            u32::try_from(self.list.len() - 1).unwrap_or(u32::MAX)
        })
    }
}

impl Planner {
    fn source_party(&mut self, selectors: &[Selector], postures: &Postures) -> PartyId {
        let side = Side::Source(self.postures.id(postures.clone()));
        self.party(selectors.iter(), side)
    }

    fn party<'s>(&mut self, selectors: impl Iterator<Item = &'s Selector>, side: Side) -> PartyId {
        let mut sets: Vec<SetId> = selectors
            .filter(|selector| !selector.is_own_devices())
            .map(|selector| self.set(selector, side))
            .collect();
        sets.sort_unstable();
        sets.dedup();
        self.parties.id(sets)
    }

    fn set(&mut self, selector: &Selector, side: Side) -> SetId {
        self.sets.id(SetKey {
            selector: selector.clone(),
            side,
        })
    }

    fn target_set(&mut self, selector: &Selector, side: Side) -> Option<SetId> {
        (!selector.is_own_devices()).then(|| self.set(selector, side))
    }

    fn add_rule(&mut self, rule: &Rule) {
        let source = self.source_party(&rule.sources, &rule.postures);
        let side = Side::Target(self.via.id(rule.via.iter().cloned().collect()));
        let target = self.party(rule.destinations(), side);
        let mut flows = Vec::with_capacity(rule.flows.len());
        for flow in &rule.flows {
            let mut targets = Vec::with_capacity(flow.targets.len());
            for (selector, ports) in &flow.targets {
                targets.push((self.target_set(selector, side), Arc::clone(ports)));
            }
            flows.push(FlowPlan {
                protocols: flow.protocols.clone(),
                targets,
            });
        }
        let application = rule.application.as_ref();
        let destinations = application.map_or(&[][..], |application| &application.destinations);
        let mut targets = Vec::with_capacity(destinations.len());
        for selector in destinations {
            targets.push(self.target_set(selector, side));
        }
        let recorders = application.map_or(&[][..], |application| &application.recorders);
        let recorders = recorders.iter().map(|recorders| RecorderPlan {
            capability: recorders.capability.clone(),
            position: recorders.position,
            party: self.party(recorders.selectors.iter(), Side::Source(0)),
        });
        let recorders = recorders.collect();
        self.rules.push(RulePlan {
            recorders,
            source,
            target,
            own: rule.destinations().any(Selector::is_own_devices),
            has_via: !rule.via.is_empty(),
            flows,
            targets,
            capabilities: application.map(|application| Arc::new(application.capabilities.clone())),
        });
    }

    fn add_ssh(&mut self, entry: &SshEntry) {
        let plan = SshPlan {
            source: self.source_party(&entry.sources, &entry.postures),
            target: self.party(entry.destinations.iter(), Side::Target(0)),
            own: entry.destinations.iter().any(Selector::is_own_devices),
            recorders: (!entry.recorders.is_empty())
                .then(|| self.party(entry.recorders.iter(), Side::Source(0))),
            entry: entry.clone(),
        };
        self.ssh.push(plan);
    }

    /// Draws the edges: from sets to parties, from parties to rules.
    fn finish(self, policy: &Policy) -> Plan {
        let mut plan = Plan {
            sets: self.sets.list,
            rules: self.rules,
            ssh: self.ssh,
            postures: self.postures.list,
            via: self.via.list,
            ..Plan::default()
        };
        plan.parties = self
            .parties
            .list
            .into_iter()
            .map(|sets| party(&plan.sets, sets))
            .collect();
        plan.parties_of_set = vec![Vec::new(); plan.sets.len()];
        for (id, party) in (0..).zip(&plan.parties) {
            for set in &party.sets {
                plan.parties_of_set[*set as usize].push(id);
            }
        }
        let mut edges: BTreeSet<(PartyId, PartyId)> = BTreeSet::new();
        for (id, rule) in (0..).zip(&plan.rules) {
            plan.parties[rule.source as usize].rules_from.push(id);
            plan.parties[rule.target as usize].rules_to.push(id);
            if rule.own {
                plan.parties[rule.source as usize].own_rules.push(id);
                plan.own_parties.push(rule.source);
            }
            if rule.has_via {
                plan.via_rules.push(id);
            }
            for recorders in &rule.recorders {
                plan.parties[recorders.party as usize].recorded.push(id);
            }
            edges.insert((rule.source, rule.target));
        }
        for (from, to) in edges {
            plan.parties[from as usize].leads_to.push(to);
            plan.parties[to as usize].led_from.push(from);
        }
        for (id, rule) in (0..).zip(&plan.ssh) {
            plan.parties[rule.source as usize].ssh_from.push(id);
            plan.parties[rule.target as usize].ssh_to.push(id);
            if let Some(party) = rule.recorders {
                plan.parties[party as usize].ssh_recorded.push(id);
            }
            if rule.own {
                plan.own_ssh.push(id);
            }
        }
        for (id, (party, attributes)) in (0..).zip(self.attributes) {
            plan.parties[party as usize].attributes.push(id);
            plan.attributes.push(attributes);
        }
        plan.settings = settings(policy);
        plan.own_parties.sort_unstable();
        plan.own_parties.dedup();
        plan.everywhere = (0..)
            .zip(&plan.parties)
            .filter(|(_, party)| party.has_everywhere)
            .map(|(id, _)| id)
            .collect();
        plan.lookup = Lookup::new(policy, &plan);
        plan
    }
}

/// The settings of the whole tailnet that nodes are told as capabilities.
fn settings(policy: &Policy) -> CapMap {
    let settings = policy.settings;
    let names = [
        settings.randomize_client_port.then_some("randomize-client-port"),
        settings.one_cgnat_route.map(|on| match on {
            true => "one-cgnat?v=true",
            false => "one-cgnat?v=false",
        }),
    ];
    names
        .into_iter()
        .flatten()
        .map(|name| (name.to_owned(), Vec::new()))
        .collect()
}

fn party(keys: &[SetKey], sets: Vec<SetId>) -> PartyPlan {
    let always = sets
        .iter()
        .map(|set| &keys[*set as usize])
        .filter(|key| key.side == Side::Source(0));
    let mut plan = PartyPlan::default();
    let mut fixed = Vec::new();
    for key in always {
        match &key.selector {
            Selector::Any => plan.has_everywhere = true,
            Selector::Addresses(set) => fixed.extend_from_slice(set.ranges()),
            Selector::Auto(Autogroup::DangerAll) => fixed.extend_from_slice(IpSet::everything().ranges()),
            _ => {}
        }
    }
    plan.fixed = fixed.into_iter().collect();
    plan.sets = sets;
    plan
}
