//! Our node with a TUN device and the official client with one: peers, names, subnets and exits, both ways. No cluster.
//!
//! ```text
//!                   bridge (coordinator, relay)
//!        │                │                │               │
//!      ours            theirs        behind-ours     behind-theirs     namespaces
//!        └── 10.71.0.0/24 ───────────────┘
//!                         └── 10.72.0.0/24 ────────────────┘
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
    "routes": {"10.71.0.0/24": ["alice@example.com"], "10.72.0.0/24": ["alice@example.com"]},
    "exitNode": ["alice@example.com"],
  },
}"#;
/// The subnet behind our node, and behind theirs: the router has `.1`, the server `.2`.
const BEHIND_OURS: &str = "10.71.0";
const BEHIND_THEIRS: &str = "10.72.0";
const WEB_PORT: u16 = 8_000;

struct Fixture {
    ours: Option<Process>,
    theirs: OfficialClient,
    _servers: Vec<Process>,
    machine: Namespace,
    _subnets: [Subnet; 2],
    tailnet: Tailnet,
    _bridge: Bridge,
    dir: TempDir,
}

fn main() -> ExitCode {
    let needs = [Need::Root, Need::OfficialClient, Need::Binary];
    tailwharf_e2e::run(
        &needs,
        start,
        &[
            ("each_pings_the_other", pings),
            ("tcp_goes_both_ways", tcp),
            ("names_of_the_tailnet_resolve", names),
            ("our_node_routes_a_subnet_for_the_official_client", subnet_of_ours),
            (
                "our_node_reaches_a_subnet_of_the_official_client",
                subnet_of_theirs,
            ),
            ("our_node_is_an_exit_node_for_the_official_client", exit_of_ours),
            ("the_official_client_is_an_exit_node_for_our_node", exit_of_theirs),
            ("nothing_stays_behind_after_an_orderly_end", orderly_end),
            ("what_a_killed_run_left_is_removed_at_the_next_start", killed),
        ],
    )
}

fn start() -> Result<Fixture> {
    let dir = tempfile::Builder::new().prefix("tailwharf-tun-").tempdir()?;
    let bridge = Bridge::create()?;
    let tailnet = Tailnet::start(bridge.host(), &dir.path().join("coordinator"), POLICY)?;
    let machine = bridge.join("ours")?;
    let theirs_home = bridge.join("theirs")?;
    let subnets = [
        Subnet::behind(&bridge, &machine, "bo", BEHIND_OURS)?,
        Subnet::behind(&bridge, &theirs_home, "bt", BEHIND_THEIRS)?,
    ];
    fs::write(dir.path().join("index.html"), "the harbor\n")?;
    let servers = vec![
        web(&machine, "web-ours", dir.path())?,
        web(&theirs_home, "web-theirs", dir.path())?,
        web(&subnets[0].far, "web-behind-ours", dir.path())?,
        web(&subnets[1].far, "web-behind-theirs", dir.path())?,
    ];
    let state = dir.path().join("theirs");
    fs::create_dir_all(&state)?;
    let theirs = OfficialClient::start(theirs_home, &state)?;
    theirs.join(
        tailnet.url(),
        &tailnet.user_key("alice@example.com", "admin")?,
        "theirs",
    )?;
    theirs.run(&[
        "set",
        &format!("--advertise-routes={BEHIND_THEIRS}.0/24"),
        "--advertise-exit-node",
    ])?;
    let mut fixture = Fixture {
        ours: None,
        theirs,
        _servers: servers,
        machine,
        _subnets: subnets,
        tailnet,
        _bridge: bridge,
        dir,
    };
    fixture.start_ours(&[])?;
    Ok(fixture)
}

/// A network behind a router, with one machine in it.
struct Subnet {
    far: Namespace,
}

