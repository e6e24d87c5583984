//! Two clusters on one tailnet: pods of B reach Services of A by a Service of their own.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tailwharf_e2e::condition;
use tailwharf_testkit::lab::{ECHO, NAMESPACE, NGINX, deploy};
use tailwharf_testkit::requirements::Need;
use tailwharf_testkit::wait::eventually;
use tailwharf_testkit::{Cluster, Lab};

/// Sends one datagram and prints what comes back.
const UDP_CLIENT: &str = "import socket,sys\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\ns.settimeout(2)\ns.sendto(b'over udp',(sys.argv[1],int(sys.argv[2])))\nprint(s.recv(2048).decode())\n";
const TCP_CLIENT: &str = "import socket,sys\ns=socket.create_connection((sys.argv[1],int(sys.argv[2])),2)\ns.sendall(b'over tcp')\nprint(s.recv(2048).decode())\n";
const EXPOSE: &str = "tailscale.com/expose: \"true\"";
/// A's Service range as that of site 7.
const SITE: &str = "fd7a:115c:a1e0:b1a:0:7:a60:0/112";
const SUFFIX: &str = tailwharf_testkit::tailnet::SUFFIX;

/// Fields are dropped in order: B before the tailnet that it is on.
struct Fixture {
    b: Cluster,
    a: Lab,
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
            ("a_pod_of_b_reaches_a_service_of_a_by_name", by_name),
            ("datagrams_and_addresses", datagrams_and_addresses),
            ("addresses_behind_a_connector", behind_a_connector),
            ("only_some_pods_may_use_it", only_some_pods),
            ("all_ports_of_a_target", all_ports),
            ("a_killed_host_is_replaced", host_killed),
            ("targets_that_cannot_be_reached_are_told", told),
            ("an_exposed_service_becomes_egress_and_back", changes_its_mind),
            ("clean_up_leaves_nothing", clean_up),
        ],
    )
}

fn start() -> Result<Fixture> {
    let a = Lab::start("egress-a", Path::new("/var/lib/tailwharf-e2e-egress"), |_| ())?;
    let b = a.second_cluster("egress-b")?;
    a.deploy(NGINX, "nginx")?;
    a.deploy(ECHO, "echo")?;
    deploy(b.kubectl(), NGINX, "nginx")?;
    let services = [
        ("web", "nginx", "[{port: 80}]"),
        (
            "echo",
            "echo",
            "[{name: t, port: 7}, {name: u, port: 7, protocol: UDP}]",
        ),
    ];
    for (name, app, ports) in services {
        let spec = format!("{{selector: {{app: {app}}}, ports: {ports}}}");
        a.kubectl().apply(&service(name, EXPOSE, &spec))?;
    }
    a.reachable("http://default-web/")?;
    Ok(Fixture { b, a })
}

/// A Service manifest of namespace `default`.
fn service(name: &str, annotations: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default, annotations: {{{annotations}}}}}\nspec: {spec}\n"
    )
}

impl Fixture {
    /// Which Pod Security Standard pods of the operator's namespace in B have to keep.
    fn enforce(&self, standard: &str) -> Result<()> {
        let label = format!("pod-security.kubernetes.io/enforce={standard}");
        let words = ["label", "namespace", NAMESPACE, "--overwrite", &label];
        self.b.kubectl().run(&words).map(drop)
    }

    /// A Service of B that stands for something on the tailnet.
    fn reach(&self, name: &str, annotation: &str, target: &str, ports: &str) -> Result<()> {
        let annotations = format!("tailscale.com/{annotation}: \"{target}\"");
        let spec = format!("{{type: ExternalName, externalName: placeholder, ports: {ports}}}");
        self.b
            .kubectl()
            .apply(&service(name, &annotations, &spec))
            .map(drop)
    }

    fn service(&self, name: &str) -> Result<Value> {
        self.b.kubectl().get(&["service", name, "-n", "default"])
    }

