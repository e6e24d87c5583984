//! Copies bytes between two connections, both ways, until both sides have ended.
//!
//! The end of one direction is passed on (half close) while the other goes on. A buffer is held only while a side has
//! bytes that the other did not take yet, so back pressure costs one buffer a direction and silence costs nothing.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use crate::buffers::{Buffer, Buffers, LARGE};

/// Reads after which a direction lets other tasks run.
const READS_A_TURN: u32 = 16;

/// How long a connection may be silent. Silence is noticed after one to two of these times.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IdleLimits {
    /// While both directions are open.
    pub open: Duration,
    /// After one side has ended its direction.
    pub half_closed: Duration,
}

/// Bytes carried, for the metrics; updated while connections run.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// From the tailnet to backends.
    pub to_backend: AtomicU64,
    /// From backends to the tailnet.
    pub from_backend: AtomicU64,
}

/// Why a connection ended before both sides had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpliceError {
    /// Reading from the tailnet or writing to it failed.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// Nothing was said for too long.
    #[error("the connection was idle for too long")]
    Idle,
}

/// Copies between a tailnet connection and a backend connection until both directions have ended.
///
/// # Errors
/// When either side fails, or falls silent for longer than the limits. Both connections are to be dropped then.
pub(crate) async fn splice<A, B>(
    tailnet: A,
    backend: B,
    buffers: &Arc<Buffers>,
    traffic: &Traffic,
    idle: IdleLimits,
) -> Result<(), SpliceError>
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let (mut tailnet, mut backend) = (pin!(tailnet), pin!(backend));
    let mut up = Direction::default();
    let mut down = Direction::default();
    let mut timer = pin!(sleep(idle.open));
    let mut moved_before = 0;
    poll_fn(|cx| {
        let up_done = up.poll_copy(cx, tailnet.as_mut(), backend.as_mut(), buffers, &traffic.to_backend)?;
        let down_done =
            down.poll_copy(cx, backend.as_mut(), tailnet.as_mut(), buffers, &traffic.from_backend)?;
        if up_done.is_ready() && down_done.is_ready() {
            return Poll::Ready(Ok(()));
        }
        let one_open = up_done.is_ready() || down_done.is_ready();
        let limit = if one_open { idle.half_closed } else { idle.open };
        ready!(poll_silence(cx, timer.as_mut(), &mut moved_before, up.moved + down.moved, limit));
        Poll::Ready(Err(SpliceError::Idle))
    })
    .await
}

/// Ready when nothing was moved for a whole period. The timer is touched once a period, not once a read.
fn poll_silence(
    cx: &mut Context<'_>,
    mut timer: Pin<&mut Sleep>,
    moved_before: &mut u64,
    moved: u64,
    limit: Duration,
) -> Poll<()> {
    let latest = Instant::now() + limit;
    if timer.deadline() > latest {
        timer.as_mut().reset(latest);
    }
    loop {
        ready!(timer.as_mut().poll(cx));
        if *moved_before == moved {
            return Poll::Ready(());
        }
        *moved_before = moved;
        timer.as_mut().reset(Instant::now() + limit);
    }
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Copying,
    /// The reader has ended; the writer has to be told.
    Closing,
    Done,
}

/// One direction of a connection.
#[derive(Debug, Default)]
struct Direction {
    state: State,
    buffer: Option<Buffer>,
    start: usize,
    end: usize,
    /// The last read filled its buffer: the next may use a large one.
    busy: bool,
    unflushed: bool,
    moved: u64,
}

impl Direction {
    fn poll_copy<R: AsyncRead, W: AsyncWrite>(
        &mut self,
        cx: &mut Context<'_>,
        mut from: Pin<&mut R>,
        mut to: Pin<&mut W>,
        buffers: &Arc<Buffers>,
        counter: &AtomicU64,
    ) -> Poll<io::Result<()>> {
        let mut reads = 0;
        loop {
            match self.state {
                State::Done => return Poll::Ready(Ok(())),
                State::Closing => {
                    ready!(to.as_mut().poll_shutdown(cx))?;
                    self.state = State::Done;
                }
                State::Copying if self.start < self.end => {
                    ready!(self.poll_drain(cx, to.as_mut(), counter))?;
                }
                State::Copying if reads == READS_A_TURN => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                State::Copying => {
                    reads += 1;
                    if self.poll_fill(cx, from.as_mut(), buffers)?.is_pending() {
                        self.buffer = None;
                        if self.unflushed {
                            ready!(to.as_mut().poll_flush(cx))?;
                            self.unflushed = false;
                        }
                        return Poll::Pending;
                    }
                }
            }
        }
    }

    /// Reads once into a buffer of the size that the last read suggests.
    fn poll_fill<R: AsyncRead>(
        &mut self,
        cx: &mut Context<'_>,
        from: Pin<&mut R>,
        buffers: &Arc<Buffers>,
    ) -> Poll<io::Result<()>> {
        if self.busy && self.buffer.as_ref().is_none_or(|buffer| buffer.len() < LARGE) {
            self.buffer = Some(buffers.large());
        }
        let buffer = self.buffer.get_or_insert_with(|| buffers.small());
        let mut read = ReadBuf::new(buffer);
        ready!(from.poll_read(cx, &mut read))?;
        let (filled, full) = (read.filled().len(), read.remaining() == 0);
        self.busy = full || (self.busy && filled >= LARGE / 4);
        (self.start, self.end) = (0, filled);
        if filled == 0 {
            self.buffer = None;
            self.state = State::Closing;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what was read.
    fn poll_drain<W: AsyncWrite>(
        &mut self,
        cx: &mut Context<'_>,
        mut to: Pin<&mut W>,
        counter: &AtomicU64,
    ) -> Poll<io::Result<()>> {
        while self.start < self.end {
            let Some(buffer) = &self.buffer else { break };
            let written = ready!(to.as_mut().poll_write(cx, &buffer[self.start..self.end]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.start += written;
            self.moved += written as u64;
            self.unflushed = true;
            counter.fetch_add(written as u64, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}
