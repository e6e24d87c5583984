//! Properties that hold for every policy and tailnet.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a test program")]

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;
use tailwharf_policy::{Graph, Node, Owner, Policy, Role, Tailnet, User};
use tailwharf_wire::tailcfg::{FilterRule, NodeId, UserId};

const USERS: [&str; 3] = ["a@example.com", "b@example.com", "c@example.com"];
const TAGS: [&str; 3] = ["tag:x", "tag:y", "tag:z"];
const ROUTES: [&str; 4] = ["10.0.0.0/16", "10.0.1.0/24", "fd00::/64", "192.168.0.0/24"];
const PORTS: [u16; 4] = [22, 53, 80, 443];
const PROTOCOLS: [(&str, u8); 2] = [("tcp", 6), ("udp", 17)];

fn source() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("*".to_owned()),
        (0..3usize).prop_map(|i| USERS[i].to_owned()),
        (0..3usize).prop_map(|i| TAGS[i].to_owned()),
        Just("group:g".to_owned()),
        Just("autogroup:member".to_owned()),
        Just("autogroup:tagged".to_owned()),
        Just("autogroup:admin".to_owned()),
        (1..12u8).prop_map(|i| format!("100.64.0.{i}")),
        (0..4usize).prop_map(|i| ROUTES[i].to_owned()),
        Just("100.64.0.2-100.64.0.5".to_owned()),
    ]
}

fn destination() -> impl Strategy<Value = String> {
    prop_oneof![source(), Just("autogroup:self".to_owned())]
}

