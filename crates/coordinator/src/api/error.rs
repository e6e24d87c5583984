//! Answers that refuse a call: a status and `{"message": …}`.

use std::time::Duration;

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tailwharf_policy::PolicyError;

use crate::ops::{AccessError, OpError};
use crate::site::TooMany;

/// Why a call is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error(
        "no credentials were sent: send `Authorization: Bearer <token>`, or an API token as the user name of Basic authorization"
    )]
    NoCredentials,
    #[error("{0}")]
    Access(AccessError),
    #[error(
        "this call needs the scope `{needed}`, and the token has {held}: give the scope to the OAuth client or token"
    )]
    MissingScope { needed: String, held: String },
    #[error("there is no tailnet `{0}` here: write `-`")]
    UnknownTailnet(String),
    #[error("there is no such call")]
    UnknownCall,
    #[error("this call has no such method")]
    UnknownMethod,
    #[error("the path of this call cannot be read: {0}")]
    PathInvalid(String),
    #[error("the parameters behind `?` cannot be read: {0}")]
    QueryInvalid(String),
    #[error("the body is longer than {0} bytes")]
    BodyTooLong(usize),
    #[error("the body did not come within {} seconds", super::BODY_TIME.as_secs())]
    BodyTooSlow,
    #[error("the body could not be read to its end")]
    BodyIncomplete,
    #[error("the body is not what this call takes: {0}")]
    BodyInvalid(String),
    #[error("{0}")]
    Invalid(String),
    #[error("there is no {kind} `{id}`")]
    NotFound { kind: &'static str, id: String },
    #[error("too many calls: try again in {} s", .0.as_secs() + 1)]
    TooMany(Duration),
    #[error(transparent)]
    Operation(#[from] OpError),
}

impl ApiError {
    fn status(&self) -> StatusCode {
        match self {
            Self::NoCredentials | Self::Access(_) => StatusCode::UNAUTHORIZED,
            Self::MissingScope { .. } => StatusCode::FORBIDDEN,
            Self::UnknownTailnet(_) | Self::UnknownCall | Self::NotFound { .. } => StatusCode::NOT_FOUND,
            Self::UnknownMethod => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodyTooLong(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::PathInvalid(_)
            | Self::QueryInvalid(_)
            | Self::BodyIncomplete
            | Self::BodyInvalid(_)
            | Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::TooMany(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Operation(error) => match error {
                OpError::NotFound { .. } => StatusCode::NOT_FOUND,
                OpError::Conflict(_) => StatusCode::CONFLICT,
                OpError::Invalid(_) | OpError::TagNotPermitted { .. } | OpError::PolicyInvalid(_) => {
                    StatusCode::BAD_REQUEST
                }
                OpError::PolicyChanged => StatusCode::PRECONDITION_FAILED,
                OpError::Forbidden(_) => StatusCode::FORBIDDEN,
                OpError::Busy(_) => StatusCode::TOO_MANY_REQUESTS,
                OpError::Store(_) | OpError::Stopped => StatusCode::SERVICE_UNAVAILABLE,
                _ => StatusCode::INTERNAL_SERVER_ERROR,
            },
        }
    }
}

impl From<TooMany> for ApiError {
    fn from(TooMany(wait): TooMany) -> Self {
        Self::TooMany(wait)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status();
        let mut body = json!({"message": self.to_string(), "status": status.as_u16()});
        if let Self::Operation(OpError::PolicyInvalid(errors)) = &self {
            body = policy_faults(errors);
        }
        if let Self::TooMany(wait) = &self {
            let wait = (wait.as_secs() + 1).to_string();
            return (status, [(header::RETRY_AFTER, wait)], Json(body)).into_response();
        }
        if status == StatusCode::UNAUTHORIZED {
            return (status, [(header::WWW_AUTHENTICATE, "Bearer")], Json(body)).into_response();
        }
        (status, Json(body)).into_response()
    }
}

/// The faults of a policy. The message is the first of them alone, in the form that editors and pipelines know, `line 3, column 5: …`;
/// `data` has all of them.
pub(super) fn policy_faults(errors: &[PolicyError]) -> Value {
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    json!({"message": texts.first(), "data": [{"user": "", "errors": texts, "warnings": []}]})
}
