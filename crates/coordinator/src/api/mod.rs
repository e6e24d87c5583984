//! The HTTP API of administration, in the shape of Tailscale's API v2.
//!
//! Handlers translate: a request to an operation (`ops`), a record to its JSON. They decide nothing but who may call. The same calls are served in two
//! places: on the coordinator's listener, where a token says who calls, and on the administrator's socket, where the file's mode does.

mod acl;
mod caller;
mod devices;
mod error;
mod keys;
mod oauth;
mod tailnet;
#[cfg(test)]
mod tests;
mod users;

use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{delete, get, post};

use self::error::ApiError;
pub(crate) use self::{
    devices::{DeviceList, DeviceView},
    keys::{Capabilities, CreateCapabilities, DeviceCapabilities, KeyList, KeyRequest, KeyType, KeyView},
    users::{UserList, UserRequest, UserView},
};
use crate::ops::Operations;

/// The longest body of a call, in bytes.
const BODY_LIMIT: usize = 1 << 20;
/// The longest policy, in bytes.
const POLICY_LIMIT: usize = tailwharf_policy::MAX_TEXT;

/// How long the body of a call may take to come.
const BODY_TIME: Duration = Duration::from_secs(30);

/// What handlers share.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    operations: Operations,
    authority: Authority,
}

/// What says who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Authority {
    /// A token.
    Token,
    /// The right to open the socket: the caller is the administrator.
    Socket,
}

/// The calls for the coordinator's listener: OAuth's token endpoint, and everything below `/api/v2` with a token.
pub fn router(operations: Operations) -> Router {
    let token = Router::new()
        .route("/oauth/token", post(oauth::token))
        .layer(DefaultBodyLimit::max(BODY_LIMIT));
    nest(
        calls().merge(token),
        Api {
            operations,
            authority: Authority::Token,
        },
    )
}

/// The calls for the administrator's socket: those of [`router`] without a token, and those that no token may make.
pub(crate) fn socket_router(operations: Operations) -> Router {
    let users = Router::new()
        .route("/tailnet/{tailnet}/users", post(users::create))
        .route("/users/{user}", delete(users::delete))
        .layer(DefaultBodyLimit::max(BODY_LIMIT));
    nest(
        calls().merge(users),
        Api {
            operations,
            authority: Authority::Socket,
        },
    )
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
        .layer(DefaultBodyLimit::max(POLICY_LIMIT));
    Router::new()
        .route("/tailnet/{tailnet}/keys", get(keys::list).post(keys::create))
        .route(
            "/tailnet/{tailnet}/keys/{id}",
            get(keys::get).delete(keys::delete),
        )
        .route("/tailnet/{tailnet}/devices", get(devices::list))
        .route("/device/{id}", get(devices::get).delete(devices::delete))
        .route("/device/{id}/authorized", post(devices::authorize))
        .route("/device/{id}/name", post(devices::rename))
        .route("/device/{id}/tags", post(devices::set_tags))
        .route("/device/{id}/key", post(devices::set_key))
        .route("/device/{id}/expire", post(devices::expire))
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
        .route("/tailnet/{tailnet}/settings", get(tailnet::settings))
        .route("/tailnet/{tailnet}/dns/nameservers", get(tailnet::nameservers))
        .route(
            "/tailnet/{tailnet}/dns/preferences",
            get(tailnet::dns_preferences),
        )
        .route("/tailnet/{tailnet}/dns/searchpaths", get(tailnet::search_paths))
        .route("/tailnet/{tailnet}/dns/split-dns", get(tailnet::split_dns))
        .route("/tailnet/{tailnet}/vip-services", get(tailnet::services))
        .route(
            "/tailnet/{tailnet}/vip-services/{name}",
            get(tailnet::no_service)
                .delete(tailnet::no_service)
                .put(tailnet::put_service),
        )
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .merge(policy)
}
