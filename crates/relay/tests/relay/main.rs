//! The relay on loopback, with a client made of the wire codec.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests, too"
)]

mod harness;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rand::rngs::OsRng;
use tailwharf_relay::{Limits, Rate, Relay, RelayConfig, RelayError};
use tailwharf_wire::derp::{ClientInfo, Frame, PROTOCOL_VERSION, PeerGoneReason};
use tailwharf_wire::key::NodePrivate;
use tailwharf_wire::stun;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::harness::{Client, request, start, until};

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn packets_go_both_ways() {
    let relay = start(|_| {}).await;
    let mut a = Client::connect(&relay.handle).await;
    let mut b = Client::connect(&relay.handle).await;
    for size in [0, 1, 1280, 64 * 1024] {
        let packet = vec![size as u8; size];
        a.packet(b.public(), &packet).await;
        let frame = Frame::RecvPacket {
            from: a.public(),
            packet: packet.clone().into(),
        };
        assert_eq!(b.next().await, Some(frame));
        b.packet(a.public(), &packet).await;
        assert_eq!(
            a.next().await,
            Some(Frame::RecvPacket {
                from: b.public(),
                packet: packet.into()
            })
        );
    }
    let metrics = relay.handle.metrics();
    assert_eq!((metrics.clients, metrics.connections), (2, 2));
    assert_eq!((metrics.carried.packets_in, metrics.carried.packets_out), (8, 8));
}

#[tokio::test]
async fn a_browser_speaks_derp_in_a_web_socket() {
    let relay = start(|_| {}).await;
    let head = "GET /derp HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: derp\r\n\r\n";
    let (head, mut stream, mut received) = request(&relay.handle, head).await;
    let head = head.to_lowercase();
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    assert!(head.contains("sec-websocket-protocol: derp\r\n"), "{head}");
    assert!(
        head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"),
        "{head}"
    );
    while received.len() < 47 {
        let len = timeout(PATIENCE, stream.read_buf(&mut received))
            .await
            .unwrap()
            .unwrap();
        assert_ne!(len, 0);
    }
    // One binary message with the greeting: 5 bytes of frame header, 8 of magic, 32 of key.
    assert_eq!(received.split_to(2)[..], [0x82, 45]);
    assert_eq!(
        Frame::decode(&mut received).unwrap(),
        Some(Frame::ServerKey(relay.handle.key()))
    );
}

#[tokio::test]
async fn frames_that_come_in_pieces_are_put_together() {
    let relay = start(|_| {}).await;
    let mut a = Client::connect(&relay.handle).await;
    let mut b = Client::connect(&relay.handle).await;
    let mut out = BytesMut::new();
    Frame::Ping(*b"12345678").encode(&mut out);
    Frame::SendPacket {
        to: b.public(),
        packet: Bytes::from_static(b"hi"),
    }
    .encode(&mut out);
    for byte in out {
        a.raw(&[byte]).await;
    }
    assert_eq!(a.next().await, Some(Frame::Pong(*b"12345678")));
    assert_eq!(
        b.next().await,
        Some(Frame::RecvPacket {
            from: a.public(),
            packet: Bytes::from_static(b"hi")
        })
    );
}

#[tokio::test]
async fn peers_are_told_who_is_gone() {
    let relay = start(|_| {}).await;
    let mut a = Client::connect(&relay.handle).await;
    let mut b = Client::connect(&relay.handle).await;
    let gone = a.public();
    a.packet(b.public(), b"hi").await;
    assert!(matches!(b.next().await, Some(Frame::RecvPacket { .. })));
    drop(a);
    assert_eq!(
        b.next().await,
        Some(Frame::PeerGone {
            peer: gone,
            reason: PeerGoneReason::Disconnected
        })
    );

    let mut disco = vec![0; 100];
    disco[..6].copy_from_slice(tailwharf_wire::disco::MAGIC);
    b.packet(gone, &disco).await;
    assert_eq!(
        b.next().await,
        Some(Frame::PeerGone {
            peer: gone,
            reason: PeerGoneReason::NotHere
        })
    );
}

#[tokio::test]
async fn a_second_connection_replaces_the_first() {
    let relay = start(|_| {}).await;
    let key = NodePrivate::generate(&mut OsRng);
    let mut first = Client::connect_as(&relay.handle, key.clone()).await;
    let mut second = Client::connect_as(&relay.handle, key).await;
    assert_eq!(first.next().await, None);
    second.settle().await;
    until(&relay.handle, |metrics| {
        metrics.clients == 1 && metrics.connections == 1
    })
    .await;
    assert_eq!(relay.handle.metrics().carried.replaced, 1);
}

#[tokio::test]
async fn only_admitted_nodes_may_use_it() {
    let admitted = NodePrivate::generate(&mut OsRng);
    let public = admitted.public();
    let relay = start(|config| config.admission = Some(Arc::new(move |key| *key == public))).await;
    Client::connect_as(&relay.handle, admitted).await.settle().await;

    let mut stranger = Client::greeted(&relay.handle, NodePrivate::generate(&mut OsRng)).await;
    let info = ClientInfo {
        version: PROTOCOL_VERSION,
        ..ClientInfo::default()
    };
    stranger
        .send(&info.seal(&stranger.key, &relay.handle.key(), &mut OsRng).unwrap())
        .await;
    assert_eq!(stranger.next().await, None);
    assert_eq!(relay.handle.metrics().refused_admission, 1);
}

