//! Connectors on a real cluster: the official client reaches pods, Services and the world outside through them.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use tailwharf_e2e::condition;
use tailwharf_testkit::lab::{NAMESPACE, NGINX};
use tailwharf_testkit::process::run;
use tailwharf_testkit::requirements::Need;
use tailwharf_testkit::wait::eventually;
use tailwharf_testkit::{Lab, Outside};

/// The addresses of the cluster's pods and Services.
const NETWORKS: [&str; 2] = ["10.244.0.0/16", "10.96.0.0/16"];
struct Fixture {
    lab: Lab,
    outside: Outside,
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
            ("subnet_router_reaches_pods_and_services", subnet_router),
            ("exit_node_is_the_way_out", exit_node),
            ("routes_that_nobody_approved_are_named", unapproved),
        ],
    )
}

fn start() -> Result<Fixture> {
    let lab = Lab::start("conn", Path::new("/var/lib/tailwharf-connector"), |_| ())?;
    lab.deploy(NGINX, "nginx")?;
    // The machine itself would forward these packets to its cluster: from here on the tailnet is the only way.
    for network in NETWORKS {
        let mut route = lab.laptop.namespace().command("ip");
        run(route.args(["route", "add", "unreachable", network]))?;
    }
    let outside = Outside::start()?;
    Ok(Fixture { lab, outside })
}

impl Fixture {
    fn apply(&self, name: &str, spec: &str) -> Result<()> {
        let manifest = format!(
            "apiVersion: tailscale.com/v1alpha1\nkind: Connector\nmetadata: {{name: {name}}}\nspec: {spec}\n"
        );
        self.lab.kubectl().apply(&manifest).map(drop)
    }

    /// Waits until a condition of a Connector has a reason, and gives its message.
    fn condition(&self, name: &str, type_: &str, reason: &str) -> Result<String> {
        eventually(&format!("{type_} of {name} is {reason}"), || {
            let connector = self.lab.kubectl().get(&["connector", name])?;
            let (status, found, message) = condition(&connector, type_)?;
            ensure!(found == reason, "{status} {found}: {message}");
            Ok(message)
        })
        .with_context(|| self.lab.cluster.dump(NAMESPACE))
    }

    fn delete(&self, name: &str, device: &str) -> Result<()> {
        self.lab
            .kubectl()
            .run(&["delete", "connector", name, "--wait=true", "--timeout=30s"])?;
        eventually("the device is gone", || {
            let left = self.lab.devices(device)?;
            ensure!(left.is_empty(), "{left:?} are still there");
            Ok(())
        })
    }

    fn field(&self, words: &[&str], pointer: &str) -> Result<String> {
        let object = self.lab.kubectl().get(words)?;
        let value = object.pointer(pointer).and_then(serde_json::Value::as_str);
        Ok(value
            .with_context(|| format!("no {pointer} in {object}"))?
            .to_owned())
    }
}

fn subnet_router(fixture: &mut Fixture) -> Result<()> {
    let pod = fixture.field(
        &["pods", "-l", "app=nginx", "-n", "default"],
        "/items/0/status/podIP",
    )?;
    let service = fixture.field(&["service", "kubernetes", "-n", "default"], "/spec/clusterIP")?;
    ensure!(
        fixture.lab.laptop.curl(&format!("http://{pod}/")).is_err(),
        "the laptop reaches the pod without the Connector"
    );
    let networks = NETWORKS.join(", ");
    fixture.apply(
        "cluster",
        &format!("{{subnetRouter: {{advertiseRoutes: [{networks}]}}}}"),
    )?;
    fixture.condition("cluster", "ConnectorReady", "ConnectorCreated")?;
    fixture.condition("cluster", "RoutesApproved", "RoutesApproved")?;
    let lab = &fixture.lab;
    let page = lab.reachable(&format!("http://{pod}/"))?;
    ensure!(page.contains("Welcome to nginx!"), "{page}");
    let api = lab
        .laptop
        .namespace()
        .command("curl")
        .args([
            "-sk",
            "--max-time",
            "10",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            &format!("https://{service}/version"),
        ])
        .output()?;
    let code = String::from_utf8_lossy(&api.stdout).into_owned();
    ensure!(
        code == "200" || code == "401" || code == "403",
        "the API server's Service answers {code}"
    );
    fixture.delete("cluster", "cluster-connector")
}

fn exit_node(fixture: &mut Fixture) -> Result<()> {
    fixture.apply("way-out", "{exitNode: true, hostname: way-out}")?;
    fixture.condition("way-out", "RoutesApproved", "RoutesApproved")?;
    let lab = &fixture.lab;
    let url = fixture.outside.url();
    let direct = lab.reachable(&url)?;
    eventually("the laptop takes the exit node", || {
        lab.laptop.run(&["set", "--exit-node=way-out"]).map(drop)
    })?;
    let through = eventually("the laptop leaves through the exit node", || {
        let source = lab.laptop.curl(&url)?;
        ensure!(source != direct, "it still comes from {source}");
        Ok(source)
    });
    lab.laptop.run(&["set", "--exit-node="])?;
    let through = through.with_context(|| lab.cluster.dump(NAMESPACE))?;
    let node = fixture.field(&["nodes"], "/items/0/status/addresses/0/address")?;
    ensure!(through == node, "{through} is not the cluster's machine {node}");
    fixture.delete("way-out", "way-out")
}

fn unapproved(fixture: &mut Fixture) -> Result<()> {
    fixture.apply("wide", "{subnetRouter: {advertiseRoutes: [10.0.0.0/8]}}")?;
    let message = fixture.condition("wide", "RoutesApproved", "RoutesPending")?;
    ensure!(
        message.contains("10.0.0.0/8") && message.contains("autoApprovers"),
        "{message}"
    );
    let message = fixture.condition("wide", "RoutesOverlap", "RoutesOverlapCluster")?;
    ensure!(message.contains("10.244."), "{message}");
    fixture.delete("wide", "wide-connector")
}
