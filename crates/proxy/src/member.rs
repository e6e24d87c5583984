//! Membership of a pool as a state machine: our own Lease, and which other members are alive.
//!
//! The rule that keeps two pods from running one node key:
//!
//! - We may host only until [`FENCE_AFTER`] past the moment at which our last successful renewal was *sent*.
//! - Another member counts as dead only when its Lease did not change for [`LIFE`] past the moment at which we *saw* its
//!   last change, and a read that began after that still shows no change.
//! - It may come back the moment after that read. So the read speaks only about what the member had claimed before:
//!   about identities that we saw in its hands before the read began.
//!
//! Sending comes before seeing, so a member has stopped at least `LIFE - FENCE_AFTER` before anyone takes over from it.
//! Only local monotonic time is compared with local monotonic time: the clocks of pods need not agree, and the times
//! written in a Lease are for people.
//!
//! Pure: the shell in `membership.rs` reads and writes Leases and passes the time in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

/// Time between two renewals.
pub(crate) const RENEW_EVERY: Duration = Duration::from_secs(1);
/// How long a Lease is good without a change.
pub(crate) const LIFE: Duration = Duration::from_secs(3);
/// How long after the sending of its last successful renewal a pod may go on hosting.
pub(crate) const FENCE_AFTER: Duration = Duration::from_millis(2200);
/// Pause after a failed request before the next.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// What a member's Lease says, as far as the machines need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeaseReading {
    /// UID of the pod that holds it; `None` when it was given back.
    pub holder: Option<String>,
    /// The resource version: differs after each write.
    pub version: String,
    /// The member takes identities of this pool: it belongs to it, and does not hand its own over.
    pub willing: bool,
}

/// One unbroken span of holding our Lease. What was claimed in one tenure is void in the next.
///
/// Named by the version that our Lease had when the tenure began, so no two tenures of a pool have the same name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Tenure(Arc<str>);

impl Tenure {
    /// The tenure that began with this version of our Lease.
    #[must_use]
    pub(crate) fn began(version: &str) -> Self {
        Self(version.into())
    }

    /// The name that a claim carries.
    #[must_use]
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// What the shell is to do next about our own Lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Read the Lease, then call [`OwnLease::handle_read`].
    Read,
    /// Make the Lease, then call [`OwnLease::handle_written`] or [`OwnLease::handle_failed`].
    Create,
    /// Write holder and time on condition that the version is still this one, then as for [`Step::Create`].
    Renew {
        /// The resource version that the write depends on.
        version: String,
    },
    /// Nothing before this moment.
    Wait(Instant),
}

#[derive(Debug)]
enum Phase {
    /// Nothing is known, or a write's outcome is unknown.
    Unknown { retry_at: Option<Instant> },
    /// There is no such Lease.
    Absent,
    /// Ours to write now.
    Free { version: String },
    /// Another pod of our name holds it; it may be alive until the Lease has not changed for [`LIFE`].
    Foreign {
        version: String,
        changed: Instant,
        read_at: Instant,
    },
    /// We hold it.
    Held { version: String, renew_at: Instant },
}

/// Our own Lease.
#[derive(Debug)]
pub(crate) struct OwnLease {
    uid: String,
    phase: Phase,
    /// When hosting must have ended; in the past or absent when we host nothing.
    fence_at: Option<Instant>,
    tenure: Option<Tenure>,
}

impl OwnLease {
    /// The Lease of the pod with this UID, of which nothing is known yet.
    #[must_use]
    pub(crate) fn new(uid: &str) -> Self {
        Self {
            uid: uid.to_owned(),
            phase: Phase::Unknown { retry_at: None },
            fence_at: None,
            tenure: None,
        }
    }

    /// The tenure at `now`; `None` when this pod must not host.
    #[must_use]
    pub(crate) fn tenure(&self, now: Instant) -> Option<Tenure> {
        self.fence_at
            .filter(|fence| now < *fence)
            .and_then(|_| self.tenure.clone())
    }

    /// When hosting must stop unless a renewal succeeds before.
    #[must_use]
    pub(crate) fn fence_at(&self) -> Option<Instant> {
        self.fence_at
    }

