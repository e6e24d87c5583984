//! Where the connections of a listener go: resolving, dialling and checking backends.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tailwharf_kube_types::{Backend, IdentityReason};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

/// Time for one connection attempt. A ClusterIP answers at once or drops.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
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
    #[error("the listener has no backend")]
    None,
}

impl BackendError {
    /// The condition's reason.
    #[must_use]
    pub(crate) fn reason(&self) -> IdentityReason {
        match self {
            Self::Unresolved(_) => IdentityReason::BackendUnresolved,
            Self::Refused(..) | Self::None => IdentityReason::BackendRefused,
            Self::TimedOut(_) => IdentityReason::BackendTimeout,
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

/// The backends of one listener, in order of preference.
#[derive(Debug)]
pub(crate) struct Backends(Vec<(Host, u16)>);

impl Backends {
    /// Takes the backends as the spec gives them.
    #[must_use]
    pub(crate) fn new(backends: &[Backend]) -> Arc<Self> {
        let host = |address: &str| match address.parse() {
            Ok(ip) => Host::Ip(ip),
            Err(_) => Host::Name {
                name: address.to_owned(),
                resolved: Mutex::new(None),
            },
        };
        Arc::new(Self(
            backends
                .iter()
                .map(|backend| (host(&backend.address), backend.port))
                .collect(),
        ))
    }

    /// All addresses to try for a connection from `peer`, those of its address family first.
    ///
    /// # Errors
    /// When there is none, which is what the last name's failure says.
    pub(crate) async fn addresses(&self, peer: IpAddr) -> Result<Vec<SocketAddr>, BackendError> {
        let mut addresses = Vec::new();
        let mut error = BackendError::None;
        for (host, port) in &self.0 {
            match host {
                Host::Ip(ip) => addresses.push(SocketAddr::new(*ip, *port)),
                Host::Name { name, resolved } => match resolve(name, resolved).await {
                    Ok(ips) => addresses.extend(ips.into_iter().map(|ip| SocketAddr::new(ip, *port))),
                    Err(failed) => error = failed,
                },
            }
        }
        addresses.sort_by_key(|address| address.is_ipv4() != peer.to_canonical().is_ipv4());
        if addresses.is_empty() {
            Err(error)
        } else {
            Ok(addresses)
        }
    }

    /// Connects to the first backend that answers.
    ///
    /// # Errors
    /// Why the last one tried did not.
    pub(crate) async fn dial(&self, peer: IpAddr) -> Result<TcpStream, BackendError> {
        let mut error = BackendError::None;
        let deadline = Instant::now() + DIAL_TIMEOUT;
        for address in self.addresses(peer).await? {
            let left = deadline.saturating_duration_since(Instant::now());
            match timeout(CONNECT_TIMEOUT.min(left), TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    // A connection without the option works, with more delay.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Ok(Err(source)) if source.kind() == io::ErrorKind::TimedOut => {
                    error = BackendError::TimedOut(address);
                }
                Ok(Err(source)) => error = BackendError::Refused(address, source.kind()),
                Err(_) => error = BackendError::TimedOut(address),
            }
        }
        Err(error)
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
    async fn prefers_the_family_of_the_peer() {
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
            ["10.0.0.1:80", "10.0.0.2:81", "[fd00::1]:80"]
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
        let refused = BackendError::Refused(SocketAddr::new(peer, closed), io::ErrorKind::ConnectionRefused);
        assert_eq!(backends.dial(peer).await.unwrap_err(), refused);
        assert_eq!(
            Backends::new(&[]).dial(peer).await.unwrap_err(),
            BackendError::None
        );
    }
}
