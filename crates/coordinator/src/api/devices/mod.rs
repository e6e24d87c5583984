//! Devices.

mod edit;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tailwharf_policy::{AttributeValue, Attributes, host_attributes};

use self::view::Selection;
use super::caller::{Body, Caller, Path, Query};
use super::{Api, ApiError, done};
use crate::model::Node;
use crate::ops::{Attribute, NodeRef};
use crate::scope::{self, Scope};

pub(super) use self::edit::{Address, Authorized, Expire, KeyExpiry, Name, Tags, edit};
pub(crate) use self::view::{DeviceList, DeviceView, RoutesView};

impl Api {
    /// The device that a call names, if the caller has the scope.
    fn device(&self, caller: &Caller, needed: Scope<'_>, id: String) -> Result<Arc<Node>, ApiError> {
        caller.require(needed)?;
        Ok(self.operations.find_node(&NodeRef(id))?)
    }
}

/// All devices that pass the filters.
pub(super) async fn list(
    State(api): State<Api>,
    caller: Caller,
    Query(parameters): Query<Vec<(String, String)>>,
) -> Result<Json<DeviceList>, ApiError> {
    caller.require(scope::DEVICES.read())?;
    let selection = Selection::new(parameters)?;
    let world = api.operations.world();
    let devices = world.nodes().filter_map(|node| selection.view(&world, node));
    Ok(Json(DeviceList {
        devices: devices.collect(),
    }))
}

/// One device.
pub(super) async fn get(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
    Query(parameters): Query<Vec<(String, String)>>,
) -> Result<Json<DeviceView>, ApiError> {
    let selection = Selection::new(parameters)?;
    let node = api.device(&caller, scope::DEVICES.read(), id)?;
    let view = selection.view(&api.operations.world(), &node);
    view.map(Json).ok_or_else(|| ApiError::NotFound {
        kind: "device with these properties",
        id: node.stable_id.to_string(),
    })
}

/// Deletes a device.
pub(super) async fn delete(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let node = api.device(&caller, scope::DEVICES, id)?;
    api.operations
        .delete_node(caller.actor().clone(), node.id)
        .await?;
    Ok(done())
}

/// The routes of a device.
pub(super) async fn routes(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<RoutesView>, ApiError> {
    let node = api.device(&caller, scope::ROUTES.read(), id)?;
    Ok(Json(RoutesView::new(&node)))
}

#[derive(Deserialize)]
pub(super) struct RoutesRequest {
    routes: BTreeSet<IpNet>,
}

/// Replaces the approved routes of a device.
pub(super) async fn set_routes(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
    Body(request): Body<RoutesRequest>,
) -> Result<Json<RoutesView>, ApiError> {
    let node = api.device(&caller, scope::ROUTES, id)?;
    let routes = request.routes.into_iter().map(|route| route.trunc()).collect();
    let actor = caller.actor().clone();
    let node = api.operations.set_node_routes(actor, node.id, routes).await?;
    Ok(Json(RoutesView::new(&node)))
}

/// The posture attributes of a device.
#[derive(Serialize)]
pub(super) struct AttributesView {
    attributes: Attributes,
    /// When attributes end that do not hold for ever.
    expiries: BTreeMap<String, Timestamp>,
}

impl AttributesView {
    fn new(node: &Node) -> Self {
        let mut attributes = host_attributes(&node.hostinfo);
        attributes.extend(node.attributes.clone());
        Self {
            attributes,
            expiries: node.attribute_ends.clone(),
        }
    }
}

/// Shows the posture attributes of a device.
pub(super) async fn attributes(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<AttributesView>, ApiError> {
    let node = api.device(&caller, scope::ATTRIBUTES.read(), id)?;
    Ok(Json(AttributesView::new(&node)))
}

#[derive(Deserialize)]
pub(super) struct AttributeRequest {
    value: AttributeValue,
    /// When the attribute ends; clients in Go write "never" as their zero time.
    #[serde(default)]
    expiry: Option<Timestamp>,
}

/// Sets one posture attribute.
pub(super) async fn set_attribute(
    State(api): State<Api>,
    caller: Caller,
    Path((id, name)): Path<(String, String)>,
    Body(request): Body<AttributeRequest>,
) -> Result<Json<AttributesView>, ApiError> {
    let attribute = Attribute {
        value: request.value,
        ends: request.expiry.filter(|expiry| *expiry > view::NEVER),
    };
    change_attribute(&api, &caller, id, name, Some(attribute)).await
}

/// Removes one posture attribute.
pub(super) async fn delete_attribute(
    State(api): State<Api>,
    caller: Caller,
    Path((id, name)): Path<(String, String)>,
) -> Result<Json<AttributesView>, ApiError> {
    change_attribute(&api, &caller, id, name, None).await
}

async fn change_attribute(
    api: &Api,
    caller: &Caller,
    id: String,
    name: String,
    value: Option<Attribute>,
) -> Result<Json<AttributesView>, ApiError> {
    let node = api.device(caller, scope::ATTRIBUTES, id)?;
    let update = BTreeMap::from([(name, value)]);
    let actor = caller.actor();
    let node = api.operations.set_node_attributes(actor, node.id, update).await?;
    Ok(Json(AttributesView::new(&node)))
}

/// Takes back the fresh sign-ins that were confirmed for a device, and for what it offers. How many there were.
pub(super) async fn revoke_confirmations(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let node = api.device(&caller, scope::DEVICES, id)?;
    let actor = caller.actor().clone();
    let revoked = api.operations.revoke_confirmations(actor, node.id).await?;
    Ok(Json(json!({ "revoked": revoked })))
}
