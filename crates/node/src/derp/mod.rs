//! Relay connections of one node: one to its home region that always stands, and others while they are used.

mod connect;
mod home;
mod link;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, Weak};

use tailwharf_wire::derp::{Frame, encode_send_packet};
use tailwharf_wire::key::{NodePrivate, NodePublic};
use tailwharf_wire::tailcfg::{DerpMap, RegionId};

pub(crate) use self::home::Latencies;
use self::link::Link;
use crate::engine::Engine;
use crate::sync::lock;

/// The relay connections of one node.
pub(crate) struct Relays {
    engine: Weak<Engine>,
    state: Mutex<State>,
}

struct State {
    node_key: NodePrivate,
    map: Option<Arc<DerpMap>>,
    home: Option<RegionId>,
    links: HashMap<RegionId, Arc<Link>>,
    closed: bool,
}

impl Relays {
    pub(crate) fn new(engine: Weak<Engine>, node_key: NodePrivate) -> Self {
        let state = State {
            node_key,
            map: None,
            home: None,
            links: HashMap::new(),
            closed: false,
        };
        Self {
            engine,
            state: Mutex::new(state),
        }
    }

    /// Queues packets. Packets for regions out of reach are lost, as on any network.
    pub(crate) fn send<'a>(
        &self,
        region: RegionId,
        to: &NodePublic,
        packets: impl Iterator<Item = &'a [u8]>,
    ) {
        let mut state = lock(&self.state);
        if let Some(link) = self.link(&mut state, region).cloned() {
            drop(state);
            link.send_all(packets, |packet, out| encode_send_packet(to, packet, out));
        }
    }

    /// Takes the relay map, and opens the home connection as soon as it is clear where it goes.
    pub(crate) fn set_map(&self, map: Arc<DerpMap>, last_home: Option<RegionId>) {
        let mut state = lock(&self.state);
        if state
            .map
            .as_ref()
            .is_some_and(|known| Arc::ptr_eq(known, &map) || **known == *map)
        {
            return;
        }
        let gone: Vec<_> = state
            .links
            .keys()
            .filter(|region| !map.regions.contains_key(region))
            .copied()
            .collect();
        for region in gone {
            if let Some(link) = state.links.remove(&region) {
                link.close();
            }
        }
        let present = state.home.or(last_home);
        let home = home::obvious(&map, present);
        let measure = home::needs_measurement(&map);
        state.map = Some(map);
        self.set_home(&mut state, home);
        drop(state);
        if let Some(engine) = self.engine.upgrade() {
            engine.change_stun_plan();
        }
        if measure {
            self.measure_home();
        }
    }

    /// All connections are opened anew as the node with this key.
    pub(crate) fn set_node_key(&self, node_key: NodePrivate) {
        let mut state = lock(&self.state);
        if state.node_key.as_bytes() == node_key.as_bytes() {
            return;
        }
        state.node_key = node_key;
        for (_, link) in state.links.drain() {
            link.close();
        }
        let home = state.home.take();
        self.set_home(&mut state, home);
    }

    /// Closes all connections for good.
    pub(crate) fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        for (_, link) in state.links.drain() {
            link.close();
        }
    }

    /// The connection to a region, opened if need be.
    fn link<'a>(&self, state: &'a mut State, region: RegionId) -> Option<&'a Arc<Link>> {
        if !state.links.contains_key(&region) {
            let known = state
                .map
                .as_ref()
                .is_some_and(|map| map.regions.contains_key(&region));
            if state.closed || !known {
                return None;
            }
            let link = Arc::new(Link::new(region));
            let engine = self.engine.upgrade()?;
            engine.spawn(link::run(engine.clone(), link.clone()));
            state.links.insert(region, link);
        }
        state.links.get(&region)
    }

    fn set_home(&self, state: &mut State, home: Option<RegionId>) {
        if state.home == home {
            return;
        }
        if let Some(old) = state.home.and_then(|region| state.links.get(&region)) {
            old.send(&Frame::NotePreferred(false));
        }
        state.home = home;
        let Some(engine) = self.engine.upgrade() else {
            return;
        };
        engine.set_home(home, false);
        engine.change_stun_plan();
        if let Some(link) = home.and_then(|region| self.link(state, region))
            && link.become_home()
        {
            engine.set_home(home, true);
        }
    }

    /// Measures the regions in the background, and moves home if another is better.
    fn measure_home(&self) {
        let Some(engine) = self.engine.upgrade() else {
            return;
        };
        engine.spawn({
            let engine = engine.clone();
            async move {
                let relays = engine.relays();
                let Some(map) = lock(&relays.state).map.clone() else {
                    return;
                };
                let latencies = home::measure(engine.host(), &map).await;
                let mut state = lock(&relays.state);
                // A map that came meanwhile is measured by itself.
                if state.map.as_ref().is_some_and(|now| Arc::ptr_eq(now, &map)) && !state.closed {
                    let home = home::choose(&map, &latencies, state.home);
                    relays.set_home(&mut state, home);
                }
            }
        });
    }

    /// The relays whose STUN servers may be asked, and which of them are the nearest.
    pub(crate) fn stun_plan(&self) -> Option<(Arc<DerpMap>, Option<RegionId>)> {
        let state = lock(&self.state);
        Some((state.map.clone()?, state.home))
    }

    /// What `link` needs to connect. `None`: it is no longer wanted.
    fn dial_plan(&self, link: &Arc<Link>) -> Option<(Arc<DerpMap>, NodePrivate)> {
        let state = lock(&self.state);
        let wanted = state
            .links
            .get(&link.region())
            .is_some_and(|known| Arc::ptr_eq(known, link));
        if wanted {
            Some((state.map.clone()?, state.node_key.clone()))
        } else {
            None
        }
    }

    /// Whether this is the connection to the home region.
    fn is_home(&self, link: &Arc<Link>) -> bool {
        let state = lock(&self.state);
        state.home == Some(link.region())
            && state
                .links
                .get(&link.region())
                .is_some_and(|known| Arc::ptr_eq(known, link))
    }

    /// Forgets a connection, unless it is the home's or has something to send.
    fn retire(&self, link: &Arc<Link>) -> bool {
        let mut state = lock(&self.state);
        if state.home == Some(link.region()) || link.has_output() {
            return false;
        }
        if state
            .links
            .get(&link.region())
            .is_some_and(|known| Arc::ptr_eq(known, link))
        {
            state.links.remove(&link.region());
        }
        true
    }
}

impl fmt::Debug for Relays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = lock(&self.state);
        f.debug_struct("Relays")
            .field("home", &state.home)
            .field("links", &state.links.len())
            .finish_non_exhaustive()
    }
}
