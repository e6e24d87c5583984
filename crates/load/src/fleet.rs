//! Many nodes in one process.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt, stream};
use memchr::memmem;
use rand::rngs::OsRng;
use tailwharf_wire::{
    key::{DiscoPrivate, DiscoPublic, MachinePrivate, MachinePublic, NodePrivate, NodePublic},
    tailcfg::{
        CapabilityVersion, EndpointType, Hostinfo, MapRequest, NetInfo, RegionId, RegisterAuth,
        RegisterRequest,
    },
};
use tokio::task::JoinHandle;

use crate::client::{Client, Maps, server_key};

/// Nodes that connect at one time, as when a network comes back.
const AT_ONCE: usize = 256;

/// How long nodes may take to be told.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who has seen a text that only one change can bring.
#[derive(Debug)]
struct Watch {
    needle: RwLock<(Vec<u8>, Instant)>,
    seen: Mutex<Vec<Duration>>,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            needle: RwLock::new((Vec::new(), Instant::now())),
            seen: Mutex::default(),
        }
    }
}

impl Watch {
    fn begin(&self, text: &str) {
        lock(&self.seen).clear();
        *self.needle.write().unwrap_or_else(PoisonError::into_inner) =
            (text.as_bytes().to_vec(), Instant::now());
    }

