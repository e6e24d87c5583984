//! The only writer: carries out plans, one step after the other.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ObjectReference, Secret as KubeSecret};
use kube::Client;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use kube::core::ApiResource;
use serde_json::{Value, json};
use tailwharf_control_api::{self as control, ControlApi, CreateKey, DeviceFilter, DeviceId, KeyId, Secret};
use tailwharf_kube_types::contract::OPERATOR_FIELD_MANAGER;
use tailwharf_kube_types::{AuthKey, Parent, Tag};
use tailwharf_plan::{
    Applied, Failure, FailureKind, Filled, Kind, Manifest, ObjectRef, Plan, Slot, Status, StatusPatch, Step,
};
use tokio::time::timeout;

use crate::certificates::{CERTIFICATE, PRIVATE_KEY};
use crate::error::{cluster_failure, control_failure, is_conflict, is_not_found, no_answer};
use crate::events::Events;
use crate::lease::Leadership;
use crate::metrics::Metrics;
use crate::world::World;

/// A write of the cluster that takes longer counts as unanswered.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// What became of a plan, and how long to leave the other side alone at least.
pub(crate) struct Executed {
    pub(crate) applied: Applied,
    pub(crate) least_wait: Duration,
}

/// This replica does not lead (any more); nothing else was written.
#[derive(Debug, thiserror::Error)]
#[error("another replica leads now")]
pub(crate) struct NotLeading;

/// Writes to the cluster and to the control server.
pub(crate) struct Executor {
    pub(crate) client: Client,
    pub(crate) control: Arc<dyn ControlApi>,
    pub(crate) leadership: Leadership,
    pub(crate) world: Arc<World>,
    pub(crate) events: Events,
    pub(crate) metrics: Arc<Metrics>,
}

/// Values that came into being during one plan.
#[derive(Default)]
struct Run {
    filled: Filled,
    /// A key that no Secret holds yet.
    unused_key: Option<KeyId>,
    least_wait: Duration,
}

impl Executor {
    /// Takes the steps in order and stops at the first that fails.
    pub(crate) async fn execute(&self, plan: &Plan) -> Result<Executed, NotLeading> {
        let Plan {
            steps,
            wake_at: _,
            report: _,
        } = plan;
        let mut run = Run::default();
        for (done, step) in steps.iter().enumerate() {
            if !self.leadership.holds() {
                self.revoke_unused(&run).await;
                return Err(NotLeading);
            }
            if let Err(failure) = self.take(step, &mut run).await {
                tracing::debug!(step = ?step, kind = failure.kind.category(), message = failure.message, "a step failed");
                // After a write without an answer the key may be in the Secret.
                if failure.kind != FailureKind::ClusterUnreachable {
                    self.revoke_unused(&run).await;
                }
                return Ok(Executed {
                    applied: Applied::stopped(done, failure),
                    least_wait: run.least_wait,
                });
            }
        }
        Ok(Executed {
            applied: Applied::complete(steps.len()),
            least_wait: run.least_wait,
        })
    }

    async fn take(&self, step: &Step, run: &mut Run) -> Result<(), Failure> {
        match step {
            Step::SetFinalizers {
                object,
                resource_version,
                finalizers,
            } => {
                let metadata = json!({ "resourceVersion": resource_version, "finalizers": finalizers });
                self.patch(object, &Patch::Merge(json!({ "metadata": metadata })))
                    .await
            }
            Step::SetExternalName {
                object,
                external_name,
            } => {
                let spec = json!({ "type": "ExternalName", "externalName": external_name, "selector": null });
                self.patch(object, &Patch::Merge(json!({ "spec": spec }))).await
            }
            Step::MintAuthKey {
                slot,
                tags,
                ephemeral,
                description,
            } => {
                let request = CreateKey {
                    tags: strings(tags),
                    ephemeral: *ephemeral,
                    description: description.clone(),
                    ..CreateKey::default()
                };
                self.mint(*slot, tags, &request, run).await
            }
            Step::SetDeviceTags { device, tags } => {
                let names = strings(tags);
                let id = DeviceId(device.clone());
                let outcome = self.control.set_device_tags(&id, &names).await;
                self.control_outcome("set_device_tags", outcome, tags, run)
            }
            Step::DeleteDevice { device } => {
                let id = DeviceId(device.clone());
                let outcome = gone_is_success(self.control.delete_device(&id).await);
                self.control_outcome("delete_device", outcome, &[], run)
            }
            Step::DeleteDeviceOfKey { node_key } => {
                let outcome = self.delete_device_of_key(node_key).await;
                self.control_outcome("delete_device", outcome, &[], run)
            }
            Step::RevokeAuthKey { key } => {
                let outcome = gone_is_success(self.control.delete_key(&KeyId(key.clone())).await);
                self.control_outcome("delete_key", outcome, &[], run)
            }
            Step::Apply(manifest) => self.apply(manifest, run).await,
            Step::CopyCertificate {
                from,
                resource_version,
                to,
                certificate,
            } => {
                self.copy_certificate(from, resource_version, to, certificate)
                    .await
            }
            Step::DropCertificates { from, certificates } => {
                let keys = certificates.iter().flat_map(|name| {
                    [
                        (format!("{name}.crt"), Value::Null),
                        (format!("{name}.key"), Value::Null),
                    ]
                });
                let data: serde_json::Map<String, Value> = keys.collect();
                self.patch(from, &Patch::Merge(json!({ "data": data }))).await
            }
            Step::Delete { object, uid } => self.delete(object, uid.clone()).await,
        }
    }

