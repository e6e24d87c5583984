//! The peer API: HTTP/1.1 for peers, on a port of the node's own addresses that the node announces.
//!
//! The packet filter lets every visible peer connect here, so each request is judged by who sends it. The head of the first request is read here, not by
//! `hyper`: that of a Funnel gateway turns the connection into one from the internet, which needs no word of the gateway for it.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Body;
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tailwharf_node_core::WhoIs;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::api::SocketError;
use crate::app_connector::Connector;
use crate::control::Announced;
use crate::dns::Resolver;
use crate::engine::Engine;
use crate::funnel::{self, Funnel, IngressRequest};
use crate::tcp::{TcpListener, TcpStream};

/// The first port that is tried.
const FIRST_PORT: u16 = 41_080;
/// How many ports are tried.
const PORTS: u16 = 64;
/// Connections at the same time; more are closed.
const MAX_CONNECTIONS: usize = 32;
/// How long the head of a request may take.
const HEADER_TIME: Duration = Duration::from_secs(10);
/// Bytes of the head of a request, and how many headers it may have.
const MAX_HEAD: usize = 16 << 10;
const MAX_HEADERS: usize = 64;
/// How long a connection may live.
const CONNECTION_TIME: Duration = Duration::from_secs(60);
/// The longest DNS message.
const MAX_QUERY: usize = 65_535;
/// The media type of a DNS message.
const DNS_MESSAGE: &str = "application/dns-message";

/// A listening peer API.
pub(crate) struct PeerApi {
    engine: Arc<Engine>,
    resolver: Resolver,
    announced: watch::Receiver<Announced>,
    funnel: Funnel,
    connector: Connector,
    listener: TcpListener,
}

impl PeerApi {
    /// Listens on a free port, and announces it.
    pub(crate) fn bind(
        engine: &Arc<Engine>,
        resolver: Resolver,
        announced: &watch::Sender<Announced>,
        funnel: Funnel,
        connector: Connector,
    ) -> Result<Self, SocketError> {
        let mut ports = FIRST_PORT..FIRST_PORT + PORTS;
        let listener = ports
            .find_map(|port| TcpListener::bind(engine, port).ok())
            .ok_or(SocketError::NoFreePort)?;
        let port = listener.port();
        engine.with_core(|core, _| core.set_peer_api_port(Some(port)));
        announced.send_modify(|announced| announced.peer_api = Some(port));
        Ok(Self {
            engine: engine.clone(),
            resolver,
            announced: announced.subscribe(),
            funnel,
            connector,
            listener,
        })
    }