    fn look(&self, message: &[u8]) {
        let watched = self.needle.read().unwrap_or_else(PoisonError::into_inner);
        let (needle, start) = &*watched;
        if !needle.is_empty() && memmem::find(message, needle).is_some() {
            lock(&self.seen).push(start.elapsed());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A node that is registered.
#[derive(Debug)]
struct Member {
    machine: MachinePrivate,
    node_key: NodePublic,
    disco: DiscoPublic,
    hostname: String,
    session: Mutex<Option<Session>>,
}

/// A node that is connected. Dropping it breaks the connection off.
#[derive(Debug)]
struct Session {
    client: Arc<Client>,
    reader: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Nodes, and what they see.
#[derive(Debug)]
pub struct Fleet {
    server: SocketAddr,
    server_key: MachinePublic,
    members: Vec<Arc<Member>>,
    watch: Arc<Watch>,
    received: Arc<AtomicUsize>,
}

impl Fleet {
    /// A fleet without nodes.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn new(server: SocketAddr) -> Result<Self> {
        Ok(Self {
            server,
            server_key: server_key(server).await?,
            members: Vec::new(),
            watch: Arc::default(),
            received: Arc::default(),
        })
    }

    /// Registers one node with each key, and says how long that took.
    ///
    /// # Errors
    /// When one is refused.
    pub async fn register(&mut self, keys: &[String]) -> Result<Duration> {
        let start = Instant::now();
        let first = self.members.len();
        let (server, server_key) = (self.server, self.server_key);
        let jobs = keys.iter().enumerate().map(|(index, key)| async move {
            let machine = MachinePrivate::generate(&mut OsRng);
            let member = Member {
                node_key: NodePrivate::generate(&mut OsRng).public(),
                disco: DiscoPrivate::generate(&mut OsRng).public(),
                hostname: format!("node-{}", first + index),
                session: Mutex::default(),
                machine,
            };
            let client = Client::connect(server, &server_key, &member.machine).await?;
            let request = RegisterRequest {
                version: CapabilityVersion(131),
                node_key: member.node_key,
                auth: Some(RegisterAuth {
                    auth_key: key.clone(),
                }),
                hostinfo: Some(member.hostinfo()),
                ..RegisterRequest::default()
            };
            client.register(&request).await?;
            Ok::<_, anyhow::Error>(Arc::new(member))
        });
        let members: Vec<_> = stream::iter(jobs).buffered(AT_ONCE).try_collect().await?;
        self.members.extend(members);
        Ok(start.elapsed())
    }

    /// Connects all nodes, and says when each had its first map, in order.
    ///
    /// # Errors
    /// When one gets none.
    pub async fn connect(&self) -> Result<Vec<Duration>> {
        let start = Instant::now();
        let jobs = self.members.iter().map(|member| async move {
            self.connect_one(member).await?;
            Ok::<_, anyhow::Error>(start.elapsed())
        });
        let mut times: Vec<_> = stream::iter(jobs).buffer_unordered(AT_ONCE).try_collect().await?;
        times.sort_unstable();
        Ok(times)
    }

    /// Breaks all connections off.
    pub fn disconnect(&self) {
        for member in &self.members {
            lock(&member.session).take();
        }
    }

    /// Map messages that came in since the start.
    #[must_use]
    pub fn received(&self) -> usize {
        self.received.load(Ordering::Relaxed)
    }

    /// Moves one node to another endpoint, and says when each of those who see it was told, in order.
    ///
    /// # Errors
    /// When the update is refused, or not `expected` nodes were told by the deadline.
    pub async fn move_one(&self, index: usize, port: u16, expected: usize) -> Result<Vec<Duration>> {
        let member = self.members.get(index).context("no such node")?;
        let client = lock(&member.session)
            .as_ref()
            .context("the node is not connected")?
            .client
            .clone();
        let endpoint = SocketAddr::from(([203, 0, 113, 7], port));
        let update = MapRequest {
            stream: false,
            omit_peers: true,
            endpoints: vec![endpoint],
            endpoint_types: vec![EndpointType::STUN],
            ..member.request()
        };
        self.observe(&endpoint.to_string(), expected, async {
            client.update(&update).await
        })
        .await
    }

    /// Waits until `expected` nodes were told what holds `text`, once `cause` has begun; says when each was, in order.
    ///
    /// # Errors
    /// That of `cause`, or when it took too long.
    pub async fn observe(
        &self,
        text: &str,
        expected: usize,
        cause: impl Future<Output = Result<()>>,
    ) -> Result<Vec<Duration>> {
        self.watch.begin(text);
        cause.await?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let times = self.told();
            if times.len() >= expected {
                return Ok(times);
            }
            if Instant::now() > deadline {
                bail!("{} of {expected} nodes were told of {text}", times.len());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// How long after its cause each node was told of what was observed last, in order.
    #[must_use]
    pub fn told(&self) -> Vec<Duration> {
        let mut times = lock(&self.watch.seen).clone();
        times.sort_unstable();
        times
    }

    async fn connect_one(&self, member: &Arc<Member>) -> Result<()> {
        let client = Arc::new(Client::connect(self.server, &self.server_key, &member.machine).await?);
        let mut maps = client.stream(&member.request()).await?;
        maps.next().await?.context("the stream ended at once")?;
        self.received.fetch_add(1, Ordering::Relaxed);
        let reader = tokio::spawn(read(maps, self.watch.clone(), self.received.clone()));
        *lock(&member.session) = Some(Session { client, reader });
        Ok(())
    }
}

async fn read(mut maps: Maps, watch: Arc<Watch>, received: Arc<AtomicUsize>) {
    while let Ok(Some(message)) = maps.next().await {
        received.fetch_add(1, Ordering::Relaxed);
        watch.look(&message);
    }
}

impl Member {
    fn hostinfo(&self) -> Hostinfo {
        Hostinfo {
            ipn_version: "1.102.5".to_owned(),
            os: "linux".to_owned(),
            hostname: self.hostname.clone(),
            net_info: Some(NetInfo {
                preferred_derp: RegionId(900),
                ..NetInfo::default()
            }),
            ..Hostinfo::default()
        }
    }

    fn request(&self) -> MapRequest {
        MapRequest {
            version: CapabilityVersion(131),
            compress: "zstd".to_owned(),
            keep_alive: true,
            node_key: self.node_key,
            disco_key: self.disco,
            stream: true,
            hostinfo: Some(self.hostinfo()),
            ..MapRequest::default()
        }
    }
}
