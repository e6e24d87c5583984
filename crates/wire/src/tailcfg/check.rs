//! Fresh sign-ins: whether the person behind a node has confirmed lately that it is really they. A tailwharf coordinator answers these requests; other
//! control servers have nothing at the path.

use jiff::Timestamp;

use super::{CapabilityVersion, StableId, message};
use crate::key::NodePublic;

message! {
    /// `POST /machine/check`: asks whether the person who owns `source` has confirmed it for the node that asks.
    pub struct CheckRequest {
        /// The client's capability version.
        pub version: CapabilityVersion,
        /// Key of the node that asks.
        pub node_key: NodePublic,
        /// The node that wants to do something, and whose owner is asked.
        pub source: StableId,
        /// The service for which the node asks, like `svc:kube`; it must be a host of it. Empty: for itself. Nodes that ask for the same
        /// service share what was confirmed.
        pub service: String,
        /// What the person reads on the page, at most 200 characters, like `kubectl on prod`.
        pub purpose: String,
        /// How old a confirmation may be, in seconds.
        pub max_age: u64,
        /// Whether to answer only when the person has decided, or after two minutes.
        pub wait: bool,
    }
}

message! {
    /// Answer to a [`CheckRequest`]. One of `confirmed`, `url` and `refused` is there.
    pub struct CheckResponse {
        /// When the person confirmed it last, if that is fresh enough.
        pub confirmed: Option<Timestamp>,
        /// The page at which the person confirms it. The same one for as long as it is open.
        #[serde(rename = "URL")]
        pub url: String,
        /// What the page shows as well, so that the person knows it for their own.
        pub code: String,
        /// Until when the page is open.
        pub expires: Option<Timestamp>,
        /// Why nobody will confirm it: the device belongs to no person, or the person said no.
        pub refused: String,
    }
}
