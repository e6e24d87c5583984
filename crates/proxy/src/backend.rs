//! Where the connections of a listener go: resolving, dialling and checking backends.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tailwharf_kube_types::{Backend, IdentityReason};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

use crate::egress::TargetError;
use crate::sockets::Dial;

/// Time for one backend. A ClusterIP answers at once or drops.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// After so long without an answer a fresh attempt joins: the kernel would wait a whole second before it repeats a lost SYN.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(100);
/// Attempts at a backend that has answered before.
const ATTEMPTS: usize = 3;
/// Attempts at a backend that never answered yet. A ClusterIP is refused or dropped for about a second after its Service
/// was made, until kube-proxy has written its rules.
const FIRST_ATTEMPTS: usize = 20;
/// Time for all attempts of one connection.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Time to resolve a name.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the addresses of a name are used before it is resolved again.
const NAME_LIFE: Duration = Duration::from_secs(30);
/// Addresses used of one name.
const MAX_ADDRESSES: usize = 16;

/// No backend of a listener can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BackendError {
    /// The name of a backend has no address.
    #[error("the name {0} cannot be resolved")]
    Unresolved(String),
    /// A connection to a backend failed at once, most often because nothing listens there.
    #[error("{0}: {1}")]
    Refused(SocketAddr, io::ErrorKind),
    /// A backend did not answer.
    #[error("{0} does not answer")]
    TimedOut(SocketAddr),
    /// The listener has no backend.
    #[error("no endpoint of the Service is ready")]
    None,
    /// A target on the tailnet cannot be reached.
    #[error(transparent)]
    Target(#[from] TargetError),
}

impl BackendError {
    /// The condition's reason.
    #[must_use]
    pub(crate) fn reason(&self) -> IdentityReason {
        match self {
            Self::Unresolved(_) => IdentityReason::BackendUnresolved,
            Self::Refused(..) | Self::None => IdentityReason::BackendRefused,
            Self::TimedOut(_) => IdentityReason::BackendTimeout,
            Self::Target(error) => error.reason(),
        }
    }
}

#[derive(Debug)]
enum Host {
    Ip(IpAddr),
    Name {
        name: String,
        resolved: Mutex<Option<(Instant, Vec<IpAddr>)>>,
    },
}

/// Makes what a connection to a backend begins with, from the address of the client.
type MakeHeader = Box<dyn Fn(SocketAddr) -> Vec<u8> + Send + Sync>;

/// The backends of one listener, which take turns.
pub(crate) struct Backends {
    hosts: Vec<(Host, u16)>,
    turn: AtomicUsize,
    header: Option<MakeHeader>,
    /// Whether one of them ever answered.
    answered: AtomicBool,
}

impl Backends {
    /// Takes the backends as the spec gives them.
    #[must_use]
    pub(crate) fn new(backends: &[Backend]) -> Arc<Self> {
        Self::with(backends, None)
    }

    /// The same; connections to them begin with a header.
    #[must_use]
    pub(crate) fn announcing(backends: &[Backend], header: MakeHeader) -> Arc<Self> {
        Self::with(backends, Some(header))
    }

    fn with(backends: &[Backend], header: Option<MakeHeader>) -> Arc<Self> {
        let host = |address: &str| match address.parse() {
            Ok(ip) => Host::Ip(ip),
            Err(_) => Host::Name {
                name: address.to_owned(),
                resolved: Mutex::new(None),
            },
        };
        Arc::new(Self {
            hosts: backends
                .iter()
                .map(|backend| (host(&backend.address), backend.port))
                .collect(),
            turn: AtomicUsize::new(0),
            header,
            answered: AtomicBool::new(false),
        })
    }

