//! Moves frames between a client and the machine, in batches, by one task that never hands a packet to another.
//!
//! A turn writes what is queued for the client, then reads once. What was read goes to the queues of its receivers, whose tasks
//! run before this one reads again.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::{Ended, FRAME_TIMEOUT, Link, Registration, WRITE_TIMEOUT};

/// How much is read at once.
const READ_LEN: usize = 64 * 1024;
/// The longest frame of a client.
const MAX_FRAME_LEN: usize = 5 + 32 + 256 * 1024;

thread_local! {
    /// Where reads of this thread end up, so that a connection needs no buffer while it waits.
    static READ: RefCell<Box<[u8]>> = RefCell::new(vec![0; MAX_FRAME_LEN + READ_LEN].into());
}

pub(super) struct Pump<'a, S> {
    stream: S,
    link: &'a Link,
    client: &'a Registration<'a>,
    /// The begin of a frame whose end has not come.
    partial: BytesMut,
    /// Taken from the machine, not written.
    out: BytesMut,
    /// Whether what was written is to be flushed.
    unflushed: bool,
    /// When the client has to have finished the frame that it began.
    frame_due: Option<Instant>,
    /// When the client has to have read what was written.
    write_due: Option<Instant>,
    /// Until when nothing is read, because the client sent too much.
    paced_until: Option<Instant>,
    beat: Instant,
}

impl<'a, S> Pump<'a, S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    pub(super) fn new(stream: S, received: BytesMut, link: &'a Link, client: &'a Registration<'a>) -> Self {
        Self {
            stream,
            link,
            client,
            partial: received,
            out: BytesMut::new(),
            unflushed: false,
            frame_due: None,
            write_due: None,
            paced_until: None,
            beat: client.shared.timeout(client.id).into(),
        }
    }

    /// Runs until the client leaves.
    pub(super) async fn run(mut self) -> Result<(), Ended> {
        // What came behind the handshake.
        let mut early = std::mem::take(&mut self.partial);
        let used = self.client.shared.handle_frames(self.client.id, &mut early)?;
        early.advance(used);
        self.keep(&early, used > 0);
        let mut timer = pin!(sleep_until(self.beat));
        poll_fn(|cx| {
            let ended = self.poll(cx);
            if ended.is_ready() {
                return ended;
            }
            self.poll_timer(timer.as_mut(), cx)
        })
        .await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        self.link.register(cx.waker());
        self.link.closed()?;
        match self.poll_write(cx) {
            Poll::Ready(Ok(())) => self.write_due = None,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
            Poll::Pending => {
                self.write_due
                    .get_or_insert_with(|| Instant::now() + WRITE_TIMEOUT);
            }
        }
        if self.paced_until.is_some_and(|until| Instant::now() < until) {
            return Poll::Pending;
        }
        self.paced_until = None;
        if ready!(self.poll_read(cx))? == 0 {
            return Poll::Ready(Ok(()));
        }
        // Those who have got something are served before there is more.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes until nothing is queued any more.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.out.is_empty() {
                self.client.shared.take(self.client.id, &mut self.out);
            }
            if self.out.is_empty() {
                break;
            }
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.out))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(written);
            self.unflushed = true;
            self.write_due = None;
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once, and hands the frames that are complete to the machine. Returns 0 at the end of the stream.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Ended>> {
        READ.with_borrow_mut(|buffer| {
            let kept = self.partial.len();
            let end = buffer.len().min(kept + READ_LEN);
            let mut read = ReadBuf::new(&mut buffer[kept..end]);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read))?;
            let len = read.filled().len();
            buffer[..kept].copy_from_slice(&self.partial);
            let received = &mut buffer[..kept + len];
            let used = self.client.shared.handle_frames(self.client.id, received)?;
            if used > 0 {
                self.paced_until = self.client.shared.paced(self.client.id);
            }
            self.keep(&received[used..], used > 0);
            Poll::Ready(Ok(len))
        })
    }

    /// Keeps the begin of a frame; `finished`: one before it came to its end.
    fn keep(&mut self, rest: &[u8], finished: bool) {
        self.partial.clear();
        if rest.is_empty() {
            // An idle client holds no buffers.
            self.partial = BytesMut::new();
            self.frame_due = None;
            return;
        }
        self.partial.extend_from_slice(rest);
        if finished || self.frame_due.is_none() {
            self.frame_due = Some(Instant::now() + FRAME_TIMEOUT);
        }
    }

    /// Does what is due, and arms `timer` for what is due next.
    fn poll_timer(&mut self, mut timer: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        loop {
            let dues = [self.frame_due, self.write_due, self.paced_until];
            let next = dues.into_iter().flatten().fold(self.beat, Instant::min);
            // A later time needs no change: the timer is looked at again when it fires.
            if next < timer.deadline() || timer.is_elapsed() {
                timer.as_mut().reset(next);
            }
            ready!(timer.as_mut().poll(cx));
            let now = Instant::now();
            let passed = |due: Option<Instant>| due.is_some_and(|due| due <= now);
            if passed(self.frame_due) && self.paced_until.is_none() {
                return Poll::Ready(Err(Ended::SlowFrame));
            }
            if passed(self.write_due) {
                return Poll::Ready(Err(Ended::SlowReader));
            }
            if self.paced_until.is_some() {
                // While it is not read from, a client cannot finish its frame.
                self.frame_due = self.frame_due.map(|_| now + FRAME_TIMEOUT);
            }
            if passed(self.paced_until) {
                cx.waker().wake_by_ref();
                self.paced_until = None;
            }
            if self.beat <= now {
                if self.out.is_empty() {
                    // What a burst has made grow is given back in quieter times.
                    self.out = BytesMut::new();
                }
                self.client.shared.handle_timeout(self.client.id);
                self.beat = self.client.shared.timeout(self.client.id).into();
            }
        }
    }
}
