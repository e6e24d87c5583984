//! Slow clients, in virtual time.

use std::net::Ipv4Addr;

use tailwharf_wire::key::NodePrivate;
use tokio::io::{DuplexStream, duplex};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::*;
use crate::server::Limits;

/// A connection whose other end is in the hand of the test.
struct Held {
    stream: DuplexStream,
    received: BytesMut,
    served: JoinHandle<Result<(), Ended>>,
    shared: Arc<Shared>,
    key: NodePrivate,
}

impl Held {
    fn new() -> Self {
        let shared = Arc::new(Shared::new(
            NodePrivate::generate(&mut OsRng),
            None,
            Limits::default(),
        ));
        Self::on(shared)
    }

    fn on(shared: Arc<Shared>) -> Self {
        // Room for less than one of the larger packets.
        let (stream, other) = duplex(16 * 1024);
        let relay = shared.clone();
        let served =
            tokio::spawn(async move { serve(other, Ipv4Addr::LOCALHOST.into(), Bytes::new(), &relay).await });
        let key = NodePrivate::generate(&mut OsRng);
        Self {
            stream,
            received: BytesMut::new(),
            served,
            shared,
            key,
        }
    }

    async fn connected(can_ack_pings: bool) -> Self {
        let mut held = Self::new();
        held.prove(can_ack_pings).await;
        held
    }

    async fn prove(&mut self, can_ack_pings: bool) {
        let relay = self.shared.key().public();
        assert_eq!(self.next().await, Frame::ServerKey(relay));
        let info = ClientInfo {
            version: PROTOCOL_VERSION,
            can_ack_pings,
            ..ClientInfo::default()
        };
        self.send(&info.seal(&self.key, &relay, &mut OsRng).unwrap())
            .await;
        assert!(matches!(self.next().await, Frame::ServerInfo { .. }));
    }

    async fn send(&mut self, frame: &Frame) {
        let mut out = BytesMut::new();
        frame.encode(&mut out);
        self.stream.write_all(&out).await.unwrap();
    }

    async fn next(&mut self) -> Frame {
        loop {
            if let Some(frame) = Frame::decode(&mut self.received).unwrap() {
                return frame;
            }
            assert_ne!(self.stream.read_buf(&mut self.received).await.unwrap(), 0);
        }
    }

    async fn end(self) -> Ended {
        self.served.await.unwrap().unwrap_err()
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_proves_no_key_is_closed() {
    let start = Instant::now();
    let mut held = Held::new();
    held.stream.write_all(&[2, 0]).await.unwrap();
    assert!(matches!(held.end().await, Ended::HandshakeTimeout));
    assert_eq!(start.elapsed(), HANDSHAKE_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn a_frame_that_is_not_finished_ends_the_connection() {
    let mut held = Held::connected(true).await;
    let start = Instant::now();
    // A ping that comes too slowly, however steadily.
    for byte in [0x12, 0, 0, 0, 8, 1, 2] {
        held.stream.write_all(&[byte]).await.unwrap();
        tokio::time::sleep(FRAME_TIMEOUT / 6).await;
    }
    assert!(matches!(held.end().await, Ended::SlowFrame));
    assert!(start.elapsed() < FRAME_TIMEOUT * 2);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_closed() {
    let held = Held::connected(true).await;
    let start = Instant::now();
    let mut sender = Held::on(held.shared.clone());
    sender.prove(true).await;
    sender
        .send(&Frame::SendPacket {
            to: held.key.public(),
            packet: vec![0; 60_000].into(),
        })
        .await;
    assert!(matches!(held.end().await, Ended::SlowReader));
    assert_eq!(start.elapsed(), WRITE_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn an_idle_client_stays_and_hears_from_the_relay() {
    let mut held = Held::connected(false).await;
    let start = Instant::now();
    for _ in 0..100 {
        assert_eq!(held.next().await, Frame::KeepAlive);
    }
    assert!(start.elapsed() > Duration::from_secs(6000));
    drop(held.stream);
    assert!(held.served.await.unwrap().is_ok());
    assert_eq!(held.shared.metrics().clients, 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_promised_to_answer_pings_and_does_not_is_closed() {
    let mut held = Held::connected(true).await;
    for _ in 0..3 {
        let Frame::Ping(data) = held.next().await else {
            panic!("no ping")
        };
        held.send(&Frame::Pong(data)).await;
    }
    let start = Instant::now();
    assert!(matches!(held.end().await, Ended::Silent));
    assert!(start.elapsed() < Duration::from_secs(200));
}
