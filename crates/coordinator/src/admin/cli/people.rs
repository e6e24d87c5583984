//! People, and devices that wait for one.

use std::io::Write;

use anyhow::Result;
use http::Method;
use serde_json::Value;

use super::super::args::{LoginCommand, UserCommand, role_name};
use super::super::client::Client;
use super::super::output::Printer;
use super::{NO_BODY, time};
use crate::api::{ApprovalRequest, DeviceView, LoginLink, RegistrationList, UserList, UserRequest, UserView};

pub(super) async fn user(
    client: &Client,
    command: UserCommand,
    mut print: Printer<impl Write>,
) -> Result<()> {
    const USERS: [&str; 3] = ["tailnet", "-", "users"];
    match command {
        UserCommand::Create { login, name, role } => {
            let request = UserRequest {
                login_name: login,
                display_name: name,
                role,
            };
            let user: UserView = client.call(Method::POST, &USERS, Some(&request)).await?;
            let role = role_name(user.role);
            print.item(
                &user,
                [
                    ("login", user.login_name.clone()),
                    ("id", user.id.clone()),
                    ("role", role),
                ],
            )?;
        }
        UserCommand::List => {
            let list: UserList = client.call(Method::GET, &USERS, NO_BODY).await?;
            print.list(
                &list.users,
                ["ID", "LOGIN", "NAME", "ROLE", "NODES", "CREATED"],
                |user| {
                    let (id, login, name) = (
                        user.id.clone(),
                        user.login_name.clone(),
                        user.display_name.clone(),
                    );
                    [
                        id,
                        login,
                        name,
                        role_name(user.role),
                        user.device_count.to_string(),
                        time(user.created),
                    ]
                },
            )?;
        }
        UserCommand::Role { user, role } => {
            let request = serde_json::json!({"role": role});
            let path = ["users", &user, "role"];
            let _: Value = client.call(Method::POST, &path, Some(&request)).await?;
            print.done(&format!("user {user} is {} now", role_name(role)))?;
        }
        UserCommand::LoginLink { user } => {
            let path = ["users", &user, "login-link"];
            let link: LoginLink = client.call(Method::POST, &path, NO_BODY).await?;
            let fields = [("url", link.url.to_string()), ("expires", time(link.expires))];
            print.item(&link, fields)?;
            print.done("Give the link to its user alone: it is good for one sign-in.")?;
        }
        UserCommand::Delete { user } => {
            let _: Value = client.call(Method::DELETE, &["users", &user], NO_BODY).await?;
            print.done(&format!("user {user} is deleted"))?;
        }
    }
    Ok(())
}

pub(super) async fn login(
    client: &Client,
    command: LoginCommand,
    mut print: Printer<impl Write>,
) -> Result<()> {
    const WAITING: [&str; 3] = ["tailnet", "-", "registrations"];
    // People copy the whole address from a terminal.
    let last = |id: &str| id.rsplit('/').next().unwrap_or(id).to_owned();
    match command {
        LoginCommand::List => {
            let list: RegistrationList = client.call(Method::GET, &WAITING, NO_BODY).await?;
            print.list(
                &list.registrations,
                ["ID", "HOSTNAME", "SYSTEM", "CLIENT", "TAGS", "EXPIRES"],
                |waiting| {
                    [
                        waiting.id.to_string(),
                        waiting.hostname.clone(),
                        waiting.os.clone(),
                        waiting.client_version.clone(),
                        waiting.request_tags.join(","),
                        time(waiting.expires),
                    ]
                },
            )?;
        }
        LoginCommand::Approve { id, user, tags } => {
            let request = ApprovalRequest {
                user,
                tags: tags.into_iter().collect(),
            };
            let id = last(&id);
            let path = [WAITING.as_slice(), &[&id, "approve"]].concat();
            let device: DeviceView = client.call(Method::POST, &path, Some(&request)).await?;
            let fields = [("name", device.name.clone()), ("owner", device.user.clone())];
            print.item(&device, fields)?;
        }
        LoginCommand::Deny { id } => {
            let id = last(&id);
            let path = [WAITING.as_slice(), &[&id, "deny"]].concat();
            let _: Value = client.call(Method::POST, &path, NO_BODY).await?;
            print.done("the device is turned down")?;
        }
    }
    Ok(())
}