    /// What to do next.
    #[must_use]
    pub(crate) fn poll(&self, now: Instant) -> Step {
        match &self.phase {
            Phase::Unknown { retry_at: Some(at) } if now < *at => Step::Wait(*at),
            Phase::Unknown { .. } => Step::Read,
            Phase::Absent => Step::Create,
            Phase::Free { version } => Step::Renew {
                version: version.clone(),
            },
            Phase::Foreign { read_at, .. } if now < *read_at => Step::Wait(*read_at),
            Phase::Foreign { .. } => Step::Read,
            Phase::Held { renew_at, .. } if now < *renew_at => Step::Wait(*renew_at),
            Phase::Held { version, .. } => Step::Renew {
                version: version.clone(),
            },
        }
    }

    /// The Lease was read; `started` is when the read was sent.
    pub(crate) fn handle_read(&mut self, reading: Option<LeaseReading>, started: Instant, now: Instant) {
        let Some(reading) = reading else {
            self.phase = Phase::Absent;
            return;
        };
        let ours = reading.holder.as_ref().is_none_or(|holder| *holder == self.uid);
        if !ours {
            self.fence_at = None;
        }
        self.phase = match &self.phase {
            _ if ours => Phase::Free {
                version: reading.version,
            },
            Phase::Foreign { version, changed, .. } if *version == reading.version => {
                if started >= *changed + LIFE {
                    Phase::Free {
                        version: reading.version,
                    }
                } else {
                    let read_at = (now + RENEW_EVERY).min(*changed + LIFE).max(now + RETRY_PAUSE);
                    Phase::Foreign {
                        version: reading.version,
                        changed: *changed,
                        read_at,
                    }
                }
            }
            _ => Phase::Foreign {
                version: reading.version,
                changed: now,
                read_at: now + RENEW_EVERY,
            },
        };
    }

    /// A write that was sent at `sent` succeeded and gave the Lease this version.
    pub(crate) fn handle_written(&mut self, version: String, sent: Instant, now: Instant) {
        if self.tenure(now).is_none() {
            self.tenure = Some(Tenure::began(&version));
        }
        self.fence_at = Some(sent + FENCE_AFTER);
        self.phase = Phase::Held {
            version,
            renew_at: (sent + RENEW_EVERY).max(now),
        };
    }

    /// The next renewal is due now, since it has something to tell.
    pub(crate) fn hurry(&mut self, now: Instant) {
        if let Phase::Held { renew_at, .. } = &mut self.phase {
            *renew_at = now;
        }
    }

    /// A read or write failed, or ended without an answer. Its outcome is unknown, so the Lease is read again.
    pub(crate) fn handle_failed(&mut self, now: Instant) {
        match &mut self.phase {
            Phase::Foreign { read_at, .. } => *read_at = now + RETRY_PAUSE,
            phase => {
                *phase = Phase::Unknown {
                    retry_at: Some(now + RETRY_PAUSE),
                }
            }
        }
    }
}

#[derive(Debug)]
struct Seen {
    /// `None` for a member of which only the name is known.
    reading: Option<LeaseReading>,
    /// When we last saw a change.
    changed: Instant,
    /// When the last read was sent that showed it dead.
    dead: Option<Instant>,
    /// A read newer than the last is wanted.
    asked: bool,
}

impl Seen {
    fn new(reading: Option<LeaseReading>, now: Instant) -> Self {
        Self {
            reading,
            changed: now,
            dead: None,
            asked: false,
        }
    }

    /// When the Lease is over.
    fn expiry(&self) -> Instant {
        let given_back = self
            .reading
            .as_ref()
            .is_some_and(|reading| reading.holder.is_none());
        if given_back {
            self.changed
        } else {
            self.changed + LIFE
        }
    }

    fn takes_identities(&self) -> bool {
        let willing = |reading: &LeaseReading| reading.holder.is_some() && reading.willing;
        self.dead.is_none() && self.reading.as_ref().is_some_and(willing)
    }
}

