//! Services, name resolution, settings and the log of changes.

use std::io::Write;

use anyhow::{Context as _, Result};
use http::Method;
use serde_json::{Map, Value, json};

use super::super::args::{DnsCommand, LogArgs, NewService, ServiceCommand, SettingsCommand};
use super::super::client::Client;
use super::super::output::Printer;
use super::{NO_BODY, join, time};
use crate::api::{DnsView, HostList, LogList, ServiceList, ServiceView, SettingsView};

/// The path of a call about the tailnet as a whole.
fn path<'p>(rest: &[&'p str]) -> Vec<&'p str> {
    [&["tailnet", "-"], rest].concat()
}

pub(super) async fn service(
    client: &Client,
    command: ServiceCommand,
    mut print: Printer<impl Write>,
) -> Result<()> {
    let at = |name: &str| {
        if name.starts_with("svc:") {
            name.to_owned()
        } else {
            format!("svc:{name}")
        }
    };
    match command {
        ServiceCommand::List => {
            let list: ServiceList = client
                .call(Method::GET, &path(&["vip-services"]), NO_BODY)
                .await?;
            let head = ["NAME", "ADDRESSES", "PORTS", "TAGS", "COMMENT"];
            print.list(&list.services, head, |service| {
                [
                    service.name.clone(),
                    addresses(service),
                    service.ports.join(","),
                    join(&service.tags),
                    service.comment.clone(),
                ]
            })?;
        }
        ServiceCommand::Set(NewService {
            name,
            ports,
            tags,
            comment,
        }) => {
            let request = ServiceView {
                ports,
                tags: tags.into_iter().collect(),
                comment,
                ..ServiceView::default()
            };
            let name = at(&name);
            let path = path(&["vip-services", &name]);
            let service: ServiceView = client.call(Method::PUT, &path, Some(&request)).await?;
            let fields = [("name", service.name.clone()), ("addresses", addresses(&service))];
            print.item(&service, fields)?;
        }
        ServiceCommand::Hosts { name } => {
            let name = at(&name);
            let path = path(&["vip-services", &name, "devices"]);
            let list: HostList = client.call(Method::GET, &path, NO_BODY).await?;
            print.list(&list.hosts, ["NODE", "APPROVAL", "STATE"], |host| {
                [
                    host.node.to_string(),
                    host.approval_level.clone(),
                    host.configured.clone(),
                ]
            })?;
        }
        ServiceCommand::Approve { name, node } => {
            approve(client, &at(&name), &node, true).await?;
            print.done(&format!("node {node} may answer for {name}"))?;
        }
        ServiceCommand::Deny { name, node } => {
            approve(client, &at(&name), &node, false).await?;
            print.done(&format!("node {node} may not answer for {name}"))?;
        }
        ServiceCommand::Delete { name } => {
            let name = at(&name);
            let path = path(&["vip-services", &name]);
            let _: Value = client.call(Method::DELETE, &path, NO_BODY).await?;
            print.done(&format!("service {name} is deleted"))?;
        }
    }
    Ok(())
}

fn addresses(service: &ServiceView) -> String {
    let texts: Vec<String> = service.addrs.iter().map(ToString::to_string).collect();
    texts.join(" ")
}

async fn approve(client: &Client, name: &str, node: &str, approved: bool) -> Result<()> {
    let path = path(&["vip-services", name, "device", node, "approved"]);
    let request = json!({"approved": approved});
    let _: Value = client.call(Method::POST, &path, Some(&request)).await?;
    Ok(())
}

