//! Policies, tailnets and changes to draw from.
#![allow(dead_code, reason = "each test program draws some of them")]

use std::collections::BTreeSet;
use std::fmt::Write as _;

use proptest::prelude::*;
use tailwharf_policy::{
    AttributeValue, Attributes, Change, Node, Owner, Policy, Role, Service, Tailnet, User,
};
use tailwharf_wire::tailcfg::{NodeId, UserId};

pub(crate) const USERS: [&str; 3] = ["a@example.com", "b@example.com", "c@example.org"];
pub(crate) const TAGS: [&str; 3] = ["tag:x", "tag:y", "tag:z"];
pub(crate) const ROUTES: [&str; 6] = [
    "10.0.0.0/16",
    "10.0.1.0/24",
    "fd00::/64",
    "192.168.0.0/24",
    "0.0.0.0/0",
    "::/0",
];
pub(crate) const SERVICES: [&str; 2] = ["svc:one", "svc:two"];
pub(crate) const PORTS: [u16; 4] = [22, 53, 80, 443];
pub(crate) const PROTOCOLS: [(&str, u8); 2] = [("tcp", 6), ("udp", 17)];

fn person() -> impl Strategy<Value = String> {
    prop_oneof![
        (0..3usize).prop_map(|i| USERS[i].to_owned()),
        Just("group:g".to_owned()),
        Just("group:outer".to_owned()),
        Just("user:*@example.com".to_owned()),
        Just("autogroup:member".to_owned()),
        Just("autogroup:admin".to_owned()),
        Just("autogroup:it-admin".to_owned()),
    ]
}

fn principal() -> impl Strategy<Value = String> {
    prop_oneof![
        person(),
        (0..3usize).prop_map(|i| TAGS[i].to_owned()),
        Just("autogroup:tagged".to_owned()),
    ]
}

fn address() -> impl Strategy<Value = String> {
    prop_oneof![
        (1..12u8).prop_map(|i| format!("100.64.0.{i}")),
        (0..6usize).prop_map(|i| ROUTES[i].to_owned()),
        Just("100.64.0.2-100.64.0.5".to_owned()),
        Just("ipset:s".to_owned()),
        Just("host:h".to_owned()),
        Just("100.100.0.1".to_owned()),
    ]
}

fn source() -> impl Strategy<Value = String> {
    prop_oneof![
        principal(),
        address(),
        Just("*".to_owned()),
        Just("autogroup:danger-all".to_owned())
    ]
}

fn destination() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => principal(),
        3 => address(),
        1 => Just("*".to_owned()),
        1 => Just("autogroup:self".to_owned()),
        1 => Just("autogroup:internet".to_owned()),
        2 => (0..2usize).prop_map(|i| SERVICES[i].to_owned()),
    ]
}

