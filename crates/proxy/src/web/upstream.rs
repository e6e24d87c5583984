//! Backends of a device: their addresses, which of them takes the next request, and the connections to them.
//!
//! A connection of HTTP/1.1 has no task of its own: whoever waits for an answer, or reads it, drives it. That saves two changes of tasks for
//! each request, and all memory of a task while the connection rests.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tailwharf_kube_types::identity::web::{BackendProtocol, WebBackend};
use tailwharf_kube_types::{Backend, IdentityReason};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep, timeout};

use super::body::Asked;
use super::tls::connect_any;
use crate::backend::{BackendError, Backends};
use crate::sockets::Dial as _;
use crate::status::BackendTrouble;

/// A connection that nobody used for so long is closed: most servers close them later.
const IDLE: Duration = Duration::from_secs(50);
/// Connections to one address that are kept for later.
const MAX_IDLE: usize = 64;
/// An address that failed is tried after the others for so long.
const PENALTY: Duration = Duration::from_secs(3);
/// Bytes held of a body.
const BUFFER: usize = 128 * 1024;
/// Most bytes of an answer's headers.
const HEADER_BYTES: usize = 128 * 1024;
/// Time for the TLS or HTTP/2 handshake with a backend.
const HANDSHAKE_TIME: Duration = Duration::from_secs(5);
/// A backend of HTTP/2 is asked for a sign of life this often while requests are under way.
const PING: Duration = Duration::from_secs(20);

/// What carries a connection to a backend.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// The work of a connection of HTTP/1.1; it ends with the connection, or when that leaves HTTP.
type Work = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// No connection to a backend could be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    /// It has no address.
    #[error("it has no address")]
    NoAddress,
    /// Its addresses do not take connections.
    #[error(transparent)]
    Refused(#[from] BackendError),
    /// The handshake of TLS or HTTP/2 failed.
    #[error("the handshake failed: {0}")]
    Handshake(String),
}

