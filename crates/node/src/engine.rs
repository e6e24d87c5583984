//! How packets move: one core per node, run to completion under one lock by whoever has something for it.
//!
//! A relay connection that read a batch of packets, an application that writes, and the timer each lock the core, let it
//! work, and take out what it has to say before they unlock: packets go to the UDP socket and into the queues of relay
//! connections, deadlines to the timer, and the wakers of those who wait for sockets are woken. No packet crosses a channel or a task of its own.

use std::collections::HashMap;
use std::sync::Arc;
use std::task::Waker;
use std::{fmt, io};

use parking_lot::Mutex;
use tailwharf_node_core::netmap::Netmap;
use tailwharf_node_core::{CloseReason, ConnId, Core, CoreConfig, Event, ListenerId, Path, PathState, UdpId};
use tailwharf_wire::key::{DiscoPrivate, NodePrivate};
use tailwharf_wire::tailcfg::{RegionId, StableId};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::api::{NodeStatus, PathKind, PeerPath};
use crate::derp::Relays;
use crate::direct::{Reach, Socket};
use crate::host::Host;
use crate::inquiry::{Answered, PingWaiters};
use crate::offload::NamedOffload;
use crate::tun;

/// How many peers the status tells of.
const MAX_PATHS_TOLD: usize = 64;
/// How many peers are woken when the node has moved here.
const MAX_WOKEN: usize = 32;

/// The running part of one node.
pub(crate) struct Engine {
    host: Host,
    running: Mutex<Running>,
    relays: Relays,
    links: Links,
    reach: watch::Sender<Reach>,
    stun_plan: Notify,
    /// Peers to start handshakes with once the netmap has them.
    wake: Mutex<Vec<StableId>>,
    timer: Notify,
    status: watch::Sender<NodeStatus>,
    netmap: watch::Sender<Netmap>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// What carries the packets of one node beside its relay connections.
#[derive(Debug, Clone, Default)]
pub(crate) struct Links {
    pub(crate) socket: Option<Arc<Socket>>,
    pub(crate) tun: Option<Arc<tun::Device>>,
}

impl Links {
    fn offloads(&self) -> Vec<NamedOffload> {
        let udp = self.socket.iter().flat_map(|socket| socket.offloads());
        udp.chain(self.tun.iter().flat_map(|tun| tun.offloads()))
            .collect()
    }
}

/// The core and who waits for it.
pub(crate) struct Running {
    pub(crate) core: Core,
    pub(crate) waiters: Waiters,
    pub(crate) closed: bool,
    /// What the timer waits for.
    armed: Option<std::time::Instant>,
}

/// Those who wait for sockets. Entries exist only while somebody waits.
#[derive(Default)]
pub(crate) struct Waiters {
    pub(crate) readers: HashMap<ConnId, Waker>,
    pub(crate) writers: HashMap<ConnId, Waker>,
    pub(crate) connecting: HashMap<ConnId, Connecting>,
    pub(crate) acceptors: HashMap<ListenerId, Vec<Waker>>,
    pub(crate) udp: HashMap<UdpId, Vec<Waker>>,
    pub(crate) transit: Option<Waker>,
    pub(crate) pings: PingWaiters,
}

/// A connection that we are opening.
#[derive(Default)]
pub(crate) struct Connecting {
    pub(crate) done: Option<Result<(), CloseReason>>,
    pub(crate) waker: Option<Waker>,
}

impl Waiters {
    fn take_all(&mut self) -> Vec<Waker> {
        let Self {
            readers,
            writers,
            connecting,
            acceptors,
            udp,
            transit,
            // Whoever waits for a ping learns of the end by its channel.
            pings: _,
        } = std::mem::take(self);
        let single = readers.into_values().chain(writers.into_values());
        let connecting = connecting.into_values().filter_map(|connecting| connecting.waker);
        let many = acceptors.into_values().chain(udp.into_values()).flatten();
        single.chain(connecting).chain(many).chain(transit).collect()
    }

    /// Takes who waits for `event`.
    fn on(&mut self, event: &Event, woken: &mut Vec<Waker>) {
        match *event {
            Event::Acceptable(listener) => {
                woken.extend(self.acceptors.remove(&listener).into_iter().flatten());
            }
            Event::UdpReadable(socket) => woken.extend(self.udp.remove(&socket).into_iter().flatten()),
            Event::Transit => woken.extend(self.transit.take()),
            Event::Readable(conn) => woken.extend(self.readers.remove(&conn)),
            Event::Writable(conn) => woken.extend(self.writers.remove(&conn)),
            Event::Connected(conn) => self.connected(conn, Ok(()), woken),
            Event::Closed { conn, reason } => {
                self.connected(conn, Err(reason), woken);
                woken.extend(self.readers.remove(&conn));
                woken.extend(self.writers.remove(&conn));
            }
            Event::PingReply {
                ping,
                latency,
                path,
                peer_api_port,
                ..
            } => {
                let answer = Answered {
                    latency,
                    path,
                    peer_api_port,
                };
                self.pings.answered(ping, answer);
            }
            Event::PingTimeout(ping) => self.pings.timed_out(ping),
            Event::PeerActive { .. } | Event::PathChanged { .. } | Event::EndpointsChanged => {}
        }
    }

