//! One relay connection: a task that keeps it open and moves frames both ways.
//!
//! ```text
//! connect ──ok──► pump ──idle and not home──► retired
//!    ▲              │
//!    └── backoff ◄──┴── broke off, silent, relay restarts
//! ```

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use futures::task::AtomicWaker;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tailwharf_wire::derp::{DerpError, Frame, MAX_OTHER_LEN, RawFrame, recv_packet_len};
use tailwharf_wire::tailcfg::RegionId;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::connect::{self, Connection, RelayError};
use super::home;
use crate::backoff::Backoff;
use crate::engine::Engine;
use crate::stream::MaybeTls;
use crate::sync::lock;

/// A relay sends a keep-alive each minute; one that is silent for two is gone.
const READ_TIMEOUT: Duration = Duration::from_secs(120);

/// A connection that is not the home's is closed when nothing went through it for this long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// What waits for the relay. More is dropped: the senders inside the tunnel notice and slow down.
const MAX_QUEUED: usize = 512 << 10;

/// What waits while the connection is being made: some handshakes, not traffic.
const MAX_QUEUED_UNCONNECTED: usize = 32 << 10;

/// How much is read at once.
const READ_LEN: usize = 64 << 10;

/// The longest frame that a relay sends after its greeting.
const MAX_FRAME_LEN: usize = recv_packet_len(MAX_OTHER_LEN);

/// How often in a row the home relay may fail before another region is looked for.
const FAILURES_BEFORE_MOVING: u32 = 3;

/// The wish of a relay about when to come back is followed up to here.
const LONGEST_RECONNECT_IN: Duration = Duration::from_secs(30);

thread_local! {
    /// Where reads of this thread end up, so that a connection needs no buffer while it waits.
    static READ: RefCell<Vec<u8>> = RefCell::new(vec![0; MAX_FRAME_LEN + READ_LEN]);
}

/// One relay connection, as the senders see it.
pub(super) struct Link {
    region: RegionId,
    out: Mutex<Output>,
    /// The task that writes.
    writer: AtomicWaker,
    closed: CancellationToken,
}

#[derive(Default)]
struct Output {
    frames: BytesMut,
    connected: bool,
}

impl Link {
    pub(super) fn new(region: RegionId) -> Self {
        Self {
            region,
            out: Mutex::default(),
            writer: AtomicWaker::new(),
            closed: CancellationToken::new(),
        }
    }

    pub(super) fn region(&self) -> RegionId {
        self.region
    }

    /// Queues a frame, or drops it when too much waits already.
    pub(super) fn send(&self, frame: &Frame) {
        self.send_all(std::iter::once(frame), Frame::encode);
    }

    /// Queues frames, and drops those for which too much waits already.
    pub(super) fn send_all<T>(&self, frames: impl Iterator<Item = T>, encode: impl Fn(T, &mut BytesMut)) {
        let mut out = lock(&self.out);
        let limit = if out.connected {
            MAX_QUEUED
        } else {
            MAX_QUEUED_UNCONNECTED
        };
        for frame in frames {
            if out.frames.len() >= limit {
                break;
            }
            encode(frame, &mut out.frames);
        }
        drop(out);
        self.writer.wake();
    }

    /// Tells the relay that it is the home, now or when the connection stands. Returns whether it stands.
    pub(super) fn become_home(&self) -> bool {
        let connected = lock(&self.out).connected;
        if connected {
            self.send(&Frame::NotePreferred(true));
        }
        connected
    }

    pub(super) fn has_output(&self) -> bool {
        !lock(&self.out).frames.is_empty()
    }

    pub(super) fn close(&self) {
        self.closed.cancel();
    }
}

/// Keeps `link` open until it is closed or retired.
pub(super) async fn run(engine: Arc<Engine>, link: Arc<Link>) {
    let closed = link.closed.clone();
    closed
        .run_until_cancelled_owned(Box::pin(keep_open(&engine, &link)))
        .await;
}

async fn keep_open(engine: &Arc<Engine>, link: &Arc<Link>) {
    let relays = engine.relays();
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(15));
    let mut failures = 0;
    while let Some((map, node_key)) = relays.dial_plan(link) {
        let ended = match map.regions.get(&link.region) {
            None => Err(RelayError::NoRegion),
            Some(region) => match connect::open(engine.host(), region, &node_key).await {
                Err(error) => Err(error),
                Ok(connection) => {
                    failures = 0;
                    backoff.reset();
                    carry(engine, link, connection).await
                }
            },
        };
        let wait = match ended {
            Ok(End::Retired) => return,
            Ok(End::Restarting(wait)) => wait,
            Err(error) => {
                let (error, region) = (&error as &dyn std::error::Error, link.region);
                tracing::debug!(error, %region, "relay connection is down");
                Duration::ZERO
            }
        };
        lock(&link.out).frames.clear();
        failures += 1;
        if failures % FAILURES_BEFORE_MOVING == 0 && home::needs_measurement(&map) {
            relays.measure_home();
        }
        tokio::time::sleep(wait.max(backoff.next(&mut StdRng::from_entropy()))).await;
        if relays.retire(link) {
            return;
        }
    }
}

/// Why a connection ended without an error.
enum End {
    Retired,
    Restarting(Duration),
}

