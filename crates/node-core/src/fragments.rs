//! Puts fragments for this node together again, within bounds. The whole packet then goes through the filter like any other, so no fragment slips past it.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::packet::{FragmentPlace, Parsed, header_len, proto};

/// How long the rest of a packet is waited for. Fragments leave together; what is late by more was lost.
const PATIENCE: Duration = Duration::from_secs(5);
/// Packets that are put together at once; the oldest gives way.
const MAX_PARTIAL: usize = 16;
/// Fragments of one packet. At the tailnet's MTU the largest packet has 53.
const MAX_PIECES: usize = 64;
/// Bytes of all of them.
const MAX_BYTES: usize = 128 * 1024;
/// Largest packet.
const MAX_PACKET: usize = 65_535;

/// Fragments of one packet share this (RFC 791, RFC 8200 4.5).
type Id = (IpAddr, IpAddr, u32, u8);

#[derive(Debug)]
struct Partial {
    id: Id,
    until: Instant,
    /// Sorted by offset, apart from each other.
    pieces: Vec<(usize, Box<[u8]>)>,
    /// Length of all, once the last piece is there.
    total: Option<usize>,
    bytes: usize,
}

/// What came of a fragment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Assembled {
    /// More is needed.
    Waiting,
    /// It was the missing one.
    Whole(Vec<u8>),
    /// It, or the packet that it belongs to, cannot be taken.
    Refused,
}

/// Packets of which some fragments arrived.
#[derive(Debug, Default)]
pub(crate) struct Fragments {
    partial: VecDeque<Partial>,
    bytes: usize,
    refused: u64,
}

impl Fragments {
    /// Fragments that could not be taken, and packets that gave way to others.
    pub(crate) fn refused(&self) -> u64 {
        self.refused
    }

    /// Takes a fragment.
    pub(crate) fn insert(&mut self, packet: &[u8], parsed: &Parsed, now: Instant) -> Assembled {
        let assembled = self.place(packet, parsed, now);
        self.refused += u64::from(assembled == Assembled::Refused);
        assembled
    }

    fn place(&mut self, packet: &[u8], parsed: &Parsed, now: Instant) -> Assembled {
        self.handle_timeout(now);
        let Some(place) = FragmentPlace::of(packet) else {
            return Assembled::Refused;
        };
        let Some(piece) = packet
            .get(parsed.transport..parsed.end)
            .filter(|piece| !piece.is_empty())
        else {
            return Assembled::Refused;
        };
        let id = (parsed.src, parsed.dst, place.id, parsed.proto);
        let index = match self.partial.iter().position(|partial| partial.id == id) {
            Some(index) => index,
            None => self.start(id, now),
        };
        let Some(partial) = self.partial.get_mut(index) else {
            return Assembled::Refused;
        };
        let room = MAX_BYTES.saturating_sub(self.bytes);
        if piece.len() > room || !partial.add(place.offset, piece, place.more) {
            self.remove(index);
            return Assembled::Refused;
        }
        self.bytes += piece.len();
        if !partial.is_whole() {
            return Assembled::Waiting;
        }
        match self.remove(index) {
            Some(partial) => Assembled::Whole(partial.join(parsed)),
            None => Assembled::Refused,
        }
    }

    /// Begins a packet, in place of the oldest one if there are too many. Returns where it stands.
    fn start(&mut self, id: Id, now: Instant) -> usize {
        if self.partial.len() == MAX_PARTIAL {
            self.refused += 1;
            self.remove(0);
        }
        self.partial.push_back(Partial {
            id,
            until: now + PATIENCE,
            pieces: Vec::new(),
            total: None,
            bytes: 0,
        });
        self.partial.len() - 1
    }

    fn remove(&mut self, index: usize) -> Option<Partial> {
        let partial = self.partial.remove(index)?;
        self.bytes -= partial.bytes;
        if self.partial.is_empty() {
            self.partial = VecDeque::new();
        }
        Some(partial)
    }

    /// When the oldest is given up.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.partial.front().map(|partial| partial.until)
    }

    /// Gives up what waits for too long.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        while self.partial.front().is_some_and(|partial| partial.until <= now) {
            self.remove(0);
        }
    }
}

impl Partial {
    /// Adds a piece. Returns `false` if it contradicts the others: pieces that overlap are an attack (RFC 5722).
    fn add(&mut self, offset: usize, piece: &[u8], more: bool) -> bool {
        let end = offset + piece.len();
        let at = self.pieces.partition_point(|(start, _)| *start < offset);
        let before = at.checked_sub(1).and_then(|index| self.pieces.get(index));
        let overlaps = before.is_some_and(|(start, piece)| start + piece.len() > offset)
            || self.pieces.get(at).is_some_and(|(start, _)| *start < end);
        let fits = match (more, self.total) {
            (true, total) => piece.len().is_multiple_of(8) && total.is_none_or(|total| end < total),
            (false, None) => self
                .pieces
                .last()
                .is_none_or(|(start, piece)| start + piece.len() <= offset),
            (false, Some(_)) => false,
        };
        if overlaps || !fits || end > MAX_PACKET || self.pieces.len() == MAX_PIECES {
            return false;
        }
        if !more {
            self.total = Some(end);
        }
        self.bytes += piece.len();
        self.pieces.insert(at, (offset, piece.into()));
        true
    }

