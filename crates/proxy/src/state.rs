//! A node's state in the layout of its Kubernetes Secret, both ways. Pure.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tailwharf_kube_types::StateSecret;
use tailwharf_kube_types::secret::{Profile, ProfileUser, SecretError, SecretText, key};
use tailwharf_node::NodeState;
use tailwharf_wire::key::{KeyError, NodePublic};
use tailwharf_wire::tailcfg::{DerpMap, RegionId, StableId, UserId, UserProfile};

/// What the layout has no place for.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Extra {
    #[serde(skip_serializing_if = "Option::is_none")]
    home_region: Option<RegionId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    derp_map: Option<DerpMap>,
    #[serde(skip_serializing_if = "Option::is_none")]
    old_node_key: Option<NodePublic>,
    /// By this an operator finds a device that was registered and not written down.
    #[serde(skip_serializing_if = "Option::is_none")]
    node_key: Option<NodePublic>,
    #[serde(skip_serializing_if = "Option::is_none")]
    udp_port: Option<u16>,
}

/// Why a Secret does not hold a node's state.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    /// The Secret does not have the layout.
    #[error("the Secret does not have the layout of a node's state")]
    Layout(#[from] SecretError),
    /// A private key cannot be read.
    #[error("{key} of the state Secret is not a private key")]
    Key {
        /// Key of the Secret's data.
        key: String,
        /// What is wrong with it.
        #[source]
        source: KeyError,
    },
}

/// The state of the node at the control server `control_url`. `None` when it has none there, so that the node makes new
/// keys.
///
/// # Errors
/// [`StateError::Key`] when a key is damaged; the node is not started then, as it would become another device.
pub(crate) fn node_state(secret: &StateSecret, control_url: &str) -> Result<Option<NodeState>, StateError> {
    let (Some(machine_key), Some(profile)) = (&secret.machine_key, &secret.profile) else {
        return Ok(None);
    };
    if !same_server(&profile.control_url, control_url) {
        return Ok(None);
    }
    let machine_key = machine_key.reveal().parse().map_err(|source| StateError::Key {
        key: key::MACHINE_KEY.to_owned(),
        source,
    })?;
    let node_key = profile
        .node_key
        .reveal()
        .parse()
        .map_err(|source| StateError::Key {
            key: profile.key(),
            source,
        })?;
    // Only helps to be fast: without it, the node asks the control server.
    let extra: Extra = secret
        .node_state
        .as_deref()
        .and_then(|json| serde_json::from_slice(json).ok())
        .unwrap_or_default();
    let device_id = if profile.node_id.is_empty() {
        None
    } else {
        Some(profile.node_id.clone())
    };
    Ok(Some(NodeState {
        machine_key,
        node_key,
        old_node_key: extra.old_node_key,
        stable_id: device_id.map(StableId),
        fqdn: secret.device_fqdn.clone(),
        addresses: secret.device_ips.clone(),
        profile: Some(user_profile(&profile.user)),
        home_region: extra.home_region,
        derp_map: extra.derp_map,
        udp_port: extra.udp_port,
    }))
}

/// What is fixed while an identity is hosted, for [`write_state`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Context {
    /// Name of the identity.
    pub identity: String,
    /// URL of the control server.
    pub control_url: String,
    /// The name asked for.
    pub hostname: String,
    /// UID of this pod.
    pub pod_uid: String,
}

/// Puts the state of a node into its Secret. An auth key with which it has registered is taken out.
pub(crate) fn write_state(
    secret: &mut StateSecret,
    state: &NodeState,
    context: &Context,
    used: Option<&SecretText>,
) {
    let before = secret
        .profile
        .take()
        .filter(|old| same_server(&old.control_url, &context.control_url));
    let (id, user, other) = match before {
        Some(old) => (old.id, old.user, old.other),
        None => (
            profile_id(&context.identity),
            ProfileUser::default(),
            serde_json::Map::new(),
        ),
    };
    secret.machine_key = Some(SecretText::new(state.machine_key.to_text().to_string()));
    secret.profile = Some(Profile {
        id,
        node_key: SecretText::new(state.node_key.to_text().to_string()),
        node_id: state
            .stable_id
            .as_ref()
            .map(|id| id.0.clone())
            .unwrap_or_default(),
        control_url: context.control_url.clone(),
        hostname: context.hostname.clone(),
        user: state.profile.as_ref().map_or(user, profile_user),
        other,
    });
    if let Some(id) = &state.stable_id {
        secret.device_id = Some(id.0.clone());
        if used.is_some() && secret.auth_key.as_ref() == used {
            secret.auth_key = None;
        }
    }
    if let Some(fqdn) = &state.fqdn {
        secret.device_fqdn = Some(fqdn.trim_end_matches('.').to_owned());
    }
    if !state.addresses.is_empty() {
        secret.device_ips = state.addresses.clone();
    }
    secret.pod_uid = Some(context.pod_uid.clone());
    let extra = Extra {
        home_region: state.home_region,
        derp_map: state.derp_map.clone(),
        old_node_key: state.old_node_key,
        node_key: Some(state.node_key.public()),
        udp_port: state.udp_port,
    };
    secret.node_state = serde_json::to_vec(&extra).ok();
}

