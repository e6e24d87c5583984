//! One map stream: the body of the answer to a streaming map request.

use std::{convert::Infallible, future::pending, ops::RangeInclusive, sync::Arc, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use jiff::Timestamp;
use rand::Rng;
use tailwharf_wire::{
    map_frame::Compression,
    tailcfg::{MapResponse, NodeId, PingRequest},
};
use tokio::time::{Instant, sleep_until};

use super::{Message, delta, full};
use crate::{
    machine::Control,
    sessions::{Session, Update},
    world::World,
};

/// How long a stream is silent before it says that it is alive, in seconds. Random, so that streams opened at one time do not speak at one time.
/// Official clients give up after 120 s.
const KEEP_ALIVE: RangeInclusive<u64> = 50..=59;
/// The least time between two messages of a stream, when little and when much happens.
const SHORT_GAP: Duration = Duration::from_millis(50);
const LONG_GAP: Duration = Duration::from_millis(400);

/// What a stream still has to begin with.
enum Stage {
    First(Arc<World>),
    Running,
}

/// One open stream. Dropping it ends it.
pub(crate) struct MapStream {
    control: Arc<Control>,
    node: NodeId,
    session: Arc<Session>,
    compression: Compression,
    keep_alive: bool,
    stage: Stage,
    last_sent: Instant,
    pace: Pace,
    silent_until: Instant,
}

/// How often a stream speaks: at once where little happens, seldom where much does, as when all nodes of a tailnet come back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pace {
    /// Messages without a pause between them.
    streak: u32,
}

impl Pace {
    /// The least time between two messages: changes that come together are told together.
    fn gap(self) -> Duration {
        (SHORT_GAP * (1 + self.streak / 2)).min(LONG_GAP)
    }

    /// Notes a message, so long after the last one.
    fn step(&mut self, after: Duration) {
        self.streak = if after < 2 * self.gap() {
            self.streak.saturating_add(1)
        } else {
            0
        };
    }
}

impl MapStream {
    pub(crate) fn open(
        control: Arc<Control>,
        node: NodeId,
        compression: Compression,
        keep_alive: bool,
    ) -> Self {
        let (session, world) = control.sessions.open(node);
        let now = Instant::now();
        let stage = Stage::First(world);
        Self {
            control,
            node,
            session,
            compression,
            keep_alive,
            stage,
            last_sent: now,
            pace: Pace::default(),
            silent_until: now,
        }
    }

    /// The stream as the body of an answer. It is computed as the client reads it.
    pub(crate) fn into_body(self) -> Body {
        Body::from_stream(stream::unfold(self, |mut stream| async {
            let frame = stream.next().await?;
            Some((Ok::<_, Infallible>(frame), stream))
        }))
    }

    /// The next frame; `None` when the stream is over.
    async fn next(&mut self) -> Option<Bytes> {
        let message = match std::mem::replace(&mut self.stage, Stage::Running) {
            Stage::First(world) => full(&world, self.node, Timestamp::now())?,
            Stage::Running => self.wait().await?,
        };
        let now = Instant::now();
        self.pace.step(now.duration_since(self.last_sent));
        self.last_sent = now;
        let silence = rand::thread_rng().gen_range(KEEP_ALIVE);
        self.silent_until = self.last_sent + Duration::from_secs(silence);
        message.encode(self.compression)
    }

    /// Waits for something to tell.
    async fn wait(&mut self) -> Option<Message> {
        let stop = self.control.stop.clone();
        loop {
            let session = self.session.clone();
            let earliest = self.last_sent + self.pace.gap();
            let change = async {
                if !session.changed().await {
                    return None;
                }
                sleep_until(earliest).await;
                session.take()
            };
            let silence = async {
                if self.keep_alive {
                    sleep_until(self.silent_until).await;
                } else {
                    pending::<()>().await;
                }
            };
            let due = tokio::select! {
                due = change => due?,
                () = silence => return Some(Message::of(MapResponse { keep_alive: true, ..MapResponse::default() })),
                () = stop.cancelled() => return None,
            };
            let message = due.update.and_then(
                |Update {
                     base, latest, dirty, ..
                 }| delta(&base, &latest, self.node, &dirty),
            );
            if let Some(message) = with_ping(message, due.ping) {
                return Some(message);
            }
        }
    }
}

/// Adds a question to a message, or makes one for it.
fn with_ping(message: Option<Message>, ping: Option<PingRequest>) -> Option<Message> {
    if ping.is_none() {
        return message;
    }
    let mut message = message.unwrap_or_default();
    message.rest.ping_request = ping;
    Some(message)
}

impl Drop for MapStream {
    fn drop(&mut self) {
        self.control.stream_ended(&self.session, self.node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_stream_speaks_seldom_and_a_quiet_one_at_once() {
        let mut pace = Pace::default();
        assert_eq!(pace.gap(), SHORT_GAP);
        let mut spent = Duration::ZERO;
        while pace.gap() < LONG_GAP {
            spent += pace.gap();
            pace.step(pace.gap());
        }
        assert!(spent < Duration::from_secs(4), "{spent:?}");
        for _ in 0..1000 {
            pace.step(LONG_GAP);
        }
        assert_eq!(pace.gap(), LONG_GAP);
        pace.step(2 * LONG_GAP);
        assert_eq!(pace.gap(), SHORT_GAP);
    }
}