/// The other members of the pool, as seen from here. A member that is not known here may be alive all the same.
#[derive(Debug, Default)]
pub(crate) struct Members {
    seen: BTreeMap<String, Seen>,
}

impl Members {
    /// A watch or a read showed the Lease of `member`.
    pub(crate) fn observe(&mut self, member: &str, reading: LeaseReading, now: Instant) {
        if self
            .seen
            .get(member)
            .is_none_or(|seen| seen.reading.as_ref() != Some(&reading))
        {
            self.seen.insert(member.to_owned(), Seen::new(Some(reading), now));
        }
    }

    /// An identity that we are to host names `member`, and no read of its Lease was sent since we saw that.
    pub(crate) fn inquire(&mut self, member: &str, now: Instant) {
        let seen = self
            .seen
            .entry(member.to_owned())
            .or_insert_with(|| Seen::new(None, now));
        seen.asked = seen.dead.is_some();
    }

    /// The members whose Lease has to be read, to tell a dead member from a stalled watch.
    #[must_use]
    pub(crate) fn suspects(&self, now: Instant) -> Vec<String> {
        let suspect = |seen: &Seen| seen.asked || (seen.dead.is_none() && now >= seen.expiry());
        self.seen
            .iter()
            .filter(|(_, seen)| suspect(seen))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// When the next Lease runs out.
    #[must_use]
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.seen
            .values()
            .filter(|seen| seen.dead.is_none())
            .map(Seen::expiry)
            .min()
    }

    /// A read of a suspect's Lease, sent at `started`, gave this. Without a Lease, a member is dead if we saw none for the
    /// time that a Lease lives.
    pub(crate) fn confirm(
        &mut self,
        member: &str,
        reading: Option<LeaseReading>,
        started: Instant,
        now: Instant,
    ) {
        if let Some(reading) = reading {
            self.observe(member, reading, now);
        }
        let Some(seen) = self.seen.get_mut(member) else {
            return;
        };
        seen.asked = false;
        let given_back = seen
            .reading
            .as_ref()
            .is_some_and(|reading| reading.holder.is_none());
        if given_back || started >= seen.expiry() {
            seen.dead = Some(started);
        }
    }

    /// The members that are known to host nothing that we saw in their hands before the moment beside them.
    #[must_use]
    pub(crate) fn dead(&self) -> BTreeMap<String, Instant> {
        self.seen
            .iter()
            .filter_map(|(name, seen)| Some((name.clone(), seen.dead?)))
            .collect()
    }

