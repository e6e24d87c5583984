//! OAuth 2: client credentials (RFC 6749, 4.4), and the exchange of a platform's token.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::{Form, FromRequest as _, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Api, ApiError, caller};
use crate::model::{ApiToken, Proof, Tag};
use crate::ops::{AccessError, CLIENT_TOKEN_LIFE, Minted};
use crate::site::Origin;
use crate::workload::{IssuerError, Token, TokenError};

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
    origin: Origin,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, ApiError> {
    api.may_try(origin)?;
    let Some(request) = form::<TokenRequest>(request).await? else {
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
    let granted = api
        .operations
        .grant_client_token(id, &secret, scopes, tags)
        .await?;
    Ok(match granted {
        Ok(minted) => answer(&minted),
        Err(AccessError::Exceeds) => refusal("invalid_scope", &AccessError::Exceeds.to_string()),
        Err(AccessError::Unknown | AccessError::Expired) => {
            api.failed(origin);
            refusal(
                "invalid_client",
                "client_id and client_secret are not those of an OAuth client of this tailnet",
            )
        }
    })
}

/// The form of an exchange: a client, and a token of its platform.
#[derive(Deserialize)]
pub(super) struct ExchangeRequest {
    #[serde(default)]
    client_id: String,
    #[serde(default)]
    jwt: String,
}

/// Trades a token of a client's platform for one of this API.
pub(super) async fn exchange(
    State(api): State<Api>,
    origin: Origin,
    request: Request,
) -> Result<Response, ApiError> {
    api.may_try(origin)?;
    let Some(request) = form::<ExchangeRequest>(request).await? else {
        return Ok(refusal(
            "invalid_request",
            "send a form of at most 1 MiB with client_id and jwt",
        ));
    };
    match exchanged(&api, request).await? {
        Ok(minted) => Ok(answer(&minted)),
        Err(refused) => {
            api.failed(origin);
            tracing::info!(reason = %refused, "token exchange refused");
            let kind = match refused {
                Refused::Client => "invalid_client",
                Refused::Token(_) | Refused::Issuer(_) => "invalid_grant",
            };
            Ok(refusal(kind, &refused.to_string()))
        }
    }
}

/// Why a platform's token is not taken.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("client_id is not that of a federated client of this tailnet")]
    Client,
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Issuer(#[from] IssuerError),
}

async fn exchanged(
    api: &Api,
    request: ExchangeRequest,
) -> Result<Result<Minted<ApiToken>, Refused>, ApiError> {
    let checked = async {
        let world = api.operations.world();
        let client = world.oauth_client(&request.client_id).ok_or(Refused::Client)?;
        let Proof::Federation(bound) = &client.proof else {
            return Err(Refused::Client);
        };
        let token = Token::parse(&request.jwt)?;
        // Only the issuer that the client is bound to is asked for keys, whatever the token says.
        if token.issuer() != bound.issuer {
            return Err(TokenError::Bound("the issuer").into());
        }
        let keys = api.issuers.keys(&bound.issuer, token.key_id()).await?;
        token.verify(&keys, Timestamp::now())?.check(bound)?;
        Ok((client.id.clone(), bound.clone()))
    };
    let (client, bound) = match checked.await {
        Ok(proved) => proved,
        Err(refused) => return Ok(Err(refused)),
    };
    let granted = api.operations.grant_federated_token(client, bound).await?;
    Ok(granted.map_err(|_| Refused::Client))
}

/// The form of a request; none if it is not one of at most 1 MiB.
async fn form<T: DeserializeOwned>(request: Request) -> Result<Option<T>, ApiError> {
    let form = caller::in_time(Form::<T>::from_request(request, &())).await?;
    Ok(form.ok().map(|Form(form)| form))
}

fn answer(minted: &Minted<ApiToken>) -> Response {
    let scopes: Vec<&str> = minted.record.scopes.iter().map(String::as_str).collect();
    let body = TokenAnswer {
        access_token: minted.secret.reveal(),
        token_type: "Bearer",
        expires_in: CLIENT_TOKEN_LIFE.as_secs(),
        scope: scopes.join(" "),
    };
    ([(header::CACHE_CONTROL, "no-store")], Json(body)).into_response()
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
