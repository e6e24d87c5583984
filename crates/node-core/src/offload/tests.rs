use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use proptest::prelude::*;

use super::inbox::Inbox;
use super::*;
use crate::buffers::BufferPool;
use crate::packet::{Parsed, proto, tests::verifies, write_udp};

/// A TCP segment as a peer would send it.
#[derive(Clone, Debug)]
struct Segment {
    v6: bool,
    port: u16,
    sequence: u32,
    flags: u8,
    window: u16,
    payload: Vec<u8>,
}

impl Segment {
    fn packet(&self) -> Vec<u8> {
        let mut packet = Vec::new();
        let (from, to) = ends(self.v6, self.port);
        // TCP takes the place of what UDP would carry.
        let mut body = vec![0; 20 - 8 + 12];
        body.extend_from_slice(&self.payload);
        write_udp(&mut packet, from, to, &body);
        let transport = if self.v6 { 40 } else { 20 };
        packet[if self.v6 { 6 } else { 9 }] = proto::TCP;
        if !self.v6 {
            let total = packet.len();
            set_ip_length(&mut packet, total);
        }
        let tcp = &mut packet[transport..];
        tcp[4..8].copy_from_slice(&self.sequence.to_be_bytes());
        tcp[8..12].copy_from_slice(&77u32.to_be_bytes());
        tcp[12] = 8 << 4;
        tcp[13] = self.flags;
        tcp[14..16].copy_from_slice(&self.window.to_be_bytes());
        tcp[16..18].copy_from_slice(&[0, 0]);
        let length = tcp.len() as u16;
        let sum = checksum::sum(tcp) + checksum::word(length) + pseudo_sum(&packet, proto::TCP);
        packet[transport + 16..transport + 18].copy_from_slice(&checksum::finish(sum));
        assert!(verifies(&packet));
        packet
    }
}

fn ends(v6: bool, port: u16) -> (SocketAddr, SocketAddr) {
    if v6 {
        let from = Ipv6Addr::new(0xfd7a, 0, 0, 0, 0, 0, 0, 1);
        let to = Ipv6Addr::new(0xfd7a, 0, 0, 0, 0, 0, 0, 2);
        ((from, port).into(), (to, 443).into())
    } else {
        let (from, to) = (Ipv4Addr::new(100, 64, 0, 1), Ipv4Addr::new(100, 64, 0, 2));
        ((from, port).into(), (to, 443).into())
    }
}

fn datagram(v6: bool, port: u16, payload: &[u8]) -> Vec<u8> {
    let (from, to) = ends(v6, port);
    let mut packet = Vec::new();
    write_udp(&mut packet, from, to, payload);
    packet
}

fn keep(inbox: &mut Inbox, packet: &[u8]) {
    inbox.room(packet.len() + 32)[..packet.len()].copy_from_slice(packet);
    let parsed = Parsed::parse(inbox.opened(packet.len())).unwrap();
    inbox.keep(&parsed);
}

/// Gives packets to a device that takes large ones, and what it got: header, whole packet, number of parts.
fn coalesce(packets: &[Vec<u8>], tcp: bool, udp: bool) -> Vec<(VnetHeader, Vec<u8>, usize)> {
    let mut inbox = Inbox::new(BufferPool::new());
    inbox.set_offloads(tcp, udp);
    for packet in packets {
        keep(&mut inbox, packet);
    }
    let mut written = Vec::new();
    while let Some(packet) = inbox.pop() {
        let parts: Vec<_> = packet.parts().collect();
        written.push((packet.header, parts.concat(), parts.len()));
    }
    written
}

fn split(packet: &[u8], header: &VnetHeader) -> Vec<Vec<u8>> {
    let mut packet = packet.to_vec();
    let mut split = Split::new(&mut packet, header).unwrap();
    let mut all = Vec::new();
    while let Some(one) = split.next_packet() {
        all.push(one.to_vec());
    }
    all
}

