//! The stage of demo, end-to-end tests and bench: a tailnet, a cluster with the operator, and a laptop.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cluster::Cluster;
use crate::kubectl::Kubectl;
use crate::network::Bridge;
use crate::official::OfficialClient;
use crate::process::{end_recorded, run};
use crate::tailnet::{STORY_POLICY, Tailnet};
use crate::wait::{eventually, eventually_within};
use crate::workspace;

/// The namespace of the operator and its pools.
pub const NAMESPACE: &str = "tailscale";
/// The nginx of Debian behind a Service, as in the product story.
pub const NGINX: &str = include_str!("../manifests/nginx.yaml");
/// A server that echoes what it gets over TCP and UDP.
pub const ECHO: &str = include_str!("../manifests/echo.yaml");
const ROOT: &str = "root.pem";

/// A tailnet, a cluster with the operator installed, and a laptop with the official client.
///
/// Fields are dropped in order: clients before the servers and networks that they live in.
#[derive(Debug)]
pub struct Lab {
    /// Alice's machine, with the official client.
    pub laptop: OfficialClient,
    /// The coordinator with its relay.
    pub tailnet: Tailnet,
    /// The cluster.
    pub cluster: Cluster,
    /// The network that they share.
    pub bridge: Bridge,
    place: Place,
}

/// The folder of a lab; gone with it.
#[derive(Debug)]
struct Place(PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        // Nothing can be reported from here; the next lab of this name removes what is left.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Lab {
    /// Puts everything up under `dir`, calling `progress` before each step.
    ///
    /// # Errors
    /// When a part does not come up.
    pub fn start(name: &str, dir: &Path, progress: impl Fn(&str)) -> Result<Self> {
        Self::start_tuned(name, dir, &[], progress)
    }

    /// The same on a cluster with variables of `cluster.sh`.
    ///
    /// # Errors
    /// When a part does not come up.
    pub fn start_tuned(
        name: &str,
        dir: &Path,
        variables: &[(&str, &str)],
        progress: impl Fn(&str),
    ) -> Result<Self> {
        let lab = Self::without_operator(name, dir, variables, &progress)?;
        progress("the operator");
        lab.install()?;
        Ok(lab)
    }

    /// All but the operator.
    ///
    /// # Errors
    /// When a part does not come up.
    pub fn without_operator(
        name: &str,
        dir: &Path,
        variables: &[(&str, &str)],
        progress: impl Fn(&str),
    ) -> Result<Self> {
        Self::on_nodes(name, dir, 1, variables, progress)
    }

    /// All but the operator, with a cluster of several nodes.
    ///
    /// # Errors
    /// When a part does not come up.
    pub fn on_nodes(
        name: &str,
        dir: &Path,
        nodes: u8,
        variables: &[(&str, &str)],
        progress: impl Fn(&str),
    ) -> Result<Self> {
        Self::remove(name, dir)?;
        fs::create_dir_all(dir)?;
        progress("a Kubernetes cluster: API server, kubelet, containerd, kube-proxy, CoreDNS");
        let cluster = Cluster::up_nodes(name, nodes, variables)?;
        progress("images into the cluster: tailwharf, nginx of Debian, an echo server");
        load_images(&cluster)?;
        progress("the coordinator with its relay, and the policy");
        let bridge = Bridge::of_clusters()?;
        let settings = coordinator(bridge.host());
        let tailnet = Tailnet::start_with(bridge.host(), &dir.join("coordinator"), STORY_POLICY, &settings)?;
        progress("a laptop in a network namespace, with the official client, joined as alice@example.com");
        let laptop = Self::client(&bridge, &tailnet, dir, "laptop", "alice@example.com", "admin")?;
        let root = tailnet.root_certificate()?;
        fs::write(dir.join(ROOT), &root)?;
        laptop.namespace().trust(&root)?;
        let lab = Self {
            laptop,
            tailnet,
            cluster,
            bridge,
            place: Place(dir.to_path_buf()),
        };
        lab.record()?;
        Ok(lab)
    }

    /// One more machine with the official client.
    ///
    /// # Errors
    /// When it does not join.
    pub fn client(
        bridge: &Bridge,
        tailnet: &Tailnet,
        dir: &Path,
        hostname: &str,
        user: &str,
        role: &str,
    ) -> Result<OfficialClient> {
        let key = tailnet.user_key(user, role)?;
        Self::join_with(bridge, tailnet, dir, hostname, &key)
    }

    /// One more machine with the official client, joined by `key`.
    ///
    /// # Errors
    /// When it does not join.
    pub fn join_with(
        bridge: &Bridge,
        tailnet: &Tailnet,
        dir: &Path,
        hostname: &str,
        key: &str,
    ) -> Result<OfficialClient> {
        let home = dir.join(hostname);
        fs::create_dir_all(&home)?;
        let client = OfficialClient::start(bridge.join(hostname)?, &home)?;
        client.join(tailnet.url(), key, hostname)?;
        Ok(client)
    }

    /// Installs CRDs, credentials and operator, and waits until the pool is ready.
    ///
    /// # Errors
    /// When a pod does not become ready; the message has objects, events and logs.
    pub fn install(&self) -> Result<()> {
        install(&self.cluster, &self.tailnet)
    }

    /// One more cluster with an operator of its own on the same tailnet. It is gone when it is dropped, or with the lab.
    ///
    /// # Errors
    /// When a part does not come up.
    pub fn second_cluster(&self, name: &str) -> Result<Cluster> {
        let record = self.place.0.join("clusters");
        fs::write(&record, format!("{name}\n")).with_context(|| format!("{}", record.display()))?;
        Cluster::down(name)?;
        let cluster = Cluster::up(name)?;
        load_images(&cluster)?;
        install(&cluster, &self.tailnet)?;
        Ok(cluster)
    }

    /// Waits until the operator and the pool are ready.
    ///
    /// # Errors
    /// When they are not within two minutes.
    pub fn ready(&self) -> Result<()> {
        ready(&self.cluster)
    }

    /// kubectl as the administrator of the cluster.
    #[must_use]
    pub fn kubectl(&self) -> &Kubectl {
        self.cluster.kubectl()
    }

    /// Where this lab keeps its files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.place.0
    }

    /// The file with the root of the tailnet's certificate authority, which the laptop trusts.
    #[must_use]
    pub fn root_certificate(&self) -> PathBuf {
        self.place.0.join(ROOT)
    }

    /// Deploys a manifest and waits for the rollout of its Deployment.
    ///
    /// # Errors
    /// When it is not available in time.
    pub fn deploy(&self, manifest: &str, deployment: &str) -> Result<()> {
        deploy(self.kubectl(), manifest, deployment)
    }

    /// Waits until a URL answers from the laptop.
    ///
    /// # Errors
    /// The last words of curl.
    pub fn reachable(&self, url: &str) -> Result<String> {
        eventually(&format!("{url} answers at the laptop"), || self.laptop.curl(url))
    }

    /// The devices of the tailnet whose name begins with `prefix`.
    ///
    /// # Errors
    /// When the coordinator does not answer.
    pub fn devices(&self, prefix: &str) -> Result<Vec<String>> {
        let name = |node: &serde_json::Value| node["name"].as_str().unwrap_or_default().to_owned();
        Ok(self
            .tailnet
            .nodes()?
            .iter()
            .map(name)
            .filter(|name| name.starts_with(prefix))
            .collect())
    }

    /// Leaves everything running; [`Lab::remove`] takes it down later.
    pub fn leave(self) {
        std::mem::forget(self);
    }

    /// Removes what a lab of that name left behind, from its record.
    ///
    /// # Errors
    /// When something does not go away.
    pub fn remove(name: &str, dir: &Path) -> Result<()> {
        end_recorded(&dir.join("processes"))?;
        if let Ok(spaces) = fs::read_to_string(dir.join("namespaces")) {
            for space in spaces.lines() {
                let _ = run(Command::new("ip").args(["netns", "del", space]));
                let _ = fs::remove_dir_all(Path::new("/etc/netns").join(space));
            }
        }
        for second in fs::read_to_string(dir.join("clusters"))
            .unwrap_or_default()
            .lines()
        {
            Cluster::down(second)?;
        }
        Cluster::down(name)?;
        if dir.exists() {
            fs::remove_dir_all(dir).with_context(|| format!("{}", dir.display()))?;
        }
        ensure!(!dir.exists(), "{} is still there", dir.display());
        Ok(())
    }

    fn record(&self) -> Result<()> {
        let processes = format!("{}{}", self.tailnet.record()?, self.laptop.record()?);
        fs::write(self.place.0.join("processes"), processes)?;
        fs::write(
            self.place.0.join("namespaces"),
            format!("{}\n", self.laptop.namespace().name()),
        )?;
        Ok(())
    }
}

