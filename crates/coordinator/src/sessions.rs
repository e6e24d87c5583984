//! The map streams that are open, and which of them a change concerns.
//!
//! A stream keeps no copy of what it sent: what a node sees follows from a [`World`] alone. The writer marks the streams that a change concerns with
//! the world before it (`base`) and what may differ since (`dirty`); a stream that nothing concerns keeps nothing, and costs nothing.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tailwharf_wire::tailcfg::{NodeId, PingRequest, UserId};
use tokio::sync::Notify;

use crate::world::{Effects, World};

/// Questions that wait for one stream.
const PING_LIMIT: usize = 16;

/// What may differ between what a stream has told and the latest world.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dirty {
    /// These peers.
    pub(crate) nodes: BTreeSet<NodeId>,
    /// The profiles of these users.
    pub(crate) users: BTreeSet<UserId>,
    /// The node itself, and how it resolves names.
    pub(crate) own: bool,
    /// The packet filter.
    pub(crate) filter: bool,
    /// Anything.
    pub(crate) everything: bool,
}

impl Dirty {
    fn extend(&mut self, more: Self) {
        self.nodes.extend(more.nodes);
        self.users.extend(more.users);
        self.own |= more.own;
        self.filter |= more.filter;
        self.everything |= more.everything;
    }
}

/// What a stream has to tell.
#[derive(Debug, Default)]
pub(crate) struct Due {
    pub(crate) update: Option<Update>,
    pub(crate) ping: Option<PingRequest>,
}

/// From and to what a stream has to bring its client up to date.
#[derive(Debug)]
pub(crate) struct Update {
    pub(crate) base: Arc<World>,
    pub(crate) latest: Arc<World>,
    pub(crate) dirty: Dirty,
}

/// What waits for a stream.
#[derive(Debug, Default)]
struct Slot {
    update: Option<Update>,
    pings: VecDeque<PingRequest>,
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
    /// Waits until there is something to tell. `false` once another stream has taken this one's place, or the node is gone.
    pub(crate) async fn changed(&self) -> bool {
        loop {
            match lock(&self.slot).as_ref() {
                None => return false,
                Some(slot) if slot.update.is_some() || !slot.pings.is_empty() => return true,
                Some(_) => {}
            }
            self.woken.notified().await;
        }
    }

    /// Takes what is due.
    pub(crate) fn take(&self) -> Option<Due> {
        let mut slot = lock(&self.slot);
        let slot = slot.as_mut()?;
        Some(Due {
            update: slot.update.take(),
            ping: slot.pings.pop_front(),
        })
    }

    fn close(&self) {
        *lock(&self.slot) = None;
        self.woken.notify_one();
    }

    /// Notes what a step from one world to the next means for this stream.
    fn note(&self, old: &Arc<World>, new: &Arc<World>, mark: impl FnOnce(&mut Dirty)) {
        if let Some(slot) = lock(&self.slot).as_mut() {
            let update = slot.update.get_or_insert_with(|| Update {
                base: old.clone(),
                latest: new.clone(),
                dirty: Dirty::default(),
            });
            update.latest = new.clone();
            mark(&mut update.dirty);
        }
        self.woken.notify_one();
    }

    fn ask(&self, ping: PingRequest) -> bool {
        let asked = lock(&self.slot)
            .as_mut()
            .filter(|slot| slot.pings.len() < PING_LIMIT)
            .map(|slot| slot.pings.push_back(ping))
            .is_some();
        self.woken.notify_one();
        asked
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
        let session = Arc::new(Session {
            node,
            generation: registry.generation,
            slot: Mutex::new(Some(Slot::default())),
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

    /// Whether the node had no stream after this one.
    pub(crate) fn is_last(&self, session: &Session) -> bool {
        lock(&self.0).latest.get(&session.node) == Some(&session.generation)
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

    /// How many streams are open.
    pub(crate) fn count(&self) -> usize {
        lock(&self.0).open.len()
    }

    /// Puts a question to a node. `false`: it has no stream, or does not keep up with what it is asked.
    pub(crate) fn ask(&self, node: NodeId, ping: PingRequest) -> bool {
        let session = lock(&self.0).open.get(&node).cloned();
        session.is_some_and(|session| session.ask(ping))
    }

    /// Tells the streams that a step concerns of it. The work grows with those who see what has changed.
    pub(crate) fn publish(&self, old: &Arc<World>, new: &Arc<World>, effects: &Effects) {
        for check in effects.answered.iter().filter_map(|id| old.check(id)) {
            check.decided.cancel();
        }
        for registration in effects.decided.iter().filter_map(|id| old.registration(id)) {
            registration.decided.cancel();
        }
        let marks = Marks::new(old, new, effects);
        let mut registry = lock(&self.0);
        registry.world = new.clone();
        for id in effects.nodes.iter().filter(|id| new.node(**id).is_none()) {
            registry.latest.remove(id);
            if let Some(session) = registry.open.remove(id) {
                session.close();
            }
        }
        if effects.everyone {
            for session in registry.open.values() {
                session.note(old, new, |dirty| dirty.everything = true);
            }
        } else {
            for (id, more) in marks.0 {
                if let Some(session) = registry.open.get(&id) {
                    session.note(old, new, |dirty| dirty.extend(more));
                }
            }
        }
    }
}

/// Who has to compare what.
#[derive(Debug, Default)]
struct Marks(HashMap<NodeId, Dirty>);

impl Marks {
    fn new(old: &World, new: &World, effects: &Effects) -> Self {
        let mut marks = Self::default();
        if effects.everyone {
            return marks;
        }
        let affected = &effects.affected;
        for id in &effects.nodes {
            for peer in peers(old, new, effects, *id) {
                marks.of(peer).nodes.insert(*id);
            }
        }
        let own = effects.nodes.iter().chain(&effects.own);
        for id in own.chain(&affected.capabilities).chain(&affected.ssh) {
            marks.of(*id).own = true;
        }
        for id in effects.moved.iter().chain(&affected.steering) {
            marks.of(*id).everything = true;
        }
        for id in &affected.filters {
            marks.of(*id).filter = true;
        }
        for pair in &affected.visibility {
            marks.of(pair.a).nodes.insert(pair.b);
            marks.of(pair.b).nodes.insert(pair.a);
        }
        for user in &effects.users {
            for node in new.nodes_of_user(*user) {
                marks.of(node.id).own = true;
                for id in peers(old, new, effects, node.id).chain([node.id]) {
                    marks.of(id).users.insert(*user);
                }
            }
        }
        // Who sees a host knows the service by name.
        for name in &effects.services {
            let hosts = |world: &World| world.service_choice(name).map(|choice| choice.candidates.clone());
            for host in hosts(old).into_iter().chain(hosts(new)).flatten() {
                for id in peers(old, new, effects, host).chain([host]) {
                    marks.of(id).own = true;
                }
            }
        }
        marks
    }

    /// What a node has to compare.
    fn of(&mut self, id: NodeId) -> &mut Dirty {
        self.0.entry(id).or_default()
    }
}

/// Who sees a node, or did.
fn peers(old: &World, new: &World, effects: &Effects, id: NodeId) -> impl Iterator<Item = NodeId> + use<> {
    let former = if effects.affected.is_empty() {
        Vec::new()
    } else {
        old.graph().peers_of(id)
    };
    former.into_iter().chain(new.graph().peers_of(id))
}

/// A poisoned lock means that a thread panicked between two statements that leave the data whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
