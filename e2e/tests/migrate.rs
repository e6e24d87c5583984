//! Taking a namespace over from the official operator, which runs here with its own proxies, and giving it back.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tailwharf_e2e::watched;
use tailwharf_testkit::helm::{Release, options};
use tailwharf_testkit::lab::{NAMESPACE, NGINX};
use tailwharf_testkit::process::{output, run};
use tailwharf_testkit::requirements::Need;
use tailwharf_testkit::wait::eventually_within;
use tailwharf_testkit::{Lab, workspace};

const NAME: &str = "migrate";
const DIR: &str = "/var/lib/tailwharf-migrate";
/// How long a pod with an official proxy may take to join.
const LIMIT: Duration = Duration::from_secs(120);
/// What is exposed: a Service, an Ingress and a Connector.
const OBJECTS: &str = "apiVersion: v1
kind: Service
metadata: {name: web, namespace: default, annotations: {tailscale.com/expose: \"true\", tailscale.com/tags: \"tag:k8s\"}}
spec: {selector: {app: nginx}, ports: [{port: 80}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: shop, namespace: default}
spec:
  ingressClassName: tailscale
  tls: [{hosts: [shop]}]
  defaultBackend: {service: {name: web, port: {number: 80}}}
---
apiVersion: tailscale.com/v1alpha1
kind: Connector
metadata: {name: routes}
spec:
  proxyClass: local
  hostname: routes
  subnetRouter: {advertiseRoutes: [10.96.0.0/16]}
";
/// The devices of these, and that of the operator.
const DEVICES: [&str; 4] = ["default-web", "shop", "routes", "tailscale-operator"];

struct Fixture {
    lab: Lab,
    /// Id and addresses of each device as the official operator made them.
    devices: Vec<Value>,
}

fn main() -> ExitCode {
    let needs = [
        Need::Asking,
        Need::Root,
        Need::Cluster,
        Need::Helm,
        Need::OfficialClient,
        Need::OfficialOperator,
        Need::OfficialImages,
        Need::Binary,
        Need::Image,
    ];
    tailwharf_e2e::run(
        &needs,
        start,
        &[
            ("the_official_operator_serves", official_serves),
            ("the_plan_says_what_is_missing", plan_without_tailwharf),
            ("tailwharf_waits_beside_it", waits_beside),
            ("the_plan_changes_nothing", plan),
            ("devices_move_and_stay_the_same", go),
            ("nothing_is_left_of_the_official_operator", nothing_left),
            ("the_way_back_works", back),
            ("and_there_again", go_again),
        ],
    )
}

fn start() -> Result<Fixture> {
    let lab = Lab::without_operator(NAME, Path::new(DIR), &[], |_| ())?;
    for image in ["official-proxy", "official-operator"] {
        lab.cluster.load(&workspace::test_image(image))?;
    }
    lab.deploy(NGINX, "nginx")?;
    let kubectl = lab.kubectl();
    let crds = workspace::official_crds().display().to_string();
    kubectl.run(&["apply", "--server-side", "-f", &crds])?;
    let (id, secret) = lab.tailnet.oauth_client("tag:k8s-operator")?;
    kubectl.apply(&official(lab.tailnet.url(), &id, &secret))?;
    kubectl.apply(OBJECTS)?;
    Ok(Fixture {
        lab,
        devices: Vec::new(),
    })
}

/// What the official chart installs, as far as it matters here. The class is there because no registry has the image.
fn official(server: &str, id: &str, secret: &str) -> String {
    let version = workspace::OFFICIAL_VERSION;
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}\n---\n\
         apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: operator, namespace: {NAMESPACE}}}\n---\n\
         apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {{name: official-operator}}\n\
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}}\n\
         subjects: [{{kind: ServiceAccount, name: operator, namespace: {NAMESPACE}}}]\n---\n\
         apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: proxies, namespace: {NAMESPACE}}}\n---\n\
         apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {{name: proxies, namespace: {NAMESPACE}}}\n\
         rules:\n\
         - {{apiGroups: [\"\"], resources: [secrets], verbs: [create, delete, deletecollection, get, list, patch, update, watch]}}\n\
         - {{apiGroups: [\"\"], resources: [events], verbs: [create, patch, get]}}\n---\n\
         apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {{name: proxies, namespace: {NAMESPACE}}}\n\
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: proxies}}\n\
         subjects: [{{kind: ServiceAccount, name: proxies, namespace: {NAMESPACE}}}]\n---\n\
         apiVersion: networking.k8s.io/v1\nkind: IngressClass\nmetadata: {{name: tailscale}}\n\
         spec: {{controller: tailscale.com/ts-ingress}}\n---\n\
         apiVersion: v1\nkind: Secret\nmetadata: {{name: operator-oauth, namespace: {NAMESPACE}}}\n\
         stringData: {{client_id: \"{id}\", client_secret: \"{secret}\"}}\n---\n\
         apiVersion: tailscale.com/v1alpha1\nkind: ProxyClass\nmetadata: {{name: local}}\n\
         spec: {{statefulSet: {{pod: {{tailscaleContainer: {{imagePullPolicy: IfNotPresent}}, \
         tailscaleInitContainer: {{imagePullPolicy: IfNotPresent}}}}}}}}\n---\n\
         apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: operator, namespace: {NAMESPACE}}}\n\
         spec:\n  strategy: {{type: Recreate}}\n  selector: {{matchLabels: {{app: operator}}}}\n  template:\n\
         \x20   metadata: {{labels: {{app: operator}}}}\n    spec:\n      serviceAccountName: operator\n\
         \x20     volumes: [{{name: oauth, secret: {{secretName: operator-oauth}}}}]\n      containers:\n\
         \x20     - name: operator\n        image: tailwharf.test/k8s-operator:{version}\n        imagePullPolicy: Never\n\
         \x20       volumeMounts: [{{name: oauth, mountPath: /oauth, readOnly: true}}]\n        env:\n\
         \x20       - {{name: OPERATOR_INITIAL_TAGS, value: \"tag:k8s-operator\"}}\n\
         \x20       - {{name: OPERATOR_HOSTNAME, value: tailscale-operator}}\n\
         \x20       - {{name: OPERATOR_SECRET, value: operator}}\n\
         \x20       - {{name: OPERATOR_LOGGING, value: info}}\n\
         \x20       - {{name: OPERATOR_NAMESPACE, value: {NAMESPACE}}}\n\
         \x20       - {{name: OPERATOR_LOGIN_SERVER, value: \"{server}\"}}\n\
         \x20       - {{name: OPERATOR_INGRESS_CLASS_NAME, value: tailscale}}\n\
         \x20       - {{name: CLIENT_ID_FILE, value: /oauth/client_id}}\n\
         \x20       - {{name: CLIENT_SECRET_FILE, value: /oauth/client_secret}}\n\
         \x20       - {{name: PROXY_IMAGE, value: \"tailwharf.test/tailscale:{version}\"}}\n\
         \x20       - {{name: PROXY_TAGS, value: \"tag:k8s\"}}\n\
         \x20       - {{name: PROXY_FIREWALL_MODE, value: nftables}}\n\
         \x20       - {{name: PROXY_DEFAULT_CLASS, value: local}}\n\
         \x20       - {{name: APISERVER_PROXY, value: \"false\"}}\n\
         \x20       - {{name: TS_NO_LOGS_NO_SUPPORT, value: \"true\"}}\n\
         \x20       - {{name: POD_NAME, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}\n\
         \x20       - {{name: POD_UID, valueFrom: {{fieldRef: {{fieldPath: metadata.uid}}}}}}\n"
    )
}

impl Fixture {
    fn kubectl(&self, words: &[&str]) -> Result<String> {
        self.lab.kubectl().run(words)
    }

    /// Id, name and addresses of each device, once all of them are connected and no others are there.
    fn devices(&self) -> Result<Vec<Value>> {
        eventually_within(LIMIT, "the devices are connected", || {
            let nodes = self.lab.tailnet.nodes()?;
            let mut devices = Vec::new();
            for name in DEVICES {
                let mut named = nodes.iter().filter(|node| {
                    node["name"].as_str().and_then(|full| full.split('.').next()) == Some(name)
                });
                let device = named.next().with_context(|| format!("no device {name}"))?;
                ensure!(device["connectedToControl"] == true, "{name} is not connected");
                devices.push(serde_json::json!([
                    device["nodeId"],
                    device["name"],
                    device["addresses"],
                    device["tags"]
                ]));
            }
            ensure!(nodes.len() == DEVICES.len() + 1, "{} devices", nodes.len());
            Ok(devices)
        })
        .with_context(|| self.lab.cluster.dump(NAMESPACE))
    }

    fn web_answers(&self) -> Result<()> {
        let page = eventually_within(LIMIT, "the Service answers", || {
            self.lab.laptop.curl("http://default-web/")
        })
        .with_context(|| self.lab.cluster.dump(NAMESPACE))?;
        ensure!(page.contains("Welcome to nginx!"), "{page}");
        Ok(())
    }

    /// The command of this version on this cluster.
    fn tailwharf(&self, words: &[&str]) -> Command {
        let mut command = Command::new(workspace::tailwharf());
        command
            .args(words)
            .env("KUBECONFIG", self.lab.kubectl().kubeconfig());
        command
    }

    fn migrate(&self, words: &[&str]) -> Result<String> {
        let words = [&["migrate"], words].concat();
        run(&mut self.tailwharf(&words)).with_context(|| self.lab.cluster.dump(NAMESPACE))
    }

    fn operators(&self) -> Result<(String, String)> {
        let replicas = |name: &str| {
            let path = "jsonpath={.spec.replicas}";
            self.kubectl(&["get", "deployment", name, "-n", NAMESPACE, "-o", path])
        };
        Ok((replicas("operator")?, replicas("tailwharf-operator")?))
    }
}

fn official_serves(fixture: &mut Fixture) -> Result<()> {
    fixture.web_answers()?;
    fixture.devices = fixture.devices()?;
    Ok(())
}

fn plan_without_tailwharf(fixture: &mut Fixture) -> Result<()> {
    let crd = workspace::root()
        .join("deploy/crds/identities.tailwharf.dev.yaml")
        .display()
        .to_string();
    fixture.kubectl(&["apply", "--server-side", "-f", &crd])?;
    fixture.kubectl(&[
        "wait",
        "--for=condition=established",
        "crd/identities.tailwharf.dev",
        "--timeout=20s",
    ])?;
    let told = output(&mut fixture.tailwharf(&["migrate", "plan"]))?;
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    ensure!(!told.status.success(), "{text}");
    ensure!(
        text.contains("tailwharf's operator does not run in namespace tailscale"),
        "{text}"
    );
    Ok(())
}

fn waits_beside(fixture: &mut Fixture) -> Result<()> {
    let mut words = options(&fixture.lab.tailnet)?;
    words.push(
        "--set=fullnameOverride=tailwharf-operator,installCRDs=false,ingressClass.enabled=false".to_owned(),
    );
    run(&mut Release::of(fixture.lab.kubectl()).upgrade(&words))
        .with_context(|| fixture.lab.cluster.dump(NAMESPACE))?;
    let identities = fixture.kubectl(&["get", "identities", "-n", NAMESPACE, "-o", "name"])?;
    ensure!(identities.is_empty(), "it took over uncalled: {identities}");
    ensure!(fixture.devices()? == fixture.devices, "the devices changed");
    let told = output(&mut fixture.tailwharf(&["doctor"]))?;
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    ensure!(text.contains("runs beside it as Deployment operator"), "{text}");
    ensure!(text.contains("the operator's account has all"), "{text}");
    Ok(())
}

fn plan(fixture: &mut Fixture) -> Result<()> {
    let plan = fixture.migrate(&["plan"])?;
    for part in [
        "service default/web: scale StatefulSet ts-web-",
        "ingress default/shop: scale StatefulSet ts-shop-",
        "connector routes: scale StatefulSet ts-routes-",
        "from Secret operator to Secret ts-operator-0",
        "wait until pool local",
    ] {
        ensure!(plan.contains(part), "{part} is not in:\n{plan}");
    }
    ensure!(fixture.devices()? == fixture.devices, "the devices changed");
    fixture.web_answers()
}

fn go(fixture: &mut Fixture) -> Result<()> {
    let mut told = String::new();
    let seen = watched(
        &fixture.lab.laptop,
        "http://default-web/",
        Duration::from_secs(1),
        || {
            told = fixture.migrate(&["go"])?;
            fixture.web_answers()
        },
    )?;
    #[expect(clippy::print_stderr, reason = "the figure that docs/migration.md has")]
    {
        eprintln!(
            "{told}longest time without an answer of the Service: {:.1} s",
            seen.longest.as_secs_f64()
        );
    }
    let devices = fixture.devices()?;
    ensure!(
        devices == fixture.devices,
        "{:?} became {devices:?}",
        fixture.devices
    );
    ensure!(
        fixture.operators()? == ("0".to_owned(), "1".to_owned()),
        "{:?}",
        fixture.operators()
    );
    let page = eventually_within(LIMIT, "the Ingress answers", || {
        fixture.lab.laptop.curl("https://shop/")
    })
    .with_context(|| fixture.lab.cluster.dump(NAMESPACE))?;
    ensure!(page.contains("Welcome to nginx!"), "{page}");
    let service = fixture.lab.kubectl().get(&["service", "web", "-n", "default"])?;
    ensure!(
        service["metadata"]["annotations"]["tailscale.com/expose"] == "true",
        "{service}"
    );
    let status = eventually_within(LIMIT, "everything is ready", || {
        run(&mut fixture.tailwharf(&["status", "--cluster"]))
    })
    .with_context(|| fixture.lab.cluster.dump(NAMESPACE))?;
    ensure!(
        status.contains("service/web (default)") && status.contains("connector/routes"),
        "{status}"
    );
    let doctor = run(&mut fixture.tailwharf(&["doctor", "--credentials"]))?;
    ensure!(doctor.contains("it gives keys for tag:k8s"), "{doctor}");
    Ok(())
}

fn nothing_left(fixture: &mut Fixture) -> Result<()> {
    let names = fixture.kubectl(&["get", "statefulsets,services,pods", "-n", NAMESPACE, "-o", "name"])?;
    let left: Vec<_> = names.lines().filter(|name| name.contains("/ts-")).collect();
    ensure!(left.is_empty(), "{left:?}");
    let secrets = fixture.kubectl(&[
        "get",
        "secrets",
        "-n",
        NAMESPACE,
        "-o",
        "name",
        "-l",
        "tailscale.com/managed,!tailwharf.dev/pool",
    ])?;
    ensure!(secrets.is_empty(), "{secrets}");
    Ok(())
}

fn back(fixture: &mut Fixture) -> Result<()> {
    fixture.migrate(&["back"])?;
    fixture.web_answers()?;
    let devices = fixture.devices()?;
    ensure!(
        devices == fixture.devices,
        "{:?} became {devices:?}",
        fixture.devices
    );
    ensure!(
        fixture.operators()? == ("1".to_owned(), "0".to_owned()),
        "{:?}",
        fixture.operators()
    );
    let identities = fixture.kubectl(&["get", "identities", "-n", NAMESPACE, "-o", "name"])?;
    ensure!(identities.is_empty(), "left: {identities}");
    Ok(())
}

fn go_again(fixture: &mut Fixture) -> Result<()> {
    fixture.kubectl(&[
        "scale",
        "deployment/tailwharf-operator",
        "-n",
        NAMESPACE,
        "--replicas=1",
    ])?;
    fixture.migrate(&["go", "--keep-old"])?;
    fixture.web_answers()?;
    ensure!(fixture.devices()? == fixture.devices, "the devices changed");
    // What was kept is used on the way back.
    fixture.migrate(&["back"])?;
    fixture.web_answers()?;
    ensure!(fixture.devices()? == fixture.devices, "the devices changed");
    Ok(())
}
