//! The certificates of one device: read, checked, ordered and renewed ahead of time, and handed to its web server.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use rand::Rng as _;
use serde_json::json;
use tailwharf_kube_types::identity::web::{HostName, Web as Spec, WebHost};
use tailwharf_kube_types::names::{certificates_name, secret_name};
use tailwharf_kube_types::{ConditionStatus, ConditionType, IdentityReason, Step};
use tailwharf_node::acme::LETS_ENCRYPT;
use tailwharf_node::{Node, NodeStatus, TailnetNode as _};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::attempts::Attempts;
use super::issuer::{IssueError, Issuer};
use super::loaded::{CertificateError, Loaded};
use crate::cluster::{ApiError, Cluster};
use crate::web::Certificates;

/// Provided certificates are read again this often, beside at each change of the spec.
const READ_EVERY: Duration = Duration::from_secs(60);
/// Whatever is due is looked at again after this long.
const LOOK_EVERY: Duration = Duration::from_secs(6 * 60 * 60);
/// A Secret that could not be read or written is tried again after this long.
const RETRY: Duration = Duration::from_secs(5);

/// What a device needs certificates for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    hosts: Vec<WebHost>,
    /// The authority that the spec names.
    directory: Option<String>,
    control_server: String,
}

impl Wanted {
    /// What the spec asks for.
    #[must_use]
    pub(crate) fn of(spec: &Spec, control_server: &str) -> Self {
        Self {
            hosts: spec.hosts.clone(),
            directory: spec.acme_directory.clone(),
            control_server: control_server.to_owned(),
        }
    }

    /// A certificate for the device's own name.
    #[must_use]
    pub(crate) fn device(directory: Option<String>, control_server: &str) -> Self {
        Self {
            hosts: vec![WebHost {
                name: HostName::Device,
                certificate: None,
            }],
            directory,
            control_server: control_server.to_owned(),
        }
    }
}

/// What keeps a name from being served.
struct Obstacle {
    reason: IdentityReason,
    message: String,
}

impl Obstacle {
    fn new(reason: IdentityReason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}

/// Why an order came to nothing.
struct Failure {
    reason: IdentityReason,
    message: String,
    /// How long to wait before the next, if that does not follow from the attempts.
    wait: Option<Duration>,
}

impl Failure {
    fn new(reason: IdentityReason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            wait: None,
        }
    }
}

/// Keeps the certificates of one device.
pub(crate) struct Keeper {
    pub(crate) identity: Arc<str>,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) issuer: Arc<Issuer>,
    pub(crate) node: Node,
    /// Where the web server finds them.
    pub(crate) served: Arc<Certificates>,
    /// Nothing is written any more once this is cancelled.
    pub(crate) fence: CancellationToken,
    pub(crate) wanted: watch::Receiver<Wanted>,
    pub(crate) step: watch::Sender<Option<Step>>,
}

/// The data of a Secret.
type Data = BTreeMap<String, ByteString>;

