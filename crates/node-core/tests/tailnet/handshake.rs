//! The first handshake with an official client: any order of the messages of both sides ends in a session that both hear on.

use std::collections::BinaryHeap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use tailwharf_node_core::netmap::{Interner, Netmap};
use tailwharf_node_core::{BufferPool, Core, CoreConfig, MemoryBudget, Path};
use tailwharf_wire::disco::{Message, TxId};
use tailwharf_wire::key::{DiscoPrivate, DiscoPublic, NodePrivate, NodePublic};
use tailwharf_wire::tailcfg::{Node, NodeId, StableId, UserId};

use crate::net::{REGION, address, filters, rule};

const INITIATION: u8 = 1;
const RESPONSE: u8 = 2;
const DATA: u8 = 4;
/// Official clients handle messages that arrive so close to one another at the same time.
const MOMENT: Duration = Duration::from_millis(1);
/// An official client starts no handshake so soon after it started or answered one.
const QUIET: Duration = Duration::from_secs(5);
const CLIENT_UDP: &str = "192.0.2.2:41641";

/// What travels between the two.
struct Flying {
    at: Instant,
    order: u64,
    to_client: bool,
    relayed: bool,
    bytes: Vec<u8>,
}

impl PartialEq for Flying {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl Eq for Flying {}
impl PartialOrd for Flying {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Flying {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

/// The rules of wireguard-go around boringtun's messages: the initiation that was taken last wins, and an answer to one of its own that it gave up for that
/// is dropped. What it cannot bear is an assertion.
struct Client {
    tunn: Tunn,
    key: NodePublic,
    disco: DiscoPrivate,
    /// Whether its own initiation is still to be answered.
    open: bool,
    quiet_until: Option<Instant>,
    last_handshake: Option<Instant>,
    seen: Vec<Vec<u8>>,
    waiting: bool,
    answered: Option<Instant>,
}

impl Client {
    /// Takes a WireGuard message and returns what it sends.
    fn take(&mut self, bytes: &[u8], now: Instant) -> Vec<Vec<u8>> {
        let kind = bytes[0];
        if kind != DATA {
            assert!(
                !self.seen.iter().any(|seen| seen == bytes),
                "a second copy of a handshake message"
            );
            self.seen.push(bytes.to_vec());
            if let Some(last) = self.last_handshake.replace(now) {
                assert!(
                    now - last > MOMENT,
                    "two handshake messages {:?} apart",
                    now - last
                );
            }
        }
        if kind == RESPONSE && !self.open {
            return Vec::new();
        }
        let mut out = [0; 2048];
        let mut sent = Vec::new();
        let answer = self.tunn.decapsulate(None, bytes, &mut out);
        match answer {
            TunnResult::WriteToNetwork(answer) => {
                if kind == INITIATION {
                    self.quiet_until = Some(now + QUIET);
                }
                self.open = false;
                sent.push(answer.to_vec());
            }
            TunnResult::WriteToTunnelV4(..) => self.answered = Some(now),
            _ => {}
        }
        let heard = self.tunn.time_since_last_handshake().is_some();
        while heard && self.waiting {
            match self.tunn.decapsulate(None, &[], &mut out) {
                TunnResult::WriteToNetwork(data) if data[0] == DATA => sent.push(data.to_vec()),
                _ => self.waiting = false,
            }
        }
        sent
    }

