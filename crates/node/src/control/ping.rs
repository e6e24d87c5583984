//! Requests that the control server sends through the map stream: pings, and HTTP requests to the node (c2n).

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, header};
use tailwharf_wire::json;
use tailwharf_wire::key::NodePublic;
use tailwharf_wire::tailcfg::{PingRequest, PingResponse};
use url::Url;

use super::client::{CallError, ControlClient};
use super::dial::{ControlServer, DialError};
use crate::tls::TlsConfigs;

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
    tls: &TlsConfigs,
    client: &ControlClient,
    node_key: NodePublic,
) -> Result<(), PingError> {
    let url = Url::parse(&request.url).map_err(|_| PingError::Url)?;
    let path = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    let (method, body) = report(request)?;
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
    server.call(tls, report).await.map_err(PingError::Plain)?;
    Ok(())
}

/// What is sent back: nothing but the fact, the answer to a c2n request, or that a kind of ping is not known.
fn report(request: &PingRequest) -> Result<(Method, Bytes), PingError> {
    match request.types.as_str() {
        "" => Ok((Method::HEAD, Bytes::new())),
        "c2n" => Ok((Method::POST, c2n(&request.payload).into())),
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

/// Answers a literal HTTP/1 request with a literal HTTP/1 response.
fn c2n(request: &[u8]) -> Vec<u8> {
    let (head, body) = match request.windows(4).position(|window| window == b"\r\n\r\n") {
        Some(end) => (&request[..end], &request[end + 4..]),
        None => (request, &[][..]),
    };
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = std::str::from_utf8(line).unwrap_or_default().split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = target.split('?').next().unwrap_or_default();
    match (method, path) {
        (_, "/echo") => response("200 OK", body),
        ("POST", "/logtail/flush") => response("204 No Content", &[]),
        (_, path) if path.starts_with('/') => response("404 Not Found", b"unknown c2n path\n"),
        _ => response("400 Bad Request", b"not an HTTP/1 request\n"),
    }
}

fn response(status: &str, body: &[u8]) -> Vec<u8> {
    let mut response = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    response.extend_from_slice(body);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer_to(request: &str) -> String {
        String::from_utf8(c2n(request.as_bytes())).unwrap()
    }

    #[test]
    fn requests_of_the_control_server() {
        let echo = answer_to("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello");
        assert_eq!(echo, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
        assert!(answer_to("POST /logtail/flush HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 204 "));
        assert!(answer_to("GET /debug/goroutines?x=1 HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
        for junk in ["", "\r\n\r\n", "GET", "GET echo HTTP/1.1\r\n\r\n"] {
            assert!(answer_to(junk).starts_with("HTTP/1.1 400 "), "{junk:?}");
        }
    }

    #[test]
    fn kinds_of_reports() {
        let report_of = |types: &str| {
            report(&PingRequest {
                types: types.into(),
                ..PingRequest::default()
            })
            .unwrap()
        };
        assert_eq!(report_of(""), (Method::HEAD, Bytes::new()));
        let (method, body) = report_of("TSMP");
        assert_eq!(method, Method::POST);
        let body: PingResponse = json::from_slice(&body).unwrap();
        assert!(!body.err.is_empty());
    }
}
