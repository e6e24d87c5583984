//! The custom resource `dnsconfigs.tailscale.com`, which asks for a nameserver, and the records that the operator writes for it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use k8s_openapi::api::core::v1::{Affinity, LocalObjectReference, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube_derive::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A nameserver for names of the tailnet. There is to be one at most.
#[derive(CustomResource, JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "tailscale.com",
    version = "v1alpha1",
    kind = "DNSConfig",
    plural = "dnsconfigs",
    shortname = "dc",
    status = "DNSConfigStatus",
    derive = "PartialEq",
    doc = "A nameserver that answers for names of the tailnet which the cluster reaches by egress Services, and for the cluster's own Ingresses.",
    printcolumn(
        name = "NameserverIP",
        type_ = "string",
        description = "Address of the nameserver's Service.",
        json_path = ".status.nameserver.ip"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    crates(kube_core = "::kube_core")
)]
#[serde(rename_all = "camelCase")]
pub struct DNSConfigSpec {
    /// The nameserver.
    pub nameserver: Nameserver,
}

/// How the nameserver runs.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Nameserver {
    /// Its image; that of the proxies if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<NameserverImage>,
    /// Its Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<NameserverService>,
    /// Its pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<NameserverPod>,
    /// How many pods; one if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0), extend("format" = "int32"))]
    pub replicas: Option<i32>,
}

/// An image.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct NameserverImage {
    /// Repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repo: Option<String>,
    /// Tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
}

/// The nameserver's Service.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct NameserverService {
    /// A fixed address in the cluster's Service range, so that the cluster's DNS can be told of it beforehand.
    #[serde(default, rename = "clusterIP", skip_serializing_if = "Option::is_none")]
    pub cluster_ip: Option<String>,
}

/// Where the nameserver's pods run.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NameserverPod {
    /// Affinity of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Secrets for pulling the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// Labels that a node has to have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
}

/// How far the nameserver is.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DNSConfigStatus {
    /// `NameserverReady`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Where it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nameserver: Option<NameserverStatus>,
}

/// Where the nameserver answers.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct NameserverStatus {
    /// Address of its Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
}

/// The only version of [`Records`].
const VERSION: &str = "v1alpha1";

/// The nameserver's records: addresses by name, in the form of the Go operator.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Records {
    version: String,
    ip4: BTreeMap<String, Vec<Ipv4Addr>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    ip6: BTreeMap<String, Vec<Ipv6Addr>>,
}

/// Why a text is no file of records.
#[derive(Debug, Error)]
pub enum RecordsError {
    /// Not the JSON expected.
    #[error("it is not JSON with the fields version, ip4 and ip6")]
    Json(#[from] serde_json::Error),
    /// A version that came later.
    #[error(
        "its version is {version:?}; this nameserver reads {VERSION:?}: use nameserver and operator of one release"
    )]
    Version {
        /// What it says.
        version: String,
    },
}

impl Default for Records {
    fn default() -> Self {
        Self {
            version: VERSION.to_owned(),
            ip4: BTreeMap::new(),
            ip6: BTreeMap::new(),
        }
    }
}

impl Records {
    /// Reads the file.
    pub fn parse(text: &str) -> Result<Self, RecordsError> {
        let records: Self = serde_json::from_str(text)?;
        if records.version != VERSION {
            return Err(RecordsError::Version {
                version: records.version,
            });
        }
        Ok(records)
    }

    /// Adds addresses of a name.
    pub fn add(&mut self, name: &str, addresses: impl IntoIterator<Item = IpAddr>) {
        for address in addresses {
            match address {
                IpAddr::V4(address) => self.ip4.entry(name.to_owned()).or_default().push(address),
                IpAddr::V6(address) => self.ip6.entry(name.to_owned()).or_default().push(address),
            }
        }
    }

    /// Each name with its addresses; a name with both families comes twice.
    pub fn all(&self) -> impl Iterator<Item = (&str, Vec<IpAddr>)> {
        let ip4 = self
            .ip4
            .iter()
            .map(|(name, found)| (name.as_str(), found.iter().copied().map(IpAddr::V4).collect()));
        let ip6 = self
            .ip6
            .iter()
            .map(|(name, found)| (name.as_str(), found.iter().copied().map(IpAddr::V6).collect()));
        ip4.chain(ip6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_the_form_of_the_go_operator() {
        let mut records = Records::default();
        records.add("db.tail.ts.net", ["10.1.2.3".parse().unwrap()]);
        let text = serde_json::to_string(&records).unwrap();
        assert_eq!(
            text,
            r#"{"version":"v1alpha1","ip4":{"db.tail.ts.net":["10.1.2.3"]}}"#
        );
        records.add("db.tail.ts.net", ["fd00::1".parse().unwrap()]);
        let text = serde_json::to_string(&records).unwrap();
        assert_eq!(Records::parse(&text).unwrap(), records);
        assert!(matches!(
            Records::parse(r#"{"version":"v2","ip4":{}}"#),
            Err(RecordsError::Version { .. })
        ));
    }
}
