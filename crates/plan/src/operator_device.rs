//! The operator's own device, which shows on the tailnet that the operator runs. The pool hosts it; it serves nothing.

use jiff::Timestamp;
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

/// Plans what is missing to the device.
#[must_use]
pub fn build(observed: &Observed, settings: &Settings, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let wanted = Wanted {
        parent: parent(settings),
        name: names::OPERATOR_IDENTITY.to_owned(),
        spec: IdentitySpec {
            hostname: settings.operator_hostname.clone(),
            tags: settings.operator_tags.clone(),
            pool: settings.pool.name.clone(),
            login_server: settings.login_server.clone(),
            ephemeral: false,
            listeners: Vec::new(),
            egress: None,
        },
    };
    identity::provision(&mut plan, &wanted, observed, &settings.namespace, now);
    plan
}
