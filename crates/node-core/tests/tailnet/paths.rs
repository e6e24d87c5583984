//! Direct paths: found through NATs, lost, found again, never worse than the relay alone.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use tailwharf_node_core::{Event, Io, Path, PathState, PingKind, RelayReason, UdpId};
use tailwharf_wire::disco::{Message, TxId};
use tailwharf_wire::key::{DiscoPrivate, DiscoPublic, NodePrivate};
use tailwharf_wire::stun;
use tailwharf_wire::tailcfg::{EndpointType, MapResponse, NodeId, StableId};

use crate::nat::Nat;
use crate::net::{Net, REGION, Weather, address};

const SECOND: Duration = Duration::from_secs(1);
/// Between two datagrams of a [`Flow`].
const PACE: Duration = Duration::from_millis(100);

/// Numbered datagrams from node 1 to node 2, and back as an echo.
struct Flow {
    client: UdpId,
    server: UdpId,
    sent: u32,
    /// When each new number came back.
    echoes: Vec<(u32, Instant)>,
}

impl Flow {
    fn open(net: &mut Net) -> Self {
        let client = net.host(1).core.bind_udp(None, 0).unwrap();
        let server = net.host(2).core.bind_udp(None, 7).unwrap();
        Self {
            client,
            server,
            sent: 0,
            echoes: Vec::new(),
        }
    }

    /// Sends for so long.
    fn run(&mut self, net: &mut Net, time: Duration) {
        let until = net.now + time;
        while net.now < until {
            self.sent += 1;
            let now = net.now;
            let to = SocketAddr::new(address(2), 7);
            let payload = self.sent.to_be_bytes();
            net.host(1)
                .core
                .send_udp(self.client, None, Some(to), &payload, now)
                .unwrap();
            let next = net.now + PACE;
            while net.step(next) {
                self.pump(net);
            }
            self.pump(net);
        }
    }

    fn pump(&mut self, net: &mut Net) {
        let now = net.now;
        while let Io::Ready(datagram) = net.host(2).core.recv_udp(self.server).unwrap() {
            let (to, from) = (datagram.from, datagram.to.ip());
            net.host(2)
                .core
                .send_udp(self.server, Some(from), Some(to), &datagram.payload, now)
                .unwrap();
        }
        while let Io::Ready(datagram) = net.host(1).core.recv_udp(self.client).unwrap() {
            let number = u32::from_be_bytes(datagram.payload[..].try_into().unwrap());
            assert!(
                self.echoes.iter().all(|(known, _)| *known != number),
                "{number} came twice"
            );
            self.echoes.push((number, now));
        }
    }

    /// The longest time without an echo since `from`.
    fn longest_gap(&self, from: Instant, to: Instant) -> Duration {
        let mut last = from;
        let mut longest = Duration::ZERO;
        for (_, at) in self.echoes.iter().filter(|(_, at)| *at > from) {
            longest = longest.max(*at - last);
            last = *at;
        }
        longest.max(to - last)
    }
}

fn state(net: &mut Net, of: i64, to: i64) -> Option<PathState> {
    let now = net.now;
    let paths = net.host(of).core.peer_paths(10, now);
    paths
        .into_iter()
        .find(|path| path.peer.id == NodeId(to))
        .map(|path| path.path)
}

fn direct(net: &mut Net, of: i64, to: i64) -> Option<SocketAddr> {
    match state(net, of, to) {
        Some(PathState::Direct { address, .. }) => Some(address),
        _ => None,
    }
}

fn both_direct(net: &mut Net) -> bool {
    direct(net, 1, 2).is_some() && direct(net, 2, 1).is_some()
}

