//! The proxy in front of a real cluster: sessions that end in a kubelet, by a real kubectl over each protocol.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod shared;

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};
use serde_json::json;
use tailwharf_apiproxy::CAPABILITY;
use tailwharf_recorder::{Limits, Store, serve};
use tailwharf_testkit::cluster::Cluster;
use tailwharf_testkit::lab::{NGINX, deploy};
use tailwharf_testkit::process::output;
use tailwharf_testkit::requirements::Need;
use tailwharf_testkit::sessions::{PROTOCOLS, Person};
use tailwharf_testkit::{eventually, workspace};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use self::shared::front::Front;
use self::shared::{accepted, device, groups};

fn main() -> ExitCode {
    tailwharf_e2e::run(
        &[Need::Root, Need::Cluster, Need::Image],
        Bed::start,
        &[
            ("f_00_exec_over_each_protocol", |bed| {
                bed.person(|person, _| person.exec())
            }),
            ("f_00_exec_in_a_terminal", |bed| {
                bed.person(|person, _| person.terminal())
            }),
            ("f_00_copies_both_ways", |bed| {
                bed.person(|person, dir| person.copy(dir))
            }),
            ("f_00_attach_logs_and_port_forward", |bed| {
                bed.person(|person, _| person.follow())
            }),
            (
                "r_01_recorded_sessions_are_the_same_and_on_the_recorder",
                recorded,
            ),
            ("r_06_without_its_recorder_a_session_does_not_begin", refused),
            ("f_09_nothing_is_left_of_any_session", nothing_left),
        ],
    )
}

struct Bed {
    front: Front,
    pod: String,
    dir: tempfile::TempDir,
    _cluster: Cluster,
}

impl Bed {
    fn start() -> Result<Self> {
        let name = "apiproxy";
        Cluster::down(name)?;
        let cluster = Cluster::up(name)?;
        cluster.load(&workspace::test_image("nginx"))?;
        let admin = cluster.kubectl();
        deploy(admin, NGINX, "nginx")?;
        let pod = admin.run(&[
            "get",
            "pods",
            "-l",
            "app=nginx",
            "-o",
            "jsonpath={.items[0].metadata.name}",
        ])?;
        let url = admin.run(&["config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"])?;
        let ca = admin.kubeconfig().with_file_name("pki").join("ca.crt");
        let front = Front::start(admin, &url, ca)?;
        front
            .tailnet
            .set(Some(device("alice@example.com", &[groups(&["system:masters"])])));
        Ok(Self {
            front,
            pod,
            dir: tempfile::tempdir()?,
            _cluster: cluster,
        })
    }

    fn person(&self, act: impl FnOnce(&Person<'_>, &Path) -> Result<()>) -> Result<()> {
        let curl = |arguments: &[&str]| {
            let mut command = Command::new("curl");
            command.args(arguments);
            command
        };
        let person = Person {
            kubectl: &|arguments| self.front.kubectl.command(arguments),
            curl: &curl,
            pod: &self.pod,
        };
        act(&person, self.dir.path())
    }
}

fn recorders(bed: &Bed, recorder: SocketAddr) {
    let value = json!([{"recorderAddrs": [recorder], "enforceRecorder": true, "impersonate": {"groups": ["system:masters"]}}]);
    bed.front
        .tailnet
        .set(Some(device("alice@example.com", &[(CAPABILITY, value)])));
}

fn recorded(bed: &mut Bed) -> Result<()> {
    let folder = bed.dir.path().join("recordings");
    let store = Store::open(&folder, Limits::default())?;
    let listener = bed.front.runtime.block_on(TcpListener::bind(("127.0.0.1", 0)))?;
    recorders(bed, listener.local_addr()?);
    let stop = CancellationToken::new();
    bed.front
        .runtime
        .spawn(serve(accepted(listener), store.clone(), stop.clone()));
    bed.person(|person, dir| {
        person.exec()?;
        person.terminal()?;
        person.copy(dir)
    })?;
    nothing_left(bed)?;
    let mut texts = String::new();
    for entry in store.list()? {
        ensure!(entry.header.src_node_user == "alice@example.com", "{entry:?}");
        ensure!(entry.header.kubernetes.pod_name == bed.pod, "{entry:?}");
        texts += &std::fs::read_to_string(folder.join(format!("{}.cast", entry.name)))?;
    }
    for shown in [
        r#""o","out\n""#,
        r#""o","err\n""#,
        r#"a terminal\r\n"#,
        "bytes that are no text, sha256 ",
    ] {
        ensure!(
            texts.matches(shown).count() == PROTOCOLS.len(),
            "{shown} is not there once for each protocol: {texts}"
        );
    }
    stop.cancel();
    Ok(())
}

fn refused(bed: &mut Bed) -> Result<()> {
    let nobody = bed
        .front
        .runtime
        .block_on(TcpListener::bind(("127.0.0.1", 0)))?
        .local_addr()?;
    recorders(bed, nobody);
    let words = output(
        &mut bed
            .front
            .kubectl
            .command(&["exec", &bed.pod, "--", "/bin/sh", "-c", "echo out"]),
    )?;
    let said = String::from_utf8_lossy(&words.stderr);
    ensure!(!words.status.success() && words.stdout.is_empty(), "{words:?}");
    ensure!(said.contains("'kubectl exec' session must be recorded"), "{said}");
    bed.front.kubectl.run(&["get", "pods"]).map(drop)
}

fn nothing_left(bed: &mut Bed) -> Result<()> {
    eventually("no session is open", || {
        let open = bed.front.proxy.open_streams();
        ensure!(open == 0, "{open} are");
        Ok(())
    })
}
