//! The paths of one peer.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tailwharf_wire::key::NodePublic;
use tailwharf_wire::tailcfg::RegionId;

use super::candidates::{Candidates, is_better};
use super::{Action, RelayReason};

/// For so long after an IP packet the direct path is looked for and looked after.
pub(super) const ACTIVE: Duration = Duration::from_secs(45);
/// How long a region that a peer's packets came through is preferred to its home region. A peer that moved tells its new home by the netmap within this time;
/// one that answers through another region because its home is out of reach keeps it alive by talking.
const HEARD_LIFETIME: Duration = Duration::from_secs(30);
/// How long a pong is proof of a path.
const TRUST: Duration = Duration::from_millis(6500);
/// How often the direct path is pinged while the peer is active.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// A heartbeat without answer for so long puts the path in doubt: packets go both ways, and pings at this pace.
const DOUBT: Duration = Duration::from_secs(1);
/// When packets went out but nothing came back for so long, the path is pinged at once.
const SILENCE: Duration = Duration::from_millis(300);
/// And when nothing at all came since that ping, it is in doubt after this time already.
const SILENT_DOUBT: Duration = Duration::from_millis(400);
/// How often all addresses are pinged while there is no direct path, at first and later on.
const SEARCH: Duration = Duration::from_secs(5);
const SLOW_SEARCH: Duration = Duration::from_secs(60);
/// So many rounds are made at the first pace.
const QUICK_ROUNDS: u32 = 4;
/// How often all addresses are pinged for a better path than the one there is.
const UPGRADE: Duration = Duration::from_secs(60);
/// A path below this latency needs no better one, and is compared with others only so often.
const GOOD_ENOUGH: Duration = Duration::from_millis(5);
const GOOD_PAUSE: Duration = Duration::from_secs(1800);
/// No address is pinged in rounds, or because the peer wishes it, more often than this.
const CALL_PAUSE: Duration = Duration::from_secs(1);
/// When the paths of a peer that is silent are forgotten: later than its session.
const FORGET: Duration = Duration::from_secs(200);

/// The direct path in use.
#[derive(Clone, Copy, Debug)]
struct Best {
    address: SocketAddr,
    latency: Duration,
    /// When the last pong came.
    confirmed: Instant,
    /// The oldest heartbeat without answer since then.
    unanswered: Option<Instant>,
    /// Whether there is another reason to doubt it.
    doubted: bool,
    /// When anything last came this way.
    heard: Instant,
    /// The first packet that went out since then.
    unreturned: Option<Instant>,
    /// When the next heartbeat is due.
    beat: Instant,
}

impl Best {
    fn is_trusted(&self, now: Instant) -> bool {
        !self.doubted
            && now.duration_since(self.confirmed) < TRUST
            && self
                .unanswered
                .is_none_or(|at| now.duration_since(at) < self.patience(at))
    }

    /// How long a ping that was sent then may be without answer.
    fn patience(&self, sent: Instant) -> Duration {
        let least = if self.heard < sent { SILENT_DOUBT } else { DOUBT };
        least.max(4 * self.latency)
    }

    /// When to ping next.
    fn next_ping(&self) -> Instant {
        match self.unreturned {
            Some(since) if self.unanswered.is_none() => self.beat.min(since + SILENCE),
            _ => self.beat,
        }
    }
}

/// The paths of one peer.
#[derive(Debug)]
pub(super) struct Entry {
    relay: Option<(RegionId, Instant)>,
    candidates: Candidates,
    best: Option<Best>,
    /// When an IP packet last went either way.
    used: Option<Instant>,
    /// When the peer was last heard of or talked to.
    touched: Instant,
    /// When all addresses were last pinged; `None` if that is due.
    round: Option<Instant>,
    /// How many rounds there were since a direct path was lost or something new was learned.
    rounds: u32,
    /// When this wants to be looked at, as the queue of deadlines has it.
    pub(super) next: Option<Instant>,
}

