//! The administrator's command line: `tailwharf coordinator user|key|oauth-client|api-token|node|policy …`.

use std::collections::BTreeSet;
use std::io::{self, Read as _, Write};
use std::path::Path;
use std::process::ExitCode;
use std::{fs, iter};

use anyhow::{Context as _, Result};
use http::Method;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use super::args::role_name;
pub use super::args::{
    ClientCommand, Command, Group, KeyCommand, Life, NewKey, NodeCommand, PolicyCommand, TokenCommand,
    UserCommand,
};
use super::client::Client;
use super::output::{Format, Printer};
use crate::Config;
use crate::api::{
    Capabilities, CreateCapabilities, DeviceCapabilities, DeviceList, DeviceView, KeyList, KeyRequest,
    KeyType, KeyView, UserList, UserRequest, UserView,
};

/// Runs a command against the coordinator that runs with `config`, and prints the result to standard output.
///
/// # Errors
/// When the coordinator does not run or refuses, in words for people.
pub async fn run(config: &Config, command: Command) -> Result<ExitCode> {
    run_to(&Client::new(&config.admin_socket()), command, io::stdout().lock()).await
}

/// Runs a command and prints the result to `to`.
///
/// # Errors
/// As [`run`].
pub async fn run_to(client: &Client, command: Command, to: impl Write) -> Result<ExitCode> {
    match command {
        Command::User(Group { command, output }) => {
            user(client, command, Printer { format: output, to }).await
        }
        Command::Key(Group { command, output }) => key(client, command, Printer { format: output, to }).await,
        Command::OauthClient(Group { command, output }) => {
            oauth_client(client, command, Printer { format: output, to }).await
        }
        Command::ApiToken(Group { command, output }) => {
            api_token(client, command, Printer { format: output, to }).await
        }
        Command::Node(Group { command, output }) => {
            node(client, command, Printer { format: output, to }).await
        }
        Command::Policy(Group { command, output }) => {
            return policy(client, command, Printer { format: output, to }).await;
        }
    }?;
    Ok(ExitCode::SUCCESS)
}

/// A call without a body.
const NO_BODY: Option<&Value> = None;

async fn user(client: &Client, command: UserCommand, mut print: Printer<impl Write>) -> Result<()> {
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
        UserCommand::Delete { user } => {
            let _: Value = client.call(Method::DELETE, &["users", &user], NO_BODY).await?;
            print.done(&format!("user {user} is deleted"))?;
        }
    }
    Ok(())
}

async fn key(client: &Client, command: KeyCommand, mut print: Printer<impl Write>) -> Result<()> {
    match command {
        KeyCommand::Create(new) => {
            let create = CreateCapabilities {
                reusable: new.reusable,
                ephemeral: new.ephemeral,
                preauthorized: !new.no_preauthorize,
                tags: new.tags.into_iter().collect(),
            };
            let request = KeyRequest {
                key_type: KeyType::Auth,
                capabilities: Capabilities {
                    devices: DeviceCapabilities { create },
                },
                expiry_seconds: new.expiry.0.as_secs(),
                description: new.description,
                user: new.user,
                ..KeyRequest::default()
            };
            print_new(&create_key(client, &request).await?, "key", print)
        }
        KeyCommand::List => {
            let keys = keys(client, KeyType::Auth).await?;
            print.list(
                &keys,
                ["ID", "STATE", "KIND", "OWNER", "EXPIRES", "DESCRIPTION"],
                |key| {
                    let create = key
                        .capabilities
                        .as_ref()
                        .map(|capabilities| &capabilities.devices.create);
                    let kinds = [
                        create.is_some_and(|create| create.reusable).then_some("reusable"),
                        create
                            .is_some_and(|create| create.ephemeral)
                            .then_some("ephemeral"),
                    ];
                    let tags = create.map(|create| join(&create.tags)).unwrap_or_default();
                    let owner = if tags.is_empty() {
                        key.user.clone().unwrap_or_default()
                    } else {
                        tags
                    };
                    let kind = kinds.into_iter().flatten().collect::<Vec<_>>().join(",");
                    [
                        key.id.clone(),
                        state(key),
                        kind,
                        owner,
                        expiry(key),
                        key.description.clone(),
                    ]
                },
            )?;
            Ok(())
        }
        KeyCommand::Delete { id } => {
            delete_key(client, &id).await?;
            Ok(print.done(&format!("key {id} is revoked"))?)
        }
    }
}

