//! Everything but TCP: handshakes, the filter, pings, UDP, names, memory.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tailwharf_node_core::{CloseReason, Event, Io, Path, PingError, PingKind, UdpError};
use tailwharf_wire::tailcfg::{
    CapGrant, DnsConfig, FilterRule, MapResponse, NodeId, PeerChange, TkaInfo, UserId, UserProfile,
};

use crate::net::{Net, REGION, Weather, address, address6, filters, rule};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// Sends a datagram from node 1 to node 2 and back, and says whether it arrived within `most`.
fn echo(net: &mut Net, most: Duration) -> bool {
    let client = net.host(1).core.bind_udp(None, 0).unwrap();
    let server = net.host(2).core.bind_udp(None, 7).unwrap();
    let now = net.now;
    net.host(1)
        .core
        .send_udp(client, None, Some(SocketAddr::new(address(2), 7)), b"hello", now)
        .unwrap();
    let until = net.now + most;
    let mut answered = false;
    while net.step(until) && !answered {
        let now = net.now;
        while let Io::Ready(datagram) = net.host(2).core.recv_udp(server).unwrap() {
            let (to, from) = (datagram.from, datagram.to.ip());
            net.host(2)
                .core
                .send_udp(server, Some(from), Some(to), &datagram.payload, now)
                .unwrap();
        }
        while let Io::Ready(datagram) = net.host(1).core.recv_udp(client).unwrap() {
            assert_eq!(
                (datagram.from, &*datagram.payload),
                (SocketAddr::new(address(2), 7), &b"hello"[..])
            );
            answered = true;
        }
    }
    net.host(1).core.close_udp(client);
    net.host(2).core.close_udp(server);
    answered
}

#[test]
fn udp_goes_there_and_back() {
    let mut net = Net::new(2, Weather::FAIR, 100);
    assert!(echo(&mut net, SECOND));
    let active = net.host(1).take(|event| {
        if let Event::PeerActive { peer, path } = event {
            Some((peer.id, *path))
        } else {
            None
        }
    });
    let peer = net.host(2).key.public();
    assert_eq!(active, [(NodeId(2), Path::Derp { region: REGION, peer })]);
    assert_eq!(net.host(2).core.active_peers().len(), 1);
}

#[test]
fn udp_tells_when_to_read_and_what_is_too_large() {
    let mut net = Net::new(2, Weather::FAIR, 101);
    let server = net.host(2).core.bind_udp(Some(address6(2)), 7).unwrap();
    assert!(net.host(2).core.bind_udp(Some(address6(2)), 7).is_err());
    assert_eq!(net.host(2).core.recv_udp(server), Ok(Io::Pending));
    let client = net.host(1).core.bind_udp(None, 0).unwrap();
    let now = net.now;
    let core = &mut net.host(1).core;
    assert_eq!(
        core.send_udp(client, None, None, b"", now),
        Err(UdpError::NotConnected)
    );
    let nowhere: SocketAddr = "100.64.0.9:7".parse().unwrap();
    assert_eq!(
        core.send_udp(client, None, Some(nowhere), b"", now),
        Err(UdpError::NoRoute { remote: nowhere })
    );
    core.connect_udp(client, SocketAddr::new(address6(2), 7)).unwrap();
    let large = [0; 1233];
    assert_eq!(
        core.send_udp(client, None, None, &large, now),
        Err(UdpError::TooLarge {
            size: 1233,
            limit: 1232
        })
    );
    core.send_udp(client, None, None, &large[..1232], now).unwrap();
    net.run(SECOND);
    assert!(
        net.host(2)
            .take(|event| matches!(event, Event::UdpReadable(id) if *id == server).then_some(()))
            .len()
            == 1
    );
    let Ok(Io::Ready(datagram)) = net.host(2).core.recv_udp(server) else {
        panic!("no datagram")
    };
    assert_eq!(datagram.payload.len(), 1232);
}

#[test]
fn a_queue_of_datagrams_is_bounded() {
    let mut net = Net::new(2, Weather::FAIR, 102);
    let server = net.host(2).core.bind_udp(None, 7).unwrap();
    let client = net.host(1).core.bind_udp(None, 0).unwrap();
    assert!(echo_port_is_separate(&mut net));
    for _ in 0..2000 {
        let now = net.now;
        net.host(1)
            .core
            .send_udp(client, None, Some(SocketAddr::new(address(2), 7)), &[7; 100], now)
            .unwrap();
        net.drain();
    }
    net.run(SECOND);
    let mut waiting = 0;
    while let Io::Ready(_) = net.host(2).core.recv_udp(server).unwrap() {
        waiting += 1;
    }
    assert_eq!(waiting, 256);
    assert_eq!(net.host(2).core.counters().undelivered, 2000 - 256);
}