    /// Serves peers until the node ends.
    pub(crate) async fn run(self) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let api = Arc::new(self);
        let mut connections = JoinSet::new();
        while let Ok((stream, from)) = api.listener.accept().await {
            while connections.try_join_next().is_some() {}
            let Ok(place) = places.clone().try_acquire_owned() else {
                continue;
            };
            let api = api.clone();
            connections.spawn(async move {
                let _place = place;
                if timeout(CONNECTION_TIME, api.serve(stream, from)).await.is_err() {
                    tracing::debug!(%from, "a connection to the peer API took too long");
                }
            });
        }
    }

    async fn serve(&self, mut stream: TcpStream, from: SocketAddr) {
        let local = stream.local_addr().ip();
        let (read, ingress) = match timeout(HEADER_TIME, read_head(&mut stream)).await {
            Ok(Ok(head)) => head,
            Ok(Err(error)) => {
                tracing::debug!(%from, %error, "a connection to the peer API broke off");
                return;
            }
            Err(_) => return,
        };
        if let Some((request, end)) = ingress {
            self.pass_on(&request, read.slice(end..), stream, from, local)
                .await;
            return;
        }
        let (reader, writer) = tokio::io::split(stream);
        let stream = tokio::io::join(io::Cursor::new(read).chain(reader), writer);
        let service = service_fn(|request| async move {
            let who = self
                .engine
                .with_core(|core, _| core.whois(from.ip(), Some(local)));
            Ok::<_, Infallible>(match who {
                Some(who) => self.answer(request, from, local, &who).await,
                // Its key or profile left the map while the connection was open.
                None => text(StatusCode::FORBIDDEN, "unknown peer"),
            })
        });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIME)
            .serve_connection(TokioIo::new(stream), service)
            .await;
        if let Err(error) = served {
            tracing::debug!(%from, %error, "a connection to the peer API broke off");
        }
    }

    /// Passes a connection from the internet to the application that waits for it.
    async fn pass_on(
        &self,
        request: &Request<()>,
        early: Bytes,
        mut stream: TcpStream,
        from: SocketAddr,
        local: IpAddr,
    ) {
        let refused = match self.judge_ingress(request, from, local) {
            Ok(ingress) => match self.funnel.take(&ingress, early, stream).await {
                Ok(()) => return,
                Err((given_back, status, words)) => {
                    stream = given_back;
                    (status, words)
                }
            },
            Err(refused) => refused,
        };
        let (status, words) = refused;
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{words}\n",
            words.len() + 1
        );
        tracing::debug!(%from, words, "a connection from the internet was turned down");
        let _ = stream.write_all(answer.as_bytes()).await;
        let _ = stream.shutdown().await;
    }

    /// What a gateway asks for, if it is one and may ask for it.
    fn judge_ingress(
        &self,
        request: &Request<()>,
        from: SocketAddr,
        local: IpAddr,
    ) -> Result<IngressRequest, (StatusCode, &'static str)> {
        let who = self
            .engine
            .with_core(|core, _| core.whois(from.ip(), Some(local)));
        let is_gateway = who.is_some_and(|who| who.cap_map.contains_key(funnel::GATEWAY));
        if !is_gateway || !is_for_peers(request, local) {
            return Err((
                StatusCode::FORBIDDEN,
                "the tailnet policy does not let you pass connections on to this node",
            ));
        }
        let ingress = IngressRequest::read(request)?;
        let status = self.engine.watch_status();
        let status = status.borrow();
        let mut names = status.fqdn.iter().chain(&status.cert_domains);
        if names.any(|name| name.eq_ignore_ascii_case(&ingress.host)) {
            Ok(ingress)
        } else {
            Err((StatusCode::FORBIDDEN, "that is not a name of this node"))
        }
    }

    async fn answer<B>(
        &self,
        request: Request<B>,
        from: SocketAddr,
        local: IpAddr,
        who: &WhoIs,
    ) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
    {
        if !is_for_peers(&request, local) {
            return text(StatusCode::FORBIDDEN, "invalid peer API request");
        }
        match request.uri().path() {
            "/" => self.greet(who),
            "/dns-query" if !self.announced.borrow().resolves() => {
                text(StatusCode::NOT_FOUND, "this node resolves no names for others")
            }
            "/dns-query" if !self.may_resolve(who, from.ip()) => text(
                StatusCode::FORBIDDEN,
                "the tailnet policy does not let you use this exit node",
            ),
            "/dns-query" => self.resolve(request).await,
            _ => text(StatusCode::NOT_FOUND, "unknown path"),
        }
    }

    fn greet(&self, who: &WhoIs) -> Response<Full<Bytes>> {
        let status = self.engine.watch_status();
        let status = status.borrow();
        let own = status.fqdn.as_deref().unwrap_or_default();
        let greeting = format!(
            "Hello, {}.\nThis is {own}, a tailwharf node. You come from {}.",
            who.user.display_name, who.node.name
        );
        text(StatusCode::OK, &greeting)
    }

    /// Names are resolved for those who may use this node as their exit, and for its owner.
    fn may_resolve(&self, who: &WhoIs, source: IpAddr) -> bool {
        self.engine.with_core(|core, _| {
            let netmap = core.netmap();
            let is_owner = netmap.self_node().is_some_and(|own| {
                own.tags.is_empty() && who.node.tags.is_empty() && own.user == who.node.user
            });
            is_owner || netmap.filter().admits_to_internet(&who.node, source)
        })
    }

    /// DNS over HTTP (RFC 8484).
    async fn resolve<B>(&self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
    {
        let query = match *request.method() {
            Method::GET => query_parameter(request.uri().query().unwrap_or_default()),
            Method::POST if has_type(&request, DNS_MESSAGE) => {
                let body = Limited::new(request.into_body(), MAX_QUERY).collect().await;
                body.ok().map(|body| body.to_bytes().into())
            }
            Method::POST => {
                return text(
                    StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    "expected application/dns-message",
                );
            }
            _ => return text(StatusCode::METHOD_NOT_ALLOWED, "expected GET or POST"),
        };
        let answer = match query {
            Some(query) => self.resolver.answer_peer(&query).await,
            None => None,
        };
        match answer {
            Some(answer) => {
                self.connector.observe(&answer);
                respond(StatusCode::OK, DNS_MESSAGE, answer.into())
            }
            None => text(StatusCode::BAD_REQUEST, "expected a DNS query"),
        }
    }
}

