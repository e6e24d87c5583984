//! One tailnet node: everything put together.

mod discovery;
mod inner;
mod pinging;
mod transit;
mod tun;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use tailwharf_wire::key::{DiscoPrivate, NodePrivate, NodePublic};
use tailwharf_wire::tailcfg::{RegionId, StableId};

use crate::budget::MemoryBudget;
use crate::buffers::BufferPool;
use crate::disco::Disco;
use crate::endpoints::Endpoints;
use crate::event::{
    Accepted, BindError, ConnError, ConnId, ConnectError, Event, Io, ListenerId, Reason, UdpError, UdpId,
};
use crate::filter::Conntrack;
use crate::fragments::Fragments;
use crate::limit::Limiter;
use crate::netmap::{Netmap, Peer};
use crate::offload::inbox::Inbox;
use crate::outbox::Transmit;
use crate::packet::{proto, write_udp};
use crate::paths::Path;
use crate::pings::Pings;
use crate::tcp::TcpStack;
use crate::transit::TransitQueue;
use crate::tunnel::Tunnel;
use crate::udp::{Datagram, UdpStack};
use crate::whois::{WhoIs, whois};

/// How many denials are told per second; a scan gets no more answers than that.
const MAX_REJECTS: u32 = 20;
/// How many errors about packets of peers are sent per second.
const MAX_ICMP_ERRORS: u32 = 20;

/// What a [`Core`] is made of.
#[derive(Debug)]
pub struct CoreConfig {
    /// The node's identity.
    pub node_key: NodePrivate,
    /// The disco key of this run: new at each start, so that peers drop their sessions with the last one.
    pub disco_key: DiscoPrivate,
    /// Memory for TCP buffers, shared by all cores of the process.
    pub budget: Arc<MemoryBudget>,
    /// Where packets are put together, shared by all cores of the process.
    pub buffers: Arc<BufferPool>,
    /// Whether packets for subnets that peers route go there.
    pub accept_routes: bool,
    /// Whether direct paths are looked for; without them all packets go through relays.
    pub direct: bool,
}

/// What a core has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// IP packets sealed for peers.
    pub packets_out: u64,
    /// IP packets of peers opened.
    pub packets_in: u64,
    /// Messages that were not authentic, late, repeated, or for a session that is gone.
    pub invalid: u64,
    /// Packets that the filter dropped.
    pub denied: u64,
    /// Packets whose source does not belong to the peer that sent them, or that are malformed.
    pub bogus: u64,
    /// Packets for addresses or ports of ours where nothing listens.
    pub undelivered: u64,
    /// Fragments that did not fit the others of their packet, or for which there was no room.
    pub fragments_refused: u64,
    /// Connections that a change of the packet filter ended.
    pub revoked: u64,
    /// Packets that no peer takes, or for whose peer no way is known.
    pub no_route: u64,
    /// Connections that were not opened for lack of backlog, half-open places or memory.
    pub syn_dropped: u64,
}

/// One tailnet node as a state machine.
pub struct Core {
    tunnel: Tunnel,
    disco: Disco,
    endpoints: Endpoints,
    conntrack: Conntrack,
    tcp: TcpStack,
    udp: UdpStack,
    transit: TransitQueue,
    pings: Pings,
    fragments: Fragments,
    rejects: Limiter,
    icmp_errors: Limiter,
    /// The port of the peer API, which lets every peer in: it decides by itself what each may do there.
    peer_api_port: Option<u16>,
    rng: ChaCha20Rng,
    /// Packets for the TUN device, and the one that was opened last.
    inbox: Inbox,
    has_tun: bool,
    /// A packet that we write ourselves.
    scratch: Vec<u8>,
}

