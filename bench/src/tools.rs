//! The programs that make traffic, and what processes take meanwhile.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::unistd::{SysconfVar, sysconf};
use serde_json::Value;
use tailwharf_testkit::process::{Process, run};
use tailwharf_testkit::wait::eventually_within;
use tailwharf_testkit::{Namespace, workspace};

/// The port of `flood serve`.
pub(crate) const PORT: u16 = 7_000;

/// A program of the bench.
pub(crate) fn path(tool: &str) -> PathBuf {
    workspace::root()
        .join("target/x86_64-unknown-linux-musl/perf")
        .join(tool)
}

/// Runs `flood` and reads what it measured.
pub(crate) fn flood(namespace: Option<&Namespace>, words: &[&str]) -> Result<Value> {
    let mut command = within(namespace, "flood");
    command.args(words);
    let text = run(&mut command)?;
    serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
}

/// A command for a tool, in a namespace or on this machine.
pub(crate) fn within(namespace: Option<&Namespace>, tool: &str) -> Command {
    match namespace {
        Some(namespace) => namespace.command(path(tool)),
        None => Command::new(path(tool)),
    }
}

/// Starts `flood serve` on all addresses.
pub(crate) fn serve(namespace: Option<&Namespace>, dir: &Path, name: &str) -> Result<Process> {
    let mut command = within(namespace, "flood");
    command.args(["serve", &format!("0.0.0.0:{PORT}")]);
    let process = Process::start(name, &mut command, &dir.join(format!("{name}.log")))?;
    said(&process, "{}", Duration::from_secs(10))?;
    Ok(process)
}

/// Waits until a process has written `word`.
pub(crate) fn said(process: &Process, word: &str, patience: Duration) -> Result<()> {
    eventually_within(patience, "a program is ready", || {
        ensure!(process.log().contains(word), "it said: {}", process.log_end(3));
        Ok(())
    })
}

/// A number of a result.
pub(crate) fn number(result: &Value, name: &str) -> Result<f64> {
    result[name]
        .as_f64()
        .with_context(|| format!("no {name} in {result}"))
}

/// Processor seconds that processes take.
pub(crate) struct Cost {
    pids: Vec<u32>,
    before: f64,
}

impl Cost {
    pub(crate) fn of(pids: &[u32]) -> Result<Self> {
        Ok(Self {
            pids: pids.to_vec(),
            before: seconds(pids)?,
        })
    }

    /// Seconds since [`Cost::of`].
    pub(crate) fn so_far(&self) -> Result<f64> {
        Ok(seconds(&self.pids)? - self.before)
    }
}

fn seconds(pids: &[u32]) -> Result<f64> {
    let hertz = sysconf(SysconfVar::CLK_TCK)?.context("no clock")? as f64;
    let mut ticks = 0.0;
    for pid in pids {
        let stat =
            fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid}"))?;
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .context("no name in stat")?
            .1
            .split_whitespace()
            .collect();
        for field in [11, 12] {
            ticks += fields.get(field).context("a short stat")?.parse::<f64>()?;
        }
    }
    Ok(ticks / hertz)
}

/// The most memory that a process ever had, in MiB.
pub(crate) fn high_water(pid: u32) -> Result<f64> {
    status(pid, "VmHWM:")
}

/// Lets [`high_water`] begin anew.
pub(crate) fn forget_high_water(pid: u32) -> Result<()> {
    let path = format!("/proc/{pid}/clear_refs");
    fs::write(&path, "5").with_context(|| path.clone())
}

/// Resident memory of a process, in MiB.
pub(crate) fn resident(pid: u32) -> Result<f64> {
    status(pid, "VmRSS:")
}

/// Memory of a process that is its own, in MiB: without code, which comes and goes whatever the process holds.
pub(crate) fn held(pid: u32) -> Result<f64> {
    status(pid, "RssAnon:")
}

fn status(pid: u32, name: &str) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib: f64 = line
        .and_then(|line| line.split_whitespace().next())
        .with_context(|| format!("no {name}"))?
        .parse()?;
    Ok(kib / 1024.0)
}

/// Bytes carried in some time, and what that took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Carried {
    pub(crate) gbits: f64,
    /// Processor seconds for each gigabyte.
    pub(crate) cost: f64,
}

/// Carries bytes over `streams` connections, and tells what `pids` take for it.
pub(crate) fn stream(
    namespace: Option<&Namespace>,
    to: &str,
    way: &str,
    streams: usize,
    pids: &[u32],
) -> Result<Carried> {
    let cost = Cost::of(pids)?;
    let result = flood(namespace, &["stream", to, way, &streams.to_string(), "3"])?;
    carried(&result, cost.so_far()?)
}

pub(crate) fn carried(result: &Value, cost: f64) -> Result<Carried> {
    let (bytes, seconds) = (number(result, "bytes")?, number(result, "seconds")?);
    ensure!(bytes > 0.0, "nothing was carried");
    Ok(Carried {
        gbits: bytes * 8.0 / seconds / 1e9,
        cost: cost / (bytes / 1e9),
    })
}
