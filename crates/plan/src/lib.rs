//! What the operator decides.
//!
//! Each kind is a pipeline of pure functions around two that touch the world and live in the operator:
//!
//! ```text
//! fetch    (operator)  caches               -> Snapshot
//! validate             Snapshot, Settings   -> Validated | problems that the user has to solve
//! build                Validated, now       -> Plan
//! execute  (operator)  Plan                 -> Applied
//! status               all of these, now    -> StatusPatch and events, computed last
//! ```
//!
//! - [`service`]: exposed Services. Start reading there.
//! - [`egress`]: Services that stand for something on the tailnet.
//! - [`nameserver`]: DNS for pods.
//! - [`ingress`]: Ingresses, in the same manner.
//! - [`connector`]: Connectors, which lead out of the tailnet.
//! - [`operator_device`]: the operator's own device.
//! - [`overview`] and [`doctor`]: everything at a glance, and what is wrong with it.
//! - [`explain`]: the chain from an object to its backend, for people.
//! - [`pool`]: the pods that host identities, and which Secrets they may read.
//! - [`proxy_class`] and [`class`]: ProxyClasses, and what they mean for devices.
//! - [`migrate`]: taking a namespace over from the Go operator, and giving it back.
//! - [`identity`]: what these share: making and removing one device.
//!
//! A [`Plan`] is a value: printable, comparable, free of secrets. What it does not do yet is in its [`Report`], with the reason. Planning what a plan
//! left behind changes nothing.
#![forbid(unsafe_code)]

mod applied;
pub mod class;
pub mod connector;
mod diff;
pub mod doctor;
pub mod egress;
mod endpoints;
pub mod explain;
pub mod identity;
pub mod ingress;
pub mod migrate;
pub mod nameserver;
pub mod operator_device;
pub mod overview;
mod plan;
pub mod pool;
pub mod proxy_class;
mod ranges;
mod report;
pub mod service;
mod settings;
mod status;
mod subject;

pub use applied::{Applied, Failure, FailureKind, Retry};
pub use diff::APPLIED_HASH_LENGTH;
pub use endpoints::{EndpointPort, EndpointsView, needs_endpoints};
pub use plan::{
    Event, EventType, Filled, Kind, Manifest, ObjectRef, Plan, Slot, SlotUse, Step, UnfilledSlot,
};
pub use ranges::{Overlap, Ranges};
pub use report::{Reason, Report};
pub use settings::{PoolSettings, Settings};
pub use status::{Status, StatusPatch};
pub use subject::{Finalizers, Release};
