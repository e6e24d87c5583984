//! Devices and the routes that they serve.

use std::io::Write;

use anyhow::Result;
use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::args::{NodeCommand, RouteCommand};
use super::super::client::Client;
use super::super::output::Printer;
use super::{NO_BODY, join, time};
use crate::api::{DeviceList, DeviceView, RoutesView};

pub(super) async fn node(
    client: &Client,
    command: NodeCommand,
    mut print: Printer<impl Write>,
) -> Result<()> {
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
        NodeCommand::Approve { node } => {
            change(client, &node, "authorized", &json!({"authorized": true})).await?;
            print.done(&format!("node {node} is approved"))?;
        }
        NodeCommand::Rename { node, name } => {
            change(client, &node, "name", &json!({"name": name})).await?;
            print.done(&format!("node {node} has another name now"))?;
        }
        NodeCommand::Tag { node, tags } => {
            change(client, &node, "tags", &json!({"tags": tags})).await?;
            print.done(&format!("node {node} belongs to its tags now"))?;
        }
        NodeCommand::Expire { node } => {
            change(client, &node, "expire", &json!({})).await?;
            print.done(&format!(
                "the key of node {node} has ended; it has to log in again"
            ))?;
        }
    }
    Ok(())
}

async fn change(client: &Client, node: &str, what: &str, value: &Value) -> Result<()> {
    let _: Value = client
        .call(Method::POST, &["device", node, what], Some(value))
        .await?;
    Ok(())
}

pub(super) async fn route(
    client: &Client,
    command: RouteCommand,
    mut print: Printer<impl Write>,
) -> Result<()> {
    match command {
        RouteCommand::List => {
            let path = ["tailnet", "-", "devices"];
            let list: DeviceList = client.query(&path, &[("fields", "all")]).await?;
            let offers = list.devices.iter().flat_map(|device| {
                let routes = device.details.iter().map(|details| &details.routes);
                let advertised = routes.flat_map(|routes| {
                    let enabled = |route| routes.enabled_routes.contains(route);
                    routes
                        .advertised_routes
                        .iter()
                        .map(move |route| (route, enabled(route)))
                });
                advertised.map(|(route, enabled)| (device.name.clone(), route.to_string(), enabled))
            });
            let rows: Vec<Value> = offers
                .map(|(node, route, enabled)| json!({"node": node, "route": route, "enabled": enabled}))
                .collect();
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            print.list(&rows, ["NODE", "ROUTE", "STATE"], |row| {
                let state = if row["enabled"] == true {
                    "approved"
                } else {
                    "waits for approval"
                };
                [text(&row["node"]), text(&row["route"]), state.to_owned()]
            })?;
        }
        RouteCommand::Approve { node, routes } => {
            let request = json!({"routes": routes});
            let path = ["device", &node, "routes"];
            let view: RoutesView = client.call(Method::POST, &path, Some(&request)).await?;
            let list = |routes: &[ipnet::IpNet]| {
                let texts: Vec<String> = routes.iter().map(ToString::to_string).collect();
                texts.join(" ")
            };
            let fields = [
                ("advertised", list(&view.advertised_routes)),
                ("approved", list(&view.enabled_routes)),
            ];
            print.item(&view, fields)?;
        }
    }
    Ok(())
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
