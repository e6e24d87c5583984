//! Taking a namespace over from the Go operator and giving it back. What that operator made is made here by hand; no pods run.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, Secret, Service};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tailwharf_control_api::fake::Fake;
use tailwharf_control_api::{ControlApi as _, CreateKey, Device};
use tailwharf_kube_types::conditions::conditions;
use tailwharf_kube_types::{ConditionType, Identity, Parent, Step, names};
use tailwharf_operator::migrate::{Direction, Options, plan_with, run_with};

use crate::bed::{Bed, Cluster, NAMESPACE, Running, exposed, until};

const SET: &str = "ts-web-x7k2p";
const SERVER: &str = "http://control.test:8080";

fn options(direction: Direction) -> Options {
    Options {
        namespace: NAMESPACE.to_owned(),
        direction,
        leave_unserved: false,
        keep_old: false,
        parallel: 4,
    }
}

impl Cluster {
    fn own<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// What a Go operator and its proxy leave of an exposed Service: StatefulSet, headless Service, Secret, and a device.
    async fn made_by_go(&self, tailnet: &Fake, service: &Service) -> Result<Device> {
        let key = tailnet
            .create_key(&CreateKey {
                tags: vec!["tag:k8s".to_owned()],
                ..CreateKey::default()
            })
            .await?;
        let device = tailnet.join(&key.key, "web").context("the key is not known")?;
        let labels = Parent::service("migrated", "web").labels();
        let key = |byte: &str| format!("privkey:{}", byte.repeat(32));
        let profile = json!({
            "ControlURL": SERVER, "Hostname": "web", "WantRunning": true,
            "Config": {"PrivateNodeKey": key("02"), "NodeID": device.id.to_string()},
        });
        let secret = json!({
            "metadata": {"name": format!("{SET}-0"), "labels": labels},
            "stringData": {
                "_machinekey": key("01"), "_current-profile": "profile-ab12", "profile-ab12": profile.to_string(),
                "device_id": device.id.to_string(), "device_fqdn": format!("{}.", device.name),
                "device_ips": json!(device.addresses).to_string(),
                "cap-107.hujson": "{}", "tailscale_capver": "142",
            },
        });
        let post = PostParams::default();
        self.secrets()
            .create(&post, &serde_json::from_value(secret)?)
            .await?;
        let uid = service.uid().unwrap_or_default();
        let headless = json!({
            "metadata": {"name": SET, "labels": labels}, "spec": {"clusterIP": "None", "selector": {"app": uid}},
        });
        self.own::<Service>()
            .create(&post, &serde_json::from_value(headless)?)
            .await?;
        let set = json!({
            "metadata": {"name": SET, "labels": labels},
            "spec": {
                "replicas": 1, "serviceName": SET, "selector": {"matchLabels": {"app": uid}},
                "template": {
                    "metadata": {"labels": {"app": uid}}, "spec": {"containers": [{"name": "tailscale", "image": "none"}]},
                },
            },
        });
        self.own::<StatefulSet>()
            .create(&post, &serde_json::from_value(set)?)
            .await?;
        Ok(device)
    }

    /// A Deployment that says that it is the Go operator.
    async fn go_operator(&self) -> Result<()> {
        let deployment = json!({
            "metadata": {"name": "go-operator"},
            "spec": {
                "replicas": 1, "selector": {"matchLabels": {"app": "go-operator"}},
                "template": {"metadata": {"labels": {"app": "go-operator"}}, "spec": {"containers": [{
                    "name": "operator", "image": "none",
                    "env": [{"name": "OPERATOR_INITIAL_TAGS", "value": "tag:k8s-operator"}, {"name": "OPERATOR_SECRET", "value": "operator"}],
                }]}},
            },
        });
        let post = PostParams::default();
        self.own::<Deployment>()
            .create(&post, &serde_json::from_value(deployment)?)
            .await?;
        // That of tailwharf serves the tailnet of this test.
        let server = format!("OPERATOR_LOGIN_SERVER={SERVER}");
        self.kubectl()
            .run(&["-n", NAMESPACE, "set", "env", "deployment/operator", &server])?;
        Ok(())
    }

    /// What the controller of StatefulSets tells.
    async fn pods_are_ready(&self, set: &str) -> Result<()> {
        let status = json!({"status": {"replicas": 2, "readyReplicas": 2}});
        let params = PatchParams::default();
        self.own::<StatefulSet>()
            .patch_status(set, &params, &Patch::Merge(status))
            .await?;
        Ok(())
    }

