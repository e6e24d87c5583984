//! A cluster and a control server made of maps, on which plans are carried out.

#![allow(dead_code, reason = "each test binary uses a part of it")]

mod snapshots;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};
use tailwharf_kube_types::Identity;
use tailwharf_kube_types::contract::PARKED_POOL;
use tailwharf_kube_types::secret::SecretText;
use tailwharf_plan::identity::SecretView;
use tailwharf_plan::ingress::{self, CertificateSecret};
use tailwharf_plan::service::{self, Problem, Validated};
use tailwharf_plan::{
    Applied, Failure, FailureKind, Filled, Kind, ObjectRef, Plan, PoolSettings, Settings, Slot, Status,
    StatusPatch, Step, egress, operator_device, pool,
};

pub(crate) const NAMESPACE: &str = "tailscale";

pub(crate) fn settings() -> Settings {
    Settings {
        namespace: NAMESPACE.to_owned(),
        login_server: "http://control:8080".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
        default_tags: vec!["tag:k8s".parse().unwrap()],
        operator_hostname: "tailscale-operator".parse().unwrap(),
        operator_tags: vec!["tag:k8s-operator".parse().unwrap()],
        api_server_proxy: false,
        default_load_balancer: false,
        ingress_class: "tailscale".to_owned(),
        acme_directory: None,
        default_class: None,
        watch_namespaces: Vec::new(),
        releasing: false,
        pool: PoolSettings {
            replicas: 2,
            image: "tailwharf.test/tailwharf:dev".to_owned(),
            logging: String::new(),
            pull_secrets: Vec::new(),
        },
    }
}

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

/// Objects, devices and keys.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct World {
    /// Each object, and the body that the operator applied last.
    pub(crate) objects: BTreeMap<ObjectRef, Value>,
    applied: BTreeMap<ObjectRef, Value>,
    /// Types of the conditions that the operator applied to an Identity.
    owned: BTreeMap<ObjectRef, BTreeSet<String>>,
    /// What is known of the Secrets of people's certificates, by name.
    pub(crate) certificates: BTreeMap<String, CertificateSecret>,
    /// What Kubernetes knows of the pods behind Services.
    pub(crate) endpoints: Vec<EndpointSlice>,
    /// The pods of the cluster, once they are known.
    pub(crate) pods: Option<egress::Pods>,
    /// Tags of each device.
    pub(crate) devices: BTreeMap<String, String>,
    /// Tags of each auth key that was not used.
    pub(crate) keys: BTreeMap<String, String>,
    /// The device of each node key that registered.
    pub(crate) registered: BTreeMap<String, String>,
    /// The auth key that a host has read, for each identity, and the node key that it has written.
    sessions: BTreeMap<String, (String, String)>,
    pub(crate) control_down: bool,
    /// Tags that the control server gives no key for.
    pub(crate) refused_tag: Option<String>,
    version: u64,
    serial: u64,
}

impl World {
    pub(crate) fn put(&mut self, object: ObjectRef, mut body: Value) {
        self.version += 1;
        body["metadata"]["resourceVersion"] = json!(self.version.to_string());
        body["metadata"]["name"] = json!(object.name);
        if !object.namespace.is_empty() {
            body["metadata"]["namespace"] = json!(object.namespace);
        }
        self.objects.insert(object, body);
    }

    pub(crate) fn get<T: serde::de::DeserializeOwned>(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
    ) -> Option<T> {
        let body = self.objects.get(&ObjectRef::new(kind, namespace, name))?;
        Some(serde_json::from_value(body.clone()).unwrap())
    }

    pub(crate) fn of_kind<T: serde::de::DeserializeOwned>(&self, kind: Kind) -> Vec<T> {
        let all = self.objects.iter().filter(|(object, _)| object.kind == kind);
        all.map(|(_, body)| serde_json::from_value(body.clone()).unwrap())
            .collect()
    }

    /// Carries out a plan up to `limit` steps, as an operator that dies then.
    pub(crate) fn execute(&mut self, plan: &Plan, limit: usize) -> Applied {
        let mut filled = Filled::default();
        for (done, step) in plan.steps.iter().enumerate().take(limit) {
            if let Err(failure) = self.take(step, &mut filled) {
                return Applied::stopped(done, failure);
            }
        }
        Applied::complete(plan.steps.len().min(limit))
    }

