//! A kube-apiserver with tailwharf's manifests, and what tests do to it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use http::HeaderValue;
use http::header::USER_AGENT;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Secret, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tailwharf_control_api::fake::Fake;
use tailwharf_control_api::{ClientConfig, ControlApi, Credentials, Device};
use tailwharf_kube_types::conditions::conditions;
use tailwharf_kube_types::contract::PROXY_READY;
use tailwharf_kube_types::{ConditionType, Identity, StateSecret, Step, names};
use tailwharf_operator::{Operator, Settings, StartError};
use tailwharf_testkit::apiserver::free_port;
use tailwharf_testkit::{ApiServer, Kubectl, workspace};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::{Handle, Runtime};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const NAMESPACE: &str = "tailscale";
const ACCOUNT: &str = "system:serviceaccount:tailscale:operator";
const PATIENCE: Duration = Duration::from_secs(30);

/// The fixture of all cases.
pub(crate) struct Bed {
    pub(crate) runtime: Runtime,
    pub(crate) cluster: Cluster,
    pub(crate) tailnet: Arc<Fake>,
}

/// The cluster as an administrator sees it.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    server: ApiServer,
    operators: u32,
}

impl Bed {
    pub(crate) fn start() -> Result<Self> {
        let server = ApiServer::start()?;
        let kubectl = Kubectl::new(server.kubeconfig());
        install(&kubectl)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let client = runtime.block_on(client(server.kubeconfig(), "admin", None))?;
        let tailnet = Arc::new(Fake::new(["tag:k8s", "tag:k8s-operator"]));
        Ok(Self {
            runtime,
            cluster: Cluster {
                client,
                server,
                operators: 0,
            },
            tailnet,
        })
    }
}

/// Applies the manifests of tailwharf.
fn install(kubectl: &Kubectl) -> Result<()> {
    let manifest = |path: &str| workspace::root().join("deploy").join(path).display().to_string();
    let (crds, operator) = (manifest("crds"), manifest("operator.yaml"));
    let apply = ["apply", "--server-side", "--force-conflicts"];
    kubectl.run(&[&apply[..], &["-f", &crds, "-f", &operator]].concat())?;
    let wait = [
        "wait",
        "--for",
        "condition=established",
        "crd",
        "--all",
        "--timeout",
        "20s",
    ];
    kubectl.run(&wait).map(drop)
}

async fn client(kubeconfig: &Path, agent: &str, account: Option<&str>) -> Result<Client> {
    let mut kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    for named in &mut kubeconfig.auth_infos {
        if let Some(user) = &mut named.auth_info {
            user.impersonate = account.map(str::to_owned);
        }
    }
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.headers.push((USER_AGENT, HeaderValue::from_str(agent)?));
    Ok(Client::try_from(config)?)
}

/// An operator at work. Dropping it ends it in the middle of whatever it does.
pub(crate) struct Running {
    task: JoinHandle<Result<(), StartError>>,
    stop: CancellationToken,
    agent: String,
    health: SocketAddr,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Running {
    /// Asks it to stop and waits.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.stop.cancel();
        Ok((&mut self.task).await??)
    }

    /// How it ended on its own.
    pub(crate) async fn ended(mut self) -> Result<(), StartError> {
        tokio::time::timeout(PATIENCE, &mut self.task)
            .await
            .expect("it ends")
            .expect("it does not panic")
    }

    pub(crate) async fn page(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(self.health).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: operator\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// Sum of the samples of a metric whose labels contain `labels`.
    pub(crate) async fn metric(&self, name: &str, labels: &str) -> Result<u64> {
        let page = self.page("/metrics").await?;
        let lines = page
            .lines()
            .filter(|line| line.starts_with(name) && line.contains(labels));
        lines
            .map(|line| Ok(line.rsplit(' ').next().unwrap_or_default().parse::<u64>()?))
            .sum()
    }
}

/// A request: verb, resource, name.
pub(crate) type Request = (String, String, String);

impl Cluster {
    pub(crate) fn kubectl(&self) -> Kubectl {
        Kubectl::new(self.server.kubeconfig())
    }

    /// Applies the manifests of tailwharf again.
    pub(crate) fn install(&self) -> Result<()> {
        install(&self.kubectl())
    }

    pub(crate) fn operate(&mut self, control: Arc<Fake>) -> Result<Running> {
        self.operate_as(control, "operator-0")
    }

    /// Starts an operator, as a replica of this name.
    pub(crate) fn operate_as(&mut self, control: Arc<Fake>, replica: &str) -> Result<Running> {
        self.operate_with(control, replica, &[])
    }

