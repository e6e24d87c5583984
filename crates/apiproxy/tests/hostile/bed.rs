//! A proxy on loopback between a raw client and the scripted API server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tailwharf_apiproxy::{FileSettings, Output, Proxy, Settings, SystemGroups, UpstreamSettings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::backend::{Backend, Reply, Seen, answer};
use crate::shared::certificate::Shown;
use crate::shared::{Fake, Loopback};
pub(crate) use crate::shared::{NAME, alice, device, groups, tagged};

/// Long enough for a machine under load; a test that hits it has failed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A proxy between a client and an API server.
pub(crate) struct Bed {
    pub(crate) backend: Backend,
    pub(crate) tailnet: Arc<Fake>,
    pub(crate) proxy: Proxy,
    pub(crate) addr: SocketAddr,
    /// The same over TLS.
    pub(crate) secured: SocketAddr,
    pub(crate) stop: CancellationToken,
    audit: std::path::PathBuf,
}

impl Bed {
    /// Alice calls, and the API server answers `{}`.
    pub(crate) async fn start() -> Self {
        Self::answering(|_| answer("200 OK", "", "{}")).await
    }

    pub(crate) async fn answering(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::tuned(script, |_| {}).await
    }

    pub(crate) async fn tuned(
        script: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
        tune: impl FnOnce(&mut Settings),
    ) -> Self {
        let backend = Backend::start(script).await;
        let audit = backend.ca.with_file_name("audit.log");
        let mut settings = Settings {
            upstream: UpstreamSettings {
                host: "127.0.0.1".to_owned(),
                port: backend.addr.port(),
                ca_file: backend.ca.clone(),
                token_file: Some(backend.token.clone()),
            },
            system_groups: SystemGroups::default(),
            extras: true,
            streams_per_user: 4,
            review_interval: Duration::from_millis(50),
            audit: Some(Output::File(FileSettings {
                path: audit.clone(),
                max_bytes: u64::MAX,
                keep: 1,
            })),
            webhook: None,
        };
        tune(&mut settings);
        let tailnet = Arc::new(Fake::default());
        tailnet.set(Some(alice()));
        let proxy = Proxy::new(settings, tailnet.clone()).unwrap();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let (serving, keeping, told) = (proxy.clone(), proxy.clone(), stop.clone());
        tokio::spawn(async move { serving.serve(Loopback(listener), None).await.unwrap() });
        tokio::spawn(async move { keeping.maintain(told).await });
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let secured = listener.local_addr().unwrap();
        let (serving, shown) = (proxy.clone(), Arc::new(Shown::new()));
        tokio::spawn(async move { serving.serve(Loopback(listener), Some(shown)).await.unwrap() });
        Self {
            backend,
            tailnet,
            proxy,
            addr,
            secured,
            stop,
            audit,
        }
    }

    pub(crate) async fn connect(&self) -> Client {
        Client(TcpStream::connect(self.addr).await.unwrap(), Vec::new())
    }

    /// Sends bytes on a new connection and reads the answer.
    pub(crate) async fn send(&self, request: impl AsRef<[u8]>) -> Response {
        let mut client = self.connect().await;
        client.write(request).await;
        client.response().await
    }

    /// Sends a GET with more header lines, each with its CR LF.
    pub(crate) async fn get(&self, path: &str, headers: &str) -> Response {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: {NAME}\r\n{headers}\r\n"))
            .await
    }

    /// Checks that a request is refused with a `Status` and that nothing has arrived at the API server.
    pub(crate) async fn refused(&self, request: impl AsRef<[u8]>, code: u16) -> Value {
        let before = self.backend.seen().len();
        let shown = String::from_utf8_lossy(request.as_ref())
            .chars()
            .take(200)
            .collect::<String>();
        let response = self.send(request).await;
        assert_eq!(response.code, code, "{shown:?} {response:?}");
        let status = response.status();
        assert_eq!(status["code"], code);
        assert_eq!(
            self.backend.seen().len(),
            before,
            "{shown:?} went on to the API server"
        );
        status
    }

    /// The audit lines so far whose stage is the last.
    pub(crate) fn audit(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.audit).unwrap();
        let lines = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line["stage"] == "ResponseComplete").collect()
    }
}

/// What the client got.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) code: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Response {
    /// The body as a `Status` of Kubernetes.
    pub(crate) fn status(&self) -> Value {
        let status: Value =
            serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        assert_eq!(status["kind"], "Status", "{self:?}");
        assert_eq!(status["status"], "Failure");
        status
    }

    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        let mut values = lines.filter(|(known, _)| known.eq_ignore_ascii_case(name));
        values.next().map(|(_, value)| value.to_owned())
    }
}

/// A connection that says exactly what it is told.
pub(crate) struct Client(pub(crate) TcpStream, Vec<u8>);

impl Client {
    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        // A proxy that has closed already is what some tests are about.
        let _ = self.0.write_all(bytes.as_ref()).await;
    }

    /// Reads a head and, if its length is told, the body.
    pub(crate) async fn response(&mut self) -> Response {
        let head = loop {
            if let Some(at) = self.1.windows(4).position(|part| part == b"\r\n\r\n") {
                break self.1.drain(..at + 4).collect::<Vec<u8>>();
            }
            assert!(
                self.more().await,
                "the connection ended before the answer: {:?}",
                self.1
            );
        };
        let head = String::from_utf8(head).unwrap();
        let mut response = Response {
            code: head.split(' ').nth(1).unwrap().parse().unwrap(),
            head,
            body: Vec::new(),
        };
        if let Some(length) = response.header("content-length") {
            let length: usize = length.parse().unwrap();
            while self.1.len() < length {
                assert!(self.more().await, "the connection ended in the body");
            }
            response.body = self.1.drain(..length).collect();
        }
        response
    }

    /// Reads until `text` has come, and takes everything up to it.
    pub(crate) async fn until(&mut self, text: &str) {
        while !self.1.windows(text.len()).any(|part| part == text.as_bytes()) {
            assert!(
                self.more().await,
                "{text:?} did not come: {:?}",
                String::from_utf8_lossy(&self.1)
            );
        }
        self.1.clear();
    }

    /// Waits for the end of the connection.
    pub(crate) async fn ends(&mut self) {
        while self.more().await {}
    }

    /// Everything up to the end of the connection.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        self.ends().await;
        std::mem::take(&mut self.1)
    }

    async fn more(&mut self) -> bool {
        let mut bytes = vec![0; 4096];
        let read = tokio::time::timeout(DEADLINE, self.0.read(&mut bytes)).await;
        match read.expect("the proxy says nothing and does not close") {
            Ok(length @ 1..) => {
                self.1.extend_from_slice(&bytes[..length]);
                true
            }
            _ => false,
        }
    }
}

/// Waits until something is so.
pub(crate) async fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !is() {
        assert!(tokio::time::Instant::now() < deadline, "never true: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
