//! Which rules give a node capabilities at another one, and why others do not.

use tailwharf_wire::tailcfg::{CapMap, NodeId};

use super::lookup::Subject;
use super::peers::same_user;
use super::plan::RulePlan;
use super::{Entry, Graph, Slot};
use crate::model::Rule;
use crate::{AttributeValue, Service};

/// A rule with capabilities, as two nodes meet it.
#[derive(Clone, Debug, PartialEq)]
pub struct Grant {
    /// The line of the rule in the policy, from 1.
    pub line: u32,
    /// Its sources, as they are written.
    pub sources: Vec<String>,
    /// Where its capabilities are valid, as it is written.
    pub destinations: Vec<String>,
    /// What it gives.
    pub capabilities: CapMap,
    /// Whether it names the source, postures aside.
    pub is_from: bool,
    /// Whether its capabilities are valid at the destination.
    pub is_at: bool,
    /// What the source does not fulfil of each posture of which it needs one. Empty if it fulfils one, needs none, or is not named.
    pub unfulfilled: Vec<Unfulfilled>,
}

/// An assertion that does not hold for a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Unfulfilled {
    /// The posture, such as `posture:latestMac`.
    pub posture: String,
    /// The assertion, as it is written.
    pub assertion: String,
    /// What the attribute is; `None` if it is not set.
    pub value: Option<AttributeValue>,
}

impl Grant {
    /// Whether the source has the capabilities.
    #[must_use]
    pub fn counts(&self) -> bool {
        self.is_from && self.is_at && self.unfulfilled.is_empty()
    }
}

impl Graph {
    /// The rules with capabilities, in the order of the policy, and what each of them is to `source` at `target`. Empty if one of the two is not there.
    pub fn grants(&self, source: NodeId, target: NodeId) -> Vec<Grant> {
        let find = |node| {
            let slot = *self.by_id.get(node)?;
            Some((slot, self.entry(slot)?))
        };
        let (Some(source), Some((_, target))) = (find(&source), find(&target)) else {
            return Vec::new();
        };
        let rules = self.policy.rules.iter().flatten().zip(&self.plan.rules);
        rules
            .filter_map(|(rule, plan)| self.grant(rule, plan, source, target))
            .collect()
    }

    fn grant(
        &self,
        rule: &Rule,
        plan: &RulePlan,
        (slot, source): (Slot, &Entry),
        target: &Entry,
    ) -> Option<Grant> {
        let application = rule.application.as_ref()?;
        let admitted = self.members(plan.source).contains(slot) || {
            let addresses = self.addresses_of(plan.source);
            let mut own = source.node.addresses.iter();
            own.any(|ip| addresses.set.contains(*ip))
        };
        let is_at = plan.targets.iter().any(|set| match set {
            None => same_user(source, target),
            Some(_) => !self.own_prefixes(*set, target).is_empty(),
        });
        let is_from = admitted || self.is_named(plan, source);
        let postures = rule.postures.iter().filter(|_| is_from && !admitted);
        let unfulfilled = postures.flat_map(|posture| {
            let attributes = &source.node.attributes;
            let failing = posture.assertions.iter();
            failing
                .filter(|assertion| !assertion.holds(attributes))
                .map(|assertion| Unfulfilled {
                    posture: posture.name.clone(),
                    assertion: assertion.text.clone(),
                    value: attributes.get(&assertion.attribute).cloned(),
                })
        });
        Some(Grant {
            line: rule.line,
            sources: rule.sources.iter().map(ToString::to_string).collect(),
            destinations: application.destinations.iter().map(ToString::to_string).collect(),
            capabilities: (plan.capabilities.as_ref())
                .map(|capabilities| CapMap::clone(&self.with_recorders(plan, capabilities)))
                .unwrap_or_default(),
            is_from,
            is_at,
            unfulfilled: unfulfilled.collect(),
        })
    }

