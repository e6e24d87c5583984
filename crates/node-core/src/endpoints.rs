//! The addresses at which this node may be reached by UDP: those of its interfaces, and those that STUN servers see.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand_core::CryptoRngCore;
use tailwharf_wire::stun::{self, TxId};
use tailwharf_wire::tailcfg::EndpointType;

use crate::outbox::Outbox;
use crate::paths::Path;

/// How many STUN servers are asked, and how many addresses of interfaces are told.
const MAX_SERVERS: usize = 8;
const MAX_LOCAL: usize = 32;
/// How many addresses may be told by who runs the node.
const MAX_EXPLICIT: usize = 16;
/// An unanswered question is repeated after so long, so many times.
const RETRY: Duration = Duration::from_millis(500);
const TRIES: u8 = 3;
/// While the node is in use, the servers are asked again after this time and up to [`JITTER`] more. NATs forget after 30 s.
const REPEAT: Duration = Duration::from_secs(20);
const JITTER: Duration = Duration::from_secs(6);
/// What was learned longer ago is learned anew before it is told to a peer.
const STALE: Duration = Duration::from_secs(27);
/// After so many rounds without any answer, what was learned before is void.
const MAX_FAILED_ROUNDS: u8 = 2;

/// What is known of the network by asking STUN servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetFacts {
    /// Whether UDP gets out and back. `None` before anything is known.
    pub udp: Option<bool>,
    /// Whether servers see this node at different addresses of one family, as behind a NAT that maps by destination.
    pub mapping_varies: Option<bool>,
    /// Whether servers see this node at addresses that are not its own: a NAT is between.
    pub translated: Option<bool>,
}

/// Own addresses, and how they become known.
#[derive(Debug, Default)]
pub(crate) struct Endpoints {
    local: Vec<SocketAddr>,
    /// Those that were told by who runs the node.
    explicit: Vec<SocketAddr>,
    servers: Vec<Server>,
    /// When a round of questions last began.
    asked: Option<Instant>,
    /// When to repeat a question, or begin a new round.
    next: Option<Instant>,
    failed_rounds: u8,
    /// Whether a round has ended since the servers became known.
    known: bool,
}

#[derive(Debug)]
struct Server {
    address: SocketAddr,
    /// The question that is open.
    open: Option<TxId>,
    tries: u8,
    seen_as: Option<SocketAddr>,
}

impl Endpoints {
    /// All addresses, each with how it was learned.
    pub(crate) fn all(&self) -> Vec<(SocketAddr, EndpointType)> {
        let explicit = self.explicit.iter().map(|at| (*at, EndpointType::EXPLICIT));
        let local = self.local.iter().map(|at| (*at, EndpointType::LOCAL));
        let seen = self.seen().map(|at| (at, EndpointType::STUN));
        let mut all: Vec<(SocketAddr, EndpointType)> = Vec::new();
        for (at, kind) in explicit.chain(local).chain(seen).chain(self.forwarded()) {
            if all.iter().all(|(known, _)| *known != at) {
                all.push((at, kind));
            }
        }
        all
    }

    /// Where servers see this node.
    fn seen(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.servers.iter().filter_map(|server| server.seen_as)
    }

    /// Behind a NAT that maps by destination no port that a server sees helps, but somebody may have had the node's own port forwarded.
    fn forwarded(&self) -> Option<(SocketAddr, EndpointType)> {
        let port = self.local.first()?.port();
        let outside = self.seen().find(SocketAddr::is_ipv4)?;
        self.varies(true)?.then(|| {
            (
                SocketAddr::new(outside.ip(), port),
                EndpointType::STUN_4_LOCAL_PORT,
            )
        })
    }

    /// Whether servers see this node at different addresses of one family.
    fn varies(&self, v4: bool) -> Option<bool> {
        let mut seen = self.seen().filter(|seen| seen.is_ipv4() == v4);
        let (first, second) = (seen.next()?, seen.next()?);
        Some(second != first || seen.any(|other| other != first))
    }

    pub(crate) fn is_own(&self, address: SocketAddr) -> bool {
        self.local.contains(&address) || self.explicit.contains(&address)
    }

    pub(crate) fn facts(&self) -> NetFacts {
        let answered = self.seen().next().is_some();
        NetFacts {
            udp: (answered || self.known).then_some(answered),
            mapping_varies: self.varies(true).or_else(|| self.varies(false)),
            translated: answered.then(|| !self.seen().any(|seen| self.local.contains(&seen))),
        }
    }

