//! The policy language: HuJSON to per-node packet filters.
//!
//! ```text
//! text ──Policy::parse──► Policy ──Graph::new(Policy, &Tailnet)──► Graph ──rules_for(node)──► FilterRule…
//!                                                         Change ──► │ ──► Affected
//! ```
//!
//! - [`Policy`] is a checked document: every name in it is defined, every rule is understood. A text that is not one gives
//!   [`PolicyError`]s, each with line and column.
//! - [`Tailnet`] is the caller's view of users, nodes and services at one moment.
//! - [`Graph`] answers for a policy and a tailnet: the filter of a node, who sees whom, which capabilities a node has. It takes
//!   [`Change`]s and says whom each concerns.
//!
//! Nothing here knows a store, a socket or a clock. Start reading at `graph/mod.rs`; the grammar is in `parse/`.
#![forbid(unsafe_code)]

mod approve;
mod check;
mod error;
mod graph;
mod hujson;
mod ipset;
mod limits;
mod model;
mod parse;
mod posture;
mod preview;
mod tag;
mod tailnet;

pub use approve::Principal;
pub use error::{PolicyError, Problem};
pub use graph::{Affected, Change, Grant, Graph, Unfulfilled, Visibility};
pub use hujson::to_json;
pub use limits::MAX_TEXT;
pub use model::{FUNNEL, Policy};
pub use posture::{AttributeValue, Attributes, host_attributes};
pub use preview::Match;
pub use tag::{InvalidTag, Tag};
pub use tailnet::{Node, Owner, Role, Service, Tailnet, User};
