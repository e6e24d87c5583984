//! What applications do with TCP.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use rand_core::RngCore;

use super::conn::{Conn, State};
use super::flow::{Flow, Stage};
use super::receiver::Ack;
use super::seq::Seq;
use super::{FlowKey, Listener, MAX_BACKLOG, TcpStack};
use crate::event::{
    Accepted, BindError, CloseReason, ConnError, ConnId, ConnectError, Event, Io, ListenerId,
};
use crate::icmp::Cause;
use crate::slab::Key;
use crate::tunnel::Tunnel;

/// Ports of connections that we open (RFC 6335).
const EPHEMERAL: std::ops::RangeInclusive<u16> = 49152..=65535;

impl TcpStack {
    pub(crate) fn listen(
        &mut self,
        address: Option<IpAddr>,
        port: u16,
        backlog: usize,
    ) -> Result<ListenerId, BindError> {
        if port == 0 {
            return Err(BindError::NoPort);
        }
        if self
            .listeners
            .values()
            .any(|listener| listener.port == port && listener.address == address)
        {
            return Err(BindError::InUse { port });
        }
        let backlog = backlog.clamp(1, MAX_BACKLOG);
        let listener = Listener {
            address,
            port,
            backlog,
            half_open: VecDeque::new(),
            queue: VecDeque::new(),
        };
        Ok(ListenerId(self.listeners.insert(listener)))
    }

    pub(crate) fn accept(&mut self, listener: ListenerId) -> Option<Accepted> {
        let key = self.listeners.get_mut(listener.0)?.queue.pop_front()?;
        let flow = self.flows.get_mut(key)?;
        flow.stage = Stage::Open;
        Some(Accepted {
            conn: ConnId(key),
            local: flow.conn.key.local,
            remote: flow.conn.key.remote,
        })
    }

    /// Closes a listener; connections that nobody accepted are reset.
    pub(crate) fn close_listener(&mut self, listener: ListenerId) {
        let Some(listener) = self.listeners.remove(listener.0) else {
            return;
        };
        for key in listener
            .half_open
            .into_iter()
            .map(|(key, _)| key)
            .chain(listener.queue)
        {
            self.abort(ConnId(key));
        }
    }

    pub(crate) fn connect(
        &mut self,
        local: IpAddr,
        remote: SocketAddr,
        rng: &mut impl RngCore,
    ) -> Result<ConnId, ConnectError> {
        let key = self
            .free_tuple(local, remote, rng)
            .ok_or(ConnectError::NoPort { remote })?;
        let share = self
            .budget
            .share(size_of::<Flow>())
            .ok_or(ConnectError::NoMemory)?;
        let conn = Conn::open(key, self.first_seq(&key), &self.budget);
        let conn = self.flows.insert(Flow::new(conn, Stage::Opening, share));
        self.by_tuple.insert(key, conn);
        self.touch(conn);
        Ok(ConnId(conn))
    }

    /// A 4-tuple that nothing uses, with an ephemeral port that starts at a random place.
    fn free_tuple(&self, local: IpAddr, remote: SocketAddr, rng: &mut impl RngCore) -> Option<FlowKey> {
        let count = u32::from(EPHEMERAL.end() - EPHEMERAL.start()) + 1;
        let start = rng.next_u32() % count;
        (0..count)
            .map(|step| EPHEMERAL.start() + ((start + step) % count) as u16)
            .find_map(|port| {
                let key = FlowKey {
                    local: SocketAddr::new(local, port),
                    remote,
                };
                let taken = self.by_tuple.contains_key(&key)
                    || self.time_wait.contains(&key)
                    || self.listeners.values().any(|listener| listener.serves(key.local));
                if taken { None } else { Some(key) }
            })
    }

    /// The flow that an application holds under this handle.
    fn held(&mut self, conn: ConnId) -> Result<&mut Flow, ConnError> {
        let flow = self.flows.get_mut(conn.0).ok_or(ConnError::NotOpen)?;
        if matches!(flow.stage, Stage::Open | Stage::Opening) {
            Ok(flow)
        } else {
            Err(ConnError::NotOpen)
        }
    }

    pub(crate) fn read(&mut self, conn: ConnId, buffer: &mut [u8]) -> Result<Io<usize>, ConnError> {
        let flow = self.held(conn)?;
        if flow.has_data() {
            let length = flow.conn.read(buffer);
            if flow.conn.recv.ack == Ack::Now {
                self.touch(conn.0);
            }
            return Ok(Io::Ready(length));
        }
        if flow.is_at_end() {
            return Ok(Io::Ready(0));
        }
        if let Some(reason) = flow.conn.ended {
            return Err(reason.into());
        }
        flow.want_read = true;
        Ok(Io::Pending)
    }

    pub(crate) fn write(&mut self, conn: ConnId, data: &[u8]) -> Result<Io<usize>, ConnError> {
        let flow = self.held(conn)?;
        if let Some(reason) = flow.conn.ended {
            return Err(reason.into());
        }
        let is_opening = matches!(flow.state(), State::SynSent | State::SynReceived);
        if !is_opening && !flow.conn.may_send() {
            return Err(ConnError::ShutDown);
        }
        let length = if is_opening { 0 } else { flow.conn.write(data) };
        if length == 0 && !data.is_empty() {
            flow.want_write = true;
            return Ok(Io::Pending);
        }
        self.touch(conn.0);
        Ok(Io::Ready(length))
    }

