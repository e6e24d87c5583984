//! Listeners and limits.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tailwharf_wire::key::NodePublic;
use tailwharf_wire::tailcfg::{DerpNode, RegionId};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::connection::{self, Ended};
use crate::http::{self, Form, Upgraded};
use crate::identity::{Identity, IdentityError, as_address};
use crate::machine::Rates;
use crate::metrics::Metrics;
use crate::shared::{Shared, Slot, site};
use crate::stun;
use crate::websocket::WebSocket;

/// How long a client may take for the TLS handshake.
const TLS_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait when the system has no means for one more connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// When the system begins to ask whether a silent peer is still there, and how often it does.
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);
const TCP_BACKLOG: i32 = 1024;

/// Decides which nodes may use the relay.
pub type Admission = Arc<dyn Fn(&NodePublic) -> bool + Send + Sync>;

/// How many connections there may be, and what they may send.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// All connections.
    pub connections: usize,
    /// Connections from one IPv4 address or IPv6 /64. Many nodes may share one behind a NAT, or in one pod.
    pub connections_per_source: usize,
    /// How many bytes of packets clients may send. Who sends more is read from more slowly.
    pub rates: Rates,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            connections_per_source: 4_096,
            rates: Rates::default(),
        }
    }
}

/// Settings of a relay.
#[derive(Clone)]
pub struct RelayConfig {
    /// TCP address of DERP. Port 0: any free one.
    pub listen: SocketAddr,
    /// UDP address of STUN. `None`: no STUN. Port 0: any free one.
    pub stun_listen: Option<SocketAddr>,
    /// Under which name or IP address nodes reach the relay.
    pub hostname: String,
    /// Where the relay keeps its key and certificate.
    pub data_dir: PathBuf,
    /// Region of the relay.
    pub region_id: RegionId,
    /// Which nodes may use the relay. `None`: all.
    pub admission: Option<Admission>,
    /// How many connections there may be.
    pub limits: Limits,
}

impl fmt::Debug for RelayConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayConfig")
            .field("listen", &self.listen)
            .field("stun_listen", &self.stun_listen)
            .field("hostname", &self.hostname)
            .field("data_dir", &self.data_dir)
            .field("region_id", &self.region_id)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl RelayConfig {
    /// A relay on free ports of the loopback interface, for tests, which keeps its key in `data_dir`.
    #[must_use]
    pub fn on_loopback(data_dir: PathBuf) -> Self {
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            listen,
            stun_listen: Some(listen),
            hostname: listen.ip().to_string(),
            data_dir,
            region_id: RegionId(900),
            admission: None,
            limits: Limits::default(),
        }
    }
}