impl Core {
    /// A node that knows nothing of its tailnet yet. `seed` comes from a secure source.
    #[must_use]
    pub fn new(config: CoreConfig, seed: [u8; 32], now: Instant) -> Self {
        let mut rng = ChaCha20Rng::from_seed(seed);
        let node_key = config.node_key.public();
        Self {
            inbox: Inbox::new(Arc::clone(&config.buffers)),
            tunnel: Tunnel::new(
                &config.node_key,
                config.buffers,
                config.accept_routes,
                config.direct,
                rng.next_u32(),
            ),
            disco: Disco::new(config.disco_key, node_key),
            endpoints: Endpoints::default(),
            conntrack: Conntrack::default(),
            tcp: TcpStack::new(config.budget, rng.next_u64(), now),
            udp: UdpStack::default(),
            transit: TransitQueue::default(),
            pings: Pings::default(),
            fragments: Fragments::default(),
            rejects: Limiter::new(MAX_REJECTS),
            icmp_errors: Limiter::new(MAX_ICMP_ERRORS),
            peer_api_port: None,
            rng,
            has_tun: false,
            scratch: Vec::new(),
        }
    }

    /// Takes a new view of the tailnet.
    pub fn handle_netmap(&mut self, netmap: Netmap, now: Instant) {
        let same_peers = self.tunnel.netmap.same_peers(&netmap);
        let same_filter = Arc::ptr_eq(self.tunnel.netmap.filter(), netmap.filter());
        self.tunnel.set_netmap(netmap, now);
        if !same_peers {
            self.tcp.drop_unroutable(&mut self.tunnel);
        }
        if !same_filter {
            self.recheck();
        }
    }

    /// Ends what the packet filter does not allow any more.
    fn recheck(&mut self) {
        // An answer passes again once we send the next datagram.
        self.conntrack = Conntrack::default();
        let tunnel = &self.tunnel;
        let peer_api_port = self.peer_api_port;
        let filter = tunnel.netmap.filter();
        let transit = &self.transit;
        let revoked = self.tcp.revoke(|tuple, is_routed| {
            let is_here = !is_routed || transit.takes(tuple.local.ip());
            tunnel.route(tuple.remote.ip()).is_some_and(|peer| {
                is_peer_api(&tunnel.netmap, peer_api_port, peer, tuple.local)
                    || (is_here && filter.admits(peer, tuple.remote.ip(), tuple.local))
            })
        });
        self.tunnel.counters.revoked += revoked;
    }

    /// Lets all visible peers connect to the peer API on `port` of our own addresses, and tells it in answers to TSMP pings.
    pub fn set_peer_api_port(&mut self, port: Option<u16>) {
        self.peer_api_port = port;
    }

    /// Sets whether packets for subnets that peers route go there, and which peer, if it offers that, takes what nobody else has.
    pub fn set_routing(&mut self, accept_routes: bool, exit_node: Option<StableId>) {
        self.tunnel.set_routing(accept_routes, exit_node);
        self.tcp.drop_unroutable(&mut self.tunnel);
    }

    /// Whether packets for an address go to a peer.
    #[must_use]
    pub fn has_route(&self, address: IpAddr) -> bool {
        self.tunnel.route(address).is_some()
    }

    /// Takes a new identity, after the old node key expired. All sessions end.
    pub fn handle_node_key(&mut self, node_key: &NodePrivate) {
        self.tunnel.set_node_key(node_key);
        self.disco.set_node_key(node_key.public());
    }

    /// Takes a packet that the relay of a region brought from a node. The packet's bytes are used as working space.
    pub fn handle_derp(&mut self, region: RegionId, from: NodePublic, packet: &mut [u8], now: Instant) {
        let length = packet.len();
        self.handle_batch(Path::Derp { region, peer: from }, packet, length, now);
    }

    /// Takes a datagram of the tunnel's socket. Its bytes are used as working space.
    pub fn handle_udp(&mut self, from: SocketAddr, packet: &mut [u8], now: Instant) {
        let length = packet.len();
        self.handle_batch(Path::Udp(from), packet, length, now);
    }

    /// Takes datagrams that one sender sent in this order, laid out as in a [`Transmit`]: end to end, each `segment` bytes long but for the last. Their bytes
    /// are used as working space.
    pub fn handle_udp_batch(&mut self, from: SocketAddr, datagrams: &mut [u8], segment: usize, now: Instant) {
        self.handle_batch(Path::Udp(from), datagrams, segment, now);
    }

