//! The map of DERP relays.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{RegionId, message};

message! {
    /// All relays of a tailnet.
    pub struct DerpMap {
        /// How nodes choose their home.
        pub home_params: Option<DerpHomeParams>,
        /// Regions by number.
        pub regions: BTreeMap<RegionId, DerpRegion>,
        /// Whether regions that a client knows by itself are off.
        #[serde(rename = "omitDefaultRegions")]
        pub omit_default_regions: bool,
    }
}

message! {
    /// How nodes choose their home region.
    pub struct DerpHomeParams {
        /// Factors on the latency of regions. Below 1 makes a region more attractive.
        pub region_score: BTreeMap<RegionId, f64>,
    }
}

/// Relays at one place. They forward to each other, if there are several.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DerpRegion {
    /// Number of the region.
    #[serde(rename = "RegionID")]
    pub region_id: RegionId,
    /// Short name, like `fra`.
    pub region_code: String,
    /// Name for people, like `Frankfurt`.
    pub region_name: String,
    /// Degrees north.
    #[serde(skip_serializing_if = "crate::json::is_zero")]
    pub latitude: f64,
    /// Degrees east.
    #[serde(skip_serializing_if = "crate::json::is_zero")]
    pub longitude: f64,
    /// Whether no node should choose it as its home of its own accord.
    #[serde(skip_serializing_if = "crate::json::is_zero")]
    pub avoid: bool,
    /// Whether no node may measure it or have its home there.
    #[serde(skip_serializing_if = "crate::json::is_zero")]
    pub no_measure_no_home: bool,
    /// Relays, in the order in which they are tried.
    pub nodes: Vec<DerpNode>,
}

message! {
    /// One relay.
    pub struct DerpNode {
        /// Name, unique in the map, like `900a`.
        pub name: String,
        /// Region of the relay.
        #[serde(rename = "RegionID")]
        pub region_id: RegionId,
        /// Host name, or an IP address together with a pinned certificate.
        pub host_name: String,
        /// What the certificate must say. Empty: `host_name`; a name: that name; `sha256-raw:<hex>`: exactly that certificate.
        pub cert_name: String,
        /// IPv4 address. Empty: resolve `host_name`; `none`: no IPv4.
        #[serde(rename = "IPv4")]
        pub ipv4: String,
        /// IPv6 address. Empty: resolve `host_name`; `none`: no IPv6.
        #[serde(rename = "IPv6")]
        pub ipv6: String,
        /// UDP port of STUN. 0: 3478; -1: no STUN.
        #[serde(rename = "STUNPort")]
        pub stun_port: i32,
        /// Whether it only answers STUN.
        #[serde(rename = "STUNOnly")]
        pub stun_only: bool,
        /// TCP port of DERP. 0: 443.
        #[serde(rename = "DERPPort")]
        pub derp_port: i32,
        /// Whether the certificate is not checked.
        pub insecure_for_tests: bool,
        /// Address to use for STUN in tests.
        #[serde(rename = "STUNTestIP")]
        pub stun_test_ip: String,
        /// Whether port 80 answers captive portal checks.
        pub can_port80: bool,
    }
}

impl DerpNode {
    /// TCP port of DERP.
    #[must_use]
    pub fn tcp_port(&self) -> u16 {
        u16::try_from(self.derp_port)
            .ok()
            .filter(|port| *port != 0)
            .unwrap_or(443)
    }

    /// UDP port of STUN. `None`: the relay has no STUN.
    #[must_use]
    pub fn udp_port(&self) -> Option<u16> {
        match self.stun_port {
            0 => Some(3478),
            port => u16::try_from(port).ok(),
        }
    }
}
