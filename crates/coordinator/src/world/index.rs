//! Finding a node by what it is known by.

use std::{hash::Hash, net::IpAddr};

use rpds::{HashTrieMapSync, HashTrieSetSync};
use tailwharf_wire::{
    key::{MachinePublic, NodePublic},
    tailcfg::{NodeId, UserId},
};

use crate::model::{Node, NodeOwner, ServiceName, User, VipService};

/// Several nodes by one thing.
pub(super) type Groups<K> = HashTrieMapSync<K, HashTrieSetSync<NodeId>>;

/// The nodes by key, machine, name, stable id and address, and what else is looked up by another name than its own.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    pub(super) by_key: HashTrieMapSync<NodePublic, NodeId>,
    pub(super) by_machine: Groups<MachinePublic>,
    pub(super) by_name: HashTrieMapSync<String, NodeId>,
    pub(super) by_stable_id: HashTrieMapSync<String, NodeId>,
    pub(super) by_address: HashTrieMapSync<IpAddr, NodeId>,
    /// The untagged nodes of each person.
    pub(super) by_user: Groups<UserId>,
    /// The nodes that offer to be hosts of a service.
    pub(super) by_service: Groups<ServiceName>,
    pub(super) service_by_address: HashTrieMapSync<IpAddr, ServiceName>,
    /// By login in lower case.
    pub(super) user_by_login: HashTrieMapSync<String, UserId>,
}

impl Index {
    pub(super) fn insert(&mut self, node: &Node) {
        self.by_key.insert_mut(node.node_key, node.id);
        join(&mut self.by_machine, node.machine_key, node.id);
        self.by_name.insert_mut(node.name.clone(), node.id);
        self.by_stable_id.insert_mut(node.stable_id.0.clone(), node.id);
        self.by_address.insert_mut(node.ipv4.into(), node.id);
        self.by_address.insert_mut(node.ipv6.into(), node.id);
        if let NodeOwner::User(user) = node.owner {
            join(&mut self.by_user, user, node.id);
        }
        for service in &node.services {
            join(&mut self.by_service, service.clone(), node.id);
        }
    }

    pub(super) fn remove(&mut self, node: &Node) {
        self.by_key.remove_mut(&node.node_key);
        leave(&mut self.by_machine, &node.machine_key, node.id);
        self.by_name.remove_mut(&node.name);
        self.by_stable_id.remove_mut(&node.stable_id.0);
        self.by_address.remove_mut(&IpAddr::from(node.ipv4));
        self.by_address.remove_mut(&IpAddr::from(node.ipv6));
        if let NodeOwner::User(user) = node.owner {
            leave(&mut self.by_user, &user, node.id);
        }
        for service in &node.services {
            leave(&mut self.by_service, service, node.id);
        }
    }

    /// Whether both versions of a node are found by the same things.
    pub(super) fn covers(old: &Node, new: &Node) -> bool {
        old.node_key == new.node_key
            && old.machine_key == new.machine_key
            && old.name == new.name
            && old.addresses() == new.addresses()
            && old.owner.user() == new.owner.user()
            && old.services == new.services
    }

    pub(super) fn insert_service(&mut self, service: &VipService) {
        for addr in service.addresses() {
            self.service_by_address.insert_mut(addr, service.name.clone());
        }
    }

    pub(super) fn remove_service(&mut self, service: &VipService) {
        for addr in service.addresses() {
            self.service_by_address.remove_mut(&addr);
        }
    }

    pub(super) fn insert_user(&mut self, user: &User) {
        self.user_by_login
            .insert_mut(user.login.to_ascii_lowercase(), user.id);
    }

    pub(super) fn remove_user(&mut self, user: &User) {
        self.user_by_login.remove_mut(&user.login.to_ascii_lowercase());
    }
}

fn join<K: Eq + Hash>(groups: &mut Groups<K>, key: K, id: NodeId) {
    let mut group = groups.get(&key).cloned().unwrap_or_default();
    group.insert_mut(id);
    groups.insert_mut(key, group);
}

fn leave<K: Eq + Hash + Clone>(groups: &mut Groups<K>, key: &K, id: NodeId) {
    let Some(mut group) = groups.get(key).cloned() else {
        return;
    };
    group.remove_mut(&id);
    if group.is_empty() {
        groups.remove_mut(key);
    } else {
        groups.insert_mut(key.clone(), group);
    }
}
