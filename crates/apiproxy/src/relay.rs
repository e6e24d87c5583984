//! Bytes both ways after an upgrade: each end is passed on alone. Those of a session that is not recorded are not looked at, and no buffer is
//! held while nothing comes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tailwharf_node::splice::{Buffers, IdleLimits, Traffic, splice};

use crate::audit::Record;
use crate::open::OpenStream;
use crate::recording::Recording;
use crate::upgrade::Spoken;

/// A session over which nothing comes for so long has been forgotten: the API server ends those after four hours.
const IDLE: IdleLimits = IdleLimits {
    open: Duration::from_secs(4 * 3600 + 60),
    half_closed: Duration::from_secs(4 * 3600 + 60),
};

/// Carries one session to its end.
pub(crate) async fn carry(
    client: Upgraded,
    server: Upgraded,
    buffers: &Arc<Buffers>,
    open: OpenStream,
    mut record: Record,
) {
    let traffic = Traffic::default();
    let cut = open.cut();
    let carried = splice(
        TokioIo::new(client),
        TokioIo::new(server),
        buffers,
        &traffic,
        IDLE,
    );
    tokio::select! {
        carried = carried => if let Err(error) = carried {
            record.note(&format!("the session broke off: {error}"));
        },
        () = cut.cancelled() => record.note(&format!("the session was ended: {}", open.why())),
    }
    record.sent(traffic.from_backend.load(Ordering::Relaxed));
    record.complete();
}

/// Carries one session to its end, and records it.
pub(crate) async fn record(
    recording: Recording,
    client: Upgraded,
    server: Upgraded,
    spoken: Spoken,
    open: OpenStream,
    mut record: Record,
) {
    let (client, server) = (TokioIo::new(client), TokioIo::new(server));
    let ended = recording.carry(client, server, &spoken, open.cut()).await;
    if open.cut().is_cancelled() {
        record.note(&format!("the session was ended: {}", open.why()));
    }
    for note in &ended.notes {
        record.note(note);
    }
    record.sent(ended.bytes);
    record.complete();
}
