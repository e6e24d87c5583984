//! A TLS connection over a byte stream.

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::session::{self, Progress, Session};

/// The longest record: header, text, and what sealing may add.
const MAX_RECORD_LEN: usize = 5 + 16 * 1024 + 2048;
/// How many bytes of records are read at once.
const READ_LEN: usize = 64 * 1024;
/// How many bytes of plain text are sealed at once: four full records.
const WRITE_LEN: usize = 64 * 1024;
/// Room for these records, and for a change of keys in front of them.
const SEALED_LEN: usize = WRITE_LEN + 2048;

thread_local! {
    static RECORDS: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_LEN].into());
    static SEALED: RefCell<Box<[u8]>> = RefCell::new(vec![0; SEALED_LEN].into());
}

/// The side that connected.
pub type ClientTls<T> = TlsStream<T, UnbufferedClientConnection>;
/// The side that accepted.
pub type ServerTls<T> = TlsStream<T, UnbufferedServerConnection>;

/// A TLS connection over `T`.
///
/// A write that returned has been sealed, and was sent as far as `T` took it at once; a flush sends the rest.
pub struct TlsStream<T, S> {
    inner: T,
    session: S,
    /// The begin of a record whose end has not come.
    partial: BytesMut,
    /// Opened, and not read yet because the reader had no room.
    plain: BytesMut,
    /// Sealed, and not sent yet.
    unsent: BytesMut,
    progress: Progress,
    /// What is to be told once everything that came before it was read.
    failure: Option<io::Error>,
    closed: bool,
}

/// Connects as a client to the server `name` at the other end of `inner`.
///
/// # Errors
/// When the configuration cannot be used, the connection breaks, or the server does not prove what the configuration asks.
pub async fn connect<T>(
    inner: T,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
) -> io::Result<ClientTls<T>>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let session = UnbufferedClientConnection::new(config, name).map_err(io::Error::other)?;
    TlsStream::shake_hands(inner, session).await
}

/// Serves a client at the other end of `inner`.
///
/// # Errors
/// When the configuration cannot be used, the connection breaks, or the client speaks another protocol.
pub async fn accept<T>(inner: T, config: Arc<ServerConfig>) -> io::Result<ServerTls<T>>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let session = UnbufferedServerConnection::new(config).map_err(io::Error::other)?;
    TlsStream::shake_hands(inner, session).await
}

impl<T, S> TlsStream<T, S> {
    /// What carries the connection.
    pub fn get_ref(&self) -> &T {
        &self.inner
    }
}

impl<T> TlsStream<T, UnbufferedClientConnection> {
    /// The protocol that both sides chose in the handshake (ALPN).
    pub fn alpn(&self) -> Option<&[u8]> {
        self.session.alpn_protocol()
    }
}

impl<T> TlsStream<T, UnbufferedServerConnection> {
    /// The protocol that both sides chose in the handshake (ALPN).
    pub fn alpn(&self) -> Option<&[u8]> {
        self.session.alpn_protocol()
    }
}

