//! The official operator, unchanged, against our coordinator: what it calls of API v2, on a real API server. No pods run here; the test does what a
//! proxy's pod and the cluster's garbage collector would do.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tailwharf_testkit::kubectl::Kubectl;
use tailwharf_testkit::process::{Process, run};
use tailwharf_testkit::requirements::Need;
use tailwharf_testkit::wait::eventually;
use tailwharf_testkit::{ApiServer, Bridge, Lab, Namespace, OfficialClient, Tailnet, workspace};
use tempfile::TempDir;

const NAMESPACE: &str = "tailscale";
const POLICY: &str = r#"{
  "tagOwners": {"tag:k8s-operator": [], "tag:k8s": ["tag:k8s-operator"]},
  "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
}"#;
/// The issuer of the test API server's tokens.
const ISSUER: &str = "https://kubernetes.default.svc";

struct Fixture {
    operator: Process,
    kubectl: Kubectl,
    /// The device of the exposed Service, once there is one.
    proxy: Option<OfficialClient>,
    tailnet: Tailnet,
    _apiserver: ApiServer,
    // Dropped after the operator, which lives in it.
    _home: Namespace,
    bridge: Bridge,
    dir: TempDir,
}

fn main() -> ExitCode {
    let needs = [
        Need::Root,
        Need::ApiServer,
        Need::OfficialClient,
        Need::OfficialOperator,
        Need::Binary,
    ];
    tailwharf_e2e::run(
        &needs,
        start,
        &[
            ("operator_joins_by_its_oauth_client", joins),
            ("exposed_service_gets_a_key_by_which_a_proxy_joins", exposes),
            ("deleted_service_deletes_its_device", deletes),
            ("ha_ingress_makes_a_vip_service", makes_service),
            ("deleted_ingress_deletes_the_vip_service", deletes_service),
            ("tailnet_by_workload_identity_needs_no_secret", workload_identity),
        ],
    )
}

fn start() -> Result<Fixture> {
    let dir = tempfile::Builder::new()
        .prefix("tailwharf-go-operator-")
        .tempdir()?;
    let bridge = Bridge::create()?;
    let apiserver = ApiServer::start_on(bridge.host())?;
    let kubectl = Kubectl::new(apiserver.kubeconfig());
    let keys = dir.path().join("jwks.json");
    fs::write(&keys, kubectl.run(&["get", "--raw", "/openid/v1/jwks"])?)?;
    let issuers = format!(
        "\n[[issuers]]\nurl = \"{ISSUER}\"\njwks_file = \"{}\"\n",
        keys.display()
    );
    let coordinator = dir.path().join("coordinator");
    let tailnet = Tailnet::start_with(bridge.host(), &coordinator, POLICY, &issuers)?;

    let crds = workspace::official_crds().display().to_string();
    kubectl.run(&["apply", "--server-side", "-f", &crds])?;
    kubectl.apply(&objects())?;
    let home = bridge.join("operator")?;
    let operator = start_operator(&home, &apiserver, &tailnet, &dir)?;
    Ok(Fixture {
        operator,
        kubectl,
        proxy: None,
        tailnet,
        _apiserver: apiserver,
        _home: home,
        bridge,
        dir,
    })
}

/// What the operator's chart installs beside it, as far as it matters without pods.
fn objects() -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}\n---\n\
         apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: operator, namespace: {NAMESPACE}}}\n---\n\
         apiVersion: networking.k8s.io/v1\nkind: IngressClass\nmetadata: {{name: tailscale}}\n\
         spec: {{controller: tailscale.com/ts-ingress}}\n"
    )
}

fn start_operator(
    home: &Namespace,
    apiserver: &ApiServer,
    tailnet: &Tailnet,
    dir: &TempDir,
) -> Result<Process> {
    let (id, secret) = tailnet.oauth_client("tag:k8s-operator")?;
    let path = |name: &str| dir.path().join(name);
    fs::write(path("client_id"), id)?;
    fs::write(path("client_secret"), secret)?;
    let mut command = home.command(workspace::official("k8s-operator"));
    command
        .env("KUBECONFIG", apiserver.kubeconfig())
        .env("HOME", dir.path())
        .env("XDG_CONFIG_HOME", path("config"))
        .env("OPERATOR_NAMESPACE", NAMESPACE)
        .env("OPERATOR_LOGIN_SERVER", tailnet.url())
        .env("OPERATOR_LOGGING", "debug")
        .env("CLIENT_ID_FILE", path("client_id"))
        .env("CLIENT_SECRET_FILE", path("client_secret"))
        .env("PROXY_IMAGE", "tailscale/tailscale:test")
        .env("PROXY_TAGS", "tag:k8s")
        .env("TS_NO_LOGS_NO_SUPPORT", "true");
    Process::start("k8s-operator", &mut command, &path("operator.log"))
}

