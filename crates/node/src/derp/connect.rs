//! Opening a connection to a relay: TLS, HTTP upgrade, the exchange of keys.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http_body_util::Full;
use hyper::{Request, header};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rustls_pki_types::{DnsName, ServerName};
use tailwharf_wire::derp::{ClientInfo, DerpError, Frame, PROTOCOL_VERSION, ServerInfo};
use tailwharf_wire::key::NodePrivate;
use tailwharf_wire::tailcfg::{DerpNode, DerpRegion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use crate::host::Host;
use crate::http1::{self, HttpError};
use crate::stream::{self, MaybeTls};
use crate::tls::Trust;

/// Prefix of a `CertName` that pins a certificate.
const PIN_PREFIX: &str = "sha256-raw:";

/// In place of an address: the relay has none of that family.
const NO_ADDRESS: &str = "none";

/// From the first packet to the relay's info.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// When a relay has not answered by then, the next of its region is tried beside it.
const HESITATION: Duration = Duration::from_millis(1500);

/// A relay could not be reached, or is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RelayError {
    #[error("the region has no relay")]
    NoRelay,
    #[error("the relay map does not know the region")]
    NoRegion,
    #[error("CertName is neither a name nor a SHA-256 pin")]
    CertName,
    #[error("{0:?} is not a host name")]
    HostName(String),
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
    #[error("cannot connect to {host}:{port}")]
    Connect {
        host: String,
        port: u16,
        #[source]
        source: io::Error,
    },
    #[error("the relay did not answer in time")]
    TimedOut,
    #[error("cannot build the request")]
    Request(#[source] http::Error),
    #[error("the relay refused the upgrade")]
    Http(#[source] HttpError),
    #[error("the relay broke off")]
    Io(#[source] io::Error),
    #[error("the relay sent what cannot be understood")]
    Frame(#[from] DerpError),
    #[error("the relay sent another frame than the one that belongs here")]
    Unexpected,
    #[error("the relay is silent")]
    Silent,
}

/// A relay that has accepted the node.
pub(super) struct Connection {
    pub(super) stream: MaybeTls,
    /// Read, not decoded.
    pub(super) read: BytesMut,
}

/// Connects to a relay of a region: the first in the map's order, unless it fails or hesitates. All nodes keep to this order, so
/// that they meet at the same relay.
pub(super) async fn open(
    host: &Host,
    region: &DerpRegion,
    node_key: &NodePrivate,
) -> Result<Connection, RelayError> {
    let mut last = RelayError::NoRelay;
    let mut rest = region.nodes.iter().filter(|relay| !relay.stun_only);
    let mut attempts = FuturesUnordered::new();
    loop {
        if let Some(relay) = rest.next() {
            attempts.push(timeout(CONNECT_TIMEOUT, open_one(host, relay, node_key)));
        } else if attempts.is_empty() {
            return Err(last);
        }
        // Until the next relay gets its turn; after the last there is nothing but to wait.
        let patience = if rest.clone().next().is_some() {
            HESITATION
        } else {
            CONNECT_TIMEOUT
        };
        match timeout(patience, attempts.next()).await {
            Ok(Some(Ok(Ok(connection)))) => return Ok(connection),
            Ok(Some(Ok(Err(error)))) => last = error,
            Ok(Some(Err(_))) => last = RelayError::TimedOut,
            Ok(None) | Err(_) => {}
        }
    }
}

/// The time of one exchange with a relay.
pub(super) async fn probe(host: &Host, relay: &DerpNode) -> Result<Duration, RelayError> {
    let stream = dial(host, relay).await?;
    let request = Request::get("/derp/probe")
        .header(header::HOST, &relay.host_name)
        .body(Full::default())
        .map_err(RelayError::Request)?;
    let sent = Instant::now();
    http1::call(stream, request).await.map_err(RelayError::Http)?;
    Ok(sent.elapsed())
}

async fn open_one(host: &Host, relay: &DerpNode, node_key: &NodePrivate) -> Result<Connection, RelayError> {
    // A closed semaphore would be a shut down process; there is none such.
    let _place = host
        .handshakes()
        .acquire()
        .await
        .map_err(|_| RelayError::TimedOut)?;
    let stream = dial(host, relay).await?;
    let request = Request::get("/derp")
        .header(header::HOST, &relay.host_name)
        .header(header::UPGRADE, "DERP")
        .header(header::CONNECTION, "Upgrade")
        .body(Full::<Bytes>::default())
        .map_err(RelayError::Request)?;
    let upgraded = http1::upgrade(stream, request).await.map_err(RelayError::Http)?;
    let mut connection = Connection {
        stream: upgraded.stream,
        read: BytesMut::from(upgraded.read),
    };
    connection.introduce(node_key).await?;
    Ok(connection)
}

impl Connection {
    /// The exchange of keys and infos.
    async fn introduce(&mut self, node_key: &NodePrivate) -> Result<(), RelayError> {
        let Frame::ServerKey(relay_key) = self.next_frame().await? else {
            return Err(RelayError::Unexpected);
        };
        let info = ClientInfo {
            version: PROTOCOL_VERSION,
            can_ack_pings: true,
            ..ClientInfo::default()
        };
        let mut out = BytesMut::new();
        info.seal(node_key, &relay_key, &mut StdRng::from_entropy())?
            .encode(&mut out);
        self.stream.write_all(&out).await.map_err(RelayError::Io)?;
        self.stream.flush().await.map_err(RelayError::Io)?;
        let Frame::ServerInfo { sealed } = self.next_frame().await? else {
            return Err(RelayError::Unexpected);
        };
        // What it says about rates is for clients that pace themselves; TCP does it here. That it opens is the proof.
        ServerInfo::open(&sealed, &relay_key, node_key)?;
        Ok(())
    }

    async fn next_frame(&mut self) -> Result<Frame, RelayError> {
        loop {
            if let Some(frame) = Frame::decode(&mut self.read)? {
                return Ok(frame);
            }
            self.read.reserve(1024);
            if self
                .stream
                .read_buf(&mut self.read)
                .await
                .map_err(RelayError::Io)?
                == 0
            {
                return Err(RelayError::Io(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}

/// TCP and TLS to a relay.
async fn dial(host: &Host, relay: &DerpNode) -> Result<MaybeTls, RelayError> {
    let port = relay.tcp_port();
    let failed = |source| RelayError::Connect {
        host: relay.host_name.clone(),
        port,
        source,
    };
    let name = ServerName::try_from(relay.host_name.clone())
        .map_err(|_| RelayError::HostName(relay.host_name.clone()))?;
    let config = host.tls().client(&trust(relay)?).map_err(RelayError::Tls)?;
    let addresses = async {
        if let Some(addrs) = addresses(relay, port) {
            return Ok(addrs);
        }
        let wanted = |addr: &SocketAddr| match addr.ip() {
            IpAddr::V4(_) => relay.ipv4 != NO_ADDRESS,
            IpAddr::V6(_) => relay.ipv6 != NO_ADDRESS,
        };
        let resolved = stream::resolve(&relay.host_name, port).await?;
        Ok(resolved.into_iter().filter(wanted).collect())
    };
    let tcp = host
        .http_proxies()
        .connect(true, &relay.host_name, port, addresses)
        .await
        .map_err(failed)?;
    stream::secure(tcp, Some((config, name))).await.map_err(failed)
}

/// The addresses in the map, if it names any.
fn addresses(relay: &DerpNode, port: u16) -> Option<Vec<SocketAddr>> {
    let addrs: Vec<_> = [&relay.ipv4, &relay.ipv6]
        .into_iter()
        .filter_map(|text| text.parse::<IpAddr>().ok())
        .map(|addr| SocketAddr::new(addr, port))
        .collect();
    (!addrs.is_empty()).then_some(addrs)
}

/// What the relay's certificate must be, by the rules of `DERPNode.CertName`.
fn trust(relay: &DerpNode) -> Result<Trust, RelayError> {
    if let Some(digits) = relay.cert_name.strip_prefix(PIN_PREFIX) {
        let mut pin = [0; 32];
        hex::decode_to_slice(digits, &mut pin).map_err(|_| RelayError::CertName)?;
        return Ok(Trust::Pinned(pin));
    }
    if relay.insecure_for_tests {
        return Ok(Trust::Nothing);
    }
    if relay.cert_name.is_empty() || relay.cert_name == relay.host_name {
        return Ok(Trust::Roots);
    }
    let name = DnsName::try_from(relay.cert_name.clone()).map_err(|_| RelayError::CertName)?;
    Ok(Trust::RootsForName(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_certificate_must_be() {
        let relay = |cert_name: &str, insecure| DerpNode {
            host_name: "relay.example".into(),
            cert_name: cert_name.into(),
            insecure_for_tests: insecure,
            ..DerpNode::default()
        };
        assert_eq!(trust(&relay("", false)).unwrap(), Trust::Roots);
        assert_eq!(trust(&relay("relay.example", false)).unwrap(), Trust::Roots);
        let other = Trust::RootsForName(DnsName::try_from("cdn.example").unwrap());
        assert_eq!(trust(&relay("cdn.example", false)).unwrap(), other);
        assert_eq!(trust(&relay("", true)).unwrap(), Trust::Nothing);
        let pin = format!("sha256-raw:{}", "ab".repeat(32));
        assert_eq!(trust(&relay(&pin, false)).unwrap(), Trust::Pinned([0xab; 32]));
        assert_eq!(
            trust(&relay(&pin, true)).unwrap(),
            Trust::Pinned([0xab; 32]),
            "a pin is never ignored"
        );
        for wrong in [
            "sha256-raw:",
            "sha256-raw:abcd",
            &format!("sha256-raw:{}", "zz".repeat(32)),
            "not a name",
        ] {
            assert!(
                matches!(trust(&relay(wrong, false)), Err(RelayError::CertName)),
                "{wrong}"
            );
        }
    }

    #[test]
    fn addresses_of_the_map_win_over_names() {
        let relay = DerpNode {
            ipv4: "192.0.2.1".into(),
            ipv6: "none".into(),
            ..DerpNode::default()
        };
        assert_eq!(
            addresses(&relay, 443),
            Some(vec!["192.0.2.1:443".parse().unwrap()])
        );
        assert_eq!(addresses(&DerpNode::default(), 443), None);
    }
}
