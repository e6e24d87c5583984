//! Sockets of this pod, at which pods of the cluster knock.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tracing::warn;

use super::gate::Gate;
use crate::sockets::{Accept, Datagrams, Origin};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;
/// Pause after the system could give no connection, most often for want of file descriptors.
pub(super) const PAUSE: Duration = Duration::from_millis(50);

/// A TCP listener of the pod.
pub(crate) struct PodListener(TcpListener, Arc<Gate>);

/// A UDP socket of the pod.
pub(crate) struct PodSocket(UdpSocket, Arc<Gate>);

impl PodListener {
    /// Listens on `port` of all addresses of the pod.
    ///
    /// # Errors
    /// When the port is taken.
    pub(crate) fn bind(port: u16, gate: Arc<Gate>) -> io::Result<Self> {
        let socket = bind(port, Type::STREAM, Protocol::TCP)?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into()).map(|listener| Self(listener, gate))
    }
}

impl PodSocket {
    /// Receives on `port` of all addresses of the pod.
    ///
    /// # Errors
    /// When the port is taken.
    pub(crate) fn bind(port: u16, gate: Arc<Gate>) -> io::Result<Self> {
        let socket = bind(port, Type::DGRAM, Protocol::UDP)?;
        UdpSocket::from_std(socket.into()).map(|socket| Self(socket, gate))
    }
}

/// One socket for both address families, or for IPv4 where the system has no other.
pub(super) fn bind(port: u16, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let open = |domain, any: SocketAddr| {
        let socket = Socket::new(domain, kind, Some(protocol))?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(false)?;
        }
        if kind == Type::STREAM {
            socket.set_reuse_address(true)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&any.into())?;
        Ok(socket)
    };
    let both = open(Domain::IPV6, (Ipv6Addr::UNSPECIFIED, port).into());
    both.or_else(|error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => Err(error),
        _ => open(Domain::IPV4, (Ipv4Addr::UNSPECIFIED, port).into()),
    })
}

impl Accept for PodListener {
    type Stream = TcpStream;

    async fn accept(&mut self) -> Option<(TcpStream, SocketAddr)> {
        loop {
            match self.0.accept().await {
                Ok((stream, peer)) if !self.1.admits(peer) => Self::refuse(stream),
                Ok((stream, peer)) => {
                    // A connection without the option works, with more delay.
                    let _ = stream.set_nodelay(true);
                    return Some((stream, peer));
                }
                Err(error) => {
                    warn!(%error, "a connection of a pod could not be accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn revoked(&self, peer: SocketAddr) -> impl Future<Output = ()> + Send + 'static {
        self.1.revoked(peer)
    }

    fn refuse(stream: TcpStream) {
        // Without a wait for what was sent, closing is a reset: the client sees that nobody took the connection.
        let _ = stream.set_zero_linger();
    }
}

impl Datagrams for PodSocket {
    async fn receive(&self, buffer: &mut [u8]) -> Option<(usize, Origin)> {
        loop {
            match self.0.recv_from(buffer).await {
                Ok((_, peer)) if !self.1.admits(peer) => {}
                Ok((length, peer)) => return Some((length, peer.into())),
                // That an earlier datagram found no socket at its peer.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => {
                    warn!(%error, "a datagram of a pod could not be received");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn send(&self, data: &[u8], to: Origin) -> bool {
        self.0.try_send_to(data, to.peer).is_ok()
    }
}
