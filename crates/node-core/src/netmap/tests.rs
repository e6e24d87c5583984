use std::collections::BTreeMap;

use proptest::prelude::*;
use tailwharf_wire::key::{DiscoPublic, NodePublic};
use tailwharf_wire::tailcfg::{PeerChange, RegionId, StableId};

use super::*;

fn node(id: i64) -> Node {
    Node {
        id: NodeId(id),
        stable_id: StableId(format!("n{id}")),
        name: format!("Host-{id}.example.ts.net."),
        key: NodePublic::from_bytes([id as u8; 32]),
        disco_key: DiscoPublic::from_bytes([id as u8; 32]),
        addresses: vec![
            format!("100.64.0.{id}/32").parse().unwrap(),
            format!("fd7a::{id}/128").parse().unwrap(),
        ],
        home_derp: RegionId(1),
        ..Default::default()
    }
}

fn peers(ids: &[i64]) -> MapResponse {
    MapResponse {
        peers: ids.iter().map(|id| node(*id)).collect(),
        ..Default::default()
    }
}

fn ids(netmap: &Netmap) -> Vec<i64> {
    netmap.peers().map(|peer| peer.id.0).collect()
}

fn apply(netmap: &Netmap, response: &MapResponse, interner: &Interner) -> Netmap {
    let (next, errors) = netmap.apply(response, interner);
    assert_eq!(errors, []);
    next
}

#[test]
fn deltas_are_applied_in_order() {
    let interner = Interner::default();
    let full = apply(&Netmap::default(), &peers(&[3, 1, 2]), &interner);
    assert_eq!(ids(&full), [1, 2, 3]);
    let renamed = Node {
        name: "other.example.ts.net.".into(),
        ..node(2)
    };
    let delta = MapResponse {
        peers_removed: vec![NodeId(1), NodeId(9)],
        peers_changed: vec![renamed, node(5)],
        peers_changed_patch: vec![
            PeerChange {
                node_id: NodeId(3),
                derp_region: RegionId(7),
                online: Some(true),
                ..Default::default()
            },
            PeerChange {
                node_id: NodeId(77),
                derp_region: RegionId(7),
                ..Default::default()
            },
        ],
        online_change: BTreeMap::from([(NodeId(5), false), (NodeId(1), true)]),
        ..Default::default()
    };
    let next = apply(&full, &delta, &interner);
    assert_eq!(ids(&next), [2, 3, 5]);
    let peer = |id| next.peer(NodeId(id)).unwrap();
    assert_eq!(&*peer(2).name, "other.example.ts.net");
    assert_eq!((peer(3).home, peer(3).online), (RegionId(7), Some(true)));
    assert_eq!(peer(5).online, Some(false));
    assert_eq!(ids(&full), [1, 2, 3], "the old snapshot stays");
    assert_eq!(
        ids(&apply(&next, &MapResponse::default(), &interner)),
        [2, 3, 5],
        "an empty list changes nothing"
    );
}

#[test]
fn lookups_find_by_key_address_name_and_route() {
    let interner = Interner::default();
    let router = Node {
        allowed_ips: Some(vec![
            "100.64.0.4/32".parse().unwrap(),
            "10.0.0.0/8".parse().unwrap(),
            "0.0.0.0/0".parse().unwrap(),
        ]),
        ..node(4)
    };
    let closer = Node {
        allowed_ips: Some(vec![
            "100.64.0.5/32".parse().unwrap(),
            "10.1.0.0/16".parse().unwrap(),
        ]),
        ..node(5)
    };
    let mut response = peers(&[1, 2, 3]);
    response.peers_changed = vec![router, closer];
    let netmap = apply(&Netmap::default(), &response, &interner);
    let id = |peer: Option<&Arc<Peer>>| peer.map(|peer| peer.id.0);
    assert_eq!(id(netmap.peer_by_key(&NodePublic::from_bytes([2; 32]))), Some(2));
    assert_eq!(id(netmap.peer_by_key(&NodePublic::from_bytes([9; 32]))), None);
    assert_eq!(id(netmap.peer_by_address("fd7a::3".parse().unwrap())), Some(3));
    assert_eq!(id(netmap.peer_by_address("10.1.1.1".parse().unwrap())), None);
    assert_eq!(id(netmap.route("10.1.1.1".parse().unwrap(), true)), Some(5));
    assert_eq!(id(netmap.route("10.2.1.1".parse().unwrap(), true)), Some(4));
    assert_eq!(id(netmap.route("10.2.1.1".parse().unwrap(), false)), None);
    assert_eq!(
        id(netmap.route("8.8.8.8".parse().unwrap(), true)),
        None,
        "exit nodes are not used unasked"
    );
    assert_eq!(id(netmap.peer_by_name("host-2")), Some(2));
    assert_eq!(id(netmap.peer_by_name("HOST-2.example.ts.net.")), Some(2));
    assert_eq!(id(netmap.peer_by_name("host-2.example")), None);
}

