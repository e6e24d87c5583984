//! A web server, backends, and clients that write bytes.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tailwharf_kube_types::identity::web::Web as Spec;
use tailwharf_node::{SocketError, WhoIs};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::carrier::Carrier;
use crate::certificates::Loaded;
use crate::certificates::tests::certificate;
use crate::limits::{Limits, Room};
use crate::sockets::Sockets;
use crate::web::{Callers, WebServer};

pub(super) const DEVICE: &str = "web.tail1.ts.net";
/// Longer than anything here takes on a busy machine.
pub(super) const LIMIT: Duration = Duration::from_secs(30);

/// Ports of the node, as addresses on loopback.
#[derive(Clone, Default)]
pub(super) struct Loopback(Arc<Mutex<HashMap<u16, SocketAddr>>>);

impl Sockets for Loopback {
    type Tcp = TcpListener;
    type Udp = UdpSocket;

    fn listen_tcp(&self, port: u16) -> Result<TcpListener, SocketError> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        self.0
            .lock()
            .unwrap()
            .insert(port, listener.local_addr().unwrap());
        Ok(TcpListener::from_std(listener).unwrap())
    }

    fn bind_udp(&self, port: u16) -> Result<UdpSocket, SocketError> {
        Err(SocketError::PortInUse(port))
    }

    fn caller(&self, _: SocketAddr) -> Option<crate::proxy_protocol::Caller> {
        None
    }

    fn own(&self, _: IpAddr) -> Option<IpAddr> {
        None
    }
}

/// Where connections from the internet are accepted, beside the ports of the node.
const PUBLIC: u16 = 0;

impl Callers for Loopback {
    type Public = TcpListener;

    fn who(&self, _: SocketAddr) -> Option<WhoIs> {
        None
    }

    fn listen_public(&self, _: u16) -> Result<TcpListener, SocketError> {
        self.listen_tcp(PUBLIC)
    }
}

pub(super) struct Bed {
    pub(super) node: Loopback,
    pub(super) carrier: Arc<Carrier>,
    pub(super) server: WebServer<Loopback>,
    pub(super) chain: String,
}

impl Bed {
    /// A device that serves the routes of `spec`.
    pub(super) fn new(spec: &Value) -> Self {
        let limits = Limits::default();
        let room = Room::of_identity(&Arc::new(Semaphore::new(limits.connections)), &limits);
        let end = CancellationToken::new();
        let carrier = Carrier::new("ts-web".into(), Arc::default(), Arc::default(), limits, room, end);
        let node = Loopback::default();
        let server = WebServer::new(node.clone(), carrier.clone());
        let (chain, key) = certificate(&[DEVICE]);
        let now = jiff::Timestamp::from_second(1_800_000_000).unwrap();
        let loaded = Loaded::read(chain.as_bytes(), key.as_bytes(), DEVICE, now).unwrap();
        let name = "@".parse().unwrap();
        server.certificates().set([(&name, loaded.key)], Some(DEVICE));
        let mut bed = Self {
            node,
            carrier,
            server,
            chain,
        };
        bed.apply(spec);
        bed
    }

    pub(super) fn apply(&mut self, spec: &Value) {
        let mut spec = spec.clone();
        spec["hosts"] = json!([{"name": "@"}]);
        let spec: Spec = serde_json::from_value(spec).unwrap();
        self.server.apply(&spec, Some(DEVICE));
    }

    pub(super) fn at(&self, port: u16) -> SocketAddr {
        self.node.0.lock().unwrap()[&port]
    }

    /// A connection to port 80.
    pub(super) async fn plain(&self) -> TcpStream {
        TcpStream::connect(self.at(80)).await.unwrap()
    }

    /// A connection to port 443, with the protocol asked for.
    pub(super) async fn tls(&self, protocol: &[u8]) -> tokio_rustls::client::TlsStream<TcpStream> {
        self.tls_to(443, protocol).await
    }

