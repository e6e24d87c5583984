//! TCP sockets on the tailnet.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tailwharf_node_core::{
    AdmitError, AskedId, CloseReason, ConnError, ConnId, ConnectError, Io, ListenerId,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::api::{DialError, SocketError};
use crate::engine::{Connecting, Engine, Running};

/// Connections that wait to be accepted, per listener.
const BACKLOG: usize = 128;

/// How long opening a connection may take.
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);

/// Accepts TCP connections on one port of a node. Dropping it closes the port.
#[derive(Debug)]
pub struct TcpListener {
    engine: Arc<Engine>,
    id: ListenerId,
    port: u16,
}

impl TcpListener {
    pub(crate) fn bind(engine: &Arc<Engine>, port: u16) -> Result<Self, SocketError> {
        Self::bind_at(engine, None, port)
    }

    /// Listens at one address that is routed to the node, or at all of its own.
    pub(crate) fn bind_at(
        engine: &Arc<Engine>,
        address: Option<IpAddr>,
        port: u16,
    ) -> Result<Self, SocketError> {
        let id = engine.with(|running, _| {
            if running.closed {
                return Err(SocketError::Closed);
            }
            running
                .core
                .listen_tcp(address, port, BACKLOG)
                .map_err(SocketError::from)
        })?;
        Ok(Self {
            engine: engine.clone(),
            id,
            port,
        })
    }

    /// The next connection, and where it comes from.
    ///
    /// # Errors
    /// [`SocketError::Closed`] after the node was shut down.
    pub async fn accept(&self) -> Result<(TcpStream, SocketAddr), SocketError> {
        let accepted = std::future::poll_fn(|cx| {
            self.engine.with(|running, _| {
                if running.closed {
                    return Poll::Ready(Err(SocketError::Closed));
                }
                if let Some(accepted) = running.core.accept(self.id) {
                    return Poll::Ready(Ok(accepted));
                }
                let wakers = running.waiters.acceptors.entry(self.id).or_default();
                wakers.retain(|waker| !waker.will_wake(cx.waker()));
                wakers.push(cx.waker().clone());
                Poll::Pending
            })
        })
        .await?;
        let stream = TcpStream {
            engine: self.engine.clone(),
            conn: accepted.conn,
            local: accepted.local,
            remote: accepted.remote,
        };
        Ok((stream, accepted.remote))
    }

    /// The port it accepts on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for TcpListener {
    fn drop(&mut self) {
        self.engine.with(|running, _| {
            running.waiters.acceptors.remove(&self.id);
            running.core.close_listener(self.id);
        });
    }
}

/// A TCP connection on the tailnet. Dropping it closes both directions; what was written is still delivered.
pub struct TcpStream {
    engine: Arc<Engine>,
    conn: ConnId,
    local: SocketAddr,
    remote: SocketAddr,
}

impl TcpStream {
    /// Opens a connection.
    pub(crate) async fn connect(engine: &Arc<Engine>, to: SocketAddr) -> Result<Self, DialError> {
        let stream = engine.with(|running, _| {
            if running.closed {
                return Err(DialError::Closed);
            }
            let conn = running.core.connect_tcp(to)?;
            let (local, remote) = running.core.connection_addresses(conn).unwrap_or((to, to));
            running.waiters.connecting.insert(conn, Connecting::default());
            // From here on dropping it, as a cancelled caller does, closes the connection.
            Ok(Self {
                engine: engine.clone(),
                conn,
                local,
                remote,
            })
        })?;
        match tokio::time::timeout(DIAL_TIMEOUT, std::future::poll_fn(|cx| stream.poll_connected(cx))).await {
            Err(_) => Err(DialError::TimedOut(to)),
            Ok(None) => Err(DialError::Closed),
            Ok(Some(Ok(()))) => Ok(stream),
            Ok(Some(Err(reason))) => Err(match reason {
                CloseReason::Refused | CloseReason::Reset => DialError::Refused(to),
                CloseReason::Denied | CloseReason::Revoked => DialError::Denied(to),
                CloseReason::TimedOut => DialError::TimedOut(to),
                CloseReason::PeerGone => DialError::UnknownAddress(to.ip()),
            }),
        }
    }

