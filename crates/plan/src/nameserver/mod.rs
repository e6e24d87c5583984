//! The nameserver that a `DNSConfig` asks for: pods, a Service, and the records of names that the cluster reaches.
//!
//! There is to be one `DNSConfig`. Of several the oldest is served, and the others are told. Everything made belongs to it, so Kubernetes removes it with it.

mod objects;

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde_json::{Value, json};
use tailwharf_kube_types::dns_config::{DNSConfig, Records};
use tailwharf_kube_types::{ConditionStatus, Egress, Parent, ParentKind, Target, conditions};

use crate::applied::Applied;
use crate::diff;
use crate::plan::{Kind, Manifest, ObjectRef, Plan, Step};
use crate::settings::Settings;
use crate::status::StatusPatch;

/// Name of the nameserver's Deployment, Service and ServiceAccount.
pub const NAME: &str = "nameserver";
/// Name of the ConfigMap with its records.
pub const RECORDS: &str = "dnsrecords";
/// Condition of a `DNSConfig`.
const READY: &str = "NameserverReady";

/// What the cluster holds about nameservers.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// All DNSConfigs.
    pub configs: Vec<DNSConfig>,
    /// What egress identities reach.
    pub reached: Vec<Reached>,
    /// Account of the pods.
    pub service_account: Option<ServiceAccount>,
    /// The pods.
    pub deployment: Option<Deployment>,
    /// Their address.
    pub service: Option<Service>,
    /// The records as they are.
    pub records: Option<ConfigMap>,
}

/// What an egress identity reaches.
#[derive(Clone, Debug)]
pub struct Reached {
    /// Its targets and ports.
    pub egress: Egress,
    /// The Service that leads there.
    pub service: Service,
    /// The addresses of the hosting pod.
    pub host: Vec<IpAddr>,
}

/// A DNSConfig as a parent; its labels are on all its objects.
#[must_use]
pub fn parent(settings: &Settings, config: &DNSConfig) -> Parent {
    Parent {
        kind: ParentKind::Nameserver,
        namespace: settings.namespace.clone(),
        name: config.metadata.name.clone().unwrap_or_default(),
    }
}

/// The one that is served: the oldest.
fn served(configs: &[DNSConfig]) -> Option<&DNSConfig> {
    let age = |config: &&DNSConfig| {
        let created = config.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (created, config.metadata.name.clone())
    };
    configs
        .iter()
        .filter(|config| config.metadata.deletion_timestamp.is_none())
        .min_by_key(age)
}

/// Plans what is missing.
#[must_use]
pub fn build(snapshot: &Snapshot, settings: &Settings) -> Plan {
    let mut plan = Plan::default();
    let Some(config) = served(&snapshot.configs) else {
        return plan;
    };
    let frame = objects::Frame::new(config, settings);
    let Snapshot {
        service_account,
        deployment,
        service,
        records,
        ..
    } = snapshot;
    let mut apply = |manifest: Manifest, observed: Option<Value>| {
        let body = diff::stamp(manifest.body);
        if observed.is_none_or(|observed| diff::differs(&body, &observed)) {
            plan.steps.push(Step::Apply(Manifest { body, ..manifest }));
        }
    };
    apply(
        frame.service_account(),
        service_account.as_ref().map(|object| json!(object)),
    );
    apply(
        frame.records(&known_names(&snapshot.reached)),
        records.as_ref().map(|object| json!(object)),
    );
    apply(frame.service(), service.as_ref().map(|object| json!(object)));
    apply(
        frame.deployment(),
        deployment.as_ref().map(|object| json!(object)),
    );
    plan
}

/// The full names that the cluster reaches, each with the addresses that lead there. A Service with several targets is no address of one of them.
fn known_names(reached: &[Reached]) -> Records {
    let mut records = Records::default();
    for Reached {
        egress,
        service,
        host,
    } in reached
    {
        let [Target::Name(name)] = egress.targets.as_slice() else {
            continue;
        };
        if !name.contains('.') {
            continue;
        }
        if egress.all_ports {
            records.add(name, host.iter().copied());
            continue;
        }
        let addresses = service.spec.as_ref().and_then(|spec| spec.cluster_ips.as_ref());
        let addresses = addresses.into_iter().flatten();
        records.add(name, addresses.filter_map(|address| address.parse().ok()));
    }
    records
}

/// What to tell about each DNSConfig.
#[must_use]
pub fn status(snapshot: &Snapshot, applied: &Applied, now: Timestamp) -> Vec<StatusPatch> {
    let served = served(&snapshot.configs).and_then(|config| config.metadata.uid.as_ref());
    let living = |config: &&DNSConfig| config.metadata.deletion_timestamp.is_none();
    snapshot
        .configs
        .iter()
        .filter(living)
        .filter_map(|config| {
            let verdict = if config.metadata.uid.as_ref() == served {
                verdict(snapshot, applied)
            } else {
                Verdict {
                    status: ConditionStatus::False,
                    reason: "MultipleDNSConfigsPresent",
                    message:
                        "Another DNSConfig is older, and there is one nameserver only: delete one of them."
                            .to_owned(),
                    ip: None,
                }
            };
            patch(config, &verdict, now)
        })
        .collect()
}

struct Verdict {
    status: ConditionStatus,
    reason: &'static str,
    message: String,
    ip: Option<String>,
}

fn verdict(snapshot: &Snapshot, applied: &Applied) -> Verdict {
    let ip = snapshot
        .service
        .as_ref()
        .and_then(|service| service.spec.as_ref()?.cluster_ip.clone());
    let available = snapshot
        .deployment
        .as_ref()
        .and_then(|deployment| deployment.status.as_ref()?.available_replicas)
        .unwrap_or(0);
    let (status, reason, message) = match (&applied.failure, &ip) {
        (Some(failure), _) => (
            ConditionStatus::False,
            "NameserverCreationFailed",
            format!(
                "An object of the nameserver was refused: {}.",
                failure.message.trim_end_matches('.')
            ),
        ),
        (None, Some(ip)) if available > 0 => (
            ConditionStatus::True,
            "NameserverCreated",
            format!("The nameserver answers at {ip}; tell the cluster's DNS to ask it for ts.net."),
        ),
        (None, _) => (
            ConditionStatus::False,
            "NameserverCreating",
            format!("Waiting for a pod of Deployment {NAME}; check that its pods run."),
        ),
    };
    Verdict {
        status,
        reason,
        message,
        ip,
    }
}

fn patch(config: &DNSConfig, verdict: &Verdict, now: Timestamp) -> Option<StatusPatch> {
    let current = config.status.clone().unwrap_or_default();
    let previous: Vec<Condition> = current.conditions;
    let condition = conditions::condition(
        READY,
        verdict.status,
        verdict.reason,
        &verdict.message,
        config.metadata.generation,
        &previous,
        now,
    );
    let same_ip = current.nameserver.and_then(|nameserver| nameserver.ip) == verdict.ip;
    if same_ip && previous.contains(&condition) {
        return None;
    }
    let name = config.metadata.name.clone().unwrap_or_default();
    let object = ObjectRef::new(Kind::DnsConfig, "", &name);
    let mut status = json!({"conditions": [condition]});
    if let Some(ip) = &verdict.ip {
        status["nameserver"] = json!({"ip": ip});
    }
    let body = json!({
        "apiVersion": object.kind.api_version(),
        "kind": object.kind.as_str(),
        "metadata": {"name": name},
        "status": status,
    });
    Some(StatusPatch { object, body })
}
