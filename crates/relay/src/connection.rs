//! One client: proof of its key, then frames in and frames out.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rand::rngs::OsRng;
use tailwharf_wire::derp::{ClientInfo, DerpError, Frame, PROTOCOL_VERSION, ServerInfo};
use tailwharf_wire::key::NodePublic;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

use crate::machine::{ClientId, CloseReason};
use crate::server::Shared;

/// How long a client may take to prove its key.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take to read what was written to it at once.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take between the begin and the end of a frame.
const FRAME_TIMEOUT: Duration = Duration::from_secs(30);
/// How much is read at once. The largest TLS record is 16 KiB.
const READ_LEN: usize = 64 * 1024;

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
    wake: Notify,
    close: OnceLock<CloseReason>,
}

impl Link {
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    pub(crate) fn close(&self, reason: CloseReason) {
        // The machine forgets a client when it closes it, so there is only one reason.
        let _ = self.close.set(reason);
        self.wake.notify_one();
    }
}

/// Serves DERP on `stream`, of which `early` was read before, until the client leaves.
pub(crate) async fn serve<S>(stream: S, early: Bytes, shared: &Arc<Shared>) -> Result<(), Ended>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut received = BytesMut::from(early);
    let hello = handshake(&mut reader, &mut writer, &mut received, shared);
    let (key, info) = timeout(HANDSHAKE_TIMEOUT, hello)
        .await
        .map_err(|_| Ended::HandshakeTimeout)??;

    let link = Arc::new(Link::default());
    let client = Registration {
        id: shared.connect(key, info.can_ack_pings, link.clone()),
        shared,
    };
    tracing::debug!(%key, "client connected");
    let done = tokio::select! {
        read = read_frames(&mut reader, received, &client) => read,
        written = write_frames(&mut writer, &link, &client) => written,
    };
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

async fn handshake<R, W>(
    reader: &mut R,
    writer: &mut W,
    received: &mut BytesMut,
    shared: &Shared,
) -> Result<(NodePublic, ClientInfo), Ended>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let relay = shared.key();
    let mut out = BytesMut::new();
    Frame::ServerKey(relay.public()).encode(&mut out);
    writer.write_all(&out).await?;
    writer.flush().await?;

    let first = loop {
        if let Some(frame) = Frame::decode(received)? {
            break frame;
        }
        if read(reader, received).await? == 0 {
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
    let answer = ServerInfo {
        version: PROTOCOL_VERSION,
        ..ServerInfo::default()
    };
    answer.seal(relay, &key, &mut OsRng)?.encode(&mut out);
    writer.write_all(&out).await?;
    writer.flush().await?;
    Ok((key, info))
}

async fn read_frames<R: AsyncRead + Unpin>(
    reader: &mut R,
    mut received: BytesMut,
    client: &Registration<'_>,
) -> Result<(), Ended> {
    let mut frames = Vec::new();
    let mut deadline = None;
    loop {
        while let Some(frame) = Frame::decode(&mut received)? {
            frames.push(frame);
        }
        let finished = !frames.is_empty();
        if finished {
            client.shared.handle_frames(client.id, &mut frames);
        }
        let len = if received.is_empty() {
            // An idle client holds no buffers.
            received = BytesMut::new();
            frames = Vec::new();
            deadline = None;
            read(reader, &mut received).await?
        } else {
            let begun = deadline.filter(|_| !finished);
            let at = *deadline.insert(begun.unwrap_or_else(|| Instant::now() + FRAME_TIMEOUT));
            timeout_at(at, read(reader, &mut received))
                .await
                .map_err(|_| Ended::SlowFrame)??
        };
        if len == 0 {
            return Ok(());
        }
    }
}

thread_local! {
    /// Where reads of this thread end up first, so that a connection needs no buffer while it waits.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_LEN].into());
}

/// Appends what can be read at once to `into`. Returns 0 at the end of the stream.
async fn read<R: AsyncRead + Unpin>(reader: &mut R, into: &mut BytesMut) -> io::Result<usize> {
    poll_fn(|cx| {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buf = ReadBuf::new(scratch);
            ready!(Pin::new(&mut *reader).poll_read(cx, &mut buf))?;
            into.extend_from_slice(buf.filled());
            Poll::Ready(Ok(buf.filled().len()))
        })
    })
    .await
}

async fn write_frames<W: AsyncWrite + Unpin>(
    writer: &mut W,
    link: &Link,
    client: &Registration<'_>,
) -> Result<(), Ended> {
    let mut batch = Batch::default();
    loop {
        batch.write_queued(writer, client).await?;
        let beat = client.shared.timeout(client.id);
        tokio::select! {
            () = link.wake.notified() => {}
            () = tokio::time::sleep_until(beat.into()) => {
                // What a burst has made grow is given back in quieter times.
                batch = Batch::default();
                client.shared.handle_timeout(client.id);
            }
        }
        match link.close.get() {
            Some(CloseReason::Replaced) => return Err(Ended::Replaced),
            Some(CloseReason::Silent) => return Err(Ended::Silent),
            None => {}
        }
    }
}

/// Frames that are written at once.
#[derive(Default)]
struct Batch {
    frames: Vec<Frame>,
    bytes: BytesMut,
}

impl Batch {
    /// Writes and flushes what is queued for a client, until nothing is left.
    async fn write_queued<W: AsyncWrite + Unpin>(
        &mut self,
        writer: &mut W,
        client: &Registration<'_>,
    ) -> Result<(), Ended> {
        loop {
            client.shared.take(client.id, &mut self.frames);
            if self.frames.is_empty() {
                return Ok(());
            }
            self.bytes.clear();
            for frame in self.frames.drain(..) {
                frame.encode(&mut self.bytes);
            }
            let write = async {
                writer.write_all(&self.bytes).await?;
                writer.flush().await
            };
            timeout(WRITE_TIMEOUT, write)
                .await
                .map_err(|_| Ended::SlowReader)??;
        }
    }
}

#[cfg(test)]
mod tests;