    fn is_whole(&self) -> bool {
        self.total == Some(self.bytes)
    }

    /// The packet, with a header of our own.
    fn join(self, parsed: &Parsed) -> Vec<u8> {
        let mut packet = Vec::with_capacity(header_len(parsed.src) + self.bytes);
        crate::packet::begin(&mut packet, parsed.src, parsed.dst, parsed.proto, 0);
        for (_, piece) in self.pieces {
            packet.extend_from_slice(&piece);
        }
        let length = packet.len();
        match parsed.src {
            IpAddr::V4(_) => packet[2..4].copy_from_slice(&(length as u16).to_be_bytes()),
            IpAddr::V6(_) => {
                packet[4..6].copy_from_slice(&((length - header_len(parsed.src)) as u16).to_be_bytes());
            }
        }
        packet
    }
}

/// Whether fragments of this protocol are worth putting together here.
pub(crate) fn is_assembled(protocol: u8) -> bool {
    matches!(protocol, proto::TCP | proto::UDP | proto::ICMP | proto::ICMP6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{fragments, write_udp};
    use proptest::prelude::*;

    fn datagram(v6: bool, length: usize) -> Vec<u8> {
        let (from, to) = if v6 {
            ("[fd7a::2]:9", "[fd7a::1]:7")
        } else {
            ("100.64.0.2:9", "100.64.0.1:7")
        };
        let mut packet = Vec::new();
        let payload: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
        write_udp(&mut packet, from.parse().unwrap(), to.parse().unwrap(), &payload);
        packet
    }

    fn fragmented(packet: &[u8], size: usize, id: u32) -> Vec<Vec<u8>> {
        fragments(packet, &Parsed::parse(packet).unwrap(), size, id).collect()
    }

    fn insert(fragments: &mut Fragments, packet: &[u8], now: Instant) -> Assembled {
        fragments.insert(packet, &Parsed::parse(packet).unwrap(), now)
    }

    proptest! {
        #[test]
        fn pieces_in_any_order_make_the_packet(v6: bool, length in 1300usize..9000, size in 2usize..150, order: u64) {
            let whole = datagram(v6, length);
            let mut pieces = fragmented(&whole, size * 8, 77);
            prop_assume!(pieces.len() <= MAX_PIECES);
            let (mut fragments, now) = (Fragments::default(), Instant::now());
            for index in (1..pieces.len()).rev() {
                pieces.swap(index, (order % (index as u64 + 1)) as usize);
            }
            let last = pieces.pop().unwrap();
            for piece in &pieces {
                prop_assert_eq!(insert(&mut fragments, piece, now), Assembled::Waiting);
            }
            let Assembled::Whole(packet) = insert(&mut fragments, &last, now) else {
                panic!("not whole");
            };
            let (parsed, before) = (Parsed::parse(&packet).unwrap(), Parsed::parse(&whole).unwrap());
            prop_assert_eq!((parsed.source(), parsed.destination()), (before.source(), before.destination()));
            prop_assert!(packet[parsed.transport..parsed.end] == whole[before.transport..before.end]);
            prop_assert_eq!(fragments.bytes, 0);
        }
    }

    #[test]
    fn a_flood_is_bounded_and_forgotten() {
        let (mut fragments, now) = (Fragments::default(), Instant::now());
        let whole = datagram(false, 4000);
        for id in 0..1000 {
            let first = fragmented(&whole, 1200, id).remove(0);
            insert(&mut fragments, &first, now);
            assert!(fragments.partial.len() <= MAX_PARTIAL && fragments.bytes <= MAX_BYTES);
        }
        // The last ones can still be completed.
        let mut rest = fragmented(&whole, 1200, 999).into_iter().skip(1);
        assert!(rest.all(|piece| insert(&mut fragments, &piece, now) != Assembled::Refused));
        assert_eq!(fragments.next_deadline(), Some(now + PATIENCE));
        fragments.handle_timeout(now + PATIENCE);
        assert_eq!((fragments.partial.len(), fragments.bytes), (0, 0));
    }

    #[test]
    fn overlaps_end_the_packet() {
        let (mut fragments, now) = (Fragments::default(), Instant::now());
        let whole = datagram(true, 4000);
        let (large, small) = (fragmented(&whole, 1200, 5), fragmented(&whole, 800, 5));
        assert_eq!(insert(&mut fragments, &large[0], now), Assembled::Waiting);
        assert_eq!(insert(&mut fragments, &small[1], now), Assembled::Refused);
        assert!(fragments.partial.is_empty());
    }
}
