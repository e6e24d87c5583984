//! One client: proof of its key, then frames in and frames out.

mod pump;

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::task::AtomicWaker;
use rand::rngs::OsRng;
use tailwharf_wire::derp::{ClientInfo, DerpError, Frame, PROTOCOL_VERSION, ServerInfo};
use tailwharf_wire::key::NodePublic;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use self::pump::Pump;

use crate::machine::{ClientId, CloseReason, Rate};
use crate::shared::Shared;

/// How long a client may take to prove its key.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take to read what was written to it at once.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take between the begin and the end of a frame.
const FRAME_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a connection ended, other than by the client's own wish.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    /// The connection broke.
    #[error("the connection broke")]
    Io(#[from] io::Error),
    /// The client sent what is no DERP.
    #[error(transparent)]
    Malformed(#[from] DerpError),
    /// The client's first frame does not say who it is.
    #[error("the first frame is not a client info")]
    NoClientInfo,
    /// The client did not prove its key in time.
    #[error("the client did not prove its key within {} seconds", HANDSHAKE_TIMEOUT.as_secs())]
    HandshakeTimeout,
    /// The client is no node of this tailnet.
    #[error("the node {0} is not admitted to this relay")]
    NotAdmitted(NodePublic),
    /// The client does not finish a frame.
    #[error("a frame was not finished within {} seconds", FRAME_TIMEOUT.as_secs())]
    SlowFrame,
    /// The client does not read.
    #[error("the client did not read for {} seconds", WRITE_TIMEOUT.as_secs())]
    SlowReader,
    /// The same node connected once more.
    #[error("the node connected once more")]
    Replaced,
    /// The client does not answer pings.
    #[error("the client does not answer pings")]
    Silent,
}

impl Ended {
    /// Whether the client is to blame, rather than the network or nobody.
    pub(crate) const fn is_fault(&self) -> bool {
        match self {
            Self::Malformed(_)
            | Self::NoClientInfo
            | Self::HandshakeTimeout
            | Self::SlowFrame
            | Self::SlowReader => true,
            Self::Io(_) | Self::NotAdmitted(_) | Self::Replaced | Self::Silent => false,
        }
    }
}

/// How the machine's commands reach a connection.
#[derive(Debug, Default)]
pub(crate) struct Link {
    task: AtomicWaker,
    close: OnceLock<CloseReason>,
}

impl Link {
    pub(crate) fn wake(&self) {
        self.task.wake();
    }

    pub(crate) fn close(&self, reason: CloseReason) {
        // The machine forgets a client when it closes it, so there is only one reason.
        let _ = self.close.set(reason);
        self.task.wake();
    }

    /// From here on `task` is woken, until another one is.
    fn register(&self, task: &Waker) {
        self.task.register(task);
    }

    fn closed(&self) -> Result<(), Ended> {
        match self.close.get() {
            Some(CloseReason::Replaced) => Err(Ended::Replaced),
            Some(CloseReason::Silent) => Err(Ended::Silent),
            None => Ok(()),
        }
    }
}

/// Serves DERP on `stream`, from `source`, of which `early` was read before, until the client leaves.
pub(crate) async fn serve<S>(
    mut stream: S,
    source: IpAddr,
    early: Bytes,
    shared: &Arc<Shared>,
) -> Result<(), Ended>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut received = BytesMut::from(early);
    let hello = handshake(&mut stream, &mut received, shared);
    let (key, info) = timeout(HANDSHAKE_TIMEOUT, hello)
        .await
        .map_err(|_| Ended::HandshakeTimeout)??;

    let link = Arc::new(Link::default());
    let client = Registration {
        id: shared.connect(key, source, info.can_ack_pings, link.clone()),
        shared,
    };
    tracing::debug!(%key, "client connected");
    let done = Pump::new(stream, received, &link, &client).run().await;
    drop(client);
    tracing::debug!(%key, "client gone");
    done
}

/// A client as long as the machine knows it.
struct Registration<'a> {
    id: ClientId,
    shared: &'a Shared,
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        self.shared.disconnect(self.id);
    }
}

async fn handshake<S>(
    stream: &mut S,
    received: &mut BytesMut,
    shared: &Shared,
) -> Result<(NodePublic, ClientInfo), Ended>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let relay = shared.key();
    let mut out = BytesMut::new();
    Frame::ServerKey(relay.public()).encode(&mut out);
    stream.write_all(&out).await?;
    stream.flush().await?;

    let first = loop {
        if let Some(frame) = Frame::decode(received)? {
            break frame;
        }
        if stream.read_buf(received).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    };
    let Frame::ClientInfo { key, sealed } = first else {
        return Err(Ended::NoClientInfo);
    };
    let info = ClientInfo::open(&sealed, &key, relay)?;
    if !shared.admits(&key) {
        return Err(Ended::NotAdmitted(key));
    }
    out.clear();
    shared.info().seal(relay, &key, &mut OsRng)?.encode(&mut out);
    stream.write_all(&out).await?;
    stream.flush().await?;
    Ok((key, info))
}

/// What the relay tells each client about its limits.
pub(crate) fn info(rate: Option<Rate>) -> ServerInfo {
    ServerInfo {
        version: PROTOCOL_VERSION,
        token_bucket_bytes_per_second: rate.map_or(0, |rate| rate.bytes_per_second),
        token_bucket_bytes_burst: rate.map_or(0, |rate| rate.burst),
    }
}

#[cfg(test)]
mod tests;
