//! A node's state in the layout of `tailscaled`, which the state Secret of a pod and the state file of a machine share, both
//! ways. Whatever wrote it, official client or this one, the other goes on as the same device.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tailwharf_kube_types::StateSecret;
use tailwharf_kube_types::secret::{Profile, ProfileUser, SecretError, SecretText, key};
use tailwharf_wire::key::{KeyError, NodePublic};
use tailwharf_wire::tailcfg::{DerpMap, RegionId, StableId, UserId, UserProfile};

use crate::api::NodeState;

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

/// Why this is no node's state.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It does not have the layout.
    #[error("it does not have the layout of a node's state")]
    Layout(#[from] SecretError),
    /// A private key cannot be read.
    #[error("{key} is not a private key")]
    Key {
        /// Where it stands.
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
pub fn node_state(secret: &StateSecret, control_url: &str) -> Result<Option<NodeState>, StateError> {
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
        profile: (profile.user != ProfileUser::default()).then(|| user_profile(&profile.user)),
        home_region: extra.home_region,
        derp_map: extra.derp_map,
        udp_port: extra.udp_port,
    }))
}

/// What a profile says beside the state: where the node is logged in, and as what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// URL of the control server.
    pub control_url: String,
    /// The name asked for.
    pub hostname: String,
    /// What a new profile is named after: the same for a node each time.
    pub seed: String,
}

/// Puts the state of a node into the layout. A profile of another control server stays beside it.
pub fn write_state(secret: &mut StateSecret, state: &NodeState, login: &Login) {
    if secret
        .profile
        .as_ref()
        .is_some_and(|old| !same_server(&old.control_url, &login.control_url))
    {
        secret.set_profile_aside();
    }
    let (id, user, other) = match secret.profile.take() {
        Some(old) => (old.id, old.user, old.other),
        None => (profile_id(login), ProfileUser::default(), serde_json::Map::new()),
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
        control_url: login.control_url.clone(),
        hostname: login.hostname.clone(),
        user: state.profile.as_ref().map_or(user, profile_user),
        other,
    });
    if let Some(id) = &state.stable_id {
        secret.device_id = Some(id.0.clone());
    }
    if let Some(fqdn) = &state.fqdn {
        secret.device_fqdn = Some(fqdn.trim_end_matches('.').to_owned());
    }
    if !state.addresses.is_empty() {
        secret.device_ips = state.addresses.clone();
    }
    let extra = Extra {
        home_region: state.home_region,
        derp_map: state.derp_map.clone(),
        old_node_key: state.old_node_key,
        node_key: Some(state.node_key.public()),
        udp_port: state.udp_port,
    };
    secret.node_state = serde_json::to_vec(&extra).ok();
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

/// Four hex digits, as the Go client uses.
fn profile_id(login: &Login) -> String {
    let digest = Sha256::digest(&login.seed);
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
