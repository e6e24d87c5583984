//! Where connections of a port go: the targets in turn, those first that answered lately.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tailwharf_kube_types::Target;
use tailwharf_node::DialError;
use tokio::time::{Instant, timeout};

use super::error::TargetError;
use super::tailnet::Tailnet;
use crate::backend::BackendError;
use crate::sockets::{Dial, OpenFlow, Origin};

/// Time for one address of a target.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The same for a device of which the control server says that it is away: it may have come back just now.
const AWAY_TIMEOUT: Duration = Duration::from_millis(1500);
/// Time for all targets of one connection.
const DIAL_TIMEOUT: Duration = Duration::from_secs(12);
/// For so long a target that failed comes after the others.
const AVOIDED: Duration = Duration::from_secs(10);

/// The targets of one port, or of all.
pub(crate) struct Targets<N> {
    node: N,
    targets: Arc<[Target]>,
    /// [`ALL`]: the port at which a connection came in.
    port: u16,
    turns: Arc<Turns>,
}

/// Stands for all ports.
pub(crate) const ALL: u16 = 0;

struct Turns {
    /// Counts connections, so that targets take turns.
    turn: AtomicUsize,
    /// When each target failed last.
    failed: Mutex<Vec<Option<Instant>>>,
}

impl<N: Tailnet> Targets<N> {
    pub(crate) fn new(node: N, targets: &[Target], port: u16) -> Self {
        Self {
            node,
            targets: targets.into(),
            port,
            turns: Arc::new(Turns {
                turn: AtomicUsize::new(0),
                failed: Mutex::new(vec![None; targets.len()]),
            }),
        }
    }

    /// The numbers of the targets in the order in which a new connection tries them.
    fn order(&self) -> Vec<usize> {
        let count = self.targets.len();
        let first = self.turns.turn.fetch_add(1, Ordering::Relaxed) % count.max(1);
        let mut order: Vec<usize> = (0..count).map(|n| (first + n) % count).collect();
        let failed = self.turns.failed.lock().unwrap_or_else(PoisonError::into_inner);
        // A stable sort: who failed goes to the end, the turns stay.
        order.sort_by_key(|number| failed[*number].is_some_and(|at| at.elapsed() < AVOIDED));
        order
    }

    fn note(&self, number: usize, failed: bool) {
        let mut all = self.turns.failed.lock().unwrap_or_else(PoisonError::into_inner);
        all[number] = failed.then(Instant::now);
    }

    /// The addresses of a target, those of the family of `peer` first.
    fn addresses(&self, target: &Target, peer: IpAddr) -> Result<Vec<SocketAddr>, TargetError> {
        let mut addresses = match target {
            Target::Ip(address) => vec![*address],
            Target::Name(name) => self.node.resolve(name),
        };
        if addresses.is_empty() {
            return Err(TargetError::Unknown(target.clone()));
        }
        if addresses.iter().any(|address| self.node.is_own(*address)) {
            return Err(TargetError::IsSelf(target.clone()));
        }
        addresses.sort_by_key(|address| address.is_ipv4() != peer.to_canonical().is_ipv4());
        Ok(addresses
            .into_iter()
            .map(|address| SocketAddr::new(address, self.port))
            .collect())
    }

    /// Whether any target can be found; what is wrong with the first if not.
    pub(crate) fn find(&self) -> Result<(), TargetError> {
        let any = IpAddr::from([0, 0, 0, 0]);
        let mut found = self.targets.iter().map(|target| self.addresses(target, any));
        let first = match found.next() {
            None => return Err(TargetError::Unavailable("it has no target")),
            Some(first) => first.map(drop),
        };
        if first.is_ok() || found.any(|found| found.is_ok()) {
            Ok(())
        } else {
            first
        }
    }

    /// Connects to one target: another address only if the one before it refused at once.
    async fn connect(&self, target: &Target, peer: IpAddr) -> Result<N::Stream, TargetError> {
        let mut outcome = Err(TargetError::Unknown(target.clone()));
        for at in self.addresses(target, peer)? {
            let away = self.node.is_away(at.ip());
            let limit = if away { AWAY_TIMEOUT } else { CONNECT_TIMEOUT };
            let error = match timeout(limit, self.node.connect(at)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(DialError::TimedOut(_))) | Err(_) if away => TargetError::Offline(target.clone()),
                Ok(Err(error)) => TargetError::new(&error, target, at),
                Err(_) => TargetError::TimedOut(target.clone(), at),
            };
            let is_last = !matches!(error, TargetError::Refused(..) | TargetError::Denied(..));
            outcome = Err(error);
            if is_last {
                break;
            }
        }
        outcome
    }
}

impl<N: Tailnet> Dial for Targets<N> {
    type Stream = N::Stream;

    fn at(self: &Arc<Self>, port: u16) -> Arc<Self> {
        Arc::new(Self {
            node: self.node.clone(),
            targets: self.targets.clone(),
            port,
            turns: self.turns.clone(),
        })
    }

    async fn dial(&self, peer: IpAddr) -> Result<N::Stream, BackendError> {
        let mut outcome = Err(TargetError::Unavailable("it has no target").into());
        let deadline = Instant::now() + DIAL_TIMEOUT;
        for number in self.order() {
            if Instant::now() >= deadline {
                break;
            }
            match self.connect(&self.targets[number], peer).await {
                Ok(stream) => {
                    self.note(number, false);
                    return Ok(stream);
                }
                Err(error) => {
                    self.note(number, true);
                    outcome = Err(error.into());
                }
            }
        }
        outcome
    }
}

impl<N: Tailnet> OpenFlow for Targets<N> {
    type Flow = N::Flow;

    async fn open(&self, from: Origin) -> Result<(N::Flow, SocketAddr), BackendError> {
        let mut outcome = TargetError::Unavailable("it has no target");
        for number in self.order() {
            let target = &self.targets[number];
            let found = self.addresses(target, from.peer.ip()).and_then(|addresses| {
                let is_there = |at: &&SocketAddr| !self.node.is_away(at.ip());
                let there = addresses.iter().find(is_there).copied();
                there.ok_or_else(|| TargetError::Offline(target.clone()))
            });
            match found {
                Ok(mut at) => {
                    if let (ALL, Some(port)) = (self.port, from.port) {
                        at.set_port(port);
                    }
                    let flow = self
                        .node
                        .flow(at)
                        .map_err(|_| TargetError::Unavailable("no port is left"))?;
                    return Ok((flow, at));
                }
                Err(error) => outcome = error,
            }
        }
        Err(outcome.into())
    }

    async fn current(&self) -> Vec<SocketAddr> {
        let any = IpAddr::from([0, 0, 0, 0]);
        let all = self
            .targets
            .iter()
            .filter_map(|target| self.addresses(target, any).ok());
        all.flatten().collect()
    }
}
