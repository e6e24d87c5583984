//! The map streams that are open, and which of them a change concerns.
//!
//! A stream keeps no copy of what it sent: what a node sees follows from a [`World`] alone, so the stream keeps the world that its client has seen
//! last (`base`) and which nodes may have changed since (`dirty`). The writer marks the streams that a change concerns and moves the base of all
//! others along, so that old worlds live only as long as a slow client holds them.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tailwharf_wire::tailcfg::NodeId;
use tokio::sync::Notify;

use crate::world::{Effects, World};

/// What may differ between the base of a stream and the latest world.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dirty {
    /// These nodes.
    pub(crate) nodes: BTreeSet<NodeId>,
    /// Anything.
    pub(crate) everything: bool,
}

impl Dirty {
    fn is_empty(&self) -> bool {
        !self.everything && self.nodes.is_empty()
    }
}

/// What a stream has to bring its client up to date from and to.
#[derive(Debug)]
pub(crate) struct Due {
    pub(crate) base: Arc<World>,
    pub(crate) latest: Arc<World>,
    pub(crate) dirty: Dirty,
}

#[derive(Debug)]
struct Slot {
    base: Arc<World>,
    latest: Arc<World>,
    dirty: Dirty,
}

/// One open stream, shared by the stream and the registry.
#[derive(Debug)]
pub(crate) struct Session {
    node: NodeId,
    generation: u64,
    slot: Mutex<Option<Slot>>,
    woken: Notify,
}

impl Session {
    /// Waits until something may have changed. `false` once another stream has taken this one's place, or the node is gone.
    pub(crate) async fn changed(&self) -> bool {
        loop {
            match lock(&self.slot).as_ref() {
                None => return false,
                Some(slot) if !slot.dirty.is_empty() => return true,
                Some(_) => {}
            }
            self.woken.notified().await;
        }
    }

    /// Takes what is due and moves the base to the latest world.
    pub(crate) fn take(&self) -> Option<Due> {
        let mut slot = lock(&self.slot);
        let slot = slot.as_mut()?;
        let base = std::mem::replace(&mut slot.base, slot.latest.clone());
        Some(Due {
            base,
            latest: slot.latest.clone(),
            dirty: std::mem::take(&mut slot.dirty),
        })
    }

    fn close(&self) {
        *lock(&self.slot) = None;
        self.woken.notify_one();
    }

    /// Notes a new world, and what of it concerns this stream.
    fn note(&self, old: &World, new: &Arc<World>, effects: &Effects) {
        let mut slot = lock(&self.slot);
        let Some(slot) = slot.as_mut() else { return };
        slot.latest = new.clone();
        if effects.everyone || effects.reclassified.contains(&self.node) {
            slot.dirty.everything = true;
        }
        let sees = |other: NodeId| {
            other == self.node
                || old.compiled().can_see(self.node, other)
                || new.compiled().can_see(self.node, other)
        };
        slot.dirty
            .nodes
            .extend(effects.nodes.iter().copied().filter(|node| sees(*node)));
        if slot.dirty.is_empty() {
            slot.base = new.clone();
        } else {
            self.woken.notify_one();
        }
    }
}

#[derive(Debug)]
struct Registry {
    world: Arc<World>,
    generation: u64,
    open: HashMap<NodeId, Arc<Session>>,
    /// The latest stream that each node had, until it counts as gone.
    latest: HashMap<NodeId, u64>,
}

/// All open streams.
#[derive(Debug)]
pub(crate) struct Sessions(Mutex<Registry>);

impl Sessions {
    pub(crate) fn new(world: Arc<World>) -> Self {
        let registry = Registry {
            world,
            generation: 0,
            open: HashMap::new(),
            latest: HashMap::new(),
        };
        Self(Mutex::new(registry))
    }

    /// Opens a stream for a node and ends the one that it had. The stream starts from the world that is returned.
    pub(crate) fn open(&self, node: NodeId) -> (Arc<Session>, Arc<World>) {
        let mut registry = lock(&self.0);
        registry.generation += 1;
        let world = registry.world.clone();
        let slot = Slot {
            base: world.clone(),
            latest: world.clone(),
            dirty: Dirty::default(),
        };
        let session = Arc::new(Session {
            node,
            generation: registry.generation,
            slot: Mutex::new(Some(slot)),
            woken: Notify::new(),
        });
        registry.latest.insert(node, session.generation);
        if let Some(former) = registry.open.insert(node, session.clone()) {
            former.close();
        }
        (session, world)
    }

    /// Ends a stream. Whether it was the node's latest: then the node is about to be offline.
    pub(crate) fn close(&self, session: &Session) -> bool {
        let mut registry = lock(&self.0);
        let is_latest = registry
            .open
            .get(&session.node)
            .is_some_and(|open| open.generation == session.generation);
        if is_latest {
            registry.open.remove(&session.node);
        }
        is_latest
    }

    /// Whether the node had no stream after this one. It is forgotten then.
    pub(crate) fn was_last(&self, session: &Session) -> bool {
        let mut registry = lock(&self.0);
        let was_last = registry.latest.get(&session.node) == Some(&session.generation);
        if was_last {
            registry.latest.remove(&session.node);
        }
        was_last
    }

    /// Tells all streams that a change concerns of the new world. The work grows with the streams times the changed nodes.
    pub(crate) fn publish(&self, old: &World, new: &Arc<World>, effects: &Effects) {
        let mut registry = lock(&self.0);
        let Registry {
            world, open, latest, ..
        } = &mut *registry;
        *world = new.clone();
        open.retain(|node, session| {
            let exists = new.node(*node).is_some();
            if exists {
                session.note(old, new, effects);
            } else {
                session.close();
                latest.remove(node);
            }
            exists
        });
    }
}

/// A poisoned lock means that a thread panicked between two statements that leave the data whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
