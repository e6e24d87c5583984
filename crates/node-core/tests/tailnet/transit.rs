//! Networks that a node routes without a kernel: node 2 routes, node 1 uses it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use tailwharf_node_core::offload::{Gso, VnetHeader};
use tailwharf_node_core::{
    AdmitError, AskedId, CloseReason, ConnError, ConnId, Echo, Event, Io, Transit, UdpError,
};
use tailwharf_wire::tailcfg::MapResponse;

use crate::net::{Net, Weather, address, filters, rule};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const INSIDE: &str = "10.1.2.3:80";

/// Two nodes, the second of which routes these networks.
fn net(routes: &[&str], seed: u64) -> Net {
    let mut net = Net::acquainted(2, Weather::FAIR, seed);
    let nets = approve(&mut net, routes);
    net.host(1).core.set_routing(true, None);
    net.host(2).core.set_transit(&nets);
    net
}

/// The control server routes these networks to node 2.
fn approve(net: &mut Net, routes: &[&str]) -> Vec<IpNet> {
    let nets: Vec<IpNet> = routes.iter().map(|text| text.parse().unwrap()).collect();
    let mut router = net.node(2);
    router.allowed_ips = Some(router.addresses.iter().chain(&nets).copied().collect());
    net.tell(
        2,
        &MapResponse {
            node: Some(router.clone()),
            ..Default::default()
        },
    );
    net.tell(
        1,
        &MapResponse {
            peers_changed: vec![router],
            ..Default::default()
        },
    );
    nets
}

/// Dials from node 1, and gives what node 2 is asked.
fn ask(net: &mut Net, to: &str) -> (ConnId, AskedId) {
    let to: SocketAddr = to.parse().unwrap();
    let conn = net.host(1).core.connect_tcp(to).unwrap();
    let mut found = None;
    net.run_until(MINUTE, "request", |net| {
        if let Io::Ready(Transit::Connection {
            asked,
            from,
            to: named,
        }) = net.host(2).core.next_transit()
        {
            assert_eq!((from.ip().is_ipv4(), named), (to.is_ipv4(), to));
            found = Some(asked);
        }
        found.is_some()
    });
    (conn, found.unwrap())
}

/// How a connection of node 1 ended, or `None` if it stands now.
fn outcome(net: &mut Net, conn: ConnId) -> Option<CloseReason> {
    let mut outcome = None;
    net.run_until(MINUTE, "outcome", |net| {
        let ends = net.host(1).take(|event| match event {
            Event::Connected(id) if *id == conn => Some(None),
            Event::Closed { conn: id, reason } if *id == conn => Some(Some(*reason)),
            _ => None,
        });
        outcome = ends.first().copied();
        outcome.is_some()
    });
    outcome.flatten()
}

#[test]
fn a_connection_stands_once_it_is_admitted_and_carries_both_ways() {
    let mut net = net(&["10.1.0.0/16"], 500);
    let (client, asked) = ask(&mut net, INSIDE);
    // The client repeats its SYN meanwhile, which asks for nothing new.
    net.run(5 * SECOND);
    assert_eq!(net.host(2).core.next_transit(), Io::Pending);
    let now = net.now;
    let server = net.host(2).core.admit(asked, now).unwrap();
    assert_eq!(net.host(2).core.write(server, b"early"), Ok(Io::Pending));
    assert_eq!(outcome(&mut net, client), None);
    let ends = net.host(2).core.connection_addresses(server).unwrap();
    assert_eq!((ends.0, ends.1.ip()), (INSIDE.parse().unwrap(), address(1)));

    for (from, to, conns) in [(1, 2, [client, server]), (2, 1, [server, client])] {
        let mut got = Vec::new();
        net.run(SECOND);
        assert_eq!(net.host(from).core.write(conns[0], b"hello"), Ok(Io::Ready(5)));
        net.run_until(SECOND, "bytes", |net| {
            let mut buffer = [0; 64];
            if let Io::Ready(length) = net.host(to).core.read(conns[1], &mut buffer).unwrap() {
                got.extend_from_slice(&buffer[..length]);
            }
            got.len() == 5
        });
        assert_eq!(got, b"hello");
    }
    net.host(1).core.close(client);
    net.host(2).core.close(server);
    net.run(MINUTE);
    assert_eq!(net.host(2).core.connection_count(), 0);
}

