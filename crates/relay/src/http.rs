//! The paths that a relay answers, and the upgrade to DERP.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::{
    ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL, CONNECTION, HeaderMap, HeaderName, HeaderValue,
    SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use tailwharf_wire::derp::PROTOCOL_VERSION;
use tailwharf_wire::key::NodePublic;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::websocket::accept_key;

/// How long a client may take for the head of a request, or be idle before it sends one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest head of a request.
const MAX_HEAD_LEN: usize = 16 * 1024;

/// The version of the WebSocket protocol.
const WEB_SOCKET_VERSION: &str = "13";
const DERP_VERSION: HeaderName = HeaderName::from_static("derp-version");
const DERP_PUBLIC_KEY: HeaderName = HeaderName::from_static("derp-public-key");
const CHALLENGE: HeaderName = HeaderName::from_static("x-tailscale-challenge");
const CHALLENGE_RESPONSE: HeaderName = HeaderName::from_static("x-tailscale-response");
const MAX_CHALLENGE_LEN: usize = 64;

type Reply = Response<String>;

/// A connection that was upgraded to DERP.
pub(crate) struct Upgraded<S> {
    pub(crate) stream: S,
    /// What the client sent behind its request.
    pub(crate) early: bytes::Bytes,
    pub(crate) form: Form,
}

/// How DERP is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// As the stream itself.
    Plain,
    /// In the messages of a WebSocket.
    WebSocket,
}

/// Answers HTTP requests on `stream`. Returns the stream once a request has upgraded it to DERP; `None`: the client went away
/// or only probed.
pub(crate) async fn serve<S>(stream: S, relay: NodePublic) -> Result<Option<Upgraded<S>>, hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let upgrade = Arc::new(Mutex::new(None::<(OnUpgrade, Form)>));
    let service = service_fn(|mut request: Request<Incoming>| {
        let reply = respond(&request, &relay);
        if reply.status() == StatusCode::SWITCHING_PROTOCOLS {
            let form = if reply.headers().contains_key(SEC_WEBSOCKET_ACCEPT) {
                Form::WebSocket
            } else {
                Form::Plain
            };
            let pending = hyper::upgrade::on(&mut request);
            *upgrade.lock().unwrap_or_else(PoisonError::into_inner) = Some((pending, form));
        }
        std::future::ready(Ok::<_, Infallible>(reply))
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_LEN)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await?;
    let pending = upgrade.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some((pending, form)) = pending else {
        return Ok(None);
    };
    let parts = pending.await?.downcast::<TokioIo<S>>().ok();
    Ok(parts.map(|parts| Upgraded {
        stream: parts.io.into_inner(),
        early: parts.read_buf,
        form,
    }))
}

fn respond(request: &Request<Incoming>, relay: &NodePublic) -> Reply {
    match request.uri().path() {
        "/derp" => upgrade(request, relay),
        "/derp/probe" | "/derp/latency-check" => probe(request.method()),
        "/generate_204" => no_content(request),
        _ => text(
            StatusCode::NOT_FOUND,
            "This is a DERP relay. It has nothing under this path.\n",
        ),
    }
}

fn upgrade(request: &Request<Incoming>, relay: &NodePublic) -> Reply {
    let headers = request.headers();
    let wants = |name: &str| {
        headers
            .get(UPGRADE)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(name.as_bytes()))
    };
    if request.method() == Method::GET
        && wants("websocket")
        && let Some(reply) = web_socket(headers)
    {
        return reply;
    }
    if !wants("derp") || request.method() != Method::GET {
        return text(
            StatusCode::UPGRADE_REQUIRED,
            "This path needs a GET request with \"Upgrade: DERP\", or a WebSocket with the protocol \"derp\".\n",
        );
    }
    let mut reply = text(StatusCode::SWITCHING_PROTOCOLS, "");
    let headers = reply.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("DERP"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(DERP_VERSION, HeaderValue::from(PROTOCOL_VERSION));
    let key = relay.to_string();
    if let Ok(key) = HeaderValue::from_str(key.trim_start_matches(NodePublic::PREFIX)) {
        headers.insert(DERP_PUBLIC_KEY, key);
    }
    reply
}

/// Accepts a WebSocket for the protocol `derp`.
fn web_socket(headers: &HeaderMap) -> Option<Reply> {
    let word = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let mut protocols = word(SEC_WEBSOCKET_PROTOCOL)?.split(',');
    if word(SEC_WEBSOCKET_VERSION) != Some(WEB_SOCKET_VERSION) || !protocols.any(|name| name.trim() == "derp")
    {
        return None;
    }
    let accept = HeaderValue::from_str(&accept_key(word(SEC_WEBSOCKET_KEY)?)).ok()?;
    let mut reply = text(StatusCode::SWITCHING_PROTOCOLS, "");
    let headers = reply.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("derp"));
    Some(reply)
}

fn probe(method: &Method) -> Reply {
    if method != Method::GET && method != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "This path needs GET or HEAD.\n");
    }
    let mut reply = text(StatusCode::OK, "");
    reply
        .headers_mut()
        .insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    reply
}

/// Shows a client that no captive portal is between: the answer holds what it asked.
fn no_content(request: &Request<Incoming>) -> Reply {
    let mut reply = text(StatusCode::NO_CONTENT, "");
    let headers = reply.headers_mut();
    headers.insert(
        CACHE_CONTROL,
        HeaderValue::from_static("no-cache, no-store, must-revalidate, max-age=0"),
    );
    let challenge = request
        .headers()
        .get(CHALLENGE)
        .and_then(|value| value.to_str().ok());
    if let Some(challenge) = challenge.filter(|challenge| is_challenge(challenge))
        && let Ok(response) = HeaderValue::from_str(&format!("response {challenge}"))
    {
        headers.insert(CHALLENGE_RESPONSE, response);
    }
    reply
}

fn is_challenge(text: &str) -> bool {
    text.len() <= MAX_CHALLENGE_LEN
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':'))
}

fn text(status: StatusCode, body: &str) -> Reply {
    let mut reply = Response::new(body.to_owned());
    *reply.status_mut() = status;
    reply
}
