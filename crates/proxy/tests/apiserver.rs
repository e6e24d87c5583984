//! Two members of a pool against a real kube-apiserver, with the rights that a pool's Role gives. Their control server
//! does not answer: this is about who hosts what, and what the status says.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tailwharf_kube_types::{ConditionType, Identity, IdentityReason};
use tailwharf_proxy::{Limits, Settings, run_with};
use tailwharf_testkit::requirements::Need;
use tailwharf_testkit::{ApiServer, Kubectl, workspace};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const NAMESPACE: &str = "tailscale";
const ACCOUNT: &str = "system:serviceaccount:tailscale:tailwharf-default";
const IDENTITIES: usize = 6;
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    // RUST_LOG=tailwharf_proxy=debug shows what the members do.
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    tailwharf_e2e::run(
        &[Need::ApiServer],
        Bed::start,
        &[
            (
                "identities_are_shared_and_handed_over",
                identities_are_shared_and_handed_over,
            ),
            ("a_member_that_dies_is_replaced", a_member_that_dies_is_replaced),
            (
                "a_secret_that_comes_later_is_found",
                a_secret_that_comes_later_is_found,
            ),
            (
                "an_applied_status_depends_on_its_version",
                an_applied_status_depends_on_its_version,
            ),
        ],
    )
}

struct Bed {
    runtime: Runtime,
    admin: Client,
    server: ApiServer,
}

struct Member {
    task: JoinHandle<Result<()>>,
    stop: CancellationToken,
    address: std::net::SocketAddr,
}

impl Bed {
    fn start() -> Result<Self> {
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
        kubectl.apply(&rights().to_string())?;
        let runtime = Runtime::new()?;
        let admin = runtime.block_on(client(&server, None))?;
        Ok(Self {
            runtime,
            admin,
            server,
        })
    }

    fn identities(&self) -> Api<Identity> {
        Api::namespaced(self.admin.clone(), NAMESPACE)
    }

    /// Makes an identity as the operator does.
    async fn identity(&self, name: &str, pool: &str) -> Result<()> {
        let identity: Identity = serde_json::from_value(json!({
            "apiVersion": "tailwharf.dev/v1alpha1",
            "kind": "Identity",
            "metadata": { "name": name, "labels": { "tailwharf.dev/pool": pool } },
            "spec": { "hostname": name, "tags": ["tag:k8s"], "pool": pool, "loginServer": "http://127.0.0.1:1" },
        }))?;
        let params = PatchParams::apply("tailwharf-operator").force();
        self.identities()
            .patch(name, &params, &Patch::Apply(&identity))
            .await?;
        Ok(())
    }