impl Fixture {
    /// Waits for something, and shows the operator's last words if it does not come.
    fn await_operator<T>(&mut self, what: &str, check: impl FnMut(&mut Self) -> Result<T>) -> Result<T> {
        let mut check = check;
        eventually(what, || {
            self.operator.alive()?;
            check(self)
        })
        .with_context(|| self.operator.log_end(40))
    }

    /// The device with this host name.
    fn device(&self, hostname: &str) -> Result<Value> {
        let nodes = self.tailnet.nodes()?;
        let found = nodes.into_iter().find(|node| node["hostname"] == hostname);
        found.with_context(|| format!("no device {hostname}"))
    }

    fn service(&self, name: &str) -> Result<Value> {
        let services = self.tailnet.administer(&["service", "list"])?;
        let found = services.as_array().into_iter().flatten();
        let found = found.into_iter().find(|service| service["name"] == name);
        found
            .cloned()
            .with_context(|| format!("no service {name}: {services}"))
    }

    /// The one object of a kind in the operator's namespace with this parent.
    fn child(&self, kind: &str, parent: &str) -> Result<Value> {
        let selector = format!("tailscale.com/parent-resource={parent}");
        let list = self.kubectl.get(&["-n", NAMESPACE, kind, "-l", &selector])?;
        let found = list["items"].get(0).cloned();
        found.with_context(|| format!("no {kind} of {parent}"))
    }

    /// Writes into a Secret what the proxy whose state it is would write.
    fn write_state(&self, secret: &str, data: &BTreeMap<&str, String>) -> Result<()> {
        let patch = json!({"stringData": data}).to_string();
        self.kubectl
            .run(&[
                "-n",
                NAMESPACE,
                "patch",
                "secret",
                secret,
                "--type=merge",
                "-p",
                &patch,
            ])
            .map(drop)
    }
}

fn joins(fixture: &mut Fixture) -> Result<()> {
    let device = fixture.await_operator("the operator is on the tailnet", |fixture| {
        let device = fixture.device("tailscale-operator")?;
        ensure!(device["connectedToControl"] == true, "not connected: {device}");
        Ok(device)
    })?;
    ensure!(device["tags"] == json!(["tag:k8s-operator"]), "{device}");
    ensure!(device["authorized"] == true, "{device}");
    Ok(())
}

/// The file of tailscaled's configuration in a Secret that the operator made.
fn proxy_config(secret: &Value) -> Result<Value> {
    let data = secret["data"].as_object().context("no data")?;
    let (_, value) = data
        .iter()
        .find(|(name, _)| name.starts_with("cap-"))
        .context("no configuration yet")?;
    let text = BASE64_STANDARD.decode(value.as_str().unwrap_or_default())?;
    Ok(serde_json::from_slice(&text)?)
}

fn exposes(fixture: &mut Fixture) -> Result<()> {
    fixture.kubectl.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: default, \
         annotations: {tailscale.com/expose: \"true\", tailscale.com/hostname: web}}\n\
         spec: {ports: [{port: 80}]}\n",
    )?;
    let (secret, config) = fixture.await_operator("the operator makes a proxy's Secret", |fixture| {
        fixture.child("statefulset", "web")?;
        let secret = fixture.child("secret", "web")?;
        let config = proxy_config(&secret)?;
        ensure!(config["AuthKey"].is_string(), "no key");
        Ok((secret, config))
    })?;
    ensure!(
        config["ServerURL"] == fixture.tailnet.url(),
        "server {}",
        config["ServerURL"]
    );
    ensure!(config["Hostname"] == "web", "host name {}", config["Hostname"]);

    let key = config["AuthKey"].as_str().unwrap_or_default();
    let proxy = Lab::join_with(&fixture.bridge, &fixture.tailnet, fixture.dir.path(), "web", key)?;
    let device = fixture.device("web")?;
    ensure!(device["tags"] == json!(["tag:k8s"]), "{device}");
    fixture.proxy = Some(proxy);

    let name = secret["metadata"]["name"]
        .as_str()
        .context("a Secret without name")?;
    let word = |field: &str| device[field].as_str().unwrap_or_default().to_owned();
    let state = BTreeMap::from([
        ("device_id", word("nodeId")),
        ("device_fqdn", format!("{}.", word("name"))),
        ("device_ips", device["addresses"].to_string()),
    ]);
    fixture.write_state(name, &state)
}

