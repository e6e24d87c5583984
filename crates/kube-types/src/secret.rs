//! The state Secret of an identity, in the layout of the Go operator and client, so that a device keeps its key, name and addresses whichever of
//! the two hosts it.
//!
//! The Go client stores `_machinekey`, the list of profiles in `_profiles`, the name of the current profile's key in `_current-profile`, and the
//! profile itself, JSON with the node key inside `Config`. Beside them stand `device_id`, `device_fqdn` and `device_ips`, which an operator reads,
//! and `auth_key`, which the host removes once it has registered. Keys that are not known here are kept as they are.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::ByteString;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use thiserror::Error;
use zeroize::Zeroizing;

/// Keys of the Secret's data.
pub mod key {
    /// Machine key, `privkey:` and hex.
    pub const MACHINE_KEY: &str = "_machinekey";
    /// Name of the key that holds the current profile.
    pub const CURRENT_PROFILE: &str = "_current-profile";
    /// JSON map from profile id to a short description of it.
    pub const PROFILES: &str = "_profiles";
    /// What the keys of profiles begin with; the profile's id follows.
    pub const PROFILE_PREFIX: &str = "profile-";
    /// Stable id of the device.
    pub const DEVICE_ID: &str = "device_id";
    /// Full name of the device, with a trailing dot.
    pub const DEVICE_FQDN: &str = "device_fqdn";
    /// JSON list of the tailnet addresses.
    pub const DEVICE_IPS: &str = "device_ips";
    /// The auth key to register with.
    pub const AUTH_KEY: &str = "auth_key";
    /// Capability version of the host.
    pub const CAPVER: &str = "tailscale_capver";
    /// UID of the hosting pod.
    pub const POD_UID: &str = "pod_uid";
    /// JSON of the node that the Go layout has no place for: home region, last relay map.
    pub const NODE_STATE: &str = "tailwharf.json";
}

/// Largest value that is read from a state Secret, in bytes. Kubernetes limits the whole Secret to 1 MiB.
pub const MAX_VALUE: usize = 512 * 1024;

/// An auth key or private key as text. It is never printed and is wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    /// Takes over a secret.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The secret itself, for the one place that uses it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(..)")
    }
}

impl Serialize for SecretText {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.reveal())
    }
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

/// A key that registers a device at the control server.
pub type AuthKey = SecretText;

/// What a state Secret holds. Printing it shows the device, never a key.
#[derive(Clone, Default, PartialEq)]
pub struct StateSecret {
    /// Machine key, in its text form `privkey:…`.
    pub machine_key: Option<SecretText>,
    /// The login in use, with the node key.
    pub profile: Option<Profile>,
    /// Stable id of the device, written once the node has registered.
    pub device_id: Option<String>,
    /// Full name of the device, without the trailing dot that the Secret has.
    pub device_fqdn: Option<String>,
    /// Tailnet addresses of the device.
    pub device_ips: Vec<IpAddr>,
    /// The auth key to register with; removed once that is done.
    pub auth_key: Option<AuthKey>,
    /// Capability version of the host.
    pub capver: Option<u32>,
    /// UID of the hosting pod.
    pub pod_uid: Option<String>,
    /// JSON of the node that the Go layout has no place for.
    pub node_state: Option<Vec<u8>>,
    /// Everything else, as it was read.
    pub other: BTreeMap<String, ByteString>,
}

/// A login: the node key and to which device of which control server it belongs. Printing it shows the device, never a key.
#[derive(Clone, PartialEq)]
pub struct Profile {
    /// Four hex digits that name the profile inside the Secret.
    pub id: String,
    /// Node key, in its text form `privkey:…`.
    pub node_key: SecretText,
    /// Stable id of the device.
    pub node_id: String,
    /// URL of the control server.
    pub control_url: String,
    /// Name asked for.
    pub hostname: String,
    /// The user or, for a tagged device, the pseudo user that owns it.
    pub user: ProfileUser,
    /// The other preferences, as they were read.
    pub other: Map<String, Value>,
}

/// The owner of a [`Profile`]'s device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ProfileUser {
    /// Id at the control server.
    #[serde(rename = "ID")]
    pub id: i64,
    /// Name to sign in with.
    pub login_name: String,
    /// Name to show.
    pub display_name: String,
}