fn grant() -> impl Strategy<Value = String> {
    let lists = (
        prop::collection::vec(source(), 1..3),
        prop::collection::vec(destination(), 1..3),
        prop::collection::vec(person(), 1..3),
    );
    (lists, 0..2usize, 0..4usize, 0..8u8).prop_map(
        |((mut sources, destinations, people), protocol, port, extras)| {
            if destinations.iter().any(|name| name == "autogroup:self") {
                sources = people;
            }
            let (name, port) = (PROTOCOLS[protocol].0, PORTS[port]);
            let mut text =
                format!(r#"{{"src": {sources:?}, "dst": {destinations:?}, "ip": ["{name}:{port}"]"#);
            if extras & 1 != 0 {
                text.push_str(r#", "app": {"example.com/cap": [{"n": 1}]}"#);
            }
            if extras & 2 != 0 {
                text.push_str(r#", "srcPosture": ["posture:p"]"#);
            }
            text + "}"
        },
    )
}

fn steered() -> impl Strategy<Value = String> {
    let destination = prop_oneof![address(), Just("autogroup:internet".to_owned())];
    (source(), destination, 0..3usize).prop_map(|(source, destination, tag)| {
        format!(
            r#"{{"src": ["{source}"], "dst": ["{destination}"], "ip": ["*"], "via": ["{}"]}}"#,
            TAGS[tag]
        )
    })
}

fn ssh() -> impl Strategy<Value = String> {
    let pair = prop_oneof![
        (principal(), (0..3usize).prop_map(|i| TAGS[i].to_owned())),
        (person(), Just("autogroup:self".to_owned())),
        (principal(), Just("autogroup:member".to_owned())),
    ];
    (pair, prop::bool::ANY).prop_map(|((source, target), local)| {
        let user = if local { "localpart:*@example.com" } else { "root" };
        format!(
            r#"{{"action": "accept", "src": ["{source}"], "dst": ["{target}"], "users": ["{user}"], "recorder": ["tag:z"]}}"#
        )
    })
}

/// A policy of any kind.
pub(crate) fn policy() -> impl Strategy<Value = Policy> {
    policy_with(2)
}

/// A policy whose verdicts do not depend on the router by which a packet goes.
pub(crate) fn policy_without_via() -> impl Strategy<Value = Policy> {
    policy_with(1)
}

fn policy_with(steered_below: usize) -> impl Strategy<Value = Policy> {
    (
        prop::collection::vec(grant(), 0..5),
        prop::collection::vec(steered(), 0..steered_below),
        prop::collection::vec(ssh(), 0..2),
        prop::collection::vec(principal(), 0..2),
        prop::bool::ANY,
    )
        .prop_map(|(mut grants, steered, ssh, targets, port)| {
            grants.extend(steered);
            let mut text = r#"{
                "groups": {"group:g": ["a@example.com", "b@example.com"], "group:outer": ["group:g", "c@example.org"]},
                "hosts": {"h": "10.0.1.7"},
                "ipsets": {"ipset:s": ["10.0.0.0/16", "remove 10.0.1.0/24", "add 100.64.0.3"]},
                "postures": {"posture:p": ["custom:tier > 1"]},
                "tagOwners": {"#
                .to_owned();
            for tag in TAGS {
                write!(text, r#""{tag}": [], "#).unwrap();
            }
            write!(
                text,
                r#"}}, "grants": [{}], "ssh": [{}], "nodeAttrs": [{{"target": {targets:?}, "attr": ["on"]}}], "randomizeClientPort": {port}}}"#,
                grants.join(", "),
                ssh.join(", "),
            )
            .unwrap();
            Policy::parse(&text).unwrap_or_else(|errors| panic!("{errors:#?}\n{text}"))
        })
}

fn owner() -> impl Strategy<Value = Owner> {
    prop_oneof![
        (1..=4i64).prop_map(|id| Owner::User(UserId(id))),
        prop::collection::btree_set((0..3usize).prop_map(|i| TAGS[i].parse().unwrap()), 1..3)
            .prop_map(Owner::Tags),
    ]
}

fn attributes() -> impl Strategy<Value = Attributes> {
    prop::option::of(0..4u8).prop_map(|tier| {
        tier.map(|tier| ("custom:tier".to_owned(), AttributeValue::Number(tier.into())))
            .into_iter()
            .collect()
    })
}

/// A node with this id, or a change of it.
pub(crate) fn node(id: i64) -> impl Strategy<Value = Node> {
    (
        owner(),
        prop::collection::btree_set(0..ROUTES.len(), 0..3),
        prop::collection::btree_set(0..SERVICES.len(), 0..2),
        attributes(),
        0..4u8,
    )
        .prop_map(move |(owner, routes, services, attributes, moved)| Node {
            id: NodeId(id),
            owner,
            addresses: vec![
                format!("100.64.{}.{id}", u8::from(moved == 0)).parse().unwrap(),
                format!("fd7a:115c:a1e0::{id:x}").parse().unwrap(),
            ],
            routes: routes.into_iter().map(|i| ROUTES[i].parse().unwrap()).collect(),
            services: services.into_iter().map(|i| SERVICES[i].to_owned()).collect(),
            attributes,
        })
}

fn user(id: i64) -> impl Strategy<Value = User> {
    (0..USERS.len(), 0..3usize).prop_map(move |(login, role)| User {
        id: UserId(id),
        login: USERS[login].to_owned(),
        role: [Role::Member, Role::ItAdmin, Role::Admin][role],
    })
}

fn service(index: usize) -> impl Strategy<Value = Service> {
    (prop::collection::btree_set(0..3usize, 0..2), 1..3u8).prop_map(move |(tags, last)| Service {
        name: SERVICES[index].to_owned(),
        addresses: vec![
            format!("100.100.{index}.{last}").parse().unwrap(),
            format!("fd7a:115c:a1e0:5::{index}:{last}").parse().unwrap(),
        ],
        tags: tags
            .into_iter()
            .map(|i| TAGS[i].parse().unwrap())
            .collect::<BTreeSet<_>>(),
    })
}

/// Three users, two services, and up to nine nodes.
pub(crate) fn tailnet() -> impl Strategy<Value = Tailnet> {
    let nodes: Vec<_> = (1..10).map(node).collect();
    (nodes, 1..10usize, service(0), service(1)).prop_map(|(nodes, count, one, two)| Tailnet {
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
        nodes: nodes.into_iter().take(count).collect(),
        services: vec![one, two],
    })
}

/// A change of a tailnet with up to eleven nodes, or of its policy.
pub(crate) fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => (1..12i64).prop_flat_map(node).prop_map(Change::PutNode),
        2 => (1..12i64).prop_map(|id| Change::DeleteNode(NodeId(id))),
        2 => (1..5i64).prop_flat_map(user).prop_map(Change::PutUser),
        1 => (1..5i64).prop_map(|id| Change::DeleteUser(UserId(id))),
        1 => (0..2usize).prop_flat_map(service).prop_map(Change::PutService),
        1 => (0..2usize).prop_map(|index| Change::DeleteService(SERVICES[index].to_owned())),
        1 => policy().prop_map(|policy| Change::SetPolicy(policy.into())),
    ]
}
