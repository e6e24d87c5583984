//! What the node tells the control server: a "lite" map request at the start of each session and on each change.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use rand::rngs::StdRng;
use tailwharf_wire::key::NodePublic;
use tailwharf_wire::tailcfg::{CapabilityVersion, MapRequest, RegionId};
use tokio::sync::watch;

use super::SessionError;
use super::announce::Announced;
use super::client::{CallError, ControlClient};
use super::session::Introduction;
use crate::backoff::Backoff;
use crate::direct::Reach;
use crate::engine::Engine;
use crate::state::StateKeeper;

/// Tells changes during one session.
pub(super) struct Teller<'a> {
    pub(super) engine: &'a Arc<Engine>,
    pub(super) keeper: &'a Arc<StateKeeper>,
    pub(super) client: &'a ControlClient,
    pub(super) introduction: &'a Introduction,
    pub(super) announced: watch::Receiver<Announced>,
    pub(super) node_key: NodePublic,
}

impl Teller<'_> {
    pub(super) async fn run(&mut self, rng: &mut StdRng) -> Result<Infallible, SessionError> {
        let mut status = self.engine.watch_status();
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(60));
        let mut reach = self.engine.watch_reach();
        let mut told: Option<(Announced, Option<RegionId>, Reach)> = None;
        loop {
            let home = self.home(&mut status);
            let now = (
                self.announced.borrow_and_update().clone(),
                home,
                reach.borrow_and_update().clone(),
            );
            if told.as_ref() != Some(&now) {
                match self.tell(&now.0, now.1, &now.2).await {
                    Ok(()) => {
                        backoff.reset();
                        told = Some(now);
                        continue;
                    }
                    Err(CallError::Status {
                        status: StatusCode::NOT_FOUND | StatusCode::UNAUTHORIZED,
                        ..
                    }) => {
                        return Err(SessionError::Unregistered);
                    }
                    Err(error @ CallError::Status { .. }) => {
                        let wait = backoff.next(rng).max(match error {
                            CallError::Status { retry_after, .. } => retry_after.unwrap_or_default(),
                            _ => Duration::ZERO,
                        });
                        tracing::debug!(%error, ?wait, "the control server did not take an update");
                        tokio::time::sleep(wait).await;
                        continue;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            let gone = tokio::select! {
                changed = self.announced.changed() => changed.is_err(),
                changed = status.changed() => changed.is_err(),
                changed = reach.changed() => changed.is_err(),
            };
            if gone {
                // The node is being dropped, and this session with it.
                std::future::pending::<()>().await;
            }
        }
    }

    /// The home region to tell: one that the node can really be reached at, else the last one.
    fn home(&self, status: &mut watch::Receiver<crate::api::NodeStatus>) -> Option<RegionId> {
        let status = status.borrow_and_update();
        if status.relay_connected {
            let home = status.home_region;
            self.keeper.update(|state| {
                let moved = state.home_region != home;
                state.home_region = home;
                moved
            });
        }
        self.keeper.read(|state| state.home_region)
    }

    async fn tell(
        &self,
        announced: &Announced,
        home: Option<RegionId>,
        reach: &Reach,
    ) -> Result<(), CallError> {
        let (endpoints, endpoint_types) = reach.endpoints.iter().copied().unzip();
        let request = MapRequest {
            version: CapabilityVersion::CURRENT,
            node_key: self.node_key,
            disco_key: self.introduction.disco_key,
            omit_peers: true,
            hostinfo: Some(self.introduction.hostinfo(announced, home, reach.facts)),
            endpoints,
            endpoint_types,
            ..MapRequest::default()
        };
        self.client
            .post("/machine/map", self.node_key, &request, None)
            .await
            .map(drop)
    }
}
