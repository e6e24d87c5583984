//! Devices.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;
use tailwharf_wire::tailcfg::NodeId;

use super::{Context, Decision, OpError, Operations, check_tags};
use crate::{
    model::{Actor, AttributeValue, DnsTxt, Node, NodeOwner, Tag},
    names,
    world::{Change, Presence, World},
};

/// Posture attributes that one node may have.
const ATTRIBUTE_LIMIT: usize = 64;
const ATTRIBUTE_NAME_LIMIT: usize = 64;
const ATTRIBUTE_VALUE_LIMIT: usize = 512;
/// TXT records that one node may have: a handful of certificates, each with a record or two.
const TXT_LIMIT: usize = 32;
const TXT_VALUE_LIMIT: usize = 255;

/// How a request names a node: its number, its stable id, its DNS label or its full name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRef(pub String);

impl Operations {
    /// The node that a request names.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn find_node(&self, reference: &NodeRef) -> Result<Arc<Node>, OpError> {
        self.world()
            .find_node(&reference.0)
            .cloned()
            .ok_or_else(|| OpError::not_found("node", &reference.0))
    }

    /// Deletes a node. Its key is worth nothing from then on, its peers forget it.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete_node(&self, id: NodeId) -> Result<(), OpError> {
        self.submit(move |world, _| {
            world.node(id).ok_or_else(|| OpError::not_found("node", id.0))?;
            Ok(Decision::new(removal(world, id), ()))
        })
        .await
    }

    /// Ends a node's key now. The node has to log in again.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn expire_node(&self, id: NodeId) -> Result<Arc<Node>, OpError> {
        self.change_node(id, |_, context, node| {
            node.expires = Some(context.now);
            Ok(())
        })
        .await
    }

    /// Lets a node's key live for ever, or, with `false`, does nothing to a key that has an end already.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn set_key_expiry_disabled(&self, id: NodeId, disabled: bool) -> Result<Arc<Node>, OpError> {
        self.change_node(id, move |_, _, node| {
            if disabled {
                node.expires = None;
            }
            Ok(())
        })
        .await
    }

    /// Gives a node a name of the administrator's choice, or, with an empty name, one that follows its host name again.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` when it is not a DNS label; `Conflict` when another node has it.
    pub async fn rename_node(&self, id: NodeId, name: String) -> Result<Arc<Node>, OpError> {
        self.change_node(id, move |world, _, node| {
            if name.is_empty() {
                node.name_is_fixed = false;
                node.name = world.free_name(&node.hostinfo.hostname, Some(id));
                return Ok(());
            }
            if names::sanitise(&name) != name {
                return Err(OpError::Invalid(format!(
                    "`{name}` is not a name for a node: use up to 63 lower-case letters, digits and hyphens"
                )));
            }
            if world.node_by_name(&name).is_some_and(|other| other.id != id) {
                return Err(OpError::Conflict(format!("another node is called `{name}`")));
            }
            node.name = name;
            node.name_is_fixed = true;
            Ok(())
        })
        .await
    }

    /// Replaces a node's owner by tags.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` without a tag; `TagNotPermitted`.
    pub async fn set_node_tags(
        &self,
        actor: Actor,
        id: NodeId,
        tags: BTreeSet<Tag>,
    ) -> Result<Arc<Node>, OpError> {
        self.change_node(id, move |world, _, node| {
            if tags.is_empty() {
                return Err(OpError::Invalid(
                    "a node keeps at least one tag: log in again to make it yours".to_owned(),
                ));
            }
            check_tags(world, &actor, &tags)?;
            node.owner = NodeOwner::Tags(tags);
            node.expires = None;
            Ok(())
        })
        .await
    }

    /// Approves a node, or withdraws the approval.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn set_node_authorized(&self, id: NodeId, authorized: bool) -> Result<Arc<Node>, OpError> {
        self.change_node(id, move |_, _, node| {
            node.authorized = authorized;
            Ok(())
        })
        .await
    }

    /// Replaces the set of routes that are approved for a node. They count once the node advertises them.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn set_node_routes(&self, id: NodeId, routes: BTreeSet<IpNet>) -> Result<Arc<Node>, OpError> {
        self.change_node(id, move |_, _, node| {
            node.approved_routes = routes;
            Ok(())
        })
        .await
    }

    /// Sets posture attributes of a node; `None` removes one.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for a name or value beyond its limit.
    pub async fn set_node_attributes(
        &self,
        id: NodeId,
        update: BTreeMap<String, Option<AttributeValue>>,
    ) -> Result<Arc<Node>, OpError> {
        self.change_node(id, move |_, _, node| {
            for (name, value) in update {
                check_attribute(&name, value.as_ref())?;
                match value {
                    Some(value) => node.attributes.insert(name, value),
                    None => node.attributes.remove(&name),
                };
            }
            if node.attributes.len() > ATTRIBUTE_LIMIT {
                return Err(OpError::Invalid(format!(
                    "a node has {ATTRIBUTE_LIMIT} attributes at most"
                )));
            }
            Ok(())
        })
        .await
    }

    /// Stores a TXT record below one of the node's own names.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for a name that is not the node's, or a value over 255 bytes.
    pub async fn set_dns_txt(&self, id: NodeId, name: String, value: String) -> Result<(), OpError> {
        self.submit(move |world, context| set_dns_txt(world, context, id, &name, value))
            .await
    }

    /// Changes one node through `edit`; stores nothing when nothing differs.
    pub(crate) async fn change_node(
        &self,
        id: NodeId,
        edit: impl FnOnce(&World, &Context, &mut Node) -> Result<(), OpError> + Send + 'static,
    ) -> Result<Arc<Node>, OpError> {
        self.submit(move |world, context| {
            let old = world.node(id).ok_or_else(|| OpError::not_found("node", id.0))?;
            let mut node = old.as_ref().clone();
            edit(world, context, &mut node)?;
            if node == **old {
                return Ok(Decision::unchanged(old.clone()));
            }
            let node = Arc::new(node);
            Ok(Decision::new(replacement(world, context, &node), node))
        })
        .await
    }
}