/// All pairs of NATs: those that can go direct do, the others keep the relay; data flows all the time.
#[test]
fn every_pair_of_nats_goes_direct_where_that_is_possible() {
    use Nat::{FullCone, None, OpenNode, PortRestricted, Restricted, Symmetric};
    let all = [None, FullCone, Restricted, PortRestricted, Symmetric, OpenNode];
    for (row, first) in all.into_iter().enumerate() {
        for (column, second) in all.into_iter().enumerate() {
            let mut net = Net::outdoors(&[first, second], Weather::FAIR, (row * 10 + column) as u64);
            let mut flow = Flow::open(&mut net);
            net.run(SECOND);
            let start = net.now;
            flow.run(&mut net, 20 * SECOND);
            // One that maps by destination reaches one that can be reached by a port that it did not know.
            let strict = |nat| matches!(nat, PortRestricted | Symmetric | OpenNode);
            let impossible = (first == Symmetric && strict(second))
                || (second == Symmetric && strict(first))
                || (first == OpenNode && second == OpenNode);
            let gap = flow.longest_gap(start, net.now);
            assert!(gap <= 2 * PACE, "{first:?} {second:?}: no echo for {gap:?}");
            if impossible {
                assert!(!both_direct(&mut net), "{first:?} {second:?}");
                let Some(PathState::Relay { why, .. }) = state(&mut net, 1, 2) else {
                    panic!("{first:?} {second:?}: {:?}", state(&mut net, 1, 2));
                };
                let reason = match first {
                    Symmetric => RelayReason::MappingVaries,
                    _ => RelayReason::Translated,
                };
                assert_eq!(why, reason, "{first:?} {second:?}");
            } else if first != OpenNode && second != OpenNode {
                assert!(both_direct(&mut net), "{first:?} {second:?}");
                let (relayed, at) = (net.carried, net.carried_directly);
                flow.run(&mut net, 5 * SECOND);
                assert_eq!(
                    net.carried, relayed,
                    "{first:?} {second:?}: the relay is still used"
                );
                assert!(net.carried_directly > at + 90);
            }
        }
    }
}

#[test]
fn a_node_behind_an_open_kubernetes_node_reaches_one_without_nat() {
    for nats in [[Nat::OpenNode, Nat::None], [Nat::None, Nat::OpenNode]] {
        let mut net = Net::outdoors(&nats, Weather::FAIR, 300);
        let mut flow = Flow::open(&mut net);
        flow.run(&mut net, 20 * SECOND);
        assert!(both_direct(&mut net), "{nats:?}");
    }
}

#[test]
fn the_first_contact_is_direct_within_a_second() {
    let mut net = Net::outdoors(&[Nat::PortRestricted, Nat::PortRestricted], Weather::FAIR, 301);
    net.run(SECOND);
    let mut flow = Flow::open(&mut net);
    flow.run(&mut net, SECOND);
    assert!(both_direct(&mut net));
    assert_eq!(flow.echoes.len(), 10);
}

#[test]
fn a_cut_direct_path_falls_back_within_a_second_and_comes_back() {
    for seed in 310..320 {
        let mut net = Net::outdoors(&[Nat::PortRestricted, Nat::FullCone], Weather::FAIR, seed);
        let mut flow = Flow::open(&mut net);
        flow.run(&mut net, (10 + seed as u32 % 5) * SECOND);
        assert!(both_direct(&mut net));
        let cut = net.now;
        net.udp_weather = None;
        flow.run(&mut net, 15 * SECOND);
        let gap = flow.longest_gap(cut, net.now);
        assert!(gap < SECOND, "no echo for {gap:?}");
        assert!(direct(&mut net, 1, 2).is_none());
        net.udp_weather = Some(Weather::FAIR);
        let healed = net.now;
        flow.run(&mut net, 40 * SECOND);
        assert!(both_direct(&mut net), "not direct again");
        assert!(flow.longest_gap(healed, net.now) <= 3 * PACE);
    }
}

#[test]
fn a_lost_relay_does_not_touch_a_direct_path() {
    let mut net = Net::outdoors(&[Nat::PortRestricted, Nat::FullCone], Weather::FAIR, 330);
    let mut flow = Flow::open(&mut net);
    flow.run(&mut net, 5 * SECOND);
    net.relay_up = false;
    let from = net.now;
    flow.run(&mut net, 120 * SECOND);
    assert!(flow.longest_gap(from, net.now) <= 2 * PACE);
}

