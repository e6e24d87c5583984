//! Handshakes: which are started and answered, when, and which way their messages take.
//!
//! Two official clients out of the box, and one with us, survive any order of handshake messages but one: they handle them in several threads, and where a
//! response to their initiation and an initiation of ours, or two copies of one message, are handled at the same moment, the client is left with a session
//! that it sends on but does not hear on. Nothing it is sent arrives until it starts anew after 15 s. Such a moment is a key exchange long, some 100 µs, and messages that
//! leave here together arrive so. Hence:
//!
//! - A message of a handshake goes one way, where data goes both while a path is in doubt.
//! - Between an initiation and a response of ours there is a time, [`APART`]. When both sides have initiated, ours is mostly answered within it, and theirs needs no answer.
//! - A peer that is only heard of, by path discovery, has some time to initiate by itself, [`PATIENCE`]: its own initiation is mostly on its way.
//!
//! What gets lost is made up for before WireGuard's own timers would, which count 5 s and more.

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use tailwharf_wire::key::NodePublic;

use super::{Held, Tunnel};
use crate::paths::Path;
use crate::session::{INITIATION_LEN, OVERHEAD, Opened};

/// Between an initiation and a response, in either order.
const APART: Duration = Duration::from_millis(50);
/// How long a peer that is heard of, but has no session with us, is waited for.
const PATIENCE: Duration = Duration::from_millis(200);
/// After so long a handshake that has led to no session is repeated, once.
const RETRY: Duration = Duration::from_secs(1);
/// Pause between handshakes that we start because a peer seems to have lost its session or we ours: WireGuard's own retry time.
const REVIVE_PAUSE: Duration = Duration::from_secs(5);
/// A responder sends nothing before it has heard something on the new session. As long as it is silent it is told again, so often, first after this
/// time and then after twice as long each time.
const CONFIRM: Duration = Duration::from_millis(250);
const MAX_CONFIRMS: u32 = 3;
/// How long an initiation of a peer that the netmap does not have yet is kept. Official clients repeat it after 5 s only.
const HOLD: Duration = Duration::from_secs(2);
/// How many initiations are kept; the oldest goes first.
const MAX_HELD: usize = 16;
/// A handshake that a peer started so shortly before its new disco key became known was with its new process: a node tells its key before it talks.
const FRESH: Duration = Duration::from_secs(5);
/// First byte of an initiation and of the answer to it.
const INITIATION: u8 = 1;
const RESPONSE: u8 = 2;

/// Where handshakes with one peer stand.
#[derive(Debug, Default)]
pub(super) struct Handshake {
    /// When our last initiation was sent.
    initiated: Option<Instant>,
    /// When we last answered one of the peer.
    answered: Option<Instant>,
    /// An initiation of the peer that crossed ours.
    crossed: Option<Box<Crossed>>,
    /// When to initiate if there is no session by then.
    planned: Option<Instant>,
    /// When to tell the peer again that the session stands, and how often it was told.
    confirm: Option<(Instant, u32)>,
    /// When this wants to be looked at, as the agenda has it.
    next: Option<Instant>,
}

/// An initiation that is answered at `due` unless ours was by then.
#[derive(Debug)]
struct Crossed {
    datagram: Box<[u8]>,
    path: Path,
    due: Instant,
}

impl Handshake {
    /// Whether the peer started a session just now.
    pub(super) fn is_fresh(&self, now: Instant) -> bool {
        self.answered.is_some_and(|at| now.duration_since(at) < FRESH)
    }

    /// Whether an initiation may leave now. Right after an answer to the peer's there is no need of one.
    fn may_initiate(&self, now: Instant) -> bool {
        self.answered.is_none_or(|at| now.duration_since(at) >= RETRY)
    }

    /// Takes note that an initiation leaves, or would have left if it might.
    fn initiate(&mut self, now: Instant) -> bool {
        let may = self.may_initiate(now);
        if may {
            self.initiated = Some(now);
            self.planned = Some(now + RETRY);
        }
        may
    }

    /// The peer talks, so it knows that the session stands.
    pub(super) fn confirmed(&mut self) {
        self.confirm = None;
    }

    /// A new session stands by an answer to our initiation.
    fn completed(&mut self, now: Instant) {
        self.crossed = None;
        self.planned = None;
        self.confirm = Some((now + CONFIRM, 0));
    }

