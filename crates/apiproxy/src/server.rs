//! Connections of clients: where they come from, how they are secured, and what all of them share.

use std::fmt::Write as _;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use hyper::rt::{Read, Write};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls::server::ResolvesServerCert;
use tailwharf_node::splice::Buffers;
use tailwharf_node::{CheckError, WhoIs};
use tailwharf_wire::tailcfg::{CheckRequest, CheckResponse};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::{Audit, AuditError, Output, WebhookSettings};
use crate::caller::SystemGroups;
use crate::check::Confirmations;
use crate::open::OpenStreams;
use crate::service::Connection;
use crate::strict::{Finding, Strict};
use crate::upstream::{CredentialError, Upstream, UpstreamSettings};

/// Time for a TLS handshake, and for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for requests under way when the proxy stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the last audit lines to get to the webhook.
const FAREWELL: Duration = Duration::from_secs(5);
/// Connections at once.
const MAX_CONNECTIONS: usize = 16_384;
/// Requests at once on one HTTP/2 connection: an informer holds one for each of its resources.
const MAX_STREAMS: u32 = 1_000;
/// What one request may send ahead of the API server.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The same for all requests of a connection.
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// Bytes of an answer that wait for a slow reader.
const SEND_AHEAD: usize = 64 * 1024;
/// Most headers of a request.
const MAX_HEADERS: usize = 256;

/// Connections from the tailnet, or from a test.
pub trait Listener: Send + 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection, where it comes from, and to which of our addresses; `None` when there will be no more.
    fn accept(&mut self) -> impl Future<Output = Option<(Self::Stream, SocketAddr, IpAddr)>> + Send;
}

/// A connection to somebody.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// What the tailnet knows of connections and of this device.
pub trait Tailnet: Send + Sync + 'static {
    /// Who is behind `remote`, with what the policy grants at `local`.
    fn whois(&self, remote: SocketAddr, local: IpAddr) -> Option<WhoIs>;

    /// Whether a client may call this device by `host`, a name or address with or without a port.
    fn is_called(&self, host: &str) -> bool;

    /// The device's full name, for messages.
    fn name(&self) -> String;

    /// Asks the control server whether a person has signed in freshly.
    fn check(&self, request: CheckRequest) -> BoxFuture<'static, Result<CheckResponse, CheckError>>;

    /// Connects to a device of the tailnet.
    fn dial(&self, to: SocketAddr) -> BoxFuture<'static, std::io::Result<Box<dyn Stream>>>;
}

/// What an API-server proxy has to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The API server. With a token file, callers are impersonated; without, they bring credentials of their own.
    pub upstream: UpstreamSettings,
    /// Groups of the cluster itself that the policy may grant.
    pub system_groups: SystemGroups,
    /// Whether the device and the request become part of the user. The account needs the right to impersonate these extras.
    pub extras: bool,
    /// Watches and sessions that one user may have open.
    pub streams_per_user: usize,
    /// How often open streams are compared with the policy.
    pub review_interval: Duration,
    /// Where the audit log goes.
    pub audit: Option<Output>,
    /// Where it is sent besides.
    pub webhook: Option<WebhookSettings>,
}

impl Settings {
    /// Whether the proxy speaks for its callers.
    pub(crate) fn impersonates(&self) -> bool {
        self.upstream.token_file.is_some()
    }
}

/// Counters since the start.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Requests that came in.
    pub requests: AtomicU64,
    /// Requests that the proxy itself refused.
    pub refused: AtomicU64,
}

/// The proxy could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file is not usable.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// The audit log is not usable.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// A port of the device cannot be used.
    #[error(transparent)]
    Socket(#[from] tailwharf_node::SocketError),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
}

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) tailnet: Arc<dyn Tailnet>,
    pub(crate) upstream: Upstream,
    pub(crate) audit: Audit,
    pub(crate) open: Arc<OpenStreams>,
    pub(crate) confirmations: Confirmations,
    pub(crate) buffers: Arc<Buffers>,
    pub(crate) metrics: Metrics,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
}

/// A proxy in front of one API server, for any number of listeners.
#[derive(Clone)]
pub struct Proxy(Arc<Shared>);

impl Proxy {
    /// Reads files and opens the audit log. `tailnet` tells who calls.
    ///
    /// # Errors
    /// [`StartError`] names what cannot be used.
    pub fn new(settings: Settings, tailnet: Arc<dyn Tailnet>) -> Result<Self, StartError> {
        let stop = CancellationToken::new();
        Ok(Self(Arc::new(Shared {
            upstream: Upstream::new(&settings.upstream)?,
            audit: Audit::open(settings.audit.as_ref(), settings.webhook.as_ref())?,
            settings,
            tailnet,
            open: Arc::new(OpenStreams::new(stop.clone())),
            confirmations: Confirmations::default(),
            buffers: Arc::default(),
            metrics: Metrics::default(),
            tasks: TaskTracker::new(),
            stop,
        })))
    }

