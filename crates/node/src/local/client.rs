//! Asks a running node.

use std::io;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::{Answer, Kind, MAX_ANSWER, Pong, Question, StatusReport};

/// A running node could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// No node listens there.
    #[error(
        "no node answers at {socket}; start `tailwharf node`, or give the socket of the one that runs with --socket"
    )]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// What failed.
        #[source]
        source: io::Error,
    },
    /// The connection to the node failed.
    #[error("the node did not answer")]
    Io(#[from] io::Error),
    /// The node and this program do not speak the same language.
    #[error("the node's answer cannot be read; it runs another version")]
    Version,
    /// The node says why not.
    #[error("{0}")]
    Failed(String),
}

/// Asks how a node and its peers are.
///
/// # Errors
/// When no node answers at `socket`.
pub async fn ask_status(socket: &Path) -> Result<StatusReport, LocalError> {
    match ask(socket, &Question::Status).await? {
        Answer::Status(report) => Ok(*report),
        Answer::Pong(_) | Answer::Failed(_) => Err(LocalError::Version),
    }
}

/// Lets a node ping a peer, which is named by its name or address on the tailnet.
///
/// # Errors
/// When no node answers at `socket`, there is no such peer, or it does not answer within 5 s.
pub async fn ask_ping(socket: &Path, peer: &str, kind: Kind) -> Result<Pong, LocalError> {
    let question = Question::Ping {
        peer: peer.to_owned(),
        kind,
    };
    match ask(socket, &question).await? {
        Answer::Pong(pong) => Ok(pong),
        Answer::Failed(why) => Err(LocalError::Failed(why)),
        Answer::Status(_) => Err(LocalError::Version),
    }
}

async fn ask(socket: &Path, question: &Question) -> Result<Answer, LocalError> {
    let mut stream = UnixStream::connect(socket)
        .await
        .map_err(|source| LocalError::Connect {
            socket: socket.to_owned(),
            source,
        })?;
    let mut line = serde_json::to_vec(question).map_err(|_| LocalError::Version)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    serde_json::from_slice(&answer).map_err(|_| LocalError::Version)
}