#[test]
fn records_are_shared_between_identities_and_let_go() {
    let interner = Interner::default();
    let mut one = apply(&Netmap::default(), &peers(&[1, 2, 3]), &interner);
    let mut two = apply(&Netmap::default(), &peers(&[2, 3, 4]), &interner);
    assert!(Arc::ptr_eq(
        one.peer(NodeId(2)).unwrap(),
        two.peer(NodeId(2)).unwrap()
    ));
    assert_eq!(interner.peer_count(), 4);
    let online = MapResponse {
        online_change: BTreeMap::from([(NodeId(2), true)]),
        ..Default::default()
    };
    one = apply(&one, &online, &interner);
    assert!(!Arc::ptr_eq(
        one.peer(NodeId(2)).unwrap(),
        two.peer(NodeId(2)).unwrap()
    ));
    two = apply(&two, &online, &interner);
    assert!(Arc::ptr_eq(
        one.peer(NodeId(2)).unwrap(),
        two.peer(NodeId(2)).unwrap()
    ));
    assert_eq!(interner.peer_count(), 4);
    assert!(
        two.same_peers(&apply(&two, &online, &interner)),
        "what is known already changes nothing"
    );
    drop((one, two));
    assert_eq!(interner.peer_count(), 0);
}

#[test]
fn filter_parts_are_replaced_and_removed_by_name() {
    let interner = Interner::default();
    let rules = || {
        let to = tailwharf_wire::tailcfg::NetPortRange {
            ip: "*".into(),
            ports: tailwharf_wire::tailcfg::PortRange::ANY,
        };
        Some(vec![tailwharf_wire::tailcfg::FilterRule {
            src_ips: vec!["*".into()],
            dst_ports: vec![to],
            ..Default::default()
        }])
    };
    let parts = |netmap: &Netmap| netmap.inner.parts.keys().cloned().collect::<Vec<_>>();
    let set = |named: &[(&str, bool)]| MapResponse {
        packet_filters: Some(
            named
                .iter()
                .map(|(name, on)| ((*name).to_owned(), if *on { rules() } else { None }))
                .collect(),
        ),
        ..Default::default()
    };
    let netmap = apply(
        &Netmap::default(),
        &set(&[("base", true), ("more", true)]),
        &interner,
    );
    assert_eq!(parts(&netmap), ["base", "more"]);
    let netmap = apply(&netmap, &set(&[("more", false)]), &interner);
    assert_eq!(parts(&netmap), ["base"]);
    let netmap = apply(&netmap, &set(&[("*", false), ("new", true)]), &interner);
    assert_eq!(parts(&netmap), ["new"]);
    let old_form = MapResponse {
        packet_filter: rules().unwrap(),
        ..Default::default()
    };
    assert_eq!(parts(&apply(&netmap, &old_form, &interner)), ["base", "new"]);
}

#[test]
fn own_addresses_and_legacy_home_are_read() {
    let own = Node {
        home_derp: RegionId(0),
        legacy_derp: "127.3.3.40:12".into(),
        ..node(1)
    };
    let netmap = apply(
        &Netmap::default(),
        &MapResponse {
            node: Some(own),
            ..Default::default()
        },
        &Interner::default(),
    );
    assert_eq!(netmap.self_peer().unwrap().home, RegionId(12));
    assert_eq!(
        netmap.address_like("::".parse().unwrap()),
        Some("fd7a::1".parse().unwrap())
    );
    assert_eq!(netmap.addresses().count(), 2);
}

proptest! {
    /// After any history the indexes agree with the list.
    #[test]
    fn indexes_agree_with_the_list(history in proptest::collection::vec((any::<bool>(), 1i64..40, 1i64..40), 1..60)) {
        let interner = Interner::default();
        let mut netmap = Netmap::default();
        let mut model = BTreeMap::new();
        for (is_removal, id, key) in history {
            let mut response = MapResponse::default();
            if is_removal {
                response.peers_removed.push(NodeId(id));
                model.remove(&id);
            } else {
                // Keys are unique, as they are in a tailnet.
                let key = NodePublic::from_bytes([id as u8, key as u8].repeat(16).try_into().unwrap());
                response.peers_changed.push(Node { key, ..node(id) });
                model.insert(id, key);
            }
            netmap = apply(&netmap, &response, &interner);
            prop_assert_eq!(ids(&netmap), model.keys().copied().collect::<Vec<_>>());
            for (id, key) in &model {
                prop_assert_eq!(netmap.peer_by_key(key).map(|peer| peer.id.0), Some(*id));
                let address = format!("100.64.0.{id}").parse().unwrap();
                prop_assert_eq!(netmap.peer_by_address(address).map(|peer| peer.id.0), Some(*id));
            }
        }
    }
}