/// What is wrong with a state Secret. The text names the key of the Secret's data.
#[derive(Debug, Error)]
pub enum SecretError {
    /// A value is longer than [`MAX_VALUE`].
    #[error("{key} of the state Secret has {length} bytes, more than the {MAX_VALUE} allowed")]
    TooLong {
        /// Key of the Secret's data.
        key: String,
        /// Length of its value.
        length: usize,
    },
    /// A text is not UTF-8.
    #[error("{key} of the state Secret is not UTF-8 text")]
    NotText {
        /// Key of the Secret's data.
        key: String,
    },
    /// A JSON document cannot be read.
    #[error("{key} of the state Secret is not the JSON expected there")]
    Json {
        /// Key of the Secret's data.
        key: String,
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
    /// `tailscale_capver` is not a number.
    #[error("{} of the state Secret is not a number", key::CAPVER)]
    Capver,
    /// `_current-profile` names a key that is no profile's.
    #[error(
        "{} of the state Secret names {name:?}, which is not the name of a profile",
        key::CURRENT_PROFILE
    )]
    ProfileName {
        /// What it names.
        name: String,
    },
}

impl fmt::Debug for StateSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateSecret")
            .field("device_id", &self.device_id)
            .field("device_fqdn", &self.device_fqdn)
            .field("device_ips", &self.device_ips)
            .field("profile", &self.profile)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Profile")
            .field("id", &self.id)
            .field("node_id", &self.node_id)
            .field("control_url", &self.control_url)
            .finish_non_exhaustive()
    }
}

impl StateSecret {
    /// Reads a Secret's data.
    pub fn from_data(data: &BTreeMap<String, ByteString>) -> Result<Self, SecretError> {
        if let Some((key, value)) = data.iter().find(|(_, value)| value.0.len() > MAX_VALUE) {
            return Err(SecretError::TooLong {
                key: key.clone(),
                length: value.0.len(),
            });
        }
        let mut rest = data.clone();
        let profile = read_profile(&rest)?;
        if let Some(profile) = &profile {
            rest.remove(&profile.key());
            rest.remove(key::CURRENT_PROFILE);
        }
        Ok(Self {
            machine_key: take_text(&mut rest, key::MACHINE_KEY)?.map(SecretText::new),
            profile,
            device_id: take_text(&mut rest, key::DEVICE_ID)?,
            device_fqdn: take_text(&mut rest, key::DEVICE_FQDN)?
                .map(|name| name.trim_end_matches('.').to_owned()),
            device_ips: match take_text(&mut rest, key::DEVICE_IPS)? {
                None => Vec::new(),
                Some(text) => parse_json(key::DEVICE_IPS, text.as_bytes())?,
            },
            auth_key: take_text(&mut rest, key::AUTH_KEY)?.map(SecretText::new),
            capver: match take_text(&mut rest, key::CAPVER)? {
                None => None,
                Some(text) => Some(text.trim().parse().map_err(|_| SecretError::Capver)?),
            },
            pod_uid: take_text(&mut rest, key::POD_UID)?,
            node_state: rest.remove(key::NODE_STATE).map(|value| value.0),
            other: rest,
        })
    }

    /// The Secret's data. What [`Self::from_data`] read comes back, with the typed fields as they are now.
    #[must_use]
    pub fn to_data(&self) -> BTreeMap<String, ByteString> {
        let mut data = self.other.clone();
        let mut put = |key: &str, value: Option<Vec<u8>>| {
            if let Some(value) = value {
                data.insert(key.to_owned(), ByteString(value));
            }
        };
        put(
            key::MACHINE_KEY,
            self.machine_key.as_ref().map(|key| key.reveal().into()),
        );
        put(key::DEVICE_ID, self.device_id.clone().map(Into::into));
        put(
            key::DEVICE_FQDN,
            self.device_fqdn.as_ref().map(|name| format!("{name}.").into()),
        );
        if !self.device_ips.is_empty() {
            put(key::DEVICE_IPS, Some(json!(self.device_ips).to_string().into()));
        }
        put(
            key::AUTH_KEY,
            self.auth_key.as_ref().map(|key| key.reveal().into()),
        );
        put(key::CAPVER, self.capver.map(|version| version.to_string().into()));
        put(key::POD_UID, self.pod_uid.clone().map(Into::into));
        put(key::NODE_STATE, self.node_state.clone());
        if let Some(profile) = &self.profile {
            let name = profile.key();
            put(&name, Some(profile.to_json().to_string().into()));
            put(key::PROFILES, Some(self.profiles(profile).to_string().into()));
            put(key::CURRENT_PROFILE, Some(name.into()));
        }
        data
    }

