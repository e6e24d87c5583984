//! A connection whose bytes were looked at by [`Framing`] before anything reads them.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::framing::{Framing, Piece, Violation};

/// Stands in for a head that is refused, so that the refusal is answered in its turn and as every other.
const SUBSTITUTE: &[u8] = b"GET / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";

/// Which request of the connection was refused, counted from one, and why.
#[derive(Debug, Default)]
pub(crate) struct Finding(Mutex<Option<(u64, Violation)>>);

impl Finding {
    /// What is wrong with the request of this number.
    pub(crate) fn of(&self, request: u64) -> Option<Violation> {
        let found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        found
            .filter(|(number, _)| *number == request)
            .map(|(_, violation)| violation)
    }

    fn set(&self, request: u64, violation: Violation) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((request, violation));
    }
}

/// A connection that passes only what is framed strictly.
#[derive(Debug)]
pub(crate) struct Strict<T> {
    inner: T,
    framing: Framing,
    /// Read and not looked at to the end.
    held: BytesMut,
    /// Looked at, and on its way to the reader.
    passed: BytesMut,
    finding: Arc<Finding>,
    refused: bool,
}

impl<T> Strict<T> {
    pub(crate) fn new(inner: T, finding: Arc<Finding>) -> Self {
        Self {
            inner,
            framing: Framing::default(),
            held: BytesMut::new(),
            passed: BytesMut::new(),
            finding,
            refused: false,
        }
    }

    /// Ends the connection for what was found: by an answer if a head is at fault, else at once.
    fn refuse(&mut self, violation: Violation) -> io::Result<()> {
        self.held.clear();
        if !self.framing.at_head() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, violation));
        }
        self.finding.set(self.framing.heads() + 1, violation);
        self.refused = true;
        self.passed.extend_from_slice(SUBSTITUTE);
        Ok(())
    }
}

impl<T: AsyncRead + Unpin> Strict<T> {
    /// Reads more behind what is held. `false` at the end.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let length = self.held.len();
        self.held.resize(length + 4096, 0);
        let mut room = ReadBuf::new(&mut self.held[length..]);
        let polled = Pin::new(&mut self.inner).poll_read(cx, &mut room);
        let read = room.filled().len();
        self.held.truncate(length + read);
        ready!(polled)?;
        Poll::Ready(Ok(read > 0))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Strict<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.passed.is_empty() {
                let length = this.passed.len().min(buf.remaining());
                buf.put_slice(&this.passed[..length]);
                this.passed.advance(length);
                return Poll::Ready(Ok(()));
            }
            if this.refused {
                // The answer ends the connection; an end of what can be read would come before it.
                return Poll::Pending;
            }
            if this.held.is_empty() {
                let before = buf.filled().len();
                ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
                let new = &buf.filled()[before..];
                if new.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                match this.framing.inspect(new) {
                    Ok(Piece::Pass(length)) => {
                        this.held.extend_from_slice(&new[length..]);
                        buf.set_filled(before + length);
                        return Poll::Ready(Ok(()));
                    }
                    Ok(Piece::Partial) => {
                        this.held.extend_from_slice(new);
                        buf.set_filled(before);
                    }
                    Err(violation) => {
                        buf.set_filled(before);
                        this.refuse(violation)?;
                    }
                }
                continue;
            }
            match this.framing.inspect(&this.held) {
                Ok(Piece::Pass(length)) => this.passed = this.held.split_to(length),
                Ok(Piece::Partial) => {
                    if !ready!(this.poll_more(cx))? {
                        return Poll::Ready(Ok(()));
                    }
                }
                Err(violation) => this.refuse(violation)?,
            }
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Strict<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, data)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
