//! A session that is recorded: begun at the recorder before the API server hears of it, and carried with every byte read before it goes on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::cast::{Header, Kubernetes};
use super::upload::{self, Upload, UploadError};
use super::{From, Malformed, Recorder};
use crate::caller::Caller;
use crate::gate::TerminalKind;
use crate::request_info::{self, RequestInfo};
use crate::server::Tailnet;
use crate::upgrade::Spoken;

/// Longest command in a header.
const MAX_COMMAND: usize = 16 * 1024;
/// Bytes of one direction that are on their way.
const BUFFER: usize = 16 * 1024;
/// A session over which nothing comes for so long has been forgotten: the API server ends those after four hours.
const IDLE: Duration = Duration::from_secs(4 * 3600 + 60);
/// Time to tell a client why its session ends.
const FAREWELL: Duration = Duration::from_secs(1);

/// A recording that has begun, of a session that has not.
pub(crate) struct Recording {
    upload: Upload,
    began: Instant,
    required: bool,
    terminal: bool,
}

/// How a recorded session ended.
pub(crate) struct Ended {
    /// Bytes from the API server.
    pub(crate) bytes: u64,
    /// What whoever reads the audit log should know.
    pub(crate) notes: Vec<String>,
}

/// Why a session ended before its time.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the session broke off: {0}")]
    Io(#[from] std::io::Error),
    #[error("nothing was said for too long")]
    Idle,
    #[error("the session had to be recorded, and the recording has ended: {0}")]
    Unrecorded(String),
}

/// Begins the recording of a session at one of the caller's recorders.
///
/// # Errors
/// When none takes it.
pub(crate) async fn begin(
    tailnet: &Arc<dyn Tailnet>,
    caller: &Caller,
    kind: TerminalKind,
    info: &RequestInfo,
    query: &str,
    required: bool,
) -> Result<Recording, UploadError> {
    let terminal = request_info::is_set(query, "tty");
    let header = header(caller, kind, info, query, terminal);
    let upload = upload::begin(tailnet, &caller.grant.recorders, header.line()).await?;
    Ok(Recording {
        upload,
        began: Instant::now(),
        required,
        terminal,
    })
}

fn header(caller: &Caller, kind: TerminalKind, info: &RequestInfo, query: &str, terminal: bool) -> Header {
    let (width, height) = Header::size(terminal);
    let values = |name: &'static str| {
        url::form_urlencoded::parse(query.as_bytes())
            .filter(move |(key, _)| key == name)
            .map(|(_, value)| value.into_owned())
    };
    let mut command = values("command").collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = command.char_indices().find(|(at, _)| *at >= MAX_COMMAND) {
        command.truncate(end);
    }
    let person = caller.tags.is_empty();
    Header {
        version: 2,
        width,
        height,
        timestamp: Timestamp::now().as_second(),
        command,
        src_node: caller.device.clone(),
        src_node_id: caller.device_id.clone(),
        src_node_tags: caller.tags.clone(),
        src_node_user_id: person.then_some(caller.user_id),
        src_node_user: if person {
            caller.user.clone()
        } else {
            String::new()
        },
        env: None,
        ssh_user: "",
        local_user: "",
        connection_id: String::new(),
        kubernetes: Kubernetes {
            pod_name: info.name.clone(),
            namespace: info.namespace.clone(),
            container: values("container").next().unwrap_or_default(),
            session_type: kind.as_str(),
        },
    }
}

impl Recording {
    /// Where it is stored.
    pub(crate) fn place(&self) -> SocketAddr {
        self.upload.recorder()
    }

