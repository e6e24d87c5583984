//! The act of the Ingress: a name, a certificate that the laptop verifies, the same page as by the Service, and the internet.

use std::process::Command;

use anyhow::{Result, ensure};
use tailwharf_testkit::lab::NAMESPACE;
use tailwharf_testkit::process::run;
use tailwharf_testkit::tailnet::SUFFIX;
use tailwharf_testkit::wait::eventually;
use tailwharf_testkit::{Lab, workspace};

use crate::stage::Stage;

const INGRESS: &str = "apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: nginx
  namespace: default
  annotations: {tailscale.com/tags: \"tag:k8s\"}
spec:
  ingressClassName: tailscale
  defaultBackend: {service: {name: nginx-service, port: {number: 80}}}
  tls: [{hosts: [nginx]}]
";
const IDENTITY: &str = "tailscale.com/parent-resource=nginx";

/// Plays it. The Service `nginx-service` is exposed.
pub(crate) fn play(stage: &mut Stage, lab: &Lab) -> Result<()> {
    stage.act("An Ingress gets a name of its own, and a certificate");
    lab.kubectl().apply(INGRESS)?;
    is(lab, "Ready")?;
    eventually("the Ingress shows its address", || {
        let shown = lab.kubectl().run(&["get", "ingress", "nginx"])?;
        contains(&shown, SUFFIX)
    })?;
    stage.show("admin", &mut lab.kubectl().command(&["get", "ingress", "nginx"]))?;
    let seen = eventually("the device is at the laptop", || lab.laptop.peer("nginx"));
    stage.check("the laptop sees the device nginx", seen.map(drop));
    let ping = ["ping", "--c=1", "--until-direct=false", "nginx"];
    let pong = stage.show("laptop", &mut lab.laptop.tailscale(&ping))?;
    stage.check("tailscale ping answers", contains(&pong, "pong from nginx"));

    lab.reachable("https://nginx")?;
    let page = stage.show("laptop", &mut curl(lab, "https://nginx"))?;
    stage.check(
        "curl verifies the certificate and prints the nginx page",
        contains(&page, "Welcome to nginx!"),
    );
    let plain = lab.laptop.curl("http://default-nginx-service")?;
    stage.check("it is the page of the Service", same(&page, &plain));
    let http = lab.laptop.curl("http://nginx");
    stage.check("nothing is served without encryption", refused(&http));

    let chain = stage.show("admin", &mut tailwharf(lab, "explain"))?;
    stage.check(
        "tailwharf explain finds nothing wrong",
        contains(&chain, "Everything is in order."),
    );
    let lines = stage.show("admin", &mut tailwharf(lab, "logs"))?;
    stage.check(
        "what is logged of its device is read by the name of the Ingress",
        contains(&lines, "the node is started"),
    );
    internet(stage, lab)?;
    lab.kubectl()
        .run(&["delete", "ingress", "nginx", "--wait=true", "--timeout=30s"])
        .map(drop)
}

fn internet(stage: &mut Stage, lab: &Lab) -> Result<()> {
    stage.act("An annotation shows it to the internet");
    let before = outside(lab);
    stage.check(
        "before, a machine outside of the tailnet gets nothing",
        refused(&before),
    );
    let annotate = ["annotate", "ingress", "nginx", "tailscale.com/funnel=true"];
    stage.show("admin", &mut lab.kubectl().command(&annotate))?;
    is(lab, "FunnelReady")?;
    eventually("the internet sees the page", || outside(lab))?;
    let page = stage.show("a machine outside", &mut public(lab))?;
    stage.check(
        "now it gets the page, and TLS ended at the device",
        contains(&page, "Welcome to nginx!"),
    );
    Ok(())
}

/// Waits for a condition of the Identity of the Ingress.
fn is(lab: &Lab, condition: &str) -> Result<()> {
    let condition = format!("--for=condition={condition}");
    let wait = [
        "-n",
        NAMESPACE,
        "wait",
        &condition,
        "identity",
        "-l",
        IDENTITY,
        "--timeout=30s",
    ];
    eventually("the Ingress is served", || lab.kubectl().run(&wait).map(drop))
}

/// A command about the Ingress, for whoever has the kubeconfig.
fn tailwharf(lab: &Lab, verb: &str) -> Command {
    let mut command = Command::new(workspace::tailwharf());
    command
        .args([verb, "ingress/nginx"])
        .env("KUBECONFIG", lab.kubectl().kubeconfig());
    command
}

fn curl(lab: &Lab, url: &str) -> Command {
    let mut command = lab.laptop.namespace().command("curl");
    command.args(["--silent", "--max-time", "10", url]);
    command
}

/// A request by the gateway's public address, as DNS would lead it there.
fn public(lab: &Lab) -> Command {
    let mut command = Command::new("curl");
    command
        .args(["--silent", "--max-time", "10", "--cacert"])
        .arg(lab.root_certificate())
        .arg("--resolve")
        .arg(format!("nginx.{SUFFIX}:443:{}", lab.bridge.host()))
        .arg(format!("https://nginx.{SUFFIX}"));
    command
}

fn outside(lab: &Lab) -> Result<String> {
    run(&mut public(lab))
}

fn contains(text: &str, part: &str) -> Result<()> {
    ensure!(text.contains(part), "the output does not have {part:?}");
    Ok(())
}

fn refused(answer: &Result<String>) -> Result<()> {
    ensure!(answer.is_err(), "it answered");
    Ok(())
}

fn same(one: &str, other: &str) -> Result<()> {
    ensure!(one.trim() == other.trim(), "the two pages differ");
    Ok(())
}
