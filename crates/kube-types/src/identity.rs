//! The custom resource `identities.tailwharf.dev`: one device on the tailnet, what it serves, and how far it is.
//!
//! `spec` is written by the operator alone, `status` by the pod that hosts the identity. No secret is in either: keys are in the Secret
//! [`crate::names::secret_name`].

#![allow(clippy::duplicated_attributes, reason = "columns of one type repeat it")]

pub mod router;
pub mod web;

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube_derive::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::egress::Egress;
use crate::identity::router::Router;
use crate::identity::web::Web;
use crate::values::{Hostname, Tag};

/// What the hosting proxy has to do.
#[derive(CustomResource, JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[kube(
    group = "tailwharf.dev",
    version = "v1alpha1",
    kind = "Identity",
    plural = "identities",
    shortname = "tid",
    category = "tailwharf",
    namespaced,
    status = "IdentityStatus",
    derive = "PartialEq",
    doc = "A device on the tailnet that a pool of proxies hosts: what it serves, and how far it is.",
    printcolumn(name = "Hostname", type_ = "string", json_path = ".spec.hostname"),
    printcolumn(name = "Name", type_ = "string", json_path = ".status.fqdn"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#
    ),
    printcolumn(name = "Host", type_ = "string", json_path = ".status.host"),
    printcolumn(
        name = "Addresses",
        type_ = "string",
        json_path = ".status.addresses",
        priority = "1"
    ),
    printcolumn(name = "Path", type_ = "string", json_path = ".status.path", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    crates(kube_core = "::kube_core")
)]
#[serde(rename_all = "camelCase")]
pub struct IdentitySpec {
    /// The name to ask the control server for. The server makes it unique by a suffix.
    pub hostname: Hostname,
    /// Tags of the device.
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "set"))]
    pub tags: Vec<Tag>,
    /// The pool whose pods may host the identity.
    #[schemars(length(min = 1, max = 40), pattern(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub pool: String,
    /// URL of the control server.
    #[schemars(length(min = 1, max = 2048), pattern(r"^https?://"))]
    pub login_server: String,
    /// The control server forgets the device soon after it went offline.
    #[serde(default)]
    pub ephemeral: bool,
    /// What the device serves. Empty: it is only present.
    #[serde(default)]
    #[schemars(
        length(max = 256),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["protocol", "port"])
    )]
    pub listeners: Vec<Listener>,
    /// What the device reaches for pods of the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Egress>,
    /// What the device serves over HTTP and HTTPS. It takes port 443, and port 80 unless that is closed; no listener may have these then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub web: Option<Web>,
    /// What the device routes for its peers, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router: Option<Router>,
}

/// A port of the device and where its connections go.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// A name for messages and metrics.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The port on the tailnet addresses of the device.
    #[schemars(range(min = 1, max = 65535), extend("format" = "int32"))]
    pub port: u16,
    /// Where connections go: by turns to those of the address family in which they came, if there are any, else to the others. None: the Service has no
    /// ready endpoint, and connections are refused.
    #[schemars(length(max = 128), extend("x-kubernetes-list-type" = "atomic"))]
    pub backends: Vec<Backend>,
    /// TCP: each connection to a backend begins with a PROXY protocol header, version 2, that says where the client is and who.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub proxy_protocol: bool,
}

/// Transport protocol of a listener.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// Where connections of a listener go.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    /// An IP address, or a DNS name that the proxy resolves.
    #[schemars(length(min = 1, max = 253))]
    pub address: String,
    /// Port there.
    #[schemars(range(min = 1, max = 65535), extend("format" = "int32"))]
    pub port: u16,
}

/// How far the hosting pod is.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct IdentityStatus {
    /// Stable id of the device at the control server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_id: Option<String>,
    /// Full name of the device, without a trailing dot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fqdn: Option<String>,
    /// Tailnet addresses of the device.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>", length(max = 16))]
    pub addresses: Vec<IpAddr>,
    /// Networks that the control server lets the device route, of those that it advertises.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>", length(max = 1000), extend("x-kubernetes-list-type" = "atomic"))]
    pub routes: Vec<IpNet>,
    /// The pod that hosts the identity. Set before its node starts and cleared after it has ended, so no two pods run one node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Addresses of that pod in the cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>", length(max = 4))]
    pub host_addresses: Vec<IpAddr>,
    /// Names the claim by which the host holds it. Differs after each take-over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<String>,
    /// How packets of the most recently active peer travel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathKind>,
    /// Generation of the spec that this status tells about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Peers that were active lately, as stable ids, most recent first. The next host starts handshakes with them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 128)), extend("x-kubernetes-list-type" = "atomic"))]
    pub recent_peers: Vec<String>,
    /// Pods that were refused lately, since they may not use what the identity reaches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "atomic"))]
    pub refused: Vec<Refusal>,
    /// Registered, Authorized, Advertised, CertificateReady, BackendReachable, FunnelReady, Ready; the certificate and Funnel where they are asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub conditions: Vec<Condition>,
}

/// A pod that was refused.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// Its address.
    #[schemars(with = "String", length(max = 64))]
    pub address: IpAddr,
    /// When, to within minutes.
    pub at: Time,
}

/// How packets travel between a device and its peer.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PathKind {
    /// Through a DERP relay.
    Relay,
    /// Straight, by UDP.
    Direct,
}