    /// Carries the session to its end. `cut`: the caller may have it no more.
    pub(crate) async fn carry(
        self,
        client: impl AsyncRead + AsyncWrite,
        server: impl AsyncRead + AsyncWrite,
        spoken: &Spoken,
        cut: CancellationToken,
    ) -> Ended {
        let version = spoken.version.as_deref();
        let (mut from_client, mut to_client) = split(client);
        let (mut from_server, mut to_server) = split(server);
        let failure = self.upload.failure();
        let required = self.required;
        let live = Mutex::new(Live {
            recorder: Recorder::new(spoken.websocket, version, self.terminal),
            upload: Some(self.upload),
            began: self.began,
            required,
            notes: Vec::new(),
        });
        let (moved, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        let result = {
            let up = pump(
                From::Client,
                &mut from_client,
                &mut to_server,
                &live,
                &moved,
                None,
            );
            let down = pump(
                From::Server,
                &mut from_server,
                &mut to_client,
                &live,
                &moved,
                Some(&bytes),
            );
            tokio::select! {
                done = async { tokio::try_join!(up, down) } => done.map(drop),
                error = failure, if required => Err(Broken::Unrecorded(error.to_string())),
                () = cut.cancelled() => Ok(()),
            }
        };
        let mut live = live.into_inner();
        if let Err(broken) = &result {
            if let Broken::Unrecorded(_) = broken
                && let Some(words) = live.recorder.farewell(&farewell(version, &broken.to_string()))
            {
                // A client that does not listen is cut off all the same.
                let telling = async {
                    to_client.write_all(&words).await?;
                    to_client.shutdown().await
                };
                let _ = timeout(FAREWELL, telling).await;
            }
            live.notes.push(broken.to_string());
        }
        drop((from_client, to_client, from_server, to_server));
        live.finish().await;
        Ended {
            bytes: bytes.into_inner(),
            notes: live.notes,
        }
    }
}

/// Why a session ends, as its error stream says it: a `Status` from version 4 of the protocol on.
fn farewell(chosen: Option<&str>, why: &str) -> Vec<u8> {
    let version = chosen.and_then(|chosen| chosen.trim_start_matches("base64.").strip_prefix('v'));
    if version.is_some_and(|version| version.starts_with(['4', '5'])) {
        crate::refusal::status_body(http::StatusCode::INTERNAL_SERVER_ERROR, "InternalError", why).to_vec()
    } else {
        why.as_bytes().to_vec()
    }
}

/// A recording under way.
struct Live {
    recorder: Recorder,
    /// Gone when the session goes on without.
    upload: Option<Upload>,
    began: Instant,
    required: bool,
    notes: Vec<String>,
}

impl Live {
    /// Records bytes that are about to go on.
    async fn record(&mut self, from: From, bytes: &[u8]) -> Result<(), Broken> {
        let Some(upload) = &mut self.upload else {
            return Ok(());
        };
        let why = match self.recorder.feed(from, bytes, self.began.elapsed()) {
            Ok(lines) => match upload.send(lines).await {
                Ok(()) => return Ok(()),
                Err(error) => error.to_string(),
            },
            Err(Malformed(why)) => why.to_owned(),
        };
        if self.required {
            return Err(Broken::Unrecorded(why));
        }
        self.upload = None;
        self.notes
            .push(format!("the session is not recorded from here on: {why}"));
        Ok(())
    }

    async fn finish(&mut self) {
        let Some(mut upload) = self.upload.take() else {
            return;
        };
        let lines = self.recorder.finish();
        let finished = match upload.send(lines).await {
            Ok(()) => upload.finish().await,
            Err(error) => Err(error),
        };
        if let Err(error) = finished {
            self.notes
                .push(format!("the end of the recording may be missing: {error}"));
        }
    }
}

/// Carries one direction to its end. A byte is recorded before it goes on.
async fn pump(
    from: From,
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    live: &Mutex<Live>,
    moved: &AtomicU64,
    count: Option<&AtomicU64>,
) -> Result<(), Broken> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let before = moved.load(Ordering::Relaxed);
        let length = match timeout(IDLE, reader.read(&mut buffer)).await {
            Ok(read) => read?,
            Err(_) if moved.load(Ordering::Relaxed) != before => continue,
            Err(_) => return Err(Broken::Idle),
        };
        if length == 0 {
            return Ok(writer.shutdown().await?);
        }
        moved.fetch_add(1, Ordering::Relaxed);
        if let Some(count) = count {
            count.fetch_add(length as u64, Ordering::Relaxed);
        }
        live.lock().await.record(from, &buffer[..length]).await?;
        writer.write_all(&buffer[..length]).await?;
        writer.flush().await?;
    }
}
