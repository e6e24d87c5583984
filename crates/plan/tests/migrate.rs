//! Migrations from what is in a namespace: what is printed, and that going there and back ends where it began.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails says where")]

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Secret;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tailwharf_kube_types::{Identity, Parent, names};
use tailwharf_plan::migrate::{Inventory, Obstacle, Owner, StateView, Step, back, forward, holder};

const NAMESPACE: &str = "tailscale";
const SERVER: &str = "http://control:8080";

fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn base64(text: &str) -> String {
    let secret: Secret = read(json!({"stringData": {"x": text}}));
    let text = k8s_openapi::ByteString(secret.string_data.unwrap()["x"].clone().into_bytes());
    serde_json::to_value(text).unwrap().as_str().unwrap().to_owned()
}

fn state(name: &str, labels: &BTreeMap<String, String>, id: &str, server: &str) -> StateView {
    let profile = json!({
        "ControlURL": server, "Hostname": "web", "Config": {"PrivateNodeKey": "privkey:00", "NodeID": id},
    });
    let data = json!({
        "_machinekey": base64("privkey:00"),
        "_current-profile": base64("profile-ab12"),
        "profile-ab12": base64(&profile.to_string()),
        "device_id": base64(id),
        "device_fqdn": base64(&format!("{id}.tail.ts.net.")),
    });
    let secret = read(json!({"metadata": {"name": name, "labels": labels}, "data": data}));
    StateView::from_secret(&secret).unwrap()
}

fn deployment(name: &str, arguments: &[&str], replicas: i32) -> Value {
    json!({
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"replicas": replicas, "selector": {}, "template": {"spec": {"containers": [{
            "name": "operator", "args": arguments, "env": [
                {"name": "OPERATOR_INITIAL_TAGS", "value": "tag:k8s-operator"},
                {"name": "OPERATOR_LOGIN_SERVER", "value": SERVER},
                {"name": "OPERATOR_SECRET", "value": "operator"},
            ],
        }]}}},
    })
}

fn set(name: &str, parent: &Parent, replicas: i32) -> StatefulSet {
    read(json!({
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": parent.labels()},
        "spec": {"replicas": replicas, "selector": {}, "serviceName": name, "template": {}},
    }))
}

fn web() -> Parent {
    Parent::service("default", "web")
}

fn routes() -> Parent {
    Parent::connector("routes")
}

/// A namespace with both operators, an exposed Service and a Connector of two devices.
fn inventory() -> Inventory {
    let none = BTreeMap::new();
    let owner = |uid: &str| Owner {
        uid: uid.to_owned(),
        class: None,
    };
    let headless = |name: &str, parent: &Parent| {
        read(json!({
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": parent.labels()}, "spec": {"clusterIP": "None"},
        }))
    };
    Inventory {
        namespace: NAMESPACE.to_owned(),
        deployments: vec![
            read(deployment("operator", &[], 1)),
            read(deployment("tailwharf-operator", &["operator"], 2)),
        ],
        stateful_sets: vec![
            set("ts-web-x7k2p", &web(), 1),
            set("ts-routes-q9w4z", &routes(), 2),
        ],
        services: vec![
            headless("ts-web-x7k2p", &web()),
            headless("ts-routes-q9w4z", &routes()),
        ],
        states: vec![
            state("operator", &none, "n1", SERVER),
            state("ts-web-x7k2p-0", &web().labels(), "n2", SERVER),
            state("ts-routes-q9w4z-0", &routes().labels(), "n3", SERVER),
            state("ts-routes-q9w4z-1", &routes().labels(), "n4", SERVER),
        ],
        identities: Vec::new(),
        owners: [(web(), owner("uid-web")), (routes(), owner("uid-routes"))].into(),
        unserved: Vec::new(),
    }
}

