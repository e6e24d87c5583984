use super::*;
use crate::lab::{Lab, machine, node_key, request};

const SOURCE: NodeId = NodeId(1);
const ASKER: NodeId = NodeId(2);
const ALICE: UserId = UserId(1);
const BOB: UserId = UserId(2);

/// Alice's laptop (1) and a tagged server (2).
fn lab() -> Lab {
    let mut lab = Lab::new();
    let own = lab.auth_key(Some(1), &[], |_| {});
    let tagged = lab.auth_key(None, &["tag:k8s"], |_| {});
    lab.join(1, &own, "laptop");
    lab.join(2, &tagged, "kube");
    lab
}

fn question(hours: i64) -> CheckQuestion {
    CheckQuestion {
        source: SOURCE,
        target: CheckTarget::Node(ASKER),
        purpose: "kubectl on prod".to_owned(),
        max_age: SignedDuration::from_hours(hours),
    }
}

fn asked(lab: &mut Lab, question: CheckQuestion) -> CheckAnswer {
    lab.run(|world, context| ask(world, context, question)).unwrap()
}

fn page(lab: &mut Lab) -> Arc<PendingCheck> {
    match asked(lab, question(12)) {
        CheckAnswer::Asked(check) => check,
        other => panic!("{other:?}"),
    }
}

fn confirm(lab: &mut Lab, check: &PendingCheck, user: UserId) -> Result<(), OpError> {
    let id = check.id.clone();
    lab.run(|world, context| {
        let check = open_for(world, &id, user, context.now)?;
        let confirmation = Confirmation {
            source: check.source,
            key: world.node(check.source).unwrap().node_key,
            user,
            target: check.target.clone(),
            at: context.now,
        };
        Ok(Decision::new(
            vec![
                Change::PutConfirmation(Arc::new(confirmation)),
                Change::DeleteCheck(id),
            ],
            (),
        ))
    })
}

#[test]
fn a_confirmation_holds_for_its_time() {
    let mut lab = lab();
    let check = page(&mut lab);
    lab.pass(60);
    assert_eq!(page(&mut lab).id, check.id, "the address stays the same");
    confirm(&mut lab, &check, ALICE).unwrap();
    assert!(check.decided.is_cancelled(), "whoever waits is told");
    assert!(matches!(asked(&mut lab, question(12)), CheckAnswer::Confirmed(at) if at == lab.context.now));
    let other = CheckQuestion {
        target: CheckTarget::Ssh(ASKER),
        ..question(12)
    };
    assert!(
        matches!(asked(&mut lab, other), CheckAnswer::Asked(_)),
        "for nothing else"
    );
    lab.pass(12 * 3600);
    assert!(matches!(asked(&mut lab, question(12)), CheckAnswer::Confirmed(_)));
    lab.pass(1);
    assert!(matches!(asked(&mut lab, question(12)), CheckAnswer::Asked(_)));
    assert!(matches!(asked(&mut lab, question(24)), CheckAnswer::Confirmed(_)));
    lab.pass(-13 * 3600);
    assert!(
        matches!(asked(&mut lab, question(12)), CheckAnswer::Asked(_)),
        "the clock was set back"
    );
}

#[test]
fn nobody_but_the_owner_confirms_and_only_once() {
    let mut lab = lab();
    let check = page(&mut lab);
    assert!(matches!(
        confirm(&mut lab, &check, BOB),
        Err(OpError::Forbidden(_))
    ));
    confirm(&mut lab, &check, ALICE).unwrap();
    assert!(
        matches!(confirm(&mut lab, &check, ALICE), Err(OpError::NotFound { .. })),
        "replayed"
    );
    let late = {
        lab.pass(13 * 3600);
        page(&mut lab)
    };
    lab.pass(600);
    assert!(
        matches!(confirm(&mut lab, &late, ALICE), Err(OpError::NotFound { .. })),
        "too late"
    );
}

#[test]
fn a_new_key_of_the_device_ends_what_was_confirmed() {
    let mut lab = lab();
    let check = page(&mut lab);
    confirm(&mut lab, &check, ALICE).unwrap();
    let mut node = lab.world.node(SOURCE).unwrap().as_ref().clone();
    node.node_key = node_key(9);
    lab.apply(&[Change::PutNode(Arc::new(node))]);
    assert!(matches!(asked(&mut lab, question(12)), CheckAnswer::Asked(_)));
}

#[test]
fn tagged_and_expired_devices_have_nobody_to_ask() {
    let mut lab = lab();
    let tagged = CheckQuestion {
        source: ASKER,
        ..question(12)
    };
    assert!(matches!(asked(&mut lab, tagged), CheckAnswer::Nobody));
    let gone = crate::world::Presence {
        expired: true,
        ..Default::default()
    };
    let check = page(&mut lab);
    confirm(&mut lab, &check, ALICE).unwrap();
    lab.apply(&[Change::SetPresence(SOURCE, gone)]);
    assert!(matches!(asked(&mut lab, question(12)), CheckAnswer::Nobody));
    let unknown = CheckQuestion {
        source: NodeId(77),
        ..question(12)
    };
    let refused = lab.run(|world, context| ask(world, context, unknown));
    assert!(matches!(refused, Err(OpError::NotFound { .. })));
}

#[test]
fn a_no_stands_for_a_minute() {
    let mut lab = lab();
    let check = page(&mut lab);
    let denied = PendingCheck {
        denied: true,
        expires: after(lab.context.now, DENIAL),
        ..check.as_ref().clone()
    };
    lab.apply(&[Change::PutCheck(Arc::new(denied))]);
    assert!(check.decided.is_cancelled());
    assert!(matches!(asked(&mut lab, question(12)), CheckAnswer::Denied));
    lab.pass(61);
    assert!(matches!(asked(&mut lab, question(12)), CheckAnswer::Asked(_)));
}

#[test]
fn what_a_removed_device_was_asked_or_asked_is_forgotten() {
    let mut lab = lab();
    let check = page(&mut lab);
    confirm(&mut lab, &check, ALICE).unwrap();
    for id in [SOURCE, ASKER] {
        assert_eq!(confirmations_of(&lab.world, id).len(), 1);
    }
    let third = lab.auth_key(Some(1), &[], |_| {});
    lab.register(machine(5), request(5, Some(&third), "other"));
    assert!(confirmations_of(&lab.world, NodeId(3)).is_empty());
}

#[test]
fn purposes_are_plain_and_short() {
    let mut lab = lab();
    let long = CheckQuestion {
        purpose: format!("a\nb{}", "é".repeat(300)),
        ..question(1)
    };
    let CheckAnswer::Asked(check) = asked(&mut lab, long) else {
        panic!("asked");
    };
    assert!(check.purpose.starts_with("abé") && check.purpose.len() <= PURPOSE_LIMIT);
    assert_eq!(check.code.len(), 7);
}