/// A packet without what a large one does not keep: the identification of IPv4, and what follows from it.
fn essence(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

fn stream(v6: bool, port: u16, lengths: &[usize]) -> Vec<Vec<u8>> {
    let mut sequence = 0xffff_f000u32;
    let segments = lengths.iter().map(|&length| {
        let segment = Segment {
            v6,
            port,
            sequence,
            flags: 0x10,
            window: 500,
            payload: (0..length).map(|at| (at * 7 + length) as u8).collect(),
        };
        sequence = sequence.wrapping_add(length as u32);
        segment.packet()
    });
    segments.collect()
}

#[test]
fn a_run_of_segments_is_one_packet_for_the_kernel() {
    for v6 in [false, true] {
        let packets = stream(v6, 1000, &[1000, 1000, 1000, 400]);
        let written = coalesce(&packets, true, true);
        let [(header, packet, parts)] = &written[..] else {
            panic!("{} packets", written.len());
        };
        let transport = if v6 { 40 } else { 20 };
        assert_eq!(
            *header,
            VnetHeader {
                needs_checksum: true,
                gso: if v6 { Gso::Tcp6 } else { Gso::Tcp4 },
                header_len: transport + 32,
                segment: 1000,
                checksum_start: transport,
                checksum_offset: 16,
            }
        );
        assert_eq!((packet.len(), *parts), (usize::from(transport) + 32 + 3400, 4));
        assert_eq!(Parsed::parse(packet).unwrap().end, packet.len());
        assert_eq!(VnetHeader::decode(&header.encode()), *header);
    }
}

#[test]
fn datagrams_of_one_size_go_together() {
    let packets: Vec<_> = (0..5u8).map(|byte| datagram(true, 5, &[byte; 900])).collect();
    let written = coalesce(&packets, false, true);
    assert_eq!(written.len(), 1);
    assert_eq!((written[0].0.gso, written[0].0.segment), (Gso::Udp, 900));
    assert_eq!(coalesce(&packets, true, false).len(), 5);
}

#[test]
fn what_differs_is_not_mixed() {
    let one = Segment {
        v6: false,
        port: 9,
        sequence: 100,
        flags: 0x10,
        window: 10,
        payload: vec![1; 50],
    };
    let next = Segment {
        sequence: 150,
        ..one.clone()
    };
    let others = [
        Segment {
            flags: 0x11,
            ..next.clone()
        },
        Segment {
            flags: 0x14,
            ..next.clone()
        },
        Segment {
            flags: 0x50,
            ..next.clone()
        },
        Segment {
            window: 11,
            ..next.clone()
        },
        Segment {
            sequence: 151,
            ..next.clone()
        },
        Segment {
            port: 10,
            ..next.clone()
        },
        Segment {
            payload: vec![1; 51],
            ..next
        },
        Segment {
            payload: vec![],
            ..next
        },
    ];
    assert_eq!(coalesce(&[one.packet(), next.packet()], true, true).len(), 1);
    for other in others {
        assert_eq!(
            coalesce(&[one.packet(), other.packet()], true, true).len(),
            2,
            "{other:?}"
        );
    }
    let mut broken = next.packet();
    *broken.last_mut().unwrap() ^= 1;
    let written = coalesce(&[one.packet(), broken.clone()], true, true);
    // The kernel finds the wrong checksum by itself.
    assert_eq!((written[1].0, &written[1].1), (VnetHeader::default(), &broken));
}

#[test]
fn a_push_ends_the_run_and_is_kept() {
    let mut segments = vec![];
    for (number, flags) in [0x10, 0x18, 0x10].into_iter().enumerate() {
        let sequence = number as u32 * 10;
        segments.push(
            Segment {
                v6: false,
                port: 1,
                sequence,
                flags,
                window: 1,
                payload: vec![0; 10],
            }
            .packet(),
        );
    }
    let written = coalesce(&segments, true, true);
    assert_eq!(written.len(), 2);
    let pieces = split(&written[0].1, &written[0].0);
    assert_eq!(
        pieces.iter().map(|piece| piece[33]).collect::<Vec<_>>(),
        [0x10, 0x18]
    );
}

#[test]
fn a_checksum_left_to_do_is_done() {
    let whole = datagram(false, 7, b"hello");
    let mut partial = whole.clone();
    let pseudo = pseudo_sum(&whole, proto::UDP) + checksum::word(13);
    partial[26..28].copy_from_slice(&checksum::fold(pseudo).to_ne_bytes());
    let header = VnetHeader {
        needs_checksum: true,
        checksum_start: 20,
        checksum_offset: 6,
        ..VnetHeader::default()
    };
    assert_eq!(split(&partial, &header), [whole]);
}

#[test]
fn headers_that_do_not_fit_are_refused() {
    let packet = stream(false, 1, &[100]).remove(0);
    let right = VnetHeader {
        needs_checksum: true,
        gso: Gso::Tcp4,
        header_len: 52,
        segment: 10,
        checksum_start: 20,
        checksum_offset: 16,
    };
    assert_eq!(split(&packet, &right).len(), 10);
    let wrong = [
        VnetHeader { segment: 0, ..right },
        VnetHeader {
            checksum_start: 24,
            ..right
        },
        VnetHeader {
            checksum_start: 60_000,
            ..right
        },
        VnetHeader {
            gso: Gso::Other(3),
            ..right
        },
        VnetHeader {
            gso: Gso::None,
            checksum_start: 151,
            ..right
        },
    ];
    for header in wrong {
        assert!(Split::new(&mut packet.clone(), &header).is_err(), "{header:?}");
    }
    assert!(Split::new(&mut packet[..40].to_vec(), &right).is_err());
}

/// What peers may send: streams with gaps, repetitions and odd sizes, and datagrams, mixed.
fn traffic() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let lengths = proptest::collection::vec(prop_oneof![4 => Just(600usize), 1 => 0..1228usize], 1..40);
    let flow = (any::<bool>(), 1..4u16, lengths, any::<bool>());
    proptest::collection::vec(flow, 1..5).prop_map(|flows| {
        let mut queues: Vec<Vec<Vec<u8>>> = Vec::new();
        for (v6, port, lengths, tcp) in flows {
            let mut packets = if tcp {
                stream(v6, port, &lengths)
            } else {
                lengths
                    .iter()
                    .map(|length| datagram(v6, port, &vec![port as u8; *length]))
                    .collect()
            };
            packets.reverse();
            queues.push(packets);
        }
        let mut mixed = Vec::new();
        let mut turn = 0;
        while queues.iter().any(|queue| !queue.is_empty()) {
            let at = turn % queues.len();
            for _ in 0..=turn % 5 {
                mixed.extend(queues[at].pop());
            }
            turn += 1;
        }
        mixed
    })
}

