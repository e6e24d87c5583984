//! Nodes behind an HTTP proxy: it alone finds the control server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tailwharf_node::{HostConfig, HttpProxies, MemoryStore, NodeConfig, Phase};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::common::{Tailnet, is_online, reached};

/// A name that only the proxy knows.
const NAME: &str = "control.test";

/// A proxy that leads connections for [`NAME`] to `target` if they carry the right password, and counts them.
async fn proxy(target: SocketAddr) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let counter = counter.clone();
            tokio::spawn(async move {
                let mut client = BufReader::new(client);
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    if client.read_line(&mut head).await.unwrap() == 0 {
                        return;
                    }
                }
                // "user:secret"
                let may_pass = head.contains("Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=\r\n");
                if !head.starts_with(&format!("CONNECT {NAME}:{} ", target.port())) || !may_pass {
                    client
                        .write_all(b"HTTP/1.1 403 Forbidden by policy\r\n\r\n")
                        .await
                        .unwrap();
                    return;
                }
                counter.fetch_add(1, Ordering::Relaxed);
                let mut server = TcpStream::connect(target).await.unwrap();
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (addr, count)
}

fn behind(proxy: &str) -> HostConfig {
    let proxies = HttpProxies::from_variables(|name| (name == "HTTP_PROXY").then(|| proxy.to_owned()));
    HostConfig {
        http_proxies: proxies.unwrap(),
        ..HostConfig::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_control_connection_goes_through_the_proxy_and_a_refusal_is_told() {
    let tailnet = Tailnet::start().await;
    let direct = tailnet.node_config("server", Some(tailnet.auth_key("tag:server").await));
    let target = direct.control_url.socket_addrs(|| None).unwrap()[0];
    let (addr, count) = proxy(target).await;
    let config = NodeConfig {
        control_url: format!("http://{NAME}:{}", target.port()).parse().unwrap(),
        ..direct
    };

    let stranger = tailwharf_node::Host::new(&behind(&format!("http://{addr}"))).unwrap();
    let refused = stranger
        .start(config.clone(), Arc::new(MemoryStore::default()))
        .await
        .unwrap();
    reached(&refused, "the proxy's words", |status| {
        matches!(&status.phase, Phase::Disconnected { reason } if reason.contains("403 Forbidden by policy"))
    })
    .await;

    let host = tailwharf_node::Host::new(&behind(&format!("http://user:secret@{addr}"))).unwrap();
    let node = host
        .start(config, Arc::new(MemoryStore::default()))
        .await
        .unwrap();
    reached(&node, "online", is_online).await;
    assert!(count.load(Ordering::Relaxed) >= 2, "the key and the connection");
}
