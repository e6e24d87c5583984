//! kubectl through the tailnet: the official client's kubeconfig at a laptop, the API-server proxy in a real cluster.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use tailwharf_testkit::lab::{NAMESPACE, NGINX};
use tailwharf_testkit::process::{output, run};
use tailwharf_testkit::requirements::Need;
use tailwharf_testkit::sessions::Person;
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
            ("exec_over_each_protocol", |fixture| {
                fixture.alice(|person, _| person.exec())
            }),
            ("exec_in_a_terminal", |fixture| {
                fixture.alice(|person, _| person.terminal())
            }),
            ("copies_both_ways", |fixture| {
                fixture.alice(|person, dir| person.copy(dir))
            }),
            ("attach_logs_and_port_forward", |fixture| {
                fixture.alice(|person, _| person.follow())
            }),
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
    kubectl.run(&[
        "-n",
        NAMESPACE,
        "set",
        "env",
        "deployment/operator",
        "APISERVER_PROXY=true",
    ])?;
    kubectl.apply(READERS)?;
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

    /// Alice at her laptop, with the pod of nginx.
    fn alice(&self, act: impl FnOnce(&Person<'_>, &Path) -> Result<()>) -> Result<()> {
        let pod = self.lab.kubectl().run(&[
            "get",
            "pods",
            "-l",
            "app=nginx",
            "-o",
            "jsonpath={.items[0].metadata.name}",
        ])?;
        let person = Person {
            kubectl: &|arguments| self.kubectl(&self.lab.laptop, arguments),
            curl: &|arguments| {
                let mut command = self.lab.laptop.namespace().command("curl");
                command.args(arguments);
                command
            },
            pod: &pod,
        };
        act(&person, self.lab.dir())
    }

    /// One more machine, joined by somebody who is no administrator.
    fn member(&self, hostname: &str, user: &str) -> Result<OfficialClient> {
        let lab = &self.lab;
        Lab::client(&lab.bridge, &lab.tailnet, lab.dir(), hostname, user, "member")
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

fn others(fixture: &mut Fixture) -> Result<()> {
    let bob = fixture.member("bobs", "bob@example.com")?;
    eventually("Bob reads", || {
        run(&mut fixture.kubectl(&bob, &["get", "pods"])).map(drop)
    })?;
    let words = fixture.refused(&bob, &["create", "configmap", "by-bob"])?;
    ensure!(words.contains("forbidden"), "{words}");
    drop(bob);
    let carol = fixture.member("carols", "carol@example.com")?;
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