    /// Whether a source of the rule names the node, postures aside.
    fn is_named(&self, plan: &RulePlan, entry: &Entry) -> bool {
        let services: Vec<&Service> = entry.services.iter().map(AsRef::as_ref).collect();
        let subject = Subject {
            node: &entry.node,
            user: entry.user.and_then(|user| self.users.get(&user)),
            services: &services,
        };
        let mut sets = self.plan.party(plan.source).sets.iter();
        sets.any(|set| subject.belongs(&self.policy, &self.plan, self.plan.set(*set)))
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;

    use tailwharf_wire::tailcfg::UserId;

    use super::*;
    use crate::ipset::IpRange;
    use crate::{Node, Owner, Policy, Role, Tailnet, User};

    const POLICY: &str = r#"{
        "groups": {"group:admin": ["alice@example.com"]},
        "tagOwners": {"tag:k8s-operator": [], "tag:other": []},
        "postures": {
            "posture:latestMac": ["node:os IN ['macos']", "node:tsVersion >= '1.60'"],
            "posture:managed": ["custom:managed == true"],
        },
        "grants": [
            {"src": ["group:admin"], "srcPosture": ["posture:latestMac", "posture:managed"], "dst": ["tag:k8s-operator"], "app": {"example.com/cap": [{"a": 1}]}},
            {"src": ["bob@example.com"], "dst": ["tag:k8s-operator"], "app": {"example.com/cap": [{"a": 2}]}},
            {"src": ["*"], "dst": ["tag:other"], "app": {"example.com/cap": [{"a": 3}]}},
            {"src": ["*"], "dst": ["tag:k8s-operator"], "ip": ["tcp:443"]},
            {"src": ["autogroup:member"], "dst": ["autogroup:self"], "app": {"example.com/cap": [{"a": 4}]}},
        ],
    }"#;

    fn graph() -> Graph {
        let node = |id: i64, owner, attributes: &[(&str, AttributeValue)]| Node {
            id: NodeId(id),
            owner,
            addresses: vec![format!("100.64.0.{id}").parse().unwrap()],
            routes: Vec::new(),
            services: std::collections::BTreeSet::new(),
            attributes: attributes
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect(),
        };
        let text = |text: &str| AttributeValue::Text(text.to_owned());
        let alice = || Owner::User(UserId(1));
        let tailnet = Tailnet {
            prefixes: vec!["100.64.0.0/10".parse().unwrap()],
            users: vec![User {
                id: UserId(1),
                login: "Alice@example.com".to_owned(),
                role: Role::Member,
            }],
            nodes: vec![
                node(1, Owner::Tags(["tag:k8s-operator".parse().unwrap()].into()), &[]),
                node(
                    2,
                    alice(),
                    &[("node:os", text("macos")), ("node:tsVersion", text("1.98.1"))],
                ),
                node(
                    3,
                    alice(),
                    &[("node:os", text("linux")), ("node:tsVersion", text("1.98.1"))],
                ),
            ],
            ..Tailnet::default()
        };
        Graph::new(Arc::new(Policy::parse(POLICY).unwrap()), &tailnet)
    }

    #[test]
    fn a_rule_says_why_it_gives_nothing() {
        let graph = graph();
        let mac = graph.grants(NodeId(2), NodeId(1));
        assert_eq!(
            mac.iter().map(|grant| grant.line).collect::<Vec<_>>(),
            [9, 10, 11, 13]
        );
        assert_eq!(
            mac.iter().map(Grant::counts).collect::<Vec<_>>(),
            [true, false, false, false]
        );
        assert_eq!(mac[0].sources, ["group:admin"]);
        let linux = graph.grants(NodeId(3), NodeId(1));
        assert!(linux[0].is_from && linux[0].is_at && !linux[0].counts());
        let failing: Vec<_> = linux[0]
            .unfulfilled
            .iter()
            .map(|one| (one.posture.as_str(), one.assertion.as_str(), one.value.clone()))
            .collect();
        let linux_os = Some(AttributeValue::Text("linux".to_owned()));
        assert_eq!(
            failing,
            [
                ("posture:latestMac", "node:os IN ['macos']", linux_os),
                ("posture:managed", "custom:managed == true", None),
            ]
        );
        assert!(!linux[1].is_from && linux[1].is_at, "it is for somebody else");
        assert!(linux[2].is_from && !linux[2].is_at, "it is valid elsewhere");
        assert!(graph.grants(NodeId(2), NodeId(3))[3].counts(), "one's own device");
        assert!(graph.grants(NodeId(2), NodeId(9)).is_empty());
    }

    fn covers(range: &str, address: IpAddr) -> bool {
        range.parse::<IpRange>().unwrap().contains(address)
    }

    #[test]
    fn it_agrees_with_the_packet_filter() {
        let graph = graph();
        for source in [2, 3] {
            for target in [1, 2, 3] {
                let address: IpAddr = format!("100.64.0.{source}").parse().unwrap();
                let rules = graph.rules_for(NodeId(target));
                let given: Vec<_> = rules
                    .iter()
                    .filter(|rule| rule.src_ips.iter().any(|ip| covers(ip, address)))
                    .flat_map(|rule| &rule.cap_grant)
                    .flat_map(|grant| grant.cap_map.values().flatten().cloned())
                    .collect();
                let told: Vec<_> = graph
                    .grants(NodeId(source), NodeId(target))
                    .into_iter()
                    .filter(Grant::counts)
                    .flat_map(|grant| grant.capabilities.into_values().flatten())
                    .collect();
                assert_eq!(told, given, "{source} at {target}");
            }
        }
    }
}
