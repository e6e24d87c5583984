//! The API's values, parsed once.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};

use crate::secret::Secret;

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl $name {
            /// The id as the API writes it.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(id: &str) -> Self {
                Self(id.to_owned())
            }
        }
    };
}

id_type! {
    /// Id of a device. The stable form (`n…CNTRL`); servers accept the old numeric one as well.
    DeviceId
}
id_type! {
    /// Id of a key, which is not the key.
    KeyId
}

/// What an auth key is asked to allow. `Default` is a single-use, approved key of a permanent device, with the server's
/// own lifetime and without tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateKey {
    /// Tags that a device of this key carries, as `tag:name`.
    pub tags: Vec<String>,
    /// Whether more than one device may use the key.
    pub reusable: bool,
    /// Whether the device goes away on its own some time after it disconnected.
    pub ephemeral: bool,
    /// Whether the device needs no approval by an administrator.
    pub preauthorized: bool,
    /// Life of the key. `None` leaves it to the server (90 days at Tailscale).
    pub lifetime: Option<Duration>,
    /// Shown to administrators: at most 50 letters, digits, blanks and hyphens.
    pub description: String,
}

impl Default for CreateKey {
    fn default() -> Self {
        Self {
            tags: Vec::new(),
            reusable: false,
            ephemeral: false,
            preauthorized: true,
            lifetime: None,
            description: String::new(),
        }
    }
}

/// A key that was just minted. The only time that the server tells the key itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthKey {
    /// The key's id, by which it can be revoked.
    pub id: KeyId,
    /// The key.
    pub key: Secret,
    /// When it stops to work.
    pub expires: Option<Timestamp>,
}

/// One entry of the list of keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyInfo {
    /// The key's id.
    pub id: KeyId,
}

/// A device as the API tells it, reduced to what callers use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The stable id.
    pub id: DeviceId,
    /// Full MagicDNS name, without a final dot.
    pub name: String,
    /// The name that the device asked for; others may ask for the same.
    pub hostname: String,
    /// Public key of the node, `nodekey:…`; empty where the server does not tell.
    pub node_key: String,
    /// Tailnet addresses.
    pub addresses: Vec<IpAddr>,
    /// Tags, as `tag:name`; empty for a device that a user owns.
    pub tags: Vec<String>,
    /// Whether an administrator approved it, or none had to.
    pub authorized: bool,
    /// When it was seen last; absent where the server does not tell.
    pub last_seen: Option<Timestamp>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DeviceWire {
    #[serde(default, deserialize_with = "null_as_default")]
    id: String,
    #[serde(default, deserialize_with = "null_as_default")]
    node_id: String,
    #[serde(default, deserialize_with = "null_as_default")]
    name: String,
    #[serde(default, deserialize_with = "null_as_default")]
    hostname: String,
    #[serde(default, deserialize_with = "null_as_default")]
    node_key: String,
    #[serde(default, deserialize_with = "null_as_default")]
    addresses: Vec<IpAddr>,
    #[serde(default, deserialize_with = "null_as_default")]
    tags: Vec<String>,
    #[serde(default, deserialize_with = "null_as_default")]
    authorized: bool,
    #[serde(default, deserialize_with = "empty_as_none")]
    last_seen: Option<Timestamp>,
}

impl<'de> Deserialize<'de> for Device {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wire = DeviceWire::deserialize(deserializer)?;
        let id = if wire.node_id.is_empty() {
            wire.id
        } else {
            wire.node_id
        };
        if id.is_empty() {
            return Err(serde::de::Error::custom("a device has neither nodeId nor id"));
        }
        Ok(Self {
            id: DeviceId(id),
            name: wire.name.trim_end_matches('.').to_owned(),
            hostname: wire.hostname,
            node_key: wire.node_key,
            addresses: wire.addresses,
            tags: wire.tags,
            authorized: wire.authorized,
            last_seen: wire.last_seen,
        })
    }
}

/// Which devices a list holds. Empty fields let every device pass.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceFilter {
    /// The host name that the device asked for, compared without regard to case.
    pub hostname: Option<String>,
    /// Tags that the device must all carry.
    pub tags: Vec<String>,
}