    /// Ends our direction once everything written is sent.
    pub(crate) fn shutdown_write(&mut self, conn: ConnId) -> Result<(), ConnError> {
        let flow = self.held(conn)?;
        if !flow.is_finished {
            flow.conn.close();
            self.touch(conn.0);
        }
        Ok(())
    }

    /// Lets go of a connection; what was written is still delivered.
    pub(crate) fn close(&mut self, conn: ConnId) {
        let Some(flow) = self.flows.get_mut(conn.0) else {
            return;
        };
        if flow.is_finished {
            self.remove(conn.0);
            return;
        }
        flow.orphan();
        self.touch(conn.0);
    }

    /// Ends a connection at once with a reset.
    pub(crate) fn abort(&mut self, conn: ConnId) {
        let Some(flow) = self.flows.get_mut(conn.0) else {
            return;
        };
        if flow.is_finished {
            self.remove(conn.0);
            return;
        }
        flow.stage = Stage::Orphan;
        flow.conn.abort();
        self.touch(conn.0);
    }

    /// Ends connections whose peer is no longer there.
    pub(crate) fn drop_unroutable(&mut self, tunnel: &mut Tunnel) {
        let lost: Vec<Key> = self
            .by_tuple
            .iter()
            .filter(|(tuple, _)| tunnel.route(tuple.remote.ip()).is_none())
            .map(|(_, key)| *key)
            .collect();
        for key in lost {
            self.end(key, CloseReason::PeerGone, tunnel);
        }
    }

    /// The peer's filter turned down a connection that we are opening.
    pub(crate) fn handle_reject(&mut self, tuple: &FlowKey, tunnel: &mut Tunnel) {
        let Some(key) = self.by_tuple.get(tuple).copied() else {
            return;
        };
        if self
            .flows
            .get(key)
            .is_some_and(|flow| flow.stage == Stage::Opening && flow.state() == State::SynSent)
        {
            self.end(key, CloseReason::Denied, tunnel);
        }
    }

    /// A router or the peer complains about a segment of ours. What does not quote one that is under way is forged (RFC 5927).
    pub(crate) fn handle_complaint(&mut self, tuple: &FlowKey, seq: u32, cause: Cause, tunnel: &mut Tunnel) {
        let Some(key) = self.by_tuple.get(tuple).copied() else {
            return;
        };
        let Some(flow) = self
            .flows
            .get_mut(key)
            .filter(|flow| flow.conn.has_sent(Seq(seq)))
        else {
            return;
        };
        match cause {
            Cause::TooBig { mtu } => {
                flow.conn.lower_mtu(mtu);
                self.touch(key);
            }
            Cause::PortUnreachable if flow.state() == State::SynSent => {
                self.end(key, CloseReason::Refused, tunnel);
            }
            // A connection that stands outlives such news (RFC 5461).
            Cause::PortUnreachable => {}
        }
    }

    /// Resets connections that peers opened and `allowed` does not admit any more; it is told whether this node routes their address. Returns how many.
    pub(crate) fn revoke(&mut self, allowed: impl Fn(&FlowKey, bool) -> bool) -> u64 {
        let revoked: Vec<Key> = self
            .by_tuple
            .iter()
            .filter(|(tuple, key)| {
                let flow = self.flows.get(**key).filter(|flow| flow.is_inbound);
                flow.is_some_and(|flow| !allowed(tuple, flow.is_routed))
            })
            .map(|(_, key)| *key)
            .collect();
        for key in &revoked {
            if let Some(flow) = self.flows.get_mut(*key) {
                flow.conn.abort();
                flow.conn.ended = Some(CloseReason::Revoked);
                self.touch(*key);
            }
        }
        revoked.len() as u64
    }

    /// Ends a flow without a word to the other side.
    fn end(&mut self, key: Key, reason: CloseReason, tunnel: &mut Tunnel) {
        let Some(flow) = self.flows.get_mut(key) else {
            return;
        };
        if !matches!(flow.stage, Stage::Open | Stage::Opening) {
            self.remove(key);
            return;
        }
        flow.conn.end(reason);
        flow.is_finished = true;
        let tuple = flow.conn.key;
        tunnel.events.push_back(Event::Closed {
            conn: ConnId(key),
            reason,
        });
        self.unmap(key, &tuple);
        self.notify(key, tunnel);
    }

    /// Whether a listener was bound to this very address.
    pub(crate) fn is_bound(&self, address: IpAddr) -> bool {
        self.listeners
            .values()
            .any(|listener| listener.address == Some(address))
    }

    /// Both ends of a connection.
    pub(crate) fn addresses(&self, conn: ConnId) -> Option<(SocketAddr, SocketAddr)> {
        self.flows
            .get(conn.0)
            .map(|flow| (flow.conn.key.local, flow.conn.key.remote))
    }
}
