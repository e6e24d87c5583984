//! The story itself, act by act.

use std::process::Command;

use anyhow::{Result, ensure};
use tailwharf_testkit::helm::{self, Release};
use tailwharf_testkit::lab::{NAMESPACE, NGINX};
use tailwharf_testkit::process::Process;
use tailwharf_testkit::wait::eventually;
use tailwharf_testkit::{Cluster, Lab, OfficialClient};

use crate::stage::Stage;
use crate::{clusters, ingress, networks};

const SERVICE: &str = "apiVersion: v1
kind: Service
metadata:
  name: nginx-service
  namespace: default
  annotations: {tailscale.com/expose: \"true\", tailscale.com/tags: \"tag:k8s\"}
spec:
  selector: {app: nginx}
  ports: [{port: 80}]
";
const DEVICE: &str = "default-nginx-service";
const BOB: &str = "bob@example.com";

/// Plays all acts, and gives the second cluster. A failed check is counted; an error is a command that the rest depends on.
pub(crate) fn play(stage: &mut Stage, lab: &Lab) -> Result<Cluster> {
    installed(stage, lab)?;
    expose(stage, lab)?;
    reach(stage, lab)?;
    direct(stage, lab);
    ingress::play(stage, lab)?;
    another_person(stage, lab)?;
    let second = clusters::play(stage, lab)?;
    networks::play(stage, lab, &second)?;
    unexpose(stage, lab)?;
    Ok(second)
}

fn installed(stage: &mut Stage, lab: &Lab) -> Result<()> {
    stage.act("The operator is installed");
    stage.show("admin", &mut kubectl(lab, &["create", "namespace", NAMESPACE]))?;
    let restricted = "pod-security.kubernetes.io/enforce=restricted";
    stage.show(
        "admin",
        &mut kubectl(lab, &["label", "namespace", NAMESPACE, restricted]),
    )?;
    let options = helm::options(&lab.tailnet)?;
    stage.show("admin", &mut Release::of(lab.kubectl()).upgrade(&options))?;
    lab.ready()?;
    let pods = stage.show("admin", &mut kubectl(lab, &["get", "pods", "-n", NAMESPACE]))?;
    stage.check(
        "the operator and two proxy pods run, without privileges",
        running(&pods, lab),
    );
    let status = eventually("the operator's device is at the laptop", || {
        lab.laptop.peer("tailscale-operator")
    });
    stage.check(
        "the device tailscale-operator is on the tailnet",
        status.map(drop),
    );
    Ok(())
}

fn running(pods: &str, lab: &Lab) -> Result<()> {
    let lines = pods.lines().filter(|line| line.contains(" Running ")).count();
    ensure!(lines >= 3, "{lines} pods run, expected 3");
    let enforced = lab.kubectl().get(&["namespace", NAMESPACE])?;
    let level = &enforced["metadata"]["labels"]["pod-security.kubernetes.io/enforce"];
    ensure!(
        level == "restricted",
        "PodSecurity of {NAMESPACE} is {level}, expected restricted"
    );
    Ok(())
}

fn expose(stage: &mut Stage, lab: &Lab) -> Result<()> {
    stage.act("A Service gets the annotation tailscale.com/expose");
    lab.deploy(NGINX, "nginx")?;
    lab.kubectl().apply(SERVICE)?;
    stage.show(
        "admin",
        &mut kubectl(
            lab,
            &[
                "get",
                "service",
                "nginx-service",
                "-o",
                "jsonpath={.metadata.annotations}",
            ],
        ),
    )?;
    let seen = eventually("the device is at the laptop", || lab.laptop.peer(DEVICE));
    let status = stage.show("laptop", &mut lab.laptop.tailscale(&["status"]))?;
    stage.check(
        "tailscale status lists default-nginx-service",
        seen.and_then(|_| contains(&status, DEVICE)),
    );
    lab.kubectl().run(&[
        "wait",
        "--for=condition=TailscaleProxyReady",
        "service/nginx-service",
        "--timeout=30s",
    ])?;
    let identities = stage.show(
        "admin",
        &mut kubectl(lab, &["get", "identities", "-n", NAMESPACE]),
    )?;
    stage.check(
        "kubectl get identities lists it as ready",
        contains(&identities, DEVICE),
    );
    Ok(())
}

fn reach(stage: &mut Stage, lab: &Lab) -> Result<()> {
    stage.act("The laptop reaches it");
    let ping = stage.show(
        "laptop",
        &mut lab
            .laptop
            .tailscale(&["ping", "--c=1", "--until-direct=false", DEVICE]),
    )?;
    stage.check(
        "tailscale ping answers",
        contains(&ping, "pong from default-nginx-service"),
    );
    let url = format!("http://{DEVICE}");
    lab.reachable(&url)?;
    let page = stage.show(
        "laptop",
        lab.laptop
            .namespace()
            .command("curl")
            .args(["--silent", "--max-time", "10", &url]),
    )?;
    stage.check("curl prints the nginx page", contains(&page, "Welcome to nginx!"));
    let address = address(lab)?;
    let whois = stage.show("laptop", &mut lab.laptop.tailscale(&["whois", &address]))?;
    stage.check(
        "tailscale whois names it and its tag",
        contains(&whois, DEVICE).and_then(|()| contains(&whois, "tag:k8s")),
    );
    Ok(())
}

fn direct(stage: &mut Stage, lab: &Lab) {
    stage.act("The relay was only the beginning");
    // It goes on until a pong came by a direct path, and fails if none did.
    let found = eventually("the path is direct", || {
        stage.show(
            "laptop",
            &mut lab.laptop.tailscale(&["ping", "--c=5", "--timeout=2s", DEVICE]),
        )
    });
    stage.check("tailscale ping goes straight to the pod's node", found.map(drop));
}

fn another_person(stage: &mut Stage, lab: &Lab) -> Result<()> {
    stage.act("Bob joins by a web page, and reaches what the policy lets him reach: nothing yet");
    lab.tailnet
        .administer(&["user", "create", BOB, "--role", "member"])?;
    let home = lab.dir().join("bob");
    std::fs::create_dir_all(&home)?;
    let bob = OfficialClient::start(lab.bridge.join("bob")?, &home)?;
    let server = format!("--login-server={}", lab.tailnet.url());
    let mut up = bob.tailscale(&["up", &server, "--hostname=bobs-laptop", "--timeout=60s"]);
    let waiting = Process::start("up", &mut up, &home.join("up.log"))?;
    let url = eventually("an address to log in at", || {
        let status = bob.json(&["status", "--json"])?;
        let url = status["AuthURL"].as_str().unwrap_or_default().to_owned();
        ensure!(!url.is_empty(), "{}", status["BackendState"]);
        Ok(url)
    })?;
    stage.show("admin", &mut lab.tailnet.admin(&["login", "list"]))?;
    stage.show(
        "admin",
        &mut lab.tailnet.admin(&["login", "approve", &url, "--user", BOB]),
    )?;
    stage.check(
        "Bob's machine is in once an administrator said so",
        bob.becomes("Running"),
    );
    let status = stage.show("bob", &mut bob.tailscale(&["status"]))?;
    stage.check("it does not even see the Service", ensure_absent(&status));
    drop(waiting);
    drop(bob);
    lab.tailnet
        .administer(&["node", "delete", "bobs-laptop"])
        .map(drop)
}

fn unexpose(stage: &mut Stage, lab: &Lab) -> Result<()> {
    stage.act("The annotation is removed");
    stage.show(
        "admin",
        &mut kubectl(
            lab,
            &["annotate", "service", "nginx-service", "tailscale.com/expose-"],
        ),
    )?;
    let gone = eventually("the device is gone from the laptop", || {
        let left = lab.laptop.peer(DEVICE);
        ensure!(left.is_err(), "{DEVICE} is still there");
        Ok(())
    });
    stage.show("laptop", &mut lab.laptop.tailscale(&["status"]))?;
    stage.check("the device is gone from the laptop", gone);
    let nodes = stage.show("admin", &mut lab.tailnet.admin(&["node", "list"]))?;
    stage.check("and from the coordinator", ensure_absent(&nodes));
    let left = eventually("Identity and Secret are gone", || {
        let left = lab
            .kubectl()
            .run(&["get", "identities,secrets", "-n", NAMESPACE, "-o", "name"])?;
        ensure!(!left.contains("ts-nginx-service"), "left: {left}");
        Ok(())
    });
    stage.check("and its Identity and Secret from the cluster", left);
    Ok(())
}

fn ensure_absent(nodes: &str) -> Result<()> {
    ensure!(!nodes.contains(DEVICE), "{DEVICE} is listed");
    Ok(())
}

fn contains(text: &str, part: &str) -> Result<()> {
    ensure!(text.contains(part), "the output does not have {part:?}");
    Ok(())
}

fn address(lab: &Lab) -> Result<String> {
    let peer = lab.laptop.peer(DEVICE)?;
    let address = peer["TailscaleIPs"][0].as_str().unwrap_or_default().to_owned();
    ensure!(!address.is_empty(), "{DEVICE} has no address");
    Ok(address)
}

fn kubectl(lab: &Lab, words: &[&str]) -> Command {
    lab.kubectl().command(words)
}
