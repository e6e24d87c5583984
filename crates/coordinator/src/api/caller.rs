//! Who calls, and the body of the call.

use axum::body::Bytes;
use axum::extract::{self, FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::{Api, ApiError, Authority, BODY_LIMIT, BODY_TIME};
use crate::model::{Actor, CredentialId};
use crate::ops::{Access, AccessError};
use crate::scope::{self, Scope};

/// Who calls. Every call but the token endpoint takes one, and with it checks the tailnet in the path.
pub(super) struct Caller(Access);

impl Caller {
    /// On whose behalf the call is made.
    pub(super) fn actor(&self) -> &Actor {
        &self.0.actor
    }

    /// Refuses the call unless the caller has the scope.
    pub(super) fn require(&self, needed: Scope<'_>) -> Result<(), ApiError> {
        if self.may(needed) {
            return Ok(());
        }
        let held: Vec<String> = self.0.scopes.iter().map(|scope| format!("`{scope}`")).collect();
        let held = if held.is_empty() {
            "none".to_owned()
        } else {
            held.join(", ")
        };
        Err(ApiError::MissingScope {
            needed: needed.to_string(),
            held,
        })
    }

    /// Whether the caller has the scope.
    pub(super) fn may(&self, needed: Scope<'_>) -> bool {
        scope::covered(&self.0.scopes, needed)
    }
}

impl FromRequestParts<Api> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let access = match api.authority {
            Authority::Socket => Access {
                token: CredentialId::from("administrator"),
                actor: Actor::Administrator,
                scopes: [scope::ALL.to_string()].into(),
            },
            Authority::Token => {
                let token = token(&parts.headers).ok_or(ApiError::NoCredentials)?;
                let access = api.operations.authenticate(&token, Timestamp::now())?;
                api.count_call(&access.token)?;
                access
            }
        };
        let params = RawPathParams::from_request_parts(parts, api)
            .await
            .map_err(|rejection| ApiError::PathInvalid(rejection.body_text()))?;
        let named = params
            .iter()
            .find(|(name, _)| *name == "tailnet")
            .map(|(_, value)| value);
        let own = api.operations.world();
        if let Some(other) = named.filter(|name| *name != "-" && *name != own.facts().suffix.as_str()) {
            return Err(ApiError::UnknownTailnet(other.chars().take(64).collect()));
        }
        Ok(Self(access))
    }
}

/// The token of a request: a bearer's, or the user name of Basic authorization.
fn token(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    match value.split_once(' ')? {
        (scheme, token) if scheme.eq_ignore_ascii_case("bearer") => Some(token.trim().to_owned()),
        _ => basic(headers).map(|(user, _)| user),
    }
}

/// User name and password of Basic authorization.
pub(super) fn basic(headers: &HeaderMap) -> Option<(String, String)> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (_, encoded) = value
        .split_once(' ')
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"))?;
    let text = String::from_utf8(BASE64_STANDARD.decode(encoded.trim()).ok()?).ok()?;
    text.split_once(':')
        .map(|(user, password)| (user.to_owned(), password.to_owned()))
}

impl From<AccessError> for ApiError {
    fn from(error: AccessError) -> Self {
        Self::Access(error)
    }
}

/// The parameters in the path of a call.
pub(super) struct Path<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let read = extract::Path::from_request_parts(parts, state).await;
        read.map(|extract::Path(params)| Self(params))
            .map_err(|rejection| ApiError::PathInvalid(rejection.body_text()))
    }
}

/// The parameters behind the `?` of a call.
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let read = extract::Query::from_request_parts(parts, state).await;
        read.map(|extract::Query(params)| Self(params))
            .map_err(|rejection| ApiError::QueryInvalid(rejection.body_text()))
    }
}

/// A body of JSON.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = bytes(request, state, BODY_LIMIT).await?;
        // Clients leave out the body where every field has a default.
        let json = if bytes.is_empty() {
            b"{}".as_slice()
        } else {
            &bytes
        };
        serde_json::from_slice(json)
            .map(Self)
            .map_err(|error| ApiError::BodyInvalid(error.to_string()))
    }
}

/// Ends a call whose body does not come.
pub(super) async fn in_time<T>(body: impl Future<Output = T>) -> Result<T, ApiError> {
    timeout(BODY_TIME, body).await.map_err(|_| ApiError::BodyTooSlow)
}

/// The whole body. The limit itself is set where the route is; here it only names it.
pub(super) async fn bytes<S: Send + Sync>(
    request: Request,
    state: &S,
    limit: usize,
) -> Result<Bytes, ApiError> {
    in_time(Bytes::from_request(request, state))
        .await?
        .map_err(|rejection| match rejection.into_response().status() {
            StatusCode::PAYLOAD_TOO_LARGE => ApiError::BodyTooLong(limit),
            _ => ApiError::BodyIncomplete,
        })
}
