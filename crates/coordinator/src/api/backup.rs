//! Copies of the store, for the administrator alone.

use std::path::PathBuf;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::Value;

use super::caller::Body;
use super::{Api, ApiError, done};

/// Where the copy goes.
#[derive(Deserialize)]
pub(super) struct Request {
    path: PathBuf,
}

/// Copies the store to a new file of the coordinator's machine.
pub(super) async fn create(
    State(api): State<Api>,
    Body(request): Body<Request>,
) -> Result<Json<Value>, ApiError> {
    if !request.path.is_absolute() {
        return Err(ApiError::Invalid(
            "`path` is not absolute: begin it with `/`".to_owned(),
        ));
    }
    api.operations.back_up(request.path).await?;
    Ok(done())
}