/// The changes that put `node` in the place of its former version.
pub(crate) fn replacement(world: &World, context: &Context, node: &Arc<Node>) -> Vec<Change> {
    let mut changes = vec![Change::PutNode(node.clone())];
    let presence = world.presence(node.id);
    let present = Presence {
        expired: node.is_expired(context.now),
        held: presence.held && node.home_region().is_none(),
        ..presence
    };
    if present != presence {
        changes.push(Change::SetPresence(node.id, present));
    }
    changes
}

/// The changes that remove a node and what hangs on it.
pub(crate) fn removal(world: &World, id: NodeId) -> Vec<Change> {
    let records = world.dns_txt().filter(|record| record.node == id);
    let mut changes: Vec<_> = records
        .map(|record| Change::DeleteDnsTxt(record.name.clone()))
        .collect();
    changes.push(Change::DeleteNode(id));
    changes
}

fn check_attribute(name: &str, value: Option<&AttributeValue>) -> Result<(), OpError> {
    let legal_name = name.strip_prefix("custom:").is_some_and(|rest| {
        !rest.is_empty()
            && name.len() <= ATTRIBUTE_NAME_LIMIT
            && rest
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
    });
    if !legal_name {
        return Err(OpError::Invalid(format!(
            "`{name}` is not the name of an attribute: write `custom:` and up to 57 letters, digits, `_` and `-`"
        )));
    }
    if matches!(value, Some(AttributeValue::Text(text)) if text.len() > ATTRIBUTE_VALUE_LIMIT) {
        return Err(OpError::Invalid(format!(
            "attribute `{name}` has {ATTRIBUTE_VALUE_LIMIT} bytes at most"
        )));
    }
    Ok(())
}

fn set_dns_txt(
    world: &World,
    context: &Context,
    id: NodeId,
    name: &str,
    value: String,
) -> Result<Decision<()>, OpError> {
    let node = world.node(id).ok_or_else(|| OpError::not_found("node", id.0))?;
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    if name != format!("_acme-challenge.{}", context.suffix.fqdn(&node.name)) {
        return Err(OpError::Invalid(format!("`{name}` is not a name of this node")));
    }
    if value.len() > TXT_VALUE_LIMIT {
        return Err(OpError::Invalid(format!(
            "a TXT value has {TXT_VALUE_LIMIT} bytes at most"
        )));
    }
    if world
        .dns_txt()
        .filter(|record| record.node == id && record.name != name)
        .count()
        >= TXT_LIMIT
    {
        return Err(OpError::Invalid(format!(
            "a node has {TXT_LIMIT} TXT records at most"
        )));
    }
    let record = DnsTxt {
        name,
        value,
        node: id,
        created: context.now,
    };
    Ok(Decision::new(vec![Change::PutDnsTxt(Arc::new(record))], ()))
}
