//! `tailwharf node`: joins the machine it runs on to a tailnet: by a network interface of the kernel, or in userspace by proxies and port forwards.

mod forward;
mod http;
mod listen;
mod socks;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::api::{NodeConfig, NodeStatus, PathKind, PeerPath, Phase, StateStore, TailnetNode};
use crate::host::{Host, HostConfig};
use crate::http_proxy::HttpProxies;
use crate::local;
use crate::node::Node;
use crate::offload::OffloadSwitches;
use crate::splice::{Buffers, IdleLimits, SpliceError, Traffic, splice};
use crate::store::{FileStore, MemoryStore};
use crate::tun;

pub use forward::{Forward, ParseForwardError, Protocol, Serve};

/// Connections carried at the same time, over all listeners.
const MAX_CONNECTIONS: usize = 16_384;

/// How long a client of one of the proxies may take to say where it wants to go.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// What `tailwharf node` is asked to do.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How the node joins.
    pub node: NodeConfig,
    /// The file that keeps the node's keys; without one the node is new at each start.
    pub state_file: Option<PathBuf>,
    /// PEM bundle of certificate authorities trusted beside those of the system.
    pub ca_file: Option<PathBuf>,
    /// HTTP proxies on the way to control server and relays.
    pub http_proxies: HttpProxies,
    /// Where a SOCKS5 proxy into the tailnet listens.
    pub socks5_listen: Option<SocketAddr>,
    /// Where an HTTP proxy into the tailnet listens.
    pub http_proxy_listen: Option<SocketAddr>,
    /// Where DNS queries of this machine are answered, over UDP and TCP.
    pub dns_listen: Option<SocketAddr>,
    /// Local ports that lead into the tailnet.
    pub forwards: Vec<Forward>,
    /// Ports of the node that lead to local services.
    pub serves: Vec<Serve>,
    /// Look for direct paths to peers, see [`HostConfig::direct`].
    pub direct: bool,
    /// The network interface to make, through which the machine's packets reach the tailnet.
    pub tun: Option<String>,
    /// How the machine takes part in the tailnet. Without a device, that concerns what the node routes for peers, and what its proxies reach.
    pub system: tun::TunSettings,
    /// Which work the kernel may do for whole batches of packets.
    pub offloads: OffloadSwitches,
    /// The socket for `tailwharf status` and `tailwharf ping`.
    pub socket: LocalSocket,
    /// Log the node out at the end, so that the tailnet forgets it.
    pub logout_on_exit: bool,
}

/// Where a node answers other processes.
#[derive(Debug, Clone)]
pub struct LocalSocket {
    /// The socket's file.
    pub path: PathBuf,
    /// Whether the node ends when it cannot listen there. Otherwise it goes on without.
    pub required: bool,
}

/// Where a client of a proxy wants to go.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    Addr(SocketAddr),
    Name(String, u16),
}

impl Target {
    fn new(host: &str, port: u16) -> Self {
        let unbracketed = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(host);
        match IpAddr::from_str(unbracketed) {
            Ok(addr) => Self::Addr(SocketAddr::new(addr, port)),
            Err(_) => Self::Name(host.to_owned(), port),
        }
    }
}

/// What the tasks of one run share.
#[derive(Clone)]
struct Shared {
    node: Arc<Node>,
    connections: Arc<Semaphore>,
    buffers: Arc<Buffers>,
    traffic: Arc<Traffic>,
}

impl Shared {
    /// Carries bytes between the tailnet and this machine until both sides have ended.
    async fn carry(
        &self,
        tailnet: crate::TcpStream,
        local: impl AsyncRead + AsyncWrite,
    ) -> Result<(), SpliceError> {
        splice(
            tailnet,
            local,
            &self.buffers,
            &self.traffic,
            IdleLimits::default(),
        )
        .await
    }

    async fn dial(&self, target: &Target) -> Result<crate::TcpStream, crate::DialError> {
        match target {
            Target::Addr(addr) => self.node.dial_tcp(*addr).await,
            Target::Name(name, port) => self.node.dial_name(name, *port).await,
        }
    }
}

/// Runs a node until `stop` is cancelled.
///
/// # Errors
/// When a file, a listen address or the control URL cannot be used, or when the control server refuses the node.
pub async fn run(settings: Settings, stop: CancellationToken) -> anyhow::Result<()> {
    run_beside(settings, |_| std::future::pending(), stop).await
}

