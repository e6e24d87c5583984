//! A tailnet in memory and in virtual time: cores, and a relay between them that loses, delays and reorders by a seed.

use std::collections::{BTreeMap, BinaryHeap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use tailwharf_node_core::netmap::{Interner, Netmap};
use tailwharf_node_core::{BufferPool, Core, CoreConfig, Event, MemoryBudget, Path, PingKind};
use tailwharf_wire::key::{DiscoPrivate, DiscoPublic, NodePrivate, NodePublic};
use tailwharf_wire::stun;
use tailwharf_wire::tailcfg::{
    FilterRule, MapResponse, NetPortRange, Node, NodeId, PeerChange, PortRange, RegionId, StableId, UserId,
    UserProfile,
};

use crate::nat::{Nat, Router};

/// The region of the relay.
pub(crate) const REGION: RegionId = RegionId(900);
/// The STUN servers.
const STUN: [&str; 2] = ["198.51.100.1:3478", "198.51.100.2:3478"];

/// How the relay treats packets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    /// Of thousand packets so many are lost.
    pub(crate) loss: u32,
    /// One-way delay.
    pub(crate) delay: Duration,
    /// Up to so much is added at random, which reorders.
    pub(crate) jitter: Duration,
}

impl Weather {
    pub(crate) const FAIR: Self = Self {
        loss: 0,
        delay: Duration::from_millis(1),
        jitter: Duration::ZERO,
    };
    pub(crate) const STORM: Self = Self {
        loss: 20,
        delay: Duration::from_millis(5),
        jitter: Duration::from_micros(1500),
    };
}

/// One node with what it has told so far.
pub(crate) struct Host {
    pub(crate) core: Core,
    pub(crate) key: NodePrivate,
    pub(crate) disco: DiscoPublic,
    pub(crate) netmap: Netmap,
    pub(crate) events: Vec<Event>,
    /// What is between its UDP socket and the world; without it the node has none.
    pub(crate) router: Option<Router>,
    /// Whether it does nothing and hears nothing.
    pub(crate) asleep: bool,
}

impl Host {
    /// Takes the events that `pick` wants.
    pub(crate) fn take<T>(&mut self, pick: impl Fn(&Event) -> Option<T>) -> Vec<T> {
        let mut taken = Vec::new();
        self.events.retain(|event| match pick(event) {
            Some(value) => {
                taken.push(value);
                false
            }
            None => true,
        });
        taken
    }
}

struct Flying {
    at: Instant,
    order: u64,
    way: Way,
    bytes: Vec<u8>,
}

/// From whom to whom, by relay or by UDP.
#[derive(Clone, Copy)]
enum Way {
    Relay { from: NodePublic, to: NodePublic },
    Udp { from: SocketAddr, to: SocketAddr },
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

/// The tailnet.
pub(crate) struct Net {
    pub(crate) now: Instant,
    pub(crate) weather: Weather,
    pub(crate) hosts: Vec<Host>,
    pub(crate) interner: Interner,
    pub(crate) budget: Arc<MemoryBudget>,
    pub(crate) seed: u64,
    /// Packets that the relay has carried.
    pub(crate) carried: u64,
    /// Most datagrams that a node gave out as one batch.
    pub(crate) largest_batch: usize,
    /// The same for UDP; `None` while it does not get through at all.
    pub(crate) udp_weather: Option<Weather>,
    /// Whether the relay works.
    pub(crate) relay_up: bool,
    /// Data messages that UDP has carried.
    pub(crate) carried_directly: u64,
    /// Pings and other messages but data that UDP has carried, whether they got through or not.
    pub(crate) chatter: u64,
    direct: bool,
    rng: ChaCha20Rng,
    flying: BinaryHeap<Flying>,
    order: u64,
}

impl Drop for Net {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the network's seed was {}", self.seed);
        }
    }
}

pub(crate) fn address(id: i64) -> IpAddr {
    format!("100.64.0.{id}").parse().unwrap()
}

