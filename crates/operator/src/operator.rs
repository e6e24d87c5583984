//! Start-up, workers and shutdown.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ListParams};
use rand::Rng;
use tailwharf_control_api::{self as control, ControlApi};
use tailwharf_kube_types::Identity;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::Settings;
use crate::controllers::{Context, reconcile};
use crate::error::is_not_found;
use crate::events::Events;
use crate::execute::Executor;
use crate::http::{Pages, serve};
use crate::lease::{Elector, Leadership};
use crate::metrics::Metrics;
use crate::queue::Next;
use crate::release::{released, remove_leases};
use crate::world::World;

/// Keys worked on at a time. Work is waiting for answers, so this is not about processors.
const WORKERS: usize = 16;
/// Everything is looked at again in this time, whatever the watches told.
const FULL_PASS: Duration = Duration::from_secs(600);
/// How long the workers may take to finish when the process is asked to stop.
const DRAIN: Duration = Duration::from_secs(15);
/// How long the start waits for the control server's opinion of the credentials.
const CREDENTIALS_CHECK: Duration = Duration::from_secs(10);
const LEASE: &str = "tailwharf-operator";

/// Why the operator did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address for health and metrics cannot be used.
    #[error("{address} cannot be listened on for health and metrics")]
    Listen {
        /// The address.
        address: SocketAddr,
        #[source]
        /// Why.
        source: std::io::Error,
    },
    /// The custom resource is not installed.
    #[error(
        "the cluster does not know identities.tailwharf.dev: apply tailwharf's manifest with its CustomResourceDefinitions first"
    )]
    CrdMissing,
    /// The cluster does not answer.
    #[error("the Kubernetes API does not answer")]
    Unreachable(#[source] Box<kube::Error>),
    /// The cluster refuses this operator.
    #[error(
        "the cluster does not let the operator read identities in namespace {namespace}: check its ServiceAccount, Role and RoleBinding"
    )]
    Cluster {
        /// The operator's namespace.
        namespace: String,
        /// What the cluster said.
        #[source]
        source: Box<kube::Error>,
    },
    /// The control server refused the credentials.
    #[error(
        "the control server at {server} refused the operator's OAuth client: check CLIENT_ID_FILE and \
         CLIENT_SECRET_FILE, and that the client has the scopes auth_keys and devices:core"
    )]
    Credentials {
        /// The control server's URL.
        server: String,
        /// What the control server said.
        #[source]
        source: control::Error,
    },
}

/// The operator of one cluster and one tailnet.
pub struct Operator {
    client: Client,
    control: Arc<dyn ControlApi>,
    settings: Settings,
}

impl Operator {
    /// An operator that writes to this cluster and this tailnet.
    pub fn new(client: Client, control: Arc<dyn ControlApi>, settings: Settings) -> Self {
        Self {
            client,
            control,
            settings,
        }
    }

    /// Runs until `stop`, or until nothing is left of it if it is to leave the cluster. Everything that it started ends with the returned future.
    ///
    /// # Errors
    /// When the cluster or the credentials are not what it needs to start.
    pub async fn run(self, stop: CancellationToken) -> Result<(), StartError> {
        let Self {
            client,
            control,
            settings,
        } = self;
        let Settings {
            plan,
            control: _,
            replica,
            health_listen,
        } = settings;
        let listener = TcpListener::bind(health_listen)
            .await
            .map_err(|source| StartError::Listen {
                address: health_listen,
                source,
            })?;
        let elector = Elector::new(client.clone(), &plan.namespace, LEASE, &replica);
        let leadership = elector.leadership();
        let world = Arc::new(World::new(plan));
        let metrics = Arc::new(Metrics::default());
        let mut background = JoinSet::new();
        let pages = Arc::new(Health {
            world: world.clone(),
            metrics: metrics.clone(),
            leadership: leadership.clone(),
        });
        background.spawn(serve(listener, pages, stop.clone()));

        check_cluster(&client, &world.settings.namespace).await?;
        check_credentials(control.as_ref(), &world.settings.login_server).await?;
        world.follow(&client, &metrics, &mut background);
        tokio::select! {
            () = world.synced() => {}
            () = stop.cancelled() => return Ok(()),
        }
        tracing::info!("the caches are filled");

        let executor = Executor {
            control,
            leadership: leadership.clone(),
            world: world.clone(),
            events: Events::new(client.clone(), &replica),
            metrics: metrics.clone(),
            client: client.clone(),
        };
        let context = Arc::new(Context {
            world: world.clone(),
            executor,
        });
        background.spawn(passes(world.clone(), leadership.clone()));
        let resign = CancellationToken::new();
        let elected = tokio::spawn(elector.run(resign.clone()));
        let elected = AbortOnDrop(elected);
        let mut workers = JoinSet::new();
        let drain = stop.child_token();
        for _ in 0..WORKERS {
            workers.spawn(work(
                context.clone(),
                leadership.clone(),
                metrics.clone(),
                drain.clone(),
            ));
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = released(&world), if world.settings.releasing => drain.cancel(),
        }
        if timeout(DRAIN, async { while workers.join_next().await.is_some() {} })
            .await
            .is_err()
        {
            tracing::warn!("some work did not finish in time; the next replica takes it up");
        }
        workers.shutdown().await;
        resign.cancel();
        elected.finished().await;
        if world.settings.releasing && !stop.is_cancelled() {
            let namespace = &world.settings.namespace;
            remove_leases(&client, namespace, LEASE)
                .await
                .map_err(|source| StartError::Cluster {
                    namespace: namespace.clone(),
                    source: source.into(),
                })?;
        }
        Ok(())
    }
}

