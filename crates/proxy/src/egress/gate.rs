//! Which pods of the cluster may use an identity's ways to its targets. A pod is known by its address: connections of pods come to the hosting pod
//! straight, with the address that Kubernetes gave them.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tailwharf_kube_types::Refusal;
use tailwharf_kube_types::contract::MAX_REFUSALS;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::carrier::Carrier;

/// A pod that goes on knocking is told of again after this time.
const TOLD_AGAIN: Duration = Duration::from_secs(5 * 60);
/// Between one telling and the next, whoever knocks: each is a write to the API server.
const TOLD_LATER: Duration = Duration::from_secs(5);

/// Who may come in.
#[derive(Debug, Default)]
struct Allowed(Option<Vec<IpNet>>);

/// Knows who may come in, and who was refused.
pub(crate) struct Gate {
    allowed: watch::Sender<Allowed>,
    refused: Mutex<Refused>,
    carrier: Arc<Carrier>,
}

#[derive(Default)]
struct Refused {
    /// The last ones, and when each was told.
    last: Vec<(Refusal, Instant)>,
    told: Option<Instant>,
}

impl Allowed {
    /// The ranges are in order and do not overlap, so that only the last one that begins before the address can hold it.
    fn admits(&self, address: IpAddr) -> bool {
        let Some(ranges) = &self.0 else { return true };
        let after = ranges.partition_point(|range| range.network() <= address);
        after
            .checked_sub(1)
            .is_some_and(|last| ranges[last].contains(&address))
    }
}

impl Gate {
    /// Open to all.
    pub(super) fn new(carrier: Arc<Carrier>) -> Arc<Self> {
        Arc::new(Self {
            allowed: watch::Sender::default(),
            refused: Mutex::default(),
            carrier,
        })
    }

    /// From now on these may come in, or all. Connections of others end.
    pub(super) fn allow(&self, from: Option<&[IpNet]>) {
        self.allowed.send_if_modified(|allowed| {
            if allowed.0.as_deref() == from {
                return false;
            }
            let mut ranges = from.map(<[IpNet]>::to_vec);
            if let Some(ranges) = &mut ranges {
                ranges.sort();
            }
            allowed.0 = ranges;
            true
        });
        let allowed = self.allowed.borrow();
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused
            .last
            .retain(|(refusal, _)| !allowed.admits(refusal.address));
    }

    /// Whether a peer may come in. One that may not is counted and told of.
    pub(super) fn admits(&self, peer: SocketAddr) -> bool {
        let address = peer.ip().to_canonical();
        if self.allowed.borrow().admits(address) {
            return true;
        }
        self.carrier.metrics.refused_sources.increment();
        self.note(address);
        false
    }

    /// Returns once a peer that came in may not any more.
    pub(super) fn revoked(&self, peer: SocketAddr) -> impl Future<Output = ()> + Send + 'static {
        let mut allowed = self.allowed.subscribe();
        let address = peer.ip().to_canonical();
        async move {
            let closed = allowed
                .wait_for(|allowed| !allowed.admits(address))
                .await
                .is_err();
            if closed {
                // The socket is closed; its connections go on.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Who was refused lately.
    pub(super) fn refused(&self) -> Vec<Refusal> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.last.iter().map(|(refusal, _)| refusal.clone()).collect()
    }

    fn note(&self, address: IpAddr) {
        let now = Instant::now();
        {
            let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            let lately =
                |at: Option<Instant>, pause| at.is_some_and(|at: Instant| now.duration_since(at) < pause);
            let before = refused
                .last
                .iter()
                .position(|(refusal, _)| refusal.address == address);
            let told = before.map(|place| refused.last[place].1);
            if lately(refused.told, TOLD_LATER) || lately(told, TOLD_AGAIN) {
                return;
            }
            if let Some(place) = before {
                refused.last.remove(place);
            } else if refused.last.len() >= MAX_REFUSALS {
                refused.last.remove(0);
            }
            let at = Timestamp::now();
            let at = Time(Timestamp::from_second(at.as_second()).unwrap_or(at));
            refused.last.push((Refusal { address, at }, now));
            refused.told = Some(now);
        }
        self.carrier.backends_changed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(ranges: &[&str]) -> Allowed {
        Allowed(Some(ranges.iter().map(|range| range.parse().unwrap()).collect()))
    }

    #[test]
    fn addresses_are_in_the_ranges_or_not() {
        let admits = |allowed: &Allowed, address: &str| allowed.admits(address.parse().unwrap());
        let some = allowed(&["10.0.0.4/32", "10.0.0.8/30", "fd00::4/128"]);
        for (address, is_in) in [
            ("10.0.0.3", false),
            ("10.0.0.4", true),
            ("10.0.0.5", false),
            ("10.0.0.8", true),
            ("10.0.0.11", true),
            ("10.0.0.12", false),
            ("fd00::4", true),
            ("fd00::5", false),
        ] {
            assert_eq!(admits(&some, address), is_in, "{address}");
        }
        assert!(!admits(&allowed(&[]), "10.0.0.4"));
        assert!(admits(&Allowed(None), "10.0.0.4"));
    }
}