#[test]
fn a_refused_connection_is_reset_and_one_that_was_taken_back_is_gone() {
    let mut net = net(&["10.1.0.0/16"], 501);
    let (client, asked) = ask(&mut net, INSIDE);
    let now = net.now;
    net.host(2).core.refuse(asked, now);
    assert_eq!(outcome(&mut net, client), Some(CloseReason::Refused));

    let (client, asked) = ask(&mut net, INSIDE);
    net.host(1).core.abort(client);
    net.run(SECOND);
    let now = net.now;
    // A client that has sent nothing but its SYN may say nothing when it gives up: what is admitted then is reset.
    if let Ok(conn) = net.host(2).core.admit(asked, now) {
        net.run(SECOND);
        let mut buffer = [0; 8];
        assert_eq!(
            net.host(2).core.read(conn, &mut buffer),
            Err(ConnError::Ended(CloseReason::Reset))
        );
    }
    assert_eq!(net.host(2).core.admit(asked, now), Err(AdmitError::Gone));
}

#[test]
fn listeners_of_the_node_take_nothing_that_is_for_its_networks() {
    let mut net = net(&["10.1.0.0/16"], 502);
    let listener = net.host(2).core.listen_tcp(None, 80, 8).unwrap();
    let socket = net.host(2).core.bind_udp(None, 80).unwrap();
    let (_, asked) = ask(&mut net, INSIDE);
    let now = net.now;
    net.host(2).core.admit(asked, now).unwrap();
    let sender = net.host(1).core.bind_udp(None, 0).unwrap();
    let to = Some(INSIDE.parse().unwrap());
    net.host(1).core.send_udp(sender, None, to, b"x", now).unwrap();
    net.run(SECOND);
    assert!(net.host(2).core.accept(listener).is_none());
    assert_eq!(net.host(2).core.recv_udp(socket), Ok(Io::Pending));
    let transit = net.host(2).core.next_transit();
    assert!(matches!(transit, Io::Ready(Transit::Datagram(_))), "{transit:?}");
}

#[test]
fn the_filter_and_the_routes_stand_before_it() {
    let mut net = net(&["10.1.0.0/16"], 503);
    net.tell(2, &filters(vec![rule(&["*"], 80, 80)]));
    let denied: SocketAddr = "10.1.2.3:81".parse().unwrap();
    let conn = net.host(1).core.connect_tcp(denied).unwrap();
    assert_eq!(outcome(&mut net, conn), Some(CloseReason::Denied));
    assert_eq!(net.host(2).core.next_transit(), Io::Pending);

    // A route that the node did not offer is none, whatever the control server says.
    approve(&mut net, &["10.1.0.0/16", "10.2.0.0/16"]);
    let elsewhere: SocketAddr = "10.2.0.1:80".parse().unwrap();
    net.host(1).core.connect_tcp(elsewhere).unwrap();
    net.run(SECOND);
    assert_eq!(net.host(2).core.next_transit(), Io::Pending);
}

#[test]
fn an_exit_leads_to_the_internet_and_not_to_what_is_around_it() {
    let mut net = net(&["0.0.0.0/0", "::/0"], 504);
    let exit = net.node(2).stable_id;
    net.host(1).core.set_routing(false, Some(exit));
    let (_, asked) = ask(&mut net, "198.51.100.9:443");
    let now = net.now;
    assert!(net.host(2).core.admit(asked, now).is_ok());
    for around in ["10.1.2.3:80", "127.0.0.1:80", "192.168.0.1:80", "[::1]:80"] {
        net.host(1).core.connect_tcp(around.parse().unwrap()).unwrap();
    }
    net.run(SECOND);
    assert_eq!(net.host(2).core.next_transit(), Io::Pending);
    assert!(!net.host(2).core.is_named_route("198.51.100.9".parse().unwrap()));
}

#[test]
fn connections_end_when_the_route_or_the_right_does() {
    for by_filter in [true, false] {
        let mut net = net(&["10.1.0.0/16"], 505);
        let (client, asked) = ask(&mut net, INSIDE);
        let (_, waiting) = ask(&mut net, "10.1.2.4:80");
        let now = net.now;
        net.host(2).core.admit(asked, now).unwrap();
        assert_eq!(outcome(&mut net, client), None);
        if by_filter {
            net.tell(2, &filters(vec![rule(&["*"], 443, 443)]));
        } else {
            net.host(2).core.set_transit(&[]);
        }
        assert_eq!(net.host(2).core.admit(waiting, now), Err(AdmitError::Gone));
        assert_eq!(outcome(&mut net, client), Some(CloseReason::Reset));
    }
}

#[test]
fn a_flood_of_questions_is_bounded() {
    let mut net = net(&["10.1.0.0/16"], 506);
    for at in 0..500 {
        let to = format!("10.1.{}.{}:80", at / 250, at % 250 + 1);
        net.host(1).core.connect_tcp(to.parse().unwrap()).unwrap();
    }
    net.run(Duration::from_millis(500));
    let mut asked = 0;
    while let Io::Ready(_) = net.host(2).core.next_transit() {
        asked += 1;
    }
    assert_eq!(asked, 128);
    assert!(net.host(2).core.counters().syn_dropped >= 500 - 128);
}

