//! kubectl through the tailnet: the official client's kubeconfig at a laptop, the API-server proxy in a real cluster.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use tailwharf_testkit::lab::{NAMESPACE, NGINX};
use tailwharf_testkit::process::{output, run};
use tailwharf_testkit::requirements::Need;
use tailwharf_testkit::wait::eventually;
use tailwharf_testkit::{Lab, OfficialClient, workspace};

/// Alice administers from a Linux machine, Bob reads, Carol has no grant.
const POLICY: &str = r#"{
    "groups": {"group:admin": ["alice@example.com"], "group:dev": ["bob@example.com"]},
    "tagOwners": {"tag:k8s-operator": [], "tag:k8s": ["tag:k8s-operator"]},
    "acls": [{"action": "accept", "src": ["*"], "dst": ["tag:k8s-operator:*", "tag:k8s:*"]}],
    "grants": [
        {"src": ["group:admin"], "srcPosture": ["posture:system"], "dst": ["tag:k8s-operator"],
         "app": {"tailscale.com/cap/kubernetes": [{"impersonate": {"groups": ["system:masters"]}}]}},
        {"src": ["group:dev"], "dst": ["tag:k8s-operator"],
         "app": {"tailscale.com/cap/kubernetes": [{"impersonate": {"groups": ["tailnet-readers"]}}]}},
    ],
    "postures": {"posture:system": ["node:os IN ['SYSTEM']"]},
}"#;

