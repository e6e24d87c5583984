//! Listeners, limits, and what all connections share.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rand::Rng;
use rand::rngs::OsRng;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tailwharf_wire::derp::{DerpError, RawFrame, ServerInfo};
use tailwharf_wire::key::{NodePrivate, NodePublic};
use tailwharf_wire::tailcfg::{DerpNode, RegionId};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::connection::{self, Ended, Link};
use crate::http;
use crate::identity::{Identity, IdentityError, as_address};
use crate::machine::{ClientId, Command, Machine, Rates};
use crate::metrics::{Metrics, ShellCounters};
use crate::stun;

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

/// A running relay.
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
        self.shared.key.public()
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
enum ServeError {
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
    let upgraded = Box::pin(http::serve(stream, shared.key.public()))
        .await
        .map_err(ServeError::Http)?;
    match upgraded {
        Some(upgraded) => connection::serve(upgraded.stream, source, upgraded.early, shared)
            .await
            .map_err(ServeError::Derp),
        None => Ok(()),
    }
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

/// What all connections share.
pub(crate) struct Shared {
    key: NodePrivate,
    admission: Option<Admission>,
    limits: Limits,
    counters: Arc<ShellCounters>,
    state: Mutex<State>,
}

struct State {
    machine: Machine,
    links: HashMap<ClientId, Arc<Link>>,
    sources: HashMap<IpAddr, usize>,
    connections: usize,
}

impl State {
    fn handle_frames(&mut self, id: ClientId, rest: &mut &mut [u8], now: Instant) -> Result<(), DerpError> {
        while let Some(mut frame) = RawFrame::split_off(rest)? {
            match frame.send_packet() {
                Some((to, packet)) => self.machine.handle_packet(id, to, packet, now),
                None => self.machine.handle_frame(id, frame.to_frame()?, now),
            }
        }
        Ok(())
    }

    /// Obeys the machine.
    fn obey(&mut self) {
        while let Some(command) = self.machine.poll_command() {
            match command {
                Command::Wake(id) => {
                    if let Some(link) = self.links.get(&id) {
                        link.wake();
                    }
                }
                Command::Close(id, reason) => {
                    if let Some(link) = self.links.remove(&id) {
                        link.close(reason);
                    }
                }
            }
        }
    }
}

impl Shared {
    pub(crate) fn new(key: NodePrivate, admission: Option<Admission>, limits: Limits) -> Self {
        Self {
            key,
            admission,
            limits,
            counters: Arc::default(),
            state: Mutex::new(State {
                machine: Machine::new(limits.rates, OsRng.r#gen()),
                links: HashMap::new(),
                sources: HashMap::new(),
                connections: 0,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn key(&self) -> &NodePrivate {
        &self.key
    }

    pub(crate) fn admits(&self, key: &NodePublic) -> bool {
        let admitted = self.admission.as_ref().is_none_or(|admits| admits(key));
        if !admitted {
            self.counters.refused_admission.add();
        }
        admitted
    }

    /// What each client is told about its limits.
    pub(crate) fn info(&self) -> ServerInfo {
        connection::info(self.limits.rates.client)
    }

    pub(crate) fn connect(
        &self,
        key: NodePublic,
        source: IpAddr,
        can_ack_pings: bool,
        link: Arc<Link>,
    ) -> ClientId {
        let mut state = self.state();
        let id = state.machine.connect(key, source, can_ack_pings, now());
        state.links.insert(id, link);
        state.obey();
        id
    }

    pub(crate) fn disconnect(&self, id: ClientId) {
        let mut state = self.state();
        state.links.remove(&id);
        state.machine.disconnect(id);
        state.obey();
    }

    /// Takes the frames that are complete off the begin of `received`. Returns how many bytes they are.
    pub(crate) fn handle_frames(&self, id: ClientId, received: &mut [u8]) -> Result<usize, DerpError> {
        let now = now();
        let len = received.len();
        let mut rest = received;
        let mut state = self.state();
        let handled = state.handle_frames(id, &mut rest, now);
        state.obey();
        handled.map(|()| len - rest.len())
    }

    /// Until when nothing must be read from a client.
    pub(crate) fn paced(&self, id: ClientId) -> Option<tokio::time::Instant> {
        if self.limits.rates.client.is_none() && self.limits.rates.source.is_none() {
            return None;
        }
        self.state().machine.paced(id, now()).map(Into::into)
    }

    pub(crate) fn take(&self, id: ClientId, out: &mut BytesMut) {
        self.state().machine.take(id, out);
    }

    /// When [`Shared::handle_timeout`] has to be called. A client that the machine has forgotten is about to be closed.
    pub(crate) fn timeout(&self, id: ClientId) -> Instant {
        self.state().machine.timeout(id).unwrap_or_else(now)
    }

    pub(crate) fn handle_timeout(&self, id: ClientId) {
        let mut state = self.state();
        state.machine.handle_timeout(id, now());
        state.obey();
    }

    fn note_end(&self, source: SocketAddr, ended: &ServeError) {
        let is_fault = match ended {
            ServeError::TlsTimeout | ServeError::Tls(_) | ServeError::Http(_) => true,
            ServeError::Derp(ended) => ended.is_fault(),
        };
        if is_fault {
            self.counters.faulty.add();
        }
        let cause = std::error::Error::source(ended).map(ToString::to_string);
        tracing::debug!(%source, reason = %ended, cause, "connection ended");
    }

    pub(crate) fn metrics(&self) -> Metrics {
        let state = self.state();
        Metrics {
            clients: state.machine.len() as u64,
            homes: state.machine.homes() as u64,
            connections: state.connections as u64,
            accepted: self.counters.accepted.get(),
            refused_limit: self.counters.refused_limit.get(),
            refused_admission: self.counters.refused_admission.get(),
            faulty: self.counters.faulty.get(),
            carried: state.machine.counters(),
            stun_answered: self.counters.stun_answered.get(),
            stun_ignored: self.counters.stun_ignored.get(),
        }
    }
}

/// The present time, which tests may stop.
fn now() -> Instant {
    tokio::time::Instant::now().into()
}

/// What counts as one source: an IPv4 address, or the network that is given to one IPv6 site.
fn site(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

/// The right to one connection.
struct Slot {
    shared: Arc<Shared>,
    source: IpAddr,
}

impl Slot {
    /// `None`: there are too many connections, of all or of this source.
    fn claim(shared: &Arc<Shared>, source: IpAddr) -> Option<Self> {
        let mut state = shared.state();
        let of_source = state.sources.get(&source).copied().unwrap_or_default();
        if state.connections >= shared.limits.connections || of_source >= shared.limits.connections_per_source
        {
            shared.counters.refused_limit.add();
            return None;
        }
        state.connections += 1;
        state.sources.insert(source, of_source + 1);
        shared.counters.accepted.add();
        Some(Self {
            shared: shared.clone(),
            source,
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.connections -= 1;
        if let Some(of_source) = state.sources.get_mut(&self.source) {
            *of_source -= 1;
            if *of_source == 0 {
                state.sources.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_counted_by_site() {
        let site = |ip: &str| site(ip.parse().unwrap()).to_string();
        assert_eq!(site("192.0.2.7"), "192.0.2.7");
        assert_eq!(site("::ffff:192.0.2.7"), "192.0.2.7");
        assert_eq!(site("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
    }
}
