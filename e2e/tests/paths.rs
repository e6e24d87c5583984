//! Paths between our node and the official client: through NATs, over the relay alone, and while the network changes.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tailwharf_testkit::nat::Nat;
use tailwharf_testkit::process::{Process, run};
use tailwharf_testkit::requirements::Need;
use tailwharf_testkit::{
    Bridge, Lab, Namespace, NodeProcess, OfficialClient, Tailnet, eventually, workspace,
};
use tempfile::TempDir;

const POLICY: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#;
const USER: &str = "alice@example.com";
/// Sends 64 KiB every 10 ms for so many seconds to whoever connects.
const STREAM: &str = "import socket,sys,time\ns=socket.socket()\ns.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1)\ns.bind(('127.0.0.1',18080))\ns.listen(8)\nwhile True:\n c,_=s.accept()\n end=time.time()+float(sys.argv[1])\n try:\n  while time.time()<end:\n   c.sendall(b'x'*65536)\n   time.sleep(0.01)\n  c.shutdown(1)\n  c.recv(1)\n except OSError: pass\n c.close()\n";
/// Reads it to the end; prints the longest time without a byte, in seconds.
const READER: &str = "import socket,sys,time\nc=socket.create_connection((sys.argv[1],int(sys.argv[2])),timeout=30)\nlongest,last,total=0,time.time(),0\nprint('connected',flush=True)\nwhile True:\n d=c.recv(1<<20)\n now=time.time()\n longest=max(longest,now-last)\n last=now\n if not d: break\n total+=len(d)\nprint(longest if total>1<<20 else 'short')\n";
const SECONDS: &str = "6";

struct Fixture {
    laptop: OfficialClient,
    tailnet: Tailnet,
    bridge: Bridge,
    dir: TempDir,
}

/// Our node with a server behind its port 80, in a network of its own.
struct Peer {
    node: NodeProcess,
    _server: Process,
    place: Namespace,
    // The router goes last: it holds the network.
    _router: Option<Namespace>,
    socket: PathBuf,
}

fn main() -> ExitCode {
    let needs = [Need::Root, Need::OfficialClient, Need::Binary];
    tailwharf_e2e::run(
        &needs,
        start,
        &[
            ("direct_through_three_kinds_of_nat", three_nats),
            ("two_behind_nats_go_direct_or_say_why_not", both_translated),
            ("relay_only_carries_everything", relay_only),
            ("either_end_may_start_anew", restarts),
            ("a_transfer_survives_the_loss_of_udp", udp_lost),
            ("a_transfer_survives_a_new_address", address_changed),
        ],
    )
}

fn start() -> Result<Fixture> {
    let dir = tempfile::Builder::new().prefix("tailwharf-paths-").tempdir()?;
    let bridge = Bridge::create()?;
    let tailnet = Tailnet::start(bridge.host(), &dir.path().join("coordinator"), POLICY)?;
    let laptop = Lab::client(&bridge, &tailnet, dir.path(), "laptop", USER, "admin")?;
    Ok(Fixture {
        laptop,
        tailnet,
        bridge,
        dir,
    })
}

impl Fixture {
    fn peer(&self, name: &str, nat: Option<Nat>, options: &[&str]) -> Result<Peer> {
        let outer = self.bridge.join(name)?;
        let (place, router) = match nat {
            Some(nat) => (outer.behind(nat)?, Some(outer)),
            None => (outer, None),
        };
        let dir = self.dir.path().join(name);
        std::fs::create_dir_all(&dir)?;
        let mut server = place.command("python3");
        let server = Process::start(
            "stream",
            server.args(["-c", STREAM, SECONDS]),
            &dir.join("stream.log"),
        )?;
        let socket = dir.join("node.sock");
        let node = self.node(&place, &dir, name, options)?;
        eventually("the laptop sees the node online", || {
            ensure!(self.laptop.peer(name)?["Online"] == true, "{name} is offline");
            Ok(())
        })?;
        Ok(Peer {
            node,
            _server: server,
            place,
            _router: router,
            socket,
        })
    }

