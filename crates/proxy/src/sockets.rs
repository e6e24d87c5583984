//! The sockets of a tailnet node as the listeners use them, so that they can be tested on other sockets.

use std::net::SocketAddr;
use std::sync::Arc;

use tailwharf_node::{SocketError, TailnetNode, TcpListener, TcpStream, UdpSocket};
use tokio::io::{AsyncRead, AsyncWrite};

/// Opens listeners on the addresses of a node.
pub(crate) trait Sockets: Send + Sync + 'static {
    /// A TCP listener.
    type Tcp: Accept;
    /// A bound UDP socket.
    type Udp: Datagrams;

    /// Accepts TCP connections to `port`.
    ///
    /// # Errors
    /// When the port is taken or the node has ended.
    fn listen_tcp(&self, port: u16) -> Result<Self::Tcp, SocketError>;

    /// Receives datagrams to `port`.
    ///
    /// # Errors
    /// When the port is taken or the node has ended.
    fn bind_udp(&self, port: u16) -> Result<Self::Udp, SocketError>;
}

/// A source of TCP connections.
pub(crate) trait Accept: Send + 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Send + 'static;

    /// The next connection and its peer; `None` when there will be no more.
    fn accept(&mut self) -> impl Future<Output = Option<(Self::Stream, SocketAddr)>> + Send;
}

/// A UDP socket.
pub(crate) trait Datagrams: Send + Sync + 'static {
    /// The next datagram's length and peer; `None` when there will be no more.
    fn receive(&self, buffer: &mut [u8]) -> impl Future<Output = Option<(usize, SocketAddr)>> + Send;

    /// Sends a datagram now or not at all; false when it was not sent.
    fn send(&self, data: &[u8], to: SocketAddr) -> bool;
}

impl Sockets for Arc<dyn TailnetNode> {
    type Tcp = TcpListener;
    type Udp = UdpSocket;

    fn listen_tcp(&self, port: u16) -> Result<TcpListener, SocketError> {
        TailnetNode::listen_tcp(&**self, port)
    }

    fn bind_udp(&self, port: u16) -> Result<UdpSocket, SocketError> {
        TailnetNode::bind_udp(&**self, port)
    }
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn accept(&mut self) -> Option<(TcpStream, SocketAddr)> {
        Self::accept(self).await.ok()
    }
}

impl Datagrams for UdpSocket {
    async fn receive(&self, buffer: &mut [u8]) -> Option<(usize, SocketAddr)> {
        self.recv_from(buffer).await.ok()
    }

    fn send(&self, data: &[u8], to: SocketAddr) -> bool {
        self.send_to(data, to).is_ok()
    }
}
