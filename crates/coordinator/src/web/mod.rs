//! The web console: pages for people, by which devices are let in and looked after.
//!
//! Plain HTML, made here, without a script. What changes something is a form from this very site that carries a token of the session; the cookie is not
//! sent with requests that another site starts; and no page may be framed, or load anything from elsewhere.

mod check;
mod console;
mod login;
mod pages;
mod provider;
mod register;
mod sessions;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use jiff::Timestamp;
use maud::Markup;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use url::Url;

use self::sessions::Session;
pub(crate) use self::sessions::Sessions;
use crate::model::{Actor, CheckId, RegistrationId, User};
use crate::oidc::SignInError;
use crate::ops::OpError;
use crate::site::Site;
use crate::world::World;

/// The cookie of a session.
const COOKIE: &str = "tailwharf_session";
/// The longest form, in bytes.
const FORM_LIMIT: usize = 16 * 1024;
/// How long a form may take to come.
const FORM_TIME: std::time::Duration = std::time::Duration::from_secs(10);
const STYLE: &str = include_str!("style.css");

/// What goes with each answer. Nothing is loaded but the one style sheet, nothing runs, and no other site may frame a page or receive a form.
const HEADERS: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    // With less than this, browsers would not say that a form comes from one of our pages.
    (header::REFERRER_POLICY, "same-origin"),
    (header::CACHE_CONTROL, "no-store"),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
];

/// The pages.
pub(crate) fn router(site: Arc<Site>) -> Router {
    Router::new()
        .route("/", get(async || see("/console")))
        .route("/a/{id}", get(register::page).post(register::decide))
        .route("/check/{id}", get(check::page).post(check::decide))
        .route("/login", get(login::explain))
        .route("/login/provider", get(provider::depart))
        .route("/login/callback", get(provider::arrive))
        .route("/login/{token}", get(login::page).post(login::sign_in))
        .route("/logout", post(login::sign_out))
        .route("/console", get(console::page))
        .route(
            "/console/devices/{id}/{action}",
            get(console::ask).post(console::act),
        )
        .layer(DefaultBodyLimit::max(FORM_LIMIT))
        .layer(middleware::from_fn(protect))
        .route("/console/style.css", get(style))
        .with_state(site)
}

/// The address by which a person signs in.
pub(crate) fn login_url(base: &Url, token: &str) -> Url {
    below(base, ["login", token])
}

/// The address at which it is decided on a device that wants to join.
pub(crate) fn registration_url(base: &Url, id: &RegistrationId) -> Url {
    below(base, ["a", &id.0])
}

/// The address at which a person confirms that it is they who use a device.
pub(crate) fn check_url(base: &Url, id: &CheckId) -> Url {
    below(base, ["check", &id.0])
}

fn below(base: &Url, segments: [&str; 2]) -> Url {
    let mut url = base.clone();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(segments);
    }
    url
}

async fn style() -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, "text/css; charset=utf-8"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "max-age=3600"),
    ];
    (headers, STYLE)
}

/// Turns away forms that another site sent, and adds the headers.
async fn protect(request: Request, next: Next) -> Response {
    let mut response = if request.method().is_safe() || is_from_here(request.headers()) {
        next.run(request).await
    } else {
        Refusal::Form.into_response()
    };
    for (name, value) in HEADERS {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Whether a form comes from one of our pages. Browsers say from which site; what says nothing is no browser.
fn is_from_here(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let Some(origin) = text(header::ORIGIN) else {
        return true;
    };
    let site = origin.split_once("://").map(|(_, site)| site);
    site.is_some() && site == text(header::HOST)
}

/// A page, as an answer.
pub(super) struct Page(StatusCode, Markup);

impl IntoResponse for Page {
    fn into_response(self) -> Response {
        let Self(status, markup) = self;
        let kind = [(header::CONTENT_TYPE, "text/html; charset=utf-8")];
        (status, kind, markup.into_string()).into_response()
    }
}

/// Sends the browser to another page, which it gets by GET.
fn see(path: &str) -> Response {
    (StatusCode::SEE_OTHER, [(header::LOCATION, path.to_owned())]).into_response()
}

/// Why a page is not shown, or a form not acted upon.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("You are not signed in, or your session has ended.")]
    SignedOut,
    #[error("This is for administrators, and you are not one.")]
    NotAdministrator,
    #[error(
        "The form is not one that this page sent, or it is from an earlier session. Go back, reload the page, and try again."
    )]
    Form,
    #[error("There is nothing here. The link may have been used already, or be too old.")]
    NotFound,
    #[error("This needs a fresh sign-in, and yours is some time ago. Go back, and sign in again.")]
    Stale,
    #[error("{0}.")]
    SignIn(#[from] SignInError),
    #[error("Too many attempts. Wait {0} seconds and try again.")]
    TooMany(u64),
    #[error("{0}.")]
    Operation(#[from] OpError),
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::SignedOut => StatusCode::UNAUTHORIZED,
            Self::NotAdministrator | Self::Stale | Self::SignIn(_) => StatusCode::FORBIDDEN,
            Self::Form => StatusCode::BAD_REQUEST,
            Self::NotFound | Self::Operation(OpError::NotFound { .. }) => StatusCode::NOT_FOUND,
            Self::TooMany(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Operation(OpError::Store(_) | OpError::Stopped) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Operation(_) => StatusCode::CONFLICT,
        };
        Page(status, pages::refusal(&self)).into_response()
    }
}

