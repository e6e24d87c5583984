//! The policy language: HuJSON to per-node packet filters.
//!
//! ```text
//! text ──Policy::parse──► Policy ──compile(&Policy, &Tailnet)──► Compiled ──rules_for(node)──► FilterRule…
//! ```
//!
//! - [`Policy`] is a checked document: every name in it is defined, every rule is understood. A text that is not one gives
//!   [`PolicyError`]s, each with line and column.
//! - [`Tailnet`] is the caller's view of users and nodes at one moment.
//! - [`Compiled`] answers for that moment: the filter of a node, who sees whom, which attributes a node has.
//!
//! Nothing here knows a store, a socket or a clock. Start reading at `compile.rs`; the grammar is in `parse/`.
#![forbid(unsafe_code)]

mod check;
mod compile;
mod error;
mod graph;
mod hujson;
mod ipset;
mod model;
mod parse;
mod posture;
mod resolve;
mod tag;
mod tailnet;

pub use compile::{Compiled, compile};
pub use error::{PolicyError, Problem};
pub use graph::{Affected, Change, Graph, Visibility};
pub use hujson::to_json;
pub use model::{Policy, Principal};
pub use posture::{AttributeValue, Attributes, host_attributes};
pub use tag::{InvalidTag, Tag};
pub use tailnet::{Node, Owner, Role, Service, Tailnet, User};

/// The longest policy text that is read, in bytes.
pub const MAX_TEXT: usize = 2 << 20;
