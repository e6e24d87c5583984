//! Ingresses on a real cluster, at the official client: names and certificates that it verifies, what stands in the way, the internet, the end.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use tailwharf_e2e::condition;
use tailwharf_testkit::Lab;
use tailwharf_testkit::lab::{NAMESPACE, NGINX};
use tailwharf_testkit::process::{Process, run};
use tailwharf_testkit::requirements::Need;
use tailwharf_testkit::tailnet::{STORY_POLICY, SUFFIX};
use tailwharf_testkit::wait::eventually;

const SERVICES: &str = "apiVersion: v1
kind: Service
metadata:
  name: nginx-service
  namespace: default
  annotations: {tailscale.com/expose: \"true\", tailscale.com/tags: \"tag:k8s\"}
spec:
  selector: {app: nginx}
  ports: [{port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: nobody, namespace: default}
spec:
  selector: {app: nobody}
  ports: [{port: 80}]
";
const PAGE: &str = "Welcome to nginx!";

struct Fixture {
    lab: Lab,
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
            ("an_ingress_answers_with_a_certificate_that_is_verified", ingress),
            ("port_80_leads_to_https_if_it_is_to", redirect),
            ("annotations_bound_requests_and_log_them", annotations),
            ("logs_are_read_by_the_name_of_the_object", logs),
            ("the_internet_sees_it_through_funnel", funnel),
            ("of_two_with_one_name_the_older_keeps_it", same_name),
            ("without_an_endpoint_there_is_a_page_that_says_so", no_endpoint),
            ("a_domain_of_ones_own_has_its_own_certificate", own_domain),
            ("an_authority_that_is_away_is_told", authority_away),
            ("explain_tells_where_a_chain_ends", explain),
            ("clean_up_leaves_nothing", clean_up),
        ],
    )
}

fn start() -> Result<Fixture> {
    let lab = Lab::start("e2e", Path::new("/var/lib/tailwharf-e2e"), |_| ())?;
    lab.deploy(NGINX, "nginx")?;
    lab.kubectl().apply(SERVICES)?;
    Ok(Fixture { lab })
}

