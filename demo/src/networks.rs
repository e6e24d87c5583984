//! The part of the story about networks: the longest chain, from a laptop through both clusters, and Connectors that lead into A and out of it.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use tailwharf_testkit::lab::deploy;
use tailwharf_testkit::process::run;
use tailwharf_testkit::wait::eventually;
use tailwharf_testkit::{Cluster, Lab, Outside};

use crate::stage::Stage;

/// The addresses of A's pods and Services.
const NETWORKS: [&str; 2] = ["10.244.0.0/16", "10.96.0.0/16"];
/// A front end that gets its page from `nginx-remote`, and says so in a header.
const FRONT: &str = "apiVersion: v1
kind: ConfigMap
metadata: {name: front, namespace: default}
data:
  nginx.conf: |
    daemon off;
    pid /tmp/nginx.pid;
    error_log stderr warn;
    events {}
    http {
      access_log off;
      client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy; fastcgi_temp_path /tmp/fastcgi;
      uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
      server {
        listen 80;
        location / { proxy_pass http://nginx-remote.default.svc.cluster.local; add_header Front-End \"cluster B\"; }
      }
    }
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: front, namespace: default}
spec:
  selector: {matchLabels: {app: front}}
  template:
    metadata: {labels: {app: front}}
    spec:
      automountServiceAccountToken: false
      containers:
      - name: nginx
        image: tailwharf.test/nginx:debian
        imagePullPolicy: Never
        ports: [{containerPort: 80}]
        readinessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}
        volumeMounts: [{name: config, mountPath: /etc/nginx/nginx.conf, subPath: nginx.conf}]
      volumes: [{name: config, configMap: {name: front}}]
---
apiVersion: v1
kind: Service
metadata: {name: front, namespace: default}
spec: {selector: {app: front}, ports: [{port: 80}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: front
  namespace: default
  annotations: {tailscale.com/tags: \"tag:k8s\"}
spec:
  ingressClassName: tailscale
  defaultBackend: {service: {name: front, port: {number: 80}}}
  tls: [{hosts: [front]}]
";

/// Plays it. In B, `nginx-remote` stands for the Service of A.
pub(crate) fn play(stage: &mut Stage, lab: &Lab, b: &Cluster) -> Result<()> {
    chain(stage, lab, b)?;
    into_the_cluster(stage, lab)?;
    out_of_the_cluster(stage, lab)
}

fn chain(stage: &mut Stage, lab: &Lab, b: &Cluster) -> Result<()> {
    stage.act("The longest chain: laptop → Ingress of B → front end in B → egress of B → Service of A");
    deploy(b.kubectl(), FRONT, "front")?;
    lab.reachable("https://front")?;
    let mut curl = lab.laptop.namespace().command("curl");
    let page = stage.show(
        "laptop",
        curl.args(["--silent", "--include", "--max-time", "10", "https://front"]),
    )?;
    stage.check(
        "the front end of B has answered",
        contains(&page.to_lowercase(), "front-end: cluster b"),
    );
    stage.check("with the page of A", contains(&page, "Welcome to nginx!"));
    b.kubectl()
        .run(&["delete", "ingress", "front", "--wait=true", "--timeout=30s"])
        .map(drop)
}

fn into_the_cluster(stage: &mut Stage, lab: &Lab) -> Result<()> {
    stage.act("A Connector makes the pods and Services of A reachable, as a subnet router");
    // The machine itself would forward these packets to its cluster: from here on the tailnet is the only way.
    for network in NETWORKS {
        let mut route = lab.laptop.namespace().command("ip");
        run(route.args(["route", "add", "unreachable", network]))?;
    }
    let pods = lab.kubectl().get(&["pods", "-l", "app=nginx", "-n", "default"])?;
    let address = pods["items"][0]["status"]["podIP"]
        .as_str()
        .context("the pod has no address")?
        .to_owned();
    let url = format!("http://{address}/");
    let before = lab.laptop.curl(&url);
    stage.check("before, the laptop does not reach the pod", refused(&before));
    let networks = NETWORKS.join(", ");
    connect(
        lab,
        "cluster",
        &format!("{{subnetRouter: {{advertiseRoutes: [{networks}]}}}}"),
    )?;
    stage.show("admin", &mut kubectl(lab, &["get", "connectors"]))?;
    lab.reachable(&url)?;
    let mut curl = lab.laptop.namespace().command("curl");
    let page = stage.show("laptop", curl.args(["--silent", "--max-time", "10", &url]))?;
    stage.check(
        "the laptop reaches the pod by the pod's own address",
        contains(&page, "Welcome to nginx!"),
    );
    remove(lab, "cluster")
}

fn out_of_the_cluster(stage: &mut Stage, lab: &Lab) -> Result<()> {
    stage.act("A Connector is the way out, as an exit node");
    let outside = Outside::start()?;
    let url = outside.url();
    let direct = lab.reachable(&url)?;
    connect(lab, "way-out", "{exitNode: true, hostname: way-out}")?;
    stage.show("admin", &mut kubectl(lab, &["get", "connectors"]))?;
    eventually("the laptop takes the exit node", || {
        lab.laptop.run(&["set", "--exit-node=way-out"]).map(drop)
    })?;
    let through = eventually("the laptop leaves through A", || {
        let source = lab.laptop.curl(&url)?;
        ensure!(source != direct, "it still comes from {source}");
        Ok(source)
    })?;
    let mut curl = lab.laptop.namespace().command("curl");
    stage.show("laptop", curl.args(["--silent", "--max-time", "10", &url]))?;
    let nodes = lab.kubectl().get(&["nodes"])?;
    let machine = nodes["items"][0]["status"]["addresses"][0]["address"]
        .as_str()
        .unwrap_or_default();
    stage.check(
        "a server of the internet sees the machine of A",
        contains(machine, &through),
    );
    lab.laptop.run(&["set", "--exit-node="])?;
    remove(lab, "way-out")
}

fn connect(lab: &Lab, name: &str, spec: &str) -> Result<()> {
    let manifest = format!(
        "apiVersion: tailscale.com/v1alpha1\nkind: Connector\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    );
    lab.kubectl().apply(&manifest)?;
    for condition in ["ConnectorReady", "RoutesApproved"] {
        let condition = format!("--for=condition={condition}");
        lab.kubectl()
            .run(&["wait", "connector", name, &condition, "--timeout=30s"])?;
    }
    Ok(())
}

fn remove(lab: &Lab, name: &str) -> Result<()> {
    lab.kubectl()
        .run(&["delete", "connector", name, "--wait=true", "--timeout=30s"])
        .map(drop)
}

fn contains(text: &str, part: &str) -> Result<()> {
    ensure!(text.contains(part), "{text:?} does not have {part:?}");
    Ok(())
}

fn refused(answer: &Result<String>) -> Result<()> {
    ensure!(answer.is_err(), "it answered");
    Ok(())
}

fn kubectl(lab: &Lab, words: &[&str]) -> Command {
    lab.kubectl().command(words)
}