    fn connected(&mut self, conn: ConnId, result: Result<(), CloseReason>, woken: &mut Vec<Waker>) {
        if let Some(connecting) = self.connecting.get_mut(&conn) {
            connecting.done.get_or_insert(result);
            woken.extend(connecting.waker.take());
        }
    }
}

impl Engine {
    pub(crate) fn start(
        host: Host,
        node_key: NodePrivate,
        disco_key: DiscoPrivate,
        links: Links,
        mut status: NodeStatus,
        seed: [u8; 32],
    ) -> Arc<Self> {
        let budget = host.tcp_buffers().clone();
        let buffers = host.buffers().clone();
        let config = CoreConfig {
            node_key: node_key.clone(),
            disco_key,
            budget,
            buffers,
            accept_routes: false,
            direct: links.socket.is_some(),
        };
        let mut core = Core::new(config, seed, Instant::now().into_std());
        if let Some(tun) = &links.tun {
            let (tcp, udp) = tun.takes_large();
            core.attach_tun(tcp, udp);
        }
        status.offloads = links.offloads();
        let engine = Arc::new_cyclic(|engine| Self {
            host,
            running: Mutex::new(Running {
                core,
                waiters: Waiters::default(),
                closed: false,
                armed: None,
            }),
            relays: Relays::new(engine.clone(), node_key),
            links,
            reach: watch::Sender::default(),
            stun_plan: Notify::new(),
            wake: Mutex::default(),
            timer: Notify::new(),
            status: watch::Sender::new(status),
            netmap: watch::Sender::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        engine.spawn(run_timer(engine.clone()));
        engine
    }

    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    pub(crate) fn relays(&self) -> &Relays {
        &self.relays
    }

    /// Runs a task that ends with the node. What it logs tells whose node it is, if whoever started the node does.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        let task = async move {
            stop.run_until_cancelled(task).await;
        };
        self.tasks.spawn(task.in_current_span());
    }

    pub(crate) fn watch_status(&self) -> watch::Receiver<NodeStatus> {
        self.status.subscribe()
    }

    pub(crate) fn update_status(&self, change: impl FnOnce(&mut NodeStatus)) {
        self.status.send_if_modified(|status| {
            let before = status.clone();
            change(status);
            *status != before
        });
    }

    /// Tells whether the connection to `region` stands, if that is the home.
    pub(crate) fn set_relay_connected(&self, region: RegionId, connected: bool) {
        self.update_status(|status| {
            if status.home_region == Some(region) {
                status.relay_connected = connected;
            }
        });
    }

    pub(crate) fn set_home(&self, home: Option<RegionId>, connected: bool) {
        self.update_status(|status| {
            status.home_region = home;
            status.relay_connected = connected;
        });
    }

    /// The view of the tailnet, now and as it changes.
    pub(crate) fn watch_netmap(&self) -> watch::Receiver<Netmap> {
        self.netmap.subscribe()
    }

    pub(crate) fn set_netmap(&self, netmap: Netmap) {
        self.netmap.send_replace(netmap.clone());
        let has_peers = netmap.peers().next().is_some();
        self.with_core(|core, now| core.handle_netmap(netmap, now));
        if has_peers {
            let wake = std::mem::take(&mut *self.wake.lock());
            self.with_core(|core, now| core.wake_peers(&wake, now));
        }
    }

    /// Starts handshakes with these peers as soon as the netmap tells of any.
    pub(crate) fn wake_later(&self, mut peers: Vec<StableId>) {
        peers.truncate(MAX_WOKEN);
        *self.wake.lock() = peers;
    }

    pub(crate) fn set_node_key(&self, node_key: NodePrivate) {
        self.with_core(|core, _| core.handle_node_key(&node_key));
        self.relays.set_node_key(node_key);
    }

    /// Lets the core work, and carries out what follows from it.
    pub(crate) fn with_core<R>(&self, work: impl FnOnce(&mut Core, std::time::Instant) -> R) -> R {
        self.with(|running, now| work(&mut running.core, now))
    }

