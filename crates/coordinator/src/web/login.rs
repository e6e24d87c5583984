//! Signing in and out.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use rand::rngs::OsRng;
use serde::Deserialize;

use super::{COOKIE, Page, Refusal, Signed, pages, see};
use crate::site::{Origin, Site};

/// Says how to sign in.
pub(super) async fn explain(State(site): State<Arc<Site>>) -> Page {
    Page(StatusCode::OK, pages::sign_in_hint(site.provider.is_some()))
}

/// Asks whether to sign in. Opening the link alone does not use it up, and the browser sends what follows from our own page.
pub(super) async fn page(
    State(site): State<Arc<Site>>,
    origin: Origin,
    Path(token): Path<String>,
) -> Result<Page, Refusal> {
    may_try(&site, origin)?;
    let user = site.sessions.invited(&token, Timestamp::now());
    let world = site.operations.world();
    let Some(user) = user.and_then(|id| world.user(id)) else {
        site.failed(origin);
        return Err(Refusal::NotFound);
    };
    Ok(Page(StatusCode::OK, pages::confirm_sign_in(&user.login)))
}

/// Signs in, and goes to the console.
pub(super) async fn sign_in(
    State(site): State<Arc<Site>>,
    origin: Origin,
    Path(token): Path<String>,
) -> Result<Response, Refusal> {
    may_try(&site, origin)?;
    let Some(cookie) = site.sessions.sign_in(&token, Timestamp::now(), &mut OsRng) else {
        site.failed(origin);
        return Err(Refusal::NotFound);
    };
    Ok((
        [(header::SET_COOKIE, session_cookie(&site, &cookie))],
        see("/console"),
    )
        .into_response())
}

#[derive(Deserialize)]
pub(super) struct Nothing {}

/// Ends the session.
pub(super) async fn sign_out(
    State(site): State<Arc<Site>>,
    Signed { visitor, .. }: Signed<Nothing>,
) -> Response {
    site.sessions.sign_out(&visitor.cookie);
    let gone = format!("{COOKIE}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict");
    ([(header::SET_COOKIE, gone)], see("/login")).into_response()
}

/// The cookie ends with the browser, and before that with the session.
pub(super) fn session_cookie(site: &Site, cookie: &str) -> String {
    let secure = secure(site);
    format!("{COOKIE}={cookie}; Path=/; HttpOnly; SameSite=Strict{secure}")
}

/// What keeps a cookie from being sent in the clear, where nothing has to be.
pub(super) fn secure(site: &Site) -> &'static str {
    if site.url.scheme() == "https" {
        "; Secure"
    } else {
        ""
    }
}

pub(super) fn may_try(site: &Site, origin: Origin) -> Result<(), Refusal> {
    site.may_try(origin)
        .map_err(|crate::site::TooMany(wait)| Refusal::TooMany(wait.as_secs() + 1))
}
