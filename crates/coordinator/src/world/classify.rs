//! How users, nodes and services look to the policy.

use tailwharf_policy::{self as policy, Attributes};

use super::World;
use crate::model::{Node, NodeOwner, User, VipService};

pub(super) fn user(user: &User) -> policy::User {
    policy::User {
        id: user.id,
        login: user.login.clone(),
        role: user.role,
    }
}

pub(super) fn node(world: &World, node: &Node) -> policy::Node {
    let hosted = node
        .services
        .iter()
        .filter_map(|name| world.service(name))
        .filter(|service| world.is_service_host_approved(service, node));
    policy::Node {
        id: node.id,
        owner: match &node.owner {
            NodeOwner::User(user) => policy::Owner::User(*user),
            NodeOwner::Tags(_) if node.is_funnel_gateway() => policy::Owner::FunnelGateway,
            NodeOwner::Tags(tags) => policy::Owner::Tags(tags.clone()),
        },
        addresses: vec![node.ipv4.into(), node.ipv6.into()],
        routes: node.enabled_routes().collect(),
        services: hosted.map(|service| service.name.to_string()).collect(),
        attributes: attributes(node),
    }
}

pub(super) fn service(service: &VipService) -> policy::Service {
    policy::Service {
        name: service.name.to_string(),
        addresses: service.addresses().to_vec(),
        tags: service.tags.clone(),
    }
}

fn attributes(node: &Node) -> Attributes {
    let mut attributes = policy::host_attributes(&node.hostinfo);
    attributes.extend(node.attributes.clone());
    attributes
}
