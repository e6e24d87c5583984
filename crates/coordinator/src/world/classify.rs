//! How users and nodes look to the policy.

use std::collections::BTreeSet;

use tailwharf_policy::{self as policy, Attributes};

use crate::model::{Node, NodeOwner, User};

pub(super) fn user(user: &User) -> policy::User {
    policy::User {
        id: user.id,
        login: user.login.clone(),
        role: user.role,
    }
}

pub(super) fn node(node: &Node) -> policy::Node {
    policy::Node {
        id: node.id,
        owner: match &node.owner {
            NodeOwner::User(user) => policy::Owner::User(*user),
            NodeOwner::Tags(tags) => policy::Owner::Tags(tags.clone()),
        },
        addresses: vec![node.ipv4.into(), node.ipv6.into()],
        routes: node.enabled_routes().collect(),
        services: BTreeSet::new(),
        attributes: attributes(node),
    }
}

/// Whether the policy sees no difference between two versions of a node.
pub(super) fn alike(old: &Node, new: &Node) -> bool {
    old.owner == new.owner
        && old.addresses() == new.addresses()
        && old.enabled_routes().eq(new.enabled_routes())
        && attributes(old) == attributes(new)
}

fn attributes(node: &Node) -> Attributes {
    let mut attributes = policy::host_attributes(&node.hostinfo);
    attributes.extend(node.attributes.clone());
    attributes
}
