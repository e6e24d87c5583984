//! Many nodes in one process, for the bench. The auth key is in `TS_AUTHKEY`.
//!
//! ```text
//! crowd host LOGIN_SERVER NAME COUNT                       nodes that take what they are sent; prints their addresses
//! crowd send LOGIN_SERVER NAME STREAMS SECONDS ADDRESS...  one node that sends to all of them; prints what arrived
//! ```

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "what it prints is its result")]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;
use tailwharf_node::{AuthKey, Host, HostConfig, MemoryStore, Node, NodeConfig, TailnetNode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{timeout, timeout_at};

/// The allocator of `tailwharf`, so that memory means the same.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PORT: u16 = 9;
const PIECE: usize = 64 * 1024;
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> Result<()> {
    let _ = nix::sys::prctl::set_thp_disable(true);
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let host = Host::new(&HostConfig {
        direct: true,
        ..HostConfig::default()
    })?;
    match words[..] {
        ["host", server, name, count] => {
            let mut nodes = Vec::new();
            for number in 0..count.parse()? {
                nodes.push(start(&host, server, &format!("{name}-{number}")).await?);
            }
            let mut addresses = Vec::new();
            for node in &nodes {
                addresses.push(online(node).await?.to_string());
            }
            println!("{}", json!({"addresses": addresses}));
            std::future::pending().await
        }
        ["send", server, name, streams, seconds, ref addresses @ ..] => {
            let node = Arc::new(start(&host, server, name).await?);
            online(&node).await?;
            let seconds: f64 = seconds.parse()?;
            let streams: usize = streams.parse()?;
            let (bytes, seconds) = send(&node, addresses, streams, seconds).await?;
            println!("{}", json!({"bytes": bytes, "seconds": seconds}));
            Ok(())
        }
        _ => bail!("the words are not understood; see the beginning of this program"),
    }
}

/// A node that takes what comes to its port.
async fn start(host: &Host, server: &str, name: &str) -> Result<Node> {
    #[expect(
        clippy::disallowed_methods,
        reason = "a key on the command line could be read by all; there is no settings module here"
    )]
    let key = std::env::var("TS_AUTHKEY").context("TS_AUTHKEY")?;
    let mut config = NodeConfig::new(server.parse()?, name);
    config.auth_key = AuthKey::new(&key);
    let node = host.start(config, Arc::new(MemoryStore::default())).await?;
    let listener = node.listen_tcp(PORT)?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut room = vec![0; PIECE];
                let mut count = 0;
                while let Ok(len @ 1..) = stream.read(&mut room).await {
                    count += len as u64;
                }
                let _ = stream.write_u64(count).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    Ok(node)
}

async fn online(node: &Node) -> Result<IpAddr> {
    let mut status = node.status();
    let ready = timeout(PATIENCE, status.wait_for(|status| status.reachable())).await??;
    ready.addresses.first().copied().context("no address")
}

async fn send(node: &Arc<Node>, addresses: &[&str], streams: usize, seconds: f64) -> Result<(u64, f64)> {
    let mut open = Vec::new();
    for address in addresses {
        let to = SocketAddr::new(address.parse()?, PORT);
        for _ in 0..streams {
            open.push(timeout(PATIENCE, node.dial_tcp(to)).await??);
        }
    }
    let began = Instant::now();
    let end = began + Duration::from_secs_f64(seconds);
    let mut tasks = JoinSet::new();
    for mut stream in open {
        tasks.spawn(async move {
            let piece = vec![0; PIECE];
            while Instant::now() < end {
                timeout_at((end + PATIENCE).into(), stream.write_all(&piece)).await??;
            }
            stream.shutdown().await?;
            anyhow::Ok(timeout(PATIENCE, stream.read_u64()).await??)
        });
    }
    let mut bytes = 0;
    while let Some(count) = tasks.join_next().await {
        bytes += count??;
    }
    Ok((bytes, began.elapsed().as_secs_f64()))
}
