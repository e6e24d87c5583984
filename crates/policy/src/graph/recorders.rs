//! Recorders of sessions: policies name them by tags, nodes are told their addresses.

use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::Value;
use tailwharf_wire::tailcfg::CapMap;

use super::Graph;
use super::plan::{PartyId, RecorderPlan, RulePlan};
use super::replace::Concerned;

/// The port of recorders.
const PORT: u16 = 80;
/// The field of a capability's value in which nodes look for them.
const ADDRESSES: &str = "recorderAddrs";

impl Graph {
    /// Where the recorders of a party are.
    pub(super) fn recorders(&self, party: PartyId) -> Vec<String> {
        let recorders = self.entries(self.members(party)).into_iter();
        let addresses = recorders.flat_map(|entry| &entry.node.addresses);
        addresses
            .map(|ip| SocketAddr::new(*ip, PORT).to_string())
            .collect()
    }

    /// The capabilities of a rule with the addresses of the recorders that they name, behind those that are written.
    pub(super) fn with_recorders(&self, rule: &RulePlan, capabilities: &Arc<CapMap>) -> Arc<CapMap> {
        if rule.recorders.is_empty() {
            return Arc::clone(capabilities);
        }
        let mut told = CapMap::clone(capabilities);
        for RecorderPlan {
            capability,
            position,
            party,
        } in &rule.recorders
        {
            let value = told
                .get_mut(capability)
                .and_then(|values| values.get_mut(*position));
            let Some(fields) = value.and_then(Value::as_object_mut) else {
                continue;
            };
            let known = fields
                .entry(ADDRESSES)
                .or_insert_with(|| Value::Array(Vec::new()));
            if let Some(known) = known.as_array_mut() {
                known.extend(self.recorders(*party).into_iter().map(Value::String));
            }
        }
        Arc::new(told)
    }

    /// Notes who is told the recorders of a party, whose addresses have changed.
    pub(super) fn note_recorders(&self, party: PartyId, concerned: &mut Concerned) {
        let rules = self.plan.party(party).recorded.iter();
        for rule in rules.map(|rule| self.plan.rule(*rule)) {
            concerned.filters.add(self.members(rule.target));
            if !rule.own {
                continue;
            }
            let sources = self.members(rule.source).iter();
            let sources = sources.filter_map(|slot| self.entry(slot));
            for device in sources.flat_map(|source| self.devices_of(source.user)) {
                concerned.filters.set(device, true);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tailwharf_wire::tailcfg::NodeId;

    use super::*;
    use crate::{Change, Node, Owner, Policy, Tailnet};

    const POLICY: &str = r#"{
        "tagOwners": {"tag:k8s-operator": [], "tag:recorder": [], "tag:ci": []},
        "grants": [{"src": ["tag:ci"], "dst": ["tag:k8s-operator"], "app": {"tailscale.com/cap/kubernetes": [
            {"impersonate": {"groups": ["view"]}},
            {"recorder": ["tag:recorder"], "recorderAddrs": ["192.0.2.1:80"], "enforceRecorder": true},
        ]}}],
    }"#;

    fn node(id: u8, tag: &str) -> Node {
        Node {
            id: NodeId(id.into()),
            owner: Owner::Tags([tag.parse().unwrap()].into()),
            addresses: vec![[100, 64, 0, id].into()],
            routes: Vec::new(),
            services: BTreeSet::new(),
            attributes: crate::Attributes::new(),
        }
    }

    fn told(graph: &Graph) -> Value {
        let rules = graph.rules_for(NodeId(1));
        rules[0].cap_grant[0].cap_map["tailscale.com/cap/kubernetes"][1]["recorderAddrs"].clone()
    }

    #[test]
    fn a_proxy_is_told_where_recorders_are_and_when_that_changes() {
        let tailnet = Tailnet {
            nodes: vec![node(1, "tag:k8s-operator"), node(2, "tag:ci")],
            ..Tailnet::default()
        };
        let mut graph = Graph::new(Arc::new(Policy::parse(POLICY).unwrap()), &tailnet);
        assert_eq!(told(&graph), serde_json::json!(["192.0.2.1:80"]));
        let affected = graph.apply(Change::PutNode(node(9, "tag:recorder")));
        assert!(affected.filters.contains(&NodeId(1)), "{affected:?}");
        assert_eq!(told(&graph), serde_json::json!(["192.0.2.1:80", "100.64.0.9:80"]));
        let grants = graph.grants(NodeId(2), NodeId(1));
        assert_eq!(
            grants[0].capabilities["tailscale.com/cap/kubernetes"][1]["recorderAddrs"],
            told(&graph)
        );
        let affected = graph.apply(Change::DeleteNode(NodeId(9)));
        assert!(affected.filters.contains(&NodeId(1)), "{affected:?}");
        assert_eq!(told(&graph), serde_json::json!(["192.0.2.1:80"]));
    }

    #[test]
    fn a_recorder_is_a_tag_that_is_defined() {
        for wrong in ["[\"tag:nobody\"]", "[\"alice@example.com\"]", "\"tag:recorder\""] {
            let policy = POLICY.replace("[\"tag:recorder\"]", wrong);
            let errors = Policy::parse(&policy).unwrap_err();
            assert_eq!(errors[0].line, 5, "{errors:?}");
        }
    }
}