    async fn secret(&self, name: &str) -> Result<()> {
        let secret = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": { "name": format!("{name}-0") },
            "stringData": { "auth_key": "tskey-auth-test" },
        });
        let secrets: Api<Secret> = Api::namespaced(self.admin.clone(), NAMESPACE);
        secrets
            .patch(
                &format!("{name}-0"),
                &PatchParams::apply("tailwharf-operator"),
                &Patch::Apply(secret),
            )
            .await?;
        Ok(())
    }

    async fn member(&self, pool: &str, pod: &str) -> Result<Member> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let settings = Settings {
            pod_name: pod.to_owned(),
            pod_uid: format!("uid-of-{pod}"),
            pod_addresses: vec!["127.0.0.1".parse().unwrap()],
            namespace: NAMESPACE.to_owned(),
            pool: pool.to_owned(),
            listen: address,
            extra_ca_pem: None,
            offloads: tailwharf_node::OffloadSwitches::default(),
            http_proxies: tailwharf_node::HttpProxies::default(),
            relay_only: false,
            limits: Limits::default(),
        };
        let stop = CancellationToken::new();
        let client = client(&self.server, Some(ACCOUNT)).await?;
        let task = tokio::spawn(run_with(settings, None, client, listener, stop.clone()));
        Ok(Member { task, stop, address })
    }

    /// Waits until the identities of the pool are hosted by exactly these pods.
    async fn hosted_by(&self, pool: &str, pods: &[&str]) -> Result<()> {
        let wanted: BTreeSet<&str> = pods.iter().copied().collect();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let all = self.identities().list(&Default::default()).await?;
            let of_pool = all.items.iter().filter(|identity| identity.spec.pool == pool);
            let hosts: Vec<Option<&str>> = of_pool
                .map(|identity| identity.status.as_ref().and_then(|status| status.host.as_deref()))
                .collect();
            if hosts.iter().all(Option::is_some)
                && hosts.iter().flatten().copied().collect::<BTreeSet<_>>() == wanted
            {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "hosts are {hosts:?}, want {wanted:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until an identity is registering, or blocked, for this reason.
    async fn reason(&self, name: &str, reason: IdentityReason) -> Result<Identity> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let identity = self.identities().get(name).await?;
            let step = identity
                .status
                .as_ref()
                .map(|status| status.step(ConditionType::Registered));
            if step.is_some_and(|(_, known)| known == Some(reason)) {
                return Ok(identity);
            }
            ensure!(Instant::now() < deadline, "{:?}, want {reason}", identity.status);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
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

/// What a pool's Role gives, with the Secrets of these tests.
fn rights() -> Value {
    let pools = ["shared", "dying", "later"];
    let secrets: Vec<String> = pools
        .iter()
        .flat_map(|pool| (0..IDENTITIES).map(move |n| format!("ts-{pool}-{n}-0")))
        .collect();
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

async fn get(address: std::net::SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").as_bytes())
        .await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

fn identities_are_shared_and_handed_over(bed: &mut Bed) -> Result<()> {
    bed.runtime.block_on(async {
        for n in 0..IDENTITIES {
            let name = format!("ts-shared-{n}");
            bed.secret(&name).await?;
            bed.identity(&name, "shared").await?;
        }
        let first = bed.member("shared", "shared-0").await?;
        bed.hosted_by("shared", &["shared-0"]).await?;
        let ready = get(first.address, "/readyz").await?;
        ensure!(
            ready.starts_with("HTTP/1.1 200") && ready.contains("ts-shared-0 is not ready"),
            "{ready}"
        );

        let second = bed.member("shared", "shared-1").await?;
        bed.hosted_by("shared", &["shared-0", "shared-1"]).await?;

        first.stop.cancel();
        first.task.await?.context("the first member did not end well")?;
        bed.hosted_by("shared", &["shared-1"]).await?;
        let leases: Api<Lease> = Api::namespaced(bed.admin.clone(), NAMESPACE);
        let holder = leases
            .get("shared-0")
            .await?
            .spec
            .and_then(|spec| spec.holder_identity);
        ensure!(holder.is_none(), "the Lease was not given back: {holder:?}");
        let metrics = get(second.address, "/metrics").await?;
        ensure!(
            metrics.contains(&format!("tailwharf_proxy_identities {IDENTITIES}\n")),
            "{metrics}"
        );

        second.stop.cancel();
        second.task.await?.context("the second member did not end well")?;
        for identity in bed.identities().list(&Default::default()).await?.items {
            let host = identity.status.as_ref().and_then(|status| status.host.as_deref());
            ensure!(host.is_none(), "{} still names {host:?}", identity.name_any());
        }
        Ok(())
    })
}

fn a_member_that_dies_is_replaced(bed: &mut Bed) -> Result<()> {
    bed.runtime.block_on(async {
        for n in 0..IDENTITIES {
            let name = format!("ts-dying-{n}");
            bed.secret(&name).await?;
            bed.identity(&name, "dying").await?;
        }
        let runtime = Runtime::new()?;
        let first = {
            let _inside = runtime.enter();
            bed.member("dying", "dying-0").await?
        };
        let second = bed.member("dying", "dying-1").await?;
        bed.hosted_by("dying", &["dying-0", "dying-1"]).await?;
        drop(first.task);
        // Everything of the first member stops where it is, as after SIGKILL.
        runtime.shutdown_background();
        let died = Instant::now();
        bed.hosted_by("dying", &["dying-1"]).await?;
        ensure!(
            died.elapsed() >= Duration::from_secs(1),
            "taken over before the Lease could have ended"
        );
        second.stop.cancel();
        second.task.await?.context("the second member did not end well")
    })
}

fn a_secret_that_comes_later_is_found(bed: &mut Bed) -> Result<()> {
    bed.runtime.block_on(async {
        bed.identity("ts-later-0", "later").await?;
        let member = bed.member("later", "later-0").await?;
        bed.reason("ts-later-0", IdentityReason::SecretUnavailable)
            .await?;
        bed.secret("ts-later-0").await?;
        let identity = bed
            .reason("ts-later-0", IdentityReason::ControlServerUnreachable)
            .await?;
        let status = identity.status.context("the identity has no status")?;
        if status.host.as_deref() != Some("later-0") || status.claim.is_none() {
            bail!("{status:?}");
        }
        let secrets: Api<Secret> = Api::namespaced(bed.admin.clone(), NAMESPACE);
        let data = secrets.get("ts-later-0-0").await?.data.unwrap_or_default();
        for key in ["_machinekey", "_current-profile", "auth_key", "pod_uid"] {
            ensure!(
                data.contains_key(key),
                "the Secret lacks {key}: {:?}",
                data.keys()
            );
        }
        member.stop.cancel();
        member.task.await?.context("the member did not end well")
    })
}

/// What claims rely on: of two that depend on the same version, the API server takes one, forced or not.
fn an_applied_status_depends_on_its_version(bed: &mut Bed) -> Result<()> {
    bed.runtime.block_on(async {
        bed.identity("ts-version-0", "version").await?;
        let version = bed.identities().get("ts-version-0").await?.resource_version();
        let claim = async |pod: &str| {
            let document = json!({
                "apiVersion": "tailwharf.dev/v1alpha1",
                "kind": "Identity",
                "metadata": { "name": "ts-version-0", "resourceVersion": version },
                "status": { "host": pod, "claim": "1.1" },
            });
            let params = PatchParams::apply(pod).force();
            bed.identities()
                .patch_status("ts-version-0", &params, &Patch::Apply(document))
                .await
        };
        claim("pod-0").await?;
        match claim("pod-1").await {
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            other => bail!("the later claim was answered with {other:?}"),
        }
    })
}
