//! A tailnet in memory and in virtual time: cores, and a relay between them that loses, delays and reorders by a seed.

use std::collections::{BTreeMap, BinaryHeap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use tailwharf_node_core::netmap::{Interner, Netmap};
use tailwharf_node_core::{Core, CoreConfig, Event, MemoryBudget, Path, PingKind};
use tailwharf_wire::key::{DiscoPrivate, DiscoPublic, NodePrivate, NodePublic};
use tailwharf_wire::tailcfg::{
    FilterRule, MapResponse, NetPortRange, Node, NodeId, PortRange, RegionId, StableId, UserId, UserProfile,
};

/// The region of the relay.
pub(crate) const REGION: RegionId = RegionId(900);

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
    from: NodePublic,
    to: NodePublic,
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
        let mut net = Self {
            now: Instant::now(),
            weather,
            hosts: Vec::new(),
            interner: Interner::default(),
            budget: MemoryBudget::new(64 << 20),
            seed,
            carried: 0,
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
            accept_routes: false,
        };
        let disco = config.disco_key.public();
        let core = Core::new(config, seed, self.now);
        Host {
            core,
            disco,
            key,
            netmap: Netmap::default(),
            events: Vec::new(),
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
        host.netmap = netmap.clone();
        host.core.handle_netmap(netmap, self.now);
        self.hosts[(id - 1) as usize] = host;
    }

    pub(crate) fn host(&mut self, id: i64) -> &mut Host {
        &mut self.hosts[(id - 1) as usize]
    }

    /// Takes what the nodes have to send and tell.
    pub(crate) fn drain(&mut self) {
        for host in &mut self.hosts {
            let from = host.key.public();
            while let Some(transmit) = host.core.poll_transmit(self.now) {
                let Path::Derp { region, peer } = transmit.path else {
                    panic!("a direct path")
                };
                assert_eq!(region, REGION);
                self.carried += 1;
                if self.rng.next_u32() % 1000 < self.weather.loss {
                    continue;
                }
                let jitter = match self.weather.jitter.as_micros() as u64 {
                    0 => 0,
                    most => self.rng.next_u64() % most,
                };
                self.order += 1;
                self.flying.push(Flying {
                    at: self.now + self.weather.delay + Duration::from_micros(jitter),
                    order: self.order,
                    from,
                    to: peer,
                    bytes: transmit.payload.to_vec(),
                });
            }
            while let Some(event) = host.core.poll_event() {
                host.events.push(event);
            }
        }
    }

    /// Goes on to the next thing that happens, at most to `until`. Returns `false` at `until`.
    pub(crate) fn step(&mut self, until: Instant) -> bool {
        self.drain();
        let packet = self.flying.peek().map(|flying| flying.at);
        let timer = self
            .hosts
            .iter()
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
            let mut flying = self.flying.pop().unwrap();
            if let Some(host) = self.hosts.iter_mut().find(|host| host.key.public() == flying.to) {
                host.core
                    .handle_derp(REGION, flying.from, &mut flying.bytes, self.now);
            }
        }
        for host in &mut self.hosts {
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
