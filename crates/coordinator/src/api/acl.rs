//! The policy.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use tailwharf_policy::PolicyError;

use super::caller::{Caller, Query, bytes};
use super::error::policy_faults;
use super::{Api, ApiError, POLICY_LIMIT};
use crate::ops::{OpError, PolicyTag, PreviewOf};
use crate::scope;

const HUJSON: &str = "application/hujson";
/// The tag by which clients name the policy of a tailnet that never set one.
const DEFAULT_TAG: &str = "ts-default";

/// The policy in force: HuJSON as it was given, or plain JSON if the client asks for that.
pub(super) async fn get(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    caller.require(scope::POLICY.read())?;
    answer(&api, &headers)
}

/// Puts a policy in force. `If-Match` guards against changes by others meanwhile.
pub(super) async fn set(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, ApiError> {
    caller.require(scope::POLICY)?;
    let only_if = if_match(&api, &headers)?;
    let text = text(request).await?;
    api.operations
        .set_policy(caller.actor().clone(), text, only_if)
        .await?;
    answer(&api, &headers)
}

/// Says whether a policy would be accepted. The answer is 200 in either case, as clients of API v2 expect; a message means that it would not, or that
/// parts of it have no effect.
pub(super) async fn validate(
    State(api): State<Api>,
    caller: Caller,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    caller.require(scope::POLICY.read())?;
    let text = text(request).await?;
    match api.operations.check_policy(&text) {
        Ok(warnings) if warnings.is_empty() => Ok(Json(json!({}))),
        Ok(warnings) => {
            let texts: Vec<String> = warnings.iter().map(PolicyError::to_string).collect();
            let data = json!([{"user": "", "errors": [], "warnings": texts}]);
            Ok(Json(json!({"message": "warning(s) found", "data": data})))
        }
        Err(OpError::PolicyInvalid(errors)) => Ok(Json(policy_faults(&errors))),
        Err(error) => Err(error.into()),
    }
}

/// Of whom or what a preview is asked for.
#[derive(Deserialize)]
pub(super) struct PreviewQuery {
    #[serde(rename = "type")]
    kind: String,
    #[serde(rename = "previewFor")]
    of: String,
}

/// The rules of a policy that concern a person (`type=user`), or an address and port (`type=ipport`).
pub(super) async fn preview(
    State(api): State<Api>,
    caller: Caller,
    Query(query): Query<PreviewQuery>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    caller.require(scope::POLICY.read())?;
    let of = match query.kind.as_str() {
        "user" => PreviewOf::User(query.of.clone()),
        "ipport" => PreviewOf::Address(query.of.parse().map_err(|_| {
            ApiError::Invalid(
                "`previewFor` is not an address and port: write it like `100.64.0.1:443`".to_owned(),
            )
        })?),
        _ => return Err(ApiError::Invalid("`type` is `user` or `ipport`".to_owned())),
    };
    let matches = api.operations.preview_policy(&text(request).await?, of)?;
    let matches: Vec<Value> = matches
        .iter()
        .map(|found| json!({"users": found.sources, "ports": found.openings, "lineNumber": found.line}))
        .collect();
    Ok(Json(
        json!({"matches": matches, "type": query.kind, "previewFor": query.of}),
    ))
}

async fn text(request: Request) -> Result<String, ApiError> {
    let body = bytes(request, &(), POLICY_LIMIT).await?;
    String::from_utf8(body.into()).map_err(|_| ApiError::BodyInvalid("a policy is text in UTF-8".to_owned()))
}

/// The policy that must be in force for a change to be made.
fn if_match(api: &Api, headers: &HeaderMap) -> Result<Option<PolicyTag>, ApiError> {
    let Some(value) = headers
        .get(header::IF_MATCH)
        .and_then(|value| value.to_str().ok())
    else {
        return Ok(None);
    };
    let tag = value.trim().trim_matches('"');
    if tag != DEFAULT_TAG {
        return Ok(Some(PolicyTag(tag.to_owned())));
    }
    let (version, current) = api.operations.policy();
    if version.version > 0 {
        Err(OpError::PolicyChanged.into())
    } else {
        Ok(Some(current))
    }
}

fn answer(api: &Api, headers: &HeaderMap) -> Result<Response, ApiError> {
    let (version, tag) = api.operations.policy();
    let etag = (header::ETAG, format!("\"{tag}\""));
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    if !accept.contains("application/json") {
        let content_type = (header::CONTENT_TYPE, HUJSON.to_owned());
        return Ok(([etag, content_type], version.text.to_string()).into_response());
    }
    let json =
        tailwharf_policy::to_json(&version.text).map_err(|error| OpError::PolicyInvalid(vec![error]))?;
    Ok(([etag], Json(json)).into_response())
}