async fn oauth_client(client: &Client, command: ClientCommand, mut print: Printer<impl Write>) -> Result<()> {
    match command {
        ClientCommand::Create {
            scopes,
            tags,
            description,
        } => {
            let request = KeyRequest {
                key_type: KeyType::Client,
                description,
                scopes: scopes.into_iter().collect(),
                tags: tags.into_iter().collect(),
                ..KeyRequest::default()
            };
            print_new(&create_key(client, &request).await?, "secret", print)
        }
        ClientCommand::List => {
            let clients = keys(client, KeyType::Client).await?;
            print.list(
                &clients,
                ["ID", "SCOPES", "TAGS", "CREATED", "DESCRIPTION"],
                |client| {
                    let (scopes, tags) = (join(&client.scopes), join(&client.tags));
                    [
                        client.id.clone(),
                        scopes,
                        tags,
                        time(client.created),
                        client.description.clone(),
                    ]
                },
            )?;
            Ok(())
        }
        ClientCommand::Delete { id } => {
            delete_key(client, &id).await?;
            Ok(print.done(&format!("OAuth client {id} is deleted"))?)
        }
    }
}

async fn api_token(client: &Client, command: TokenCommand, mut print: Printer<impl Write>) -> Result<()> {
    match command {
        TokenCommand::Create {
            user,
            scopes,
            expiry,
            description,
        } => {
            let request = KeyRequest {
                key_type: KeyType::Api,
                expiry_seconds: expiry.0.as_secs(),
                description,
                scopes: scopes.into_iter().collect(),
                user: Some(user),
                ..KeyRequest::default()
            };
            print_new(&create_key(client, &request).await?, "token", print)
        }
        TokenCommand::List => {
            let tokens = keys(client, KeyType::Api).await?;
            print.list(
                &tokens,
                ["ID", "STATE", "USER", "SCOPES", "EXPIRES", "DESCRIPTION"],
                |token| {
                    let user = token.user.clone().unwrap_or_default();
                    [
                        token.id.clone(),
                        state(token),
                        user,
                        join(&token.scopes),
                        expiry(token),
                        token.description.clone(),
                    ]
                },
            )?;
            Ok(())
        }
        TokenCommand::Delete { id } => {
            delete_key(client, &id).await?;
            Ok(print.done(&format!("API token {id} is deleted"))?)
        }
    }
}

async fn node(client: &Client, command: NodeCommand, mut print: Printer<impl Write>) -> Result<()> {
    match command {
        NodeCommand::List => {
            let list: DeviceList = client
                .call(Method::GET, &["tailnet", "-", "devices"], NO_BODY)
                .await?;
            print.list(
                &list.devices,
                ["ID", "NAME", "ADDRESSES", "OWNER", "STATE", "LAST SEEN"],
                |device| {
                    let addresses = device
                        .addresses
                        .iter()
                        .map(ToString::to_string)
                        .collect::<Vec<_>>()
                        .join(" ");
                    let owner = if device.tags.is_empty() {
                        device.user.clone()
                    } else {
                        join(&device.tags)
                    };
                    let seen = if device.connected_to_control {
                        "now".to_owned()
                    } else {
                        device.last_seen.map_or_else(String::new, time)
                    };
                    [
                        device.id.clone(),
                        device.name.clone(),
                        addresses,
                        owner,
                        device_state(device),
                        seen,
                    ]
                },
            )?;
        }
        NodeCommand::Delete { node } => {
            let _: Value = client.call(Method::DELETE, &["device", &node], NO_BODY).await?;
            print.done(&format!("node {node} is deleted"))?;
        }
        NodeCommand::Expire { node } => {
            let _: Value = client
                .call(Method::POST, &["device", &node, "expire"], NO_BODY)
                .await?;
            print.done(&format!(
                "the key of node {node} has ended; it has to log in again"
            ))?;
        }
    }
    Ok(())
}

/// What a check of a policy found.
#[derive(Default, Deserialize, serde::Serialize)]
#[serde(default)]
struct Verdict {
    message: String,
    data: Vec<Findings>,
}

#[derive(Deserialize, serde::Serialize)]
struct Findings {
    #[serde(default)]
    errors: Vec<String>,
    #[serde(default)]
    warnings: Vec<String>,
}

