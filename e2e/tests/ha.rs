//! What breaks, in a cluster of three nodes: devices stay the same, come back within seconds, and are never at two places.

use std::io::Read as _;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tailwharf_e2e::{Seen, condition, watched};
use tailwharf_testkit::Lab;
use tailwharf_testkit::lab::{NAMESPACE, NGINX};
use tailwharf_testkit::process::run;
use tailwharf_testkit::requirements::Need;
use tailwharf_testkit::wait::{eventually, eventually_within};

const NAME: &str = "ha";
const DIR: &str = "/var/lib/tailwharf-ha";
const URL: &str = "http://default-web/";
const DEVICE: &str = "default-web";
const SERVICE: &str = "apiVersion: v1
kind: Service
metadata: {name: NAME, namespace: default, annotations: {tailscale.com/expose: \"true\"}}
spec: {selector: {app: nginx}, ports: [{port: 80}]}
";
/// A new connection has this long during what is planned: nobody may notice that.
const PLANNED: Duration = Duration::from_secs(10);
/// And this long during what is not, so that the time without an answer is seen.
const UNPLANNED: Duration = Duration::from_secs(1);

struct Fixture {
    lab: Lab,
}

fn main() -> ExitCode {
    tailwharf_e2e::run(
        &[
            Need::Asking,
            Need::Root,
            Need::Cluster,
            Need::OfficialClient,
            Need::Binary,
            Need::Image,
        ],
        start,
        &[
            ("pods_are_spread_and_protected", spread),
            ("a_killed_pod_gives_its_device_to_another", killed),
            ("a_rolling_update_is_not_noticed", rolling_update),
            ("a_drained_node_is_not_noticed", drained),
            ("a_standby_operator_takes_over", standby),
            ("a_lost_node_gives_its_devices_to_another", lost),
        ],
    )
}

fn start() -> Result<Fixture> {
    let lab = Lab::on_nodes(NAME, Path::new(DIR), 3, &[], |_| ())?;
    lab.install()?;
    lab.deploy(NGINX, "nginx")?;
    // On the node that stays: it is not what is tested.
    let pin = format!(
        "{{\"spec\":{{\"template\":{{\"spec\":{{\"nodeSelector\":{{\"kubernetes.io/hostname\":\"{NAME}\"}}}}}}}}}}"
    );
    let kubectl = lab.kubectl();
    kubectl.run(&["patch", "deployment", "nginx", "--type=merge", "-p", &pin])?;
    kubectl.run(&["rollout", "status", "deployment/nginx", "--timeout=60s"])?;
    kubectl.apply(&SERVICE.replace("NAME", "web"))?;
    lab.reachable(URL).with_context(|| lab.cluster.dump(NAMESPACE))?;
    Ok(Fixture { lab })
}

impl Fixture {
    fn kubectl(&self, words: &[&str]) -> Result<String> {
        self.lab.kubectl().run(words)
    }

    /// The name of the Identity, and the pod that hosts it.
    fn host(&self) -> Result<(String, String)> {
        let words = [
            "identities",
            "-n",
            NAMESPACE,
            "-l",
            "tailscale.com/parent-resource=web",
        ];
        let list = self.lab.kubectl().get(&words)?;
        let identity = &list["items"][0];
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let host = word(&identity["status"]["host"]);
        ensure!(!host.is_empty(), "nobody hosts it");
        Ok((word(&identity["metadata"]["name"]), host))
    }

    fn node_of(&self, pod: &str) -> Result<String> {
        let path = "jsonpath={.spec.nodeName}";
        self.kubectl(&["get", "pod", pod, "-n", NAMESPACE, "-o", path])
    }

    /// Id, key and addresses of the device.
    fn device(&self) -> Result<Value> {
        let nodes = self.lab.tailnet.nodes()?;
        let named = |node: &&Value| {
            node["name"]
                .as_str()
                .is_some_and(|name| name.starts_with(&format!("{DEVICE}.")))
        };
        let found: Vec<_> = nodes.iter().filter(named).collect();
        ensure!(found.len() == 1, "{} devices are named {DEVICE}", found.len());
        let node = found[0];
        Ok(serde_json::json!([
            node["nodeId"],
            node["nodeKey"],
            node["addresses"]
        ]))
    }

    /// Does something to the cluster, and checks that the device stayed the same and ends up elsewhere. What is returned is what a client saw, and the
    /// hosts of the Identity one after the other, empty where nobody had it.
    fn through(
        &self,
        patience: Duration,
        act: impl FnOnce(&str) -> Result<()>,
    ) -> Result<(Seen, Vec<String>)> {
        let before = self.device()?;
        let (identity, host) = self.host()?;
        let line = "jsonpath={.status.host}{\"\\n\"}";
        let mut watch = self.lab.kubectl().command(&[
            "get", "identity", &identity, "-n", NAMESPACE, "--watch", "-o", line,
        ]);
        // It ends with the test, not after the time of a request.
        let mut watch = watch.arg("--request-timeout=0").stdout(Stdio::piped()).spawn()?;
        let seen = watched(&self.lab.laptop, URL, patience, || {
            act(&host)?;
            eventually_within(Duration::from_secs(120), "another pod hosts the device", || {
                let (_, now) = self.host()?;
                ensure!(now != host, "{now} hosts it");
                Ok(())
            })?;
            self.lab.reachable(URL).map(drop)
        })
        .with_context(|| self.lab.cluster.dump(NAMESPACE));
        watch.kill()?;
        let mut text = String::new();
        watch
            .stdout
            .take()
            .context("no output")?
            .read_to_string(&mut text)?;
        watch.wait()?;
        let seen = seen?;
        let mut hosts: Vec<String> = text.lines().map(str::to_owned).collect();
        hosts.dedup();
        let after = self.device()?;
        ensure!(before == after, "{before} became {after}");
        Ok((seen, hosts))
    }

    /// Waits until all pods of the pool are there again.
    fn whole(&self) -> Result<()> {
        self.lab.ready()
    }
}

/// Says what was measured; a speed is nothing that a test asserts.
#[expect(clippy::print_stderr, reason = "the figures that docs/operations.md has")]
fn tell(what: &str, seen: Seen, hosts: &[String]) {
    let Seen {
        attempts,
        failed,
        longest,
    } = seen;
    eprintln!(
        "{what}: {failed} of {attempts} connections failed, longest time without an answer {:.2} s, hosts {hosts:?}",
        longest.as_secs_f64()
    );
}

fn spread(fixture: &mut Fixture) -> Result<()> {
    let pods = fixture
        .lab
        .kubectl()
        .get(&["pods", "-n", NAMESPACE, "-l", "tailwharf.dev/pool=default"])?;
    let nodes: std::collections::BTreeSet<_> = pods["items"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|pod| pod["spec"]["nodeName"].to_string())
        .collect();
    ensure!(nodes.len() == 2, "the pods are on {nodes:?}");
    let budget = fixture
        .lab
        .kubectl()
        .get(&["pdb", "tailwharf-default", "-n", NAMESPACE])?;
    ensure!(budget["spec"]["maxUnavailable"] == 1, "{}", budget["spec"]);
    Ok(())
}

fn killed(fixture: &mut Fixture) -> Result<()> {
    let (seen, hosts) = fixture.through(UNPLANNED, |host| {
        for pid in fixture.lab.cluster.pids(NAMESPACE, host, "proxy")? {
            run(std::process::Command::new("kill").args(["-KILL", &pid.to_string()]))?;
        }
        fixture
            .kubectl(&[
                "delete",
                "pod",
                host,
                "-n",
                NAMESPACE,
                "--grace-period=0",
                "--force",
            ])
            .map(drop)
    })?;
    tell("a killed pod", seen, &hosts);
    fixture.whole()
}

fn rolling_update(fixture: &mut Fixture) -> Result<()> {
    let (seen, hosts) = fixture.through(PLANNED, |_| {
        fixture.kubectl(&[
            "set",
            "env",
            "deployment/operator",
            "-n",
            NAMESPACE,
            "TAILWHARF_LOG=info,tailwharf_proxy=debug",
        ])?;
        fixture.kubectl(&[
            "rollout",
            "status",
            "deployment/operator",
            "-n",
            NAMESPACE,
            "--timeout=60s",
        ])?;
        eventually("the pool is rolled", || {
            let set = fixture
                .lab
                .kubectl()
                .get(&["statefulset", "tailwharf-default", "-n", NAMESPACE])?;
            let (spec, status) = (&set["spec"], &set["status"]);
            ensure!(
                set["spec"]["template"]
                    .to_string()
                    .contains("tailwharf_proxy=debug"),
                "not told yet"
            );
            ensure!(
                status["updatedReplicas"] == spec["replicas"] && status["readyReplicas"] == spec["replicas"],
                "{status}"
            );
            Ok(())
        })
    })?;
    tell("a rolling update", seen, &hosts);
    ensure!(
        seen.failed == 0,
        "{} of {} connections failed",
        seen.failed,
        seen.attempts
    );
    changes_hands(&hosts)
}

fn drained(fixture: &mut Fixture) -> Result<()> {
    let (_, host) = fixture.host()?;
    let node = fixture.node_of(&host)?;
    let (seen, hosts) = fixture.through(PLANNED, |_| {
        let words = [
            "drain",
            &node,
            "--ignore-daemonsets",
            "--delete-emptydir-data",
            "--timeout=60s",
        ];
        // Whatever else is on that node may go, nginx and the operator are told to stay or have replicas elsewhere.
        let selector = "--pod-selector=tailwharf.dev/pool";
        fixture
            .lab
            .kubectl()
            .run(&[&words[..], &[selector]].concat())
            .map(drop)
    })?;
    tell("a drained node", seen, &hosts);
    fixture.kubectl(&["uncordon", &node])?;
    fixture.whole()?;
    ensure!(
        seen.failed == 0,
        "{} of {} connections failed",
        seen.failed,
        seen.attempts
    );
    changes_hands(&hosts)
}

/// Nobody takes a device from a living host: it is let go before it is taken.
fn changes_hands(hosts: &[String]) -> Result<()> {
    for pair in hosts.windows(2) {
        ensure!(
            pair.iter().any(String::is_empty),
            "from hand to hand without a pause: {hosts:?}"
        );
    }
    ensure!(hosts.len() > 2, "nothing was seen: {hosts:?}");
    Ok(())
}

fn standby(fixture: &mut Fixture) -> Result<()> {
    fixture.kubectl(&["scale", "deployment/operator", "-n", NAMESPACE, "--replicas=2"])?;
    fixture.kubectl(&[
        "rollout",
        "status",
        "deployment/operator",
        "-n",
        NAMESPACE,
        "--timeout=60s",
    ])?;
    let leader = || {
        let lease = fixture
            .lab
            .kubectl()
            .get(&["lease", "tailwharf-operator", "-n", NAMESPACE])?;
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
        ensure!(!holder.is_empty(), "nobody leads");
        Ok(holder.to_owned())
    };
    let before = eventually("an operator leads", leader)?;
    for pid in fixture.lab.cluster.pids(NAMESPACE, &before, "operator")? {
        run(std::process::Command::new("kill").args(["-STOP", &pid.to_string()]))?;
    }
    fixture.lab.kubectl().apply(&SERVICE.replace("NAME", "late"))?;
    let ready = eventually("the other one brings the Service in order", || {
        let (status, _, message) = condition(
            &fixture.lab.kubectl().get(&["service", "late"])?,
            "TailscaleProxyReady",
        )?;
        ensure!(status == "True", "{message}");
        Ok(())
    });
    for pid in fixture.lab.cluster.pids(NAMESPACE, &before, "operator")? {
        run(std::process::Command::new("kill").args(["-CONT", &pid.to_string()]))?;
    }
    ready.with_context(|| fixture.lab.cluster.dump(NAMESPACE))?;
    ensure!(leader()? != before, "{before} leads although it stood still");
    fixture.kubectl(&["delete", "service", "late", "--timeout=30s"])?;
    fixture.kubectl(&["scale", "deployment/operator", "-n", NAMESPACE, "--replicas=1"])?;
    fixture.whole()
}

fn lost(fixture: &mut Fixture) -> Result<()> {
    // A host on a node that can be lost: not on that of the control plane.
    let (_, host) = fixture.host()?;
    if fixture.node_of(&host)? == NAME {
        fixture.kubectl(&["cordon", NAME])?;
        fixture.kubectl(&["delete", "pod", &host, "-n", NAMESPACE])?;
        eventually("the device is on another node", || {
            let (_, host) = fixture.host()?;
            ensure!(fixture.node_of(&host)? != NAME, "it is not");
            Ok(())
        })?;
        fixture.kubectl(&["uncordon", NAME])?;
        fixture.whole()?;
    }
    let (_, host) = fixture.host()?;
    let node = fixture.node_of(&host)?;
    let (seen, hosts) = fixture.through(UNPLANNED, |_| fixture.lab.cluster.kill_node(&node))?;
    tell("a lost node", seen, &hosts);
    fixture.lab.cluster.start_node(&node)?;
    fixture.whole()
}
