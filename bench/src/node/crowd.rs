//! Many identities in one process, and many peers.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tailwharf_testkit::process::{Process, run};
use tailwharf_testkit::wait::eventually;
use tailwharf_testkit::workspace;

use crate::figures::{Bar, Figures};
use crate::tools::{held, number, path, resident, said};
use crate::world::World;

/// Identities that are all active.
const ACTIVE: usize = 200;
/// Identities that are idle, and all see each other.
const IDLE: usize = 1_000;
/// Connections to a single identity.
const STREAMS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(150);

pub(super) fn measure(figures: &mut Figures, world: &World) -> Result<()> {
    let one = Crowd::start(world, "one", 1)?;
    let alone = one.send_to_all(world, STREAMS)?;
    one.process.stop()?;
    let many = Crowd::start(world, "many", ACTIVE)?;
    let together = many.send_to_all(world, 1)?;
    many.process.stop()?;
    figures.add(
        "node.crowd.identities_200_active",
        together,
        "Gbit/s",
        Some(alone),
        Some(Bar::RatioAtLeast(0.9)),
    );

    let watcher_world = World::start()?;
    let socket = watcher_world
        .folder("watcher")?
        .join("socket")
        .display()
        .to_string();
    let watcher = watcher_world.node_here("watcher", &["--socket", &socket])?;
    watcher_world.address("watcher")?;
    let before = held(watcher.pid())?;
    let idle = Crowd::start(&watcher_world, "idle", IDLE)?;
    // Maps of late comers are still on their way when the last one is online.
    eventually("the watcher sees them all", || {
        let mut command = std::process::Command::new(workspace::tailwharf());
        let status = run(command.args(["status", "--output", "json", "--socket", &socket]))?;
        let status: Value = serde_json::from_str(&status)?;
        let seen = status["peers"].as_array().map_or(0, Vec::len);
        ensure!(seen >= IDLE, "{seen} of {IDLE}");
        Ok(())
    })?;
    let peers = held(watcher.pid())? - before;
    figures.add(
        "node.crowd.idle_peer",
        peers * 1024.0 / IDLE as f64,
        "KiB",
        None,
        Some(Bar::AtMost(4.0)),
    );
    let memory = resident(idle.process.pid())?;
    figures.add(
        "node.crowd.identities_1000_idle",
        memory,
        "MiB",
        None,
        Some(Bar::AtMost(500.0)),
    );
    idle.process.stop()
}

/// A process with many identities.
struct Crowd {
    process: Process,
    addresses: Vec<String>,
}

impl Crowd {
    fn start(world: &World, name: &str, count: usize) -> Result<Self> {
        let mut command = std::process::Command::new(path("crowd"));
        command
            .args(["host", world.tailnet.url(), name, &count.to_string()])
            .env("TS_AUTHKEY", world.auth_key()?)
            .stdin(Stdio::null());
        let process = Process::start(name, &mut command, &world.dir.path().join(format!("{name}.log")))?;
        said(&process, "}\n", PATIENCE)?;
        let log = process.log();
        let line = log
            .lines()
            .find(|line| line.starts_with('{'))
            .context("no addresses")?;
        let told: Value = serde_json::from_str(line)?;
        let addresses = told["addresses"].as_array().context("no addresses")?;
        let addresses = addresses
            .iter()
            .filter_map(|address| address.as_str().map(str::to_owned))
            .collect();
        Ok(Self { process, addresses })
    }

    /// Gbit/s from one more node to all of the identities at the same time.
    fn send_to_all(&self, world: &World, streams: usize) -> Result<f64> {
        let mut command = std::process::Command::new(path("crowd"));
        command
            .args(["send", world.tailnet.url(), "sender", &streams.to_string(), "3"])
            .args(&self.addresses)
            .env("TS_AUTHKEY", world.auth_key()?);
        let text = run(&mut command)?;
        let line = text.lines().last().context("no result")?;
        let result: Value = serde_json::from_str(line).with_context(|| text.clone())?;
        Ok(number(&result, "bytes")? * 8.0 / number(&result, "seconds")? / 1e9)
    }
}
