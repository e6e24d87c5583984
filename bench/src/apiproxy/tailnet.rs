//! The proxy in a cluster, asked over a tailnet by the official client, beside the Go operator's in front of the same API server.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use tailwharf_testkit::lab::NAMESPACE;
use tailwharf_testkit::process::{Process, run};
use tailwharf_testkit::requirements::{Need, unmet};
use tailwharf_testkit::wait::eventually;
use tailwharf_testkit::{Lab, Namespace, workspace};

use crate::figures::{Bar, Figures};
use crate::tools::{Cost, number, within};

const NAME: &str = "benchapi";
const DIR: &str = "/var/lib/tailwharf-bench-apiproxy";
const POLICY: &str = r#"{
    "tagOwners": {"tag:k8s-operator": [], "tag:k8s": ["tag:k8s-operator"]},
    "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
    "grants": [{"src": ["autogroup:member"], "dst": ["tag:k8s-operator"],
                "app": {"tailscale.com/cap/kubernetes": [{"impersonate": {"groups": ["system:masters"]}}]}}],
}"#;
const CONNECTIONS: [u32; 3] = [1, 16, 64];
const SECONDS: &str = "4";
const OBJECT: &str = "/api/v1/namespaces/default/configmaps/asked-for";
/// The namespace and the device of the Go operator.
const PEER: &str = "go-operator";

pub(super) fn measure(figures: &mut Figures) -> Result<()> {
    let needs = [
        Need::Root,
        Need::Cluster,
        Need::OfficialClient,
        Need::OfficialOperator,
        Need::Binary,
        Need::Image,
    ];
    if let Some(reason) = unmet(&needs) {
        anyhow::bail!("this machine cannot run it: {reason}");
    }
    let lab = Lab::start(NAME, Path::new(DIR), |step| println!("  … {step}"))?;
    let policy = lab.dir().join("policy.hujson");
    fs::write(&policy, POLICY)?;
    run(&mut lab
        .tailnet
        .admin(&["policy", "set", &policy.display().to_string()]))?;
    let value = format!("--from-literal=value={}", "x".repeat(300));
    lab.kubectl().run(&["create", "configmap", "asked-for", &value])?;
    let api = lab.cluster.program("kube-apiserver")?;
    let peer = Peer::start(&lab)?;
    let places = [
        Place::direct(&lab)?,
        Place::device(&lab, PEER, vec![peer.process.pid()])?,
        ours(&lab)?,
    ];
    for connections in CONNECTIONS {
        let [direct, theirs, ours] =
            [&places[0], &places[1], &places[2]].map(|place| place.asked(&lab, connections, api));
        add(figures, connections, &ours?, &theirs?, &direct?);
    }
    Ok(())
}

/// What was seen at one number of connections.
struct Seen {
    /// Requests in a second.
    rate: f64,
    /// Milliseconds of a processor for each request: in the proxy, and in the API server.
    proxy: f64,
    api: f64,
}

fn add(figures: &mut Figures, connections: u32, ours: &Seen, theirs: &Seen, direct: &Seen) {
    let mut add = |name: &str, value: f64, unit: &str, peer: f64, bar: Bar| {
        let name = format!("apiproxy.tailnet.{name}_{connections}");
        figures.add(&name, value, unit, Some(peer), Some(bar));
    };
    add("requests", ours.rate, "1/s", theirs.rate, Bar::RatioAtLeast(3.0));
    add("cpu", ours.proxy, "ms", theirs.proxy, Bar::RatioAtMost(0.2));
    // Here the peer is access without a proxy.
    add(
        "api_server_cpu",
        ours.api,
        "ms",
        direct.api,
        Bar::RatioAtMost(1.3),
    );
}

/// Turns the API-server proxy on, and waits for its device.
fn ours(lab: &Lab) -> Result<Place> {
    let manifest = fs::read_to_string(workspace::root().join("deploy/apiserver-proxy.yaml"))?
        .replace("https://controlplane.tailscale.com", lab.tailnet.url());
    let kubectl = lab.kubectl();
    kubectl.apply(&manifest)?;
    let words = [
        "-n",
        NAMESPACE,
        "set",
        "env",
        "deployment/operator",
        "APISERVER_PROXY=true",
    ];
    kubectl.run(&words)?;
    let words = [
        "-n",
        NAMESPACE,
        "rollout",
        "status",
        "statefulset/apiserver-proxy",
        "--timeout=60s",
    ];
    eventually("the pods of the proxy are ready", || {
        kubectl.run(&words).map(drop)
    })?;
    let pods = kubectl.get(&["pods", "-n", NAMESPACE, "-l", "app=apiserver-proxy"])?;
    let mut pids = Vec::new();
    for pod in pods["items"].as_array().into_iter().flatten() {
        let name = pod["metadata"]["name"].as_str().context("a pod without a name")?;
        pids.extend(lab.cluster.pids(NAMESPACE, name, "apiserver-proxy")?);
    }
    Place::device(lab, "tailscale-operator", pids)
}

/// Where the API server can be asked.
struct Place {
    url: String,
    address: String,
    roots: PathBuf,
    token: Option<String>,
    pids: Vec<u32>,
}

