//! What is wrong with an Ingress.

use jiff::Timestamp;
use tailwharf_kube_types::contract::annotation;
use tailwharf_kube_types::identity::web::{MAX_HOSTS, MAX_ROUTES, MAX_WEB_BACKENDS};
use tailwharf_kube_types::values::{HostnameError, TagError};
use thiserror::Error;

use crate::class::ClassProblem;

/// What the user has to change. Some make an Ingress useless; with others a part of it is served.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// The first TLS host begins with no valid name.
    #[error("spec.tls[0].hosts[0]: {error}")]
    Hostname {
        /// What is wrong.
        error: HostnameError,
    },
    /// Without TLS hosts, namespace and name make no valid name.
    #[error("{error}; set spec.tls[0].hosts[0] to the name that the device is to have")]
    DefaultHostname {
        /// What is wrong.
        error: HostnameError,
    },
    /// An older Ingress has the name.
    #[error(
        "the name {hostname:?} is that of Ingress {namespace}/{name}, which is older: choose another for spec.tls[0].hosts[0], or remove that Ingress"
    )]
    HostnameTaken {
        /// The name.
        hostname: String,
        /// Namespace of the holder.
        namespace: String,
        /// Name of the holder.
        name: String,
    },
    /// The annotation for the tags is not valid.
    #[error("annotation {}: {error}", annotation::TAGS)]
    Tags {
        /// What is wrong.
        error: TagError,
    },
    /// The ProxyClass cannot be used now.
    #[error("{0}")]
    Class(ClassProblem),
    /// An annotation has a value that it cannot have.
    #[error("annotation {annotation}: {value:?} is not valid: use {expected}")]
    Annotation {
        /// Which.
        annotation: &'static str,
        /// What was given.
        value: String,
        /// What may be given.
        expected: &'static str,
    },
    /// Several Identities carry the labels of this Ingress.
    #[error("several Identities claim this Ingress: delete all but one of {}", names.join(", "))]
    SeveralIdentities {
        /// Their names.
        names: Vec<String>,
    },
    /// Nothing is to be served.
    #[error("no path leads to a Service: set spec.defaultBackend, or paths with Services under spec.rules")]
    NoBackends,
    /// No host would be served.
    #[error(
        "no host has a certificate, and annotation {} leaves out the device's own name",
        annotation::OWN_DOMAINS_ONLY
    )]
    NoHosts,
    /// More than one device serves.
    #[error(
        "{count} {what} are too many for one device: use at most {MAX_HOSTS} hosts, {MAX_ROUTES} paths and {MAX_WEB_BACKENDS} Services, or several Ingresses"
    )]
    TooMany {
        /// What.
        what: &'static str,
        /// How many.
        count: usize,
    },

    // With these, the rest is served.
    /// A rule is for a host that is not served.
    #[error(
        "the rule for host {host:?} is left out: list the host under spec.tls, with a Secret for its certificate"
    )]
    RuleHost {
        /// The host.
        host: String,
    },
    /// A path cannot be served.
    #[error("path {path:?} is left out: begin it with '/', and use at most 1024 characters")]
    Path {
        /// The beginning of the path.
        path: String,
    },
    /// A backend that is no Service.
    #[error("the backend of path {path:?} is left out: it has to be a Service")]
    ResourceBackend {
        /// The path.
        path: String,
    },
    /// A Service is missing.
    #[error("Service {service:?} does not exist in the Ingress's namespace: create it, or name another")]
    NoService {
        /// Its name.
        service: String,
    },
    /// A Service has no such port.
    #[error("Service {service:?} has no port {port}: it has {}", ports.join(", "))]
    NoPort {
        /// Name of the Service.
        service: String,
        /// Name or number of the port.
        port: String,
        /// The ports that it has.
        ports: Vec<String>,
    },
    /// A Service leads nowhere.
    #[error("no endpoint of Service {service:?} is ready: check its pods and its selector")]
    NoEndpoint {
        /// Name of the Service.
        service: String,
    },
    /// A host without a certificate.
    #[error("host {host:?} is not served: set spec.tls[].secretName to the Secret with its certificate")]
    NoCertificate {
        /// The host.
        host: String,
    },
    /// The Secret with a certificate is missing.
    #[error(
        "Secret {secret:?} with the certificate of {host:?} does not exist in the Ingress's namespace: create it"
    )]
    CertificateMissing {
        /// Name of the Secret.
        secret: String,
        /// A host that it is for.
        host: String,
    },
    /// The operator may not read the Secret with a certificate.
    #[error("the operator may not read Secret {secret:?}: give it the right, as deploy/operator.yaml does")]
    CertificateForbidden {
        /// Name of the Secret.
        secret: String,
    },
    /// A certificate cannot be used.
    #[error("Secret {secret:?}: {fault}{}", if *kept { "; the certificate of before stays in use" } else { "" })]
    CertificateInvalid {
        /// Name of the Secret.
        secret: String,
        /// What is wrong.
        fault: String,
        /// Whether an earlier one is served in its place.
        kept: bool,
    },
    /// A certificate has ended or not begun.
    #[error("Secret {secret:?}: the certificate is good from {from} to {to} only: renew it{}", if *kept { "; the one of before stays in use" } else { "" })]
    CertificateExpired {
        /// Name of the Secret.
        secret: String,
        /// Its first moment.
        from: Timestamp,
        /// Its last.
        to: Timestamp,
        /// Whether an earlier one is served in its place.
        kept: bool,
    },
    /// A certificate is not for a host.
    #[error(
        "the certificate in Secret {secret:?} is not for {host:?} but for {}: put one for it there{}",
        names.join(", "),
        if *kept { "; the one of before stays in use" } else { "" }
    )]
    CertificateNames {
        /// Name of the Secret.
        secret: String,
        /// The host.
        host: String,
        /// What it is for, the first few.
        names: Vec<String>,
        /// Whether an earlier one is served in its place.
        kept: bool,
    },
    /// An annotation that has no effect.
    #[error(
        "annotation {} has no effect: pods reach the device by its Service, or by an egress Service of their own",
        annotation::FORWARD_CLUSTER_TRAFFIC
    )]
    NoForwarding,
}

impl Problem {
    /// Reason of the event and of the condition. The words are those of the contract where it has one.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Hostname { .. }
            | Self::DefaultHostname { .. }
            | Self::Tags { .. }
            | Self::Class(_)
            | Self::Annotation { .. }
            | Self::SeveralIdentities { .. }
            | Self::NoHosts
            | Self::TooMany { .. }
            | Self::NoForwarding => "InvalidIngressConfiguration",
            Self::HostnameTaken { .. } => "HostnameTaken",
            Self::NoBackends => "NoValidBackends",
            Self::RuleHost { .. }
            | Self::Path { .. }
            | Self::ResourceBackend { .. }
            | Self::NoService { .. }
            | Self::NoPort { .. }
            | Self::NoEndpoint { .. } => "InvalidIngressBackend",
            Self::NoCertificate { .. } | Self::CertificateMissing { .. } => "CertificateMissing",
            Self::CertificateForbidden { .. } => "CertificateForbidden",
            Self::CertificateInvalid { .. }
            | Self::CertificateExpired { .. }
            | Self::CertificateNames { .. } => "CertificateInvalid",
        }
    }
}
