//! Requests that the control server sends through the map stream, answered to where they say: pings of peers, and HTTP requests to the node (c2n).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, header};
use tailwharf_node_core::netmap::Netmap;
use tailwharf_node_core::{Path, PingKind};
use tailwharf_wire::json;
use tailwharf_wire::key::NodePublic;
use tailwharf_wire::tailcfg::{PingRequest, PingResponse};
use tokio::time::{Instant, timeout};
use url::Url;

use super::c2n;
use super::client::{CallError, ControlClient};
use super::dial::{ControlServer, DialError};
use crate::engine::Engine;
use crate::http1::{self, HttpError};
use crate::inquiry::{self, PingFailure, region_name};
use crate::tcp::TcpStream;

/// Kinds of ping in one request; what follows is left out.
const MAX_KINDS: usize = 4;
/// How long an answer of a peer's API may take.
const PEER_API_TIME: Duration = Duration::from_secs(5);

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

/// Answers one request of the control server, by as many reports as it names kinds of ping.
pub(crate) async fn answer(
    request: &PingRequest,
    server: &ControlServer,
    engine: &Arc<Engine>,
    client: &ControlClient,
    node_key: NodePublic,
    about: &c2n::About,
) -> Result<(), PingError> {
    let url = Url::parse(&request.url).map_err(|_| PingError::Url)?;
    // A node is no tool to send requests to others with.
    if !request.url_is_noise && ControlServer::of(&url).as_ref() != Some(server) {
        return Err(PingError::Url);
    }
    let path = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    for kind in request.types.split(',').take(MAX_KINDS) {
        let (method, body) = report(engine, kind, request, about).await?;
        if request.url_is_noise {
            client
                .send(method, &path, node_key, body)
                .await
                .map_err(PingError::Noise)?;
            continue;
        }
        let report = Request::builder()
            .method(method)
            .uri(&path)
            .header(header::HOST, server.authority())
            .body(Full::new(body))
            .map_err(PingError::Request)?;
        server
            .call(engine.host(), report)
            .await
            .map_err(PingError::Plain)?;
    }
    Ok(())
}

/// What is sent back: nothing but the fact, the answer to a c2n request, or what came of a ping.
async fn report(
    engine: &Arc<Engine>,
    kind: &str,
    request: &PingRequest,
    about: &c2n::About,
) -> Result<(Method, Bytes), PingError> {
    match kind {
        "" => Ok((Method::HEAD, Bytes::new())),
        "c2n" => Ok((Method::POST, c2n::answer(&request.payload, about).into())),
        kind => {
            let response = ping(engine, kind, request.ip).await;
            let body = json::to_vec(&response).map_err(PingError::Encode)?;
            Ok((Method::POST, body.into()))
        }
    }
}

/// Pings a peer, and says what came of it.
async fn ping(engine: &Arc<Engine>, kind: &str, ip: Option<IpAddr>) -> PingResponse {
    let response = PingResponse {
        kind: kind.to_owned(),
        ip: ip.map(|ip| ip.to_string()).unwrap_or_default(),
        ..PingResponse::default()
    };
    let failed = |err: String| PingResponse {
        err,
        ..response.clone()
    };
    let Some(ip) = ip else {
        return failed("no address to ping was given".to_owned());
    };
    let by = match kind {
        "disco" => PingKind::Disco,
        "ICMP" => PingKind::Icmp,
        // The answer to a TSMP ping tells the port of the peer's API.
        "TSMP" | "peerapi" => PingKind::Tsmp,
        _ => return failed("this node does not know this kind of ping".to_owned()),
    };
    if engine.with_core(|core, _| core.netmap().addresses().any(|own| own == ip)) {
        return PingResponse {
            is_local_ip: true,
            ..failed(format!("{ip} is an address of this node"))
        };
    }
    let found = |netmap: &Netmap| {
        let peer = netmap.peer_by_address(ip).cloned();
        peer.ok_or_else(|| PingFailure::UnknownPeer(ip.to_string()))
    };
    let (netmap, peer, answered) = match inquiry::ping(engine, by, found).await {
        Ok(answered) => answered,
        Err(error) => return failed(error.to_string()),
    };
    let latency = match (kind, answered.peer_api_port) {
        ("peerapi", None) => return failed("the peer has no peer API".to_owned()),
        ("peerapi", Some(port)) => match ask_peer_api(engine, SocketAddr::new(ip, port)).await {
            Ok(latency) => latency,
            Err(error) => return failed(error),
        },
        _ => answered.latency,
    };
    let response = PingResponse {
        node_ip: ip.to_string(),
        node_name: peer.name.to_string(),
        latency_seconds: latency.as_secs_f64(),
        peer_api_port: answered.peer_api_port.unwrap_or_default(),
        ..response
    };
    match answered.path {
        // Only the path layer knows which way its ping went.
        _ if by != PingKind::Disco => response,
        Path::Udp(address) => PingResponse {
            endpoint: address.to_string(),
            ..response
        },
        Path::Derp { region, .. } => PingResponse {
            derp_region_id: region,
            derp_region_code: region_name(&netmap, region),
            ..response
        },
    }
}

/// Asks a peer's API for its greeting. Gives how long that took, or why it did not answer.
async fn ask_peer_api(engine: &Arc<Engine>, to: SocketAddr) -> Result<Duration, String> {
    let began = Instant::now();
    let exchange = async {
        let stream = TcpStream::connect(engine, to)
            .await
            .map_err(|error| error.to_string())?;
        let request = Request::builder()
            .method(Method::HEAD)
            .uri("/")
            .header(header::HOST, to.to_string())
            .body(Full::default())
            .map_err(|error| error.to_string())?;
        let answered = http1::exchange(stream, request).await;
        answered.map_err(|error: HttpError| error.to_string())
    };
    match timeout(PEER_API_TIME, exchange).await {
        Ok(Ok(_)) => Ok(began.elapsed()),
        Ok(Err(error)) => Err(error),
        Err(_) => Err("the peer API does not answer".to_owned()),
    }
}
