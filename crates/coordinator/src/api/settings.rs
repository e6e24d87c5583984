//! Settings of the tailnet, and the log of changes.

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::caller::{Body, Caller, Query};
use super::{Api, ApiError};
use crate::model::{Author, LogEntry, Settings};
use crate::ops::LogQuery;
use crate::scope;
use crate::world::World;

/// The settings as they are shown. Those that this server has no choice in have the value that it acts by.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SettingsView {
    acls_externally_managed_on: bool,
    acls_external_link: String,
    pub(crate) devices_approval_on: bool,
    devices_auto_updates_on: bool,
    /// 0 for never.
    pub(crate) devices_key_duration_days: u32,
    users_approval_on: bool,
    users_role_allowed_to_join_external_tailnets: String,
    network_flow_logging_on: bool,
    regional_routing_on: bool,
    posture_identity_collection_on: bool,
    pub(crate) https_enabled: bool,
}

impl From<&Settings> for SettingsView {
    fn from(settings: &Settings) -> Self {
        Self {
            acls_externally_managed_on: false,
            acls_external_link: String::new(),
            devices_approval_on: settings.device_approval,
            devices_auto_updates_on: false,
            devices_key_duration_days: settings.key_lifetime_days,
            users_approval_on: false,
            users_role_allowed_to_join_external_tailnets: "none".to_owned(),
            network_flow_logging_on: false,
            regional_routing_on: true,
            posture_identity_collection_on: false,
            https_enabled: settings.https,
        }
    }
}

/// Shows the settings.
pub(super) async fn get(State(api): State<Api>, caller: Caller) -> Result<Json<SettingsView>, ApiError> {
    caller.require(scope::SETTINGS.read())?;
    Ok(Json(api.operations.world().settings().as_ref().into()))
}

/// Changes the settings of the request, and leaves the others.
pub(super) async fn update(
    State(api): State<Api>,
    caller: Caller,
    Body(request): Body<Map<String, Value>>,
) -> Result<Json<SettingsView>, ApiError> {
    caller.require(scope::SETTINGS)?;
    let shown = json!(SettingsView::from(api.operations.world().settings().as_ref()));
    let mut edits: Vec<Edit> = Vec::new();
    for (name, value) in request {
        // Go clients write what they do not change as null.
        if !value.is_null() && shown.get(&name) != Some(&value) {
            edits.push(edit(&shown, &name, &value)?);
        }
    }
    let actor = caller.actor().clone();
    let all = move |settings: &mut Settings| edits.into_iter().for_each(|edit| edit(settings));
    let stored = api.operations.edit_settings(actor, all).await?;
    Ok(Json(stored.as_ref().into()))
}

type Edit = Box<dyn FnOnce(&mut Settings) + Send>;

/// What a new value of a setting changes. `shown` are all settings.
fn edit(shown: &Value, name: &str, value: &Value) -> Result<Edit, ApiError> {
    let wrong = || ApiError::BodyInvalid(format!("`{name}` has not the type of this setting"));
    let flag = || value.as_bool().ok_or_else(wrong);
    match name {
        "devicesApprovalOn" => {
            let on = flag()?;
            Ok(Box::new(move |settings| settings.device_approval = on))
        }
        "httpsEnabled" => {
            let on = flag()?;
            Ok(Box::new(move |settings| settings.https = on))
        }
        "devicesKeyDurationDays" => {
            let days = value.as_u64().and_then(|days| u32::try_from(days).ok());
            let days = days.ok_or_else(wrong)?;
            Ok(Box::new(move |settings| settings.key_lifetime_days = days))
        }
        known if shown.get(known).is_some() => Err(ApiError::Invalid(format!(
            "`{known}` is always {} on this server: leave it out",
            shown[known]
        ))),
        _ => {
            let name: String = name.chars().take(64).collect();
            Err(ApiError::Invalid(format!("there is no setting `{name}`")))
        }
    }
}

/// Entries that the log of changes is asked for at most.
const LOG_LIMIT: usize = 1000;

/// Which entries are asked for.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct LogRequest {
    start: Option<Timestamp>,
    end: Option<Timestamp>,
    /// Only entries before the one with this id, to read on.
    before: Option<i64>,
    limit: Option<usize>,
}

/// An entry of the log of changes as it is shown.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LogView {
    #[serde(rename = "type")]
    kind: String,
    /// Counts up by one.
    id: i64,
    pub(crate) event_time: Timestamp,
    pub(crate) action: String,
    pub(crate) actor: ActorView,
    pub(crate) target: TargetView,
    /// What is worth knowing beside.
    pub(crate) details: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ActorView {
    #[serde(rename = "type")]
    kind: String,
    pub(crate) login_name: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TargetView {
    id: String,
    pub(crate) name: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
}

/// Answer of the log.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LogList {
    version: String,
    pub(crate) logs: Vec<LogView>,
}

/// The log of changes, the latest entry first.
pub(super) async fn log(
    State(api): State<Api>,
    caller: Caller,
    Query(query): Query<LogRequest>,
) -> Result<Json<LogList>, ApiError> {
    caller.require(scope::LOG.read())?;
    let world = api.operations.world();
    let entries = api.operations.log(LogQuery {
        from: query.start.unwrap_or(Timestamp::MIN),
        to: query.end.unwrap_or(Timestamp::MAX),
        before: query.before,
        limit: query.limit.unwrap_or(LOG_LIMIT).min(LOG_LIMIT),
    });
    Ok(Json(LogList {
        version: "1.1".to_owned(),
        logs: entries.iter().map(|entry| LogView::new(&world, entry)).collect(),
    }))
}

impl LogView {
    fn new(world: &World, entry: &LogEntry) -> Self {
        let (kind, login_name) = match &entry.author {
            Author::Actor(actor) => ("USER", world.describe(actor)),
            Author::Node(node) => ("NODE", node.to_string()),
            Author::Coordinator => ("SYSTEM", "coordinator".to_owned()),
        };
        Self {
            kind: "CONFIG".to_owned(),
            id: entry.id,
            event_time: entry.at,
            action: upper(&entry.action),
            actor: ActorView {
                kind: kind.to_owned(),
                login_name,
            },
            target: TargetView {
                id: entry.target.clone(),
                name: entry.name.clone(),
                kind: upper(&entry.kind),
            },
            details: entry.detail.clone(),
        }
    }
}

/// The word by which an action or kind is stored, as this API writes it.
fn upper(word: &impl Serialize) -> String {
    let word = json!(word);
    word.as_str().unwrap_or_default().to_uppercase().replace('-', "_")
}