    /// Reads a certificate and its key where their owner keeps them, and writes them to the Secret that the identity's host reads.
    async fn copy_certificate(
        &self,
        from: &ObjectRef,
        resource_version: &str,
        to: &ObjectRef,
        certificate: &str,
    ) -> Result<(), Failure> {
        self.metrics.wrote("get", "Secret");
        let api: Api<KubeSecret> = Api::namespaced(self.client.clone(), &from.namespace);
        let source = in_time(from, api.get(&from.name))
            .await?
            .map_err(|error| cluster_failure(&format!("get {from}"), &error))?;
        let data = source.data.unwrap_or_default();
        let (crt, key) = (data.get(CERTIFICATE), data.get(PRIVATE_KEY));
        let same = source.metadata.resource_version.as_deref() == Some(resource_version);
        let (Some(crt), Some(key), true) = (crt, key, same) else {
            return Err(Failure {
                kind: FailureKind::Conflict,
                message: format!("{from} has changed"),
            });
        };
        let data = json!({format!("{certificate}.crt"): crt, format!("{certificate}.key"): key});
        self.patch(to, &Patch::Merge(json!({ "data": data }))).await
    }

    /// Removes the device that a host registered and did not write down.
    async fn delete_device_of_key(&self, node_key: &str) -> Result<(), control::Error> {
        let devices = self.control.list_devices(&DeviceFilter::default()).await?;
        for device in devices.iter().filter(|device| device.node_key == node_key) {
            gone_is_success(self.control.delete_device(&device.id).await)?;
        }
        Ok(())
    }

    async fn mint(
        &self,
        slot: Slot,
        tags: &[Tag],
        request: &CreateKey,
        run: &mut Run,
    ) -> Result<(), Failure> {
        let outcome = self.control.create_key(request).await;
        let control::AuthKey { id, key, expires: _ } =
            self.control_outcome("create_key", outcome, tags, run)?;
        run.filled
            .set(slot, AuthKey::new(Secret::expose(&key).to_owned()));
        run.unused_key = Some(id);
        Ok(())
    }

    async fn apply(&self, manifest: &Manifest, run: &mut Run) -> Result<(), Failure> {
        let body = manifest.fill(&run.filled).map_err(|error| Failure {
            kind: FailureKind::ClusterRefused,
            message: error.to_string(),
        })?;
        self.claim(&manifest.object, &body)?;
        self.patch(&manifest.object, &Patch::Apply(body)).await?;
        if !manifest.slots.is_empty() {
            run.unused_key = None;
        }
        Ok(())
    }

    /// Refuses to write over an object of somebody else.
    fn claim(&self, object: &ObjectRef, body: &Value) -> Result<(), Failure> {
        let owner = self.world.owner(object);
        if owner.is_none_or(|owner| owner == labelled(&body["metadata"]["labels"])) {
            return Ok(());
        }
        Err(Failure {
            kind: FailureKind::NameTaken,
            message: format!("{object} exists and was not made for this; it stays as it is"),
        })
    }

    async fn patch(&self, object: &ObjectRef, patch: &Patch<Value>) -> Result<(), Failure> {
        let params = PatchParams::apply(OPERATOR_FIELD_MANAGER);
        let (verb, params) = match patch {
            Patch::Apply(_) => ("apply", params.force()),
            _ => ("patch", params),
        };
        self.metrics.wrote(verb, object.kind.as_str());
        let written = in_time(object, self.api(object).patch(&object.name, &params, patch)).await?;
        match written {
            Ok(answer) => {
                self.world.remember(object.kind, answer);
                Ok(())
            }
            Err(error) => Err(cluster_failure(&format!("{verb} {object}"), &error)),
        }
    }

