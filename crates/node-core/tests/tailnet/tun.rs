//! Nodes with a TUN device.

use std::time::Duration;

use tailwharf_node_core::offload::{Gso, VnetHeader};

use crate::net::{Net, Weather, address, filters, rule};

const MOMENT: Duration = Duration::from_millis(100);
const ACK: u8 = 0x10;
const SYN: u8 = 0x02;

/// A TCP packet of node 1 to node 2, as a kernel hands it over: checksums are left to do.
fn tcp(port: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
    let total = (40 + payload.len()) as u16;
    let mut packet = vec![0x45, 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0, 7, 0x40, 0, 64, 6, 0, 0]);
    for id in [1, 2] {
        let std::net::IpAddr::V4(v4) = address(id) else {
            unreachable!()
        };
        packet.extend(v4.octets());
    }
    packet.extend(40_000u16.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend([0, 0, 0, 9, 0, 0, 0, 1, 5 << 4, flags, 1, 0, 0, 0, 0, 0]);
    packet.extend(payload);
    packet
}

fn header(gso: Gso, segment: u16) -> VnetHeader {
    VnetHeader {
        needs_checksum: true,
        gso,
        header_len: 40,
        segment,
        checksum_start: 20,
        checksum_offset: 16,
    }
}

/// Two nodes with devices that take large packets.
fn net(seed: u64) -> Net {
    let mut net = Net::acquainted(2, Weather::FAIR, seed);
    for id in [1, 2] {
        net.host(id).core.attach_tun(true, true);
    }
    net
}

/// Sends a packet of node 1's kernel, and gives what node 2's kernel gets.
fn carry(net: &mut Net, header: &VnetHeader, packet: &[u8], slow_down: bool) -> Vec<(VnetHeader, Vec<u8>)> {
    let now = net.now;
    net.host(1)
        .core
        .handle_tun(header, &mut packet.to_vec(), slow_down, now);
    net.run(MOMENT);
    let mut got = Vec::new();
    while let Some(packet) = net.host(2).core.poll_tun() {
        got.push((packet.header, packet.parts().collect::<Vec<_>>().concat()));
    }
    got
}

#[test]
fn a_large_packet_arrives_as_one_and_leaves_as_those_it_stands_for() {
    let mut net = net(300);
    let payload: Vec<u8> = (0..10_500u32).map(|at| (at / 7) as u8).collect();
    let before = net.host(2).core.counters().packets_in;
    let got = carry(&mut net, &header(Gso::Tcp4, 1000), &tcp(80, ACK, &payload), false);
    assert_eq!(net.host(2).core.counters().packets_in - before, 11);
    assert_eq!(got.len(), 1);
    let (arrived, packet) = &got[0];
    assert_eq!(
        (arrived.gso, arrived.segment, arrived.needs_checksum),
        (Gso::Tcp4, 1000, true)
    );
    assert_eq!(&packet[40..], &payload);
}

#[test]
fn to_slow_a_sender_down_one_segment_is_lost() {
    let mut net = net(301);
    let got = carry(
        &mut net,
        &header(Gso::Tcp4, 1000),
        &tcp(80, ACK, &[5; 4000]),
        true,
    );
    assert_eq!(
        got.iter().map(|(_, packet)| packet.len() - 40).sum::<usize>(),
        3000
    );
}

#[test]
fn the_filter_stands_before_the_device() {
    let mut net = net(302);
    net.tell(2, &filters(vec![rule(&["*"], 80, 80)]));
    assert_eq!(
        carry(&mut net, &header(Gso::None, 0), &tcp(80, SYN, &[]), false).len(),
        1
    );
    let before = net.host(2).core.counters().denied;
    assert_eq!(
        carry(&mut net, &header(Gso::None, 0), &tcp(22, SYN, &[]), false).len(),
        0
    );
    assert_eq!(net.host(2).core.counters().denied - before, 1);
}

#[test]
fn ports_of_the_core_are_not_the_kernels() {
    let mut net = net(303);
    net.host(2).core.listen_tcp(None, 80, 8).unwrap();
    assert_eq!(
        carry(&mut net, &header(Gso::None, 0), &tcp(80, SYN, &[]), false).len(),
        0
    );
    assert_eq!(net.host(2).core.connection_count(), 1);
    assert_eq!(
        carry(&mut net, &header(Gso::None, 0), &tcp(81, SYN, &[]), false).len(),
        1
    );
}

#[test]
fn what_no_peer_takes_is_counted() {
    let mut net = net(304);
    let mut packet = tcp(80, SYN, &[]);
    packet[16..20].copy_from_slice(&[100, 64, 9, 9]);
    let before = net.host(1).core.counters().no_route;
    assert!(carry(&mut net, &header(Gso::None, 0), &packet, false).is_empty());
    assert_eq!(net.host(1).core.counters().no_route - before, 1);
}
