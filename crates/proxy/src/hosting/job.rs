//! One identity to host: orders and reports, and the claim with which it begins.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rand::rngs::OsRng;
use tailwharf_kube_types::Identity;
use tailwharf_kube_types::names::secret_name;
use tailwharf_node::Backoff;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::Shared;
use crate::cluster::ApiError;
use crate::status::{Claim, Facts};

/// What the pool wants of a hosted identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Run.
    Run,
    /// End the node, then tell that the identity is free.
    HandOver,
    /// End the node and tell nothing.
    Stop,
}

/// What a hosted identity tells the pool.
#[derive(Debug)]
pub(crate) enum Report {
    /// The claim was answered.
    Claimed,
    /// The identity as a write of ours left it, or as it was when a write came too late.
    Seen(Box<Identity>),
    /// Nothing of it runs here any more.
    Ended,
}

/// One identity to host.
pub(crate) struct Job {
    /// Its name.
    pub name: Arc<str>,
    /// The version to claim. No other: a newer one may name a host that is alive.
    pub claimed: Arc<Identity>,
    /// The newest version of it that the pool has.
    pub identity: watch::Receiver<Arc<Identity>>,
    /// What the pool wants.
    pub orders: watch::Receiver<Order>,
    /// The claim to make.
    pub claim: Claim,
    /// Cancelled when this pod must not host any more.
    pub fence: CancellationToken,
    /// Where reports go, with `serial`.
    pub reports: mpsc::UnboundedSender<(Arc<str>, u64, Report)>,
    /// Tells this job from earlier and later ones of the same identity.
    pub serial: u64,
    /// What all identities share.
    pub shared: Arc<Shared>,
}

/// Tells that an identity is free which names this pod as its host though it does not run here.
pub(crate) async fn disown(shared: &Shared, identity: &Identity) -> Option<Identity> {
    let name = identity.metadata.name.as_deref()?;
    let version = identity.metadata.resource_version.as_deref()?;
    let facts = Facts {
        leaving: true,
        ..facts(identity)
    };
    let previous = identity.status.clone().unwrap_or_default();
    let status = facts.status(&previous, None, identity.metadata.generation, Timestamp::now());
    match shared.cluster.write_status(name, version, &status).await {
        Ok(identity) => Some(identity),
        // Someone has written: the watch brings what, and the pool decides anew.
        Err(ApiError::Conflict | ApiError::NotFound) => None,
        Err(error) => {
            warn!(
                identity = %name,
                error = &error as &dyn std::error::Error,
                "the identity could not be let go"
            );
            None
        }
    }
}

pub(super) fn facts(identity: &Identity) -> Facts {
    Facts {
        secret: secret_name(identity.metadata.name.as_deref().unwrap_or_default()),
        control_server: identity.spec.login_server.clone(),
        hostname: identity.spec.hostname.as_str().to_owned(),
        listeners: identity.spec.listeners.len(),
        reached: reached(identity),
        ..Facts::default()
    }
}

/// How many ports of targets the identity reaches.
pub(super) fn reached(identity: &Identity) -> usize {
    identity
        .spec
        .egress
        .as_ref()
        .map_or(0, |egress| egress.ports.len() + usize::from(egress.all_ports))
}

impl Job {
    pub(super) fn report(&self, report: Report) {
        // The pool is gone only when the process ends.
        let _ = self.reports.send((self.name.clone(), self.serial, report));
    }

    /// Writes our name into the identity, unless someone was faster. `None` when the identity is not ours.
    pub(super) async fn claim(&mut self) -> Option<Identity> {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        let identity = self.claimed.clone();
        let version = identity.metadata.resource_version.clone().unwrap_or_default();
        let previous = identity.status.clone().unwrap_or_default();
        let generation = identity.metadata.generation;
        let status = facts(&identity).status(&previous, Some(&self.claim), generation, Timestamp::now());
        drop(identity);
        let cluster = self.shared.cluster.clone();
        loop {
            let claim = cluster.write_status(&self.name, &version, &status);
            let claimed = tokio::select! {
                biased;
                () = self.fence.cancelled() => return None,
                claimed = claim => claimed,
            };
            match claimed {
                Ok(_) if self.fence.is_cancelled() => return None,
                Ok(identity) => return Some(identity),
                Err(ApiError::Conflict) => {
                    self.shared.metrics.claims_lost.increment();
                    if let Ok(newer) = cluster.identity(&self.name).await {
                        self.report(Report::Seen(Box::new(newer)));
                    }
                    return None;
                }
                Err(ApiError::NotFound) => return None,
                Err(error) => {
                    warn!(
                        error = &error as &dyn std::error::Error,
                        "the identity could not be claimed"
                    );
                }
            }
            if *self.orders.borrow() != Order::Run {
                return None;
            }
            tokio::select! {
                () = self.fence.cancelled() => return None,
                _ = self.orders.changed() => return None,
                () = sleep(backoff.next(&mut OsRng)) => {}
            }
        }
    }
}
