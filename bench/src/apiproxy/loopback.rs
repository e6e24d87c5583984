//! The proxy alone: requests, watches, a long answer and recorded sessions, between a client and an API server on this machine.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tailwharf_testkit::pebble::free;
use tailwharf_testkit::process::{Process, run};
use tailwharf_testkit::wait::eventually;
use tempfile::TempDir;

use crate::figures::{Bar, Figures};
use crate::tools::{forget_high_water, held, high_water, number, path, resident, said};

/// Connections that are kept, and for how many seconds they ask.
const CONNECTIONS: u32 = 64;
const SECONDS: &str = "4";
const WATCHES: u32 = 10_000;
const SESSIONS: u32 = 500;
/// The path of a small object, and of the long list.
const OBJECT: &str = "/api/v1/namespaces/default/configmaps/one";
const LIST: &str = "/api/v1/pods";

pub(super) fn measure(figures: &mut Figures) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("tailwharf-bench-").tempdir()?;
    let api = Server::start(dir.path(), "api", &["api", &folder(&dir), &SESSIONS.to_string()])?;
    let proxy = Server::start(dir.path(), "proxy", &["proxy", &folder(&dir), &api.address])?;
    let haproxy = Haproxy::start(dir.path(), &api.address)?;
    requests(
        figures,
        dir.path(),
        [&proxy.address, &haproxy.address, &api.address],
    )?;
    long_answer(figures, dir.path(), &proxy)?;
    watches(figures, dir.path(), &proxy)?;
    sessions(figures, &dir, &api)
}

/// How many requests get through, and what each takes longer than without the proxy.
fn requests(figures: &mut Figures, dir: &Path, [proxy, haproxy, api]: [&str; 3]) -> Result<()> {
    let [ours, theirs, _] =
        at([proxy, haproxy, api].map(|address| gets(dir, address, OBJECT, CONNECTIONS, None)))?;
    let rate =
        |result: &Value| Ok::<_, anyhow::Error>(number(result, "requests")? / number(result, "seconds")?);
    let (ours, theirs) = (rate(&ours)?, rate(&theirs)?);
    figures.add(
        "apiproxy.loopback.requests",
        ours,
        "1/s",
        Some(theirs),
        Some(Bar::RatioAtLeast(0.6)),
    );
    let half = Some(ours / 2.0);
    let [with, theirs, without] =
        at([proxy, haproxy, api].map(|address| gets(dir, address, OBJECT, CONNECTIONS, half)))?;
    for (share, bar) in [("p50", 0.3), ("p99", 2.0)] {
        let added = |result: &Value| {
            let more = number(result, share)? - number(&without, share)?;
            Ok::<_, anyhow::Error>(more / 1e3)
        };
        figures.add(
            &format!("apiproxy.loopback.added_{share}"),
            added(&with)?,
            "ms",
            Some(added(&theirs)?),
            Some(Bar::AtMost(bar)),
        );
    }
    Ok(())
}

fn at<const N: usize>(results: [Result<Value>; N]) -> Result<[Value; N]> {
    let results: Vec<Value> = results.into_iter().collect::<Result<_>>()?;
    for result in &results {
        ensure!(number(result, "failed")? == 0.0, "requests have failed: {result}");
    }
    results
        .try_into()
        .map_err(|_| anyhow::anyhow!("results are missing"))
}

/// What a list of 50 MB adds to the memory of the proxy while it goes through, again and again.
fn long_answer(figures: &mut Figures, dir: &Path, proxy: &Server) -> Result<()> {
    let pid = proxy.process.pid();
    let before = resident(pid)?;
    forget_high_water(pid)?;
    let [lists] = at([gets(dir, &proxy.address, LIST, 1, None)])?;
    ensure!(
        number(&lists, "bytes")? >= 50.0 * 1024.0 * 1024.0,
        "no list came through: {lists}"
    );
    figures.add(
        "apiproxy.loopback.list_memory",
        high_water(pid)? - before,
        "MiB",
        None,
        Some(Bar::AtMost(4.0)),
    );
    Ok(())
}

