//! Packets on their way to the TUN device: runs of one flow become one large packet.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Gso, TCP_CHECKSUM, UDP_CHECKSUM, VnetHeader, checksum, pseudo_sum, set_ip_length};
use crate::buffers::{Arena, BufferPool, Span};
use crate::packet::{Fragment, Parsed, proto, tcp_flags};

/// A packet may join one of so many that were begun last.
const MAX_OPEN: usize = 16;
/// Most packets in one, and most bytes.
const MAX_PARTS: u32 = 64;
const MAX_LEN: usize = 65_535;

/// A packet for the TUN device, in parts that lie one after the other in it.
#[derive(Debug)]
pub struct TunPacket<'a> {
    /// What goes before the packet, on a device with such headers.
    pub header: VnetHeader,
    inbox: &'a Inbox,
    first: &'a [u8],
    next: Option<u32>,
}

impl<'a> TunPacket<'a> {
    /// The parts, of which there are at most 64.
    pub fn parts(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let inbox = self.inbox;
        let rest = std::iter::successors(self.next.and_then(|at| inbox.part(at)), |part| {
            inbox.part(part.next?)
        });
        std::iter::once(self.first).chain(rest.filter_map(|part| inbox.arena.get(&part.span)))
    }
}

/// Packets for the device, and room to open the next one.
#[derive(Debug)]
pub(crate) struct Inbox {
    arena: Arena,
    tcp: bool,
    udp: bool,
    groups: VecDeque<Group>,
    parts: Vec<Part>,
    /// Whether the first group was given out.
    given: bool,
}

/// Packets of one flow that follow each other.
#[derive(Debug)]
struct Group {
    /// The first packet, whole.
    first: Span,
    /// What all of them have in common; `None` for a packet that joins no other.
    run: Option<Run>,
    /// The payloads of the others.
    head: Option<u32>,
    tail: Option<u32>,
    count: u32,
    payload: usize,
}

/// What decides which packet may come next.
#[derive(Debug)]
struct Run {
    flow: Flow,
    transport: usize,
    headers: usize,
    segment: usize,
    sequence: u32,
    closed: bool,
    push: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flow {
    protocol: u8,
    ports: (u16, u16),
    src: IpAddr,
    dst: IpAddr,
}

#[derive(Debug)]
struct Part {
    span: Span,
    next: Option<u32>,
}

impl Inbox {
    pub(crate) fn new(pool: Arc<BufferPool>) -> Self {
        Self {
            arena: Arena::new(pool),
            tcp: false,
            udp: false,
            groups: VecDeque::new(),
            parts: Vec::new(),
            given: false,
        }
    }

    /// Says which packets the device takes together.
    pub(crate) fn set_offloads(&mut self, tcp: bool, udp: bool) {
        self.tcp = tcp;
        self.udp = udp;
    }

    /// Room to open a message of this length, which is at most [`crate::BUFFER_LEN`].
    pub(crate) fn room(&mut self, length: usize) -> &mut [u8] {
        self.arena.room(length)
    }

    /// The packet of this length that was written to the last [`Self::room`].
    pub(crate) fn opened(&self, length: usize) -> &[u8] {
        self.arena.written(length)
    }

    /// Keeps the packet that was opened last, for the device.
    pub(crate) fn keep(&mut self, parsed: &Parsed) {
        self.forget_given();
        let span = self.arena.commit(parsed.end);
        let run = self.arena.get(&span).and_then(|packet| self.run(packet, parsed));
        let Some(run) = run else {
            self.begin(span, None, 0);
            return;
        };
        let open = self.groups.iter().rev().take(MAX_OPEN);
        // Only the newest of a flow, so that its order holds.
        let newest = open
            .enumerate()
            .find(|(_, group)| group.run.as_ref().is_some_and(|known| known.flow == run.flow));
        let place = newest.map(|(back, _)| self.groups.len() - 1 - back);
        let joined = place.is_some_and(|place| self.join(place, &span, &run));
        if !joined {
            let payload = run.segment;
            self.begin(span, Some(run), payload);
        }
    }

    /// What decides which packets may come before and after this one; `None` if its flow does not matter, as none of its packets goes together with others.
    fn run(&self, packet: &[u8], parsed: &Parsed) -> Option<Run> {
        let wanted = match parsed.proto {
            proto::TCP => self.tcp,
            proto::UDP => self.udp,
            _ => false,
        };
        wanted.then(|| {
            let flow = Flow {
                protocol: parsed.proto,
                ports: (parsed.src_port, parsed.dst_port),
                src: parsed.src,
                dst: parsed.dst,
            };
            Run::of(flow, packet, parsed).unwrap_or_else(|| Run::alone(flow))
        })
    }

    fn join(&mut self, place: usize, span: &Span, run: &Run) -> bool {
        let group = &mut self.groups[place];
        let Some(first) = group.run.as_mut() else {
            return false;
        };
        let follows = first.flow.protocol != proto::TCP
            || first.sequence == run.sequence.wrapping_sub(run.segment as u32);
        let fits = follows
            && !first.closed
            && run.segment > 0
            && first.headers == run.headers
            && run.segment <= first.segment
            && group.count < MAX_PARTS
            && first.headers + group.payload + run.segment <= MAX_LEN;
        if !fits {
            return false;
        }
        let (Some(one), Some(other)) = (self.arena.get(&group.first), self.arena.get(span)) else {
            return false;
        };
        if !same_headers(one, other, first) {
            return false;
        }
        first.sequence = run.sequence;
        first.push |= run.push;
        first.closed = run.push || run.segment < first.segment;
        group.payload += run.segment;
        group.count += 1;
        let number = self.parts.len() as u32;
        let mut payload = span.clone();
        payload.range.start += run.headers;
        self.parts.push(Part {
            span: payload,
            next: None,
        });
        match group.tail.replace(number) {
            Some(tail) => self.parts[tail as usize].next = Some(number),
            None => group.head = Some(number),
        }
        true
    }

