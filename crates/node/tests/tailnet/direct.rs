//! Direct paths over real sockets.

use std::net::SocketAddr;
use std::sync::Arc;

use tailwharf_node::{
    HostConfig, MemoryStore, Node, NodeStatus, PathKind, RelayReason, StateStore, TailnetNode,
};

use crate::common::{Tailnet, eventually, reached, v4};
use crate::nodes::{echo, serve_echo};

fn port_80(node: &Node) -> SocketAddr {
    SocketAddr::from((v4(&node.status().borrow()), 80))
}

fn is_direct(status: &NodeStatus) -> bool {
    matches!(
        status.paths[..],
        [tailwharf_node::PeerPath {
            kind: PathKind::Direct { .. },
            ..
        }]
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_go_direct() {
    let tailnet = Tailnet::start_with(&HostConfig {
        direct: true,
        ..HostConfig::default()
    })
    .await;
    let (server, client) = (
        tailnet.join("server", "tag:server").await,
        tailnet.join("client", "tag:client").await,
    );
    let _serving = serve_echo(&server);
    eventually("an echo", || echo(&client, port_80(&server), b"hello")).await;
    let told = reached(&client, "the client's path is direct", is_direct).await;
    reached(&server, "the server's path is direct", is_direct).await;
    assert_eq!(told.paths[0].fqdn, "server.tail1234.ts.net");
    assert_eq!(
        told.paths[0].device_id,
        server.status().borrow().device_id.clone().unwrap()
    );
    let PathKind::Direct { address } = told.paths[0].kind else {
        panic!("{told:?}")
    };
    let large = vec![7; 4 << 20];
    echo(&client, port_80(&server), &large).await.unwrap();
    assert!(address.port() >= 10_000);
}

/// A stopped relay takes nothing from those who talk directly.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_direct_path_needs_no_relay() {
    let mut tailnet = Tailnet::start_with(&HostConfig {
        direct: true,
        ..HostConfig::default()
    })
    .await;
    let (server, client) = (
        tailnet.join("server", "tag:server").await,
        tailnet.join("client", "tag:client").await,
    );
    let _serving = serve_echo(&server);
    eventually("an echo", || echo(&client, port_80(&server), b"hello")).await;
    reached(&client, "the client's path is direct", is_direct).await;
    reached(&server, "the server's path is direct", is_direct).await;
    tailnet.stop_coordinator().await;
    for _ in 0..3 {
        echo(&client, port_80(&server), &[7; 100_000]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_keeps_its_port() {
    let tailnet = Tailnet::start_with(&HostConfig {
        direct: true,
        ..HostConfig::default()
    })
    .await;
    let store = Arc::new(MemoryStore::default());
    let config = tailnet.node_config("server", Some(tailnet.auth_key("tag:server").await));
    let node = tailnet.start_node(config.clone(), store.clone()).await;
    reached(&node, "the node is reachable", NodeStatus::reachable).await;
    node.shutdown().await;
    drop(node);
    let port = store.load().await.unwrap().unwrap().udp_port;
    assert!(port.is_some());
    let again = tailnet.start_node(config, store.clone()).await;
    reached(&again, "the node is reachable", NodeStatus::reachable).await;
    again.shutdown().await;
    assert_eq!(store.load().await.unwrap().unwrap().udp_port, port);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_direct_paths_the_relay_carries_all() {
    let tailnet = Tailnet::start_with(&HostConfig {
        direct: false,
        ..HostConfig::default()
    })
    .await;
    let (server, client) = (
        tailnet.join("server", "tag:server").await,
        tailnet.join("client", "tag:client").await,
    );
    let _serving = serve_echo(&server);
    eventually("an echo", || echo(&client, port_80(&server), b"hello")).await;
    let told = reached(&client, "the path is told", |status| !status.paths.is_empty()).await;
    assert!(matches!(
        told.paths[0].kind,
        PathKind::Relay {
            why: RelayReason::Off,
            ..
        }
    ));
}