/// An Ingress to a Service of its namespace.
fn manifest(namespace: &str, name: &str, service: &str, tls: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: Ingress\n\
         metadata: {{name: {name}, namespace: {namespace}, annotations: {{tailscale.com/tags: \"tag:k8s\"}}}}\n\
         spec:\n  ingressClassName: tailscale\n  defaultBackend: {{service: {{name: {service}, port: {{number: 80}}}}}}\n  tls: {tls}\n"
    )
}

impl Fixture {
    fn apply(&self, name: &str, service: &str, tls: &str) -> Result<()> {
        let text = manifest("default", name, service, tls);
        self.lab.kubectl().apply(&text).map(drop)
    }

    /// The Identity of an Ingress.
    fn identity(&self, namespace: &str, name: &str) -> Result<Value> {
        let label =
            format!("tailscale.com/parent-resource={name},tailscale.com/parent-resource-ns={namespace}");
        let list = self
            .lab
            .kubectl()
            .get(&["identities", "-n", NAMESPACE, "-l", &label])?;
        list["items"].get(0).cloned().context("it has no Identity")
    }

    /// Waits until a condition of the Identity of an Ingress has this status; reason and message.
    fn becomes(&self, namespace: &str, name: &str, kind: &str, wanted: &str) -> Result<(String, String)> {
        eventually(&format!("{kind} of {name} is {wanted}"), || {
            let (status, reason, message) = condition(&self.identity(namespace, name)?, kind)?;
            ensure!(status == wanted, "{status}: {reason}: {message}");
            Ok((reason, message))
        })
        .with_context(|| self.lab.cluster.dump(NAMESPACE))
    }

    fn ready(&self, name: &str) -> Result<()> {
        self.becomes("default", name, "Ready", "True").map(drop)
    }

    /// curl at the laptop.
    fn curl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.lab.laptop.namespace().command("curl");
        run(command
            .args(["--silent", "--show-error", "--max-time", "10"])
            .args(arguments))
    }

    fn annotate(&self, ingress: &str, annotation: &str) -> Result<()> {
        let words = ["annotate", "ingress", ingress, annotation];
        self.lab.kubectl().run(&words).map(drop)
    }

    /// A request from outside of the tailnet.
    fn public(&self, name: &str) -> Result<String> {
        let resolve = format!("{name}:443:{}", self.lab.bridge.host());
        run(Command::new("curl")
            .args(["-sS", "--fail", "--max-time", "10", "--resolve", &resolve])
            .arg("--cacert")
            .arg(self.lab.root_certificate())
            .arg(format!("https://{name}")))
    }

    fn delete(&self, ingress: &str) -> Result<()> {
        let words = ["delete", "ingress", ingress, "--wait=true", "--timeout=30s"];
        self.lab.kubectl().run(&words).map(drop)
    }
}

/// The story's own: the short name, the full one, and the same page as by the Service.
fn ingress(fixture: &mut Fixture) -> Result<()> {
    let lab = &fixture.lab;
    fixture.apply("nginx", "nginx-service", "[{hosts: [nginx]}]")?;
    fixture.ready("nginx")?;
    fixture.becomes("default", "nginx", "CertificateReady", "True")?;
    let full = format!("nginx.{SUFFIX}");
    let line = eventually("the Ingress shows its address", || {
        let line = lab.kubectl().run(&["get", "ingress", "nginx", "--no-headers"])?;
        ensure!(line.contains(&full), "{line}");
        Ok(line)
    })?;
    ensure!(line.contains("443"), "{line}");
    let page = eventually("the short name answers", || {
        fixture.curl(&["--fail", "https://nginx"])
    })?;
    ensure!(page.contains(PAGE), "{page}");
    let same = fixture.curl(&["--fail", &format!("https://{full}")])?;
    ensure!(page == same, "the full name shows another page");
    let plain = lab.reachable("http://default-nginx-service")?;
    ensure!(page == plain, "the Service shows another page");
    ensure!(
        fixture.curl(&["http://nginx"]).is_err(),
        "HTTP is served that nobody asked for"
    );
    Ok(())
}

fn redirect(fixture: &mut Fixture) -> Result<()> {
    fixture.annotate("nginx", "tailscale.com/http-redirect=true")?;
    let answer = eventually("port 80 answers", || {
        fixture.curl(&["--head", "http://nginx/a?b=c"])
    })?;
    let to = format!("location: https://nginx.{SUFFIX}/a?b=c");
    ensure!(
        answer.starts_with("HTTP/1.1 301") && answer.to_lowercase().contains(&to),
        "{answer}"
    );
    let page = fixture.curl(&["--fail", "--location", "http://nginx"])?;
    ensure!(page.contains(PAGE), "{page}");
    let status = fixture
        .lab
        .kubectl()
        .get(&["ingress", "nginx", "-n", "default"])?;
    let ports = &status["status"]["loadBalancer"]["ingress"][0]["ports"];
    ensure!(ports[0]["port"] == 443 && ports[1]["port"] == 80, "{ports}");
    fixture.annotate("nginx", "tailscale.com/http-redirect-")?;
    fixture.annotate("nginx", "tailscale.com/http-endpoint=enabled")?;
    let page = eventually("port 80 serves the page itself", || {
        fixture.curl(&["--fail", "http://nginx"])
    })?;
    ensure!(page.contains(PAGE), "{page}");
    fixture.annotate("nginx", "tailscale.com/http-endpoint-")?;
    eventually("port 80 is closed again", || {
        ensure!(fixture.curl(&["--head", "http://nginx"]).is_err(), "it answers");
        Ok(())
    })
}

fn annotations(fixture: &mut Fixture) -> Result<()> {
    fixture.annotate("nginx", "tailwharf.dev/access-log=true")?;
    fixture.annotate("nginx", "tailwharf.dev/max-body-size=1Ki")?;
    let body = "x".repeat(2_000);
    eventually("a long body is refused", || {
        let answer = fixture.curl(&["--include", "--data", &body, "https://nginx/logged"])?;
        ensure!(answer.contains(" 413"), "{answer}");
        Ok(())
    })?;
    let words = [
        "-n",
        NAMESPACE,
        "logs",
        "-l",
        "tailwharf.dev/pool=default",
        "--tail=-1",
    ];
    eventually("the request is logged", || {
        let log = fixture.lab.kubectl().run(&words)?;
        let line = log
            .lines()
            .find(|line| line.contains("/logged") && line.contains("413"));
        ensure!(
            line.is_some_and(|line| line.contains("alice@example.com")),
            "{line:?}"
        );
        Ok(())
    })?;
    fixture.annotate("nginx", "tailwharf.dev/access-log-")?;
    fixture.annotate("nginx", "tailwharf.dev/max-body-size-")
}

/// Lines of one device only, also after it has moved to another pod.
fn logs(fixture: &mut Fixture) -> Result<()> {
    let kubectl = fixture.lab.kubectl();
    let command = |words: &[&str]| {
        let mut command = Command::new(tailwharf_testkit::workspace::tailwharf());
        command
            .args(["logs", "-n", "default"])
            .args(words)
            .env("KUBECONFIG", kubectl.kubeconfig());
        command
    };
    fixture.annotate("nginx", "tailwharf.dev/access-log=true")?;
    let identity = fixture.identity("default", "nginx")?;
    let identity = identity["metadata"]["name"].as_str().context("no name")?;
    let text = eventually("the request is in the Ingress's log", || {
        fixture.curl(&["--fail", "--output", "/dev/null", "https://nginx/?first"])?;
        let text = run(&mut command(&["ingress/nginx"]))?;
        ensure!(
            text.contains("/?first") && text.contains("the node is started"),
            "{text}"
        );
        Ok(text)
    })?;
    let strange = text.lines().find(|line| !line.contains(identity));
    ensure!(strange.is_none(), "{strange:?}");
    let text = run(&mut command(&["service/nginx-service"]))?;
    ensure!(
        text.contains("the node is started") && !text.contains(identity),
        "{text}"
    );
    let refused = command(&["service/nobody"]).output()?;
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        !refused.status.success() && words.contains("tailwharf explain"),
        "{words}"
    );

    let log = fixture.lab.dir().join("follower.log");
    let follower = Process::start(
        "tailwharf logs",
        &mut command(&["-f", "--since=1s", "ingress/nginx"]),
        &log,
    )?;
    let host = || -> Result<String> {
        let identity = fixture.identity("default", "nginx")?;
        Ok(identity["status"]["host"].as_str().context("no host")?.to_owned())
    };
    let before = host()?;
    kubectl.run(&["delete", "pod", &before, "-n", NAMESPACE, "--wait=false"])?;
    eventually("another pod hosts it", || {
        let now = host()?;
        ensure!(now != before, "it is {now}");
        Ok(())
    })?;
    eventually("what the new host logs is followed", || {
        fixture.curl(&["--fail", "--output", "/dev/null", "https://nginx/?second"])?;
        let text = follower.log();
        // It may go back to the first pod, once that has started again.
        let begun = text.contains("this pod hosts the identity");
        ensure!(begun && text.contains("/?second"), "{text}");
        Ok(())
    })?;
    let text = follower.log();
    let lines: Vec<&str> = text.lines().collect();
    let distinct: BTreeSet<&str> = lines.iter().copied().collect();
    ensure!(lines.len() == distinct.len(), "a line comes twice: {text}");
    follower.stop()?;
    fixture.annotate("nginx", "tailwharf.dev/access-log-")
}

fn funnel(fixture: &mut Fixture) -> Result<()> {
    let name = format!("nginx.{SUFFIX}");
    ensure!(
        fixture.public(&name).is_err(),
        "it is public before anybody said so"
    );
    fixture.annotate("nginx", "tailscale.com/funnel=true")?;
    fixture.becomes("default", "nginx", "FunnelReady", "True")?;
    let page = eventually("the internet sees the page", || fixture.public(&name))
        .with_context(|| fixture.lab.tailnet.log_end(20))?;
    ensure!(page.contains(PAGE), "{page}");
    ensure!(
        fixture
            .public(&format!("default-nginx-service.{SUFFIX}"))
            .is_err(),
        "what has no annotation is public"
    );

    let policy = fixture.lab.dir().join("policy.hujson");
    let set = |text: &str| -> Result<()> {
        fs::write(&policy, text)?;
        let file = policy.display().to_string();
        run(&mut fixture.lab.tailnet.admin(&["policy", "set", &file])).map(drop)
    };
    set(&STORY_POLICY.replace("\"attr\": [\"funnel\"]", "\"attr\": []"))?;
    let (reason, message) = fixture.becomes("default", "nginx", "FunnelReady", "False")?;
    ensure!(
        reason == "FunnelUnavailable" && message.contains("nodeAttrs"),
        "{message}"
    );
    fixture.ready("nginx")?;
    ensure!(fixture.public(&name).is_err(), "the policy does not let it");
    set(STORY_POLICY)?;
    fixture.becomes("default", "nginx", "FunnelReady", "True")?;
    eventually("it is public again", || fixture.public(&name))?;
    fixture.annotate("nginx", "tailscale.com/funnel-")?;
    eventually("it is public no more", || {
        ensure!(fixture.public(&name).is_err(), "it still is");
        Ok(())
    })
}

fn same_name(fixture: &mut Fixture) -> Result<()> {
    let kubectl = fixture.lab.kubectl();
    kubectl.run(&["create", "namespace", "other"])?;
    kubectl.apply(&manifest("other", "late", "web", "[{hosts: [nginx]}]"))?;
    let (reason, message) = fixture.becomes("other", "late", "Ready", "False")?;
    ensure!(
        reason == "HostnameTaken" && message.contains("default/nginx"),
        "{reason}: {message}"
    );
    eventually("an event tells it", || {
        let events = kubectl.run(&[
            "get",
            "events",
            "-n",
            "other",
            "--field-selector",
            "involvedObject.name=late",
        ])?;
        ensure!(events.contains("HostnameTaken"), "{events}");
        Ok(())
    })?;
    let page = fixture.curl(&["--fail", "https://nginx"])?;
    ensure!(page.contains(PAGE), "{page}");
    ensure!(
        fixture.lab.devices("nginx")?.len() == 1,
        "there is a second device"
    );
    let gone = ["delete", "namespace", "other", "--wait=true", "--timeout=60s"];
    kubectl.run(&gone).map(drop)
}

fn no_endpoint(fixture: &mut Fixture) -> Result<()> {
    fixture.apply("empty", "nobody", "[{hosts: [empty]}]")?;
    fixture.becomes("default", "empty", "CertificateReady", "True")?;
    let (_, message) = fixture.becomes("default", "empty", "BackendReachable", "False")?;
    ensure!(message.contains("nobody:80"), "{message}");
    let answer = eventually("a page answers", || {
        fixture.curl(&["--include", "--header", "Accept: text/html", "https://empty"])
    })?;
    ensure!(
        answer.contains(" 503") && answer.contains("nobody") && answer.contains("endpoint"),
        "{answer}"
    );
    fixture.apply("empty", "nginx-service", "[{hosts: [empty]}]")?;
    let page = eventually("the other backend answers", || {
        fixture.curl(&["--fail", "https://empty"])
    })?;
    ensure!(page.contains(PAGE), "{page}");
    fixture.delete("empty")
}

/// A certificate for these names, its own root; also as the Secret that an Ingress names.
fn provide(fixture: &Fixture, file: &str, names: &[&str]) -> Result<String> {
    let key = KeyPair::generate()?;
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let certificate = CertificateParams::new(names)?.self_signed(&key)?.pem();
    let root = fixture.lab.dir().join(file);
    fs::write(&root, &certificate)?;
    secret(fixture, &certificate, &key.serialize_pem())?;
    Ok(root.display().to_string())
}

fn secret(fixture: &Fixture, certificate: &str, key: &str) -> Result<()> {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "shop-tls", "namespace": "default"}, "type": "kubernetes.io/tls",
        "stringData": {"tls.crt": certificate, "tls.key": key},
    });
    fixture.lab.kubectl().apply(&secret.to_string()).map(drop)
}

