//! What a connection sends: in this order resets, what was lost, probes, new data and its end, and acknowledgements where nothing carried them.

use std::time::Instant;

use super::conn::{Conn, State, local_mss};
use super::receiver::{Ack, WINDOW_SCALE};
use super::segment::{Options, Outgoing};
use super::seq::Seq;
use crate::packet::tcp_flags;

impl Conn {
    /// Writes the next segment, as a packet, into `out`. Returns whether there was one; after the last one the timers are set.
    pub(super) fn emit(&mut self, out: &mut Vec<u8>, now: Instant) -> bool {
        if let Some(seq) = self.reset.take() {
            self.write_reset(seq, out);
            return true;
        }
        if self.state == State::Closed {
            return false;
        }
        let sent = self.emit_lost(out, now)
            || self.emit_probe(out, now)
            || self.emit_new(out, now)
            || self.emit_bare(out, now);
        self.send.arm(now);
        sent
    }

    fn emit_lost(&mut self, out: &mut Vec<u8>, now: Instant) -> bool {
        if !self.send.flight.has_lost() {
            return false;
        }
        // Something always may go when nothing is under way.
        let room = match (self.send.flight.flying(), self.send.cubic.window()) {
            (0, _) => usize::MAX,
            (flying, window) => window.saturating_sub(flying),
        };
        match self.send.flight.resend_lost(self.send.mss + 1, room, now) {
            Some((seq, length)) => {
                self.write_range(seq, length, out);
                true
            }
            None => {
                self.send.limited = true;
                false
            }
        }
    }

    /// The end of what was sent may be lost: what follows is sent, or the end again (RFC 8985, 7.3).
    fn emit_probe(&mut self, out: &mut Vec<u8>, now: Instant) -> bool {
        if !std::mem::take(&mut self.send.probe) {
            return false;
        }
        if let Some((seq, length)) = self.next_range(usize::MAX) {
            self.send_range(seq, length, out, now);
            return true;
        }
        let Some((seq, length)) = self.send.flight.resend_last(now) else {
            return false;
        };
        self.write_range(seq, length, out);
        true
    }

    fn emit_new(&mut self, out: &mut Vec<u8>, now: Instant) -> bool {
        let send = &self.send;
        let room = send.cubic.window().saturating_sub(send.flight.flying());
        let Some((seq, length)) = self.next_range(room) else {
            return false;
        };
        self.send_range(seq, length, out, now);
        true
    }

    /// Numbers that may be sent for the first time: SYN, data, FIN.
    fn next_range(&mut self, room: usize) -> Option<(Seq, u32)> {
        let send = &mut self.send;
        if matches!(self.state, State::SynSent | State::SynReceived) {
            return (send.next == send.first).then_some((send.first, 1));
        }
        if send.fin_at.is_some() {
            return None;
        }
        let waiting = send.data_end().past(send.next);
        let open = (send.una + send.window as u32).past(send.next);
        let length = waiting.min(send.mss).min(open);
        let fin = send.fin && length == waiting;
        // A sliver of a window is worth a segment only if nothing else will come (RFC 9293, 3.8.6.2.1).
        let is_sliver = length < waiting && length < send.mss && length < send.most / 2;
        if (length == 0 && !fin) || is_sliver {
            send.limited = false;
            return None;
        }
        if length > room {
            send.limited = true;
            return None;
        }
        Some((send.next, length as u32 + u32::from(fin)))
    }

    fn send_range(&mut self, seq: Seq, length: u32, out: &mut Vec<u8>, now: Instant) {
        let end = seq + length;
        self.send.flight.push(seq, length, now);
        self.send.next = end;
        let is_syn = matches!(self.state, State::SynSent | State::SynReceived);
        if self.send.fin && !is_syn && end > self.send.data_end() {
            self.send.fin_at = Some(end.before(1));
        }
        self.write_range(seq, length, out);
    }