/// Runs a node, and something that uses it, until that ends or `stop` is cancelled.
///
/// # Errors
/// As [`run`], and those of what runs beside it.
pub async fn run_beside<F>(
    settings: Settings,
    beside: impl FnOnce(Node) -> F,
    stop: CancellationToken,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let extra_ca = match &settings.ca_file {
        Some(path) => Some(
            tokio::fs::read(path)
                .await
                .with_context(|| format!("reading {}", path.display()))?,
        ),
        None => None,
    };
    let mut config = settings.node;
    config.resolves_for_peers = settings.system.advertise_exit_node;
    if settings.tun.is_none() {
        config.routes = settings.system.advertised();
        config.accept_routes = settings.system.accept_routes;
        config.exit_node.clone_from(&settings.system.exit_node);
    }
    let store: Arc<dyn StateStore> = match settings.state_file {
        Some(path) => Arc::new(FileStore::new(path, &config.control_url, &config.hostname)),
        None => Arc::new(MemoryStore::default()),
    };
    let host = Host::new(&HostConfig {
        extra_ca_pem: extra_ca,
        http_proxies: settings.http_proxies,
        direct: settings.direct,
        offloads: settings.offloads,
        ..HostConfig::default()
    })?;
    let node = Arc::new(match &settings.tun {
        Some(name) => {
            let device = tun::Device::open(name, settings.offloads)?;
            host.start_with_tun(config, store, device, settings.system)
                .await?
        }
        None => host.start(config, store).await?,
    });
    let shared = Shared {
        node: node.clone(),
        connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        buffers: Arc::default(),
        traffic: Arc::default(),
    };

    let mut tasks = JoinSet::new();
    let started = async {
        if let Some(addr) = settings.socks5_listen {
            socks::start(&mut tasks, addr, shared.clone()).await?;
        }
        if let Some(addr) = settings.http_proxy_listen {
            http::start(&mut tasks, addr, shared.clone()).await?;
        }
        if let Some(addr) = settings.dns_listen {
            start_dns(&mut tasks, addr, &node).await?;
        }
        for forward in settings.forwards {
            forward::start_forward(&mut tasks, forward, shared.clone()).await?;
        }
        for serve in settings.serves {
            forward::start_serve(&mut tasks, serve, shared.clone())?;
        }
        anyhow::Ok(())
    }
    .await;

    let started = match started {
        Ok(()) => start_local(&mut tasks, &settings.socket, &node),
        failed => failed,
    };
    let ended = match started {
        Ok(()) => {
            tokio::select! {
                ended = watch_status(node.status(), &stop) => ended,
                ended = beside(Node::clone(&node)) => ended,
            }
        }
        Err(error) => Err(error),
    };
    tasks.shutdown().await;
    if settings.logout_on_exit {
        node.logout().await.context("logging out")?;
    } else {
        node.shutdown().await;
    }
    ended
}

/// Answers other processes of the user.
fn start_local(tasks: &mut JoinSet<()>, socket: &LocalSocket, node: &Arc<Node>) -> anyhow::Result<()> {
    match local::Server::bind(&socket.path) {
        Ok(server) => {
            tasks.spawn(server.run(node.clone()));
            Ok(())
        }
        Err(error) if socket.required => {
            Err(error).with_context(|| format!("listening at {}", socket.path.display()))
        }
        Err(error) => {
            tracing::warn!(socket = %socket.path.display(), %error, "status and ping are not served; give another socket with --socket");
            Ok(())
        }
    }
}

/// Answers DNS queries on one address, over UDP and TCP.
async fn start_dns(tasks: &mut JoinSet<()>, addr: SocketAddr, node: &Node) -> anyhow::Result<()> {
    let listening = || format!("listening for DNS on {addr}");
    let udp = UdpSocket::bind(addr).await.with_context(listening)?;
    let tcp = TcpListener::bind(udp.local_addr()?)
        .await
        .with_context(listening)?;
    tracing::info!(addr = %udp.local_addr()?, "DNS");
    let (over_udp, over_tcp) = (node.resolver().clone(), node.resolver().clone());
    tasks.spawn(async move { over_udp.serve_udp(udp).await });
    tasks.spawn(async move { over_tcp.serve_tcp(tcp).await });
    Ok(())
}

/// Tells each change of the status until `stop`; ends with an error when the node is refused.
async fn watch_status(
    mut status: watch::Receiver<NodeStatus>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let mut told = None;
    let mut paths: Vec<PeerPath> = Vec::new();
    let mut offloads = Vec::new();
    loop {
        let now = status.borrow_and_update().clone();
        if told.as_ref() != Some(&now.phase) {
            tell(&now);
            if let Phase::Refused { reason } = &now.phase {
                anyhow::bail!("the control server refused this node: {reason}");
            }
            told = Some(now.phase.clone());
        }
        if offloads != now.offloads {
            for (offload, state) in &now.offloads {
                tracing::info!(offload, %state, "offload");
            }
            offloads = now.offloads;
        }
        for path in now.paths.iter().filter(|path| !paths.contains(path)) {
            tell_path(path);
        }
        paths = now.paths;
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = status.changed() => if changed.is_err() { return Ok(()) },
        }
    }
}

fn tell_path(path: &PeerPath) {
    let peer = &path.fqdn;
    match path.kind {
        PathKind::Direct { address } => tracing::info!(peer, %address, "direct path"),
        PathKind::Relay { region, why } => tracing::info!(peer, %region, %why, "path through the relay"),
    }
}

fn tell(status: &NodeStatus) {
    match &status.phase {
        Phase::Starting => tracing::info!("connecting to the control server"),
        Phase::NeedsLogin { url } => tracing::warn!("open this page and sign in: {url}"),
        Phase::NeedsApproval => {
            tracing::warn!("waiting for an administrator of the tailnet to approve this node");
        }
        Phase::Refused { reason } => tracing::error!(reason, "the control server refused this node"),
        Phase::Registered => tracing::info!("registered"),
        Phase::Online => {
            let addresses = status
                .addresses
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(" ");
            tracing::info!(
                name = status.fqdn.as_deref().unwrap_or_default(),
                addresses,
                "online"
            );
        }
        Phase::Disconnected { reason } => tracing::warn!(reason, "the control server is out of reach"),
        Phase::Stopped => tracing::info!("stopped"),
    }
}
