//! The table of who may register, case by case.

use jiff::Timestamp;
use tailwharf_wire::tailcfg::{NodeId, RegisterResponse};

use super::*;
use crate::lab::{Lab, hostinfo, hostinfo_at, machine, node_key, request, tags};

fn error(registered: &Registered) -> &str {
    &registered.response.error
}

fn node(lab: &Lab, id: i64) -> &Node {
    lab.world.node(NodeId(id)).unwrap()
}

#[test]
fn a_new_node_belongs_to_the_owner_of_its_key() {
    let mut lab = Lab::new();
    let key = lab.auth_key(Some(1), &[], |_| {});
    let registered = lab.join(1, &key, "Laptop");
    let RegisterResponse {
        user,
        login,
        machine_authorized,
        error,
        auth_url,
        ..
    } = registered.response;
    assert!(machine_authorized && error.is_empty() && auth_url.is_empty());
    assert_eq!((user.id.0, login.login_name.as_str()), (1, "alice@example.com"));
    assert_eq!(registered.created, Some(NodeId(1)));
    let node = node(&lab, 1);
    assert_eq!(
        (node.name.as_str(), node.ipv4.to_string().as_str()),
        ("laptop", "100.64.0.1")
    );
    assert!(node.expires.is_some());
    assert!(
        lab.world.presence(node.id).held,
        "peers wait until it can be reached"
    );
}

#[test]
fn a_key_with_tags_makes_tagged_nodes_that_never_expire() {
    let mut lab = Lab::new();
    let key = lab.auth_key(None, &["tag:k8s"], |_| {});
    let registered = lab.join(1, &key, "web");
    assert_eq!(registered.response.login.login_name, "web.tail1234.ts.net");
    assert_eq!(node(&lab, 1).owner, NodeOwner::Tags(tags(&["tag:k8s"])));
    assert_eq!(node(&lab, 1).expires, None);
}

#[test]
fn each_bad_key_has_its_own_words() {
    let mut lab = Lab::new();
    let now = lab.context.now;
    let expired = lab.auth_key(Some(1), &[], |key| key.expires = now);
    let revoked = lab.auth_key(Some(1), &[], |key| key.revoked = Some(now));
    let used = lab.auth_key(Some(1), &[], |key| {
        key.reusable = false;
        key.used = Some(now);
    });
    let orphaned = lab.auth_key(Some(9), &[], |_| {});
    for (key, words) in [
        (&expired, "has expired"),
        (&revoked, "was revoked"),
        (&used, "is used up"),
        (&orphaned, "no longer exists"),
    ] {
        let registered = lab.join(1, key, "x");
        assert!(error(&registered).contains(words), "{}", error(&registered));
        assert!(!registered.response.machine_authorized);
    }
    for (text, words) in [("tskey-auth-kX-y", "not known"), ("hello", "not an auth key")] {
        let mut request = request(1, Some(&expired), "x");
        request.auth.as_mut().unwrap().auth_key = text.to_owned();
        let registered = lab.register(machine(1), request);
        assert!(error(&registered).contains(words), "{}", error(&registered));
    }
    assert_eq!(lab.world.nodes().count(), 0);
}

#[test]
fn the_secret_part_of_a_key_counts() {
    let mut lab = Lab::new();
    let [good, other] = [(), ()].map(|()| lab.auth_key(Some(1), &[], |_| {}));
    let (id, _) = good.reveal().rsplit_once('-').unwrap();
    let (_, secret) = other.reveal().rsplit_once('-').unwrap();
    let mut request = request(1, Some(&good), "x");
    request.auth.as_mut().unwrap().auth_key = format!("{id}-{secret}");
    assert!(error(&lab.register(machine(1), request)).contains("not known"));
}

#[test]
fn a_key_for_one_use_makes_one_node() {
    let mut lab = Lab::new();
    let key = lab.auth_key(Some(1), &[], |key| key.reusable = false);
    assert_eq!(error(&lab.join(1, &key, "a")), "");
    assert!(error(&lab.join(2, &key, "b")).contains("used up"));
}

#[test]
fn a_node_that_starts_again_needs_no_good_key() {
    let mut lab = Lab::new();
    let key = lab.auth_key(Some(1), &[], |key| key.reusable = false);
    lab.join(1, &key, "a");
    let before = node(&lab, 1).clone();
    lab.pass(7200);
    let again = lab.join(1, &key, "a");
    assert_eq!((error(&again), again.created), ("", None));
    assert_eq!(node(&lab, 1), &before, "nothing was reset");
}

