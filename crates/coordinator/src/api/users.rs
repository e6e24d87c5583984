//! People.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use rand::rngs::OsRng;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use url::Url;

use super::caller::{Body, Caller, Path};
use super::{Api, ApiError, done};
use crate::model::{Role, User};
use crate::ops::NewUser;
use crate::scope;
use crate::web;
use crate::world::World;

/// A person as shown.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UserView {
    pub(crate) id: String,
    pub(crate) login_name: String,
    pub(crate) display_name: String,
    pub(crate) role: Role,
    pub(crate) status: String,
    pub(crate) created: Timestamp,
    pub(crate) device_count: usize,
}

/// Answer of the list.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct UserList {
    pub(crate) users: Vec<UserView>,
}

/// A person to create.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UserRequest {
    pub(crate) login_name: String,
    #[serde(default)]
    pub(crate) display_name: String,
    #[serde(default)]
    pub(crate) role: Role,
}

impl UserView {
    fn new(world: &World, user: &User) -> Self {
        Self {
            id: user.id.to_string(),
            login_name: user.login.clone(),
            display_name: user.display_name.clone(),
            role: user.role,
            status: "active".to_owned(),
            created: user.created,
            device_count: world.nodes_of_user(user.id).count(),
        }
    }
}

/// All people.
pub(super) async fn list(State(api): State<Api>, caller: Caller) -> Result<Json<UserList>, ApiError> {
    caller.require(scope::USERS.read())?;
    let world = api.operations.world();
    Ok(Json(UserList {
        users: world.users().map(|user| UserView::new(&world, user)).collect(),
    }))
}

/// One person, named by id or login.
pub(super) async fn get(
    State(api): State<Api>,
    caller: Caller,
    Path(user): Path<String>,
) -> Result<Json<UserView>, ApiError> {
    caller.require(scope::USERS.read())?;
    let world = api.operations.world();
    let user = find(&world, user)?;
    Ok(Json(UserView::new(&world, user)))
}

#[derive(Deserialize)]
pub(super) struct RoleRequest {
    role: Role,
}

/// Gives a person another role. Served on the administrator's socket alone.
pub(super) async fn set_role(
    State(api): State<Api>,
    caller: Caller,
    Path(user): Path<String>,
    Body(request): Body<RoleRequest>,
) -> Result<Json<UserView>, ApiError> {
    caller.require(scope::USERS)?;
    let id = find(&api.operations.world(), user)?.id;
    let actor = caller.actor().clone();
    let user = api.operations.set_user_role(actor, id, request.role).await?;
    Ok(Json(UserView::new(&api.operations.world(), &user)))
}

/// A link by which a person signs in at the web console.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LoginLink {
    /// Good for one sign-in.
    pub(crate) url: Url,
    pub(crate) expires: Timestamp,
}

/// Makes a link by which a person signs in at the web console. Served on the administrator's socket alone.
pub(super) async fn login_link(
    State(api): State<Api>,
    caller: Caller,
    Path(user): Path<String>,
) -> Result<Json<LoginLink>, ApiError> {
    caller.require(scope::USERS)?;
    let world = api.operations.world();
    let user = find(&world, user)?;
    let invitation = api.sessions.invite(user.id, Timestamp::now(), &mut OsRng);
    tracing::info!(user = user.login, expires = %invitation.expires, "login link made");
    Ok(Json(LoginLink {
        url: web::login_url(&api.url, &invitation.token),
        expires: invitation.expires,
    }))
}

pub(super) fn find(world: &World, user: String) -> Result<&Arc<User>, ApiError> {
    let found = world
        .users()
        .find(|known| known.login.eq_ignore_ascii_case(&user) || known.id.to_string() == user);
    found.ok_or(ApiError::NotFound {
        kind: "user",
        id: user,
    })
}

/// Creates a person. Served on the administrator's socket alone.
pub(super) async fn create(
    State(api): State<Api>,
    caller: Caller,
    Body(request): Body<UserRequest>,
) -> Result<Json<UserView>, ApiError> {
    caller.require(scope::USERS)?;
    let new = NewUser {
        login: request.login_name,
        display_name: request.display_name,
        role: request.role,
    };
    let user = api.operations.create_user(caller.actor().clone(), new).await?;
    Ok(Json(UserView::new(&api.operations.world(), &user)))
}

/// Deletes a person, named by id or login. Served on the administrator's socket alone.
pub(super) async fn delete(
    State(api): State<Api>,
    caller: Caller,
    Path(user): Path<String>,
) -> Result<Json<Value>, ApiError> {
    caller.require(scope::USERS)?;
    let id = find(&api.operations.world(), user)?.id;
    api.operations.delete_user(caller.actor().clone(), id).await?;
    Ok(done())
}