fn own_domain(fixture: &mut Fixture) -> Result<()> {
    let lab = &fixture.lab;
    let names = ["shop.example.com", "*.shop.example.com"];
    let root = provide(fixture, "shop.pem", &names)?;
    let tls = "[{hosts: [shop]}, {hosts: [shop.example.com, \"*.shop.example.com\"], secretName: shop-tls}]";
    fixture.apply("shop", "nginx-service", tls)?;
    fixture.ready("shop")?;
    let peer = lab.laptop.peer("shop")?;
    let address = peer["TailscaleIPs"][0]
        .as_str()
        .context("the device has no address")?;
    let ask = |root: &str, name: &str| {
        let (resolve, url) = (format!("{name}:443:{address}"), format!("https://{name}"));
        let page = fixture.curl(&["--fail", "--cacert", root, "--resolve", &resolve, &url])?;
        ensure!(page.contains(PAGE), "{page}");
        Ok(())
    };
    for name in ["shop.example.com", "old.shop.example.com"] {
        eventually("the own domain answers", || ask(&root, name))?;
    }
    // What cannot be used leaves the one of before, and is told.
    secret(fixture, "nonsense", "nonsense")?;
    eventually("the Ingress is told", || {
        let (_, reason, message) = condition(&fixture.identity("default", "shop")?, "Accepted")?;
        ensure!(reason == "CertificateInvalid", "{reason}: {message}");
        Ok(())
    })?;
    ask(&root, "shop.example.com")?;
    let renewed = provide(fixture, "renewed.pem", &names)?;
    eventually("a new certificate is served", || {
        ask(&renewed, "shop.example.com")
    })?;
    fixture.delete("shop")
}