    /// A relay says that a node is not, or no longer, connected to it.
    pub fn handle_peer_gone(&mut self, peer: NodePublic) {
        self.tunnel.paths.relay_lost(&peer);
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.tunnel.handle_timeout(now);
        self.tunnel.paths.handle_timeout(now);
        self.handle_endpoint_timeout(now);
        self.tcp.handle_timeout(now);
        self.fragments.handle_timeout(now);
        self.tunnel.events.extend(self.pings.handle_timeout(now));
        if self.tunnel.session_count() == 0 {
            self.disco.release();
        }
    }

    /// The next datagrams to send. Call it until it returns `None` after each `handle_*` and each verb; what TCP connections have to say is produced here.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Transmit<'_>> {
        while self.tunnel.outbox.is_empty() {
            if self.discover(now) {
                continue;
            }
            if !self.tcp.serve(&mut self.tunnel, now) {
                self.scratch = Vec::new();
                self.inbox.release();
                break;
            }
        }
        self.tunnel.outbox.pop()
    }

    /// The next event. Call it until it returns `None`, once [`Self::poll_transmit`] has.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.tunnel.events.pop_front()
    }

    /// When to call [`Self::handle_timeout`], and for what.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, Reason)> {
        let deadlines = [
            (self.tcp.next_deadline(), Reason::Tcp),
            (self.fragments.next_deadline(), Reason::Fragments),
            (self.tunnel.next_tick(), Reason::WireGuard),
            (self.tunnel.next_held(), Reason::HeldHandshake),
            (self.pings.next_deadline(), Reason::Ping),
            (self.tunnel.paths.next_deadline(), Reason::Paths),
            (self.endpoints.next_deadline(), Reason::Stun),
        ];
        deadlines
            .into_iter()
            .filter_map(|(at, reason)| Some((at?, reason)))
            .min()
    }

    /// The tailnet as it was last told.
    #[must_use]
    pub fn netmap(&self) -> &Netmap {
        &self.tunnel.netmap
    }

    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.tunnel.counters
    }

    /// Peers with a session, those that talked last first.
    #[must_use]
    pub fn active_peers(&self) -> Vec<Arc<Peer>> {
        self.tunnel.active_peers()
    }

    /// How many TCP connections there are, in all stages.
    #[must_use]
    pub fn connection_count(&self) -> usize {
        self.tcp.flow_count()
    }

    /// Who calls from `remote`, and what it may do at our address `local` (by default the one of the same family). `None` if no visible node has the address
    /// or its user is not known.
    #[must_use]
    pub fn whois(&self, remote: IpAddr, local: Option<IpAddr>) -> Option<WhoIs> {
        whois(self.netmap(), remote, local)
    }
}

/// Whether a connection of `peer` to `local` is one to the peer API.
fn is_peer_api(netmap: &Netmap, port: Option<u16>, peer: &Peer, local: SocketAddr) -> bool {
    port == Some(local.port()) && !peer.answers_only && netmap.addresses().any(|own| own == local.ip())
}

/// TCP.
impl Core {
    /// Listens on a port of all own addresses, or of one. Own addresses need not be known yet.
    ///
    /// # Errors
    /// When the port is zero or in use.
    pub fn listen_tcp(
        &mut self,
        address: Option<IpAddr>,
        port: u16,
        backlog: usize,
    ) -> Result<ListenerId, BindError> {
        self.tcp.listen(address, port, backlog)
    }

    /// The next connection of a listener. An [`Event::Acceptable`] tells of each.
    pub fn accept(&mut self, listener: ListenerId) -> Option<Accepted> {
        self.tcp.accept(listener)
    }

    /// Closes a listener. Connections that were not accepted are reset.
    pub fn close_listener(&mut self, listener: ListenerId) {
        self.tcp.close_listener(listener);
    }

    /// Opens a connection. [`Event::Connected`] or [`Event::Closed`] follows.
    ///
    /// # Errors
    /// When no peer has that address, we have none to send from, or ports or memory are used up.
    pub fn connect_tcp(&mut self, remote: SocketAddr) -> Result<ConnId, ConnectError> {
        let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
        if self.tunnel.route(remote.ip()).is_none() {
            return Err(ConnectError::NoRoute { remote });
        }
        let local = self
            .netmap()
            .address_like(remote.ip())
            .ok_or(ConnectError::NoAddress { remote })?;
        self.tcp.connect(local, remote, &mut self.rng)
    }

