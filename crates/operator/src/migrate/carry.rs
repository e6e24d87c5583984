//! Carrying out the steps of a migration.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::rbac::v1::Role;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tailwharf_kube_types::contract::{OPERATOR_FIELD_MANAGER, PARKED_POOL, annotation};
use tailwharf_kube_types::secret::key;
use tailwharf_kube_types::{ConditionStatus, ConditionType, Identity, Parent, names};
use tailwharf_plan::migrate::{Awaited, Copy, Leftovers, Return, Step, Switch, is_applied, is_state_key};
use tailwharf_plan::pool::granted;
use tokio::time::Instant;

use super::wait::{Missing, until};
use crate::error::is_not_found;

/// How long the pods of an operator, or of a StatefulSet, may take to end.
const END_LIMIT: Duration = Duration::from_secs(60);
/// How long a device may take to be up at its new host.
const HOST_LIMIT: Duration = Duration::from_secs(60);
/// How long a pod of the Go operator may take, with the pull of its image.
const PROXY_LIMIT: Duration = Duration::from_secs(180);
/// How long a pod that gives up its device may take to say goodbye, in seconds.
const GRACE: u32 = 2;
/// The finalizer by which the Go operator holds its headless Services.
const RECORDS_FINALIZER: &str = "tailscale.com/dns-records-reconciler";

/// Writes to one namespace, as whoever runs the command.
pub(super) struct Carrier {
    pub(super) client: Client,
    pub(super) namespace: String,
}

impl Carrier {
    /// Takes a step and tells of it. What is returned is how long a device was away.
    pub(super) async fn told(&self, step: &Step, tell: &(dyn Fn(&str) + Sync)) -> Result<Option<Duration>> {
        let gap = self.take(step).await.with_context(|| step.to_string())?;
        match gap {
            Some(gap) => tell(&format!(
                "done: {step} (without a device for {:.1} s)",
                gap.as_secs_f64()
            )),
            None => tell(&format!("done: {step}")),
        }
        Ok(gap)
    }

