//! Devices, and those that want to become one.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use jiff::Timestamp;
use serde::Deserialize;

use super::{Page, Refusal, Signed, Visitor, is_visible, pages, see};
use crate::model::Node;
use crate::ops::NodeRef;
use crate::site::Site;

/// The overview.
pub(super) async fn page(State(site): State<Arc<Site>>, visitor: Visitor) -> Page {
    let world = site.operations.world();
    let nodes: Vec<&Node> = world
        .nodes()
        .map(AsRef::as_ref)
        .filter(|node| is_visible(&visitor, node))
        .collect();
    // The address of a registration is what lets somebody decide on it: only administrators see those of others.
    let now = Timestamp::now();
    let open: Vec<_> = world
        .registrations()
        .filter(|pending| visitor.is_administrator() && pending.is_open(now))
        .collect();
    Page(
        StatusCode::OK,
        pages::overview(&visitor, &world, &nodes, &open, &site.url, now),
    )
}

/// What can be done to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Action {
    Approve,
    Expire,
    Delete,
}

/// Asks whether it shall be done.
pub(super) async fn ask(
    State(site): State<Arc<Site>>,
    visitor: Visitor,
    Path((id, action)): Path<(String, Action)>,
) -> Result<Page, Refusal> {
    let node = find(&site, &visitor, id, action)?;
    Ok(Page(StatusCode::OK, pages::confirm(&visitor, &node, action)))
}

#[derive(Deserialize)]
pub(super) struct Nothing {}

/// Does it, and goes back to the overview.
pub(super) async fn act(
    State(site): State<Arc<Site>>,
    Path((id, action)): Path<(String, Action)>,
    Signed { visitor, .. }: Signed<Nothing>,
) -> Result<Response, Refusal> {
    let id = find(&site, &visitor, id, action)?.id;
    let actor = visitor.actor();
    match action {
        Action::Approve => {
            site.operations.set_node_authorized(actor, id, true).await?;
        }
        Action::Expire => {
            site.operations.expire_node(actor, id).await?;
        }
        Action::Delete => site.operations.delete_node(actor, id).await?,
    }
    Ok(see("/console"))
}

/// The device, if the visitor may do that to it. One that they may not see is not there for them.
fn find(site: &Site, visitor: &Visitor, id: String, action: Action) -> Result<Arc<Node>, Refusal> {
    let node = site.operations.find_node(&NodeRef(id))?;
    if !is_visible(visitor, &node) {
        return Err(Refusal::NotFound);
    }
    if action == Action::Approve && !visitor.is_administrator() {
        return Err(Refusal::NotAdministrator);
    }
    Ok(node)
}