    /// Writes the segment with these numbers.
    fn write_range(&mut self, seq: Seq, length: u32, out: &mut Vec<u8>) {
        if matches!(self.state, State::SynSent | State::SynReceived) {
            self.write_syn(out);
            return;
        }
        let end = seq + length;
        let fin = self.send.fin_at.is_some_and(|at| at < end);
        let payload = length as usize - usize::from(fin);
        let flags = if fin { tcp_flags::FIN } else { 0 };
        let push = if end >= self.send.data_end() {
            tcp_flags::PSH
        } else {
            0
        };
        let at = seq.past(self.send.data_start());
        let outgoing = self.outgoing(seq, flags | push);
        let buffer = &self.send.buffer;
        let (local, remote) = (self.key.local, self.key.remote);
        outgoing.write(local, remote, payload, out, |room| buffer.copy(at, room));
        // Details are told by a segment of their own: this one has no room for options.
        if !self.recv.has_details() {
            self.recv.told();
        }
    }

    fn write_syn(&mut self, out: &mut Vec<u8>) {
        let is_answer = self.state == State::SynReceived;
        let outgoing = Outgoing {
            seq: self.send.first,
            ack: is_answer.then_some(self.recv.next),
            flags: tcp_flags::SYN,
            window: self.recv.window(true),
            options: Options {
                mss: Some(local_mss(&self.key) as u16),
                window_scale: (!is_answer || self.recv.scaled).then_some(WINDOW_SCALE),
                sack_permitted: !is_answer || self.recv.sack,
                ..Options::default()
            },
        };
        outgoing.write(self.key.local, self.key.remote, 0, out, |_| {});
        self.recv.told();
    }

    /// Segments without data: acknowledgements, keep-alives, questions to a closed window.
    fn emit_bare(&mut self, out: &mut Vec<u8>, now: Instant) -> bool {
        if matches!(self.state, State::SynSent | State::SynReceived) {
            return false;
        }
        let asks = self.persist(now) | self.keeps_alive(now);
        if !asks && self.recv.ack != Ack::Now {
            return false;
        }
        // An old number makes the other side answer (RFC 9293, 3.8.4). Otherwise it is the highest that was sent: one before the receiver's window would
        // be dropped with the acknowledgement in it.
        let seq = if asks {
            self.send.una.before(1)
        } else {
            self.send.next
        };
        let mut outgoing = self.outgoing(seq, 0);
        if self.recv.has_details() {
            outgoing.options.sack = self.recv.details();
        }
        outgoing.write(self.key.local, self.key.remote, 0, out, |_| {});
        self.recv.told();
        true
    }

    /// Whether a closed window is to be asked about now.
    fn persist(&mut self, now: Instant) -> bool {
        let send = &mut self.send;
        let is_stuck = send.flight.is_empty() && send.fin_at.is_none() && send.data_end() > send.next;
        if !is_stuck {
            send.persist = None;
            return false;
        }
        match send.persist {
            None => {
                send.arm_persist(0, now);
                false
            }
            Some((at, round)) if at <= now => {
                send.arm_persist(round + 1, now);
                true
            }
            Some(_) => false,
        }
    }

    fn keeps_alive(&mut self, now: Instant) -> bool {
        let is_due = self.keep_alive.is_some_and(|at| at <= now);
        if is_due {
            self.keep_alive_from(now);
        }
        is_due
    }

    fn outgoing(&mut self, seq: Seq, flags: u8) -> Outgoing {
        Outgoing {
            seq,
            ack: Some(self.recv.next),
            flags,
            window: self.recv.window(false),
            options: Options::default(),
        }
    }

    fn write_reset(&self, seq: Seq, out: &mut Vec<u8>) {
        let ack = (self.recv.next != self.recv.first).then_some(self.recv.next);
        let reset = Outgoing {
            seq,
            ack,
            flags: tcp_flags::RST,
            window: 0,
            options: Options::default(),
        };
        reset.write(self.key.local, self.key.remote, 0, out, |_| {});
    }
}
