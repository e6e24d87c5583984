//! Finding a node by what it is known by.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    net::IpAddr,
};

use tailwharf_wire::{
    key::{MachinePublic, NodePublic},
    tailcfg::NodeId,
};

use crate::model::Node;

/// The nodes by key, machine, name, stable id and address.
#[derive(Clone, Debug, Default)]
pub(super) struct NodeIndex {
    pub(super) by_key: HashMap<NodePublic, NodeId>,
    pub(super) by_machine: HashMap<MachinePublic, BTreeSet<NodeId>>,
    pub(super) by_name: HashMap<String, NodeId>,
    pub(super) by_stable_id: HashMap<String, NodeId>,
    pub(super) by_address: HashMap<IpAddr, NodeId>,
}

impl NodeIndex {
    pub(super) fn insert(&mut self, node: &Node) {
        self.by_key.insert(node.node_key, node.id);
        self.by_machine
            .entry(node.machine_key)
            .or_default()
            .insert(node.id);
        self.by_name.insert(node.name.clone(), node.id);
        self.by_stable_id.insert(node.stable_id.0.clone(), node.id);
        self.by_address.insert(node.ipv4.into(), node.id);
        self.by_address.insert(node.ipv6.into(), node.id);
    }

    pub(super) fn remove(&mut self, node: &Node) {
        self.by_key.remove(&node.node_key);
        if let Entry::Occupied(mut nodes) = self.by_machine.entry(node.machine_key) {
            nodes.get_mut().remove(&node.id);
            if nodes.get().is_empty() {
                nodes.remove();
            }
        }
        self.by_name.remove(&node.name);
        self.by_stable_id.remove(&node.stable_id.0);
        self.by_address.remove(&node.ipv4.into());
        self.by_address.remove(&node.ipv6.into());
    }

    pub(super) fn covers(&self, old: &Node, new: &Node) -> bool {
        old.node_key == new.node_key && old.name == new.name && old.addresses() == new.addresses()
    }
}