    /// Sends a packet, as soon as it may.
    fn send(&mut self, packet: &[u8], now: Instant) -> Option<Vec<u8>> {
        let mut out = [0; 2048];
        let bytes = match self.tunn.encapsulate(packet, &mut out) {
            TunnResult::WriteToNetwork(bytes) => bytes.to_vec(),
            _ => return None,
        };
        if bytes[0] == DATA {
            return Some(bytes);
        }
        self.waiting = true;
        if self.quiet_until.is_some_and(|until| now < until) {
            return None;
        }
        self.quiet_until = Some(now + QUIET);
        self.open = true;
        Some(bytes)
    }
}

/// What is done to the messages of one run.
#[derive(Clone, Copy, Debug)]
struct Case {
    seed: u64,
    /// Longest delay of the relay, and of UDP.
    relay: Duration,
    udp: Duration,
    /// Which handshake message or first data message is lost, counted over both directions.
    lost: Option<u32>,
    /// Whether our node has something to send as well.
    both_talk: bool,
}

struct Run {
    case: Case,
    rng: ChaCha20Rng,
    now: Instant,
    core: Core,
    core_disco: DiscoPublic,
    client: Client,
    flying: BinaryHeap<Flying>,
    /// When the relay last delivered each way: it keeps the order.
    relay_last: [Instant; 2],
    order: u64,
    counted: u32,
}

impl Run {
    fn new(case: Case) -> Self {
        let mut rng = ChaCha20Rng::seed_from_u64(case.seed);
        let now = Instant::now();
        let (key, client_key) = (NodePrivate::generate(&mut rng), NodePrivate::generate(&mut rng));
        let (disco, client_disco) = (DiscoPrivate::generate(&mut rng), DiscoPrivate::generate(&mut rng));
        let core_disco = disco.public();
        let config = CoreConfig {
            node_key: key.clone(),
            disco_key: disco,
            budget: MemoryBudget::new(1 << 20),
            buffers: BufferPool::new(),
            accept_routes: false,
            direct: true,
        };
        let mut seed = [0; 32];
        rng.fill_bytes(&mut seed);
        let mut core = Core::new(config, seed, now);
        let node = |id: i64, key: NodePublic, disco: DiscoPublic| Node {
            id: NodeId(id),
            stable_id: StableId(format!("n{id}")),
            name: format!("node-{id}.example.ts.net."),
            user: UserId(7),
            key,
            disco_key: disco,
            addresses: vec![address(id).into()],
            home_derp: REGION,
            machine_authorized: true,
            endpoints: if id == 2 {
                vec![CLIENT_UDP.parse().unwrap()]
            } else {
                Vec::new()
            },
            ..Default::default()
        };
        let mut response = filters(vec![rule(&["*"], 0, 65535)]);
        response.node = Some(node(1, key.public(), core_disco));
        response.peers = vec![node(2, client_key.public(), client_disco.public())];
        let (netmap, errors) = Netmap::default().apply(&response, &Interner::default());
        assert_eq!(errors, []);
        core.handle_netmap(netmap, now);
        core.set_local_endpoints(vec!["192.0.2.1:41641".parse().unwrap()], now);
        let client = Client {
            tunn: Tunn::new(
                StaticSecret::from(*client_key.as_bytes()),
                PublicKey::from(*key.public().as_bytes()),
                None,
                None,
                7,
                None,
            ),
            key: client_key.public(),
            disco: client_disco,
            open: false,
            quiet_until: None,
            last_handshake: None,
            seen: Vec::new(),
            waiting: false,
            answered: None,
        };
        Self {
            case,
            rng,
            now,
            core,
            core_disco,
            client,
            flying: BinaryHeap::new(),
            relay_last: [now; 2],
            order: 0,
            counted: 0,
        }
    }

    fn below(&mut self, most: Duration) -> Duration {
        Duration::from_micros(self.rng.next_u64() % (most.as_micros() as u64 + 1))
    }

    fn fly(&mut self, to_client: bool, relayed: bool, bytes: Vec<u8>) {
        let is_disco = bytes[0] > DATA;
        if !is_disco {
            let number = self.counted;
            self.counted += 1;
            if self.case.lost == Some(number) {
                return;
            }
        }
        let mut at = self.now + self.below(if relayed { self.case.relay } else { self.case.udp });
        if relayed {
            let last = &mut self.relay_last[usize::from(to_client)];
            at = at.max(*last);
            *last = at;
        }
        self.order += 1;
        let order = self.order;
        self.flying.push(Flying {
            at,
            order,
            to_client,
            relayed,
            bytes,
        });
    }

    fn drain(&mut self) {
        let mut out = Vec::new();
        while let Some(transmit) = self.core.poll_transmit(self.now) {
            let relayed = matches!(transmit.path, Path::Derp { .. });
            out.extend(transmit.datagrams().map(|datagram| (relayed, datagram.to_vec())));
        }
        for (relayed, bytes) in out {
            self.fly(true, relayed, bytes);
        }
        while self.core.poll_event().is_some() {}
    }

    fn land(&mut self, flying: Flying) {
        let Flying {
            to_client,
            relayed,
            mut bytes,
            ..
        } = flying;
        let from: SocketAddr = CLIENT_UDP.parse().unwrap();
        match (to_client, relayed) {
            (false, true) => self
                .core
                .handle_derp(REGION, self.client.key, &mut bytes, self.now),
            (false, false) => self.core.handle_udp(from, &mut bytes, self.now),
            (true, _) if bytes[0] > DATA => self.answer_disco(&mut bytes, relayed),
            (true, _) => {
                for answer in self.client.take(&bytes, self.now) {
                    // As magicsock: by the path of which it knows that it works.
                    self.fly(false, true, answer);
                }
            }
        }
    }

    fn answer_disco(&mut self, bytes: &mut [u8], relayed: bool) {
        let shared = self.client.disco.shared(&self.core_disco);
        if let Ok(Message::Ping { tx_id, .. }) = Message::open(bytes, &shared) {
            let src = "192.0.2.1:41641".parse().unwrap();
            self.say(&Message::Pong { tx_id, src }, relayed);
        }
    }

