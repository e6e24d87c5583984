//! What egress needs of a tailnet node, so that it can be tested without one.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tailwharf_node::splice::Buffers;
use tailwharf_node::{DialError, SendError, SocketError, TailnetNode, TcpStream, UdpError, UdpSocket};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::sockets::{Flow, Sent};

/// The way to devices of a tailnet.
pub(crate) trait Tailnet: Clone + Send + Sync + 'static {
    /// A TCP connection.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;
    /// A UDP flow.
    type Flow: Flow;

    /// The addresses behind a name, IPv4 first. Empty: nobody has it.
    fn resolve(&self, name: &str) -> Vec<IpAddr>;

    /// Whether the address is one of this device.
    fn is_own(&self, address: IpAddr) -> bool;

    /// Whether the control server says that the device with the address is away.
    fn is_away(&self, address: IpAddr) -> bool;

    /// Opens a connection.
    ///
    /// # Errors
    /// What is in the way.
    fn connect(&self, to: SocketAddr) -> impl Future<Output = Result<Self::Stream, DialError>> + Send;

    /// Opens a flow.
    ///
    /// # Errors
    /// When the node has no port left or has ended.
    fn flow(&self, to: SocketAddr) -> Result<Self::Flow, SocketError>;
}

impl Tailnet for Arc<dyn TailnetNode> {
    type Stream = TcpStream;
    type Flow = NodeFlow;

    fn resolve(&self, name: &str) -> Vec<IpAddr> {
        TailnetNode::resolve(&**self, name)
    }

    fn is_own(&self, address: IpAddr) -> bool {
        self.status().borrow().addresses.contains(&address)
    }

    fn is_away(&self, address: IpAddr) -> bool {
        self.whois(SocketAddr::new(address, 0))
            .is_some_and(|who| who.node.online == Some(false))
    }

    async fn connect(&self, to: SocketAddr) -> Result<TcpStream, DialError> {
        self.dial_tcp(to).await
    }

    fn flow(&self, to: SocketAddr) -> Result<NodeFlow, SocketError> {
        let socket = self.bind_udp(0)?;
        Ok(NodeFlow { socket, to })
    }
}

/// A UDP flow through a node.
pub(crate) struct NodeFlow {
    socket: UdpSocket,
    to: SocketAddr,
}

impl Flow for NodeFlow {
    fn send(&self, data: &[u8]) -> Sent {
        match self.socket.send_to(data, self.to) {
            Ok(()) => Sent::Yes,
            Err(SendError::Udp(UdpError::TooLarge { .. })) => Sent::Lost,
            Err(SendError::Udp(_) | SendError::Closed) => Sent::Gone,
        }
    }

    async fn receive(&self, _: &Arc<Buffers>, take: impl FnOnce(&[u8]) + Send) -> io::Result<()> {
        loop {
            let datagram = self.socket.recv().await.map_err(io::Error::other)?;
            // Others may know the port; this flow is with one address.
            if datagram.from == self.to {
                take(&datagram.payload);
                return Ok(());
            }
        }
    }
}
