//! The objects of a nameserver.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tailwharf_kube_types::dns_config::{DNSConfig, NameserverImage, Records};

use super::{NAME, RECORDS, parent};
use crate::identity::body;
use crate::plan::{Kind, Manifest, ObjectRef};
use crate::settings::Settings;

/// The port of the pods.
const PORT: u16 = 1053;
/// The user of the image, which is nobody on the machine.
const USER: u32 = 65532;

/// What all objects have in common.
pub(super) struct Frame<'a> {
    config: &'a DNSConfig,
    settings: &'a Settings,
    labels: BTreeMap<String, String>,
}

impl<'a> Frame<'a> {
    pub(super) fn new(config: &'a DNSConfig, settings: &'a Settings) -> Self {
        let mut labels = parent(settings, config).labels();
        for (key, value) in [
            ("app.kubernetes.io/name", "tailscale"),
            ("app.kubernetes.io/component", NAME),
        ] {
            labels.insert(key.to_owned(), value.to_owned());
        }
        Self {
            config,
            settings,
            labels,
        }
    }

    fn manifest(&self, kind: Kind, name: &str, rest: Value) -> Manifest {
        let object = ObjectRef::new(kind, &self.settings.namespace, name);
        let mut body = body(&object, &self.labels, rest);
        body["metadata"]["ownerReferences"] = json!([{
            "apiVersion": Kind::DnsConfig.api_version(),
            "kind": Kind::DnsConfig.as_str(),
            "name": self.config.metadata.name,
            "uid": self.config.metadata.uid,
            "controller": true,
        }]);
        Manifest {
            object,
            body,
            slots: Vec::new(),
        }
    }

    pub(super) fn service_account(&self) -> Manifest {
        let rest = self
            .settings
            .pool
            .account(json!({"automountServiceAccountToken": false}));
        self.manifest(Kind::ServiceAccount, NAME, rest)
    }

    pub(super) fn records(&self, records: &Records) -> Manifest {
        let rest = json!({"data": {"records.json": json!(records).to_string()}});
        self.manifest(Kind::ConfigMap, RECORDS, rest)
    }

    pub(super) fn service(&self) -> Manifest {
        let port = |protocol: &str| json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": 53, "targetPort": PORT});
        let mut spec = json!({
            "type": "ClusterIP",
            "selector": {"app": NAME},
            "ports": [port("UDP"), port("TCP")],
        });
        let service = self.config.spec.nameserver.service.as_ref();
        if let Some(address) = service.and_then(|service| service.cluster_ip.as_ref()) {
            spec["clusterIP"] = json!(address);
        }
        self.manifest(Kind::Service, NAME, json!({"spec": spec}))
    }

    pub(super) fn deployment(&self) -> Manifest {
        let mut labels = self.labels.clone();
        labels.insert("app".to_owned(), NAME.to_owned());
        let spec = json!({
            "replicas": self.config.spec.nameserver.replicas.unwrap_or(1),
            "revisionHistoryLimit": 5,
            "selector": {"matchLabels": {"app": NAME}},
            "template": {"metadata": {"labels": labels}, "spec": self.pod()},
        });
        self.manifest(Kind::Deployment, NAME, json!({"spec": spec}))
    }

    fn pod(&self) -> Value {
        let port = |protocol: &str| json!({"name": format!("dns-{}", protocol.to_lowercase()), "protocol": protocol, "containerPort": PORT});
        let mut spec = json!({
            "serviceAccountName": NAME,
            "automountServiceAccountToken": false,
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": USER,
                "runAsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": NAME,
                "image": self.image(),
                "args": ["nameserver"],
                "ports": [port("UDP"), port("TCP")],
                "readinessProbe": {"tcpSocket": {"port": "dns-tcp"}, "periodSeconds": 2},
                "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [{"name": RECORDS, "mountPath": "/config", "readOnly": true}],
            }],
            "volumes": [{"name": RECORDS, "configMap": {"name": RECORDS}}],
        });
        if let Some(pod) = &self.config.spec.nameserver.pod {
            for (field, value) in [
                ("affinity", json!(pod.affinity)),
                ("imagePullSecrets", json!(pod.image_pull_secrets)),
                ("nodeSelector", json!(pod.node_selector)),
                ("tolerations", json!(pod.tolerations)),
            ] {
                if !value.is_null() {
                    spec[field] = value;
                }
            }
        }
        spec
    }

    /// The image that the DNSConfig names, with the parts that it leaves out from that of the proxies.
    fn image(&self) -> String {
        let default = &self.settings.pool.image;
        let is_tag = |(_, tag): &(&str, &str)| !tag.contains('/');
        let (repo, tag) = default
            .rsplit_once(':')
            .filter(is_tag)
            .unwrap_or((default, "latest"));
        match &self.config.spec.nameserver.image {
            None
            | Some(NameserverImage {
                repo: None,
                tag: None,
            }) => default.clone(),
            Some(image) => format!(
                "{}:{}",
                image.repo.as_deref().unwrap_or(repo),
                image.tag.as_deref().unwrap_or(tag)
            ),
        }
    }
}
