//! Requests that the control server sends through the map stream, answered to where they say: pings, and HTTP requests to the node (c2n).

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, header};
use tailwharf_wire::json;
use tailwharf_wire::key::NodePublic;
use tailwharf_wire::tailcfg::{PingRequest, PingResponse};
use url::Url;

use super::c2n;
use super::client::{CallError, ControlClient};
use super::dial::{ControlServer, DialError};
use crate::host::Host;

/// A ping could not be answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PingError {
    #[error("the address to report to is not one of the control server")]
    Url,
    #[error("cannot build the report")]
    Request(#[source] http::Error),
    #[error("cannot encode the report")]
    Encode(#[source] json::JsonError),
    #[error("the report was not taken")]
    Noise(#[source] CallError),
    #[error("the report was not taken")]
    Plain(#[source] DialError),
}

/// Answers one request of the control server.
pub(crate) async fn answer(
    request: &PingRequest,
    server: &ControlServer,
    host: &Host,
    client: &ControlClient,
    node_key: NodePublic,
    about: &c2n::About,
) -> Result<(), PingError> {
    let url = Url::parse(&request.url).map_err(|_| PingError::Url)?;
    let path = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    let (method, body) = report(request, about)?;
    if request.url_is_noise {
        client
            .send(method, &path, node_key, body)
            .await
            .map_err(PingError::Noise)?;
        return Ok(());
    }
    // A node is no tool to send requests to others with.
    if ControlServer::of(&url).as_ref() != Some(server) {
        return Err(PingError::Url);
    }
    let report = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, server.authority())
        .body(Full::new(body))
        .map_err(PingError::Request)?;
    server.call(host, report).await.map_err(PingError::Plain)?;
    Ok(())
}

/// What is sent back: nothing but the fact, the answer to a c2n request, or that a kind of ping is not known.
fn report(request: &PingRequest, about: &c2n::About) -> Result<(Method, Bytes), PingError> {
    match request.types.as_str() {
        "" => Ok((Method::HEAD, Bytes::new())),
        "c2n" => Ok((Method::POST, c2n::answer(&request.payload, about).into())),
        kinds => {
            let response = PingResponse {
                kind: kinds.to_owned(),
                ip: request.ip.map(|ip| ip.to_string()).unwrap_or_default(),
                err: "this node does not run pings for the control server".to_owned(),
                ..PingResponse::default()
            };
            Ok((
                Method::POST,
                json::to_vec(&response).map_err(PingError::Encode)?.into(),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::NodeStatus;
    use crate::control::announce::Announced;

    #[test]
    fn kinds_of_reports() {
        let report_of = |types: &str| {
            let about = c2n::About {
                announced: Announced::default(),
                status: NodeStatus::starting(),
            };
            let request = PingRequest {
                types: types.into(),
                ..PingRequest::default()
            };
            report(&request, &about).unwrap()
        };
        assert_eq!(report_of(""), (Method::HEAD, Bytes::new()));
        let (method, body) = report_of("TSMP");
        assert_eq!(method, Method::POST);
        let body: PingResponse = json::from_slice(&body).unwrap();
        assert!(!body.err.is_empty());
    }
}
