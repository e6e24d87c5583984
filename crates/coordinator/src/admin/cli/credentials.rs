//! Auth keys, OAuth clients and API tokens.

use std::io::Write;
use std::iter;

use anyhow::Result;
use http::Method;
use jiff::Timestamp;
use serde_json::Value;

use super::super::args::{ClientCommand, FederationArgs, KeyCommand, TokenCommand};
use super::super::client::Client;
use super::super::output::Printer;
use super::{NO_BODY, join, time};
use crate::api::{
    Binding, Capabilities, CreateCapabilities, DeviceCapabilities, KeyList, KeyRequest, KeyType, KeyView,
};

pub(super) async fn key(client: &Client, command: KeyCommand, mut print: Printer<impl Write>) -> Result<()> {
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

pub(super) async fn oauth_client(
    client: &Client,
    command: ClientCommand,
    mut print: Printer<impl Write>,
) -> Result<()> {
    match command {
        ClientCommand::Create {
            scopes,
            tags,
            description,
            binding,
        } => {
            let binding = bound(binding);
            let request = KeyRequest {
                key_type: if binding.is_some() {
                    KeyType::Federated
                } else {
                    KeyType::Client
                },
                description,
                scopes: scopes.into_iter().collect(),
                tags: tags.into_iter().collect(),
                binding: binding.unwrap_or_default(),
                ..KeyRequest::default()
            };
            let key = create_key(client, &request).await?;
            if key.key_type == KeyType::Client {
                return print_new(&key, "secret", print);
            }
            let binding = &key.binding;
            let fields = [
                ("id", key.id.clone()),
                ("issuer", binding.issuer.clone()),
                ("subject", binding.subject.clone()),
                ("audience", binding.audience.clone()),
            ];
            Ok(print.item(&key, fields)?)
        }
        ClientCommand::List => {
            let mut clients = keys(client, KeyType::Client).await?;
            clients.extend(keys(client, KeyType::Federated).await?);
            print.list(
                &clients,
                ["ID", "SCOPES", "TAGS", "PROOF", "CREATED", "DESCRIPTION"],
                |client| {
                    let (scopes, tags) = (join(&client.scopes), join(&client.tags));
                    let proof = match client.key_type {
                        KeyType::Federated => client.binding.subject.clone(),
                        KeyType::Client | KeyType::Auth | KeyType::Api => "secret".to_owned(),
                    };
                    [
                        client.id.clone(),
                        scopes,
                        tags,
                        proof,
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

pub(super) async fn api_token(
    client: &Client,
    command: TokenCommand,
    mut print: Printer<impl Write>,
) -> Result<()> {
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

/// What a client is bound to, if it is to keep no secret.
fn bound(args: FederationArgs) -> Option<Binding> {
    Some(Binding {
        issuer: args.issuer?,
        subject: args.subject?,
        audience: args.audience,
        custom_claim_rules: args.claim.into_iter().collect(),
    })
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

fn expiry(key: &KeyView) -> String {
    key.expires.map_or_else(String::new, time)
}