    /// Takes a connection that a peer asked for at an address which the node routes.
    pub(crate) fn admit(engine: &Arc<Engine>, asked: AskedId) -> Result<Self, AdmitError> {
        engine.with(|running, now| {
            if running.closed {
                return Err(AdmitError::Gone);
            }
            let conn = running.core.admit(asked, now)?;
            let (local, remote) = running.core.connection_addresses(conn).ok_or(AdmitError::Gone)?;
            Ok(Self {
                engine: engine.clone(),
                conn,
                local,
                remote,
            })
        })
    }

    /// `None`: the node was shut down.
    fn poll_connected(&self, cx: &Context<'_>) -> Poll<Option<Result<(), CloseReason>>> {
        self.engine.with(|running, _| {
            if running.closed {
                return Poll::Ready(None);
            }
            let Some(connecting) = running.waiters.connecting.get_mut(&self.conn) else {
                return Poll::Ready(None);
            };
            if let Some(result) = connecting.done {
                running.waiters.connecting.remove(&self.conn);
                return Poll::Ready(Some(result));
            }
            connecting.waker = Some(cx.waker().clone());
            Poll::Pending
        })
    }

    /// Our address and port.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The peer's address and port.
    #[must_use]
    pub fn peer_addr(&self) -> SocketAddr {
        self.remote
    }

    /// Ends the connection at once with a reset, so that the peer sees an error and not an end.
    pub fn abort(self) {
        self.engine.with_core(|core, _| core.abort(self.conn));
    }

    fn poll<T>(
        &self,
        work: impl FnOnce(&mut Running) -> Result<Io<T>, ConnError>,
        wait: impl FnOnce(&mut Running),
    ) -> Poll<io::Result<T>> {
        self.engine.with(|running, _| {
            if running.closed {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::ConnectionAborted,
                    "the node was shut down",
                )));
            }
            match work(running) {
                Ok(Io::Ready(value)) => Poll::Ready(Ok(value)),
                Ok(Io::Pending) => {
                    wait(running);
                    Poll::Pending
                }
                Err(error) => Poll::Ready(Err(into_io(error))),
            }
        })
    }
}

fn into_io(error: ConnError) -> io::Error {
    let kind = match error {
        ConnError::NotOpen => io::ErrorKind::NotConnected,
        ConnError::ShutDown => io::ErrorKind::BrokenPipe,
        ConnError::Ended(CloseReason::Reset | CloseReason::Revoked) => io::ErrorKind::ConnectionReset,
        ConnError::Ended(CloseReason::Refused | CloseReason::Denied) => io::ErrorKind::ConnectionRefused,
        ConnError::Ended(CloseReason::TimedOut) => io::ErrorKind::TimedOut,
        ConnError::Ended(CloseReason::PeerGone) => io::ErrorKind::NetworkUnreachable,
    };
    io::Error::new(kind, error)
}

impl AsyncRead for TcpStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let coop = std::task::ready!(tokio::task::coop::poll_proceed(cx));
        let conn = self.conn;
        let read = self.poll(
            |running| running.core.read(conn, buf.initialize_unfilled()),
            |running| {
                running.waiters.readers.insert(conn, cx.waker().clone());
            },
        );
        let length = std::task::ready!(read)?;
        coop.made_progress();
        buf.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let coop = std::task::ready!(tokio::task::coop::poll_proceed(cx));
        let conn = self.conn;
        let written = self.poll(
            |running| running.core.write(conn, data),
            |running| {
                running.waiters.writers.insert(conn, cx.waker().clone());
            },
        );
        if written.is_ready() {
            coop.made_progress();
        }
        written
    }

    /// Nothing is held back.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let conn = self.conn;
        self.poll(|running| running.core.shutdown_write(conn).map(Io::Ready), |_| {})
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        self.engine.with(|running, _| {
            running.waiters.readers.remove(&self.conn);
            running.waiters.writers.remove(&self.conn);
            running.waiters.connecting.remove(&self.conn);
            running.core.close(self.conn);
        });
    }
}

impl fmt::Debug for TcpStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpStream")
            .field("local", &self.local)
            .field("remote", &self.remote)
            .finish_non_exhaustive()
    }
}

impl From<ConnectError> for DialError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::NoRoute { remote } => Self::UnknownAddress(remote.ip()),
            ConnectError::NoAddress { .. } => Self::Unavailable("it has no address of that family yet"),
            ConnectError::NoPort { .. } => Self::Unavailable("all its ports to that address are in use"),
            ConnectError::NoMemory => Self::Unavailable("the memory for connections is used up; close some"),
        }
    }
}
