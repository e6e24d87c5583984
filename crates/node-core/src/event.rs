//! What a core tells its shell, and the handles of what it holds.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tailwharf_wire::key::NodePublic;

use crate::netmap::Peer;
use crate::paths::Path;
use crate::slab::Key;

macro_rules! handle {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub(crate) Key);
    };
}

handle! {
    /// A TCP listener.
    ListenerId
}
handle! {
    /// A TCP connection.
    ConnId
}
handle! {
    /// A UDP socket.
    UdpId
}
handle! {
    /// A connection that a peer asks for at an address which this node routes.
    AskedId
}

/// A ping that was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PingId(pub(crate) u64);

/// Something that the shell may want to act on.
///
/// `Readable`, `Writable`, `UdpReadable` and `Transit` follow a verb that answered [`Io::Pending`], once for each such answer.
#[derive(Clone, Debug)]
pub enum Event {
    /// A listener has a connection to accept.
    Acceptable(ListenerId),
    /// A connection that we opened stands.
    Connected(ConnId),
    /// A connection has data, its end, or an error to read.
    Readable(ConnId),
    /// A connection takes data again, or has an error to tell.
    Writable(ConnId),
    /// A connection ended otherwise than by both sides closing it. Its handle stays valid until it is closed.
    Closed {
        /// The connection.
        conn: ConnId,
        /// Why it ended.
        reason: CloseReason,
    },
    /// A UDP socket has a datagram.
    UdpReadable(UdpId),
    /// A peer sent something to an address that this node routes.
    Transit,
    /// A ping was answered.
    PingReply {
        /// The ping.
        ping: PingId,
        /// Time from question to answer.
        latency: Duration,
        /// The way that the answer came.
        path: Path,
        /// Our address as the peer saw it, for disco pings.
        seen_as: Option<SocketAddr>,
        /// The port of the peer's API, for TSMP pings of peers that have one.
        peer_api_port: Option<u16>,
    },
    /// A ping had no answer in time.
    PingTimeout(PingId),
    /// A session with a peer was established that had none, or none any more.
    PeerActive {
        /// The peer.
        peer: Arc<Peer>,
        /// The way that the handshake took.
        path: Path,
    },
    /// Packets to a peer take another way than before.
    PathChanged {
        /// The peer.
        peer: NodePublic,
    },
    /// This node may be reached at other addresses than before, or more is known of its network.
    EndpointsChanged,
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// The other side reset it.
    #[error("connection reset by the peer")]
    Reset,
    /// Nothing listens there.
    #[error("connection refused")]
    Refused,
    /// The peer's packet filter does not allow it.
    #[error("connection refused by the tailnet policy of the peer")]
    Denied,
    /// Our packet filter does not allow it any more.
    #[error("the tailnet policy no longer allows the connection")]
    Revoked,
    /// The other side does not answer.
    #[error("connection timed out")]
    TimedOut,
    /// The peer left the tailnet, or is no longer visible.
    #[error("the peer is no longer in the tailnet")]
    PeerGone,
}

/// The result of a verb that may have to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io<T> {
    /// It is done.
    Ready(T),
    /// Not now. An event follows when it is worth another try.
    Pending,
}

/// A connection that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The connection.
    pub conn: ConnId,
    /// Our side.
    pub local: SocketAddr,
    /// The other side.
    pub remote: SocketAddr,
}

/// Why a listener or UDP socket could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
    /// Something of ours has that port already.
    #[error("port {port} is in use")]
    InUse {
        /// The port.
        port: u16,
    },
    /// Port zero where a real one is needed, or no free port is left.
    #[error("no port is available")]
    NoPort,
}

/// Why a connection could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// No peer has that address.
    #[error("no peer of the tailnet has the address of {remote}")]
    NoRoute {
        /// Where to.
        remote: SocketAddr,
    },
    /// This node has no address of that family (yet).
    #[error("this node has no tailnet address to reach {remote} from")]
    NoAddress {
        /// Where to.
        remote: SocketAddr,
    },
    /// All ephemeral ports to that destination are taken.
    #[error("no free port is left for a connection to {remote}")]
    NoPort {
        /// Where to.
        remote: SocketAddr,
    },
    /// The budget for TCP buffers is spent.
    #[error("the memory for TCP connections is used up; close some or raise the limit")]
    NoMemory,
}

/// Why a connection that a peer asked for cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdmitError {
    /// The peer has given up, left, or may not have it any more.
    #[error("the peer asks no longer")]
    Gone,
    /// The budget for TCP buffers is spent.
    #[error("the memory for TCP connections is used up; close some or raise the limit")]
    NoMemory,
}

/// Why a connection's verb failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnError {
    /// The handle is not, or no longer, one of a connection.
    #[error("the connection is closed")]
    NotOpen,
    /// Our side was shut down for writing.
    #[error("the connection was shut down for writing")]
    ShutDown,
    /// The connection ended.
    #[error(transparent)]
    Ended(#[from] CloseReason),
}

/// Why a datagram could not be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UdpError {
    /// The handle is not, or no longer, one of a socket.
    #[error("the socket is closed")]
    NotOpen,
    /// No destination was given and the socket is not connected.
    #[error("the socket is not connected")]
    NotConnected,
    /// Too large for one packet of the tailnet.
    #[error("{size} bytes are too large for a datagram; the limit is {limit}")]
    TooLarge {
        /// Bytes given.
        size: usize,
        /// Bytes possible.
        limit: usize,
    },
    /// No peer has that address.
    #[error("no peer of the tailnet has the address of {remote}")]
    NoRoute {
        /// Where to.
        remote: SocketAddr,
    },
}

/// Why a ping could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PingError {
    /// The peer is not in the netmap, or no way to it is known.
    #[error("no way to the peer is known")]
    NoPath,
    /// The peer has no disco key, or no address of ours fits.
    #[error("the peer does not take this kind of ping")]
    Unsupported,
    /// Too many pings are without answer.
    #[error("too many pings are under way")]
    TooMany,
}

/// Kinds of ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PingKind {
    /// Between the path layers: tells latency and path, needs no session.
    Disco,
    /// Through the tunnel, answered by the node itself whatever its packet filter says.
    Tsmp,
    /// Through the tunnel and the peer's packet filter, answered by its system.
    Icmp,
}

/// Which deadline [`crate::Core::poll_timeout`] names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Retransmission, delayed acknowledgement, keep-alive or end of a TCP connection.
    Tcp,
    /// Fragments of a packet that was never completed.
    Fragments,
    /// Re-keying, keep-alive, retry or end of a WireGuard session.
    WireGuard,
    /// A kept handshake initiation ends.
    HeldHandshake,
    /// A ping without answer.
    Ping,
    /// Care for, or search of, direct paths.
    Paths,
    /// A question to STUN servers.
    Stun,
}
