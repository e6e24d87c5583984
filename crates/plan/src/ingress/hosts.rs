//! Under which names an Ingress is served, and with which certificates.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::api::networking::v1::Ingress;
use sha2::{Digest as _, Sha256};
use tailwharf_kube_types::Hostname;
use tailwharf_kube_types::contract::annotation;
use tailwharf_kube_types::identity::web::{HostName, WebHost};
use tailwharf_kube_types::names::certificates_name;

use super::snapshot::CertificateSecret;
use super::{CertificateFacts, Problem, Snapshot};

/// Hex digits of a certificate's digest in its name.
const DIGEST: usize = 16;
/// Longest part of a Secret's name in the name of a certificate.
const MAX_SECRET: usize = 200;
/// Names of a certificate that a message lists.
const SHOWN_NAMES: usize = 5;

/// A certificate that is to be copied from the Secret of the user into that of the identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Name of the user's Secret.
    pub secret: String,
    /// The version that was looked at.
    pub resource_version: String,
    /// Name of the certificate in the identity's Secret.
    pub certificate: String,
}

/// The names of an Ingress.
#[derive(Clone, Debug, Default)]
pub(super) struct Hosts {
    /// What is served.
    pub(super) served: Vec<WebHost>,
    /// Certificates that are not in the identity's Secret yet.
    pub(super) copies: Vec<Copy>,
    /// When one of the certificates ends.
    pub(super) ends: Option<Timestamp>,
    /// The first TLS host as it is written, which stands for the device's own name.
    primary: Option<String>,
    /// The device's full name, once it has one, and the name it asks for.
    device: Vec<String>,
    /// Whether the device's own name is served.
    own_name: bool,
    /// The certificates of before that are stored still, by the hosts that they are served for.
    former: BTreeMap<HostName, String>,
}

/// The name that the device of an Ingress asks for.
pub fn hostname(ingress: &Ingress) -> Result<Hostname, Problem> {
    if let Some(host) = primary(ingress) {
        let label = host.split('.').next().unwrap_or_default();
        return label.parse().map_err(|error| Problem::Hostname { error });
    }
    let metadata = &ingress.metadata;
    let (namespace, name) = (metadata.namespace.as_deref(), metadata.name.as_deref());
    format!(
        "{}-{}-ingress",
        namespace.unwrap_or_default(),
        name.unwrap_or_default()
    )
    .parse()
    .map_err(|error| Problem::DefaultHostname { error })
}

/// The first TLS host, if it can name a device.
fn primary(ingress: &Ingress) -> Option<&str> {
    let tls = ingress.spec.as_ref()?.tls.as_ref()?.first()?;
    let host = tls.hosts.as_ref()?.first()?.as_str();
    (!host.is_empty() && !host.starts_with('*')).then_some(host)
}

/// Reads the TLS section. What cannot be served is in `problems`.
pub(super) fn hosts(
    snapshot: &Snapshot,
    ingress: &Ingress,
    hostname: &Hostname,
    identity: &str,
    now: Timestamp,
    problems: &mut Vec<Problem>,
) -> Hosts {
    let fqdn = snapshot
        .observed
        .identities
        .iter()
        .find_map(|identity| identity.status.as_ref()?.fqdn.clone());
    let mut hosts = Hosts {
        primary: primary(ingress).map(str::to_owned),
        device: [Some(hostname.as_str().to_lowercase()), fqdn]
            .into_iter()
            .flatten()
            .collect(),
        own_name: snapshot.subject().annotation(annotation::OWN_DOMAINS_ONLY) != Some("true"),
        ..Hosts::default()
    };
    if hosts.own_name {
        hosts.served.push(WebHost {
            name: HostName::Device,
            certificate: None,
        });
    }
    let stored = stored(snapshot, identity);
    hosts.former = former(snapshot, &stored);
    let mut usable = BTreeMap::new();
    let tls = ingress.spec.as_ref().and_then(|spec| spec.tls.as_ref());
    for entry in tls.into_iter().flatten() {
        let secret = entry.secret_name.as_deref().filter(|name| !name.is_empty());
        for host in entry.hosts.iter().flatten() {
            let Some(secret) = secret else {
                if !hosts.is_device(host) {
                    problems.push(Problem::NoCertificate { host: host.clone() });
                }
                continue;
            };
            let certificate = usable
                .entry(secret)
                .or_insert_with(|| hosts.choose(snapshot, secret, host, &stored, now, problems));
            if let Some(certificate) = certificate {
                hosts.add(host, secret, certificate, problems);
            }
        }
    }
    // One that is for none of the hosts is of no use.
    let Hosts { served, copies, .. } = &mut hosts;
    copies.retain(|copy| {
        let mut used = served.iter().filter_map(|host| host.certificate.as_ref());
        used.any(|name| *name == copy.certificate)
    });
    hosts
}

/// A certificate that can be served.
struct Usable {
    name: String,
    /// `None`: it is one of before, whose names are not known any more.
    facts: Option<CertificateFacts>,
}

/// The certificates in the identity's Secret, those that are served first.
fn stored<'a>(snapshot: &'a Snapshot, identity: &str) -> Vec<&'a str> {
    let name = certificates_name(identity);
    let secrets = snapshot.observed.secrets.iter();
    let served: BTreeSet<&str> = snapshot
        .observed
        .identities
        .iter()
        .filter_map(|identity| identity.spec.web.as_ref())
        .flat_map(|web| &web.hosts)
        .filter_map(|host| host.certificate.as_deref())
        .collect();
    let mut all: Vec<&str> = secrets
        .filter(|secret| secret.name == name)
        .flat_map(|secret| &secret.certificates)
        .map(String::as_str)
        .collect();
    all.sort_by_key(|name| !served.contains(name));
    all
}

