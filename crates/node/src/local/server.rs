//! Answers those who ask at the socket.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{Answer, MAX_QUESTION, Question};
use crate::node::Node;

/// How many may ask at the same time, and how long one may take.
const MAX_CLIENTS: usize = 16;
const PATIENCE: Duration = Duration::from_secs(10);

/// A socket that only the user of this process, and root, may use. The file goes with it.
#[derive(Debug)]
pub(crate) struct Server {
    listener: UnixListener,
    path: PathBuf,
    /// Whose process this is.
    owner: u32,
}

impl Server {
    /// Listens at `path`. What a process that is gone has left there is removed.
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_dead(path) => {
                fs::remove_file(path)?;
                UnixListener::bind(path)?
            }
            bound => bound?,
        };
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        Ok(Self {
            listener,
            owner: fs::metadata(path)?.uid(),
            path: path.to_owned(),
        })
    }

    /// Answers until it is dropped.
    pub(crate) async fn run(self, node: Arc<Node>) {
        let places = Arc::new(Semaphore::new(MAX_CLIENTS));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else {
                return;
            };
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the local socket does not accept");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            // Between its making and the change of its permissions, the file was open to others.
            let is_ours = stream
                .peer_cred()
                .is_ok_and(|peer| peer.uid() == self.owner || peer.uid() == 0);
            if is_ours {
                let node = node.clone();
                tokio::spawn(async move {
                    if let Ok(Err(error)) = timeout(PATIENCE, serve(stream, &node)).await {
                        tracing::debug!(%error, "a question at the local socket was not answered");
                    }
                    drop(place);
                });
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether nobody listens at a socket any more.
fn is_dead(path: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(path)
        .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

async fn serve(stream: UnixStream, node: &Node) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = Vec::new();
    BufReader::new(read.take(MAX_QUESTION))
        .read_until(b'\n', &mut line)
        .await?;
    let answer = match serde_json::from_slice(&line) {
        Ok(Question::Status) => Answer::Status(Box::new(node.report())),
        Ok(Question::Ping { peer, kind }) => match node.ping(&peer, kind).await {
            Ok(pong) => Answer::Pong(pong),
            Err(error) => Answer::Failed(error.to_string()),
        },
        Err(_) => Answer::Failed("the question cannot be read; the node runs another version".to_owned()),
    };
    write.write_all(&serde_json::to_vec(&answer)?).await?;
    write.shutdown().await
}
