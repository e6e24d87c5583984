//! What all listeners of one identity share: room, buffers, counters, the state of their backends, and their end.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use tailwharf_kube_types::Protocol;
use tailwharf_node::splice::Buffers;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::backend::BackendError;
use crate::limits::{Limits, Room};
use crate::metrics::Metrics;

/// Names a listener within its identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Port {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port on the tailnet addresses; 0 stands for all.
    pub number: u16,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            0 => write!(f, "all {} ports", self.protocol),
            number => write!(f, "{} port {number}", self.protocol),
        }
    }
}

/// What is known of the backends of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Health {
    /// Nothing was tried yet.
    Unknown,
    /// The last connection came about.
    Reachable,
    /// The last connection failed.
    Unreachable(BackendError),
}

/// The health of each TCP listener's backends.
pub(crate) type HealthMap = BTreeMap<Port, Health>;

/// What all listeners of one identity share.
#[derive(Debug)]
pub(crate) struct Carrier {
    /// Name of the identity.
    pub identity: Arc<str>,
    /// Copy buffers of the process.
    pub buffers: Arc<Buffers>,
    /// Counters of the process.
    pub metrics: Arc<Metrics>,
    /// Limits in force.
    pub limits: Limits,
    /// Room for connections.
    pub room: Room,
    /// Ends every connection and listener of the identity.
    pub end: CancellationToken,
    health: watch::Sender<HealthMap>,
}

impl Carrier {
    /// For the listeners of one identity; `end` ends them all.
    #[must_use]
    pub(crate) fn new(
        identity: Arc<str>,
        buffers: Arc<Buffers>,
        metrics: Arc<Metrics>,
        limits: Limits,
        room: Room,
        end: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            identity,
            buffers,
            metrics,
            limits,
            room,
            end,
            health: watch::Sender::new(HealthMap::new()),
        })
    }

    /// The health of all backends now and each change of it.
    #[must_use]
    pub(crate) fn health(&self) -> watch::Receiver<HealthMap> {
        self.health.subscribe()
    }

    /// Notes how the last connection to a backend of `port` went. A listener that is gone is not noted again.
    pub(crate) fn report(&self, port: Port, health: Health) {
        self.health.send_if_modified(|all| match all.get_mut(&port) {
            Some(known) if *known != health => {
                *known = health;
                true
            }
            _ => false,
        });
    }

    /// Begins to note the health of a listener, or begins anew.
    pub(crate) fn track(&self, port: Port) {
        self.health.send_modify(|all| {
            all.insert(port, Health::Unknown);
        });
    }

    /// Tells that something changed about backends that have no listener of their own.
    pub(crate) fn backends_changed(&self) {
        self.health.send_modify(|_| {});
    }

    /// Forgets a listener.
    pub(crate) fn forget(&self, port: Port) {
        self.health.send_if_modified(|all| all.remove(&port).is_some());
    }
}