#[test]
fn another_machine_cannot_take_a_node_key() {
    let mut lab = Lab::new();
    let key = lab.auth_key(Some(1), &[], |_| {});
    lab.join(1, &key, "a");
    let stolen = lab.register(machine(2), request(1, Some(&key), "a"));
    assert!(error(&stolen).contains("another machine"));
    let mut replaced = request(2, Some(&key), "a");
    replaced.old_node_key = node_key(1);
    assert!(error(&lab.register(machine(2), replaced)).contains("another machine"));
}

#[test]
fn rotation_keeps_the_node_and_gains_no_time_without_a_key() {
    let mut lab = Lab::new();
    let key = lab.auth_key(Some(1), &[], |_| {});
    lab.join(1, &key, "a");
    let before = node(&lab, 1).clone();
    lab.pass(60);
    let mut rotate = request(2, None, "a");
    rotate.old_node_key = node_key(1);
    assert_eq!(error(&lab.register(machine(1), rotate)), "");
    assert_eq!(
        node(&lab, 1),
        &Node {
            node_key: node_key(2),
            ..before.clone()
        }
    );
    assert!(lab.world.node_by_key(&node_key(1)).is_none());

    let mut again = request(3, Some(&key), "a");
    again.old_node_key = node_key(2);
    lab.register(machine(1), again);
    assert!(
        node(&lab, 1).expires > before.expires,
        "a new login starts a new life"
    );
}

#[test]
fn an_expired_key_has_to_log_in_again() {
    let mut lab = Lab::new();
    let key = lab.auth_key(Some(1), &[], |key| key.expires = Timestamp::MAX);
    lab.join(1, &key, "a");
    lab.pass(181 * 24 * 3600);
    assert!(
        lab.register(machine(1), request(1, None, "a"))
            .response
            .node_key_expired
    );
    let mut without = request(2, None, "a");
    without.old_node_key = node_key(1);
    assert_ne!(lab.register(machine(1), without).response.auth_url, "");
    let mut with = request(2, Some(&key), "a");
    with.old_node_key = node_key(1);
    assert_eq!(error(&lab.register(machine(1), with)), "");
    assert_eq!(lab.world.nodes().count(), 1);
}

#[test]
fn logout_ends_the_key_now_and_the_same_machine_gets_its_node_back() {
    let mut lab = Lab::new();
    let key = lab.auth_key(Some(1), &[], |_| {});
    lab.join(1, &key, "a");
    let mut logout = request(1, None, "a");
    logout.expiry = Some(Timestamp::from_second(123).unwrap());
    assert!(lab.register(machine(1), logout).response.node_key_expired);
    assert_eq!(
        node(&lab, 1).expires,
        Some(lab.context.now),
        "not the date of the request"
    );
    assert!(lab.world.presence(NodeId(1)).expired);
    let back = lab.register(machine(1), request(2, Some(&key), "a"));
    assert_eq!((error(&back), back.created), ("", None));
    assert!(!lab.world.presence(NodeId(1)).expired);
}

#[test]
fn logout_removes_ephemeral_and_ends_tagged_nodes() {
    let mut lab = Lab::new();
    let ephemeral = lab.auth_key(Some(1), &[], |key| key.ephemeral = true);
    let tagged = lab.auth_key(None, &["tag:k8s"], |_| {});
    lab.join(1, &ephemeral, "a");
    lab.join(2, &tagged, "b");
    for seed in [1, 2] {
        let mut logout = request(seed, None, "x");
        logout.expiry = Some(Timestamp::from_second(123).unwrap());
        lab.register(machine(seed), logout);
    }
    assert!(lab.world.node(NodeId(1)).is_none());
    assert!(node(&lab, 2).is_expired(lab.context.now));
}