    /// Counters since the start.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Watches and sessions that are open.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.0.open.len()
    }

    /// Audit lines that were lost because their output did not take them.
    #[must_use]
    pub fn audit_lines_dropped(&self) -> u64 {
        self.0.audit.dropped()
    }

    /// Appends counters in the text form for Prometheus.
    pub fn render(&self, out: &mut String) {
        let name = "tailwharf_apiserver_proxy";
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        // Writing to a String cannot fail.
        let _ = write!(
            out,
            "# HELP {name}_requests_total Requests that came in.\n# TYPE {name}_requests_total counter\n{name}_requests_total {}\n\
             # HELP {name}_refused_total Requests that the proxy itself refused.\n# TYPE {name}_refused_total counter\n{name}_refused_total {}\n\
             # HELP {name}_streams Watches and sessions that are open.\n# TYPE {name}_streams gauge\n{name}_streams {}\n\
             # HELP {name}_audit_lines_dropped_total Audit lines that were lost.\n# TYPE {name}_audit_lines_dropped_total counter\n\
             {name}_audit_lines_dropped_total {}\n",
            count(&self.0.metrics.requests),
            count(&self.0.metrics.refused),
            self.open_streams(),
            self.audit_lines_dropped(),
        );
        self.0.audit.render(out);
    }

    /// Looks after files, idle connections and open streams until `stop`; then ends requests under way. To be run once.
    pub async fn maintain(&self, stop: CancellationToken) {
        let shared = &self.0;
        let review = async {
            let mut ticks = interval(shared.settings.review_interval);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let whois = |remote, local| shared.tailnet.whois(remote, local);
                shared.open.review(whois, &shared.settings.system_groups);
            }
        };
        let over = CancellationToken::new();
        let mut delivering = std::pin::pin!(shared.audit.deliver(over.clone()));
        tokio::select! {
            () = stop.cancelled() => {}
            () = shared.upstream.maintain() => {}
            () = review => {}
            () = delivering.as_mut() => {}
        }
        shared.stop.cancel();
        shared.tasks.close();
        if timeout(STOP_TIMEOUT, shared.tasks.wait()).await.is_err() {
            tracing::warn!("requests that were still under way are cut off");
        }
        shared.audit.flush().await;
        over.cancel();
        // What is not delivered by then waits for the next start.
        let _ = timeout(FAREWELL, delivering).await;
    }

    /// Serves a listener until it ends or the proxy stops: over TLS with the certificates that `certificates` has, or as it is, over
    /// what the tailnet encrypts anyway.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub async fn serve<L: Listener>(
        &self,
        mut listener: L,
        certificates: Option<Arc<dyn ResolvesServerCert>>,
    ) -> Result<(), StartError> {
        let tls = certificates.map(tls).transpose()?;
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(place) = room.clone().acquire_owned().await else {
                return Ok(());
            };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.0.stop.cancelled() => None,
            };
            let Some((stream, remote, local)) = accepted else {
                return Ok(());
            };
            let (shared, tls) = (self.0.clone(), tls.clone());
            self.0.tasks.spawn(async move {
                let _place = place;
                converse(shared, stream, remote, local, tls).await;
            });
        }
    }
}

fn tls(certificates: Arc<dyn ResolvesServerCert>) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(tailwharf_tls::provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// One connection to its end.
async fn converse(
    shared: Arc<Shared>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    remote: SocketAddr,
    local: IpAddr,
    tls: Option<Arc<ServerConfig>>,
) {
    let ended = match tls {
        None => speak_http1(shared, stream, remote, local).await,
        Some(config) => match timeout(HEAD_TIMEOUT, tailwharf_tls::accept(stream, config)).await {
            Ok(Ok(stream)) if stream.alpn() == Some(b"h2") => {
                speak_http2(shared, stream, remote, local).await
            }
            Ok(Ok(stream)) => speak_http1(shared, stream, remote, local).await,
            Ok(Err(error)) => {
                tracing::debug!(%remote, %error, "a TLS handshake has failed");
                return;
            }
            Err(_) => return,
        },
    };
    if let Err(error) = ended {
        tracing::debug!(%remote, %error, "a connection has ended");
    }
}

fn connection(
    shared: Arc<Shared>,
    remote: SocketAddr,
    local: IpAddr,
    finding: Option<Arc<Finding>>,
) -> Arc<Connection> {
    Arc::new(Connection {
        shared,
        remote,
        local,
        finding,
        requests: AtomicU64::new(0),
        known: Mutex::default(),
    })
}

async fn speak_http1(
    shared: Arc<Shared>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    remote: SocketAddr,
    local: IpAddr,
) -> hyper::Result<()> {
    let finding = Arc::new(Finding::default());
    let io = TokioIo::new(Strict::new(stream, finding.clone()));
    let stop = shared.stop.clone();
    let connection = connection(shared, remote, local, Some(finding));
    let service = service_fn(move |request| {
        let connection = connection.clone();
        async move { Ok::<_, std::convert::Infallible>(connection.handle(request).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(128 * 1024)
        .serve_connection(io, service)
        .with_upgrades();
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        ended = serving.as_mut() => return ended,
        () = stop.cancelled() => {}
    }
    serving.as_mut().graceful_shutdown();
    serving.await
}

async fn speak_http2(
    shared: Arc<Shared>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    remote: SocketAddr,
    local: IpAddr,
) -> hyper::Result<()> {
    let stop = shared.stop.clone();
    let connection = connection(shared, remote, local, None);
    let service = service_fn(move |request| {
        let connection = connection.clone();
        async move { Ok::<_, std::convert::Infallible>(connection.handle(request).await) }
    });
    let serving = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_AHEAD)
        .max_header_list_size(crate::headers::MAX_HEADERS_LEN as u32)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20))
        .serve_connection(io_of(stream), service);
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        ended = serving.as_mut() => return ended,
        () = stop.cancelled() => {}
    }
    serving.as_mut().graceful_shutdown();
    serving.await
}

fn io_of<T: AsyncRead + AsyncWrite + Unpin>(stream: T) -> impl Read + Write + Unpin {
    TokioIo::new(stream)
}