fn deletes(fixture: &mut Fixture) -> Result<()> {
    fixture
        .kubectl
        .run(&["delete", "service", "web", "--wait=false"])?;
    fixture.await_operator("the device is gone", |fixture| {
        // The garbage collector's part: the operator deletes in the foreground and waits for it.
        if let Ok(set) = fixture.child("statefulset", "web")
            && set["metadata"]["deletionTimestamp"].is_string()
        {
            let name = set["metadata"]["name"].as_str().unwrap_or_default();
            let free = r#"{"metadata": {"finalizers": null}}"#;
            let words = [
                "-n",
                NAMESPACE,
                "patch",
                "statefulset",
                name,
                "--type=merge",
                "-p",
                free,
            ];
            fixture.kubectl.run(&words)?;
        }
        ensure!(fixture.device("web").is_err(), "the device is still there");
        Ok(())
    })?;
    fixture.await_operator("the Service is gone", |fixture| {
        let found = fixture.kubectl.run(&["get", "service", "web"]);
        ensure!(found.is_err(), "the Service is still there");
        Ok(())
    })?;
    ensure!(fixture.child("secret", "web").is_err(), "a Secret is left");
    fixture.proxy = None;
    Ok(())
}

/// A pod of a ProxyGroup with a real device behind it, as the operator sees both.
fn proxy_group(fixture: &mut Fixture) -> Result<()> {
    fixture.kubectl.apply(
        "apiVersion: tailscale.com/v1alpha1\nkind: ProxyGroup\nmetadata: {name: edge}\n\
         spec: {type: ingress, replicas: 1}\n",
    )?;
    let config = fixture.await_operator("the operator makes the group's Secrets", |fixture| {
        let words = ["-n", NAMESPACE, "secret", "edge-0-config"];
        let config = proxy_config(&fixture.kubectl.get(&words)?)?;
        ensure!(config["AuthKey"].is_string(), "no key");
        Ok(config)
    })?;
    let key = config["AuthKey"].as_str().unwrap_or_default();
    let proxy = Lab::join_with(
        &fixture.bridge,
        &fixture.tailnet,
        fixture.dir.path(),
        "edge-0",
        key,
    )?;
    let profile = fs::read_to_string(fixture.dir.path().join("edge-0/tailscaled.state"))?;
    fixture.proxy = Some(proxy);
    fixture.kubectl.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: edge-0, namespace: {NAMESPACE}}}\n\
         spec: {{containers: [{{name: proxy, image: none}}]}}\n"
    ))?;
    let pod = fixture.kubectl.get(&["-n", NAMESPACE, "pod", "edge-0"])?;
    let device = fixture.device("edge-0")?;
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut state = BTreeMap::from([
        ("pod_uid", word(&pod["metadata"]["uid"])),
        ("device_id", word(&device["nodeId"])),
        ("device_fqdn", format!("{}.", word(&device["name"]))),
        ("device_ips", device["addresses"].to_string()),
    ]);
    // The client's own state file has the keys that a proxy keeps in its Secret.
    let stored: BTreeMap<String, String> = serde_json::from_str(&profile)?;
    let secret = json!({"data": stored}).to_string();
    let words = [
        "-n",
        NAMESPACE,
        "patch",
        "secret",
        "edge-0",
        "--type=merge",
        "-p",
        &secret,
    ];
    fixture.kubectl.run(&words)?;
    state.retain(|_, value| !value.is_empty());
    fixture.write_state("edge-0", &state)?;
    fixture.await_operator("the group is available", |fixture| {
        let group = fixture.kubectl.get(&["proxygroup", "edge"])?;
        let (status, _, message) = tailwharf_e2e::condition(&group, "ProxyGroupAvailable")?;
        ensure!(status == "True", "{message}");
        Ok(())
    })
}

