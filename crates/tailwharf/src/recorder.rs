//! `tailwharf recorder`: recordings of sessions, taken on a device of the tailnet, listed and played.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use tailwharf_node::run::{Protocol, Serve};
use tailwharf_recorder::{Entry, Limits, Pace, Store, play, serve};
use tokio::net::TcpListener;
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
            // The device leads its port here, so that only the tailnet reaches it.
            let listener = TcpListener::bind(("127.0.0.1", 0))
                .await
                .context("cannot listen on this machine")?;
            let here = listener.local_addr()?;
            let mut node = settings::node(args.node)?;
            node.serves.push(Serve {
                port: PORT,
                protocol: Protocol::Tcp,
                host: here.ip().to_string(),
                target_port: here.port(),
            });
            let recording = tokio::spawn(serve(listener, store, stop.clone()));
            let ran = tailwharf_node::run::run(node, stop.clone()).await;
            stop.cancel();
            recording.await.context("the recorder failed")?;
            ran?;
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
