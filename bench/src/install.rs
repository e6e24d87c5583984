//! The operator with a thousand and with five thousand Services on a real API server, beside the Go operator with a thousand. No proxies run: what is
//! measured is the way from a Service to what its device needs.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tailwharf_testkit::apiserver::OPERATOR;
use tailwharf_testkit::kubectl::Kubectl;
use tailwharf_testkit::process::{Process, run};
use tailwharf_testkit::requirements::{Need, unmet};
use tailwharf_testkit::wait::eventually_within;
use tailwharf_testkit::{ApiServer, Bridge, Namespace, Tailnet, workspace};
use tempfile::TempDir;

use crate::figures::{Bar, Figures};
use crate::tools::{Cost, resident};

const NAMESPACE: &str = "tailscale";
const POLICY: &str = r#"{"tagOwners": {"tag:k8s-operator": [], "tag:k8s": ["tag:k8s-operator"]}}"#;
const SERVICES: usize = 1_000;
const MANY: usize = 5_000;
/// The Go operator makes five devices a second.
const PATIENCE: Duration = Duration::from_secs(600);
/// An operator that asks for nothing for so long has done all.
const QUIET: Duration = Duration::from_secs(5);
const IDENTITIES: &str = "/apis/tailwharf.dev/v1alpha1/namespaces/tailscale/identities";
const STATEFUL_SETS: &str = "/apis/apps/v1/namespaces/tailscale/statefulsets";

pub(crate) fn measure(figures: &mut Figures) -> Result<()> {
    let needs = [Need::Root, Need::ApiServer, Need::OfficialOperator, Need::Binary];
    if let Some(reason) = unmet(&needs) {
        anyhow::bail!("this machine cannot run it: {reason}");
    }
    let theirs = {
        let mut site = Site::start(Kind::Theirs)?;
        site.expose(0..SERVICES)?
    };
    let mut site = Site::start(Kind::Ours)?;
    let ours = site.expose(0..SERVICES)?;
    let each = |seen: &Seen| seen.requests as f64 / SERVICES as f64;
    let mut add = |name: &str, value: f64, unit: &str, peer: Option<f64>, bar: Bar| {
        figures.add(&format!("install.{name}"), value, unit, peer, Some(bar));
    };
    add(
        "placed_1000",
        ours.seconds,
        "s",
        Some(theirs.seconds),
        Bar::AtMost(20.0),
    );
    add(
        "requests_each",
        each(&ours),
        "",
        Some(each(&theirs)),
        Bar::AtMost(6.0),
    );
    add(
        "api_server_cpu_1000",
        ours.api,
        "s",
        Some(theirs.api),
        Bar::RatioAtMost(0.2),
    );
    let again = site.restart()?;
    add("restart_1000", again.seconds, "s", None, Bar::AtMost(5.0));
    add(
        "restart_1000_requests",
        again.requests as f64,
        "",
        None,
        Bar::AtMost(100.0),
    );
    add(
        "restart_1000_writes",
        again.writes as f64,
        "",
        None,
        Bar::AtMost(0.0),
    );
    add(
        "operator_rss_1000",
        site.resident()?,
        "MiB",
        None,
        Bar::AtMost(50.0),
    );
    let ours = site.expose(SERVICES..MANY)?;
    add("placed_5000", ours.seconds, "s", None, Bar::AtMost(120.0));
    let again = site.restart()?;
    add("restart_5000", again.seconds, "s", None, Bar::AtMost(10.0));
    add(
        "restart_5000_writes",
        again.writes as f64,
        "",
        None,
        Bar::AtMost(0.0),
    );
    add(
        "operator_rss_5000",
        site.resident()?,
        "MiB",
        None,
        Bar::AtMost(120.0),
    );
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ours,
    Theirs,
}

/// What an operator did until it was quiet.
struct Seen {
    /// Until the last device had what it needs, or, at a restart, until the last request.
    seconds: f64,
    requests: usize,
    /// Requests that change something, apart from the Lease.
    writes: usize,
    /// Processor seconds of the API server.
    api: f64,
}

