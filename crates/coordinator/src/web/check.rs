//! The page at which a person confirms that it is they who use a device.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use jiff::Timestamp;
use serde::Deserialize;

use super::{Maybe, Page, Refusal, Signed, pages};
use crate::model::{CheckId, PendingCheck};
use crate::site::{Origin, Site, TooMany};

/// Shows what is asked, to the owner of the device alone: what somebody does is nobody else's business.
pub(super) async fn page(
    State(site): State<Arc<Site>>,
    origin: Origin,
    Maybe(visitor): Maybe,
    Path(id): Path<String>,
) -> Result<Page, Refusal> {
    let now = Timestamp::now();
    let check = find(&site, origin, &id, now)?;
    let Some(visitor) = visitor.filter(|visitor| visitor.user.id == check.user) else {
        let shown = pages::check_for_owner(&site, &check);
        return Ok(Page(StatusCode::OK, shown));
    };
    let world = site.operations.world();
    let device = world.node(check.source).ok_or(Refusal::NotFound)?;
    let fresh = visitor.session.is_fresh(site.provider.is_some(), now);
    let shown = pages::check(&visitor, &check, device, fresh, now);
    Ok(Page(StatusCode::OK, shown))
}

/// What was decided.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Confirm,
    Deny,
}

#[derive(Deserialize)]
pub(super) struct Decision {
    decision: Verdict,
}

/// Confirms, or says no.
pub(super) async fn decide(
    State(site): State<Arc<Site>>,
    origin: Origin,
    Path(id): Path<String>,
    Signed { visitor, form }: Signed<Decision>,
) -> Result<Page, Refusal> {
    let now = Timestamp::now();
    let check = find(&site, origin, &id, now)?;
    let user = visitor.user.id;
    let (title, text) = match form.decision {
        Verdict::Confirm => {
            if !visitor.session.is_fresh(site.provider.is_some(), now) {
                return Err(Refusal::Stale);
            }
            site.operations.confirm_check(user, check.id.clone()).await?;
            (
                "Confirmed",
                "Go back to where you came from: it goes on by itself, or run the command again.",
            )
        }
        Verdict::Deny => {
            site.operations.deny_check(user, check.id.clone()).await?;
            (
                "Denied",
                "Nothing was let through. If it was not you who asked, log the device out.",
            )
        }
    };
    Ok(Page(StatusCode::OK, pages::message(Some(&visitor), title, text)))
}

fn find(site: &Site, origin: Origin, id: &str, now: Timestamp) -> Result<Arc<PendingCheck>, Refusal> {
    site.may_try(origin)
        .map_err(|TooMany(wait)| Refusal::TooMany(wait.as_secs() + 1))?;
    let found = site.operations.pending_check(&CheckId(id.to_owned()), now);
    found.map_err(|_| {
        site.failed(origin);
        Refusal::NotFound
    })
}
