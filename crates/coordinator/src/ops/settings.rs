//! Settings of the tailnet as a whole.

use std::{net::IpAddr, net::SocketAddr, sync::Arc};

use url::Url;

use super::{Decision, OpError, Operations, Subject};
use crate::{
    model::{Action, Actor, DnsSettings, Settings, TargetKind},
    names,
    world::Change,
};

/// Entries that each list of the settings may have.
const LIST_LIMIT: usize = 256;
/// The longest life of a node key.
const LIFETIME_LIMIT_DAYS: u32 = 3650;

impl Operations {
    /// Changes rules for devices. They hold for devices that log in from then on.
    ///
    /// # Errors
    /// `Invalid` for a life of more than ten years.
    pub async fn edit_settings(
        &self,
        actor: Actor,
        edit: impl FnOnce(&mut Settings) + Send + 'static,
    ) -> Result<Arc<Settings>, OpError> {
        self.submit(move |world, context| {
            let mut settings = **world.settings();
            edit(&mut settings);
            if settings == **world.settings() {
                return Ok(Decision::unchanged(world.settings().clone()));
            }
            if settings.key_lifetime_days > LIFETIME_LIMIT_DAYS {
                return Err(OpError::Invalid(format!(
                    "a node key lives {LIFETIME_LIMIT_DAYS} days at most: use fewer, or 0 for ever"
                )));
            }
            let subject = Subject::new(TargetKind::Settings, "settings", "settings").detail(text(&settings));
            let settings = Arc::new(settings);
            let decision = Decision::new(vec![Change::PutSettings(settings.clone())], settings);
            Ok(decision.noted(world, context, &actor, Action::Update, subject))
        })
        .await
    }

    /// Changes how the tailnet resolves names. Every device is told.
    ///
    /// # Errors
    /// `Invalid` for an address or domain that is none, or lists that are too long.
    pub async fn edit_dns(
        &self,
        actor: Actor,
        edit: impl FnOnce(&mut DnsSettings) + Send + 'static,
    ) -> Result<Arc<DnsSettings>, OpError> {
        self.submit(move |world, context| {
            let mut dns = world.dns().as_ref().clone();
            edit(&mut dns);
            check(&mut dns)?;
            if dns == **world.dns() {
                return Ok(Decision::unchanged(world.dns().clone()));
            }
            let subject = Subject::new(TargetKind::Dns, "dns", "dns").detail(text(&dns));
            let dns = Arc::new(dns);
            let decision = Decision::new(vec![Change::PutDns(dns.clone())], dns);
            Ok(decision.noted(world, context, &actor, Action::Update, subject))
        })
        .await
    }
}

fn text(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// Refuses what no client could use, and brings domains into one form.
fn check(dns: &mut DnsSettings) -> Result<(), OpError> {
    let lists = [
        dns.nameservers.len(),
        dns.split.len(),
        dns.search_paths.len(),
        dns.extra_records.len(),
    ];
    let mut lengths = lists.into_iter().chain(dns.split.values().map(Vec::len));
    if lengths.any(|length| length > LIST_LIMIT) {
        return Err(OpError::Invalid(format!(
            "a list of the DNS settings has {LIST_LIMIT} entries at most"
        )));
    }
    for server in dns.nameservers.iter().chain(dns.split.values().flatten()) {
        if !is_resolver(server) {
            return Err(OpError::Invalid(format!(
                "`{server}` is not a nameserver: write an IP address, `address:port` or an `https://` URL"
            )));
        }
    }
    dns.split = std::mem::take(&mut dns.split)
        .into_iter()
        .map(|(name, servers)| Ok((domain(&name)?, servers)))
        .collect::<Result<_, OpError>>()?;
    for path in &mut dns.search_paths {
        *path = domain(path)?;
    }
    for record in &mut dns.extra_records {
        record.name = domain(&record.name)?;
    }
    Ok(())
}

fn is_resolver(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok()
        || text.parse::<SocketAddr>().is_ok()
        || Url::parse(text).is_ok_and(|url| url.scheme() == "https" && url.host().is_some())
}

/// A domain in lower case and without a final dot.
fn domain(text: &str) -> Result<String, OpError> {
    names::domain(text).ok_or_else(|| {
        OpError::Invalid(format!(
            "`{text}` is not a domain: write it like `corp.example.com`"
        ))
    })
}
