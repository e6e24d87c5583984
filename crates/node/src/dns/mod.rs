//! DNS as this node: MagicDNS, split DNS, and for everything else the resolvers of the tailnet or of the machine.
//!
//! What the netmap answers, and who is asked for the rest, is decided in `tailwharf_node_core::dns`.

mod server;
mod upstream;

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tailwharf_node_core::dns::{self, Decision, MAX_UDP, Query, ResponseCode};
use tailwharf_node_core::netmap::Netmap;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use self::upstream::Upstream;
pub(crate) use self::upstream::name_servers;
use crate::engine::Engine;
use crate::sync::lock;

/// Queries that wait for other resolvers at the same time; more are refused.
const MAX_IN_FLIGHT: usize = 256;

/// How long a client waits for an answer that somebody else gives.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(5);

/// The next resolver is asked beside one that did not answer for this long.
const NEXT_AFTER: Duration = Duration::from_secs(1);

/// Resolvers that are asked for one query.
const MAX_UPSTREAMS: usize = 4;

/// The machine's own resolvers are read again after this time.
const SYSTEM_AGE: Duration = Duration::from_secs(30);

/// How a query came, which limits the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// In a datagram: a long answer is replaced by the advice to ask over TCP.
    Udp,
    /// In a stream.
    Stream,
}

/// Answers DNS queries as a node. Clones share their limits.
#[derive(Clone)]
pub struct Resolver(Arc<Inner>);

struct Inner {
    engine: Arc<Engine>,
    in_flight: Semaphore,
    system: Mutex<System>,
}

/// The resolvers of the machine.
#[derive(Default)]
struct System {
    addresses: Vec<SocketAddr>,
    /// `None`: they were set and are not read.
    read: Option<Instant>,
}

impl Resolver {
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        let system = System {
            addresses: upstream::system_resolvers(),
            read: Some(Instant::now()),
        };
        Self(Arc::new(Inner {
            engine,
            in_flight: Semaphore::new(MAX_IN_FLIGHT),
            system: Mutex::new(system),
        }))
    }

    /// Sets whom to ask for names that the tailnet says nothing about, in place of the name servers in `/etc/resolv.conf`. Needed where that file leads back
    /// to this resolver.
    pub fn set_system_resolvers(&self, addresses: Vec<SocketAddr>) {
        *lock(&self.0.system) = System {
            addresses,
            read: None,
        };
    }

    /// Answers a query of this machine. `None` for what is no query.
    pub async fn answer(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        self.respond(query, transport, dns::decide).await
    }

    /// Answers a query of a peer that uses this node as its exit: nothing about the tailnet itself.
    pub(crate) async fn answer_peer(&self, query: &[u8]) -> Option<Vec<u8>> {
        self.respond(query, Transport::Stream, dns::decide_for_peer).await
    }

    async fn respond(
        &self,
        message: &[u8],
        transport: Transport,
        decide: for<'a> fn(&'a Netmap, &Query) -> Decision<'a>,
    ) -> Option<Vec<u8>> {
        let query = match Query::parse(message) {
            Ok(query) => query,
            Err(error) => return error.answer(),
        };
        let netmap = self.0.engine.with_core(|core, _| core.netmap().clone());
        let answer = match decide(&netmap, &query) {
            Decision::Answer(answer) => query.answer(&answer),
            Decision::Forward(resolvers) => {
                let upstreams = resolvers.iter().filter_map(Upstream::of).collect();
                self.forward(message, &query, upstreams).await
            }
            Decision::System => {
                let upstreams = self.system().into_iter().map(Upstream::Plain).collect();
                self.forward(message, &query, upstreams).await
            }
        };
        let is_long = transport == Transport::Udp && answer.len() > query.udp_limit();
        Some(if is_long { query.truncated() } else { answer })
    }

    /// Asks others, each a little later than the one before, and gives the first good answer.
    async fn forward(&self, message: &[u8], query: &Query, upstreams: Vec<Upstream>) -> Vec<u8> {
        let Ok(_place) = self.0.in_flight.try_acquire() else {
            return query.refuse(ResponseCode::Refused);
        };
        let asking = self.ask(message, &upstreams);
        match timeout(FORWARD_TIMEOUT, asking).await {
            Ok(Some(answer)) => answer,
            Ok(None) | Err(_) => query.refuse(ResponseCode::ServFail),
        }
    }

    async fn ask(&self, message: &[u8], upstreams: &[Upstream]) -> Option<Vec<u8>> {
        let mut race: FuturesUnordered<_> = (0_u32..)
            .zip(upstreams.iter().take(MAX_UPSTREAMS))
            .map(|(position, upstream)| async move {
                sleep(NEXT_AFTER * position).await;
                self.ask_one(message, upstream).await
            })
            .collect();
        let mut last = None;
        while let Some(result) = race.next().await {
            match result {
                Ok(answer) if is_good(&answer) => return Some(answer),
                Ok(answer) => last = Some(answer),
                Err(error) => tracing::debug!(%error, "a resolver did not answer"),
            }
        }
        last
    }

    /// Asks one resolver under a number of our own, which others cannot guess.
    async fn ask_one(&self, message: &[u8], upstream: &Upstream) -> std::io::Result<Vec<u8>> {
        let mut asked = message.to_vec();
        StdRng::from_entropy().fill(&mut asked[..2]);
        let query = Query::parse(&asked).map_err(std::io::Error::other)?;
        let mut answer = upstream.exchange(&self.0.engine, &asked, &query).await?;
        answer[..2].copy_from_slice(&message[..2]);
        Ok(answer)
    }

    fn system(&self) -> Vec<SocketAddr> {
        let mut system = lock(&self.0.system);
        if system.read.is_some_and(|read| read.elapsed() > SYSTEM_AGE) {
            system.addresses = upstream::system_resolvers();
            system.read = Some(Instant::now());
        }
        system.addresses.clone()
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

/// Whether an answer says something about the name, not about the resolver.
fn is_good(answer: &[u8]) -> bool {
    let code = answer.get(3).map(|flags| flags & 0x0f);
    code == Some(ResponseCode::NoError as u8) || code == Some(ResponseCode::NxDomain as u8)
}

/// Room for the largest datagram that a resolver sends to us.
const DATAGRAM: usize = {
    assert!(MAX_UDP <= 4096, "resolvers are asked for no more than fits");
    4096
};