    fn node(&self, place: &Namespace, dir: &Path, name: &str, options: &[&str]) -> Result<NodeProcess> {
        let key = self.tailnet.user_key(USER, "admin")?;
        let socket = dir.join("node.sock").display().to_string();
        let all = [&["--serve", "80=127.0.0.1:18080", "--socket", &socket], options].concat();
        NodeProcess::start_in(Some(place), dir, self.tailnet.url(), &key, name, &all)
    }

    /// The way of the last answer to pings of the laptop, which end with the first direct one.
    fn way(&self, name: &str, count: &str) -> Result<String> {
        let count = format!("--c={count}");
        let output = self
            .laptop
            .tailscale(&["ping", &count, "--timeout=2s", name])
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let last = text
            .lines()
            .rfind(|line| line.starts_with("pong"))
            .context(text.clone())?;
        Ok(last.to_owned())
    }

    fn goes_direct(&self, name: &str) -> Result<()> {
        eventually("a direct path", || {
            let way = self.way(name, "10")?;
            ensure!(!way.contains("DERP"), "{way}");
            Ok(())
        })
    }

    /// Starts to read the stream of a peer; what it prints is in the log.
    fn read(&self, peer: &str) -> Result<Process> {
        let address = self.laptop.peer(peer)?["TailscaleIPs"][0]
            .as_str()
            .context("no address")?
            .to_owned();
        reader(self.laptop.namespace(), &address, "80", &self.log(peer))
    }

    fn log(&self, peer: &str) -> PathBuf {
        self.dir.path().join(format!("{peer}-reader.log"))
    }
}

fn reader(place: &Namespace, address: &str, port: &str, log: &Path) -> Result<Process> {
    let mut reader = place.command("python3");
    let reader = Process::start("reader", reader.args(["-c", READER, address, port]), log)?;
    eventually("the connection stands", || {
        ensure!(reader.log().contains("connected"), "{}", reader.log());
        Ok(())
    })?;
    Ok(reader)
}

/// The longest silence of a transfer in seconds, once it has ended.
fn longest_silence(reader: &Process) -> Result<f64> {
    eventually("the transfer ends", || {
        let log = reader.log();
        let last = log.lines().last().unwrap_or_default();
        last.parse().with_context(|| log.clone())
    })
}

impl Peer {
    fn status(&self) -> Result<Value> {
        let mut command = Command::new(workspace::tailwharf());
        command
            .args(["status", "--output", "json", "--socket"])
            .arg(&self.socket);
        Ok(serde_json::from_str(&run(&mut command)?)?)
    }

    /// Why packets to the peer of this name take the relay.
    fn why_relayed(&self, peer: &str) -> Result<String> {
        let status = self.status()?;
        let prefix = format!("{peer}.");
        let mut peers = status["peers"].as_array().into_iter().flatten();
        let found = peers
            .find(|found| {
                found["fqdn"]
                    .as_str()
                    .is_some_and(|name| name.starts_with(&prefix))
            })
            .with_context(|| format!("no peer {peer}: {status}"))?;
        Ok(found["path"]["why"].as_str().unwrap_or_default().to_owned())
    }
}

fn three_nats(fixture: &mut Fixture) -> Result<()> {
    for (name, nat) in [
        ("cone", Nat::FullCone),
        ("restricted", Nat::Restricted),
        ("symmetric", Nat::Symmetric),
    ] {
        let peer = fixture.peer(name, Some(nat), &[])?;
        fixture.goes_direct(name).with_context(|| format!("{nat:?}"))?;
        peer.node.stop()?;
    }
    Ok(())
}

fn both_translated(fixture: &mut Fixture) -> Result<()> {
    let router = fixture.bridge.join("cafe")?;
    let dir = fixture.dir.path().join("cafe");
    std::fs::create_dir_all(&dir)?;
    let cafe = OfficialClient::start(router.behind(Nat::Restricted)?, &dir)?;
    cafe.join(
        fixture.tailnet.url(),
        &fixture.tailnet.user_key(USER, "admin")?,
        "cafe",
    )?;

    let peer = fixture.peer("pod", Some(Nat::Restricted), &[])?;
    eventually("a direct path between two NATs", || {
        let text = cafe.run(&["ping", "--c=10", "--timeout=2s", "pod"])?;
        ensure!(
            text.lines().last().is_some_and(|last| !last.contains("DERP")),
            "{text}"
        );
        Ok(())
    })?;
    peer.node.stop()?;

    let peer = fixture.peer("hard", Some(Nat::Symmetric), &[])?;
    eventually("the status says why there is no direct path", || {
        // The connection stays open, so that the search goes on.
        let _ = cafe.output(
            "curl",
            &["-s", "--max-time", "1", "-o", "/dev/null", "http://hard/"],
        )?;
        let why = peer.why_relayed("cafe")?;
        ensure!(why.contains("NAT of this network"), "{why}");
        Ok(())
    })?;
    peer.node.stop()
}

