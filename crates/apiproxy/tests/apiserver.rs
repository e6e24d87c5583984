//! The proxy in front of a real kube-apiserver, asked by a real kubectl, with the rights that `deploy/apiserver-proxy.yaml` gives and no more.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod shared;

use std::fs;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tailwharf_apiproxy::OWN_CAPABILITY;
use tailwharf_node::WhoIs;
use tailwharf_testkit::requirements::Need;
use tailwharf_testkit::{ApiServer, Kubectl, eventually};

use self::shared::front::Front;
use self::shared::{device, groups, tagged};

fn main() -> ExitCode {
    tailwharf_e2e::run(
        &[Need::ApiServer],
        Bed::start,
        &[
            ("the_account_can_impersonate_and_nothing_else", the_account_alone),
            ("h_00_groups_and_extras_arrive", groups_and_extras),
            ("h_01_as_is_refused_or_allowed_with_the_caller_named", acting_as),
            (
                "h_10_a_reader_may_not_write_and_a_stranger_is_told_why",
                reader_and_stranger,
            ),
            ("h_10_tags_are_groups", tags_are_groups),
            ("h_11_odd_names_arrive_as_they_are", odd_names),
            ("h_18_a_watch_ends_with_its_grant", watch_ends),
            ("p_01_paths_are_routed_as_they_are_read", paths),
            (
                "x_10_the_audit_logs_of_both_sides_name_the_same_request",
                both_audit_logs,
            ),
        ],
    )
}

struct Bed {
    server: ApiServer,
    admin: Kubectl,
    front: Front,
}

impl Bed {
    fn start() -> Result<Self> {
        let server = ApiServer::start()?;
        let admin = Kubectl::new(server.kubeconfig());
        let front = Front::start(&admin, server.url(), server.kubeconfig().with_file_name("ca.crt"))?;
        admin.run(&[
            "create",
            "clusterrole",
            "reader",
            "--verb=get,list,watch",
            "--resource=pods",
        ])?;
        admin.run(&[
            "create",
            "clusterrolebinding",
            "readers",
            "--clusterrole=reader",
            "--group=tailnet-readers",
        ])?;
        Ok(Self { server, admin, front })
    }

    fn become_device(&self, who: WhoIs) {
        self.front.tailnet.set(Some(who));
    }

    /// What kubectl says when it must not succeed.
    fn refused(&self, arguments: &[&str]) -> Result<String> {
        let output = self.front.kubectl.command(arguments).output()?;
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            !output.status.success(),
            "{arguments:?} succeeded: {}",
            String::from_utf8_lossy(&output.stdout)
        );
        Ok(words)
    }

    fn whoami(&self, arguments: &[&str]) -> Result<Value> {
        let text = self
            .front
            .kubectl
            .run(&[&["auth", "whoami", "-o", "json"], arguments].concat())?;
        Ok(serde_json::from_str::<Value>(&text)?["status"]["userInfo"].clone())
    }
}

fn admin() -> WhoIs {
    device("alice@example.com", &[groups(&["system:masters"])])
}

fn the_account_alone(bed: &mut Bed) -> Result<()> {
    let server = bed.server.url();
    for request in [
        "/api/v1/pods",
        "/api/v1/namespaces/tailscale/secrets",
        "/api/v1/nodes",
    ] {
        let output = Command::new("curl")
            .args(["-sk", "-o", "/dev/null", "-w", "%{http_code}", "-H"])
            .arg(format!("Authorization: Bearer {}", bed.front.token))
            .arg(format!("{server}{request}"))
            .output()?;
        ensure!(
            output.stdout == b"403",
            "{request}: {}",
            String::from_utf8_lossy(&output.stdout)
        );
    }
    Ok(())
}

fn groups_and_extras(bed: &mut Bed) -> Result<()> {
    bed.become_device(device("alice@example.com", &[groups(&["team", "ops"])]));
    let user = bed.whoami(&[])?;
    ensure!(user["username"] == "alice@example.com", "{user}");
    ensure!(
        user["groups"] == json!(["team", "ops", "system:authenticated"]),
        "{user}"
    );
    ensure!(
        user["extra"]["tailwharf.dev/device"] == json!(["laptop.tail1234.ts.net"]),
        "{user}"
    );
    ensure!(user["extra"]["tailwharf.dev/request-id"].is_array(), "{user}");
    bed.become_device(admin());
    bed.front.kubectl.run(&[
        "create",
        "configmap",
        "made-through-the-proxy",
        "--from-literal=a=b",
    ])?;
    bed.front.kubectl.run(&["get", "pods", "-A"])?;
    bed.front
        .kubectl
        .run(&["delete", "configmap", "made-through-the-proxy"])?;
    Ok(())
}

fn acting_as(bed: &mut Bed) -> Result<()> {
    bed.become_device(admin());
    let words = bed.refused(&["get", "pods", "--as", "bob"])?;
    ensure!(words.contains("--as"), "{words}");
    let own = (
        OWN_CAPABILITY,
        json!([{"as": {"users": ["bob"], "groups": ["view*"]}}]),
    );
    bed.become_device(device("alice@example.com", &[groups(&["system:masters"]), own]));
    let user = bed.whoami(&["--as", "bob", "--as-group", "viewers"])?;
    ensure!(user["username"] == "bob", "{user}");
    ensure!(
        user["extra"]["tailwharf.dev/original-user"] == json!(["alice@example.com"]),
        "{user}"
    );
    bed.refused(&["get", "pods", "--as", "carol"]).map(drop)
}