/// Another ACME directory by the operator's setting, where nothing answers; what has its certificate goes on.
fn authority_away(fixture: &mut Fixture) -> Result<()> {
    let set = |variable: &str| {
        let kubectl = fixture.lab.kubectl();
        kubectl.run(&["-n", NAMESPACE, "set", "env", "deployment/operator", variable])?;
        fixture.lab.ready()
    };
    let nowhere = format!("http://{}:9/directory", fixture.lab.bridge.host());
    set(&format!("OPERATOR_ACME_DIRECTORY={nowhere}"))?;
    fixture.apply("late", "nginx-service", "[{hosts: [late]}]")?;
    eventually("the authority is missed", || {
        let (_, reason, message) = condition(&fixture.identity("default", "late")?, "CertificateReady")?;
        ensure!(
            reason == "CertificateAuthorityUnreachable" && message.contains(&nowhere),
            "{reason}: {message}"
        );
        Ok(())
    })?;
    let page = fixture.curl(&["--fail", "https://nginx"])?;
    ensure!(page.contains(PAGE), "{page}");
    set("OPERATOR_ACME_DIRECTORY-")?;
    fixture.ready("late")?;
    fixture.delete("late")
}

fn explain(fixture: &mut Fixture) -> Result<()> {
    let explain = |object: &str| {
        Command::new(tailwharf_testkit::workspace::tailwharf())
            .args(["explain", object, "-n", "default"])
            .env("KUBECONFIG", fixture.lab.kubectl().kubeconfig())
            .output()
    };
    for object in ["service/nginx-service", "ingress/nginx"] {
        let good = explain(object)?;
        let text = String::from_utf8_lossy(&good.stdout);
        ensure!(
            good.status.success() && text.contains("Everything is in order."),
            "{text}"
        );
    }
    fixture.apply("lost", "nothing", "[{hosts: [lost]}]")?;
    eventually("the missing Service is named", || {
        let broken = explain("ingress/lost")?;
        let text = String::from_utf8_lossy(&broken.stdout).into_owned();
        ensure!(
            !broken.status.success() && text.contains("\"nothing\" does not exist"),
            "{text}"
        );
        Ok(())
    })?;
    fixture.delete("lost")
}