impl Subnet {
    fn behind(bridge: &Bridge, router: &Namespace, role: &str, prefix: &str) -> Result<Self> {
        let far = bridge.join(role)?;
        let (near_name, far_name) = (router.name(), far.name());
        // Only the router leads there.
        ip(&format!("-n {far_name} link del eth0"))?;
        ip(&format!(
            "link add sub0 netns {near_name} type veth peer name sub0 netns {far_name}"
        ))?;
        for (name, host) in [(near_name, 1), (far_name, 2)] {
            ip(&format!("-n {name} addr add {prefix}.{host}/24 dev sub0"))?;
            ip(&format!("-n {name} link set sub0 up"))?;
        }
        run(router.command("sysctl").args(["-qw", "net.ipv4.ip_forward=1"]))?;
        Ok(Self { far })
    }
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
    fn start_ours(&mut self, words: &[&str]) -> Result<()> {
        if let Some(before) = self.ours.take() {
            before.stop()?;
        }
        let mut command = self.machine.command(workspace::tailwharf());
        command
            .args(["node", "--tun", "--accept-routes", "--advertise-exit-node"])
            .args(["--login-server", self.tailnet.url(), "--hostname", "ours"])
            .arg(format!("--advertise-routes={BEHIND_OURS}.0/24"))
            .arg("--state")
            .arg(self.dir.path().join("ours.json"))
            .args(words)
            .env("TS_AUTHKEY", self.tailnet.user_key("alice@example.com", "admin")?);
        let mut node = Process::start("ours", &mut command, &self.dir.path().join("ours.log"))?;
        let address = eventually("our node is seen online", || {
            node.alive()?;
            let peer = self.theirs.peer("ours")?;
            ensure!(peer["Online"] == true, "{peer}");
            Ok(peer["TailscaleIPs"][0].as_str().context("no address")?.to_owned())
        })?;
        eventually("the device has its address", || {
            let shown = run(self.machine.command("ip").args(["addr", "show", "tailwharf0"]))?;
            ensure!(shown.contains(&address), "{shown}");
            Ok(())
        })?;
        self.ours = Some(node);
        Ok(())
    }

    fn ours_address(&self, family: usize) -> Result<String> {
        let peer = self.theirs.peer("ours")?;
        Ok(peer["TailscaleIPs"][family]
            .as_str()
            .context("no address")?
            .to_owned())
    }

    /// Fetches the page from our machine.
    fn fetch(&self, host: &str) -> Result<()> {
        page(&self.machine, host)
    }

    fn log(&self) -> String {
        self.ours
            .as_ref()
            .map(|node| node.log_end(10))
            .unwrap_or_default()
    }
}

fn page(from: &Namespace, host: &str) -> Result<()> {
    let url = format!("http://{host}:{WEB_PORT}/index.html");
    let got = run(from
        .command("curl")
        .args(["-sS", "--fail", "--max-time", "5", &url]))?;
    ensure!(got == "the harbor\n", "another page: {got}");
    Ok(())
}

fn pings(fixture: &mut Fixture) -> Result<()> {
    let theirs = fixture.theirs.address()?;
    eventually("our machine pings theirs", || {
        run(fixture.machine.command("ping").args(["-c1", "-W2", &theirs])).map(drop)
    })
    .with_context(|| fixture.log())?;
    for family in [0, 1] {
        let ours = fixture.ours_address(family)?;
        eventually("their machine pings ours", || {
            run(fixture
                .theirs
                .namespace()
                .command("ping")
                .args(["-c1", "-W2", &ours]))
            .map(drop)
        })
        .with_context(|| fixture.log())?;
    }
    for kind in ["--tsmp", "--icmp", "--until-direct=false"] {
        let answer = fixture
            .theirs
            .run(&["ping", "--c=1", "--timeout=5s", kind, "ours"])?;
        ensure!(answer.contains("pong from ours"), "{kind}: {answer}");
    }
    Ok(())
}

fn tcp(fixture: &mut Fixture) -> Result<()> {
    let theirs = fixture.theirs.address()?;
    eventually("our machine reaches theirs", || fixture.fetch(&theirs))?;
    let ours = fixture.ours_address(0)?;
    eventually("their machine reaches ours", || {
        page(fixture.theirs.namespace(), &ours)
    })?;
    let ours = format!("[{}]", fixture.ours_address(1)?);
    // Python listens on IPv4 alone; what matters is that a refusal comes back at once, and not by a time-out.
    let refused = output(fixture.theirs.namespace().command("curl").args([
        "-sS",
        "--max-time",
        "5",
        &format!("http://{ours}:{WEB_PORT}/"),
    ]))?;
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        words.contains("refused")
            || words.contains("Couldn't connect")
            || words.contains("Failed to connect"),
        "{words}"
    );
    Ok(())
}

