//! The rest of a tailnet: settings, name resolution, Services. Clients read them; this server has nothing to choose there yet.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::caller::{Caller, Path};
use super::{Api, ApiError};
use crate::scope;

/// The settings of the tailnet.
pub(super) async fn settings(caller: Caller) -> Result<Json<Value>, ApiError> {
    caller.require(scope::SETTINGS.read())?;
    Ok(Json(json!({
        "aclsExternallyManagedOn": false,
        "aclsExternalLink": "",
        "devicesApprovalOn": false,
        "devicesAutoUpdatesOn": false,
        "usersApprovalOn": false,
        "usersRoleAllowedToJoinExternalTailnets": "none",
        "networkFlowLoggingOn": false,
        "regionalRoutingOn": false,
        "postureIdentityCollectionOn": false,
    })))
}

/// The name servers that clients get: none, they keep their own.
pub(super) async fn nameservers(caller: Caller) -> Result<Json<Value>, ApiError> {
    caller.require(scope::DNS.read())?;
    Ok(Json(json!({"dns": [], "magicDNS": true})))
}

/// Whether names of devices are resolved: always.
pub(super) async fn dns_preferences(caller: Caller) -> Result<Json<Value>, ApiError> {
    caller.require(scope::DNS.read())?;
    Ok(Json(json!({"magicDNS": true})))
}

/// The search list that clients get.
pub(super) async fn search_paths(State(api): State<Api>, caller: Caller) -> Result<Json<Value>, ApiError> {
    caller.require(scope::DNS.read())?;
    Ok(Json(
        json!({"searchPaths": [api.operations.world().facts().suffix.as_str()]}),
    ))
}

/// Name servers for single domains: none.
pub(super) async fn split_dns(caller: Caller) -> Result<Json<Value>, ApiError> {
    caller.require(scope::DNS.read())?;
    Ok(Json(json!({})))
}

/// The Services of the tailnet: none.
pub(super) async fn services(caller: Caller) -> Result<Json<Value>, ApiError> {
    caller.require(scope::SERVICES.read())?;
    Ok(Json(json!({"vipServices": []})))
}

/// One Service, which is not there.
pub(super) async fn no_service(
    caller: Caller,
    Path((_, name)): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    caller.require(scope::SERVICES.read())?;
    Err(ApiError::NotFound {
        kind: "Service",
        id: name,
    })
}

/// Refuses to create a Service.
pub(super) async fn put_service(caller: Caller) -> Result<Json<Value>, ApiError> {
    caller.require(scope::SERVICES)?;
    Err(ApiError::NoServices)
}