    fn take(&mut self, step: &Step, filled: &mut Filled) -> Result<(), Failure> {
        let failure = |kind, message: &str| {
            Err(Failure {
                kind,
                message: message.to_owned(),
            })
        };
        let reaches_control = matches!(
            step,
            Step::MintAuthKey { .. }
                | Step::SetDeviceTags { .. }
                | Step::DeleteDevice { .. }
                | Step::DeleteDeviceOfKey { .. }
                | Step::RevokeAuthKey { .. }
        );
        if reaches_control && self.control_down {
            return failure(FailureKind::ControlServerUnreachable, "connection refused");
        }
        match step {
            Step::SetFinalizers {
                object,
                resource_version,
                finalizers,
            } => {
                let Some(body) = self.objects.get(object) else {
                    return failure(FailureKind::ClusterRefused, "not found");
                };
                if body["metadata"]["resourceVersion"] != json!(resource_version) {
                    return failure(FailureKind::Conflict, "the object has changed");
                }
                let mut body = body.clone();
                body["metadata"]["finalizers"] = json!(finalizers);
                self.put(object.clone(), body.clone());
                if finalizers.is_empty() && body["metadata"].get("deletionTimestamp").is_some() {
                    self.objects.remove(object);
                }
            }
            Step::SetExternalName {
                object,
                external_name,
            } => {
                let Some(mut body) = self.objects.get(object).cloned() else {
                    return failure(FailureKind::ClusterRefused, "not found");
                };
                body["spec"]["type"] = json!("ExternalName");
                body["spec"]["externalName"] = json!(external_name);
                if let Some(spec) = body["spec"].as_object_mut() {
                    for field in ["selector", "clusterIP", "clusterIPs", "ipFamilies"] {
                        spec.remove(field);
                    }
                }
                self.put(object.clone(), body);
            }
            Step::MintAuthKey { slot, tags, .. } => {
                if let Some(refused) = &self.refused_tag
                    && tags.iter().any(|tag| tag.as_str() == refused)
                {
                    let message = format!("tag {refused} is not owned");
                    return failure(FailureKind::AuthKeyRefused { tags: tags.clone() }, &message);
                }
                self.serial += 1;
                let key = format!("tskey-auth-{}-secret", self.serial);
                self.keys
                    .insert(key.clone(), tailwharf_kube_types::Tag::join(tags));
                assert_eq!(*slot, Slot::AuthKey);
                filled.set(*slot, SecretText::new(key));
            }
            Step::SetDeviceTags { device, tags } => {
                self.devices
                    .insert(device.clone(), tailwharf_kube_types::Tag::join(tags));
            }
            Step::DeleteDevice { device } => {
                self.devices.remove(device);
            }
            Step::DeleteDeviceOfKey { node_key } => {
                if let Some(device) = self.registered.remove(node_key) {
                    self.devices.remove(&device);
                }
            }
            Step::RevokeAuthKey { key } => {
                self.keys.remove(&format!("tskey-auth-{key}-secret"));
            }
            Step::Apply(manifest) => {
                let body = manifest.fill(filled).unwrap();
                self.apply(&manifest.object, body);
            }
            Step::CopyCertificate {
                from,
                resource_version,
                to,
                certificate,
            } => {
                if !self.copy_certificate(from, resource_version, to, certificate) {
                    return failure(FailureKind::Conflict, "the Secret has changed");
                }
            }
            Step::DropCertificates { from, certificates } => self.drop_certificates(from, certificates),
            Step::Delete { object, uid } => {
                let current = self
                    .objects
                    .get(object)
                    .map(|body| body["metadata"]["uid"].clone());
                if uid.as_ref().is_none_or(|uid| current == Some(json!(uid))) {
                    self.objects.remove(object);
                    self.applied.remove(object);
                }
            }
        }
        Ok(())
    }

    /// Whether the Secret is there in this version.
    fn copy_certificate(&mut self, from: &ObjectRef, version: &str, to: &ObjectRef, name: &str) -> bool {
        let source = self.objects.get(from).cloned().unwrap_or_default();
        if source["metadata"]["resourceVersion"] != json!(version) {
            return false;
        }
        let mut body = self.objects[to].clone();
        for part in ["crt", "key"] {
            body["data"][format!("{name}.{part}")] = source["data"][format!("tls.{part}")].clone();
        }
        self.put(to.clone(), body);
        true
    }

    fn drop_certificates(&mut self, from: &ObjectRef, names: &[String]) {
        let mut body = self.objects[from].clone();
        let data = body["data"].as_object_mut().unwrap();
        data.retain(|key, _| {
            !names
                .iter()
                .any(|name| *key == format!("{name}.crt") || *key == format!("{name}.key"))
        });
        self.put(from.clone(), body);
    }

