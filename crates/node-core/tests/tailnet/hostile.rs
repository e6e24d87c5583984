//! A peer that writes its own packets: spoofed sources, floods of SYNs and fragments, forged errors; and policies that change under open connections.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tailwharf_node_core::offload::VnetHeader;
use tailwharf_node_core::packet::{Parsed, proto};
use tailwharf_node_core::{CloseReason, ConnId, Event, Io, ListenerId, UdpId};

use crate::net::{Net, Weather, address, address6, filters, rule};

const SECOND: Duration = Duration::from_secs(1);
const SYN: u8 = 2;
const FIN: u8 = 1;
const RST: u8 = 4;
const ACK: u8 = 16;

/// An IP packet, without checksums: those inside a tunnel are trusted.
fn ip(protocol: u8, from: IpAddr, to: IpAddr, body: &[u8]) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let length = (20 + body.len() as u16).to_be_bytes();
            let head = [0x45, 0, length[0], length[1], 0, 9, 0, 0, 64, protocol, 0, 0];
            [&head[..], &from.octets(), &to.octets(), body].concat()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let length = (body.len() as u16).to_be_bytes();
            let head = [0x60, 0, 0, 0, length[0], length[1], protocol, 64];
            [&head[..], &from.octets(), &to.octets(), body].concat()
        }
        _ => panic!("{from} and {to}"),
    }
}

fn udp(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let (source, destination) = (from.port().to_be_bytes(), to.port().to_be_bytes());
    let length = (8 + payload.len() as u16).to_be_bytes();
    let body = [&source[..], &destination, &length, &[0, 0], payload].concat();
    ip(proto::UDP, from.ip(), to.ip(), &body)
}

fn tcp(from: SocketAddr, to: SocketAddr, seq: u32, ack: u32, flags: u8) -> Vec<u8> {
    let ports = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    let numbers = [seq.to_be_bytes(), ack.to_be_bytes()].concat();
    let body = [&ports[..], &numbers, &[0x50, flags, 4, 0, 0, 0, 0, 0]].concat();
    ip(proto::TCP, from.ip(), to.ip(), &body)
}

/// The fragments of an IPv4 packet, with 800 bytes each.
fn fragments(packet: &[u8], id: u16) -> Vec<Vec<u8>> {
    let (head, body) = packet.split_at(20);
    let last = body.len().div_ceil(800) - 1;
    let pieces = body.chunks(800).enumerate();
    pieces
        .map(|(index, piece)| {
            let mut out = [head, piece].concat();
            let field = (index * 100) as u16 | if index < last { 0x2000 } else { 0 };
            out[2..4].copy_from_slice(&(20 + piece.len() as u16).to_be_bytes());
            out[4..6].copy_from_slice(&id.to_be_bytes());
            out[6..8].copy_from_slice(&field.to_be_bytes());
            out
        })
        .collect()
}

/// Nodes of which the third writes its own packets and sees those that come back.
fn with_liar(seed: u64) -> Net {
    let mut net = Net::acquainted(3, Weather::FAIR, seed);
    net.host(3).core.attach_tun(false, false);
    // It has a session with node 2.
    send(
        &mut net,
        &ip(proto::ICMP, address(3), address(2), &[8, 0, 0, 0, 0, 0, 0, 0]),
    );
    net.run(SECOND);
    assert_eq!(received(&mut net).len(), 1);
    net
}

fn send(net: &mut Net, packet: &[u8]) {
    let now = net.now;
    net.host(3)
        .core
        .handle_tun(&VnetHeader::default(), &mut packet.to_vec(), false, now);
    net.drain();
}

/// What the third node was sent since.
fn received(net: &mut Net) -> Vec<Vec<u8>> {
    net.run(SECOND / 10);
    let mut packets = Vec::new();
    while let Some(packet) = net.host(3).core.poll_tun() {
        packets.push(packet.parts().flatten().copied().collect());
    }
    packets
}

fn datagrams(net: &mut Net, socket: UdpId) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    while let Io::Ready(datagram) = net.host(2).core.recv_udp(socket).unwrap() {
        all.push(datagram.payload);
    }
    all
}

fn closed(net: &mut Net, id: i64, conn: ConnId) -> Option<CloseReason> {
    let mine = |event: &Event| match event {
        Event::Closed { conn: other, reason } if *other == conn => Some(*reason),
        _ => None,
    };
    net.host(id).take(mine).pop()
}

fn connect(net: &mut Net, from: i64, to: i64, listener: ListenerId) -> (ConnId, ConnId) {
    let remote = SocketAddr::new(address(to), 80);
    let conn = net.host(from).core.connect_tcp(remote).unwrap();
    let mut accepted = None;
    net.run_until(10 * SECOND, "a connection", |net| {
        accepted = accepted.or_else(|| net.host(to).core.accept(listener));
        accepted.is_some()
    });
    (conn, accepted.unwrap().conn)
}

