//! Changes of one device: each is a body that knows how to be applied.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tailwharf_wire::tailcfg::NodeId;

use super::super::caller::{Body, Caller, Path};
use super::super::{Api, ApiError, done, keys};
use crate::model::Actor;
use crate::ops::Operations;
use crate::scope;

/// A change of one device.
pub(in super::super) trait Edit: DeserializeOwned + Send {
    /// Makes the change.
    fn apply(
        self,
        operations: &Operations,
        actor: &Actor,
        node: NodeId,
    ) -> impl Future<Output = Result<(), ApiError>> + Send;
}

/// Changes one device.
pub(in super::super) async fn edit<E: Edit>(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
    Body(change): Body<E>,
) -> Result<Json<Value>, ApiError> {
    let node = api.device(&caller, scope::DEVICES, id)?;
    change.apply(&api.operations, caller.actor(), node.id).await?;
    Ok(done())
}

/// Approves a device, or takes the approval back.
#[derive(Deserialize)]
pub(in super::super) struct Authorized {
    authorized: bool,
}

impl Edit for Authorized {
    async fn apply(self, operations: &Operations, actor: &Actor, node: NodeId) -> Result<(), ApiError> {
        operations
            .set_node_authorized(actor.clone(), node, self.authorized)
            .await?;
        Ok(())
    }
}

/// Names a device. The name may be a label or a full name; an empty one follows the host name again.
#[derive(Deserialize)]
pub(in super::super) struct Name {
    #[serde(default)]
    name: String,
}

impl Edit for Name {
    async fn apply(self, operations: &Operations, actor: &Actor, node: NodeId) -> Result<(), ApiError> {
        let suffix = format!(".{}", operations.world().facts().suffix.as_str());
        let name = self.name.trim_end_matches('.');
        let label = name.strip_suffix(&suffix).unwrap_or(name).to_owned();
        operations.rename_node(actor.clone(), node, label).await?;
        Ok(())
    }
}

/// Replaces the owner of a device by tags.
#[derive(Deserialize)]
pub(in super::super) struct Tags {
    tags: BTreeSet<String>,
}

impl Edit for Tags {
    async fn apply(self, operations: &Operations, actor: &Actor, node: NodeId) -> Result<(), ApiError> {
        let tags = keys::parse_tags(&self.tags)?;
        operations.set_node_tags(actor.clone(), node, tags).await?;
        Ok(())
    }
}

/// Says whether the key of a device expires.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in super::super) struct KeyExpiry {
    key_expiry_disabled: bool,
}

impl Edit for KeyExpiry {
    async fn apply(self, operations: &Operations, actor: &Actor, node: NodeId) -> Result<(), ApiError> {
        operations
            .set_key_expiry_disabled(actor.clone(), node, self.key_expiry_disabled)
            .await?;
        Ok(())
    }
}

/// Ends the key of a device now.
#[derive(Deserialize)]
pub(in super::super) struct Expire {}

impl Edit for Expire {
    async fn apply(self, operations: &Operations, actor: &Actor, node: NodeId) -> Result<(), ApiError> {
        operations.expire_node(actor.clone(), node).await?;
        Ok(())
    }
}

/// Gives a device another IPv4 address of the tailnet.
#[derive(Deserialize)]
pub(in super::super) struct Address {
    ipv4: Ipv4Addr,
}

impl Edit for Address {
    async fn apply(self, operations: &Operations, actor: &Actor, node: NodeId) -> Result<(), ApiError> {
        operations.set_node_ipv4(actor.clone(), node, self.ipv4).await?;
        Ok(())
    }
}
