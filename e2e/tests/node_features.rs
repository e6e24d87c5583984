//! What an official client expects of a peer beyond packets, and devices that move between it and our node. No cluster.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tailwharf_testkit::process::Process;
use tailwharf_testkit::requirements::Need;
use tailwharf_testkit::wait::eventually;
use tailwharf_testkit::{Bridge, Lab, NodeProcess, OfficialClient, Tailnet, workspace};
use tempfile::TempDir;

const POLICY: &str = r#"{
  "acls": [{"action": "accept", "src": ["*"], "dst": ["*:80"]}],
}"#;
const ALICE: &str = "alice@example.com";
const WEB_PORT: u16 = 18_180;
/// The state file below the folder of an official client.
const OFFICIAL_STATE: &str = "tailscaled.state";

struct Fixture {
    node: NodeProcess,
    laptop: OfficialClient,
    _web: Process,
    tailnet: Tailnet,
    bridge: Bridge,
    dir: TempDir,
}

fn main() -> ExitCode {
    let needs = [Need::Root, Need::OfficialClient, Need::Binary];
    tailwharf_e2e::run(
        &needs,
        start,
        &[
            ("tailscale_ping_of_our_peer_api_answers", peer_api),
            ("device_moves_from_tailscaled_to_our_node_and_back", from_official),
            ("device_of_our_node_moves_to_tailscaled", to_official),
        ],
    )
}

fn start() -> Result<Fixture> {
    let dir = tempfile::Builder::new().prefix("tailwharf-node-").tempdir()?;
    let bridge = Bridge::create()?;
    let tailnet = Tailnet::start(bridge.host(), &dir.path().join("coordinator"), POLICY)?;
    let laptop = Lab::client(&bridge, &tailnet, dir.path(), "laptop", ALICE, "admin")?;
    let web = web_server(dir.path())?;
    let key = tailnet.user_key(ALICE, "admin")?;
    let node = NodeProcess::start(
        &dir.path().join("harbor"),
        tailnet.url(),
        &key,
        "harbor",
        &["--serve", &serve()],
    )?;
    Ok(Fixture {
        node,
        laptop,
        _web: web,
        tailnet,
        bridge,
        dir,
    })
}

fn serve() -> String {
    format!("80=127.0.0.1:{WEB_PORT}")
}

fn web_server(dir: &Path) -> Result<Process> {
    let root = dir.join("web");
    fs::create_dir_all(&root)?;
    fs::write(root.join("index.html"), "the harbor\n")?;
    let mut command = Command::new("python3");
    command
        .args(["-m", "http.server", "--bind", "127.0.0.1", "--directory"])
        .arg(&root)
        .arg(WEB_PORT.to_string());
    Process::start("web", &mut command, &dir.join("web.log"))
}

/// The client asks for the port of the peer API in the map, and connects although the policy opens port 80 alone.
fn peer_api(fixture: &mut Fixture) -> Result<()> {
    eventually("the peer API of harbor answers", || {
        fixture.node.process().alive()?;
        let answer = fixture
            .laptop
            .run(&["ping", "--c=1", "--peerapi", "--timeout=5s", "harbor"])?;
        ensure!(answer.contains("hit peerapi of"), "{answer}");
        Ok(())
    })?;
    let tsmp = fixture
        .laptop
        .run(&["ping", "--c=1", "--tsmp", "--timeout=5s", "harbor"])?;
    ensure!(tsmp.contains("pong from harbor"), "{tsmp}");
    Ok(())
}

/// The device `name` as the laptop sees it: its id, node key and addresses.
fn device(laptop: &OfficialClient, name: &str) -> Result<Value> {
    let peer = laptop.peer(name)?;
    Ok(serde_json::json!([
        peer["ID"],
        peer["PublicKey"],
        peer["TailscaleIPs"]
    ]))
}

/// Waits until the laptop reaches the page that the device `name` serves.
fn serves_page(fixture: &Fixture, node: &mut Process, name: &str) -> Result<()> {
    let page = eventually("the page of the moved device", || {
        node.alive()?;
        fixture.laptop.curl(&format!("http://{name}/"))
    })?;
    ensure!(page == "the harbor\n", "{page}");
    Ok(())
}

