//! What a coordinator of a certain size takes, and how fast it is.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use serde::Serialize;
use tailwharf_testkit::Tailnet;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::sleep,
};

use crate::{Fleet, tailnet};

/// Where the coordinator listens.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 47, 1);
const PORT: u16 = 8080;
/// Rules of the policy.
const RULES: usize = 300;
/// An attribute that nodes have by the changed policy alone.
const MARKER: &str = "changed-policy";
/// How long idle is measured.
const IDLE: Duration = Duration::from_secs(10);
/// Nodes that move to another endpoint, one after the other.
const MOVES: usize = 20;
/// Connections by which keys are minted, and keys by each.
const MINTERS: usize = 16;
const KEYS_EACH: usize = 100;
/// Ticks of the processor's clock in `/proc`, in one second.
const TICKS: f64 = 100.0;

/// The figures of one run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Nodes.
    pub nodes: usize,
    /// Registrations in a second.
    pub registrations: f64,
    /// From the first connection until the last node had its map, in seconds.
    pub first_maps: f64,
    /// The same when all come back at one time.
    pub reconnect: f64,
    /// From the change of an endpoint until a node that sees it was told, at the 99th percentile, in milliseconds.
    pub endpoint_p99: f64,
    /// Nodes that were told of one such change, on average.
    pub told: f64,
    /// The coordinator's processor time for one such change, in milliseconds.
    pub endpoint_cost: f64,
    /// From a new policy until the last node was told, in seconds.
    pub policy: f64,
    /// Resident memory with all nodes connected, in MiB.
    pub resident: f64,
    /// Share of one core while nothing happens, in percent.
    pub idle: f64,
    /// Auth keys minted by the API in a second.
    pub keys: f64,
}

/// Starts a coordinator, connects `nodes` nodes to it, and measures.
///
/// # Errors
/// When something does not answer as it should.
pub async fn measure(nodes: usize) -> Result<Report> {
    let dir = tempfile::tempdir()?;
    let (tailnet, keys) = {
        let dir = dir.path().to_owned();
        tokio::task::spawn_blocking(move || {
            let tailnet = Tailnet::start(ADDRESS, &dir, &tailnet::policy(RULES, None))?;
            let keys = tailnet::keys(&tailnet, nodes)?;
            Ok::<_, anyhow::Error>((tailnet, keys))
        })
        .await??
    };
    let tailnet = Arc::new(tailnet);
    let pid = tailnet.pid().context("the coordinator does not run")?;
    let mut fleet = Fleet::new(SocketAddr::from((ADDRESS, PORT))).await?;
    let registered = fleet.register(&keys).await?;
    let first_maps = last(&fleet.connect().await?);
    settle(&fleet).await;

    let before = busy(pid)?;
    sleep(IDLE).await;
    let idle = (busy(pid)? - before) / IDLE.as_secs_f64() * 100.0;
    let (mut times, before) = (Vec::new(), busy(pid)?);
    let mut told = 0;
    for index in 0..MOVES {
        let port = 20_000 + u16::try_from(index)?;
        let seen = fleet.move_one(index * nodes / MOVES, port, 1).await?;
        settle(&fleet).await;
        let seen = if seen.is_empty() { seen } else { fleet.told() };
        told += seen.len();
        times.extend(seen);
    }
    let endpoint_cost = (busy(pid)? - before) / MOVES as f64 * 1000.0;
    times.sort_unstable();

    let changed = dir.path().join("changed.hujson");
    fs::write(&changed, tailnet::policy(RULES, Some(MARKER)))?;
    let set = {
        let tailnet = tailnet.clone();
        let path = changed.display().to_string();
        async move {
            tokio::task::spawn_blocking(move || tailnet.administer(&["policy", "set", &path]).map(drop))
                .await?
        }
    };
    let policy = last(&fleet.observe(MARKER, nodes, set).await?);
    settle(&fleet).await;

    fleet.disconnect();
    let reconnect = last(&fleet.connect().await?);
    settle(&fleet).await;
    let resident = tailwharf_testkit::process::resident(pid)? as f64 / f64::from(1 << 20);
    let keys = mint(&tailnet).await?;
    Ok(Report {
        nodes,
        registrations: nodes as f64 / registered.as_secs_f64(),
        first_maps,
        reconnect,
        endpoint_p99: percentile(&times, 99).as_secs_f64() * 1000.0,
        told: told as f64 / MOVES as f64,
        endpoint_cost,
        policy,
        resident,
        idle,
        keys,
    })
}

fn last(times: &[Duration]) -> f64 {
    times.last().copied().unwrap_or_default().as_secs_f64()
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let index = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(index).copied().unwrap_or_default()
}

/// Waits until no node is told anything for a while.
async fn settle(fleet: &Fleet) {
    loop {
        let before = fleet.received();
        sleep(Duration::from_millis(400)).await;
        if fleet.received() == before {
            return;
        }
    }
}

/// Processor time that a process has taken, in seconds.
fn busy(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("no process name")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks: f64 = fields.get(11).context("no user time")?.parse::<f64>()?
        + fields.get(12).context("no system time")?.parse::<f64>()?;
    Ok(ticks / TICKS)
}

/// Auth keys in a second, by several callers at one time.
async fn mint(tailnet: &Arc<Tailnet>) -> Result<f64> {
    let asked = tailnet.clone();
    let token = tokio::task::spawn_blocking(move || {
        asked.administer(&["api-token", "create", "--user", "user0@example.com"])
    })
    .await??;
    let token = token["key"]
        .as_str()
        .context("no token in the answer")?
        .to_owned();
    let start = Instant::now();
    try_join_all((0..MINTERS).map(|_| mint_some(&token))).await?;
    Ok((MINTERS * KEYS_EACH) as f64 / start.elapsed().as_secs_f64())
}

async fn mint_some(token: &str) -> Result<()> {
    const BODY: &str = r#"{"capabilities":{"devices":{"create":{"reusable":false,"ephemeral":true,"preauthorized":true,"tags":["tag:t1"]}}}}"#;
    let mut socket = TcpStream::connect((ADDRESS, PORT)).await?;
    socket.set_nodelay(true)?;
    let request = format!(
        "POST /api/v2/tailnet/-/keys HTTP/1.1\r\nHost: {ADDRESS}\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    let mut buffer = vec![0; 16 << 10];
    for _ in 0..KEYS_EACH {
        socket.write_all(request.as_bytes()).await?;
        // The answer is short: it comes in one piece.
        let length = socket.read(&mut buffer).await?;
        let answer = String::from_utf8_lossy(&buffer[..length]);
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    Ok(())
}