/// A task that ends with its owner.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl AbortOnDrop {
    async fn finished(mut self) {
        // It was aborted or panicked: either way it has ended.
        let _ = (&mut self.0).await;
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One worker: takes keys while this replica leads.
async fn work(
    context: Arc<Context>,
    mut leadership: Leadership,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let queue = &context.world.queue;
    loop {
        let key = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            key = async {
                leadership.held().await;
                queue.next().await
            } => key,
        };
        let start = Instant::now();
        let (next, result) = match reconcile(&context, &key, Timestamp::now()).await {
            Ok(done) => (done.next, done.result),
            Err(not_leading) => {
                tracing::debug!(key = ?key, reason = %not_leading, "left to the replica that leads");
                (Next::Now, "not_leading")
            }
        };
        tracing::debug!(key = ?key, result, next = ?next, took = ?start.elapsed(), "reconciled");
        metrics.reconciled(key.controller(), result, start.elapsed());
        queue.done(&key, next);
    }
}

/// Puts everything in line whenever this replica begins to lead, and from time to time.
async fn passes(world: Arc<World>, mut leadership: Leadership) {
    loop {
        leadership.held().await;
        world.wake_all();
        let pause = FULL_PASS.mul_f64(rand::thread_rng().gen_range(0.9..1.1));
        tokio::select! {
            () = sleep(pause) => {}
            () = leadership.lost() => {}
        }
    }
}

struct Health {
    world: Arc<World>,
    metrics: Arc<Metrics>,
    leadership: Leadership,
}

impl Pages for Health {
    fn ready(&self) -> Result<(), String> {
        match self.world.missing() {
            None => Err("looking at the cluster and the control server".to_owned()),
            Some(missing) if missing.is_empty() => Ok(()),
            Some(missing) => Err(format!("waiting for the first list of {}", missing.join(", "))),
        }
    }

    fn metrics(&self) -> String {
        self.metrics.render(&self.world.gauges(self.leadership.holds()))
    }
}

async fn check_cluster(client: &Client, namespace: &str) -> Result<(), StartError> {
    let identities: Api<Identity> = Api::namespaced(client.clone(), namespace);
    match identities.list(&ListParams::default().limit(1)).await {
        Ok(_) => Ok(()),
        Err(error) if is_not_found(&error) => Err(StartError::CrdMissing),
        Err(source @ kube::Error::Api(_)) => Err(StartError::Cluster {
            namespace: namespace.to_owned(),
            source: source.into(),
        }),
        Err(source) => Err(StartError::Unreachable(source.into())),
    }
}

/// Refused credentials are for people to change; a control server that does not answer may do so later.
async fn check_credentials(control: &dyn ControlApi, server: &str) -> Result<(), StartError> {
    let Ok(outcome) = timeout(CREDENTIALS_CHECK, control.verify()).await else {
        tracing::warn!(
            server,
            "the control server does not answer yet; starting without it"
        );
        return Ok(());
    };
    match outcome {
        Ok(()) => Ok(()),
        Err(source @ (control::Error::CredentialsRefused { .. } | control::Error::Forbidden { .. })) => {
            Err(StartError::Credentials {
                server: server.to_owned(),
                source,
            })
        }
        Err(error) => {
            tracing::warn!(server, error = %error, "the control server does not answer yet; starting without it");
            Ok(())
        }
    }
}