/// Our node on a state file alone: neither key nor server nor name is given.
fn node_on(state: &Path, log: &Path) -> Result<Process> {
    let mut command = Command::new(workspace::tailwharf());
    command.args(["node", "--serve", &serve(), "--state"]).arg(state);
    Process::start("node", &mut command, log)
}

/// The official client on a state that is there already, once it runs.
fn official_on(fixture: &Fixture, name: &str, dir: &Path) -> Result<OfficialClient> {
    let client = OfficialClient::start(fixture.bridge.join(name)?, dir)?;
    eventually("the official client runs by its state", || {
        let status = client.json(&["status", "--json"])?;
        ensure!(status["BackendState"] == "Running", "{}", status["BackendState"]);
        Ok(())
    })?;
    Ok(client)
}

fn folder(fixture: &Fixture, name: &str) -> Result<PathBuf> {
    let path = fixture.dir.path().join(name);
    fs::create_dir_all(&path)?;
    Ok(path)
}

fn from_official(fixture: &mut Fixture) -> Result<()> {
    let dir = folder(fixture, "mover")?;
    let key = fixture.tailnet.user_key(ALICE, "admin")?;
    let official = Lab::join_with(
        &fixture.bridge,
        &fixture.tailnet,
        fixture.dir.path(),
        "mover",
        &key,
    )?;
    let before = eventually("the laptop sees the device", || device(&fixture.laptop, "mover"))?;
    let devices = fixture.tailnet.nodes()?.len();
    drop(official);

    let mut node = node_on(&dir.join(OFFICIAL_STATE), &dir.join("node.log"))?;
    serves_page(fixture, &mut node, "mover")?;
    ensure!(
        device(&fixture.laptop, "mover")? == before,
        "our node is another device: {before}"
    );
    ensure!(fixture.tailnet.nodes()?.len() == devices, "a device was added");
    node.stop()?;

    let official = official_on(fixture, "mover-again", &dir)?;
    let own = official.json(&["status", "--json"])?;
    let again = serde_json::json!([
        own["Self"]["ID"],
        own["Self"]["PublicKey"],
        own["Self"]["TailscaleIPs"]
    ]);
    ensure!(
        again == before,
        "it came back as another device: {again}, not {before}"
    );
    ensure!(fixture.tailnet.nodes()?.len() == devices, "a device was added");
    Ok(())
}

fn to_official(fixture: &mut Fixture) -> Result<()> {
    let dir = folder(fixture, "ours")?;
    let state = dir.join(OFFICIAL_STATE);
    let key = fixture.tailnet.user_key(ALICE, "admin")?;
    let mut command = Command::new(workspace::tailwharf());
    command
        .args([
            "node",
            "--hostname",
            "ours",
            "--login-server",
            fixture.tailnet.url(),
        ])
        .args(["--serve", &serve(), "--state"])
        .arg(&state)
        .env("TS_AUTHKEY", key);
    let mut node = Process::start("node", &mut command, &dir.join("node.log"))?;
    serves_page(fixture, &mut node, "ours")?;
    let before = device(&fixture.laptop, "ours")?;
    let devices = fixture.tailnet.nodes()?.len();
    node.stop()?;

    let official = official_on(fixture, "ours", &dir)?;
    let own = official.json(&["status", "--json"])?;
    ensure!(
        own["Self"]["ID"] == before[0] && own["Self"]["PublicKey"] == before[1],
        "another device: {}",
        own["Self"]
    );
    ensure!(
        own["Self"]["TailscaleIPs"] == before[2],
        "{}",
        own["Self"]["TailscaleIPs"]
    );
    ensure!(fixture.tailnet.nodes()?.len() == devices, "a device was added");
    eventually("the laptop reaches it", || {
        let answer =
            fixture
                .laptop
                .run(&["ping", "--c=1", "--until-direct=false", "--timeout=5s", "ours"])?;
        ensure!(answer.contains("pong from ours"), "{answer}");
        Ok(())
    })?;
    fs::metadata(&state).context("the state is kept")?;
    Ok(())
}
