//! OAuth 2: client credentials (RFC 6749, 4.4).

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::{Form, FromRequest as _, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Api, ApiError, caller};
use crate::model::Tag;
use crate::ops::{AccessError, CLIENT_TOKEN_LIFE};

/// The form of a token request. The client's id and secret may come by Basic authorization instead.
#[derive(Deserialize)]
pub(super) struct TokenRequest {
    #[serde(default)]
    grant_type: String,
    #[serde(default)]
    client_id: String,
    #[serde(default)]
    client_secret: String,
    #[serde(default)]
    scope: String,
    #[serde(default)]
    tags: String,
}

#[derive(Serialize)]
struct TokenAnswer<'a> {
    access_token: &'a str,
    token_type: &'static str,
    expires_in: u64,
    scope: String,
}

/// Trades the secret of a client for a token.
pub(super) async fn token(
    State(api): State<Api>,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, ApiError> {
    let form = Form::<TokenRequest>::from_request(request, &());
    let Ok(Form(request)) = caller::in_time(form).await? else {
        return Ok(refusal(
            "invalid_request",
            "send a form of at most 1 MiB with client_id and client_secret",
        ));
    };
    if !matches!(request.grant_type.as_str(), "" | "client_credentials") {
        return Ok(refusal(
            "unsupported_grant_type",
            "the only grant type is client_credentials",
        ));
    }
    let (id, secret) = match caller::basic(&headers) {
        Some(pair) => pair,
        None => (request.client_id, request.client_secret),
    };
    let scopes: BTreeSet<String> = request.scope.split_whitespace().map(str::to_owned).collect();
    let words = request.tags.split([' ', ',']).filter(|word| !word.is_empty());
    let tags: BTreeSet<Tag> = match words.map(str::parse).collect() {
        Ok(tags) => tags,
        Err(error) => return Ok(refusal("invalid_request", &format!("{error}"))),
    };
    match api
        .operations
        .grant_client_token(id, &secret, scopes, tags)
        .await?
    {
        Ok(minted) => {
            let scope = minted
                .record
                .scopes
                .iter()
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(" ");
            let answer = TokenAnswer {
                access_token: minted.secret.reveal(),
                token_type: "Bearer",
                expires_in: CLIENT_TOKEN_LIFE.as_secs(),
                scope,
            };
            Ok(([(header::CACHE_CONTROL, "no-store")], Json(answer)).into_response())
        }
        Err(AccessError::Exceeds) => Ok(refusal("invalid_scope", &AccessError::Exceeds.to_string())),
        Err(AccessError::Unknown | AccessError::Expired) => Ok(refusal(
            "invalid_client",
            "client_id and client_secret are not those of an OAuth client of this tailnet",
        )),
    }
}

/// The body of an error of RFC 6749, 5.2.
fn refusal(error: &'static str, description: &str) -> Response {
    let body = Json(json!({"error": error, "error_description": description}));
    match error {
        "invalid_client" => (
            StatusCode::UNAUTHORIZED,
            [(header::WWW_AUTHENTICATE, "Basic")],
            body,
        )
            .into_response(),
        _ => (StatusCode::BAD_REQUEST, body).into_response(),
    }
}