#[test]
fn open_connections_end_when_the_policy_changes_and_others_stay() {
    let mut net = Net::acquainted(3, Weather::FAIR, 500);
    let inbound = net.host(2).core.listen_tcp(None, 80, 8).unwrap();
    let outbound = net.host(1).core.listen_tcp(None, 80, 8).unwrap();
    let (ours, theirs) = (
        connect(&mut net, 1, 2, inbound),
        connect(&mut net, 2, 1, outbound),
    );
    let friend = connect(&mut net, 3, 2, inbound);
    net.tell(2, &filters(vec![rule(&["100.64.0.3"], 0, 65535)]));
    net.run(SECOND);
    assert_eq!(closed(&mut net, 2, ours.1), Some(CloseReason::Revoked));
    assert_eq!(closed(&mut net, 1, ours.0), Some(CloseReason::Reset));
    assert_eq!(net.host(2).core.counters().revoked, 1);
    // What node 2 itself opened, and what is still allowed, goes on.
    for (here, there, (a, b)) in [(2, 1, theirs), (3, 2, friend)] {
        net.host(here).core.write(a, b"more").unwrap();
        let mut buffer = [0; 8];
        net.run_until(SECOND, "data", |net| {
            net.host(there).core.read(b, &mut buffer) == Ok(Io::Ready(4))
        });
    }
    // The same rules again end nothing.
    net.tell(2, &filters(vec![rule(&["100.64.0.3"], 0, 65535)]));
    net.run(SECOND);
    assert_eq!(closed(&mut net, 2, friend.1), None);
}

#[test]
fn answers_to_datagrams_stop_with_the_policy() {
    let mut net = with_liar(501);
    let socket = net.host(2).core.bind_udp(None, 7).unwrap();
    let (from, to) = (SocketAddr::new(address(3), 9), SocketAddr::new(address(2), 7));
    send(&mut net, &udp(from, to, b"one"));
    net.run(SECOND / 10);
    let now = net.now;
    net.host(2)
        .core
        .send_udp(socket, None, Some(from), b"answer", now)
        .unwrap();
    net.tell(2, &filters(vec![]));
    send(&mut net, &udp(from, to, b"two"));
    net.run(SECOND / 10);
    assert_eq!(datagrams(&mut net, socket), [b"one"]);
}

#[test]
fn spoofed_sources_are_counted_and_dropped() {
    let mut net = with_liar(502);
    let socket = net.host(2).core.bind_udp(None, 7).unwrap();
    for from in [address(1), address6(1), "8.8.8.8".parse().unwrap()] {
        let to = if from.is_ipv4() { address(2) } else { address6(2) };
        let packet = udp(SocketAddr::new(from, 9), SocketAddr::new(to, 7), b"lie");
        send(&mut net, &packet);
        for piece in fragments(
            &udp(
                SocketAddr::new(address(1), 9),
                SocketAddr::new(address(2), 7),
                &[0; 2000],
            ),
            5,
        ) {
            send(&mut net, &piece);
        }
    }
    net.run(SECOND);
    assert!(datagrams(&mut net, socket).is_empty());
    assert_eq!(net.host(2).core.counters().bogus, 3 + 3 * 3);
}

#[test]
fn datagrams_in_fragments_arrive_whole_and_are_filtered_as_one() {
    let mut net = with_liar(503);
    net.tell(2, &filters(vec![rule(&["*"], 7, 7)]));
    let (open, shut) = (
        net.host(2).core.bind_udp(None, 7).unwrap(),
        net.host(2).core.bind_udp(None, 8).unwrap(),
    );
    let payload: Vec<u8> = (0..5000).map(|n| n as u8).collect();
    let from = SocketAddr::new(address(3), 9);
    for (port, id) in [(7, 1), (8, 2)] {
        let packet = udp(from, SocketAddr::new(address(2), port), &payload);
        let mut pieces = fragments(&packet, id);
        pieces.reverse();
        for piece in pieces {
            send(&mut net, &piece);
        }
    }
    net.run(SECOND);
    assert_eq!(datagrams(&mut net, open), [payload]);
    assert!(datagrams(&mut net, shut).is_empty());
    assert_eq!(net.host(2).core.counters().denied, 1);
}

#[test]
fn a_flood_of_fragments_is_bounded_and_counted() {
    let mut net = with_liar(504);
    let socket = net.host(2).core.bind_udp(None, 7).unwrap();
    let to = SocketAddr::new(address(2), 7);
    for id in 0..2000 {
        let packet = udp(SocketAddr::new(address(3), 9), to, &[0; 1500]);
        send(&mut net, &fragments(&packet, id)[0]);
    }
    net.run(SECOND / 10);
    assert!(net.host(2).core.counters().fragments_refused > 1900);
    let packet = udp(SocketAddr::new(address(3), 9), to, &[1; 1500]);
    for piece in fragments(&packet, 60_000) {
        send(&mut net, &piece);
    }
    net.run(SECOND / 10);
    assert_eq!(datagrams(&mut net, socket), [[1; 1500]]);
}

