//! Copies bytes between two connections, both ways, until both sides have ended.
//!
//! The end of one direction is passed on (half close) while the other goes on. A buffer is held only while a side has
//! bytes that the other did not take yet, so back pressure costs one buffer a direction and silence costs nothing.

mod buffers;

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use self::buffers::LARGE;
pub use self::buffers::{Buffer, Buffers};

/// Reads after which a direction lets other tasks run.
const READS_A_TURN: u32 = 16;

/// How long a connection may be silent. Silence is noticed after one to two of these times.
#[derive(Debug, Clone, Copy)]
pub struct IdleLimits {
    /// While both directions are open.
    pub open: Duration,
    /// After one side has ended its direction.
    pub half_closed: Duration,
}

impl Default for IdleLimits {
    /// Two hours, as long as other systems take before they ask whether anybody is there; ten minutes for half a connection.
    fn default() -> Self {
        Self {
            open: Duration::from_secs(2 * 60 * 60),
            half_closed: Duration::from_secs(10 * 60),
        }
    }
}

/// Bytes carried, for the metrics; updated while connections run.
#[derive(Debug, Default)]
pub struct Traffic {
    /// From the tailnet to backends.
    pub to_backend: AtomicU64,
    /// From backends to the tailnet.
    pub from_backend: AtomicU64,
}

/// Why a connection ended before both sides had.
#[derive(Debug, thiserror::Error)]
pub enum SpliceError {
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
pub async fn splice<A, B>(
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
        let up_done = up.poll_copy(
            cx,
            tailnet.as_mut(),
            backend.as_mut(),
            buffers,
            &traffic.to_backend,
        )?;
        let down_done = down.poll_copy(
            cx,
            backend.as_mut(),
            tailnet.as_mut(),
            buffers,
            &traffic.from_backend,
        )?;
        if up_done.is_ready() && down_done.is_ready() {
            return Poll::Ready(Ok(()));
        }
        let one_open = up_done.is_ready() || down_done.is_ready();
        let limit = if one_open { idle.half_closed } else { idle.open };
        ready!(poll_silence(
            cx,
            timer.as_mut(),
            &mut moved_before,
            up.moved + down.moved,
            limit
        ));
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    const IDLE: IdleLimits = IdleLimits {
        open: Duration::from_secs(60),
        half_closed: Duration::from_secs(10),
    };

    /// A spliced pair: the client's end, the server's end, and the outcome.
    fn pair(
        room: usize,
    ) -> (
        DuplexStream,
        DuplexStream,
        tokio::task::JoinHandle<Result<(), SpliceError>>,
        Arc<Traffic>,
    ) {
        let (client, near) = duplex(room);
        let (server, far) = duplex(room);
        let traffic = Arc::new(Traffic::default());
        let counted = traffic.clone();
        let copy = tokio::spawn(async move { splice(near, far, &Arc::default(), &counted, IDLE).await });
        (client, server, copy, traffic)
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_one_direction_leaves_the_other_open() {
        let (mut client, mut server, copy, traffic) = pair(64);
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut asked = String::new();
        server.read_to_string(&mut asked).await.unwrap();
        assert_eq!(asked, "question");
        server.write_all(b"a long answer").await.unwrap();
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "a long answer");
        copy.await.unwrap().unwrap();
        assert_eq!(traffic.to_backend.load(Ordering::Relaxed), 8);
        assert_eq!(traffic.from_backend.load(Ordering::Relaxed), 13);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_connection_and_a_word_now_and_then_does_not() {
        let (mut client, mut server, copy, _) = pair(64);
        for _ in 0..20 {
            sleep(Duration::from_secs(50)).await;
            client.write_all(b"x").await.unwrap();
            assert_eq!(server.read_u8().await.unwrap(), b'x');
        }
        assert!(!copy.is_finished());
        let silent = Instant::now();
        assert!(matches!(copy.await.unwrap(), Err(SpliceError::Idle)));
        assert!(silent.elapsed() <= IDLE.open * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_half_closed_connection_may_be_silent_for_less() {
        let (mut client, _server, copy, _) = pair(64);
        client.shutdown().await.unwrap();
        let silent = Instant::now();
        assert!(matches!(copy.await.unwrap(), Err(SpliceError::Idle)));
        assert!(silent.elapsed() <= IDLE.half_closed * 2);
    }

    #[tokio::test]
    async fn back_pressure_holds_the_writer_and_loses_nothing() {
        const SIZE: usize = 4 << 20;
        let (mut client, mut server, copy, traffic) = pair(32 * 1024);
        let sent: Vec<u8> = (0..SIZE).map(|n| (n * 7 + n / 251) as u8).collect();
        let expected = sent.clone();
        let written = Arc::new(AtomicU64::new(0));
        let count = written.clone();
        let writer = tokio::spawn(async move {
            for chunk in sent.chunks(10_000) {
                client.write_all(chunk).await.unwrap();
                count.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            }
            client.shutdown().await.unwrap();
            client
        });
        // Nobody reads: the writer gets no further than the pipes and one buffer hold.
        while traffic.to_backend.load(Ordering::Relaxed) < 32 * 1024 {
            tokio::task::yield_now().await;
        }
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(written.load(Ordering::Relaxed) <= (2 * 32 * 1024 + LARGE) as u64);
        let mut received = Vec::new();
        server.read_to_end(&mut received).await.unwrap();
        assert!(
            received == expected,
            "{} of {SIZE} bytes, or others",
            received.len()
        );
        drop(server);
        writer.await.unwrap();
        copy.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn silent_connections_hold_no_buffer() {
        let buffers = Arc::new(Buffers::default());
        let (mut client, near) = duplex(64);
        let (mut server, far) = duplex(64);
        let shared = buffers.clone();
        let copy = tokio::spawn(async move {
            let _ = splice(near, far, &shared, &Traffic::default(), IDLE).await;
        });
        client.write_all(b"x").await.unwrap();
        assert_eq!(server.read_u8().await.unwrap(), b'x');
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        // The task's own share, ours and none in a buffer on loan.
        assert_eq!(Arc::strong_count(&buffers), 2);
        copy.abort();
    }

    #[tokio::test]
    async fn the_failure_of_one_side_ends_both() {
        let (client, server, copy, _) = pair(64);
        drop(server);
        let mut client = client;
        let _ = client.write_all(&[0; 1000]).await;
        drop(client);
        // A broken pipe, or both ends seen as ended, by the order of events; never a hang.
        tokio::time::timeout(Duration::from_secs(10), copy)
            .await
            .unwrap()
            .unwrap()
            .ok();
    }
}
