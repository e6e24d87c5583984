//! The part of an [`crate::Identity`] that routes: networks and names that the device makes reachable for its peers.

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a device routes for its peers. The control server decides who may use it.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct Router {
    /// Networks, without host bits, sorted. An exit node has `0.0.0.0/0` and `::/0` among them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>", length(max = 1000), inner(length(max = 64)), extend("x-kubernetes-list-type" = "atomic"))]
    pub routes: Vec<IpNet>,
    /// Resolves the domains that the tailnet policy gives to this device, and routes their addresses.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub app_connector: bool,
}

impl Router {
    /// Whether peers may use the device as their way to the internet.
    #[must_use]
    pub fn is_exit_node(&self) -> bool {
        self.routes.iter().any(|net| net.prefix_len() == 0)
    }
}
