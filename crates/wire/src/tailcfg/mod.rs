//! Messages between a node and its control server, both ways.
//!
//! The names are those of Go's `tailcfg` package in snake case. Decode with [`crate::json::from_slice`], which knows Go's
//! rules for keys and `null`. Fields that hold their zero value are left out of the output wherever Go leaves them out.

mod check;
mod dns;
mod filter;
mod hostinfo;
mod map;
mod misc;
mod node;
mod register;
mod relay;
mod ssh;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use self::check::{CheckRequest, CheckResponse};
pub use self::dns::{DnsConfig, DnsRecord, Resolver};
pub use self::filter::{CapGrant, FilterRule, NetPortRange, PortRange};
pub use self::hostinfo::{C2nVipServicesResponse, Hostinfo, Location, NetInfo, Service, VipService};
pub use self::map::{
    ControlDialPlan, ControlIpCandidate, Debug, DisplayMessage, DisplayMessageAction, EndpointType,
    MapRequest, MapResponse, PeerChange, TkaInfo,
};
pub use self::misc::{
    EarlyNoise, HealthChangeRequest, OverTlsPublicKeyResponse, PingRequest, PingResponse,
    QueryFeatureRequest, QueryFeatureResponse, SetDeviceAttributesRequest, SetDnsRequest, SetDnsResponse,
    TokenRequest, TokenResponse,
};
pub use self::node::{Login, Node, User, UserProfile};
pub use self::register::{RegisterAuth, RegisterRequest, RegisterResponse};
pub use self::relay::{DerpHomeParams, DerpMap, DerpNode, DerpRegion};
pub use self::ssh::{SshAction, SshPolicy, SshPrincipal, SshRecorderFailureAction, SshRule};

/// Declares a message whose zero fields are left out of the output (Go's `omitempty` and `omitzero`).
macro_rules! message {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, rename_all = "PascalCase")]
        pub struct $name {
            $(
                $(#[$field_meta])*
                #[serde(skip_serializing_if = "crate::json::is_zero")]
                pub $field: $type,
            )*
        }
    };
}
use message;

macro_rules! number_id {
    ($(#[$meta:meta])* $name:ident($type:ty)) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $type);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number_id! {
    /// Number of a node at its control server: below 2^53, never used again.
    NodeId(i64)
}
number_id! {
    /// Number of a user or of a shared profile such as that of tagged devices.
    UserId(i64)
}
number_id! {
    /// Number of a login, which is a user at one identity provider.
    LoginId(i64)
}
number_id! {
    /// Number of a DERP region. 0 stands for "none".
    RegionId(i32)
}
number_id! {
    /// What a client or server promises to understand, as a number that grows with the protocol.
    CapabilityVersion(u32)
}

impl RegionId {
    /// Whether this stands for "no region".
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }
}

impl CapabilityVersion {
    /// What our own node claims.
    pub const CURRENT: Self = Self(131);
}

/// Name of a node at its control server: opaque, stable over renames and key changes.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StableId(pub String);

impl fmt::Display for StableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Capabilities, each with the values that were granted for it. A capability without values is still one.
pub type CapMap = BTreeMap<String, Vec<serde_json::Value>>;
