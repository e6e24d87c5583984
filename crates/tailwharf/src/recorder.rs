//! `tailwharf recorder`: recordings of sessions, taken on a device of the tailnet, listed and played.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::stream::unfold;
use tailwharf_node::{Node, TailnetNode as _};
use tailwharf_recorder::{Entry, Limits, Pace, SealKey, Store, Verdict, play, serve};
use tokio_util::sync::CancellationToken;

use crate::args::{RecorderArgs, RecorderCommand};
use crate::settings;

/// The port of recorders on the tailnet.
const PORT: u16 = 80;

pub(crate) async fn run(args: RecorderArgs, stop: CancellationToken) -> Result<ExitCode> {
    let limits = Limits {
        recording: args.max_size << 20,
        ..Limits::default()
    };
    let store = Store::open(&args.folder, limits)?;
    match args.command {
        Some(RecorderCommand::Ls) => {
            let mut out = io::stdout().lock();
            for entry in store.list()? {
                writeln!(out, "{}", line(&entry))?;
            }
        }
        Some(RecorderCommand::Verify { recordings, key }) => {
            let mut names = recordings;
            if names.is_empty() {
                names = store.list()?.into_iter().map(|entry| entry.name).collect();
            }
            let mut whole = true;
            let mut out = io::stdout().lock();
            for name in names {
                let verdict = store.verify(&name, &key)?;
                whole &= verdict == Verdict::Whole;
                writeln!(out, "{name}  {}", verdict.text())?;
            }
            if !whole {
                return Ok(ExitCode::FAILURE);
            }
        }
        Some(RecorderCommand::Play {
            recording,
            speed,
            longest_pause,
        }) => {
            let pace = Pace {
                speed,
                longest: Duration::from_secs(longest_pause),
            };
            let recording = store.read(&recording)?;
            #[expect(clippy::disallowed_methods, reason = "a recording is played in its own time")]
            let pause = std::thread::sleep;
            tokio::task::spawn_blocking(move || play(recording, &mut io::stdout(), pace, pause)).await??;
        }
        None => {
            let store = match &args.seal_key {
                None => store,
                Some(path) => {
                    let key = SealKey::open(path)?;
                    tracing::info!(key = %key.public(), "complete recordings are sealed; `tailwharf recorder verify --key` takes this key");
                    store.sealing(key)
                }
            };
            let ended = stop.clone();
            let record = |node: Node| async move {
                let listener = node
                    .listen_tcp(PORT)
                    .context("the device's port cannot be used")?;
                let connections = unfold(listener, |listener| async move {
                    let (stream, _) = listener.accept().await.ok()?;
                    Some((stream, listener))
                });
                serve(connections, store, ended).await;
                Ok(())
            };
            tailwharf_node::run::run_beside(settings::node(args.node)?, record, stop).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A recording in one line: name, size, who, where, what.
fn line(entry: &Entry) -> String {
    let header = &entry.header;
    let who = if header.src_node_user.is_empty() {
        &header.src_node
    } else {
        &header.src_node_user
    };
    let place = &header.kubernetes;
    let text = format!(
        "{}  {:>9}  {who}  {}/{}  {} {}",
        entry.name, entry.bytes, place.namespace, place.pod_name, place.session_type, header.command
    );
    text.chars().filter(|c| !c.is_control()).collect()
}
