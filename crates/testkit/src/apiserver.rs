//! A real kube-apiserver with etcd, and nothing else: for tests that need only the API.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use crate::kubectl::Kubectl;
use crate::process::{Process, run};
use crate::wait::eventually;
use crate::workspace;

/// A token whose bearer is in `system:masters`.
const ADMIN_TOKEN: &str = "testkit-admin";
/// The same for a user who is told apart in the audit log.
const OPERATOR_TOKEN: &str = "testkit-operator";
/// The name of that user.
pub const OPERATOR: &str = "operator";

/// A kube-apiserver with its own etcd. Both end when this is dropped.
#[derive(Debug)]
pub struct ApiServer {
    url: String,
    kubeconfig: PathBuf,
    audit_log: PathBuf,
    apiserver: Process,
    _etcd: Process,
    ca: String,
    dir: TempDir,
}

impl ApiServer {
    /// Starts etcd and kube-apiserver on loopback with RBAC and an audit log, and returns when the API is ready.
    ///
    /// # Errors
    /// When a program is missing or does not become ready.
    pub fn start() -> Result<Self> {
        Self::start_on(Ipv4Addr::LOCALHOST)
    }

    /// Starts them with the API on `address`, where programs in other namespaces reach it.
    ///
    /// # Errors
    /// As [`ApiServer::start`].
    pub fn start_on(address: Ipv4Addr) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("tailwharf-apiserver-")
            .tempdir()?;
        let path = |name: &str| dir.path().join(name);
        let (client, peer, secure) = (free_port()?, free_port()?, free_port()?);
        let etcd_url = format!("http://127.0.0.1:{client}");
        let peer_url = format!("http://127.0.0.1:{peer}");
        let mut etcd = Command::new("etcd");
        etcd.args([
            "--name",
            "test",
            "--unsafe-no-fsync",
            "--logger",
            "zap",
            "--log-level",
            "error",
        ])
        .arg("--data-dir")
        .arg(path("etcd"))
        .args([
            "--listen-client-urls",
            &etcd_url,
            "--advertise-client-urls",
            &etcd_url,
        ])
        .args([
            "--listen-peer-urls",
            &peer_url,
            "--initial-advertise-peer-urls",
            &peer_url,
        ])
        .args(["--initial-cluster", &format!("test={peer_url}")]);
        let etcd = Process::start("etcd", &mut etcd, &path("etcd.log"))?;

