//! Copying between two connections that have left HTTP behind: WebSocket, SPDY, whatever an upgrade led to.
//!
//! A connection that waits holds no buffer: reads go through a buffer of the thread, and only what the other side does not take at once is
//! kept.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// How much is read at once.
const CHUNK: usize = 32 * 1024;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into());
}

/// How many bytes went each way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Relayed {
    /// From the first connection to the second.
    pub forth: u64,
    /// From the second to the first.
    pub back: u64,
}

/// One direction.
#[derive(Debug, Default)]
struct Way {
    kept: BytesMut,
    copied: u64,
    ended: bool,
    closed: bool,
}

impl Way {
    /// Copies until a side makes it wait; ready when everything has been passed on, with the end.
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        moved: &mut bool,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            while !self.kept.is_empty() {
                let written = ready!(Pin::new(&mut *to).poll_write(cx, &self.kept))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                *moved = true;
                self.kept.advance(written);
            }
            self.kept = BytesMut::new();
            if self.ended {
                if !self.closed {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.closed = true;
                }
                return Poll::Ready(Ok(()));
            }
            match self.read(cx, from)? {
                Poll::Ready(()) => *moved = true,
                Poll::Pending => {
                    ready!(Pin::new(&mut *to).poll_flush(cx))?;
                    return Poll::Pending;
                }
            }
        }
    }

    fn read<R: AsyncRead + Unpin>(&mut self, cx: &mut Context<'_>, from: &mut R) -> io::Result<Poll<()>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            match Pin::new(from).poll_read(cx, &mut buffer) {
                Poll::Pending => Ok(Poll::Pending),
                Poll::Ready(Err(error)) => Err(error),
                Poll::Ready(Ok(())) => {
                    let read = buffer.filled();
                    self.ended = read.is_empty();
                    self.copied += read.len() as u64;
                    self.kept.extend_from_slice(read);
                    Ok(Poll::Ready(()))
                }
            }
        })
    }
}

/// Copies both ways until both have ended.
///
/// # Errors
/// When a connection breaks, or nothing has moved for `idle`; both are closed by dropping them then.
pub async fn relay<A, B>(mut one: A, mut other: B, idle: Duration) -> io::Result<Relayed>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut forth, mut back) = (Way::default(), Way::default());
    let mut last = Instant::now();
    let mut timer: Pin<Box<Sleep>> = Box::pin(sleep_until(last + idle));
    poll_fn(|cx| {
        let mut moved = false;
        let there = forth.poll(cx, &mut one, &mut other, &mut moved)?;
        let here = back.poll(cx, &mut other, &mut one, &mut moved)?;
        if there.is_ready() && here.is_ready() {
            return Poll::Ready(Ok(()));
        }
        if moved {
            last = Instant::now();
        }
        // The timer is set anew only when it goes off: that is seldom, while bytes move often.
        while timer.as_mut().poll(cx).is_ready() {
            if last.elapsed() >= idle {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            timer.as_mut().reset(last + idle);
        }
        Poll::Pending
    })
    .await
    .map(|()| Relayed {
        forth: forth.copied,
        back: back.copied,
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn bytes_and_ends_go_both_ways() {
        let (mut client, ours) = duplex(64);
        let (theirs, mut server) = duplex(64);
        let relaying = tokio::spawn(relay(ours, theirs, Duration::from_secs(60)));
        let text = vec![7; 200_000];
        let (sent, read) = (text.clone(), async {
            let mut all = Vec::new();
            server.read_to_end(&mut all).await.unwrap();
            server.write_all(b"bye").await.unwrap();
            server.shutdown().await.unwrap();
            all
        });
        let write = async {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
            let mut end = String::new();
            client.read_to_string(&mut end).await.unwrap();
            end
        };
        let (read, end) = tokio::join!(read, write);
        assert_eq!((read, end.as_str()), (text, "bye"));
        let relayed = relaying.await.unwrap().unwrap();
        assert_eq!((relayed.forth, relayed.back), (200_000, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_it() {
        let (mut client, ours) = duplex(64);
        let (theirs, _server) = duplex(64);
        let began = Instant::now();
        let relaying = tokio::spawn(relay(ours, theirs, Duration::from_secs(60)));
        tokio::time::advance(Duration::from_secs(50)).await;
        client.write_all(b"still here").await.unwrap();
        let error = relaying.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= Duration::from_secs(110));
    }
}
