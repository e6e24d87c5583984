//! Our node without a device as subnet router, exit node and user of both, beside the official client with a device. No cluster.
//!
//! ```text
//!                   bridge (coordinator, relay)
//!        │                │                │               │
//!      ours            theirs        behind-ours     behind-theirs     namespaces
//!        └── 10.73.0.0/24 ───────────────┘
//!        └── 198.51.100.0/24 ────────────┘   (stands for the internet)
//!                         └── 10.74.0.0/24 ────────────────┘
//! ```

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use tailwharf_testkit::process::{Process, output, run};
use tailwharf_testkit::requirements::Need;
use tailwharf_testkit::wait::eventually;
use tailwharf_testkit::{Bridge, Namespace, OfficialClient, Tailnet, workspace};
use tempfile::TempDir;

/// Routes are approved as they are advertised.
const POLICY: &str = r#"{
  "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
  "autoApprovers": {
    "routes": {
      "10.73.0.0/24": ["alice@example.com"],
      "10.74.0.0/24": ["alice@example.com"],
      "fd7a:115c:a1e0:b1a:0:7:a49:0/120": ["alice@example.com"],
    },
    "exitNode": ["alice@example.com"],
  },
}"#;
/// What is behind our node, and behind theirs: the router has `.1`, the server `.2`.
const BEHIND_OURS: &str = "10.73.0";
const INTERNET: &str = "198.51.100";
const BEHIND_THEIRS: &str = "10.74.0";
/// The network behind our node in site 7, and its server there.
const SITE: &str = "fd7a:115c:a1e0:b1a:0:7:a49:0/120";
const SERVER_AT_SITE: &str = "fd7a:115c:a1e0:b1a:0:7:a49:2";
const WEB_PORT: u16 = 8_000;
const SOCKS: &str = "127.0.0.1:1055";

struct Fixture {
    ours: Process,
    theirs: OfficialClient,
    machine: Namespace,
    far: Namespace,
    _servers: Vec<Process>,
    _far_theirs: Namespace,
    _tailnet: Tailnet,
    _bridge: Bridge,
    dir: TempDir,
}

fn main() -> ExitCode {
    let needs = [Need::Root, Need::OfficialClient, Need::Binary];
    tailwharf_e2e::run(
        &needs,
        start,
        &[
            ("the_official_client_reaches_a_subnet_behind_our_node", subnet),
            ("a_closed_port_there_is_refused_at_once", closed_port),
            ("datagrams_go_there_and_back", datagrams),
            ("pings_are_answered_for_who_is_there", pings),
            ("a_site_is_reached_by_its_own_addresses", site),
            (
                "our_node_reaches_a_subnet_of_the_official_client",
                subnet_of_theirs,
            ),
            ("our_node_is_an_exit_to_the_internet_alone", exit),
        ],
    )
}