    /// Makes room for another profile: the current one is kept beside it, as the Go client keeps those that are not in use.
    pub fn set_profile_aside(&mut self) {
        if let Some(profile) = self.profile.take() {
            let profiles = self.profiles(&profile).to_string();
            self.other
                .insert(profile.key(), ByteString(profile.to_json().to_string().into()));
            self.other
                .insert(key::PROFILES.to_owned(), ByteString(profiles.into()));
        }
    }

    /// A JSON merge patch that turns a Secret with the data `old` into one with this state. `None` if nothing differs.
    #[must_use]
    pub fn merge_patch(&self, old: &BTreeMap<String, ByteString>) -> Option<Value> {
        let new = self.to_data();
        let mut changes = Map::new();
        for (key, value) in &new {
            if old.get(key) != Some(value) {
                changes.insert(key.clone(), Value::String(STANDARD.encode(&value.0)));
            }
        }
        for key in old.keys().filter(|key| !new.contains_key(*key)) {
            changes.insert(key.clone(), Value::Null);
        }
        (!changes.is_empty()).then(|| json!({ "data": changes }))
    }

    /// The value of `_profiles`, with the entry of the current profile brought up to date and the others as they were read.
    fn profiles(&self, profile: &Profile) -> Value {
        let mut all: Map<String, Value> = self
            .other
            .get(key::PROFILES)
            .and_then(|value| serde_json::from_slice(&value.0).ok())
            .unwrap_or_default();
        let entry = all.entry(profile.id.clone()).or_insert_with(|| json!({}));
        if !entry.is_object() {
            *entry = json!({});
        }
        entry["ID"] = json!(profile.id);
        entry["Name"] = json!(profile.user.login_name);
        entry["Key"] = json!(profile.key());
        entry["UserProfile"] = json!(profile.user);
        entry["NodeID"] = json!(profile.node_id);
        entry["ControlURL"] = json!(profile.control_url);
        Value::Object(all)
    }
}

impl Profile {
    /// The name of the profile's key in the Secret.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}{}", key::PROFILE_PREFIX, self.id)
    }

    fn to_json(&self) -> Value {
        let mut prefs = self.other.clone();
        let mut config = match prefs.remove("Config") {
            Some(Value::Object(config)) => config,
            _ => Map::new(),
        };
        config.insert("PrivateNodeKey".to_owned(), json!(self.node_key));
        config.insert("NodeID".to_owned(), json!(self.node_id));
        config.insert("UserProfile".to_owned(), json!(self.user));
        prefs.insert("Config".to_owned(), Value::Object(config));
        prefs.insert("ControlURL".to_owned(), json!(self.control_url));
        prefs.insert("Hostname".to_owned(), json!(self.hostname));
        prefs.entry("WantRunning").or_insert(Value::Bool(true));
        Value::Object(prefs)
    }
}

/// The parts of a profile's JSON that are read. The Go client writes many more.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Prefs {
    #[serde(rename = "ControlURL", default)]
    control_url: String,
    #[serde(default)]
    hostname: String,
    config: Option<Config>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    private_node_key: Option<SecretText>,
    #[serde(rename = "NodeID", default)]
    node_id: String,
    user_profile: Option<ProfileUser>,
}

