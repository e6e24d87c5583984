//! What an identity reaches on the tailnet for pods of the cluster, and at which ports of its host they knock.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::contract::{EGRESS_PORTS, MAX_TARGETS};
use crate::identity::Protocol;

/// Where connections of the cluster go, and how they come in.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Egress {
    /// Alternatives: new connections take turns among those that answer.
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub targets: Vec<Target>,
    /// The ports of the targets that can be reached, if not all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 256),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["protocol", "port"])
    )]
    pub ports: Vec<EgressPort>,
    /// All ports of the targets can be reached, by the same ports of the hosting pod. No other identity is in its pool.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all_ports: bool,
    /// The addresses of the pods that may use it, in order; without the list, all may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Vec<String>", length(max = 4096), inner(length(max = 64)), extend("x-kubernetes-list-type" = "atomic"))]
    pub from: Option<Vec<IpNet>>,
}

/// A port of the targets, and the port of the hosting pod that stands for it.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct EgressPort {
    /// A name for messages; that of the Service's port.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The port of the targets.
    #[schemars(range(min = 1, max = 65535), extend("format" = "int32"))]
    pub port: u16,
    /// The port of the hosting pod, which no other identity of the pool has.
    #[schemars(range(min = 10000, max = 29999), extend("format" = "int32"))]
    pub pod_port: u16,
}

impl EgressPort {
    /// Whether the port of the pod is one of those meant for this.
    #[must_use]
    pub fn has_valid_pod_port(&self) -> bool {
        EGRESS_PORTS.contains(&self.pod_port)
    }
}

/// A target on the tailnet: an address, or a MagicDNS name, full or short. Names are in lower case without a final dot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Target {
    /// An address of a device, of a network behind a subnet router, or of a service.
    Ip(IpAddr),
    /// A name.
    Name(String),
}

/// Why a text is no [`Target`] or list of targets.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TargetError {
    /// The list, or an item of it, is empty.
    #[error("a target is empty: write names or addresses like \"db.example.ts.net\" or \"100.64.0.7\"")]
    Empty,
    /// No name that can be resolved.
    #[error("{text:?} is no name of a device: use labels of letters, digits and '-', separated by dots")]
    Name {
        /// The beginning of what was given.
        text: String,
    },
    /// No address.
    #[error("{text:?} is no IP address: use one like \"100.64.0.7\" or \"fd7a:115c:a1e0::7\"")]
    Address {
        /// The beginning of what was given.
        text: String,
    },
    /// More than one Service may have.
    #[error("{count} targets are too many: use at most {MAX_TARGETS}")]
    TooMany {
        /// How many were given.
        count: usize,
    },
    /// The same twice.
    #[error("target {target} is there twice: name it once")]
    Twice {
        /// Which.
        target: Target,
    },
}

impl Target {
    /// Reads a comma-separated list of names or addresses.
    pub fn parse_names(text: &str) -> Result<Vec<Self>, TargetError> {
        parse_list(text, str::parse)
    }

    /// Reads a comma-separated list of addresses.
    pub fn parse_addresses(text: &str) -> Result<Vec<Self>, TargetError> {
        let address = |item: &str| {
            item.parse()
                .map(Self::Ip)
                .map_err(|_| TargetError::Address { text: shorten(item) })
        };
        parse_list(text, address)
    }

    /// The name, if it is one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Ip(_) => None,
            Self::Name(name) => Some(name),
        }
    }
}

fn parse_list(
    text: &str,
    parse: impl Fn(&str) -> Result<Target, TargetError>,
) -> Result<Vec<Target>, TargetError> {
    let count = text.split(',').count();
    if count > MAX_TARGETS {
        return Err(TargetError::TooMany { count });
    }
    let mut targets = Vec::with_capacity(count);
    for item in text.split(',') {
        let target = parse(item.trim())?;
        if targets.contains(&target) {
            return Err(TargetError::Twice { target });
        }
        targets.push(target);
    }
    Ok(targets)
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const MAX_NAME: usize = 253;
        const MAX_LABEL: usize = 63;
        if let Ok(address) = text.parse() {
            return Ok(Self::Ip(address));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.is_empty() {
            return Err(TargetError::Empty);
        }
        let is_label = |label: &str| {
            (1..=MAX_LABEL).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
        };
        // What ends in a number is an address that was mistyped.
        let is_number = name
            .rsplit('.')
            .next()
            .is_some_and(|label| label.chars().all(|c| c.is_ascii_digit()));
        if name.len() > MAX_NAME || is_number || !name.split('.').all(is_label) {
            return Err(TargetError::Name { text: shorten(text) });
        }
        Ok(Self::Name(name.to_ascii_lowercase()))
    }
}

impl TryFrom<String> for Target {
    type Error = TargetError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl JsonSchema for Target {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Target".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "An address, or a MagicDNS name, full or short.",
            "minLength": 1,
            "maxLength": 253,
        })
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_and_addresses() {
        let name = |text: &str| text.parse::<Target>();
        assert_eq!(
            name("DB.tail1234.ts.net."),
            Ok(Target::Name("db.tail1234.ts.net".into()))
        );
        assert_eq!(name("10-1-2-3-via-7"), Ok(Target::Name("10-1-2-3-via-7".into())));
        assert_eq!(name("100.64.0.7"), Ok(Target::Ip("100.64.0.7".parse().unwrap())));
        for bad in [
            "a..b",
            "-a",
            "a b",
            "100.64.0.777",
            "x/y",
            "http://x",
            &"a".repeat(64),
        ] {
            assert!(matches!(name(bad), Err(TargetError::Name { .. })), "{bad}");
        }
        assert_eq!(name(""), Err(TargetError::Empty));
    }

    #[test]
    fn lists_are_bounded_and_have_no_repetitions() {
        assert_eq!(Target::parse_names("a, b.example").map(|list| list.len()), Ok(2));
        assert_eq!(Target::parse_names("a,,b"), Err(TargetError::Empty));
        assert!(matches!(
            Target::parse_names("a,A"),
            Err(TargetError::Twice { .. })
        ));
        assert!(matches!(
            Target::parse_names(&["x"; 17].join(",")),
            Err(TargetError::TooMany { count: 17 })
        ));
        assert!(matches!(
            Target::parse_addresses("100.64.0.1,db"),
            Err(TargetError::Address { .. })
        ));
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_the_same(text in "\\PC{0,80}") {
            if let Ok(target) = text.parse::<Target>() {
                prop_assert_eq!(target.to_string().parse(), Ok(target));
            }
        }
    }
}