/// An API server, a tailnet and an operator.
struct Site {
    // Dropped before what it lives in and asks.
    operator: Option<Process>,
    kind: Kind,
    kubectl: Kubectl,
    api: ApiServer,
    tailnet: Tailnet,
    home: Namespace,
    _bridge: Bridge,
    dir: TempDir,
}

impl Site {
    fn start(kind: Kind) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("tailwharf-bench-").tempdir()?;
        let bridge = Bridge::create()?;
        let api = ApiServer::start_on(bridge.host())?;
        let kubectl = Kubectl::new(api.kubeconfig());
        let tailnet = Tailnet::start(bridge.host(), &dir.path().join("coordinator"), POLICY)?;
        let crds = match kind {
            Kind::Ours => workspace::root().join("deploy/crds"),
            Kind::Theirs => workspace::official_crds(),
        };
        kubectl.run(&["apply", "--server-side", "-f", &crds.display().to_string()])?;
        kubectl.run(&["create", "namespace", NAMESPACE])?;
        kubectl.run(&["-n", NAMESPACE, "create", "serviceaccount", "operator"])?;
        let (id, secret) = tailnet.oauth_client("tag:k8s-operator")?;
        fs::write(dir.path().join("client_id"), id)?;
        fs::write(dir.path().join("client_secret"), secret)?;
        let home = bridge.join("operator")?;
        let mut site = Self {
            operator: None,
            kind,
            kubectl,
            api,
            tailnet,
            home,
            _bridge: bridge,
            dir,
        };
        site.launch()?;
        site.quiet(0)?;
        Ok(site)
    }

    fn launch(&mut self) -> Result<()> {
        let path = |name: &str| self.dir.path().join(name);
        let mut command = match self.kind {
            Kind::Ours => self.home.command(workspace::tailwharf()),
            Kind::Theirs => self.home.command(workspace::official("k8s-operator")),
        };
        if self.kind == Kind::Ours {
            command.arg("operator");
        }
        command
            .env("KUBECONFIG", self.api.operator_kubeconfig())
            .env("HOME", self.dir.path())
            .env("XDG_CONFIG_HOME", path("config"))
            .env("OPERATOR_NAMESPACE", NAMESPACE)
            .env("OPERATOR_LOGIN_SERVER", self.tailnet.url())
            .env("OPERATOR_LOGGING", "info")
            .env("CLIENT_ID_FILE", path("client_id"))
            .env("CLIENT_SECRET_FILE", path("client_secret"))
            .env("PROXY_IMAGE", "example.test/proxy:bench")
            .env("PROXY_TAGS", "tag:k8s")
            .env("POD_NAME", "operator-0")
            .env("TS_NO_LOGS_NO_SUPPORT", "true");
        self.operator = Some(Process::start("operator", &mut command, &path("operator.log"))?);
        Ok(())
    }

    /// Exposes more Services, and waits until each has a device's objects, and the operator is quiet.
    fn expose(&mut self, numbers: std::ops::Range<usize>) -> Result<Seen> {
        let before = self.requests()?.len();
        let cost = Cost::of(&[self.api.pid()])?;
        let all = numbers.end;
        let began = Instant::now();
        self.create(numbers)?;
        eventually_within(PATIENCE, "each Service has its objects", || {
            self.alive()?;
            let made = self.count(match self.kind {
                Kind::Ours => IDENTITIES,
                Kind::Theirs => STATEFUL_SETS,
            })?;
            ensure!(made >= all, "{made} of {all}");
            Ok(())
        })?;
        let seconds = began.elapsed().as_secs_f64();
        self.quiet(before)?;
        let api = cost.so_far()?;
        let requests = &self.requests()?[before..];
        Ok(Seen {
            seconds,
            requests: requests.len(),
            writes: writes(requests),
            api,
        })
    }

    /// Starts the operator anew over what is there.
    fn restart(&mut self) -> Result<Seen> {
        if let Some(operator) = self.operator.take() {
            operator.stop()?;
        }
        let before = self.requests()?.len();
        let cost = Cost::of(&[self.api.pid()])?;
        let began = Instant::now();
        self.launch()?;
        let quiet_since = self.quiet(before)?;
        let requests = &self.requests()?[before..];
        Ok(Seen {
            seconds: quiet_since.duration_since(began).as_secs_f64(),
            requests: requests.len(),
            writes: writes(requests),
            api: cost.so_far()?,
        })
    }

    /// Waits until the operator has asked for something since the request `before`, and for nothing more for a while; since when that is so.
    fn quiet(&mut self, before: usize) -> Result<Instant> {
        let (mut last, mut since) = (before, Instant::now());
        eventually_within(PATIENCE, "the operator is quiet", || {
            let now = self.requests()?.len();
            if now != last {
                (last, since) = (now, Instant::now());
            }
            self.alive()?;
            ensure!(now > before && since.elapsed() >= QUIET, "{now} requests");
            Ok(since)
        })
    }

    fn alive(&mut self) -> Result<()> {
        self.operator.as_mut().context("no operator runs")?.alive()
    }

    fn resident(&self) -> Result<f64> {
        resident(self.operator.as_ref().context("no operator runs")?.pid())
    }

    /// The operator's requests so far, without those about its Lease and the events that it writes.
    fn requests(&self) -> Result<Vec<(String, String)>> {
        let mut requests = self.api.requests_by(OPERATOR)?;
        requests.retain(|(_, resource)| !matches!(resource.as_str(), "leases" | "events"));
        Ok(requests)
    }

    /// How many objects there are at a path; the API server counts.
    fn count(&self, path: &str) -> Result<usize> {
        let list = self.kubectl.run(&["get", "--raw", &format!("{path}?limit=1")])?;
        let list: Value = serde_json::from_str(&list)?;
        let shown = list["items"].as_array().map_or(0, Vec::len);
        let further = list["metadata"]["remainingItemCount"]
            .as_u64()
            .unwrap_or_default();
        Ok(shown + usize::try_from(further)?)
    }

    /// Creates Services as fast as the API server takes them: kubectl would make some tens a second.
    fn create(&self, numbers: std::ops::Range<usize>) -> Result<()> {
        let (token, ca) = self.access()?;
        let mut words = String::new();
        for number in numbers {
            let service = serde_json::json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"name": format!("web-{number}"), "annotations": {"tailscale.com/expose": "true"}},
                "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]},
            });
            let body = self.dir.path().join(format!("service-{number}.json"));
            fs::write(&body, service.to_string())?;
            writeln!(
                words,
                "url = \"{}/api/v1/namespaces/default/services\"\ndata = \"@{}\"\noutput = \"/dev/null\"",
                self.api.url(),
                body.display()
            )?;
        }
        let file = self.dir.path().join("create.curl");
        fs::write(&file, words)?;
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--fail", "--parallel", "--parallel-max", "16", "--cacert"])
            .arg(ca)
            .args(["-H", "Content-Type: application/json", "-H"])
            .arg(format!("Authorization: Bearer {token}"))
            .arg("-K")
            .arg(file);
        run(&mut curl).map(drop)
    }

    /// The administrator's token, and the file of the API server's authority.
    fn access(&self) -> Result<(String, PathBuf)> {
        let words = ["config", "view", "--raw", "-o", "json"];
        let config: Value = serde_json::from_str(&self.kubectl.run(&words)?)?;
        let token = config["users"][0]["user"]["token"].as_str().context("no token")?;
        let ca = config["clusters"][0]["cluster"]["certificate-authority"].as_str();
        Ok((token.to_owned(), ca.context("no authority")?.into()))
    }
}

fn writes(requests: &[(String, String)]) -> usize {
    let reads = ["get", "list", "watch"];
    requests
        .iter()
        .filter(|(verb, _)| !reads.contains(&verb.as_str()))
        .count()
}