    /// Server-side apply by one manager: fields that are no longer applied go, those of others stay.
    fn apply(&mut self, object: &ObjectRef, body: Value) {
        self.serial += 1;
        let mut current = self
            .objects
            .get(object)
            .cloned()
            .unwrap_or_else(|| json!({"metadata": {"uid": format!("uid-{}", self.serial)}}));
        let spec_before = current.get("spec").cloned();
        if let Some(before) = self.applied.get(object) {
            remove_fields(&mut current, before, &body);
        }
        merge(&mut current, &body);
        if object.kind == Kind::Identity && current.get("spec").cloned() != spec_before {
            let generation = current["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
            current["metadata"]["generation"] = json!(generation);
        }
        if object.kind == Kind::Service && current["spec"]["clusterIPs"].is_null() {
            if current["spec"]["clusterIP"] == "None" {
                current["spec"]["clusterIPs"] = json!(["None"]);
            } else {
                current["spec"]["clusterIP"] = json!("10.96.7.7");
                current["spec"]["clusterIPs"] = json!(["10.96.7.7", "fd00::7"]);
            }
            current["spec"]["ipFamilies"] = json!(["IPv4", "IPv6"]);
        }
        self.applied.insert(object.clone(), body);
        self.put(object.clone(), current);
    }

    /// A host begins: it reads the key of the identity's Secret.
    pub(crate) fn host_reads(&mut self, name: &str) {
        let secret = self.get::<Secret>(Kind::Secret, NAMESPACE, &format!("{name}-0"));
        let identity = self.get::<Identity>(Kind::Identity, NAMESPACE, name);
        let exists = identity.is_some_and(|identity| identity.spec.pool != PARKED_POOL);
        let key = secret
            .and_then(|secret| secret.data)
            .and_then(|mut data| data.remove("auth_key"));
        let (true, Some(auth_key)) = (exists, key) else {
            return;
        };
        // The keys of the node are written before it registers.
        let secret = ObjectRef::new(Kind::Secret, NAMESPACE, &format!("{name}-0"));
        let mut state = self.objects[&secret].clone();
        if state["data"]["tailwharf.json"].is_null() {
            self.serial += 1;
            let text = json!({"nodeKey": format!("nodekey:{}", self.serial)}).to_string();
            state["data"]["tailwharf.json"] = json!(k8s_openapi::ByteString(text.into_bytes()));
            self.put(secret, state.clone());
        }
        let view = SecretView::from_secret(&serde_json::from_value(state).unwrap());
        let session = (String::from_utf8(auth_key.0).unwrap(), view.node_key.unwrap());
        self.sessions.insert(name.to_owned(), session);
    }

    /// A host registers with the key it has read: its node key is known already, or the auth key is good. It dies before it writes the device down.
    pub(crate) fn host_registers_and_dies(&mut self, name: &str) -> Option<String> {
        let (auth_key, node_key) = self.sessions.remove(name)?;
        if let Some(device) = self
            .registered
            .get(&node_key)
            .filter(|id| self.devices.contains_key(*id))
        {
            return Some(device.clone());
        }
        let tags = self.keys.remove(&auth_key)?;
        self.serial += 1;
        let device = format!("n{}", self.serial);
        self.devices.insert(device.clone(), tags);
        self.registered.insert(node_key, device.clone());
        Some(device)
    }

    /// A host ends what it began: it registers with the key it has read, writes the device down, and tells that it is ready.
    pub(crate) fn host_registers(&mut self, name: &str, now: Timestamp) {
        let secret = ObjectRef::new(Kind::Secret, NAMESPACE, &format!("{name}-0"));
        if let Some(device) = self.host_registers_and_dies(name)
            && let Some(mut state) = self.objects.get(&secret).cloned()
        {
            if let Some(data) = state["data"].as_object_mut() {
                data.remove("auth_key");
            }
            state["data"]["device_id"] = json!(k8s_openapi::ByteString(device.into_bytes()));
            self.put(secret.clone(), state);
        }
        let identity = ObjectRef::new(Kind::Identity, NAMESPACE, name);
        let state = self
            .get::<Secret>(Kind::Secret, NAMESPACE, &secret.name)
            .map(|secret| SecretView::from_secret(&secret));
        let (Some(mut body), Some(device)) = (
            self.objects.get(&identity).cloned(),
            state.and_then(|state| state.device_id),
        ) else {
            return;
        };
        if body["spec"]["pool"] == PARKED_POOL {
            return;
        }
        let generation = body["metadata"]["generation"].clone();
        let told = body["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let done = |kind: &str| {
            let time = now.to_string();
            json!({"type": kind, "status": "True", "reason": "Done", "message": "Done.", "lastTransitionTime": time})
        };
        let conditions: Vec<Value> = told
            .into_iter()
            .filter(|condition| condition["type"] == "Accepted")
            .chain(["Advertised", "CertificateReady", "Ready"].map(done))
            .collect();
        let hostname = body["spec"]["hostname"].as_str().unwrap().to_owned();
        body["status"] = json!({
            "deviceId": device, "fqdn": format!("{hostname}.tail.ts.net"), "host": "tailwharf-default-0",
            "hostAddresses": ["10.244.0.7"], "addresses": ["100.64.0.7", "fd7a:115c:a1e0::7"], "observedGeneration": generation,
            "conditions": conditions,
        });
        self.put(identity, body);
    }
}

/// One pass over a Service: what a controller does.
pub(crate) struct Pass {
    pub(crate) validated: Result<Validated, Vec<Problem>>,
    pub(crate) plan: Plan,
    pub(crate) applied: Applied,
    pub(crate) status: Status,
}

impl World {
    pub(crate) fn reconcile_service(
        &mut self,
        namespace: &str,
        name: &str,
        settings: &Settings,
        now: Timestamp,
        limit: usize,
    ) -> Pass {
        let snapshot = self.service_snapshot(namespace, name, settings);
        let validated = service::validate(&snapshot, settings);
        let plan = validated
            .as_ref()
            .map(|validated| service::build(validated, settings, now))
            .unwrap_or_default();
        let applied = self.execute(&plan, limit);
        let status = service::status(&snapshot, &validated, &plan, &applied, settings, now);
        if limit >= plan.steps.len()
            && let Some(patch) = &status.patch
            && let Some(mut body) = self.objects.get(&patch.object).cloned()
        {
            body["status"] = patch.body["status"].clone();
            self.put(patch.object.clone(), body);
        }
        Pass {
            validated,
            plan,
            applied,
            status,
        }
    }

