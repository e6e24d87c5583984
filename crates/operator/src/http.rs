//! `/healthz`, `/readyz` and `/metrics`.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Probes and a scraper need a few; whoever wants more waits.
const MAX_CONNECTIONS: usize = 32;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// What the pages show.
pub(crate) trait Pages: Send + Sync + 'static {
    /// `Ok` when all caches are filled; else what is missing.
    fn ready(&self) -> Result<(), String>;

    /// OpenMetrics text.
    fn metrics(&self) -> String;
}

/// Serves until `stop`.
pub(crate) async fn serve(listener: TcpListener, pages: Arc<impl Pages>, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = async {
                let place = places.clone().acquire_owned().await;
                (listener.accept().await, place)
            } => accepted,
            () = stop.cancelled() => return,
        };
        let (Ok((stream, _)), Ok(place)) = accepted else {
            // Out of file descriptors, most likely: others have to close theirs first.
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let pages = pages.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let response = answer(pages.as_ref(), &request);
                async move { Ok::<_, Infallible>(response) }
            });
            // A peer that leaves early is its own affair.
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(16 << 10)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            drop(place);
        });
    }
}

fn answer(pages: &impl Pages, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return page(
            StatusCode::METHOD_NOT_ALLOWED,
            "text/plain",
            "use GET\n".to_owned(),
        );
    }
    match request.uri().path() {
        "/healthz" => page(StatusCode::OK, "text/plain", "ok\n".to_owned()),
        "/readyz" => match pages.ready() {
            Ok(()) => page(StatusCode::OK, "text/plain", "ok\n".to_owned()),
            Err(missing) => page(StatusCode::SERVICE_UNAVAILABLE, "text/plain", missing + "\n"),
        },
        "/metrics" => page(
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            pages.metrics(),
        ),
        _ => page(
            StatusCode::NOT_FOUND,
            "text/plain",
            "try /healthz, /readyz or /metrics\n".to_owned(),
        ),
    }
}

fn page(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static(content_type),
    );
    response
}
