//! A node's state in its Kubernetes Secret: the layout that `tailwharf_node` reads and writes, and what the pod adds. Pure.

use std::net::IpAddr;

use tailwharf_kube_types::StateSecret;
use tailwharf_kube_types::secret::SecretText;
use tailwharf_node::NodeState;
use tailwharf_node::layout::{self, Login};

/// What is fixed while an identity is hosted, for [`write_state`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Context {
    /// Name of the identity.
    pub identity: String,
    /// How the node is logged in.
    pub login: Login,
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
    layout::write_state(secret, state, &context.login);
    if state.stable_id.is_some() && used.is_some() && secret.auth_key.as_ref() == used {
        secret.auth_key = None;
    }
    secret.pod_uid = Some(context.pod_uid.clone());
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

#[cfg(test)]
mod tests {
    use tailwharf_node::layout::node_state;
    use tailwharf_wire::key::{MachinePrivate, NodePrivate};
    use tailwharf_wire::tailcfg::{RegionId, StableId, UserId, UserProfile};

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
            login: Login {
                control_url: SERVER.to_owned(),
                hostname: "default-nginx".to_owned(),
                seed: "ts-nginx-abcde".to_owned(),
            },
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
        let id = secret.profile.as_ref().unwrap().id.clone();
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
        assert_eq!(error.to_string(), "_machinekey is not a private key");
        assert!(!format!("{error:?}").contains("c0ffee"));
    }
}