/// Moves frames until the connection ends.
async fn carry(engine: &Arc<Engine>, link: &Arc<Link>, connection: Connection) -> Result<End, RelayError> {
    let relays = engine.relays();
    // In this order: who makes the link the home from here on tells the relay by itself.
    lock(&link.out).connected = true;
    let mut first = BytesMut::new();
    if relays.is_home(link) {
        Frame::NotePreferred(true).encode(&mut first);
    }
    engine.set_relay_connected(link.region, true);
    let now = Instant::now();
    let mut pump = Pump {
        engine,
        link,
        stream: connection.stream,
        partial: BytesMut::new(),
        write: first,
        unflushed: false,
        last_read: now,
        last_use: now,
        restart: None,
    };
    let mut early = connection.read;
    let used = pump.take_frames(&mut early)?;
    pump.partial.extend_from_slice(&early[used..]);
    let ended = pump.run(relays).await;
    lock(&link.out).connected = false;
    engine.set_relay_connected(link.region, false);
    ended
}

struct Pump<'a> {
    engine: &'a Arc<Engine>,
    link: &'a Arc<Link>,
    stream: MaybeTls,
    /// The begin of a frame whose end has not come.
    partial: BytesMut,
    /// Taken from the link, not written.
    write: BytesMut,
    /// Whether what was written is to be flushed.
    unflushed: bool,
    last_read: Instant,
    /// When a packet last went either way.
    last_use: Instant,
    restart: Option<Duration>,
}

impl Pump<'_> {
    async fn run(&mut self, relays: &super::Relays) -> Result<End, RelayError> {
        loop {
            let silent_at = self.last_read + READ_TIMEOUT;
            let idle_at = self.last_use + IDLE_TIMEOUT;
            let is_home = relays.is_home(self.link);
            let deadline = if is_home {
                silent_at
            } else {
                silent_at.min(idle_at)
            };
            tokio::select! {
                ended = std::future::poll_fn(|cx| self.poll(cx)) => match (ended, self.restart) {
                    (_, Some(wait)) => return Ok(End::Restarting(wait)),
                    (Err(error), None) => return Err(error),
                    (Ok(never), None) => match never {},
                },
                () = tokio::time::sleep_until(deadline) => {
                    let now = Instant::now();
                    if now >= self.last_read + READ_TIMEOUT {
                        return Err(RelayError::Silent);
                    }
                    if !is_home && now >= self.last_use + IDLE_TIMEOUT && relays.retire(self.link) {
                        return Ok(End::Retired);
                    }
                }
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Infallible, RelayError>> {
        self.link.writer.register(cx.waker());
        loop {
            if let Poll::Ready(Err(error)) = self.poll_write(cx) {
                return Poll::Ready(Err(RelayError::Io(error)));
            }
            ready!(self.poll_read(cx))?;
            if self.restart.is_some() {
                return Poll::Ready(Err(RelayError::Io(io::ErrorKind::ConnectionAborted.into())));
            }
        }
    }

    /// Reads once, and handles the frames that are complete.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RelayError>> {
        READ.with_borrow_mut(|buffer| {
            let kept = self.partial.len();
            let end = buffer.len().min(kept + READ_LEN);
            let mut read = ReadBuf::new(&mut buffer[kept..end]);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read)).map_err(RelayError::Io)?;
            let length = read.filled().len();
            if length == 0 {
                return Poll::Ready(Err(RelayError::Io(io::ErrorKind::UnexpectedEof.into())));
            }
            self.last_read = Instant::now();
            buffer[..kept].copy_from_slice(&self.partial);
            let received = &mut buffer[..kept + length];
            let used = self.take_frames(received)?;
            if used == received.len() {
                // An idle connection holds no buffers.
                self.partial = BytesMut::new();
            } else {
                self.partial.clear();
                self.partial.extend_from_slice(&received[used..]);
            }
            Poll::Ready(Ok(()))
        })
    }

    /// Takes the frames that are complete off the begin of `received`, and hands all packets of them to the core at once.
    /// Returns how many bytes they are.
    fn take_frames(&mut self, received: &mut [u8]) -> Result<usize, DerpError> {
        let length = received.len();
        let mut rest = received;
        let region = self.link.region;
        self.engine.clone().with_core(|core, now| {
            while let Some(mut frame) = RawFrame::split_off(&mut rest)? {
                if let Some((from, packet)) = frame.recv_packet() {
                    self.last_use = self.last_read;
                    core.handle_derp(region, from, packet, now);
                    continue;
                }
                match frame.to_frame()? {
                    Frame::PeerGone { peer, .. } => core.handle_peer_gone(peer),
                    Frame::Ping(data) => Frame::Pong(data).encode(&mut self.write),
                    Frame::Restarting { reconnect_in, .. } => {
                        self.restart = Some(reconnect_in.min(LONGEST_RECONNECT_IN));
                    }
                    Frame::Health(problem) if !problem.is_empty() => {
                        tracing::warn!(problem, %region, "the relay reports a problem");
                    }
                    _ => {}
                }
            }
            Ok(length - rest.len())
        })
    }

    /// Writes until nothing is queued any more.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.write.is_empty() {
                let mut out = lock(&self.link.out);
                if out.frames.is_empty() {
                    // An idle connection holds no buffers.
                    out.frames = BytesMut::new();
                    self.write = BytesMut::new();
                    break;
                }
                std::mem::swap(&mut self.write, &mut out.frames);
                out.frames.clear();
                self.last_use = Instant::now();
            }
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.write))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.write.advance(written);
            self.unflushed = true;
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}
