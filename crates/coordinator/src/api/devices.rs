//! Devices.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use axum::Json;
use axum::extract::State;
use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tailwharf_policy::{AttributeValue, Attributes, host_attributes};
use tailwharf_wire::key::{MachinePublic, NodePublic};

use super::caller::{Body, Caller, Path, Query};
use super::{Api, ApiError, keys};
use crate::model::{Node, NodeOwner};
use crate::ops::NodeRef;
use crate::scope;
use crate::world::World;

/// A device as it is shown.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DeviceView {
    /// The number, as text.
    pub(crate) id: String,
    /// The stable id.
    pub(crate) node_id: String,
    /// The full name, without a final dot.
    pub(crate) name: String,
    pub(crate) hostname: String,
    pub(crate) addresses: Vec<IpAddr>,
    /// The login of the owner, or `tagged-devices`.
    pub(crate) user: String,
    #[serde(default)]
    pub(crate) tags: BTreeSet<String>,
    pub(crate) client_version: String,
    pub(crate) os: String,
    pub(crate) created: Timestamp,
    /// Absent as long as the device is connected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last_seen: Option<Timestamp>,
    pub(crate) connected_to_control: bool,
    pub(crate) authorized: bool,
    /// `0001-01-01T00:00:00Z` if the key does not expire.
    pub(crate) expires: Timestamp,
    pub(crate) key_expiry_disabled: bool,
    pub(crate) is_ephemeral: bool,
    pub(crate) is_external: bool,
    pub(crate) blocks_incoming_connections: bool,
    pub(crate) update_available: bool,
    pub(crate) machine_key: MachinePublic,
    pub(crate) node_key: NodePublic,
    /// Only with `fields=all`.
    #[serde(default, flatten, skip_serializing_if = "Option::is_none")]
    pub(crate) routes: Option<RoutesView>,
}

/// The routes of a device.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RoutesView {
    pub(crate) advertised_routes: Vec<IpNet>,
    pub(crate) enabled_routes: Vec<IpNet>,
}

/// Answer of the list.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DeviceList {
    pub(crate) devices: Vec<DeviceView>,
}

/// Which fields are asked for.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Fields {
    fields: String,
}

/// Go's zero time, which stands for "never" in this API.
const NEVER: Timestamp = Timestamp::constant(-62_135_596_800, 0);

impl DeviceView {
    fn new(world: &World, node: &Node, fields: &Fields) -> Self {
        let presence = world.presence(node.id);
        let host = &node.hostinfo;
        Self {
            id: node.id.to_string(),
            node_id: node.stable_id.to_string(),
            name: world
                .facts()
                .suffix
                .fqdn(&node.name)
                .trim_end_matches('.')
                .to_owned(),
            hostname: host.hostname.clone(),
            addresses: vec![node.ipv4.into(), node.ipv6.into()],
            user: match &node.owner {
                NodeOwner::User(id) => world.user(*id).map(|user| user.login.clone()).unwrap_or_default(),
                NodeOwner::Tags(_) => "tagged-devices".to_owned(),
            },
            tags: node
                .owner
                .tags()
                .into_iter()
                .flatten()
                .map(ToString::to_string)
                .collect(),
            client_version: host.ipn_version.clone(),
            os: host.os.clone(),
            created: node.created,
            last_seen: node.last_seen.filter(|_| !presence.online),
            connected_to_control: presence.online,
            authorized: node.authorized,
            expires: node.expires.unwrap_or(NEVER),
            key_expiry_disabled: node.expires.is_none(),
            is_ephemeral: node.ephemeral,
            is_external: false,
            blocks_incoming_connections: host.shields_up,
            update_available: false,
            machine_key: node.machine_key,
            node_key: node.node_key,
            routes: (fields.fields == "all").then(|| RoutesView::new(node)),
        }
    }
}

impl RoutesView {
    fn new(node: &Node) -> Self {
        Self {
            advertised_routes: node.hostinfo.routable_ips.clone(),
            enabled_routes: node.enabled_routes().collect(),
        }
    }
}

/// An answer without content.
fn done() -> Json<Value> {
    Json(Value::Object(Map::new()))
}

/// All devices.
pub(super) async fn list(
    State(api): State<Api>,
    caller: Caller,
    Query(fields): Query<Fields>,
) -> Result<Json<DeviceList>, ApiError> {
    caller.require(scope::DEVICES.read())?;
    let world = api.operations.world();
    Ok(Json(DeviceList {
        devices: world
            .nodes()
            .map(|node| DeviceView::new(&world, node, &fields))
            .collect(),
    }))
}

/// One device.
pub(super) async fn get(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
    Query(fields): Query<Fields>,
) -> Result<Json<DeviceView>, ApiError> {
    caller.require(scope::DEVICES.read())?;
    let node = api.operations.find_node(&NodeRef(id))?;
    Ok(Json(DeviceView::new(&api.operations.world(), &node, &fields)))
}