/// Brings the session up by a ping, so that the datagrams of a test do not wait for it.
fn echo_port_is_separate(net: &mut Net) -> bool {
    ping(net, PingKind::Tsmp).is_some()
}

fn ping(net: &mut Net, kind: PingKind) -> Option<Duration> {
    let now = net.now;
    let id = net.host(1).core.ping(NodeId(2), kind, now).unwrap();
    let mut reply = None;
    net.run_until(MINUTE, "ping", |net| {
        let ended = net.host(1).take(|event| match event {
            Event::PingReply { ping, latency, .. } if *ping == id => Some(Some(*latency)),
            Event::PingTimeout(ping) if *ping == id => Some(None),
            _ => None,
        });
        reply = ended.first().copied().flatten();
        !ended.is_empty()
    });
    reply
}

#[test]
fn pings_of_both_kinds_are_answered_and_time_out() {
    let mut net = Net::new(2, Weather::FAIR, 110);
    let round_trip = 2 * net.weather.delay;
    assert_eq!(ping(&mut net, PingKind::Disco), Some(round_trip));
    assert!(ping(&mut net, PingKind::Tsmp).is_some());
    assert_eq!(ping(&mut net, PingKind::Tsmp), Some(round_trip));
    net.weather.loss = 1000;
    assert_eq!(ping(&mut net, PingKind::Disco), None);
    let now = net.now;
    assert_eq!(
        net.host(1).core.ping(NodeId(9), PingKind::Disco, now),
        Err(PingError::NoPath)
    );
}

#[test]
fn hearing_disco_of_a_peer_starts_the_handshake() {
    let mut net = Net::new(2, Weather::FAIR, 111);
    assert!(ping(&mut net, PingKind::Disco).is_some());
    net.run(SECOND);
    assert_eq!(
        net.host(1).core.active_peers().len(),
        1,
        "node 2 opened a session because it heard the ping"
    );
}

#[test]
fn the_filter_denies_and_says_so() {
    let mut net = Net::new(2, Weather::FAIR, 120);
    net.tell(2, &filters(vec![rule(&["100.64.0.1"], 80, 80)]));
    let listener = net.host(2).core.listen_tcp(None, 81, 8).unwrap();
    let conn = net
        .host(1)
        .core
        .connect_tcp(SocketAddr::new(address(2), 81))
        .unwrap();
    net.run_until(SECOND, "denial", |net| {
        let denied = |event: &Event| matches!(event, Event::Closed { conn: id, reason: CloseReason::Denied } if *id == conn);
        !net.host(1).take(|event| denied(event).then_some(())).is_empty()
    });
    assert!(net.host(2).core.accept(listener).is_none());
    assert!(!echo(&mut net, SECOND));
    assert!(net.host(2).core.counters().denied >= 2);
    // An answer to what node 2 itself asked passes.
    net.tell(1, &filters(vec![]));
    net.tell(2, &filters(vec![rule(&["*"], 7, 7)]));
    assert!(echo(&mut net, SECOND));
}

#[test]
fn denials_are_told_a_limited_number_of_times() {
    let mut net = Net::new(2, Weather::FAIR, 121);
    net.tell(2, &filters(vec![]));
    assert!(ping(&mut net, PingKind::Tsmp).is_some());
    let conns: Vec<_> = (0..100)
        .map(|port| {
            net.host(1)
                .core
                .connect_tcp(SocketAddr::new(address(2), 1000 + port))
                .unwrap()
        })
        .collect();
    net.run(SECOND / 2);
    let denied = net.host(1).take(|event| {
        matches!(
            event,
            Event::Closed {
                reason: CloseReason::Denied,
                ..
            }
        )
        .then_some(())
    });
    assert_eq!((denied.len(), conns.len()), (20, 100));
}