    async fn delete(&self, object: &ObjectRef, uid: Option<String>) -> Result<(), Failure> {
        self.metrics.wrote("delete", object.kind.as_str());
        let uid_given = uid.is_some();
        let preconditions = Preconditions {
            uid,
            resource_version: None,
        };
        let params = DeleteParams {
            preconditions: Some(preconditions),
            ..DeleteParams::default()
        };
        match in_time(object, self.api(object).delete(&object.name, &params)).await? {
            Ok(_) => Ok(()),
            Err(error) if is_not_found(&error) || (uid_given && is_conflict(&error)) => Ok(()),
            Err(error) => Err(cluster_failure(&format!("delete {object}"), &error)),
        }
    }

    /// Tells people: the status first, then the events on `object` that go with its change.
    pub(crate) async fn tell(
        &self,
        status: &Status,
        object: Option<&ObjectReference>,
    ) -> Result<Option<Failure>, NotLeading> {
        let Status {
            patch,
            identity,
            events,
        } = status;
        if !self.leadership.holds() {
            return Err(NotLeading);
        }
        for patch in [patch, identity].into_iter().flatten() {
            if let Err(failure) = self.write_status(patch).await {
                return Ok(Some(failure));
            }
        }
        if let Some(object) = object {
            for event in events {
                self.metrics.wrote("create", "Event");
                self.events.publish(event, object).await;
            }
        }
        Ok(None)
    }

    /// Writes statuses, one after the other; the first failure ends it.
    pub(crate) async fn write_statuses(
        &self,
        patches: &[StatusPatch],
    ) -> Result<Option<Failure>, NotLeading> {
        for patch in patches {
            if !self.leadership.holds() {
                return Err(NotLeading);
            }
            if let Err(failure) = self.write_status(patch).await {
                return Ok(Some(failure));
            }
        }
        Ok(None)
    }

    async fn write_status(&self, patch: &StatusPatch) -> Result<(), Failure> {
        let StatusPatch { object, body } = patch;
        self.metrics.wrote("apply_status", object.kind.as_str());
        let params = PatchParams::apply(OPERATOR_FIELD_MANAGER).force();
        let body = Patch::Apply(body);
        match in_time(
            object,
            self.api(object).patch_status(&object.name, &params, &body),
        )
        .await?
        {
            Ok(answer) => {
                self.world.remember(object.kind, answer);
                Ok(())
            }
            // Whoever deleted it does not wait for news of it.
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(cluster_failure(&format!("status of {object}"), &error)),
        }
    }

    fn api(&self, object: &ObjectRef) -> Api<DynamicObject> {
        let resource = api_resource(object.kind);
        if object.namespace.is_empty() {
            return Api::all_with(self.client.clone(), &resource);
        }
        Api::namespaced_with(self.client.clone(), &object.namespace, &resource)
    }

    fn control_outcome<T>(
        &self,
        call: &'static str,
        outcome: Result<T, control::Error>,
        tags: &[Tag],
        run: &mut Run,
    ) -> Result<T, Failure> {
        self.metrics.called_control(
            call,
            outcome.as_ref().map_or_else(control::Error::category, |_| "ok"),
        );
        outcome.map_err(|error| {
            if let control::Error::RateLimited {
                retry_after: Some(wait),
            } = &error
            {
                run.least_wait = *wait;
            }
            control_failure(&error, tags)
        })
    }

    /// Takes back a key that no Secret got. It would end on its own; this is tidiness, so a failure is only told.
    async fn revoke_unused(&self, run: &Run) {
        let Some(id) = &run.unused_key else { return };
        let outcome = self.control.delete_key(id).await;
        self.metrics.called_control(
            "delete_key",
            outcome.as_ref().map_or_else(control::Error::category, |()| "ok"),
        );
        if let Err(error) = outcome {
            tracing::info!(key = %id, error = %error, "an auth key that nothing uses was not revoked; it expires on its own");
        }
    }
}

/// What does not exist needs no removal.
fn gone_is_success(outcome: Result<(), control::Error>) -> Result<(), control::Error> {
    match outcome {
        Err(control::Error::NotFound { .. }) => Ok(()),
        other => other,
    }
}

/// Waits for the answer to a write, for a limited time.
async fn in_time<T>(object: &ObjectRef, write: impl Future<Output = T>) -> Result<T, Failure> {
    timeout(WRITE_TIMEOUT, write)
        .await
        .map_err(|_| no_answer(&format!("write {object}")))
}

/// Where objects of a kind live in the API.
pub(crate) fn api_resource(kind: Kind) -> ApiResource {
    let api_version = kind.api_version();
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: api_version.to_owned(),
        kind: kind.as_str().to_owned(),
        plural: kind.plural().to_owned(),
    }
}

/// For whom an object with these labels is.
fn labelled(labels: &Value) -> Option<Parent> {
    let labels = labels.as_object()?;
    let text = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
    Parent::from_labels(&labels.iter().filter_map(text).collect())
}

fn strings(tags: &[Tag]) -> Vec<String> {
    tags.iter().map(|tag| tag.as_str().to_owned()).collect()
}