fn relay_only(fixture: &mut Fixture) -> Result<()> {
    let peer = fixture.peer("relayed", None, &["--relay-only"])?;
    let reading = fixture.read("relayed")?;
    let way = fixture.way("relayed", "3")?;
    ensure!(way.contains("via DERP"), "{way}");
    ensure!(
        peer.why_relayed("laptop")?.contains("switched off"),
        "another reason"
    );
    let silence = longest_silence(&reading)?;
    ensure!(silence < 2.0, "no byte for {silence} s");
    peer.node.stop()
}

fn restarts(fixture: &mut Fixture) -> Result<()> {
    let mut peer = fixture.peer("again", None, &[])?;
    fixture.goes_direct("again")?;
    let before = peer.status()?["network"]["endpoints"].clone();
    peer.node.stop()?;
    let dir = fixture.dir.path().join("again");
    peer.node = fixture.node(&peer.place, &dir, "again", &[])?;
    fixture.goes_direct("again")?;
    ensure!(
        peer.status()?["network"]["endpoints"] == before,
        "another port than before"
    );

    let server = format!("--login-server={}", fixture.tailnet.url());
    fixture.laptop.run(&["down"])?;
    fixture
        .laptop
        .run(&["up", &server, "--hostname=laptop", "--accept-routes"])?;
    fixture.goes_direct("again")?;
    drop(fixture.read("again")?);
    peer.node.stop()
}

fn udp_lost(fixture: &mut Fixture) -> Result<()> {
    let forward = "127.0.0.1:18090=lost:80";
    let peer = fixture.peer("lost", None, &[])?;
    let other = fixture.peer("friend", None, &["--forward", forward])?;
    fixture.goes_direct("lost")?;
    let between = reader(&other.place, "127.0.0.1", "18090", &fixture.log("friend"))?;
    let official = fixture.read("lost")?;
    eventually("a direct path of ours", || {
        ensure!(other.why_relayed("lost")?.is_empty(), "relayed");
        Ok(())
    })?;
    // STUN, to port 3478, goes on: only the paths between peers break.
    run(peer.place.command("nft").arg(
        "table inet cut {\n\
         chain in { type filter hook input priority filter; udp sport != 3478 drop; }\n\
         chain out { type filter hook output priority filter; udp dport != 3478 drop; }\n\
         }",
    ))?;
    let silence = longest_silence(&between)?;
    ensure!(silence < 3.0, "between ours: no byte for {silence} s");
    // An official client trusts the path for 6.5 s after its last answer.
    let silence = longest_silence(&official)?;
    ensure!(
        silence < 15.0,
        "with the official client: no byte for {silence} s"
    );
    peer.node.stop()?;
    other.node.stop()
}

fn address_changed(fixture: &mut Fixture) -> Result<()> {
    let peer = fixture.peer("moving", None, &[])?;
    fixture.goes_direct("moving")?;
    let reading = fixture.read("moving")?;
    let (name, old) = (peer.place.name().to_owned(), peer.place.address());
    let [a, b, c, d] = old.octets();
    let host = fixture.bridge.host();
    for step in [
        format!("-n {name} addr del {old}/24 dev eth0"),
        format!("-n {name} addr add {a}.{b}.{c}.{}/24 dev eth0", d + 100),
        format!("-n {name} route add default via {host}"),
    ] {
        run(Command::new("ip").args(step.split_whitespace()))?;
    }
    let silence = longest_silence(&reading)?;
    ensure!(silence < 10.0, "no byte for {silence} s");
    fixture.goes_direct("moving")?;
    peer.node.stop()
}
