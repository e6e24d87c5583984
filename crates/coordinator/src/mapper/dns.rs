//! How one node resolves names.

use std::collections::BTreeMap;

use tailwharf_wire::tailcfg::{DnsConfig, DnsRecord, Resolver};

use super::view::View;
use crate::model::VipService;

/// Names of the tailnet are answered by the node itself; all others as the administrator wants it.
pub(super) fn config(view: &View<'_>) -> DnsConfig {
    let world = view.world;
    let dns = world.dns();
    let suffix = world.facts().suffix.as_str().to_owned();
    let mut routes: BTreeMap<String, Vec<Resolver>> = dns
        .split
        .iter()
        .map(|(domain, servers)| (domain.clone(), resolvers(servers)))
        .collect();
    let mut domains = Vec::new();
    if dns.magic_dns {
        routes.insert(suffix.clone(), Vec::new());
        domains.push(suffix);
    }
    domains.extend(dns.search_paths.iter().cloned());
    let nameservers = resolvers(&dns.nameservers);
    let (everywhere, fallback) = if dns.override_local {
        (nameservers, Vec::new())
    } else {
        (Vec::new(), nameservers)
    };
    let mut extra_records = Vec::new();
    if dns.magic_dns {
        let services = world.services().filter(|service| view.may_know(service));
        extra_records.extend(services.flat_map(|service| service_records(view, service)));
        extra_records.extend(dns.extra_records.iter().map(|record| DnsRecord {
            name: record.name.clone(),
            value: record.value.to_string(),
            ..DnsRecord::default()
        }));
    }
    DnsConfig {
        resolvers: everywhere,
        fallback_resolvers: fallback,
        routes,
        domains,
        proxied: dns.magic_dns,
        cert_domains: cert_domains(view),
        extra_records,
        ..DnsConfig::default()
    }
}

/// Names for which the node may get certificates: its own, and those of the services that it may answer for.
fn cert_domains(view: &View<'_>) -> Vec<String> {
    let Some(node) = view.own().filter(|_| view.world.settings().https) else {
        return Vec::new();
    };
    let suffix = &view.world.facts().suffix;
    let services = view
        .hosted_services()
        .map(|service| suffix.fqdn(service.name.label()));
    std::iter::once(suffix.fqdn(&node.name)).chain(services).collect()
}

fn service_records(view: &View<'_>, service: &VipService) -> impl Iterator<Item = DnsRecord> + use<> {
    let name = view.world.facts().suffix.fqdn(service.name.label());
    service.addresses().into_iter().map(move |addr| DnsRecord {
        name: name.clone(),
        value: addr.to_string(),
        ..DnsRecord::default()
    })
}

fn resolvers(addresses: &[String]) -> Vec<Resolver> {
    let resolver = |addr: &String| Resolver {
        addr: addr.clone(),
        ..Resolver::default()
    };
    addresses.iter().map(resolver).collect()
}