    fn begin(&mut self, first: Span, run: Option<Run>, payload: usize) {
        self.groups.push_back(Group {
            first,
            run,
            head: None,
            tail: None,
            count: 1,
            payload,
        });
    }

    fn part(&self, at: u32) -> Option<&Part> {
        self.parts.get(at as usize)
    }

    fn forget_given(&mut self) {
        if std::mem::take(&mut self.given) {
            self.groups.pop_front();
        }
    }

    /// The next packet for the device.
    pub(crate) fn pop(&mut self) -> Option<TunPacket<'_>> {
        self.forget_given();
        let Some(group) = self.groups.front() else {
            self.release();
            return None;
        };
        self.given = true;
        self.arena.release_before(group.first.buffer);
        let packet = self.arena.get_mut(&group.first)?;
        let header = match &group.run {
            Some(run) if group.count > 1 => run.finish(packet, group.payload),
            _ => VnetHeader::default(),
        };
        Some(TunPacket {
            header,
            first: self.arena.get(&group.first)?,
            next: group.head,
            inbox: self,
        })
    }

    /// Gives all memory back if nothing waits.
    pub(crate) fn release(&mut self) {
        if !self.groups.is_empty() {
            return;
        }
        self.arena.release();
        self.parts.clear();
        if self.groups.capacity() > 256 {
            self.groups = VecDeque::new();
            self.parts = Vec::new();
        }
    }
}

/// Whether two packets of a flow differ in nothing but what differs between segments: lengths, checksums, sequence, identification, the push flag.
fn same_headers(one: &[u8], other: &[u8], run: &Run) -> bool {
    let (transport, headers) = (run.transport, run.headers);
    let ip = if one[0] >> 4 == 4 {
        // Version, header length, class of service; flags and time to live; options.
        one[..2] == other[..2] && one[6..9] == other[6..9] && one[20..transport] == other[20..transport]
    } else {
        // Version, class, flow label; hop limit.
        one[..4] == other[..4] && one[7] == other[7]
    };
    let (one, other) = (&one[transport..headers], &other[transport..headers]);
    let tcp = || {
        // Acknowledgement and header length; window; urgent pointer and options.
        one[8..13] == other[8..13] && one[14..16] == other[14..16] && one[18..] == other[18..]
    };
    ip && (run.flow.protocol != proto::TCP || tcp())
}

impl Run {
    /// A packet that goes with no other of its flow.
    fn alone(flow: Flow) -> Self {
        Self {
            flow,
            transport: 0,
            headers: 0,
            segment: 0,
            sequence: 0,
            closed: true,
            push: false,
        }
    }

    /// A packet that may go together with others: whole, with payload, with nothing special in its headers, and with a right checksum.
    fn of(flow: Flow, packet: &[u8], parsed: &Parsed) -> Option<Self> {
        // A group in which fragments or IPv6 extensions are, would not be what it was.
        let is_plain = parsed.fragment == Fragment::No && (packet[0] >> 4 == 4 || parsed.transport == 40);
        if !is_plain {
            return None;
        }
        let body = &packet[parsed.transport..parsed.end];
        let (length, sequence) = if flow.protocol == proto::TCP {
            let is_data = parsed.flags & !tcp_flags::PSH == tcp_flags::ACK;
            let length = usize::from(body[12] >> 4) * 4;
            if !is_data || length < 20 {
                return None;
            }
            (length, u32::from_be_bytes([body[4], body[5], body[6], body[7]]))
        } else {
            let length = usize::from(u16::from_be_bytes([body[4], body[5]]));
            if length != body.len() || body[UDP_CHECKSUM..UDP_CHECKSUM + 2] == [0, 0] {
                return None;
            }
            (8, 0)
        };
        let segment = body.len().checked_sub(length).filter(|segment| *segment > 0)?;
        let sum = pseudo_sum(packet, flow.protocol) + checksum::word(body.len() as u16) + checksum::sum(body);
        let push = flow.protocol == proto::TCP && parsed.flags & tcp_flags::PSH != 0;
        checksum::verifies(sum).then_some(Self {
            flow,
            transport: parsed.transport,
            headers: parsed.transport + length,
            segment,
            sequence: sequence.wrapping_add(segment as u32),
            closed: push,
            push,
        })
    }

    /// Makes the headers of the first packet those of all, with so much payload.
    fn finish(&self, packet: &mut [u8], payload: usize) -> VnetHeader {
        let total = self.headers + payload;
        set_ip_length(packet, total);
        let length = (total - self.transport) as u16;
        let pseudo = pseudo_sum(packet, self.flow.protocol) + checksum::word(length);
        let is_v4 = packet[0] >> 4 == 4;
        let body = &mut packet[self.transport..];
        let (gso, at) = if self.flow.protocol == proto::TCP {
            if self.push {
                body[13] |= tcp_flags::PSH;
            }
            (if is_v4 { Gso::Tcp4 } else { Gso::Tcp6 }, TCP_CHECKSUM)
        } else {
            body[4..6].copy_from_slice(&length.to_be_bytes());
            (Gso::Udp, UDP_CHECKSUM)
        };
        body[at..at + 2].copy_from_slice(&checksum::fold(pseudo).to_ne_bytes());
        VnetHeader {
            needs_checksum: true,
            gso,
            header_len: self.headers as u16,
            segment: self.segment as u16,
            checksum_start: self.transport as u16,
            checksum_offset: at as u16,
        }
    }
}