impl DeviceFilter {
    /// Devices that asked for this host name.
    pub fn by_hostname(hostname: impl Into<String>) -> Self {
        Self {
            hostname: Some(hostname.into()),
            tags: Vec::new(),
        }
    }

    /// Whether `device` passes.
    pub fn matches(&self, device: &Device) -> bool {
        self.hostname
            .as_ref()
            .is_none_or(|name| name.eq_ignore_ascii_case(&device.hostname))
            && self.tags.iter().all(|tag| device.tags.contains(tag))
    }
}

/// The tailnet's policy file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyFile {
    /// The text, with its comments.
    pub hujson: String,
    /// Entity tag of this version, for a conditional replacement.
    pub etag: Option<String>,
}

/// `POST …/keys`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CreateKeyBody<'a> {
    capabilities: Capabilities<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expiry_seconds: Option<u64>,
    #[serde(skip_serializing_if = "str::is_empty")]
    description: &'a str,
}

#[derive(Serialize)]
struct Capabilities<'a> {
    devices: DeviceCapabilities<'a>,
}

#[derive(Serialize)]
struct DeviceCapabilities<'a> {
    create: DeviceCreate<'a>,
}

#[derive(Serialize)]
struct DeviceCreate<'a> {
    reusable: bool,
    ephemeral: bool,
    preauthorized: bool,
    tags: &'a [String],
}

impl<'a> From<&'a CreateKey> for CreateKeyBody<'a> {
    fn from(request: &'a CreateKey) -> Self {
        Self {
            capabilities: Capabilities {
                devices: DeviceCapabilities {
                    create: DeviceCreate {
                        reusable: request.reusable,
                        ephemeral: request.ephemeral,
                        preauthorized: request.preauthorized,
                        tags: &request.tags,
                    },
                },
            },
            expiry_seconds: request.lifetime.map(|lifetime| lifetime.as_secs()),
            description: &request.description,
        }
    }
}

#[derive(Deserialize)]
pub(crate) struct CreatedKeyBody {
    pub(crate) id: KeyId,
    pub(crate) key: Secret,
    #[serde(default, deserialize_with = "empty_as_none")]
    pub(crate) expires: Option<Timestamp>,
}

#[derive(Deserialize)]
pub(crate) struct KeyListBody {
    #[serde(default, deserialize_with = "null_as_default")]
    pub(crate) keys: Vec<KeyInfo>,
}

#[derive(Deserialize)]
pub(crate) struct DeviceListBody {
    #[serde(default, deserialize_with = "null_as_default")]
    pub(crate) devices: Vec<Device>,
}

pub(crate) fn null_as_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Go's zero time is written as an empty string by some calls.
fn empty_as_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    match Option::<String>::deserialize(deserializer)?.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(serde::de::Error::custom),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_prefers_the_stable_id_and_tolerates_nulls() {
        let device: Device = serde_json::from_str(
            r#"{"id":"42","nodeId":"nAbcCNTRL","name":"web.tail1.ts.net.","hostname":"web","addresses":["100.64.0.1"],
               "tags":null,"lastSeen":"","surprise":{}}"#,
        )
        .unwrap();
        assert_eq!(device.id, DeviceId::from("nAbcCNTRL"));
        assert_eq!(device.name, "web.tail1.ts.net");
        assert!(device.tags.is_empty());
        assert_eq!(device.last_seen, None);
    }

    #[test]
    fn a_device_without_id_is_refused() {
        assert!(serde_json::from_str::<Device>(r#"{"name":"web"}"#).is_err());
    }

    #[test]
    fn the_key_request_has_the_documented_shape() {
        let request = CreateKey {
            tags: vec!["tag:k8s".to_owned()],
            ..CreateKey::default()
        };
        assert_eq!(
            serde_json::to_string(&CreateKeyBody::from(&request)).unwrap(),
            r#"{"capabilities":{"devices":{"create":{"reusable":false,"ephemeral":false,"preauthorized":true,"tags":["tag:k8s"]}}}}"#
        );
    }

    #[test]
    fn secrets_do_not_print() {
        let key = AuthKey {
            id: KeyId::from("k1"),
            key: Secret::new("tskey-auth-x"),
            expires: None,
        };
        assert!(!format!("{key:?}").contains("tskey"));
    }
}