/// Reads the current profile. `None` if there is none or it has no node key, that is, before the first login.
fn read_profile(data: &BTreeMap<String, ByteString>) -> Result<Option<Profile>, SecretError> {
    let Some(name) = data.get(key::CURRENT_PROFILE).filter(|name| !name.0.is_empty()) else {
        return Ok(None);
    };
    let name = str::from_utf8(&name.0).map_err(|_| SecretError::NotText {
        key: key::CURRENT_PROFILE.to_owned(),
    })?;
    let Some(id) = name.strip_prefix(key::PROFILE_PREFIX).filter(|id| !id.is_empty()) else {
        return Err(SecretError::ProfileName {
            name: name.chars().take(80).collect(),
        });
    };
    let Some(value) = data.get(name) else {
        return Ok(None);
    };
    let prefs: Prefs = parse_json(name, &value.0)?;
    let Some(config) = prefs.config else {
        return Ok(None);
    };
    let Some(node_key) = config.private_node_key else {
        return Ok(None);
    };
    Ok(Some(Profile {
        id: id.to_owned(),
        node_key,
        node_id: config.node_id,
        control_url: prefs.control_url,
        hostname: prefs.hostname,
        user: config.user_profile.unwrap_or_default(),
        other: parse_json(name, &value.0)?,
    }))
}

/// Takes a text out of the data. An empty value counts as absent, as for the Go operator.
fn take_text(data: &mut BTreeMap<String, ByteString>, key: &str) -> Result<Option<String>, SecretError> {
    match data.remove(key) {
        None => Ok(None),
        Some(value) if value.0.is_empty() => Ok(None),
        Some(value) => String::from_utf8(value.0)
            .map(Some)
            .map_err(|_| SecretError::NotText { key: key.to_owned() }),
    }
}