fn names(fixture: &mut Fixture) -> Result<()> {
    eventually("a full name resolves", || {
        fixture.fetch(&format!("theirs.{}", tailwharf_testkit::tailnet::SUFFIX))
    })
    .with_context(|| fixture.log())?;
    fixture.fetch("theirs").context("a short name")
}

fn subnet_of_ours(fixture: &mut Fixture) -> Result<()> {
    eventually("their machine reaches the subnet behind ours", || {
        page(fixture.theirs.namespace(), &format!("{BEHIND_OURS}.2"))
    })
    .with_context(|| fixture.log())
}

fn subnet_of_theirs(fixture: &mut Fixture) -> Result<()> {
    eventually("our machine reaches the subnet behind theirs", || {
        fixture.fetch(&format!("{BEHIND_THEIRS}.2"))
    })
    .with_context(|| fixture.log())
}

/// What only the exit's own neighbours reach: a machine that knows no tailnet and no way back but the exit.
fn exit_of_ours(fixture: &mut Fixture) -> Result<()> {
    let hidden = format!("{BEHIND_OURS}.2");
    fixture.theirs.run(&["set", "--accept-routes=false"])?;
    let outcome = eventually("the exit is offered", || {
        fixture.theirs.run(&[
            "set",
            "--advertise-exit-node=false",
            "--exit-node=ours",
            "--exit-node-allow-lan-access=true",
        ])
    })
    .and_then(|_| {
        eventually("their machine leaves through ours", || {
            page(fixture.theirs.namespace(), &hidden)
        })
    });
    fixture
        .theirs
        .run(&["set", "--exit-node=", "--accept-routes", "--advertise-exit-node"])?;
    outcome.with_context(|| fixture.log())
}

fn exit_of_theirs(fixture: &mut Fixture) -> Result<()> {
    fixture.start_ours(&["--exit-node=theirs"])?;
    let outcome = eventually("our machine leaves through theirs", || {
        fixture.fetch(&format!("{BEHIND_THEIRS}.2"))
    });
    let route = run(fixture.machine.command("ip").args(["route", "get", "192.0.2.1"]))?;
    fixture.start_ours(&[])?;
    outcome?;
    ensure!(route.contains("dev tailwharf0"), "{route}");
    Ok(())
}

/// What our node changes in its machine.
fn traces(fixture: &Fixture) -> Result<Vec<String>> {
    let rules = run(fixture.machine.command("ip").args(["rule", "list"]))?;
    let routes = output(
        fixture
            .machine
            .command("ip")
            .args(["route", "show", "table", "52520"]),
    )?;
    let tables = run(fixture.machine.command("nft").args(["list", "tables"]))?;
    let resolver = run(fixture.machine.command("cat").arg("/etc/resolv.conf"))?;
    let mut traces: Vec<String> = rules
        .lines()
        .filter(|line| line.contains("52520") || line.contains("0x80000"))
        .map(str::to_owned)
        .collect();
    traces.extend(String::from_utf8_lossy(&routes.stdout).lines().map(str::to_owned));
    traces.extend(
        tables
            .lines()
            .filter(|line| line.contains("tailwharf"))
            .map(str::to_owned),
    );
    traces.extend(
        resolver
            .lines()
            .filter(|line| line.contains("100.100.100.100"))
            .map(str::to_owned),
    );
    Ok(traces)
}

fn orderly_end(fixture: &mut Fixture) -> Result<()> {
    ensure!(
        traces(fixture)?.len() >= 7,
        "too little to remove: {:?}",
        traces(fixture)?
    );
    fixture.ours.take().context("our node does not run")?.stop()?;
    let left = traces(fixture)?;
    ensure!(left.is_empty(), "{left:?}");
    fixture.start_ours(&[])
}

fn killed(fixture: &mut Fixture) -> Result<()> {
    let before = traces(fixture)?;
    fixture.ours.take().context("our node does not run")?.kill()?;
    ensure!(
        !traces(fixture)?.is_empty(),
        "a killed node should leave something"
    );
    fixture.start_ours(&[])?;
    eventually("everything is there once", || {
        let after = traces(fixture)?;
        ensure!(after == before, "before {before:?}, after {after:?}");
        Ok(())
    })?;
    pings(fixture)?;
    fixture.ours.take().context("our node does not run")?.stop()?;
    let left = traces(fixture)?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}
