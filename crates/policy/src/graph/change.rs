//! What may change in a tailnet, and whom a change concerns.

use std::collections::BTreeSet;
use std::sync::Arc;

use tailwharf_wire::tailcfg::{NodeId, UserId};

use crate::{Node, Policy, Service, User};

/// One change of what a policy is applied to, or of the policy itself.
#[derive(Clone, Debug)]
pub enum Change {
    /// Creates or replaces a user.
    PutUser(User),
    /// Deletes a user. The user's devices, if any remain, are nobody's from then on.
    DeleteUser(UserId),
    /// Creates or replaces a node.
    PutNode(Node),
    /// Deletes a node.
    DeleteNode(NodeId),
    /// Creates or replaces a VIP Service. Which nodes host it is told by [`Node::services`].
    PutService(Service),
    /// Deletes the VIP Service of this name.
    DeleteService(String),
    /// Puts a policy in force.
    SetPolicy(Arc<Policy>),
}

/// Whom changes concern. A node that was deleted is named only as one end of `visibility`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Affected {
    /// Nodes whose packet filter ([`crate::Graph::rules_for`]) may differ. Every node whose filter does differ is among them.
    pub filters: BTreeSet<NodeId>,
    /// Nodes whose capabilities ([`crate::Graph::cap_map_for`]) differ.
    pub capabilities: BTreeSet<NodeId>,
    /// Nodes whose SSH policy ([`crate::Graph::ssh_policy_for`]) may differ, in the sense of `filters`.
    pub ssh: BTreeSet<NodeId>,
    /// Nodes that may have to use other routers than before ([`crate::Graph::steering`]).
    pub steering: BTreeSet<NodeId>,
    /// Pairs of nodes that became peers of each other, or ceased to be, in the order of the changes.
    pub visibility: Vec<Visibility>,
}

/// Two nodes that became peers, or ceased to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Visibility {
    /// The node with the lower id.
    pub a: NodeId,
    /// The node with the higher id.
    pub b: NodeId,
    /// Whether they are peers now.
    pub visible: bool,
}

impl Visibility {
    pub(crate) fn new(one: NodeId, other: NodeId, visible: bool) -> Self {
        Self {
            a: one.min(other),
            b: one.max(other),
            visible,
        }
    }
}

impl Affected {
    /// Adds what a later change concerns.
    pub fn extend(&mut self, later: Self) {
        self.filters.extend(later.filters);
        self.capabilities.extend(later.capabilities);
        self.ssh.extend(later.ssh);
        self.steering.extend(later.steering);
        self.visibility.extend(later.visibility);
    }

    /// Whether nobody is concerned.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