/// A flow of a packet: its ports and version.
fn flow(packet: &[u8]) -> (u8, u8, u16) {
    let parsed = Parsed::parse(packet).unwrap();
    (packet[0] >> 4, parsed.proto, parsed.src_port)
}

proptest! {
    /// A batch that was put together and taken apart again is the same packets, in the same order in each flow.
    #[test]
    fn together_and_apart_is_the_same(packets in traffic(), tcp: bool, udp: bool) {
        let mut apart = Vec::new();
        for (header, packet, parts) in coalesce(&packets, tcp, udp) {
            prop_assert!(packet.len() <= 65_535 && parts <= 64);
            apart.extend(split(&packet, &header));
        }
        prop_assert_eq!(apart.len(), packets.len());
        for packet in &apart {
            prop_assert!(verifies(packet));
        }
        let mut flows: Vec<_> = packets.iter().map(|packet| flow(packet)).collect();
        flows.sort_unstable();
        flows.dedup();
        for wanted in flows {
            let of = |all: &[Vec<u8>]| -> Vec<_> {
                all.iter().filter(|packet| flow(packet) == wanted).map(|packet| essence(packet)).collect()
            };
            prop_assert!(of(&apart) == of(&packets), "{wanted:?}");
        }
    }

    /// Nothing that a device may hand over makes it stumble.
    #[test]
    fn any_bytes_are_split_or_refused(mut packet in proptest::collection::vec(any::<u8>(), 0..300), header: [u8; VnetHeader::LEN]) {
        let header = VnetHeader::decode(&header);
        if let Ok(mut split) = Split::new(&mut packet, &header) {
            while let Some(one) = split.next_packet() {
                prop_assert!(!one.is_empty());
            }
        }
    }
}
