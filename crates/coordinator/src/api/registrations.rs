//! Devices that wait for a person to let them in. Served on the administrator's socket alone: people decide at the web console.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use url::Url;

use super::caller::{Body, Caller, Path};
use super::devices::DeviceView;
use super::{Api, ApiError, done, keys, users};
use crate::model::{NodeOwner, PendingRegistration, RegistrationId};
use crate::scope;
use crate::web;

/// A device that waits.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RegistrationView {
    pub(crate) id: RegistrationId,
    /// The page at which a person decides.
    pub(crate) url: Url,
    pub(crate) hostname: String,
    pub(crate) os: String,
    pub(crate) client_version: String,
    pub(crate) request_tags: Vec<String>,
    /// Whether it was a device of the tailnet before.
    pub(crate) logs_in_again: bool,
    pub(crate) created: Timestamp,
    pub(crate) expires: Timestamp,
}

/// Answer of the list.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RegistrationList {
    pub(crate) registrations: Vec<RegistrationView>,
}

/// As what a device is let in: of a person, or with tags; as what it was before, if it was one.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ApprovalRequest {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<String>,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) tags: BTreeSet<String>,
}

impl RegistrationView {
    fn new(base: &Url, pending: &PendingRegistration) -> Self {
        let host = pending.request.hostinfo.clone().unwrap_or_default();
        Self {
            id: pending.id.clone(),
            url: web::registration_url(base, &pending.id),
            hostname: host.hostname,
            os: host.os,
            client_version: host.ipn_version,
            request_tags: host.request_tags,
            logs_in_again: pending.node.is_some(),
            created: pending.created,
            expires: pending.expires,
        }
    }
}

/// All devices that wait.
pub(super) async fn list(State(api): State<Api>, caller: Caller) -> Result<Json<RegistrationList>, ApiError> {
    caller.require(scope::DEVICES.read())?;
    let now = Timestamp::now();
    let world = api.operations.world();
    let open = world.registrations().filter(|pending| pending.is_open(now));
    Ok(Json(RegistrationList {
        registrations: open
            .map(|pending| RegistrationView::new(&api.url, pending))
            .collect(),
    }))
}

/// Lets a device in.
pub(super) async fn approve(
    State(api): State<Api>,
    caller: Caller,
    Path((_, id)): Path<(String, RegistrationId)>,
    Body(request): Body<ApprovalRequest>,
) -> Result<Json<DeviceView>, ApiError> {
    caller.require(scope::DEVICES)?;
    let owner = match (request.user, request.tags.is_empty()) {
        (Some(_), false) => {
            return Err(ApiError::Invalid(
                "a device belongs to a user or has tags, not both: name one".to_owned(),
            ));
        }
        (Some(user), true) => Some(NodeOwner::User(users::find(&api.operations.world(), user)?.id)),
        (None, false) => Some(NodeOwner::Tags(keys::parse_tags(&request.tags)?)),
        (None, true) => None,
    };
    let node = api
        .operations
        .approve_registration(caller.actor().clone(), id, owner)
        .await?;
    Ok(Json(DeviceView::new(&api.operations.world(), &node, false)))
}

/// Turns a device down.
pub(super) async fn deny(
    State(api): State<Api>,
    caller: Caller,
    Path((_, id)): Path<(String, RegistrationId)>,
) -> Result<Json<Value>, ApiError> {
    caller.require(scope::DEVICES)?;
    api.operations
        .deny_registration(caller.actor().clone(), id)
        .await?;
    Ok(done())
}
