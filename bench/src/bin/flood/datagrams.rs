//! UDP, in batches, so that the load costs little beside what it measures.

use std::io::{IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg, setsockopt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::serve::{COUNT, Counts};

const BATCH: usize = 32;
const ROOM: usize = 2048;
/// What was sent shortly before the end may still be on its way.
const SETTLE: Duration = Duration::from_millis(300);

/// Counts datagrams by session, for ever.
pub(crate) fn count(socket: &UdpSocket, counts: &Counts) {
    // Losses in this program are not those of what it measures.
    let _ = setsockopt(socket, RcvBufForce, &(8 << 20));
    let mut room = vec![0; BATCH * ROOM];
    loop {
        let mut slices: Vec<[IoSliceMut<'_>; 1]> = room
            .chunks_mut(ROOM)
            .map(|chunk| [IoSliceMut::new(chunk)])
            .collect();
        let mut headers = MultiHeaders::<()>::preallocate(BATCH, None);
        let flags = MsgFlags::MSG_WAITFORONE;
        let Ok(received) = recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), flags, None) else {
            continue;
        };
        let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
        for message in received {
            let first = message.iovs().next().and_then(<[u8]>::first_chunk::<8>);
            if let Some(session) = first.filter(|_| message.bytes >= 8) {
                *counts.entry(*session).or_default() += 1;
            }
        }
    }
}

/// Sends datagrams of `size` bytes at `rate` a second, and asks how many came.
pub(crate) async fn send(to: SocketAddr, size: usize, rate: f64, seconds: f64) -> Result<Value> {
    let mut session = [0; 8];
    getrandom(&mut session)?;
    let mut packet = vec![0; size.max(8)];
    packet[..8].copy_from_slice(&session);
    let sent = tokio::task::spawn_blocking(move || blast(to, &packet, rate, seconds)).await??;
    tokio::time::sleep(SETTLE).await;
    let mut asked = TcpStream::connect(to).await?;
    asked.write_all(&[COUNT]).await?;
    asked.write_all(&session).await?;
    let received = asked.read_u64().await?;
    Ok(json!({"sent": sent, "received": received, "seconds": seconds}))
}

fn getrandom(into: &mut [u8]) -> Result<()> {
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, into)?;
    Ok(())
}

fn blast(to: SocketAddr, packet: &[u8], rate: f64, seconds: f64) -> Result<u64> {
    let socket = UdpSocket::bind(match to {
        SocketAddr::V4(_) => "0.0.0.0:0",
        SocketAddr::V6(_) => "[::]:0",
    })?;
    socket.connect(to)?;
    let began = Instant::now();
    let mut sent = 0;
    loop {
        let elapsed = began.elapsed().as_secs_f64();
        if elapsed >= seconds {
            return Ok(sent);
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count of packets"
        )]
        let due = ((elapsed * rate) as u64).saturating_sub(sent);
        let due = usize::try_from(due)?.min(BATCH);
        if due == 0 {
            #[expect(clippy::disallowed_methods, reason = "a thread that measures, in no runtime")]
            std::thread::sleep(Duration::from_micros(100));
            continue;
        }
        let slices = vec![[IoSlice::new(packet)]; due];
        let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(due, None);
        let addresses = vec![None; due];
        let flags = MsgFlags::empty();
        // What the kernel does not take is lost, as anywhere else on the way.
        sent += sendmmsg(socket.as_raw_fd(), &mut headers, &slices, &addresses, [], flags)
            .map_or(due as u64, |taken| taken.count() as u64);
    }
}
