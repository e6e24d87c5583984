//! What happens by itself as time passes: keys end, ephemeral nodes are removed, what has ended is forgotten.
//!
//! What has an end by the calendar ends by the clock of the machine, and begins again if that clock is set back. How long a node is away is measured
//! by a clock that nobody sets.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tailwharf_wire::tailcfg::NodeId;
use tokio::time::{Instant, sleep};

use crate::{
    machine::Control,
    model::{Action, Author, CONFIRMATION_MEMORY, Confirmation, Node},
    ops::{Context, Decision, OpError, Subject, note, removal},
    world::{Change, Presence, World},
};

/// The least time between two rounds, however much changes.
const SETTLE: Duration = Duration::from_secs(1);
/// The most time between two rounds, however little changes: a clock that is set is noticed by then.
const IDLE: Duration = Duration::from_secs(60);
/// How long an auth key is shown that can be used no more.
const KEY_MEMORY: SignedDuration = SignedDuration::from_hours(24 * 30);
/// How long a TXT record is kept: a certificate authority asks within minutes.
const TXT_MEMORY: SignedDuration = SignedDuration::from_hours(24);

/// Since when ephemeral nodes are away.
#[derive(Debug, Default)]
struct Away(HashMap<NodeId, Instant>);

impl Away {
    /// Notes who is away, and says who was for as long as `grace`, and when the next will have been.
    fn note(&mut self, world: &World, now: Instant, grace: Duration) -> (Vec<NodeId>, Option<Instant>) {
        let is_away = |node: &Node| node.ephemeral && !world.presence(node.id).online;
        self.0
            .retain(|id, _| world.node(*id).is_some_and(|node| is_away(node)));
        for node in world.nodes().filter(|node| is_away(node)) {
            self.0.entry(node.id).or_insert(now);
        }
        let gone = |since: &Instant| now.duration_since(*since) >= grace;
        let abandoned = self
            .0
            .iter()
            .filter(|(_, since)| gone(since))
            .map(|(id, _)| *id)
            .collect();
        let next = self
            .0
            .values()
            .filter(|since| !gone(since))
            .min()
            .map(|since| *since + grace);
        (abandoned, next)
    }
}

/// What has ended, and when the next thing will.
#[derive(Debug, Default)]
struct Due {
    changes: Vec<Change>,
    next: Option<Timestamp>,
}

impl Due {
    /// Whether something has ended; if not yet, when it will.
    fn has_ended(&mut self, at: Timestamp, now: Timestamp) -> bool {
        if at > now {
            self.next = Some(self.next.map_or(at, |next| next.min(at)));
        }
        at <= now
    }
}

/// Looks after the world until the coordinator stops. `grace` is how long an ephemeral node may be away.
pub(crate) async fn run(control: Arc<Control>, grace: Duration) {
    let mut worlds = control.ops.watch();
    let mut away = Away::default();
    let rounds = async {
        loop {
            let world = worlds.borrow_and_update().clone();
            let (abandoned, next_abandoned) = away.note(&world, Instant::now(), grace);
            let now = Timestamp::now();
            let ended = due(&world, now);
            if (!abandoned.is_empty() || !ended.changes.is_empty())
                && let Err(error) = settle(&control, abandoned).await
            {
                tracing::warn!(%error, "what has ended could not be cleaned up; trying again");
            }
            let until = ended
                .next
                .and_then(|at| Duration::try_from(at.duration_since(now)).ok());
            let until_abandoned = next_abandoned.map(|at| at.duration_since(Instant::now()));
            let pause = until.into_iter().chain(until_abandoned).fold(IDLE, Duration::min);
            sleep(SETTLE).await;
            tokio::select! {
                // The writer is gone: the stop token follows.
                changed = worlds.changed() => if changed.is_err() { std::future::pending::<()>().await },
                () = sleep(pause) => {}
            }
        }
    };
    control.stop.run_until_cancelled(rounds).await;
}

/// Cleans up what has ended. Judged again by the writer: a node may have come back meanwhile.
async fn settle(control: &Control, abandoned: Vec<NodeId>) -> Result<(), OpError> {
    control
        .ops
        .submit(move |world, context| {
            let mut changes = due(world, context.now).changes;
            note_expiries(world, context, &mut changes);
            for node in abandoned.iter().filter_map(|id| world.node(*id)) {
                if node.ephemeral && !world.presence(node.id).online {
                    changes.extend(removal(world, node.id));
                    let subject = Subject::node(node).detail("ephemeral, and away");
                    note(
                        world,
                        context,
                        &mut changes,
                        Author::Coordinator,
                        Action::Delete,
                        subject,
                    );
                }
            }
            Ok(Decision::new(changes, ()))
        })
        .await
}

fn note_expiries(world: &World, context: &Context, changes: &mut Vec<Change>) {
    let expired: Vec<NodeId> = changes
        .iter()
        .filter_map(|change| match change {
            Change::SetPresence(id, presence) if presence.expired => Some(*id),
            _ => None,
        })
        .collect();
    for node in expired.into_iter().filter_map(|id| world.node(id)) {
        note(
            world,
            context,
            changes,
            Author::Coordinator,
            Action::Expire,
            Subject::node(node),
        );
    }
}

