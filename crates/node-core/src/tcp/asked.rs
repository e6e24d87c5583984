//! Connections that peers ask for at addresses which this node routes. Nothing is answered until the application has found out whether somebody is there.

use std::net::IpAddr;
use std::time::Instant;

use super::conn::Conn;
use super::flow::{Flow, Stage};
use super::segment::{Options, Segment};
use super::seq::Seq;
use super::{FlowKey, TcpStack};
use crate::event::{AdmitError, AskedId, ConnId};
use crate::packet::{Parsed, tcp_flags};
use crate::slab::Slab;
use crate::tunnel::Tunnel;

/// How many wait for an answer at the same time. Official nodes have the same bounds.
const MAX_ASKED: usize = 1024;
/// How many of them may come from one address.
const MAX_ASKED_BY_ONE: usize = 128;

/// The requests without an answer.
#[derive(Debug, Default)]
pub(super) struct Asked(Slab<Request>);

/// What is needed of a SYN to answer it later.
#[derive(Clone, Copy, Debug)]
struct Request {
    tuple: FlowKey,
    seq: Seq,
    window: u16,
    options: Options,
}

impl Request {
    fn syn(&self) -> Segment<'static> {
        Segment {
            seq: self.seq,
            ack: Seq(0),
            flags: tcp_flags::SYN,
            window: self.window,
            options: self.options,
            payload: &[],
        }
    }
}

impl Asked {
    fn of(&self, tuple: &FlowKey) -> Option<AskedId> {
        let mut keys = self.0.keys();
        let key = keys.find(|key| self.0.get(*key).is_some_and(|request| request.tuple == *tuple))?;
        Some(AskedId(key))
    }

    fn has_room_for(&self, peer: IpAddr) -> bool {
        let of_peer = |request: &&Request| request.tuple.remote.ip() == peer;
        self.0.len() < MAX_ASKED
            && (self.0.len() < MAX_ASKED_BY_ONE || self.0.values().filter(of_peer).count() < MAX_ASKED_BY_ONE)
    }
}

impl TcpStack {
    /// Takes a segment for an address that this node routes. Gives what it asks for, if that is a new connection.
    pub(crate) fn handle_routed(
        &mut self,
        packet: &[u8],
        parsed: &Parsed,
        tunnel: &mut Tunnel,
        now: Instant,
    ) -> Option<AskedId> {
        let tuple = FlowKey {
            local: parsed.destination(),
            remote: parsed.source(),
        };
        if !parsed.is_bare_syn() {
            if parsed.flags & tcp_flags::RST != 0
                && let Some(asked) = self.asked.of(&tuple)
            {
                // The client takes its question back.
                self.asked.0.remove(asked.0);
            }
            self.handle_segment(packet, parsed, tunnel, now);
            return None;
        }
        let segment = Segment::parse(packet, parsed)?;
        let remains = self.time_wait.get(&tuple);
        let is_late = remains.is_some_and(|remains| remains.syn == segment.seq);
        if self.by_tuple.contains_key(&tuple) || is_late {
            self.handle_segment(packet, parsed, tunnel, now);
            return None;
        }
        if self.asked.of(&tuple).is_some() {
            // The client repeats its question.
            return None;
        }
        if !self.asked.has_room_for(tuple.remote.ip()) {
            // The client asks again, by when others may have their answer.
            tunnel.counters.syn_dropped += 1;
            return None;
        }
        self.clock = now;
        let request = Request {
            tuple,
            seq: segment.seq,
            window: segment.window,
            options: segment.options,
        };
        Some(AskedId(self.asked.0.insert(request)))
    }

    /// Both ends of a connection that was asked for.
    pub(crate) fn asked(&self, asked: AskedId) -> Option<FlowKey> {
        Some(self.asked.0.get(asked.0)?.tuple)
    }

    /// Answers that the connection may be had.
    pub(crate) fn admit(&mut self, asked: AskedId) -> Result<ConnId, AdmitError> {
        let request = self.asked.0.remove(asked.0).ok_or(AdmitError::Gone)?;
        let share = self.budget.share(size_of::<Flow>()).ok_or(AdmitError::NoMemory)?;
        let remains = self.time_wait.get(&request.tuple);
        self.time_wait.remove(&request.tuple);
        let first = self.first_seq_after(&request.tuple, remains);
        let conn = Conn::accept(request.tuple, first, &request.syn(), &self.budget);
        let mut flow = Flow::new(conn, Stage::Opening, share);
        flow.is_inbound = true;
        flow.is_routed = true;
        let key = self.flows.insert(flow);
        self.by_tuple.insert(request.tuple, key);
        self.touch(key);
        Ok(ConnId(key))
    }

    /// Answers that nobody is there, as a closed port does.
    pub(crate) fn refuse(&mut self, asked: AskedId, tunnel: &mut Tunnel, now: Instant) {
        if let Some(request) = self.asked.0.remove(asked.0) {
            let end = request.syn().end();
            self.answer(&request.tuple, Seq(0), Some(end), tcp_flags::RST, tunnel, now);
        }
    }
}
