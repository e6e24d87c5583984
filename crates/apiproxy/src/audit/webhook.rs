//! Audit lines on their way to a webhook: as lists of events in the form of Kubernetes' own audit webhooks, in their order, each at least once.

use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, RETRY_AFTER};
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tailwharf_node::Backoff;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use url::Url;

use super::AuditError;
use super::queue::Queue;

/// Time for a connection, and for a request with its answer.
const CONNECT: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(30);
/// Pauses after failures: the first, the longest, and the longest that the webhook may ask for.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
const LONGEST: Duration = Duration::from_secs(300);
/// How often lines are offered that the webhook says it cannot read.
const OFFERS: u32 = 5;
/// Longest answer that is read.
const MAX_ANSWER: usize = 64 * 1024;

/// Where audit lines are sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookSettings {
    /// An HTTPS URL.
    pub url: Url,
    /// The certificate authorities (PEM) of the webhook; those of the system if there is none.
    pub ca_file: Option<PathBuf>,
    /// A token to send along, read anew for each request.
    pub token_file: Option<PathBuf>,
    /// A folder of its own for lines that wait.
    pub folder: PathBuf,
    /// Most bytes of lines that wait.
    pub max_bytes: u64,
}

/// Lines were not delivered.
#[derive(Debug, thiserror::Error)]
enum WebhookError {
    #[error("it cannot be reached")]
    Connect(#[source] io::Error),
    #[error("the token in {} cannot be used", path.display())]
    Token {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the exchange broke off")]
    Exchange(#[source] hyper::Error),
    #[error("it does not answer")]
    TimedOut,
    #[error("it answers {status}: {text}")]
    Refused {
        status: StatusCode,
        text: String,
        retry_after: Option<Duration>,
    },
}

impl WebhookError {
    /// Whether the lines themselves are what it does not take.
    fn is_about_content(&self) -> bool {
        matches!(
            self,
            Self::Refused {
                status: StatusCode::BAD_REQUEST
                    | StatusCode::PAYLOAD_TOO_LARGE
                    | StatusCode::UNPROCESSABLE_ENTITY,
                ..
            }
        )
    }
}

/// Failures since the last success.
struct Trouble {
    backoff: Backoff,
    /// Whether the last request failed.
    last: bool,
    /// How often the oldest lines were not wanted.
    offers: u32,
}

impl Trouble {
    fn new((first, longest): (Duration, Duration)) -> Self {
        Self {
            backoff: Backoff::new(first, longest),
            last: false,
            offers: 0,
        }
    }
}

/// Sends what waits in a queue.
#[derive(Debug)]
pub(super) struct Webhook {
    settings: WebhookSettings,
    host: String,
    name: ServerName<'static>,
    tls: Arc<ClientConfig>,
    queue: Arc<Queue>,
    pauses: (Duration, Duration),
    delivered: AtomicU64,
    failed: AtomicU64,
}

impl Webhook {
    pub(super) fn open(settings: WebhookSettings) -> Result<Self, AuditError> {
        let wrong = |why: String| AuditError::Webhook {
            url: settings.url.to_string(),
            why,
        };
        let host = match (settings.url.scheme(), settings.url.host_str()) {
            ("https", Some(host)) => host.trim_matches(['[', ']']).to_owned(),
            _ => return Err(wrong("it is not an https URL".to_owned())),
        };
        let name = ServerName::try_from(host.clone()).map_err(|error| wrong(error.to_string()))?;
        let queue = Queue::open(&settings.folder, settings.max_bytes).map_err(|source| AuditError::Open {
            path: settings.folder.clone(),
            source,
        })?;
        let tls = ClientConfig::builder_with_provider(tailwharf_tls::provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(error.to_string()))?
            .with_root_certificates(roots(&settings).map_err(wrong)?)
            .with_no_client_auth();
        Ok(Self {
            queue: Arc::new(queue),
            tls: Arc::new(tls),
            host,
            name,
            settings,
            pauses: PAUSES,
            delivered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        })
    }

    /// Where lines are put that are to be sent.
    pub(super) fn queue(&self) -> &Arc<Queue> {
        &self.queue
    }

    /// Sends what waits and what comes, until `over`; then what still waits, as long as that succeeds at once.
    pub(super) async fn deliver(&self, over: CancellationToken) {
        let mut connection = None;
        let mut trouble = Trouble::new(self.pauses);
        loop {
            let queue = self.queue.clone();
            let Ok(taken) = tokio::task::spawn_blocking(move || queue.take()).await else {
                // The runtime ends.
                return;
            };
            let pause = match taken {
                Ok(None) if over.is_cancelled() => return,
                Ok(None) => {
                    tokio::select! {
                        () = self.queue.news() => {}
                        () = over.cancelled() => {}
                    }
                    continue;
                }
                Ok(Some((number, lines))) => match self.send(&mut connection, &lines).await {
                    Ok(()) => {
                        self.sent(number, &lines);
                        if trouble.last {
                            tracing::info!(url = %self.settings.url, "the audit webhook takes lines again");
                            trouble = Trouble::new(self.pauses);
                        }
                        continue;
                    }
                    Err(error) => self.refused(number, &error, &mut trouble),
                },
                Err(error) => {
                    tracing::error!(%error, "audit lines that wait for the webhook cannot be read");
                    trouble.backoff.next(&mut rand::thread_rng())
                }
            };
            if over.is_cancelled() {
                return;
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = over.cancelled() => {}
            }
        }
    }

    fn sent(&self, number: u64, lines: &[u8]) {
        let count = lines.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.delivered.fetch_add(count, Ordering::Relaxed);
        self.forget(number, true);
    }

    /// Notes a failure; how long to wait.
    fn refused(&self, number: u64, error: &WebhookError, trouble: &mut Trouble) -> Duration {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let (url, why) = (&self.settings.url, error as &dyn std::error::Error);
        if !std::mem::replace(&mut trouble.last, true) {
            tracing::warn!(%url, error = why, "the audit webhook takes no lines; they wait");
        }
        trouble.offers += u32::from(error.is_about_content());
        if trouble.offers >= OFFERS {
            tracing::error!(%url, error = why, "audit lines are lost: the webhook does not want them");
            trouble.offers = 0;
            self.forget(number, false);
        }
        let own = trouble.backoff.next(&mut rand::thread_rng());
        match error {
            WebhookError::Refused {
                retry_after: Some(pause),
                ..
            } => own.max((*pause).min(LONGEST)),
            _ => own,
        }
    }

    fn forget(&self, number: u64, delivered: bool) {
        if let Err(error) = self.queue.done(number, delivered) {
            tracing::error!(%error, "audit lines that were sent cannot be removed; they will be sent again");
        }
    }

    /// Sends lines, by a connection that stands or a new one.
    async fn send(
        &self,
        connection: &mut Option<SendRequest<Full<Bytes>>>,
        lines: &[u8],
    ) -> Result<(), WebhookError> {
        let body = Bytes::from(event_list(lines));
        if let Some(mut kept) = connection.take()
            && kept.ready().await.is_ok()
        {
            match self.post(&mut kept, body.clone()).await {
                Ok(()) => {
                    *connection = Some(kept);
                    return Ok(());
                }
                // It may have been closed just now.
                Err(WebhookError::Exchange(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let mut fresh = timeout(CONNECT, self.connect())
            .await
            .map_err(|_| WebhookError::TimedOut)??;
        self.post(&mut fresh, body).await?;
        *connection = Some(fresh);
        Ok(())
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, WebhookError> {
        let port = self.settings.url.port_or_known_default().unwrap_or(443);
        let tcp = TcpStream::connect((self.host.as_str(), port))
            .await
            .map_err(WebhookError::Connect)?;
        let stream = tailwharf_tls::connect(tcp, self.tls.clone(), self.name.clone())
            .await
            .map_err(WebhookError::Connect)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(WebhookError::Exchange)?;
        // It ends with the sender.
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn post(&self, sender: &mut SendRequest<Full<Bytes>>, body: Bytes) -> Result<(), WebhookError> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.settings.url[url::Position::BeforePath..url::Position::AfterQuery]
            .parse()
            .unwrap_or_default();
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let authority = &self.settings.url[url::Position::BeforeHost..url::Position::AfterPort];
        if let Ok(host) = HeaderValue::from_str(authority) {
            headers.insert(HOST, host);
        }
        if let Some(token) = self.token().await? {
            headers.insert(AUTHORIZATION, token);
        }
        let exchange = async {
            let (head, body) = sender
                .send_request(request)
                .await
                .map_err(WebhookError::Exchange)?
                .into_parts();
            let text = match Limited::new(body, MAX_ANSWER).collect().await {
                Ok(body) => String::from_utf8_lossy(&body.to_bytes())
                    .chars()
                    .take(200)
                    .collect(),
                Err(_) => String::new(),
            };
            if head.status.is_success() {
                return Ok(());
            }
            let seconds = head
                .headers
                .get(RETRY_AFTER)
                .and_then(|value| value.to_str().ok()?.parse().ok());
            Err(WebhookError::Refused {
                status: head.status,
                text,
                retry_after: seconds.map(Duration::from_secs),
            })
        };
        timeout(ANSWER, exchange)
            .await
            .unwrap_or(Err(WebhookError::TimedOut))
    }

    async fn token(&self) -> Result<Option<HeaderValue>, WebhookError> {
        let Some(path) = &self.settings.token_file else {
            return Ok(None);
        };
        let failed = |source| WebhookError::Token {
            path: path.clone(),
            source,
        };
        let text = tokio::fs::read_to_string(path).await.map_err(failed)?;
        let mut value = HeaderValue::from_str(&format!("Bearer {}", text.trim()))
            .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    /// Appends counters in the text form for Prometheus.
    pub(super) fn render(&self, out: &mut String) {
        let name = "tailwharf_apiserver_proxy_audit_webhook";
        // Writing to a String cannot fail.
        let _ = write!(
            out,
            "# HELP {name}_lines_total Audit lines that the webhook has taken.\n# TYPE {name}_lines_total counter\n{name}_lines_total {}\n\
             # HELP {name}_failures_total Requests to the webhook that failed.\n# TYPE {name}_failures_total counter\n{name}_failures_total {}\n\
             # HELP {name}_waiting_lines Audit lines that wait for the webhook.\n# TYPE {name}_waiting_lines gauge\n{name}_waiting_lines {}\n",
            self.delivered.load(Ordering::Relaxed),
            self.failed.load(Ordering::Relaxed),
            self.queue.waiting(),
        );
    }
}

fn roots(settings: &WebhookSettings) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    match &settings.ca_file {
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        Some(path) => {
            let wrong = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
            for certificate in CertificateDer::pem_file_iter(path).map_err(|error| wrong(&error))? {
                let certificate = certificate.map_err(|error| wrong(&error))?;
                roots.add(certificate).map_err(|error| wrong(&error))?;
            }
        }
    }
    if roots.is_empty() {
        return Err("there is no certificate authority to trust".to_owned());
    }
    Ok(roots)
}

/// Lines of JSON as a list of events.
fn event_list(lines: &[u8]) -> Vec<u8> {
    let mut list = br#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":["#.to_vec();
    let mut events = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    if let Some(first) = events.next() {
        list.extend_from_slice(first);
    }
    for event in events {
        list.push(b',');
        list.extend_from_slice(event);
    }
    list.extend_from_slice(b"]}");
    list
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::path::Path;
    use std::sync::Mutex;
    use std::sync::atomic::AtomicBool;

    use hyper::body::Incoming;
    use hyper::server::conn::http1 as server;
    use hyper::service::service_fn;
    use rustls::ServerConfig;
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    use super::*;

    /// How a receiver answers.
    type Answers = dyn Fn(usize) -> (StatusCode, Duration) + Send + Sync;

    /// A webhook on loopback.
    struct Receiver {
        seen: Arc<Mutex<Vec<u64>>>,
        bad: Arc<AtomicBool>,
        addr: SocketAddr,
        stop: CancellationToken,
    }

    struct Certificate {
        dir: tempfile::TempDir,
        server: Arc<ServerConfig>,
    }

    impl Certificate {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
            std::fs::write(dir.path().join("ca.pem"), made.cert.pem()).unwrap();
            std::fs::write(dir.path().join("token"), "s3cret\n").unwrap();
            let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
            let server = ServerConfig::builder_with_provider(tailwharf_tls::provider())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![made.cert.der().clone()], key)
                .unwrap();
            Self {
                dir,
                server: Arc::new(server),
            }
        }

        fn settings(&self, addr: SocketAddr, folder: &Path) -> WebhookSettings {
            WebhookSettings {
                url: format!("https://localhost:{}/audit?cluster=a", addr.port())
                    .parse()
                    .unwrap(),
                ca_file: Some(self.dir.path().join("ca.pem")),
                token_file: Some(self.dir.path().join("token")),
                folder: folder.to_owned(),
                max_bytes: 1 << 20,
            }
        }
    }

    impl Receiver {
        async fn start(certificate: &Certificate, port: u16, answers: Arc<Answers>) -> Self {
            let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
            let receiver = Self {
                seen: Arc::default(),
                bad: Arc::default(),
                addr: listener.local_addr().unwrap(),
                stop: CancellationToken::new(),
            };
            let (seen, bad, stop) = (receiver.seen.clone(), receiver.bad.clone(), receiver.stop.clone());
            let tls = certificate.server.clone();
            let requests = Arc::new(AtomicU64::new(0));
            tokio::spawn(async move {
                loop {
                    let (stream, _) = tokio::select! {
                        accepted = listener.accept() => accepted.unwrap(),
                        () = stop.cancelled() => return,
                    };
                    let (seen, bad, answers, requests) =
                        (seen.clone(), bad.clone(), answers.clone(), requests.clone());
                    let (tls, stop) = (tls.clone(), stop.clone());
                    tokio::spawn(async move {
                        let stream = tailwharf_tls::accept(stream, tls).await.unwrap();
                        let service = service_fn(|request: Request<Incoming>| {
                            let (code, pause) = answers(requests.fetch_add(1, Ordering::Relaxed) as usize);
                            let (seen, bad) = (seen.clone(), bad.clone());
                            async move {
                                let fits = request.uri() == "/audit?cluster=a"
                                    && request.headers()[AUTHORIZATION] == "Bearer s3cret";
                                bad.fetch_or(!fits, Ordering::Relaxed);
                                let body = request.into_body().collect().await.unwrap().to_bytes();
                                let list: serde_json::Value = serde_json::from_slice(&body).unwrap();
                                assert_eq!(list["kind"], "EventList");
                                sleep(pause).await;
                                if code.is_success() {
                                    let items = list["items"].as_array().unwrap().iter();
                                    seen.lock()
                                        .unwrap()
                                        .extend(items.map(|item| item["n"].as_u64().unwrap()));
                                }
                                let mut response =
                                    http::Response::new(Full::new(Bytes::from_static(b"so be it")));
                                *response.status_mut() = code;
                                Ok::<_, std::convert::Infallible>(response)
                            }
                        });
                        let serving = server::Builder::new().serve_connection(TokioIo::new(stream), service);
                        tokio::select! {
                            _ = serving => {}
                            () = stop.cancelled() => {}
                        }
                    });
                }
            });
            receiver
        }

        fn seen(&self) -> Vec<u64> {
            self.seen.lock().unwrap().clone()
        }

        async fn has(&self, last: u64) {
            let limit = Instant::now() + Duration::from_secs(20);
            while self.seen().last() != Some(&last) {
                assert!(Instant::now() < limit, "the line {last} did not come");
                sleep(Duration::from_millis(5)).await;
            }
            assert!(!self.bad.load(Ordering::Relaxed), "path or token were wrong");
        }
    }

    fn sending(settings: WebhookSettings) -> (Arc<Webhook>, CancellationToken, tokio::task::JoinHandle<()>) {
        let mut webhook = Webhook::open(settings).unwrap();
        webhook.pauses = (Duration::from_millis(2), Duration::from_millis(20));
        let webhook = Arc::new(webhook);
        let over = CancellationToken::new();
        let (theirs, until) = (webhook.clone(), over.clone());
        let task = tokio::spawn(async move { theirs.deliver(until).await });
        (webhook, over, task)
    }

    fn put(webhook: &Webhook, numbers: std::ops::Range<u64>) {
        for number in numbers {
            webhook
                .queue()
                .append(format!("{{\"n\":{number}}}\n").as_bytes())
                .unwrap();
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn lines_come_in_order_through_failures_slowness_and_restarts() {
        let (certificate, folder) = (Certificate::new(), tempfile::tempdir().unwrap());
        let fails = |request| {
            let code = if request < 3 {
                StatusCode::SERVICE_UNAVAILABLE
            } else {
                StatusCode::OK
            };
            (code, Duration::from_millis(2))
        };
        let receiver = Receiver::start(&certificate, 0, Arc::new(fails)).await;
        let (webhook, over, task) = sending(certificate.settings(receiver.addr, folder.path()));
        put(&webhook, 0..500);
        receiver.has(499).await;
        assert_eq!(receiver.seen(), (0..500).collect::<Vec<_>>());
        assert!(webhook.failed.load(Ordering::Relaxed) >= 3);
        // The receiver goes, lines come, this process goes, and both come back.
        receiver.stop.cancel();
        put(&webhook, 500..600);
        over.cancel();
        task.await.unwrap();
        drop(webhook);
        let good = |_| (StatusCode::NO_CONTENT, Duration::ZERO);
        let port = receiver.addr.port();
        let limit = Instant::now() + Duration::from_secs(10);
        while TcpListener::bind(("127.0.0.1", port)).await.is_err() {
            assert!(Instant::now() < limit, "the port is not free");
            sleep(Duration::from_millis(5)).await;
        }
        let receiver = Receiver::start(&certificate, port, Arc::new(good)).await;
        let (webhook, over, task) = sending(certificate.settings(receiver.addr, folder.path()));
        put(&webhook, 600..700);
        receiver.has(699).await;
        over.cancel();
        task.await.unwrap();
        let mut seen = receiver.seen();
        assert!(seen.is_sorted());
        seen.dedup();
        assert_eq!(&seen[seen.len() - 200..], (500..700).collect::<Vec<_>>());
        let mut text = String::new();
        webhook.render(&mut text);
        assert!(text.contains("webhook_waiting_lines 0\n"), "{text}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_the_webhook_does_not_want_does_not_stop_the_rest() {
        let (certificate, folder) = (Certificate::new(), tempfile::tempdir().unwrap());
        let picky = |request| {
            let code = if request < OFFERS as usize {
                StatusCode::BAD_REQUEST
            } else {
                StatusCode::OK
            };
            (code, Duration::ZERO)
        };
        let receiver = Receiver::start(&certificate, 0, Arc::new(picky)).await;
        let settings = certificate.settings(receiver.addr, folder.path());
        let waiting = Queue::open(folder.path(), 1 << 20).unwrap();
        waiting.append(b"{\"n\":0}\n").unwrap();
        drop(waiting);
        let (webhook, over, task) = sending(settings);
        let limit = Instant::now() + Duration::from_secs(20);
        while webhook.queue().dropped() == 0 {
            assert!(Instant::now() < limit, "it is never given up");
            sleep(Duration::from_millis(5)).await;
        }
        put(&webhook, 1..3);
        receiver.has(2).await;
        assert_eq!(receiver.seen(), [1, 2]);
        over.cancel();
        task.await.unwrap();
    }

    #[test]
    fn only_https_and_known_authorities_will_do() {
        let dir = tempfile::tempdir().unwrap();
        let settings = |url: &str, ca: Option<PathBuf>| WebhookSettings {
            url: url.parse().unwrap(),
            ca_file: ca,
            token_file: None,
            folder: dir.path().join("queue"),
            max_bytes: 1 << 20,
        };
        assert!(Webhook::open(settings("http://audit.example.com/", None)).is_err());
        let empty = dir.path().join("empty.pem");
        std::fs::write(&empty, "").unwrap();
        let error = Webhook::open(settings("https://audit.example.com/", Some(empty))).unwrap_err();
        assert!(error.to_string().contains("no certificate authority"), "{error}");
    }
}
