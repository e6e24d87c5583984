//! What happens by itself as time passes: keys end, ephemeral nodes are removed, tokens are forgotten.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tailwharf_wire::tailcfg::NodeId;
use tokio::time::sleep;

use crate::{
    machine::Control,
    ops::{Decision, OpError, removal},
    world::{Change, Presence, World},
};

/// The least time between two rounds, however much changes.
const SETTLE: Duration = Duration::from_secs(1);
/// The most time between two rounds, however little changes.
const IDLE: Duration = Duration::from_secs(600);

/// What is due, and when the next thing will be.
#[derive(Debug, Default, PartialEq, Eq)]
struct Due {
    expired: Vec<NodeId>,
    abandoned: Vec<NodeId>,
    tokens: bool,
    next: Option<Timestamp>,
}

impl Due {
    fn is_empty(&self) -> bool {
        self.expired.is_empty() && self.abandoned.is_empty() && !self.tokens
    }

    fn later(&mut self, at: Timestamp) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }
}

/// Looks after the world until the coordinator stops. `grace` is how long an ephemeral node may be away; nobody counts as away for longer than this
/// process runs, since before that nobody could connect.
pub(crate) async fn run(control: Arc<Control>, grace: Duration, started: Timestamp) {
    let grace = SignedDuration::try_from(grace).unwrap_or(SignedDuration::MAX);
    let mut worlds = control.ops.watch();
    loop {
        let world = worlds.borrow_and_update().clone();
        let now = Timestamp::now();
        let due = due(&world, now, grace, started);
        if !due.is_empty()
            && let Err(error) = settle(&control, grace, started).await
        {
            tracing::warn!(%error, "what has ended could not be cleaned up; trying again");
        }
        let until = due
            .next
            .and_then(|at| Duration::try_from(at.duration_since(now)).ok())
            .unwrap_or(IDLE);
        tokio::select! {
            () = control.stop.cancelled() => return,
            () = async {
                sleep(SETTLE).await;
                tokio::select! {
                    // The writer is gone: the stop token follows.
                    changed = worlds.changed() => if changed.is_err() { std::future::pending::<()>().await },
                    () = sleep(until.min(IDLE)) => {}
                }
            } => {}
        }
    }
}

async fn settle(control: &Control, grace: SignedDuration, started: Timestamp) -> Result<(), OpError> {
    let removed = control
        .ops
        .submit(move |world, context| {
            // Judged again by the writer: a node may have come back meanwhile.
            let due = due(world, context.now, grace, started);
            let mut changes = Vec::new();
            for id in due.expired {
                let presence = Presence {
                    expired: true,
                    ..world.presence(id)
                };
                changes.push(Change::SetPresence(id, presence));
            }
            changes.extend(due.abandoned.iter().flat_map(|id| removal(world, *id)));
            Ok(Decision::new(changes, due.abandoned))
        })
        .await?;
    for id in removed {
        tracing::info!(node = id.0, "ephemeral node removed");
    }
    control.ops.drop_expired_tokens().await
}

fn due(world: &World, now: Timestamp, grace: SignedDuration, started: Timestamp) -> Due {
    let mut due = Due::default();
    for node in world.nodes() {
        let presence = world.presence(node.id);
        match node.expires.filter(|_| !presence.expired) {
            Some(at) if at <= now => due.expired.push(node.id),
            Some(at) => due.later(at),
            None => {}
        }
        if node.ephemeral && !presence.online {
            let since = node.last_seen.unwrap_or(node.created).max(started);
            match since.checked_add(grace) {
                Ok(at) if at <= now => due.abandoned.push(node.id),
                Ok(at) => due.later(at),
                Err(_) => {}
            }
        }
    }
    for token in world.tokens() {
        if token.expires <= now {
            due.tokens = true;
        } else {
            due.later(token.expires);
        }
    }
    due
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Lab;

    const GRACE: SignedDuration = SignedDuration::from_secs(300);

    fn after(at: Timestamp, seconds: i64) -> Timestamp {
        at.checked_add(SignedDuration::from_secs(seconds)).unwrap()
    }

    #[test]
    fn an_ephemeral_node_goes_when_it_was_away_for_the_grace() {
        let mut lab = Lab::new();
        let key = lab.auth_key(Some(1), &[], |key| key.ephemeral = true);
        lab.join(1, &key, "a");
        let (id, now) = (NodeId(1), lab.context.now);
        let away = |lab: &Lab, at, started| due(&lab.world, at, GRACE, started).abandoned;
        assert_eq!(away(&lab, after(now, 299), now), []);
        assert_eq!(away(&lab, after(now, 300), now), [id]);
        assert_eq!(
            away(&lab, after(now, 300), after(now, 10)),
            [],
            "a restart starts the time anew"
        );

        let online = Presence {
            online: true,
            ..Presence::default()
        };
        lab.apply(&[Change::SetPresence(id, online)]);
        assert_eq!(away(&lab, after(now, 9999), now), []);
        lab.pass(1000);
        lab.run(|world, context| Ok(crate::poll::disconnect(world, context, id)))
            .unwrap();
        assert_eq!(away(&lab, after(now, 1299), now), []);
        assert_eq!(away(&lab, after(now, 1300), now), [id]);
    }

    #[test]
    fn nodes_that_are_not_ephemeral_stay() {
        let mut lab = Lab::new();
        let key = lab.auth_key(None, &["tag:k8s"], |_| {});
        lab.join(1, &key, "a");
        let far = after(lab.context.now, 1_000_000_000);
        assert_eq!(due(&lab.world, far, GRACE, lab.context.now), Due::default());
    }

    #[test]
    fn a_key_that_ends_is_noted_once() {
        let mut lab = Lab::new();
        let key = lab.auth_key(Some(1), &[], |_| {});
        lab.join(1, &key, "a");
        let end = lab.world.node(NodeId(1)).unwrap().expires.unwrap();
        let early = due(&lab.world, lab.context.now, GRACE, lab.context.now);
        assert_eq!((early.expired, early.next), (vec![], Some(end)));
        assert_eq!(due(&lab.world, end, GRACE, end).expired, [NodeId(1)]);
        let expired = Presence {
            expired: true,
            ..Presence::default()
        };
        lab.apply(&[Change::SetPresence(NodeId(1), expired)]);
        assert!(due(&lab.world, end, GRACE, end).is_empty());
    }
}
