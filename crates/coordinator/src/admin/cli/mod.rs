//! The administrator's command line: `tailwharf coordinator user|login|key|node|service|policy|… …`.

mod credentials;
mod devices;
mod people;
mod policy;
mod store;
mod tailnet;

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use jiff::Timestamp;
use serde_json::Value;

use self::store::StoreCommand;
pub use super::args::{
    ClientCommand, Command, DnsCommand, FederationArgs, Group, KeyCommand, Life, LogArgs, LoginCommand,
    NewKey, NewService, NodeCommand, PolicyCommand, RouteCommand, ServiceCommand, SettingsArgs,
    SettingsCommand, TokenCommand, UserCommand,
};
use super::client::Client;
use super::output::Printer;
use crate::Config;

/// Runs a command against the coordinator that runs with `config`, and prints the result to standard output.
///
/// # Errors
/// When the coordinator does not run or refuses, in words for people.
pub async fn run(config: &Config, command: Command) -> Result<ExitCode> {
    run_to(config, command, io::stdout().lock()).await
}

/// Runs a command and prints the result to `to`.
///
/// # Errors
/// As [`run`].
pub async fn run_to(config: &Config, command: Command, to: impl Write) -> Result<ExitCode> {
    let client = &Client::new(&config.admin_socket());
    let print = Printer {
        format: command.output(),
        to,
    };
    match command {
        Command::User(Group { command, .. }) => people::user(client, command, print).await?,
        Command::Login(Group { command, .. }) => people::login(client, command, print).await?,
        Command::Key(Group { command, .. }) => credentials::key(client, command, print).await?,
        Command::OauthClient(Group { command, .. }) => {
            credentials::oauth_client(client, command, print).await?;
        }
        Command::ApiToken(Group { command, .. }) => credentials::api_token(client, command, print).await?,
        Command::Node(Group { command, .. }) => devices::node(client, command, print).await?,
        Command::Route(Group { command, .. }) => devices::route(client, command, print).await?,
        Command::Service(Group { command, .. }) => tailnet::service(client, command, print).await?,
        Command::Dns(Group { command, .. }) => tailnet::dns(client, command, print).await?,
        Command::Settings(Group { command, .. }) => tailnet::settings(client, command, print).await?,
        Command::Log(args) => tailnet::log(client, &args, print).await?,
        Command::Backup { file } => {
            store::run(config, client, StoreCommand::BackUp(file), print.to).await?;
        }
        Command::Restore { file } => {
            store::run(config, client, StoreCommand::Restore(file), print.to).await?;
        }
        Command::Export => store::run(config, client, StoreCommand::Export, print.to).await?,
        Command::Policy(Group { command, .. }) => return policy::policy(client, command, print).await,
    }
    Ok(ExitCode::SUCCESS)
}

/// A call without a body.
const NO_BODY: Option<&Value> = None;

/// A time without fractions of a second.
fn time(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second()).unwrap_or(at).to_string()
}

fn join(words: &BTreeSet<String>) -> String {
    words.iter().map(String::as_str).collect::<Vec<_>>().join(",")
}