/// What the story's coordinator does beside: certificates for short names, and a gateway for the internet.
fn coordinator(host: Ipv4Addr) -> String {
    format!("[ca]\nshort_names = true\n\n[[funnel.listeners]]\nlisten = \"{host}:443\"\n")
}

/// Deploys a manifest and waits for the rollout of its Deployment.
///
/// # Errors
/// When it is not available in time.
pub fn deploy(kubectl: &Kubectl, manifest: &str, deployment: &str) -> Result<()> {
    kubectl.apply(manifest)?;
    let target = format!("deployment/{deployment}");
    kubectl
        .run(&["rollout", "status", &target, "--timeout=60s"])
        .map(drop)
}

fn load_images(cluster: &Cluster) -> Result<()> {
    [
        workspace::image(),
        workspace::test_image("nginx"),
        workspace::test_image("echo"),
    ]
    .iter()
    .try_for_each(|image| cluster.load(image))
}

fn install(cluster: &Cluster, tailnet: &Tailnet) -> Result<()> {
    let kubectl = cluster.kubectl();
    let (id, secret) = tailnet.oauth_client("tag:k8s-operator")?;
    let deploy = workspace::root().join("deploy");
    let path = |file: &str| deploy.join(file).display().to_string();
    kubectl.run(&["apply", "--server-side", "-f", &path("crds")])?;
    kubectl.run(&["apply", "--server-side", "-f", &path("operator.yaml")])?;
    kubectl.apply(&format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: operator-oauth, namespace: {NAMESPACE}}}\n\
         stringData: {{client_id: \"{id}\", client_secret: \"{secret}\"}}\n"
    ))?;
    let server = format!("OPERATOR_LOGIN_SERVER={}", tailnet.url());
    kubectl.run(&["-n", NAMESPACE, "set", "env", "deployment/operator", &server])?;
    ready(cluster).with_context(|| cluster.dump(NAMESPACE))
}

fn ready(cluster: &Cluster) -> Result<()> {
    let limit = Duration::from_secs(120);
    eventually_within(limit, "operator and pool are ready", || {
        for target in ["deployment/operator", "statefulset/tailwharf-default"] {
            cluster
                .kubectl()
                .run(&["-n", NAMESPACE, "rollout", "status", target, "--timeout=15s"])?;
        }
        Ok(())
    })
}
