//! Carries what peers send to networks that this node routes for them (as a subnet router, exit node or app connector) by sockets of this machine, so that it
//! needs neither a device nor a right for that. What the packet filter does not allow never comes here.
//!
//! A connection is answered once the one behind it stands, so that a peer sees a closed port as closed. Datagrams of one source and destination share a
//! socket until they are silent for a while. Pings are answered when who was pinged has answered ours. An address of a site (4via6) stands for the IPv4
//! address in it.

mod datagrams;
mod echo;
mod room;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use tailwharf_node_core::{AskedId, Io, Transit, via};
use tokio::net::TcpStream as Outside;
use tokio::task::JoinSet;
use tokio::time::timeout;

use self::datagrams::Flows;
use self::room::{Place, Room};
use crate::engine::Engine;
use crate::splice::{Buffers, IdleLimits, Traffic, splice};
use crate::tcp::TcpStream;

/// How long a connection to a network may take to be made. A client has repeated its question several times by then.
const DIAL_TIMEOUT: Duration = Duration::from_secs(15);
/// Requests taken from the core at once.
const BATCH: usize = 64;

/// What a node has carried between peers and the networks that it routes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TransitCounts {
    /// TCP connections, UDP flows and pings that are under way.
    pub open: u64,
    /// TCP connections that were made.
    pub connections: u64,
    /// TCP connections that failed because nobody answered at the address.
    pub refused: u64,
    /// UDP flows that were begun.
    pub flows: u64,
    /// Connections and flows that were not taken because too many were under way.
    pub over_limit: u64,
    /// Bytes from peers to networks.
    pub bytes_to_networks: u64,
    /// Bytes from networks to peers.
    pub bytes_from_networks: u64,
}

/// As the counts grow.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    connections: AtomicU64,
    refused: AtomicU64,
    flows: AtomicU64,
    over_limit: AtomicU64,
    traffic: Traffic,
}

/// Carries for one node.
#[derive(Debug)]
pub(crate) struct Carrier {
    engine: Arc<Engine>,
    room: Room,
    counters: Counters,
    buffers: Arc<Buffers>,
}

impl Carrier {
    pub(crate) fn new(engine: Arc<Engine>) -> Arc<Self> {
        let room = Room::new(engine.host().transit_room().clone());
        Arc::new(Self {
            engine,
            room,
            counters: Counters::default(),
            buffers: Arc::default(),
        })
    }

    pub(crate) fn counts(&self) -> TransitCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        TransitCounts {
            open: self.room.taken(),
            connections: read(&counters.connections),
            refused: read(&counters.refused),
            flows: read(&counters.flows),
            over_limit: read(&counters.over_limit),
            bytes_to_networks: read(&counters.traffic.to_backend),
            bytes_from_networks: read(&counters.traffic.from_backend),
        }
    }

    /// Carries until it is dropped.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut flows = Flows::default();
        let mut tasks = JoinSet::new();
        let mut batch = Vec::new();
        loop {
            self.next(&mut batch).await;
            // A flood is taken in turns with the other tasks.
            tokio::task::coop::consume_budget().await;
            while tasks.try_join_next().is_some() {}
            for transit in batch.drain(..) {
                match transit {
                    Transit::Connection { asked, from, to } => {
                        let request = Request {
                            carrier: self.clone(),
                            asked: Some(asked),
                        };
                        let Some(place) = self.enter(from.ip()) else {
                            continue;
                        };
                        if let Some(target) = self.target(to) {
                            tasks.spawn(request.answer(from, target, place));
                        }
                    }
                    Transit::Datagram(datagram) => flows.take(&self, datagram),
                    Transit::Echo(echo) => {
                        let Some(target) = self.target(SocketAddr::new(echo.to, 0)) else {
                            continue;
                        };
                        if let Some(place) = self.room.enter_for_echo(echo.from) {
                            tasks.spawn(echo::answer(self.clone(), echo, target.ip(), place));
                        }
                    }
                }
            }
        }
    }

    /// Waits for something that peers sent, and takes what there is of it.
    async fn next(&self, batch: &mut Vec<Transit>) {
        std::future::poll_fn(|cx| {
            self.engine.with(|running, _| {
                while batch.len() < BATCH {
                    match running.core.next_transit() {
                        Io::Ready(transit) => batch.push(transit),
                        Io::Pending => break,
                    }
                }
                if batch.is_empty() {
                    running.waiters.transit = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                Poll::Ready(())
            })
        })
        .await;
    }

    fn enter(&self, peer: IpAddr) -> Option<Place> {
        let place = self.room.enter(peer);
        if place.is_none() {
            count(&self.counters.over_limit);
        }
        place
    }

    /// Where to connect to for an address that a peer named. An exit leads away from the machine, not into it.
    fn target(&self, to: SocketAddr) -> Option<SocketAddr> {
        let is_named = self.engine.with_core(|core, _| core.is_named_route(to.ip()));
        if !is_named && self.engine.host().interfaces().borrow().contains(&to.ip()) {
            return None;
        }
        Some(SocketAddr::new(
            via(to.ip()).map_or_else(|| to.ip(), IpAddr::V4),
            to.port(),
        ))
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A connection that a peer asks for; refused unless it is answered otherwise.
#[derive(Debug)]
struct Request {
    carrier: Arc<Carrier>,
    asked: Option<AskedId>,
}

impl Drop for Request {
    fn drop(&mut self) {
        if let Some(asked) = self.asked.take() {
            self.carrier.engine.with_core(|core, now| core.refuse(asked, now));
        }
    }
}

impl Request {
    /// Connects, answers, and carries until both sides have ended.
    async fn answer(mut self, from: SocketAddr, target: SocketAddr, _place: Place) {
        let carrier = self.carrier.clone();
        let outside = match timeout(DIAL_TIMEOUT, Outside::connect(target)).await {
            Ok(Ok(outside)) => outside,
            Ok(Err(error)) => {
                count(&carrier.counters.refused);
                tracing::debug!(%from, %target, %error, "a routed connection was refused");
                return;
            }
            Err(_) => {
                count(&carrier.counters.refused);
                tracing::debug!(%from, %target, "a routed connection was not answered");
                return;
            }
        };
        // Without it there is more delay, and no harm.
        let _ = outside.set_nodelay(true);
        let Some(asked) = self.asked.take() else { return };
        let peer = match TcpStream::admit(&carrier.engine, asked) {
            Ok(peer) => peer,
            Err(error) => {
                tracing::debug!(%from, %target, %error, "a routed connection was not taken");
                return;
            }
        };
        count(&carrier.counters.connections);
        let traffic = &carrier.counters.traffic;
        let carried = splice(peer, outside, &carrier.buffers, traffic, IdleLimits::default()).await;
        if let Err(error) = carried {
            tracing::debug!(%from, %target, %error, "a routed connection broke off");
        }
    }
}
