//! The coordinator as a whole: start, run, stop.

use std::{
    fmt, fs,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    thread,
    time::Duration,
};

use axum::Router;
use jiff::Timestamp;
use rand::{
    SeedableRng,
    rngs::{OsRng, StdRng},
};
use tailwharf_ca::{CaConfig, CaError, CertificateAuthority, TxtRecords};
use tailwharf_policy::{Policy, PolicyError};
use tailwharf_relay::{Admission, Relay, RelayConfig, RelayError, RelayHandle};
use tailwharf_wire::key::{MachinePrivate, MachinePublic};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admin, api,
    config::Config,
    derp_map::{DerpMapError, Relays},
    gc, http,
    machine::Control,
    metrics::{self, Counters, Metrics},
    model::{Actor, PolicyVersion},
    oidc::{OidcError, Provider},
    ops::{Context, OpError, Operations},
    questions::Questions,
    sessions::Sessions,
    site::Site,
    store::{Saved, SqliteStore, Store, StoreError},
    tls::{Certificates, TlsError},
    web,
    workload::Issuers,
    world::{ActivePolicy, Facts, World},
    writer::{self, Writer},
};

/// The policy of a tailnet that was never given one.
const DEFAULT_POLICY: &str = "// Every device may reach every other one, until a policy says otherwise.
{\"acls\": [{\"action\": \"accept\", \"src\": [\"*\"], \"dst\": [\"*:*\"]}]}
";
/// How long open connections may take to end.
const STOP_TIME: Duration = Duration::from_secs(3);

/// Why the coordinator does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be made.
    #[error("the directory {} cannot be made: choose another `data_dir` or its permissions", path.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The store cannot be used.
    #[error("the store cannot be used")]
    Store(#[from] StoreError),
    /// The first settings are not valid.
    #[error("the settings of `[nodes]` are refused: {0}")]
    Settings(#[source] OpError),
    /// The file of relays is of no use.
    #[error(transparent)]
    DerpMap(#[from] DerpMapError),
    /// The policy file cannot be read.
    #[error("the policy {} cannot be read", path.display())]
    PolicyFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The stored policy is none for this version.
    #[error("the stored policy is not valid for this version: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    StoredPolicy(Vec<PolicyError>),
    /// The policy file is not valid.
    #[error("the policy {} is refused: {source}", path.display())]
    Policy {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        source: OpError,
    },
    /// The TLS files are of no use.
    #[error("the TLS files cannot be used: {0}")]
    Tls(#[from] TlsError),
    /// The certificates to trust for an issuer are of no use.
    #[error("the keys of the issuers cannot be fetched: {what}")]
    Issuer {
        /// What is wrong with which.
        what: String,
    },
    /// The identity provider cannot be used.
    #[error("`oidc` in the configuration cannot be used")]
    Oidc(#[from] OidcError),
    /// The address is taken or not one of this machine.
    #[error("cannot listen on {addr}: choose another `listen`")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The administrator's socket cannot be opened.
    #[error("the administrator's socket {} cannot be opened", path.display())]
    AdminSocket {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The certificate authority does not start.
    #[error("the certificate authority does not start")]
    CertificateAuthority(#[from] CaError),
    /// The relay does not start.
    #[error("the relay does not start")]
    Relay(#[from] RelayError),
    /// The system gives no thread.
    #[error("no thread for the store")]
    Thread(#[source] std::io::Error),
}

/// Starts coordinators.
#[derive(Debug)]
pub struct Coordinator;

/// A running coordinator. It stops when [`Handle::stop`] is called, or the token that it was started with is cancelled.
pub struct Handle {
    local_addr: SocketAddr,
    metrics_addr: Option<SocketAddr>,
    server_key: MachinePublic,
    relay: Option<RelayHandle>,
    ops: Operations,
    stop: CancellationToken,
    tasks: TaskTracker,
    writer: thread::JoinHandle<()>,
}

impl Coordinator {
    /// Starts a coordinator on what its data directory holds, and returns when it answers.
    ///
    /// # Errors
    /// When the store, the policy, the certificate or an address cannot be used.
    pub async fn start(config: Config, stop: CancellationToken) -> Result<Handle, StartError> {
        let stop = stop.child_token();
        // What runs already ends when the rest does not start.
        let guard = stop.clone().drop_guard();
        make_data_dir(&config.data_dir)?;
        // First of all, for it finds out whether another coordinator runs here.
        let admin_socket = admin::bind(&config.admin_socket()).map_err(|source| StartError::AdminSocket {
            path: config.admin_socket(),
            source,
        })?;
        let store = SqliteStore::open(&config.store_file())?;
        let handle = start_on(config, Box::new(store), admin_socket, stop).await?;
        guard.disarm();
        Ok(handle)
    }
}

/// Starts on an open store.
pub(crate) async fn start_on(
    config: Config,
    mut store: Box<dyn Store>,
    admin_socket: UnixListener,
    stop: CancellationToken,
) -> Result<Handle, StartError> {
    let certificates = config.tls_files().as_ref().map(Certificates::open).transpose()?;
    let tls = certificates
        .as_ref()
        .map(|certificates| certificates.acceptor())
        .transpose()?;
    let provider = config
        .oidc
        .as_ref()
        .map(|oidc| Provider::new(oidc, &config.server_url))
        .transpose()?;
    let issuers = Issuers::new(&config.issuers).map_err(|what| StartError::Issuer { what })?;
    let saved = store.load()?;
    let server_key = server_key(store.as_mut(), &saved)?;
    let public = server_key.public();
    let first_start = saved.policy.is_none();

    let listen = |source| StartError::Listen {
        addr: config.listen,
        source,
    };
    let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
    let local_addr = listener.local_addr().map_err(listen)?;
    let (metrics_listener, metrics_addr) = bind_metrics(&config).await?.unzip();
    let admitted = Arc::new(OnceLock::new());
    let relay = start_relay(&config, admitted.clone(), stop.clone()).await?;

    let facts = Facts {
        prefixes: config.prefixes,
        suffix: config.magic_dns_suffix.clone(),
        funnel_ports: config.funnel.ports(),
    };
    let relays = Relays::new(&config, relay.as_ref());
    let derp_map = relays.load()?;
    let active = active_policy(&saved)?;
    let world = World::load(facts, active, derp_map, saved, Timestamp::now());
    let world = Arc::new(world);
    let sessions = Arc::new(Sessions::new(world.clone()));
    let (published, worlds) = watch::channel(world);
    admitted.get_or_init(|| worlds.clone());
    let (jobs, queue) = mpsc::channel(writer::QUEUE);
    let context = context(&config);
    let counters = Arc::new(Counters::default());
    let writer = Writer {
        store,
        counters: counters.clone(),
        context,
        clock: Timestamp::now,
        sessions: sessions.clone(),
        published,
    };
    let writer = writer.spawn(queue).map_err(StartError::Thread)?;
    let ops = Operations::new(jobs, worlds);
    if first_start {
        let first = config.nodes.settings();
        ops.edit_settings(Actor::Administrator, move |settings| *settings = first)
            .await
            .map_err(StartError::Settings)?;
        set_first_policy(&ops, &config).await?;
    }

    let tasks = TaskTracker::new();
    let control = Arc::new(Control {
        ops: ops.clone(),
        sessions,
        server_key,
        server_url: config.server_url.clone(),
        questions: Questions::new(&config.server_url),
        counters: counters.clone(),
        stop: stop.clone(),
        tasks: tasks.clone(),
    });
    let site = Arc::new(Site::new(
        ops.clone(),
        config.server_url.clone(),
        issuers,
        provider,
        &config.limits,
    ));
    let router = http::routes(control.clone())
        .merge(api::router(site.clone()))
        .merge(web::router(site.clone()))
        .merge(certificate_authority(&config, &ops)?);
    let permits = http::Permits::new(config.limits);
    if let Some(listener) = metrics_listener {
        let metrics = Metrics {
            counters,
            operations: ops.clone(),
            sessions: control.sessions.clone(),
            permits: permits.clone(),
            relay: relay.clone(),
        };
        tasks.spawn(metrics::listen(metrics, listener, stop.clone(), tasks.clone()));
    }
    if let Some(certificates) = certificates {
        tasks.spawn(certificates.watch(stop.clone()));
    }
    tasks.spawn(gc::run(control.clone(), config.nodes.ephemeral_grace()));
    tasks.spawn(control.clone().probe());
    tasks.spawn(relays.watch(control.clone()));
    tasks.spawn(admin::serve(admin_socket, site, stop.clone(), tasks.clone()));
    tasks.spawn(http::listen(control, listener, tls, router, permits));
    tracing::info!(%local_addr, server_url = %config.server_url, key = %public, "coordinator started");
    Ok(Handle {
        local_addr,
        metrics_addr,
        server_key: public,
        relay,
        ops,
        stop,
        tasks,
        writer,
    })
}

/// Listens for supervisors, if the configuration says where.
async fn bind_metrics(config: &Config) -> Result<Option<(TcpListener, SocketAddr)>, StartError> {
    let Some(addr) = config.metrics.listen else {
        return Ok(None);
    };
    let failed = |source| StartError::Listen { addr, source };
    let listener = TcpListener::bind(addr).await.map_err(failed)?;
    let local = listener.local_addr().map_err(failed)?;
    Ok(Some((listener, local)))
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("local_addr", &self.local_addr)
            .finish_non_exhaustive()
    }
}

impl Handle {
    /// Where nodes and the API are served.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Where supervisors are answered, if anywhere.
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics_addr
    }

    /// The server's static Noise key.
    pub fn server_key(&self) -> MachinePublic {
        self.server_key
    }

    /// The embedded relay, if it is enabled.
    pub fn relay(&self) -> Option<&RelayHandle> {
        self.relay.as_ref()
    }

    /// What can be done to the coordinator's data.
    pub fn operations(&self) -> &Operations {
        &self.ops
    }

    /// Ends all streams, answers what was asked, and closes the store.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        let ended = async {
            self.tasks.wait().await;
            if let Some(relay) = &self.relay {
                relay.stopped().await;
            }
        };
        if timeout(STOP_TIME, ended).await.is_err() {
            tracing::warn!(open = self.tasks.len(), "some connections did not end in time");
        }
        self.ops.close().await;
        let writer = self.writer;
        if tokio::task::spawn_blocking(move || writer.join())
            .await
            .is_ok_and(|joined| joined.is_err())
        {
            tracing::error!("the writer panicked");
        }
        tracing::info!("coordinator stopped");
    }
}

/// Where the certificate authority looks for proofs: what nodes had set by `/machine/set-dns`.
struct Proofs(Operations);

impl TxtRecords for Proofs {
    fn txt(&self, name: &str) -> Vec<String> {
        self.0.dns_txt(name).into_iter().collect()
    }
}

/// The routes of the certificate authority, none if it is turned off.
fn certificate_authority(config: &Config, ops: &Operations) -> Result<Router, CaError> {
    if !config.ca.enabled {
        return Ok(Router::new());
    }
    let settings = CaConfig {
        server_url: config.server_url.to_string(),
        suffix: config.magic_dns_suffix.to_string(),
        short_names: config.ca.short_names,
        data_dir: config.data_dir.clone(),
    };
    let proofs = Arc::new(Proofs(ops.clone()));
    Ok(CertificateAuthority::open(&settings, proofs, Timestamp::now)?.router())
}

/// Starts the embedded relay for the nodes of this tailnet; before the world is there it admits nobody.
async fn start_relay(
    config: &Config,
    world: Arc<OnceLock<watch::Receiver<Arc<World>>>>,
    stop: CancellationToken,
) -> Result<Option<RelayHandle>, RelayError> {
    if !config.relay.enabled {
        tracing::warn!("the relay is off: nodes that cannot reach each other directly stay apart");
        return Ok(None);
    }
    let admission: Admission = Arc::new(move |key| {
        world.get().is_some_and(|world| {
            let world = world.borrow();
            world
                .node_by_key(key)
                .is_some_and(|node| !world.presence(node.id).expired)
        })
    });
    let settings = RelayConfig {
        listen: config.relay.listen,
        stun_listen: Some(config.relay.stun_listen),
        hostname: config.relay_hostname(),
        data_dir: config.data_dir.clone(),
        region_id: config.relay.region_id,
        admission: Some(admission),
        limits: tailwharf_relay::Limits::default(),
    };
    Relay::start(settings, stop).await.map(Some)
}

fn make_data_dir(path: &Path) -> Result<(), StartError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| StartError::DataDir {
        path: path.to_owned(),
        source,
    })
}

fn server_key(store: &mut dyn Store, saved: &Saved) -> Result<MachinePrivate, StoreError> {
    if let Some(key) = &saved.server_key {
        return Ok(key.clone());
    }
    let key = MachinePrivate::generate(&mut OsRng);
    store.set_server_key(&key)?;
    Ok(key)
}

fn context(config: &Config) -> Context {
    Context {
        now: Timestamp::now(),
        rng: StdRng::from_rng(OsRng).unwrap_or_else(|_| StdRng::from_entropy()),
        prefixes: config.prefixes,
        suffix: config.magic_dns_suffix.clone(),
        server_url: config.server_url.clone(),
    }
}

fn active_policy(saved: &Saved) -> Result<ActivePolicy, StartError> {
    let version = saved.policy.clone().unwrap_or_else(|| PolicyVersion {
        version: 0,
        text: DEFAULT_POLICY.into(),
        actor: Actor::Administrator,
        created: Timestamp::UNIX_EPOCH,
    });
    let policy = Policy::parse(&version.text).map_err(StartError::StoredPolicy)?;
    Ok(ActivePolicy {
        version: Arc::new(version),
        policy: Arc::new(policy),
    })
}

async fn set_first_policy(ops: &Operations, config: &Config) -> Result<(), StartError> {
    let Some(path) = config.policy_file.clone() else {
        tracing::warn!("no policy is set: every device may reach every other one");
        return Ok(());
    };
    let text = fs::read_to_string(&path).map_err(|source| StartError::PolicyFile {
        path: path.clone(),
        source,
    })?;
    ops.set_policy(Actor::Administrator, text, None)
        .await
        .map(drop)
        .map_err(|source| StartError::Policy { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_policy_is_one() {
        let active = active_policy(&Saved::default()).unwrap();
        assert_eq!(active.version.version, 0);
    }
}