    pub(crate) fn reconcile_ingress(
        &mut self,
        namespace: &str,
        name: &str,
        settings: &Settings,
        now: Timestamp,
        limit: usize,
    ) -> (Plan, Status) {
        let snapshot = self.ingress_snapshot(namespace, name, settings);
        let validated = ingress::validate(&snapshot, settings, now);
        let plan = ingress::build(&validated, settings, now);
        let applied = self.execute(&plan, limit);
        let status = ingress::status(&snapshot, &validated, &plan, &applied, settings, now);
        if limit >= plan.steps.len() {
            for patch in [&status.patch, &status.identity].into_iter().flatten() {
                self.apply_status(patch);
            }
        }
        (plan, status)
    }

    /// Server-side apply of a status by the operator: of conditions it owns those that it applied before.
    fn apply_status(&mut self, patch: &StatusPatch) {
        let Some(mut body) = self.objects.get(&patch.object).cloned() else {
            return;
        };
        let mut wanted = patch.body["status"].clone();
        if let Some(own) = wanted["conditions"].as_array().cloned() {
            let owned = self.owned.entry(patch.object.clone()).or_default();
            let type_of = |condition: &Value| condition["type"].as_str().unwrap_or_default().to_owned();
            let others = body["status"]["conditions"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let kept = others.into_iter().filter(|condition| {
                let name = type_of(condition);
                !owned.contains(&name) && !own.iter().any(|own| type_of(own) == name)
            });
            wanted["conditions"] = json!(kept.chain(own.clone()).collect::<Vec<_>>());
            *owned = own.iter().map(type_of).collect();
        }
        merge(&mut body["status"], &wanted);
        self.put(patch.object.clone(), body);
    }

    pub(crate) fn reconcile_pool(&mut self, settings: &Settings, limit: usize) -> Plan {
        self.reconcile_pool_of("default", settings, limit)
    }

    pub(crate) fn reconcile_pool_of(&mut self, pool: &str, settings: &Settings, limit: usize) -> Plan {
        let plan = pool::build(&self.pool_snapshot(pool), settings);
        self.execute(&plan, limit);
        plan
    }

    pub(crate) fn reconcile_operator(&mut self, settings: &Settings, now: Timestamp, limit: usize) -> Plan {
        let observed = self.observed(&operator_device::parent(settings));
        let plan = operator_device::build(&observed, settings, now);
        self.execute(&plan, limit);
        plan
    }
}

fn merge(current: &mut Value, body: &Value) {
    match (current, body) {
        (Value::Object(current), Value::Object(body)) => {
            for (key, value) in body {
                merge(current.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (current, body) => *current = body.clone(),
    }
}

/// Takes away the leaves that were applied before and are not any more.
fn remove_fields(current: &mut Value, before: &Value, after: &Value) {
    let (Value::Object(current), Value::Object(before)) = (current, before) else {
        return;
    };
    for (key, value) in before {
        let after = after.get(key);
        if value.is_object() {
            let Some(inner) = current.get_mut(key) else {
                continue;
            };
            remove_fields(inner, value, after.unwrap_or(&Value::Null));
            if after.is_none() && inner.as_object().is_some_and(serde_json::Map::is_empty) {
                current.remove(key);
            }
        } else if after.is_none() {
            current.remove(key);
        }
    }
}
