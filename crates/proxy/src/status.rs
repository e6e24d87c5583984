//! From what the host knows of an identity to its status: pure.

use std::net::IpAddr;

use jiff::Timestamp;
use tailwharf_kube_types::conditions::conditions;
use tailwharf_kube_types::contract::MAX_ROUTES;
use tailwharf_kube_types::names::is_numbered;
use tailwharf_kube_types::{
    ConditionStatus, ConditionType, IdentityReason, IdentityStatus, PathKind, Refusal, Step,
};
use tailwharf_node::{NodeStatus, Phase};

use crate::backend::BackendError;
use crate::carrier::{Health, HealthMap, Port};

/// What stands in the way of starting the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// The Secret cannot be read.
    SecretUnavailable {
        /// Why.
        why: String,
    },
    /// The Secret does not hold a node's state.
    SecretInvalid {
        /// What is wrong.
        why: String,
    },
    /// Neither a registration nor an auth key is in the Secret.
    AuthKeyMissing,
    /// The node could not be made.
    NotStarted {
        /// Why.
        why: String,
    },
}

/// What keeps requests from a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BackendTrouble {
    /// The condition's reason.
    pub reason: IdentityReason,
    /// One sentence with what comes next.
    pub message: String,
}

/// What is known of what a device serves over HTTP.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct WebFacts {
    /// The first backend that cannot be reached.
    pub trouble: Option<BackendTrouble>,
    /// Each backend was tried.
    pub tried: bool,
    /// How far the certificates are, once the device is on the tailnet.
    pub certificate: Option<Step>,
    /// Whether the Internet reaches the device, if it is to.
    pub funnel: Option<Step>,
}

/// What the host knows of an identity.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Name of the Secret, for messages.
    pub secret: String,
    /// URL of the control server, for messages.
    pub control_server: String,
    /// The name that the device asks for.
    pub hostname: String,
    /// What stands in the way of starting the node.
    pub obstacle: Option<Obstacle>,
    /// Device id, name and addresses as of the last run, until the node tells its own.
    pub known: (Option<String>, Option<String>, Vec<IpAddr>),
    /// The node registers with an auth key.
    pub with_auth_key: bool,
    /// What the node tells.
    pub node: Option<NodeStatus>,
    /// The node has had a network map since it was started.
    pub mapped: bool,
    /// How many listeners are wanted.
    pub listeners: usize,
    /// How many ports of targets are to be reached for pods of the cluster.
    pub reached: usize,
    /// Listeners that could not be opened, and why.
    pub failed: Vec<(Port, String)>,
    /// What is known of the backends of TCP listeners, and of targets.
    pub backends: HealthMap,
    /// What it serves over HTTP, if it does.
    pub web: Option<WebFacts>,
    /// Pods that were refused lately.
    pub refused: Vec<Refusal>,
    /// The identity is being handed to another pod.
    pub leaving: bool,
}

/// How many peers the next host is told of.
const MAX_RECENT_PEERS: usize = 32;

/// How packets of the peer that talked last travel.
fn path(node: &NodeStatus) -> Option<PathKind> {
    node.paths.first().map(|path| match path.kind {
        tailwharf_node::PathKind::Direct { .. } => PathKind::Direct,
        tailwharf_node::PathKind::Relay { .. } => PathKind::Relay,
    })
}

/// Peers with a session, then those that had one before. Only who is among them counts: as long as that is the same, so is their order, and nothing is written.
fn recent_peers(node: &NodeStatus, previous: &[String]) -> Vec<String> {
    let active = || {
        node.paths
            .iter()
            .map(|path| &path.device_id.0)
            .take(MAX_RECENT_PEERS)
    };
    if active().all(|id| previous.contains(id)) {
        return previous.to_vec();
    }
    let before = previous.iter().filter(|id| active().all(|active| active != *id));
    active().chain(before).take(MAX_RECENT_PEERS).cloned().collect()
}

/// By which right this pod writes the status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    /// Name of this pod.
    pub host: String,
    /// Addresses of this pod in the cluster.
    pub addresses: Vec<IpAddr>,
    /// Differs from that of any other claim: a write that was held back in the network and belongs to an earlier one of ours
    /// never finds the version that it depends on.
    pub name: String,
}

