//! What this pod has to do about an identity of its pool: a pure function of the identity, the live members and what
//! runs here.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;

use crate::assign::ranking;
use crate::member::Tenure;

/// The pool as this pod sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// Our tenure; `None` when this pod must not host anything.
    pub tenure: Option<Tenure>,
    /// Members that take identities, this pod among them unless it drains or has no tenure.
    pub candidates: BTreeSet<String>,
    /// Other members that are known to host nothing that we saw in their hands before the moment beside them. Any other may
    /// be alive, also one of which nothing is known.
    pub dead: BTreeMap<String, Instant>,
}

/// Who hosts an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Host<'a> {
    /// `status.host`.
    pub pod: &'a str,
    /// When we first saw its present claim.
    pub since: Instant,
}

/// How far something that runs here is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The claim is not answered yet.
    Claiming,
    /// `status.host` named this pod when the claim was answered.
    Claimed,
    /// It ends, and tells when it is free.
    Leaving,
}

/// Something that runs here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Running {
    /// The tenure in which it was started.
    pub tenure: Tenure,
    /// How far it is.
    pub stage: Stage,
}

/// What to do about an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// All is as it should be, or another pod's turn.
    Nothing,
    /// Claim it and run its node.
    Start,
    /// End its node, then tell that it is free for others.
    HandOver,
    /// End its node and tell nothing: it belongs to another pod by now, or is gone.
    Stop,
    /// It is ours, but names a host that is not known to be dead: wait for it, and watch whether it is alive.
    Inquire,
    /// It names us as its host, but is not ours and does not run here: tell that it is free.
    Disown,
}

/// What the pod `me` has to do about `identity`, whose `status.host` is `host`.
///
/// An identity is started only by its owner, and only when it has no host, or one that is known to be dead: whoever hosts
/// it and is not its owner hands it over first.
#[must_use]
pub(crate) fn decide(
    me: &str,
    identity: &str,
    host: Option<Host<'_>>,
    running: Option<&Running>,
    view: &View,
) -> Action {
    let Some(tenure) = &view.tenure else {
        return if running.is_some() {
            Action::Stop
        } else {
            Action::Nothing
        };
    };
    let owner = ranking(identity, view.candidates.iter().map(String::as_str)).first() == Some(&me);
    let ours = host.is_some_and(|host| host.pod == me);
    match running {
        Some(running) if running.tenure != *tenure => Action::Stop,
        Some(Running {
            stage: Stage::Leaving,
            ..
        }) => Action::Nothing,
        Some(Running {
            stage: Stage::Claimed,
            ..
        }) if !ours => Action::Stop,
        Some(_) if owner => Action::Nothing,
        Some(_) => Action::HandOver,
        None if owner => match host {
            Some(host) if !ours && view.dead.get(host.pod).is_none_or(|read| *read <= host.since) => {
                Action::Inquire
            }
            _ => Action::Start,
        },
        None if ours => Action::Disown,
        None => Action::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const IDENTITY: &str = "ts-nginx-abcde";

    fn view(tenure: &str, candidates: &[&str]) -> View {
        View {
            tenure: Some(Tenure::began(tenure)),
            candidates: candidates.iter().map(ToString::to_string).collect(),
            dead: BTreeMap::new(),
        }
    }

    fn running(tenure: &str, stage: Stage) -> Running {
        Running {
            tenure: Tenure::began(tenure),
            stage,
        }
    }

    fn host(pod: &str) -> Option<Host<'_>> {
        Some(Host {
            pod,
            since: Instant::now(),
        })
    }

    /// The owner among `pod-0` and `pod-1`, and the other.
    fn owner() -> (&'static str, &'static str) {
        let ranked = ranking(IDENTITY, ["pod-0", "pod-1"]);
        if ranked[0] == "pod-0" {
            ("pod-0", "pod-1")
        } else {
            ("pod-1", "pod-0")
        }
    }

    #[test]
    fn the_owner_starts_what_nobody_hosts() {
        let (mine, other) = owner();
        let both = view("7", &[mine, other]);
        assert_eq!(decide(mine, IDENTITY, None, None, &both), Action::Start);
        assert_eq!(decide(mine, IDENTITY, host(mine), None, &both), Action::Start);
        assert_eq!(decide(mine, IDENTITY, host(other), None, &both), Action::Inquire);
        assert_eq!(decide(other, IDENTITY, None, None, &both), Action::Nothing);
    }

    #[test]
    fn a_dead_host_counts_only_if_its_lease_was_read_after_its_claim_was_seen() {
        let (mine, other) = owner();
        let seen = Instant::now();
        let claimed = Some(Host {
            pod: other,
            since: seen,
        });
        let read = |at| View {
            dead: BTreeMap::from([(other.to_owned(), at)]),
            ..view("7", &[mine])
        };
        assert_eq!(
            decide(mine, IDENTITY, claimed, None, &read(seen)),
            Action::Inquire
        );
        let after = seen + Duration::from_millis(1);
        assert_eq!(decide(mine, IDENTITY, claimed, None, &read(after)), Action::Start);
    }

    #[test]
    fn a_pod_hands_over_what_it_does_not_own() {
        let (mine, other) = owner();
        let both = view("7", &[mine, other]);
        let claimed = running("7", Stage::Claimed);
        assert_eq!(
            decide(other, IDENTITY, host(other), Some(&claimed), &both),
            Action::HandOver
        );
        assert_eq!(decide(other, IDENTITY, host(other), None, &both), Action::Disown);
        let leaving = running("7", Stage::Leaving);
        assert_eq!(
            decide(other, IDENTITY, host(other), Some(&leaving), &both),
            Action::Nothing
        );
        let draining = view("7", &[other]);
        assert_eq!(
            decide(mine, IDENTITY, host(mine), Some(&claimed), &draining),
            Action::HandOver
        );
    }

    #[test]
    fn another_host_or_tenure_stops_it() {
        let (mine, other) = owner();
        let alone = view("7", &[mine]);
        let claimed = running("7", Stage::Claimed);
        assert_eq!(
            decide(mine, IDENTITY, host(mine), Some(&claimed), &alone),
            Action::Nothing
        );
        assert_eq!(
            decide(mine, IDENTITY, host(other), Some(&claimed), &alone),
            Action::Stop
        );
        let claiming = running("7", Stage::Claiming);
        assert_eq!(
            decide(mine, IDENTITY, host(other), Some(&claiming), &alone),
            Action::Nothing
        );
        let before = running("6", Stage::Claimed);
        assert_eq!(
            decide(mine, IDENTITY, host(mine), Some(&before), &alone),
            Action::Stop
        );
        let fenced = View {
            tenure: None,
            ..alone
        };
        assert_eq!(
            decide(mine, IDENTITY, host(mine), Some(&claimed), &fenced),
            Action::Stop
        );
        assert_eq!(decide(mine, IDENTITY, host(mine), None, &fenced), Action::Nothing);
    }
}