/// Under loss packets are doubled while the path is in doubt, so direct is never worse than the relay alone.
#[test]
fn a_storm_is_weathered() {
    let storm = Weather {
        loss: 200,
        delay: Duration::from_millis(20),
        jitter: Duration::from_millis(30),
    };
    for seed in 340..344 {
        let mut net = Net::outdoors(&[Nat::PortRestricted, Nat::PortRestricted], Weather::FAIR, seed);
        let mut flow = Flow::open(&mut net);
        flow.run(&mut net, 2 * SECOND);
        net.udp_weather = Some(storm);
        net.weather = storm;
        let before = flow.echoes.len();
        flow.run(&mut net, 60 * SECOND);
        let arrived = flow.echoes.len() - before;
        // Two ways at a fifth of loss each.
        assert!(arrived > 600 * 55 / 100, "{arrived} of 600");
        net.udp_weather = Some(Weather::FAIR);
        net.weather = Weather::FAIR;
        flow.run(&mut net, 30 * SECOND);
        assert!(both_direct(&mut net));
    }
}

#[test]
fn a_peer_that_moves_is_found_at_its_new_address() {
    let mut net = Net::outdoors(&[Nat::PortRestricted, Nat::FullCone], Weather::FAIR, 350);
    let mut flow = Flow::open(&mut net);
    flow.run(&mut net, 5 * SECOND);
    assert!(both_direct(&mut net));
    let now = net.now;
    let (outside, inside) = ("203.0.113.99".parse().unwrap(), "10.9.9.9:5000".parse().unwrap());
    net.host(2).router.as_mut().unwrap().move_to(outside, inside);
    net.host(2).core.set_local_endpoints(vec![inside], now);
    flow.run(&mut net, 10 * SECOND);
    assert!(flow.longest_gap(now, net.now) < 5 * SECOND);
    assert_eq!(direct(&mut net, 1, 2).map(|at| at.ip()), Some(outside));
    assert!(both_direct(&mut net));
}

/// The NAT forgets the flow and maps anew; nobody is told.
#[test]
fn a_nat_that_restarts_is_noticed() {
    let mut net = Net::outdoors(&[Nat::PortRestricted, Nat::Restricted], Weather::FAIR, 351);
    let mut flow = Flow::open(&mut net);
    flow.run(&mut net, 5 * SECOND);
    let now = net.now;
    let inside = net.host(1).router.as_ref().unwrap().inside();
    let moved = "203.0.113.77".parse().unwrap();
    net.host(1).router.as_mut().unwrap().move_to(moved, inside);
    flow.run(&mut net, 40 * SECOND);
    let gap = flow.longest_gap(now, net.now);
    assert!(gap < 5 * SECOND, "no echo for {gap:?}");
    assert!(both_direct(&mut net));
    assert_eq!(direct(&mut net, 2, 1).map(|at| at.ip()), Some(moved));
}

#[test]
fn an_hour_asleep_ends_within_seconds() {
    let mut net = Net::outdoors(&[Nat::PortRestricted, Nat::PortRestricted], Weather::FAIR, 352);
    let mut flow = Flow::open(&mut net);
    flow.run(&mut net, 5 * SECOND);
    for id in [1, 2] {
        net.host(id).asleep = true;
    }
    net.run(3600 * SECOND);
    for id in [1, 2] {
        net.host(id).asleep = false;
    }
    let awake = net.now;
    flow.run(&mut net, 10 * SECOND);
    assert!(flow.longest_gap(awake, net.now) < SECOND);
    assert!(both_direct(&mut net));
}