impl Keeper {
    /// Keeps them until the fence or the end of whoever wants them.
    pub(crate) async fn run(mut self) {
        let mut status = self.node.status();
        let mut known: BTreeMap<HostName, Loaded> = BTreeMap::new();
        let counters = self.issuer.counters.clone();
        let mut counted = None;
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            let device = status.borrow_and_update().fqdn.clone();
            let (step, pause) = self.look(&wanted, device.as_deref(), &mut known).await;
            let good = step.status == ConditionStatus::True;
            counted = good.then(|| counted.take().unwrap_or_else(|| counters.served.enter()));
            self.step.send_if_modified(|told| {
                let news = told.as_ref() != Some(&step);
                *told = Some(step);
                news
            });
            tokio::select! {
                () = self.fence.cancelled() => return,
                changed = self.wanted.changed() => if changed.is_err() { return },
                () = concerns(&mut status) => {}
                () = sleep(pause) => {}
            }
        }
    }

    /// Does what is due. Says how far it is, and when to look again.
    async fn look(
        &self,
        wanted: &Wanted,
        device: Option<&str>,
        known: &mut BTreeMap<HostName, Loaded>,
    ) -> (Step, Duration) {
        known.retain(|name, _| wanted.hosts.iter().any(|host| host.name == *name));
        let mut obstacles = Vec::new();
        let mut pause = LOOK_EVERY;
        if wanted.hosts.iter().any(|host| host.certificate.is_some()) {
            pause = READ_EVERY;
            obstacles.extend(self.read_provided(wanted, device, known).await);
            self.serve(known, device);
        }
        for host in wanted.hosts.iter().filter(|host| host.certificate.is_none()) {
            let name = match (&host.name, device) {
                (HostName::Device, Some(device)) => device.to_ascii_lowercase(),
                (HostName::Device, None) => return (Step::waiting(ConditionType::CertificateReady), RETRY),
                (name, _) => name.to_string(),
            };
            let (obstacle, soon) = self.keep_issued(host, &name, wanted, known, device).await;
            obstacles.extend(obstacle);
            // An authority may change its mind about a renewal.
            pause = pause.min(soon);
        }
        self.serve(known, device);
        (summary(&obstacles, known.len(), wanted.hosts.len()), pause)
    }

    fn serve(&self, known: &BTreeMap<HostName, Loaded>, device: Option<&str>) {
        let all = known.iter().map(|(name, loaded)| (name, loaded.key.clone()));
        self.served.set(all, device);
    }

    /// Reads the certificates that people provide. One that is bad leaves the one before in its place.
    async fn read_provided(
        &self,
        wanted: &Wanted,
        device: Option<&str>,
        known: &mut BTreeMap<HostName, Loaded>,
    ) -> Vec<Obstacle> {
        let secret = certificates_name(&self.identity);
        let data = match self.cluster.secret(&secret).await {
            Ok(secret) => secret.data.unwrap_or_default(),
            Err(ApiError::NotFound) => Data::new(),
            Err(error) => {
                let text = format!("Secret {secret} cannot be read: {error}. It is tried again.");
                return vec![Obstacle::new(IdentityReason::CertificateMissing, text)];
            }
        };
        let mut obstacles = Vec::new();
        for host in &wanted.hosts {
            let Some(key) = &host.certificate else { continue };
            let name = match (&host.name, device) {
                (HostName::Device, Some(device)) => device.to_owned(),
                (name, _) => name.to_string(),
            };
            match load(&data, key, &name) {
                None => {
                    let text = format!(
                        "The certificate for {name} is missing. Check the Secret that spec.tls names."
                    );
                    obstacles.push(Obstacle::new(IdentityReason::CertificateMissing, text));
                }
                Some(Ok(loaded)) => {
                    known.insert(host.name.clone(), loaded);
                }
                Some(Err(error)) => {
                    self.issuer.counters.rejected.increment();
                    let kept = match known.contains_key(&host.name) {
                        true => "The one before is served. ",
                        false => "",
                    };
                    let text = format!(
                        "The certificate for {name} cannot be used: {error}. {kept}Correct the Secret that spec.tls names."
                    );
                    obstacles.push(Obstacle::new(IdentityReason::CertificateInvalid, text));
                }
            }
        }
        obstacles
    }

    /// Sees to a certificate that an authority issues: from the Secret of the identity, or by an order.
    async fn keep_issued(
        &self,
        host: &WebHost,
        name: &str,
        wanted: &Wanted,
        known: &mut BTreeMap<HostName, Loaded>,
        device: Option<&str>,
    ) -> (Option<Obstacle>, Duration) {
        let now = Timestamp::now();
        if let Some(left) = self.until_renewal(known.get(&host.name), wanted, now).await {
            return (None, left);
        }
        let secret = secret_name(&self.identity);
        let data = match self.cluster.secret(&secret).await {
            Ok(secret) => secret.data.unwrap_or_default(),
            Err(error) => {
                let text = format!("Secret {secret} cannot be read: {error}. It is tried again.");
                return (
                    Some(Obstacle::new(IdentityReason::SecretUnavailable, text)),
                    RETRY,
                );
            }
        };
        if let Some(Ok(loaded)) = load(&data, name, name) {
            let left = self.until_renewal(Some(&loaded), wanted, now).await;
            known.insert(host.name.clone(), loaded);
            // It is served before a new one is ordered, which takes time.
            self.serve(known, device);
            if let Some(left) = left {
                return (None, left);
            }
        }
        let directory = match self.directory(wanted).await {
            Ok(directory) => directory,
            Err(message) => {
                let obstacle = Obstacle::new(IdentityReason::CertificateAuthorityUnreachable, message);
                return (Some(obstacle), RETRY);
            }
        };
        let mut attempts = Attempts::read(&data, &directory, name);
        let outcome = match attempts.wait(now) {
            Some(wait) => (attempts.reason(), attempts.message().to_owned(), wait),
            None => match self
                .order(name, &directory, known.get(&host.name), &mut attempts)
                .await
            {
                Ok(loaded) => {
                    known.insert(host.name.clone(), loaded);
                    return (None, LOOK_EVERY);
                }
                Err(failure) => {
                    let own = attempts.wait(Timestamp::now());
                    let wait = failure.wait.or(own).unwrap_or(RETRY);
                    (failure.reason, failure.message, wait)
                }
            },
        };
        let (reason, message, wait) = outcome;
        // A certificate that is still good is no reason to be not ready.
        let obstacle = (!known.contains_key(&host.name)).then(|| Obstacle::new(reason, message));
        (obstacle, wait)
    }

    /// How long until a certificate is to be renewed: at a moment of the time that its authority suggests, else when two thirds of its life are over.
    /// `None`: now, or there is none.
    async fn until_renewal(
        &self,
        loaded: Option<&Loaded>,
        wanted: &Wanted,
        now: Timestamp,
    ) -> Option<Duration> {
        let lifetime = &loaded?.lifetime;
        let mut window = None;
        if let Some(id) = &lifetime.renewal_id
            && let Ok(directory) = self.directory(wanted).await
            && let Ok(directory) = directory.parse()
        {
            // An authority that says nothing leaves it to us.
            window = self.node.renewal_window(&directory, id).await.ok().flatten();
        }
        let left = lifetime.renew_at(window).as_second() - now.as_second();
        u64::try_from(left)
            .ok()
            .filter(|left| *left > 0)
            .map(Duration::from_secs)
    }

    /// Whose directory to order from: the one that the spec names, else that of the control server's own authority, else Let's Encrypt's.
    async fn directory(&self, wanted: &Wanted) -> Result<String, String> {
        if let Some(directory) = &wanted.directory {
            return Ok(directory.clone());
        }
        let Ok(control) = wanted.control_server.parse() else {
            return Ok(LETS_ENCRYPT.to_owned());
        };
        match self.node.authority(&control).await {
            Ok(own) => Ok(own.map_or_else(|| LETS_ENCRYPT.to_owned(), String::from)),
            Err(error) => Err(format!("{error}. It is tried again.")),
        }
    }

    /// Orders a certificate, and stores it before it is served.
    async fn order(
        &self,
        name: &str,
        directory: &str,
        old: Option<&Loaded>,
        attempts: &mut Attempts,
    ) -> Result<Loaded, Failure> {
        if old.is_none() {
            let text = format!("A certificate for {name} is being ordered from {directory}.");
            let (condition, reason) = (
                ConditionType::CertificateReady,
                IdentityReason::CertificatePending,
            );
            self.step
                .send_replace(Some(Step::blocked(condition, reason, text)));
        }
        let replaces = old.and_then(|old| old.lifetime.renewal_id.as_deref());
        let ordered = tokio::select! {
            () = self.fence.cancelled() => return Err(Failure::new(IdentityReason::Draining, "Another pod takes over.")),
            ordered = self.issuer.order(&self.node, directory, name, replaces) => ordered,
        };
        let stored = match ordered {
            Ok(certificate) => {
                let (chain, key) = (certificate.chain_pem.as_bytes(), certificate.key_pem.as_bytes());
                let loaded = Loaded::read(chain, key, name, Timestamp::now()).map_err(|error| {
                    Failure::new(
                        IdentityReason::CertificateInvalid,
                        format!("{directory}: {error}."),
                    )
                })?;
                let patch = json!({"data": {
                    format!("{name}.crt"): BASE64_STANDARD.encode(chain),
                    format!("{name}.key"): BASE64_STANDARD.encode(key),
                    Attempts::KEY: null,
                }});
                info!(name, expires = %loaded.lifetime.expires, "a certificate was issued");
                self.store(patch).await.map(|()| loaded)
            }
            Err(error) => {
                let (reason, message) = explain(&error, name);
                if let IssueError::Paused { left } = error {
                    // Nothing was ordered, so nothing has failed.
                    let wait = Some(left);
                    return Err(Failure {
                        reason,
                        message,
                        wait,
                    });
                }
                warn!(name, message, "no certificate was issued");
                let pause = match &error {
                    IssueError::Acme(tailwharf_node::acme::AcmeError::Refused { retry_after, .. }) => {
                        *retry_after
                    }
                    _ => None,
                };
                attempts.failed(
                    reason,
                    &message,
                    Timestamp::now(),
                    pause,
                    rand::thread_rng().r#gen(),
                );
                let patch = json!({"data": {Attempts::KEY: BASE64_STANDARD.encode(attempts.to_json())}});
                if let Err(error) = self.store(patch).await {
                    warn!(%error, "the pause before the next order could not be stored");
                }
                return Err(Failure::new(reason, message));
            }
        };
        stored.map_err(|error| {
            let text = format!("The certificate for {name} could not be stored: {error}. It is tried again.");
            Failure::new(IdentityReason::SecretUnavailable, text)
        })
    }

    /// Writes to the Secret of the identity, as long as this pod hosts it. A certificate is worth some patience.
    async fn store(&self, patch: serde_json::Value) -> Result<(), ApiError> {
        const ATTEMPTS: usize = 5;
        let name = secret_name(&self.identity);
        let mut attempt = 1;
        loop {
            if self.fence.is_cancelled() {
                return Err(ApiError::Conflict);
            }
            match self.cluster.patch_secret(&name, patch.clone()).await {
                Ok(_) => return Ok(()),
                Err(error) if attempt == ATTEMPTS => return Err(error),
                Err(_) => attempt += 1,
            }
            // Ends early only with the fence, which the next round sees.
            let _ = timeout(RETRY, self.fence.cancelled()).await;
        }
    }
}

