//! How a device is shown, and which devices a list holds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tailwharf_wire::key::{MachinePublic, NodePublic};

use super::super::ApiError;
use crate::model::{Node, NodeOwner};
use crate::world::World;

/// A device as it is shown.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DeviceView {
    /// The number, as text.
    pub(crate) id: String,
    /// The stable id.
    pub(crate) node_id: String,
    /// The full name, without a final dot.
    pub(crate) name: String,
    pub(crate) hostname: String,
    pub(crate) addresses: Vec<IpAddr>,
    /// The login of the owner, or `tagged-devices`.
    pub(crate) user: String,
    #[serde(default)]
    pub(crate) tags: BTreeSet<String>,
    pub(crate) client_version: String,
    pub(crate) os: String,
    pub(crate) created: Timestamp,
    /// Absent as long as the device is connected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last_seen: Option<Timestamp>,
    pub(crate) connected_to_control: bool,
    pub(crate) authorized: bool,
    /// `0001-01-01T00:00:00Z` if the key does not expire.
    pub(crate) expires: Timestamp,
    pub(crate) key_expiry_disabled: bool,
    pub(crate) is_ephemeral: bool,
    pub(crate) is_external: bool,
    pub(crate) blocks_incoming_connections: bool,
    pub(crate) update_available: bool,
    pub(crate) machine_key: MachinePublic,
    pub(crate) node_key: NodePublic,
    /// Only with `fields=all`.
    #[serde(default, flatten, skip_serializing_if = "Option::is_none")]
    pub(crate) details: Option<Details>,
}

/// What `fields=all` adds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Details {
    #[serde(flatten)]
    pub(crate) routes: RoutesView,
    ssh_enabled: bool,
    distro: Distro,
    client_connectivity: Connectivity,
}

/// The routes of a device.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RoutesView {
    pub(crate) advertised_routes: Vec<IpNet>,
    pub(crate) enabled_routes: Vec<IpNet>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Distro {
    name: String,
    version: String,
    code_name: String,
}

/// How a device reaches the network, as it reported.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Connectivity {
    endpoints: Vec<SocketAddr>,
    /// The code of the home region.
    derp: String,
    #[serde(rename = "mappingVariesByDestIP")]
    mapping_varies_by_dest_ip: bool,
    latency: BTreeMap<String, Latency>,
    client_supports: Supports,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Latency {
    latency_ms: f64,
    preferred: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Supports {
    ipv6: bool,
    pcp: bool,
    pmp: bool,
    udp: bool,
    upnp: bool,
}

/// Answer of the list.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DeviceList {
    pub(crate) devices: Vec<DeviceView>,
}

/// Which devices, and how much of them, is asked for: the parameters behind `?`.
#[derive(Debug, Default)]
pub(super) struct Selection {
    all_fields: bool,
    /// Fields of a device and the values that they must have.
    filters: Vec<(String, String)>,
}

/// The fields by which a list can be narrowed.
const FILTERS: [&str; 9] = [
    "name",
    "hostname",
    "user",
    "tags",
    "os",
    "id",
    "nodeId",
    "authorized",
    "isEphemeral",
];

impl Selection {
    pub(super) fn new(parameters: Vec<(String, String)>) -> Result<Self, ApiError> {
        let mut selection = Self::default();
        let mut fields = None;
        for (name, value) in parameters {
            if name == "fields" {
                let known = matches!(value.as_str(), "all" | "default");
                if !known || fields.replace(value).is_some() {
                    return Err(ApiError::QueryInvalid(
                        "`fields` is `all` or `default`, once".to_owned(),
                    ));
                }
            } else if FILTERS.contains(&name.as_str()) {
                selection.filters.push((name, value));
            } else {
                let known = FILTERS.join(", ");
                return Err(ApiError::QueryInvalid(format!(
                    "there is no filter `{}`; there are fields, {known}",
                    name.chars().take(64).collect::<String>()
                )));
            }
        }
        selection.all_fields = fields.as_deref() == Some("all");
        Ok(selection)
    }