impl Place {
    /// The API server itself.
    fn direct(lab: &Lab) -> Result<Self> {
        let kubectl = lab.kubectl();
        let config: Value = serde_json::from_str(&kubectl.run(&["config", "view", "--raw", "-o", "json"])?)?;
        let cluster = &config["clusters"][0]["cluster"];
        let roots = lab.dir().join("cluster.pem");
        match cluster["certificate-authority"].as_str() {
            Some(path) => fs::copy(path, &roots).map(drop)?,
            None => {
                let data = cluster["certificate-authority-data"]
                    .as_str()
                    .context("no authority")?;
                fs::write(&roots, BASE64_STANDARD.decode(data)?)?;
            }
        }
        kubectl.run(&["create", "serviceaccount", "asker"])?;
        let words = [
            "create",
            "clusterrolebinding",
            "asker",
            "--clusterrole=view",
            "--serviceaccount=default:asker",
        ];
        kubectl.run(&words)?;
        let url = cluster["server"].as_str().context("no server")?;
        Ok(Self {
            url: format!("{url}{OBJECT}"),
            address: url.trim_start_matches("https://").to_owned(),
            roots,
            token: Some(kubectl.run(&["create", "token", "asker"])?.trim().to_owned()),
            pids: Vec::new(),
        })
    }

    /// A proxy on a device, once it answers.
    fn device(lab: &Lab, name: &str, pids: Vec<u32>) -> Result<Self> {
        let peer = eventually("the laptop knows the device", || lab.laptop.peer(name))?;
        let fqdn = peer["DNSName"].as_str().context("no name")?.trim_end_matches('.');
        let address = peer["TailscaleIPs"][0].as_str().context("no address")?;
        let place = Self {
            url: format!("https://{fqdn}{OBJECT}"),
            address: format!("{address}:443"),
            roots: lab.root_certificate(),
            token: None,
            pids,
        };
        eventually("the proxy answers", || place.gets(lab, 1, "0.1").map(drop))
            .with_context(|| lab.cluster.dump(NAMESPACE))?;
        Ok(place)
    }

    fn asked(&self, lab: &Lab, connections: u32, api: u32) -> Result<Seen> {
        let (proxy, server) = (Cost::of(&self.pids)?, Cost::of(&[api])?);
        let result = self.gets(lab, connections, SECONDS)?;
        ensure!(
            number(&result, "failed")? == 0.0,
            "requests have failed: {result}"
        );
        let requests = number(&result, "requests")?;
        Ok(Seen {
            rate: requests / number(&result, "seconds")?,
            proxy: proxy.so_far()? * 1e3 / requests,
            api: server.so_far()? * 1e3 / requests,
        })
    }

    fn gets(&self, lab: &Lab, connections: u32, seconds: &str) -> Result<Value> {
        let mut command = within(Some(lab.laptop.namespace()), "gets");
        command.args([&self.url, &self.address]).arg(&self.roots);
        command.args([&connections.to_string(), seconds]);
        command.envs(self.token.iter().map(|token| ("TOKEN", token)));
        let result: Value = serde_json::from_str(&run(&mut command)?)?;
        ensure!(
            number(&result, "requests")? > 0.0,
            "nothing was answered: {result}"
        );
        Ok(result)
    }
}

/// The Go operator with its proxy, on a machine of its own.
struct Peer {
    // Dropped first: it lives in the namespace.
    process: Process,
    _home: Namespace,
}

impl Peer {
    fn start(lab: &Lab) -> Result<Self> {
        let crds = workspace::official_crds().display().to_string();
        let kubectl = lab.kubectl();
        kubectl.run(&["apply", "--server-side", "--force-conflicts", "-f", &crds])?;
        kubectl.run(&["create", "namespace", PEER])?;
        kubectl.run(&["-n", PEER, "create", "serviceaccount", "operator"])?;
        let dir = lab.dir().join(PEER);
        fs::create_dir_all(&dir)?;
        let (id, secret) = lab.tailnet.oauth_client("tag:k8s-operator")?;
        let path = |name: &str| dir.join(name);
        fs::write(path("client_id"), id)?;
        fs::write(path("client_secret"), secret)?;
        let home = lab.bridge.join(PEER)?;
        let mut command = home.command(workspace::official("k8s-operator"));
        command
            .env("KUBECONFIG", kubectl.kubeconfig())
            .env("HOME", &dir)
            .env("XDG_CONFIG_HOME", path("config"))
            .env("OPERATOR_NAMESPACE", PEER)
            .env("OPERATOR_HOSTNAME", PEER)
            .env("OPERATOR_LOGIN_SERVER", lab.tailnet.url())
            .env("OPERATOR_LOGGING", "info")
            .env("APISERVER_PROXY", "true")
            .env("CLIENT_ID_FILE", path("client_id"))
            .env("CLIENT_SECRET_FILE", path("client_secret"))
            .env("PROXY_IMAGE", "tailscale/tailscale:test")
            .env("PROXY_TAGS", "tag:k8s")
            .env("TS_NO_LOGS_NO_SUPPORT", "true")
            .env(
                "TS_DEBUG_ACME_DIRECTORY_URL",
                format!("{}/acme/directory", lab.tailnet.url()),
            )
            .env("SSL_CERT_FILE", lab.root_certificate());
        let process = Process::start("k8s-operator", &mut command, &path("operator.log"))?;
        Ok(Self { process, _home: home })
    }
}
