//! A kube-apiserver, and members of pools with the rights that a pool's Role gives.

use std::net::SocketAddr;

use anyhow::Result;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use tailwharf_kube_types::Identity;
use tailwharf_proxy::{Limits, Settings, run_with};
use tailwharf_testkit::{ApiServer, Kubectl, workspace};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const NAMESPACE: &str = "tailscale";
const ACCOUNT: &str = "system:serviceaccount:tailscale:tailwharf-default";

pub(crate) struct Bed {
    pub(crate) runtime: Runtime,
    pub(crate) admin: Client,
    server: ApiServer,
}

pub(crate) struct Member {
    pub(crate) task: JoinHandle<Result<()>>,
    pub(crate) stop: CancellationToken,
    pub(crate) address: SocketAddr,
}

impl Bed {
    /// An API server with our definitions; members may read and write `secrets`.
    pub(crate) fn start(secrets: &[String]) -> Result<Self> {
        let server = ApiServer::start()?;
        let kubectl = Kubectl::new(server.kubeconfig());
        let crds = workspace::root().join("deploy/crds").display().to_string();
        kubectl.run(&["apply", "--server-side", "-f", &crds])?;
        kubectl.run(&[
            "wait",
            "--for",
            "condition=established",
            "crd/identities.tailwharf.dev",
            "--timeout",
            "20s",
        ])?;
        kubectl.run(&["create", "namespace", NAMESPACE])?;
        kubectl.apply(&rights(secrets).to_string())?;
        let runtime = Runtime::new()?;
        let admin = runtime.block_on(client(&server, None))?;
        Ok(Self {
            runtime,
            admin,
            server,
        })
    }

    pub(crate) fn identities(&self) -> Api<Identity> {
        Api::namespaced(self.admin.clone(), NAMESPACE)
    }

    /// Makes an identity as the operator does.
    pub(crate) async fn identity(&self, name: &str, pool: &str, spec: Value) -> Result<()> {
        let identity: Identity = serde_json::from_value(json!({
            "apiVersion": "tailwharf.dev/v1alpha1",
            "kind": "Identity",
            "metadata": { "name": name, "labels": { "tailwharf.dev/pool": pool } },
            "spec": spec,
        }))?;
        let params = PatchParams::apply("tailwharf-operator").force();
        self.identities()
            .patch(name, &params, &Patch::Apply(&identity))
            .await?;
        Ok(())
    }

    /// Makes a Secret as the operator does.
    pub(crate) async fn secret(&self, name: &str, data: Value) -> Result<()> {
        let secret =
            json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name }, "stringData": data });
        let secrets: Api<Secret> = Api::namespaced(self.admin.clone(), NAMESPACE);
        let params = PatchParams::apply("tailwharf-operator");
        secrets.patch(name, &params, &Patch::Apply(secret)).await?;
        Ok(())
    }

    /// Starts a pod of a pool; it trusts `extra_ca` beside the authorities of the system.
    pub(crate) async fn member(&self, pool: &str, pod: &str, extra_ca: Option<&str>) -> Result<Member> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let settings = Settings {
            pod_name: pod.to_owned(),
            pod_uid: format!("uid-of-{pod}"),
            pod_addresses: vec!["127.0.0.1".parse().unwrap()],
            namespace: NAMESPACE.to_owned(),
            pool: pool.to_owned(),
            listen: address,
            extra_ca_pem: extra_ca.map(|pem| pem.as_bytes().to_vec()),
            offloads: tailwharf_node::OffloadSwitches::default(),
            http_proxies: tailwharf_node::HttpProxies::default(),
            udp_port: None,
            relay_only: false,
            limits: Limits::default(),
        };
        let stop = CancellationToken::new();
        let client = client(&self.server, Some(ACCOUNT)).await?;
        let task = tokio::spawn(run_with(settings, None, client, listener, stop.clone()));
        Ok(Member { task, stop, address })
    }
}

async fn client(server: &ApiServer, account: Option<&str>) -> Result<Client> {
    let mut kubeconfig = Kubeconfig::read_from(server.kubeconfig())?;
    for named in &mut kubeconfig.auth_infos {
        if let Some(user) = &mut named.auth_info {
            user.impersonate = account.map(str::to_owned);
        }
    }
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// What a pool's Role gives, with these Secrets.
fn rights(secrets: &[String]) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "List",
        "items": [
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "Role",
                "metadata": { "name": "tailwharf-default", "namespace": NAMESPACE },
                "rules": [
                    { "apiGroups": ["tailwharf.dev"], "resources": ["identities"], "verbs": ["get", "list", "watch"] },
                    { "apiGroups": ["tailwharf.dev"], "resources": ["identities/status"], "verbs": ["patch"] },
                    {
                        "apiGroups": ["coordination.k8s.io"],
                        "resources": ["leases"],
                        "verbs": ["get", "list", "watch", "create", "update", "patch"],
                    },
                    { "apiGroups": [""], "resources": ["secrets"], "resourceNames": secrets, "verbs": ["get", "patch"] },
                ],
            },
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "RoleBinding",
                "metadata": { "name": "tailwharf-default", "namespace": NAMESPACE },
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "tailwharf-default" },
                "subjects": [{ "kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": ACCOUNT }],
            },
        ],
    })
}

/// What a member answers to a request.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").as_bytes())
        .await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}
