//! A stream that fails when its peer does nothing for too long, so that a connection cannot be held for ever.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// How long a peer may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StallLimits {
    /// To send its first byte.
    pub first: Duration,
    /// To send anything later on, while we wait for it.
    pub read: Duration,
    /// To take anything of what we have for it.
    pub write: Duration,
}

/// One direction: since when nothing moves, and a timer that is made once it matters.
#[derive(Debug)]
struct Watch {
    limit: Duration,
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Watch {
    fn new(limit: Duration) -> Self {
        Self {
            limit,
            since: None,
            timer: None,
        }
    }

    /// Turns a wait that takes too long into an error.
    fn judge<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.since = None;
            return polled;
        }
        let now = Instant::now();
        let since = *self.since.get_or_insert(now);
        let until = since + self.limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
        // A timer of an earlier wait goes off early, and is set anew then.
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= until {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            timer.as_mut().reset(until);
        }
        Poll::Pending
    }
}

/// A stream under [`StallLimits`].
#[derive(Debug)]
pub struct Stall<T> {
    inner: T,
    /// The limit for reads after the first.
    later: Duration,
    reading: Watch,
    writing: Watch,
}

impl<T> Stall<T> {
    /// Puts limits on `inner`.
    pub fn new(inner: T, limits: StallLimits) -> Self {
        Self {
            inner,
            later: limits.read,
            reading: Watch::new(limits.first),
            writing: Watch::new(limits.write),
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Stall<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_read(cx, buf);
        if polled.is_ready() {
            this.reading.limit = this.later;
        }
        this.reading.judge(cx, polled)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Stall<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_write(cx, data);
        // Whoever takes something does not stall us, even if that is all we have to read from it.
        if polled.is_ready() {
            this.reading.since = None;
        }
        this.writing.judge(cx, polled)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_flush(cx);
        this.writing.judge(cx, polled)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_shutdown(cx);
        this.writing.judge(cx, polled)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_write_vectored(cx, slices);
        if polled.is_ready() {
            this.reading.since = None;
        }
        this.writing.judge(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    const LIMITS: StallLimits = StallLimits {
        first: Duration::from_secs(5),
        read: Duration::from_secs(100),
        write: Duration::from_secs(10),
    };

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_left() {
        let (ours, _theirs) = duplex(16);
        let mut stream = Stall::new(ours, LIMITS);
        let began = Instant::now();
        let error = stream.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= LIMITS.write && began.elapsed() < LIMITS.read);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_is_slow_but_steady_is_not() {
        let (ours, mut theirs) = duplex(16);
        let mut stream = Stall::new(ours, LIMITS);
        let reader = async {
            let mut byte = [0; 1];
            for _ in 0..64 {
                tokio::time::sleep(Duration::from_secs(9)).await;
                theirs.read_exact(&mut byte).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(stream.write_all(&[0; 64]), reader);
        written.unwrap();
        let error = stream.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_byte_has_to_come_soon() {
        let (ours, mut theirs) = duplex(16);
        let mut stream = Stall::new(ours, LIMITS);
        let began = Instant::now();
        stream.read_u8().await.unwrap_err();
        assert!(began.elapsed() >= LIMITS.first && began.elapsed() < LIMITS.read);
        theirs.write_u8(1).await.unwrap();
        stream.read_u8().await.unwrap();
        let began = Instant::now();
        stream.read_u8().await.unwrap_err();
        assert!(began.elapsed() >= LIMITS.read);
    }
}
