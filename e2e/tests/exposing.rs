//! What is exposed on a real cluster, at the official client: Ingresses with certificates that it verifies, domains of one's own, headless Services.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use rcgen::{CertificateParams, KeyPair};
use tailwharf_testkit::Lab;
use tailwharf_testkit::lab::{NAMESPACE, NGINX};
use tailwharf_testkit::process::run;
use tailwharf_testkit::requirements::Need;
use tailwharf_testkit::wait::eventually;

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
const HEADLESS: &str = "apiVersion: v1
kind: Service
metadata:
  name: nginx-pods
  namespace: default
  annotations: {tailscale.com/expose: \"true\"}
spec:
  clusterIP: None
  selector: {app: nginx}
  ports: [{port: 80}]
";
const PAGE: &str = "Welcome to nginx!";

struct Fixture {
    lab: Lab,
    /// The root of the coordinator's certificate authority, as the laptop trusts it.
    root: PathBuf,
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
            ("a_domain_of_ones_own_has_its_own_certificate", own_domain),
            ("a_headless_service_leads_to_its_pods", headless),
            ("explain_tells_where_a_chain_ends", explain),
            ("clean_up_leaves_nothing", clean_up),
        ],
    )
}

fn start() -> Result<Fixture> {
    let lab = Lab::start("e2e", Path::new("/var/lib/tailwharf-e2e"), |_| ())?;
    lab.deploy(NGINX, "nginx")?;
    lab.kubectl().apply(SERVICE)?;
    let root = lab.dir().join("root.pem");
    let url = format!("{}/acme/root.pem", lab.tailnet.url());
    fs::write(&root, run(Command::new("curl").args(["-sf", &url]))?)?;
    Ok(Fixture { lab, root })
}

/// An Ingress of namespace `default` to `nginx-service`.
fn manifest(name: &str, tls: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {{name: {name}, namespace: default, annotations: {{tailscale.com/tags: \"tag:k8s\"}}}}\n\
         spec:\n  ingressClassName: tailscale\n  defaultBackend: {{service: {{name: nginx-service, port: {{number: 80}}}}}}\n  tls: {tls}\n"
    )
}

impl Fixture {
    fn ready(&self, parent: &str) -> Result<()> {
        let label = format!("tailscale.com/parent-resource={parent}");
        let wait = [
            "-n",
            NAMESPACE,
            "wait",
            "--for=condition=Ready",
            "identity",
            "-l",
            &label,
            "--timeout=60s",
        ];
        eventually("the Identity is ready", || {
            self.lab.kubectl().run(&wait).map(drop)
        })
        .with_context(|| self.lab.cluster.dump(NAMESPACE))
    }

    fn curl(&self, root: &Path, arguments: &[&str]) -> Result<String> {
        let root = root.display().to_string();
        let mut command = self.lab.laptop.namespace().command("curl");
        command.args([
            "--silent",
            "--show-error",
            "--fail",
            "--max-time",
            "10",
            "--cacert",
            &root,
        ]);
        run(command.args(arguments))
    }

    fn delete(&self, ingress: &str) -> Result<()> {
        self.lab
            .kubectl()
            .run(&["delete", "ingress", ingress, "--wait=true", "--timeout=30s"])
            .map(drop)
    }
}

fn ingress(fixture: &mut Fixture) -> Result<()> {
    let lab = &fixture.lab;
    lab.kubectl().apply(&manifest("nginx", "[{hosts: [nginx]}]"))?;
    fixture.ready("nginx")?;
    let status = lab.kubectl().get(&["ingress", "nginx", "-n", "default"])?;
    let entry = &status["status"]["loadBalancer"]["ingress"][0];
    let name = entry["hostname"]
        .as_str()
        .context("the Ingress has no host name")?
        .to_owned();
    ensure!(entry["ports"][0]["port"] == 443, "{entry}");
    let page = eventually("the Ingress answers", || {
        fixture.curl(&fixture.root, &[&format!("https://{name}")])
    })?;
    ensure!(page.contains(PAGE), "{page}");
    let plain = lab.reachable("http://default-nginx-service")?;
    ensure!(page == plain, "the two pages differ");
    Ok(())
}

fn own_domain(fixture: &mut Fixture) -> Result<()> {
    let lab = &fixture.lab;
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec!["shop.example.com".to_owned()])?
        .self_signed(&key)?
        .pem();
    let root = lab.dir().join("shop.pem");
    fs::write(&root, &certificate)?;
    let indented = |pem: &str| pem.trim().replace('\n', "\n    ");
    lab.kubectl().apply(&format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: shop-tls, namespace: default}}\ntype: kubernetes.io/tls\nstringData:\n  tls.crt: |\n    {}\n  tls.key: |\n    {}\n",
        indented(&certificate),
        indented(&key.serialize_pem()),
    ))?;
    let tls = "[{hosts: [shop]}, {hosts: [shop.example.com], secretName: shop-tls}]";
    lab.kubectl().apply(&manifest("shop", tls))?;
    fixture.ready("shop")?;
    let peer = lab.laptop.peer("shop")?;
    let address = peer["TailscaleIPs"][0]
        .as_str()
        .context("the device has no address")?
        .to_owned();
    let resolve = format!("shop.example.com:443:{address}");
    let page = eventually("the own domain answers", || {
        fixture.curl(&root, &["--resolve", &resolve, "https://shop.example.com"])
    })?;
    ensure!(page.contains(PAGE), "{page}");
    fixture.delete("shop")
}

fn headless(fixture: &mut Fixture) -> Result<()> {
    let lab = &fixture.lab;
    lab.kubectl().apply(HEADLESS)?;
    let page = lab.reachable("http://default-nginx-pods")?;
    ensure!(page.contains(PAGE), "{page}");
    lab.kubectl()
        .run(&["delete", "service", "nginx-pods", "--wait=true", "--timeout=30s"])
        .map(drop)
}

fn explain(fixture: &mut Fixture) -> Result<()> {
    let explain = |object: &str| {
        Command::new(tailwharf_testkit::workspace::tailwharf())
            .args(["explain", object, "-n", "default"])
            .env("KUBECONFIG", fixture.lab.kubectl().kubeconfig())
            .output()
    };
    let good = explain("service/nginx-service")?;
    let text = String::from_utf8_lossy(&good.stdout);
    ensure!(
        good.status.success() && text.contains("Everything is in order."),
        "{text}"
    );
    let lost = manifest("lost", "[{hosts: [lost]}]").replace("nginx-service", "nothing");
    fixture.lab.kubectl().apply(&lost)?;
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
        let secrets = lab
            .kubectl()
            .get(&["secrets", "-n", NAMESPACE, "-l", "tailscale.com/managed=true"])?;
        let names: Vec<_> = secrets["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|secret| secret["metadata"]["name"].as_str())
            .filter(|name| !name.starts_with("ts-operator"))
            .collect();
        ensure!(names.is_empty(), "{names:?}");
        for prefix in ["nginx", "shop", "lost", "default-"] {
            let devices = lab.devices(prefix)?;
            ensure!(devices.is_empty(), "{devices:?}");
        }
        Ok(())
    })
}
