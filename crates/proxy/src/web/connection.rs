//! The connections of a port: TLS, limits, and who is at the other end.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use rustls::ServerConfig;
use tailwharf_http::{HttpLimits, Server, Stall, StallLimits, Version};
use tailwharf_node::{FunnelListener, FunnelStream, SocketError, TailnetNode, WhoIs};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::caller::Caller;
use super::forward::Handler;
use super::site::Sites;
use crate::carrier::Carrier;
use crate::limits::{Permit, Room};
use crate::sockets::Accept;

/// Time for a TLS handshake.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Time in which a client has to take something of what we have for it.
const TAKE_TIME: Duration = Duration::from_secs(120);

static SERVER: LazyLock<Server> = LazyLock::new(|| Server::new(HttpLimits::default()));

/// Where a web server's requests come from: the tailnet, of which the network map knows who is who, and the internet.
pub(crate) trait Callers: Send + Sync + 'static {
    /// Connections from the internet.
    type Public: Accept;

    /// What the network map knows of an address of the tailnet.
    fn who(&self, address: SocketAddr) -> Option<WhoIs>;

    /// Accepts connections from the internet to `port`.
    ///
    /// # Errors
    /// When the port is taken or the node has ended.
    fn listen_public(&self, port: u16) -> Result<Self::Public, SocketError>;
}

impl Callers for Arc<dyn TailnetNode> {
    type Public = FunnelListener;

    fn who(&self, address: SocketAddr) -> Option<WhoIs> {
        self.whois(address)
    }

    fn listen_public(&self, port: u16) -> Result<FunnelListener, SocketError> {
        self.listen_funnel(port)
    }
}

impl Accept for FunnelListener {
    type Stream = FunnelStream;

    async fn accept(&mut self) -> Option<(FunnelStream, SocketAddr)> {
        let connection = Self::accept(self).await.ok()?;
        Some((connection.stream, connection.source))
    }
}

/// A port of a device.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) sites: Arc<Sites>,
    pub(super) carrier: Arc<Carrier>,
    /// Room for its connections.
    pub(super) room: Room,
    /// With TLS, if this is given.
    pub(super) tls: Option<Arc<ServerConfig>>,
    /// The port is closed; requests under way are finished.
    pub(super) closed: CancellationToken,
}

/// Accepts connections until the port is closed; `caller` says who is behind the address of a peer.
pub(super) async fn serve<L: Accept>(
    mut listener: L,
    caller: impl Fn(SocketAddr) -> Caller + Send + 'static,
    door: Door,
) {
    loop {
        let accepted = tokio::select! {
            () = door.closed.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Some((stream, peer)) = accepted else { return };
        door.carrier.metrics.connections.increment();
        let Some(permit) = door.room.enter() else {
            door.carrier.metrics.connections_over_limit.increment();
            continue;
        };
        tokio::spawn(door.clone().admit(stream, caller(peer), permit));
    }
}

impl Door {
    /// Serves one connection until it ends.
    pub(super) async fn admit<T>(self, stream: T, caller: Caller, permit: Permit)
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let carrier = self.carrier.clone();
        let _open = carrier.metrics.connections_open.enter();
        tokio::select! {
            () = carrier.end.cancelled() => {}
            () = self.talk(stream, caller, permit) => {}
        }
    }

    async fn talk<T>(self, stream: T, caller: Caller, permit: Permit)
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let limits = StallLimits {
            first: HANDSHAKE_TIME,
            read: self.carrier.limits.tcp_idle,
            write: TAKE_TIME,
        };
        let stream = Stall::new(stream, limits);
        let counters = &self.carrier.metrics.web;
        let caller = Arc::new(caller);
        let handler = Arc::new(Handler {
            sites: self.sites.clone(),
            carrier: self.carrier.clone(),
            caller: caller.clone(),
            plain: self.tls.is_none(),
            permit: Arc::new(permit),
        });
        let service = service_fn(move |request: Request<Incoming>| {
            let handler = handler.clone();
            async move { Ok::<_, Infallible>(handler.answer(request).await) }
        });
        let served = match self.tls {
            None => {
                SERVER
                    .serve(stream, Version::Unknown, service, &self.closed)
                    .await
            }
            Some(config) => {
                let shaken = timeout(HANDSHAKE_TIME, tailwharf_tls::accept(stream, config)).await;
                let stream = match shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                    Ok(stream) => stream,
                    Err(error) => {
                        counters.handshakes_failed.increment();
                        debug!(identity = %self.carrier.identity, from = %caller.address(), %error, "a TLS handshake came to nothing");
                        return;
                    }
                };
                let version = Version::of_alpn(stream.alpn());
                SERVER.serve(stream, version, service, &self.closed).await
            }
        };
        if let Err(error) = served {
            counters.broken.increment();
            debug!(identity = %self.carrier.identity, from = %caller.address(), %error, "a connection broke off");
        }
    }
}
