//! How the devices of the tailnet resolve names.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::caller::{Body, Caller};
use super::{Api, ApiError};
use crate::model::{DnsSettings, ExtraRecord};
use crate::scope;

/// Domains and their resolvers.
type Split = BTreeMap<String, Vec<String>>;

/// The whole, as one document.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct DnsView {
    pub(crate) nameservers: Vec<ResolverView>,
    #[serde(rename = "splitDNS")]
    pub(crate) split: BTreeMap<String, Vec<ResolverView>>,
    pub(crate) search_paths: Vec<String>,
    pub(crate) preferences: PreferencesView,
    /// Further names of the tailnet. This server's own; left as they are when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) extra_records: Option<Vec<ExtraRecord>>,
}

/// One resolver.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ResolverView {
    pub(crate) address: String,
    /// Whether it is used behind an exit node, too. Not offered here.
    use_with_exit_node: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PreferencesView {
    #[serde(rename = "overrideLocalDNS")]
    pub(crate) override_local: bool,
    #[serde(rename = "magicDNS")]
    pub(crate) magic_dns: bool,
}

impl DnsView {
    fn new(dns: &DnsSettings) -> Self {
        let resolvers = |addresses: &Vec<String>| addresses.iter().cloned().map(ResolverView::from).collect();
        Self {
            nameservers: resolvers(&dns.nameservers),
            split: dns
                .split
                .iter()
                .map(|(domain, addresses)| (domain.clone(), resolvers(addresses)))
                .collect(),
            search_paths: dns.search_paths.clone(),
            preferences: PreferencesView {
                override_local: dns.override_local,
                magic_dns: dns.magic_dns,
            },
            extra_records: Some(dns.extra_records.clone()),
        }
    }

    /// What it makes of the settings.
    fn edit(self) -> Result<impl FnOnce(&mut DnsSettings) + Send + 'static, ApiError> {
        let nameservers = addresses(self.nameservers)?;
        let split = self.split.into_iter();
        let split = split
            .map(|(domain, resolvers)| Ok((domain, addresses(resolvers)?)))
            .collect::<Result<_, ApiError>>()?;
        Ok(move |dns: &mut DnsSettings| {
            *dns = DnsSettings {
                magic_dns: self.preferences.magic_dns,
                nameservers,
                override_local: self.preferences.override_local,
                split,
                search_paths: self.search_paths,
                extra_records: self
                    .extra_records
                    .unwrap_or_else(|| std::mem::take(&mut dns.extra_records)),
            };
        })
    }
}

impl From<String> for ResolverView {
    fn from(address: String) -> Self {
        Self {
            address,
            use_with_exit_node: false,
        }
    }
}

fn addresses(resolvers: Vec<ResolverView>) -> Result<Vec<String>, ApiError> {
    let mut all = Vec::new();
    for resolver in resolvers {
        if resolver.use_with_exit_node {
            return Err(ApiError::Invalid(format!(
                "this server does not offer `useWithExitNode`, which {} has: leave it out",
                resolver.address.chars().take(128).collect::<String>()
            )));
        }
        all.push(resolver.address);
    }
    Ok(all)
}

/// Changes the settings by `edit`.
async fn change(
    api: &Api,
    caller: &Caller,
    edit: impl FnOnce(&mut DnsSettings) + Send + 'static,
) -> Result<Arc<DnsSettings>, ApiError> {
    caller.require(scope::DNS)?;
    Ok(api.operations.edit_dns(caller.actor().clone(), edit).await?)
}

fn read(api: &Api, caller: &Caller) -> Result<Arc<DnsSettings>, ApiError> {
    caller.require(scope::DNS.read())?;
    Ok(api.operations.world().dns().clone())
}

/// The whole.
pub(super) async fn configuration(State(api): State<Api>, caller: Caller) -> Result<Json<DnsView>, ApiError> {
    let dns = read(&api, &caller)?;
    Ok(Json(DnsView::new(&dns)))
}

/// Replaces the whole.
pub(super) async fn set_configuration(
    State(api): State<Api>,
    caller: Caller,
    Body(request): Body<DnsView>,
) -> Result<Json<DnsView>, ApiError> {
    let dns = change(&api, &caller, request.edit()?).await?;
    Ok(Json(DnsView::new(&dns)))
}

