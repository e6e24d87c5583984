//! What a plan does not do, and why. Conditions, events and metrics are derived from it, so they cannot disagree.

use std::fmt;

use jiff::Timestamp;
use serde::Serialize;
use tailwharf_kube_types::contract::{MAX_BACKENDS, MAX_SOURCES};
use tailwharf_kube_types::{IdentityReason, Target};

/// Everything that waits or is blocked, the most important first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report(pub Vec<Reason>);

impl Report {
    pub(crate) fn add(&mut self, reason: Reason) {
        self.0.push(reason);
    }

    /// The reasons, the most important first.
    pub fn iter(&self) -> std::slice::Iter<'_, Reason> {
        self.0.iter()
    }
}

/// Why something is not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Reason {
    /// The pool's Role does not name the identity's Secret yet; the pool's plan adds it.
    PoolGrantPending {
        /// The pool.
        pool: String,
    },
    /// The identity exists and has no status yet.
    NotHosted {
        /// The pool.
        pool: String,
    },
    /// The host tells about an older version of the identity.
    HostBehind,
    /// The identity is not ready.
    IdentityNotReady {
        /// Why, if the host gave a reason known here.
        reason: Option<IdentityReason>,
        /// The host's sentence.
        message: String,
    },
    /// A target of egress passes connections on to the Service itself; nobody is let in.
    TargetLeadsBack {
        /// Which.
        target: Target,
    },
    /// A new auth key is minted later, so that a refused one is not replaced in a loop.
    KeyReplacementPending {
        /// When.
        at: Timestamp,
    },
    /// Ports of the Service with a protocol that the tailnet does not carry are left out.
    PortsLeftOut {
        /// The ports, as `port/protocol`.
        ports: Vec<String>,
    },
    /// Endpoints beyond the most that a listener holds are left out.
    EndpointsLeftOut {
        /// How many.
        count: usize,
    },
    /// Pods that may use an egress Service are left out, since their addresses make more ranges than an identity holds.
    SourcesLeftOut {
        /// How many ranges.
        count: usize,
    },
    /// Parts of an Ingress are not served.
    PartsLeftOut {
        /// How many.
        count: usize,
    },
    /// The object cannot have a device until it is changed.
    Rejected,
    /// A host may be registering the device at this moment; its Secret is kept until that is settled.
    RegistrationInFlight {
        /// When it is settled at the latest.
        until: Timestamp,
    },
    /// A device stays at the control server, since the user asked for removal without it.
    DeviceLeftBehind {
        /// Stable id.
        device: String,
    },
}

impl Reason {
    /// A fixed word for metrics.
    #[must_use]
    pub const fn category(&self) -> &'static str {
        match self {
            Self::PoolGrantPending { .. } => "pool_grant_pending",
            Self::NotHosted { .. } => "not_hosted",
            Self::HostBehind => "host_behind",
            Self::IdentityNotReady { .. } => "identity_not_ready",
            Self::TargetLeadsBack { .. } => "target_leads_back",
            Self::KeyReplacementPending { .. } => "key_replacement_pending",
            Self::PortsLeftOut { .. } => "ports_left_out",
            Self::EndpointsLeftOut { .. } => "endpoints_left_out",
            Self::SourcesLeftOut { .. } => "sources_left_out",
            Self::PartsLeftOut { .. } => "parts_left_out",
            Self::Rejected => "rejected",
            Self::RegistrationInFlight { .. } => "registration_in_flight",
            Self::DeviceLeftBehind { .. } => "device_left_behind",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // One sentence for both: the first lasts a moment, and is not worth a write of its own.
            Self::PoolGrantPending { pool } | Self::NotHosted { pool } => {
                write!(
                    f,
                    "Waiting for a pod of pool {pool:?} to host this device; check that its pods run."
                )
            }
            Self::HostBehind => f.write_str("Waiting for the host to take over the last change."),
            Self::IdentityNotReady { reason, message } => match (message.is_empty(), reason) {
                (false, _) => f.write_str(message),
                (true, Some(reason)) => write!(f, "The device is not ready: {reason}."),
                (true, None) => f.write_str("The device is not ready."),
            },
            Self::TargetLeadsBack { target } => write!(
                f,
                "{target} is a device of this cluster that leads back to this Service: connections would go round in a circle, and are refused. Name another target, or another backend there."
            ),
            Self::KeyReplacementPending { at } => write!(f, "A new auth key is made at {at}."),
            Self::PortsLeftOut { ports } => {
                write!(
                    f,
                    "Not carried, since a tailnet device serves TCP and UDP only: {}.",
                    ports.join(", ")
                )
            }
            Self::EndpointsLeftOut { count } => {
                write!(
                    f,
                    "{count} endpoints get no connections, since a port has at most {MAX_BACKENDS}."
                )
            }
            Self::SourcesLeftOut { count } => {
                write!(
                    f,
                    "{count} ranges of addresses of pods that may use it are refused all the same, since it takes at most {MAX_SOURCES}: select fewer pods."
                )
            }
            Self::PartsLeftOut { count } => write!(f, "{count} parts are not served."),
            Self::Rejected => f.write_str("Nothing is made until the object is changed."),
            Self::RegistrationInFlight { until } => {
                write!(f, "The device may be registering; its removal ends by {until}.")
            }
            Self::DeviceLeftBehind { device } => {
                write!(f, "Device {device} stays at the control server; remove it there.")
            }
        }
    }
}
