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