impl Entry {
    pub(super) fn new(endpoints: &[SocketAddr], now: Instant) -> Self {
        let mut candidates = Candidates::default();
        candidates.set_told(endpoints, now);
        Self {
            relay: None,
            candidates,
            best: None,
            used: None,
            touched: now,
            round: None,
            rounds: 0,
            next: None,
        }
    }

    /// The direct path, with its round trip time.
    pub(super) fn best(&self) -> Option<(SocketAddr, Duration)> {
        self.best.map(|best| (best.address, best.latency))
    }

    pub(super) fn is_trusted(&self, now: Instant) -> bool {
        self.best.is_some_and(|best| best.is_trusted(now))
    }

    /// The region through which the peer was heard lately.
    pub(super) fn relay(&self, now: Instant) -> Option<RegionId> {
        self.relay
            .filter(|(_, at)| now.duration_since(*at) < HEARD_LIFETIME)
            .map(|(region, _)| region)
    }

    /// Why there is no direct path.
    pub(super) fn why_relay(&self) -> RelayReason {
        if self.candidates.is_empty() {
            RelayReason::NoAddress
        } else if self.rounds > 2 {
            RelayReason::NoAnswer
        } else {
            RelayReason::Searching
        }
    }

    pub(super) fn relay_lost(&mut self) {
        self.relay = None;
    }

    pub(super) fn heard_by_relay(&mut self, region: RegionId, now: Instant) {
        self.touched = now;
        self.relay = Some((region, now));
    }

    /// The peer sent from this address, which is pinged if it is new.
    pub(super) fn heard_from(
        &mut self,
        key: &NodePublic,
        from: SocketAddr,
        now: Instant,
        actions: &mut VecDeque<Action>,
    ) {
        self.touched = now;
        match &mut self.best {
            Some(best) if best.address == from => {
                best.heard = now;
                best.unreturned = None;
            }
            _ => {
                if self.candidates.add(from, now) {
                    self.ping(key, from, now, actions);
                }
            }
        }
    }

    /// A ping came from this address, which is pinged in return unless the path is known to work.
    pub(super) fn pinged_from(
        &mut self,
        key: &NodePublic,
        from: SocketAddr,
        now: Instant,
        actions: &mut VecDeque<Action>,
    ) {
        self.touched = now;
        self.candidates.add(from, now);
        let is_known = self
            .best
            .is_some_and(|best| best.address == from && best.is_trusted(now));
        if !is_known && self.candidates.is_return_due(from, now, CALL_PAUSE) {
            actions.push_back(Action::Ping(*key, from));
        }
    }

    /// An IP packet goes either way. Says whether the peer was silent before.
    pub(super) fn note_use(&mut self, now: Instant) -> bool {
        let was_active = self.is_active(now);
        self.touched = now;
        self.used = Some(now);
        !was_active
    }

    /// A packet goes out by the direct path. Says whether [`Self::due`] may be earlier by that.
    pub(super) fn note_departure(&mut self, now: Instant) -> bool {
        let Some(best) = &mut self.best else {
            return false;
        };
        let is_first = best.unreturned.is_none();
        best.unreturned.get_or_insert(now);
        is_first
    }

    /// The peer would like to be pinged at these addresses.
    pub(super) fn called(
        &mut self,
        key: &NodePublic,
        endpoints: &[SocketAddr],
        now: Instant,
        actions: &mut VecDeque<Action>,
    ) {
        self.touched = now;
        for &endpoint in endpoints {
            if self.candidates.add(endpoint, now) {
                self.rounds = 0;
            }
            self.ping(key, endpoint, now, actions);
        }
    }

    /// Takes the addresses of the netmap. Says whether one is new.
    pub(super) fn told(&mut self, endpoints: &[SocketAddr], now: Instant) -> bool {
        let news = self.candidates.set_told(endpoints, now);
        if news {
            self.rounds = 0;
            self.round = None;
        }
        news
    }