#[test]
fn silent_peers_cost_nothing() {
    let mut net = Net::outdoors(&[Nat::PortRestricted, Nat::PortRestricted], Weather::FAIR, 353);
    let mut flow = Flow::open(&mut net);
    flow.run(&mut net, 5 * SECOND);
    net.run(60 * SECOND);
    let (chatter, carried) = (net.chatter, net.carried);
    net.run(600 * SECOND);
    assert_eq!(net.chatter, chatter, "pings without traffic");
    assert_eq!(net.carried, carried);
    let from = net.now;
    flow.run(&mut net, 5 * SECOND);
    assert!(flow.longest_gap(from, net.now) < SECOND);
    assert!(both_direct(&mut net));
}

/// Without any way for UDP the search slows down.
#[test]
fn a_hopeless_search_is_quiet() {
    let mut net = Net::outdoors(&[Nat::Symmetric, Nat::Symmetric], Weather::FAIR, 354);
    let mut flow = Flow::open(&mut net);
    flow.run(&mut net, 120 * SECOND);
    let chatter = net.chatter;
    flow.run(&mut net, 120 * SECOND);
    // Three rounds of up to five addresses each way, and STUN with two servers every 20 s.
    let said = net.chatter - chatter;
    assert!(said < 80, "{said} messages in two minutes");
    assert!(net.host(1).core.net_facts().mapping_varies == Some(true));
}

#[test]
fn stun_tells_the_address_outside_and_its_absence_is_said() {
    let mut net = Net::outdoors(&[Nat::PortRestricted, Nat::None], Weather::FAIR, 355);
    net.run(SECOND);
    let endpoints = net.host(1).core.endpoints();
    assert_eq!(
        endpoints,
        [
            ("10.0.0.2:41641".parse().unwrap(), EndpointType::LOCAL),
            ("203.0.113.1:41641".parse().unwrap(), EndpointType::STUN)
        ]
    );
    let facts = net.host(1).core.net_facts();
    assert_eq!((facts.udp, facts.mapping_varies), (Some(true), Some(false)));

    net.udp_weather = None;
    let mut flow = Flow::open(&mut net);
    flow.run(&mut net, 80 * SECOND);
    assert_eq!(net.host(1).core.endpoints().len(), 1, "what STUN said is void");
    assert_eq!(net.host(1).core.net_facts().udp, Some(false));
    assert!(matches!(
        state(&mut net, 1, 2),
        Some(PathState::Relay {
            why: RelayReason::NoUdp,
            ..
        })
    ));
}

#[test]
fn a_disco_ping_tells_the_direct_path_and_starts_the_search() {
    let mut net = Net::outdoors(&[Nat::PortRestricted, Nat::None], Weather::FAIR, 356);
    net.run(SECOND);
    let mut paths = Vec::new();
    for _ in 0..2 {
        let now = net.now;
        net.host(1).core.ping(NodeId(2), PingKind::Disco, now).unwrap();
        net.run(SECOND);
        paths.extend(net.host(1).take(|event| match event {
            Event::PingReply { path, .. } => Some(*path),
            _ => None,
        }));
    }
    assert!(
        matches!(paths[..], [Path::Derp { .. }, Path::Udp(_)]),
        "{paths:?}"
    );
}

/// A restarted peer has a new socket; the old address is not trusted for a moment longer.
#[test]
fn a_restarted_peer_is_found_again() {
    let mut net = Net::outdoors(&[Nat::PortRestricted, Nat::None], Weather::FAIR, 357);
    let mut flow = Flow::open(&mut net);
    flow.run(&mut net, 5 * SECOND);
    net.restart(2);
    let (now, inside) = (net.now, net.host(2).router.as_ref().unwrap().inside());
    net.host(2).core.set_local_endpoints(vec![inside], now);
    net.introduce(1);
    flow.server = net.host(2).core.bind_udp(None, 7).unwrap();
    flow.run(&mut net, 10 * SECOND);
    assert!(flow.longest_gap(now, net.now) < 2 * SECOND);
    assert!(both_direct(&mut net));
}