impl<T, S> TlsStream<T, S>
where
    T: AsyncRead + AsyncWrite + Unpin,
    S: Session,
{
    async fn shake_hands(inner: T, session: S) -> io::Result<Self> {
        let mut stream = Self {
            inner,
            session,
            partial: BytesMut::new(),
            plain: BytesMut::new(),
            unsent: BytesMut::new(),
            progress: Progress::Shaking,
            failure: None,
            closed: false,
        };
        let (_, progress) = session::open(&mut stream.session, &mut [], &mut stream.unsent, |_| {})?;
        stream.progress = progress;
        poll_fn(|cx| {
            while stream.progress == Progress::Shaking {
                ready!(stream.poll_send(cx))?;
                let done = stream.poll_records(cx, &mut ReadBuf::new(&mut []));
                if let Poll::Ready(Err(_)) = done {
                    // The alert; the error is what the caller must know.
                    let _ = stream.poll_send(cx);
                }
                ready!(done)?;
            }
            stream.poll_send(cx)
        })
        .await?;
        Ok(stream)
    }

    /// Reads records once, and opens them. Plain text goes to `buf`, and what does not fit to `self.plain`.
    fn poll_records(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        RECORDS.with_borrow_mut(|records| {
            let kept = self.partial.len();
            // A chain of certificates may fill several records. Later, no more than the reader has room for, but always a
            // whole record.
            let end = match self.progress {
                Progress::Shaking => READ_LEN,
                Progress::Open | Progress::PeerClosed | Progress::Failed => {
                    buf.remaining().clamp(MAX_RECORD_LEN, READ_LEN)
                }
            };
            let mut read = ReadBuf::new(&mut records[kept..end]);
            ready!(Pin::new(&mut self.inner).poll_read(cx, &mut read))?;
            let filled = read.filled().len();
            if filled == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            records[..kept].copy_from_slice(&self.partial);
            let records = &mut records[..kept + filled];
            let spare = &mut self.plain;
            let opened = session::open(&mut self.session, records, &mut self.unsent, |text| {
                let (now, later) = text.split_at(text.len().min(buf.remaining()));
                buf.put_slice(now);
                spare.extend_from_slice(later);
            });
            // If it fails, that is how it stays.
            self.progress = Progress::Failed;
            let (used, progress) = opened?;
            self.progress = progress;
            keep(&mut self.partial, &records[used..]);
            if self.partial.len() >= end {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            Poll::Ready(Ok(()))
        })
    }

    /// Sends what is sealed.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let sent = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.unsent))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unsent.advance(sent);
            if self.unsent.is_empty() {
                self.unsent = BytesMut::new();
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Makes `kept` hold exactly `bytes`; nothing is allocated for nothing.
fn keep(kept: &mut BytesMut, bytes: &[u8]) {
    if bytes.is_empty() {
        *kept = BytesMut::new();
    } else {
        kept.clear();
        kept.extend_from_slice(bytes);
    }
}

impl<T, S> AsyncRead for TlsStream<T, S>
where
    T: AsyncRead + AsyncWrite + Unpin,
    S: Session,
{
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if !this.plain.is_empty() {
                let len = this.plain.len().min(buf.remaining());
                buf.put_slice(&this.plain[..len]);
                this.plain.advance(len);
                if this.plain.is_empty() {
                    this.plain = BytesMut::new();
                }
            }
            if buf.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            if let Some(failure) = this.failure.take() {
                return Poll::Ready(Err(failure));
            }
            match this.progress {
                Progress::PeerClosed => return Poll::Ready(Ok(())),
                Progress::Failed => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                Progress::Shaking | Progress::Open => {}
            }
            let read = ready!(this.poll_records(cx, buf));
            // An answer of the session itself must not wait for the next write. If there is no room, the next flush sends it.
            let sent = match this.poll_send(cx) {
                Poll::Ready(sent) => sent,
                Poll::Pending => Ok(()),
            };
            this.failure = read.and(sent).err();
        }
    }
}

impl<T, S> AsyncWrite for TlsStream<T, S>
where
    T: AsyncRead + AsyncWrite + Unpin,
    S: Session,
{
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, plain: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        if this.closed || this.progress == Progress::Failed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let plain = &plain[..plain.len().min(WRITE_LEN)];
        SEALED.with_borrow_mut(|sealed| {
            let len = session::seal(
                &mut this.session,
                &mut this.partial,
                &mut this.unsent,
                plain,
                sealed,
            )
            .inspect_err(|_| this.progress = Progress::Failed)?;
            let mut sealed = &sealed[..len];
            // What the session had to say itself comes first.
            let mut blocked = !this.unsent.is_empty() && this.poll_send(cx)?.is_pending();
            while !blocked && !sealed.is_empty() {
                match Pin::new(&mut this.inner).poll_write(cx, sealed)? {
                    Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(sent) => sealed = &sealed[sent..],
                    Poll::Pending => blocked = true,
                }
            }
            this.unsent.extend_from_slice(sealed);
            Poll::Ready(Ok(plain.len()))
        })
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.closed && this.progress != Progress::Failed {
            this.closed = true;
            session::close(&mut this.session, &mut this.partial, &mut this.unsent)?;
        }
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.inner).poll_shutdown(cx)
    }
}

impl<T, S> fmt::Debug for TlsStream<T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream")
            .field("progress", &self.progress)
            .field("unsent", &self.unsent.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