/// Why a relay does not start.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// It has no key or certificate.
    #[error("the relay has no identity")]
    Identity(#[from] IdentityError),
    /// Its certificate is of no use.
    #[error("the relay's certificate is of no use; remove relay.json from its data directory")]
    Tls(#[source] rustls::Error),
    /// It cannot listen.
    #[error("the relay cannot listen on {protocol} {address}")]
    Listen {
        /// TCP or UDP.
        protocol: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The task that reads its files was stopped.
    #[error("the start of the relay was stopped")]
    Stopped,
}

/// A DERP relay with a STUN server.
pub struct Relay;

impl Relay {
    /// Starts a relay, which runs until `stop`.
    ///
    /// # Errors
    /// When it cannot listen, or has no key or certificate.
    pub async fn start(config: RelayConfig, stop: CancellationToken) -> Result<RelayHandle, RelayError> {
        let (data_dir, hostname) = (config.data_dir.clone(), config.hostname.clone());
        let identity = tokio::task::spawn_blocking(move || Identity::load_or_create(&data_dir, &hostname))
            .await
            .map_err(|_| RelayError::Stopped)??;
        let pin = identity.pin();
        let tls =
            Arc::new(tls_config(identity.certificate, identity.certificate_key).map_err(RelayError::Tls)?);

        let (listener, address) = listen_tcp(config.listen).map_err(|source| RelayError::Listen {
            protocol: "TCP",
            address: config.listen,
            source,
        })?;
        let stun = config
            .stun_listen
            .map(|address| {
                listen_udp(address).map_err(|source| RelayError::Listen {
                    protocol: "UDP",
                    address,
                    source,
                })
            })
            .transpose()?;

        let shared = Arc::new(Shared::new(identity.key, config.admission, config.limits));
        let tasks = TaskTracker::new();
        let stun_port = stun.as_ref().map(|(_, address)| address.port());
        if let Some((socket, _)) = stun {
            tasks.spawn(stun::serve(socket, shared.counters.clone(), stop.clone()));
        }
        tasks.spawn(accept(listener, tls, shared.clone(), tasks.clone(), stop));
        tasks.close();

        let node = derp_node(config.region_id, &config.hostname, pin, address.port(), stun_port);
        tracing::info!(%address, hostname = config.hostname, "relay started");
        Ok(RelayHandle {
            node,
            address,
            shared,
            tasks,
        })
    }
}

/// A running relay. Clones are handles of the same one.
#[derive(Clone)]
pub struct RelayHandle {
    node: DerpNode,
    address: SocketAddr,
    shared: Arc<Shared>,
    tasks: TaskTracker,
}

impl RelayHandle {
    /// The relay as it stands in a DERP map, with its certificate pinned.
    #[must_use]
    pub fn derp_node(&self) -> DerpNode {
        self.node.clone()
    }

    /// The TCP address on which it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The relay's public key.
    #[must_use]
    pub fn key(&self) -> NodePublic {
        self.shared.key().public()
    }

    /// What the relay has done so far.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.shared.metrics()
    }

    /// Waits until all connections are closed, after the stop token was cancelled.
    pub async fn stopped(&self) {
        self.tasks.wait().await;
    }
}

fn derp_node(
    region_id: RegionId,
    hostname: &str,
    pin: String,
    derp_port: u16,
    stun_port: Option<u16>,
) -> DerpNode {
    // A client that is told the address needs no resolver, and does not try the other family.
    let (ipv4, ipv6) = match as_address(hostname) {
        Some(IpAddr::V4(ip)) => (ip.to_string(), "none".to_owned()),
        Some(IpAddr::V6(ip)) => ("none".to_owned(), ip.to_string()),
        None => Default::default(),
    };
    DerpNode {
        name: format!("{region_id}a"),
        region_id,
        host_name: hostname.to_owned(),
        cert_name: pin,
        ipv4,
        ipv6,
        stun_port: stun_port.map_or(-1, i32::from),
        derp_port: derp_port.into(),
        ..DerpNode::default()
    }
}

fn tls_config(
    certificate: rustls_pki_types::CertificateDer<'static>,
    key: rustls_pki_types::PrivateKeyDer<'static>,
) -> Result<rustls::ServerConfig, rustls::Error> {
    let mut config = rustls::ServerConfig::builder_with_provider(tailwharf_tls::provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    // Clients stay for days and do not resume, so a session that is kept is memory lost.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn listen_tcp(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let socket = bind(address, Type::STREAM, Protocol::TCP)?;
    socket.listen(TCP_BACKLOG)?;
    let listener = TcpListener::from_std(socket.into())?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

fn listen_udp(address: SocketAddr) -> io::Result<(UdpSocket, SocketAddr)> {
    let socket = UdpSocket::from_std(bind(address, Type::DGRAM, Protocol::UDP)?.into())?;
    let address = socket.local_addr()?;
    Ok((socket, address))
}

/// A socket bound to `address`. `[::]` takes IPv4 too.
fn bind(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

async fn accept(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    shared: Arc<Shared>,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, source) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(slot) = Slot::claim(&shared, site(source.ip())) else {
            tracing::debug!(%source, "refused a connection: too many");
            continue;
        };
        let (tls, stop) = (tls.clone(), stop.clone());
        tasks.spawn(async move {
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = serve(stream, slot.source, tls, &slot.shared) => ended,
            };
            if let Err(ended) = ended {
                slot.shared.note_end(source, &ended);
            }
        });
    }
}

/// Why a TCP connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error("no TLS connection came about within {} seconds", TLS_TIMEOUT.as_secs())]
    TlsTimeout,
    #[error("the TLS handshake failed")]
    Tls(#[source] io::Error),
    #[error("the HTTP request is of no use")]
    Http(#[source] hyper::Error),
    #[error(transparent)]
    Derp(Ended),
}

async fn serve(
    stream: TcpStream,
    source: IpAddr,
    tls: Arc<rustls::ServerConfig>,
    shared: &Arc<Shared>,
) -> Result<(), ServeError> {
    tune(&stream);
    let stream = timeout(TLS_TIMEOUT, tailwharf_tls::accept(stream, tls))
        .await
        .map_err(|_| ServeError::TlsTimeout)?
        .map_err(ServeError::Tls)?;
    // Boxed: HTTP is over after the first moments, and a connection stays for days.
    let upgraded = Box::pin(http::serve(stream, shared.key().public()))
        .await
        .map_err(ServeError::Http)?;
    let Some(Upgraded { stream, early, form }) = upgraded else {
        return Ok(());
    };
    let served = match form {
        Form::Plain => connection::serve(stream, source, early, shared).await,
        Form::WebSocket => {
            let stream = WebSocket::new(stream, &early);
            Box::pin(connection::serve(stream, source, Bytes::new(), shared)).await
        }
    };
    served.map_err(ServeError::Derp)
}

/// Packets must not wait for each other, and a peer that vanished must be noticed. Both only make things better, so a system
/// that refuses is no reason to refuse the client.
fn tune(stream: &TcpStream) {
    let keepalive = TcpKeepalive::new()
        .with_time(TCP_KEEPALIVE)
        .with_interval(TCP_KEEPALIVE / 4);
    let tuned = stream
        .set_nodelay(true)
        .and_then(|()| SockRef::from(stream).set_tcp_keepalive(&keepalive));
    if let Err(error) = tuned {
        tracing::debug!(%error, "cannot set socket options");
    }
}