/// A sealed disco packet of a node with this key for `to`.
fn sealed(from: &DiscoPrivate, to: DiscoPublic, message: &Message, rng: &mut ChaCha20Rng) -> Vec<u8> {
    let mut packet = Vec::new();
    message
        .seal(&from.public(), &from.shared(&to), rng, &mut packet)
        .unwrap();
    packet
}

/// Strangers by UDP are not answered, whatever they send.
#[test]
fn strangers_are_not_answered() {
    let mut net = Net::outdoors(&[Nat::None, Nat::None], Weather::FAIR, 360);
    net.run(SECOND);
    let mut rng = ChaCha20Rng::seed_from_u64(360);
    let (stranger, to) = (DiscoPrivate::generate(&mut rng), net.host(1).disco);
    let chatter = net.chatter;
    let ping = Message::Ping {
        tx_id: TxId([7; 12]),
        node_key: net.host(2).key.public(),
        padding: 0,
    };
    let from = "192.0.2.66:1".parse().unwrap();
    let call = Message::CallMeMaybe {
        endpoints: vec![from],
    };
    for message in [&ping, &call] {
        let mut packet = sealed(&stranger, to, message, &mut rng);
        let now = net.now;
        net.host(1).core.handle_udp(from, &mut packet, now);
        // The disco key of a peer on a packet that it has not sealed.
        packet[6..38].copy_from_slice(net.hosts[1].disco.as_bytes());
        net.host(1).core.handle_udp(from, &mut packet, now);
    }
    let mut stun = Vec::new();
    stun::encode_response(stun::TxId([9; 12]), from, &mut stun);
    let now = net.now;
    net.host(1)
        .core
        .handle_udp("198.51.100.1:3478".parse().unwrap(), &mut stun, now);
    net.run(SECOND);
    assert_eq!(net.chatter, chatter);
    assert!(
        net.host(1)
            .core
            .endpoints()
            .iter()
            .all(|(at, _)| at.ip() != from.ip())
    );
    assert!(net.host(1).core.counters().invalid >= 4);
}

/// A peer that asks to have others pinged gets few pings out of it, and one that claims the disco key of another gains nothing.
#[test]
fn a_peer_that_lies_is_bounded() {
    let mut net = Net::outdoors(&[Nat::None, Nat::None, Nat::None], Weather::FAIR, 361);
    net.run(SECOND);
    let mut rng = ChaCha20Rng::seed_from_u64(361);
    let liar = DiscoPrivate::generate(&mut rng);
    let mut node = net.node(2);
    node.disco_key = liar.public();
    // Sorts before node 3 and claims its key as well, in a record of its own.
    let mut double = net.node(3);
    double.id = NodeId(9);
    double.stable_id = StableId("n9".to_owned());
    double.key = NodePrivate::generate(&mut rng).public();
    double.addresses = vec![address(9).into()];
    net.tell(
        1,
        &MapResponse {
            peers_changed: vec![node, double],
            ..Default::default()
        },
    );
    net.run(SECOND);
    let chatter = net.chatter;
    let (to, from) = (net.host(1).disco, net.host(2).key.public());
    for round in 0..100u16 {
        let endpoints = (0..60).map(|at| SocketAddr::from(([192, 0, 2, 99], 1 + round * 60 + at)));
        let call = Message::CallMeMaybe {
            endpoints: endpoints.collect(),
        };
        let mut packet = sealed(&liar, to, &call, &mut rng);
        let now = net.now;
        net.host(1).core.handle_derp(REGION, from, &mut packet, now);
    }
    net.run(Duration::from_millis(900));
    assert!(net.chatter - chatter <= 530, "{} pings", net.chatter - chatter);
    net.run(60 * SECOND);

    // The real owner of the key is still found.
    let ping = net.now;
    net.host(3).core.ping(NodeId(1), PingKind::Tsmp, ping).unwrap();
    net.run(2 * SECOND);
    assert!(direct(&mut net, 3, 1).is_some());
}