    fn say(&mut self, message: &Message, relayed: bool) {
        let mut packet = Vec::new();
        let shared = self.client.disco.shared(&self.core_disco);
        message
            .seal(&self.client.disco.public(), &shared, &mut self.rng, &mut packet)
            .unwrap();
        self.fly(false, relayed, packet);
    }

    fn step(&mut self, until: Instant) -> bool {
        self.drain();
        let timer = self.core.poll_timeout().map(|(at, _)| at);
        let next = self
            .flying
            .peek()
            .map(|flying| flying.at)
            .into_iter()
            .chain(timer)
            .min();
        let Some(next) = next.filter(|next| *next <= until) else {
            self.now = until;
            return false;
        };
        self.now = self.now.max(next);
        while self.flying.peek().is_some_and(|flying| flying.at <= self.now) {
            let flying = self.flying.pop().unwrap();
            self.land(flying);
            self.drain();
        }
        if timer.is_some_and(|at| at <= self.now) {
            self.core.handle_timeout(self.now);
        }
        true
    }

    /// The client pings our node inside the tunnel, with all that an official client says along with it, in any order. Says how long the answer took.
    fn first_contact(&mut self) -> Option<Duration> {
        let start = self.now;
        let mut said = [0, 1, 2, 3];
        for at in (1..said.len()).rev() {
            said.swap(at, self.rng.next_u32() as usize % (at + 1));
        }
        for what in said {
            let pause = Duration::from_micros(self.rng.next_u64() % 2000);
            let until = self.now + pause;
            while self.step(until) {}
            match what {
                0 => {
                    if let Some(bytes) = self.client.send(&echo_request(), self.now) {
                        self.fly(false, true, bytes);
                    }
                }
                1 => self.say(
                    &Message::CallMeMaybe {
                        endpoints: vec![CLIENT_UDP.parse().unwrap()],
                    },
                    true,
                ),
                2 => {
                    let ping = Message::Ping {
                        tx_id: TxId::generate(&mut self.rng),
                        node_key: self.client.key,
                        padding: 0,
                    };
                    self.say(&ping, false);
                }
                _ if self.case.both_talk => {
                    let now = self.now;
                    self.core
                        .ping(NodeId(2), tailwharf_node_core::PingKind::Tsmp, now)
                        .unwrap();
                }
                _ => {}
            }
        }
        // As a SYN, the packet is repeated after 1 s and 3 s.
        for at in [1, 3, 8] {
            let until = start + Duration::from_secs(at);
            while self.client.answered.is_none() && self.step(until) {}
            if self.client.answered.is_none()
                && let Some(bytes) = self.client.send(&echo_request(), self.now)
            {
                self.fly(false, true, bytes);
            }
        }
        self.client.answered.map(|at| at - start)
    }
}

/// An ICMP echo request from the client to our node.
fn echo_request() -> Vec<u8> {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(_) => unreachable!("an address of IPv4"),
    };
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0];
    packet.extend(octets(address(2)));
    packet.extend(octets(address(1)));
    packet.extend([8, 0, 0, 0, 0, 1, 0, 1]);
    for (range, at) in [(0..20, 10), (20..28, 22)] {
        let sum: u32 = packet[range]
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        packet[at..at + 2].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    }
    packet
}

fn check(case: Case, limit: Duration) {
    let took = std::panic::catch_unwind(|| Run::new(case).first_contact());
    match took {
        Ok(Some(took)) => assert!(took <= limit, "{case:?}: {took:?}"),
        Ok(None) => panic!("{case:?}: no answer"),
        Err(_) => panic!("{case:?}"),
    }
}

#[test]
fn first_contact_in_any_order_is_quick_and_leaves_no_half_session() {
    for seed in 0..1500 {
        let ms = |most: u64| Duration::from_millis(seed % most);
        let case = Case {
            seed,
            relay: ms(21),
            udp: ms(7) / 5,
            lost: None,
            both_talk: seed % 3 == 0,
        };
        // Three delays, and the time between an initiation and a response.
        check(case, Duration::from_millis(150));
    }
}

#[test]
fn a_lost_message_of_the_first_contact_is_made_up_for_within_seconds() {
    for seed in 0..300 {
        let case = Case {
            seed,
            relay: Duration::from_millis(seed % 11),
            udp: Duration::from_millis(1),
            // The initiation, its answer, the first data and what follows.
            lost: Some(seed as u32 % 5),
            both_talk: seed % 3 == 0,
        };
        check(case, Duration::from_millis(2500));
    }
}
