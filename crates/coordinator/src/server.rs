//! The coordinator as a whole: start, run, stop.

use std::{
    fs, net::SocketAddr, os::unix::fs::DirBuilderExt, path::PathBuf, sync::Arc, thread, time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use rand::{
    SeedableRng,
    rngs::{OsRng, StdRng},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tailwharf_policy::{Policy, PolicyError};
use tailwharf_wire::{
    key::{MachinePrivate, MachinePublic},
    tailcfg::DerpMap,
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, rustls};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::{Config, TlsFiles},
    gc, http,
    machine::Control,
    model::{Actor, PolicyVersion},
    ops::{Context, OpError, Operations},
    register::Rules,
    sessions::Sessions,
    store::{Saved, SqliteStore, Store, StoreError},
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
    #[error("the TLS files cannot be used: {what}")]
    Tls {
        /// What is wrong with which.
        what: String,
    },
    /// The address is taken or not one of this machine.
    #[error("cannot listen on {addr}: choose another `listen`")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The relay does not start.
    #[error("the relay does not start")]
    Relay(#[source] anyhow::Error),
    /// The system gives no thread.
    #[error("no thread for the store")]
    Thread(#[source] std::io::Error),
}

/// Starts coordinators.
#[derive(Debug)]
pub struct Coordinator;

/// A running coordinator. It stops when [`Handle::stop`] is called, or the token that it was started with is cancelled.
#[derive(Debug)]
pub struct Handle {
    local_addr: SocketAddr,
    server_key: MachinePublic,
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
        let data_dir = config.data_dir.clone();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&data_dir)
            .map_err(|source| StartError::DataDir {
                path: data_dir,
                source,
            })?;
        let tls = config.tls.as_ref().map(acceptor).transpose()?;
        let mut store = SqliteStore::open(&config.store_file())?;
        let saved = store.load()?;
        let server_key = server_key(&mut store, &saved)?;
        let first_start = saved.policy.is_none();

        let listen = |source| StartError::Listen {
            addr: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let local_addr = listener.local_addr().map_err(listen)?;

        let facts = Facts {
            prefixes: config.prefixes,
            suffix: config.magic_dns_suffix.clone(),
            derp_map: DerpMap {
                omit_default_regions: true,
                ..DerpMap::default()
            },
        };
        let world = Arc::new(World::load(
            facts,
            active_policy(&saved)?,
            saved,
            Timestamp::now(),
        ));
        let sessions = Arc::new(Sessions::new(world.clone()));
        let (published, worlds) = watch::channel(world);
        let (jobs, queue) = mpsc::channel(writer::QUEUE);
        let writer = Writer {
            store: Box::new(store),
            context: context(&config),
            clock: Timestamp::now,
            sessions: sessions.clone(),
            published,
        };
        let writer = writer.spawn(queue).map_err(StartError::Thread)?;
        let ops = Operations::new(jobs, worlds);
        if first_start {
            set_first_policy(&ops, &config).await?;
        }

        let tasks = TaskTracker::new();
        let public = server_key.public();
        let control = Arc::new(Control {
            ops: ops.clone(),
            sessions,
            server_key,
            stop: stop.clone(),
            tasks: tasks.clone(),
        });
        tasks.spawn(gc::run(
            control.clone(),
            config.nodes.ephemeral_grace(),
            Timestamp::now(),
        ));
        let permits = http::Permits::new(config.limits);
        tasks.spawn(http::listen(
            control.clone(),
            listener,
            tls,
            http::routes(control),
            permits,
        ));
        tracing::info!(%local_addr, server_url = %config.server_url, key = %public, "coordinator started");
        Ok(Handle {
            local_addr,
            server_key: public,
            ops,
            stop,
            tasks,
            writer,
        })
    }
}

impl Handle {
    /// Where nodes and the API are served.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The server's static Noise key.
    pub fn server_key(&self) -> MachinePublic {
        self.server_key
    }

    /// What can be done to the coordinator's data.
    pub fn operations(&self) -> &Operations {
        &self.ops
    }

    /// Ends all streams, answers what was asked, and closes the store.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        if timeout(STOP_TIME, self.tasks.wait()).await.is_err() {
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

/// Runs a coordinator until `stop` is cancelled.
///
/// # Errors
/// When it does not start.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let handle = Coordinator::start(config, stop.clone()).await?;
    stop.cancelled().await;
    handle.stop().await;
    Ok(())
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
    let days = i64::from(config.nodes.key_lifetime_days);
    Context {
        now: Timestamp::now(),
        rng: StdRng::from_rng(OsRng).unwrap_or_else(|_| StdRng::from_entropy()),
        prefixes: config.prefixes,
        suffix: config.magic_dns_suffix.clone(),
        rules: Rules {
            key_lifetime: (days > 0).then(|| SignedDuration::from_hours(24 * days)),
            require_approval: config.nodes.require_approval,
        },
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
        policy,
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

fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, StartError> {
    let wrong = |path: &std::path::Path, error: &dyn std::fmt::Display| StartError::Tls {
        what: format!("{}: {error}", path.display()),
    };
    let chain = CertificateDer::pem_file_iter(&files.cert_file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| wrong(&files.cert_file, &error))?;
    let key =
        PrivateKeyDer::from_pem_file(&files.key_file).map_err(|error| wrong(&files.key_file, &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(&files.cert_file, &error))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| wrong(&files.cert_file, &error))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
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