fn clean_up(fixture: &mut Fixture) -> Result<()> {
    fixture.delete("nginx")?;
    let lab = &fixture.lab;
    lab.kubectl().run(&[
        "delete",
        "service",
        "nginx-service",
        "--wait=true",
        "--timeout=30s",
    ])?;
    eventually("nothing is left", || {
        let left = lab
            .kubectl()
            .run(&["get", "identities,secrets", "-n", NAMESPACE, "-o", "name"])?;
        // The operator's own device and its credentials, and the pool's account at the authority, which serves the next Ingress.
        let own = ["/ts-operator", "/operator-oauth", "/tailwharf-default-acme"];
        let left: Vec<&str> = left
            .lines()
            .filter(|name| !own.iter().any(|own| name.contains(own)))
            .collect();
        ensure!(left.is_empty(), "{left:?}");
        for prefix in ["nginx", "empty", "shop", "late", "lost", "default-"] {
            let devices = lab.devices(prefix)?;
            ensure!(devices.is_empty(), "{devices:?}");
        }
        let accounts = fs::read_to_string(lab.dir().join("coordinator/data/ca-accounts.json"))?;
        let accounts: Value = serde_json::from_str(&accounts)?;
        ensure!(
            accounts["accounts"].as_object().is_some_and(|all| all.len() == 1),
            "one account orders for all: {accounts}"
        );
        Ok(())
    })
}
