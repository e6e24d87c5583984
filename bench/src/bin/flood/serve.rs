//! The other side: what a connection is for is told by its first byte.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::datagrams;

/// The client sends; after [`END`] the count of bytes goes back. A proxy between the two may know no half-closed connections.
pub(crate) const SINK: u8 = b'>';
/// The last byte of what a client sends; all others are zero.
pub(crate) const END: u8 = b'!';
/// The client receives until it closes.
pub(crate) const SOURCE: u8 = b'<';
/// Each byte comes back.
pub(crate) const ECHO: u8 = b'=';
/// A byte comes back, and the connection is closed.
pub(crate) const CLOSE: u8 = b'.';
/// Nothing happens.
pub(crate) const IDLE: u8 = b'_';
/// How many datagrams of a session came.
pub(crate) const COUNT: u8 = b'#';

/// How much is read or written at once.
pub(crate) const PIECE: usize = 256 * 1024;

/// Datagrams that were received, by the session that their first bytes name.
pub(crate) type Counts = Arc<Mutex<HashMap<[u8; 8], u64>>>;

/// Serves until the process is ended.
pub(crate) async fn run(address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address).await?;
    let socket = UdpSocket::bind(address)?;
    let counts = Counts::default();
    std::thread::spawn({
        let counts = counts.clone();
        move || datagrams::count(&socket, &counts)
    });
    println!("{{}}");
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let counts = counts.clone();
        // A peer that goes away ends its own connection only.
        tokio::spawn(async move { serve(stream, &counts).await });
    }
}

async fn serve(mut stream: TcpStream, counts: &Counts) -> io::Result<()> {
    stream.set_nodelay(true)?;
    match stream.read_u8().await? {
        SINK => {
            let mut room = vec![0; PIECE];
            let mut count = 0;
            loop {
                let len = stream.read(&mut room).await?;
                count += len as u64;
                match room[..len].last() {
                    Some(&END) => break stream.write_u64(count).await,
                    Some(_) => {}
                    None => break Err(io::ErrorKind::UnexpectedEof.into()),
                }
            }
        }
        SOURCE => {
            let piece = vec![0; PIECE];
            loop {
                stream.write_all(&piece).await?;
            }
        }
        ECHO => {
            let mut room = [0; 4096];
            loop {
                match stream.read(&mut room).await? {
                    0 => break Ok(()),
                    len => stream.write_all(&room[..len]).await?,
                }
            }
        }
        CLOSE => stream.write_all(&[CLOSE]).await,
        COUNT => {
            let mut session = [0; 8];
            stream.read_exact(&mut session).await?;
            let count = counts
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&session);
            stream.write_u64(count.unwrap_or_default()).await
        }
        _ => stream.read_u8().await.map(drop),
    }
}
