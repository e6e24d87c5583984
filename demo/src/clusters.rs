//! The part of the story with two clusters: a pod of B reaches a Service of A.

use std::process::Command;

use anyhow::{Result, ensure};
use tailwharf_testkit::lab::{NGINX, deploy};
use tailwharf_testkit::wait::eventually;
use tailwharf_testkit::{Cluster, Lab};

use crate::stage::Stage;

/// The name of the second cluster.
const NAME: &str = "demo-b";
const REMOTE: &str = "apiVersion: v1
kind: Service
metadata:
  name: nginx-remote
  namespace: default
  annotations:
    tailscale.com/tailnet-fqdn: default-nginx-service.tail1234.ts.net
    tailscale.com/tags: tag:k8s
spec:
  type: ExternalName
  externalName: placeholder
  ports: [{port: 80}]
";

/// Plays the act. The second cluster is returned, so that it lives as long as the lab.
pub(crate) fn play(stage: &mut Stage, lab: &Lab) -> Result<Cluster> {
    stage.act("A second cluster, B, joins the tailnet, and its pods reach the Service of A");
    stage.progress("a second cluster with an operator of its own");
    let b = lab.second_cluster(NAME)?;
    deploy(b.kubectl(), NGINX, "nginx")?;
    b.kubectl().apply(REMOTE)?;
    let ready = b.kubectl().run(&[
        "wait",
        "--for=condition=TailscaleProxyReady",
        "service/nginx-remote",
        "--timeout=30s",
    ]);
    stage.check("nginx-remote is ready", ready.map(drop));
    let service = stage.show(
        "admin of B",
        &mut kubectl(&b, &["get", "service", "nginx-remote"]),
    )?;
    let name = service
        .split_whitespace()
        .find(|word| word.starts_with("ts-nginx-remote-"))
        .unwrap_or_default();
    stage.check(
        "kubectl shows the name that it stands for",
        contains(&service, ".tailscale.svc.cluster.local"),
    );
    for host in [name, "nginx-remote"] {
        let url = format!("http://{host}");
        eventually("the page comes", || b.kubectl().run(&curl(&url)))?;
        let page = stage.show("admin of B", &mut kubectl(&b, &curl(&url)))?;
        stage.check(
            &format!("in a pod of B, curl {url} prints the page of A"),
            contains(&page, "Welcome to nginx!"),
        );
    }
    Ok(b)
}

fn curl(url: &str) -> [&str; 8] {
    [
        "exec",
        "deployment/nginx",
        "--",
        "curl",
        "--silent",
        "--max-time",
        "10",
        url,
    ]
}

fn contains(text: &str, part: &str) -> Result<()> {
    ensure!(text.contains(part), "the output does not have {part:?}");
    Ok(())
}

fn kubectl(cluster: &Cluster, words: &[&str]) -> Command {
    cluster.kubectl().command(words)
}
