//! The HTTP API of administration, in the shape of Tailscale's API v2.
//!
//! Handlers translate: a request to an operation (`ops`), a record to its JSON. They decide nothing but who may call. The same calls are served in two
//! places: on the coordinator's listener, where a token says who calls, and on the administrator's socket, where the file's mode does.

mod acl;
mod backup;
mod caller;
mod devices;
mod dns;
mod error;
mod keys;
mod oauth;
mod registrations;
mod services;
mod settings;
#[cfg(test)]
mod tests;
mod users;

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use self::devices::{Address, Authorized, Expire, KeyExpiry, Name, Tags, edit};
use self::error::ApiError;
pub(crate) use self::{
    devices::{DeviceList, DeviceView, RoutesView},
    dns::{DnsView, ResolverView},
    keys::{
        Binding, Capabilities, CreateCapabilities, DeviceCapabilities, KeyList, KeyRequest, KeyType, KeyView,
    },
    registrations::{ApprovalRequest, RegistrationList},
    services::{HostList, ServiceList, ServiceView},
    settings::{LogList, SettingsView},
    users::{LoginLink, UserList, UserRequest, UserView},
};
use crate::site::Site;

/// The longest body of a call, in bytes.
const BODY_LIMIT: usize = 1 << 20;
/// The longest policy, in bytes.
const POLICY_LIMIT: usize = tailwharf_policy::MAX_TEXT;

/// How long the body of a call may take to come.
const BODY_TIME: Duration = Duration::from_secs(30);

/// What handlers share.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    site: Arc<Site>,
    authority: Authority,
}

impl Deref for Api {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.site
    }
}

/// What says who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Authority {
    /// A token.
    Token,
    /// The right to open the socket: the caller is the administrator.
    Socket,
}

/// The calls for the coordinator's listener: OAuth's token endpoints, and everything below `/api/v2` with a token.
pub(crate) fn router(site: Arc<Site>) -> Router {
    let token = Router::new()
        .route("/oauth/token", post(oauth::token))
        .route("/oauth/token-exchange", post(oauth::exchange))
        .layer(DefaultBodyLimit::max(BODY_LIMIT));
    let authority = Authority::Token;
    nest(calls().merge(token), Api { site, authority })
}

/// The calls for the administrator's socket: those of [`router`] without a token, and those that no token may make.
pub(crate) fn socket_router(site: Arc<Site>) -> Router {
    let people = Router::new()
        .route("/tailnet/{tailnet}/users", post(users::create))
        .route("/users/{user}", delete(users::delete))
        .route("/users/{user}/role", post(users::set_role))
        .route("/users/{user}/login-link", post(users::login_link))
        .route("/tailnet/{tailnet}/registrations", get(registrations::list))
        .route(
            "/tailnet/{tailnet}/registrations/{id}/approve",
            post(registrations::approve),
        )
        .route(
            "/tailnet/{tailnet}/registrations/{id}/deny",
            post(registrations::deny),
        )
        .route("/backup", post(backup::create))
        .layer(DefaultBodyLimit::max(BODY_LIMIT));
    let authority = Authority::Socket;
    nest(calls().merge(people), Api { site, authority })
}

fn nest(calls: Router<Api>, api: Api) -> Router {
    let calls = calls
        .method_not_allowed_fallback(async || ApiError::UnknownMethod)
        .fallback(async || ApiError::UnknownCall);
    Router::new().nest("/api/v2", calls.with_state(api))
}

fn calls() -> Router<Api> {
    let policy = Router::new()
        .route("/tailnet/{tailnet}/acl", get(acl::get).post(acl::set))
        .route("/tailnet/{tailnet}/acl/validate", post(acl::validate))
        .route("/tailnet/{tailnet}/acl/preview", post(acl::preview))
        .layer(DefaultBodyLimit::max(POLICY_LIMIT));
    Router::new()
        .route("/tailnet/{tailnet}/keys", get(keys::list).post(keys::create))
        .route(
            "/tailnet/{tailnet}/keys/{id}",
            get(keys::get).put(keys::replace).delete(keys::delete),
        )
        .route("/tailnet/{tailnet}/devices", get(devices::list))
        .route("/device/{id}", get(devices::get).delete(devices::delete))
        .route("/device/{id}/authorized", post(edit::<Authorized>))
        .route("/device/{id}/name", post(edit::<Name>))
        .route("/device/{id}/tags", post(edit::<Tags>))
        .route("/device/{id}/key", post(edit::<KeyExpiry>))
        .route("/device/{id}/expire", post(edit::<Expire>))
        .route("/device/{id}/ip", post(edit::<Address>))
        .route(
            "/device/{id}/confirmations",
            delete(devices::revoke_confirmations),
        )
        .route(
            "/device/{id}/routes",
            get(devices::routes).post(devices::set_routes),
        )
        .route("/device/{id}/attributes", get(devices::attributes))
        .route(
            "/device/{id}/attributes/{name}",
            post(devices::set_attribute).delete(devices::delete_attribute),
        )
        .route("/tailnet/{tailnet}/users", get(users::list))
        .route("/users/{user}", get(users::get))
        .route(
            "/tailnet/{tailnet}/settings",
            get(settings::get).patch(settings::update),
        )
        .route("/tailnet/{tailnet}/logging/configuration", get(settings::log))
        .nest("/tailnet/{tailnet}/dns", dns_calls())
        .nest("/tailnet/{tailnet}/vip-services", service_calls())
        .nest("/tailnet/{tailnet}/services", service_calls())
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .merge(policy)
}

fn dns_calls() -> Router<Api> {
    Router::new()
        .route(
            "/configuration",
            get(dns::configuration).post(dns::set_configuration),
        )
        .route("/nameservers", get(dns::nameservers).post(dns::set_nameservers))
        .route("/preferences", get(dns::preferences).post(dns::set_preferences))
        .route("/searchpaths", get(dns::search_paths).post(dns::set_search_paths))
        .route(
            "/split-dns",
            get(dns::split_dns)
                .put(dns::set_split_dns)
                .patch(dns::update_split_dns),
        )
}

fn service_calls() -> Router<Api> {
    Router::new()
        .route("/", get(services::list))
        .route(
            "/{name}",
            get(services::get).put(services::put).delete(services::delete),
        )
        .route("/{name}/devices", get(services::hosts))
        .route(
            "/{name}/device/{id}/approved",
            get(services::approved).post(services::approve),
        )
}

/// An answer without content.
fn done() -> Json<Value> {
    Json(Value::Object(Map::new()))
}

/// Clients in Go write empty lists as `null`.
fn null_is_empty<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}
