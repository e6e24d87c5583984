//! How a node resolves names.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::message;

message! {
    /// How a node resolves names.
    pub struct DnsConfig {
        /// Resolvers for all names, in order of preference.
        pub resolvers: Vec<Resolver>,
        /// Resolvers by suffix. An empty list: the node answers by itself.
        pub routes: BTreeMap<String, Vec<Resolver>>,
        /// Resolvers for systems that cannot route by suffix.
        pub fallback_resolvers: Vec<Resolver>,
        /// Search list without final dots. The MagicDNS suffix is first.
        pub domains: Vec<String>,
        /// Whether MagicDNS is on.
        pub proxied: bool,
        /// Resolvers for old clients.
        pub nameservers: Vec<IpAddr>,
        /// Names for which the node may get certificates.
        pub cert_domains: Vec<String>,
        /// Further records that MagicDNS answers.
        pub extra_records: Vec<DnsRecord>,
        /// Suffixes that an exit node does not resolve for its users.
        pub exit_node_filtered_set: Vec<String>,
    }
}

message! {
    /// A resolver.
    pub struct Resolver {
        /// IP address, `ip:port`, or an `https://` URL.
        pub addr: String,
        /// Addresses of the host of a URL.
        pub bootstrap_resolution: Vec<IpAddr>,
        /// Whether it is used while an exit node is.
        pub use_with_exit_node: bool,
    }
}

message! {
    /// A record.
    pub struct DnsRecord {
        /// Fully qualified name.
        pub name: String,
        /// Type; empty: A or AAAA, by the value.
        #[serde(rename = "Type")]
        pub kind: String,
        /// Value in text form.
        pub value: String,
    }
}