    /// The members that take identities: alive and not draining.
    #[must_use]
    pub(crate) fn candidates(&self) -> BTreeSet<String> {
        let takes = self.seen.iter().filter(|(_, seen)| seen.takes_identities());
        takes.map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(holder: Option<&str>, version: &str) -> LeaseReading {
        LeaseReading {
            holder: holder.map(str::to_owned),
            version: version.to_owned(),
            willing: true,
        }
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A member that made its Lease with a request sent at `at`.
    fn held(at: Instant) -> OwnLease {
        let mut own = OwnLease::new("uid-a");
        assert_eq!(own.poll(at), Step::Read);
        own.handle_read(None, at, at);
        assert_eq!(own.poll(at), Step::Create);
        own.handle_written("5".to_owned(), at, at + ms(30));
        own
    }

    #[test]
    fn a_new_member_makes_its_lease_and_renews_it_each_second() {
        let t = Instant::now();
        let mut own = held(t);
        assert_eq!(own.tenure(t + ms(30)), Some(Tenure::began("5")));
        assert_eq!(own.poll(t + ms(30)), Step::Wait(t + RENEW_EVERY));
        assert_eq!(
            own.poll(t + RENEW_EVERY),
            Step::Renew {
                version: "5".to_owned()
            }
        );
        own.handle_written("6".to_owned(), t + ms(1000), t + ms(1020));
        assert_eq!(own.tenure(t + ms(3199)), Some(Tenure::began("5")));
        assert_eq!(own.fence_at(), Some(t + ms(3200)));
    }

    #[test]
    fn hosting_ends_counted_from_the_sending_of_the_last_renewal() {
        let t = Instant::now();
        let mut own = held(t);
        own.handle_written("6".to_owned(), t + ms(1000), t + ms(1450));
        own.handle_failed(t + ms(2500));
        assert!(own.tenure(t + ms(3199)).is_some());
        assert_eq!(own.tenure(t + ms(3200)), None);
    }

    #[test]
    fn a_late_success_begins_a_new_tenure() {
        let t = Instant::now();
        let mut own = held(t);
        own.handle_written("6".to_owned(), t + ms(2100), t + ms(2300));
        assert_eq!(own.tenure(t + ms(2300)), Some(Tenure::began("6")));
        own.handle_written("7".to_owned(), t + ms(4000), t + ms(9000));
        assert_eq!(
            own.tenure(t + ms(9000)),
            None,
            "the answer came after its own fence"
        );
    }

    #[test]
    fn after_a_failure_the_lease_is_read_before_it_is_written() {
        let t = Instant::now();
        let mut own = held(t);
        own.handle_failed(t + ms(1500));
        assert_eq!(own.poll(t + ms(1500)), Step::Wait(t + ms(1500) + RETRY_PAUSE));
        assert_eq!(own.poll(t + ms(1600)), Step::Read);
        own.handle_read(Some(reading(Some("uid-a"), "8")), t + ms(1600), t + ms(1610));
        assert_eq!(
            own.poll(t + ms(1610)),
            Step::Renew {
                version: "8".to_owned()
            }
        );
        own.handle_written("9".to_owned(), t + ms(1610), t + ms(1620));
        assert_eq!(
            own.tenure(t + ms(1620)),
            Some(Tenure::began("5")),
            "the tenure was not broken"
        );
    }

    #[test]
    fn the_lease_of_an_earlier_pod_is_taken_when_it_did_not_change_for_its_life() {
        let t = Instant::now();
        let mut own = OwnLease::new("uid-b");
        let foreign = || Some(reading(Some("uid-a"), "5"));
        own.handle_read(foreign(), t, t);
        assert_eq!(own.tenure(t), None);
        assert_eq!(own.poll(t), Step::Wait(t + RENEW_EVERY));
        own.handle_read(foreign(), t + ms(2900), t + ms(3100));
        assert!(
            matches!(own.poll(t + ms(3200)), Step::Read),
            "the read began before the life was over"
        );
        own.handle_read(Some(reading(Some("uid-a"), "6")), t + ms(3200), t + ms(3210));
        own.handle_read(Some(reading(Some("uid-a"), "6")), t + ms(6200), t + ms(6210));
        assert!(
            matches!(own.poll(t + ms(9000)), Step::Read),
            "it changed meanwhile"
        );
        own.handle_read(Some(reading(Some("uid-a"), "6")), t + ms(6210), t + ms(6220));
        assert_eq!(
            own.poll(t + ms(6220)),
            Step::Renew {
                version: "6".to_owned()
            }
        );
    }

    #[test]
    fn a_lease_given_back_or_held_by_an_earlier_run_of_this_pod_is_taken_at_once() {
        let t = Instant::now();
        for holder in [None, Some("uid-a")] {
            let mut own = OwnLease::new("uid-a");
            own.handle_read(Some(reading(holder, "5")), t, t);
            assert_eq!(
                own.poll(t),
                Step::Renew {
                    version: "5".to_owned()
                }
            );
        }
    }

    #[test]
    fn losing_the_lease_to_another_ends_the_tenure() {
        let t = Instant::now();
        let mut own = held(t);
        own.handle_failed(t + ms(1000));
        own.handle_read(Some(reading(Some("uid-b"), "7")), t + ms(1100), t + ms(1110));
        assert_eq!(own.tenure(t + ms(1110)), None);
    }

    fn is_dead(members: &Members) -> bool {
        members.dead().contains_key("pod-b")
    }

    #[test]
    fn a_member_is_dead_only_when_a_read_confirms_it() {
        let t = Instant::now();
        let mut members = Members::default();
        members.observe("pod-b", reading(Some("uid-b"), "5"), t);
        members.observe("pod-b", reading(Some("uid-b"), "6"), t + ms(1000));
        assert_eq!(members.next_expiry(), Some(t + ms(4000)));
        assert!(members.suspects(t + ms(3999)).is_empty());
        assert_eq!(members.suspects(t + ms(4000)), ["pod-b"]);

        members.confirm(
            "pod-b",
            Some(reading(Some("uid-b"), "6")),
            t + ms(3990),
            t + ms(4100),
        );
        assert!(!is_dead(&members), "the read was sent too early");
        members.confirm(
            "pod-b",
            Some(reading(Some("uid-b"), "7")),
            t + ms(4100),
            t + ms(4110),
        );
        assert!(members.suspects(t + ms(7000)).is_empty(), "the watch had stalled");
        members.confirm(
            "pod-b",
            Some(reading(Some("uid-b"), "7")),
            t + ms(7110),
            t + ms(7120),
        );
        assert_eq!(members.dead().get("pod-b"), Some(&(t + ms(7110))));
        assert!(members.candidates().is_empty() && members.suspects(t + ms(99_000)).is_empty());
        members.observe("pod-b", reading(Some("uid-b"), "8"), t + ms(8000));
        assert!(
            !is_dead(&members) && members.candidates().contains("pod-b"),
            "it is back"
        );
    }

    #[test]
    fn a_member_of_which_only_the_name_is_known_counts_as_alive_until_its_lease_was_read() {
        let t = Instant::now();
        let mut members = Members::default();
        members.inquire("pod-b", t);
        assert!(!is_dead(&members) && members.candidates().is_empty());
        assert_eq!(members.suspects(t + LIFE), ["pod-b"]);
        members.confirm("pod-b", None, t + LIFE, t + LIFE);
        assert!(is_dead(&members));
    }

    #[test]
    fn an_inquiry_about_a_dead_member_reads_its_lease_again() {
        let t = Instant::now();
        let mut members = Members::default();
        members.observe("pod-b", reading(Some("uid-b"), "5"), t);
        members.inquire("pod-b", t);
        assert!(
            members.suspects(t).is_empty(),
            "it is not dead, so there is nothing to ask"
        );
        let same = || Some(reading(Some("uid-b"), "5"));
        members.confirm("pod-b", same(), t + ms(3000), t + ms(3010));
        members.inquire("pod-b", t + ms(5000));
        assert_eq!(members.suspects(t + ms(5000)), ["pod-b"]);
        members.confirm("pod-b", same(), t + ms(5000), t + ms(5010));
        assert_eq!(members.dead().get("pod-b"), Some(&(t + ms(5000))));
        members.inquire("pod-b", t + ms(6000));
        members.confirm(
            "pod-b",
            Some(reading(Some("uid-b"), "9")),
            t + ms(6000),
            t + ms(6010),
        );
        assert!(!is_dead(&members), "it came back and the watch had not told");
    }

    #[test]
    fn a_member_of_another_pool_is_asked_about_and_takes_nothing() {
        let t = Instant::now();
        let mut members = Members::default();
        members.inquire("other-0", t);
        let foreign = LeaseReading {
            willing: false,
            ..reading(Some("uid-o"), "5")
        };
        members.confirm("other-0", Some(foreign), t + ms(3000), t + ms(3010));
        assert!(members.candidates().is_empty() && members.dead().is_empty());
    }

    #[test]
    fn a_draining_member_takes_nothing_and_one_that_left_is_read_at_once() {
        let t = Instant::now();
        let mut members = Members::default();
        members.observe("pod-b", reading(Some("uid-b"), "5"), t);
        assert!(members.candidates().contains("pod-b"));
        members.observe(
            "pod-b",
            LeaseReading {
                willing: false,
                ..reading(Some("uid-b"), "6")
            },
            t,
        );
        assert!(members.candidates().is_empty() && members.suspects(t).is_empty());
        members.observe("pod-b", reading(None, "7"), t);
        assert_eq!(members.suspects(t), ["pod-b"]);
        members.confirm("pod-b", Some(reading(None, "7")), t, t + ms(10));
        assert!(is_dead(&members));
    }
}