    /// The peer's process is another one. Says whether there was a direct path.
    pub(super) fn restarted(&mut self) -> bool {
        self.candidates = Candidates::default();
        self.rounds = 0;
        self.round = None;
        self.best.take().is_some()
    }

    /// Our own addresses changed. With `moved`, the path that there is may not stand any more.
    pub(super) fn own_endpoints_changed(&mut self, moved: bool, now: Instant) {
        if moved && let Some(best) = &mut self.best {
            best.doubted = true;
            best.beat = now;
        }
        if !self.is_trusted(now) {
            self.rounds = 0;
            self.round = None;
        }
    }

    /// A pong came for a ping to this address. Says whether the path is another one now.
    pub(super) fn ponged(&mut self, from: SocketAddr, latency: Duration, now: Instant) -> bool {
        self.touched = now;
        self.candidates.answered(from, now);
        let current = self
            .best
            .filter(|best| best.address == from || best.is_trusted(now));
        if let Some(best) = current
            && best.address != from
            && !is_better((from, latency), (best.address, best.latency))
        {
            return false;
        }
        self.best = Some(Best {
            address: from,
            latency,
            confirmed: now,
            unanswered: None,
            doubted: false,
            heard: now,
            unreturned: None,
            beat: now + HEARTBEAT,
        });
        self.rounds = 0;
        current.is_none_or(|best| best.address != from)
    }

    /// A ping to this address has had no answer. Says whether the direct path is lost by that.
    pub(super) fn ping_lost(&mut self, to: SocketAddr, sent: Instant, now: Instant) -> bool {
        let lost = self
            .best
            .is_some_and(|best| best.address == to && best.confirmed < sent && !best.is_trusted(now));
        if lost {
            self.best = None;
            self.rounds = 0;
            self.round = None;
        }
        lost
    }

    /// Says what is due now.
    pub(super) fn step(&mut self, key: &NodePublic, now: Instant, actions: &mut VecDeque<Action>) {
        if !self.is_active(now) {
            return;
        }
        if let Some(best) = &mut self.best
            && now >= best.next_ping()
        {
            best.beat = now + DOUBT;
            best.unanswered.get_or_insert(now);
            actions.push_back(Action::Ping(*key, best.address));
        }
        if self.next_round(now) <= now {
            self.round = Some(now);
            if self.best.is_none() {
                self.rounds += 1;
            }
            for address in self.candidates.take_due(now, CALL_PAUSE) {
                actions.push_back(Action::Ping(*key, address));
            }
            if !self.is_trusted(now) {
                actions.push_back(Action::Call(*key));
            }
        }
    }

    /// When [`Self::step`] or [`Self::is_forgotten`] has something to say.
    pub(super) fn due(&self, direct: bool, now: Instant) -> Instant {
        if !direct || !self.is_active(now) {
            return self.touched + FORGET;
        }
        let round = self.next_round(now);
        self.best.map_or(round, |best| best.next_ping().min(round))
    }

    pub(super) fn is_forgotten(&self, now: Instant) -> bool {
        now >= self.touched + FORGET
    }

    fn is_active(&self, now: Instant) -> bool {
        self.used.is_some_and(|at| now.duration_since(at) < ACTIVE)
    }

    fn next_round(&self, now: Instant) -> Instant {
        let Some(last) = self.round else { return now };
        let pause = match self.best {
            Some(best) if best.is_trusted(now) && best.latency < GOOD_ENOUGH => GOOD_PAUSE,
            Some(best) if best.is_trusted(now) => UPGRADE,
            Some(_) => SEARCH,
            None => SEARCH
                .saturating_mul(1 << self.rounds.saturating_sub(QUICK_ROUNDS).min(8))
                .min(SLOW_SEARCH),
        };
        last + pause
    }

    /// Pings an address unless that was done just now.
    fn ping(&mut self, key: &NodePublic, to: SocketAddr, now: Instant, actions: &mut VecDeque<Action>) {
        if self.candidates.is_due(to, now, CALL_PAUSE) {
            actions.push_back(Action::Ping(*key, to));
        }
    }
}