    /// Starts an operator that serves these namespaces only.
    pub(crate) fn operate_with(
        &mut self,
        control: Arc<Fake>,
        replica: &str,
        namespaces: &[&str],
    ) -> Result<Running> {
        self.operators += 1;
        // A closing letter, so that no name begins with another.
        let agent = format!("operator-test-{}x", self.operators);
        let health = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let mut settings = settings(replica, health)?;
        settings.plan.watch_namespaces = namespaces.iter().map(|name| (*name).to_owned()).collect();
        let stop = CancellationToken::new();
        let kubeconfig = self.server.kubeconfig().clone();
        let (stopping, its_agent) = (stop.clone(), agent.clone());
        let task = Handle::current().spawn(async move {
            let client = client(&kubeconfig, &its_agent, Some(ACCOUNT))
                .await
                .expect("a client");
            let control: Arc<dyn ControlApi> = control;
            Operator::new(client, control, settings).run(stopping).await
        });
        Ok(Running {
            task,
            stop,
            agent,
            health,
        })
    }

    /// Requests of an operator so far, without watches and its Lease.
    pub(crate) fn requests(&self, operator: &Running) -> Result<Vec<Request>> {
        let all = self.server.requests_of(&operator.agent)?;
        Ok(all
            .into_iter()
            .filter(|(verb, resource, _)| verb != "watch" && resource != "leases")
            .collect())
    }

    pub(crate) fn services(&self, namespace: &str) -> Api<Service> {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub(crate) fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    pub(crate) fn identities(&self) -> Api<Identity> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    pub(crate) async fn namespace(&self, name: &str) -> Result<()> {
        let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
        Api::all(self.client.clone())
            .create(&PostParams::default(), &namespace)
            .await?;
        Ok(())
    }

    /// Creates a Service with one TCP port; `over` is merged into it.
    pub(crate) async fn service(&self, namespace: &str, name: &str, over: &Value) -> Result<Service> {
        let mut body = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "annotations": {}},
            "spec": {"ports": [{"port": 80}], "selector": {"app": name}},
        });
        merge(&mut body, over);
        Ok(self
            .services(namespace)
            .create(&PostParams::default(), &serde_json::from_value(body)?)
            .await?)
    }

    pub(crate) async fn change(&self, namespace: &str, name: &str, patch: &Value) -> Result<()> {
        let patch = Patch::Merge(patch);
        self.services(namespace)
            .patch(name, &PatchParams::default(), &patch)
            .await?;
        Ok(())
    }

    pub(crate) async fn delete(&self, namespace: &str, name: &str) -> Result<()> {
        self.services(namespace)
            .delete(name, &DeleteParams::default())
            .await?;
        Ok(())
    }

    /// Waits until the Service's condition passes `wanted`.
    pub(crate) async fn condition(
        &self,
        namespace: &str,
        name: &str,
        wanted: impl Fn(&Condition) -> bool,
    ) -> Result<Condition> {
        until("the condition of the Service", async || {
            let service = self.services(namespace).get(name).await?;
            let found = condition(&service).ok_or_else(|| anyhow!("it has none"))?;
            if wanted(&found) {
                Ok(found)
            } else {
                bail!("{found:?}")
            }
        })
        .await
    }

    /// Waits for the Identity of a Service.
    pub(crate) async fn identity(&self, service: &Service) -> Result<Identity> {
        let name = names::identity_name(&service.name_any(), &service.uid().unwrap_or_default());
        until("the Identity", async || Ok(self.identities().get(&name).await?)).await
    }

    /// Waits until nothing is left that was made for Services: only the operator's own device and the pool's accounts.
    pub(crate) async fn empty(&self) -> Result<()> {
        let accounts = names::account_secret_name("default");
        until("nothing is left", async || {
            let identities = self.identities().list(&ListParams::default()).await?;
            let secrets = self
                .secrets()
                .list(&ListParams::default().labels("tailscale.com/managed=true"))
                .await?;
            let names = identities
                .iter()
                .map(ResourceExt::name_any)
                .chain(secrets.iter().map(ResourceExt::name_any));
            let left: Vec<_> = names
                .filter(|name| !name.starts_with(names::OPERATOR_IDENTITY))
                .filter(|name| *name != accounts)
                .collect();
            if left.is_empty() {
                Ok(())
            } else {
                bail!("{} objects, {:?} among them", left.len(), left.first())
            }
        })
        .await
    }

    /// Does what a proxy does: registers with the auth key, writes the state down, reports the device as ready.
    pub(crate) async fn host(&self, tailnet: &Fake, identity: &Identity) -> Result<Device> {
        let device = self.register(tailnet, identity).await?;
        let now = Timestamp::now();
        let mut done: Vec<_> = ConditionType::STEPS.map(|step| Step::done(step, "Done.")).into();
        if identity.spec.web.is_some() {
            done.push(Step::done(ConditionType::CertificateReady, "Done."));
        }
        let status = json!({
            "deviceId": device.id, "fqdn": device.name, "addresses": device.addresses, "host": "tailwharf-default-0",
            "hostAddresses": ["10.1.2.3"], "observedGeneration": identity.metadata.generation,
            "conditions": conditions(&done, &[], identity.metadata.generation, now),
        });
        let body = json!({
            "apiVersion": "tailwharf.dev/v1alpha1", "kind": "Identity",
            "metadata": {"name": identity.name_any()}, "status": status,
        });
        let params = PatchParams::apply("tailwharf-default-0").force();
        self.identities()
            .patch_status(&identity.name_any(), &params, &Patch::Apply(body))
            .await?;
        Ok(device)
    }

    /// Registers with the auth key, and writes the device into the Secret.
    pub(crate) async fn register(&self, tailnet: &Fake, identity: &Identity) -> Result<Device> {
        let name = names::secret_name(&identity.name_any());
        let data = self.secrets().get(&name).await?.data.unwrap_or_default();
        let mut state = StateSecret::from_data(&data)?;
        let key = state.auth_key.take().context("the Secret has no auth key")?;
        let hostname = identity.spec.hostname.as_str();
        let device = tailnet
            .join(&tailwharf_control_api::Secret::new(key.reveal()), hostname)
            .context("the tailnet does not know the key")?;
        state.device_id = Some(device.id.to_string());
        state.device_fqdn = Some(device.name.clone());
        state.device_ips = device.addresses.clone();
        let patch = Patch::Merge(state.merge_patch(&data).context("nothing changes")?);
        self.secrets()
            .patch(&name, &PatchParams::default(), &patch)
            .await?;
        Ok(device)
    }

    /// Waits until the operator's own device and pool are in order.
    pub(crate) async fn settled(&self, tailnet: &Fake) -> Result<()> {
        let own = until("the operator's Identity", async || {
            Ok(self.identities().get(names::OPERATOR_IDENTITY).await?)
        })
        .await?;
        if own.status.is_none() {
            self.host(tailnet, &own).await?;
        }
        Ok(())
    }
}