    /// Does what a proxy does whose Secret has the state of a device already.
    async fn adopt(&self, name: &str) -> Result<()> {
        let identity = until("the Identity", async || Ok(self.identities().get(name).await?)).await?;
        let data = self
            .secrets()
            .get(&names::secret_name(name))
            .await?
            .data
            .unwrap_or_default();
        let id = data.get("device_id").context("no device in the Secret")?;
        let done: Vec<_> = ConditionType::STEPS.map(|step| Step::done(step, "Done.")).into();
        let status = json!({
            "deviceId": String::from_utf8_lossy(&id.0), "fqdn": "web.tail.ts.net", "host": "tailwharf-default-0",
            "observedGeneration": identity.metadata.generation,
            "conditions": conditions(&done, &[], identity.metadata.generation, Timestamp::now()),
        });
        self.tell(name, status).await
    }

    /// Does what a proxy does once its Identity left the pool. One that nobody hosts goes at once.
    async fn let_go(&self, name: &str) -> Result<()> {
        let is_there = until("the Identity is parked", async || {
            let Some(identity) = self.identities().get_opt(name).await? else {
                return Ok(false);
            };
            ensure!(
                identity.spec.pool == "none",
                "it is in pool {}",
                identity.spec.pool
            );
            Ok(true)
        })
        .await?;
        if is_there {
            self.tell(name, json!({"observedGeneration": 1})).await?;
        }
        Ok(())
    }

    async fn tell(&self, name: &str, status: Value) -> Result<()> {
        let body = json!({
            "apiVersion": "tailwharf.dev/v1alpha1", "kind": "Identity", "metadata": {"name": name}, "status": status,
        });
        let params = PatchParams::apply("tailwharf-default-0").force();
        self.identities()
            .patch_status(name, &params, &Patch::Apply(body))
            .await?;
        Ok(())
    }
}

async fn left_alone(operator: &Running) -> Result<()> {
    until("the operator leaves the Service to the other", async || {
        let left = operator
            .metric("tailwharf_operator_reconciliations_total", "left_to_another")
            .await?;
        ensure!(left > 0, "nothing was left");
        Ok(())
    })
    .await
}

pub(crate) fn a_namespace_goes_to_tailwharf_and_back(bed: &mut Bed) -> Result<()> {
    let Bed {
        runtime,
        cluster,
        tailnet,
    } = bed;
    runtime.block_on(async {
        cluster.namespace("migrated").await?;
        cluster.go_operator().await?;
        let service = cluster.service("migrated", "web", &exposed()).await?;
        let device = cluster.made_by_go(tailnet, &service).await?;
        let identity = names::identity_name("web", &service.uid().context("no uid")?);

        // Beside the Go operator it makes its pool, and nothing else.
        let operator = cluster.operate(tailnet.clone())?;
        left_alone(&operator).await?;
        until("the pool", async || {
            cluster.own::<StatefulSet>().get("tailwharf-default").await?;
            Ok(())
        })
        .await?;
        cluster.pods_are_ready("tailwharf-default").await?;
        ensure!(
            cluster.identities().get_opt(&identity).await?.is_none(),
            "it took over uncalled"
        );

        let go = options(Direction::Forward);
        let migration = plan_with(&cluster.client, &go).await?;
        ensure!(migration.obstacles.is_empty(), "{migration}");
        let tell = |line: &str| tracing::info!("{line}");
        let (moved, adopted) = tokio::join!(
            run_with(&cluster.client, &migration, &go, &tell),
            cluster.adopt(&identity),
        );
        adopted?;
        let gaps: Vec<Duration> = moved?;
        ensure!(gaps.len() == 1, "{gaps:?}");
        cluster
            .condition("migrated", "web", |condition| condition.status == "True")
            .await?;
        is_moved(cluster, tailnet, &identity, &device).await?;
        let again = plan_with(&cluster.client, &go).await?;
        ensure!(!again.to_string().contains("migrated/web"), "{again}");
        operator.stop().await?;

        Box::pin(returns(cluster, &identity, &device)).await?;
        clean(cluster, tailnet, &device).await
    })
}