#[test]
fn datagrams_go_there_and_large_ones_back() {
    let mut net = net(&["10.1.0.0/16"], 507);
    let to: SocketAddr = "10.1.2.3:53".parse().unwrap();
    assert_eq!(net.host(2).core.next_transit(), Io::Pending);
    let socket = net.host(1).core.bind_udp(None, 0).unwrap();
    let now = net.now;
    let core = &mut net.host(1).core;
    core.send_udp(socket, None, Some(to), b"question", now).unwrap();
    net.run(SECOND);
    let told = |event: &Event| matches!(event, Event::Transit).then_some(());
    assert_eq!(net.host(2).take(told).len(), 1);
    let Io::Ready(Transit::Datagram(datagram)) = net.host(2).core.next_transit() else {
        panic!("no datagram");
    };
    assert_eq!((datagram.to, &*datagram.payload), (to, &b"question"[..]));

    let answer: Vec<u8> = (0..9000u32).map(|n| (n % 251) as u8).collect();
    let now = net.now;
    let core = &mut net.host(2).core;
    core.send_transit(to, datagram.from, &answer, now).unwrap();
    let nowhere = "100.64.9.9:1".parse().unwrap();
    assert_eq!(
        core.send_transit(to, nowhere, b"", now),
        Err(UdpError::NoRoute { remote: nowhere })
    );
    net.run(SECOND);
    let Ok(Io::Ready(datagram)) = net.host(1).core.recv_udp(socket) else {
        panic!("no answer");
    };
    assert_eq!(datagram.from, to);
    assert!(datagram.payload == answer);
}

/// A packet that a kernel gives as it is.
const PLAIN: VnetHeader = VnetHeader {
    needs_checksum: false,
    gso: Gso::None,
    header_len: 0,
    segment: 0,
    checksum_start: 0,
    checksum_offset: 0,
};

/// An ICMP echo request from node 1.
fn echo_request(to: IpAddr, payload: &[u8]) -> Vec<u8> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (address(1), to) else {
        unreachable!()
    };
    let mut packet = vec![0x45, 0];
    packet.extend((28 + payload.len() as u16).to_be_bytes());
    packet.extend([0, 7, 0, 0, 64, 1, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend([8, 0, 0, 0, 0, 9, 0, 1]);
    packet.extend(payload);
    packet
}

/// Answers, and gives what node 1's kernel gets.
fn answer(net: &mut Net, echo: &Echo) -> Vec<u8> {
    let now = net.now;
    net.host(2).core.answer_echo(echo, now);
    net.run(SECOND);
    let packet = net.host(1).core.poll_tun().unwrap();
    packet.parts().collect::<Vec<_>>().concat()
}

#[test]
fn pings_are_answered_when_the_shell_says_so() {
    let mut net = net(&["10.1.0.0/16"], 508);
    net.host(1).core.attach_tun(false, false);
    let to: IpAddr = "10.1.2.3".parse().unwrap();
    let mut request = echo_request(to, b"payload");
    let now = net.now;
    net.host(1).core.handle_tun(&PLAIN, &mut request, false, now);
    net.run(SECOND);
    let Io::Ready(Transit::Echo(echo)) = net.host(2).core.next_transit() else {
        panic!("no echo request");
    };
    assert_eq!(
        (echo.from, echo.to, echo.payload()),
        (address(1), to, &b"payload"[..])
    );
    assert!(net.host(1).core.poll_tun().is_none());
    let reply = answer(&mut net, &echo);
    assert_eq!((reply[9], reply[20], &reply[28..]), (1, 0, &b"payload"[..]));
    assert_eq!(&reply[12..16], [10, 1, 2, 3]);
}

#[test]
fn addresses_of_sites_come_here_even_if_a_kernel_has_the_rest() {
    let mut net = net(&["fd7a:115c:a1e0:b1a:0:7:a01:0/112"], 509);
    net.host(2).core.attach_tun(false, false);
    let own = SocketAddr::new(address(2), 22);
    net.host(1).core.connect_tcp(own).unwrap();
    let (conn, asked) = ask(&mut net, "[fd7a:115c:a1e0:b1a:0:7:a01:203]:80");
    assert!(
        net.host(2).core.poll_tun().is_some(),
        "what is for the node itself is the kernel's"
    );
    let now = net.now;
    net.host(2).core.admit(asked, now).unwrap();
    assert_eq!(outcome(&mut net, conn), None);
}
