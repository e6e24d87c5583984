//! People.

use std::sync::Arc;

use tailwharf_wire::tailcfg::UserId;

use super::{Context, Decision, OpError, Operations, Subject};
use crate::{
    model::{Action, Actor, Author, Role, User},
    world::{Change, World},
};

const LOGIN_LIMIT: usize = 254;

/// A person to create.
#[derive(Clone, Debug)]
pub struct NewUser {
    /// `name@domain`, or a bare name, which the MagicDNS suffix completes.
    pub login: String,
    /// Shown to people; the login name when empty.
    pub display_name: String,
    /// What the person may do.
    pub role: Role,
}

impl Operations {
    /// Creates a person.
    ///
    /// # Errors
    /// `Conflict` when the login name is taken, `Invalid` when it is not one.
    pub async fn create_user(&self, actor: Actor, new: NewUser) -> Result<Arc<User>, OpError> {
        self.submit(move |world, context| create_user(world, context, actor.into(), new))
            .await
    }

    /// The person whom the identity provider signed in, created as a member if they come for the first time.
    ///
    /// # Errors
    /// `Invalid` when the login name is none.
    pub(crate) async fn admit_user(&self, login: String, display_name: String) -> Result<Arc<User>, OpError> {
        self.submit(move |world, context| {
            if let Some(user) = world.user_by_login(&login) {
                return Ok(Decision::unchanged(user.clone()));
            }
            let new = NewUser {
                login,
                display_name,
                role: Role::Member,
            };
            create_user(world, context, Author::Coordinator, new)
        })
        .await
    }

    /// Gives a person another role.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn set_user_role(&self, actor: Actor, id: UserId, role: Role) -> Result<Arc<User>, OpError> {
        self.submit(move |world, context| {
            let user = world.user(id).ok_or_else(|| OpError::not_found("user", id.0))?;
            let user = Arc::new(User {
                role,
                ..user.as_ref().clone()
            });
            let subject = Subject::user(&user).detail(role.name());
            let decision = Decision::new(vec![Change::PutUser(user.clone())], user);
            Ok(decision.noted(world, context, &actor, Action::Update, subject))
        })
        .await
    }

    /// Deletes a person with all credentials of the person.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` as long as the person owns nodes.
    pub async fn delete_user(&self, actor: Actor, id: UserId) -> Result<(), OpError> {
        self.submit(move |world, context| delete_user(world, context, &actor, id))
            .await
    }
}

fn create_user(
    world: &World,
    context: &Context,
    author: Author,
    new: NewUser,
) -> Result<Decision<Arc<User>>, OpError> {
    let login = if new.login.contains('@') {
        new.login
    } else {
        format!("{}@{}", new.login, context.suffix)
    };
    let legal = login
        .split_once('@')
        .is_some_and(|(name, domain)| !name.is_empty() && !domain.is_empty())
        && login.matches('@').count() == 1
        && login.len() <= LOGIN_LIMIT
        && !login.chars().any(|c| c.is_whitespace() || c.is_control());
    if !legal {
        return Err(OpError::Invalid(format!(
            "`{login}` is not a login name: write it like `alice@example.com`"
        )));
    }
    if world.user_by_login(&login).is_some() {
        return Err(OpError::Conflict(format!("the user `{login}` exists already")));
    }
    let user = Arc::new(User {
        id: world.next_user_id(),
        display_name: if new.display_name.is_empty() {
            login.clone()
        } else {
            new.display_name
        },
        login,
        role: new.role,
        created: context.now,
    });
    let subject = Subject::user(&user).detail(user.role.name());
    let decision = Decision::new(vec![Change::PutUser(user.clone())], user);
    Ok(decision.noted(world, context, author, Action::Create, subject))
}

fn delete_user(world: &World, context: &Context, actor: &Actor, id: UserId) -> Result<Decision<()>, OpError> {
    let user = world.user(id).ok_or_else(|| OpError::not_found("user", id.0))?;
    let owned = world.nodes_of_user(id).count();
    if owned > 0 {
        let login = &user.login;
        return Err(OpError::Conflict(format!(
            "`{login}` still owns {owned} nodes: delete or tag them first"
        )));
    }
    let mut changes = vec![Change::DeleteUser(id)];
    let keys = world.auth_keys().filter(|key| key.owner == Some(id));
    changes.extend(keys.map(|key| Change::DeleteAuthKey(key.id.clone())));
    let tokens = world.tokens().filter(|token| token.actor == Actor::User(id));
    changes.extend(tokens.map(|token| Change::DeleteToken(token.id.clone())));
    let decision = Decision::new(changes, ());
    Ok(decision.noted(world, context, actor, Action::Delete, Subject::user(user)))
}