pub(crate) fn address6(id: i64) -> IpAddr {
    format!("fd7a:115c:a1e0::{id}").parse().unwrap()
}

/// A rule that lets these sources reach these ports everywhere.
pub(crate) fn rule(sources: &[&str], first: u16, last: u16) -> FilterRule {
    FilterRule {
        src_ips: sources.iter().map(|&source| source.to_owned()).collect(),
        dst_ports: vec![NetPortRange {
            ip: "*".into(),
            ports: PortRange { first, last },
        }],
        ..Default::default()
    }
}

pub(crate) fn filters(rules: Vec<FilterRule>) -> MapResponse {
    MapResponse {
        packet_filters: Some(BTreeMap::from([("base".to_owned(), Some(rules))])),
        ..Default::default()
    }
}

impl Net {
    /// Nodes 1 to `count`, who know each other and allow everything.
    pub(crate) fn new(count: i64, weather: Weather, seed: u64) -> Self {
        let mut net = Self::strangers(count, weather, seed);
        for id in 1..=count {
            net.introduce(id);
        }
        net
    }

    /// Like [`Self::new`], and node 1 has sessions with all others. boringtun repeats a lost handshake by its own clock, which is not virtual.
    pub(crate) fn acquainted(count: i64, weather: Weather, seed: u64) -> Self {
        let mut net = Self::new(count, Weather::FAIR, seed);
        for id in 2..=count {
            let now = net.now;
            net.host(1).core.ping(NodeId(id), PingKind::Tsmp, now).unwrap();
        }
        net.run(Duration::from_secs(1));
        assert_eq!(
            net.host(1)
                .take(|event| matches!(event, Event::PingReply { .. }).then_some(()))
                .len() as i64,
            count - 1
        );
        net.weather = weather;
        net
    }

    /// Nodes 1 to `count`, who know only themselves.
    pub(crate) fn strangers(count: i64, weather: Weather, seed: u64) -> Self {
        Self::make(count, weather, seed, false)
    }

    fn make(count: i64, weather: Weather, seed: u64, direct: bool) -> Self {
        let mut net = Self {
            direct,
            now: Instant::now(),
            weather,
            hosts: Vec::new(),
            interner: Interner::default(),
            budget: MemoryBudget::new(64 << 20),
            seed,
            carried: 0,
            largest_batch: 0,
            udp_weather: None,
            relay_up: true,
            carried_directly: 0,
            chatter: 0,
            rng: ChaCha20Rng::seed_from_u64(seed),
            flying: BinaryHeap::new(),
            order: 0,
        };
        for _ in 1..=count {
            let key = NodePrivate::generate(&mut net.rng);
            let host = net.start(key);
            net.hosts.push(host);
        }
        for id in 1..=count {
            let node = net.node(id);
            let mut response = filters(vec![rule(&["*"], 0, 65535)]);
            response.node = Some(node);
            response.user_profiles = vec![UserProfile {
                id: UserId(7),
                login_name: "alice@example.com".into(),
                ..Default::default()
            }];
            net.tell(id, &response);
        }
        net
    }

    fn start(&mut self, key: NodePrivate) -> Host {
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        let config = CoreConfig {
            node_key: key.clone(),
            disco_key: DiscoPrivate::generate(&mut self.rng),
            budget: Arc::clone(&self.budget),
            buffers: BufferPool::new(),
            accept_routes: false,
            direct: self.direct,
        };
        let disco = config.disco_key.public();
        let core = Core::new(config, seed, self.now);
        Host {
            core,
            disco,
            key,
            netmap: Netmap::default(),
            events: Vec::new(),
            router: None,
            asleep: false,
        }
    }

    /// The record of a node, as the control server would send it.
    pub(crate) fn node(&self, id: i64) -> Node {
        let host = &self.hosts[(id - 1) as usize];
        Node {
            id: NodeId(id),
            stable_id: StableId(format!("n{id}")),
            name: format!("node-{id}.example.ts.net."),
            user: UserId(7),
            key: host.key.public(),
            disco_key: host.disco,
            addresses: vec![address(id).into(), address6(id).into()],
            home_derp: REGION,
            machine_authorized: true,
            ..Default::default()
        }
    }

