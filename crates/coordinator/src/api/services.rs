//! VIP services.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tailwharf_wire::tailcfg::StableId;

use super::caller::{Body, Caller, Path};
use super::{Api, ApiError, done, keys};
use crate::model::{ServiceName, VipService};
use crate::ops::{NewService, NodeRef, ServiceHost};
use crate::scope;
use crate::world::World;

/// A service as it is shown, and as it is asked for. Official clients compare what they read with what they wrote, so lists keep their order.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ServiceView {
    pub(crate) name: String,
    #[serde(deserialize_with = "super::null_is_empty")]
    pub(crate) addrs: Vec<IpAddr>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) comment: String,
    #[serde(
        deserialize_with = "super::null_is_empty",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub(crate) annotations: BTreeMap<String, String>,
    #[serde(deserialize_with = "super::null_is_empty")]
    pub(crate) ports: Vec<String>,
    #[serde(deserialize_with = "super::null_is_empty")]
    pub(crate) tags: BTreeSet<String>,
}

/// Answer of the list.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ServiceList {
    #[serde(rename = "vipServices")]
    pub(crate) services: Vec<ServiceView>,
}

/// A device that offers to be a host of a service.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HostView {
    #[serde(rename = "stableNodeID")]
    pub(crate) node: StableId,
    /// `not-approved`, `approved:manual` or `approved:auto`.
    pub(crate) approval_level: String,
    /// `ready` if it answers for some of the clients, else `standby`.
    pub(crate) configured: String,
}

/// Answer of the list of hosts.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HostList {
    pub(crate) hosts: Vec<HostView>,
}

impl From<&VipService> for ServiceView {
    fn from(service: &VipService) -> Self {
        Self {
            name: service.name.to_string(),
            addrs: service.addresses().to_vec(),
            comment: service.comment.clone(),
            annotations: service.annotations.clone(),
            ports: service.ports.clone(),
            tags: service.tags.iter().map(ToString::to_string).collect(),
        }
    }
}

/// All services.
pub(super) async fn list(State(api): State<Api>, caller: Caller) -> Result<Json<ServiceList>, ApiError> {
    caller.require(scope::SERVICES.read())?;
    let world = api.operations.world();
    let services = world
        .services()
        .map(|service| ServiceView::from(service.as_ref()));
    Ok(Json(ServiceList {
        services: services.collect(),
    }))
}

/// One service.
pub(super) async fn get(
    State(api): State<Api>,
    caller: Caller,
    Path((_, name)): Path<(String, String)>,
) -> Result<Json<ServiceView>, ApiError> {
    caller.require(scope::SERVICES.read())?;
    Ok(Json(find(&api.operations.world(), &name)?.into()))
}

/// Creates or replaces a service.
pub(super) async fn put(
    State(api): State<Api>,
    caller: Caller,
    Path((_, name)): Path<(String, String)>,
    Body(request): Body<ServiceView>,
) -> Result<Json<ServiceView>, ApiError> {
    caller.require(scope::SERVICES)?;
    if !request.name.is_empty() && request.name != name {
        return Err(ApiError::Invalid(format!(
            "the path names `{name}` and the body `{}`: a service cannot be renamed",
            request.name
        )));
    }
    let new = NewService {
        name: parse(&name)?,
        addresses: request.addrs,
        comment: request.comment,
        annotations: request.annotations,
        ports: request.ports,
        tags: keys::parse_tags(&request.tags)?,
    };
    let service = api.operations.put_service(caller.actor().clone(), new).await?;
    Ok(Json(service.as_ref().into()))
}

/// Deletes a service.
pub(super) async fn delete(
    State(api): State<Api>,
    caller: Caller,
    Path((_, name)): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    caller.require(scope::SERVICES)?;
    find(&api.operations.world(), &name)?;
    let actor = caller.actor().clone();
    api.operations.delete_service(actor, parse(&name)?).await?;
    Ok(done())
}

/// The devices that offer to be a host of a service.
pub(super) async fn hosts(
    State(api): State<Api>,
    caller: Caller,
    Path((_, name)): Path<(String, String)>,
) -> Result<Json<HostList>, ApiError> {
    caller.require(scope::SERVICES.read())?;
    let name = find(&api.operations.world(), &name)?.name.clone();
    let hosts = api.operations.service_hosts(&name);
    Ok(Json(HostList {
        hosts: hosts.iter().map(HostView::from).collect(),
    }))
}

impl From<&ServiceHost> for HostView {
    fn from(host: &ServiceHost) -> Self {
        let approval_level = match (host.approved, host.by_administrator) {
            (false, _) => "not-approved",
            (true, true) => "approved:manual",
            (true, false) => "approved:auto",
        };
        Self {
            node: host.node.stable_id.clone(),
            approval_level: approval_level.to_owned(),
            configured: if host.serving { "ready" } else { "standby" }.to_owned(),
        }
    }
}

/// Answer about the approval of one device.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ApprovalView {
    approved: bool,
    auto_approved: bool,
}

#[derive(Deserialize)]
pub(super) struct ApprovalRequest {
    approved: bool,
}

/// Whether a device may be a host of a service.
pub(super) async fn approved(
    State(api): State<Api>,
    caller: Caller,
    Path((_, name, id)): Path<(String, String, String)>,
) -> Result<Json<ApprovalView>, ApiError> {
    caller.require(scope::SERVICES.read())?;
    view(&api, &name, id)
}

/// Lets a device be a host of a service, or forbids it, whatever the policy says.
pub(super) async fn approve(
    State(api): State<Api>,
    caller: Caller,
    Path((_, name, id)): Path<(String, String, String)>,
    Body(request): Body<ApprovalRequest>,
) -> Result<Json<ApprovalView>, ApiError> {
    caller.require(scope::SERVICES)?;
    find(&api.operations.world(), &name)?;
    let node = api.operations.find_node(&NodeRef(id.clone()))?;
    let actor = caller.actor().clone();
    api.operations
        .approve_service_host(actor, parse(&name)?, node.id, Some(request.approved))
        .await?;
    view(&api, &name, id)
}

fn view(api: &Api, name: &str, id: String) -> Result<Json<ApprovalView>, ApiError> {
    let world = api.operations.world();
    let node = api.operations.find_node(&NodeRef(id))?;
    let service = find(&world, name)?;
    let approved = world.is_service_host_approved(service, &node);
    Ok(Json(ApprovalView {
        approved,
        auto_approved: approved && !service.hosts.contains_key(&node.id),
    }))
}

fn parse(name: &str) -> Result<ServiceName, ApiError> {
    name.parse()
        .map_err(|error: crate::model::InvalidServiceName| ApiError::Invalid(error.to_string()))
}

/// The service with this name. A text that is no name names no service.
fn find<'w>(world: &'w World, name: &str) -> Result<&'w VipService, ApiError> {
    let found = name.parse().ok().and_then(|name| world.service(&name));
    found.map(AsRef::as_ref).ok_or_else(|| ApiError::NotFound {
        kind: "service",
        id: name.chars().take(128).collect(),
    })
}
