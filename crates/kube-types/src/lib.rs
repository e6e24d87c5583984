//! The Kubernetes side of the contract as types: what people write on their objects, what tailwharf writes on its own, and the documents that
//! operator and proxy exchange.
//!
//! - [`contract`]: the fixed names (annotations, labels, finalizers, field managers) in one place.
//! - [`values`]: [`values::Hostname`] and [`values::Tag`], parsed at the edge with errors that say what to change.
//! - [`parent`]: which object of a user something was made for, as labels.
//! - [`names`]: names of the objects tailwharf makes.
//! - [`identity`] and [`conditions`]: the custom resource `identities.tailwharf.dev` and its conditions.
//! - [`dns_config`]: the custom resource `dnsconfigs.tailscale.com` and the records of its nameserver.
//! - [`egress`]: what an identity reaches for pods of the cluster.
//! - [`sources`]: which pods may use it.
//! - [`connector`] and [`proxy_class`]: custom resources of the contract, with the schemas that [`schema`] has parts of.
//! - [`secret`]: the layout of an identity's state Secret, which is the one of the Go operator.
//!
//! Nothing here talks to a cluster, reads a clock or draws randomness.
#![forbid(unsafe_code)]

pub mod conditions;
pub mod connector;
pub mod contract;
pub mod dns_config;
pub mod egress;
pub mod identity;
pub mod names;
pub mod parent;
pub mod proxy_class;
pub mod schema;
pub mod secret;
pub mod sources;
pub mod values;

pub use conditions::{ConditionStatus, ConditionType, IdentityReason, Step};
pub use connector::Connector;
pub use egress::{Egress, EgressPort, Target};
pub use identity::router::Router;
pub use identity::{Backend, Identity, IdentitySpec, IdentityStatus, Listener, PathKind, Protocol, Refusal};
pub use parent::{Parent, ParentKind};
pub use proxy_class::ProxyClass;
pub use secret::{AuthKey, StateSecret};
pub use sources::Sources;
pub use values::{Hostname, Tag};
