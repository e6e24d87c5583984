//! The smaller messages.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{CapabilityVersion, RegionId, message};
use crate::key::{ChallengePublic, MachinePublic, NodePublic};

/// Answer to `GET /key`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OverTlsPublicKeyResponse {
    /// Key of a protocol that is gone.
    pub legacy_public_key: MachinePublic,
    /// Static Noise key of the server.
    pub public_key: MachinePublic,
}

/// The early payload of a Noise connection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EarlyNoise {
    /// Key against which a client may prove that it holds its node key.
    pub node_key_challenge: ChallengePublic,
}

message! {
    /// Something that a node shall probe and report to `url`.
    pub struct PingRequest {
        /// Where to report. A node ignores a request whose URL it has seen.
        #[serde(rename = "URL")]
        pub url: String,
        /// Whether `url` is to be reached over Noise.
        #[serde(rename = "URLIsNoise")]
        pub url_is_noise: bool,
        /// Whether to log it.
        pub log: bool,
        /// What to do, by commas: `disco`, `TSMP`, `ICMP`, `peerapi`, or `c2n` alone. Empty: `HEAD url`.
        pub types: String,
        /// Whom to ping.
        #[serde(rename = "IP")]
        pub ip: Option<IpAddr>,
        /// An HTTP/1 request, for `c2n`.
        #[serde(with = "crate::json::base64")]
        pub payload: Vec<u8>,
    }
}

message! {
    /// The report on a [`PingRequest`].
    pub struct PingResponse {
        /// Kind of ping.
        #[serde(rename = "Type")]
        pub kind: String,
        /// Whom it was meant for.
        #[serde(rename = "IP")]
        pub ip: String,
        /// Tailnet address of the node that answered.
        #[serde(rename = "NodeIP")]
        pub node_ip: String,
        /// Name of that node.
        pub node_name: String,
        /// Why there is no answer.
        pub err: String,
        /// Round trip time in seconds.
        pub latency_seconds: f64,
        /// UDP endpoint of a direct path.
        pub endpoint: String,
        /// Endpoint of the peer that relayed.
        pub peer_relay: String,
        /// Region over which it went.
        #[serde(rename = "DERPRegionID")]
        pub derp_region_id: RegionId,
        /// Short name of that region.
        #[serde(rename = "DERPRegionCode")]
        pub derp_region_code: String,
        /// Port of the peer API.
        #[serde(rename = "PeerAPIPort")]
        pub peer_api_port: u16,
        /// Whether the address belongs to this node.
        #[serde(rename = "IsLocalIP")]
        pub is_local_ip: bool,
    }
}

message! {
    /// `POST /machine/set-dns`: set a TXT record that proves control over a name.
    pub struct SetDnsRequest {
        /// The client's capability version.
        pub version: CapabilityVersion,
        /// Node key.
        pub node_key: NodePublic,
        /// Name of the record.
        pub name: String,
        /// Type of the record: `TXT`.
        #[serde(rename = "Type")]
        pub kind: String,
        /// Value of the record.
        pub value: String,
    }
}

message! {
    /// Answer to a [`SetDnsRequest`].
    pub struct SetDnsResponse {}
}

message! {
    /// `POST /machine/update-health`: a part of the client is ill, or well again.
    pub struct HealthChangeRequest {
        /// The part.
        pub subsys: String,
        /// What is wrong; empty: nothing any more.
        pub error: String,
        /// Node key.
        pub node_key: NodePublic,
    }
}

message! {
    /// `PATCH /machine/set-device-attr`: change posture attributes.
    pub struct SetDeviceAttributesRequest {
        /// The client's capability version.
        pub version: CapabilityVersion,
        /// Node key.
        pub node_key: NodePublic,
        /// New values by name; JSON `null` removes an attribute.
        pub update: BTreeMap<String, serde_json::Value>,
    }
}

message! {
    /// `POST /machine/feature/query`: how to turn on a feature.
    pub struct QueryFeatureRequest {
        /// The feature.
        pub feature: String,
        /// Node key.
        pub node_key: NodePublic,
    }
}

message! {
    /// Answer to a [`QueryFeatureRequest`].
    pub struct QueryFeatureResponse {
        /// Whether it is on.
        pub complete: bool,
        /// What to do, for people.
        pub text: String,
        /// Where to do it.
        #[serde(rename = "URL")]
        pub url: String,
        /// Whether the client waits until it is on.
        pub should_wait: bool,
    }
}

message! {
    /// `POST /machine/id-token`: ask for an OpenID Connect token of the node.
    pub struct TokenRequest {
        /// The client's capability version.
        pub cap_version: CapabilityVersion,
        /// Node key.
        pub node_key: NodePublic,
        /// For whom the token is.
        pub audience: String,
    }
}

/// Answer to a [`TokenRequest`].
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TokenResponse {
    /// The token.
    pub id_token: String,
}

impl std::fmt::Debug for TokenResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenResponse(redacted)")
    }
}
