//! Devices.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
};

use ipnet::IpNet;
use jiff::Timestamp;
use tailwharf_wire::tailcfg::NodeId;

use super::{Context, Decision, OpError, Operations, Subject, check_tags};
use crate::{
    model::{Action, Actor, AttributeValue, Author, Node, NodeOwner, Tag},
    names,
    world::{Change, Presence, World},
};

/// Posture attributes that one node may have.
const ATTRIBUTE_LIMIT: usize = 64;
const ATTRIBUTE_NAME_LIMIT: usize = 64;
const ATTRIBUTE_VALUE_LIMIT: usize = 512;
/// Routes that may be approved for one node.
const ROUTE_LIMIT: usize = 1024;

/// How a request names a node: its number, its stable id, its DNS label or its full name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRef(pub String);

/// The value of a posture attribute.
#[derive(Clone, Debug, PartialEq)]
pub struct Attribute {
    /// What the policy compares.
    pub value: AttributeValue,
    /// When it is removed; never, when absent.
    pub ends: Option<Timestamp>,
}

impl From<AttributeValue> for Attribute {
    fn from(value: AttributeValue) -> Self {
        Self { value, ends: None }
    }
}

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
    pub async fn delete_node(&self, actor: Actor, id: NodeId) -> Result<(), OpError> {
        self.submit(move |world, context| {
            let node = world.node(id).ok_or_else(|| OpError::not_found("node", id))?;
            let decision = Decision::new(removal(world, id), ());
            Ok(decision.noted(world, context, &actor, Action::Delete, Subject::node(node)))
        })
        .await
    }

    /// Ends a node's key now. The node has to log in again.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn expire_node(&self, actor: Actor, id: NodeId) -> Result<Arc<Node>, OpError> {
        self.change_node(actor, id, Action::Expire, |_, context, node| {
            node.expires = Some(context.now);
            Ok(String::new())
        })
        .await
    }

    /// Lets a node's key live for ever, or, with `false`, gives a person's node that has no end the regular one, from now on.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn set_key_expiry_disabled(
        &self,
        actor: Actor,
        id: NodeId,
        disabled: bool,
    ) -> Result<Arc<Node>, OpError> {
        self.change_node(actor, id, Action::Update, move |world, context, node| {
            if disabled {
                node.expires = None;
            } else if node.expires.is_none() && node.owner.tags().is_none() {
                node.expires = world.settings().key_end(context.now);
            }
            Ok(format!("key expiry disabled: {disabled}"))
        })
        .await
    }

    /// Gives a node a name of the administrator's choice, or, with an empty name, one that follows its host name again.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` when it is not a DNS label; `Conflict` when another node has it.
    pub async fn rename_node(&self, actor: Actor, id: NodeId, name: String) -> Result<Arc<Node>, OpError> {
        self.change_node(actor, id, Action::Update, move |world, _, node| {
            let former = node.name.clone();
            if name.is_empty() {
                node.name_is_fixed = false;
                node.name = world.free_name(&node.hostinfo.hostname, Some(id));
                return Ok(format!("name, before `{former}`"));
            }
            if names::sanitise(&name) != name {
                return Err(OpError::Invalid(format!(
                    "`{name}` is not a name for a node: use up to 63 lower-case letters, digits and hyphens"
                )));
            }
            let is_taken = world.node_by_name(&name).is_some_and(|other| other.id != id);
            if is_taken || world.is_service_label(&name) {
                return Err(OpError::Conflict(format!("something else is called `{name}`")));
            }
            node.name = name;
            node.name_is_fixed = true;
            Ok(format!("name, before `{former}`"))
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
        let author = actor.clone();
        self.change_node(author, id, Action::Update, move |world, _, node| {
            if tags.is_empty() {
                return Err(OpError::Invalid(
                    "a node keeps at least one tag: log in again to make it yours".to_owned(),
                ));
            }
            check_tags(world, &actor, &tags)?;
            let names: Vec<&str> = tags.iter().map(Tag::as_str).collect();
            let detail = format!("tags {}", names.join(", "));
            node.owner = NodeOwner::Tags(tags);
            node.expires = None;
            Ok(detail)
        })
        .await
    }

    /// Approves a node, or withdraws the approval.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn set_node_authorized(
        &self,
        actor: Actor,
        id: NodeId,
        authorized: bool,
    ) -> Result<Arc<Node>, OpError> {
        let action = if authorized { Action::Approve } else { Action::Deny };
        self.change_node(actor, id, action, move |_, _, node| {
            node.authorized = authorized;
            Ok(String::new())
        })
        .await
    }

    /// Replaces the set of routes that are approved for a node. They count once the node advertises them.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn set_node_routes(
        &self,
        actor: Actor,
        id: NodeId,
        routes: BTreeSet<IpNet>,
    ) -> Result<Arc<Node>, OpError> {
        self.change_node(actor, id, Action::Update, move |_, _, node| {
            if routes.len() > ROUTE_LIMIT {
                return Err(OpError::Invalid(format!(
                    "a node has {ROUTE_LIMIT} routes at most"
                )));
            }
            let names: Vec<String> = routes.iter().map(ToString::to_string).collect();
            node.approved_routes = routes;
            Ok(format!("routes {}", names.join(", ")))
        })
        .await
    }

    /// Gives a node another IPv4 address.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` outside the prefix of the tailnet; `Conflict` when something else has it.
    pub async fn set_node_ipv4(
        &self,
        actor: Actor,
        id: NodeId,
        ipv4: Ipv4Addr,
    ) -> Result<Arc<Node>, OpError> {
        self.change_node(actor, id, Action::Update, move |world, context, node| {
            if !context.prefixes.may_have(ipv4) {
                return Err(OpError::Invalid(format!(
                    "{ipv4} is not an address for nodes of the tailnet"
                )));
            }
            if node.ipv4 != ipv4 && world.is_address_taken(ipv4.into()) {
                return Err(OpError::Conflict(format!("{ipv4} belongs to something else")));
            }
            node.ipv4 = ipv4;
            Ok(format!("address {ipv4}"))
        })
        .await
    }

    /// Sets posture attributes of a node; `None` removes one.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for a name or value beyond its limit.
    pub async fn set_node_attributes(
        &self,
        author: impl Into<Author>,
        id: NodeId,
        update: BTreeMap<String, Option<Attribute>>,
    ) -> Result<Arc<Node>, OpError> {
        self.change_node(author, id, Action::Update, move |_, _, node| {
            let names: Vec<&str> = update.keys().map(String::as_str).collect();
            let detail = format!("attributes {}", names.join(", "));
            for (name, attribute) in update {
                check_attribute(&name, attribute.as_ref().map(|attribute| &attribute.value))?;
                node.attribute_ends.remove(&name);
                match attribute {
                    Some(Attribute { value, ends }) => {
                        node.attribute_ends.extend(ends.map(|ends| (name.clone(), ends)));
                        node.attributes.insert(name, value);
                    }
                    None => {
                        node.attributes.remove(&name);
                    }
                }
            }
            if node.attributes.len() > ATTRIBUTE_LIMIT {
                return Err(OpError::Invalid(format!(
                    "a node has {ATTRIBUTE_LIMIT} attributes at most"
                )));
            }
            Ok(detail)
        })
        .await
    }

    /// Changes one node through `edit`, which says what is worth knowing; stores nothing when nothing differs.
    async fn change_node(
        &self,
        author: impl Into<Author>,
        id: NodeId,
        action: Action,
        edit: impl FnOnce(&World, &Context, &mut Node) -> Result<String, OpError> + Send + 'static,
    ) -> Result<Arc<Node>, OpError> {
        let author = author.into();
        self.submit(move |world, context| {
            let old = world.node(id).ok_or_else(|| OpError::not_found("node", id))?;
            let mut node = old.as_ref().clone();
            let detail = edit(world, context, &mut node)?;
            if node == **old {
                return Ok(Decision::unchanged(old.clone()));
            }
            let node = Arc::new(node);
            let subject = Subject::node(&node).detail(detail);
            let decision = Decision::new(replacement(world, context, &node), node);
            Ok(decision.noted(world, context, author, action, subject))
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
    let hosted = world.services().filter(|service| service.hosts.contains_key(&id));
    changes.extend(hosted.map(|service| {
        let mut service = service.as_ref().clone();
        service.hosts.remove(&id);
        Change::PutService(Arc::new(service))
    }));
    changes.extend(super::confirmations_of(world, id));
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
