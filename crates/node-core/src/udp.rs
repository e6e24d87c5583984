//! Userspace UDP: sockets on ports, with bounded queues.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use rand_core::RngCore;

use crate::event::{BindError, Event, Io, UdpError, UdpId};
use crate::packet::{Parsed, max_udp_payload};
use crate::slab::{Key, Slab};

/// Datagrams that wait at one socket; later ones are dropped.
const MAX_QUEUE: usize = 256;
/// Bytes that wait at one socket.
const MAX_QUEUE_BYTES: usize = 128 * 1024;
/// Ports for sockets that do not care (RFC 6335).
const EPHEMERAL: std::ops::RangeInclusive<u16> = 49152..=65535;

/// What became of a datagram that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// A socket has it.
    Done,
    /// There is no socket for it.
    NoSocket,
    /// A socket has no room for it, or does not talk with its sender.
    Dropped,
}

/// A datagram that came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Who sent it.
    pub from: SocketAddr,
    /// Which address of ours it was sent to.
    pub to: SocketAddr,
    /// What it holds.
    pub payload: Vec<u8>,
}

/// All UDP of a core.
#[derive(Debug, Default)]
pub(crate) struct UdpStack {
    sockets: Slab<Socket>,
    by_port: HashMap<(u16, Option<IpAddr>), Key>,
}

#[derive(Debug)]
struct Socket {
    port: u16,
    address: Option<IpAddr>,
    remote: Option<SocketAddr>,
    queue: VecDeque<Datagram>,
    queued_bytes: usize,
    want_read: bool,
}

impl UdpStack {
    /// A socket on a port of one or all own addresses. Port zero takes a free one.
    pub(crate) fn bind(
        &mut self,
        address: Option<IpAddr>,
        port: u16,
        rng: &mut impl RngCore,
    ) -> Result<UdpId, BindError> {
        let port = if port == 0 {
            self.free_port(rng).ok_or(BindError::NoPort)?
        } else {
            port
        };
        if self.by_port.contains_key(&(port, address)) {
            return Err(BindError::InUse { port });
        }
        let socket = Socket {
            port,
            address,
            remote: None,
            queue: VecDeque::new(),
            queued_bytes: 0,
            want_read: false,
        };
        let key = self.sockets.insert(socket);
        self.by_port.insert((port, address), key);
        Ok(UdpId(key))
    }

    fn free_port(&self, rng: &mut impl RngCore) -> Option<u16> {
        let count = u32::from(EPHEMERAL.end() - EPHEMERAL.start()) + 1;
        let start = rng.next_u32() % count;
        let taken = |port: u16| self.sockets.values().any(|socket| socket.port == port);
        (0..count)
            .map(|step| EPHEMERAL.start() + ((start + step) % count) as u16)
            .find(|port| !taken(*port))
    }

    /// Takes datagrams of `remote` alone from now on, and sends to it by default.
    pub(crate) fn connect(&mut self, socket: UdpId, remote: SocketAddr) -> Result<(), UdpError> {
        self.sockets.get_mut(socket.0).ok_or(UdpError::NotOpen)?.remote = Some(remote);
        Ok(())
    }

    pub(crate) fn local_port(&self, socket: UdpId) -> Option<u16> {
        self.sockets.get(socket.0).map(|socket| socket.port)
    }

    pub(crate) fn close(&mut self, socket: UdpId) {
        if let Some(socket) = self.sockets.remove(socket.0) {
            self.by_port.remove(&(socket.port, socket.address));
        }
    }

    /// Whether a socket was bound to this very address.
    pub(crate) fn is_bound(&self, address: IpAddr) -> bool {
        self.sockets
            .values()
            .any(|socket| socket.address == Some(address))
    }

    /// Whether a socket takes datagrams for this address and port.
    pub(crate) fn takes(&self, to: SocketAddr) -> bool {
        !self.by_port.is_empty()
            && (self.by_port.contains_key(&(to.port(), Some(to.ip())))
                || self.by_port.contains_key(&(to.port(), None)))
    }

    /// Where a datagram goes from and to: the address and port that it will bear.
    pub(crate) fn route(
        &self,
        socket: UdpId,
        to: Option<SocketAddr>,
        size: usize,
    ) -> Result<(Option<IpAddr>, u16, SocketAddr), UdpError> {
        let socket = self.sockets.get(socket.0).ok_or(UdpError::NotOpen)?;
        let to = to.or(socket.remote).ok_or(UdpError::NotConnected)?;
        let limit = max_udp_payload(to.ip());
        if size > limit {
            return Err(UdpError::TooLarge { size, limit });
        }
        Ok((socket.address, socket.port, to))
    }

    /// The next datagram.
    pub(crate) fn recv(&mut self, socket: UdpId) -> Result<Io<Datagram>, UdpError> {
        let socket = self.sockets.get_mut(socket.0).ok_or(UdpError::NotOpen)?;
        let Some(datagram) = socket.queue.pop_front() else {
            socket.queue = VecDeque::new();
            socket.want_read = true;
            return Ok(Io::Pending);
        };
        socket.queued_bytes -= datagram.payload.len();
        Ok(Io::Ready(datagram))
    }

    /// Takes a datagram that the filter let pass. Returns what became of it.
    pub(crate) fn handle_datagram(
        &mut self,
        packet: &[u8],
        parsed: &Parsed,
        events: &mut VecDeque<Event>,
    ) -> Delivery {
        let (from, to) = (parsed.source(), parsed.destination());
        let exact = self.by_port.get(&(to.port(), Some(to.ip())));
        let Some(key) = exact.or_else(|| self.by_port.get(&(to.port(), None))).copied() else {
            return Delivery::NoSocket;
        };
        let Some(socket) = self.sockets.get_mut(key) else {
            return Delivery::NoSocket;
        };
        let Some(payload) = packet.get(parsed.transport + 8..parsed.end) else {
            return Delivery::Dropped;
        };
        let is_stranger = socket.remote.is_some_and(|remote| remote != from);
        let is_full =
            socket.queue.len() >= MAX_QUEUE || socket.queued_bytes + payload.len() > MAX_QUEUE_BYTES;
        if is_stranger || is_full {
            return Delivery::Dropped;
        }
        socket.queued_bytes += payload.len();
        socket.queue.push_back(Datagram {
            from,
            to,
            payload: payload.to_vec(),
        });
        if std::mem::take(&mut socket.want_read) {
            events.push_back(Event::UdpReadable(UdpId(key)));
        }
        Delivery::Done
    }
}
