//! What traffic goes through: where it comes in, a [`Sockets`] that listens, and where it goes on, a [`Dial`] and a [`OpenFlow`]. A tailnet node is on one
//! side of it and the cluster on the other; tests use other sockets.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tailwharf_node::splice::Buffers;
use tailwharf_node::{SocketError, TailnetNode, TcpListener, TcpStream, UdpSocket};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::backend::BackendError;
use crate::proxy_protocol::Caller;

/// Opens listeners on the addresses of a node.
pub(crate) trait Sockets: Clone + Send + Sync + 'static {
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

    /// Who is behind an address of the tailnet, if that is known.
    fn caller(&self, peer: SocketAddr) -> Option<Caller>;

    /// The own address of the family of `peer`, if there is one.
    fn own(&self, peer: IpAddr) -> Option<IpAddr>;
}

/// A source of TCP connections.
pub(crate) trait Accept: Send + 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// The next connection and its peer; `None` when there will be no more.
    fn accept(&mut self) -> impl Future<Output = Option<(Self::Stream, SocketAddr)>> + Send;

    /// The port to which a connection came, where the listener takes those of all ports.
    fn asked(_stream: &Self::Stream) -> Option<u16> {
        None
    }

    /// Returns once a peer whose connection was accepted may not have it any more.
    fn revoked(&self, _peer: SocketAddr) -> impl Future<Output = ()> + Send + 'static {
        std::future::pending()
    }

    /// Ends a connection that nobody takes, so that its peer learns of it at once.
    fn refuse(stream: Self::Stream) {
        drop(stream);
    }
}

/// Opens the TCP connections that go on from a listener.
pub(crate) trait Dial: Send + Sync + 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// What the connection begins with, before anything of the client.
    fn header(&self, _client: SocketAddr) -> Option<Vec<u8>> {
        None
    }

    /// Where connections go that came in at a port of their own, though one listener takes those of all ports.
    fn at(self: &Arc<Self>, _port: u16) -> Arc<Self> {
        self.clone()
    }

    /// Connects for a connection that came from `peer`.
    ///
    /// # Errors
    /// Why nobody takes it.
    fn dial(&self, peer: IpAddr) -> impl Future<Output = Result<Self::Stream, BackendError>> + Send;
}

/// Opens the UDP flows that go on from a socket.
pub(crate) trait OpenFlow: Send + Sync + 'static {
    /// One flow.
    type Flow: Flow;

    /// Opens a flow for datagrams that come from there; it goes to the address beside it.
    ///
    /// # Errors
    /// Why there is nowhere to go.
    fn open(
        &self,
        from: Origin,
    ) -> impl Future<Output = Result<(Self::Flow, SocketAddr), BackendError>> + Send;

    /// Where flows may go now; port 0 stands for all.
    fn current(&self) -> impl Future<Output = Vec<SocketAddr>> + Send;
}

/// Where datagrams come from: who sends them, and to which port where one socket has all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Origin {
    /// The sender.
    pub peer: SocketAddr,
    /// The port that it sends to, where the socket does not tell.
    pub port: Option<u16>,
}

impl From<SocketAddr> for Origin {
    fn from(peer: SocketAddr) -> Self {
        Self { peer, port: None }
    }
}

/// What became of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// It is under way.
    Yes,
    /// It could not be sent at this moment.
    Lost,
    /// Nothing can be sent there any more.
    Gone,
}

/// One UDP flow to one address.
pub(crate) trait Flow: Send + Sync + 'static {
    /// Sends a datagram now or not at all.
    fn send(&self, data: &[u8]) -> Sent;

    /// The next datagram that came back, given to `take`.
    ///
    /// # Errors
    /// When none will come any more.
    fn receive(
        &self,
        buffers: &Arc<Buffers>,
        take: impl FnOnce(&[u8]) + Send,
    ) -> impl Future<Output = io::Result<()>> + Send;
}

/// A UDP socket.
pub(crate) trait Datagrams: Send + Sync + 'static {
    /// The next datagram's length and where it comes from; `None` when there will be no more.
    fn receive(&self, buffer: &mut [u8]) -> impl Future<Output = Option<(usize, Origin)>> + Send;

    /// Sends a datagram back, now or not at all; false when it was not sent.
    fn send(&self, data: &[u8], to: Origin) -> bool;
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

    fn caller(&self, peer: SocketAddr) -> Option<Caller> {
        let who = self.whois(peer)?;
        // Tagged devices share a profile that is nobody's.
        let user = match who.node.tags.is_empty() {
            true => who.user.login_name.clone(),
            false => String::new(),
        };
        Some(Caller {
            user,
            device: who.node.name.to_string(),
            tags: who.node.tags.to_vec(),
        })
    }

    fn own(&self, peer: IpAddr) -> Option<IpAddr> {
        let status = self.status();
        let addresses = &status.borrow().addresses;
        addresses
            .iter()
            .copied()
            .find(|own| own.is_ipv4() == peer.is_ipv4())
    }
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn accept(&mut self) -> Option<(TcpStream, SocketAddr)> {
        Self::accept(self).await.ok()
    }
}

impl Datagrams for UdpSocket {
    async fn receive(&self, buffer: &mut [u8]) -> Option<(usize, Origin)> {
        let (length, peer) = self.recv_from(buffer).await.ok()?;
        Some((length, peer.into()))
    }

    fn send(&self, data: &[u8], to: Origin) -> bool {
        self.send_to(data, to.peer).is_ok()
    }
}
