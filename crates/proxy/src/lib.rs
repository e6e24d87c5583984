//! The pod that hosts tailnet identities and carries their traffic: one member of a pool.
//!
//! Start reading at `member.rs`, which keeps two pods from running one node, then `reconcile.rs` (what a pod has to do),
//! `pool.rs` (how it does it), `hosting.rs` (the life of one identity) and `listeners.rs` (its traffic).
#![forbid(unsafe_code)]

mod assign;
mod backend;
mod board;
mod carrier;
mod certificates;
mod cluster;
mod egress;
mod hosting;
mod limits;
mod listeners;
mod member;
mod membership;
mod metrics;
mod pool;
mod proxy_protocol;
mod reconcile;
mod serving;
#[cfg(test)]
mod simulation;
mod sockets;
mod state;
mod status;
mod store;
mod tcp;
mod udp;
mod web;
mod writer;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::Context;
use futures::future::BoxFuture;
use kube::Client;
use tailwharf_node::{Host, HostConfig, HttpProxies, OffloadSwitches};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::info;

pub use crate::hosting::Device;
pub use crate::limits::Limits;

/// What a pool member has to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Name of the pod, which is that of its member Lease.
    pub pod_name: String,
    /// UID of the pod, the holder of that Lease.
    pub pod_uid: String,
    /// Addresses of the pod in the cluster.
    pub pod_addresses: Vec<IpAddr>,
    /// Namespace of the pod and of the identities.
    pub namespace: String,
    /// The pool whose identities this pod may host.
    pub pool: String,
    /// Where `/healthz`, `/readyz` and `/metrics` are served; port 9002 by default.
    pub listen: SocketAddr,
    /// PEM bundle of certificate authorities trusted for control servers beside those of the system.
    pub extra_ca_pem: Option<Vec<u8>>,
    /// Which work the kernel may do for whole batches of packets.
    pub offloads: OffloadSwitches,
    /// HTTP proxies on the way to control server and relays.
    pub http_proxies: HttpProxies,
    /// UDP port of direct paths, for the first node; others have one of their own.
    pub udp_port: Option<u16>,
    /// Nodes look for no direct paths: all packets go through relays.
    pub relay_only: bool,
    /// How much the pod takes on.
    pub limits: Limits,
}

/// Something that runs on the devices of a pod besides the listeners of their identities.
pub trait DeviceService: Send + Sync + 'static {
    /// Serves on a device whose node was started, until `end`.
    fn serve(&self, device: Device, end: CancellationToken) -> BoxFuture<'static, ()>;

    /// Appends its counters in the text form for Prometheus.
    fn render(&self, out: &mut String);
}

/// Runs a pool member until `stop`, then hands its identities over and gives its Lease back.
///
/// # Errors
/// When it cannot start, and when an identity could not be ended after the member Lease was lost: the process must exit
/// then, as another pod takes over.
pub async fn run(
    settings: Settings,
    service: Option<Arc<dyn DeviceService>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let config = kube::Config::infer()
        .await
        .context("no Kubernetes cluster: run in a pod, or set KUBECONFIG to a kubeconfig file")?;
    let client = Client::try_from(config).context("cannot set up the connection to the API server")?;
    let listener = TcpListener::bind(settings.listen)
        .await
        .with_context(|| format!("cannot listen on {}", settings.listen))?;
    run_with(settings, service, client, listener, stop).await
}

/// As [`run`], with the connection to the API server and the listener for probes given.
///
/// # Errors
/// As [`run`].
pub async fn run_with(
    settings: Settings,
    service: Option<Arc<dyn DeviceService>>,
    client: Client,
    listener: TcpListener,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let metrics = Arc::new(metrics::Metrics::default());
    let board = Arc::new(board::Board::default());
    let cluster = Arc::new(cluster::Cluster::new(
        client,
        &settings.namespace,
        &settings.pod_name,
    ));
    let member = membership::Member {
        pod: settings.pod_name.clone(),
        uid: settings.pod_uid.clone(),
        pool: settings.pool.clone(),
    };
    let issuer = Arc::new(certificates::Issuer::new(
        cluster.clone(),
        &settings.pool,
        metrics.certificates.clone(),
    ));
    let (inquiries, inquired) = mpsc::unbounded_channel();
    let keeper = membership::Keeper::new(cluster.clone(), metrics.clone(), member, inquired);
    let membership = keeper.membership();
    let shared = Arc::new(hosting::Shared {
        cluster,
        nodes: Host::new(&HostConfig {
            extra_ca_pem: settings.extra_ca_pem,
            offloads: settings.offloads,
            http_proxies: settings.http_proxies,
            direct: !settings.relay_only,
            ..HostConfig::default()
        })
        .context("cannot set up tailnet nodes")?,
        buffers: Arc::default(),
        metrics: metrics.clone(),
        limits: settings.limits,
        room: Arc::new(Semaphore::new(settings.limits.connections)),
        pod_uid: settings.pod_uid,
        pod_addresses: settings.pod_addresses,
        udp_port: settings.udp_port,
        service: service.clone(),
        issuer,
    });
    let server = board::Server {
        board: board.clone(),
        metrics,
        membership: membership.clone(),
        service,
    };
    let (pool, reports) = pool::Pool::new(shared, settings.pool.clone(), board, membership, inquiries);

    let leave = CancellationToken::new();
    let keeping = tokio::spawn(keeper.run(stop.clone(), leave.clone()));
    let serving = tokio::spawn(server.serve(listener));
    info!(
        pod = settings.pod_name,
        pool = settings.pool,
        "the pool member is started"
    );
    let outcome = pool.run(reports, stop).await;
    serving.abort();
    if outcome.is_ok() {
        leave.cancel();
        keeping.await.context("the keeper of the member Lease failed")?;
    } else {
        // Something may still run here until the process ends: the Lease is not given back, it has to run out.
        keeping.abort();
    }
    outcome
}
