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
    let (Some(machine_key), Some(profile)) = (&secret.machine_key, &secret.profile) else { return Ok(None) };
    if !same_server(&profile.control_url, control_url) {
        return Ok(None);
    }
    let machine_key = machine_key
        .reveal()
        .parse()
        .map_err(|source| StateError::Key { key: key::MACHINE_KEY.to_owned(), source })?;
    let node_key = profile
        .node_key
        .reveal()
        .parse()
        .map_err(|source| StateError::Key { key: profile.key(), source })?;
    // Only helps to be fast: without it, the node asks the control server.
    let extra: Extra =
        secret.node_state.as_deref().and_then(|json| serde_json::from_slice(json).ok()).unwrap_or_default();
    let device_id = if profile.node_id.is_empty() { None } else { Some(profile.node_id.clone()) };
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
    let before = secret.profile.take().filter(|old| same_server(&old.control_url, &context.control_url));
    let (id, user, other) = match before {
        Some(old) => (old.id, old.user, old.other),
        None => (profile_id(&context.identity), ProfileUser::default(), serde_json::Map::new()),
    };
    secret.machine_key = Some(SecretText::new(state.machine_key.to_text().to_string()));
    secret.profile = Some(Profile {
        id,
        node_key: SecretText::new(state.node_key.to_text().to_string()),
        node_id: state.stable_id.as_ref().map(|id| id.0.clone()).unwrap_or_default(),
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
    };
    secret.node_state = serde_json::to_vec(&extra).ok();
}

/// The device id, name and addresses that the Secret tells, for a status before the node itself knows them.
#[must_use]
pub(crate) fn device(secret: &StateSecret) -> (Option<String>, Option<String>, Vec<IpAddr>) {
    (secret.device_id.clone(), secret.device_fqdn.clone(), secret.device_ips.clone())
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