fn start() -> Result<Fixture> {
    let dir = tempfile::Builder::new().prefix("tailwharf-router-").tempdir()?;
    let bridge = Bridge::create()?;
    let tailnet = Tailnet::start(bridge.host(), &dir.path().join("coordinator"), POLICY)?;
    let machine = bridge.join("ours")?;
    let theirs_home = bridge.join("theirs")?;
    let far = behind(&bridge, &machine, "bo", &[BEHIND_OURS, INTERNET])?;
    let far_theirs = behind(&bridge, &theirs_home, "bt", &[BEHIND_THEIRS])?;
    run(theirs_home
        .command("sysctl")
        .args(["-qw", "net.ipv4.ip_forward=1"]))?;
    // What lets a process without rights ping, as most container runtimes set it.
    run(machine
        .command("sysctl")
        .args(["-qw", "net.ipv4.ping_group_range=0 2147483647"]))?;
    fs::write(dir.path().join("index.html"), "the harbor\n")?;
    let servers = vec![
        web(&far, "web-ours", dir.path())?,
        web(&far_theirs, "web-theirs", dir.path())?,
    ];
    let state = dir.path().join("theirs");
    fs::create_dir_all(&state)?;
    let theirs = OfficialClient::start(theirs_home, &state)?;
    let key = || tailnet.user_key("alice@example.com", "admin");
    theirs.join(tailnet.url(), &key()?, "theirs")?;
    theirs.run(&[
        "set",
        "--accept-routes",
        &format!("--advertise-routes={BEHIND_THEIRS}.0/24"),
    ])?;
    let mut command = machine.command(workspace::tailwharf());
    command
        .args([
            "node",
            "--hostname",
            "ours",
            "--accept-routes",
            "--advertise-exit-node",
        ])
        .args(["--login-server", tailnet.url(), "--socks5", SOCKS])
        .arg(format!("--advertise-routes={BEHIND_OURS}.0/24,{SITE}"))
        .arg("--state")
        .arg(dir.path().join("ours.json"))
        .env("TS_AUTHKEY", key()?);
    let mut ours = Process::start("ours", &mut command, &dir.path().join("ours.log"))?;
    eventually("our node is seen with its routes", || {
        ours.alive()?;
        let peer = theirs.peer("ours")?;
        ensure!(peer["Online"] == true && peer["ExitNodeOption"] == true, "{peer}");
        ensure!(
            peer["PrimaryRoutes"]
                .as_array()
                .is_some_and(|routes| routes.len() == 2),
            "{peer}"
        );
        Ok(())
    })?;
    Ok(Fixture {
        ours,
        theirs,
        machine,
        far,
        _servers: servers,
        _far_theirs: far_theirs,
        _tailnet: tailnet,
        _bridge: bridge,
        dir,
    })
}

/// A machine that only this router leads to, by one link with these networks on it.
fn behind(bridge: &Bridge, router: &Namespace, role: &str, prefixes: &[&str]) -> Result<Namespace> {
    let far = bridge.join(role)?;
    let (near_name, far_name) = (router.name(), far.name());
    ip(&format!("-n {far_name} link del eth0"))?;
    ip(&format!(
        "link add sub0 netns {near_name} type veth peer name sub0 netns {far_name}"
    ))?;
    for (name, host) in [(near_name, 1), (far_name, 2)] {
        for prefix in prefixes {
            ip(&format!("-n {name} addr add {prefix}.{host}/24 dev sub0"))?;
        }
        ip(&format!("-n {name} link set sub0 up"))?;
    }
    Ok(far)
}

fn ip(arguments: &str) -> Result<()> {
    run(Command::new("ip").args(arguments.split_whitespace())).map(drop)
}

fn web(namespace: &Namespace, name: &str, dir: &Path) -> Result<Process> {
    let mut command = namespace.command("python3");
    command
        .args(["-m", "http.server", &WEB_PORT.to_string(), "--directory"])
        .arg(dir);
    Process::start(name, &mut command, &dir.join(format!("{name}.log")))
}

impl Fixture {
    fn at_theirs(&self, program: &str, arguments: &[&str]) -> Result<String> {
        run(self.theirs.namespace().command(program).args(arguments))
    }

    fn log(&self) -> String {
        self.ours.log_end(10)
    }
}

fn page(from: &Namespace, host: &str, extra: &[&str]) -> Result<()> {
    let url = format!("http://{host}:{WEB_PORT}/index.html");
    let mut command = from.command("curl");
    command
        .args(["-sS", "--fail", "--max-time", "5"])
        .args(extra)
        .arg(&url);
    let got = run(&mut command)?;
    ensure!(got == "the harbor\n", "another page: {got}");
    Ok(())
}

fn subnet(fixture: &mut Fixture) -> Result<()> {
    eventually("their machine reaches the subnet", || {
        page(fixture.theirs.namespace(), &format!("{BEHIND_OURS}.2"), &[])
    })
    .with_context(|| fixture.log())?;
    // More than fits into buffers, through the same way.
    let large = fixture.dir.path().join("large");
    fs::write(&large, vec![b'x'; 20 << 20])?;
    let size = fixture.at_theirs(
        "curl",
        &[
            "-sS",
            "--fail",
            "--max-time",
            "60",
            "-o",
            "/dev/null",
            "-w",
            "%{size_download}",
            &format!("http://{BEHIND_OURS}.2:{WEB_PORT}/large"),
        ],
    )?;
    ensure!(size.trim() == (20 << 20).to_string(), "{size} bytes came");
    Ok(())
}