/// What the steps would leave, as far as the way back looks at it.
fn carry(mut inventory: Inventory, steps: &[Step]) -> Inventory {
    let identity = |name: &str, parent: &Parent| -> Identity {
        read(json!({
            "apiVersion": "tailwharf.dev/v1alpha1", "kind": "Identity",
            "metadata": {"name": name, "labels": parent.labels()},
            "spec": {"hostname": "web", "tags": [], "pool": "default", "loginServer": SERVER},
        }))
    };
    for step in steps {
        match step {
            Step::Prepare(copy) => {
                let parent = Parent::from_labels(&copy.labels).unwrap();
                let name = copy.to.trim_end_matches("-0");
                let name = if copy.to.ends_with("-0-0") {
                    &copy.to[..copy.to.len() - 2]
                } else {
                    name
                };
                inventory.identities.push(identity(name, &parent));
                inventory
                    .states
                    .push(state(&copy.to, &copy.labels, &copy.device.id, SERVER));
            }
            Step::Remove(left) => {
                let name = |name: &Option<String>| name.clone().unwrap_or_default();
                inventory
                    .stateful_sets
                    .retain(|set| !left.sets.contains(&name(&set.metadata.name)));
                inventory
                    .services
                    .retain(|service| !left.services.contains(&name(&service.metadata.name)));
                inventory
                    .states
                    .retain(|state| !left.secrets.contains(&state.name));
            }
            _ => {}
        }
    }
    inventory
}

#[test]
fn the_way_there() {
    let migration = forward(&inventory());
    assert_eq!(migration.obstacles, []);
    let routes = |ordinal| names::secret_name(&names::replica_name("routes", "uid-routes", ordinal));
    let web = names::identity_name("web", "uid-web");
    let expected = [
        format!("copy the state of n2.tail.ts.net (n2) from Secret ts-web-x7k2p-0 to Secret {web}-0"),
        format!("copy the state of n3.tail.ts.net (n3) from Secret ts-routes-q9w4z-0 to Secret {}", routes(0)),
        format!("copy the state of n4.tail.ts.net (n4) from Secret ts-routes-q9w4z-1 to Secret {}", routes(1)),
        "copy the state of n1.tail.ts.net (n1) from Secret operator to Secret ts-operator-0".to_owned(),
        "wait until pool default has a pod that may read 3 Secret(s)".to_owned(),
        "stop the operator: scale Deployment operator from 1 to 0".to_owned(),
        "service default/web: scale StatefulSet ts-web-x7k2p from 1 to 0, then tailwharf hosts n2.tail.ts.net (n2)".to_owned(),
        "connector routes: scale StatefulSet ts-routes-q9w4z from 2 to 0, then tailwharf hosts n3.tail.ts.net (n3), n4.tail.ts.net (n4)".to_owned(),
        "wait until Identity ts-operator has n1.tail.ts.net (n1)".to_owned(),
        "service default/web: remove StatefulSet ts-web-x7k2p, Service ts-web-x7k2p, Secret ts-web-x7k2p-0".to_owned(),
        "connector routes: remove StatefulSet ts-routes-q9w4z, Service ts-routes-q9w4z, Secret ts-routes-q9w4z-0, Secret ts-routes-q9w4z-1".to_owned(),
    ];
    let shown: Vec<_> = migration.steps.iter().map(ToString::to_string).collect();
    assert_eq!(shown, expected);
}

#[test]
fn what_is_handed_over_is_not_moved_again() {
    let mut inventory = inventory();
    inventory.stateful_sets[0].metadata.annotations =
        Some([("tailwharf.dev/handed-over".to_owned(), "true".to_owned())].into());
    assert_eq!(holder(&inventory.stateful_sets[0]), None);
    assert_eq!(holder(&inventory.stateful_sets[1]), Some(routes()));
    let migration = forward(&inventory);
    let moved = migration
        .steps
        .iter()
        .filter(|step| matches!(step, Step::Switch(_)));
    assert_eq!(moved.count(), 1);
    let removed = migration
        .steps
        .iter()
        .filter(|step| matches!(step, Step::Remove(_)));
    assert_eq!(removed.count(), 2, "what is left of both goes");
}

#[test]
fn pods_that_were_stopped_by_an_attempt_before_are_remembered() {
    let mut inventory = inventory();
    inventory.stateful_sets[1].metadata.annotations =
        Some([("tailwharf.dev/replicas-before".to_owned(), "2".to_owned())].into());
    inventory.stateful_sets[1].spec.as_mut().unwrap().replicas = Some(0);
    let migration = forward(&inventory);
    let switch = migration.steps.iter().find_map(|step| match step {
        Step::Switch(switch) if switch.parent == routes() => Some(switch),
        _ => None,
    });
    assert_eq!(switch.unwrap().copies.len(), 2);
}

