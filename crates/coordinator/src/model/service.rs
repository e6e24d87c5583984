//! VIP services: names with addresses of their own that several nodes may answer for.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tailwharf_policy::Tag;
use tailwharf_wire::tailcfg::NodeId;

use crate::names;

/// `svc:` and a DNS label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceName(String);

/// A text that names no service.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not the name of a service: write `svc:` and up to 63 lower-case letters, digits and hyphens"
)]
pub struct InvalidServiceName(String);

impl ServiceName {
    const PREFIX: &str = "svc:";

    /// The name with its prefix, like `svc:web`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The DNS label, without the prefix.
    pub fn label(&self) -> &str {
        &self.0[Self::PREFIX.len()..]
    }
}

impl FromStr for ServiceName {
    type Err = InvalidServiceName;

    fn from_str(text: &str) -> Result<Self, InvalidServiceName> {
        match text.strip_prefix(Self::PREFIX) {
            Some(label) if names::sanitise(label) == label => Ok(Self(text.to_owned())),
            Some(_) | None => Err(InvalidServiceName(text.to_owned())),
        }
    }
}

impl TryFrom<String> for ServiceName {
    type Error = InvalidServiceName;

    fn try_from(text: String) -> Result<Self, InvalidServiceName> {
        text.parse()
    }
}

impl From<ServiceName> for String {
    fn from(name: ServiceName) -> Self {
        name.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A service of the tailnet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipService {
    /// Its name, unique in the tailnet.
    pub name: ServiceName,
    /// The IPv4 address.
    pub ipv4: Ipv4Addr,
    /// The IPv6 address.
    pub ipv6: Ipv6Addr,
    /// Free text.
    pub comment: String,
    /// Free pairs, which operators use to know their own.
    pub annotations: BTreeMap<String, String>,
    /// What it answers on, as its owner wrote it: `tcp:443`, `tcp:80-90`, `*`, or `do-not-validate`.
    pub ports: Vec<String>,
    /// Its tags, which the policy knows it by.
    pub tags: BTreeSet<Tag>,
    /// What an administrator decided about a node that offers to be a host; what the policy says holds for all others.
    pub hosts: BTreeMap<NodeId, bool>,
    /// When it was created.
    pub created: Timestamp,
}

impl VipService {
    /// Both addresses, IPv4 first.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.ipv4.into(), self.ipv6.into()]
    }

    /// Both addresses as host prefixes, IPv4 first.
    pub fn prefixes(&self) -> [IpNet; 2] {
        self.addresses().map(IpNet::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_labels_with_a_prefix() {
        let name: ServiceName = "svc:web-1".parse().unwrap();
        assert_eq!((name.as_str(), name.label()), ("svc:web-1", "web-1"));
        for bad in [
            "web",
            "svc:",
            "svc:Web",
            "svc:a.b",
            "svc:-a",
            &format!("svc:{}", "a".repeat(64)),
        ] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad}");
        }
    }
}
