//! Asking the control server whether a person has confirmed lately that it is they who use a device.

use std::time::Duration;

use hyper::StatusCode;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tailwharf_wire::tailcfg::{CapabilityVersion, CheckRequest, CheckResponse};

use super::ControlServer;
use super::client::CallError;
use super::session::connect;
use crate::host::Host;
use crate::state::StateKeeper;

/// How long an answer takes at most that waits for a person: the server's two minutes, and some.
const WAIT: Duration = Duration::from_secs(150);

/// Why nobody could be asked.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The control server does not know the device, or asks nobody for a sign-in.
    #[error("the control server knows no such device, or asks nobody for a fresh sign-in")]
    Unknown,
    /// This node is no approved host of the service.
    #[error("this node is no approved host of the service for which it asks")]
    NotHost,
    /// The control server cannot be asked now.
    #[error("the control server cannot be asked for a fresh sign-in")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Asks. The version and the key are filled in.
pub(crate) async fn check(
    host: &Host,
    server: &ControlServer,
    keeper: &StateKeeper,
    mut request: CheckRequest,
) -> Result<CheckResponse, CheckError> {
    let node_key = keeper.read(|state| state.node_key.public());
    let client = connect(host, server, keeper, &mut StdRng::from_entropy())
        .await
        .map_err(|error| CheckError::Failed(error.into()))?;
    request.version = CapabilityVersion::CURRENT;
    request.node_key = node_key;
    let limit = request.wait.then_some(WAIT);
    let answered = client.call("/machine/check", node_key, &request, limit).await;
    answered.map_err(|error| match error {
        CallError::Status {
            status: StatusCode::NOT_FOUND,
            ..
        } => CheckError::Unknown,
        CallError::Status {
            status: StatusCode::FORBIDDEN,
            ..
        } => CheckError::NotHost,
        error => CheckError::Failed(error.into()),
    })
}