#[test]
fn the_way_back_uses_what_is_still_there() {
    let go = forward(&inventory());
    let kept: Vec<_> = go
        .steps
        .iter()
        .filter(|step| !matches!(step, Step::Remove(_)))
        .cloned()
        .collect();
    let migration = back(&carry(inventory(), &kept));
    assert_eq!(migration.obstacles, []);
    let shown = migration.to_string();
    for part in [
        "stop the operator: scale Deployment tailwharf-operator from 2 to 0",
        "give n2.tail.ts.net (n2) to Secret ts-web-x7k2p-0; scale StatefulSet ts-web-x7k2p from 0 to 1",
        "n4.tail.ts.net (n4) to Secret ts-routes-q9w4z-1; scale StatefulSet ts-routes-q9w4z from 0 to 2",
        "give n1.tail.ts.net (n1) to Secret operator\n",
        "start the operator: scale Deployment operator from 0 to 1",
        "wait until pod ts-web-x7k2p-0 has its device",
    ] {
        assert!(shown.contains(part), "{part}\n{shown}");
    }
}

#[test]
fn the_way_back_makes_what_is_gone() {
    let go = forward(&inventory());
    let migration = back(&carry(inventory(), &go.steps));
    let returned = migration.steps.iter().find_map(|step| match step {
        Step::Return(back) if back.parent == web() => Some(back),
        _ => None,
    });
    let returned = returned.unwrap();
    let (service, uid) = returned.service.clone().unwrap();
    assert_eq!(uid, "uid-web");
    assert_eq!(returned.copies[0].to, format!("{service}-0"));
    assert_ne!(
        returned.copies[0].from, returned.copies[0].to,
        "the Secret of the Identity goes"
    );
    assert_eq!(returned.copies[0].labels, web().labels());
    assert_eq!(returned.set, None);
    assert!(service.len() <= 52, "{service}");
}

#[test]
fn what_has_to_be_solved_before_is_told() {
    let told = |change: fn(&mut Inventory)| {
        let mut inventory = inventory();
        change(&mut inventory);
        forward(&inventory).obstacles
    };
    let obstacles = told(|inventory| drop(inventory.deployments.pop()));
    assert!(
        matches!(obstacles[..], [Obstacle::NoOperator { .. }]),
        "{obstacles:?}"
    );
    let obstacles = told(|inventory| inventory.unserved.push("ProxyGroup edge".to_owned()));
    assert!(
        matches!(obstacles[..], [Obstacle::Unserved { .. }]),
        "{obstacles:?}"
    );
    let obstacles = told(|inventory| drop(inventory.owners.remove(&web())));
    assert!(
        matches!(obstacles[..], [Obstacle::Orphan { .. }]),
        "{obstacles:?}"
    );
    let obstacles = told(|inventory| inventory.states[1].control_url = String::new());
    assert!(
        matches!(obstacles[..], [Obstacle::OtherServer { .. }]),
        "{obstacles:?}"
    );
    let obstacles = told(|inventory| inventory.states[1].error = Some("no".to_owned()));
    assert!(
        matches!(obstacles[..], [Obstacle::Unreadable { .. }]),
        "{obstacles:?}"
    );
    let obstacles = told(|inventory| inventory.stateful_sets.push(set("ts-web-other", &web(), 1)));
    assert!(
        matches!(obstacles[..], [Obstacle::SeveralSets { .. }]),
        "{obstacles:?}"
    );
    let obstacles = told(|inventory| *inventory = Inventory::default());
    assert!(
        matches!(obstacles[..], [Obstacle::NothingToTake { .. }]),
        "{obstacles:?}"
    );
}

#[test]
fn a_device_that_is_not_registered_yet_is_made_anew() {
    let mut inventory = inventory();
    inventory.states[1].device = None;
    let migration = forward(&inventory);
    assert!(
        migration
            .to_string()
            .contains("hosts 1 new device(s), since no state is there"),
        "{migration}"
    );
}