/// A request of a gateway, and the length of its head.
type IngressHead = (Request<()>, usize);

/// Reads the head of the first request, and understands it if it is one of a gateway. Gives back all bytes that were read.
async fn read_head(stream: &mut TcpStream) -> io::Result<(Bytes, Option<IngressHead>)> {
    let mut read = BytesMut::with_capacity(1024);
    loop {
        if stream.read_buf(&mut read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut head = httparse::Request::new(&mut headers);
        let end = match head.parse(&read) {
            Ok(httparse::Status::Complete(end)) => end,
            Ok(httparse::Status::Partial) if read.len() < MAX_HEAD => continue,
            // It is not for us to say what is wrong with it.
            Ok(httparse::Status::Partial) | Err(_) => return Ok((read.freeze(), None)),
        };
        let request = understand(&head).filter(funnel::is_ingress);
        return Ok((read.freeze(), request.map(|request| (request, end))));
    }
}

fn understand(head: &httparse::Request<'_, '_>) -> Option<Request<()>> {
    let mut request = Request::builder().method(head.method?).uri(head.path?);
    for header in head.headers.iter() {
        request = request.header(header.name, header.value);
    }
    request.body(()).ok()
}

/// Requests of browsers, and for other hosts, are none of a peer: a web page may have caused them.
fn is_for_peers<B>(request: &Request<B>, local: IpAddr) -> bool {
    let headers = request.headers();
    if headers.contains_key(header::ORIGIN) || headers.contains_key(header::REFERER) {
        return false;
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    host.is_some_and(|host| {
        let address = host
            .parse::<SocketAddr>()
            .map(|address| address.ip())
            .or_else(|_| host.trim_matches(['[', ']']).parse::<IpAddr>());
        host == "peer" || address == Ok(local)
    })
}

fn has_type<B>(request: &Request<B>, media_type: &str) -> bool {
    let value = request.headers().get(header::CONTENT_TYPE);
    value.is_some_and(|value| value.as_bytes() == media_type.as_bytes())
}

fn query_parameter(query: &str) -> Option<Vec<u8>> {
    let (_, text) = url::form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "dns")?;
    URL_SAFE_NO_PAD.decode(text.as_bytes()).ok()
}

fn text(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", format!("{text}\n").into())
}

fn respond(status: StatusCode, media_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_peers_are_answered() {
        let local: IpAddr = "fd7a:115c:a1e0::1".parse().unwrap();
        let request = |headers: &[(&str, &str)]| {
            let mut request = Request::get("/");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            is_for_peers(&request.body(()).unwrap(), local)
        };
        for host in ["peer", "[fd7a:115c:a1e0::1]:41080", "[fd7a:115c:a1e0::1]"] {
            assert!(request(&[("host", host)]), "{host}");
        }
        for host in ["100.64.0.1:41080", "node.tail1.ts.net:41080", "peer.example", ""] {
            assert!(!request(&[("host", host)]), "{host}");
        }
        assert!(!request(&[]));
        assert!(!request(&[("host", "peer"), ("origin", "https://evil.example")]));
        assert!(!request(&[("host", "peer"), ("referer", "https://evil.example")]));
    }

    #[test]
    fn queries_in_urls() {
        assert_eq!(query_parameter("x=1&dns=AAEC"), Some(vec![0, 1, 2]));
        assert_eq!(query_parameter("dns=not base64!"), None);
        assert_eq!(query_parameter(""), None);
    }
}
