//! UDP sockets on the tailnet.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;

use tailwharf_node_core::{BindError, Datagram, Io, UdpError, UdpId};

use crate::api::SocketError;
use crate::engine::Engine;

/// Sends and receives datagrams on one port of a node. Dropping it closes the port.
#[derive(Debug)]
pub struct UdpSocket {
    engine: Arc<Engine>,
    id: UdpId,
    port: u16,
}

/// A datagram was not sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The node has been shut down.
    #[error("the node has been shut down")]
    Closed,
    /// The datagram cannot go there.
    #[error(transparent)]
    Udp(#[from] UdpError),
}

impl UdpSocket {
    pub(crate) fn bind(engine: &Arc<Engine>, port: u16) -> Result<Self, SocketError> {
        let (id, port) = engine.with(|running, _| {
            if running.closed {
                return Err(SocketError::Closed);
            }
            let id = running.core.bind_udp(None, port)?;
            Ok((id, running.core.udp_port(id).unwrap_or(port)))
        })?;
        Ok(Self {
            engine: engine.clone(),
            id,
            port,
        })
    }

    /// The port it is bound to.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The next datagram.
    ///
    /// # Errors
    /// [`SocketError::Closed`] after the node was shut down.
    pub async fn recv(&self) -> Result<Datagram, SocketError> {
        std::future::poll_fn(|cx| {
            self.engine.with(|running, _| {
                if running.closed {
                    return Poll::Ready(Err(SocketError::Closed));
                }
                match running.core.recv_udp(self.id) {
                    Ok(Io::Ready(datagram)) => Poll::Ready(Ok(datagram)),
                    Ok(Io::Pending) => {
                        let wakers = running.waiters.udp.entry(self.id).or_default();
                        wakers.retain(|waker| !waker.will_wake(cx.waker()));
                        wakers.push(cx.waker().clone());
                        Poll::Pending
                    }
                    Err(_) => Poll::Ready(Err(SocketError::Closed)),
                }
            })
        })
        .await
    }

    /// The next datagram, copied into `buffer` and cut if that is too short; gives its length there and its source.
    ///
    /// # Errors
    /// As [`UdpSocket::recv`].
    pub async fn recv_from(&self, buffer: &mut [u8]) -> Result<(usize, SocketAddr), SocketError> {
        let datagram = self.recv().await?;
        let length = datagram.payload.len().min(buffer.len());
        buffer[..length].copy_from_slice(&datagram.payload[..length]);
        Ok((length, datagram.from))
    }

    /// Sends a datagram. It may get lost like any other; there is nothing to wait for.
    ///
    /// # Errors
    /// When the datagram is too long, or no visible node has the address.
    pub fn send_to(&self, payload: &[u8], to: SocketAddr) -> Result<(), SendError> {
        self.engine.with(|running, now| {
            if running.closed {
                return Err(SendError::Closed);
            }
            Ok(running.core.send_udp(self.id, None, Some(to), payload, now)?)
        })
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        self.engine.with(|running, _| {
            running.waiters.udp.remove(&self.id);
            running.core.close_udp(self.id);
        });
    }
}

impl From<BindError> for SocketError {
    fn from(error: BindError) -> Self {
        match error {
            BindError::InUse { port } => Self::PortInUse(port),
            BindError::NoPort => Self::NoFreePort,
        }
    }
}
