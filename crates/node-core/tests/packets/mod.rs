//! What a peer may do to a node, as a program in bytes: for the fuzzer and for the replay of its corpus.
//!
//! A program is a row of steps: one byte that says what, two for a length (little-endian), and so many bytes.
//!
//! | step modulo 4 | the bytes are |
//! | --- | --- |
//! | 0 | a datagram for the socket of the tunnel |
//! | 1 | an IP packet that the peer sends through the tunnel |
//! | 2 | a protocol number and what follows the IP header; of TCP the numbers count from what the node sent last |
//! | 3 | nothing: time passes, the length in milliseconds, and the application accepts, echoes and closes |

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use tailwharf_node_core::netmap::{Interner, Netmap};
use tailwharf_node_core::offload::VnetHeader;
use tailwharf_node_core::packet::proto;
use tailwharf_node_core::{BufferPool, ConnId, Core, CoreConfig, Io, ListenerId, MemoryBudget, Path, UdpId};
use tailwharf_wire::key::{DiscoPrivate, NodePrivate};
use tailwharf_wire::tailcfg::{
    FilterRule, MapResponse, NetPortRange, Node, NodeId, PortRange, RegionId, StableId, UserId,
};

const REGION: RegionId = RegionId(1);
/// Memory for TCP of each node.
const MEMORY: usize = 1 << 20;
/// Steps of one program; more finds nothing new.
const MAX_STEPS: usize = 256;
/// Datagrams that one step may cause: more than all windows can hold.
const MAX_TRANSMITS: usize = 5000;

struct Side {
    core: Core,
    key: NodePrivate,
    budget: Arc<MemoryBudget>,
}

struct World {
    now: Instant,
    /// The node under attack, then the peer.
    sides: [Side; 2],
    listener: ListenerId,
    socket: UdpId,
    conns: Vec<ConnId>,
    accepted: usize,
    /// The number after the last segment that the node sent.
    seen: u32,
}

fn address(side: usize) -> IpAddr {
    IpAddr::from([100, 64, 0, side as u8 + 1])
}

