//! Everything that tailwharf has on the tailnet, as a tree for people: what `tailwharf status --cluster` prints.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::apps::v1::StatefulSet;
use tailwharf_kube_types::contract::PARKED_POOL;
use tailwharf_kube_types::{ConditionStatus, ConditionType, Identity, Parent, ParentKind, PathKind, names};

/// Pools, their pods, and the devices on them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overview {
    /// The pools by name.
    pub pools: BTreeMap<String, Pool>,
    /// What gets no device until somebody changes it.
    pub parked: Vec<Row>,
}

/// One pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    /// Pods that are ready, and that are to be; `None`: there is no such pool.
    pub pods: Option<(i32, i32)>,
    /// Devices by the pod that hosts them; those of nobody under an empty name.
    pub hosts: BTreeMap<String, Vec<Row>>,
}

/// One device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    /// For what it is, in the words of kubectl.
    pub object: String,
    /// Full name, or the name asked for.
    pub name: String,
    /// Its first address.
    pub address: String,
    /// How packets travel to it.
    pub path: &'static str,
    /// `None` if it is ready; else why it is not.
    pub waits_for: Option<String>,
}

impl Overview {
    /// Puts the tree together.
    #[must_use]
    pub fn of(identities: &[Identity], sets: &[StatefulSet]) -> Self {
        let mut overview = Self::default();
        for set in sets {
            let pool = set
                .metadata
                .name
                .as_deref()
                .and_then(|name| pool_of_set(name, set));
            let Some(pool) = pool else { continue };
            let ready = set.status.as_ref().and_then(|status| status.ready_replicas);
            let wanted = set.spec.as_ref().and_then(|spec| spec.replicas);
            overview.pools.entry(pool).or_default().pods = Some((ready.unwrap_or(0), wanted.unwrap_or(1)));
        }
        for identity in identities {
            let row = row(identity);
            if identity.spec.pool == PARKED_POOL {
                overview.parked.push(row);
                continue;
            }
            let host = identity.status.as_ref().and_then(|status| status.host.clone());
            let pool = overview.pools.entry(identity.spec.pool.clone()).or_default();
            pool.hosts.entry(host.unwrap_or_default()).or_default().push(row);
        }
        let hosts = overview
            .pools
            .values_mut()
            .flat_map(|pool| pool.hosts.values_mut());
        hosts.chain([&mut overview.parked]).for_each(|rows| rows.sort());
        overview
    }

    /// Whether every device is ready and every pool has all its pods.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let pods = |pool: &Pool| pool.pods.is_some_and(|(ready, wanted)| ready >= wanted);
        let devices = |pool: &Pool| pool.hosts.values().flatten().all(|row| row.waits_for.is_none());
        self.parked.is_empty() && self.pools.values().all(|pool| pods(pool) && devices(pool))
    }
}

/// The pool of a StatefulSet of tailwharf.
fn pool_of_set(name: &str, set: &StatefulSet) -> Option<String> {
    let parent = Parent::from_labels(set.metadata.labels.as_ref()?)?;
    let is_pool = parent.kind == ParentKind::Pool && names::pool_objects_name(&parent.name) == name;
    is_pool.then_some(parent.name)
}

fn row(identity: &Identity) -> Row {
    let status = identity.status.clone().unwrap_or_default();
    let parent = identity.metadata.labels.as_ref().and_then(Parent::from_labels);
    let object = match &parent {
        Some(Parent {
            kind,
            namespace,
            name,
        }) => match kind {
            ParentKind::Service => format!("service/{name} ({namespace})"),
            ParentKind::Operator => "the operator itself".to_owned(),
            ParentKind::Connector => format!("connector/{name}"),
            _ => format!("{}/{name} ({namespace})", kind.as_str()),
        },
        None => identity.metadata.name.clone().unwrap_or_default(),
    };
    Row {
        object,
        name: status
            .fqdn
            .clone()
            .unwrap_or_else(|| identity.spec.hostname.to_string()),
        address: status
            .addresses
            .first()
            .map(ToString::to_string)
            .unwrap_or_default(),
        path: match status.path {
            Some(PathKind::Direct) => "direct",
            Some(PathKind::Relay) => "relay",
            None => "",
        },
        waits_for: match (
            status.step(ConditionType::Ready),
            status.condition(ConditionType::Ready),
        ) {
            ((ConditionStatus::True, _), _) => None,
            (_, Some(ready)) if !ready.message.is_empty() => Some(ready.message.clone()),
            _ => Some("not hosted yet".to_owned()),
        },
    }
}

