//! Connections that many long answers share.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::HOST;
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

use super::UpstreamError;
use super::dial::Dialer;
use crate::body::Outgoing;

/// Answers on one connection. The API server allows 100 by default, sometimes 250.
const MAX_STREAMS: usize = 90;
/// What one answer may send ahead of its reader.
const STREAM_WINDOW: u32 = 64 * 1024;
/// Enough for all answers of a connection: one that nobody reads holds up no other.
const CONNECTION_WINDOW: u32 = 6 * 1024 * 1024;
/// A connection over which nothing comes is asked for a sign of life.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// How long that sign may take.
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// Most bytes of a request that wait for the API server.
const SEND_AHEAD: usize = 64 * 1024;

#[derive(Debug)]
struct Connection {
    sender: SendRequest<Outgoing>,
    streams: AtomicUsize,
}

impl Connection {
    fn place(self: &Arc<Self>) -> Option<Place> {
        let free = |used: usize| (used < MAX_STREAMS).then_some(used + 1);
        if self.sender.is_closed()
            || self
                .streams
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, free)
                .is_err()
        {
            return None;
        }
        Some(Place(self.clone()))
    }
}

/// A place on a connection; dropping it makes it free.
#[derive(Debug)]
pub(crate) struct Place(Arc<Connection>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Shared connections.
#[derive(Debug)]
pub(super) struct Pool {
    dialer: Arc<Dialer>,
    connections: Mutex<Vec<Arc<Connection>>>,
    /// One connection is opened at a time, or many that come at once would each open their own.
    opening: tokio::sync::Mutex<()>,
}

/// What became of a request.
pub(super) enum Sent {
    /// It is answered.
    Answered(Response<Incoming>, Place),
    /// The API server does not speak HTTP/2.
    NotSpoken(Request<Outgoing>),
}

impl Pool {
    pub(super) fn new(dialer: Arc<Dialer>) -> Self {
        Self {
            dialer,
            connections: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Connection>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives up connections that have ended, or that nobody uses.
    pub(super) fn sweep(&self) {
        self.lock().retain(|connection| {
            !connection.sender.is_closed() && connection.streams.load(Ordering::Acquire) > 0
        });
    }

    pub(super) async fn send(&self, request: Request<Outgoing>) -> Result<Sent, UpstreamError> {
        let mut request = match absolute(request) {
            Ok(request) => request,
            Err(request) => return Ok(Sent::NotSpoken(*request)),
        };
        loop {
            let (place, kept) = match self.free() {
                Some(place) => (place, true),
                None => {
                    let _opening = self.opening.lock().await;
                    match self.free() {
                        Some(place) => (place, true),
                        None => match self.open().await? {
                            Some(place) => (place, false),
                            None => return Ok(Sent::NotSpoken(relative(request))),
                        },
                    }
                }
            };
            match place.0.sender.clone().try_send_request(request).await {
                Ok(response) => return Ok(Sent::Answered(response, place)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) if kept => {
                        self.lock()
                            .retain(|connection| !Arc::ptr_eq(connection, &place.0));
                        request = unsent;
                    }
                    _ => return Err(UpstreamError::Broken(error.into_error())),
                },
            }
        }
    }

    fn free(&self) -> Option<Place> {
        self.lock().iter().find_map(Connection::place)
    }

    /// A new connection; `None` if the API server does not speak HTTP/2.
    async fn open(&self) -> Result<Option<Place>, UpstreamError> {
        let stream = self.dialer.connect(|tls| tls.http2).await?;
        if stream.alpn() != Some(b"h2") {
            return Ok(None);
        }
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .max_send_buf_size(SEND_AHEAD)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(UpstreamError::Broken)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a shared connection to the API server has ended");
            }
        });
        let connection = Arc::new(Connection {
            sender,
            streams: AtomicUsize::new(0),
        });
        let place = connection.place();
        self.lock().push(connection);
        Ok(place)
    }
}

/// The request as HTTP/2 has it: the host is part of the target.
fn absolute(request: Request<Outgoing>) -> Result<Request<Outgoing>, Box<Request<Outgoing>>> {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    let path = request.uri().path_and_query().cloned();
    let (Some(host), Some(path)) = (host, path) else {
        return Err(Box::new(request));
    };
    let Ok(uri) = Uri::builder()
        .scheme("https")
        .authority(host)
        .path_and_query(path)
        .build()
    else {
        return Err(Box::new(request));
    };
    let (mut parts, body) = request.into_parts();
    parts.uri = uri;
    parts.headers.remove(HOST);
    Ok(Request::from_parts(parts, body))
}

/// The way back.
fn relative(request: Request<Outgoing>) -> Request<Outgoing> {
    let (mut parts, body) = request.into_parts();
    let host = parts.uri.authority().map(|host| host.as_str().to_owned());
    if let Some(Ok(host)) = host.map(|host| http::HeaderValue::from_str(&host)) {
        parts.headers.insert(HOST, host);
    }
    if let Some(Ok(uri)) = parts.uri.path_and_query().map(|path| path.as_str().parse()) {
        parts.uri = uri;
    }
    Request::from_parts(parts, body)
}
