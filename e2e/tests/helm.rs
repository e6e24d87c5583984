//! The chart on a real cluster by real Helm: installed, upgraded, rolled back, removed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tailwharf_testkit::helm::{Release, options, template};
use tailwharf_testkit::lab::NAMESPACE;
use tailwharf_testkit::process::run;
use tailwharf_testkit::requirements::Need;
use tailwharf_testkit::tailnet::STORY_POLICY;
use tailwharf_testkit::{Bridge, Cluster, Lab, Tailnet, eventually, workspace};

const NAME: &str = "helm";
const DIR: &str = "/var/lib/tailwharf-e2e-helm";
const SERVICE: &str = "apiVersion: v1
kind: Service
metadata: {name: web, namespace: default, annotations: {tailscale.com/expose: \"true\"}}
spec: {selector: {app: web}, ports: [{port: 80}]}
";
const OPERATOR: &str = "tailscale-operator";
const WEB: &str = "default-web";

struct Fixture {
    release: Release,
    tailnet: Tailnet,
    cluster: Cluster,
    /// What says which image, which tailnet and which credentials.
    options: Vec<String>,
    _bridge: Bridge,
    _place: Place,
}

/// The folder of the test; gone with it.
struct Place(PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        // Nothing can be reported from here; the next run removes what is left.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn main() -> ExitCode {
    tailwharf_e2e::run(
        &[Need::Root, Need::Cluster, Need::Helm, Need::Binary, Need::Image],
        start,
        &[
            ("the_api_server_takes_every_object", schemas),
            ("an_installation_puts_devices_on_the_tailnet", installed),
            ("an_upgrade_changes_what_a_value_says", upgraded),
            ("a_rollback_takes_it_back", rolled_back),
            ("devices_are_kept_for_the_next_installation_if_asked", kept),
            ("uninstalling_leaves_nothing", uninstalled),
        ],
    )
}

fn start() -> Result<Fixture> {
    let dir = Path::new(DIR);
    Lab::remove(NAME, dir)?;
    fs::create_dir_all(dir)?;
    let cluster = Cluster::up(NAME)?;
    cluster.load(&workspace::image())?;
    let bridge = Bridge::of_clusters()?;
    let tailnet = Tailnet::start(bridge.host(), &dir.join("coordinator"), STORY_POLICY)?;
    fs::write(dir.join("processes"), tailnet.record()?)?;
    // What the chart makes is admitted where nothing privileged is.
    cluster.kubectl().apply(&format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}, labels: {{pod-security.kubernetes.io/enforce: restricted}}}}\n"
    ))?;
    Ok(Fixture {
        release: Release::of(cluster.kubectl()),
        options: options(&tailnet)?,
        tailnet,
        cluster,
        _bridge: bridge,
        _place: Place(dir.to_path_buf()),
    })
}

impl Fixture {
    fn upgrade(&self, more: &[&str]) -> Result<()> {
        let options: Vec<&str> = self.options.iter().map(String::as_str).collect();
        run(&mut self.release.upgrade(&[&options, more].concat()))
            .map(drop)
            .with_context(|| self.cluster.dump(NAMESPACE))
    }

    /// The id of the only device whose name begins so.
    fn device(&self, name: &str) -> Result<Value> {
        let nodes = self.tailnet.nodes()?;
        let named = |node: &&Value| node["name"].as_str().is_some_and(|found| found.starts_with(name));
        let found: Vec<&Value> = nodes.iter().filter(named).collect();
        ensure!(
            found.len() == 1,
            "{} devices are named {name}: {nodes:?}",
            found.len()
        );
        Ok(found[0]["id"].clone())
    }

    fn appears(&self, name: &str) -> Result<Value> {
        eventually(&format!("{name} is on the tailnet"), || self.device(name))
            .with_context(|| self.cluster.dump(NAMESPACE))
    }

    fn kubectl(&self, words: &[&str]) -> Result<String> {
        self.cluster.kubectl().run(words)
    }
}