    /// The device as it is shown, if it passes the filters.
    pub(super) fn view(&self, world: &World, node: &Node) -> Option<DeviceView> {
        let view = DeviceView::new(world, node, self.all_fields);
        if self.filters.is_empty() {
            return Some(view);
        }
        let json = serde_json::to_value(&view).ok()?;
        let passes = |(name, wanted): &(String, String)| match &json[name] {
            Value::String(text) => text.eq_ignore_ascii_case(wanted),
            Value::Bool(flag) => flag.to_string() == *wanted,
            Value::Array(values) => values.iter().any(|value| value == wanted.as_str()),
            _ => false,
        };
        self.filters.iter().all(passes).then_some(view)
    }
}

/// Go's zero time, which stands for "never" in this API.
pub(super) const NEVER: Timestamp = Timestamp::constant(-62_135_596_800, 0);

impl DeviceView {
    pub(crate) fn new(world: &World, node: &Node, all_fields: bool) -> Self {
        let presence = world.presence(node.id);
        let host = &node.hostinfo;
        let tags = node.owner.tags().into_iter().flatten();
        Self {
            id: node.id.to_string(),
            node_id: node.stable_id.to_string(),
            name: world
                .facts()
                .suffix
                .fqdn(&node.name)
                .trim_end_matches('.')
                .to_owned(),
            hostname: host.hostname.clone(),
            addresses: vec![node.ipv4.into(), node.ipv6.into()],
            user: match &node.owner {
                NodeOwner::User(id) => world.user(*id).map(|user| user.login.clone()).unwrap_or_default(),
                NodeOwner::Tags(_) => "tagged-devices".to_owned(),
            },
            tags: tags.map(ToString::to_string).collect(),
            client_version: host.ipn_version.clone(),
            os: host.os.clone(),
            created: node.created,
            last_seen: node.last_seen.filter(|_| !presence.online),
            connected_to_control: presence.online,
            authorized: node.authorized,
            expires: node.expires.unwrap_or(NEVER),
            key_expiry_disabled: node.expires.is_none(),
            is_ephemeral: node.ephemeral,
            is_external: false,
            blocks_incoming_connections: host.shields_up,
            update_available: false,
            machine_key: node.machine_key,
            node_key: node.node_key,
            details: all_fields.then(|| Details::new(world, node)),
        }
    }
}

impl Details {
    fn new(world: &World, node: &Node) -> Self {
        let host = &node.hostinfo;
        Self {
            routes: RoutesView::new(node),
            ssh_enabled: !host.ssh_host_keys.is_empty(),
            distro: Distro {
                name: host.distro.clone(),
                version: host.distro_version.clone(),
                code_name: host.distro_code_name.clone(),
            },
            client_connectivity: Connectivity::new(world, node),
        }
    }
}

impl RoutesView {
    pub(super) fn new(node: &Node) -> Self {
        Self {
            advertised_routes: node.hostinfo.routable_ips.clone(),
            enabled_routes: node.enabled_routes().collect(),
        }
    }
}

impl Connectivity {
    fn new(world: &World, node: &Node) -> Self {
        let net = node.hostinfo.net_info.clone().unwrap_or_default();
        let regions = &world.derp_map().regions;
        let home = net.preferred_derp;
        let code = |number: &str| {
            let (_, region) = regions.iter().find(|(id, _)| id.0.to_string() == number)?;
            Some((region.region_code.clone(), region.region_id == home))
        };
        // The report tells one figure for each family; the smaller one counts.
        let mut latency = BTreeMap::<String, Latency>::new();
        for (key, seconds) in &net.derp_latency {
            let number = key.split('-').next().unwrap_or_default();
            let Some((code, preferred)) = code(number) else {
                continue;
            };
            let latency_ms = seconds * 1000.0;
            let entry = latency.entry(code).or_insert(Latency {
                latency_ms,
                preferred,
            });
            entry.latency_ms = entry.latency_ms.min(latency_ms);
        }
        Self {
            endpoints: node.endpoints.iter().map(|endpoint| endpoint.addr).collect(),
            derp: code(&home.0.to_string())
                .map(|(code, _)| code)
                .unwrap_or_default(),
            mapping_varies_by_dest_ip: net.mapping_varies_by_dest_ip.unwrap_or_default(),
            latency,
            client_supports: Supports {
                ipv6: net.working_ipv6.unwrap_or_default(),
                pcp: net.pcp.unwrap_or_default(),
                pmp: net.pmp.unwrap_or_default(),
                udp: net.working_udp.unwrap_or_default(),
                upnp: net.upnp.unwrap_or_default(),
            },
        }
    }
}
