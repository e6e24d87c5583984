//! The API-server proxy: the tailnet's identity and policy in front of a Kubernetes API.
//!
//! Who calls is told by the tailnet for each request; what the policy grants becomes a user and groups that the API server is asked to
//! take the request for. The proxy's own account can do that and nothing else, so that a mistake fails closed.
//!
//! Start reading at `service.rs` (one request), then `caller.rs` and `grants.rs` (who asks), `headers.rs` (what goes on),
//! `request_info.rs` and `gate.rs` (what is asked, and what has to happen first), `recording/` (sessions that are recorded), `framing.rs`
//! (what is a request at all).

#![forbid(unsafe_code)]

mod audit;
mod body;
mod caller;
mod certificates;
mod check;
mod device;
mod framing;
mod gate;
mod grants;
mod headers;
mod open;
mod recording;
mod refusal;
mod relay;
mod request_info;
mod server;
mod service;
mod strict;
mod upgrade;
mod upstream;

pub use audit::{AuditError, FileSettings, Output, WebhookSettings};
pub use caller::{Caller, Denial, SystemGroups};
pub use certificates::{CertificateError, CertificateSource};
pub use check::Demand;
pub use device::{on_device, serve};
pub use framing::Violation;
pub use gate::{Admission, Session, TerminalKind, session};
pub use grants::{ActAs, CAPABILITIES, CAPABILITY, Grant, GrantError, OWN_CAPABILITY};
pub use headers::HeaderError;
pub use refusal::Refusal;
pub use request_info::{PathError, RequestInfo};
pub use server::{Listener, Metrics, Proxy, Settings, StartError, Stream, Tailnet};
pub use upstream::{CredentialError, UpstreamSettings};