#[test]
fn ports_without_a_socket_are_told_so_often() {
    let mut net = with_liar(505);
    let from = SocketAddr::new(address(3), 9);
    for _ in 0..100 {
        send(&mut net, &udp(from, SocketAddr::new(address(2), 7), b"anybody?"));
    }
    let answers = received(&mut net);
    assert_eq!(answers.len(), 20);
    let parsed = Parsed::parse(&answers[0]).unwrap();
    assert_eq!((parsed.proto, &answers[0][20..22]), (proto::ICMP, &[3, 3][..]));
    assert_eq!(net.host(2).core.counters().undelivered, 100);
}

#[test]
fn a_flood_of_syns_costs_bounded_memory() {
    let mut net = with_liar(506);
    let listener = net.host(2).core.listen_tcp(None, 80, 128).unwrap();
    let to = SocketAddr::new(address(2), 80);
    for number in 0..5000u16 {
        send(
            &mut net,
            &tcp(SocketAddr::new(address(3), 1000 + number), to, 7, 0, SYN),
        );
    }
    net.run(SECOND / 10);
    assert!(net.host(2).core.connection_count() <= 128);
    assert!(net.budget.used() <= 128 * 1024);
    assert!(net.host(2).core.counters().syn_dropped >= 5000 - 128);
    net.run(SECOND);
    connect(&mut net, 1, 2, listener);
}

/// The numbers of a segment that the third node was sent.
fn numbers(packet: &[u8]) -> (u32, u32, u8) {
    let word = |at: usize| u32::from_be_bytes(packet[at..at + 4].try_into().unwrap());
    (word(24), word(28), packet[33])
}

#[test]
fn a_closed_connection_makes_way_for_a_new_one() {
    let mut net = with_liar(507);
    let listener = net.host(2).core.listen_tcp(None, 80, 8).unwrap();
    let (from, to) = (SocketAddr::new(address(3), 4000), SocketAddr::new(address(2), 80));
    let mut last = 0;
    // The same ports again and again, with numbers above and below those before.
    for first in [1_000_000, 2_000_000, 5, u32::MAX - 1] {
        send(&mut net, &tcp(from, to, first, 0, SYN));
        let answer = received(&mut net);
        let (seq, ack, flags) = numbers(answer.last().unwrap());
        assert_eq!((ack, flags), (first.wrapping_add(1), SYN | ACK));
        assert!(last == 0 || (seq.wrapping_sub(last) as i32) > 0, "numbers go on");
        send(&mut net, &tcp(from, to, ack, seq.wrapping_add(1), ACK));
        net.run(SECOND / 10);
        let conn = net.host(2).core.accept(listener).unwrap().conn;
        net.host(2).core.close(conn);
        let fin = received(&mut net);
        assert_eq!(numbers(fin.last().unwrap()).2 & FIN, FIN);
        send(&mut net, &tcp(from, to, ack, seq.wrapping_add(2), FIN | ACK));
        let end = received(&mut net);
        assert_eq!(numbers(end.last().unwrap()).1, ack.wrapping_add(1));
        assert_eq!(net.host(2).core.connection_count(), 0);
        // The very SYN of before, late, is none; the repeated FIN is acknowledged.
        send(&mut net, &tcp(from, to, first, 0, SYN));
        send(&mut net, &tcp(from, to, ack, seq.wrapping_add(2), FIN | ACK));
        let answers = received(&mut net);
        assert!(
            answers
                .iter()
                .all(|packet| numbers(packet) == (seq.wrapping_add(2), ack.wrapping_add(1), ACK))
        );
        assert_eq!(net.host(2).core.connection_count(), 0);
        last = seq;
    }
}

#[test]
fn errors_about_what_was_not_sent_change_nothing() {
    let mut net = with_liar(508);
    let conn = net
        .host(2)
        .core
        .connect_tcp(SocketAddr::new(address(3), 80))
        .unwrap();
    let (local, _) = net.host(2).core.connection_addresses(conn).unwrap();
    let syn = received(&mut net).remove(0);
    let (seq, ..) = numbers(&syn);
    let about = |seq: u32| {
        let quoted = tcp(local, SocketAddr::new(address(3), 80), seq, 0, SYN);
        let body = [&[3, 3, 0, 0, 0, 0, 0, 0][..], &quoted[..28]].concat();
        ip(proto::ICMP, address(3), address(2), &body)
    };
    send(&mut net, &about(seq.wrapping_add(1000)));
    send(
        &mut net,
        &tcp(
            SocketAddr::new(address(3), 80),
            local,
            9,
            seq.wrapping_add(500),
            RST | ACK,
        ),
    );
    net.run(SECOND / 10);
    assert_eq!(closed(&mut net, 2, conn), None);
    send(&mut net, &about(seq));
    net.run(SECOND / 10);
    assert_eq!(closed(&mut net, 2, conn), Some(CloseReason::Refused));
}