#[test]
fn tags_asked_for_need_an_owner() {
    let mut lab = Lab::new();
    let (alice, bob) = (
        lab.auth_key(Some(1), &[], |_| {}),
        lab.auth_key(Some(2), &[], |_| {}),
    );
    let operator = lab.auth_key(None, &["tag:operator"], |_| {});
    let k8s = lab.auth_key(None, &["tag:k8s"], |_| {});
    for (seed, key, wish, outcome) in [
        (1, &alice, "tag:k8s", Ok("tag:k8s")),
        (2, &bob, "tag:k8s", Ok("tag:k8s")),
        (3, &bob, "tag:operator", Err("`tag:operator`")),
        (4, &operator, "tag:k8s", Ok("tag:k8s")),
        (5, &k8s, "tag:operator", Err("`tag:operator`")),
        (6, &alice, "tag:unknown", Err("`tag:unknown`")),
        (7, &alice, "nonsense", Err("`nonsense`")),
    ] {
        let mut wishing = request(seed, Some(key), "x");
        wishing.hostinfo.as_mut().unwrap().request_tags = vec![wish.to_owned()];
        let registered = lab.register(machine(seed), wishing);
        match outcome {
            Ok(tag) => {
                assert_eq!(error(&registered), "", "{seed}");
                let node = lab.world.node_by_key(&node_key(seed)).unwrap();
                assert_eq!(node.owner, NodeOwner::Tags(tags(&[tag])));
                assert_eq!(node.expires, None);
            }
            Err(named) => assert!(
                error(&registered).contains(named),
                "{seed}: {}",
                error(&registered)
            ),
        }
    }
}

#[test]
fn a_refused_registration_uses_no_key_up() {
    let mut lab = Lab::new();
    let key = lab.auth_key(Some(2), &[], |key| key.reusable = false);
    let mut wishing = request(1, Some(&key), "x");
    wishing.hostinfo.as_mut().unwrap().request_tags = vec!["tag:operator".to_owned()];
    assert_ne!(error(&lab.register(machine(1), wishing)), "");
    assert_eq!(error(&lab.join(1, &key, "x")), "");
}

#[test]
fn approval_is_needed_where_it_is_asked_for() {
    let mut lab = Lab::new();
    let settings = crate::model::Settings {
        device_approval: true,
        ..Default::default()
    };
    lab.apply(&[Change::PutSettings(Arc::new(settings))]);
    let plain = lab.auth_key(Some(1), &[], |key| key.preauthorized = false);
    let approved = lab.auth_key(Some(1), &[], |_| {});
    assert!(!lab.join(1, &plain, "a").response.machine_authorized);
    assert!(lab.join(2, &approved, "b").response.machine_authorized);
    assert!(
        !lab.join(1, &plain, "a").response.machine_authorized,
        "asking again is no approval"
    );
}

#[test]
fn names_are_unique_and_follow_the_host_name() {
    let mut lab = Lab::new();
    let key = lab.auth_key(Some(1), &[], |_| {});
    for seed in 1..=3 {
        lab.join(seed, &key, "web");
    }
    let names: Vec<_> = lab.world.nodes().map(|node| node.name.clone()).collect();
    assert_eq!(names, ["web", "web-1", "web-2"]);
    lab.register(
        machine(2),
        RegisterRequest {
            hostinfo: Some(hostinfo("db")),
            ..request(2, None, "")
        },
    );
    assert_eq!(node(&lab, 2).name, "db");
    lab.register(
        machine(3),
        RegisterRequest {
            hostinfo: Some(hostinfo("web")),
            ..request(3, None, "")
        },
    );
    assert_eq!(node(&lab, 3).name, "web-2", "the same host name moves nothing");
}

#[test]
fn the_home_region_survives_a_host_info_without_one() {
    let mut lab = Lab::new();
    let key = lab.auth_key(Some(1), &[], |_| {});
    lab.join(1, &key, "a");
    lab.register(
        machine(1),
        RegisterRequest {
            hostinfo: Some(hostinfo_at("a", 900)),
            ..request(1, None, "")
        },
    );
    assert!(!lab.world.presence(NodeId(1)).held, "now it can be reached");
    lab.register(machine(1), request(1, None, "a"));
    assert_eq!(node(&lab, 1).home_region().map(|region| region.0), Some(900));
}

#[test]
fn ids_and_addresses_do_not_come_back() {
    let mut lab = Lab::new();
    let key = lab.auth_key(Some(1), &[], |_| {});
    lab.join(1, &key, "a");
    let changes = removal(&lab.world, NodeId(1));
    lab.apply(&changes);
    lab.join(1, &key, "a");
    assert_eq!(
        lab.world
            .nodes()
            .map(|node| (node.id.0, node.ipv4.to_string()))
            .collect::<Vec<_>>(),
        [(2, "100.64.0.2".to_owned())]
    );
}
