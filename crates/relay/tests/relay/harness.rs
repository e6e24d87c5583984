//! A relay to test, and a client made of the wire codec.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rand::rngs::OsRng;
use ring::digest::{SHA256, digest};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tailwharf_relay::{Relay, RelayConfig, RelayHandle};
use tailwharf_tls::ClientTls;
use tailwharf_wire::derp::{ClientInfo, Frame, PROTOCOL_VERSION, ServerInfo};
use tailwharf_wire::key::{NodePrivate, NodePublic};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::PATIENCE;

pub(crate) struct TestRelay {
    pub(crate) handle: RelayHandle,
    pub(crate) stop: CancellationToken,
    pub(crate) _dir: tempfile::TempDir,
}

impl Drop for TestRelay {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub(crate) async fn start(change: impl FnOnce(&mut RelayConfig)) -> TestRelay {
    let dir = tempfile::tempdir().unwrap();
    let mut config = RelayConfig::on_loopback(dir.path().to_owned());
    change(&mut config);
    let stop = CancellationToken::new();
    let handle = Relay::start(config, stop.clone()).await.unwrap();
    TestRelay {
        handle,
        stop,
        _dir: dir,
    }
}

/// Takes exactly the certificate that a DERP map pins, as clients do.
#[derive(Debug)]
pub(crate) struct Pinned {
    pub(crate) cert_name: String,
    pub(crate) provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        assert!(intermediates.is_empty());
        let hash: String = digest(&SHA256, certificate)
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(self.cert_name, format!("sha256-raw:{hash}"));
        let parsed = rustls::server::ParsedCertificate::try_from(certificate)?;
        rustls::client::verify_server_name(&parsed, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

pub(crate) async fn tls(relay: &RelayHandle) -> ClientTls<TcpStream> {
    let node = relay.derp_node();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(Pinned {
        cert_name: node.cert_name.clone(),
        provider: provider.clone(),
    });
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    let address: SocketAddr = ([127, 0, 0, 1], node.tcp_port()).into();
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from(node.host_name).unwrap();
    tailwharf_tls::connect(stream, Arc::new(config), name)
        .await
        .unwrap()
}

/// Sends `head` and returns the answer's head and the stream behind it.
pub(crate) async fn request(relay: &RelayHandle, head: &str) -> (String, ClientTls<TcpStream>, BytesMut) {
    let mut stream = tls(relay).await;
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut received = BytesMut::new();
    loop {
        if let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8(received.split_to(end + 4).to_vec()).unwrap();
            return (head, stream, received);
        }
        let len = timeout(PATIENCE, stream.read_buf(&mut received))
            .await
            .unwrap()
            .unwrap();
        assert_ne!(len, 0, "closed before the end of the answer");
    }
}

const UPGRADE: &str =
    "GET /derp HTTP/1.1\r\nHost: relay\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Fast-Start: 0\r\n\r\n";

pub(crate) struct Client {
    pub(crate) key: NodePrivate,
    pub(crate) stream: ClientTls<TcpStream>,
    pub(crate) received: BytesMut,
    pub(crate) info: ServerInfo,
}

impl Client {
    /// Connects up to the relay's greeting.
    pub(crate) async fn greeted(relay: &RelayHandle, key: NodePrivate) -> Self {
        let (head, stream, received) = request(relay, UPGRADE).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let head = head.to_lowercase();
        assert!(
            head.contains("upgrade: derp\r\n") && head.contains("derp-version: 2\r\n"),
            "{head}"
        );
        let hex = relay.key().to_string().replace("nodekey:", "");
        assert!(head.contains(&format!("derp-public-key: {hex}\r\n")), "{head}");
        let mut client = Self {
            key,
            stream,
            received,
            info: ServerInfo::default(),
        };
        assert_eq!(client.next().await, Some(Frame::ServerKey(relay.key())));
        client
    }

    pub(crate) async fn connect_as(relay: &RelayHandle, key: NodePrivate) -> Self {
        let mut client = Self::greeted(relay, key).await;
        let info = ClientInfo {
            version: PROTOCOL_VERSION,
            can_ack_pings: true,
            ..ClientInfo::default()
        };
        client
            .send(&info.seal(&client.key, &relay.key(), &mut OsRng).unwrap())
            .await;
        let Some(Frame::ServerInfo { sealed }) = client.next().await else {
            panic!("no server info")
        };
        client.info = ServerInfo::open(&sealed, &relay.key(), &client.key).unwrap();
        assert_eq!(client.info.version, PROTOCOL_VERSION);
        client
    }

    pub(crate) async fn connect(relay: &RelayHandle) -> Self {
        Self::connect_as(relay, NodePrivate::generate(&mut OsRng)).await
    }

    pub(crate) fn public(&self) -> NodePublic {
        self.key.public()
    }

    pub(crate) async fn send(&mut self, frame: &Frame) {
        let mut out = BytesMut::new();
        frame.encode(&mut out);
        self.raw(&out).await;
    }

    pub(crate) async fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    pub(crate) async fn packet(&mut self, to: NodePublic, packet: &[u8]) {
        self.send(&Frame::SendPacket {
            to,
            packet: Bytes::copy_from_slice(packet),
        })
        .await;
    }

    /// The next frame. `None`: the relay has closed the connection.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = Frame::decode(&mut self.received).unwrap() {
                return Some(frame);
            }
            match timeout(PATIENCE, self.stream.read_buf(&mut self.received))
                .await
                .expect("no frame in time")
            {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// Returns once the relay has handled all that was sent before.
    pub(crate) async fn settle(&mut self) {
        self.send(&Frame::Ping(*b"settled?")).await;
        assert_eq!(self.next().await, Some(Frame::Pong(*b"settled?")));
    }
}

/// Waits until `done` says so.
pub(crate) async fn until(relay: &RelayHandle, done: impl Fn(tailwharf_relay::Metrics) -> bool) {
    let wait = async {
        while !done(relay.metrics()) {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, wait)
        .await
        .unwrap_or_else(|_| panic!("still {:?}", relay.metrics()));
}
