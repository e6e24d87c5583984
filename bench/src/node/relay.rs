//! Packets through relays: the relay alone, and two nodes that have nothing else.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use rcgen::{CertificateParams, KeyPair, SanType};
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use tailwharf_testkit::process::Process;
use tailwharf_testkit::wait::eventually;
use tailwharf_testkit::workspace;

use super::ends::{Pair, coordinator, node_key};
use crate::figures::{Bar, Figures};
use crate::tools::{Carried, Cost, carried, flood, stream};
use crate::world::World;

const PORT: u16 = 3_341;
/// Packets of one pair that may be on their way. Each relay shows what it can with the one that suits it.
const WINDOWS: [&str; 3] = ["24", "64", "128"];
/// The relay of a coordinator of [`World`].
const OUR_PORT: u16 = 3_340;

pub(super) fn measure(figures: &mut Figures, world: &World) -> Result<()> {
    let keys = node_keys(world)?;
    let derper = Derper::start(world.bridge.host(), world.dir.path())?;
    let host = world.bridge.host();
    let theirs = best(host, PORT, derper.process.pid(), &keys)?;
    let ours = best(host, OUR_PORT, coordinator(&world.tailnet)?, &keys)?;
    add(figures, "node.relay.alone", ours, theirs, (1.5, 0.6));

    // The nodes of the official pair are told of the official relay alone.
    fs::write(world.dir.path().join("relays.json"), derper.map(host).to_string())?;
    let with_derper = World::with(&format!(
        "[derp]\nmap_file = \"{}\"\nreplace = true\n",
        world.dir.path().join("relays.json").display()
    ))?;
    let theirs = {
        let pair = Pair::theirs(&with_derper, &[("TS_DEBUG_ALWAYS_USE_DERP", "true")])?;
        between(&pair, derper.process.pid())?
    };
    let ours = {
        let pair = Pair::ours(world, &[])?;
        between(&pair, coordinator(&world.tailnet)?)?
    };
    add(figures, "node.relay.only", ours, theirs, (5.0, 0.2));
    Ok(())
}

fn add(figures: &mut Figures, name: &str, ours: Carried, theirs: Carried, bars: (f64, f64)) {
    let (gbits, cost) = bars;
    figures.add(
        name,
        ours.gbits,
        "Gbit/s",
        Some(theirs.gbits),
        Some(Bar::RatioAtLeast(gbits)),
    );
    figures.add(
        &format!("{name}_cpu"),
        ours.cost,
        "s/GB",
        Some(theirs.cost),
        Some(Bar::RatioAtMost(cost)),
    );
}

fn between(pair: &Pair, relay: u32) -> Result<Carried> {
    let pids = [&pair.pids[..], &[relay]].concat();
    stream(pair.near(), &pair.to, "to", 1, &pids)
}

/// What a relay does at its best.
fn best(host: Ipv4Addr, port: u16, pid: u32, keys: &[String]) -> Result<Carried> {
    let mut best: Option<Carried> = None;
    for window in WINDOWS {
        let (relay, name) = (format!("{host}:{port}"), host.to_string());
        let mut words = vec!["relay", &relay, &name, "2", window, "2"];
        words.extend(keys.iter().map(String::as_str));
        let cost = Cost::of(&[pid])?;
        let result = flood(None, &words)?;
        let seen = carried(&result, cost.so_far()?)?;
        if best.is_none_or(|best| seen.gbits > best.gbits) {
            best = Some(seen);
        }
    }
    best.ok_or_else(|| anyhow::anyhow!("nothing was measured"))
}

/// The keys of four nodes that the coordinator knows: its relay admits no others.
fn node_keys(world: &World) -> Result<Vec<String>> {
    let mut keys = Vec::new();
    for name in ["key-1", "key-2", "key-3", "key-4"] {
        let node = world.node_here(name, &[])?;
        world.address(name)?;
        node.process.stop()?;
        keys.push(node_key(&world.folder(name)?)?);
    }
    Ok(keys)
}

/// The official relay.
struct Derper {
    process: Process,
    pin: String,
}

impl Derper {
    fn start(host: Ipv4Addr, dir: &Path) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.subject_alt_names = vec![SanType::IpAddress(host.into())];
        let certificate = params.self_signed(&key)?;
        fs::write(dir.join(format!("{host}.crt")), certificate.pem())?;
        fs::write(dir.join(format!("{host}.key")), key.serialize_pem())?;
        let hash = digest(&SHA256, certificate.der());
        let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let mut command = Command::new(workspace::official("derper"));
        command
            .args(["-hostname", &host.to_string(), "-a", &format!("{host}:{PORT}")])
            .args([
                "-certmode",
                "manual",
                "-stun=false",
                "-http-port",
                "-1",
                "-certdir",
            ])
            .arg(dir)
            .arg("-c")
            .arg(dir.join("derper.json"));
        let mut process = Process::start("derper", &mut command, &dir.join("derper.log"))?;
        eventually("derper listens", || {
            process.alive()?;
            ensure!(
                std::net::TcpStream::connect((host, PORT)).is_ok(),
                "it does not listen yet"
            );
            Ok(())
        })?;
        Ok(Self {
            process,
            pin: format!("sha256-raw:{hex}"),
        })
    }

    /// The DERP map that names it alone.
    fn map(&self, host: Ipv4Addr) -> Value {
        let node = json!({
            "Name": "901a", "RegionID": 901, "HostName": host.to_string(), "CertName": self.pin,
            "IPv4": host.to_string(), "IPv6": "none", "STUNPort": -1, "DERPPort": PORT,
        });
        json!({"Regions": {"901": {"RegionID": 901, "RegionCode": "derper", "RegionName": "derper", "Nodes": [node]}}})
    }
}
