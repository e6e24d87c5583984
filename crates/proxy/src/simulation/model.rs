//! What pods and the server of the simulation tell each other, and what a pod knows.

use tokio::time::Instant;

use crate::member::{LeaseReading, Members, OwnLease};
use crate::reconcile::{Running, Stage};

#[derive(Debug, Clone)]
pub(super) enum Request {
    ReadLease(usize),
    WriteLease {
        version: Option<u64>,
        holder: Option<String>,
        draining: bool,
    },
    WriteHost {
        version: u64,
        host: Option<usize>,
        claim: Option<String>,
    },
    ReadIdentity,
}

#[derive(Debug, Clone)]
pub(super) enum Answer {
    Lease(usize, Option<LeaseReading>),
    Identity(Placement),
    Conflict,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Placement {
    pub(super) host: Option<usize>,
    pub(super) claim: Option<String>,
    pub(super) version: u64,
}

#[derive(Debug, Clone)]
pub(super) enum Seen {
    Lease(usize, LeaseReading),
    Identity(Placement),
}

/// Why a pod sent a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    ReadOwn,
    WriteOwn,
    Confirm,
    Claim,
    Release,
}

pub(super) enum Message {
    ToServer {
        pod: usize,
        life: u64,
        id: u64,
        purpose: Purpose,
        request: Request,
    },
    ToPod {
        pod: usize,
        life: u64,
        id: u64,
        purpose: Purpose,
        answer: Answer,
    },
    Watch {
        pod: usize,
        life: u64,
        seen: Seen,
    },
}

pub(super) struct Sent {
    pub(super) id: u64,
    pub(super) at: u64,
    pub(super) purpose: Purpose,
    pub(super) telling: bool,
}

pub(super) struct Pod {
    pub(super) life: u64,
    pub(super) uid: String,
    pub(super) own: OwnLease,
    pub(super) others: Members,
    pub(super) cached: Placement,
    pub(super) cached_at: Instant,
    pub(super) sent: Vec<Sent>,
    pub(super) running: Option<Running>,
    pub(super) claim: String,
    /// The node runs until then; `u64::MAX` while it is to run.
    pub(super) node_until: u64,
    pub(super) release_after: bool,
    pub(super) draining: bool,
    pub(super) told: bool,
    /// When the last watch event for this pod is due; events keep their order.
    pub(super) watch_due: u64,
}

impl Pod {
    pub(super) fn cache(&mut self, placement: Placement, now: Instant) {
        if placement.version > self.cached.version {
            if (placement.host, &placement.claim) != (self.cached.host, &self.cached.claim) {
                self.cached_at = now;
            }
            self.cached = placement;
        }
    }

    pub(super) fn leave(&mut self) {
        if self
            .running
            .as_ref()
            .is_some_and(|running| running.stage == Stage::Leaving)
        {
            self.running = None;
        }
    }
}