impl Facts {
    /// The status after `previous`. Without a claim, the identity is free for others.
    #[must_use]
    pub(crate) fn status(
        &self,
        previous: &IdentityStatus,
        claim: Option<&Claim>,
        generation: Option<i64>,
        now: Timestamp,
    ) -> IdentityStatus {
        let node = self.node.as_ref();
        let (id, fqdn, addresses) = &self.known;
        let told = node
            .map(|node| node.addresses.clone())
            .filter(|addresses| !addresses.is_empty());
        let any = [
            told.unwrap_or_default(),
            addresses.clone(),
            previous.addresses.clone(),
        ];
        IdentityStatus {
            device_id: node
                .and_then(|node| node.device_id.as_ref().map(|id| id.0.clone()))
                .or_else(|| id.clone())
                .or_else(|| previous.device_id.clone()),
            fqdn: node
                .and_then(|node| node.fqdn.clone())
                .or_else(|| fqdn.clone())
                .or_else(|| previous.fqdn.clone()),
            addresses: any
                .into_iter()
                .find(|addresses| !addresses.is_empty())
                .unwrap_or_default(),
            routes: node.map_or_else(
                || previous.routes.clone(),
                |node| node.routes.iter().take(MAX_ROUTES).copied().collect(),
            ),
            host: claim.map(|claim| claim.host.clone()),
            host_addresses: claim.map(|claim| claim.addresses.clone()).unwrap_or_default(),
            claim: claim.map(|claim| claim.name.clone()),
            observed_generation: generation,
            path: node.and_then(path).or(previous.path),
            recent_peers: node.map_or_else(
                || previous.recent_peers.clone(),
                |node| recent_peers(node, &previous.recent_peers),
            ),
            refused: self.refused.clone(),
            conditions: conditions(&self.steps(), &previous.conditions, generation, now),
        }
    }

    fn steps(&self) -> Vec<Step> {
        let mut steps = vec![self.registered()];
        if steps[0].status == ConditionStatus::True {
            steps.extend(self.authorized());
            steps.extend(self.advertised());
        }
        steps.push(self.backend_reachable());
        if let Some(web) = &self.web {
            let certificate = web.certificate.clone();
            steps.push(certificate.unwrap_or_else(|| Step::waiting(ConditionType::CertificateReady)));
            steps.extend(web.funnel.clone());
        }
        steps
    }

    fn registered(&self) -> Step {
        use IdentityReason::{
            AuthKeyMissing, AuthKeyRejected, ControlServerRefused, ControlServerUnreachable, LoginRequired,
            Registering, SecretInvalid, SecretUnavailable,
        };
        let blocked = |reason, message| Step::blocked(ConditionType::Registered, reason, message);
        let (secret, server) = (&self.secret, &self.control_server);
        match &self.obstacle {
            None => {}
            Some(Obstacle::SecretUnavailable { why }) => {
                let text = format!("Secret {secret} cannot be read: {why}. It is tried again.");
                return blocked(SecretUnavailable, text);
            }
            Some(Obstacle::SecretInvalid { why }) => {
                let text = format!("{why}. Repair Secret {secret}, or delete it to get a new device.");
                return blocked(SecretInvalid, text);
            }
            Some(Obstacle::AuthKeyMissing) => {
                let text = format!("Secret {secret} has no auth key. Put one into its key auth_key.");
                return blocked(AuthKeyMissing, text);
            }
            Some(Obstacle::NotStarted { why }) => {
                return blocked(
                    ControlServerUnreachable,
                    format!("{why}. Correct the control server's URL."),
                );
            }
        }
        match self.node.as_ref().map(|node| &node.phase) {
            None | Some(Phase::Starting | Phase::Stopped) => {
                blocked(Registering, format!("The device registers at {server}."))
            }
            Some(Phase::NeedsLogin { url }) => {
                let text = format!("Open {url} and sign in, or put a new auth key into Secret {secret}.");
                blocked(LoginRequired, text)
            }
            Some(Phase::Refused { reason }) if self.with_auth_key => {
                let text = format!(
                    "{server} refused the auth key: {}. Check the key's tags, or put a new key into Secret {secret}.",
                    sentence(reason)
                );
                blocked(AuthKeyRejected, text)
            }
            Some(Phase::Refused { reason }) => {
                let text = format!(
                    "{server} refused the device: {}. Put an auth key into Secret {secret}.",
                    sentence(reason)
                );
                blocked(ControlServerRefused, text)
            }
            Some(Phase::Disconnected { reason })
                if self.node.as_ref().is_some_and(|node| node.device_id.is_none()) =>
            {
                blocked(ControlServerUnreachable, self.out_of_reach(reason))
            }
            Some(Phase::NeedsApproval | Phase::Registered | Phase::Online | Phase::Disconnected { .. }) => {
                Step::done(ConditionType::Registered, self.registration())
            }
        }
    }

    fn registration(&self) -> String {
        let (server, hostname) = (&self.control_server, &self.hostname);
        let name = self.node.as_ref().and_then(|node| node.fqdn.as_deref());
        match name.filter(|name| is_numbered(name, hostname)) {
            None => format!("The device is registered at {server}."),
            Some(name) => format!(
                "The device is registered at {server} as {name}, because another device of the tailnet has the name {hostname}. Remove that device, or choose another name."
            ),
        }
    }

    fn out_of_reach(&self, reason: &str) -> String {
        format!(
            "{} cannot be reached: {}. It is tried again.",
            self.control_server,
            sentence(reason)
        )
    }