    fn ready(&self, name: &str) -> Result<String> {
        eventually(&format!("{name} is ready"), || {
            let service = self.service(name)?;
            let (status, reason, message) = condition(&service, "TailscaleProxyReady")?;
            ensure!(status == "True", "{reason}: {message}");
            Ok(service["spec"]["externalName"]
                .as_str()
                .unwrap_or_default()
                .to_owned())
        })
        .with_context(|| self.b.dump(NAMESPACE))
    }

    /// The message of a Service that is not ready, once it has this word.
    fn not_ready(&self, name: &str, word: &str) -> Result<String> {
        eventually(&format!("{name} tells of {word:?}"), || {
            let (status, reason, message) = condition(&self.service(name)?, "TailscaleProxyReady")?;
            ensure!(
                status == "False" && message.contains(word),
                "{status} {reason}: {message}"
            );
            Ok(message)
        })
        .with_context(|| self.b.dump(NAMESPACE))
    }

    /// What curl prints in a pod of B.
    fn curl(&self, url: &str) -> Result<String> {
        let curl = [
            "curl",
            "--silent",
            "--show-error",
            "--fail",
            "--max-time",
            "5",
            url,
        ];
        let words = [&["exec", "deployment/nginx", "--"][..], &curl].concat();
        self.b.kubectl().run(&words)
    }

    fn page(&self, url: &str) -> Result<()> {
        let page = eventually(&format!("{url} answers in B"), || self.curl(url))
            .with_context(|| self.b.dump(NAMESPACE))?;
        ensure!(page.contains("Welcome to nginx!"), "{page}");
        Ok(())
    }

    fn delete(&self, name: &str) -> Result<()> {
        self.b
            .kubectl()
            .run(&["delete", "service", name, "--wait=true", "--timeout=30s"])?;
        eventually("nothing is left", || {
            let left = self.b.kubectl().run(&[
                "get",
                "identities,secrets,services,endpointslices",
                "-n",
                NAMESPACE,
                "-l",
                &format!("tailscale.com/parent-resource={name}"),
                "-o",
                "name",
            ])?;
            ensure!(left.trim().is_empty(), "left: {left}");
            let devices = self.a.devices(&format!("default-{name}"))?;
            ensure!(devices.is_empty(), "left: {devices:?}");
            Ok(())
        })
    }
}

fn by_name(fixture: &mut Fixture) -> Result<()> {
    fixture.reach(
        "remote",
        "tailnet-fqdn",
        &format!("default-web.{SUFFIX}"),
        "[{port: 80}]",
    )?;
    let name = fixture.ready("remote")?;
    ensure!(
        name.starts_with("ts-remote-") && name.ends_with(".tailscale.svc.cluster.local"),
        "{name}"
    );
    fixture.page("http://remote/")?;
    fixture.page(&format!("http://{name}/"))?;
    // The short name is enough.
    fixture.reach("remote", "tailnet-fqdn", "default-web", "[{port: 80}]")?;
    fixture.page("http://remote/")
}

fn datagrams_and_addresses(fixture: &mut Fixture) -> Result<()> {
    let peer = fixture.a.laptop.peer("default-echo")?;
    let addresses = peer["TailscaleIPs"].as_array().cloned().unwrap_or_default();
    for (number, address) in addresses.iter().filter_map(Value::as_str).enumerate() {
        let name = format!("echo-{number}");
        let ports = "[{name: t, port: 7}, {name: u, port: 7, protocol: UDP}]";
        fixture.reach(&name, "tailnet-ip", address, ports)?;
        let external = fixture.ready(&name)?;
        let child = external.split('.').next().unwrap_or_default();
        let found = fixture.b.kubectl().get(&["service", child, "-n", NAMESPACE])?;
        let cluster_ip = found["spec"]["clusterIP"].as_str().unwrap_or_default();
        let answer = eventually("a datagram comes back", || {
            fixture.b.exec(&["python3", "-c", UDP_CLIENT, cluster_ip, "7"])
        })?;
        ensure!(answer == "over udp\n", "{answer}");
        fixture.delete(&name)?;
    }
    Ok(())
}