fn rule() -> impl Strategy<Value = String> {
    let lists = (
        prop::collection::vec(source(), 1..3),
        prop::collection::vec(destination(), 1..3),
    );
    (lists, 0..2usize, 0..4usize).prop_map(|((mut sources, destinations), protocol, port)| {
        if destinations.iter().any(|name| name == "autogroup:self") {
            sources = vec!["autogroup:member".to_owned()];
        }
        let (name, port) = (PROTOCOLS[protocol].0, PORTS[port]);
        format!(r#"{{"src": {sources:?}, "dst": {destinations:?}, "ip": ["{name}:{port}"]}}"#)
    })
}

fn policy() -> impl Strategy<Value = Policy> {
    prop::collection::vec(rule(), 0..5).prop_map(|rules| {
        let mut text =
            r#"{"groups": {"group:g": ["a@example.com", "b@example.com"]}, "tagOwners": {"#.to_owned();
        for tag in TAGS {
            write!(text, r#""{tag}": [], "#).unwrap();
        }
        write!(text, r#"}}, "grants": [{}]}}"#, rules.join(", ")).unwrap();
        Policy::parse(&text).unwrap()
    })
}

fn owner() -> impl Strategy<Value = Owner> {
    prop_oneof![
        (1..=3i64).prop_map(|id| Owner::User(UserId(id))),
        prop::collection::btree_set((0..3usize).prop_map(|i| TAGS[i].parse().unwrap()), 1..3)
            .prop_map(Owner::Tags),
    ]
}

fn tailnet() -> impl Strategy<Value = Tailnet> {
    let node = (owner(), prop::collection::btree_set(0..4usize, 0..2));
    prop::collection::vec(node, 1..10).prop_map(|nodes| Tailnet {
        prefixes: vec![
            "100.64.0.0/10".parse().unwrap(),
            "fd7a:115c:a1e0::/48".parse().unwrap(),
        ],
        users: (1..)
            .zip(USERS)
            .map(|(id, login)| User {
                id: UserId(id),
                login: login.to_owned(),
                role: if id == 1 { Role::Admin } else { Role::Member },
            })
            .collect(),
        nodes: (1..)
            .zip(nodes)
            .map(|(id, (owner, routes))| Node {
                id: NodeId(id),
                owner,
                addresses: vec![
                    format!("100.64.0.{id}").parse().unwrap(),
                    format!("fd7a:115c:a1e0::{id:x}").parse().unwrap(),
                ],
                routes: routes.into_iter().map(|i| ROUTES[i].parse().unwrap()).collect(),
                services: Default::default(),
                attributes: Default::default(),
            })
            .collect(),
        services: Vec::new(),
    })
}

/// What a node's packet filter says, read as nodes read it.
fn filter_allows(
    filter: &[FilterRule],
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    port: u16,
) -> bool {
    filter.iter().any(|rule| {
        let protocol_fits = rule.ip_proto.is_empty() || rule.ip_proto.contains(&i32::from(protocol));
        protocol_fits
            && rule.src_ips.iter().any(|text| covers(text, source))
            && rule
                .dst_ports
                .iter()
                .any(|to| covers(&to.ip, destination) && to.ports.contains(port))
    })
}

/// Whether an address, prefix, range or `*` covers an address.
fn covers(text: &str, ip: IpAddr) -> bool {
    if text == "*" {
        return true;
    }
    if let Some((first, last)) = text.split_once('-') {
        return first.parse::<IpAddr>().unwrap() <= ip && ip <= last.parse::<IpAddr>().unwrap();
    }
    match text.parse::<ipnet::IpNet>() {
        Ok(net) => net.contains(&ip),
        Err(_) => text.parse::<IpAddr>().unwrap() == ip,
    }
}

/// The addresses at which a node may be reached: its own, and one of each route.
fn reachable(node: &Node) -> Vec<IpAddr> {
    let routed = node.routes.iter().map(|route| route.hosts().nth(7).unwrap());
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

fn verdicts(graph: &Graph, nodes: &[Node]) -> Vec<(IpAddr, IpAddr, u8, u16)> {
    let mut allowed = Vec::new();
    for target in nodes {
        let filter = graph.rules_for(target.id);
        for source in nodes.iter().flat_map(reachable) {
            for destination in reachable(target) {
                for (protocol, port) in probes() {
                    if filter_allows(&filter, source, destination, protocol, port) {
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
    fn narrowing_to_a_node_changes_no_verdict(policy in policy(), tailnet in tailnet()) {
        let graph = apply(&policy, &tailnet);
        for target in &tailnet.nodes {
            let filter = graph.rules_for(target.id);
            for source in tailnet.nodes.iter().flat_map(reachable) {
                for destination in reachable(target) {
                    for (protocol, port) in probes() {
                        prop_assert_eq!(
                            filter_allows(&filter, source, destination, protocol, port),
                            graph.allows(source, destination, protocol, port),
                            "{} to {} protocol {} port {}", source, destination, protocol, port
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn an_unrelated_node_widens_nothing(policy in policy(), tailnet in tailnet()) {
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
        prop_assert_eq!(verdicts(&before, &tailnet.nodes), verdicts(&after, &tailnet.nodes));
        for a in &tailnet.nodes {
            for b in &tailnet.nodes {
                prop_assert_eq!(before.can_see(a.id, b.id), after.can_see(a.id, b.id));
            }
        }
    }

    #[test]
    fn whoever_may_reach_a_node_is_its_peer(policy in policy(), tailnet in tailnet()) {
        let graph = apply(&policy, &tailnet);
        for a in &tailnet.nodes {
            for b in tailnet.nodes.iter().filter(|b| b.id != a.id) {
                let filter = graph.rules_for(b.id);
                let passes = reachable(a).into_iter().any(|from| {
                    let reaches = |to| probes().any(|(protocol, port)| filter_allows(&filter, from, to, protocol, port));
                    reachable(b).into_iter().any(reaches)
                });
                prop_assert_eq!(graph.can_see(a.id, b.id), graph.can_see(b.id, a.id));
                if passes {
                    prop_assert!(graph.can_see(a.id, b.id), "{} reaches {} without seeing it", a.id, b.id);
                }
            }
        }
    }

    #[test]
    fn the_order_of_nodes_does_not_matter(policy in policy(), tailnet in tailnet()) {
        let mut reversed = tailnet.clone();
        reversed.nodes.reverse();
        let (one, other) = (apply(&policy, &tailnet), apply(&policy, &reversed));
        for node in &tailnet.nodes {
            prop_assert_eq!(one.rules_for(node.id), other.rules_for(node.id));
        }
    }

    #[test]
    fn no_text_panics_and_positions_lie_in_it(text in r#"[\[\]{}",:/*a-z0-9\\ \n@.é'-]{0,80}"#) {
        if let Err(errors) = Policy::parse(&text) {
            prop_assert!(!errors.is_empty());
            let lines = u32::try_from(text.split('\n').count()).unwrap();
            for error in errors {
                prop_assert!((1..=lines).contains(&error.line) && error.column >= 1, "{}", error);
            }
        }
    }
}
