//! The steps from one world to the next.

use std::{collections::BTreeSet, net::Ipv4Addr, sync::Arc};

use tailwharf_policy::{self as policy, Policy};
use tailwharf_wire::tailcfg::{DerpMap, NodeId, UserId};

use crate::model::{
    ApiToken, AuthKey, CheckId, Confirmation, CredentialId, DnsSettings, DnsTxt, LogEntry, Node, OauthClient,
    PendingCheck, PendingRegistration, PolicyVersion, RegistrationId, ServiceName, Settings, User,
    VipService,
};

/// A policy in force.
#[derive(Debug)]
pub struct ActivePolicy {
    /// Its text and origin. Version 0 is the default that holds before one was ever set.
    pub version: Arc<PolicyVersion>,
    /// What the text says.
    pub policy: Arc<Policy>,
}

/// What is known of a node only as long as the process runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Presence {
    /// Whether the node has a map stream, or had one a moment ago.
    pub online: bool,
    /// Whether the node is online and yet not to be relied on: its stream has ended, or it does not answer.
    pub silent: bool,
    /// Whether peers are not told of the node yet, because it could not be reached by them.
    pub held: bool,
    /// Whether the node key has ended.
    pub expired: bool,
}

/// Numbers that only ever grow, so that no id or address comes back at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// The id of the next node.
    pub next_node: i64,
    /// The id of the next user.
    pub next_user: i64,
    /// The IPv4 address that was given last.
    pub last_v4: Option<Ipv4Addr>,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            next_node: 1,
            next_user: 1,
            last_v4: None,
        }
    }
}

/// One step from a world to the next.
#[derive(Clone, Debug)]
pub enum Change {
    /// Creates or replaces a user.
    PutUser(Arc<User>),
    /// Deletes a user.
    DeleteUser(UserId),
    /// Creates or replaces a node.
    PutNode(Arc<Node>),
    /// Deletes a node.
    DeleteNode(NodeId),
    /// Creates or replaces a service.
    PutService(Arc<VipService>),
    /// Deletes a service.
    DeleteService(ServiceName),
    /// Creates or replaces an auth key.
    PutAuthKey(Arc<AuthKey>),
    /// Deletes an auth key.
    DeleteAuthKey(CredentialId),
    /// Creates or replaces an OAuth client.
    PutOauthClient(Arc<OauthClient>),
    /// Deletes an OAuth client.
    DeleteOauthClient(CredentialId),
    /// Creates or replaces an API token.
    PutToken(Arc<ApiToken>),
    /// Deletes an API token.
    DeleteToken(CredentialId),
    /// Puts a policy in force.
    PutPolicy(Arc<ActivePolicy>),
    /// Puts rules for devices in force.
    PutSettings(Arc<Settings>),
    /// Puts rules for names in force.
    PutDns(Arc<DnsSettings>),
    /// Creates or replaces a TXT record.
    PutDnsTxt(Arc<DnsTxt>),
    /// Deletes a TXT record.
    DeleteDnsTxt(String),
    /// Creates or replaces what a person confirmed.
    PutConfirmation(Arc<Confirmation>),
    /// Takes back what a person confirmed, by [`Confirmation::id`].
    DeleteConfirmation(String),
    /// Notes what was done.
    Log(Arc<LogEntry>),
    /// Changes what is known of a running node. Not stored.
    SetPresence(NodeId, Presence),
    /// Creates or replaces a registration that waits. Not stored.
    PutRegistration(Arc<PendingRegistration>),
    /// Ends a registration. Not stored.
    DeleteRegistration(RegistrationId),
    /// Creates or replaces a question to a person. Not stored.
    PutCheck(Arc<PendingCheck>),
    /// Ends a question to a person. Not stored.
    DeleteCheck(CheckId),
    /// Replaces the relays. Not stored: they come from the configuration.
    SetDerpMap(Arc<DerpMap>),
}

impl Change {
    /// Whether the change is kept in memory only.
    pub fn is_volatile(&self) -> bool {
        matches!(
            self,
            Self::SetPresence(..)
                | Self::PutRegistration(_)
                | Self::DeleteRegistration(_)
                | Self::PutCheck(_)
                | Self::DeleteCheck(_)
                | Self::SetDerpMap(_)
        )
    }
}

/// Whom changes concern.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Effects {
    /// Nodes that changed; once settled, those that look different to their peers.
    pub nodes: BTreeSet<NodeId>,
    /// Nodes that look different to themselves.
    pub own: BTreeSet<NodeId>,
    /// Nodes whose whole view may differ: they became or ceased to be members, or moved to another region.
    pub moved: BTreeSet<NodeId>,
    /// Services that changed; once settled, those with other hosts than before.
    pub services: BTreeSet<ServiceName>,
    /// Users whose profile changed.
    pub users: BTreeSet<UserId>,
    /// Registrations that were decided.
    pub decided: BTreeSet<RegistrationId>,
    /// Questions to people that were decided.
    pub answered: BTreeSet<CheckId>,
    /// Whether every node's view may differ.
    pub everyone: bool,
    /// What the policy makes of it, once settled.
    pub affected: policy::Affected,
    /// What the policy has to be told of.
    pub(crate) pending: Pending,
}

impl Effects {
    /// Whether nothing differs for anybody.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Notes what the policy has to be told of.
    pub(crate) fn tell(&mut self, change: policy::Change) {
        self.pending.0.push(change);
    }
}

/// Changes that wait until the batch is complete. Equal only when both are empty: no more is asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pending(pub(crate) Vec<policy::Change>);

impl PartialEq for Pending {
    fn eq(&self, other: &Self) -> bool {
        self.0.is_empty() && other.0.is_empty()
    }
}
