//! The custom resource `connectors.tailscale.com` of the contract: a subnet router, an exit node or an app connector.

#![allow(clippy::duplicated_attributes, reason = "columns of one type repeat it")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube_derive::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema;

/// What a Connector is to do.
#[derive(CustomResource, JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[kube(
    group = "tailscale.com",
    version = "v1alpha1",
    kind = "Connector",
    plural = "connectors",
    shortname = "cn",
    status = "ConnectorStatus",
    derive = "PartialEq",
    doc = "Devices that connect a tailnet with networks outside of it: as subnet routers, exit nodes or app connectors.",
    printcolumn(name = "SubnetRoutes", type_ = "string", json_path = ".status.subnetRoutes"),
    printcolumn(name = "IsExitNode", type_ = "string", json_path = ".status.isExitNode"),
    printcolumn(
        name = "IsAppConnector",
        type_ = "string",
        json_path = ".status.isAppConnector"
    ),
    printcolumn(
        name = "Status",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type == "ConnectorReady")].reason"#
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    crates(kube_core = "::kube_core")
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "has(self.subnetRouter) || (has(self.exitNode) && self.exitNode) || has(self.appConnector)",
        "message": "A Connector does nothing without a role: set subnetRouter, exitNode: true or appConnector."
    },
    {
        "rule": "!(has(self.appConnector) && (has(self.subnetRouter) || (has(self.exitNode) && self.exitNode)))",
        "message": "An app connector cannot be a subnet router or an exit node as well: make a Connector of its own for it."
    },
    {
        "rule": "!(has(self.hostname) && has(self.replicas) && self.replicas > 1)",
        "message": "Several replicas cannot have one hostname: set hostnamePrefix instead of hostname."
    },
    {
        "rule": "!(has(self.hostname) && has(self.hostnamePrefix))",
        "message": "hostname and hostnamePrefix exclude each other: remove one of them."
    },
    {
        "rule": "!has(self.hostnamePrefix) || size(self.hostnamePrefix) + (has(self.replicas) && self.replicas > 10 ? 3 : 2) <= 63",
        "message": "hostnamePrefix and the number of the replica make a name of more than 63 characters: use a shorter prefix."
    }
]))]
pub struct ConnectorSpec {
    /// Tags of the devices. Those of the operator's settings if there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(inner(pattern(r"^tag:[a-zA-Z][a-zA-Z0-9-]*$")))]
    pub tags: Option<Vec<String>>,
    /// Name of the device; `<name of the Connector>-connector` if it is not set. Only for one replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(pattern(r"^[a-z0-9][a-z0-9-]{0,61}[a-z0-9]$"))]
    pub hostname: Option<String>,
    /// The devices are named `<prefix>-0`, `<prefix>-1` and so on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(pattern(r"^[a-z0-9][a-z0-9-]{0,61}$"), length(max = 62))]
    pub hostname_prefix: Option<String>,
    /// How many devices do the same, so that one may be lost. One if it is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub replicas: Option<i32>,
    /// The ProxyClass that says which pods host the devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_class: Option<String>,
    /// Makes networks reachable from the tailnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet_router: Option<SubnetRouter>,
    /// Peers may use the devices as their way to the internet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_node: Option<bool>,
    /// Peers reach the domains that the tailnet policy names for these devices through them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_connector: Option<AppConnector>,
    /// The Tailnet that the devices join; that of the operator if it is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = [
        {"rule": "self == oldSelf", "message": "Connector tailnet is immutable"}
    ]))]
    pub tailnet: Option<String>,
}

/// Networks to make reachable.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SubnetRouter {
    /// Networks in CIDR notation. `0.0.0.0/0` and `::/0` come together, and make an exit node.
    #[schemars(schema_with = "schema::cidrs")]
    pub advertise_routes: Vec<String>,
}

/// An app connector.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AppConnector {
    /// Networks that are known beforehand to hold addresses of the domains, in CIDR notation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::cidrs")]
    pub routes: Option<Vec<String>>,
}

/// How far a Connector is.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ConnectorStatus {
    /// `ConnectorReady`, `RoutesApproved`, `RoutesOverlap`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Option<Vec<Condition>>,
    /// The networks that the devices advertise as subnet routers, with commas between them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet_routes: Option<String>,
    /// Whether the devices offer to be exit nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_exit_node: Option<bool>,
    /// Whether the devices offer to be app connectors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_app_connector: Option<bool>,
    /// Tailnet addresses of the first device.
    #[serde(default, rename = "tailnetIPs", skip_serializing_if = "Option::is_none")]
    pub tailnet_ips: Option<Vec<String>>,
    /// Full name of the first device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// All devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices: Option<Vec<ConnectorDevice>>,
}

/// One device of a Connector.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ConnectorDevice {
    /// Full name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Tailnet addresses.
    #[serde(default, rename = "tailnetIPs", skip_serializing_if = "Option::is_none")]
    pub tailnet_ips: Option<Vec<String>>,
}