    /// As [`Engine::with_core`], for those who may have to wait.
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut Running, std::time::Instant) -> R) -> R {
        let now = Instant::now().into_std();
        let mut woken = Vec::new();
        let result = {
            let mut running = self.running.lock();
            let result = work(&mut running, now);
            self.settle(&mut running, now, &mut woken);
            result
        };
        woken.into_iter().for_each(Waker::wake);
        result
    }

    /// As [`Engine::with_core`], for a thread that carries packets as long as there are any: others may not have their turn meanwhile, so it does what is due
    /// as well. Does nothing once the node is closed.
    pub(crate) fn carry(&self, work: impl FnOnce(&mut Core, std::time::Instant) -> bool) -> bool {
        self.with(|running, now| {
            if running.closed {
                return false;
            }
            if running.armed.is_some_and(|at| at <= now) {
                running.armed = None;
                running.core.handle_timeout(now);
            }
            work(&mut running.core, now)
        })
    }

    /// Takes out all that the core has to say.
    fn settle(&self, running: &mut Running, now: std::time::Instant, woken: &mut Vec<Waker>) {
        let Running {
            core, waiters, armed, ..
        } = running;
        let mut offloads_changed = false;
        while let Some(transmit) = core.poll_transmit(now) {
            match transmit.path {
                Path::Derp { region, peer } => self.relays.send(region, &peer, transmit.datagrams()),
                Path::Udp(to) => {
                    if let Some(socket) = &self.links.socket {
                        offloads_changed |= !socket.send(to, &transmit, self.links.tun.is_some());
                    }
                }
            }
        }
        if let Some(tun) = &self.links.tun {
            while let Some(packet) = core.poll_tun() {
                offloads_changed |= !tun.write(&packet);
            }
            if offloads_changed {
                let (tcp, udp) = tun.takes_large();
                core.attach_tun(tcp, udp);
            }
        }
        if offloads_changed {
            self.update_status(|status| status.offloads = self.links.offloads());
        }
        let (mut paths_changed, mut reach_changed) = (false, false);
        while let Some(event) = core.poll_event() {
            paths_changed |= matches!(event, Event::PathChanged { .. } | Event::PeerActive { .. });
            reach_changed |= matches!(event, Event::EndpointsChanged);
            waiters.on(&event, woken);
        }
        if paths_changed {
            self.tell_paths(core, now);
        }
        if reach_changed {
            self.reach.send_replace(Reach {
                endpoints: core.endpoints(),
                facts: core.net_facts(),
            });
        }
        let next = core.poll_timeout().map(|(at, _)| at);
        // A later deadline needs no word: the timer looks again when it wakes.
        if let Some(next) = next
            && armed.is_none_or(|armed| next < armed)
        {
            *armed = Some(next);
            self.timer.notify_one();
        }
    }

    fn tell_paths(&self, core: &Core, now: std::time::Instant) {
        let paths = core
            .peer_paths(MAX_PATHS_TOLD, now)
            .into_iter()
            .map(|path| PeerPath {
                device_id: path.peer.stable_id.clone(),
                fqdn: path.peer.name.to_string(),
                kind: match path.path {
                    PathState::Direct { address, .. } => PathKind::Direct { address },
                    PathState::Relay { region, why } => PathKind::Relay { region, why },
                },
            });
        let paths: Vec<_> = paths.collect();
        self.update_status(|status| status.paths = paths);
    }

    /// Takes what one call of the socket brings.
    pub(crate) fn receive(&self, socket: &Socket) {
        self.with_core(|core, now| {
            let received = socket
                .receive(|from, datagrams, segment| core.handle_udp_batch(from, datagrams, segment, now));
            if let Err(error) = received
                && error.kind() != io::ErrorKind::WouldBlock
            {
                tracing::trace!(%error, "datagrams could not be received");
            }
        });
    }

    pub(crate) fn watch_reach(&self) -> watch::Receiver<Reach> {
        self.reach.subscribe()
    }

    /// The relay map or the home region is another one, and so are the STUN servers to ask.
    pub(crate) fn change_stun_plan(&self) {
        self.stun_plan.notify_one();
    }

    pub(crate) async fn stun_plan_changed(&self) {
        self.stun_plan.notified().await;
    }

    /// Ends everything: sockets fail from now on, tasks end.
    pub(crate) fn close(&self) {
        let woken = {
            let mut running = self.running.lock();
            running.closed = true;
            running.waiters.take_all()
        };
        self.relays.close();
        self.stop.cancel();
        woken.into_iter().for_each(Waker::wake);
    }

    /// Whether [`Engine::close`] was called.
    pub(crate) fn is_closed(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Returns once [`Engine::close`] was called.
    pub(crate) async fn closed(&self) {
        self.stop.cancelled().await;
    }

    /// Returns when all tasks have ended, after [`Engine::close`].
    pub(crate) async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("status", &*self.status.borrow())
            .finish_non_exhaustive()
    }
}

/// Calls the core when its deadline comes.
async fn run_timer(engine: Arc<Engine>) {
    loop {
        let armed = engine.running.lock().armed;
        let due = async {
            match armed {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = engine.timer.notified() => {}
            () = due => engine.with(|running, now| {
                running.armed = None;
                running.core.handle_timeout(now);
            }),
        }
    }
}
