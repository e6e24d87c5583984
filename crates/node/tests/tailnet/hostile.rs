//! Servers that are not what they should be: the node tells what is wrong, and goes on trying.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tailwharf_node::{
    AuthKey, Host, HostConfig, MemoryStore, Node, NodeConfig, NodeStatus, Phase, TailnetNode,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::common::{Tailnet, eventually, is_online, reached};

/// Answers every connection with `answer` over and over, up to `total` bytes, and counts the connections.
async fn serve(answer: &'static [u8], total: usize) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(respond(stream, answer, total));
        }
    });
    (addr, count)
}

async fn respond(mut stream: TcpStream, answer: &'static [u8], total: usize) {
    let mut request = [0; 1024];
    let _ = stream.read(&mut request).await;
    let mut sent = 0;
    while sent < total && stream.write_all(answer).await.is_ok() {
        sent += answer.len();
    }
}

async fn node_of(control: SocketAddr) -> Node {
    let config = NodeConfig {
        auth_key: AuthKey::new("tskey-auth-x"),
        ..NodeConfig::new(format!("http://{control}").parse().unwrap(), "node")
    };
    let host = Host::new(&HostConfig::default()).unwrap();
    host.start(config, Arc::new(MemoryStore::default()))
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_server_that_is_none_is_named_and_tried_again() {
    let answers: [(&'static [u8], usize, &str); 5] = [
        (b"", 0, "HTTP exchange broke off"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", 1, "HTTP exchange broke off"),
        (
            b"HTTP/1.1 503 Busy\r\nContent-Length: 5\r\n\r\nlater",
            1,
            "503 Service Unavailable: later",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
            1,
            "without a key",
        ),
        (b"HTTP/1.1 200 OK\r\n\r\naaaaaaaaaaaaaaaa", 1 << 20, "longer than"),
    ];
    for (answer, total, expected) in answers {
        let (addr, connections) = serve(answer, total).await;
        let node = node_of(addr).await;
        let status = reached(&node, expected, |status| {
            matches!(status.phase, Phase::Disconnected { .. })
        })
        .await;
        let Phase::Disconnected { reason } = &status.phase else {
            panic!()
        };
        assert!(reason.contains(expected), "{reason:?} does not say {expected:?}");
        eventually("it is tried again", async || {
            match connections.load(Ordering::Relaxed) {
                0..=2 => Err("not yet"),
                _ => Ok(()),
            }
        })
        .await;
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_is_none_keeps_no_node_from_its_control_server() {
    let tailnet = Tailnet::start().await;
    let (addr, connections) = serve(b"no TLS here\r\n", 1 << 20).await;
    let store = Arc::new(MemoryStore::default());
    let config = tailnet.node_config("server", Some(tailnet.auth_key("tag:server").await));
    let first = tailnet.start_node(config.clone(), store.clone()).await;
    reached(&first, "reachable", NodeStatus::reachable).await;
    first.shutdown().await;

    // As if the relay had been somewhere else when the state was saved.
    let mut state = tailwharf_node::StateStore::load(&*store).await.unwrap().unwrap();
    for region in state.derp_map.as_mut().unwrap().regions.values_mut() {
        for relay in &mut region.nodes {
            relay.host_name = addr.ip().to_string();
            relay.derp_port = addr.port().into();
        }
    }
    tailwharf_node::StateStore::save(&*store, &state).await.unwrap();
    let second = tailnet.start_node(config, store).await;
    reached(&second, "online", is_online).await;
    reached(
        &second,
        "reachable by the relay of the new map",
        NodeStatus::reachable,
    )
    .await;
    assert!(connections.load(Ordering::Relaxed) > 0);
}
