//! Clients with many watches or sessions.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tailwharf_tls::ClientTls;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::pod;
use crate::proxy::HOST;

/// Watches on one connection: an informer factory has some dozens, a gateway of clients many.
const WATCHES: usize = 500;
const PATIENCE: Duration = Duration::from_secs(60);

/// Watches that are open: each has said its first word.
pub(crate) struct Watches {
    _open: Vec<Incoming>,
    _senders: Vec<http2::SendRequest<Empty<Bytes>>>,
}

pub(crate) async fn watches(address: SocketAddr, roots: &Path, count: usize) -> Result<Watches> {
    let (mut open, mut senders) = (Vec::new(), Vec::new());
    let tls = trusting(roots, b"h2")?;
    while open.len() < count {
        let stream = connect(address, &tls).await?;
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        for _ in 0..WATCHES.min(count - open.len()) {
            let uri = format!("https://{HOST}/api/v1/namespaces/default/pods?watch=true");
            let request = Request::get(uri).body(Empty::new())?;
            let answer = timeout(PATIENCE, sender.send_request(request)).await??;
            ensure!(
                answer.status() == 200,
                "a watch is answered by {}",
                answer.status()
            );
            let mut body = answer.into_body();
            timeout(PATIENCE, body.frame())
                .await?
                .context("a watch has ended")??;
            open.push(body);
        }
        senders.push(sender);
    }
    Ok(Watches {
        _open: open,
        _senders: senders,
    })
}

/// Opens sessions, none of which is said anything in before all are there, and reads them to their ends.
pub(crate) async fn sessions(address: SocketAddr, roots: &Path, count: usize) -> Result<Value> {
    let tls = trusting(roots, b"http/1.1")?;
    let all = Arc::new(Barrier::new(count));
    let mut tasks = JoinSet::new();
    for number in 0..count {
        tasks.spawn(session(address, tls.clone(), pod(number), all.clone()));
    }
    let mut bytes = 0;
    while let Some(said) = tasks.join_next().await {
        bytes += timeout(PATIENCE, async { said? }).await??;
    }
    Ok(json!({"bytes": bytes}))
}

async fn session(
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    pod: String,
    all: Arc<Barrier>,
) -> Result<usize> {
    let mut stream = connect(address, &tls).await?;
    // All connections stand before the first session is asked for.
    all.wait().await;
    let request = format!(
        "GET /api/v1/namespaces/default/pods/{pod}/exec?command=sh&stdout=true HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: c2Vzc2lvbiBvZiB0aGUgYmVuY2g=\r\n\
         Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut said = Vec::new();
    let mut room = vec![0; 16 * 1024];
    loop {
        let length = timeout(PATIENCE, stream.read(&mut room)).await??;
        ensure!(length > 0, "{pod} ended without a word of goodbye");
        said.extend_from_slice(&room[..length]);
        if said.ends_with(&[0x88, 2, 0x03, 0xe8]) {
            break;
        }
    }
    ensure!(
        said.starts_with(b"HTTP/1.1 101 "),
        "{}",
        String::from_utf8_lossy(&said)
    );
    Ok(said.len())
}

async fn connect(address: SocketAddr, tls: &Arc<ClientConfig>) -> Result<ClientTls<TcpStream>> {
    let connecting = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(tailwharf_tls::connect(stream, tls.clone(), ServerName::try_from(HOST)?).await?)
    };
    timeout(PATIENCE, connecting).await?
}

/// Trusts the certificates of a file and nobody else.
fn trusting(roots: &Path, protocol: &[u8]) -> Result<Arc<ClientConfig>> {
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(roots)? {
        store.add(root?)?;
    }
    let mut config = ClientConfig::builder_with_provider(tailwharf_tls::provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(Arc::new(config))
}
