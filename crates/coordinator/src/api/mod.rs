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
pub(crate) mod scope;
mod tailnet;
mod users;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{delete, get, post};

pub(crate) use self::error::ApiError;
use crate::ops::Operations;

/// The longest body of a call, in bytes.
const BODY_LIMIT: usize = 1 << 20;
/// The longest policy, in bytes.
const POLICY_LIMIT: usize = tailwharf_policy::MAX_TEXT;

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
    let token = Router::new().route("/api/v2/oauth/token", post(oauth::token)).layer(DefaultBodyLimit::max(BODY_LIMIT));
    let api = Api { operations, authority: Authority::Token };
    token.with_state(api.clone()).merge(calls().with_state(api))
}

/// The calls for the administrator's socket: those of [`router`] without a token, and those that no token may make.
pub(crate) fn socket_router(operations: Operations) -> Router {
    let users = Router::new()
        .route("/api/v2/tailnet/{tailnet}/users", post(users::create))
        .route("/api/v2/users/{user}", delete(users::delete));
    calls().merge(users).with_state(Api { operations, authority: Authority::Socket })
}

fn calls() -> Router<Api> {
    let policy = Router::new()
        .route("/api/v2/tailnet/{tailnet}/acl", get(acl::get).post(acl::set))
        .route("/api/v2/tailnet/{tailnet}/acl/validate", post(acl::validate))
        .layer(DefaultBodyLimit::max(POLICY_LIMIT));
    Router::new()
        .route("/api/v2/tailnet/{tailnet}/keys", get(keys::list).post(keys::create))
        .route("/api/v2/tailnet/{tailnet}/keys/{id}", get(keys::get).delete(keys::delete))
        .route("/api/v2/tailnet/{tailnet}/devices", get(devices::list))
        .route("/api/v2/device/{id}", get(devices::get).delete(devices::delete))
        .route("/api/v2/device/{id}/authorized", post(devices::authorize))
        .route("/api/v2/device/{id}/name", post(devices::rename))
        .route("/api/v2/device/{id}/tags", post(devices::set_tags))
        .route("/api/v2/device/{id}/key", post(devices::set_key))
        .route("/api/v2/device/{id}/expire", post(devices::expire))
        .route("/api/v2/device/{id}/routes", get(devices::routes).post(devices::set_routes))
        .route("/api/v2/device/{id}/attributes", get(devices::attributes))
        .route(
            "/api/v2/device/{id}/attributes/{name}",
            post(devices::set_attribute).delete(devices::delete_attribute),
        )
        .route("/api/v2/tailnet/{tailnet}/users", get(users::list))
        .route("/api/v2/tailnet/{tailnet}/settings", get(tailnet::settings))
        .route("/api/v2/tailnet/{tailnet}/dns/nameservers", get(tailnet::nameservers))
        .route("/api/v2/tailnet/{tailnet}/dns/preferences", get(tailnet::dns_preferences))
        .route("/api/v2/tailnet/{tailnet}/dns/searchpaths", get(tailnet::search_paths))
        .route("/api/v2/tailnet/{tailnet}/dns/split-dns", get(tailnet::split_dns))
        .route("/api/v2/tailnet/{tailnet}/vip-services", get(tailnet::services))
        .route(
            "/api/v2/tailnet/{tailnet}/vip-services/{name}",
            get(tailnet::no_service).delete(tailnet::no_service).put(tailnet::put_service),
        )
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .merge(policy)
        .method_not_allowed_fallback(async || ApiError::UnknownMethod)
        .fallback(async || ApiError::UnknownCall)
}
