//! kubectl through the tailnet: the official client's kubeconfig at a laptop, the API-server proxy in a real cluster.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use tailwharf_testkit::lab::{NAMESPACE, NGINX};
use tailwharf_testkit::process::run;
use tailwharf_testkit::requirements::Need;
use tailwharf_testkit::wait::eventually;
use tailwharf_testkit::{Lab, OfficialClient, workspace};

/// Alice administers from a Linux machine.
const POLICY: &str = r#"{
    "groups": {"group:admin": ["alice@example.com"]},
    "tagOwners": {"tag:k8s-operator": [], "tag:k8s": ["tag:k8s-operator"]},
    "acls": [{"action": "accept", "src": ["*"], "dst": ["tag:k8s-operator:*", "tag:k8s:*"]}],
    "grants": [
        {"src": ["group:admin"], "srcPosture": ["posture:system"], "dst": ["tag:k8s-operator"],
         "app": {"tailscale.com/cap/kubernetes": [{"impersonate": {"groups": ["system:masters"]}}]}},
    ],
    "postures": {"posture:system": ["node:os IN ['linux']"]},
}"#;

struct Fixture {
    lab: Lab,
    kubeconfig: PathBuf,
    ca: PathBuf,
}

fn main() -> ExitCode {
    let needs = [
        Need::Root,
        Need::Cluster,
        Need::OfficialClient,
        Need::Binary,
        Need::Image,
    ];
    tailwharf_e2e::run(
        &needs,
        start,
        &[("the_official_client_writes_a_kubeconfig_that_works", kubeconfig)],
    )
}

fn start() -> Result<Fixture> {
    let dir = Path::new("/var/lib/tailwharf-e2e-apiproxy");
    let lab = Lab::start("e2eapi", dir, |_| ())?;
    let fixture = Fixture {
        kubeconfig: dir.join("kubeconfig"),
        ca: dir.join("root.pem"),
        lab,
    };
    fixture.set_policy()?;
    let root =
        run(Command::new("curl").args(["-sf", &format!("{}/acme/root.pem", fixture.lab.tailnet.url())]))?;
    fs::write(&fixture.ca, root)?;
    let kubectl = fixture.lab.kubectl();
    let manifest = fs::read_to_string(workspace::root().join("deploy/apiserver-proxy.yaml"))?
        .replace("https://controlplane.tailscale.com", fixture.lab.tailnet.url());
    kubectl.apply(&manifest)?;
    kubectl.run(&[
        "-n",
        NAMESPACE,
        "set",
        "env",
        "deployment/operator",
        "APISERVER_PROXY=true",
    ])?;
    fixture.lab.deploy(NGINX, "nginx")?;
    Ok(fixture)
}

impl Fixture {
    fn set_policy(&self) -> Result<()> {
        let file = self.lab.dir().join("policy-now.hujson");
        fs::write(&file, POLICY)?;
        run(&mut self
            .lab
            .tailnet
            .admin(&["policy", "set", &file.display().to_string()]))
        .map(drop)
    }

    /// kubectl on a machine, by the kubeconfig that the official client has written there.
    fn kubectl(&self, machine: &OfficialClient, arguments: &[&str]) -> Command {
        let mut command = machine.namespace().command(workspace::kubernetes("kubectl"));
        command
            .env("KUBECONFIG", &self.kubeconfig)
            .env("SSL_CERT_FILE", &self.ca)
            .arg("--request-timeout=20s")
            .args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        run(&mut self.kubectl(&self.lab.laptop, arguments))
    }
}

fn kubeconfig(fixture: &mut Fixture) -> Result<()> {
    let lab = &fixture.lab;
    let words = eventually("the official client finds the proxy", || {
        let mut configure = lab
            .laptop
            .tailscale(&["configure", "kubeconfig", "tailscale-operator"]);
        run(configure.env("KUBECONFIG", &fixture.kubeconfig))
    })
    .with_context(|| lab.cluster.dump(NAMESPACE))?;
    ensure!(words.contains("kubeconfig configured for"), "{words}");
    eventually("kubectl answers", || {
        fixture.run(&["get", "pods", "-A"]).map(drop)
    })
    .with_context(|| lab.cluster.dump(NAMESPACE))?;
    let user = fixture.run(&["auth", "whoami", "-o", "jsonpath={.status.userInfo}"])?;
    ensure!(
        user.contains("alice@example.com") && user.contains("system:masters"),
        "{user}"
    );
    ensure!(user.contains("laptop."), "the device is named: {user}");
    fixture.run(&["create", "configmap", "by-alice"])?;
    fixture.run(&["delete", "configmap", "by-alice"])?;
    let audit = lab
        .kubectl()
        .run(&["-n", NAMESPACE, "logs", "-l", "app=apiserver-proxy", "--tail=200"])?;
    ensure!(
        audit
            .lines()
            .any(|line| line.contains("audit.k8s.io/v1") && line.contains("alice@example.com")),
        "no audit line: {audit}"
    );
    Ok(())
}