/// The resolvers for all names.
pub(super) async fn nameservers(State(api): State<Api>, caller: Caller) -> Result<Json<Value>, ApiError> {
    let dns = read(&api, &caller)?;
    Ok(nameservers_view(&dns))
}

#[derive(Deserialize)]
pub(super) struct NameserversRequest {
    dns: Vec<String>,
}

/// Replaces the resolvers for all names.
pub(super) async fn set_nameservers(
    State(api): State<Api>,
    caller: Caller,
    Body(request): Body<NameserversRequest>,
) -> Result<Json<Value>, ApiError> {
    let dns = change(&api, &caller, move |dns| dns.nameservers = request.dns);
    let dns = dns.await?;
    Ok(nameservers_view(&dns))
}

fn nameservers_view(dns: &DnsSettings) -> Json<Value> {
    Json(json!({"dns": dns.nameservers, "magicDNS": dns.magic_dns}))
}

/// Whether names of devices are resolved.
pub(super) async fn preferences(State(api): State<Api>, caller: Caller) -> Result<Json<Value>, ApiError> {
    Ok(Json(json!({"magicDNS": read(&api, &caller)?.magic_dns})))
}

#[derive(Deserialize)]
pub(super) struct PreferencesRequest {
    #[serde(rename = "magicDNS")]
    magic_dns: bool,
}

/// Says whether names of devices are resolved.
pub(super) async fn set_preferences(
    State(api): State<Api>,
    caller: Caller,
    Body(request): Body<PreferencesRequest>,
) -> Result<Json<Value>, ApiError> {
    let dns = change(&api, &caller, move |dns| dns.magic_dns = request.magic_dns);
    Ok(Json(json!({"magicDNS": dns.await?.magic_dns})))
}

/// The search list.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SearchPaths {
    search_paths: Vec<String>,
}

/// The domains that complete short names.
pub(super) async fn search_paths(
    State(api): State<Api>,
    caller: Caller,
) -> Result<Json<SearchPaths>, ApiError> {
    let search_paths = read(&api, &caller)?.search_paths.clone();
    Ok(Json(SearchPaths { search_paths }))
}

/// Replaces the domains that complete short names.
pub(super) async fn set_search_paths(
    State(api): State<Api>,
    caller: Caller,
    Body(request): Body<SearchPaths>,
) -> Result<Json<SearchPaths>, ApiError> {
    let dns = change(&api, &caller, move |dns| dns.search_paths = request.search_paths);
    let search_paths = dns.await?.search_paths.clone();
    Ok(Json(SearchPaths { search_paths }))
}

/// The resolvers for single domains.
pub(super) async fn split_dns(State(api): State<Api>, caller: Caller) -> Result<Json<Split>, ApiError> {
    Ok(Json(read(&api, &caller)?.split.clone()))
}

/// Replaces the resolvers for single domains.
pub(super) async fn set_split_dns(
    State(api): State<Api>,
    caller: Caller,
    Body(request): Body<BTreeMap<String, Option<Vec<String>>>>,
) -> Result<Json<Split>, ApiError> {
    let dns = change(&api, &caller, move |dns| {
        dns.split.clear();
        merge(&mut dns.split, request);
    });
    Ok(Json(dns.await?.split.clone()))
}

/// Replaces the resolvers for the domains of the request. One without resolvers is removed.
pub(super) async fn update_split_dns(
    State(api): State<Api>,
    caller: Caller,
    Body(request): Body<BTreeMap<String, Option<Vec<String>>>>,
) -> Result<Json<Split>, ApiError> {
    let dns = change(&api, &caller, move |dns| merge(&mut dns.split, request));
    Ok(Json(dns.await?.split.clone()))
}

fn merge(split: &mut Split, update: BTreeMap<String, Option<Vec<String>>>) {
    for (domain, resolvers) in update {
        match resolvers.filter(|resolvers| !resolvers.is_empty()) {
            Some(resolvers) => split.insert(domain, resolvers),
            None => split.remove(&domain),
        };
    }
}