/// The device id, name and addresses that the Secret tells, for a status before the node itself knows them.
#[must_use]
pub(crate) fn device(secret: &StateSecret) -> (Option<String>, Option<String>, Vec<IpAddr>) {
    (
        secret.device_id.clone(),
        secret.device_fqdn.clone(),
        secret.device_ips.clone(),
    )
}

/// An empty URL is how the Go client writes the default server.
fn same_server(a: &str, b: &str) -> bool {
    const DEFAULT: &str = "https://controlplane.tailscale.com";
    let plain = |url: &str| match url.trim_end_matches('/') {
        "" => DEFAULT.to_owned(),
        url => url.to_owned(),
    };
    plain(a) == plain(b)
}

/// Four hex digits, as the Go client uses; the same for an identity each time.
fn profile_id(identity: &str) -> String {
    let digest = Sha256::digest(identity);
    format!("{:02x}{:02x}", digest[0], digest[1])
}

fn user_profile(user: &ProfileUser) -> UserProfile {
    UserProfile {
        id: UserId(user.id),
        login_name: user.login_name.clone(),
        display_name: user.display_name.clone(),
        ..UserProfile::default()
    }
}

fn profile_user(profile: &UserProfile) -> ProfileUser {
    ProfileUser {
        id: profile.id.0,
        login_name: profile.login_name.clone(),
        display_name: profile.display_name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use tailwharf_kube_types::StateSecret;
    use tailwharf_wire::key::{MachinePrivate, NodePrivate};

    use super::*;

    const SERVER: &str = "http://coordinator:8080";

    fn key(byte: u8) -> String {
        format!("privkey:{}", hex(byte))
    }

    fn hex(byte: u8) -> String {
        format!("{byte:02x}").repeat(32)
    }

    fn context() -> Context {
        Context {
            identity: "ts-nginx-abcde".to_owned(),
            control_url: SERVER.to_owned(),
            hostname: "default-nginx".to_owned(),
            pod_uid: "uid-a".to_owned(),
        }
    }

    fn state() -> NodeState {
        NodeState {
            machine_key: key(1).parse::<MachinePrivate>().unwrap(),
            node_key: key(2).parse::<NodePrivate>().unwrap(),
            old_node_key: None,
            stable_id: None,
            fqdn: None,
            addresses: Vec::new(),
            profile: None,
            home_region: Some(RegionId(900)),
            derp_map: None,
            udp_port: Some(20_000),
        }
    }

    fn registered() -> NodeState {
        NodeState {
            stable_id: Some(StableId("n7".to_owned())),
            fqdn: Some("default-nginx.tail1234.ts.net".to_owned()),
            addresses: vec![
                "100.64.0.7".parse().unwrap(),
                "fd7a:115c:a1e0::7".parse().unwrap(),
            ],
            profile: Some(UserProfile {
                id: UserId(9),
                login_name: "tagged-devices".to_owned(),
                display_name: "Tagged Devices".to_owned(),
                ..UserProfile::default()
            }),
            ..state()
        }
    }

    fn text(secret: &StateSecret) -> String {
        let data = secret.to_data();
        data.iter()
            .map(|(key, value)| format!("{key} = {}\n", String::from_utf8_lossy(&value.0)))
            .collect()
    }

    #[test]
    fn a_node_that_registers_is_written_in_the_layout_of_the_go_operator() {
        let auth_key = SecretText::new("tskey-auth-1".to_owned());
        let mut secret = StateSecret {
            auth_key: Some(auth_key.clone()),
            ..StateSecret::default()
        };
        write_state(&mut secret, &state(), &context(), Some(&auth_key));
        assert!(
            text(&secret).contains("auth_key = tskey-auth-1"),
            "it is needed until the node has registered"
        );
        write_state(&mut secret, &registered(), &context(), Some(&auth_key));
        let (machine, node) = (hex(1), hex(2));
        let id = profile_id("ts-nginx-abcde");
        let user = r#"{"ID":9,"LoginName":"tagged-devices","DisplayName":"Tagged Devices"}"#;
        let parsed: Vec<(String, String)> = text(&secret)
            .lines()
            .map(|line| line.split_once(" = ").unwrap())
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let value = |key: &str| parsed.iter().find(|(name, _)| name == key).unwrap().1.clone();
        let json = |key: &str| serde_json::from_str::<serde_json::Value>(&value(key)).unwrap();
        let keys: Vec<&str> = parsed.iter().map(|(key, _)| key.as_str()).collect();
        let profile = format!("profile-{id}");
        assert_eq!(
            keys,
            [
                "_current-profile",
                "_machinekey",
                "_profiles",
                "device_fqdn",
                "device_id",
                "device_ips",
                "pod_uid",
                &profile,
                "tailwharf.json"
            ]
        );
        assert_eq!(value("_current-profile"), profile);
        assert_eq!(value("_machinekey"), format!("privkey:{machine}"));
        assert_eq!(value("device_fqdn"), "default-nginx.tail1234.ts.net.");
        assert_eq!(value("device_ips"), r#"["100.64.0.7","fd7a:115c:a1e0::7"]"#);
        let extra: serde_json::Value = serde_json::from_str(&value("tailwharf.json")).unwrap();
        assert_eq!(
            extra,
            serde_json::json!({"homeRegion": 900, "udpPort": 20000, "nodeKey": state().node_key.public()}),
            "the public key alone"
        );
        let prefs = json(&profile);
        assert_eq!(prefs["ControlURL"], SERVER);
        assert_eq!(prefs["Config"]["PrivateNodeKey"], format!("privkey:{node}"));
        assert_eq!(prefs["Config"]["NodeID"], "n7");
        assert_eq!(
            prefs["Config"]["UserProfile"],
            serde_json::from_str::<serde_json::Value>(user).unwrap()
        );
    }

    #[test]
    fn a_restarted_host_finds_the_node_again() {
        let mut secret = StateSecret::default();
        write_state(&mut secret, &registered(), &context(), None);
        let again = StateSecret::from_data(&secret.to_data()).unwrap();
        let read = node_state(&again, &format!("{SERVER}/")).unwrap().unwrap();
        let plain = |state: &NodeState| serde_json::to_value(state).unwrap();
        assert_eq!(plain(&read), plain(&registered()));
        assert!(
            node_state(&again, "http://elsewhere").unwrap().is_none(),
            "another server knows no such node"
        );
        let mut same = again.clone();
        write_state(&mut same, &read, &context(), None);
        assert_eq!(
            same.merge_patch(&again.to_data()),
            None,
            "writing what was read changes nothing"
        );
    }

    #[test]
    fn keys_written_before_the_registration_are_used_again_after_a_crash() {
        let mut secret = StateSecret::default();
        write_state(&mut secret, &state(), &context(), None);
        let read = node_state(&secret, SERVER).unwrap().unwrap();
        assert_eq!(read.stable_id, None);
        assert_eq!(*read.node_key.to_text(), key(2));
    }

    #[test]
    fn an_auth_key_that_was_not_used_stays() {
        let used = SecretText::new("tskey-auth-1".to_owned());
        let newer = SecretText::new("tskey-auth-2".to_owned());
        let mut secret = StateSecret {
            auth_key: Some(newer.clone()),
            ..StateSecret::default()
        };
        write_state(&mut secret, &registered(), &context(), Some(&used));
        assert_eq!(secret.auth_key, Some(newer));
        secret.auth_key = Some(used.clone());
        write_state(&mut secret, &registered(), &context(), Some(&used));
        assert_eq!(secret.auth_key, None);
    }

    #[test]
    fn a_damaged_key_is_an_error_that_names_it_and_does_not_show_it() {
        let mut secret = StateSecret::default();
        write_state(&mut secret, &registered(), &context(), None);
        secret.machine_key = Some(SecretText::new("privkey:c0ffee".to_owned()));
        let error = node_state(&secret, SERVER).unwrap_err();
        assert_eq!(
            error.to_string(),
            "_machinekey of the state Secret is not a private key"
        );
        assert!(!format!("{error:?}").contains("c0ffee"));
    }
}
