//! The one writer.
//!
//! Decisions come in by a queue. The writer takes as many as wait, runs them one after the other on a copy of the world, stores all their changes in
//! one transaction, and only then publishes the new world and gives the answers. When the transaction fails, the copy is dropped: all of the batch
//! are refused, and the world is what it was, but for who is online, which is never stored.

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    thread,
    time::Instant,
};

use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    metrics::Counters,
    ops::Context,
    sessions::Sessions,
    store::{Store, StoreError},
    world::{Change, Effects, World},
};

/// Jobs that may wait; who asks for more waits until there is room.
pub(crate) const QUEUE: usize = 1024;
/// Jobs in one transaction at most.
const BATCH: usize = 256;

/// A decision, bound to the answer that waits for it.
pub(crate) type Job = Box<dyn FnOnce(&World, &mut Context) -> Settled + Send>;

/// What the writer is told.
pub(crate) enum Message {
    /// Run this.
    Job(Job),
    /// Copy the store.
    BackUp {
        /// The new file.
        to: PathBuf,
        /// Where the outcome is waited for.
        reply: oneshot::Sender<Result<(), StoreError>>,
    },
    /// Run what waits, take nothing more, and end.
    Stop,
}

/// What a decision wants stored, and how it learns whether it was.
pub(crate) struct Settled {
    pub(crate) changes: Vec<Change>,
    pub(crate) reply: Box<dyn FnOnce(Result<(), Arc<StoreError>>) + Send>,
}

impl Settled {
    /// For a decision that has given its answer already.
    pub(crate) fn nothing() -> Self {
        Self {
            changes: Vec::new(),
            reply: Box::new(|_| {}),
        }
    }

    /// Whether the decision changes only what is not stored, of nodes that are stored already. It does not depend on the store, then.
    fn is_volatile(&self, stored: &World) -> bool {
        let is_volatile = |change: &Change| match change {
            Change::SetPresence(id, _) => stored.node(*id).is_some(),
            change => change.is_volatile(),
        };
        !self.changes.is_empty() && self.changes.iter().all(is_volatile)
    }
}

/// Makes worlds out of worlds.
pub(crate) struct Writer {
    pub(crate) store: Box<dyn Store>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) context: Context,
    pub(crate) clock: fn() -> jiff::Timestamp,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) published: watch::Sender<Arc<World>>,
}

impl Writer {
    /// Starts the thread. It ends when it is told to, or the last sender of `queue` is gone.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn spawn(
        mut self,
        mut queue: mpsc::Receiver<Message>,
    ) -> Result<thread::JoinHandle<()>, std::io::Error> {
        thread::Builder::new().name("writer".to_owned()).spawn(move || {
            let mut batch = Vec::new();
            while queue.blocking_recv_many(&mut batch, BATCH) > 0 {
                if batch.iter().any(|message| matches!(message, Message::Stop)) {
                    queue.close();
                }
                self.run(&mut batch);
            }
        })
    }

    fn run(&mut self, batch: &mut Vec<Message>) {
        let old = self.published.borrow().clone();
        let mut world = old.as_ref().clone();
        let mut effects = Effects::default();
        let mut outcomes = Vec::new();
        self.context.now = (self.clock)();
        for message in batch.drain(..) {
            let job = match message {
                Message::Job(job) => job,
                Message::BackUp { to, reply } => {
                    // Who asked and has gone away will not miss the answer.
                    let _ = reply.send(self.store.back_up(&to));
                    continue;
                }
                Message::Stop => continue,
            };
            let settled = job(&world, &mut self.context);
            for change in &settled.changes {
                world.apply(change, &mut effects);
            }
            outcomes.push(settled);
        }
        let stored = self.store(&outcomes, &world).map_err(Arc::new);
        if let Err(error) = &stored {
            tracing::error!(%error, cause = ?std::error::Error::source(error), "changes were not stored");
            world = old.as_ref().clone();
            effects = Effects::default();
            for change in outcomes
                .iter()
                .filter(|settled| settled.is_volatile(&old))
                .flat_map(|settled| &settled.changes)
            {
                world.apply(change, &mut effects);
            }
        }
        if !effects.is_empty()
            || (stored.is_ok() && outcomes.iter().any(|settled| !settled.changes.is_empty()))
        {
            world.settle(&mut effects);
            let world = Arc::new(world);
            self.sessions.publish(&old, &world, &effects);
            self.published.send_replace(world);
        }
        for settled in outcomes {
            let outcome = if settled.is_volatile(&old) {
                Ok(())
            } else {
                stored.clone()
            };
            (settled.reply)(outcome);
        }
    }

    fn store(&mut self, outcomes: &[Settled], world: &World) -> Result<(), StoreError> {
        let changes: Vec<Change> = outcomes
            .iter()
            .flat_map(|settled| settled.changes.iter().cloned())
            .collect();
        if changes.iter().all(Change::is_volatile) {
            return Ok(());
        }
        let begun = Instant::now();
        let stored = self.store.commit(&changes, world.counters());
        let counters = &self.counters;
        let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        counters.commit_micros.add(micros);
        counters.store_fails.store(stored.is_err(), Ordering::Relaxed);
        if stored.is_ok() {
            counters.commits.add(1);
            counters.changes.add(changes.len() as u64);
        } else {
            counters.commits_failed.add(1);
        }
        stored
    }
}

#[cfg(test)]
mod tests;
