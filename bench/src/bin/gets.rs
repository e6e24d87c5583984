//! Sends HTTPS requests over kept connections, for the bench, and prints what came of them as one JSON object.
//!
//! ```text
//! gets URL ADDRESS ROOTS.PEM CONNECTIONS SECONDS [RATE]
//! ```
//!
//! ADDRESS is where the host of URL is; RATE is requests a second in all, as many as possible if absent. A bearer token may be in `TOKEN`. Times are in
//! microseconds, from the beginning of a request to the end of its answer.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "what it prints is its result")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

/// An answer that takes longer is a failure.
const PATIENCE: Duration = Duration::from_secs(30);

/// The allocator of `tailwharf`, so that both cost the same.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

struct Load {
    uri: Uri,
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    token: Option<String>,
    end: Instant,
    /// Between two requests of one connection.
    pause: Option<Duration>,
}

#[derive(Default)]
struct Outcome {
    times: Vec<f64>,
    bytes: u64,
    failed: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (required, rate) = words
        .split_at_checked(5)
        .context("five words; see the beginning of this program")?;
    let [url, address, roots, connections, seconds] = required else {
        bail!("five words; see the beginning of this program");
    };
    let connections: u32 = connections.parse()?;
    let began = Instant::now();
    #[expect(
        clippy::disallowed_methods,
        reason = "a token on the command line could be read by all"
    )]
    let token = std::env::var("TOKEN").ok();
    let load = Arc::new(Load {
        uri: url.parse()?,
        address: address.parse()?,
        tls: Arc::new(trusting(Path::new(roots))?),
        token,
        end: began + Duration::from_secs_f64(seconds.parse()?),
        pause: match rate.first() {
            Some(rate) => Some(Duration::from_secs_f64(
                f64::from(connections) / rate.parse::<f64>()?,
            )),
            None => None,
        },
    });
    let mut workers = JoinSet::new();
    for number in 0..connections {
        workers.spawn(ask(load.clone(), f64::from(number) / f64::from(connections)));
    }
    let mut all = Outcome::default();
    while let Some(outcome) = workers.join_next().await {
        let outcome = outcome??;
        all.times.extend(outcome.times);
        all.bytes += outcome.bytes;
        all.failed += outcome.failed;
    }
    println!("{}", report(all, began.elapsed()));
    Ok(())
}

fn report(mut all: Outcome, took: Duration) -> Value {
    all.times.sort_by(f64::total_cmp);
    let share = |share: usize| {
        let at = (all.times.len() * share / 100).min(all.times.len().saturating_sub(1));
        all.times.get(at)
    };
    json!({
        "requests": all.times.len(),
        "bytes": all.bytes,
        "failed": all.failed,
        "seconds": took.as_secs_f64(),
        "p50": share(50),
        "p99": share(99),
    })
}

/// Asks over one connection until the end; `offset` spreads connections over the pause.
async fn ask(load: Arc<Load>, offset: f64) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut sender = connect(&load).await.context("no connection at all")?;
    let mut due = Instant::now() + load.pause.unwrap_or_default().mul_f64(offset);
    while Instant::now() < load.end {
        if let Some(pause) = load.pause {
            sleep_until(due.into()).await;
            due = (due + pause).max(Instant::now());
        }
        let began = Instant::now();
        match timeout(PATIENCE, once(&load, &mut sender)).await {
            Ok(Ok(bytes)) => {
                outcome.times.push(began.elapsed().as_secs_f64() * 1e6);
                outcome.bytes += bytes;
            }
            Ok(Err(_)) | Err(_) => {
                outcome.failed += 1;
                sender = connect(&load).await?;
            }
        }
    }
    Ok(outcome)
}

/// One request; the length of its answer.
async fn once(load: &Load, sender: &mut SendRequest<Empty<&'static [u8]>>) -> Result<u64> {
    sender.ready().await?;
    let path = load.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::get(path).header(header::HOST, load.uri.host().unwrap_or_default());
    if let Some(token) = &load.token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let answer = sender.send_request(request.body(Empty::new())?).await?;
    if answer.status() != StatusCode::OK {
        bail!("the answer is {}", answer.status());
    }
    let (mut body, mut bytes) = (answer.into_body(), 0);
    while let Some(frame) = body.frame().await {
        bytes += frame?.data_ref().map_or(0, |data| data.len() as u64);
    }
    Ok(bytes)
}

async fn connect(load: &Load) -> Result<SendRequest<Empty<&'static [u8]>>> {
    let opening = async {
        let stream = TcpStream::connect(load.address).await?;
        stream.set_nodelay(true)?;
        let host = load
            .uri
            .host()
            .context("the URL has no host")?
            .trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_owned())?;
        let stream = tailwharf_tls::connect(stream, load.tls.clone(), name).await?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        anyhow::Ok(sender)
    };
    timeout(PATIENCE, opening).await?
}

/// Trusts the roots of a file and nobody else.
fn trusting(roots: &Path) -> Result<ClientConfig> {
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(roots)? {
        store.add(root?)?;
    }
    Ok(ClientConfig::builder_with_provider(tailwharf_tls::provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(store)
        .with_no_client_auth())
}