async fn policy(client: &Client, command: PolicyCommand, mut print: Printer<impl Write>) -> Result<ExitCode> {
    const ACL: [&str; 3] = ["tailnet", "-", "acl"];
    match command {
        PolicyCommand::Get => {
            let text = client.send(Method::GET, &ACL, Vec::new().into()).await?;
            match print.format {
                Format::Table => print.to.write_all(&text)?,
                Format::Json => {
                    let text = String::from_utf8_lossy(&text);
                    serde_json::to_writer_pretty(&mut print.to, &tailwharf_policy::to_json(&text)?)?;
                    writeln!(print.to)?;
                }
            }
            Ok(ExitCode::SUCCESS)
        }
        PolicyCommand::Set { file } => {
            let text = read(&file)?;
            let verdict = check(client, &text).await?;
            if report(&verdict, &file, &mut print)? == ExitCode::SUCCESS {
                client.send(Method::POST, &ACL, text.into()).await?;
                print.done("the policy is in force")?;
                return Ok(ExitCode::SUCCESS);
            }
            print.done("the policy in force is the former one")?;
            Ok(ExitCode::FAILURE)
        }
        PolicyCommand::Check { file } => {
            let verdict = check(client, &read(&file)?).await?;
            let code = report(&verdict, &file, &mut print)?;
            if code == ExitCode::SUCCESS {
                print.done("the policy is valid")?;
            }
            Ok(code)
        }
    }
}

async fn check(client: &Client, text: &str) -> Result<Verdict> {
    let answer = client
        .send(
            Method::POST,
            &["tailnet", "-", "acl", "validate"],
            text.to_owned().into(),
        )
        .await?;
    serde_json::from_slice(&answer)
        .context("the coordinator's answer is not understood: is it another version?")
}

/// Prints what a check found. Fails if there is an error among it.
fn report(verdict: &Verdict, file: &Path, print: &mut Printer<impl Write>) -> Result<ExitCode> {
    let errors = || verdict.data.iter().flat_map(|findings| &findings.errors);
    match print.format {
        Format::Json => {
            serde_json::to_writer_pretty(&mut print.to, verdict)?;
            writeln!(print.to)?;
        }
        Format::Table => {
            for error in errors() {
                writeln!(print.to, "{}: {error}", file.display())?;
            }
            for warning in verdict.data.iter().flat_map(|findings| &findings.warnings) {
                writeln!(print.to, "{}: warning: {warning}", file.display())?;
            }
        }
    }
    Ok(if errors().next().is_none() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn read(file: &Path) -> Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        io::stdin()
            .lock()
            .read_to_string(&mut text)
            .context("the policy cannot be read from standard input")?;
        return Ok(text);
    }
    fs::read_to_string(file).with_context(|| format!("the policy {} cannot be read", file.display()))
}

const KEYS: [&str; 3] = ["tailnet", "-", "keys"];

async fn create_key(client: &Client, request: &KeyRequest) -> Result<KeyView> {
    Ok(client.call(Method::POST, &KEYS, Some(request)).await?)
}

async fn delete_key(client: &Client, id: &str) -> Result<()> {
    let segments: Vec<&str> = KEYS.into_iter().chain(iter::once(id)).collect();
    let _: Value = client.call(Method::DELETE, &segments, NO_BODY).await?;
    Ok(())
}

async fn keys(client: &Client, kind: KeyType) -> Result<Vec<KeyView>> {
    let list: KeyList = client.call(Method::GET, &KEYS, NO_BODY).await?;
    Ok(list.keys.into_iter().filter(|key| key.key_type == kind).collect())
}

/// Prints a key that was just made, with its secret.
fn print_new(key: &KeyView, what: &str, mut print: Printer<impl Write>) -> Result<()> {
    let secret = key.key.clone().unwrap_or_default();
    print.item(
        key,
        [("id", key.id.clone()), (what, secret), ("expires", expiry(key))],
    )?;
    Ok(print.done(&format!("Keep the {what} now: it is not shown again."))?)
}

fn state(key: &KeyView) -> String {
    let state = match key {
        KeyView { revoked: Some(_), .. } => "revoked",
        KeyView {
            expires: Some(at), ..
        } if *at <= Timestamp::now() => "expired",
        KeyView { invalid: true, .. } => "used",
        _ => "valid",
    };
    state.to_owned()
}

fn device_state(device: &DeviceView) -> String {
    let state = match device {
        DeviceView {
            authorized: false, ..
        } => "waits for approval",
        DeviceView {
            key_expiry_disabled: false,
            expires,
            ..
        } if *expires <= Timestamp::now() => "expired",
        DeviceView {
            connected_to_control: true,
            ..
        } => "online",
        _ => "offline",
    };
    state.to_owned()
}

fn expiry(key: &KeyView) -> String {
    key.expires.map_or_else(String::new, time)
}

/// A time without fractions of a second.
fn time(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second()).unwrap_or(at).to_string()
}

fn join(words: &BTreeSet<String>) -> String {
    words.iter().map(String::as_str).collect::<Vec<_>>().join(",")
}