    /// A connection from the internet.
    pub(super) async fn public(&self) -> tokio_rustls::client::TlsStream<TcpStream> {
        self.tls_to(PUBLIC, b"http/1.1").await
    }

    async fn tls_to(&self, port: u16, protocol: &[u8]) -> tokio_rustls::client::TlsStream<TcpStream> {
        use rustls_pki_types::pem::PemObject as _;
        let mut roots = rustls::RootCertStore::empty();
        let root = rustls_pki_types::CertificateDer::from_pem_slice(self.chain.as_bytes()).unwrap();
        roots.add(root).unwrap();
        let mut config = rustls::ClientConfig::builder_with_provider(tailwharf_tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.to_vec()];
        let tcp = TcpStream::connect(self.at(port)).await.unwrap();
        let name = DEVICE.try_into().unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        connector.connect(name, tcp).await.unwrap()
    }

    /// What the server answers to these bytes on port 80 until it closes the connection.
    pub(super) async fn answer(&self, bytes: &[u8]) -> String {
        let mut stream = self.plain().await;
        // It may close before it has read all.
        let _ = stream.write_all(bytes).await;
        read_all(stream).await
    }

    /// The answer to a GET on port 80.
    pub(super) async fn get(&self, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {DEVICE}\r\nConnection: close\r\n\r\n");
        self.answer(request.as_bytes()).await
    }
}

/// Everything up to the end of a stream, or its break.
pub(super) async fn read_all(mut stream: impl tokio::io::AsyncRead + Unpin) -> String {
    let mut all = Vec::new();
    let read = timeout(LIMIT, stream.read_to_end(&mut all)).await;
    let _ = read.expect("the server leaves the connection open");
    String::from_utf8_lossy(&all).into_owned()
}

/// A spec whose one route leads to these addresses.
pub(super) fn to(addresses: &[SocketAddr]) -> Value {
    let addresses: Vec<_> = addresses
        .iter()
        .map(|address| json!({"address": address.ip(), "port": address.port()}))
        .collect();
    json!({
        "http": "Serve",
        "routes": [{"path": "/", "pathType": "Prefix", "backend": "main"}],
        "backends": [{"name": "main", "addresses": addresses}],
    })
}

type Body = BoxBody<Bytes, hyper::Error>;

pub(super) fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed()
}

/// A backend that says its name and what it was asked. `/echo` gives the body back, `/ws` echoes bytes after an upgrade, `/silent` says nothing.
pub(super) async fn backend(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let service =
                    service_fn(
                        move |request| async move { Ok::<_, Infallible>(respond(name, request).await) },
                    );
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                // Clients break off as they like.
                let _ = server
                    .serve_connection_with_upgrades(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    address
}

async fn respond(name: &str, mut request: Request<Incoming>) -> Response<Body> {
    match request.uri().path() {
        "/echo" => Response::new(request.into_body().boxed()),
        "/silent" => std::future::pending().await,
        "/ws" => {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let stream = TokioIo::new(upgrade.await.unwrap());
                let (mut read, mut write) = tokio::io::split(stream);
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
            let mut response = Response::new(full(""));
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let headers = response.headers_mut();
            headers.insert("connection", "upgrade".parse().unwrap());
            headers.insert("upgrade", "websocket".parse().unwrap());
            response
        }
        _ => {
            let mut text = format!(
                "{name}: {} {} {:?}\n",
                request.method(),
                request.uri(),
                request.version()
            );
            for (key, value) in request.headers() {
                text += &format!("{key}: {}\n", String::from_utf8_lossy(value.as_bytes()));
            }
            let body = request
                .into_body()
                .collect()
                .await
                .map_or(0, |body| body.to_bytes().len());
            text += &format!("body: {body}\n");
            Response::builder()
                .header("connection", "x-hop")
                .header("x-hop", "1")
                .header("x-end", "2")
                .body(full(text))
                .unwrap()
        }
    }
}
