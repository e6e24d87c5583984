//! A proxy on loopback in front of a real API server, under the account of `deploy/apiserver-proxy.yaml`, and kubectl in front of it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tailwharf_apiproxy::{FileSettings, Output, Proxy, Settings, SystemGroups, UpstreamSettings};
use tailwharf_testkit::{Kubectl, workspace};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::certificate::Shown;
use super::{Fake, Loopback};

/// The proxy and what asks it.
pub(crate) struct Front {
    pub(crate) kubectl: Kubectl,
    pub(crate) tailnet: Arc<Fake>,
    pub(crate) proxy: Proxy,
    /// Without TLS.
    pub(crate) addr: SocketAddr,
    /// The token under which it asks the API server.
    pub(crate) token: String,
    /// Its audit log.
    pub(crate) audit: PathBuf,
    pub(crate) runtime: Runtime,
    _dir: tempfile::TempDir,
}

impl Front {
    /// Makes the account in the cluster and starts a proxy for the API server at `url`.
    pub(crate) fn start(admin: &Kubectl, url: &str, ca_file: PathBuf) -> Result<Self> {
        admin.run(&["create", "namespace", "tailscale"])?;
        admin.apply(&account(&workspace::root().join("deploy/apiserver-proxy.yaml"))?)?;
        let token = admin.run(&["-n", "tailscale", "create", "token", "kube-apiserver-auth-proxy"])?;
        let token = token.trim().to_owned();
        let dir = tempfile::tempdir()?;
        let token_file = dir.path().join("token");
        fs::write(&token_file, &token)?;
        let (host, port) = url
            .trim_start_matches("https://")
            .rsplit_once(':')
            .context("a port")?;
        let audit = dir.path().join("audit.log");
        let settings = Settings {
            upstream: UpstreamSettings {
                host: host.to_owned(),
                port: port.parse()?,
                ca_file,
                token_file: Some(token_file),
            },
            system_groups: SystemGroups::default(),
            extras: true,
            streams_per_user: 64,
            review_interval: Duration::from_millis(100),
            audit: Some(Output::File(FileSettings {
                path: audit.clone(),
                max_bytes: u64::MAX,
                keep: 1,
            })),
            webhook: None,
        };
        let runtime = Runtime::new()?;
        let tailnet = Arc::new(Fake::default());
        let proxy = Proxy::new(settings, tailnet.clone())?;
        let bind = || runtime.block_on(TcpListener::bind(("127.0.0.1", 0)));
        let (plain, secured) = (bind()?, bind()?);
        let (addr, tls) = (plain.local_addr()?, secured.local_addr()?);
        let (serving, keeping, securing) = (proxy.clone(), proxy.clone(), proxy.clone());
        runtime.spawn(async move { serving.serve(Loopback(plain), None).await });
        runtime.spawn(async move {
            securing
                .serve(Loopback(secured), Some(Arc::new(Shown::new())))
                .await
        });
        runtime.spawn(async move { keeping.maintain(CancellationToken::new()).await });
        let config = dir.path().join("config");
        fs::write(
            &config,
            format!(
                "apiVersion: v1\nkind: Config\ncurrent-context: p\n\
                 clusters: [{{name: p, cluster: {{server: \"https://{tls}\", insecure-skip-tls-verify: true}}}}]\n\
                 users: [{{name: p, user: {{token: unused}}}}]\ncontexts: [{{name: p, context: {{cluster: p, user: p}}}}]\n"
            ),
        )?;
        Ok(Self {
            kubectl: Kubectl::new(&config),
            tailnet,
            proxy,
            addr,
            token,
            audit,
            runtime,
            _dir: dir,
        })
    }
}

/// The parts of a manifest that give rights: the pods have no place here.
fn account(file: &Path) -> Result<String> {
    let text = fs::read_to_string(file)?;
    let documents = text.split("\n---\n").filter(|document| {
        [
            "kind: ServiceAccount",
            "kind: ClusterRole",
            "kind: ClusterRoleBinding",
        ]
        .iter()
        .any(|kind| document.lines().any(|line| line == *kind))
    });
    Ok(documents.collect::<Vec<_>>().join("\n---\n"))
}
