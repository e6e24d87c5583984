//! The API-server proxy on loopback, and what stands on either side of it, for the bench.
//!
//! ```text
//! gate api DIR SESSIONS         an API server; its sessions say something once there are so many
//! gate proxy DIR API [RECORDER] the proxy in front of it; every session is recorded, if a recorder is named
//! gate recorder DIR             a recorder that keeps its recordings in DIR
//! gate watches ADDRESS ROOTS N  keeps N watches open until it is ended, 500 on a connection
//! gate sessions ADDRESS ROOTS N opens N sessions at once, and prints how many bytes they said
//! gate missing DIR N            how many bytes of N sessions are not in the recordings of DIR
//! ```
//!
//! Certificates are `api.pem` and `proxy.pem` in DIR. Who serves prints its address, all others what they measured, as one JSON object.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "what it prints is its result")]

mod api;
mod clients;
mod proxy;
mod recordings;

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Result, bail};
use serde_json::{Value, json};

/// The allocator of `tailwharf`, so that memory means the same.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    let _ = nix::sys::prctl::set_thp_disable(true);
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["api", dir, sessions] => api::serve(Path::new(dir), sessions.parse()?).await,
        ["proxy", dir, api] => proxy::serve(Path::new(dir), api.parse()?, None).await,
        ["proxy", dir, api, recorder] => {
            proxy::serve(Path::new(dir), api.parse()?, Some(recorder.parse()?)).await
        }
        ["recorder", dir] => recordings::serve(Path::new(dir)).await,
        ["watches", address, roots, count] => {
            let _open = clients::watches(address.parse()?, Path::new(roots), count.parse()?).await?;
            say(&json!({}));
            std::future::pending().await
        }
        ["sessions", address, roots, count] => {
            say(&clients::sessions(address.parse()?, Path::new(roots), count.parse()?).await?);
            Ok(())
        }
        ["missing", dir, count] => {
            say(&json!({"missing": recordings::missing(Path::new(dir), count.parse()?)?}));
            Ok(())
        }
        _ => bail!("the words are not understood; see the beginning of this program"),
    }
}

fn say(result: &Value) {
    println!("{result}");
}

fn serving(address: SocketAddr) {
    say(&json!({"address": address}));
}

/// What the session of a pod says: no two pods say the same.
fn speech(pod: &str) -> Vec<u8> {
    let lines = (0..2_000).map(|number| format!("{pod} says line {number} of what it has to say\n"));
    lines.collect::<String>().into_bytes()
}

/// The pod of a session.
fn pod(number: usize) -> String {
    format!("pod-{number}")
}
