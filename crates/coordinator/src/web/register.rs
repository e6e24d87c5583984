//! The page at which a device is let in, whose address the client shows to its user.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use jiff::Timestamp;
use serde::Deserialize;

use super::{Maybe, Page, Refusal, Signed, Visitor, pages, user_named};
use crate::model::{NodeOwner, PendingRegistration, RegistrationId, User};
use crate::site::{Origin, Site, TooMany};

/// Shows a device that wants to join, to whoever has the address; those who are signed in may decide.
pub(super) async fn page(
    State(site): State<Arc<Site>>,
    origin: Origin,
    Maybe(visitor): Maybe,
    Path(id): Path<String>,
) -> Result<Page, Refusal> {
    let pending = find(&site, origin, &id)?;
    let world = site.operations.world();
    let owners = visitor
        .as_ref()
        .map(|visitor| owners(visitor, world.users()))
        .unwrap_or_default();
    let has_provider = site.provider.is_some();
    let shown = pages::registration(
        &pending,
        visitor.as_ref(),
        &owners,
        has_provider,
        Timestamp::now(),
    );
    Ok(Page(StatusCode::OK, shown))
}

/// What was decided.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Approve,
    Deny,
}

#[derive(Deserialize)]
pub(super) struct Decision {
    decision: Verdict,
    /// Whose the device shall be.
    #[serde(default)]
    owner: String,
}

/// Lets the device in, or turns it down.
pub(super) async fn decide(
    State(site): State<Arc<Site>>,
    origin: Origin,
    Path(id): Path<String>,
    Signed { visitor, form }: Signed<Decision>,
) -> Result<Page, Refusal> {
    let pending = find(&site, origin, &id)?;
    let hostname = hostname(&pending);
    let id = pending.id.clone();
    match form.decision {
        Verdict::Approve => {
            let world = site.operations.world();
            let owner = user_named(&world, &form.owner).ok_or(Refusal::Form)?;
            if !visitor.is_administrator() && owner.id != visitor.user.id {
                return Err(Refusal::NotAdministrator);
            }
            let node = site
                .operations
                .approve_registration(visitor.actor(), id, Some(NodeOwner::User(owner.id)))
                .await?;
            let text = if node.authorized {
                format!("{hostname} is in. It belongs to {}.", owner.login)
            } else {
                format!(
                    "{hostname} belongs to {} now, and waits for an administrator to approve it.",
                    owner.login
                )
            };
            Ok(Page(
                StatusCode::OK,
                pages::message(Some(&visitor), "Device added", &text),
            ))
        }
        Verdict::Deny => {
            site.operations.deny_registration(visitor.actor(), id).await?;
            let text = format!("{hostname} was turned down. Its user is told so.");
            Ok(Page(
                StatusCode::OK,
                pages::message(Some(&visitor), "Device denied", &text),
            ))
        }
    }
}

/// The name by which the device calls itself.
pub(super) fn hostname(pending: &PendingRegistration) -> String {
    let hostinfo = pending.request.hostinfo.as_ref();
    let name = hostinfo.map(|host| host.hostname.as_str()).unwrap_or_default();
    if name.is_empty() {
        "A device without name".to_owned()
    } else {
        name.chars().take(64).collect()
    }
}

fn find(site: &Site, origin: Origin, id: &str) -> Result<Arc<PendingRegistration>, Refusal> {
    site.may_try(origin)
        .map_err(|TooMany(wait)| Refusal::TooMany(wait.as_secs() + 1))?;
    let found = site.operations.registration(&RegistrationId(id.to_owned()));
    let open = found.ok().filter(|pending| pending.is_open(Timestamp::now()));
    open.ok_or_else(|| {
        site.failed(origin);
        Refusal::NotFound
    })
}

/// As whose the visitor may let a device in: everybody's, or only their own.
fn owners<'w>(visitor: &Visitor, users: impl Iterator<Item = &'w Arc<User>>) -> Vec<&'w User> {
    users
        .filter(|user| visitor.is_administrator() || user.id == visitor.user.id)
        .map(AsRef::as_ref)
        .collect()
}
