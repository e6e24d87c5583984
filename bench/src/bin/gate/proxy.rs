//! The proxy on loopback, for callers who are one device of a tailnet.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures::future::BoxFuture;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::PrivateKeyDer;
use serde_json::json;
use tailwharf_apiproxy::{
    CAPABILITY, Listener, Proxy, Settings, Stream, SystemGroups, Tailnet, UpstreamSettings,
};
use tailwharf_node::{CheckError, Peer, WhoIs};
use tailwharf_wire::tailcfg::{CheckRequest, CheckResponse, Node, StableId, UserProfile};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::serving;

/// The name in all certificates.
pub(crate) const HOST: &str = "127.0.0.1";

pub(crate) async fn serve(dir: &Path, api: SocketAddr, recorder: Option<SocketAddr>) -> Result<()> {
    let token = dir.join("token");
    fs::write(&token, "a token")?;
    let settings = Settings {
        upstream: UpstreamSettings {
            host: HOST.to_owned(),
            port: api.port(),
            ca_file: dir.join("api.pem"),
            token_file: Some(token),
        },
        system_groups: SystemGroups::default(),
        extras: true,
        streams_per_user: 1 << 20,
        review_interval: Duration::from_secs(3),
        audit: None,
        webhook: None,
    };
    let proxy = Proxy::new(settings, Arc::new(OneDevice(caller(recorder))))?;
    let certificate = Certificate::make(dir, "proxy")?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    serving(listener.local_addr()?);
    let keeping = proxy.clone();
    tokio::spawn(async move { keeping.maintain(CancellationToken::new()).await });
    proxy
        .serve(Loopback(listener), Some(Arc::new(certificate)))
        .await?;
    Ok(())
}

/// A user's device that may do what `team` may.
fn caller(recorder: Option<SocketAddr>) -> WhoIs {
    let node = Node {
        stable_id: StableId("n7".to_owned()),
        name: "laptop.tail1234.ts.net.".to_owned(),
        ..Node::default()
    };
    let recorders: Vec<SocketAddr> = recorder.into_iter().collect();
    let grant = json!({
        "impersonate": {"groups": ["team"]},
        "recorderAddrs": recorders,
        "enforceRecorder": !recorders.is_empty(),
    });
    WhoIs {
        node: Arc::new(Peer::from_node(&node)),
        user: Arc::new(UserProfile {
            login_name: "alice@example.com".to_owned(),
            ..UserProfile::default()
        }),
        cap_map: [(CAPABILITY.to_owned(), vec![grant])].into_iter().collect(),
    }
}

struct OneDevice(WhoIs);

impl Tailnet for OneDevice {
    fn whois(&self, _: SocketAddr, _: IpAddr) -> Option<WhoIs> {
        Some(self.0.clone())
    }

    fn is_called(&self, host: &str) -> bool {
        host.split(':').next() == Some(HOST)
    }

    fn name(&self) -> String {
        HOST.to_owned()
    }

    fn check(&self, _: CheckRequest) -> BoxFuture<'static, Result<CheckResponse, CheckError>> {
        Box::pin(async { Ok(CheckResponse::default()) })
    }

    fn dial(&self, to: SocketAddr) -> BoxFuture<'static, std::io::Result<Box<dyn Stream>>> {
        Box::pin(async move { Ok(Box::new(TcpStream::connect(to).await?) as Box<dyn Stream>) })
    }
}

/// Connections on loopback, as if they came from the tailnet.
struct Loopback(TcpListener);

impl Listener for Loopback {
    type Stream = TcpStream;

    async fn accept(&mut self) -> Option<(TcpStream, SocketAddr, IpAddr)> {
        let (stream, remote) = self.0.accept().await.ok()?;
        stream.set_nodelay(true).ok()?;
        Some((stream, remote, IpAddr::from([100, 64, 0, 1])))
    }
}

/// A certificate that nobody else has signed; whoever is to trust it finds it in a file.
#[derive(Debug)]
pub(crate) struct Certificate(Arc<CertifiedKey>);

impl Certificate {
    /// Makes one, and writes it as `NAME.pem`, and with its key as `NAME-key.pem`.
    pub(crate) fn make(dir: &Path, name: &str) -> Result<Self> {
        let made = rcgen::generate_simple_self_signed([HOST.to_owned()])?;
        let file = |ending: &str| -> PathBuf { dir.join(format!("{name}{ending}.pem")) };
        fs::write(file(""), made.cert.pem())?;
        fs::write(file("-key"), made.cert.pem() + &made.signing_key.serialize_pem())?;
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
        let chain = vec![made.cert.der().clone()];
        let key = CertifiedKey::from_der(chain, key, &tailwharf_tls::provider())?;
        Ok(Self(Arc::new(key)))
    }

    /// Shows it to clients, with the protocols to choose from.
    pub(crate) fn server(self, protocols: &[&[u8]]) -> Result<Arc<ServerConfig>> {
        let mut config = ServerConfig::builder_with_provider(tailwharf_tls::provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(self));
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}