/// Waits until the node's name or the names that it may have certificates for change.
async fn concerns(status: &mut watch::Receiver<NodeStatus>) {
    let seen = |status: &NodeStatus| (status.fqdn.clone(), status.cert_domains.clone());
    let before = seen(&status.borrow());
    if status.wait_for(|status| seen(status) != before).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The certificate at `<key>.crt` and `<key>.key`; `None` when it is not there.
fn load(data: &Data, key: &str, name: &str) -> Option<Result<Loaded, CertificateError>> {
    let value = |suffix: &str| {
        data.get(&format!("{key}.{suffix}"))
            .map(|value| value.0.as_slice())
    };
    Some(Loaded::read(value("crt")?, value("key")?, name, Timestamp::now()))
}

fn summary(obstacles: &[Obstacle], good: usize, wanted: usize) -> Step {
    match obstacles.first() {
        None => Step::done(
            ConditionType::CertificateReady,
            format!("{good} of {wanted} names have a certificate."),
        ),
        Some(first) => Step::blocked(
            ConditionType::CertificateReady,
            first.reason,
            first.message.clone(),
        ),
    }
}

/// An error as the beginning of a sentence.
fn capital(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_uppercase().collect::<String>());
    first.unwrap_or_default() + chars.as_str()
}

/// A failure as the condition tells it.
fn explain(error: &IssueError, name: &str) -> (IdentityReason, String) {
    use tailwharf_node::acme::{AcmeError, RATE_LIMITED};
    let again = "It is tried again, with growing pauses.";
    match error {
        IssueError::Account { .. } | IssueError::Damaged { .. } => {
            (IdentityReason::SecretUnavailable, format!("{error}. {again}"))
        }
        IssueError::Directory(_) => (
            IdentityReason::CertificateRefused,
            format!("{error}. Correct it."),
        ),
        IssueError::Paused { .. } => (
            IdentityReason::CertificateRateLimited,
            format!("{}; {name} is ordered after it.", capital(&error.to_string())),
        ),
        IssueError::Acme(acme) => match acme {
            AcmeError::Name { .. } => (
                IdentityReason::CertificatesDisabled,
                format!(
                    "The control server gives the device no certificate for {name}. Turn on HTTPS certificates for the tailnet."
                ),
            ),
            AcmeError::Record(source) => (
                IdentityReason::DnsRecordRefused,
                format!(
                    "The control server did not set the DNS record that proves {name}: {source}. {again}"
                ),
            ),
            AcmeError::Refused {
                retry_after: Some(pause),
                detail,
                ..
            } => (
                IdentityReason::CertificateRateLimited,
                format!(
                    "The certificate authority wants a pause of {} s: {detail}.",
                    pause.as_secs()
                ),
            ),
            AcmeError::Refused { kind, detail, .. } if kind == RATE_LIMITED => (
                IdentityReason::CertificateRateLimited,
                format!("The certificate authority wants fewer orders: {detail}. {again}"),
            ),
            AcmeError::Exchange { source, .. } => (
                IdentityReason::CertificateAuthorityUnreachable,
                format!("{}: {source}. {again}", capital(&acme.to_string())),
            ),
            AcmeError::TimedOut => (
                IdentityReason::CertificateAuthorityUnreachable,
                format!("{}. {again}", capital(&acme.to_string())),
            ),
            _ => (
                IdentityReason::CertificateRefused,
                format!("{}. {again}", capital(&acme.to_string())),
            ),
        },
    }
}

#[cfg(test)]
mod tests {
    use tailwharf_node::acme::AcmeError;

    use super::*;

    #[test]
    fn a_record_that_the_control_server_does_not_set_is_told_in_its_words() {
        let words = "`_acme-challenge.web.tail1.ts.net` is not a name of this node";
        let error = IssueError::Acme(AcmeError::Record(words.into()));
        let (reason, message) = explain(&error, "web.tail1.ts.net");
        assert_eq!(reason, IdentityReason::DnsRecordRefused);
        assert!(
            message.contains(words) && message.contains("tried again"),
            "{message}"
        );
    }
}