fn makes_service(fixture: &mut Fixture) -> Result<()> {
    proxy_group(fixture)?;
    fixture.kubectl.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: shop, namespace: default}\nspec: {ports: [{port: 80}]}\n---\n\
         apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: shop, namespace: default, \
         annotations: {tailscale.com/proxy-group: edge}}\n\
         spec: {ingressClassName: tailscale, tls: [{hosts: [shop]}], \
         defaultBackend: {service: {name: shop, port: {number: 80}}}}\n",
    )?;
    let service = fixture.await_operator("the operator makes a VIP service", |fixture| {
        fixture.service("svc:shop")
    })?;
    ensure!(service["ports"] == json!(["tcp:443"]), "{service}");
    ensure!(service["tags"] == json!(["tag:k8s"]), "{service}");
    ensure!(service["addrs"].as_array().map(Vec::len) == Some(2), "{service}");
    let owners = service["annotations"]["tailscale.com/owner-references"].as_str();
    let operator = fixture.device("tailscale-operator")?;
    let id = operator["nodeId"].as_str().unwrap_or_default();
    ensure!(owners.is_some_and(|owners| owners.contains(id)), "{service}");
    Ok(())
}

fn deletes_service(fixture: &mut Fixture) -> Result<()> {
    fixture
        .kubectl
        .run(&["delete", "ingress", "shop", "--wait=false"])?;
    fixture.await_operator("the VIP service is gone", |fixture| {
        ensure!(fixture.service("svc:shop").is_err(), "it is still there");
        let found = fixture.kubectl.run(&["get", "ingress", "shop"]);
        ensure!(found.is_err(), "the Ingress is still there");
        Ok(())
    })?;
    fixture.proxy = None;
    Ok(())
}

fn workload_identity(fixture: &mut Fixture) -> Result<()> {
    let subject = format!("system:serviceaccount:{NAMESPACE}:operator");
    let client = fixture.tailnet.administer(&[
        "oauth-client",
        "create",
        "--scopes",
        "auth_keys,devices:core,services",
        "--tags",
        "tag:k8s-operator",
        "--issuer",
        ISSUER,
        "--subject",
        &subject,
    ])?;
    let id = client["id"].as_str().context("no id")?;
    let audience = client["audience"].as_str().context("no audience")?;
    ensure!(client.get("key").is_none(), "a federated client has no secret");
    let url = fixture.tailnet.url().to_owned();

    // A token for another audience, and one of another account, are refused.
    fixture
        .kubectl
        .run(&["create", "serviceaccount", "stranger", "-n", NAMESPACE])?;
    for (account, audience, outcome) in [
        ("operator", audience, true),
        ("operator", "other", false),
        ("stranger", audience, false),
    ] {
        let words = [
            "create",
            "token",
            account,
            "-n",
            NAMESPACE,
            "--audience",
            audience,
        ];
        let token = fixture.kubectl.run(&words)?;
        let form = format!("client_id={id}&jwt={}", token.trim());
        let call = format!("{url}/api/v2/oauth/token-exchange");
        let answer = run(Command::new("curl").args(["-sf", "--data", &form, &call]));
        ensure!(answer.is_ok() == outcome, "{account} for {audience}: {answer:?}");
    }

    // The operator does the same by itself for a Tailnet.
    fixture.kubectl.apply(&format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: wif, namespace: {NAMESPACE}}}\n\
         stringData: {{client_id: \"{id}\", audience: \"{audience}\"}}\n---\n\
         apiVersion: tailscale.com/v1alpha1\nkind: Tailnet\nmetadata: {{name: wif}}\n\
         spec: {{loginUrl: \"{url}\", credentials: {{secretName: wif}}}}\n"
    ))?;
    fixture.await_operator("the Tailnet is ready", |fixture| {
        let tailnet = fixture.kubectl.get(&["tailnet", "wif"])?;
        let (status, _, message) = tailwharf_e2e::condition(&tailnet, "TailnetReady")?;
        ensure!(status == "True", "{message}");
        Ok(())
    })
}