#[test]
fn an_initiation_that_comes_before_the_netmap_is_answered_with_it() {
    let mut net = Net::strangers(2, Weather::FAIR, 130);
    net.introduce(1);
    let server = net.host(2).core.bind_udp(None, 7).unwrap();
    let client = net.host(1).core.bind_udp(None, 0).unwrap();
    let now = net.now;
    net.host(1)
        .core
        .send_udp(client, None, Some(SocketAddr::new(address(2), 7)), b"early", now)
        .unwrap();
    net.run(SECOND + SECOND / 2);
    assert_eq!(net.host(2).core.recv_udp(server), Ok(Io::Pending));
    net.introduce(2);
    net.run(SECOND / 10);
    assert!(
        matches!(net.host(2).core.recv_udp(server), Ok(Io::Ready(_))),
        "answered without a second initiation"
    );
}

#[test]
fn an_initiation_is_not_kept_for_longer_than_two_seconds() {
    let mut net = Net::strangers(2, Weather::FAIR, 131);
    net.introduce(1);
    let client = net.host(1).core.bind_udp(None, 0).unwrap();
    let now = net.now;
    net.host(1)
        .core
        .send_udp(client, None, Some(SocketAddr::new(address(2), 7)), b"early", now)
        .unwrap();
    // It is repeated once, after a second.
    net.run(Duration::from_millis(3100));
    net.introduce(2);
    net.run(SECOND / 10);
    assert!(net.host(1).core.active_peers().is_empty());
}

#[test]
fn sessions_that_are_idle_go_and_come_back() {
    let mut net = Net::new(2, Weather::FAIR, 140);
    assert!(echo(&mut net, SECOND));
    net.run(4 * MINUTE);
    assert!(net.host(1).core.active_peers().is_empty() && net.host(2).core.active_peers().is_empty());
    assert_eq!(
        net.host(1).core.poll_timeout(),
        None,
        "an idle node has nothing to wake up for"
    );
    assert!(echo(&mut net, SECOND));
}

#[test]
fn a_peer_that_restarted_is_reached_at_once() {
    let mut net = Net::new(2, Weather::FAIR, 150);
    assert!(echo(&mut net, SECOND));
    net.run(10 * SECOND);
    net.restart(2);
    // The map tells node 1 of the new disco key, as the new process told it.
    let node = net.node(2);
    net.tell(
        1,
        &MapResponse {
            peers_changed: vec![node],
            ..Default::default()
        },
    );
    assert!(echo(&mut net, SECOND / 2));
}

#[test]
fn a_peer_that_restarted_is_reached_at_once_even_if_the_map_says_nothing() {
    let mut net = Net::new(2, Weather::FAIR, 151);
    assert!(echo(&mut net, SECOND));
    net.run(10 * SECOND);
    net.restart(2);
    // The first datagram is lost with the old session, and makes the new process start a handshake.
    assert!(!echo(&mut net, SECOND));
    assert!(echo(&mut net, SECOND / 2));
}

#[test]
fn a_node_that_moved_wakes_its_peers() {
    let mut net = Net::new(2, Weather::FAIR, 152);
    assert!(echo(&mut net, SECOND));
    let peers: Vec<_> = net
        .host(2)
        .core
        .active_peers()
        .iter()
        .map(|peer| peer.stable_id.clone())
        .collect();
    net.restart(2);
    let now = net.now;
    net.host(2).core.wake_peers(&peers, now);
    net.run(SECOND / 10);
    assert!(
        echo(&mut net, SECOND / 2),
        "the session stands before the peer sends anything"
    );
}

#[test]
fn a_peer_that_left_closes_its_connections() {
    let mut net = Net::new(2, Weather::FAIR, 160);
    let _listener = net.host(2).core.listen_tcp(None, 80, 8).unwrap();
    let conn = net
        .host(1)
        .core
        .connect_tcp(SocketAddr::new(address(2), 80))
        .unwrap();
    net.run(SECOND);
    net.tell(
        1,
        &MapResponse {
            peers_removed: vec![NodeId(2)],
            ..Default::default()
        },
    );
    net.drain();
    let gone = |event: &Event| matches!(event, Event::Closed { conn: id, reason: CloseReason::PeerGone } if *id == conn);
    assert_eq!(net.host(1).take(|event| gone(event).then_some(())).len(), 1);
    assert!(net.host(1).core.active_peers().is_empty());
    assert!(
        net.host(1)
            .core
            .connect_tcp(SocketAddr::new(address(2), 80))
            .is_err()
    );
}