/// Both clusters have the same Service range, so what is reached by the address of site 7 is surely in A.
fn behind_a_connector(fixture: &mut Fixture) -> Result<()> {
    let connector = format!(
        "apiVersion: tailscale.com/v1alpha1\nkind: Connector\nmetadata: {{name: site}}\nspec: {{subnetRouter: {{advertiseRoutes: [10.96.0.0/16, \"{SITE}\"]}}}}\n"
    );
    fixture.a.kubectl().apply(&connector)?;
    eventually("the tailnet routes A's Services", || {
        let connector = fixture.a.kubectl().get(&["connector", "site"])?;
        let (status, reason, message) = condition(&connector, "RoutesApproved")?;
        ensure!(status == "True", "{reason}: {message}");
        Ok(())
    })
    .with_context(|| fixture.a.cluster.dump(NAMESPACE))?;
    let web = fixture.a.kubectl().get(&["service", "web", "-n", "default"])?;
    let address: Ipv4Addr = web["spec"]["clusterIP"]
        .as_str()
        .context("web has no address")?
        .parse()?;
    let [_, _, third, last] = address.octets();
    let of_site = format!("fd7a:115c:a1e0:b1a:0:7:a60:{third:02x}{last:02x}");
    for (name, target) in [("routed", address.to_string()), ("of-site", of_site)] {
        fixture.reach(name, "tailnet-ip", &target, "[{port: 80}]")?;
        fixture.ready(name)?;
        fixture.page(&format!("http://{name}/"))?;
        fixture.delete(name)?;
    }
    fixture
        .a
        .kubectl()
        .run(&["delete", "connector", "site", "--wait=true", "--timeout=30s"])
        .map(drop)
}