#[tokio::test]
async fn a_client_must_hold_the_key_that_it_names() {
    let relay = start(|_| {}).await;
    let mut thief = Client::greeted(&relay.handle, NodePrivate::generate(&mut OsRng)).await;
    let info = ClientInfo {
        version: PROTOCOL_VERSION,
        ..ClientInfo::default()
    };
    let Ok(Frame::ClientInfo { sealed, .. }) = info.seal(&thief.key, &relay.handle.key(), &mut OsRng) else {
        panic!("no client info")
    };
    let stolen = NodePrivate::generate(&mut OsRng).public();
    thief.send(&Frame::ClientInfo { key: stolen, sealed }).await;
    assert_eq!(thief.next().await, None);
    until(&relay.handle, |metrics| {
        metrics.faulty == 1 && metrics.connections == 0
    })
    .await;
}

#[tokio::test]
async fn bad_input_ends_its_own_connection_alone() {
    let relay = start(|_| {}).await;
    let mut good = Client::connect(&relay.handle).await;
    let bad_frames: [&[u8]; 4] = [
        // A packet of 4 GiB, a packet that is shorter than a key, a ping of two bytes, a text that is none.
        &[0x04, 0xff, 0xff, 0xff, 0xff],
        &[0x04, 0, 0, 0, 1, 0],
        &[0x12, 0, 0, 0, 2, 0, 0],
        &[0x14, 0, 0, 0, 1, 0xff],
    ];
    for (number, bad) in (1..).zip(bad_frames) {
        let mut client = Client::connect(&relay.handle).await;
        client.raw(bad).await;
        assert_eq!(client.next().await, None, "{bad:?}");
        until(&relay.handle, |metrics| {
            metrics.faulty == number && metrics.connections == 1
        })
        .await;
    }
    let mut unknown = Client::greeted(&relay.handle, NodePrivate::generate(&mut OsRng)).await;
    unknown.send(&Frame::KeepAlive).await;
    assert_eq!(unknown.next().await, None);

    let mut plain = TcpStream::connect(relay.handle.address()).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, plain.read_to_end(&mut rest)).await.unwrap();
    until(&relay.handle, |metrics| metrics.faulty == 6).await;
    good.settle().await;
}

#[tokio::test]
async fn frames_of_other_versions_are_ignored() {
    let relay = start(|_| {}).await;
    let mut client = Client::connect(&relay.handle).await;
    client.raw(&[0x77, 0, 0, 0, 2, 1, 2]).await;
    client.send(&Frame::NotePreferred(true)).await;
    client.settle().await;
    assert_eq!(relay.handle.metrics().homes, 1);
}

#[tokio::test]
async fn a_client_that_does_not_read_loses_packets_and_nobody_waits() {
    let relay = start(|_| {}).await;
    let sleeper = Client::connect(&relay.handle).await;
    let mut sender = Client::connect(&relay.handle).await;
    // More than all buffers between hold.
    let packet = vec![0; 60_000];
    for _ in 0..1000 {
        sender.packet(sleeper.public(), &packet).await;
    }
    sender.settle().await;
    let carried = relay.handle.metrics().carried;
    assert_eq!(carried.packets_in, 1000);
    assert!(carried.dropped_full > 0, "{carried:?}");
}

#[tokio::test]
async fn who_sends_too_fast_is_told_the_rate_and_read_from_slowly() {
    let rate = Rate {
        bytes_per_second: 1_000_000,
        burst: 10_000,
    };
    let relay = start(|config| config.limits.rates.client = Some(rate)).await;
    let mut sender = Client::connect(&relay.handle).await;
    let receiver = Client::connect(&relay.handle).await;
    assert_eq!(sender.info.token_bucket_bytes_per_second, 1_000_000);
    assert_eq!(sender.info.token_bucket_bytes_burst, 10_000);
    for _ in 0..10 {
        sender.packet(receiver.public(), &[0; 10_000]).await;
    }
    sender.settle().await;
    let carried = relay.handle.metrics().carried;
    assert_eq!((carried.packets_in, carried.dropped_full), (10, 0));
    assert!(carried.paced > 0, "{carried:?}");
}

#[tokio::test]
async fn connections_are_limited() {
    let relay = start(|config| {
        config.limits = Limits {
            connections: 10,
            connections_per_source: 2,
            ..Limits::default()
        }
    })
    .await;
    let first = Client::connect(&relay.handle).await;
    let _second = Client::connect(&relay.handle).await;
    let mut third = TcpStream::connect(relay.handle.address()).await.unwrap();
    assert_eq!(
        timeout(PATIENCE, third.read(&mut [0; 1]))
            .await
            .unwrap()
            .unwrap_or(0),
        0
    );
    assert_eq!(relay.handle.metrics().refused_limit, 1);
    drop(first);
    until(&relay.handle, |metrics| metrics.connections == 1).await;
    Client::connect(&relay.handle).await.settle().await;
}

