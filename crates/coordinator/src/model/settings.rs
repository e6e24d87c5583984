//! What an administrator decides for the tailnet as a whole.

use std::{collections::BTreeMap, net::IpAddr};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// Rules for devices. The configuration file gives those of the first start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Whether a device needs an administrator's approval, unless its auth key is pre-approved.
    pub device_approval: bool,
    /// After how many days a person's device has to log in again; 0 for never. Tagged devices never have to.
    pub key_lifetime_days: u32,
    /// Whether devices may get certificates for their names.
    pub https: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            device_approval: false,
            key_lifetime_days: 180,
            https: true,
        }
    }
}

impl Settings {
    /// When a node key ends that begins now; never, when none does.
    pub(crate) fn key_end(&self, now: Timestamp) -> Option<Timestamp> {
        let hours = 24 * i64::from(self.key_lifetime_days);
        (hours > 0)
            .then(|| now.checked_add(SignedDuration::from_hours(hours)).ok())
            .flatten()
    }
}

/// How the devices of the tailnet resolve names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsSettings {
    /// Whether devices know each other by name.
    pub magic_dns: bool,
    /// Resolvers for all names, in order of preference: an IP address, `ip:port` or an `https://` URL.
    pub nameservers: Vec<String>,
    /// Whether `nameservers` replace those that a device has by itself; else they are for devices without any.
    pub override_local: bool,
    /// Resolvers for the names below a domain.
    pub split: BTreeMap<String, Vec<String>>,
    /// Domains that complete short names, after that of the tailnet.
    pub search_paths: Vec<String>,
    /// Further names of the tailnet.
    pub extra_records: Vec<ExtraRecord>,
}

impl Default for DnsSettings {
    fn default() -> Self {
        Self {
            magic_dns: true,
            nameservers: Vec::new(),
            override_local: false,
            split: BTreeMap::new(),
            search_paths: Vec::new(),
            extra_records: Vec::new(),
        }
    }
}

/// A name that MagicDNS answers with an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExtraRecord {
    /// The full name, without a final dot.
    pub name: String,
    /// The address: IPv4 makes an A record, IPv6 an AAAA record.
    pub value: IpAddr,
}
