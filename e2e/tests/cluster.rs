//! First light on a real cluster: Services reached from the official client through operator, proxy, node and relay.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tailwharf_e2e::condition;
use tailwharf_testkit::Lab;
use tailwharf_testkit::lab::{ECHO, NAMESPACE, NGINX};
use tailwharf_testkit::process::run;
use tailwharf_testkit::requirements::Need;
use tailwharf_testkit::wait::eventually;
use tailwharf_testkit::workspace;

/// A client in a few lines: sends one datagram and prints what comes back.
const UDP_CLIENT: &str = "import socket,sys\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\ns.settimeout(2)\ns.sendto(b'over udp',(sys.argv[1],int(sys.argv[2])))\nprint(s.recv(2048).decode())\n";
/// Its TCP sibling, which half-closes and reads to the end: 4 MiB there and back.
const TCP_CLIENT: &str = "import hashlib,os,socket,sys,threading\nd=os.urandom(4<<20)\ns=socket.create_connection((sys.argv[1],int(sys.argv[2])),10)\ndef w():\n s.sendall(d);s.shutdown(socket.SHUT_WR)\nthreading.Thread(target=w).start()\nb=b''\nwhile True:\n c=s.recv(65536)\n if not c: break\n b+=c\nprint('same' if b==d else 'different %d'%len(b))\n";

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
            ("exposed_service_answers_at_the_official_client", exposed),
            ("all_ports_tcp_and_udp_reach_the_service", all_ports),
            ("load_balancer_class_gets_status", load_balancer),
            ("ports_hostname_and_tags_change_live", live_changes),
            ("a_headless_service_leads_to_its_pods", headless),
            ("unusable_services_get_a_condition_and_nothing_else", unusable),
            ("a_tag_that_may_not_be_given_is_named", forbidden_tag),
            ("a_revoked_key_is_told_and_replaced", revoked_key),
            ("the_policy_decides_who_reaches_what", policy_decides),
            (
                "a_killed_proxy_pod_is_replaced_with_the_same_address",
                proxy_killed,
            ),
            ("a_killed_operator_converges", operator_killed),
            ("a_killed_coordinator_changes_nothing", coordinator_killed),
            ("ipv6_of_service_and_laptop", ipv6),
            ("the_coordinator_runs_in_a_cluster", coordinator_in_a_cluster),
            ("clean_up_leaves_nothing", clean_up),
        ],
    )
}

fn start() -> Result<Fixture> {
    let dir = Path::new("/var/lib/tailwharf-e2e");
    let lab = Lab::start("e2e", dir, |_| ())?;
    lab.deploy(NGINX, "nginx")?;
    lab.deploy(ECHO, "echo")?;
    Ok(Fixture { lab })
}

/// A Service manifest of namespace `default`.
fn service(name: &str, app: &str, annotations: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default, annotations: {{{annotations}}}}}\n\
         spec: {{selector: {{app: {app}}}, {spec}}}\n"
    )
}

const EXPOSE: &str = "tailscale.com/expose: \"true\"";
const HTTP: &str = "ports: [{name: http, port: 80}]";

impl Fixture {
    fn apply(&self, manifest: &str) -> Result<()> {
        self.lab.kubectl().apply(manifest).map(drop)
    }

    fn delete(&self, name: &str) -> Result<()> {
        self.lab
            .kubectl()
            .run(&["delete", "service", name, "--wait=true", "--timeout=30s"])?;
        let prefix = format!("default-{name}");
        eventually("the device is gone", || {
            let left = self.lab.devices(&prefix)?;
            ensure!(left.is_empty(), "{left:?} are still there");
            Ok(())
        })
    }

    fn service(&self, name: &str) -> Result<Value> {
        self.lab.kubectl().get(&["service", name, "-n", "default"])
    }

    fn ready(&self, name: &str) -> Result<()> {
        eventually(&format!("{name} is ready"), || {
            let (status, reason, message) = condition(&self.service(name)?, "TailscaleProxyReady")?;
            ensure!(status == "True", "{reason}: {message}");
            Ok(())
        })
        .with_context(|| self.lab.cluster.dump(NAMESPACE))
    }

    /// The condition of a Service once it is not ready for `reason`.
    fn not_ready(&self, name: &str, reason: &str) -> Result<String> {
        eventually(&format!("{name} is {reason}"), || {
            let (status, found, message) = condition(&self.service(name)?, "TailscaleProxyReady")?;
            ensure!(
                status == "False" && found == reason,
                "{status} {found}: {message}"
            );
            Ok(message)
        })
    }

