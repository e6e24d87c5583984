//! Queries that the nameserver answers by the processor time that it takes for them, and its memory.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::json;
use tailwharf_testkit::process::Process;
use tailwharf_testkit::wait::eventually;
use tailwharf_testkit::workspace;

use crate::figures::{Bar, Figures};
use crate::tools::{Cost, high_water};

const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 17_053);
/// Names that it knows.
const NAMES: usize = 2_000;
/// Clients, each on a socket of its own, and how many queries of each are under way.
const CLIENTS: usize = 16;
const WINDOW: usize = 16;
const TIME: Duration = Duration::from_secs(5);
/// After this long without an answer, a client asks anew.
const PATIENCE: Duration = Duration::from_millis(200);
const TYPE_A: u16 = 1;

pub(crate) fn measure(figures: &mut Figures) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let records = dir.path().join("records.json");
    let names: BTreeMap<String, [Ipv4Addr; 1]> = (0..NAMES as u32)
        .map(|number| (name(number), [Ipv4Addr::from(0x0a60_0000 + number)]))
        .collect();
    fs::write(&records, json!({"version": "v1alpha1", "ip4": names}).to_string())?;
    let mut command = Command::new(workspace::tailwharf());
    command
        .args(["nameserver", "--listen", &ADDRESS.to_string(), "--records"])
        .arg(&records);
    let process = Process::start("nameserver", &mut command, &dir.path().join("log"))?;
    eventually("the nameserver answers", || {
        let mut client = Client::new(0)?;
        client.ask()?;
        ensure!(client.take()?, "not yet");
        Ok(())
    })?;

    let cost = Cost::of(&[process.pid()])?;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| thread::spawn(move || Client::new(number)?.run(TIME)))
        .collect();
    let mut answers = 0;
    for client in clients {
        answers += client.join().map_err(|_| anyhow!("a client panicked"))??;
    }
    let seconds = cost.so_far()?;
    ensure!(answers > 0 && seconds > 0.0, "nothing was answered");
    figures.add(
        "egress.nameserver.queries_per_core",
        answers as f64 / seconds,
        "1/s",
        None,
        Some(Bar::AtLeast(50_000.0)),
    );
    figures.add(
        "egress.nameserver.queries",
        answers as f64 / TIME.as_secs_f64(),
        "1/s",
        None,
        None,
    );
    figures.add(
        "egress.nameserver.rss",
        high_water(process.pid())?,
        "MiB",
        None,
        Some(Bar::AtMost(20.0)),
    );
    process.stop()
}

fn name(number: u32) -> String {
    format!("device-{number}.tail1234.ts.net")
}

/// A query for the IPv4 addresses of a name (RFC 1035).
fn query(number: u32) -> Vec<u8> {
    let mut query = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name(number).split('.') {
        query.push(label.len() as u8);
        query.extend(label.as_bytes());
    }
    query.push(0);
    query.extend(TYPE_A.to_be_bytes());
    query.extend(1u16.to_be_bytes());
    query
}

struct Client {
    socket: UdpSocket,
    queries: Vec<Vec<u8>>,
    next: usize,
    buffer: [u8; 512],
}

impl Client {
    fn new(number: usize) -> Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect(ADDRESS)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            socket,
            queries: (0..NAMES as u32).map(query).collect(),
            next: number * NAMES / CLIENTS,
            buffer: [0; 512],
        })
    }

    fn ask(&mut self) -> Result<()> {
        self.next = (self.next + 1) % NAMES;
        self.socket.send(&self.queries[self.next])?;
        Ok(())
    }

    /// Whether an answer came in time. It has to have one address.
    fn take(&mut self) -> Result<bool> {
        let Ok(length) = self.socket.recv(&mut self.buffer) else {
            return Ok(false);
        };
        let head = self.buffer.get(..length.min(12)).context("no answer")?;
        ensure!(
            head.len() == 12 && head[3] & 15 == 0 && head[7] == 1,
            "no address: {head:?}"
        );
        Ok(true)
    }

    /// How many answers came.
    fn run(mut self, time: Duration) -> Result<u64> {
        let (end, mut answers) = (Instant::now() + time, 0);
        for _ in 0..WINDOW {
            self.ask()?;
        }
        while Instant::now() < end {
            answers += u64::from(self.take()?);
            self.ask()?;
        }
        Ok(answers)
    }
}
