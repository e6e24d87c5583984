//! What a tailnet has beside devices and keys: VIP services, name resolution, routes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::types::null_as_default;

/// A name with addresses of its own, for which several devices may answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipService {
    /// `svc:` and a DNS label.
    pub name: String,
    /// Its addresses, one of each family. The server gives those that are left out.
    #[serde(
        rename = "addrs",
        default,
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub addresses: Vec<IpAddr>,
    /// Free text.
    #[serde(default, deserialize_with = "null_as_default")]
    pub comment: String,
    /// Free pairs, by which operators know their own.
    #[serde(default, deserialize_with = "null_as_default")]
    pub annotations: BTreeMap<String, String>,
    /// What it answers on: `tcp:443`, `tcp:80-90` or `do-not-validate`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub ports: Vec<String>,
    /// Tags, as `tag:name`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub tags: Vec<String>,
}

/// How the devices of a tailnet resolve names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DnsConfig {
    /// Resolvers for all names.
    #[serde(deserialize_with = "null_as_default")]
    pub nameservers: Vec<Resolver>,
    /// Resolvers for the names below a domain.
    #[serde(rename = "splitDNS", deserialize_with = "null_as_default")]
    pub split: BTreeMap<String, Vec<Resolver>>,
    /// Domains that complete short names.
    #[serde(deserialize_with = "null_as_default")]
    pub search_paths: Vec<String>,
    /// Switches.
    pub preferences: DnsPreferences,
}

/// One resolver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolver {
    /// An IP address, `address:port` or an `https://` URL.
    pub address: String,
}

/// Switches of name resolution.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsPreferences {
    /// Whether the tailnet's resolvers replace those that a device has by itself.
    #[serde(rename = "overrideLocalDNS")]
    pub override_local: bool,
    /// Whether devices know each other by name.
    #[serde(rename = "magicDNS")]
    pub magic_dns: bool,
}

/// The routes of a device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DeviceRoutes {
    /// What the device offers.
    #[serde(rename = "advertisedRoutes", deserialize_with = "null_as_default")]
    pub advertised: Vec<IpNet>,
    /// What an administrator or the policy approved.
    #[serde(rename = "enabledRoutes", deserialize_with = "null_as_default")]
    pub enabled: Vec<IpNet>,
}

/// `GET …/vip-services`.
#[derive(Deserialize)]
pub(crate) struct ServiceListBody {
    #[serde(rename = "vipServices", default, deserialize_with = "null_as_default")]
    pub(crate) services: Vec<VipService>,
}