/// Deletes a device.
pub(super) async fn delete(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    caller.require(scope::DEVICES)?;
    let node = api.operations.find_node(&NodeRef(id))?;
    api.operations.delete_node(node.id).await?;
    Ok(done())
}

#[derive(Deserialize)]
pub(super) struct AuthorizedRequest {
    authorized: bool,
}

/// Approves a device, or takes the approval back.
pub(super) async fn authorize(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
    Body(request): Body<AuthorizedRequest>,
) -> Result<Json<Value>, ApiError> {
    caller.require(scope::DEVICES)?;
    let node = api.operations.find_node(&NodeRef(id))?;
    api.operations
        .set_node_authorized(node.id, request.authorized)
        .await?;
    Ok(done())
}

#[derive(Deserialize)]
pub(super) struct NameRequest {
    #[serde(default)]
    name: String,
}

/// Names a device. The name may be a label or a full name; an empty one follows the host name again.
pub(super) async fn rename(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
    Body(request): Body<NameRequest>,
) -> Result<Json<Value>, ApiError> {
    caller.require(scope::DEVICES)?;
    let node = api.operations.find_node(&NodeRef(id))?;
    let suffix = format!(".{}", api.operations.world().facts().suffix.as_str());
    let name = request.name.trim_end_matches('.');
    let label = name.strip_suffix(&suffix).unwrap_or(name).to_owned();
    api.operations.rename_node(node.id, label).await?;
    Ok(done())
}

#[derive(Deserialize)]
pub(super) struct TagsRequest {
    tags: BTreeSet<String>,
}

/// Replaces the owner of a device by tags.
pub(super) async fn set_tags(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
    Body(request): Body<TagsRequest>,
) -> Result<Json<Value>, ApiError> {
    caller.require(scope::DEVICES)?;
    let node = api.operations.find_node(&NodeRef(id))?;
    let tags = keys::parse_tags(&request.tags)?;
    api.operations
        .set_node_tags(caller.actor().clone(), node.id, tags)
        .await?;
    Ok(done())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct KeyRequest {
    key_expiry_disabled: bool,
}

/// Says whether the key of a device expires.
pub(super) async fn set_key(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
    Body(request): Body<KeyRequest>,
) -> Result<Json<Value>, ApiError> {
    caller.require(scope::DEVICES)?;
    let node = api.operations.find_node(&NodeRef(id))?;
    api.operations
        .set_key_expiry_disabled(node.id, request.key_expiry_disabled)
        .await?;
    Ok(done())
}

/// Ends the key of a device now.
pub(super) async fn expire(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    caller.require(scope::DEVICES)?;
    let node = api.operations.find_node(&NodeRef(id))?;
    api.operations.expire_node(node.id).await?;
    Ok(done())
}

/// The routes of a device.
pub(super) async fn routes(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<RoutesView>, ApiError> {
    caller.require(scope::ROUTES.read())?;
    Ok(Json(RoutesView::new(&*api.operations.find_node(&NodeRef(id))?)))
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
    caller.require(scope::ROUTES)?;
    let node = api.operations.find_node(&NodeRef(id))?;
    let routes = request.routes.into_iter().map(|route| route.trunc()).collect();
    let node = api.operations.set_node_routes(node.id, routes).await?;
    Ok(Json(RoutesView::new(&node)))
}

/// The posture attributes of a device.
#[derive(Serialize)]
pub(super) struct AttributesView {
    attributes: Attributes,
}

impl AttributesView {
    fn new(node: &Node) -> Self {
        let mut attributes = host_attributes(&node.hostinfo);
        attributes.extend(node.attributes.clone());
        Self { attributes }
    }
}

/// Shows the posture attributes of a device.
pub(super) async fn attributes(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<AttributesView>, ApiError> {
    caller.require(scope::ATTRIBUTES.read())?;
    Ok(Json(AttributesView::new(
        &*api.operations.find_node(&NodeRef(id))?,
    )))
}

#[derive(Deserialize)]
pub(super) struct AttributeRequest {
    value: AttributeValue,
}

/// Sets one posture attribute.
pub(super) async fn set_attribute(
    State(api): State<Api>,
    caller: Caller,
    Path((id, name)): Path<(String, String)>,
    Body(request): Body<AttributeRequest>,
) -> Result<Json<AttributesView>, ApiError> {
    change_attribute(&api, &caller, id, name, Some(request.value)).await
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
    value: Option<AttributeValue>,
) -> Result<Json<AttributesView>, ApiError> {
    caller.require(scope::ATTRIBUTES)?;
    let node = api.operations.find_node(&NodeRef(id))?;
    let node = api
        .operations
        .set_node_attributes(node.id, BTreeMap::from([(name, value)]))
        .await?;
    Ok(Json(AttributesView::new(&node)))
}
