//! A kube-apiserver with an operator and a proxy: the real processes with the rights of their accounts, where a cluster would run them in pods.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tailwharf_testkit::apiserver::free_port;
use tailwharf_testkit::lab::NAMESPACE;
use tailwharf_testkit::process::Process;
use tailwharf_testkit::wait::eventually;
use tailwharf_testkit::{ApiServer, Kubectl, Namespace, workspace};

use crate::tools::within_or_here;

/// The pool that serves by default, and the account of its pods.
const POOL: &str = "tailwharf-default";
/// Where people's objects are.
const PEOPLE: &str = "default";

/// The control server of a stage, and what its operator signs in with.
pub(super) struct Control<'a> {
    pub(super) url: &'a str,
    pub(super) client_id: &'a str,
    pub(super) client_secret: &'a str,
    /// Where certificates are ordered, if not there.
    pub(super) acme: Option<&'a str>,
}

pub(super) struct Stage {
    operator: Process,
    kubectl: Kubectl,
    dir: PathBuf,
    server: ApiServer,
}

impl Stage {
    /// Starts API server and operator; the API is on `address`.
    pub(super) fn start(dir: &Path, address: Ipv4Addr, control: &Control<'_>) -> Result<Self> {
        let server = ApiServer::start_on(address)?;
        let kubectl = Kubectl::new(server.kubeconfig());
        let deploy = |name: &str| workspace::root().join("deploy").join(name).display().to_string();
        let crds = deploy("crds");
        kubectl.run(&["apply", "--server-side", "-f", &crds])?;
        kubectl.run(&[
            "wait",
            "--for=condition=established",
            "--timeout=30s",
            "-f",
            &crds,
        ])?;
        kubectl.run(&["apply", "--server-side", "-f", &deploy("operator.yaml")])?;
        let (id, secret) = (dir.join("client_id"), dir.join("client_secret"));
        fs::write(&id, control.client_id)?;
        fs::write(&secret, control.client_secret)?;
        let mut command = Command::new(workspace::tailwharf());
        command
            .arg("operator")
            .env("KUBECONFIG", server.kubeconfig_of(NAMESPACE, "operator")?)
            .env("OPERATOR_NAMESPACE", NAMESPACE)
            .env("OPERATOR_LOGIN_SERVER", control.url)
            .env("CLIENT_ID_FILE", id)
            .env("CLIENT_SECRET_FILE", secret)
            .env("PROXY_IMAGE", "tailwharf.test/tailwharf:dev")
            .env("TAILWHARF_POOL_REPLICAS", "1")
            .env("POD_NAME", "operator-0")
            .env("OPERATOR_LISTEN", format!("127.0.0.1:{}", free_port()?));
        if let Some(directory) = control.acme {
            command.env("OPERATOR_ACME_DIRECTORY", directory);
        }
        let operator = Process::start("operator", &mut command, &dir.join("operator.log"))?;
        let stage = Self {
            operator,
            kubectl,
            dir: dir.to_owned(),
            server,
        };
        eventually("the operator has made the pool", || {
            let words = ["get", "rolebinding", POOL, "-n", NAMESPACE];
            stage.kubectl.run(&words).map(drop)
        })
        .with_context(|| stage.operator.log_end(10))?;
        Ok(stage)
    }

    /// Starts the pod of the pool at an address, in a namespace or on this machine; `roots` are what it trusts, if not what the machine does.
    pub(super) fn proxy(
        &self,
        namespace: Option<&Namespace>,
        address: Ipv4Addr,
        roots: Option<&Path>,
    ) -> Result<Process> {
        let listen = format!("{address}:{}", free_port()?);
        let mut command = within_or_here(namespace, &workspace::tailwharf());
        command
            .args(["proxy", "--namespace", NAMESPACE, "--listen", &listen])
            .args(["--pod-name", "tailwharf-default-0", "--pod-uid", "the-only-one"])
            .args(["--pod-ips", &address.to_string()])
            .env("KUBECONFIG", self.server.kubeconfig_of(NAMESPACE, POOL)?);
        if let Some(roots) = roots {
            command.env("SSL_CERT_FILE", roots);
        }
        Process::start("proxy", &mut command, &self.dir.join("proxy.log"))
    }

    pub(super) fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// The end of the operator's log.
    pub(super) fn log_end(&self) -> String {
        self.operator.log_end(10)
    }

    /// Applies objects.
    pub(super) fn apply(&self, objects: &[Value]) -> Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.kubectl.apply(&list.to_string()).map(drop)
    }

    /// Waits until the Identity of an Ingress is ready, which has its certificate and a reachable backend by then.
    pub(super) fn ready(&self, ingress: &str) -> Result<()> {
        let label = format!("tailscale.com/parent-resource={ingress}");
        eventually(&format!("{ingress} is ready"), || {
            let list = self.kubectl.get(&["identities", "-n", NAMESPACE, "-l", &label])?;
            let identity = list["items"].get(0).context("it has no Identity")?;
            ensure!(is_ready(identity), "{}", identity["status"]);
            Ok(())
        })
        .with_context(|| self.log_end())
    }
}

/// Whether an Identity is ready.
fn is_ready(identity: &Value) -> bool {
    let conditions = identity["status"]["conditions"].as_array();
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// An Ingress of the operator's class that asks for its own name and leads to a Service.
pub(super) fn ingress(name: &str, service: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {"name": name, "namespace": PEOPLE},
        "spec": {
            "ingressClassName": "tailscale",
            "defaultBackend": {"service": {"name": service, "port": {"number": 80}}},
            "tls": [{"hosts": [name]}],
        },
    })
}

/// A Service without an address of its own, which leads to its endpoints at once: nobody carries those of a cluster here.
pub(super) fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": PEOPLE},
        "spec": {"clusterIP": "None", "ports": [{"name": "http", "port": 80}]},
    })
}

/// Its endpoints.
pub(super) fn endpoints(service: &str, addresses: &[Ipv4Addr], port: u16) -> Value {
    let endpoint = |address| json!({"addresses": [address], "conditions": {"ready": true}});
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": service, "namespace": PEOPLE, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "endpoints": addresses.iter().map(endpoint).collect::<Vec<_>>(),
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
    })
}