    fn identities(&self, parent: &str) -> Result<Vec<Value>> {
        let label = format!("tailscale.com/parent-resource={parent}");
        let list = self
            .lab
            .kubectl()
            .get(&["identities", "-n", NAMESPACE, "-l", &label])?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    fn address(&self, device: &str) -> Result<String> {
        let peer = self.lab.laptop.peer(device)?;
        Ok(peer["TailscaleIPs"][0].as_str().context("no address")?.to_owned())
    }

    fn python(&self, script: &str, arguments: &[&str]) -> Result<String> {
        run(self
            .lab
            .laptop
            .namespace()
            .command("python3")
            .args(["-c", script])
            .args(arguments))
    }
}

fn exposed(fixture: &mut Fixture) -> Result<()> {
    fixture.apply(&service("web", "nginx", EXPOSE, HTTP))?;
    let page = fixture
        .lab
        .reachable("http://default-web/")
        .with_context(|| fixture.lab.cluster.dump(NAMESPACE))?;
    ensure!(page.contains("Welcome to nginx!"), "{page}");
    fixture.ready("web")?;
    let answer = fixture.lab.laptop.run(&[
        "ping",
        "--c=1",
        "--until-direct=false",
        "--timeout=10s",
        "default-web",
    ])?;
    ensure!(answer.contains("pong from default-web"), "{answer}");
    let who = fixture
        .lab
        .laptop
        .json(&["whois", "--json", &fixture.address("default-web")?])?;
    ensure!(who["Node"]["Tags"][0] == "tag:k8s", "{}", who["Node"]);
    fixture.delete("web")
}

fn all_ports(fixture: &mut Fixture) -> Result<()> {
    let ports = "ports: [{name: echo, port: 7}, {name: datagrams, port: 7, protocol: UDP}, {name: web, port: 8000, targetPort: 8080}]";
    fixture.apply(&service("many", "echo", EXPOSE, ports))?;
    fixture.lab.reachable("http://default-many:8000/")?;
    let address = fixture.address("default-many")?;
    let answer = fixture.python(TCP_CLIENT, &[&address, "7"])?;
    ensure!(answer == "same\n", "4 MiB through TCP came back {answer}");
    let answer = eventually("a datagram comes back", || {
        fixture.python(UDP_CLIENT, &[&address, "7"])
    })?;
    ensure!(answer == "over udp\n", "{answer}");
    ensure!(
        fixture.lab.laptop.curl("http://default-many:8001/").is_err(),
        "a port that is not the Service's answered"
    );
    fixture.delete("many")
}

fn load_balancer(fixture: &mut Fixture) -> Result<()> {
    fixture.apply(&service(
        "lb",
        "nginx",
        "",
        &format!("type: LoadBalancer, loadBalancerClass: tailscale, {HTTP}"),
    ))?;
    let ingress = eventually("the status has a host name and an address", || {
        let service = fixture.service("lb")?;
        let ingress = service["status"]["loadBalancer"]["ingress"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        ensure!(ingress.len() >= 2, "{}", service["status"]);
        Ok(ingress)
    })?;
    let name = ingress[0]["hostname"]
        .as_str()
        .context("the first entry has no host name")?
        .to_owned();
    ensure!(name.starts_with("default-lb."), "{name}");
    fixture.lab.reachable(&format!("http://{name}/"))?;
    let address = ingress[1]["ip"]
        .as_str()
        .context("the second entry has no address")?
        .to_owned();
    fixture.lab.reachable(&format!("http://{address}/"))?;
    fixture.delete("lb")
}

fn live_changes(fixture: &mut Fixture) -> Result<()> {
    fixture.apply(&service("live", "nginx", EXPOSE, HTTP))?;
    fixture.lab.reachable("http://default-live/")?;
    let address = fixture.address("default-live")?;
    fixture.apply(&service(
        "live",
        "nginx",
        EXPOSE,
        "ports: [{name: http, port: 8888, targetPort: 80}]",
    ))?;
    fixture.lab.reachable("http://default-live:8888/")?;
    eventually("the old port is closed", || {
        ensure!(
            fixture.lab.laptop.curl("http://default-live:80/").is_err(),
            "port 80 still answers"
        );
        Ok(())
    })?;
    fixture.apply(&service(
        "live",
        "nginx",
        &format!("{EXPOSE}, tailscale.com/hostname: renamed"),
        HTTP,
    ))?;
    fixture.lab.reachable("http://renamed/")?;
    ensure!(
        fixture.address("renamed")? == address,
        "the address changed with the name"
    );
    let tags = format!(
        "{EXPOSE}, tailscale.com/hostname: renamed, tailscale.com/tags: \"tag:k8s,tag:k8s-operator\""
    );
    fixture.apply(&service("live", "nginx", &tags, HTTP))?;
    eventually("the tags are the new ones", || {
        let peer = fixture.lab.laptop.peer("renamed")?;
        ensure!(
            peer["Tags"].as_array().is_some_and(|tags| tags.len() == 2),
            "{}",
            peer["Tags"]
        );
        Ok(())
    })?;
    fixture
        .lab
        .kubectl()
        .run(&["delete", "service", "live", "--timeout=30s"])?;
    eventually("the device is gone", || {
        ensure!(
            fixture.lab.devices("renamed")?.is_empty(),
            "renamed is still there"
        );
        Ok(())
    })
}

/// A Service without an address of its own leads to its pods.
fn headless(fixture: &mut Fixture) -> Result<()> {
    let spec = "clusterIP: None, ports: [{port: 80}]";
    fixture.apply(&service("headless", "nginx", EXPOSE, spec))?;
    fixture.ready("headless")?;
    let page = fixture.lab.reachable("http://default-headless")?;
    ensure!(page.contains("Welcome to nginx!"), "{page}");
    fixture.delete("headless")
}

fn unusable(fixture: &mut Fixture) -> Result<()> {
    let before = fixture.lab.tailnet.nodes()?.len();
    let bad_name = format!("{EXPOSE}, tailscale.com/hostname: \"not_a name\"");
    let bad_tags = format!("{EXPOSE}, tailscale.com/tags: \"k8s\"");
    for (name, annotations, spec, word) in [
        ("bad-name", bad_name.as_str(), HTTP, "hostname"),
        ("bad-tags", bad_tags.as_str(), HTTP, "tag:"),
        ("no-ports", EXPOSE, "ports: [{port: 80, protocol: SCTP}]", "SCTP"),
    ] {
        fixture.apply(&service(name, "nginx", annotations, spec))?;
        let message = fixture.not_ready(name, "ProxyInvalid")?;
        ensure!(
            message.contains(word),
            "the condition of {name} should say {word:?}: {message}"
        );
        let selector = format!("involvedObject.name={name}");
        let events = eventually("an event tells it", || {
            let text = fixture
                .lab
                .kubectl()
                .run(&["get", "events", "--field-selector", &selector])?;
            ensure!(text.contains("INVALIDSERVICE"), "{text}");
            Ok(text)
        })?;
        ensure!(events.contains("Warning"), "{events}");
        ensure!(
            fixture.identities(name)?.is_empty(),
            "an Identity was made for {name}"
        );
        fixture
            .lab
            .kubectl()
            .run(&["delete", "service", name, "--timeout=30s"])?;
    }
    ensure!(fixture.lab.tailnet.nodes()?.len() == before, "a device was made");
    Ok(())
}

fn forbidden_tag(fixture: &mut Fixture) -> Result<()> {
    fixture.apply(&service(
        "strange",
        "nginx",
        &format!("{EXPOSE}, tailscale.com/tags: \"tag:strange\""),
        HTTP,
    ))?;
    let message = fixture.not_ready("strange", "ProxyFailed")?;
    ensure!(message.contains("tag:strange"), "{message}");
    fixture.apply(&service("strange", "nginx", EXPOSE, HTTP))?;
    fixture.ready("strange")?;
    fixture.delete("strange")
}

/// The pool sleeps while the operator mints a key and somebody revokes it.
fn revoked_key(fixture: &mut Fixture) -> Result<()> {
    let sleeping = Sleeping::pool(fixture)?;
    fixture.apply(&service("barred", "nginx", EXPOSE, HTTP))?;
    let id = eventually("the operator has minted a key", || {
        let keys = fixture.lab.tailnet.administer(&["key", "list"])?;
        let barred = |key: &&Value| {
            let description = key["description"].as_str().unwrap_or_default();
            description.starts_with("ts-barred-")
        };
        let key = keys.as_array().into_iter().flatten().find(barred);
        Ok(key
            .and_then(|key| key["id"].as_str())
            .context("no key")?
            .to_owned())
    })?;
    fixture.lab.tailnet.administer(&["key", "delete", &id])?;
    drop(sleeping);
    let message = fixture.not_ready("barred", "ProxyFailed")?;
    ensure!(
        message.contains(&format!("auth key `{id}` was revoked")) && message.contains("Secret ts-barred-"),
        "{message}"
    );
    let told = fixture.lab.kubectl().get(&[
        "events",
        "-n",
        "default",
        "--field-selector",
        "involvedObject.name=barred,reason=AuthKeyRejected",
    ])?;
    ensure!(told["items"][0]["message"] == message.as_str(), "{told}");
    // A key for other tags is minted at once; for the same tags only after a pause.
    let tags = format!("{EXPOSE}, tailscale.com/tags: \"tag:k8s,tag:k8s-operator\"");
    fixture.apply(&service("barred", "nginx", &tags, HTTP))?;
    fixture.ready("barred")?;
    fixture.lab.reachable("http://default-barred/")?;
    fixture.delete("barred")
}

/// The processes of the pool, stopped until this is dropped.
struct Sleeping(Vec<String>);

impl Sleeping {
    fn pool(fixture: &Fixture) -> Result<Self> {
        let mut pids = Vec::new();
        for pod in ["tailwharf-default-0", "tailwharf-default-1"] {
            let found = fixture.lab.cluster.pids(NAMESPACE, pod, "proxy")?;
            pids.extend(found.iter().map(u32::to_string));
        }
        run(Command::new("kill").arg("-STOP").args(&pids))?;
        Ok(Self(pids))
    }
}

impl Drop for Sleeping {
    fn drop(&mut self) {
        // What is gone by now needs no waking.
        let _ = run(Command::new("kill").arg("-CONT").args(&self.0));
    }
}

fn policy_decides(fixture: &mut Fixture) -> Result<()> {
    fixture.apply(&service("guarded", "nginx", EXPOSE, HTTP))?;
    fixture.lab.reachable("http://default-guarded/")?;
    let address = fixture.address("default-guarded")?;
    let lab = &fixture.lab;
    let bob = Lab::client(
        &lab.bridge,
        &lab.tailnet,
        lab.dir(),
        "bobs-laptop",
        "bob@example.com",
        "member",
    )?;
    ensure!(
        bob.peer("default-guarded").is_err(),
        "Bob sees a device that no rule lets him reach"
    );
    ensure!(
        bob.curl(&format!("http://{address}/")).is_err(),
        "Bob reaches what no rule allows"
    );
    bob.run(&["logout"])?;
    drop(bob);
    fixture.delete("guarded")
}

fn proxy_killed(fixture: &mut Fixture) -> Result<()> {
    fixture.apply(&service("steady", "nginx", EXPOSE, HTTP))?;
    fixture.lab.reachable("http://default-steady/")?;
    fixture.ready("steady")?;
    let address = fixture.address("default-steady")?;
    let identity = fixture
        .identities("steady")?
        .into_iter()
        .next()
        .context("no Identity")?;
    let host = identity["status"]["host"]
        .as_str()
        .context("no hosting pod")?
        .to_owned();
    fixture.lab.kubectl().run(&[
        "delete",
        "pod",
        &host,
        "-n",
        NAMESPACE,
        "--grace-period=0",
        "--force",
    ])?;
    fixture.lab.reachable("http://default-steady/")?;
    ensure!(
        fixture.address("default-steady")? == address,
        "the address changed"
    );
    ensure!(
        fixture.lab.devices("default-steady")?.len() == 1,
        "a second device was made"
    );
    fixture.lab.ready()?;
    fixture.delete("steady")
}

fn operator_killed(fixture: &mut Fixture) -> Result<()> {
    fixture.apply(&service("early", "nginx", EXPOSE, HTTP))?;
    fixture.lab.reachable("http://default-early/")?;
    let scale = |replicas: &str| {
        let replicas = format!("--replicas={replicas}");
        fixture
            .lab
            .kubectl()
            .run(&["-n", NAMESPACE, "scale", "deployment/operator", &replicas])
            .map(drop)
    };
    scale("0")?;
    let pods = ["get", "pods", "-n", NAMESPACE, "-l", "app=operator", "-o", "name"];
    eventually("the operator is gone", || {
        let left = fixture.lab.kubectl().run(&pods)?;
        ensure!(left.trim().is_empty(), "{left}");
        Ok(())
    })?;
    // Meanwhile one Service goes and one comes; what is there goes on.
    fixture
        .lab
        .kubectl()
        .run(&["delete", "service", "early", "--wait=false"])?;
    fixture.apply(&service("late", "nginx", EXPOSE, HTTP))?;
    fixture.lab.laptop.curl("http://default-early/")?;
    scale("1")?;
    fixture.lab.ready()?;
    fixture.lab.reachable("http://default-late/")?;
    eventually("the device of the deleted Service is gone", || {
        ensure!(
            fixture.lab.devices("default-early")?.is_empty(),
            "default-early is still there"
        );
        Ok(())
    })?;
    fixture.delete("late")
}

fn coordinator_killed(fixture: &mut Fixture) -> Result<()> {
    fixture.apply(&service("durable", "nginx", EXPOSE, HTTP))?;
    fixture.lab.reachable("http://default-durable/")?;
    let address = fixture.address("default-durable")?;
    let devices = fixture.lab.tailnet.nodes()?.len();
    fixture.lab.tailnet.kill()?;
    fixture.lab.tailnet.resume()?;
    fixture.lab.reachable("http://default-durable/")?;
    ensure!(
        fixture.address("default-durable")? == address,
        "the address changed"
    );
    ensure!(
        fixture.lab.tailnet.nodes()?.len() == devices,
        "devices were lost or made"
    );
    fixture.delete("durable")
}

/// The laptop reaches the tailnet IPv6 address of a dual-stack Service, and both addresses of one that has IPv6 only,
/// which the proxy can dial in no other way.
fn ipv6(fixture: &mut Fixture) -> Result<()> {
    for (name, families, backends) in [
        ("dual", "ipFamilyPolicy: PreferDualStack", 2),
        ("six", "ipFamilyPolicy: SingleStack, ipFamilies: [IPv6]", 1),
    ] {
        fixture.apply(&service(name, "nginx", EXPOSE, &format!("{families}, {HTTP}")))?;
        let addresses = fixture.service(name)?["spec"]["clusterIPs"].clone();
        let list = addresses.as_array().map_or(&[][..], Vec::as_slice);
        ensure!(
            list.len() == backends && list.last().is_some_and(|last| last.to_string().contains(':')),
            "{name} has the addresses {addresses}"
        );
        let device = format!("default-{name}");
        fixture.lab.reachable(&format!("http://{device}/"))?;
        fixture.ready(name)?;
        let peer = fixture.lab.laptop.peer(&device)?;
        let (v4, v6) = (&peer["TailscaleIPs"][0], &peer["TailscaleIPs"][1]);
        for host in [
            v4.as_str().context("no IPv4 address")?.to_owned(),
            format!("[{}]", v6.as_str().context("no IPv6 address")?),
        ] {
            let page = fixture.lab.reachable(&format!("http://{host}/"))?;
            ensure!(page.contains("Welcome to nginx!"), "{name} at {host}: {page}");
        }
        fixture.delete(name)?;
    }
    Ok(())
}

/// By its manifest, with its store on a volume of the node; a pod that is made anew finds what the one before wrote.
fn coordinator_in_a_cluster(fixture: &mut Fixture) -> Result<()> {
    let kubectl = fixture.lab.kubectl();
    let volume = fixture.lab.dir().join("volume");
    fs::create_dir_all(&volume)?;
    let node = kubectl.run(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"])?;
    kubectl.apply(&format!(
        "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: coordinator}}\nspec: {{capacity: {{storage: 1Gi}}, accessModes: [ReadWriteOnce], local: \
         {{path: {path}}}, nodeAffinity: {{required: {{nodeSelectorTerms: [{{matchExpressions: [{{key: kubernetes.io/hostname, operator: In, values: \
         [{node}]}}]}}]}}}}}}\n",
        path = volume.display(),
    ))?;
    let manifest = fs::read_to_string(workspace::root().join("deploy/coordinator.yaml"))?;
    kubectl.apply(&manifest)?;
    let admin = |words: &str| {
        let line = format!(
            "exec coordinator-0 -n {NAMESPACE} -- /tailwharf coordinator --config /etc/tailwharf/coordinator.toml {words}"
        );
        let line: Vec<&str> = line.split(' ').collect();
        eventually("the coordinator in the cluster obeys", || kubectl.run(&line))
    };
    admin("user create carol@example.com --role owner")?;
    kubectl.run(&["delete", "pod", "coordinator-0", "-n", NAMESPACE, "--wait=true"])?;
    let users = admin("user list")?;
    ensure!(users.contains("carol@example.com"), "{users}");
    let made = "statefulset/coordinator service/coordinator configmap/coordinator pvc/data-coordinator-0";
    let words: Vec<&str> = ["delete", "-n", NAMESPACE]
        .into_iter()
        .chain(made.split(' '))
        .collect();
    kubectl.run(&words)?;
    kubectl.run(&["delete", "persistentvolume/coordinator"]).map(drop)
}

fn clean_up(fixture: &mut Fixture) -> Result<()> {
    let left = fixture.lab.kubectl().run(&[
        "get",
        "identities,secrets",
        "-n",
        NAMESPACE,
        "-o",
        "name",
        "-l",
        "tailscale.com/parent-resource-type=svc",
    ])?;
    ensure!(left.trim().is_empty(), "left in {NAMESPACE}: {left}");
    let names = fixture.lab.devices("default-")?;
    ensure!(names.is_empty(), "left on the tailnet: {names:?}");
    Ok(())
}