    /// Takes addresses at which this node can be reached because somebody saw to it: a port of a firewall or of a Kubernetes node that leads here.
    pub(crate) fn set_explicit(&mut self, mut explicit: Vec<SocketAddr>) {
        explicit.truncate(MAX_EXPLICIT);
        self.explicit = explicit;
    }

    /// Takes the addresses of this node's own socket. Says whether they changed.
    pub(crate) fn set_local(&mut self, mut local: Vec<SocketAddr>, now: Instant) -> bool {
        local.truncate(MAX_LOCAL);
        let changed = local != self.local;
        if changed {
            self.local = local;
            // What servers saw belongs to the network of before; they are asked at once.
            self.begin(now);
        }
        changed
    }

    /// Takes the servers to ask, the nearest first.
    pub(crate) fn set_servers(&mut self, addresses: &[SocketAddr], now: Instant) {
        if self
            .servers
            .iter()
            .map(|server| server.address)
            .eq(addresses.iter().copied().take(MAX_SERVERS))
        {
            return;
        }
        let mut old = std::mem::take(&mut self.servers);
        for &address in addresses.iter().take(MAX_SERVERS) {
            let known = old.iter().position(|server| server.address == address);
            self.servers.push(match known {
                Some(at) => old.swap_remove(at),
                None => Server {
                    address,
                    open: None,
                    tries: 0,
                    seen_as: None,
                },
            });
        }
        self.known = false;
        self.failed_rounds = 0;
        self.begin(now);
    }

    /// Asks again if what is known is stale.
    pub(crate) fn refresh(&mut self, now: Instant) {
        match self.asked {
            Some(asked) if now.duration_since(asked) < STALE => {
                self.next.get_or_insert(asked + REPEAT);
            }
            _ => self.begin(now),
        }
    }

    fn begin(&mut self, now: Instant) {
        if self.servers.is_empty() {
            return;
        }
        self.asked = Some(now);
        self.next = Some(now);
        for server in &mut self.servers {
            server.open = None;
            server.tries = 0;
        }
    }

    /// Takes a STUN packet. Says whether the addresses are others than before.
    pub(crate) fn handle(&mut self, packet: &[u8], from: SocketAddr) -> bool {
        let Ok((tx_id, seen)) = stun::parse_response(packet) else {
            return false;
        };
        let Some(server) = self
            .servers
            .iter_mut()
            .find(|server| server.address == from && server.open == Some(tx_id))
        else {
            return false;
        };
        server.open = None;
        server.tries = TRIES;
        self.failed_rounds = 0;
        let seen = SocketAddr::new(seen.ip().to_canonical(), seen.port());
        let changed = server.seen_as != Some(seen);
        server.seen_as = Some(seen);
        changed
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.next
    }

    /// Sends what is due. With `active` there is another round after this one. Says whether the addresses are others than before.
    pub(crate) fn handle_timeout(
        &mut self,
        active: bool,
        outbox: &mut Outbox,
        rng: &mut impl CryptoRngCore,
        now: Instant,
    ) -> bool {
        if self.next.is_none_or(|at| at > now) {
            return false;
        }
        if self.asked.is_some_and(|at| now.duration_since(at) >= REPEAT) {
            if !active {
                self.next = None;
                return false;
            }
            self.begin(now);
        }
        let mut open = false;
        for server in &mut self.servers {
            if server.tries < TRIES {
                let tx_id = TxId::generate(rng);
                server.tries += 1;
                server.open = Some(tx_id);
                outbox.push(Path::Udp(server.address), &stun::request(tx_id));
            }
            open |= server.open.is_some();
        }
        if open
            && self
                .asked
                .is_some_and(|at| now.duration_since(at) < RETRY * u32::from(TRIES))
        {
            self.next = Some(now + RETRY);
            return false;
        }
        let jitter = JITTER.mul_f64(f64::from(rng.next_u32()) / f64::from(u32::MAX));
        self.next = match self.asked {
            Some(asked) if active && now < asked + REPEAT => Some(asked + REPEAT + jitter),
            _ => None,
        };
        self.end_round()
    }

    /// Takes stock of who answered.
    fn end_round(&mut self) -> bool {
        let mut changed = !self.known;
        self.known = true;
        if self.servers.iter().any(|server| server.open.is_none()) {
            return changed;
        }
        self.failed_rounds = self.failed_rounds.saturating_add(1);
        if self.failed_rounds >= MAX_FAILED_ROUNDS {
            for server in &mut self.servers {
                changed |= server.seen_as.take().is_some();
            }
        }
        changed
    }
}