/// One address of a backend.
pub(super) struct Endpoint {
    address: Backend,
    protocol: BackendProtocol,
    backends: Arc<Backends>,
    active: AtomicUsize,
    failed: Mutex<Option<Instant>>,
    idle: Mutex<VecDeque<(Instant, Box<Http1>)>>,
    sweeping: AtomicBool,
    shared: tokio::sync::Mutex<Option<http2::SendRequest<Asked>>>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// Counts a request at its endpoint until it is dropped.
#[derive(Debug)]
pub(super) struct Active(Arc<Endpoint>);

impl Active {
    fn enter(endpoint: Arc<Endpoint>) -> Self {
        endpoint.active.fetch_add(1, Ordering::Relaxed);
        Self(endpoint)
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection of HTTP/1.1 to a backend, with at most one request under way.
pub(super) struct Http1 {
    sender: SendRequest<Asked>,
    connection: Option<Work>,
    /// Absent while it rests.
    active: Option<Active>,
    /// It has carried a request before, so the backend may be about to close it.
    pub(super) used: bool,
}

/// A connection on which a request can be sent.
pub(super) enum Ready {
    /// HTTP/1.1.
    Http1(Box<Http1>),
    /// HTTP/2.
    Http2(http2::SendRequest<Asked>, Active),
}

impl Http1 {
    /// Lets the connection read and write.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(connection) = &mut self.connection
            && connection.as_mut().poll(cx).is_ready()
        {
            self.connection = None;
        }
    }

    /// Sends a request and waits for the head of the answer.
    pub(super) async fn send(
        &mut self,
        request: Request<Asked>,
    ) -> Result<Response<Incoming>, Box<TrySendError<Request<Asked>>>> {
        let mut answer = pin!(self.sender.try_send_request(request));
        let connection = &mut self.connection;
        poll_fn(|cx| {
            if let Some(running) = connection
                && running.as_mut().poll(cx).is_ready()
            {
                *connection = None;
            }
            answer.as_mut().poll(cx)
        })
        .await
        .map_err(Box::new)
    }

    /// Drives the connection until it has left HTTP.
    pub(super) async fn ended(mut self: Box<Self>) {
        poll_fn(|cx| {
            self.drive(cx);
            if self.connection.is_none() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// Gives the connection back for the next request, if it can take one.
    pub(super) fn settle(mut self: Box<Self>, cx: &mut Context<'_>) {
        self.drive(cx);
        if self.connection.is_some()
            && self.sender.is_ready()
            && let Some(active) = self.active.take()
        {
            active.0.clone().rest(self);
        }
    }
}

impl Endpoint {
    fn new(address: Backend, protocol: BackendProtocol) -> Arc<Self> {
        Arc::new(Self {
            backends: Backends::new(std::slice::from_ref(&address)),
            address,
            protocol,
            active: AtomicUsize::new(0),
            failed: Mutex::default(),
            idle: Mutex::default(),
            sweeping: AtomicBool::new(false),
            shared: tokio::sync::Mutex::default(),
        })
    }

    fn failed_lately(&self) -> bool {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.is_some_and(|at| at.elapsed() < PENALTY)
    }

    /// Notes whether the address took a connection.
    fn note(&self, works: bool) {
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = (!works).then(Instant::now);
    }

    fn rest(self: Arc<Self>, mut connection: Box<Http1>) {
        connection.used = true;
        let now = Instant::now();
        {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.push_back((now, connection));
            if idle.len() > MAX_IDLE {
                idle.pop_front();
            }
        }
        if !self.sweeping.swap(true, Ordering::Relaxed) {
            tokio::spawn(sweep(Arc::downgrade(&self)));
        }
    }

    /// A connection that rests and that the backend has not closed.
    fn rested(self: &Arc<Self>) -> Option<Box<Http1>> {
        loop {
            let (since, mut connection) = {
                let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
                idle.pop_back()?
            };
            connection.drive(&mut Context::from_waker(Waker::noop()));
            if since.elapsed() < IDLE && connection.connection.is_some() && connection.sender.is_ready() {
                connection.active = Some(Active::enter(self.clone()));
                return Some(connection);
            }
        }
    }

    /// A connection for one request. `version2`: by HTTP/2, whatever the protocol. `upgrade`: one that can leave HTTP.
    async fn connect(
        self: &Arc<Self>,
        peer: IpAddr,
        alone: bool,
        version2: bool,
        upgrade: bool,
    ) -> Result<Ready, ConnectError> {
        let version2 = !upgrade && (version2 || self.protocol == BackendProtocol::H2c);
        if version2 && self.protocol != BackendProtocol::Https {
            return self.shared(peer, alone, None).await;
        }
        if let Some(connection) = self.rested() {
            return Ok(Ready::Http1(connection));
        }
        if self.protocol == BackendProtocol::Https {
            if !upgrade && let Some(sender) = self.shared_now() {
                return Ok(Ready::Http2(sender, Active::enter(self.clone())));
            }
            let tcp = self.dial(peer, alone).await?;
            let handshake = connect_any(tcp, upgrade);
            let (tls, is_version2) = bounded(handshake).await?;
            return if is_version2 {
                self.shared(peer, alone, Some(tls)).await
            } else {
                self.http1(tls).await
            };
        }
        let tcp = self.dial(peer, alone).await?;
        self.http1(Box::new(tcp)).await
    }

    async fn dial(&self, peer: IpAddr, alone: bool) -> Result<tokio::net::TcpStream, BackendError> {
        let dialed = if alone {
            self.backends.dial(peer).await
        } else {
            self.backends.dial_at_once(peer).await
        };
        self.note(dialed.is_ok());
        dialed
    }

    async fn http1(self: &Arc<Self>, io: Box<dyn Io>) -> Result<Ready, ConnectError> {
        let mut builder = http1::Builder::new();
        builder.max_buf_size(HEADER_BYTES).max_headers(256);
        let (sender, connection) = bounded(builder.handshake(TokioIo::new(io))).await?;
        Ok(Ready::Http1(Box::new(Http1 {
            sender,
            connection: Some(Box::pin(connection.with_upgrades())),
            active: Some(Active::enter(self.clone())),
            used: false,
        })))
    }

    /// The connection of HTTP/2 that is open, without waiting for one that is being opened.
    fn shared_now(&self) -> Option<http2::SendRequest<Asked>> {
        let shared = self.shared.try_lock().ok()?;
        shared.as_ref().filter(|sender| !sender.is_closed()).cloned()
    }

    /// The connection of HTTP/2, opened if there is none; over `io` if one is given.
    async fn shared(
        self: &Arc<Self>,
        peer: IpAddr,
        alone: bool,
        io: Option<Box<dyn Io>>,
    ) -> Result<Ready, ConnectError> {
        let mut shared = self.shared.lock().await;
        let open = shared.as_ref().filter(|sender| !sender.is_closed()).cloned();
        let sender = match (open, io) {
            (Some(sender), _) => sender,
            (None, io) => {
                let io = match io {
                    Some(io) => io,
                    None => Box::new(self.dial(peer, alone).await?),
                };
                let mut builder = http2::Builder::new(TokioExecutor::new());
                let window = u32::try_from(BUFFER).unwrap_or(u32::MAX);
                builder
                    .timer(TokioTimer::new())
                    .initial_stream_window_size(window)
                    .initial_connection_window_size(window * 4)
                    .max_send_buf_size(BUFFER)
                    .max_header_list_size(u32::try_from(HEADER_BYTES).unwrap_or(u32::MAX))
                    .keep_alive_interval(PING)
                    .keep_alive_timeout(PING);
                let (sender, connection) = bounded(builder.handshake(TokioIo::new(io))).await?;
                tokio::spawn(connection);
                *shared = Some(sender.clone());
                sender
            }
        };
        Ok(Ready::Http2(sender, Active::enter(self.clone())))
    }
}

async fn bounded<T, E: fmt::Display>(
    handshake: impl Future<Output = Result<T, E>>,
) -> Result<T, ConnectError> {
    match timeout(HANDSHAKE_TIME, handshake).await {
        Ok(done) => done.map_err(|error| ConnectError::Handshake(error.to_string())),
        Err(_) => Err(ConnectError::Handshake("it takes too long".to_owned())),
    }
}

/// Closes connections that rest for too long, until none rests.
async fn sweep(endpoint: std::sync::Weak<Endpoint>) {
    loop {
        sleep(IDLE).await;
        let Some(endpoint) = endpoint.upgrade() else {
            return;
        };
        let mut idle = endpoint.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(since, _)| since.elapsed() < IDLE);
        if idle.is_empty() {
            *idle = VecDeque::new();
            endpoint.sweeping.store(false, Ordering::Relaxed);
            return;
        }
    }
}

/// A backend of a device.
#[derive(Debug)]
pub(super) struct Upstream {
    /// Its name.
    pub(super) name: Arc<str>,
    /// Why it has no address.
    pub(super) problem: Option<String>,
    endpoints: Vec<Arc<Endpoint>>,
    next: AtomicUsize,
    /// Shared with the value that this one replaced, if it has the same addresses: what a probe of that finds out counts here.
    known: Arc<Mutex<Known>>,
}

/// What is known of a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Known {
    /// Nothing was tried.
    Nothing,
    /// The last connection came about.
    Reachable,
    /// The last connection failed.
    Failed(BackendError),
}

impl Upstream {
    /// The backend as the spec has it. Addresses that `old` has as well keep their connections.
    #[must_use]
    pub(super) fn new(spec: &WebBackend, old: Option<&Self>) -> Arc<Self> {
        let known: HashMap<&Backend, &Arc<Endpoint>> = old
            .iter()
            .flat_map(|old| &old.endpoints)
            .filter(|endpoint| endpoint.protocol == spec.protocol)
            .map(|endpoint| (&endpoint.address, endpoint))
            .collect();
        let endpoint = |address: &Backend| {
            known.get(address).map_or_else(
                || Endpoint::new(address.clone(), spec.protocol),
                |known| Arc::clone(known),
            )
        };
        let endpoints: Vec<_> = spec.addresses.iter().map(endpoint).collect();
        let same = |old: &&Self| {
            old.endpoints
                .iter()
                .map(Arc::as_ptr)
                .eq(endpoints.iter().map(Arc::as_ptr))
        };
        let known = old
            .filter(same)
            .map_or_else(|| Arc::new(Mutex::new(Known::Nothing)), |old| old.known.clone());
        Arc::new(Self {
            name: spec.name.as_str().into(),
            problem: spec.problem.clone(),
            endpoints,
            next: AtomicUsize::new(0),
            known,
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes how the last connection went. True when that is news.
    pub(super) fn note(&self, outcome: Result<(), BackendError>) -> bool {
        let new = outcome.map_or_else(Known::Failed, |()| Known::Reachable);
        let mut known = self.known();
        let news = *known != new;
        *known = new;
        news
    }

    /// Whether the last connection came about.
    #[must_use]
    pub(super) fn is_reachable(&self) -> bool {
        *self.known() == Known::Reachable
    }

    /// Whether a connection was tried, or there is nothing to try.
    #[must_use]
    pub(super) fn is_known(&self) -> bool {
        self.endpoints.is_empty() || *self.known() != Known::Nothing
    }

    /// What keeps requests from the backend, as far as is known.
    #[must_use]
    pub(super) fn trouble(&self) -> Option<BackendTrouble> {
        let name = &self.name;
        if self.endpoints.is_empty() {
            let problem = self
                .problem
                .as_deref()
                .unwrap_or("Check that its Service has ready endpoints.");
            return Some(BackendTrouble {
                reason: IdentityReason::BackendWithoutAddress,
                message: format!("The backend {name} has no address. {problem}"),
            });
        }
        match &*self.known() {
            Known::Failed(error) => Some(BackendTrouble {
                reason: error.reason(),
                message: format!(
                    "Requests cannot be passed on to the backend {name}: {error}. Check that its Service has ready endpoints."
                ),
            }),
            Known::Nothing | Known::Reachable => None,
        }
    }

    /// The next endpoint to try: one that did not fail lately, with the fewest requests under way.
    fn choose(&self, tried: &[&Arc<Endpoint>]) -> Option<&Arc<Endpoint>> {
        let first = self.next.fetch_add(1, Ordering::Relaxed) % self.endpoints.len().max(1);
        let (before, after) = self.endpoints.split_at(first);
        after
            .iter()
            .chain(before)
            .filter(|endpoint| !tried.iter().any(|tried| Arc::ptr_eq(tried, endpoint)))
            .min_by_key(|endpoint| (endpoint.failed_lately(), endpoint.active.load(Ordering::Relaxed)))
    }

    /// A connection for one request to whichever address takes it.
    ///
    /// # Errors
    /// When none does: why the last one did not.
    pub(super) async fn connect(
        &self,
        peer: IpAddr,
        version2: bool,
        upgrade: bool,
    ) -> Result<Ready, ConnectError> {
        let mut tried = Vec::new();
        let mut error = ConnectError::NoAddress;
        let alone = self.endpoints.len() == 1;
        while let Some(endpoint) = self.choose(&tried) {
            match endpoint.connect(peer, alone, version2, upgrade).await {
                Ok(ready) => return Ok(ready),
                Err(failed) => error = failed,
            }
            tried.push(endpoint);
        }
        Err(error)
    }

    /// Connects once to see whether an address takes connections.
    ///
    /// # Errors
    /// As [`Upstream::connect`].
    pub(super) async fn probe(&self) -> Result<(), BackendError> {
        let mut error = BackendError::None;
        for endpoint in &self.endpoints {
            let peer = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
            match endpoint.dial(peer, self.endpoints.len() == 1).await {
                Ok(_) => return Ok(()),
                Err(failed) => error = failed,
            }
        }
        Err(error)
    }
}