    /// Reads what has arrived. Zero bytes: the other side has sent everything.
    ///
    /// # Errors
    /// When the connection is not open, or ended with an error.
    pub fn read(&mut self, conn: ConnId, buffer: &mut [u8]) -> Result<Io<usize>, ConnError> {
        self.tcp.read(conn, buffer)
    }

    /// Writes as much as there is room for.
    ///
    /// # Errors
    /// When the connection is not open, was shut down for writing, or ended.
    pub fn write(&mut self, conn: ConnId, data: &[u8]) -> Result<Io<usize>, ConnError> {
        self.tcp.write(conn, data)
    }

    /// Tells the other side that nothing more follows what was written. Reading goes on.
    ///
    /// # Errors
    /// When the connection is not open.
    pub fn shutdown_write(&mut self, conn: ConnId) -> Result<(), ConnError> {
        self.tcp.shutdown_write(conn)
    }

    /// Lets go of a connection. What was written is still delivered; if something that arrived was not read, the other side is told by a reset.
    pub fn close(&mut self, conn: ConnId) {
        self.tcp.close(conn);
    }

    /// Ends a connection at once with a reset.
    pub fn abort(&mut self, conn: ConnId) {
        self.tcp.abort(conn);
    }

    /// Our and the other side's address of a connection.
    #[must_use]
    pub fn connection_addresses(&self, conn: ConnId) -> Option<(SocketAddr, SocketAddr)> {
        self.tcp.addresses(conn)
    }
}

/// UDP.
impl Core {
    /// A UDP socket on a port of all own addresses, or of one. Port zero takes a free one.
    ///
    /// # Errors
    /// When the port is in use, or none is free.
    pub fn bind_udp(&mut self, address: Option<IpAddr>, port: u16) -> Result<UdpId, BindError> {
        self.udp.bind(address, port, &mut self.rng)
    }

    /// Takes datagrams of one sender alone from now on, and sends to it by default.
    ///
    /// # Errors
    /// When the socket is closed.
    pub fn connect_udp(&mut self, socket: UdpId, remote: SocketAddr) -> Result<(), UdpError> {
        self.udp.connect(socket, remote)
    }

    /// The port of a socket.
    #[must_use]
    pub fn udp_port(&self, socket: UdpId) -> Option<u16> {
        self.udp.local_port(socket)
    }

    /// Sends a datagram, to the connected side if `to` is `None`, from `from`, the socket's own address, or our address of the same family.
    ///
    /// # Errors
    /// When the socket is closed or has no destination, the datagram is too large, or no peer has that address.
    pub fn send_udp(
        &mut self,
        socket: UdpId,
        from: Option<IpAddr>,
        to: Option<SocketAddr>,
        payload: &[u8],
        now: Instant,
    ) -> Result<(), UdpError> {
        let (bound, port, remote) = self.udp.route(socket, to, payload.len())?;
        let no_route = UdpError::NoRoute { remote };
        let peer = self.tunnel.route(remote.ip()).cloned().ok_or(no_route)?;
        let from = from
            .or(bound)
            .or_else(|| self.netmap().address_like(remote.ip()))
            .ok_or(no_route)?;
        if from.is_ipv4() != remote.is_ipv4() {
            return Err(no_route);
        }
        let local = SocketAddr::new(from, port);
        self.conntrack.record(proto::UDP, local, remote);
        write_udp(&mut self.scratch, local, remote, payload);
        self.tunnel.send_to(&peer, &self.scratch, now);
        Ok(())
    }

    /// The next datagram of a socket.
    ///
    /// # Errors
    /// When the socket is closed.
    pub fn recv_udp(&mut self, socket: UdpId) -> Result<Io<Datagram>, UdpError> {
        self.udp.recv(socket)
    }

    /// Closes a socket.
    pub fn close_udp(&mut self, socket: UdpId) {
        self.udp.close(socket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A core may move between threads, and one that is idle is small.
    #[test]
    fn an_idle_core_is_small_and_can_move() {
        fn movable<T: Send>() -> usize {
            size_of::<T>()
        }
        assert!(movable::<Core>() <= 4096, "{} bytes", movable::<Core>());
    }
}