pub(super) async fn dns(client: &Client, command: DnsCommand, mut print: Printer<impl Write>) -> Result<()> {
    let configuration = path(&["dns", "configuration"]);
    match command {
        DnsCommand::Get => {}
        DnsCommand::Set { file } => {
            let text = super::policy::read(&file)?;
            let dns: DnsView = serde_json::from_str(&text)
                .with_context(|| format!("{} is not what `dns get --output json` prints", file.display()))?;
            let _: Value = client.call(Method::POST, &configuration, Some(&dns)).await?;
        }
        DnsCommand::Nameservers { addresses } => {
            let request = json!({"dns": addresses});
            let path = path(&["dns", "nameservers"]);
            let _: Value = client.call(Method::POST, &path, Some(&request)).await?;
        }
        DnsCommand::Search { domains } => {
            let request = json!({"searchPaths": domains});
            let path = path(&["dns", "searchpaths"]);
            let _: Value = client.call(Method::POST, &path, Some(&request)).await?;
        }
        DnsCommand::Split { domain, addresses } => {
            let request = json!({domain: addresses});
            let path = path(&["dns", "split-dns"]);
            let _: Value = client.call(Method::PATCH, &path, Some(&request)).await?;
        }
    }
    let dns: DnsView = client.call(Method::GET, &configuration, NO_BODY).await?;
    let all = |resolvers: &[crate::api::ResolverView]| {
        let texts: Vec<&str> = resolvers
            .iter()
            .map(|resolver| resolver.address.as_str())
            .collect();
        texts.join(" ")
    };
    let split: Vec<String> = dns
        .split
        .iter()
        .map(|(domain, resolvers)| format!("{domain} by {}", all(resolvers)))
        .collect();
    let records: Vec<String> = dns
        .extra_records
        .iter()
        .flatten()
        .map(|record| format!("{} is {}", record.name, record.value))
        .collect();
    let fields = [
        ("names of devices", on(dns.preferences.magic_dns)),
        ("nameservers", all(&dns.nameservers)),
        ("replace local ones", on(dns.preferences.override_local)),
        ("search", dns.search_paths.join(" ")),
        ("split", split.join(", ")),
        ("records", records.join(", ")),
    ];
    Ok(print.item(&dns, fields)?)
}

fn on(flag: bool) -> String {
    if flag { "on" } else { "off" }.to_owned()
}

pub(super) async fn settings(
    client: &Client,
    command: SettingsCommand,
    mut print: Printer<impl Write>,
) -> Result<()> {
    let path = path(&["settings"]);
    let settings: SettingsView = match command {
        SettingsCommand::Get => client.call(Method::GET, &path, NO_BODY).await?,
        SettingsCommand::Set(args) => {
            let all = [
                ("devicesApprovalOn", args.device_approval.map(Value::from)),
                ("devicesKeyDurationDays", args.key_lifetime_days.map(Value::from)),
                ("httpsEnabled", args.https.map(Value::from)),
            ];
            let given = all.into_iter();
            let given = given.filter_map(|(name, value)| Some((name.to_owned(), value?)));
            let request: Map<String, Value> = given.collect();
            client.call(Method::PATCH, &path, Some(&request)).await?
        }
    };
    let days = match settings.devices_key_duration_days {
        0 => "never".to_owned(),
        days => format!("{days} days"),
    };
    let fields = [
        ("devices wait for approval", on(settings.devices_approval_on)),
        ("keys end after", days),
        ("certificates", on(settings.https_enabled)),
    ];
    Ok(print.item(&settings, fields)?)
}

pub(super) async fn log(client: &Client, args: &LogArgs, mut print: Printer<impl Write>) -> Result<()> {
    let limit = args.limit.to_string();
    let path = path(&["logging", "configuration"]);
    let list: LogList = client.query(&path, &[("limit", &limit)]).await?;
    let head = ["TIME", "WHO", "ACTION", "KIND", "NAME", "DETAILS"];
    print.list(&list.logs, head, |entry| {
        [
            time(entry.event_time),
            entry.actor.login_name.clone(),
            entry.action.to_lowercase(),
            entry.target.kind.to_lowercase(),
            entry.target.name.clone(),
            entry.details.clone(),
        ]
    })?;
    Ok(())
}