    fn due(&self) -> Option<Instant> {
        let crossed = self.crossed.as_ref().map(|crossed| crossed.due);
        let confirm = self.confirm.map(|(at, _)| at);
        crossed.into_iter().chain(self.planned).chain(confirm).min()
    }
}

impl Tunnel {
    /// Sends a packet for which there is no session: it waits in what will be one, and a handshake begins unless one is under way.
    pub(super) fn send_later(&mut self, index: u32, packet: &[u8], path: Path, now: Instant) {
        let Some(entry) = self.sessions.get_mut(&index) else {
            return;
        };
        let (session, handshake) = (&mut entry.session, &mut entry.handshake);
        let room = (packet.len() + OVERHEAD).max(INITIATION_LEN);
        self.outbox.push_with(path, room, |out| {
            session.seal(packet, out).filter(|_| handshake.initiate(now))
        });
        self.reschedule(index);
    }

    /// Sends what a session's clock has produced.
    pub(super) fn send_ticked(&mut self, index: u32, message: &[u8], now: Instant) {
        let Some(entry) = self.sessions.get_mut(&index) else {
            return;
        };
        let ways = self.paths.ways(&entry.peer, now);
        if message.first() != Some(&INITIATION) {
            for path in ways.iter() {
                self.outbox.push(path, message);
            }
        } else if let Some(path) = ways.surest()
            && entry.handshake.initiate(now)
        {
            // The clock repeats it.
            entry.handshake.planned = None;
            self.outbox.push(path, message);
        }
    }

    /// Takes an initiation of a node.
    pub(super) fn initiation(&mut self, key: &NodePublic, datagram: &[u8], path: Path, now: Instant) {
        if let Path::Derp { peer, .. } = path
            && peer != *key
        {
            self.counters.invalid += 1;
            return;
        }
        let Some(peer) = self.netmap.peer_by_key(key).cloned() else {
            self.hold(key, datagram, path, now);
            return;
        };
        if peer.expired {
            return;
        }
        let index = self.prepare(&peer, now);
        let Some(entry) = self.sessions.get_mut(&index) else {
            return;
        };
        let due = entry.handshake.initiated.map(|at| at + APART);
        match (due.filter(|due| *due > now), &entry.handshake.crossed) {
            (None, _) => self.answer(index, datagram, path, now),
            (Some(_), Some(crossed)) if *crossed.datagram == *datagram => {}
            (Some(due), _) => {
                entry.handshake.crossed = Some(Box::new(Crossed {
                    datagram: datagram.into(),
                    path,
                    due,
                }));
                self.reschedule(index);
            }
        }
    }

    /// Answers an initiation, the way that it came.
    fn answer(&mut self, index: u32, datagram: &[u8], path: Path, now: Instant) {
        let Some(entry) = self.sessions.get_mut(&index) else {
            return;
        };
        let mut answer = [0; INITIATION_LEN];
        if let Opened::Send(length) = entry.session.open(datagram, path, &mut answer) {
            entry.used = now;
            entry.handshake.crossed = None;
            if answer[0] == RESPONSE {
                entry.handshake.answered = Some(now);
                // If the answer is lost; a peer that has it talks.
                entry.handshake.planned = Some(now + RETRY);
            }
            self.paths.heard(&entry.peer, path, now);
            self.outbox.push(path, &answer[..length]);
        }
        self.reschedule(index);
    }

    /// Takes note that a message of the peer was authentic, which is not a data message.
    pub(super) fn completed(&mut self, index: u32, message: &[u8], now: Instant) {
        if message.first() == Some(&RESPONSE)
            && let Some(entry) = self.sessions.get_mut(&index)
        {
            entry.handshake.completed(now);
            self.reschedule(index);
        }
    }

    /// Keeps an initiation until the netmap has its sender.
    fn hold(&mut self, key: &NodePublic, datagram: &[u8], path: Path, now: Instant) {
        self.held.retain(|held| held.peer != *key && held.until > now);
        if self.held.len() == MAX_HELD {
            self.held.pop_front();
        }
        self.held.push_back(Held {
            peer: *key,
            datagram: datagram.into(),
            path,
            until: now + HOLD,
        });
    }

