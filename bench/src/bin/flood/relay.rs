//! Packets through a relay, from one connection of a pair to the other, as a flow that keeps a window in flight.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use bytes::BytesMut;
use rand_core::OsRng;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde_json::{Value, json};
use tailwharf_tls::ClientTls;
use tailwharf_wire::derp::{ClientInfo, Frame, PROTOCOL_VERSION, RawFrame, ServerInfo, encode_send_packet};
use tailwharf_wire::key::{NodePrivate, NodePublic};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// A WireGuard packet of a full inner packet of 1280 bytes.
const PACKET: usize = 1280 + 32;
/// Packets are lost when nothing arrived for so long.
const LOST_AFTER: Duration = Duration::from_millis(20);
const READ_LEN: usize = 128 * 1024;

/// What to send through which relay.
pub(crate) struct Load {
    pub(crate) relay: SocketAddr,
    /// The name in its certificate, which is not verified.
    pub(crate) name: String,
    pub(crate) pairs: usize,
    /// Packets of one pair that may be on their way.
    pub(crate) window: u64,
    pub(crate) seconds: f64,
    pub(crate) keys: Vec<String>,
}

/// What one pair has sent and received.
#[derive(Default)]
struct Flow {
    sent: AtomicU64,
    received: AtomicU64,
    moved: Notify,
    over: AtomicBool,
}

/// Sends for some time, and tells how much arrived.
pub(crate) async fn run(load: Load) -> Result<Value> {
    ensure!(load.keys.len() >= 2 * load.pairs, "two keys for each pair");
    let config = Arc::new(config()?);
    let mut flows = Vec::new();
    let mut tasks = JoinSet::new();
    for keys in load.keys.chunks_exact(2).take(load.pairs) {
        let (near, far): (NodePrivate, NodePrivate) = (keys[0].parse()?, keys[1].parse()?);
        let sender = greet(&load, &config, &near).await?;
        let receiver = greet(&load, &config, &far).await?;
        let flow = Arc::new(Flow::default());
        flows.push(flow.clone());
        tasks.spawn(send(sender, far.public(), flow.clone(), load.window));
        tasks.spawn(receive(receiver, flow));
    }
    // The first packets are not counted: TCP has to find its window.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let count = |flows: &[Arc<Flow>]| -> u64 {
        flows
            .iter()
            .map(|flow| flow.received.load(Ordering::Relaxed))
            .sum()
    };
    let (began, before) = (Instant::now(), count(&flows));
    tokio::select! {
        () = tokio::time::sleep(Duration::from_secs_f64(load.seconds)) => {}
        Some(ended) = tasks.join_next() => {
            ended??;
            bail!("the relay closed a connection");
        }
    }
    let received = count(&flows) - before;
    let seconds = began.elapsed().as_secs_f64();
    for flow in &flows {
        flow.over.store(true, Ordering::Relaxed);
    }
    let sent: u64 = flows.iter().map(|flow| flow.sent.load(Ordering::Relaxed)).sum();
    Ok(json!({"bytes": received * PACKET as u64, "seconds": seconds, "sent": sent}))
}

async fn send(connection: Connection, to: NodePublic, flow: Arc<Flow>, window: u64) -> Result<()> {
    let (mut unread, mut writer) = tokio::io::split(connection.stream);
    // Pings of the relay stay unanswered for the short time that this lasts.
    tokio::spawn(async move {
        let mut room = vec![0; 4096];
        while unread.read(&mut room).await.is_ok_and(|len| len > 0) {}
    });
    let packet = vec![4; PACKET];
    let mut out = BytesMut::new();
    // What was lost counts as arrived.
    let mut lost = 0;
    while !flow.over.load(Ordering::Relaxed) {
        let received = flow.received.load(Ordering::Relaxed);
        let sent = flow.sent.load(Ordering::Relaxed);
        let room = (received + lost + window).saturating_sub(sent);
        if room == 0 {
            if tokio::time::timeout(LOST_AFTER, flow.moved.notified())
                .await
                .is_err()
                && flow.received.load(Ordering::Relaxed) == received
            {
                lost = sent - received;
            }
            continue;
        }
        out.clear();
        for _ in 0..room {
            encode_send_packet(&to, &packet, &mut out);
        }
        flow.sent.fetch_add(room, Ordering::Relaxed);
        writer.write_all(&out).await?;
        writer.flush().await?;
    }
    Ok(())
}

async fn receive(connection: Connection, flow: Arc<Flow>) -> Result<()> {
    let (mut reader, _writer): (ReadHalf<_>, WriteHalf<_>) = tokio::io::split(connection.stream);
    let mut room = vec![0; READ_LEN];
    let mut kept = 0;
    loop {
        let len = reader.read(&mut room[kept..]).await?;
        ensure!(len > 0, "the relay closed the connection");
        let end = kept + len;
        let mut rest = &mut room[..end];
        let mut packets = 0;
        while let Some(mut frame) = RawFrame::split_off(&mut rest)? {
            packets += u64::from(frame.recv_packet().is_some());
        }
        kept = rest.len();
        room.copy_within(end - kept..end, 0);
        flow.received.fetch_add(packets, Ordering::Relaxed);
        flow.moved.notify_one();
    }
}

struct Connection {
    stream: ClientTls<TcpStream>,
    received: BytesMut,
}

/// Connects as the node with this key.
async fn greet(load: &Load, config: &Arc<ClientConfig>, key: &NodePrivate) -> Result<Connection> {
    let tcp = TcpStream::connect(load.relay).await?;
    tcp.set_nodelay(true)?;
    let name = ServerName::try_from(load.name.clone())?;
    let mut stream = tailwharf_tls::connect(tcp, config.clone(), name).await?;
    let head = format!(
        "GET /derp HTTP/1.1\r\nHost: {}\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n",
        load.name
    );
    stream.write_all(head.as_bytes()).await?;
    stream.flush().await?;
    let mut received = BytesMut::new();
    let end = loop {
        if let Some(at) = received.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        ensure!(stream.read_buf(&mut received).await? > 0, "no answer");
    };
    let head = received.split_to(end);
    ensure!(
        head.starts_with(b"HTTP/1.1 101 "),
        "{}",
        String::from_utf8_lossy(&head)
    );
    let mut connection = Connection { stream, received };
    let Frame::ServerKey(relay) = connection.next().await? else {
        bail!("no greeting");
    };
    let info = ClientInfo {
        version: PROTOCOL_VERSION,
        ..ClientInfo::default()
    };
    let mut out = BytesMut::new();
    info.seal(key, &relay, &mut OsRng)?.encode(&mut out);
    connection.stream.write_all(&out).await?;
    connection.stream.flush().await?;
    let Frame::ServerInfo { sealed } = connection.next().await? else {
        bail!("not accepted");
    };
    ServerInfo::open(&sealed, &relay, key)?;
    Ok(connection)
}

impl Connection {
    async fn next(&mut self) -> Result<Frame> {
        loop {
            if let Some(frame) = Frame::decode(&mut self.received)? {
                return Ok(frame);
            }
            ensure!(
                self.stream.read_buf(&mut self.received).await? > 0,
                "the relay closed the connection"
            );
        }
    }
}

fn config() -> Result<ClientConfig> {
    let provider = tailwharf_tls::provider();
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Any(provider)))
        .with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// Takes any certificate: what is measured is on this machine.
#[derive(Debug)]
struct Any(Arc<CryptoProvider>);

impl ServerCertVerifier for Any {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
