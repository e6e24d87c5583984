//! The objects of a pool.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use tailwharf_kube_types::contract::{ALL_PORTS, DIRECT_PORT, HEALTH_PORT, label};
use tailwharf_kube_types::proxy_class::ProxyClassSpec;

use crate::identity::body;
use crate::plan::{Kind, Manifest, ObjectRef};
use crate::settings::PoolSettings;

/// The user of the image, which is nobody on the machine.
const USER: u32 = 65532;

/// What all objects of a pool have in common.
pub(super) struct Frame {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) pool: String,
    pub(super) settings: PoolSettings,
}

impl Frame {
    fn manifest(&self, kind: Kind, rest: Value) -> Manifest {
        let object = ObjectRef::new(kind, &self.namespace, &self.name);
        let body = body(&object, &self.labels, rest);
        Manifest {
            object,
            body,
            slots: Vec::new(),
        }
    }

    pub(super) fn service_account(&self) -> Manifest {
        self.manifest(Kind::ServiceAccount, self.settings.account(json!({})))
    }

    /// The Secret with the pool's accounts at certificate authorities, into which its pods write.
    pub(super) fn account_secret(&self, name: &str) -> Manifest {
        let object = ObjectRef::new(Kind::Secret, &self.namespace, name);
        let body = body(&object, &self.labels, json!({}));
        Manifest {
            object,
            body,
            slots: Vec::new(),
        }
    }

    /// A pod may follow the identities and tell about those it hosts, hold its member Lease, and read and write the named Secrets.
    pub(super) fn role(&self, secrets: &BTreeSet<String>) -> Manifest {
        let mut rules = vec![
            json!({"apiGroups": ["tailwharf.dev"], "resources": ["identities"], "verbs": ["get", "list", "watch"]}),
            json!({"apiGroups": ["tailwharf.dev"], "resources": ["identities/status"], "verbs": ["patch"]}),
            json!({
                "apiGroups": ["coordination.k8s.io"],
                "resources": ["leases"],
                "verbs": ["get", "list", "watch", "create", "update", "patch"],
            }),
            json!({"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]}),
        ];
        // A rule without names would be one for all Secrets.
        if !secrets.is_empty() {
            rules.push(json!({
                "apiGroups": [""],
                "resources": ["secrets"],
                "resourceNames": secrets,
                "verbs": ["get", "patch", "update"],
            }));
        }
        self.manifest(Kind::Role, json!({"rules": rules}))
    }

    pub(super) fn role_binding(&self) -> Manifest {
        let rest = json!({
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": self.name},
            "subjects": [{"kind": "ServiceAccount", "name": self.name, "namespace": self.namespace}],
        });
        self.manifest(Kind::RoleBinding, rest)
    }

    pub(super) fn disruption_budget(&self) -> Manifest {
        let rest = json!({"spec": {"maxUnavailable": 1, "selector": {"matchLabels": self.selector()}}});
        self.manifest(Kind::PodDisruptionBudget, rest)
    }

    /// The pods, as the class wants them; or the one pod of an identity that has all its ports.
    pub(super) fn stateful_set(&self, class: Option<&ProxyClassSpec>, all_ports: bool) -> Manifest {
        let mut manifest = self.plain_stateful_set();
        if all_ports {
            let spec = &mut manifest.body["spec"];
            spec["replicas"] = json!(1);
            let pod = &mut spec["template"]["spec"];
            pod["initContainers"] = json!([self.set_up()]);
            if let Some(env) = pod["containers"][0]["env"].as_array_mut() {
                env.push(json!({"name": "TAILWHARF_UDP_PORT", "value": DIRECT_PORT.to_string()}));
            }
        }
        if let Some(class) = class {
            super::class::dress(&mut manifest.body, class);
        }
        manifest
    }

    fn plain_stateful_set(&self) -> Manifest {
        let rest = json!({
            "spec": {
                "replicas": self.settings.replicas,
                "serviceName": self.name,
                "podManagementPolicy": "Parallel",
                "selector": {"matchLabels": self.selector()},
                "template": {
                    "metadata": {"labels": self.labels},
                    "spec": self.pod(),
                },
            },
        });
        self.manifest(Kind::StatefulSet, rest)
    }

    fn selector(&self) -> BTreeMap<&str, &String> {
        let keys = [label::POOL, label::PARENT_TYPE, label::PARENT_NAME];
        keys.into_iter()
            .filter_map(|key| Some((key, self.labels.get(key)?)))
            .collect()
    }

    fn pod(&self) -> Value {
        json!({
            "serviceAccountName": self.name,
            "terminationGracePeriodSeconds": 30,
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": USER,
                "runAsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "topologySpreadConstraints": [{
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": self.selector()},
            }],
            "containers": [self.container()],
        })
    }

    /// The container that leads all ports of the pod to the proxy, and ends: the only one that may change the network.
    fn set_up(&self) -> Value {
        json!({
            "name": "set-up",
            "image": self.settings.image,
            "args": [
                "set-up",
                format!("--to={ALL_PORTS}"),
                format!("--keep-tcp={HEALTH_PORT}"),
                format!("--keep-udp={DIRECT_PORT}"),
            ],
            "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
            "securityContext": {
                // A capability of a container is one of its root alone.
                "runAsNonRoot": false,
                "runAsUser": 0,
                "runAsGroup": 0,
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
            },
        })
    }

    fn container(&self) -> Value {
        let field =
            |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
        let mut env = vec![
            field("POD_NAME", "metadata.name"),
            field("POD_NAMESPACE", "metadata.namespace"),
            field("POD_UID", "metadata.uid"),
            field("POD_IPS", "status.podIPs"),
            json!({"name": "TAILWHARF_POOL", "value": self.pool}),
        ];
        if !self.settings.logging.is_empty() {
            env.push(json!({"name": "TAILWHARF_LOG", "value": self.settings.logging}));
        }
        let probe = |path: &str, period: u32, failures: u32| {
            json!({
                "httpGet": {"path": path, "port": "health"},
                "periodSeconds": period,
                "failureThreshold": failures,
            })
        };
        json!({
            "name": "proxy",
            "image": self.settings.image,
            "args": ["proxy"],
            "env": env,
            "ports": [{"name": "health", "containerPort": HEALTH_PORT}],
            "livenessProbe": probe("/healthz", 10, 3),
            "readinessProbe": probe("/readyz", 2, 2),
            "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"]},
            },
        })
    }
}