    /// Answers the kept initiations of nodes that the netmap has by now.
    pub(super) fn take_held(&mut self, now: Instant) {
        for held in std::mem::take(&mut self.held) {
            if held.until <= now {
                continue;
            }
            if self.netmap.peer_by_key(&held.peer).is_some() {
                self.initiation(&held.peer, &held.datagram, held.path, now);
            } else {
                self.held.push_back(held);
            }
        }
    }

    /// A message for a session that is gone. When a relay vouches that it is from a peer, the peer is better told by a new handshake than left to find out by
    /// its timers, which take 15 s.
    pub(super) fn unknown_session(&mut self, path: Path, now: Instant) {
        self.counters.invalid += 1;
        if let Path::Derp { peer, .. } = path {
            self.revive(&peer, now);
        }
    }

    /// Starts a handshake with a peer that has no session with us, or believes in one that is gone.
    pub(crate) fn revive(&mut self, key: &NodePublic, now: Instant) {
        self.plan(key, now, now);
    }

    /// Expects a handshake of a peer that is heard of but has no session with us, and starts one if none comes.
    pub(crate) fn expect(&mut self, key: &NodePublic, now: Instant) {
        self.plan(key, now + PATIENCE, now);
    }

    fn plan(&mut self, key: &NodePublic, at: Instant, now: Instant) {
        let Some(peer) = self.netmap.peer_by_key(key).filter(|peer| !peer.expired).cloned() else {
            return;
        };
        if self.paths.ways(&peer, now).surest().is_none() {
            return;
        }
        let index = self.prepare(&peer, now);
        let Some(entry) = self.sessions.get_mut(&index) else {
            return;
        };
        let handshake = &mut entry.handshake;
        let is_early = handshake
            .initiated
            .is_some_and(|last| now.duration_since(last) < REVIVE_PAUSE);
        if entry.session.is_established() || is_early || !handshake.may_initiate(now) {
            return;
        }
        handshake.planned = Some(handshake.planned.map_or(at, |planned| planned.min(at)));
        self.reschedule(index);
        if at <= now {
            self.attend(index, now);
        }
    }

    /// Does what is due of a peer's handshake.
    fn attend(&mut self, index: u32, now: Instant) {
        let Some(entry) = self.sessions.get_mut(&index) else {
            return;
        };
        if let Some(crossed) = entry.handshake.crossed.take_if(|crossed| crossed.due <= now) {
            self.answer(index, &crossed.datagram, crossed.path, now);
            return;
        }
        let ways = self.paths.ways(&entry.peer, now);
        let (session, handshake) = (&mut entry.session, &mut entry.handshake);
        if handshake.planned.take_if(|at| *at <= now).is_some() && !session.is_established() {
            let is_repeated = handshake.initiated.is_some();
            if let Some(path) = ways.surest()
                && handshake.initiate(now)
            {
                if is_repeated {
                    // From here on WireGuard's timers repeat it.
                    handshake.planned = None;
                }
                self.outbox
                    .push_with(path, INITIATION_LEN, |out| session.initiate(out));
            }
        }
        if let Some((_, told)) = handshake.confirm.take_if(|(at, _)| *at <= now)
            && session.is_established()
        {
            let again = (told + 1 < MAX_CONFIRMS).then(|| (now + CONFIRM * (2 << told), told + 1));
            handshake.confirm = again;
            self.outbox
                .push_ways(ways, INITIATION_LEN, |out| session.seal(&[], out));
        }
        self.reschedule(index);
    }

    fn reschedule(&mut self, index: u32) {
        if let Some(entry) = self.sessions.get_mut(&index)
            && let Some(due) = entry.handshake.due()
            // A later deadline is found when the earlier one comes.
            && entry.handshake.next.is_none_or(|next| due < next)
        {
            entry.handshake.next = Some(due);
            self.agenda.push(Reverse((due, index)));
        }
    }

    /// Does what is due of all handshakes.
    pub(super) fn attend_all(&mut self, now: Instant) {
        while let Some(Reverse((at, index))) = self.agenda.peek().copied()
            && at <= now
        {
            self.agenda.pop();
            if let Some(entry) = self.sessions.get_mut(&index)
                && entry.handshake.next == Some(at)
            {
                entry.handshake.next = None;
                self.attend(index, now);
                self.reschedule(index);
            }
        }
    }
}