    /// Gives a node a map response.
    pub(crate) fn tell(&mut self, id: i64, response: &MapResponse) {
        let host = &mut self.hosts[(id - 1) as usize];
        let (netmap, errors) = host.netmap.apply(response, &self.interner);
        assert_eq!(errors, []);
        host.netmap = netmap.clone();
        host.core.handle_netmap(netmap, self.now);
    }

    /// Tells a node of all others.
    pub(crate) fn introduce(&mut self, id: i64) {
        let peers = (1..=self.hosts.len() as i64)
            .filter(|other| *other != id)
            .map(|other| self.node(other))
            .collect();
        self.tell(
            id,
            &MapResponse {
                peers_changed: peers,
                ..Default::default()
            },
        );
    }

    /// Ends a node's process and starts it anew with the same key. The others are not told.
    pub(crate) fn restart(&mut self, id: i64) {
        let old = &self.hosts[(id - 1) as usize];
        let (key, netmap) = (old.key.clone(), old.netmap.clone());
        let mut host = self.start(key);
        host.router = self.hosts[(id - 1) as usize].router.take();
        host.netmap = netmap.clone();
        host.core.handle_netmap(netmap, self.now);
        self.hosts[(id - 1) as usize] = host;
    }

    pub(crate) fn host(&mut self, id: i64) -> &mut Host {
        &mut self.hosts[(id - 1) as usize]
    }

    /// Takes what the nodes have to send and tell.
    pub(crate) fn drain(&mut self) {
        let mut moved = Vec::new();
        for at in 0..self.hosts.len() {
            let from = self.hosts[at].key.public();
            loop {
                let host = &mut self.hosts[at];
                let Some(transmit) = host.core.poll_transmit(self.now) else {
                    break;
                };
                let path = transmit.path;
                let datagrams: Vec<_> = transmit.datagrams().map(<[u8]>::to_vec).collect();
                self.largest_batch = self.largest_batch.max(datagrams.len());
                for bytes in datagrams {
                    self.send(at, from, path, bytes);
                }
            }
            let host = &mut self.hosts[at];
            while let Some(event) = host.core.poll_event() {
                if matches!(event, Event::EndpointsChanged) {
                    moved.push(at as i64 + 1);
                }
                host.events.push(event);
            }
        }
        for id in moved {
            self.announce(id);
        }
    }

    fn send(&mut self, at: usize, from: NodePublic, path: Path, bytes: Vec<u8>) {
        match path {
            Path::Derp { region, peer } => {
                assert_eq!(region, REGION);
                self.carried += 1;
                let way = Way::Relay { from, to: peer };
                let weather = self.relay_up.then_some(self.weather);
                self.fly(way, bytes, weather);
            }
            Path::Udp(to) => {
                let router = self.hosts[at].router.as_mut().unwrap();
                let way = Way::Udp {
                    from: router.out(to, self.now),
                    to,
                };
                if bytes[0] == 4 {
                    self.carried_directly += 1;
                } else {
                    self.chatter += 1;
                }
                self.fly(way, bytes, self.udp_weather);
            }
        }
    }

    fn fly(&mut self, way: Way, bytes: Vec<u8>, weather: Option<Weather>) {
        let Some(weather) = weather.filter(|weather| self.rng.next_u32() % 1000 >= weather.loss) else {
            return;
        };
        let jitter = match weather.jitter.as_micros() as u64 {
            0 => 0,
            most => self.rng.next_u64() % most,
        };
        self.order += 1;
        self.flying.push(Flying {
            at: self.now + weather.delay + Duration::from_micros(jitter),
            order: self.order,
            way,
            bytes,
        });
    }

