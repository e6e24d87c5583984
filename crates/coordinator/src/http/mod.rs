//! The listener for nodes, the API and everybody else.

mod limits;
mod ts2021;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Extension, Json, Router,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tailwharf_wire::tailcfg::OverTlsPublicKeyResponse;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    time::{Instant, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use self::limits::Permit;
pub(crate) use self::limits::{Permits, Rate, Source};
use crate::machine::Control;
use crate::metrics;

/// How long a client may take for a TLS handshake, or for the headers of a request.
const HEADER_TIME: Duration = Duration::from_secs(5);
/// The longest header block.
const HEADER_LIMIT: usize = 64 * 1024;
/// Where Noise connections begin.
const TS2021: &str = "/ts2021";
/// How often the log says that connections are refused.
const LIMIT_LOG_INTERVAL: Duration = Duration::from_secs(10);
/// How long to wait when the system gives no more sockets.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The routes that need no Noise connection.
pub(crate) fn routes(control: Arc<Control>) -> Router {
    Router::new()
        .route("/key", get(key))
        .route(TS2021, axum::routing::post(ts2021::upgrade))
        .route(
            "/health",
            get(async |State(control): State<Arc<Control>>| metrics::health(&control.counters)),
        )
        .route("/generate_204", get(generate_204))
        .with_state(control)
}

async fn key(State(control): State<Arc<Control>>) -> Json<OverTlsPublicKeyResponse> {
    let public_key = control.server_key.public();
    Json(OverTlsPublicKeyResponse {
        public_key,
        ..OverTlsPublicKeyResponse::default()
    })
}

/// Answers the probe by which clients look for captive portals.
async fn generate_204(headers: HeaderMap) -> impl IntoResponse {
    let mut answer = HeaderMap::new();
    let challenge = headers
        .get("x-tailscale-challenge")
        .and_then(|value| value.to_str().ok());
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if let Some(challenge) = challenge.filter(|text| text.len() <= 64 && text.chars().all(is_plain))
        && let Ok(value) = HeaderValue::try_from(format!("response {challenge}"))
    {
        answer.insert("x-tailscale-response", value);
    }
    (StatusCode::NO_CONTENT, answer)
}

/// Accepts connections until the coordinator stops.
pub(crate) async fn listen(
    control: Arc<Control>,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    permits: Permits,
) {
    let mut told_of_limit: Option<Instant> = None;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = control.stop.cancelled() => return,
        };
        let (socket, source) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(permit) = permits.admit(source.ip()) else {
            if told_of_limit.is_none_or(|at| at.elapsed() >= LIMIT_LOG_INTERVAL) {
                told_of_limit = Some(Instant::now());
                tracing::warn!(%source, "too many connections: further ones are closed until some end");
            }
            continue;
        };
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%source, %error, "small packets may be delayed");
        }
        let (stop, router, tls) = (control.stop.clone(), router.clone(), tls.clone());
        control.tasks.spawn(async move {
            match tls {
                None => serve(&stop, socket, router, source, permit).await,
                Some(tls) => match timeout(HEADER_TIME, tls.accept(socket)).await {
                    Ok(Ok(socket)) => serve(&stop, socket, router, source, permit).await,
                    Ok(Err(error)) => tracing::debug!(%source, %error, "TLS handshake failed"),
                    Err(_) => tracing::debug!(%source, "TLS handshake took too long"),
                },
            }
        });
    }
}

async fn serve<S>(stop: &CancellationToken, socket: S, router: Router, source: SocketAddr, permit: Permit)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // The permit goes with the connection: behind an upgrade it belongs to the Noise connection.
    let router = router
        .layer(middleware::from_fn(settle))
        .layer(Extension(permit))
        .layer(Extension(Source::from(source.ip())));
    if let Err(error) = serve_connection(stop, socket, router).await {
        tracing::debug!(%source, %error, "connection ended");
    }
}

/// A whole request shows what a connection is for, unless it is a Noise connection, which has to go on.
async fn settle(Extension(permit): Extension<Permit>, request: Request, next: Next) -> Response {
    if request.uri().path() != TS2021 {
        permit.settle();
    }
    next.run(request).await
}

/// Answers the requests of one connection until it ends, or `stop`.
///
/// # Errors
/// What ended the connection before its time: bytes that are not HTTP, headers that are too long or come too slowly, or the network.
pub(crate) async fn serve_connection<S>(
    stop: &CancellationToken,
    socket: S,
    router: Router,
) -> Result<(), hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_buf_size(HEADER_LIMIT)
        .serve_connection(TokioIo::new(socket), TowerToHyperService::new(router))
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    }
}
