//! The operator's own device, which shows on the tailnet that the operator runs. Where the API-server proxy is on, its pods host the device
//! and serve on it; else the pool does, and it serves nothing.

use std::sync::Arc;

use jiff::Timestamp;
use tailwharf_kube_types::contract::DEFAULT_POOL;
use tailwharf_kube_types::{IdentitySpec, Parent, ParentKind, names};

use crate::identity::{self, Observed, Wanted};
use crate::plan::Plan;
use crate::settings::Settings;

/// The operator as a parent; its labels find what was made for it.
#[must_use]
pub fn parent(settings: &Settings) -> Parent {
    Parent {
        kind: ParentKind::Operator,
        namespace: settings.namespace.clone(),
        name: "operator".to_owned(),
    }
}

/// Plans what is missing to the device, or its removal.
#[must_use]
pub fn build(observed: &Observed, settings: &Settings, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if settings.releasing {
        identity::release(&mut plan, observed, &settings.namespace, false, now);
        return plan;
    }
    let mut observed = observed.clone();
    let mut pool = DEFAULT_POOL;
    if settings.api_server_proxy {
        pool = names::API_SERVER_PROXY_POOL;
        // Its Role is the administrator's and names this one Secret.
        let secret = names::secret_name(names::OPERATOR_IDENTITY);
        Arc::make_mut(&mut observed.granted).set(pool, [secret].into());
    }
    let wanted = Wanted {
        parent: parent(settings),
        name: names::OPERATOR_IDENTITY.to_owned(),
        spec: IdentitySpec {
            hostname: settings.operator_hostname.clone(),
            tags: settings.operator_tags.clone(),
            pool: pool.to_owned(),
            login_server: settings.login_server.clone(),
            ephemeral: false,
            listeners: Vec::new(),
            egress: None,
            web: None,
            router: None,
        },
    };
    identity::provision(&mut plan, &wanted, &observed, &settings.namespace, now);
    plan
}
