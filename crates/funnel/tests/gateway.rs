//! The coordinator, its gateway and a node in one process: from the internet to the node and back.

#![expect(clippy::unwrap_used, reason = "helpers of the tests, which fail by panic")]

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tailwharf_coordinator::config::{FunnelLimits, FunnelListener, FunnelSettings};
use tailwharf_coordinator::model::Actor;
use tailwharf_coordinator::ops::{FunnelRefusal, NewAuthKey};
use tailwharf_coordinator::{Config, Coordinator, Handle};
use tailwharf_funnel::Gateway;
use tailwharf_node::{AuthKey, Host, HostConfig, MemoryStore, Node, NodeConfig, NodeStatus, TailnetNode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const POLICY: &str = r#"{
    "tagOwners": {"tag:public": [], "tag:private": []},
    "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
    "nodeAttrs": [{"target": ["tag:public"], "attr": ["funnel"]}],
}"#;
const NAME: &str = "web.tail1234.ts.net";
/// Long enough for a machine under load; a test that hits it has failed.
const DEADLINE: Duration = Duration::from_secs(30);

fn free_port() -> SocketAddr {
    let socket = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.local_addr().unwrap()
}

fn config(dir: &Path) -> Config {
    let (control, relay, stun) = (free_port(), free_port(), free_port());
    let policy = dir.join("policy.hujson");
    std::fs::write(&policy, POLICY).unwrap();
    let text = format!(
        "server_url = \"http://{control}\"\nlisten = \"{control}\"\ndata_dir = {:?}\nmagic_dns_suffix = \"tail1234.ts.net\"\npolicy_file = {policy:?}\n\
         [relay]\nlisten = \"{relay}\"\nstun_listen = \"{stun}\"\nhostname = \"127.0.0.1\"\n\
         [[funnel.listeners]]\nlisten = \"127.0.0.1:0\"\nport = 443\n",
        dir.join("data")
    );
    Config::parse(&text, dir).unwrap()
}

async fn join(handle: &Handle, config: &Config, name: &str, tag: &str) -> Node {
    let key = NewAuthKey {
        creator: Actor::Administrator,
        owner: None,
        description: String::new(),
        reusable: false,
        ephemeral: false,
        preauthorized: true,
        tags: BTreeSet::from([tag.parse().unwrap()]),
        lifetime: None,
    };
    let minted = handle.operations().create_auth_key(key).await.unwrap();
    let settings = NodeConfig {
        auth_key: AuthKey::new(minted.secret.reveal()),
        ..NodeConfig::new(config.server_url.clone(), name)
    };
    let host = Host::new(&HostConfig::default()).unwrap();
    let node = host
        .start(settings, Arc::new(MemoryStore::default()))
        .await
        .unwrap();
    reachable(&node).await;
    node
}

async fn reachable(node: &Node) {
    let mut status = node.status();
    let waited = timeout(DEADLINE, status.wait_for(NodeStatus::reachable)).await;
    assert!(matches!(waited, Ok(Ok(_))), "{:?}", node.status().borrow());
}

/// The first message of a TLS client for a name.
fn hello(name: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let server = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), server).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

async fn refused(gateway: SocketAddr, first: &[u8]) -> Vec<u8> {
    let mut outside = TcpStream::connect(gateway).await.unwrap();
    outside.write_all(first).await.unwrap();
    let mut answer = Vec::new();
    timeout(DEADLINE, outside.read_to_end(&mut answer))
        .await
        .unwrap()
        .unwrap();
    answer
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !done() {
        assert!(tokio::time::Instant::now() < deadline, "never true: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_internet_reaches_a_node_that_wants_it_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let stop = CancellationToken::new();
    let handle = Coordinator::start(config.clone(), stop.clone()).await.unwrap();
    let ops = handle.operations().clone();
    ops.edit_settings(Actor::Administrator, |settings| settings.https = true)
        .await
        .unwrap();
    let state = config.data_dir.join("funnel.state");
    let device = tailwharf_funnel::join(&handle, config.server_url.clone(), &state)
        .await
        .unwrap();
    reachable(&device).await;
    let web = join(&handle, &config, "web", "tag:public").await;
    let other = join(&handle, &config, "other", "tag:private").await;
    let settings = FunnelSettings {
        listeners: vec![FunnelListener {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            port: Some(443),
        }],
        limits: FunnelLimits::default(),
    };
    let gateway = Gateway::start(&settings, Arc::new(device), ops.clone(), stop.clone())
        .await
        .unwrap();
    let address = gateway.addresses()[0];

    // An alert of TLS that nobody of the name is here.
    let alert = [21, 3, 3, 0, 2, 2, 112];
    assert_eq!(ops.funnel_target(NAME), Err(FunnelRefusal::NotOffered));
    assert_eq!(refused(address, &hello(NAME)).await, alert);
    let listener = web.listen_funnel(443).unwrap();
    until("the coordinator knows that the node wants it", || {
        ops.funnel_target(NAME).is_ok()
    })
    .await;
    assert_eq!(refused(address, &hello("other.tail1234.ts.net")).await, alert);
    assert_eq!(refused(address, &hello("example.com")).await, alert);
    assert_eq!(refused(address, b"GET / HTTP/1.1\r\n\r\n").await, alert);

    let first = hello(NAME);
    let deadline = tokio::time::Instant::now() + DEADLINE;
    let (mut outside, taken) = loop {
        // The gateway hears of the node in its own time.
        let mut outside = TcpStream::connect(address).await.unwrap();
        outside.write_all(&first).await.unwrap();
        match timeout(Duration::from_secs(5), listener.accept()).await {
            Ok(taken) => break (outside, taken.unwrap()),
            Err(_) => assert!(tokio::time::Instant::now() < deadline, "nothing comes through"),
        }
    };
    assert_eq!(taken.source, outside.local_addr().unwrap());
    assert_eq!(taken.host, NAME);
    let mut inside = taken.stream;
    let mut seen = vec![0; first.len()];
    inside.read_exact(&mut seen).await.unwrap();
    assert_eq!(seen, first, "the bytes of the browser as they came");
    let big = vec![7; 300_000];
    let answer = async {
        inside.write_all(&big).await.unwrap();
        inside.shutdown().await.unwrap();
    };
    let mut got = Vec::new();
    let (read, ()) = tokio::join!(timeout(DEADLINE, outside.read_to_end(&mut got)), answer);
    read.unwrap().unwrap();
    assert_eq!(got, big);

    // Nobody but the node sees the gateway's device.
    let world = ops.world();
    let id = |name: &str| world.node_by_name(name).unwrap().id;
    assert_eq!(world.graph().peers_of(id("funnel-gateway")), [id("web")]);
    assert_eq!(world.graph().peers_of(id("other")), [id("web")]);

    drop(listener);
    until("the node is public no more", || ops.funnel_target(NAME).is_err()).await;
    for node in [&web, &other] {
        node.shutdown().await;
    }
    stop.cancel();
    gateway.stopped().await;
    handle.stop().await;
}
