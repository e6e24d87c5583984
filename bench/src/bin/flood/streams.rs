//! TCP: bytes, round trips, new and idle connections.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{timeout, timeout_at};

use crate::serve::{CLOSE, ECHO, END, IDLE, PIECE, SINK, SOURCE};

/// A connection that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(5);

async fn open(to: SocketAddr, purpose: u8) -> io::Result<TcpStream> {
    let mut stream = timeout(PATIENCE, TcpStream::connect(to)).await??;
    stream.set_nodelay(true)?;
    stream.write_all(&[purpose]).await?;
    Ok(stream)
}

/// Carries bytes over `count` connections for some time: those that arrived.
pub(crate) async fn stream(to: SocketAddr, way: &str, count: usize, seconds: f64) -> Result<Value> {
    let began = Instant::now();
    let end = began + Duration::from_secs_f64(seconds);
    let mut streams = JoinSet::new();
    for _ in 0..count {
        match way {
            "to" => streams.spawn(send(to, end)),
            "from" => streams.spawn(receive(to, end)),
            _ => bail!("the way is \"to\" or \"from\""),
        };
    }
    let mut bytes = 0;
    while let Some(done) = streams.join_next().await {
        bytes += done??;
    }
    Ok(json!({"bytes": bytes, "seconds": began.elapsed().as_secs_f64()}))
}

async fn send(to: SocketAddr, end: Instant) -> Result<u64> {
    let mut stream = open(to, SINK).await?;
    let piece = vec![0; PIECE];
    while Instant::now() < end {
        if timeout_at((end + PATIENCE).into(), stream.write_all(&piece))
            .await
            .is_err()
        {
            bail!("the stream hangs");
        }
    }
    stream.write_all(&[END]).await?;
    Ok(timeout(PATIENCE, stream.read_u64()).await??)
}

async fn receive(to: SocketAddr, end: Instant) -> Result<u64> {
    let mut stream = open(to, SOURCE).await?;
    let mut room = vec![0; PIECE];
    let mut bytes = 0;
    while let Ok(read) = timeout_at(end.into(), stream.read(&mut room)).await {
        bytes += read? as u64;
    }
    Ok(bytes)
}

/// Round trips of one byte, in microseconds.
pub(crate) async fn answer(to: SocketAddr, seconds: f64) -> Result<Value> {
    let mut stream = open(to, ECHO).await?;
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let mut times = Vec::new();
    while Instant::now() < end {
        let began = Instant::now();
        stream.write_all(&[0]).await?;
        timeout(PATIENCE, stream.read_u8()).await??;
        times.push(began.elapsed().as_secs_f64() * 1e6);
        // Trips that follow each other at once would measure a busy path.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    times.sort_by(f64::total_cmp);
    let share = |share: usize| times.get((times.len() * share / 100).min(times.len().saturating_sub(1)));
    Ok(json!({"count": times.len(), "p50": share(50), "p99": share(99)}))
}

/// Opens connections that the other side closes, `at_once` at the same time.
pub(crate) async fn connect(to: SocketAddr, at_once: usize, seconds: f64) -> Result<Value> {
    let began = Instant::now();
    let end = began + Duration::from_secs_f64(seconds);
    let (done, hung, failed) = Default::default();
    let counts: Arc<[AtomicU64; 3]> = Arc::new([done, hung, failed]);
    let mut workers = JoinSet::new();
    for _ in 0..at_once {
        let counts = counts.clone();
        workers.spawn(async move {
            while Instant::now() < end {
                let outcome = match timeout(PATIENCE, once(to)).await {
                    Ok(Ok(())) => 0,
                    Err(_) => 1,
                    Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut => 1,
                    Ok(Err(_)) => 2,
                };
                counts[outcome].fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    while workers.join_next().await.is_some() {}
    let count = |at: usize| counts[at].load(Ordering::Relaxed);
    Ok(
        json!({"done": count(0), "hung": count(1), "failed": count(2), "seconds": began.elapsed().as_secs_f64()}),
    )
}

async fn once(to: SocketAddr) -> io::Result<()> {
    let mut stream = open(to, CLOSE).await?;
    stream.read_u8().await?;
    match stream.read_u8().await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Keeps `count` connections open until the process is ended.
pub(crate) async fn idle(to: SocketAddr, count: usize) -> Result<()> {
    let mut streams = Vec::with_capacity(count);
    while streams.len() < count {
        // A burst that a listener cannot queue would be repeated seconds later.
        let mut batch = JoinSet::new();
        for _ in 0..(count - streams.len()).min(50) {
            batch.spawn(open(to, IDLE));
        }
        while let Some(stream) = batch.join_next().await {
            streams.push(stream??);
        }
    }
    println!("{{}}");
    std::future::pending::<()>().await;
    drop(streams);
    Ok(())
}
