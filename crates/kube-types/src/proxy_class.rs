//! The custom resource `proxyclasses.tailscale.com` of the contract: how the pods look that host devices, and how those devices reach the tailnet.
//!
//! What goes into pods unchanged is kept as JSON; the API server has checked it against the schema.

#![allow(clippy::duplicated_attributes, reason = "columns of one type repeat it")]

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube_derive::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::contract::PROXY_CLASS_READY;
use crate::schema;

/// How pods look that host devices, and how those devices reach the tailnet.
#[derive(CustomResource, JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "tailscale.com",
    version = "v1alpha1",
    kind = "ProxyClass",
    plural = "proxyclasses",
    status = "ProxyClassStatus",
    derive = "PartialEq",
    doc = "How the pods look that host devices of the tailnet, and how those devices reach it.",
    printcolumn(
        name = "Status",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type == "ProxyClassReady")].reason"#
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    crates(kube_core = "::kube_core")
)]
#[serde(rename_all = "camelCase")]
pub struct ProxyClassSpec {
    /// The StatefulSet of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stateful_set: Option<StatefulSetClass>,
    /// Metrics of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Metrics>,
    /// The devices as members of the tailnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tailscale: Option<Tailscale>,
    /// Certificates come from the staging environment of Let's Encrypt, which has wider limits and which browsers do not trust.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub use_lets_encrypt_staging_environment: Option<bool>,
    /// Addresses by which peers reach the devices directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub static_endpoints: Option<StaticEndpoints>,
}

/// The StatefulSet of the pods.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StatefulSetClass {
    /// Labels of the StatefulSet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "labels")]
    pub labels: Option<BTreeMap<String, String>>,
    /// Annotations of the StatefulSet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// The pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodClass>,
    /// A strategic merge patch of the StatefulSet, for what the other fields do not have. It is applied last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "anything")]
    pub patch: Option<Value>,
}

/// The pods. What is set here replaces what the pods have without a ProxyClass.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PodClass {
    /// Labels of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "labels")]
    pub labels: Option<BTreeMap<String, String>>,
    /// Annotations of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// As of a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::core::<core::Affinity>")]
    pub affinity: Option<Value>,
    /// The container that hosts the devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tailscale_container: Option<Container>,
    /// The container that prepares the network; only pods with a network interface of their own have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tailscale_init_container: Option<Container>,
    /// As of a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::core::<core::PodSecurityContext>")]
    pub security_context: Option<Value>,
    /// As of a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "references")]
    pub image_pull_secrets: Option<Value>,
    /// The machine on which the pods run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// Labels of the machines on which the pods may run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<BTreeMap<String, String>>,
    /// As of a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::core::<Vec<core::Toleration>>")]
    pub tolerations: Option<Value>,
    /// As of a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::core::<Vec<core::TopologySpreadConstraint>>")]
    pub topology_spread_constraints: Option<Value>,
    /// As of a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
    /// As of a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "dns_policy")]
    pub dns_policy: Option<String>,
    /// As of a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::core::<core::PodDNSConfig>")]
    pub dns_config: Option<Value>,
}

/// A container of the pods.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    /// Environment variables, after those of the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<EnvVar>>,
    /// The image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// When the image is fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "pull_policy")]
    pub image_pull_policy: Option<String>,
    /// As of a container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "resources")]
    pub resources: Option<Value>,
    /// As of a container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::core::<core::SecurityContext>")]
    pub security_context: Option<Value>,
    /// Means to look into a running container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub debug: Option<Debug>,
}

/// An environment variable.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct EnvVar {
    /// Its name.
    #[schemars(pattern(r"^[-._a-zA-Z][-._a-zA-Z0-9]*$"))]
    pub name: String,
    /// Its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// Means to look into a running container.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Debug {
    /// Logs in detail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable: Option<bool>,
}

/// Metrics of the pods.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!(has(self.serviceMonitor) && self.serviceMonitor.enable && !self.enable)",
    "message": "serviceMonitor needs metrics: set metrics.enable to true as well."
}]))]
pub struct Metrics {
    /// A Service for the metrics of the pods.
    pub enable: bool,
    /// A ServiceMonitor of the Prometheus operator for that Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_monitor: Option<ServiceMonitor>,
}

/// A ServiceMonitor of the Prometheus operator.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ServiceMonitor {
    /// Whether there is to be one.
    pub enable: bool,
    /// Its labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "labels")]
    pub labels: Option<BTreeMap<String, String>>,
}

/// The devices as members of the tailnet.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Tailscale {
    /// The devices use the networks that peers route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accept_routes: Option<bool>,
}

/// Addresses by which peers reach the devices directly.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct StaticEndpoints {
    /// UDP ports of the cluster's machines.
    pub node_port: NodePorts,
}

/// UDP ports of the cluster's machines.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NodePorts {
    /// The ports to use, one for each device. They have to be in the cluster's range of node ports.
    #[schemars(length(min = 1))]
    pub ports: Vec<PortRange>,
    /// Labels of the machines whose external addresses are told to peers. All machines if there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<BTreeMap<String, String>>,
}

/// A port, or several in a row.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PortRange {
    /// The first.
    pub port: i64,
    /// The last; only the first if it is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_port: Option<i64>,
}

/// Whether a ProxyClass can be used.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ProxyClassStatus {
    /// `ProxyClassReady`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Option<Vec<Condition>>,
}

impl ProxyClass {
    /// The condition that tells whether the class can be used.
    #[must_use]
    pub fn condition(&self) -> Option<&Condition> {
        let conditions = self.status.as_ref()?.conditions.as_ref()?;
        conditions
            .iter()
            .find(|condition| condition.type_ == PROXY_CLASS_READY)
    }

    /// Whether the class was found to be valid as it is now.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.condition().is_some_and(|condition| {
            condition.status == "True" && condition.observed_generation == self.metadata.generation
        })
    }
}

fn labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "additionalProperties": {
            "type": "string", "maxLength": 63, "pattern": "^(([a-zA-Z0-9][-._a-zA-Z0-9]*)?[a-zA-Z0-9])?$",
        },
    })
}

fn anything(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// Names of Secrets, as of a pod.
fn references(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": {
            "type": "object",
            "properties": {"name": {"type": "string", "default": ""}},
            "x-kubernetes-map-type": "atomic",
        },
        "x-kubernetes-list-type": "atomic",
    })
}

fn dns_policy(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"]})
}

fn pull_policy(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": ["Always", "Never", "IfNotPresent"]})
}

fn resources(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = schema::core::<core::ResourceRequirements>(generator);
    let quantities = serde_json::json!({
        "type": "object",
        "additionalProperties": {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$",
            "x-kubernetes-int-or-string": true,
        },
    });
    for field in ["limits", "requests"] {
        if let Some(value) = schema.pointer_mut(&format!("/properties/{field}")) {
            *value = quantities.clone();
        }
    }
    schema
}