/// The certificates that hosts are served with, as far as they are stored.
fn former(snapshot: &Snapshot, stored: &[&str]) -> BTreeMap<HostName, String> {
    let identities = snapshot.observed.identities.iter();
    let hosts = identities
        .filter_map(|identity| identity.spec.web.as_ref())
        .flat_map(|web| &web.hosts);
    hosts
        .filter_map(|host| Some((host.name.clone(), host.certificate.clone()?)))
        .filter(|(_, certificate)| stored.contains(&certificate.as_str()))
        .collect()
}

/// What the names of all certificates from a Secret begin with.
fn prefix(secret: &str) -> String {
    if secret.len() <= MAX_SECRET {
        format!("{secret}-")
    } else {
        let digest = hex::encode(Sha256::digest(secret));
        let head: String = secret.chars().take(MAX_SECRET).collect();
        format!("{head}-{}-", &digest[..DIGEST])
    }
}

impl Hosts {
    /// The certificate to serve from a Secret: the one in it, or the one of before if that cannot be used.
    fn choose(
        &mut self,
        snapshot: &Snapshot,
        secret: &str,
        host: &str,
        stored: &[&str],
        now: Timestamp,
        problems: &mut Vec<Problem>,
    ) -> Option<Usable> {
        let prefix = prefix(secret);
        let before = stored.iter().find(|name| {
            name.strip_prefix(&prefix)
                .is_some_and(|rest| rest.len() == DIGEST && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
        });
        let kept = before.is_some();
        let secret = secret.to_owned();
        let state = snapshot.certificates.get(&secret);
        match state.unwrap_or(&CertificateSecret::Pending) {
            CertificateSecret::Pending => {}
            CertificateSecret::Missing if kept => problems.push(Problem::CertificateInvalid {
                secret,
                fault: "it does not exist any more".to_owned(),
                kept,
            }),
            CertificateSecret::Missing => problems.push(Problem::CertificateMissing {
                secret,
                host: host.to_owned(),
            }),
            CertificateSecret::Forbidden => problems.push(Problem::CertificateForbidden { secret }),
            CertificateSecret::Invalid(fault) => problems.push(Problem::CertificateInvalid {
                secret,
                fault: fault.clone(),
                kept,
            }),
            CertificateSecret::Good(facts) => {
                let name = format!("{prefix}{}", facts.digest);
                let is_stored = stored.contains(&name.as_str());
                let in_time = facts.not_before <= now && now < facts.not_after;
                if !in_time {
                    problems.push(Problem::CertificateExpired {
                        secret: secret.clone(),
                        from: facts.not_before,
                        to: facts.not_after,
                        kept: kept && !is_stored,
                    });
                }
                if in_time || is_stored {
                    if in_time {
                        self.ends = Some(self.ends.map_or(facts.not_after, |end| end.min(facts.not_after)));
                    }
                    if !is_stored {
                        self.copies.push(Copy {
                            secret,
                            resource_version: facts.resource_version.clone(),
                            certificate: name.clone(),
                        });
                    }
                    return Some(Usable {
                        name,
                        facts: Some(facts.clone()),
                    });
                }
            }
        }
        before.map(|name| Usable {
            name: (*name).to_owned(),
            facts: None,
        })
    }

    /// Serves a host with the certificate, or with the one of before if this one is not for it.
    fn add(&mut self, host: &str, secret: &str, certificate: &Usable, problems: &mut Vec<Problem>) {
        let Ok(name) = host.parse::<HostName>() else {
            problems.push(Problem::RuleHost {
                host: host.chars().take(80).collect(),
            });
            return;
        };
        let mut certificate_name = certificate.name.clone();
        if let Some(facts) = &certificate.facts
            && !covers(&facts.names, host)
        {
            let prefix = prefix(secret);
            let former = self
                .former
                .get(&name)
                .filter(|former| former.starts_with(&prefix));
            problems.push(Problem::CertificateNames {
                secret: secret.to_owned(),
                host: host.to_owned(),
                names: facts.names.iter().take(SHOWN_NAMES).cloned().collect(),
                kept: former.is_some(),
            });
            let Some(former) = former else { return };
            certificate_name.clone_from(former);
        }
        if !self.served.iter().any(|served| served.name == name) {
            self.served.push(WebHost {
                name,
                certificate: Some(certificate_name),
            });
        }
    }

    /// Whether a host is written for the device's own name.
    fn is_device(&self, host: &str) -> bool {
        self.primary.as_deref() == Some(host) || self.device.iter().any(|name| name == host)
    }

    /// Under which of the served names a rule's host is asked for. A host that a wildcard certificate covers becomes a name of its own.
    pub(super) fn of_rule(&mut self, host: &str) -> BTreeSet<HostName> {
        let mut names = BTreeSet::new();
        if self.own_name && self.is_device(host) {
            names.insert(HostName::Device);
        }
        let Ok(name) = host.parse::<HostName>() else {
            return names;
        };
        if self.served.iter().any(|served| served.name == name) {
            names.insert(name);
        } else if let HostName::Exact(_) = &name {
            let wildcard = self.served.iter().find(|served| {
                matches!(served.name, HostName::Wildcard(_)) && served.name.matches(host, None)
            });
            let certificate = wildcard.and_then(|served| served.certificate.clone());
            if certificate.is_some() {
                self.served.push(WebHost {
                    name: name.clone(),
                    certificate,
                });
                names.insert(name);
            }
        }
        names
    }
}

/// Whether one of a certificate's names stands for a host.
fn covers(names: &[String], host: &str) -> bool {
    names.iter().any(|name| {
        name == host
            || name
                .parse::<HostName>()
                .is_ok_and(|name| matches!(name, HostName::Wildcard(_)) && name.matches(host, None))
    })
}
