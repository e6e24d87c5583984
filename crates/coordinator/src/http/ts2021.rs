//! The upgrade from HTTP/1.1 to Noise.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use hyper_util::rt::TokioIo;
use tailwharf_wire::noise::INITIATION_LEN;
use tokio::time::timeout;

use super::{HEADER_TIME, Permit};
use crate::{machine::Control, noise};

const PROTOCOL: &str = "tailscale-control-protocol";
const HANDSHAKE: &str = "x-tailscale-handshake";

/// Answers the upgrade request and serves the Noise connection behind it. What the client sent behind its request already is part of that connection.
pub(super) async fn upgrade(
    State(control): State<Arc<Control>>,
    Extension(permit): Extension<Permit>,
    mut request: Request,
) -> Response {
    let initiation = match initiation(request.headers()) {
        Ok(initiation) => initiation,
        Err(problem) => return (StatusCode::BAD_REQUEST, format!("{problem}\n")).into_response(),
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let tasks = control.tasks.clone();
    tasks.spawn(async move {
        let io = match timeout(HEADER_TIME, upgrade).await {
            Ok(Ok(io)) => TokioIo::new(io),
            Ok(Err(error)) => return tracing::debug!(%error, "upgrade to Noise failed"),
            Err(_) => return tracing::debug!("upgrade to Noise took too long"),
        };
        if let Err(error) = noise::serve(control, io, &initiation, || permit.settle()).await {
            tracing::debug!(%error, "Noise connection ended");
        }
    });
    let headers = [
        (header::UPGRADE, HeaderValue::from_static(PROTOCOL)),
        (header::CONNECTION, HeaderValue::from_static("upgrade")),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

fn initiation(headers: &HeaderMap) -> Result<Vec<u8>, &'static str> {
    let protocol = headers.get(header::UPGRADE).and_then(|value| value.to_str().ok());
    if protocol.is_none_or(|protocol| !protocol.eq_ignore_ascii_case(PROTOCOL)) {
        return Err("this path is for Tailscale clients: it needs `Upgrade: tailscale-control-protocol`");
    }
    let handshake = headers
        .get(HANDSHAKE)
        .ok_or("the header `X-Tailscale-Handshake` is missing")?;
    let initiation = STANDARD
        .decode(handshake.as_bytes())
        .map_err(|_| "`X-Tailscale-Handshake` is not base64")?;
    if initiation.len() != INITIATION_LEN {
        return Err("`X-Tailscale-Handshake` has not the length of a Noise initiation");
    }
    Ok(initiation)
}