    async fn take(&self, step: &Step) -> Result<Option<Duration>> {
        match step {
            Step::Prepare(copy) => self.copy(copy).await?,
            Step::AwaitPool { pool, secrets } => self.pool_is_ready(pool, secrets).await?,
            Step::StopOperator { deployment, replicas } => self.stop_operator(deployment, *replicas).await?,
            Step::Switch(switch) => return self.switch(switch).await.map(Some),
            Step::Await(awaited) => self.hosted(awaited).await?,
            Step::Remove(left) => self.remove(left).await?,
            Step::Return(back) => self.give_back(back).await?,
            Step::StartOperator { deployment, replicas } => {
                let patch = json!({
                    "metadata": {"annotations": {annotation::REPLICAS_BEFORE: null}},
                    "spec": {"replicas": replicas},
                });
                self.patch::<Deployment>(deployment, &patch).await?;
            }
            Step::AwaitProxy { secret } => self.proxy_runs(secret).await?,
        }
        Ok(None)
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn patch<K>(&self, name: &str, patch: &Value) -> Result<K, kube::Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned,
    {
        let params = PatchParams {
            field_manager: Some(OPERATOR_FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        self.api::<K>().patch(name, &params, &Patch::Merge(patch)).await
    }

    async fn delete<K>(&self, name: &str) -> Result<(), kube::Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned,
    {
        match self.api::<K>().delete(name, &DeleteParams::background()).await {
            Ok(_) => Ok(()),
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Makes the one Secret hold the state that the other holds.
    async fn copy(&self, copy: &Copy) -> Result<()> {
        let Copy {
            from,
            to,
            labels,
            device,
        } = copy;
        let api = self.api::<Secret>();
        let source = api.get(from).await.with_context(|| format!("Secret {from}"))?;
        let data: BTreeMap<_, _> = source
            .data
            .unwrap_or_default()
            .into_iter()
            .filter(|(key, _)| is_state_key(key))
            .collect();
        let Some(target) = api.get_opt(to).await.with_context(|| format!("Secret {to}"))? else {
            let secret: Secret = serde_json::from_value(json!({
                "metadata": {"name": to, "labels": labels}, "data": data,
            }))?;
            api.create(&PostParams::default(), &secret)
                .await
                .with_context(|| format!("Secret {to}"))?;
            return Ok(());
        };
        let there = target.data.as_ref().and_then(|data| data.get(key::DEVICE_ID));
        ensure!(
            there.is_none_or(|id| id.0.is_empty() || id.0 == device.id.as_bytes()),
            "Secret {to} holds the state of another device; delete it if that is not needed"
        );
        let patch = json!({"metadata": {"labels": labels}, "data": data});
        self.patch::<Secret>(to, &patch)
            .await
            .with_context(|| format!("Secret {to}"))?;
        Ok(())
    }

    /// Waits until a pool has a pod that may read these Secrets.
    async fn pool_is_ready(&self, pool: &str, secrets: &[String]) -> Result<()> {
        let name = names::pool_objects_name(pool);
        let (sets, roles) = (self.api::<StatefulSet>(), self.api::<Role>());
        until(PROXY_LIMIT, &format!("pool {pool} has a pod"), async || {
            let granted = granted(roles.get_opt(&name).await?.as_ref());
            if let Some(secret) = secrets.iter().find(|secret| !granted.contains(*secret)) {
                return Err(Missing::Yet(format!("Role {name} does not name Secret {secret}")));
            }
            let status = sets.get_opt(&name).await?.and_then(|set| set.status);
            match status.and_then(|status| status.ready_replicas) {
                None | Some(0) => Err(Missing::Yet(format!("no pod of StatefulSet {name} is ready"))),
                Some(_) => Ok(()),
            }
        })
        .await
    }

    async fn stop_operator(&self, deployment: &str, replicas: i32) -> Result<()> {
        let patch = json!({
            "metadata": {"annotations": {annotation::REPLICAS_BEFORE: replicas.to_string()}},
            "spec": {"replicas": 0},
        });
        let stopped = self.patch::<Deployment>(deployment, &patch).await?;
        let selector = stopped
            .spec
            .and_then(|spec| spec.selector.match_labels)
            .unwrap_or_default();
        let selector: Vec<String> = selector
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let params = ListParams::default().labels(&selector.join(","));
        let pods = self.api::<Pod>();
        until(END_LIMIT, "the operator's pods have ended", async || {
            match pods.list(&params).await?.items.first() {
                None => Ok(()),
                Some(pod) => Err(Missing::Yet(format!("pod {} is still there", pod.name_any()))),
            }
        })
        .await
    }

    /// Takes the devices of one object over. What is returned is how long they were away.
    async fn switch(&self, switch: &Switch) -> Result<Duration> {
        let Switch {
            parent: _,
            set,
            replicas,
            copies,
            identities,
        } = switch;
        let before = json!({
            "metadata": {"annotations": {annotation::REPLICAS_BEFORE: replicas.to_string()}},
            "spec": {"replicas": 0},
        });
        self.patch::<StatefulSet>(set, &before).await?;
        let began = Instant::now();
        for ordinal in 0..*replicas {
            self.end_pod(&format!("{set}-{ordinal}")).await?;
        }
        for copy in copies {
            self.copy(copy).await?;
        }
        let handed_over = json!({"metadata": {"annotations": {annotation::HANDED_OVER: "true"}}});
        self.patch::<StatefulSet>(set, &handed_over).await?;
        for awaited in identities {
            self.hosted(awaited).await?;
        }
        Ok(began.elapsed())
    }

    /// Ends a pod and waits until it is gone, and with it the last who uses the device's key.
    async fn end_pod(&self, name: &str) -> Result<()> {
        let pods = self.api::<Pod>();
        let params = DeleteParams {
            grace_period_seconds: Some(GRACE),
            ..DeleteParams::default()
        };
        match pods.delete(name, &params).await {
            Ok(_) => {}
            Err(error) if is_not_found(&error) => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("pod {name}")),
        }
        until(END_LIMIT, &format!("pod {name} has ended"), async || {
            match pods.get_opt(name).await? {
                None => Ok(()),
                Some(_) => Err(Missing::Yet("it is still there".to_owned())),
            }
        })
        .await
    }

    /// Waits until peers can reach the device at its host.
    async fn hosted(&self, awaited: &Awaited) -> Result<()> {
        let Awaited { identity, device } = awaited;
        let api = self.api::<Identity>();
        let what = format!("Identity {identity} has its device");
        until(HOST_LIMIT, &what, async || {
            let status = api.get(identity).await?.status.unwrap_or_default();
            if let (Some(wanted), Some(found)) = (device, &status.device_id)
                && wanted.id != *found
            {
                return Err(Missing::Yet(format!("it has {found}, not {wanted}")));
            }
            match status.step(ConditionType::Advertised) {
                (ConditionStatus::True, _) => Ok(()),
                _ => {
                    let conditions = status.conditions.iter();
                    let waits = conditions.filter(|condition| condition.status != "True");
                    let waits: Vec<_> = waits.map(|condition| condition.message.as_str()).collect();
                    Err(Missing::Yet(format!(
                        "it is not reachable yet: {}",
                        waits.join(" ")
                    )))
                }
            }
        })
        .await
    }

    async fn remove(&self, left: &Leftovers) -> Result<()> {
        let Leftovers {
            parent: _,
            sets,
            services,
            secrets,
        } = left;
        for name in sets {
            self.delete::<StatefulSet>(name).await?;
        }
        for name in services {
            self.free_service(name).await?;
            self.delete::<Service>(name).await?;
        }
        for name in secrets {
            self.delete::<Secret>(name).await?;
        }
        Ok(())
    }

    /// Takes the finalizer of the Go operator's DNS records from a Service, since nobody is there to do so.
    async fn free_service(&self, name: &str) -> Result<(), kube::Error> {
        let Some(service) = self.api::<Service>().get_opt(name).await? else {
            return Ok(());
        };
        let finalizers = service.finalizers();
        if !finalizers.iter().any(|finalizer| finalizer == RECORDS_FINALIZER) {
            return Ok(());
        }
        let left: Vec<_> = finalizers
            .iter()
            .filter(|name| *name != RECORDS_FINALIZER)
            .collect();
        let patch = json!({"metadata": {"finalizers": left, "resourceVersion": service.resource_version()}});
        self.patch::<Service>(name, &patch).await.map(drop)
    }

    async fn give_back(&self, back: &Return) -> Result<()> {
        let Return {
            parent,
            identities,
            copies,
            service,
            set,
        } = back;
        for identity in identities {
            self.park(identity).await?;
        }
        for copy in copies {
            self.copy(copy).await?;
        }
        self.remove_own(parent).await?;
        for identity in identities {
            self.delete::<Identity>(identity).await?;
            self.delete::<Secret>(&names::secret_name(identity)).await?;
            self.delete::<Secret>(&names::certificates_name(identity)).await?;
        }
        if let Some((name, uid)) = service {
            self.make_headless(parent, name, uid).await?;
        }
        if let Some((name, replicas)) = set {
            let patch = json!({
                "metadata": {"annotations": {annotation::HANDED_OVER: null, annotation::REPLICAS_BEFORE: null}},
                "spec": {"replicas": replicas},
            });
            self.patch::<StatefulSet>(name, &patch).await?;
        }
        Ok(())
    }

    /// Makes the host of an Identity let it go, and waits until it has.
    async fn park(&self, identity: &str) -> Result<()> {
        match self
            .patch::<Identity>(identity, &json!({"spec": {"pool": PARKED_POOL}}))
            .await
        {
            Ok(_) => {}
            Err(error) if is_not_found(&error) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let api = self.api::<Identity>();
        until(
            END_LIMIT,
            &format!("the host of Identity {identity} lets it go"),
            async || {
                let status = api.get_opt(identity).await?.and_then(|identity| identity.status);
                match status.and_then(|status| status.host) {
                    None => Ok(()),
                    Some(host) => Err(Missing::Yet(format!("pod {host} has it"))),
                }
            },
        )
        .await
    }

    /// Removes what led pods of the cluster to an object's Identity.
    async fn remove_own(&self, parent: &Parent) -> Result<(), kube::Error> {
        let params = ListParams::default().labels(&parent.selector());
        for service in self.api::<Service>().list(&params).await? {
            if is_applied(&service.metadata) {
                self.delete::<Service>(&service.name_any()).await?;
            }
        }
        for slice in self.api::<EndpointSlice>().list(&params).await? {
            if is_applied(&slice.metadata) {
                self.delete::<EndpointSlice>(&slice.name_any()).await?;
            }
        }
        Ok(())
    }

    /// Makes the Service by whose labels the Go operator finds the name of everything that it made for an object.
    async fn make_headless(&self, parent: &Parent, name: &str, uid: &str) -> Result<()> {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": parent.labels()},
            "spec": {"clusterIP": "None", "selector": {"app": uid}, "ipFamilyPolicy": "PreferDualStack"},
        }))?;
        match self
            .api::<Service>()
            .create(&PostParams::default(), &service)
            .await
        {
            Ok(_) => Ok(()),
            Err(error) if crate::error::is_conflict(&error) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("Service {name}")),
        }
    }

    /// Waits until a pod of the Go operator has written itself into the Secret of its device.
    async fn proxy_runs(&self, secret: &str) -> Result<()> {
        let (pods, secrets) = (self.api::<Pod>(), self.api::<Secret>());
        until(PROXY_LIMIT, &format!("pod {secret} has its device"), async || {
            let Some(pod) = pods.get_opt(secret).await? else {
                return Err(Missing::Yet("there is no such pod".to_owned()));
            };
            let data = secrets.get(secret).await?.data.unwrap_or_default();
            let uid = data.get(key::POD_UID).map(|uid| uid.0.as_slice());
            if uid.is_some() && uid == pod.metadata.uid.as_deref().map(str::as_bytes) {
                return Ok(());
            }
            Err(Missing::Yet("the pod has not begun".to_owned()))
        })
        .await
    }
}
