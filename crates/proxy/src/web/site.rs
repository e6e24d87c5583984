//! What a device serves now, as one value that is replaced as a whole.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tailwharf_kube_types::identity::web::{HostName, PlainHttp, Web as Spec};

use super::forward::RESPONSE_TIMEOUT;
use super::router::Router;
use super::upstream::Upstream;

/// What a device serves.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) router: Router,
    pub(super) upstreams: Vec<Arc<Upstream>>,
    hosts: Vec<HostName>,
    /// Port 80 sends clients to HTTPS.
    pub(super) redirect: bool,
    pub(super) max_body: Option<u64>,
    pub(super) response_timeout: Duration,
    pub(super) access_log: bool,
}

impl Site {
    /// What the spec asks for. `device` is the device's own full name, `old` what was served before.
    #[must_use]
    pub(super) fn new(spec: &Spec, device: Option<&str>, old: &Self) -> Self {
        let known: BTreeMap<&str, &Arc<Upstream>> = old
            .upstreams
            .iter()
            .map(|upstream| (&*upstream.name, upstream))
            .collect();
        let upstreams: Vec<Arc<Upstream>> = spec
            .backends
            .iter()
            .map(|backend| Upstream::new(backend, known.get(backend.name.as_str()).map(|old| &***old)))
            .collect();
        let positions: BTreeMap<&str, usize> = (0..)
            .zip(&spec.backends)
            .map(|(position, backend)| (backend.name.as_str(), position))
            .collect();
        Self {
            router: Router::new(&spec.routes, device, |name| positions.get(name).copied()),
            upstreams,
            hosts: spec.hosts.iter().map(|host| host.name.clone()).collect(),
            redirect: spec.http == PlainHttp::Redirect,
            max_body: spec.max_body_bytes,
            response_timeout: spec
                .response_timeout_seconds
                .map_or(RESPONSE_TIMEOUT, |seconds| Duration::from_secs(seconds.into())),
            access_log: spec.access_log,
        }
    }

    /// The name under which a client that asked for `host` on port 80 is served by HTTPS.
    #[must_use]
    pub(super) fn secure_name<'a>(&'a self, host: &'a str) -> &'a str {
        let device = self.router.device();
        let full = self.router.full_name(host);
        if self.hosts.iter().any(|name| name.matches(full, device)) {
            full
        } else {
            device.unwrap_or(host)
        }
    }
}

/// Where connections find what is served now.
#[derive(Debug)]
pub(super) struct Sites(RwLock<Arc<Site>>);

impl Sites {
    /// Nothing is served yet.
    #[must_use]
    pub(super) fn empty() -> Arc<Self> {
        Arc::new(Self(RwLock::new(Arc::new(Site {
            router: Router::default(),
            upstreams: Vec::new(),
            hosts: Vec::new(),
            redirect: false,
            max_body: None,
            response_timeout: RESPONSE_TIMEOUT,
            access_log: false,
        }))))
    }

    /// What is served now.
    #[must_use]
    pub(super) fn current(&self) -> Arc<Site> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Serves this from the next request on.
    pub(super) fn set(&self, site: Site) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(site);
    }
}