fn parse_json<'a, T: Deserialize<'a>>(key: &str, text: &'a [u8]) -> Result<T, SecretError> {
    serde_json::from_slice(text).map_err(|source| SecretError::Json {
        key: key.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE_KEY: &str = "privkey:0101010101010101010101010101010101010101010101010101010101010101";
    const MACHINE_KEY: &str = "privkey:0202020202020202020202020202020202020202020202020202020202020202";

    /// The layout as `containerboot` leaves it.
    fn written_by_go() -> BTreeMap<String, ByteString> {
        let profile = json!({
            "ControlURL": "http://control:8080", "RouteAll": true, "CorpDNS": false, "WantRunning": true, "Hostname": "web",
            "AdvertiseServices": ["svc:x"],
            "Config": {
                "PrivateNodeKey": NODE_KEY, "OldPrivateNodeKey": "privkey:00", "NetworkLockKey": "nlpriv:00", "NodeID": "nABC",
                "UserProfile": {"ID": 7, "LoginName": "tagged-devices", "DisplayName": "Tagged Devices"},
            },
        });
        let profiles = json!({"ab12": {"ID": "ab12", "Name": "tagged-devices", "Key": "profile-ab12", "NetworkProfile": {"MagicDNSName": "tail.ts.net"}}});
        [
            ("_machinekey", MACHINE_KEY.to_owned()),
            ("_current-profile", "profile-ab12".to_owned()),
            ("_profiles", profiles.to_string()),
            ("profile-ab12", profile.to_string()),
            ("device_id", "nABC".to_owned()),
            ("device_fqdn", "web.tail.ts.net.".to_owned()),
            ("device_ips", r#"["100.64.0.7","fd7a:115c:a1e0::7"]"#.to_owned()),
            ("tailscale_capver", "142".to_owned()),
            ("cap-107.hujson", "{}".to_owned()),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), ByteString(value.into())))
        .collect()
    }

    #[test]
    fn reads_what_go_wrote() {
        let state = StateSecret::from_data(&written_by_go()).unwrap();
        let profile = state.profile.as_ref().unwrap();
        assert_eq!(state.machine_key.as_ref().unwrap().reveal(), MACHINE_KEY);
        assert_eq!(profile.node_key.reveal(), NODE_KEY);
        assert_eq!(
            (
                profile.id.as_str(),
                profile.node_id.as_str(),
                profile.hostname.as_str()
            ),
            ("ab12", "nABC", "web")
        );
        assert_eq!(profile.user.login_name, "tagged-devices");
        assert_eq!(state.device_fqdn.as_deref(), Some("web.tail.ts.net"));
        assert_eq!(state.device_ips.len(), 2);
        assert_eq!(state.capver, Some(142));
        assert!(state.other.contains_key("cap-107.hujson"));
    }

    #[test]
    fn writing_keeps_what_is_not_known() {
        let data = written_by_go();
        let state = StateSecret::from_data(&data).unwrap();
        let written = state.to_data();
        let json = |key: &str| serde_json::from_slice::<Value>(&written[key].0).unwrap();
        assert_eq!(
            written.keys().collect::<Vec<_>>(),
            data.keys().collect::<Vec<_>>()
        );
        assert_eq!(json("profile-ab12")["AdvertiseServices"], json!(["svc:x"]));
        assert_eq!(json("profile-ab12")["Config"]["NetworkLockKey"], "nlpriv:00");
        assert_eq!(
            json("_profiles")["ab12"]["NetworkProfile"]["MagicDNSName"],
            "tail.ts.net"
        );
        assert_eq!(written["device_fqdn"].0, b"web.tail.ts.net.");
        let again = StateSecret::from_data(&written).unwrap();
        assert_eq!(again.to_data(), written);
        assert_eq!(again.merge_patch(&written), None);
    }

    #[test]
    fn a_new_login_is_written_in_gos_layout() {
        let state = StateSecret {
            machine_key: Some(SecretText::new(MACHINE_KEY.to_owned())),
            profile: Some(Profile {
                id: "cd34".to_owned(),
                node_key: SecretText::new(NODE_KEY.to_owned()),
                node_id: "n1".to_owned(),
                control_url: "http://control".to_owned(),
                hostname: "web".to_owned(),
                user: ProfileUser::default(),
                other: Map::new(),
            }),
            ..StateSecret::default()
        };
        let data = state.to_data();
        assert_eq!(data["_current-profile"].0, b"profile-cd34");
        let profile: Value = serde_json::from_slice(&data["profile-cd34"].0).unwrap();
        assert_eq!(profile["Config"]["PrivateNodeKey"], NODE_KEY);
        assert_eq!(profile["Config"]["NodeID"], "n1");
        let profiles: Value = serde_json::from_slice(&data["_profiles"].0).unwrap();
        assert_eq!(profiles["cd34"]["Key"], "profile-cd34");
    }

    #[test]
    fn a_profile_before_its_first_login_is_kept() {
        let data = BTreeMap::from([
            (
                "_current-profile".to_owned(),
                ByteString(b"profile-ab12".to_vec()),
            ),
            (
                "profile-ab12".to_owned(),
                ByteString(br#"{"Config":null}"#.to_vec()),
            ),
        ]);
        let state = StateSecret::from_data(&data).unwrap();
        assert_eq!(state.profile, None);
        assert_eq!(state.to_data(), data);
    }

    #[test]
    fn patches_name_only_what_changed() {
        let mut state = StateSecret {
            auth_key: Some(SecretText::new("tskey".to_owned())),
            ..StateSecret::default()
        };
        let old = state.to_data();
        state.auth_key = None;
        state.device_id = Some("n1".to_owned());
        assert_eq!(
            state.merge_patch(&old),
            Some(json!({"data": {"auth_key": null, "device_id": "bjE="}}))
        );
    }

    #[test]
    fn secrets_are_not_printed() {
        let state = StateSecret::from_data(&written_by_go()).unwrap();
        let auth = StateSecret {
            auth_key: Some(SecretText::new("tskey-auth-x".to_owned())),
            ..StateSecret::default()
        };
        let printed = format!("{state:?} {:?}", state.machine_key);
        assert!(
            printed.contains("nABC") && !printed.contains("0101") && !printed.contains("0202"),
            "{printed}"
        );
        assert!(!format!("{auth:?}").contains("tskey"));
    }

    #[test]
    fn errors_name_the_key() {
        let with = |key: &str, value: &[u8]| BTreeMap::from([(key.to_owned(), ByteString(value.to_vec()))]);
        let text = |data| StateSecret::from_data(&data).unwrap_err().to_string();
        assert!(text(with("device_ips", b"{}")).contains("device_ips"));
        assert!(text(with("device_id", b"\xff")).contains("device_id"));
        assert!(text(with("tailscale_capver", b"x")).contains("tailscale_capver"));
        assert!(text(with("_current-profile", b"other")).contains("\"other\""));
        assert!(text(with("x", &vec![0; MAX_VALUE + 1])).contains("x of the state Secret has"));
    }
}