fn closed_port(fixture: &mut Fixture) -> Result<()> {
    let refused = output(fixture.theirs.namespace().command("curl").args([
        "-sS",
        "--max-time",
        "5",
        &format!("http://{BEHIND_OURS}.2:9/"),
    ]))?;
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(words.contains("refused") || words.contains("connect"), "{words}");
    ensure!(
        !words.contains("timed out") && !words.contains("Timeout"),
        "{words}"
    );
    Ok(())
}

/// Answers each datagram with three of its kind in one.
const UDP_SERVER: &str = "import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('0.0.0.0', 5300))
while True:
    d, a = s.recvfrom(2048)
    s.sendto(d * 3, a)
";
const UDP_CLIENT: &str = "import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(3)
s.sendto(b'x' * 1000, (sys.argv[1], 5300))
print(len(s.recv(65535)))
";

fn datagrams(fixture: &mut Fixture) -> Result<()> {
    let mut command = fixture.far.command("python3");
    command.args(["-c", UDP_SERVER]);
    let _server = Process::start("udp", &mut command, &fixture.dir.path().join("udp.log"))?;
    eventually("an answer longer than a packet comes back", || {
        let got = fixture.at_theirs("python3", &["-c", UDP_CLIENT, &format!("{BEHIND_OURS}.2")])?;
        ensure!(got.trim() == "3000", "{got}");
        Ok(())
    })
    .with_context(|| fixture.log())
}

fn pings(fixture: &mut Fixture) -> Result<()> {
    eventually("the server behind our node answers", || {
        fixture
            .at_theirs("ping", &["-c1", "-W2", &format!("{BEHIND_OURS}.2")])
            .map(drop)
    })
    .with_context(|| fixture.log())?;
    let nobody = output(fixture.theirs.namespace().command("ping").args([
        "-c1",
        "-W2",
        &format!("{BEHIND_OURS}.77"),
    ]))?;
    ensure!(!nobody.status.success(), "an answer of nobody");
    Ok(())
}

fn site(fixture: &mut Fixture) -> Result<()> {
    eventually("their machine reaches the site", || {
        page(fixture.theirs.namespace(), &format!("[{SERVER_AT_SITE}]"), &[])
    })
    .with_context(|| fixture.log())
}

fn subnet_of_theirs(fixture: &mut Fixture) -> Result<()> {
    eventually("our proxy reaches the subnet behind theirs", || {
        page(
            &fixture.machine,
            &format!("{BEHIND_THEIRS}.2"),
            &["--socks5-hostname", SOCKS],
        )
    })
    .with_context(|| fixture.log())
}

fn exit(fixture: &mut Fixture) -> Result<()> {
    let theirs = fixture.theirs.namespace();
    fixture.theirs.run(&["set", "--accept-routes=false"])?;
    let outcome = eventually("the exit is taken", || {
        fixture
            .theirs
            .run(&["set", "--exit-node=ours", "--exit-node-allow-lan-access=true"])
    })
    .and_then(|_| {
        eventually("their machine leaves through ours", || {
            page(theirs, &format!("{INTERNET}.2"), &[])
        })
        .with_context(|| fixture.log())
    })
    .and_then(|()| {
        // A private address that our machine reaches, but does not offer a route to.
        ip(&format!(
            "-n {} addr add 10.75.0.2/24 dev sub0",
            fixture.far.name()
        ))?;
        ip(&format!(
            "-n {} addr add 10.75.0.1/24 dev sub0",
            fixture.machine.name()
        ))?;
        page(&fixture.machine, "10.75.0.2", &[]).context("our machine itself")?;
        ensure!(
            page(theirs, "10.75.0.2", &[]).is_err(),
            "the exit led into a private network"
        );
        Ok(())
    });
    fixture.theirs.run(&["set", "--exit-node=", "--accept-routes"])?;
    outcome
}