fn side(number: u8, now: Instant) -> Side {
    let mut rng = ChaCha20Rng::from_seed([number; 32]);
    let (key, budget) = (NodePrivate::generate(&mut rng), MemoryBudget::new(MEMORY));
    let config = CoreConfig {
        node_key: key.clone(),
        disco_key: DiscoPrivate::generate(&mut rng),
        budget: Arc::clone(&budget),
        buffers: BufferPool::new(),
        accept_routes: false,
        direct: false,
    };
    Side {
        core: Core::new(config, [number; 32], now),
        key,
        budget,
    }
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let mut sides = [side(1, now), side(2, now)];
        let nodes: Vec<Node> = sides
            .iter()
            .enumerate()
            .map(|(at, side)| Node {
                id: NodeId(at as i64 + 1),
                stable_id: StableId(format!("n{at}")),
                name: format!("n{at}.example.ts.net."),
                user: UserId(1),
                key: side.key.public(),
                addresses: vec![address(at).into()],
                home_derp: REGION,
                machine_authorized: true,
                ..Default::default()
            })
            .collect();
        let rule = FilterRule {
            src_ips: vec!["*".into()],
            dst_ports: vec![NetPortRange {
                ip: "*".into(),
                ports: PortRange::ANY,
            }],
            ..Default::default()
        };
        for (at, side) in sides.iter_mut().enumerate() {
            let response = MapResponse {
                node: Some(nodes[at].clone()),
                peers_changed: vec![nodes[1 - at].clone()],
                packet_filters: Some(BTreeMap::from([("base".to_owned(), Some(vec![rule.clone()]))])),
                ..Default::default()
            };
            let (netmap, errors) = Netmap::default().apply(&response, &Interner::default());
            assert!(errors.is_empty(), "{errors:?}");
            side.core.handle_netmap(netmap, now);
        }
        sides[1].core.attach_tun(false, false);
        let listener = sides[0].core.listen_tcp(None, 80, 16).unwrap();
        let socket = sides[0].core.bind_udp(None, 53).unwrap();
        let mut world = Self {
            now,
            sides,
            listener,
            socket,
            conns: Vec::new(),
            accepted: 0,
            seen: 0,
        };
        world.send(&ip(proto::ICMP, &[8, 0, 0, 0, 0, 0, 0, 0]));
        world
    }

    /// Carries packets until nobody has any.
    fn settle(&mut self) {
        let mut carried = 0;
        loop {
            let before = carried;
            for from in 0..2 {
                let key = self.sides[from].key.public();
                let mut packets = Vec::new();
                while let Some(transmit) = self.sides[from].core.poll_transmit(self.now) {
                    // What goes to a socket has nobody there.
                    if matches!(transmit.path, Path::Derp { .. }) {
                        packets.extend(transmit.datagrams().map(<[u8]>::to_vec));
                    }
                    assert!(packets.len() <= MAX_TRANSMITS, "no end of datagrams");
                }
                carried += packets.len();
                for mut packet in packets {
                    self.sides[1 - from]
                        .core
                        .handle_derp(REGION, key, &mut packet, self.now);
                }
                while self.sides[from].core.poll_event().is_some() {}
            }
            while let Some(packet) = self.sides[1].core.poll_tun() {
                let packet: Vec<u8> = packet.parts().flatten().copied().collect();
                if let Some(seq) = packet.get(24..28).filter(|_| packet[9] == proto::TCP) {
                    self.seen = u32::from_be_bytes(seq.try_into().unwrap()).wrapping_add(1);
                }
            }
            if carried == before {
                return;
            }
            assert!(carried <= 2 * MAX_TRANSMITS, "two nodes talk for good");
        }
    }

    fn send(&mut self, packet: &[u8]) {
        self.sides[1]
            .core
            .handle_tun(&VnetHeader::default(), &mut packet.to_vec(), false, self.now);
        self.settle();
    }

    fn send_body(&mut self, bytes: &[u8]) {
        let Some((protocol, body)) = bytes.split_first() else {
            return;
        };
        let mut body = body.to_vec();
        if *protocol == proto::TCP
            && let Some(ack) = body.get_mut(8..12)
        {
            let offset = u32::from_be_bytes(ack.try_into().unwrap());
            ack.copy_from_slice(&self.seen.wrapping_add(offset).to_be_bytes());
        }
        body.truncate(1200);
        self.send(&ip(*protocol, &body));
    }

    fn datagram(&mut self, bytes: &[u8]) {
        let from = SocketAddr::from(([192, 0, 2, 1], 41641));
        self.sides[0].core.handle_udp(from, &mut bytes.to_vec(), self.now);
        self.settle();
    }

    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        for _ in 0..100 {
            let due = self.sides.iter().filter_map(|side| side.core.poll_timeout());
            self.now = due
                .map(|(at, _)| at)
                .min()
                .unwrap_or(until)
                .clamp(self.now, until);
            for side in &mut self.sides {
                side.core.handle_timeout(self.now);
            }
            self.settle();
            if self.now >= until {
                break;
            }
        }
        self.now = until;
        self.serve();
        self.settle();
    }

    /// An application that echoes.
    fn serve(&mut self) {
        let core = &mut self.sides[0].core;
        while let Some(accepted) = core.accept(self.listener) {
            self.conns.push(accepted.conn);
            self.accepted += 1;
        }
        let mut buffer = [0; 4096];
        self.conns.retain(|conn| match core.read(*conn, &mut buffer) {
            Ok(Io::Ready(length @ 1..)) => core.write(*conn, &buffer[..length]).is_ok(),
            Ok(Io::Pending) => true,
            Ok(Io::Ready(0)) | Err(_) => {
                core.close(*conn);
                false
            }
        });
        while let Ok(Io::Ready(datagram)) = core.recv_udp(self.socket) {
            let _ = core.send_udp(
                self.socket,
                Some(datagram.to.ip()),
                Some(datagram.from),
                &datagram.payload,
                self.now,
            );
        }
    }

    fn check(&self) {
        let side = &self.sides[0];
        assert!(side.budget.used() <= MEMORY);
        assert!(side.core.connection_count() <= 1024);
    }
}

/// An IPv4 packet of the peer for the node.
fn ip(protocol: u8, body: &[u8]) -> Vec<u8> {
    let length = (20 + body.len() as u16).to_be_bytes();
    let head = [0x45, 0, length[0], length[1], 0, 9, 0, 0, 64, protocol, 0, 0];
    [&head[..], &[100, 64, 0, 2], &[100, 64, 0, 1], body].concat()
}

/// Runs a program. Returns how many connections the node accepted.
pub(crate) fn run(mut program: &[u8]) -> usize {
    let mut world = World::new();
    for _ in 0..MAX_STEPS {
        let [what, low, high, rest @ ..] = program else {
            break;
        };
        let length = u16::from_le_bytes([*low, *high]);
        if what % 4 == 3 {
            world.pass(Duration::from_millis(length.into()));
            program = rest;
        } else {
            let (bytes, after) = rest.split_at(usize::from(length).min(rest.len()));
            match what % 4 {
                0 => world.datagram(bytes),
                1 => world.send(bytes),
                _ => world.send_body(bytes),
            }
            program = after;
        }
        world.check();
    }
    // Whatever was left open ends by itself, and all memory comes back.
    for conn in std::mem::take(&mut world.conns) {
        world.sides[0].core.abort(conn);
    }
    world.settle();
    world.pass(Duration::from_secs(600));
    world.check();
    world.accepted
}
