//! One request: from the client to a backend and back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, UPGRADE};
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::TrySendError;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tailwharf_http::hop::{self, Target};
use tailwharf_http::relay;
use tokio::time::timeout;
use tracing::debug;

use super::body::{Asked, Reply};
use super::caller::Caller;
use super::log::Entry;
use super::pages::{moved, page};
use super::router::Found;
use super::site::{Site, Sites};
use super::upstream::{ConnectError, Http1, Ready, Upstream};
use crate::backend::BackendError;
use crate::carrier::Carrier;
use crate::limits::Permit;

/// How often a request is tried on connections that turn out to be closed.
const ATTEMPTS: usize = 4;

/// Answers the requests of one connection.
pub(super) struct Handler {
    pub(super) sites: Arc<Sites>,
    pub(super) carrier: Arc<Carrier>,
    pub(super) caller: Arc<Caller>,
    /// The connection is of port 80.
    pub(super) plain: bool,
    /// The connection's room, also after it has left HTTP.
    pub(super) permit: Arc<Permit>,
}

/// A request that is answered by a page of ours.
struct Refusal {
    status: StatusCode,
    sentence: String,
}

impl Refusal {
    fn new(status: StatusCode, sentence: impl Into<String>) -> Self {
        Self {
            status,
            sentence: sentence.into(),
        }
    }
}

/// A request that goes to a backend.
struct Journey<'a> {
    handler: &'a Handler,
    site: &'a Site,
    upstream: &'a Upstream,
    target: &'a Target,
    /// The client's side of the connection once it has left HTTP.
    client: Option<OnUpgrade>,
}

impl Handler {
    /// The answer to a request.
    pub(super) async fn answer(&self, request: Request<Incoming>) -> Response<Reply> {
        let counters = &self.carrier.metrics.web;
        let site = self.sites.current();
        let headers = page_headers(request.headers());
        let target = match Target::of(&request) {
            Ok(target) => target,
            Err(error) => {
                counters.malformed.increment();
                counters.answered(StatusCode::BAD_REQUEST);
                let sentence = format!("Bad request: {error}.");
                let mut response = page(StatusCode::BAD_REQUEST, &sentence, &headers);
                if request.version() <= Version::HTTP_11 {
                    // Where the next request begins is as doubtful.
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(CONNECTION, close);
                }
                return response;
            }
        };
        let host = target.host();
        let mut entry = site.access_log.then(|| {
            let (caller, method) = (self.caller.clone(), request.method().clone());
            let path = request
                .uri()
                .path_and_query()
                .map_or("", |target| target.as_str());
            Box::new(Entry::new(
                self.carrier.identity.clone(),
                caller,
                method,
                host.clone(),
                path,
            ))
        });
        let (upstream, answer) = self.dispatch(&site, request, &target, &host).await;
        let response = answer.unwrap_or_else(|refusal| page(refusal.status, &refusal.sentence, &headers));
        counters.answered(response.status());
        if let Some(entry) = &mut entry {
            entry.answered(response.status(), upstream.map(|upstream| upstream.name.clone()));
        }
        response.map(|body| body.logged(entry))
    }

    /// Finds who is to answer, and lets it.
    async fn dispatch<'a>(
        &self,
        site: &'a Site,
        request: Request<Incoming>,
        target: &Target,
        host: &str,
    ) -> (Option<&'a Arc<Upstream>>, Result<Response<Reply>, Refusal>) {
        if self.plain && site.redirect {
            let path = request
                .uri()
                .path_and_query()
                .map_or("/", |target| target.as_str());
            let to = format!("https://{}{path}", site.secure_name(host));
            return (None, Ok(moved(&to, request.headers())));
        }
        let found = site.router.find(host, request.uri().path());
        let upstream = match found {
            Found::Backend(position) => site.upstreams.get(position),
            Found::Nothing => None,
            Found::Malformed => {
                self.carrier.metrics.web.malformed.increment();
                let refusal = Refusal::new(StatusCode::BAD_REQUEST, "Bad request: the path is malformed.");
                return (None, Err(refusal));
            }
        };
        let Some(upstream) = upstream else {
            let sentence = format!("No route of {host} leads to this path.");
            return (None, Err(Refusal::new(StatusCode::NOT_FOUND, sentence)));
        };
        let journey = Journey {
            handler: self,
            site,
            upstream,
            target,
            client: None,
        };
        (Some(upstream), journey.go(request).await)
    }
}

/// The headers that decide on the form of a page.
fn page_headers(asked: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Some(accept) = asked.get(http::header::ACCEPT) {
        headers.insert(http::header::ACCEPT, accept.clone());
    }
    headers
}

