//! The byte stream inside Noise records.

use std::{
    fmt,
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tailwharf_wire::noise::{MAX_FRAME_LEN, MAX_PLAINTEXT_LEN, Opener, Sealer, Session};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Sealed bytes that may wait for the socket before more are taken.
const OUTBOUND_LIMIT: usize = 4 * MAX_FRAME_LEN;

/// Seals what is written, opens what is read.
pub struct NoiseStream<I> {
    io: I,
    opener: Opener,
    sealer: Sealer,
    /// Sealed, as read.
    inbound: BytesMut,
    /// Opened, not yet asked for.
    plain: BytesMut,
    /// Sealed, not yet written.
    outbound: BytesMut,
}

impl<I> fmt::Debug for NoiseStream<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NoiseStream").finish_non_exhaustive()
    }
}

impl<I> NoiseStream<I> {
    /// The byte stream over `io` once the handshake is done.
    pub fn new(io: I, session: Session) -> Self {
        Self {
            io,
            opener: session.opener,
            sealer: session.sealer,
            inbound: BytesMut::new(),
            plain: BytesMut::new(),
            outbound: BytesMut::new(),
        }
    }
}

impl<I: AsyncWrite + Unpin> NoiseStream<I> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outbound.is_empty() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.outbound))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outbound.advance(written);
        }
        // An idle connection keeps no buffer.
        self.outbound = BytesMut::new();
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncRead + Unpin> NoiseStream<I> {
    /// Waits until `count` bytes can be read, or the other side has ended.
    ///
    /// # Errors
    /// When the connection breaks, or brings what is no record of this session.
    pub(crate) async fn await_bytes(&mut self, count: usize) -> io::Result<()> {
        while self.plain.len() < count && poll_fn(|cx| self.poll_fill(cx)).await? {}
        Ok(())
    }

    /// Opens the next record behind what can be read already. `false` at the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            match self.opener.open(&mut self.inbound) {
                Ok(Some(plain)) => {
                    if self.plain.is_empty() {
                        self.plain = plain;
                    } else {
                        self.plain.extend_from_slice(&plain);
                    }
                    return Poll::Ready(Ok(true));
                }
                Ok(None) => {}
                Err(error) => return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error))),
            }
            let mut chunk = [0; MAX_FRAME_LEN];
            let mut chunk = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut chunk))?;
            if chunk.filled().is_empty() {
                let whole = self.inbound.is_empty();
                return Poll::Ready(if whole {
                    Ok(false)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                });
            }
            self.inbound.extend_from_slice(chunk.filled());
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for NoiseStream<I> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Empty records are no end.
        while this.plain.is_empty() && ready!(this.poll_fill(cx))? {}
        let taken = this.plain.len().min(out.remaining());
        out.put_slice(&this.plain.split_to(taken));
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for NoiseStream<I> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.outbound.len() >= OUTBOUND_LIMIT {
            ready!(this.poll_drain(cx))?;
        }
        let taken = &data[..data.len().min(MAX_PLAINTEXT_LEN)];
        this.sealer
            .seal(taken, &mut this.outbound)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        // What the socket does not take now is written by the next write or flush.
        if let Poll::Ready(Err(error)) = this.poll_drain(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(taken.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}
