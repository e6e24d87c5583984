//! What the pod tells about itself over HTTP: `/healthz`, `/readyz`, `/metrics`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use tracing::debug;

use crate::DeviceService;
use crate::membership::Membership;
use crate::metrics::Metrics;

/// Connections served at once.
const CONNECTIONS: usize = 32;
/// Time for the head of a request, and for a whole connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// An identity that this pod hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hosted {
    /// Peers can use it.
    Ready,
    /// Peers cannot use it, or not all of it.
    NotReady {
        /// Reason of the condition `Ready`.
        reason: String,
        /// Its message.
        message: String,
    },
}

#[derive(Debug, Default)]
struct State {
    synced: bool,
    hosted: BTreeMap<Arc<str>, Hosted>,
}

/// What is known of the pod.
#[derive(Debug, Default)]
pub(crate) struct Board(Mutex<State>);

impl Board {
    fn with<T>(&self, read: impl FnOnce(&mut State) -> T) -> T {
        read(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The identities of the pool are known.
    pub(crate) fn set_synced(&self) {
        self.with(|state| state.synced = true);
    }

    /// This pod hosts an identity.
    pub(crate) fn set(&self, name: &Arc<str>, hosted: Hosted) {
        self.with(|state| state.hosted.insert(name.clone(), hosted));
    }

    /// This pod does not host it any more.
    pub(crate) fn remove(&self, name: &str) {
        self.with(|state| state.hosted.remove(name));
    }

    /// Whether the pod can do its work, and a text that tells why not, and which identities are not ready.
    ///
    /// An identity that is not ready does not make the pod so: the reason is most often outside, and the others work.
    #[must_use]
    pub(crate) fn readiness(&self, member: bool) -> (bool, String) {
        self.with(|state| {
            let ready = member && state.synced;
            let mut text = match (member, state.synced) {
                (true, true) => "ok\n",
                (false, _) => "not ready: the member Lease is not held; check the pod's Role and the API server\n",
                (true, false) => "not ready: the identities of the pool are not listed yet; check the pod's Role and the API server\n",
            }
            .to_owned();
            for (name, hosted) in &state.hosted {
                if let Hosted::NotReady { reason, message } = hosted {
                    // Writing to a String cannot fail.
                    let _ = writeln!(text, "identity {name} is not ready: {reason}: {message}");
                }
            }
            (ready, text)
        })
    }

    /// How many identities are hosted, and how many of them are ready.
    #[must_use]
    pub(crate) fn counts(&self) -> (usize, usize) {
        self.with(|state| {
            let ready = state
                .hosted
                .values()
                .filter(|hosted| **hosted == Hosted::Ready)
                .count();
            (state.hosted.len(), ready)
        })
    }
}

/// Answers probes and scrapes.
#[derive(Clone)]
pub(crate) struct Server {
    /// What is known of the pod.
    pub board: Arc<Board>,
    /// Its counters.
    pub metrics: Arc<Metrics>,
    /// Whether it is a member.
    pub membership: watch::Receiver<Membership>,
    /// What runs on its devices besides.
    pub service: Option<Arc<dyn DeviceService>>,
}

impl Server {
    /// Serves until it is dropped.
    pub(crate) async fn serve(self, listener: TcpListener) {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(permit) = room.clone().acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let server = self.clone();
                    tokio::spawn(async move {
                        let _permit = permit;
                        server.connection(stream).await;
                    });
                }
                Err(error) => {
                    debug!(%error, "cannot accept a probe");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn connection(self, stream: TcpStream) {
        let service = service_fn(move |request| {
            let response = self.answer(&request);
            async move { Ok::<_, Infallible>(response) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(16 * 1024)
            .serve_connection(TokioIo::new(stream), service);
        if let Ok(Err(error)) = timeout(CONNECTION_TIMEOUT, connection).await {
            debug!(%error, "a probe broke off");
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "use GET\n".to_owned());
        }
        match request.uri().path() {
            "/healthz" => text(StatusCode::OK, "ok\n".to_owned()),
            "/readyz" => {
                let member = self.membership.borrow().view.tenure.is_some();
                let (ready, why) = self.board.readiness(member);
                text(
                    if ready {
                        StatusCode::OK
                    } else {
                        StatusCode::SERVICE_UNAVAILABLE
                    },
                    why,
                )
            }
            "/metrics" => {
                let (hosted, ready) = self.board.counts();
                let mut lines = self.metrics.render(hosted, ready);
                if let Some(service) = &self.service {
                    service.render(&mut lines);
                }
                text(StatusCode::OK, lines)
            }
            _ => text(
                StatusCode::NOT_FOUND,
                "try /healthz, /readyz or /metrics\n".to_owned(),
            ),
        }
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let plain = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_tells_why() {
        let board = Board::default();
        assert!(!board.readiness(false).0);
        assert!(board.readiness(true).1.contains("not listed yet"));
        board.set_synced();
        assert_eq!(board.readiness(true), (true, "ok\n".to_owned()));
        assert!(board.readiness(false).1.contains("member Lease"));

        let waits = Hosted::NotReady {
            reason: "ApprovalPending".to_owned(),
            message: "Approve it.".to_owned(),
        };
        board.set(&"ts-a-bcdfg".into(), waits);
        board.set(&"ts-b-bcdfg".into(), Hosted::Ready);
        let text = "ok\nidentity ts-a-bcdfg is not ready: ApprovalPending: Approve it.\n";
        assert_eq!(board.readiness(true), (true, text.to_owned()));
        assert_eq!(board.counts(), (2, 1));
    }
}
