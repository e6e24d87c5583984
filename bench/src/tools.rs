//! The programs that make traffic, and what processes take meanwhile.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::unistd::{SysconfVar, sysconf};
use serde_json::Value;
use tailwharf_testkit::process::{Process, run};
use tailwharf_testkit::wait::eventually_within;
use tailwharf_testkit::{Namespace, workspace};

/// How long idle memory is watched: our processes give code back every 30 s.
const WATCHED: Duration = Duration::from_secs(35);
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
    within_or_here(namespace, &path(tool))
}

/// A command for any program, in a namespace or on this machine.
pub(crate) fn within_or_here(namespace: Option<&Namespace>, program: &Path) -> Command {
    namespace.map_or_else(|| Command::new(program), |namespace| namespace.command(program))
}

/// Starts `flood serve` on all addresses.
pub(crate) fn serve(namespace: Option<&Namespace>, dir: &Path, name: &str) -> Result<Process> {
    let mut command = within(namespace, "flood");
    command.args(["serve", &format!("0.0.0.0:{PORT}")]);
    let process = Process::start(name, &mut command, &dir.join(format!("{name}.log")))?;
    said(&process, "{}", Duration::from_secs(10))?;
    Ok(process)
}

/// Starts `flood web-serve`, whose pages begin with `name`.
pub(crate) fn web_serve(
    namespace: Option<&Namespace>,
    address: Ipv4Addr,
    port: u16,
    name: &str,
    dir: &Path,
) -> Result<Process> {
    let mut command = within(namespace, "flood");
    command.args(["web-serve", &format!("{address}:{port}"), name]);
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

/// The highest value while a process is idle: after it has been left alone for [`WATCHED`], for as long again. What it does now and then shows.
pub(crate) fn highest_when_idle(mut look: impl FnMut() -> Result<f64>) -> Result<f64> {
    let began = Instant::now();
    let mut most = 0.0_f64;
    eventually_within(WATCHED * 3, "idle memory was watched", || {
        let value = look()?;
        ensure!(began.elapsed() >= WATCHED, "left alone");
        most = most.max(value);
        ensure!(began.elapsed() >= WATCHED * 2, "watched");
        Ok(most)
    })
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