/// All that the chart can make passes the schemas of the API server, with no field that it does not know.
fn schemas(fixture: &mut Fixture) -> Result<()> {
    for options in [
        &[
            "--set=apiServerProxyConfig.mode=true,coordinator.enabled=true,oauth.clientId=id,oauth.clientSecret=secret",
        ][..],
        &["--set=oauth.clientId=id,oauth.audience=audience,uninstall.keepDevices=true"],
    ] {
        let objects = template(options)?;
        let words = ["apply", "--dry-run=server", "--validate=strict", "-f", "-"];
        fixture.cluster.kubectl().feed(&words, &objects)?;
    }
    Ok(())
}

fn installed(fixture: &mut Fixture) -> Result<()> {
    fixture.upgrade(&[])?;
    fixture.cluster.kubectl().apply(SERVICE)?;
    fixture.appears(OPERATOR)?;
    fixture.appears(WEB)?;
    Ok(())
}

fn upgraded(fixture: &mut Fixture) -> Result<()> {
    let before = fixture.device(OPERATOR)?;
    fixture.upgrade(&["--set=operatorConfig.hostname=harbour,pool.replicas=1"])?;
    let after = fixture.appears("harbour")?;
    ensure!(before == after, "the device {before} became another: {after}");
    eventually("the pool has one pod", || {
        let replicas = [
            "get",
            "statefulset",
            "tailwharf-default",
            "-n",
            NAMESPACE,
            "-o",
            "jsonpath={.status.replicas}",
        ];
        let replicas = fixture.kubectl(&replicas)?;
        ensure!(replicas == "1", "{replicas} pods");
        Ok(())
    })
}

fn rolled_back(fixture: &mut Fixture) -> Result<()> {
    let before = fixture.device("harbour")?;
    fixture.release.roll_back("1")?;
    let after = fixture.appears(OPERATOR)?;
    ensure!(before == after, "the device {before} became another: {after}");
    Ok(())
}

fn kept(fixture: &mut Fixture) -> Result<()> {
    fixture.upgrade(&["--set=uninstall.keepDevices=true"])?;
    let before = [fixture.device(OPERATOR)?, fixture.device(WEB)?];
    fixture.release.uninstall()?;
    let pods = [
        "get",
        "statefulset",
        "tailwharf-default",
        "-n",
        NAMESPACE,
        "-o",
        "name",
    ];
    fixture.kubectl(&pods).context("the pods of the pool are gone")?;
    let identities = [
        "wait",
        "--for=condition=Registered",
        "identity",
        "--all",
        "-n",
        NAMESPACE,
        "--timeout=10s",
    ];
    fixture.kubectl(&identities)?;
    fixture.upgrade(&[])?;
    fixture.kubectl(&identities)?;
    let after = [fixture.device(OPERATOR)?, fixture.device(WEB)?];
    ensure!(before == after, "{before:?} became {after:?}");
    Ok(())
}

fn uninstalled(fixture: &mut Fixture) -> Result<()> {
    fixture
        .release
        .uninstall()
        .with_context(|| fixture.cluster.dump(NAMESPACE))?;
    let devices = fixture.tailnet.nodes()?;
    ensure!(devices.is_empty(), "left on the tailnet: {devices:?}");
    let service = fixture
        .cluster
        .kubectl()
        .get(&["service", "web", "-n", "default"])?;
    ensure!(
        service["metadata"]["finalizers"].is_null(),
        "left at the Service: {}",
        service["metadata"]
    );
    let ours = |text: String| -> Vec<String> {
        let of_kubernetes = ["serviceaccount/default", "configmap/kube-root-ca.crt"];
        let names = text.lines().filter(|name| !of_kubernetes.contains(name));
        names.map(str::to_owned).collect()
    };
    let namespaced = "all,secrets,configmaps,serviceaccounts,roles,rolebindings,leases,poddisruptionbudgets,endpointslices";
    let of_cluster = "clusterroles,clusterrolebindings,ingressclasses,customresourcedefinitions";
    eventually("nothing is left in the cluster", || {
        let mut left = ours(fixture.kubectl(&["get", namespaced, "-n", NAMESPACE, "-o", "name"])?);
        let label = "app.kubernetes.io/name=tailwharf";
        left.extend(ours(
            fixture.kubectl(&["get", of_cluster, "-l", label, "-o", "name"])?,
        ));
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
}