fn settings(replica: &str, health_listen: SocketAddr) -> Result<Settings> {
    let login_server = "http://control.test:8080";
    let plan = serde_json::from_value(json!({
        "namespace": NAMESPACE, "loginServer": login_server, "clusterDomain": "cluster.local", "defaultTags": ["tag:k8s"],
        "operatorHostname": "tailscale-operator", "operatorTags": ["tag:k8s-operator"],
        "defaultLoadBalancer": false, "ingressClass": "tailscale",
        "pool": {"replicas": 2, "image": "tailwharf.test/tailwharf:dev"},
    }))?;
    let credentials = Credentials::ApiKey(tailwharf_control_api::Secret::new("unused"));
    let control = ClientConfig::new(login_server.parse()?, credentials);
    Ok(Settings {
        plan,
        control,
        replica: replica.to_owned(),
        health_listen,
    })
}

pub(crate) fn exposed() -> Value {
    json!({"metadata": {"annotations": {"tailscale.com/expose": "true"}}})
}

pub(crate) fn condition(service: &Service) -> Option<Condition> {
    let conditions = service.status.as_ref()?.conditions.as_ref()?;
    conditions
        .iter()
        .find(|condition| condition.type_ == PROXY_READY)
        .cloned()
}

/// For conditions that have nothing more to tell.
pub(crate) fn holds(condition: bool) -> Result<()> {
    if condition {
        Ok(())
    } else {
        bail!("it does not hold")
    }
}

/// Looks until there is a value, for a limited time.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match look().await {
            Ok(value) => return Ok(value),
            Err(error) if tokio::time::Instant::now() > deadline => {
                return Err(error.context(format!("not in time: {what}")));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

fn merge(into: &mut Value, over: &Value) {
    match (into, over) {
        (Value::Object(into), Value::Object(over)) => {
            for (key, value) in over {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, over) => *into = over.clone(),
    }
}
