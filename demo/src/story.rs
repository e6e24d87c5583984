//! The story itself, act by act.

use std::process::Command;

use anyhow::{Result, ensure};
use tailwharf_testkit::Lab;
use tailwharf_testkit::lab::{NAMESPACE, NGINX};
use tailwharf_testkit::wait::eventually;

use crate::stage::Stage;

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

/// Plays all acts. A failed check is counted; an error is a command that the rest depends on.
pub(crate) fn play(stage: &mut Stage, lab: &Lab) -> Result<()> {
    installed(stage, lab)?;
    expose(stage, lab)?;
    reach(stage, lab)?;
    unexpose(stage, lab)
}

fn installed(stage: &mut Stage, lab: &Lab) -> Result<()> {
    stage.act("The operator is installed");
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
    ensure!(!nodes.contains(DEVICE), "{DEVICE} is still listed");
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
