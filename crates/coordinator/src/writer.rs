//! The one writer.
//!
//! Decisions come in by a queue. The writer takes as many as wait, runs them one after the other on a copy of the world, stores all their changes in
//! one transaction, and only then publishes the new world and gives the answers. When the transaction fails, the copy is dropped: all of the batch
//! are refused, and the world is what it was.

use std::{sync::Arc, thread};

use tokio::sync::{mpsc, watch};

use crate::{
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
}

/// Makes worlds out of worlds.
pub(crate) struct Writer {
    pub(crate) store: Box<dyn Store>,
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
        let mut changes = Vec::new();
        let mut replies = Vec::new();
        self.context.now = (self.clock)();
        for message in batch.drain(..) {
            let Message::Job(job) = message else { continue };
            let settled = job(&world, &mut self.context);
            for change in &settled.changes {
                world.apply(change, &mut effects);
            }
            changes.extend(settled.changes);
            replies.push(settled.reply);
        }
        let stored = self.store(&changes, &world).map_err(Arc::new);
        if stored.is_ok() && !changes.is_empty() {
            world.settle(&mut effects);
            let world = Arc::new(world);
            self.sessions.publish(&old, &world, &effects);
            self.published.send_replace(world);
        }
        if let Err(error) = &stored {
            tracing::error!(%error, cause = ?std::error::Error::source(error), refused = replies.len(), "changes were not stored");
        }
        for reply in replies {
            reply(stored.clone());
        }
    }

    fn store(&mut self, changes: &[Change], world: &World) -> Result<(), StoreError> {
        if changes
            .iter()
            .all(|change| matches!(change, Change::SetPresence(..)))
        {
            return Ok(());
        }
        self.store.commit(changes, world.counters())
    }
}

#[cfg(test)]
mod tests;