    fn land(&mut self, way: Way, mut bytes: Vec<u8>) {
        match way {
            Way::Relay { from, to } => {
                let to = self.hosts.iter_mut().find(|host| host.key.public() == to);
                if let Some(host) = to.filter(|host| !host.asleep) {
                    host.core.handle_derp(REGION, from, &mut bytes, self.now);
                }
            }
            Way::Udp { from, to } if STUN.contains(&to.to_string().as_str()) => {
                let mut answer = Vec::new();
                stun::encode_response(stun::parse_request(&bytes).unwrap(), from, &mut answer);
                self.fly(Way::Udp { from: to, to: from }, answer, self.udp_weather);
            }
            Way::Udp { from, to } => {
                for host in self.hosts.iter_mut().filter(|host| !host.asleep) {
                    let reached = host.router.as_mut().is_some_and(|router| {
                        router.outside() == to.ip() && router.lets_in(from, to, self.now)
                    });
                    if reached {
                        host.core.handle_udp(from, &mut bytes, self.now);
                        return;
                    }
                }
            }
        }
    }

    /// Tells all others where a node is, as the control server would.
    fn announce(&mut self, id: i64) {
        let endpoints: Vec<_> = self
            .host(id)
            .core
            .endpoints()
            .into_iter()
            .map(|(at, _)| at)
            .collect();
        let change = PeerChange {
            node_id: NodeId(id),
            endpoints,
            ..Default::default()
        };
        for other in (1..=self.hosts.len() as i64).filter(|other| *other != id) {
            self.tell(
                other,
                &MapResponse {
                    peers_changed_patch: vec![change.clone()],
                    ..Default::default()
                },
            );
        }
    }

    /// Nodes that look for direct paths, each behind such a router.
    pub(crate) fn outdoors(nats: &[Nat], weather: Weather, seed: u64) -> Self {
        let mut net = Self::make(nats.len() as i64, Weather::FAIR, seed, true);
        for id in 1..=nats.len() as i64 {
            net.introduce(id);
        }
        net.udp_weather = Some(weather);
        net.weather = weather;
        let now = net.now;
        for (at, nat) in nats.iter().enumerate() {
            let outside: IpAddr = format!("203.0.113.{}", at + 1).parse().unwrap();
            let inside = match nat {
                Nat::None => SocketAddr::new(outside, 41_641 + at as u16),
                _ => format!("10.0.{at}.2:{}", 41_641 + at).parse().unwrap(),
            };
            let host = &mut net.hosts[at];
            host.router = Some(Router::new(*nat, inside, outside));
            host.core.set_local_endpoints(vec![inside], now);
            host.core
                .set_stun_servers(&STUN.map(|server| server.parse().unwrap()), now);
        }
        net
    }

    /// Goes on to the next thing that happens, at most to `until`. Returns `false` at `until`.
    pub(crate) fn step(&mut self, until: Instant) -> bool {
        self.drain();
        let packet = self.flying.peek().map(|flying| flying.at);
        let timer = self
            .hosts
            .iter()
            .filter(|host| !host.asleep)
            .filter_map(|host| host.core.poll_timeout())
            .map(|(at, _)| at)
            .min();
        let next = packet.into_iter().chain(timer).min();
        let Some(next) = next.filter(|next| *next < until) else {
            self.now = until;
            return false;
        };
        self.now = self.now.max(next);
        while self.flying.peek().is_some_and(|flying| flying.at <= self.now) {
            let flying = self.flying.pop().unwrap();
            self.land(flying.way, flying.bytes);
        }
        for host in self.hosts.iter_mut().filter(|host| !host.asleep) {
            if host.core.poll_timeout().is_some_and(|(at, _)| at <= self.now) {
                host.core.handle_timeout(self.now);
            }
        }
        true
    }

    /// Runs for so long.
    pub(crate) fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.step(until) {}
    }

    /// Runs until `done`, which may also act, says so; fails after `most`.
    pub(crate) fn run_until(&mut self, most: Duration, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let until = self.now + most;
        loop {
            self.drain();
            if done(self) {
                self.drain();
                return;
            }
            assert!(self.step(until), "{what}: not within {most:?} of virtual time");
        }
    }
}
