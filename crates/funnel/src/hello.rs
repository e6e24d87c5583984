//! The first message of a TLS client: for which name it comes.

use std::io;

use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The most bytes that a client may send before it has said for which name it comes. Browsers send about 2 KiB.
const HELLO_LIMIT: usize = 16 * 1024;

/// Why the name is not known.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    /// The connection broke off.
    #[error("the connection ended before it said for which name it is")]
    Io(#[from] io::Error),
    /// It is not TLS.
    #[error("the client does not speak TLS")]
    NotTls(#[source] rustls::Error),
    /// It is TLS without a name.
    #[error("the client names no server")]
    NoName,
    /// It goes on and on.
    #[error("the first message is longer than {HELLO_LIMIT} bytes")]
    TooLong,
}

/// Reads the first message of a TLS client. Gives the server name in lower case, and all bytes that were read, to be passed on.
///
/// # Errors
/// When there is no name. The caller bounds the time.
pub async fn read_hello<S: AsyncRead + Unpin>(socket: &mut S) -> Result<(String, Vec<u8>), HelloError> {
    let mut acceptor = Acceptor::default();
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let count = socket.read(&mut chunk).await?;
        if count == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        bytes.extend_from_slice(&chunk[..count]);
        let mut fresh = &chunk[..count];
        while !fresh.is_empty() {
            acceptor.read_tls(&mut fresh)?;
            match acceptor.accept() {
                Ok(Some(accepted)) => {
                    let hello = accepted.client_hello();
                    let name = hello.server_name().ok_or(HelloError::NoName)?;
                    return Ok((name.to_ascii_lowercase(), bytes));
                }
                Ok(None) => {}
                Err((error, _)) => return Err(HelloError::NotTls(error)),
            }
        }
        if bytes.len() >= HELLO_LIMIT {
            return Err(HelloError::TooLong);
        }
    }
}