const READERS: &str = "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {name: tailnet-readers}\n\
    roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}\n\
    subjects: [{kind: Group, apiGroup: rbac.authorization.k8s.io, name: tailnet-readers}]\n";

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
        &[
            ("the_official_client_writes_a_kubeconfig_that_works", kubeconfig),
            ("exec_cp_logs_and_port_forward", sessions),
            ("f_00_exec_over_spdy_and_over_websocket", both_protocols),
            ("h_10_a_reader_and_a_stranger", others),
            (
                "h_18_a_device_that_fails_the_posture_loses_its_watch_and_is_told",
                posture,
            ),
        ],
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
    fixture.set_policy("linux")?;
    let root =
        run(Command::new("curl").args(["-sf", &format!("{}/acme/root.pem", fixture.lab.tailnet.url())]))?;
    fs::write(&fixture.ca, root)?;
    let kubectl = fixture.lab.kubectl();
    let manifest = fs::read_to_string(workspace::root().join("deploy/apiserver-proxy.yaml"))?
        .replace("https://controlplane.tailscale.com", fixture.lab.tailnet.url());
    kubectl.apply(&manifest)?;
    kubectl.apply(READERS)?;
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
    fn set_policy(&self, system: &str) -> Result<()> {
        let file = self.lab.dir().join("policy-now.hujson");
        fs::write(&file, POLICY.replace("SYSTEM", system))?;
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

    /// What kubectl says when it must not succeed.
    fn refused(&self, machine: &OfficialClient, arguments: &[&str]) -> Result<String> {
        let output = output(&mut self.kubectl(machine, arguments))?;
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success(), "{arguments:?} succeeded");
        Ok(words)
    }

    fn pod(&self) -> Result<String> {
        let name = self.run(&["get", "pods", "-l", "app=nginx", "-o", "name"])?;
        Ok(name.trim().to_owned())
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

fn sessions(fixture: &mut Fixture) -> Result<()> {
    let pod = fixture.pod()?;
    let name = pod.trim_start_matches("pod/");
    let words = fixture.run(&[
        "exec",
        &pod,
        "--",
        "/bin/sh",
        "-c",
        "echo out; echo err >&2; exit 0",
    ])?;
    ensure!(words == "out\n", "{words:?}");
    let failed = output(&mut fixture.kubectl(
        &fixture.lab.laptop,
        &["exec", &pod, "--", "/bin/sh", "-c", "exit 7"],
    ))?;
    ensure!(failed.status.code() == Some(7), "{failed:?}");
    let local = fixture.lab.dir().join("data");
    let bytes: Vec<u8> = (0..8_u32 << 20)
        .map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    fs::write(&local, &bytes)?;
    let (from, back) = (local.display().to_string(), fixture.lab.dir().join("back"));
    fixture.run(&["cp", &from, &format!("default/{name}:/tmp/data")])?;
    fixture.run(&[
        "cp",
        &format!("default/{name}:/tmp/data"),
        &back.display().to_string(),
    ])?;
    ensure!(fs::read(&back)? == bytes, "the copy is another one");
    // A log that is followed tells what comes later.
    let mut logs = Running::start(
        &mut fixture.kubectl(&fixture.lab.laptop, &["logs", "-f", "--request-timeout=0", &pod]),
    )?;
    let mut forward = Running::start(&mut fixture.kubectl(
        &fixture.lab.laptop,
        &["port-forward", "--request-timeout=0", &pod, "18080:80"],
    ))?;
    forward.line("Forwarding from")?;
    let page = fixture
        .lab
        .laptop
        .curl("http://127.0.0.1:18080/?through-the-forward")?;
    ensure!(page.contains("nginx"), "{page}");
    logs.line("through-the-forward")
}

/// A kubectl that goes on, and what it prints.
struct Running {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Running {
    fn start(command: &mut Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let out = child.stdout.take().context("no output")?;
        Ok(Self {
            child,
            lines: BufReader::new(out).lines(),
        })
    }

    /// Reads until a line has `text`.
    fn line(&mut self, text: &str) -> Result<()> {
        for line in self.lines.by_ref() {
            if line?.contains(text) {
                return Ok(());
            }
        }
        anyhow::bail!("it ended before it printed {text:?}")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn both_protocols(fixture: &mut Fixture) -> Result<()> {
    let pod = fixture.pod()?;
    for websockets in ["true", "false"] {
        let mut command = fixture.kubectl(
            &fixture.lab.laptop,
            &["exec", "-i", &pod, "--", "/bin/sh", "-c", "cat; echo end"],
        );
        let output = output(command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets))?;
        ensure!(output.stdout == b"end\n", "{websockets}: {output:?}");
    }
    Ok(())
}

fn others(fixture: &mut Fixture) -> Result<()> {
    let lab = &fixture.lab;
    let bob = Lab::client(
        &lab.bridge,
        &lab.tailnet,
        lab.dir(),
        "bobs",
        "bob@example.com",
        "member",
    )?;
    eventually("Bob reads", || {
        run(&mut fixture.kubectl(&bob, &["get", "pods"])).map(drop)
    })?;
    let words = fixture.refused(&bob, &["create", "configmap", "by-bob"])?;
    ensure!(words.contains("forbidden"), "{words}");
    drop(bob);
    let carol = Lab::client(
        &lab.bridge,
        &lab.tailnet,
        lab.dir(),
        "carols",
        "carol@example.com",
        "member",
    )?;
    let words = eventually("Carol is told what is missing", || {
        let words = fixture.refused(&carol, &["get", "pods"])?;
        ensure!(words.contains("tailscale.com/cap/kubernetes"), "{words}");
        Ok(words)
    })?;
    ensure!(words.contains("Error from server (Forbidden)"), "{words}");
    Ok(())
}

fn posture(fixture: &mut Fixture) -> Result<()> {
    let mut watch = fixture
        .kubectl(
            &fixture.lab.laptop,
            &[
                "get",
                "--raw",
                "/api/v1/namespaces?watch=1",
                "--request-timeout=0",
            ],
        )
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    fixture.set_policy("macos")?;
    eventually("the watch has ended", || {
        ensure!(watch.try_wait()?.is_some(), "it goes on");
        Ok(())
    })?;
    let words = fixture.refused(&fixture.lab.laptop, &["get", "pods"])?;
    ensure!(words.contains("srcPosture") && words.contains("linux"), "{words}");
    fixture.set_policy("linux")?;
    eventually("Alice is back", || fixture.run(&["get", "pods"]).map(drop))
}
