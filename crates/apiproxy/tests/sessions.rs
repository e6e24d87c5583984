//! The proxy in front of a real cluster: sessions that end in a kubelet, by a real kubectl over each protocol.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod shared;

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};
use tailwharf_testkit::cluster::Cluster;
use tailwharf_testkit::lab::{NGINX, deploy};
use tailwharf_testkit::requirements::Need;
use tailwharf_testkit::sessions::Person;
use tailwharf_testkit::{eventually, workspace};

use self::shared::front::Front;
use self::shared::{device, groups};

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

fn nothing_left(bed: &mut Bed) -> Result<()> {
    eventually("no session is open", || {
        let open = bed.front.proxy.open_streams();
        ensure!(open == 0, "{open} are");
        Ok(())
    })
}