fn due(world: &World, now: Timestamp) -> Due {
    let mut due = Due::default();
    for node in world.nodes() {
        node_due(world, node, now, &mut due);
    }
    for token in world.tokens() {
        if due.has_ended(token.expires, now) {
            due.changes.push(Change::DeleteToken(token.id.clone()));
        }
    }
    for key in world.auth_keys() {
        let end = key
            .revoked
            .map_or(key.expires, |revoked| revoked.min(key.expires));
        if end
            .checked_add(KEY_MEMORY)
            .is_ok_and(|end| due.has_ended(end, now))
        {
            due.changes.push(Change::DeleteAuthKey(key.id.clone()));
        }
    }
    for record in world.dns_txt() {
        if record
            .created
            .checked_add(TXT_MEMORY)
            .is_ok_and(|end| due.has_ended(end, now))
        {
            due.changes.push(Change::DeleteDnsTxt(record.name.clone()));
        }
    }
    for confirmation in world.confirmations() {
        if confirmation
            .at
            .checked_add(CONFIRMATION_MEMORY)
            .is_ok_and(|end| due.has_ended(end, now))
        {
            let id = Confirmation::id(confirmation.source, &confirmation.target);
            due.changes.push(Change::DeleteConfirmation(id));
        }
    }
    for check in world.checks() {
        if due.has_ended(check.expires, now) {
            due.changes.push(Change::DeleteCheck(check.id.clone()));
        }
    }
    for registration in world.registrations() {
        if due.has_ended(registration.expires, now) {
            due.changes
                .push(Change::DeleteRegistration(registration.id.clone()));
        }
    }
    due
}

fn node_due(world: &World, node: &Arc<Node>, now: Timestamp, due: &mut Due) {
    let presence = world.presence(node.id);
    let expired = node.expires.is_some_and(|at| due.has_ended(at, now));
    if expired != presence.expired {
        due.changes
            .push(Change::SetPresence(node.id, Presence { expired, ..presence }));
    }
    let ended: Vec<&String> = (node.attribute_ends.iter())
        .filter(|(_, at)| due.has_ended(**at, now))
        .map(|(name, _)| name)
        .collect();
    if !ended.is_empty() {
        let mut next = node.as_ref().clone();
        for name in ended {
            next.attributes.remove(name);
            next.attribute_ends.remove(name);
        }
        due.changes.push(Change::PutNode(Arc::new(next)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{lab::Lab, model::AttributeValue, ops::replacement};

    const GRACE: Duration = Duration::from_secs(300);

    fn after(at: Timestamp, seconds: i64) -> Timestamp {
        at.checked_add(SignedDuration::from_secs(seconds)).unwrap()
    }

    fn abandoned(away: &mut Away, lab: &Lab, now: Instant) -> Vec<NodeId> {
        away.note(&lab.world, now, GRACE).0
    }

    #[test]
    fn an_ephemeral_node_goes_when_it_was_away_for_the_grace_whatever_the_clock_says() {
        let mut lab = Lab::new();
        let key = lab.auth_key(Some(1), &[], |key| key.ephemeral = true);
        lab.join(1, &key, "a");
        let (id, start) = (NodeId(1), Instant::now());
        let mut away = Away::default();
        assert_eq!(abandoned(&mut away, &lab, start), []);
        lab.pass(1_000_000);
        assert_eq!(abandoned(&mut away, &lab, start + Duration::from_secs(299)), []);
        assert_eq!(abandoned(&mut away, &lab, start + GRACE), [id]);

        let online = Presence {
            online: true,
            ..Presence::default()
        };
        lab.apply(&[Change::SetPresence(id, online)]);
        let late = start + 10 * GRACE;
        assert_eq!(abandoned(&mut away, &lab, late), []);
        lab.run(|world, context| Ok(crate::poll::disconnect(world, context, id)))
            .unwrap();
        assert_eq!(abandoned(&mut away, &lab, late), [], "the time begins anew");
        assert_eq!(abandoned(&mut away, &lab, late + GRACE), [id]);
    }

    #[test]
    fn nodes_that_are_not_ephemeral_stay() {
        let mut lab = Lab::new();
        let key = lab.auth_key(None, &["tag:k8s"], |_| {});
        lab.join(1, &key, "a");
        let (mut away, now) = (Away::default(), Instant::now());
        abandoned(&mut away, &lab, now);
        assert_eq!(abandoned(&mut away, &lab, now + 1000 * GRACE), []);
    }

    #[test]
    fn a_key_ends_by_the_clock_and_comes_back_with_it() {
        let mut lab = Lab::new();
        let key = lab.auth_key(Some(1), &[], |_| {});
        lab.join(1, &key, "a");
        let end = lab.world.node(NodeId(1)).unwrap().expires.unwrap();
        let early = due(&lab.world, lab.context.now);
        assert!(early.changes.is_empty());
        assert!(early.next <= Some(end));
        lab.apply(&due(&lab.world, end).changes);
        assert!(lab.world.presence(NodeId(1)).expired);
        assert!(
            !due(&lab.world, end)
                .changes
                .iter()
                .any(|change| matches!(change, Change::SetPresence(..))),
            "noted once"
        );
        lab.apply(&due(&lab.world, after(end, -1)).changes);
        assert!(!lab.world.presence(NodeId(1)).expired, "the clock was set back");
    }

    #[test]
    fn attributes_end() {
        let mut lab = Lab::new();
        let key = lab.auth_key(Some(1), &[], |_| {});
        lab.join(1, &key, "a");
        let mut node = lab.world.node(NodeId(1)).unwrap().as_ref().clone();
        let end = after(lab.context.now, 60);
        node.attributes
            .insert("custom:a".to_owned(), AttributeValue::Bool(true));
        node.attribute_ends.insert("custom:a".to_owned(), end);
        lab.apply(&replacement(&lab.world, &lab.context, &Arc::new(node)));
        assert!(due(&lab.world, after(end, -1)).changes.is_empty());
        lab.apply(&due(&lab.world, end).changes);
        assert!(lab.world.node(NodeId(1)).unwrap().attributes.is_empty());
    }
}
