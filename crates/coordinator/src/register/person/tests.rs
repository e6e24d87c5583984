//! Devices that a person lets in.

use tailwharf_wire::tailcfg::{NodeId, UserId};

use super::*;
use crate::{
    lab::{Lab, machine, node_key, request},
    ops::Decision,
};

const ALICE: NodeOwner = NodeOwner::User(UserId(1));
const BOB: NodeOwner = NodeOwner::User(UserId(2));
const YEAR: i64 = 365 * 24 * 3600;

/// A device without key asks, and is told a page.
fn ask(lab: &mut Lab, seed: u8, edit: impl FnOnce(&mut RegisterRequest)) -> String {
    let mut request = request(seed, None, "laptop");
    edit(&mut request);
    lab.register(machine(seed), request).response.auth_url
}

/// The device of machine 1 asks with a new node key.
fn ask_again(lab: &mut Lab) -> String {
    ask(lab, 1, |request| {
        request.node_key = node_key(9);
        request.old_node_key = node_key(1);
    })
}

fn waiting(lab: &Lab) -> Vec<Arc<PendingRegistration>> {
    lab.world.registrations().cloned().collect()
}

/// Lets the one in that waits.
fn approve(lab: &mut Lab, owner: &NodeOwner) -> Result<Arc<Node>, OpError> {
    let registration = waiting(lab)[0].clone();
    lab.run(|world, context| {
        let Decision { mut changes, answer } = admit(world, context, &registration, owner, true)?;
        changes.push(Change::DeleteRegistration(registration.id.clone()));
        Ok(Decision::new(changes, answer))
    })
}

#[test]
fn a_device_is_let_in_once_and_knows_it() {
    let mut lab = Lab::new();
    let url = ask(&mut lab, 1, |_| {});
    let id = waiting(&lab)[0].id.clone();
    assert_eq!(url, format!("http://10.0.0.1:8080/a/{id}"));
    let asked_again = ask(&mut lab, 1, |request| request.followup.clone_from(&url));
    assert_eq!(asked_again, url, "it waits");
    let decided = waiting(&lab)[0].decided.clone();
    let node = approve(&mut lab, &ALICE).unwrap();
    assert!(decided.is_cancelled(), "who waits is told");
    assert!(node.authorized && node.expires.is_some());
    assert!(waiting(&lab).is_empty(), "the address is used up");

    let mut follow = request(1, None, "laptop");
    follow.followup = url;
    let answer = lab.register(machine(1), follow).response;
    assert!(answer.machine_authorized && answer.auth_url.is_empty());
    assert_eq!(answer.login.login_name, "alice@example.com");
}

#[test]
fn a_device_that_is_turned_down_is_told() {
    let mut lab = Lab::new();
    let url = ask(&mut lab, 1, |_| {});
    let denied = PendingRegistration {
        denied: true,
        ..waiting(&lab)[0].as_ref().clone()
    };
    assert!(!denied.is_open(lab.context.now));
    lab.apply(&[Change::PutRegistration(Arc::new(denied))]);
    let mut follow = request(1, None, "laptop");
    follow.followup.clone_from(&url);
    let told = lab.register(machine(1), follow.clone()).response.error;
    assert!(told.contains("turned this device down"), "{told}");
    follow.node_key = node_key(2);
    let other = lab.register(machine(2), follow).response;
    assert_eq!(other.error, "", "another machine learns nothing by that address");
    let again = ask(&mut lab, 1, |_| {});
    assert!(!again.is_empty() && again != url, "the device may ask anew");
}

#[test]
fn a_device_that_logs_in_again_stays_the_same_one() {
    let mut lab = Lab::new();
    ask(&mut lab, 1, |_| {});
    let before = approve(&mut lab, &ALICE).unwrap();
    lab.pass(YEAR);
    assert_ne!(ask_again(&mut lab), "");
    assert_eq!(waiting(&lab)[0].node, Some(before.id));
    let after = approve(&mut lab, &ALICE).unwrap();
    assert_eq!(
        (after.id, after.ipv4, &after.name, after.node_key),
        (before.id, before.ipv4, &before.name, node_key(9))
    );
    assert!(!after.is_expired(lab.context.now));
}

#[test]
fn another_owner_gets_another_device() {
    let mut lab = Lab::new();
    ask(&mut lab, 1, |_| {});
    let alices = approve(&mut lab, &ALICE).unwrap();
    lab.pass(YEAR);
    ask_again(&mut lab);
    let bobs = approve(&mut lab, &BOB).unwrap();
    assert_ne!((bobs.id, bobs.ipv4), (alices.id, alices.ipv4));
    assert!(
        lab.world.node(NodeId(1)).is_some(),
        "the former stays with its owner"
    );
}

#[test]
fn a_machine_waits_at_one_page_only_and_not_for_ever() {
    let mut lab = Lab::new();
    let first = ask(&mut lab, 1, |_| {});
    let second = ask(&mut lab, 1, |request| request.node_key = node_key(2));
    assert_ne!(first, second);
    assert_eq!(waiting(&lab).len(), 1);
    lab.pass(2 * 3600);
    assert!(!waiting(&lab)[0].is_open(lab.context.now));
    let third = ask(&mut lab, 1, |request| request.followup.clone_from(&second));
    assert!(!third.is_empty() && third != second, "asked again after the end");
}

#[test]
fn a_flood_is_turned_away() {
    let mut lab = Lab::new();
    ask(&mut lab, 1, |_| {});
    let one = waiting(&lab)[0].clone();
    let another = |number: usize| {
        Change::PutRegistration(Arc::new(PendingRegistration {
            id: RegistrationId(number.to_string()),
            ..one.as_ref().clone()
        }))
    };
    lab.apply(&(0..WAITING_LIMIT).map(another).collect::<Vec<_>>());
    let refused =
        lab.run(|world, context| super::super::register(world, context, machine(2), request(2, None, "x")));
    assert!(matches!(refused, Err(OpError::Busy(_))));
}
