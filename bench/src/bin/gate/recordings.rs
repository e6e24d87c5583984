//! A recorder, and what it has recorded.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result};
use futures::stream::unfold;
use serde::Deserialize;
use tailwharf_recorder::{Limits, Store};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{pod, serving, speech};

pub(crate) async fn serve(dir: &Path) -> Result<()> {
    let store = Store::open(dir, Limits::default())?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    serving(listener.local_addr()?);
    let connections = unfold(listener, |listener| async move {
        let (stream, _) = listener.accept().await.ok()?;
        Some((stream, listener))
    });
    tailwharf_recorder::serve(connections, store, CancellationToken::new()).await;
    Ok(())
}

/// Time, kind and text of what happened.
#[derive(Deserialize)]
struct Event(
    #[expect(dead_code, reason = "the place has to be read")] f64,
    String,
    String,
);

/// Bytes of the first `count` sessions that no recording has at their place.
pub(crate) fn missing(dir: &Path, count: usize) -> Result<usize> {
    let store = Store::open(dir, Limits::default())?;
    let recordings = store.list()?;
    let mut missing = 0;
    for number in 0..count {
        let expected = speech(&pod(number));
        let recording = recordings
            .iter()
            .find(|entry| entry.header.kubernetes.pod_name == pod(number));
        let Some(recording) = recording else {
            missing += expected.len();
            continue;
        };
        let text = fs::read_to_string(dir.join(format!("{}.cast", recording.name)))?;
        let mut said = Vec::new();
        for line in text.lines().skip(1) {
            let event: Event = serde_json::from_str(line).with_context(|| line.to_owned())?;
            if event.1 == "o" {
                said.extend_from_slice(event.2.as_bytes());
            }
        }
        let same = expected
            .iter()
            .zip(&said)
            .filter(|(expected, said)| expected == said)
            .count();
        missing += expected.len() - same;
    }
    Ok(missing)
}
