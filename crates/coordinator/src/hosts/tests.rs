//! Services and those who answer for them.

use tailwharf_wire::tailcfg::MapResponse;

use super::*;
use crate::{
    lab::{Lab, active, hostinfo_at, tags},
    mapper::full,
    model::VipService,
    ops::replacement,
    poll,
    world::{Change, Presence},
};

const POLICY: &str = r#"{
    "tagOwners": {"tag:k8s": [], "tag:web": []},
    "autoApprovers": {"services": {"tag:web": ["tag:k8s"]}},
    "grants": [{"src": ["autogroup:member"], "dst": ["svc:web"], "ip": ["tcp:443"]}],
}"#;
const LAPTOP: NodeId = NodeId(1);
const ONE: NodeId = NodeId(2);
const TWO: NodeId = NodeId(3);

fn name() -> ServiceName {
    "svc:web".parse().unwrap()
}

/// Alice's laptop and two nodes that offer `svc:web`, in regions of their own.
fn lab() -> Lab {
    let mut lab = Lab::new();
    lab.apply(&[Change::PutPolicy(Arc::new(active(2, POLICY)))]);
    let user = lab.auth_key(Some(1), &[], |_| {});
    let tagged = lab.auth_key(None, &["tag:k8s"], |_| {});
    for (seed, key, hostname) in [(1, &user, "laptop"), (2, &tagged, "one"), (3, &tagged, "two")] {
        lab.join(seed, key, hostname);
        let id = NodeId(seed.into());
        edit(&mut lab, id, |world, node| {
            poll::take_hostinfo(world, node, hostinfo_at(hostname, seed.into()));
            if id != LAPTOP {
                node.services.insert(name());
            }
        });
        presence(&mut lab, id, |presence| presence.online = true);
    }
    let service = VipService {
        name: name(),
        ipv4: "100.64.0.100".parse().unwrap(),
        ipv6: "fd7a:115c:a1e0::100".parse().unwrap(),
        comment: String::new(),
        annotations: Default::default(),
        ports: vec!["tcp:443".to_owned()],
        tags: tags(&["tag:web"]),
        hosts: Default::default(),
        created: lab.context.now,
    };
    lab.apply(&[Change::PutService(Arc::new(service))]);
    lab
}

fn edit(lab: &mut Lab, id: NodeId, edit: impl FnOnce(&World, &mut Node)) {
    let mut node = lab.world.node(id).unwrap().as_ref().clone();
    edit(&lab.world, &mut node);
    lab.apply(&replacement(&lab.world, &lab.context, &Arc::new(node)));
}

fn presence(lab: &mut Lab, id: NodeId, edit: impl FnOnce(&mut Presence)) {
    let mut presence = lab.world.presence(id);
    edit(&mut presence);
    lab.apply(&[Change::SetPresence(id, presence)]);
}

fn decide(lab: &mut Lab, host: NodeId, approved: bool) {
    let mut service = lab.world.service(&name()).unwrap().as_ref().clone();
    service.hosts.insert(host, approved);
    lab.apply(&[Change::PutService(Arc::new(service))]);
}

fn global(lab: &Lab) -> Option<NodeId> {
    lab.world.service_choice(&name()).and_then(|choice| choice.global)
}

fn map(lab: &Lab, id: NodeId) -> MapResponse {
    full(&lab.world, id, lab.context.now).unwrap().into_response()
}

/// The peers that a node finds the service at.
fn found_at(lab: &Lab, id: NodeId) -> Vec<NodeId> {
    let address: IpNet = "100.64.0.100/32".parse().unwrap();
    let peers = map(lab, id).peers.into_iter();
    peers
        .filter(|peer| {
            peer.allowed_ips
                .iter()
                .flatten()
                .any(|allowed| *allowed == address)
        })
        .map(|peer| peer.id)
        .collect()
}

#[test]
fn one_host_is_where_clients_find_the_service() {
    let mut lab = lab();
    let first = global(&lab).unwrap();
    assert_eq!(found_at(&lab, LAPTOP), [first]);
    presence(&mut lab, first, |presence| presence.silent = true);
    let second = global(&lab).unwrap();
    assert_ne!(second, first, "another takes over");
    assert_eq!(found_at(&lab, LAPTOP), [second]);
    presence(&mut lab, first, |presence| presence.silent = false);
    assert_eq!(global(&lab), Some(second), "who comes back takes nothing away");
    presence(&mut lab, second, |presence| presence.online = false);
    assert_eq!(global(&lab), Some(first));
}

#[test]
fn clients_are_sent_to_a_host_of_their_region() {
    let mut lab = lab();
    for (region, host) in [(2, ONE), (3, TWO), (2, ONE)] {
        edit(&mut lab, LAPTOP, |world, node| {
            poll::take_hostinfo(world, node, hostinfo_at("laptop", region));
        });
        assert_eq!(found_at(&lab, LAPTOP), [host], "region {region}");
    }
}

#[test]
fn the_policy_approves_hosts_and_an_administrator_has_the_last_word() {
    let mut lab = lab();
    decide(&mut lab, ONE, false);
    decide(&mut lab, TWO, false);
    assert_eq!(global(&lab), None);
    assert_eq!(found_at(&lab, LAPTOP), []);
    decide(&mut lab, TWO, true);
    assert_eq!(global(&lab), Some(TWO));
    let without_approvers = POLICY.replace("tag:k8s\"]}}", "tag:web\"]}}");
    lab.apply(&[Change::PutPolicy(Arc::new(active(3, &without_approvers)))]);
    let choice = lab.world.service_choice(&name()).unwrap();
    assert_eq!(choice.candidates, [TWO], "the policy changes what nobody decided");
}

#[test]
fn a_host_knows_what_it_answers_for_and_lets_clients_in() {
    let lab = lab();
    let map = map(&lab, TWO);
    let node = map.node.unwrap();
    let told = serde_json::json!([{"svc:web": ["100.64.0.100", "fd7a:115c:a1e0::100"]}]);
    assert_eq!(serde_json::json!(node.cap_map["service-host"]), told);
    assert!(
        node.allowed_ips
            .unwrap()
            .contains(&"100.64.0.100/32".parse().unwrap())
    );
    let filter = serde_json::to_string(&map.packet_filters).unwrap();
    assert!(filter.contains("100.64.0.100"), "{filter}");
    let dns = map.dns_config.unwrap();
    assert_eq!(dns.cert_domains, ["two.tail1234.ts.net", "web.tail1234.ts.net"]);
}

#[test]
fn who_sees_a_host_knows_the_service_by_name() {
    let mut lab = lab();
    let names = |lab: &Lab| {
        let records = map(lab, LAPTOP).dns_config.unwrap().extra_records;
        records
            .into_iter()
            .map(|record| (record.name, record.value))
            .collect::<Vec<_>>()
    };
    let expected = ["100.64.0.100", "fd7a:115c:a1e0::100"];
    assert_eq!(
        names(&lab),
        expected.map(|addr| ("web.tail1234.ts.net".to_owned(), addr.to_owned()))
    );
    lab.apply(&[Change::DeleteService(name())]);
    assert_eq!(names(&lab), []);
    assert_eq!(found_at(&lab, LAPTOP), []);
}