/// The pod may use the Service while it has a label; nobody else of the cluster may, and is refused at once and named.
fn only_some_pods(fixture: &mut Fixture) -> Result<()> {
    let kubectl = fixture.b.kubectl();
    let annotate = |from: &str| {
        let annotation = format!("tailwharf.dev/egress-from{from}");
        kubectl.run(&["annotate", "--overwrite", "service", "remote", &annotation])
    };
    annotate(r#"={"podSelector": {"matchLabels": {"role": "front"}}}"#)?;
    eventually("the pod is refused", || {
        let error = fixture.curl("http://remote/").err().context("it may use it")?;
        ensure!(format!("{error:#}").contains("reset"), "{error:#}");
        Ok(())
    })?;
    eventually("the Service tells who was refused", || {
        let events = kubectl.get(&[
            "events",
            "-n",
            "default",
            "--field-selector",
            "reason=EgressRefused",
        ])?;
        let told = events.to_string();
        ensure!(told.contains("Pod default/nginx-"), "{told}");
        Ok(())
    })
    .with_context(|| fixture.b.dump(NAMESPACE))?;
    kubectl.run(&["label", "pods", "--selector=app=nginx", "role=front"])?;
    fixture.page("http://remote/")?;
    // A program of the machine is no pod.
    let external = fixture.ready("remote")?;
    let child = external.split('.').next().unwrap_or_default();
    let found = kubectl.get(&["service", child, "-n", NAMESPACE])?;
    let cluster_ip = found["spec"]["clusterIP"].as_str().unwrap_or_default();
    let refused = fixture
        .b
        .exec(&["curl", "--max-time", "5", &format!("http://{cluster_ip}/")]);
    ensure!(refused.is_err(), "a program of the machine came in: {refused:?}");
    kubectl.run(&["label", "pods", "--selector=app=nginx", "role-"])?;
    eventually("the pod is refused again", || {
        ensure!(fixture.curl("http://remote/").is_err(), "it may use it");
        Ok(())
    })?;
    annotate("-")?;
    fixture.page("http://remote/")
}

/// A Service without ports reaches TCP and UDP ports that nobody has declared, through a pod of its own; with ports, it goes back to the shared ones.
fn all_ports(fixture: &mut Fixture) -> Result<()> {
    fixture.enforce("privileged")?;
    fixture.reach("everything", "tailnet-fqdn", "default-web", "[]")?;
    let name = fixture.ready("everything")?;
    fixture.page("http://everything/")?;
    let kubectl = fixture.b.kubectl();
    let child = name.split('.').next().unwrap_or_default();
    let pod = kubectl.get(&["pod", &format!("tailwharf-{child}-0"), "-n", NAMESPACE])?;
    let address = pod["status"]["podIP"].as_str().context("no address")?;
    let containers = pod["spec"]["containers"].to_string();
    ensure!(!containers.contains("NET_ADMIN"), "{containers}");
    // Nothing listens at this port of the target.
    let refused = fixture.curl("http://everything:81/");
    ensure!(
        refused
            .as_ref()
            .is_err_and(|error| !format!("{error:#}").contains("timed out")),
        "{refused:?}"
    );

    fixture.reach("everything", "tailnet-fqdn", "default-echo", "[]")?;
    for client in [UDP_CLIENT, TCP_CLIENT] {
        let answer = eventually("what was sent comes back", || {
            fixture.b.exec(&["python3", "-c", client, address, "7"])
        })
        .with_context(|| fixture.b.dump(NAMESPACE))?;
        ensure!(answer == "over udp\n" || answer == "over tcp\n", "{answer}");
    }

    fixture.reach("everything", "tailnet-fqdn", "default-web", "[{port: 80}]")?;
    fixture.page("http://everything/")?;
    eventually("the pod of its own is gone", || {
        let sets = kubectl.run(&["get", "statefulsets", "-n", NAMESPACE, "-o", "name"])?;
        ensure!(!sets.contains("everything"), "{sets}");
        Ok(())
    })?;
    fixture.delete("everything")?;
    fixture.enforce("restricted")
}

fn host_killed(fixture: &mut Fixture) -> Result<()> {
    let identities = fixture.b.kubectl().get(&[
        "identities",
        "-n",
        NAMESPACE,
        "-l",
        "tailscale.com/parent-resource=remote",
    ])?;
    let host = identities["items"][0]["status"]["host"]
        .as_str()
        .context("no host")?
        .to_owned();
    fixture.b.kubectl().run(&[
        "delete",
        "pod",
        &host,
        "-n",
        NAMESPACE,
        "--grace-period=0",
        "--force",
    ])?;
    fixture.page("http://remote/")
}

fn told(fixture: &mut Fixture) -> Result<()> {
    fixture.reach("nobody", "tailnet-fqdn", "nobody.example", "[{port: 80}]")?;
    fixture.not_ready("nobody", "no device nobody.example is visible")?;
    fixture.delete("nobody")?;

    fixture.reach("itself", "tailnet-fqdn", "default-itself", "[{port: 80}]")?;
    fixture.not_ready("itself", "is this device itself")?;
    fixture.delete("itself")?;

    // The target is there, and nothing listens at this port.
    fixture.reach("closed", "tailnet-fqdn", "default-web", "[{port: 81}]")?;
    fixture.not_ready("closed", "refuses connections")?;
    fixture.delete("closed")
}

fn changes_its_mind(fixture: &mut Fixture) -> Result<()> {
    let spec = "{type: ClusterIP, externalName: null, selector: {app: nginx}, ports: [{port: 80}]}";
    fixture.b.kubectl().apply(&service("mind", EXPOSE, spec))?;
    fixture.a.reachable("http://default-mind/")?;
    fixture
        .b
        .kubectl()
        .run(&["annotate", "service", "mind", "tailscale.com/expose-"])?;
    fixture.b.kubectl().run(&[
        "annotate",
        "service",
        "mind",
        "tailscale.com/tailnet-fqdn=default-web",
    ])?;
    fixture.page("http://mind/")?;
    fixture.delete("mind")
}

fn clean_up(fixture: &mut Fixture) -> Result<()> {
    fixture.delete("remote")
}
