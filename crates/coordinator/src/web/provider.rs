//! Signing in by an identity provider: to it, and back from it.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use rand::rngs::OsRng;
use serde::Deserialize;

use super::{Page, Refusal, login, pages, see};
use crate::oidc::{Departure, Provider, SignInError};
use crate::site::{Origin, Site};

/// The cookie by which a browser is known when it comes back from the provider. It is sent with the provider's redirect, so it is a lax one.
const COOKIE: &str = "tailwharf_departure";

/// Where to go afterwards.
#[derive(Deserialize)]
pub(super) struct Destination {
    #[serde(default)]
    to: String,
    /// Whether the provider shall ask the person anew, though they may be signed in there.
    #[serde(default)]
    again: bool,
}

/// Sends the browser to the provider.
pub(super) async fn depart(
    State(site): State<Arc<Site>>,
    origin: Origin,
    Query(destination): Query<Destination>,
) -> Result<Response, Refusal> {
    login::may_try(&site, origin)?;
    let provider = provider(&site)?;
    let departure = Departure {
        to: local(&destination.to).to_owned(),
        again: destination.again,
    };
    let (url, secret) = provider.depart(departure, Timestamp::now(), &mut OsRng).await?;
    let secure = login::secure(&site);
    let cookie = format!(
        "{COOKIE}={}; Path=/login; Max-Age=600; HttpOnly; SameSite=Lax{secure}",
        *secret
    );
    Ok(([(header::SET_COOKIE, cookie)], see(url.as_str())).into_response())
}

/// What the provider sends the browser back with.
#[derive(Deserialize)]
pub(super) struct Return {
    #[serde(default)]
    state: String,
    #[serde(default)]
    code: String,
    #[serde(default)]
    error: String,
    #[serde(default)]
    error_description: String,
}

/// The browser comes back: signs the person in, and shows a page that leads on. Not a redirect: the session's cookie is strict, so it is only sent when
/// the way begins at a page of ours.
pub(super) async fn arrive(
    State(site): State<Arc<Site>>,
    origin: Origin,
    headers: HeaderMap,
    Query(back): Query<Return>,
) -> Result<Response, Refusal> {
    login::may_try(&site, origin)?;
    let provider = provider(&site)?;
    let secret = cookie(&headers).unwrap_or_default();
    let now = Timestamp::now();
    let arrived = async {
        let waiting = provider.take(&back.state, secret, now)?;
        if !back.error.is_empty() {
            return Err(SignInError::refused_by_provider(
                &back.error,
                &back.error_description,
            ));
        }
        let to = waiting.departure.to.clone();
        Ok((provider.arrive(waiting, &back.code, now).await?, to))
    };
    let (person, to) = arrived.await.inspect_err(|error| {
        tracing::warn!(%error, cause = ?std::error::Error::source(error), "a sign-in by the identity provider failed");
        site.failed(origin);
    })?;
    let user = site.operations.admit_user(person.login, person.name).await?;
    let cookie = site.sessions.open(user.id, Some(now), now, &mut OsRng);
    let page = Page(StatusCode::OK, pages::signed_in(&user.login, &to));
    Ok((
        [(header::SET_COOKIE, login::session_cookie(&site, &cookie))],
        page,
    )
        .into_response())
}

fn provider(site: &Site) -> Result<&Provider, Refusal> {
    site.provider.as_ref().ok_or(Refusal::NotFound)
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    super::cookie_named(headers, COOKIE)
}

/// A path of ours, or the console.
fn local(to: &str) -> &str {
    let known = ["/a/", "/check/", "/console"];
    let plain = |c: char| c.is_ascii_alphanumeric() || "/-_".contains(c);
    if to.len() <= 128 && known.iter().any(|path| to.starts_with(path)) && to.chars().all(plain) {
        to
    } else {
        "/console"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_sent_elsewhere_after_a_sign_in() {
        assert_eq!(local("/check/abc"), "/check/abc");
        for to in [
            "",
            "//evil.example",
            "/check/../x",
            "https://evil.example",
            "/a/x?y",
            "/logout",
            "/check/\r\nx",
        ] {
            assert_eq!(local(to), "/console", "{to}");
        }
    }
}
