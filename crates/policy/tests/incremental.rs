//! Changes one by one give what applying the policy to the result gives, and name everybody whom they concern.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a test program")]

mod world;

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;
use tailwharf_policy::{Affected, Change, Graph, Tailnet};
use tailwharf_wire::tailcfg::NodeId;

/// The tailnet after a change, told by the plainest means.
fn replay(tailnet: &mut Tailnet, change: &Change) {
    match change.clone() {
        Change::PutUser(user) => {
            tailnet.users.retain(|old| old.id != user.id);
            tailnet.users.push(user);
        }
        Change::DeleteUser(id) => tailnet.users.retain(|user| user.id != id),
        Change::PutNode(node) => {
            tailnet.nodes.retain(|old| old.id != node.id);
            tailnet.nodes.push(node);
        }
        Change::DeleteNode(id) => tailnet.nodes.retain(|node| node.id != id),
        Change::PutService(service) => {
            tailnet.services.retain(|old| old.name != service.name);
            tailnet.services.push(service);
        }
        Change::DeleteService(name) => tailnet.services.retain(|service| service.name != name),
        Change::SetPolicy(_) => {}
    }
}

fn ids(tailnet: &Tailnet) -> BTreeSet<NodeId> {
    tailnet.nodes.iter().map(|node| node.id).collect()
}

/// Both graphs give the same answers about everybody.
fn assert_same(one: &Graph, other: &Graph, ids: &BTreeSet<NodeId>) {
    for id in ids {
        assert_eq!(one.rules_for(*id), other.rules_for(*id), "the filter of {id}");
        assert_eq!(one.peers_of(*id), other.peers_of(*id), "the peers of {id}");
        assert_eq!(
            one.cap_map_for(*id),
            other.cap_map_for(*id),
            "the capabilities of {id}"
        );
        assert_eq!(
            one.ssh_policy_for(*id, Some("")),
            other.ssh_policy_for(*id, Some("")),
            "SSH on {id}"
        );
        for peer in ids {
            assert_eq!(
                one.can_see(*id, *peer),
                one.peers_of(*id).contains(peer),
                "{id} and {peer}"
            );
        }
    }
}

/// Whoever is still there and is concerned is named.
fn assert_named(before: &Graph, after: &Graph, ids: &BTreeSet<NodeId>, affected: &Affected) {
    let routes = world::ROUTES.map(|route| route.parse().unwrap());
    for id in ids {
        if before.rules_for(*id) != after.rules_for(*id) {
            assert!(affected.filters.contains(id), "the filter of {id} differs");
        }
        if before.ssh_policy_for(*id, None) != after.ssh_policy_for(*id, None) {
            assert!(affected.ssh.contains(id), "SSH on {id} differs");
        }
        if before.cap_map_for(*id) != after.cap_map_for(*id) {
            assert!(
                affected.capabilities.contains(id),
                "the capabilities of {id} differ"
            );
        }
        for router in ids {
            let steering = |graph: &Graph| routes.map(|route| graph.steering(*id, *router, &route));
            if steering(before) != steering(after) {
                assert!(affected.steering.contains(id), "{id} has other routers");
            }
        }
    }
}

/// Pairs that became peers or ceased to be are named, and no other pair ends up as something else.
fn assert_visibility(before: &Graph, after: &Graph, ids: &BTreeSet<NodeId>, affected: &Affected) {
    for (a, b) in ids
        .iter()
        .flat_map(|a| ids.range(a..).skip(1).map(move |b| (*a, *b)))
    {
        let mut told = affected.visibility.iter().rev();
        let told = told
            .find(|pair| (pair.a, pair.b) == (a, b))
            .map(|pair| pair.visible);
        let now = after.can_see(a, b);
        if before.can_see(a, b) != now {
            assert_eq!(told, Some(now), "{a} and {b}");
        }
        assert!(told.is_none_or(|told| told == now), "{a} and {b}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn changes_one_by_one_give_what_all_at_once_gives(
        policy in world::policy(),
        tailnet in world::tailnet(),
        changes in prop::collection::vec(world::change(), 1..12),
    ) {
        let mut policy = Arc::new(policy);
        let mut tailnet = tailnet;
        let mut graph = Graph::new(policy.clone(), &tailnet);
        for change in changes {
            let before = (graph.clone(), ids(&tailnet));
            replay(&mut tailnet, &change);
            if let Change::SetPolicy(next) = &change {
                policy = next.clone();
            }
            let affected = graph.apply(change);
            let everybody: BTreeSet<NodeId> = ids(&tailnet).union(&before.1).copied().collect();
            assert_same(&graph, &Graph::new(policy.clone(), &tailnet), &everybody);
            let present = ids(&tailnet);
            assert_named(&before.0, &graph, &present, &affected);
            assert_visibility(&before.0, &graph, &everybody, &affected);
            for named in affected.filters.iter().chain(&affected.ssh).chain(&affected.capabilities) {
                prop_assert!(present.contains(named), "{} is gone", named);
            }
        }
    }

    #[test]
    fn a_change_to_the_same_concerns_nobody(policy in world::policy(), tailnet in world::tailnet()) {
        let mut graph = Graph::new(Arc::new(policy), &tailnet);
        for node in &tailnet.nodes {
            prop_assert_eq!(graph.apply(Change::PutNode(node.clone())), Affected::default());
        }
        for user in &tailnet.users {
            prop_assert_eq!(graph.apply(Change::PutUser(user.clone())), Affected::default());
        }
        for service in &tailnet.services {
            prop_assert_eq!(graph.apply(Change::PutService(service.clone())), Affected::default());
        }
    }
}