impl Journey<'_> {
    async fn go(mut self, mut request: Request<Incoming>) -> Result<Response<Reply>, Refusal> {
        let metrics = &self.handler.carrier.metrics;
        if let Some(limit) = self.site.max_body
            && declared_length(request.headers()).is_some_and(|length| length > limit)
        {
            metrics.web.too_long.increment();
            return Err(too_long(limit));
        }
        // What speaks HTTP/2 to us and needs its trailers is spoken to in HTTP/2.
        let kind = request
            .headers()
            .get(CONTENT_TYPE)
            .map_or(&b""[..], HeaderValue::as_bytes);
        let grpc = request.version() == Version::HTTP_2 && kind.starts_with(b"application/grpc");
        let upgrade = request.version() == Version::HTTP_11 && hop::upgrade(request.headers()).is_some();
        if upgrade {
            self.client = Some(hyper::upgrade::on(&mut request));
        }
        let caller = &self.handler.caller;
        let mut request = request.map(|body| Asked::new(body, self.site.max_body, metrics.clone()));
        let verdict = request.body().verdict();
        let mut attempt = 1;
        loop {
            let ready = self.upstream.connect(caller.address(), grpc, upgrade).await;
            let ready = ready.map_err(|error| self.unreachable(&error))?;
            self.note(Ok(()));
            let version = match ready {
                Ready::Http1(_) => Version::HTTP_11,
                Ready::Http2(..) => Version::HTTP_2,
            };
            hop::prepare(&mut request, self.target, version).map_err(|error| {
                metrics.web.malformed.increment();
                Refusal::new(StatusCode::BAD_REQUEST, format!("Bad request: {error}."))
            })?;
            // After what `Connection` names has been taken out: a client must not name what we say of it.
            caller.introduce(request.headers_mut(), self.target.authority.as_str());
            let (again, last) = (spare(&request, &ready), attempt == ATTEMPTS);
            let sent = timeout(self.site.response_timeout, self.send(ready, request)).await;
            let error = match sent {
                Err(_) => return Err(self.too_slow()),
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(error)) => error,
            };
            if verdict.broken.load(Ordering::Relaxed) {
                metrics.web.malformed.increment();
                let sentence = "Bad request: the body is malformed, or ends early.";
                return Err(Refusal::new(StatusCode::BAD_REQUEST, sentence));
            }
            if verdict.too_long.load(Ordering::Relaxed) {
                metrics.web.too_long.increment();
                return Err(too_long(self.site.max_body.unwrap_or_default()));
            }
            let mut error = *error;
            request = match (error.take_message(), again) {
                (Some(unsent), _) if !last => unsent,
                (None, Some(again)) if !last => again.map(|()| Asked::empty(metrics.clone())),
                _ => return Err(self.broken(error.error())),
            };
            attempt += 1;
        }
    }

    /// Sends the request on a connection and turns the answer into ours.
    async fn send(
        &mut self,
        ready: Ready,
        request: Request<Asked>,
    ) -> Result<Response<Reply>, Box<TrySendError<Request<Asked>>>> {
        let metrics = self.handler.carrier.metrics.clone();
        match ready {
            Ready::Http2(mut sender, active) => {
                let response = sender.try_send_request(request).await.map_err(Box::new)?;
                let mut response = response.map(|body| Reply::http2(body, active, metrics));
                clean(response.headers_mut());
                Ok(response)
            }
            Ready::Http1(mut connection) => {
                let response = connection.send(request).await?;
                if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    return Ok(self.switch(connection, response));
                }
                let mut response = response.map(|body| Reply::http1(connection, body, metrics));
                *response.version_mut() = Version::HTTP_11;
                clean(response.headers_mut());
                Ok(response)
            }
        }
    }

    /// Lets client and backend talk directly from here on.
    fn switch(&mut self, connection: Box<Http1>, mut response: Response<Incoming>) -> Response<Reply> {
        let (Some(client), Some(protocol)) = (self.client.take(), response.headers().get(UPGRADE).cloned())
        else {
            let sentence = format!(
                "The backend {} changed the protocol without being asked to.",
                self.upstream.name
            );
            return page(StatusCode::BAD_GATEWAY, &sentence, &HeaderMap::new());
        };
        let backend = hyper::upgrade::on(&mut response);
        let carrier = self.handler.carrier.clone();
        let permit = self.handler.permit.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let _upgraded = carrier.metrics.web.upgraded.enter();
            let talk = async {
                let ((), backend, client) = tokio::join!(connection.ended(), backend, client);
                let (client, backend) = (TokioIo::new(client?), TokioIo::new(backend?));
                let relayed = relay(client, backend, carrier.limits.tcp_idle).await;
                if let Ok(relayed) = relayed {
                    let traffic = &carrier.metrics.traffic;
                    traffic.to_backend.fetch_add(relayed.forth, Ordering::Relaxed);
                    traffic.from_backend.fetch_add(relayed.back, Ordering::Relaxed);
                }
                Ok::<_, hyper::Error>(())
            };
            tokio::select! {
                () = carrier.end.cancelled() => {}
                talked = talk => if let Err(error) = talked {
                    debug!(identity = %carrier.identity, %error, "a connection could not leave HTTP");
                },
            }
        });
        let mut response = response.map(|_| Reply::page(bytes::Bytes::new()));
        clean(response.headers_mut());
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
        response
    }

    /// Notes how the connection to the backend went.
    fn note(&self, outcome: Result<(), BackendError>) {
        if self.upstream.note(outcome) {
            self.handler.carrier.backends_changed();
        }
    }

    fn unreachable(&self, error: &ConnectError) -> Refusal {
        self.handler.carrier.metrics.web.failed.increment();
        let name = &self.upstream.name;
        match error {
            ConnectError::NoAddress => {
                let problem = self
                    .upstream
                    .problem
                    .as_deref()
                    .unwrap_or("It has no ready endpoint.");
                let sentence = format!("The backend {name} cannot be asked. {problem}");
                Refusal::new(StatusCode::SERVICE_UNAVAILABLE, sentence)
            }
            ConnectError::Refused(refused) => {
                self.note(Err(refused.clone()));
                // Addresses inside of the cluster are no business of whoever asks.
                match refused {
                    BackendError::TimedOut(_) => Refusal::new(
                        StatusCode::GATEWAY_TIMEOUT,
                        format!("The backend {name} does not answer."),
                    ),
                    // A Service without a ready endpoint refuses connections.
                    BackendError::Refused(..) | BackendError::None => Refusal::new(
                        StatusCode::SERVICE_UNAVAILABLE,
                        format!(
                            "The backend {name} takes no connections: its Service may have no ready endpoint."
                        ),
                    ),
                    BackendError::Unresolved(_) | BackendError::Target(_) => Refusal::new(
                        StatusCode::BAD_GATEWAY,
                        format!("The backend {name} cannot be found."),
                    ),
                }
            }
            ConnectError::Handshake(_) => Refusal::new(
                StatusCode::BAD_GATEWAY,
                format!("The backend {name} takes connections, but {error}."),
            ),
        }
    }

    fn too_slow(&self) -> Refusal {
        self.handler.carrier.metrics.web.failed.increment();
        let seconds = self.site.response_timeout.as_secs();
        let name = &self.upstream.name;
        let sentence = format!("The backend {name} did not begin an answer within {seconds} seconds.");
        Refusal::new(StatusCode::GATEWAY_TIMEOUT, sentence)
    }

    fn broken(&self, error: &hyper::Error) -> Refusal {
        self.handler.carrier.metrics.web.failed.increment();
        let name = &self.upstream.name;
        debug!(identity = %self.handler.carrier.identity, backend = %name, error = error as &dyn std::error::Error, "a backend gave no answer");
        let sentence = format!("The backend {name} broke off before its answer, or its answer is not HTTP.");
        Refusal::new(StatusCode::BAD_GATEWAY, sentence)
    }
}

/// The head of a request that may be made a second time: when the backend closes a connection at the moment in which it is used again,
/// nobody knows whether it saw the first.
fn spare(request: &Request<Asked>, ready: &Ready) -> Option<Request<()>> {
    let used = matches!(ready, Ready::Http1(connection) if connection.used);
    let harmless = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if !used || !harmless || !request.body().is_end_stream() {
        return None;
    }
    let mut again = Request::new(());
    *again.method_mut() = request.method().clone();
    again.uri_mut().clone_from(request.uri());
    *again.version_mut() = request.version();
    again.headers_mut().clone_from(request.headers());
    Some(again)
}

fn declared_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn too_long(limit: u64) -> Refusal {
    let sentence = format!("The body of the request is longer than {limit} bytes.");
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, sentence)
}

/// Takes out what concerns the connection to the backend.
fn clean(headers: &mut HeaderMap) {
    if hop::strip(headers).is_err() {
        headers.remove(CONNECTION);
        // The rest of what concerns one hop goes without the names that could not be read.
        let _ = hop::strip(headers);
    }
}

/// How long a backend may take to begin its answer, if nothing else is said.
pub(super) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(600);
