//! An API server that keeps what it gets, byte by byte, and answers as the test says.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    /// The values of a header, in order.
    pub(crate) fn all(&self, name: &str) -> Vec<String> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines
            .filter(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.to_owned())
            .collect()
    }

    /// The names of all headers, in small letters.
    pub(crate) fn names(&self) -> Vec<String> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.map(|(name, _)| name.to_ascii_lowercase()).collect()
    }
}

/// What the API server does with a request.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) bytes: Vec<u8>,
    pub(crate) then: Then,
}

/// What it does after that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// Waits for the next request.
    Next,
    /// Closes.
    Close,
    /// Sends back what it gets, in capitals.
    Echo,
    /// Says nothing more and leaves the connection open.
    Hang,
}

/// An answer with a short JSON body.
pub(crate) fn answer(status: &str, more: &str, body: &str) -> Reply {
    let length = body.len();
    Reply {
        bytes: format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{more}Content-Length: {length}\r\n\r\n{body}")
            .into_bytes(),
        then: Then::Next,
    }
}

/// Bytes, then something.
pub(crate) fn raw(bytes: &str, then: Then) -> Reply {
    Reply {
        bytes: bytes.as_bytes().to_vec(),
        then,
    }
}

type Script = Arc<dyn Fn(&Seen) -> Reply + Send + Sync>;

/// The API server. It ends with the test.
pub(crate) struct Backend {
    pub(crate) addr: SocketAddr,
    pub(crate) ca: PathBuf,
    pub(crate) token: PathBuf,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// What came after upgrades.
    pub(crate) raw: Arc<Mutex<Vec<u8>>>,
    _dir: tempfile::TempDir,
}

impl Backend {
    pub(crate) async fn start(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (ca, token) = (dir.path().join("ca.crt"), dir.path().join("token"));
        std::fs::write(&token, "proxy-token\n").unwrap();
        let config = Arc::new(certify(&ca));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (seen, raw) = (Arc::new(Mutex::default()), Arc::new(Mutex::default()));
        let (script, theirs, rest): (Script, _, _) = (Arc::new(script), Arc::clone(&seen), Arc::clone(&raw));
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (script, seen, raw, config) =
                    (script.clone(), theirs.clone(), rest.clone(), config.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = tailwharf_tls::accept(tcp, config).await {
                        converse(stream, script, seen, raw).await;
                    }
                });
            }
        });
        Self {
            addr,
            ca,
            token,
            seen,
            raw,
            _dir: dir,
        }
    }

    /// Everything that has arrived so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The only request that has arrived.
    pub(crate) fn only(&self) -> Seen {
        let seen = self.seen();
        assert_eq!(seen.len(), 1, "{seen:?}");
        seen[0].clone()
    }
}

/// Writes a new authority and makes the configuration of a server that it has certified.
pub(crate) fn certify(ca_file: &std::path::Path) -> ServerConfig {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(ca_file, ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate().unwrap();
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let certificate = CertificateParams::new(names)
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let mut config = ServerConfig::builder_with_provider(tailwharf_tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    script: Script,
    seen: Arc<Mutex<Vec<Seen>>>,
    raw: Arc<Mutex<Vec<u8>>>,
) {
    let mut bytes = Vec::new();
    while let Some(request) = read_request(&mut stream, &mut bytes).await {
        let reply = script(&request);
        seen.lock().unwrap().push(request);
        if stream.write_all(&reply.bytes).await.is_err() || stream.flush().await.is_err() {
            return;
        }
        match reply.then {
            Then::Next => {}
            Then::Close => {
                let _ = stream.shutdown().await;
                return;
            }
            Then::Hang => std::future::pending().await,
            Then::Echo => loop {
                let got = std::mem::take(&mut bytes);
                raw.lock().unwrap().extend_from_slice(&got);
                if stream.write_all(&got.to_ascii_uppercase()).await.is_err() || stream.flush().await.is_err()
                {
                    return;
                }
                let mut more = vec![0; 4096];
                match stream.read(&mut more).await {
                    Ok(length @ 1..) => bytes = more[..length].to_vec(),
                    _ => {
                        let _ = stream.shutdown().await;
                        return;
                    }
                }
            },
        }
    }
}

/// Reads one request; what came behind it stays in `bytes`.
async fn read_request(stream: &mut (impl AsyncRead + Unpin), bytes: &mut Vec<u8>) -> Option<Seen> {
    let end = read_until(stream, bytes, b"\r\n\r\n").await?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    bytes.drain(..end);
    let mut request = Seen {
        head,
        body: Vec::new(),
    };
    if let Some(length) = request.all("content-length").first() {
        let length: usize = length.parse().unwrap();
        while bytes.len() < length {
            read_more(stream, bytes).await?;
        }
        request.body = bytes.drain(..length).collect();
    } else if !request.all("transfer-encoding").is_empty() {
        loop {
            let end = read_until(stream, bytes, b"\r\n").await?;
            let line = String::from_utf8_lossy(&bytes[..end - 2]).into_owned();
            bytes.drain(..end);
            let size = usize::from_str_radix(&line, 16).unwrap();
            while bytes.len() < size + 2 {
                read_more(stream, bytes).await?;
            }
            request.body.extend(bytes.drain(..size));
            bytes.drain(..2);
            if size == 0 {
                break;
            }
        }
    }
    Some(request)
}

async fn read_until(stream: &mut (impl AsyncRead + Unpin), bytes: &mut Vec<u8>, end: &[u8]) -> Option<usize> {
    loop {
        if let Some(at) = bytes.windows(end.len()).position(|part| part == end) {
            return Some(at + end.len());
        }
        read_more(stream, bytes).await?;
    }
}

async fn read_more(stream: &mut (impl AsyncRead + Unpin), bytes: &mut Vec<u8>) -> Option<()> {
    let mut more = vec![0; 4096];
    let length = stream.read(&mut more).await.ok().filter(|length| *length > 0)?;
    bytes.extend_from_slice(&more[..length]);
    Some(())
}