#[tokio::test]
async fn probes_are_answered() {
    let relay = start(|_| {}).await;
    let get = async |path: &str, headers: &str| {
        let head = format!("GET {path} HTTP/1.1\r\nHost: relay\r\n{headers}\r\n");
        request(&relay.handle, &head).await.0.to_lowercase()
    };
    for path in ["/derp/probe", "/derp/latency-check"] {
        let answer = get(path, "").await;
        assert!(answer.starts_with("http/1.1 200 "), "{answer}");
        assert!(answer.contains("access-control-allow-origin: *\r\n"), "{answer}");
    }
    let answer = get("/generate_204", "X-Tailscale-Challenge: ts_relay:1\r\n").await;
    assert!(answer.starts_with("http/1.1 204 "), "{answer}");
    assert!(
        answer.contains("x-tailscale-response: response ts_relay:1\r\n"),
        "{answer}"
    );
    let answer = get("/generate_204", "X-Tailscale-Challenge: <script>\r\n").await;
    assert!(!answer.contains("x-tailscale-response"), "{answer}");
    assert!(get("/derp", "").await.starts_with("http/1.1 426 "));
    assert!(
        get("/derp", "Upgrade: websocket\r\nConnection: Upgrade\r\n")
            .await
            .starts_with("http/1.1 426 ")
    );
    assert!(get("/", "").await.starts_with("http/1.1 404 "));
    let (head, ..) = request(&relay.handle, "HEAD /derp/probe HTTP/1.1\r\nHost: relay\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let (head, ..) = request(&relay.handle, "POST /derp/probe HTTP/1.1\r\nHost: relay\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 405 "), "{head}");
    let long = format!(
        "GET / HTTP/1.1\r\nHost: relay\r\nX: {}\r\n\r\n",
        "x".repeat(100_000)
    );
    let (head, ..) = request(&relay.handle, &long).await;
    assert!(head.starts_with("HTTP/1.1 431 "), "{head}");
}

#[tokio::test]
async fn stun_tells_the_address() {
    for listen in ["127.0.0.1:0", "[::]:0"] {
        let relay = start(|config| config.stun_listen = Some(listen.parse().unwrap())).await;
        let server: SocketAddr = ([127, 0, 0, 1], relay.handle.derp_node().udp_port().unwrap()).into();
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(b"what is this?", server).await.unwrap();
        let tx_id = stun::TxId::generate(&mut OsRng);
        socket.send_to(&stun::request(tx_id), server).await.unwrap();
        let mut answer = [0; 100];
        let len = timeout(PATIENCE, socket.recv(&mut answer))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            stun::parse_response(&answer[..len]),
            Ok((tx_id, socket.local_addr().unwrap()))
        );
        let metrics = relay.handle.metrics();
        assert_eq!((metrics.stun_answered, metrics.stun_ignored), (1, 1));
    }
}

#[tokio::test]
async fn the_node_of_the_map_names_what_runs() {
    let relay = start(|config| config.stun_listen = None).await;
    let node = relay.handle.derp_node();
    assert_eq!(
        (node.name.as_str(), node.host_name.as_str()),
        ("900a", "127.0.0.1")
    );
    assert_eq!((node.ipv4.as_str(), node.ipv6.as_str()), ("127.0.0.1", "none"));
    assert_eq!(node.udp_port(), None);
    assert_eq!(node.tcp_port(), relay.handle.address().port());
    let named = start(|config| config.hostname = "localhost".to_owned()).await;
    assert!(named.handle.derp_node().ipv4.is_empty());
    Client::connect(&named.handle).await.settle().await;
}

#[tokio::test]
async fn a_restart_keeps_key_and_pin_and_ends_connections() {
    let dir = tempfile::tempdir().unwrap();
    let run = async |path: &Path| {
        let stop = CancellationToken::new();
        let handle = Relay::start(RelayConfig::on_loopback(path.to_owned()), stop.clone())
            .await
            .unwrap();
        let mut client = Client::connect(&handle).await;
        client.settle().await;
        stop.cancel();
        timeout(PATIENCE, handle.stopped()).await.unwrap();
        assert_eq!(client.next().await, None);
        (handle.key(), handle.derp_node().cert_name)
    };
    assert_eq!(run(dir.path()).await, run(dir.path()).await);
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let relay = start(|_| {}).await;
    let dir = tempfile::tempdir().unwrap();
    let mut config = RelayConfig::on_loopback(dir.path().to_owned());
    config.listen = relay.handle.address();
    let error = Relay::start(config, CancellationToken::new())
        .await
        .err()
        .unwrap();
    assert!(matches!(error, RelayError::Listen { .. }));
    assert_eq!(
        error.to_string(),
        format!("the relay cannot listen on TCP {}", relay.handle.address())
    );
}