/// The device is the same one, and what the Go operator made is gone.
async fn is_moved(cluster: &Cluster, tailnet: &Fake, identity: &str, device: &Device) -> Result<()> {
    let secret = cluster.secrets().get(&names::secret_name(identity)).await?;
    let data = secret.data.unwrap_or_default();
    ensure!(
        data.get("device_id")
            .is_some_and(|id| id.0 == device.id.to_string().as_bytes()),
        "another device"
    );
    ensure!(data.contains_key("profile-ab12"), "the key did not come along");
    ensure!(
        !data.contains_key("cap-107.hujson"),
        "the configuration of another's pod came along"
    );
    ensure!(
        !data.contains_key("auth_key"),
        "a key was made for a device that exists"
    );
    let devices = tailnet.devices();
    let found = devices
        .iter()
        .find(|found| found.id == device.id)
        .context("the device is gone")?;
    ensure!(found.addresses == device.addresses, "{found:?}");
    ensure!(
        cluster.own::<StatefulSet>().get_opt(SET).await?.is_none(),
        "the StatefulSet is still there"
    );
    ensure!(
        cluster.own::<Service>().get_opt(SET).await?.is_none(),
        "the Service is still there"
    );
    ensure!(
        cluster.secrets().get_opt(&format!("{SET}-0")).await?.is_none(),
        "the Secret is still there"
    );
    let go = cluster.own::<Deployment>().get("go-operator").await?;
    ensure!(
        go.spec.and_then(|spec| spec.replicas) == Some(0),
        "the Go operator runs"
    );
    Ok(())
}

async fn returns(cluster: &Cluster, identity: &str, device: &Device) -> Result<()> {
    let back = options(Direction::Back);
    let migration = plan_with(&cluster.client, &back).await?;
    ensure!(migration.obstacles.is_empty(), "{migration}");
    let tell = |line: &str| tracing::info!("{line}");
    let pod = async {
        let name = migration
            .steps
            .iter()
            .find_map(|step| match step {
                tailwharf_plan::migrate::Step::AwaitProxy { secret } => Some(secret.clone()),
                _ => None,
            })
            .ok_or_else(|| anyhow!("no proxy is waited for"))?;
        cluster.let_go(identity).await?;
        until("the state is back", async || {
            Ok(cluster.secrets().get(&name).await?)
        })
        .await?;
        // What the Go operator and its proxy do, in a namespace that admits nothing privileged.
        let restricted = json!({
            "runAsNonRoot": true, "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        });
        let container = json!({"name": "tailscale", "image": "none", "securityContext": restricted});
        let body = json!({"metadata": {"name": name}, "spec": {"containers": [container]}});
        let pods = cluster.own::<Pod>();
        let pod = pods
            .create(&PostParams::default(), &serde_json::from_value(body)?)
            .await?;
        let patch = json!({"stringData": {"pod_uid": pod.uid()}});
        let params = PatchParams::default();
        cluster
            .secrets()
            .patch(&name, &params, &Patch::Merge(patch))
            .await?;
        anyhow::Ok((name, pods))
    };
    let own = async {
        match cluster.identities().get_opt(names::OPERATOR_IDENTITY).await? {
            Some(_) => cluster.let_go(names::OPERATOR_IDENTITY).await,
            None => Ok(()),
        }
    };
    let (moved, pod, own) = tokio::join!(run_with(&cluster.client, &migration, &back, &tell), pod, own);
    let ((name, pods), ()) = (pod?, own?);
    moved?;
    let secret: Secret = cluster.secrets().get(&name).await?;
    let labels = Parent::service("migrated", "web").labels();
    ensure!(secret.labels() == &labels, "{:?}", secret.labels());
    let data = secret.data.unwrap_or_default();
    ensure!(
        data.get("device_id")
            .is_some_and(|id| id.0 == device.id.to_string().as_bytes()),
        "another device"
    );
    ensure!(data.contains_key("profile-ab12"), "the key did not come back");
    let (set, _) = name.rsplit_once('-').context("a name without ordinal")?;
    let headless = cluster.own::<Service>().get(set).await?;
    ensure!(headless.labels() == &labels, "{:?}", headless.labels());
    ensure!(
        cluster.identities().get_opt(identity).await?.is_none(),
        "the Identity is still there"
    );
    let go = cluster.own::<Deployment>().get("go-operator").await?;
    ensure!(
        go.spec.and_then(|spec| spec.replicas) == Some(1),
        "the Go operator does not run"
    );
    pods.delete(&name, &DeleteParams::default().grace_period(0))
        .await?;
    cluster
        .own::<Service>()
        .delete(set, &DeleteParams::default())
        .await?;
    cluster.secrets().delete(&name, &DeleteParams::default()).await?;
    Ok(())
}

/// Leaves the bed as it was.
async fn clean(cluster: &mut Cluster, tailnet: &Fake, device: &Device) -> Result<()> {
    cluster
        .own::<Deployment>()
        .delete("go-operator", &DeleteParams::default())
        .await?;
    tailnet.delete_device(&device.id).await?;
    cluster
        .kubectl()
        .run(&["-n", NAMESPACE, "scale", "deployment/operator", "--replicas=1"])?;
    let patch = json!({"metadata": {"finalizers": null}});
    cluster.change("migrated", "web", &patch).await?;
    cluster.delete("migrated", "web").await?;
    let left: Vec<Identity> = cluster.identities().list(&Default::default()).await?.items;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}
