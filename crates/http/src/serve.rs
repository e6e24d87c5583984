//! Serving one connection: HTTP/1.1 or HTTP/2, with a limit on everything that a client may make us hold or wait for.

use std::error::Error;
use std::pin::pin;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

/// How much one connection may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpLimits {
    /// Most bytes of a request's line and headers together.
    pub header_bytes: usize,
    /// Most headers of a request by HTTP/1.1.
    pub headers: usize,
    /// Time in which a request's headers must come by HTTP/1.1, counted from the end of the request before. So it is also how long a
    /// connection stays open that nobody uses.
    pub header_time: Duration,
    /// Requests under way at once on a connection of HTTP/2.
    pub streams: u32,
    /// Bytes that are held of one request's or answer's body.
    pub buffer: usize,
    /// A client of HTTP/2 is asked for a sign of life this often, and has as long to answer.
    pub ping: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            header_bytes: 64 * 1024,
            headers: 128,
            header_time: Duration::from_secs(75),
            streams: 128,
            buffer: 128 * 1024,
            ping: Duration::from_secs(30),
        }
    }
}

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// HTTP/1.1 or 1.0.
    Http1,
    /// HTTP/2.
    Http2,
    /// What its first bytes show.
    Unknown,
}

impl Version {
    /// The protocols of a TLS server for ALPN, the better first.
    pub const ALPN: [&'static [u8]; 2] = [b"h2", b"http/1.1"];

    /// By what was agreed on in the TLS handshake. Clients that agree on nothing speak HTTP/1.1.
    #[must_use]
    pub fn of_alpn(protocol: Option<&[u8]>) -> Self {
        match protocol {
            Some(b"h2") => Self::Http2,
            _ => Self::Http1,
        }
    }
}

/// An error of a connection, of whichever version.
pub type ServeError = Box<dyn Error + Send + Sync>;

/// Serves connections under limits. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Server {
    http1: Builder<TokioExecutor>,
    http2: Builder<TokioExecutor>,
    unknown: Builder<TokioExecutor>,
}

impl Server {
    /// A server with these limits.
    #[must_use]
    pub fn new(limits: HttpLimits) -> Self {
        let window = u32::try_from(limits.buffer).unwrap_or(u32::MAX >> 1);
        let header_list = u32::try_from(limits.header_bytes).unwrap_or(u32::MAX);
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.header_time)
            .max_headers(limits.headers)
            .max_buf_size(limits.header_bytes.max(limits.buffer))
            .half_close(false);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.streams)
            .max_header_list_size(header_list)
            .initial_stream_window_size(window)
            .initial_connection_window_size(window.saturating_mul(4))
            .max_send_buf_size(limits.buffer)
            .keep_alive_interval(limits.ping)
            .keep_alive_timeout(limits.ping);
        Self {
            http1: builder.clone().http1_only(),
            http2: builder.clone().http2_only(),
            unknown: builder,
        }
    }

    /// Serves `io` until it ends. After `drain`, requests under way are finished and the client is told to send no more.
    ///
    /// # Errors
    /// When the client breaks the protocol or a limit, or the connection breaks.
    pub async fn serve<I, S, B>(
        &self,
        io: I,
        version: Version,
        service: S,
        drain: &CancellationToken,
    ) -> Result<(), ServeError>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<ServeError>,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<ServeError>,
    {
        let builder = match version {
            Version::Http1 => &self.http1,
            Version::Http2 => &self.http2,
            Version::Unknown => &self.unknown,
        };
        let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(io), service));
        tokio::select! {
            biased;
            ended = connection.as_mut() => return ended,
            () = drain.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    }
}
