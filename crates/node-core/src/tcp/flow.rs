//! One TCP connection: a smoltcp socket in a set of its own.

use std::time::Instant;

use smoltcp::iface::{SocketHandle, SocketSet, SocketStorage};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Duration;

use super::FlowKey;
use super::device::{OnePacket, Wire};
use super::segment::Highest;
use crate::budget::Share;
use crate::event::CloseReason;
use crate::slab::Key;

/// How long an attempt to connect, or a half-open connection, waits: five repetitions, as other systems do.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);
/// A keep-alive goes out when nothing came for so long; NATs of backends and peers' sleep are longer.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// A connection of which nothing was heard for so long, keep-alives included, is dead.
const DEAD_AFTER: Duration = Duration::from_secs(5 * 60);
/// How long a connection that the application has closed may take to end.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(60);

/// Where a flow is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// We asked for it.
    Opening,
    /// A SYN came for this listener, its handshake is under way.
    HalfOpen(Key),
    /// It waits at this listener to be accepted.
    Queued(Key),
    /// An application has it.
    Open,
    /// The application has closed it; it ends by itself.
    Orphan,
}

/// A connection.
pub(super) struct Flow {
    pub(super) key: FlowKey,
    pub(super) stage: Stage,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    highest: Highest,
    /// Whether the application waits for data, or for room.
    pub(super) want_read: bool,
    pub(super) want_write: bool,
    /// Whether it is in the list of flows to be served.
    pub(super) is_dirty: bool,
    /// The earliest entry in the timer heap.
    pub(super) armed: Option<Instant>,
    /// The last state in which it was alive.
    pub(super) last_state: State,
    /// What the other side said about the end, once it did.
    pub(super) verdict: Option<CloseReason>,
    /// How it ended, if abnormally.
    pub(super) ended: Option<CloseReason>,
    /// Whether nothing more is sent or taken; what was received can still be read.
    pub(super) is_finished: bool,
    _share: Share,
}

impl Flow {
    pub(super) fn new(key: FlowKey, stage: Stage, share: Share) -> Self {
        let buffer = || SocketBuffer::new(vec![0; share.each()]);
        let mut socket = Socket::new(buffer(), buffer());
        // Applications write what is ready; holding it back for fuller segments only adds latency.
        socket.set_nagle_enabled(false);
        socket.set_timeout(Some(OPEN_TIMEOUT));
        // Set before there is a connection: smoltcp sends one at once when it is set later.
        socket.set_keep_alive(Some(KEEP_ALIVE));
        let mut sockets = SocketSet::new(vec![SocketStorage::EMPTY]);
        let handle = sockets.add(socket);
        Self {
            key,
            stage,
            sockets,
            handle,
            highest: Highest::default(),
            want_read: false,
            want_write: false,
            is_dirty: false,
            armed: None,
            last_state: State::Closed,
            verdict: None,
            ended: None,
            is_finished: false,
            _share: share,
        }
    }

    pub(super) fn socket(&self) -> &Socket<'static> {
        self.sockets.get(self.handle)
    }

    pub(super) fn socket_mut(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    pub(super) fn state(&self) -> State {
        self.socket().state()
    }

    /// Waits for the SYN that is about to be handed in.
    pub(super) fn listen(&mut self) {
        let local = self.key.local;
        // Fails for port zero or a socket in use, and this is neither: the filter passed a SYN for this port to a new socket.
        let _ = self.socket_mut().listen(local);
    }

    /// Asks for a connection. Returns whether the addresses allow one.
    pub(super) fn connect(&mut self, wire: &mut Wire) -> bool {
        let FlowKey { local, remote } = self.key;
        wire.set_address(local.ip());
        self.sockets
            .get_mut::<Socket<'static>>(self.handle)
            .connect(wire.iface.context(), remote, local)
            .is_ok()
    }

    /// Takes a segment. An answer that must go out at once is left in `tx`.
    pub(super) fn ingress(&mut self, wire: &mut Wire, packet: &[u8], tx: &mut Vec<u8>, now: Instant) {
        tx.clear();
        wire.set_address(self.key.local.ip());
        let time = wire.time(now);
        let mut device = OnePacket { rx: Some(packet), tx };
        wire.iface
            .poll_ingress_single(time, &mut device, &mut self.sockets);
        self.highest.correct(tx);
    }

    /// Produces the next segment in `tx`. Returns whether there was one.
    pub(super) fn egress(&mut self, wire: &mut Wire, tx: &mut Vec<u8>, now: Instant) -> bool {
        tx.clear();
        wire.set_address(self.key.local.ip());
        let time = wire.time(now);
        let mut device = OnePacket { rx: None, tx };
        wire.iface.poll_egress(time, &mut device, &mut self.sockets);
        self.highest.correct(tx);
        !tx.is_empty()
    }

    /// When the flow wants to be served without having been touched.
    pub(super) fn deadline(&mut self, wire: &mut Wire, now: Instant) -> Option<Instant> {
        if self.is_finished {
            return None;
        }
        let time = wire.time(now);
        let at = wire.iface.poll_at(time, &self.sockets)?;
        Some(wire.instant(at))
    }

    /// The handshake is complete.
    pub(super) fn established(&mut self, stage: Stage) {
        self.stage = stage;
        self.socket_mut().set_timeout(Some(DEAD_AFTER));
    }

    /// The application lets go. What it wrote is still sent; if it left data unread the other side is told so by a reset (RFC 2525, 2.17).
    pub(super) fn orphan(&mut self) {
        self.stage = Stage::Orphan;
        let socket = self.socket_mut();
        socket.set_timeout(Some(ORPHAN_TIMEOUT));
        socket.set_keep_alive(None);
        if socket.recv_queue() > 0 {
            socket.abort();
        } else {
            socket.close();
        }
    }

    /// Whether a read would return something: data, the end, or an error.
    pub(super) fn is_readable(&self) -> bool {
        let socket = self.socket();
        socket.can_recv() || self.is_finished || self.is_at_end()
    }

    /// Whether the other side has sent everything and it was read.
    pub(super) fn is_at_end(&self) -> bool {
        let state = self.state();
        let received_fin = matches!(
            state,
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait
        );
        !self.socket().can_recv() && (received_fin || (self.is_finished && self.ended.is_none()))
    }

    /// Whether a write is worth the wake-up: room for a quarter of the buffer, or an error to tell.
    pub(super) fn is_writable(&self) -> bool {
        let socket = self.socket();
        self.is_finished
            || (socket.may_send()
                && socket.send_capacity() - socket.send_queue() >= socket.send_capacity() / 4)
    }
}
