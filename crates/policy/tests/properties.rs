//! Properties that hold for every policy and tailnet.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a test program")]

mod filter;
mod world;

use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;
use tailwharf_policy::{Graph, Node, Owner, Policy, Tailnet};
use tailwharf_wire::tailcfg::NodeId;

use world::{PORTS, PROTOCOLS, policy_without_via, tailnet};

/// The addresses at which a node may be reached: its own, those of its services, and one of each route.
fn reachable(tailnet: &Tailnet, node: &Node) -> Vec<IpAddr> {
    let routed = node.routes.iter().map(|route| match (route.prefix_len(), route) {
        (0, ipnet::IpNet::V4(_)) => "8.8.8.8".parse().unwrap(),
        (0, ipnet::IpNet::V6(_)) => "2600::8".parse().unwrap(),
        _ => route.hosts().nth(7).unwrap(),
    });
    let hosted = tailnet
        .services
        .iter()
        .filter(|service| node.services.contains(&service.name));
    let hosted = hosted.flat_map(|service| service.addresses.clone());
    node.addresses
        .iter()
        .copied()
        .chain(routed)
        .chain(hosted)
        .collect()
}

/// The addresses that packets from a node may have: its own, and one of each network that it routes for.
fn origins(node: &Node) -> Vec<IpAddr> {
    let routes = node.routes.iter().filter(|route| route.prefix_len() > 0);
    let routed = routes.map(|route| route.hosts().nth(7).unwrap());
    node.addresses.iter().copied().chain(routed).collect()
}

fn apply(policy: &Policy, tailnet: &Tailnet) -> Graph {
    Graph::new(Arc::new(policy.clone()), tailnet)
}

fn probes() -> impl Iterator<Item = (u8, u16)> {
    PROTOCOLS
        .into_iter()
        .flat_map(|(_, protocol)| PORTS.map(|port| (protocol, port)))
}

fn verdicts(graph: &Graph, tailnet: &Tailnet) -> Vec<(IpAddr, IpAddr, u8, u16)> {
    let mut allowed = Vec::new();
    for target in &tailnet.nodes {
        let rules = graph.rules_for(target.id);
        for source in tailnet.nodes.iter().flat_map(origins) {
            for destination in reachable(tailnet, target) {
                for (protocol, port) in probes() {
                    if filter::allows(&rules, source, destination, protocol, port) {
                        allowed.push((source, destination, protocol, port));
                    }
                }
            }
        }
    }
    allowed
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn narrowing_to_a_node_changes_no_verdict(policy in policy_without_via(), tailnet in tailnet()) {
        let graph = apply(&policy, &tailnet);
        for target in &tailnet.nodes {
            let rules = graph.rules_for(target.id);
            for source in tailnet.nodes.iter().flat_map(origins) {
                for destination in reachable(&tailnet, target) {
                    for (protocol, port) in probes() {
                        prop_assert_eq!(
                            filter::allows(&rules, source, destination, protocol, port),
                            graph.allows(source, destination, protocol, port),
                            "{} to {} protocol {} port {}", source, destination, protocol, port
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn an_unrelated_node_widens_nothing(policy in policy_without_via(), tailnet in tailnet()) {
        let mut larger = tailnet.clone();
        larger.nodes.push(Node {
            id: NodeId(99),
            owner: Owner::Tags(["tag:unrelated".parse().unwrap()].into()),
            addresses: vec!["100.64.9.9".parse().unwrap(), "fd7a:115c:a1e0::99".parse().unwrap()],
            routes: Vec::new(),
            services: Default::default(),
            attributes: Default::default(),
        });
        let before = apply(&policy, &tailnet);
        let after = apply(&policy, &larger);
        prop_assert_eq!(verdicts(&before, &tailnet), verdicts(&after, &tailnet));
        for a in &tailnet.nodes {
            for b in &tailnet.nodes {
                prop_assert_eq!(before.can_see(a.id, b.id), after.can_see(a.id, b.id));
            }
        }
    }

    #[test]
    fn whoever_may_reach_a_node_is_its_peer(policy in policy_without_via(), tailnet in tailnet()) {
        let graph = apply(&policy, &tailnet);
        for a in &tailnet.nodes {
            for b in tailnet.nodes.iter().filter(|b| b.id != a.id) {
                let rules = graph.rules_for(b.id);
                let passes = origins(a).into_iter().any(|from| {
                    let reaches = |to| probes().any(|(protocol, port)| filter::allows(&rules, from, to, protocol, port));
                    reachable(&tailnet, b).into_iter().any(reaches)
                });
                prop_assert_eq!(graph.can_see(a.id, b.id), graph.can_see(b.id, a.id));
                if passes {
                    prop_assert!(graph.can_see(a.id, b.id), "{} reaches {} without seeing it", a.id, b.id);
                }
            }
        }
    }

    #[test]
    fn the_order_of_nodes_does_not_matter(policy in policy_without_via(), tailnet in tailnet()) {
        let mut reversed = tailnet.clone();
        reversed.nodes.reverse();
        let (one, other) = (apply(&policy, &tailnet), apply(&policy, &reversed));
        for node in &tailnet.nodes {
            prop_assert_eq!(one.rules_for(node.id), other.rules_for(node.id));
        }
    }

    #[test]
    fn no_text_panics_and_positions_lie_in_it(text in r#"[\[\]{}",:/*a-z0-9\\ \n@.é'-]{0,80}"#) {
        assert_read(&text);
    }

    #[test]
    fn no_damaged_policy_panics(
        file in 0..POLICIES.len(),
        case in 0..100usize,
        damage in prop::collection::vec((0..4000usize, 0..30usize, "[\\[\\]{}\",:*@0-9a-z ]{0,6}"), 1..4),
    ) {
        let cases: Vec<&str> = POLICIES[file].split("\n--\n").filter_map(|case| case.find('{').map(|start| &case[start..])).collect();
        let mut text = cases[case % cases.len()].replace("$TAGS", "\"tagOwners\": {\"tag:web\": [], \"tag:db\": []}");
        for (at, length, replacement) in damage {
            let bound = |index: usize| (0..=index.min(text.len())).rev().find(|index| text.is_char_boundary(*index)).unwrap();
            let start = bound(at % (text.len() + 1));
            text.replace_range(start..bound(start + length), &replacement);
        }
        assert_read(&text);
    }
}

/// Policies of other tests, to be damaged.
const POLICIES: [&str; 8] = [
    include_str!("../verdicts/attributes.txt"),
    include_str!("../verdicts/destinations.txt"),
    include_str!("../verdicts/errors.txt"),
    include_str!("../verdicts/grants.txt"),
    include_str!("../verdicts/postures.txt"),
    include_str!("../verdicts/sources.txt"),
    include_str!("../verdicts/ssh.txt"),
    include_str!("../verdicts/tests.txt"),
];

/// A text is a policy that can be applied, or has errors at places in it.
fn assert_read(text: &str) {
    match Policy::parse(text) {
        Ok(policy) => {
            let tailnet = Tailnet::default();
            let _ = policy.check(&tailnet);
            let _ = apply(&policy, &tailnet);
        }
        Err(errors) => {
            assert!(!errors.is_empty());
            let lines = u32::try_from(text.split('\n').count()).unwrap();
            for error in errors {
                assert!((1..=lines).contains(&error.line) && error.column >= 1, "{error}");
            }
        }
    }
}