fn watches(figures: &mut Figures, dir: &Path, proxy: &Server) -> Result<()> {
    let before = held(proxy.process.pid())?;
    let (roots, count) = (dir.join("proxy.pem"), WATCHES.to_string());
    let mut command = Command::new(path("gate"));
    command.args(["watches", &proxy.address]).arg(roots).arg(count);
    let open = Process::start("watches", &mut command, &dir.join("watches.log"))?;
    said(&open, "{}", Duration::from_secs(120))?;
    figures.add(
        "apiproxy.loopback.idle_watch",
        (held(proxy.process.pid())? - before) * 1024.0 / f64::from(WATCHES),
        "KiB",
        None,
        Some(Bar::AtMost(10.0)),
    );
    open.stop()
}

/// Whether what is said in many sessions at once is on the recorder.
fn sessions(figures: &mut Figures, dir: &TempDir, api: &Server) -> Result<()> {
    let recordings = dir.path().join("recordings");
    let kept = recordings.display().to_string();
    let recorder = Server::start(dir.path(), "recorder", &["recorder", &kept])?;
    let words = ["proxy", &folder(dir), &api.address, &recorder.address];
    let proxy = Server::start(dir.path(), "recording-proxy", &words)?;
    let (roots, count) = (dir.path().join("proxy.pem"), SESSIONS.to_string());
    let mut command = Command::new(path("gate"));
    command.args(["sessions", &proxy.address]).arg(roots).arg(&count);
    let spoken: Value = serde_json::from_str(&run(&mut command)?)?;
    ensure!(number(&spoken, "bytes")? > 0.0, "nothing was said");
    // A recorder writes what it has taken; that all of it is there shows within a moment.
    let missing = eventually("the recordings are whole", || {
        let mut command = Command::new(path("gate"));
        let result: Value = serde_json::from_str(&run(command.args(["missing", &kept, &count]))?)?;
        let missing = number(&result, "missing")?;
        ensure!(missing == 0.0, "{missing} bytes are missing");
        Ok(missing)
    })?;
    figures.add(
        "apiproxy.loopback.bytes_lost_in_500_recorded_sessions",
        missing,
        "B",
        None,
        Some(Bar::AtMost(0.0)),
    );
    Ok(())
}

fn gets(dir: &Path, address: &str, what: &str, connections: u32, rate: Option<f64>) -> Result<Value> {
    let roots = dir.join(if address == fs::read_to_string(dir.join("api.address"))? {
        "api.pem"
    } else {
        "proxy.pem"
    });
    let mut command = Command::new(path("gets"));
    command
        .arg(format!("https://127.0.0.1{what}"))
        .arg(address)
        .arg(roots);
    command.args([&connections.to_string(), SECONDS]);
    command.args(rate.map(|rate| rate.to_string()));
    let text = run(&mut command)?;
    serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
}

fn folder(dir: &TempDir) -> String {
    dir.path().display().to_string()
}

/// A `gate` that serves.
struct Server {
    process: Process,
    address: String,
}

impl Server {
    fn start(dir: &Path, name: &str, words: &[&str]) -> Result<Self> {
        let mut command = Command::new(path("gate"));
        let process = Process::start(name, command.args(words), &dir.join(format!("{name}.log")))?;
        said(&process, "address", Duration::from_secs(10))?;
        let result: Value = serde_json::from_str(&process.log_end(1))?;
        let address = result["address"].as_str().context("no address")?.to_owned();
        fs::write(dir.join(format!("{name}.address")), &address)?;
        Ok(Self { process, address })
    }
}

struct Haproxy {
    _process: Process,
    address: String,
}

impl Haproxy {
    /// TLS on both sides, HTTP/2 towards the API server: what it does best.
    fn start(dir: &Path, api: &str) -> Result<Self> {
        let address = free()?.to_string();
        let (shown, trusted) = (dir.join("proxy-key.pem"), dir.join("api.pem"));
        let config = format!(
            "global\n  maxconn 4000\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
             frontend front\n  bind {address} ssl crt {} alpn h2,http/1.1\n  default_backend back\n\
             backend back\n  http-reuse always\n  server api {api} ssl verify required ca-file {} alpn h2,http/1.1\n",
            shown.display(),
            trusted.display()
        );
        let file = dir.join("haproxy.cfg");
        fs::write(&file, config)?;
        let mut command = Command::new("haproxy");
        let mut process = Process::start(
            "haproxy",
            command.arg("-db").arg("-f").arg(file),
            &dir.join("haproxy.log"),
        )?;
        eventually("haproxy answers", || {
            process.alive()?;
            gets(dir, &address, OBJECT, 1, Some(1.0)).map(drop)
        })?;
        Ok(Self {
            _process: process,
            address,
        })
    }
}