    fn authorized(&self) -> Option<Step> {
        match &self.node.as_ref()?.phase {
            Phase::NeedsApproval => Some(Step::blocked(
                ConditionType::Authorized,
                IdentityReason::ApprovalPending,
                format!(
                    "An administrator of {} has to approve the device.",
                    self.control_server
                ),
            )),
            Phase::Disconnected { reason } if !self.mapped => Some(Step::blocked(
                ConditionType::Authorized,
                IdentityReason::ControlServerUnreachable,
                self.out_of_reach(reason),
            )),
            Phase::Online | Phase::Disconnected { .. } => Some(Step::done(
                ConditionType::Authorized,
                "The control server lets the device onto the tailnet.",
            )),
            Phase::Registered => Some(Step::blocked(
                ConditionType::Authorized,
                IdentityReason::NetmapPending,
                "The device waits for its first network map.",
            )),
            Phase::Starting | Phase::NeedsLogin { .. } | Phase::Refused { .. } | Phase::Stopped => None,
        }
    }

    fn advertised(&self) -> Option<Step> {
        let blocked =
            |reason, message: String| Some(Step::blocked(ConditionType::Advertised, reason, message));
        if self.leaving {
            return blocked(
                IdentityReason::Draining,
                "Another pod takes the device over.".to_owned(),
            );
        }
        let node = self.node.as_ref()?;
        if let Some((port, why)) = self.failed.first() {
            return blocked(
                IdentityReason::ListenerFailed,
                format!("{port} could not be opened: {why}. It is tried again."),
            );
        }
        match &node.phase {
            Phase::Disconnected { .. } if !self.mapped => None,
            Phase::Online | Phase::Disconnected { .. } if !node.relay_connected => blocked(
                IdentityReason::RelayUnreachable,
                "The device is not connected to its home relay. It is tried again.".to_owned(),
            ),
            Phase::Online => Some(Step::done(
                ConditionType::Advertised,
                "Peers can reach the device.",
            )),
            Phase::Disconnected { reason } => Some(Step::done(
                ConditionType::Advertised,
                format!(
                    "Peers can reach the device; the control server cannot be reached: {}.",
                    sentence(reason)
                ),
            )),
            _ => None,
        }
    }

    fn backend_reachable(&self) -> Step {
        let condition = ConditionType::BackendReachable;
        if self.reached > 0 {
            return self.target_reachable();
        }
        if let Some(trouble) = self.web.as_ref().and_then(|web| web.trouble.clone()) {
            return Step::blocked(condition, trouble.reason, trouble.message);
        }
        if self.listeners == 0 && self.web.is_none() {
            let reason = IdentityReason::NoListeners;
            return Step {
                reason,
                ..Step::done(condition, "The device serves no port.")
            };
        }
        let (failing, more) = self.failing();
        if let Some((port, error)) = failing {
            let hint = match error {
                BackendError::Unresolved(_) => "Check the name.",
                _ => "Check that the Service has ready endpoints.",
            };
            let text = format!("Connections to {port} cannot be passed on: {error}. {hint}{more}");
            return Step::blocked(condition, error.reason(), text);
        }
        let untried = self.web.as_ref().is_some_and(|web| !web.tried);
        if untried || self.backends.values().any(|health| *health == Health::Unknown) {
            return not_probed("The first connection to the backends is under way.");
        }
        let text = if self.web.is_some() {
            "Each backend takes connections."
        } else if self.backends.is_empty() {
            "All ports are UDP, which cannot be probed."
        } else {
            "Each TCP port has a backend that takes connections."
        };
        Step::done(condition, text)
    }

    fn target_reachable(&self) -> Step {
        let condition = ConditionType::BackendReachable;
        let (failing, more) = self.failing();
        if let Some((port, error)) = failing {
            let hint = match error {
                BackendError::Target(error) => error.hint(),
                _ => "It is tried again.",
            };
            let text = format!("Connections to {port} cannot be passed on: {error}. {hint}{more}");
            return Step::blocked(condition, error.reason(), text);
        }
        if self.backends.values().any(|health| *health == Health::Unknown) {
            return not_probed("The first connection to the targets is under way.");
        }
        Step::done(condition, "Each port can be reached on the tailnet.")
    }

    /// The first port whose connections cannot be passed on, and a sentence about the others.
    fn failing(&self) -> (Option<(&Port, &BackendError)>, String) {
        let mut failing = self.backends.iter().filter_map(|(port, health)| match health {
            Health::Unreachable(error) => Some((port, error)),
            Health::Unknown | Health::Reachable => None,
        });
        let first = failing.next();
        let more = match failing.count() {
            0 => String::new(),
            n => format!(" {n} more ports have the same trouble."),
        };
        (first, more)
    }
}

fn not_probed(message: &str) -> Step {
    Step {
        condition: ConditionType::BackendReachable,
        status: ConditionStatus::Unknown,
        reason: IdentityReason::BackendNotProbed,
        message: message.to_owned(),
    }
}

/// A server's words as the middle of a sentence of ours: bounded, on one line, without a final stop.
fn sentence(text: &str) -> String {
    const LONGEST: usize = 400;
    let line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(LONGEST)
        .collect();
    line.trim().trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests;
