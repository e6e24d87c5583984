//! What peers send through the tunnel: opened, judged, and handed to the stack or the TUN device.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use tailwharf_wire::disco;
use tailwharf_wire::tsmp::Message;

use super::pinging::Told;
use super::{Core, is_peer_api};
use crate::filter::{DropReason, Filter, Verdict};
use crate::fragments::{self, Assembled};
use crate::icmp::{self, Cause, Complaint};
use crate::netmap::Peer;
use crate::packet::{Fragment, Parsed, proto, write_echo_reply};
use crate::paths::Path;
use crate::pings::Token;
use crate::session::data_index;
use crate::tcp::FlowKey;
use crate::tsmp;
use crate::tunnel::Data;
use crate::udp::Delivery;

/// Largest message that is taken from a relay or socket. WireGuard's own limit; a tailnet's packets are far smaller.
const MAX_MESSAGE: usize = 65_535;

/// Data messages of one session that follow each other: what has to be found out only once for all.
struct Run {
    index: u32,
    peer: Arc<Peer>,
    filter: Arc<Filter>,
    /// Whether a message was authentic, and whether one held a packet.
    heard: bool,
    used: bool,
    /// The last packet that may pass, and whether it was for the device.
    passed: Option<Parsed>,
    for_tun: bool,
}

impl Core {
    /// Takes messages that came one after the other by one way, laid out as in a [`crate::Transmit`].
    pub(super) fn handle_batch(&mut self, path: Path, messages: &mut [u8], segment: usize, now: Instant) {
        if messages.is_empty() {
            self.tunnel.counters.invalid += 1;
        }
        self.tunnel.begin_batch();
        let mut run: Option<Run> = None;
        for message in messages.chunks_mut(segment.max(1)) {
            if message.len() > MAX_MESSAGE {
                self.tunnel.counters.invalid += 1;
                continue;
            }
            let Some(index) = data_index(message) else {
                self.handle_message(path, message, now);
                continue;
            };
            if run.as_ref().is_none_or(|run| run.index != index) {
                run = self.begin_run(index, path, now);
            }
            if let Some(run) = &mut run {
                self.handle_data(run, message, path, now);
            }
        }
    }

    /// Takes a message that is not a data message.
    fn handle_message(&mut self, path: Path, message: &mut [u8], now: Instant) {
        if let Some(from) = Self::is_stun(path, message) {
            self.handle_stun(from, message, now);
        } else if disco::sender(message).is_some() {
            self.handle_disco(path, message, now);
        } else {
            self.tunnel.receive(message, path, now);
        }
    }

    fn begin_run(&mut self, index: u32, path: Path, now: Instant) -> Option<Run> {
        Some(Run {
            index,
            peer: self.tunnel.session_peer(index, path, now)?,
            filter: Arc::clone(self.tunnel.netmap.filter()),
            heard: false,
            used: false,
            passed: None,
            for_tun: false,
        })
    }

    fn handle_data(&mut self, run: &mut Run, message: &[u8], path: Path, now: Instant) {
        let room = self.inbox.room(message.len());
        let data = self.tunnel.open(run.index, message, path, room);
        if data == Data::Invalid {
            return;
        }
        if let Data::Packet(_) = data
            && !run.used
        {
            run.used = true;
            self.tunnel.used(run.index, now);
        }
        if !run.heard {
            run.heard = true;
            self.tunnel.heard(run.index, path, now);
        }
        if let Data::Packet(length) = data {
            self.handle_inner(run, length, path, now);
        }
    }

    /// Takes the IP packet of this length that was opened last.
    fn handle_inner(&mut self, run: &mut Run, length: usize, path: Path, now: Instant) {
        let Ok(parsed) = Parsed::parse(self.inbox.opened(length)) else {
            self.tunnel.counters.bogus += 1;
            return;
        };
        let is_known = run
            .passed
            .as_ref()
            .is_some_and(|passed| is_same_flow(passed, &parsed));
        if !is_known {
            if !run.peer.may_send_from(parsed.src) {
                self.tunnel.counters.bogus += 1;
                return;
            }
            if parsed.fragment != Fragment::No
                && fragments::is_assembled(parsed.proto)
                && (self.is_own(parsed.dst) || self.transit.takes(parsed.dst))
            {
                self.handle_fragment(run, length, &parsed, path, now);
                return;
            }
            if !self.may_pass(run, &parsed, now) {
                return;
            }
            run.for_tun = self.has_tun && !self.is_taken(&parsed);
        }
        self.tcp.heard_from(parsed.src, now);
        if run.for_tun {
            self.inbox.keep(&parsed);
        } else {
            self.deliver(&run.peer, length, &parsed, path, now);
        }
        run.passed = Some(parsed);
    }

    /// Judges a packet, and tells its sender if it is to be told.
    fn may_pass(&mut self, run: &Run, parsed: &Parsed, now: Instant) -> bool {
        let Verdict::Drop(reason) = run.filter.check(parsed, &run.peer, &self.conntrack) else {
            return true;
        };
        if parsed.proto == proto::TCP
            && is_peer_api(
                &self.tunnel.netmap,
                self.peer_api_port,
                &run.peer,
                parsed.destination(),
            )
        {
            return true;
        }
        self.tunnel.counters.denied += 1;
        if reason == DropReason::NoRule && parsed.is_bare_syn() && self.rejects.allow(now) {
            tsmp::write_reject(&mut self.scratch, parsed);
            self.tunnel.send_to(&run.peer, &self.scratch, now);
        }
        false
    }