        let ca = certificates(&dir, address)?;
        let address = address.to_string();
        fs::write(
            path("tokens.csv"),
            format!(
                "{ADMIN_TOKEN},admin,1,\"system:masters\"\n{OPERATOR_TOKEN},{OPERATOR},2,\"system:masters\"\n"
            ),
        )?;
        fs::write(
            path("audit.yaml"),
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Metadata}]\n",
        )?;
        run(Command::new("openssl")
            .args(["genrsa", "-out"])
            .arg(path("sa.key"))
            .arg("2048"))?;
        let mut apiserver = Command::new(workspace::kubernetes("kube-apiserver"));
        apiserver
            .args(["--etcd-servers", &etcd_url, "--bind-address", &address])
            .args([
                "--secure-port",
                &secure.to_string(),
                "--advertise-address",
                &address,
            ])
            .arg("--tls-cert-file")
            .arg(path("server.crt"))
            .arg("--tls-private-key-file")
            .arg(path("server.key"))
            .arg("--token-auth-file")
            .arg(path("tokens.csv"))
            .args([
                "--authorization-mode",
                "RBAC",
                "--service-cluster-ip-range",
                "10.96.0.0/16",
            ])
            .arg("--allow-privileged=true")
            .args(["--service-account-issuer", "https://kubernetes.default.svc"])
            .arg("--service-account-signing-key-file")
            .arg(path("sa.key"))
            .arg("--service-account-key-file")
            .arg(path("sa.key"))
            .args(["--disable-admission-plugins", "ServiceAccount"])
            .arg("--audit-policy-file")
            .arg(path("audit.yaml"))
            .arg("--audit-log-path")
            .arg(path("audit.log"));
        let mut apiserver = Process::start("kube-apiserver", &mut apiserver, &path("apiserver.log"))?;

        let url = format!("https://{address}:{secure}");
        let kubeconfig = path("kubeconfig");
        fs::write(&kubeconfig, kubeconfig_text(&url, &ca, ADMIN_TOKEN))?;
        fs::write(path(OPERATOR), kubeconfig_text(&url, &ca, OPERATOR_TOKEN))?;
        eventually("the API server is ready", || {
            apiserver.alive()?;
            let mut ready = Command::new(workspace::kubernetes("kubectl"));
            run(ready
                .arg("--kubeconfig")
                .arg(&kubeconfig)
                .args(["get", "--raw", "/readyz"]))
            .map(drop)
        })?;
        let audit_log = path("audit.log");
        Ok(Self {
            url,
            kubeconfig,
            audit_log,
            apiserver,
            _etcd: etcd,
            ca,
            dir,
        })
    }

    /// The address of the API, `https://ADDRESS:PORT`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A kubeconfig file of a cluster administrator.
    #[must_use]
    pub fn kubeconfig(&self) -> &PathBuf {
        &self.kubeconfig
    }

    /// A kubeconfig file of [`OPERATOR`], who may do everything, too.
    #[must_use]
    pub fn operator_kubeconfig(&self) -> PathBuf {
        self.kubeconfig.with_file_name(OPERATOR)
    }

    /// The process id of the API server.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.apiserver.pid()
    }

    /// The verb and resource of each finished request of a user so far, in order.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn requests_by(&self, user: &str) -> Result<Vec<(String, String)>> {
        let text = fs::read_to_string(&self.audit_log).context("reading the audit log")?;
        let word = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        // The log of some thousand Services has a hundred megabytes: only lines that may be meant are parsed.
        let named = format!("\"username\":\"{user}\"");
        let events = text
            .lines()
            .filter(|line| line.contains(&named) && line.contains("ResponseComplete"))
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .filter(|event| event["user"]["username"] == user);
        Ok(events
            .map(|event| (word(&event["verb"]), word(&event["objectRef"]["resource"])))
            .collect())
    }

    /// A kubeconfig file of a service account, which may do what the cluster lets it.
    ///
    /// # Errors
    /// When there is no such account.
    pub fn kubeconfig_of(&self, namespace: &str, account: &str) -> Result<PathBuf> {
        let token = Kubectl::new(&self.kubeconfig).run(&[
            "create",
            "token",
            account,
            "--namespace",
            namespace,
            "--duration=24h",
        ])?;
        let path = self.dir.path().join(format!("kubeconfig-{namespace}-{account}"));
        fs::write(&path, kubeconfig_text(&self.url, &self.ca, token.trim()))?;
        Ok(path)
    }

    /// The audit events so far whose user agent begins with `agent`: one `(verb, resource, name)` per request.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn requests_of(&self, agent: &str) -> Result<Vec<(String, String, String)>> {
        let text = fs::read_to_string(&self.audit_log).context("reading the audit log")?;
        let events = text
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let word = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        Ok(events
            .filter(|event| {
                event["stage"] == "ResponseComplete" && word(&event["userAgent"]).starts_with(agent)
            })
            .map(|event| {
                let object = &event["objectRef"];
                (
                    word(&event["verb"]),
                    word(&object["resource"]),
                    word(&object["name"]),
                )
            })
            .collect())
    }

    /// Fails, with the end of its log, if the API server has ended.
    ///
    /// # Errors
    /// When it has.
    pub fn alive(&mut self) -> Result<()> {
        self.apiserver.alive()
    }
}

/// Writes a certificate authority and a server certificate for `address`; returns the authority's certificate.
fn certificates(dir: &TempDir, address: Ipv4Addr) -> Result<String> {
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(DnType::CommonName, "testkit");
    let ca_certificate = ca.self_signed(&ca_key)?;
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate()?;
    let names = vec![
        address.to_string(),
        "localhost".to_owned(),
        "kubernetes.default.svc".to_owned(),
    ];
    let server = CertificateParams::new(names)?.signed_by(&key, &issuer)?;
    fs::write(dir.path().join("server.crt"), server.pem())?;
    fs::write(dir.path().join("server.key"), key.serialize_pem())?;
    fs::write(dir.path().join("ca.crt"), ca_certificate.pem())?;
    Ok(dir.path().join("ca.crt").display().to_string())
}

fn kubeconfig_text(url: &str, ca_file: &str, token: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
         clusters: [{{name: test, cluster: {{server: \"{url}\", certificate-authority: \"{ca_file}\"}}}}]\n\
         users: [{{name: admin, user: {{token: {token}}}}}]\n\
         contexts: [{{name: test, context: {{cluster: test, user: admin}}}}]\n"
    )
}

/// A TCP port of loopback that was free a moment ago.
///
/// # Errors
/// When none is.
pub fn free_port() -> Result<u16> {
    let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
    ensure!(port != 0, "no free port");
    Ok(port)
}