    /// All addresses to try for a connection from `peer`, those of its address family first. Each call begins with another one.
    ///
    /// # Errors
    /// When there is none, which is what the last name's failure says.
    pub(crate) async fn addresses(&self, peer: IpAddr) -> Result<Vec<SocketAddr>, BackendError> {
        let mut addresses = Vec::new();
        let mut error = BackendError::None;
        for (host, port) in &self.hosts {
            match host {
                Host::Ip(ip) => addresses.push(SocketAddr::new(*ip, *port)),
                Host::Name { name, resolved } => match resolve(name, resolved).await {
                    Ok(ips) => addresses.extend(ips.into_iter().map(|ip| SocketAddr::new(ip, *port))),
                    Err(failed) => error = failed,
                },
            }
        }
        if addresses.is_empty() {
            return Err(error);
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % addresses.len();
        addresses.rotate_left(turn);
        addresses.sort_by_key(|address| address.is_ipv4() != peer.to_canonical().is_ipv4());
        Ok(addresses)
    }

    /// As [`Backends::dial`], for a caller that has others to go to.
    ///
    /// # Errors
    /// As there.
    pub(crate) async fn dial_at_once(&self, peer: IpAddr) -> Result<TcpStream, BackendError> {
        let addresses = self.addresses(peer).await?;
        self.dial_any(addresses, false).await
    }

    async fn dial_any(&self, addresses: Vec<SocketAddr>, patient: bool) -> Result<TcpStream, BackendError> {
        let mut error = BackendError::None;
        let deadline = Instant::now() + DIAL_TIMEOUT;
        for address in addresses {
            match connect(address, patient, deadline.min(Instant::now() + CONNECT_TIMEOUT)).await {
                Ok(stream) => {
                    self.answered.store(true, Ordering::Relaxed);
                    // A connection without the option works, with more delay.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Err(failed) => error = failed,
            }
        }
        Err(error)
    }
}

impl Dial for Backends {
    type Stream = TcpStream;

    fn header(&self, client: SocketAddr) -> Option<Vec<u8>> {
        self.header.as_ref().map(|make| make(client))
    }

    /// Connects to the first backend that answers; the error is that of the last one tried.
    async fn dial(&self, peer: IpAddr) -> Result<TcpStream, BackendError> {
        let addresses = self.addresses(peer).await?;
        // With another backend to go to, a refusal is not worth a wait.
        let patient = addresses.len() == 1 && !self.answered.load(Ordering::Relaxed);
        self.dial_any(addresses, patient).await
    }
}

/// Connects to one address, with a fresh attempt beside the others after each pause. A patient caller takes a refusal as
/// a reason to try again.
async fn connect(address: SocketAddr, patient: bool, deadline: Instant) -> Result<TcpStream, BackendError> {
    let most = if patient { FIRST_ATTEMPTS } else { ATTEMPTS };
    let mut attempts = FuturesUnordered::from_iter([TcpStream::connect(address)]);
    let mut begun = 1;
    let mut next = Instant::now() + ATTEMPT_PAUSE;
    let mut error = BackendError::TimedOut(address);
    loop {
        tokio::select! {
            Some(outcome) = attempts.next() => match outcome {
                Ok(stream) => return Ok(stream),
                Err(source) if source.kind() == io::ErrorKind::TimedOut => error = BackendError::TimedOut(address),
                Err(source) => {
                    error = BackendError::Refused(address, source.kind());
                    if !patient {
                        return Err(error);
                    }
                }
            },
            () = sleep_until(next.min(deadline)) => {
                if next >= deadline || (begun == most && attempts.is_empty()) {
                    return Err(error);
                }
                if begun < most {
                    attempts.push(TcpStream::connect(address));
                    begun += 1;
                }
                next += ATTEMPT_PAUSE;
            }
        }
    }
}

async fn resolve(
    name: &str,
    resolved: &Mutex<Option<(Instant, Vec<IpAddr>)>>,
) -> Result<Vec<IpAddr>, BackendError> {
    let known = resolved.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some((at, ips)) = &known
        && at.elapsed() < NAME_LIFE
    {
        return Ok(ips.clone());
    }
    let ips: Vec<IpAddr> = match timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((name, 0))).await {
        Ok(Ok(found)) => found.map(|address| address.ip()).take(MAX_ADDRESSES).collect(),
        Ok(Err(_)) | Err(_) => Vec::new(),
    };
    match (ips.is_empty(), known) {
        (false, _) => {
            *resolved.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), ips.clone()));
            Ok(ips)
        }
        // An answer of before is better than none.
        (true, Some((_, old))) => Ok(old),
        (true, None) => Err(BackendError::Unresolved(name.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(address: &str, port: u16) -> Backend {
        Backend {
            address: address.to_owned(),
            port,
        }
    }

    #[tokio::test]
    async fn takes_turns_within_the_family_of_the_peer() {
        let backends = Backends::new(&[
            backend("10.0.0.1", 80),
            backend("fd00::1", 80),
            backend("10.0.0.2", 81),
        ]);
        let v6: IpAddr = "fd7a:115c:a1e0::1".parse().unwrap();
        let v4: IpAddr = "100.64.0.1".parse().unwrap();
        let text = |addresses: Vec<SocketAddr>| addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            text(backends.addresses(v6).await.unwrap()),
            ["[fd00::1]:80", "10.0.0.1:80", "10.0.0.2:81"]
        );
        assert_eq!(
            text(backends.addresses(v4).await.unwrap()),
            ["10.0.0.2:81", "10.0.0.1:80", "[fd00::1]:80"]
        );
    }

    #[tokio::test]
    async fn goes_on_to_the_next_backend() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed = {
            let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            gone.local_addr().unwrap().port()
        };
        let open = listener.local_addr().unwrap();
        let peer = open.ip();
        let backends = Backends::new(&[backend("127.0.0.1", closed), backend("127.0.0.1", open.port())]);
        assert_eq!(backends.dial(peer).await.unwrap().peer_addr().unwrap(), open);

        let backends = Backends::new(&[backend("127.0.0.1", closed)]);
        backends.answered.store(true, Ordering::Relaxed);
        let refused = BackendError::Refused(SocketAddr::new(peer, closed), io::ErrorKind::ConnectionRefused);
        assert_eq!(backends.dial(peer).await.unwrap_err(), refused);
        assert_eq!(
            Backends::new(&[]).dial(peer).await.unwrap_err(),
            BackendError::None
        );
    }

    #[tokio::test]
    async fn waits_for_a_backend_that_never_answered_yet() {
        let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = gone.local_addr().unwrap();
        drop(gone);
        let backends = Backends::new(&[backend("127.0.0.1", address.port())]);
        let dial = backends.dial(address.ip());
        tokio::pin!(dial);
        // Refused, and still waiting.
        assert!(timeout(ATTEMPT_PAUSE * 2, &mut dial).await.is_err());
        let _listener = tokio::net::TcpListener::bind(address).await.unwrap();
        assert_eq!(dial.await.unwrap().peer_addr().unwrap(), address);
    }
}