#[test]
fn a_changed_home_region_or_key_is_used() {
    let mut net = Net::new(2, Weather::FAIR, 170);
    let patch = PeerChange {
        node_id: NodeId(2),
        derp_region: tailwharf_wire::tailcfg::RegionId(901),
        ..Default::default()
    };
    net.tell(
        1,
        &MapResponse {
            peers_changed_patch: vec![patch],
            ..Default::default()
        },
    );
    let now = net.now;
    let core = &mut net.host(1).core;
    core.ping(NodeId(2), PingKind::Disco, now).unwrap();
    let path = core.poll_transmit(now).unwrap().path;
    assert!(matches!(path, Path::Derp { region, .. } if region.0 == 901));
}

#[test]
fn tailnet_lock_shows_no_peers() {
    let mut net = Net::new(2, Weather::FAIR, 180);
    net.tell(
        1,
        &MapResponse {
            tka_info: Some(TkaInfo::default()),
            ..Default::default()
        },
    );
    assert!(net.host(1).netmap.is_locked());
    assert!(
        net.host(1)
            .core
            .connect_tcp(SocketAddr::new(address(2), 80))
            .is_err()
    );
    net.tell(
        1,
        &MapResponse {
            tka_info: Some(TkaInfo {
                disabled: true,
                ..Default::default()
            }),
            ..Default::default()
        },
    );
    assert!(
        net.host(1)
            .core
            .connect_tcp(SocketAddr::new(address(2), 80))
            .is_ok()
    );
}

#[test]
fn garbage_is_counted_and_changes_nothing() {
    let mut net = Net::new(2, Weather::FAIR, 190);
    assert!(echo(&mut net, SECOND));
    let (now, from) = (net.now, net.host(1).key.public());
    let before = net.host(2).core.counters().invalid;
    for length in 0..300usize {
        for kind in 0..6u8 {
            let mut bytes = vec![0x5a; length];
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            if length >= 4 {
                bytes[1..4].fill(0);
            }
            net.host(2).core.handle_derp(REGION, from, &mut bytes, now);
            let mut disco = [b"TS\xf0\x9f\x92\xac".as_slice(), &bytes].concat();
            net.host(2).core.handle_derp(REGION, from, &mut disco, now);
        }
    }
    assert_eq!(net.host(2).core.counters().invalid - before, 300 * 12);
    assert!(echo(&mut net, SECOND));
}

#[test]
fn whois_knows_node_user_and_grants() {
    let mut net = Net::new(2, Weather::FAIR, 200);
    let cap = "tailscale.com/cap/kubernetes";
    let grant = |sources: &[&str], own: IpAddr, value: &str| FilterRule {
        src_ips: sources.iter().map(|&source| source.to_owned()).collect(),
        cap_grant: vec![CapGrant {
            dsts: vec![own.into()],
            cap_map: BTreeMap::from([(cap.to_owned(), vec![serde_json::json!(value)])]),
            ..Default::default()
        }],
        ..Default::default()
    };
    net.tell(
        2,
        &filters(vec![
            grant(&["100.64.0.1"], address(2), "first"),
            grant(&["*"], address(2), "second"),
            grant(&["100.64.0.3"], address(2), "another's"),
            grant(&["*"], address6(2), "for v6"),
        ]),
    );
    let core = &net.host(2).core;
    let who = core.whois(address(1), None).unwrap();
    assert_eq!(
        (&*who.node.name, &*who.user.login_name),
        ("node-1.example.ts.net", "alice@example.com")
    );
    assert_eq!(
        who.cap_map[cap],
        [serde_json::json!("first"), serde_json::json!("second")]
    );
    let mapped: IpAddr = "::ffff:100.64.0.1".parse().unwrap();
    assert_eq!(core.whois(mapped, None), Some(who));
    assert_eq!(
        core.whois(address6(1), None).unwrap().cap_map[cap],
        [serde_json::json!("for v6")]
    );
    assert_eq!(core.whois(address(2), None).unwrap().node.id, NodeId(2));
    assert_eq!(core.whois(address(9), None), None);
    // A node whose user is unknown is nobody.
    let mut stranger = net.node(1);
    stranger.user = UserId(8);
    net.tell(
        2,
        &MapResponse {
            peers_changed: vec![stranger],
            ..Default::default()
        },
    );
    assert_eq!(net.host(2).core.whois(address(1), None), None);
    let users = vec![UserProfile {
        id: UserId(8),
        login_name: "bob@example.com".into(),
        ..Default::default()
    }];
    net.tell(
        2,
        &MapResponse {
            user_profiles: users,
            dns_config: Some(DnsConfig::default()),
            ..Default::default()
        },
    );
    assert_eq!(
        net.host(2).core.whois(address(1), None).unwrap().user.login_name,
        "bob@example.com"
    );
}
