//! The act of the Ingress: a name, a certificate that the laptop verifies, and the same page as by the Service.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tailwharf_testkit::lab::NAMESPACE;
use tailwharf_testkit::process::run;
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

/// Plays it. The Service `nginx-service` is exposed.
pub(crate) fn play(stage: &mut Stage, lab: &Lab) -> Result<()> {
    stage.act("An Ingress gets a name of its own and a certificate");
    lab.kubectl().apply(INGRESS)?;
    let ready = [
        "-n",
        NAMESPACE,
        "wait",
        "--for=condition=Ready",
        "identity",
        "-l",
        "tailscale.com/parent-resource=nginx",
        "--timeout=60s",
    ];
    eventually("the Ingress is ready", || lab.kubectl().run(&ready).map(drop))?;
    stage.show("admin", &mut lab.kubectl().command(&["get", "ingress", "nginx"]))?;
    let ingress = lab.kubectl().get(&["ingress", "nginx", "-n", "default"])?;
    let name = ingress["status"]["loadBalancer"]["ingress"][0]["hostname"]
        .as_str()
        .context("the Ingress has no host name")?
        .to_owned();

    // The laptop trusts the tailnet's own authority, as a company's machines do.
    let root = lab.dir().join("root.pem");
    let authority = format!("{}/acme/root.pem", lab.tailnet.url());
    fs::write(&root, run(Command::new("curl").args(["-sf", &authority]))?)?;
    let root = root.display().to_string();
    let url = format!("https://{name}");
    let mut curl = lab.laptop.namespace().command("curl");
    curl.args(["--silent", "--max-time", "10", "--cacert", &root, &url]);
    let page = stage.show("laptop", &mut curl)?;
    stage.check(
        "curl prints the nginx page, by a certificate that it verifies",
        same(&page, "Welcome to nginx!"),
    );
    let plain = lab.laptop.curl("http://default-nginx-service")?;
    stage.check("it is the page of the Service", ensure_equal(&page, &plain));

    let mut explain = Command::new(workspace::tailwharf());
    explain
        .args(["explain", "ingress/nginx", "-n", "default"])
        .env("KUBECONFIG", lab.kubectl().kubeconfig());
    let chain = stage.show("admin", &mut explain)?;
    stage.check(
        "tailwharf explain finds nothing wrong",
        same(&chain, "Everything is in order."),
    );
    lab.kubectl()
        .run(&["delete", "ingress", "nginx", "--wait=true", "--timeout=30s"])
        .map(drop)
}

fn same(text: &str, part: &str) -> Result<()> {
    ensure!(text.contains(part), "the output does not have {part:?}");
    Ok(())
}

fn ensure_equal(one: &str, other: &str) -> Result<()> {
    ensure!(one.trim() == other.trim(), "the two pages differ");
    Ok(())
}