impl fmt::Display for Overview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pools.is_empty() && self.parked.is_empty() {
            return f.write_str("no pool and no device\n");
        }
        let every = || {
            let hosts = self.pools.values().flat_map(|pool| pool.hosts.values().flatten());
            hosts.chain(&self.parked)
        };
        let width = |of: fn(&Row) -> &str| every().map(|row| of(row).chars().count()).max().unwrap_or(0);
        let widths = (
            width(|row| &row.object),
            width(|row| &row.name),
            width(|row| &row.address),
        );
        for (name, pool) in &self.pools {
            match pool.pods {
                Some((ready, wanted)) => writeln!(f, "pool {name}: {ready} of {wanted} pods ready")?,
                None => writeln!(f, "pool {name}: there is no such pool")?,
            }
            for (index, (host, rows)) in pool.hosts.iter().enumerate() {
                let is_last = index + 1 == pool.hosts.len();
                let host = if host.is_empty() { "no pod" } else { host };
                writeln!(f, "{} {host}", if is_last { "└─" } else { "├─" })?;
                rows_below(f, if is_last { "   " } else { "│  " }, rows, widths)?;
            }
        }
        if !self.parked.is_empty() {
            writeln!(f, "without a device until they are changed")?;
            rows_below(f, "", &self.parked, widths)?;
        }
        Ok(())
    }
}

fn rows_below(
    f: &mut fmt::Formatter<'_>,
    indent: &str,
    rows: &[Row],
    (objects, names, addresses): (usize, usize, usize),
) -> fmt::Result {
    for (index, row) in rows.iter().enumerate() {
        let branch = if index + 1 == rows.len() {
            "└─"
        } else {
            "├─"
        };
        let Row {
            object,
            name,
            address,
            path,
            waits_for,
        } = row;
        let state = waits_for.as_deref().unwrap_or("ready");
        let line = format!("{object:objects$}  {name:names$}  {address:addresses$}  {path:6}  {state}");
        writeln!(f, "{indent}{branch} {}", line.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn identity(name: &str, parent: &Parent, pool: &str, status: &serde_json::Value) -> Identity {
        serde_json::from_value(json!({
            "apiVersion": "tailwharf.dev/v1alpha1", "kind": "Identity",
            "metadata": {"name": name, "labels": parent.labels()},
            "spec": {"hostname": name, "tags": [], "pool": pool, "loginServer": "http://control"},
            "status": status,
        }))
        .unwrap()
    }

    fn ready(status: &str, message: &str) -> serde_json::Value {
        json!([{
            "type": "Ready", "status": status, "reason": "Ready", "message": message,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }])
    }

    fn pool(ready: i32, wanted: i32) -> StatefulSet {
        let parent = Parent {
            kind: ParentKind::Pool,
            namespace: "tailscale".to_owned(),
            name: "default".to_owned(),
        };
        serde_json::from_value(json!({
            "metadata": {"name": "tailwharf-default", "labels": parent.labels()},
            "spec": {"replicas": wanted, "selector": {}, "template": {}, "serviceName": ""},
            "status": {"replicas": wanted, "readyReplicas": ready},
        }))
        .unwrap()
    }

    #[test]
    fn the_tree_says_who_hosts_what_and_what_is_waited_for() {
        let identities = [
            identity(
                "web",
                &Parent::service("shop", "web"),
                "default",
                &json!({
                    "fqdn": "shop-web.tail.ts.net", "addresses": ["100.64.0.7"], "host": "tailwharf-default-0", "path": "Direct",
                    "conditions": ready("True", ""),
                }),
            ),
            identity(
                "db",
                &Parent::service("shop", "db"),
                "default",
                &json!({
                    "host": "tailwharf-default-0", "conditions": ready("False", "The auth key was refused."),
                }),
            ),
            identity("new", &Parent::ingress("shop", "new"), "default", &json!({})),
            identity(
                "bad",
                &Parent::ingress("shop", "bad"),
                "none",
                &json!({"conditions": ready("False", "Two hosts.")}),
            ),
        ];
        let overview = Overview::of(&identities, &[pool(1, 2)]);
        assert!(!overview.is_whole());
        assert_eq!(
            overview.to_string(),
            "pool default: 1 of 2 pods ready\n\
             ├─ no pod\n\
             │  └─ ingress/new (shop)  new                                       not hosted yet\n\
             └─ tailwharf-default-0\n\
             \u{20}  ├─ service/db (shop)   db                                        The auth key was refused.\n\
             \u{20}  └─ service/web (shop)  shop-web.tail.ts.net  100.64.0.7  direct  ready\n\
             without a device until they are changed\n\
             └─ ingress/bad (shop)  bad                                       Two hosts.\n"
        );
    }

    #[test]
    fn all_is_whole_when_pods_and_devices_are_ready() {
        let web = identity(
            "web",
            &Parent::service("shop", "web"),
            "default",
            &json!({"conditions": ready("True", "")}),
        );
        assert!(Overview::of(std::slice::from_ref(&web), &[pool(2, 2)]).is_whole());
        assert!(!Overview::of(&[web], &[]).is_whole(), "there is no pool");
        assert_eq!(Overview::of(&[], &[]).to_string(), "no pool and no device\n");
    }
}