/// Who looks at a page: a person who is signed in.
pub(super) struct Visitor {
    user: Arc<User>,
    session: Session,
    cookie: String,
}

impl Visitor {
    fn is_administrator(&self) -> bool {
        self.user.is_administrator()
    }

    fn actor(&self) -> Actor {
        Actor::User(self.user.id)
    }
}

/// The value of a cookie.
fn cookie_named<'h>(headers: &'h HeaderMap, wanted: &str) -> Option<&'h str> {
    let values = headers.get_all(header::COOKIE).into_iter();
    let pairs = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(';'));
    pairs
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, _)| *name == wanted)
        .map(|(_, value)| value)
}

/// Who visits, or nobody.
pub(super) struct Maybe(Option<Visitor>);

impl FromRequestParts<Arc<Site>> for Maybe {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, site: &Arc<Site>) -> Result<Self, Self::Rejection> {
        let visitor = cookie_named(&parts.headers, COOKIE).and_then(|cookie| {
            let session = site.sessions.find(cookie, Timestamp::now())?;
            let user = site.operations.world().user(session.user)?.clone();
            let cookie = cookie.to_owned();
            Some(Visitor {
                user,
                session,
                cookie,
            })
        });
        Ok(Self(visitor))
    }
}

impl FromRequestParts<Arc<Site>> for Visitor {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, site: &Arc<Site>) -> Result<Self, Refusal> {
        let Ok(Maybe(visitor)) = Maybe::from_request_parts(parts, site).await;
        visitor.ok_or(Refusal::SignedOut)
    }
}

/// A form that a person who is signed in sent from one of our own pages.
pub(super) struct Signed<T> {
    visitor: Visitor,
    form: T,
}

/// A form with the token that our pages put into it.
#[derive(serde::Deserialize)]
struct WithToken<T> {
    form_token: String,
    #[serde(flatten)]
    form: T,
}

impl<T: DeserializeOwned + Send> FromRequest<Arc<Site>> for Signed<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, site: &Arc<Site>) -> Result<Self, Refusal> {
        let (mut parts, body) = request.into_parts();
        let visitor = Visitor::from_request_parts(&mut parts, site).await?;
        let request = Request::from_parts(parts, body);
        let read = axum::Form::<WithToken<T>>::from_request(request, site);
        let Ok(Ok(axum::Form(WithToken { form_token, form }))) = timeout(FORM_TIME, read).await else {
            return Err(Refusal::Form);
        };
        // Both are random texts of one length, so the comparison tells nothing that helps to guess.
        if form_token != visitor.session.form_token {
            return Err(Refusal::Form);
        }
        Ok(Self { visitor, form })
    }
}

/// The devices that a visitor may see and, if so, look after: all, or their own.
fn is_visible(visitor: &Visitor, node: &crate::model::Node) -> bool {
    visitor.is_administrator() || node.owner.user() == Some(visitor.user.id)
}

/// The person with this id, as a form names it.
fn user_named<'w>(world: &'w World, id: &str) -> Option<&'w Arc<User>> {
    world.users().find(|user| user.id.to_string() == id)
}