fn reader_and_stranger(bed: &mut Bed) -> Result<()> {
    bed.become_device(device("bob@example.com", &[groups(&["tailnet-readers"])]));
    bed.front.kubectl.run(&["get", "pods"])?;
    let words = bed.refused(&["create", "configmap", "no"])?;
    ensure!(
        words.contains("forbidden") && !words.contains("capability"),
        "{words}"
    );
    bed.become_device(device("carol@example.com", &[]));
    let words = bed.refused(&["get", "pods"])?;
    ensure!(words.contains("Error from server (Forbidden)"), "{words}");
    ensure!(words.contains("tailscale.com/cap/kubernetes"), "{words}");
    // What the cluster itself gives her by name still counts.
    bed.admin.run(&[
        "create",
        "rolebinding",
        "carol",
        "--clusterrole=reader",
        "--user=carol@example.com",
        "-n",
        "default",
    ])?;
    eventually("the binding counts", || {
        bed.front.kubectl.run(&["get", "pods", "-n", "default"]).map(drop)
    })
}

fn tags_are_groups(bed: &mut Bed) -> Result<()> {
    bed.become_device(tagged(device("tagged-devices", &[]), &["tag:ci"]));
    let user = bed.whoami(&[])?;
    ensure!(user["username"] == "laptop.tail1234.ts.net", "{user}");
    ensure!(user["groups"][0] == "tag:ci", "{user}");
    Ok(())
}

fn odd_names(bed: &mut Bed) -> Result<()> {
    let odd = ["a,b", "a:b", "50%", "grüße"];
    bed.become_device(device("jürgen@example.com", &[groups(&odd)]));
    let user = bed.whoami(&[])?;
    ensure!(user["username"] == "jürgen@example.com", "{user}");
    ensure!(
        user["groups"] == json!(["a,b", "a:b", "50%", "grüße", "system:authenticated"]),
        "{user}"
    );
    Ok(())
}

fn watch_ends(bed: &mut Bed) -> Result<()> {
    bed.become_device(admin());
    let mut watch = bed
        .front
        .kubectl
        .command(&["get", "--raw", "/api/v1/namespaces?watch=1"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    eventually("the watch is open", || {
        ensure!(
            bed.front.proxy.open_streams() == 1,
            "{} streams",
            bed.front.proxy.open_streams()
        );
        Ok(())
    })?;
    bed.become_device(device("alice@example.com", &[]));
    eventually("the watch has ended", || {
        ensure!(watch.try_wait()?.is_some(), "it runs");
        Ok(())
    })?;
    eventually("nothing is left", || {
        ensure!(
            bed.front.proxy.open_streams() == 0,
            "{} streams",
            bed.front.proxy.open_streams()
        );
        Ok(())
    })
}

/// What the API server makes of paths that mean the same: what it says of a pod that is not there tells that it took them for that pod.
fn paths(bed: &mut Bed) -> Result<()> {
    bed.become_device(admin());
    let get = |path: &str| -> Result<(String, String)> {
        let output = Command::new("curl")
            .args(["-s", "--path-as-is", "-w", "\n%{http_code}"])
            .arg(format!("http://{}{path}", bed.front.addr))
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, code) = text.rsplit_once('\n').context("no code")?;
        Ok((code.to_owned(), body.to_owned()))
    };
    for path in [
        "/api/v1/namespaces/default/pods/p",
        "/api/v1/namespaces/default/pods/p/",
        "/api/v1/namespaces/default/%70ods/p",
    ] {
        let (code, body) = get(path)?;
        ensure!(
            code == "404" && body.contains(r#"pods \"p\" not found"#),
            "{path}: {code} {body}"
        );
    }
    for path in [
        "/api/v1/namespaces/default/pods%2Fp",
        "/api//v1/pods",
        "/api/v1/../v1/pods",
        "/api/v1/%2e%2e/v1/pods",
    ] {
        let (code, body) = get(path)?;
        ensure!(
            code == "400" && body.contains("path of the request"),
            "{path}: {code} {body}"
        );
    }
    Ok(())
}

fn both_audit_logs(bed: &mut Bed) -> Result<()> {
    bed.become_device(admin());
    let output = Command::new("curl")
        .args(["-s", "-D", "-", "-o", "/dev/null"])
        .arg(format!("http://{}/api/v1/namespaces", bed.front.addr))
        .output()?;
    let head = String::from_utf8_lossy(&output.stdout).into_owned();
    let id = head
        .lines()
        .find_map(|line| line.strip_prefix("audit-id: "))
        .context("no Audit-ID")?;
    let log = bed.server.kubeconfig().with_file_name("audit.log");
    eventually("the API server has logged the request", || {
        let text = fs::read_to_string(&log)?;
        let line = text
            .lines()
            .find(|line| line.contains(id.trim()) && line.contains("ResponseComplete"))
            .context("not yet")?;
        let event: Value = serde_json::from_str(line)?;
        ensure!(
            event["user"]["username"] == "system:serviceaccount:tailscale:kube-apiserver-auth-proxy",
            "{event}"
        );
        ensure!(
            event["impersonatedUser"]["username"] == "alice@example.com",
            "{event}"
        );
        Ok(())
    })
}