    /// Takes a fragment for this node. What it completes is judged as a whole.
    fn handle_fragment(&mut self, run: &mut Run, length: usize, parsed: &Parsed, path: Path, now: Instant) {
        let assembled = self.fragments.insert(self.inbox.opened(length), parsed, now);
        self.tunnel.counters.fragments_refused = self.fragments.refused();
        if let Assembled::Whole(packet) = assembled {
            self.inbox.room(packet.len()).copy_from_slice(&packet);
            self.handle_inner(run, packet.len(), path, now);
        }
    }

    fn deliver(&mut self, peer: &Arc<Peer>, length: usize, parsed: &Parsed, path: Path, now: Instant) {
        let packet = self.inbox.opened(length);
        let is_own = self.is_own(parsed.dst);
        let is_whole = parsed.fragment == Fragment::No;
        match parsed.proto {
            proto::TCP if is_whole && (is_own || self.tcp.is_bound(parsed.dst)) => {
                self.tcp.handle_segment(packet, parsed, &mut self.tunnel, now);
            }
            proto::UDP if is_whole && (is_own || self.udp.is_bound(parsed.dst)) => {
                match self.udp.handle_datagram(packet, parsed, &mut self.tunnel.events) {
                    Delivery::Done => {}
                    Delivery::Dropped => self.tunnel.counters.undelivered += 1,
                    Delivery::NoSocket => {
                        self.tunnel.counters.undelivered += 1;
                        self.complain(peer, Cause::PortUnreachable, length, parsed, now);
                    }
                }
            }
            proto::TSMP if is_whole && is_own => self.handle_tsmp(peer, length, parsed, path, now),
            proto::ICMP | proto::ICMP6 if is_whole && is_own => {
                if parsed.is_icmp_echo() {
                    write_echo_reply(&mut self.scratch, packet, parsed);
                    self.tunnel.send_to(peer, &self.scratch, now);
                } else if let Some(complaint) = Complaint::read(packet, parsed) {
                    self.handle_complaint(&complaint);
                } else if let Some(id) = parsed.echo_reply_id(packet) {
                    self.handle_pong(Token::Icmp(id), path, Told::default(), now);
                }
            }
            _ if is_whole && !is_own && self.transit.takes(parsed.dst) => {
                self.handle_transit(length, parsed, now);
            }
            proto::ICMP | proto::ICMP6 => {}
            _ => self.tunnel.counters.undelivered += 1,
        }
    }

    fn is_own(&self, address: IpAddr) -> bool {
        self.tunnel.netmap.addresses().any(|own| own == address)
    }

    /// Whether a packet is for this node's own stack even if there is a device: something of ours has its port, or it is between nodes.
    fn is_taken(&self, parsed: &Parsed) -> bool {
        parsed.fragment == Fragment::No
            && match parsed.proto {
                proto::TCP => self.tcp.takes(parsed),
                proto::UDP => self.udp.takes(parsed.destination()),
                proto::TSMP => true,
                _ => false,
            }
            || self.transit.takes(parsed.dst)
    }

    /// Tells a peer what was wrong with its packet.
    fn complain(&mut self, peer: &Arc<Peer>, cause: Cause, length: usize, parsed: &Parsed, now: Instant) {
        if self.icmp_errors.allow(now) {
            icmp::write(&mut self.scratch, cause, self.inbox.opened(length), parsed);
            self.tunnel.send_to(peer, &self.scratch, now);
        }
    }

    /// Takes an error about a packet that we sent.
    pub(super) fn handle_complaint(&mut self, complaint: &Complaint) {
        let about = &complaint.about;
        if about.proto == proto::TCP {
            let tuple = FlowKey {
                local: about.source(),
                remote: about.destination(),
            };
            self.tcp
                .handle_complaint(&tuple, complaint.word, complaint.cause, &mut self.tunnel);
        }
    }

    fn handle_tsmp(&mut self, peer: &Arc<Peer>, length: usize, parsed: &Parsed, path: Path, now: Instant) {
        let packet = self.inbox.opened(length);
        match Message::decode(&packet[parsed.transport..parsed.end]) {
            Ok(Message::Ping(data)) => {
                tsmp::write(
                    &mut self.scratch,
                    parsed,
                    &Message::Pong {
                        data,
                        peer_api_port: self.peer_api_port.unwrap_or(0),
                    },
                );
                self.tunnel.send_to(peer, &self.scratch, now);
            }
            Ok(Message::Pong { data, peer_api_port }) => {
                let told = Told {
                    peer_api_port: Some(peer_api_port),
                    ..Told::default()
                };
                self.handle_pong(Token::Tsmp(data), path, told, now);
            }
            Ok(Message::Reject {
                protocol: proto::TCP,
                src_port,
                dst_port,
                maybe_broken: false,
                ..
            }) => {
                let tuple = FlowKey {
                    local: SocketAddr::new(parsed.dst, src_port),
                    remote: SocketAddr::new(parsed.src, dst_port),
                };
                self.tcp.handle_reject(&tuple, &mut self.tunnel);
            }
            Ok(_) => {}
            Err(_) => self.tunnel.counters.bogus += 1,
        }
    }
}

/// Whether what was found for one packet holds for another: the same ends, and neither asks for something new.
fn is_same_flow(one: &Parsed, other: &Parsed) -> bool {
    let ends = |parsed: &Parsed| {
        (
            parsed.proto,
            parsed.src_port,
            parsed.dst_port,
            parsed.src,
            parsed.dst,
        )
    };
    let has_ports = matches!(one.proto, proto::TCP | proto::UDP);
    has_ports
        && ends(one) == ends(other)
        && (one.fragment, other.fragment) == (Fragment::No, Fragment::No)
        && !other.is_bare_syn()
}
