//! A tailnet in this process: coordinator, relay and nodes on loopback.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tailwharf_coordinator::model::Actor;
use tailwharf_coordinator::ops::NewAuthKey;
use tailwharf_coordinator::{Config, Coordinator, Handle};
use tailwharf_node::{
    AuthKey, Host, HostConfig, MemoryStore, Node, NodeConfig, NodeStatus, Phase, StateStore, TailnetNode,
};
use tokio_util::sync::CancellationToken;

/// Clients may reach ports 80 and 5353 of servers, and the networks behind routers. Strangers see nobody.
pub(crate) const POLICY: &str = r#"{
    "tagOwners": {"tag:client": [], "tag:server": [], "tag:stranger": [], "tag:router": [], "tag:gateway": []},
    "acls": [
        {"action": "accept", "src": ["tag:client"], "dst": ["tag:server:80,5353"]},
        {"action": "accept", "src": ["tag:client"], "dst": ["127.7.0.0/16:*", "fd7a:115c:a1e0:b1a:0:3::/96:*"]},
    ],
    "autoApprovers": {
        "routes": {"127.7.0.0/16": ["tag:router"], "fd7a:115c:a1e0:b1a:0:3::/96": ["tag:router"]},
        "exitNode": ["tag:router"],
    },
    "grants": [
        {"src": ["tag:gateway"], "dst": ["tag:server"], "app": {"https://tailscale.com/cap/ingress": [{}]}},
        {"src": ["tag:client"], "dst": ["tag:server"], "app": {"example.com/cap/greet": [{"level": 3}]}},
        {"src": ["tag:client"], "dst": ["svc:web"], "ip": ["tcp:443"], "app": {"example.com/cap/order": ["tea"]}},
    ],
}"#;

/// Long enough for a machine under load; a test that hits it has failed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) struct Tailnet {
    pub(crate) host: Host,
    config: Config,
    coordinator: Option<Handle>,
    _dir: tempfile::TempDir,
}

impl Tailnet {
    pub(crate) async fn start() -> Self {
        Self::start_with(&HostConfig::default()).await
    }

    pub(crate) async fn start_with(host: &HostConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let control = free_port();
        Self::start_in(dir, control, &format!("http://{control}"), "", host).await
    }

    /// A tailnet whose coordinator is behind TLS, with a certificate that only its own host trusts.
    pub(crate) async fn start_with_tls() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let control = free_port();
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        std::fs::write(&cert, certified.cert.pem()).unwrap();
        std::fs::write(&key, certified.signing_key.serialize_pem()).unwrap();
        let tls = format!("[tls]\ncert_file = {cert:?}\nkey_file = {key:?}");
        let trusting = HostConfig {
            extra_ca_pem: Some(certified.cert.pem().into_bytes()),
            ..HostConfig::default()
        };
        Self::start_in(
            dir,
            control,
            &format!("https://localhost:{}", control.port()),
            &tls,
            &trusting,
        )
        .await
    }

    async fn start_in(
        dir: tempfile::TempDir,
        control: SocketAddr,
        url: &str,
        tls: &str,
        host: &HostConfig,
    ) -> Self {
        let policy_file = dir.path().join("policy.hujson");
        std::fs::write(&policy_file, POLICY).unwrap();
        let (relay, stun) = (free_port(), free_port());
        let text = format!(
            r#"
            server_url = "{url}"
            listen = "{control}"
            data_dir = "{dir}/data"
            magic_dns_suffix = "tail1234.ts.net"
            policy_file = "{policy}"
            [relay]
            listen = "{relay}"
            stun_listen = "{stun}"
            hostname = "127.0.0.1"
            {tls}
            "#,
            dir = dir.path().display(),
            policy = policy_file.display(),
        );
        let config = Config::parse(&text, &policy_file).unwrap();
        let mut tailnet = Self {
            host: Host::new(host).unwrap(),
            config,
            coordinator: None,
            _dir: dir,
        };
        tailnet.start_coordinator().await;
        tailnet
    }

    /// Starts coordinator and relay on what the data directory holds.
    pub(crate) async fn start_coordinator(&mut self) {
        let started = Coordinator::start(self.config.clone(), CancellationToken::new()).await;
        self.coordinator = Some(started.unwrap());
    }

    /// Ends coordinator and relay.
    pub(crate) async fn stop_coordinator(&mut self) {
        self.coordinator.take().unwrap().stop().await;
    }

    pub(crate) fn coordinator(&self) -> &Handle {
        self.coordinator.as_ref().unwrap()
    }

    /// A new auth key that works once.
    pub(crate) async fn auth_key(&self, tag: &str) -> AuthKey {
        self.mint(tag, false).await
    }

    /// A new auth key that works any number of times.
    pub(crate) async fn reusable_auth_key(&self, tag: &str) -> AuthKey {
        self.mint(tag, true).await
    }

    async fn mint(&self, tag: &str, reusable: bool) -> AuthKey {
        let key = NewAuthKey {
            creator: Actor::Administrator,
            owner: None,
            description: String::new(),
            reusable,
            ephemeral: false,
            preauthorized: true,
            tags: BTreeSet::from([tag.parse().unwrap()]),
            lifetime: None,
        };
        let minted = self
            .coordinator()
            .operations()
            .create_auth_key(key)
            .await
            .unwrap();
        AuthKey::new(minted.secret.reveal()).unwrap()
    }

    pub(crate) fn node_config(&self, hostname: &str, auth_key: Option<AuthKey>) -> NodeConfig {
        NodeConfig {
            auth_key,
            ..NodeConfig::new(self.config.server_url.clone(), hostname)
        }
    }

    pub(crate) async fn start_node(&self, config: NodeConfig, store: Arc<dyn StateStore>) -> Node {
        self.host.start(config, store).await.unwrap()
    }

    /// A node of its own tag, reachable by others.
    pub(crate) async fn join(&self, hostname: &str, tag: &str) -> Node {
        let config = self.node_config(hostname, Some(self.auth_key(tag).await));
        let node = self.start_node(config, Arc::new(MemoryStore::default())).await;
        reached(&node, "the node is reachable", NodeStatus::reachable).await;
        node
    }
}

/// Waits until the status of a node is as wanted.
pub(crate) async fn reached(node: &Node, what: &str, wanted: impl Fn(&NodeStatus) -> bool) -> NodeStatus {
    let mut status = node.status();
    let waited = tokio::time::timeout(DEADLINE, status.wait_for(|status| wanted(status))).await;
    match waited {
        Ok(Ok(status)) => status.clone(),
        _ => panic!("never true: {what}; the status is {:?}", node.status().borrow()),
    }
}

/// Tries until `attempt` succeeds.
pub(crate) async fn eventually<T, E: std::fmt::Debug>(
    what: &str,
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(error) if tokio::time::Instant::now() > deadline => panic!("never true: {what}: {error:?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

pub(crate) fn v4(status: &NodeStatus) -> Ipv4Addr {
    match status.addresses.first() {
        Some(std::net::IpAddr::V4(addr)) => *addr,
        other => panic!("expected an IPv4 address first, not {other:?}"),
    }
}

pub(crate) fn is_online(status: &NodeStatus) -> bool {
    status.phase == Phase::Online
}

/// An address of loopback that nothing uses, by TCP or UDP. Its port is outside of the range from which the system takes those of connections, so that none
/// of them comes in between.
pub(crate) fn free_port() -> SocketAddr {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    loop {
        let step = std::process::id() % 97 * 120 + TAKEN.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + u16::try_from(step % 12_000).unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return address;
        }
    }
}
