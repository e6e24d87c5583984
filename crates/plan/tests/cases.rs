//! Golden plans: each folder below `cases/<kind>/` has a `snapshot.yaml`, and the plan that follows from it in `plan.golden`.
//!
//! `UPDATE_GOLDEN=1 cargo test -p tailwharf-plan --test cases` writes the plans; read the difference before you commit it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that fails says where"
)]

mod harness;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use harness::{World, settings};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use tailwharf_plan::egress::Pod;
use tailwharf_plan::ingress::CertificateSecret;
use tailwharf_plan::{Applied, Failure, FailureKind, Kind, ObjectRef, Plan, connector, proxy_class};

/// A `snapshot.yaml`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Case {
    /// What the case shows.
    #[allow(dead_code, reason = "for the reader")]
    about: String,
    now: Timestamp,
    #[serde(default)]
    api_server_proxy: bool,
    #[serde(default)]
    default_load_balancer: bool,
    /// The Service, as `namespace/name`; only for cases of Services.
    #[serde(default)]
    service: String,
    /// The Ingress, as `namespace/name`; only for cases of Ingresses.
    #[serde(default)]
    ingress: String,
    /// What is known of the Secrets with certificates.
    #[serde(default)]
    certificates: BTreeMap<String, CertificateSecret>,
    /// The Connector; only for cases of Connectors.
    #[serde(default)]
    connector: String,
    /// The ProxyClass; only for cases of ProxyClasses.
    #[serde(default)]
    proxy_class: String,
    /// The pool, if it is not the default one.
    #[serde(default)]
    pool: Option<String>,
    /// What is in the cluster.
    #[serde(default)]
    objects: Vec<Value>,
    /// How execution fails, after how many steps.
    #[serde(default)]
    failure: Option<CaseFailure>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CaseFailure {
    done: usize,
    kind: String,
    message: String,
}

impl Case {
    fn applied(&self, plan: &Plan) -> Applied {
        match &self.failure {
            None => Applied::complete(plan.steps.len()),
            Some(failure) => Applied::stopped(failure.done, failure.failure()),
        }
    }
}

impl CaseFailure {
    fn failure(&self) -> Failure {
        let kind = match self.kind.as_str() {
            "conflict" => FailureKind::Conflict,
            "control_server_unreachable" => FailureKind::ControlServerUnreachable,
            "control_server_refused" => FailureKind::ControlServerRefused,
            "auth_key_refused" => FailureKind::AuthKeyRefused {
                tags: vec!["tag:web".parse().unwrap()],
            },
            other => panic!("no such kind of failure: {other}"),
        };
        Failure {
            kind,
            message: self.message.clone(),
        }
    }
}

#[test]
fn services() {
    each("service", |case, world| {
        let settings = tailwharf_plan::Settings {
            default_load_balancer: case.default_load_balancer,
            ..settings()
        };
        let (namespace, name) = case.service.split_once('/').unwrap();
        let snapshot = world.service_snapshot(namespace, name, &settings);
        let validated = tailwharf_plan::service::validate(&snapshot, &settings);
        let plan = match &validated {
            Ok(validated) => tailwharf_plan::service::build(validated, &settings, case.now),
            Err(_) => Plan::default(),
        };
        let applied = case.applied(&plan);
        let status =
            tailwharf_plan::service::status(&snapshot, &validated, &plan, &applied, &settings, case.now);
        json!({"plan": plan, "status": status})
    });
}

#[test]
fn ingresses() {
    each("ingress", |case, mut world| {
        use tailwharf_plan::ingress::{build, status, validate};
        let settings = settings();
        world.certificates = case.certificates.clone();
        let (namespace, name) = case.ingress.split_once('/').unwrap();
        let snapshot = world.ingress_snapshot(namespace, name, &settings);
        let validated = validate(&snapshot, &settings, case.now);
        let plan = build(&validated, &settings, case.now);
        let applied = case.applied(&plan);
        let status = status(&snapshot, &validated, &plan, &applied, &settings, case.now);
        json!({"plan": plan, "status": status})
    });
}

#[test]
fn connectors() {
    each("connector", |case, world| {
        let settings = settings();
        let snapshot = world.connector_snapshot(&case.connector);
        let validated = connector::validate(&snapshot, &settings);
        let plan = match &validated {
            Ok(validated) => connector::build(validated, &settings, case.now),
            Err(_) => Plan::default(),
        };
        let status = connector::status(&snapshot, &validated, &plan, &case.applied(&plan), case.now);
        json!({"plan": plan, "status": status})
    });
}

#[test]
fn proxy_classes() {
    each("proxy-class", |case, world| {
        let snapshot = world.class_snapshot(&case.proxy_class);
        let validated = proxy_class::validate(&snapshot);
        let plan = proxy_class::build(&snapshot);
        json!({"plan": plan, "status": proxy_class::status(&snapshot, &validated, case.now)})
    });
}

#[test]
fn pools() {
    each("pool", |case, world| {
        let pool = case.pool.as_deref().unwrap_or("default");
        json!({"plan": tailwharf_plan::pool::build(&world.pool_snapshot(pool), &settings())})
    });
}

#[test]
fn nameservers() {
    use tailwharf_plan::nameserver::{build, status};
    each("nameserver", |case, world| {
        let snapshot = world.nameserver_snapshot();
        let plan = build(&snapshot, &settings());
        let applied = Applied::complete(plan.steps.len());
        json!({"status": status(&snapshot, &applied, case.now), "plan": plan})
    });
}

#[test]
fn the_operators_device() {
    each("operator-device", |case, mut world| {
        let settings = tailwharf_plan::Settings {
            api_server_proxy: case.api_server_proxy,
            ..settings()
        };
        json!({"plan": world.reconcile_operator(&settings, case.now, 0)})
    });
}

fn each(kind: &str, plan: impl Fn(&Case, World) -> Value) {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut wrong = Vec::new();
    let folders = folders(kind);
    assert!(!folders.is_empty(), "no cases of {kind}");
    for folder in folders {
        let text = fs::read_to_string(folder.join("snapshot.yaml")).unwrap();
        let case: Case =
            serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let found = serde_saphyr::to_string(&plan(&case, world(&case.objects))).unwrap();
        let golden = folder.join("plan.golden");
        if update {
            fs::write(&golden, &found).unwrap();
        } else if fs::read_to_string(&golden).ok().as_deref() != Some(&found) {
            wrong.push(format!("{}:\n{found}", folder.display()));
        }
    }
    assert!(
        wrong.is_empty(),
        "plans differ from their golden files:\n{}",
        wrong.join("\n")
    );
}

fn folders(kind: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases").join(kind);
    let mut folders: Vec<_> = fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    folders.sort();
    folders
}

fn world(objects: &[Value]) -> World {
    let mut world = World::default();
    for object in objects {
        // Those of the operator are objects like others.
        if object["kind"] == "EndpointSlice"
            && object["metadata"]["labels"]["tailscale.com/managed"].is_null()
        {
            world
                .endpoints
                .push(serde_json::from_value(object.clone()).unwrap());
            continue;
        }
        if object["kind"] == "Namespace" || object["kind"] == "Pod" {
            put_pod(&mut world, object);
            continue;
        }
        let kind: Kind = serde_json::from_value(object["kind"].clone()).unwrap();
        let text = |field: &str| {
            object["metadata"][field]
                .as_str()
                .unwrap_or(harness::NAMESPACE)
                .to_owned()
        };
        let object_ref = match kind {
            Kind::Connector | Kind::ProxyClass => ObjectRef::cluster(kind, &text("name")),
            _ => ObjectRef::new(kind, &text("namespace"), &text("name")),
        };
        world.put(object_ref, object.clone());
    }
    world
}

/// A pod, or a namespace of pods.
fn put_pod(world: &mut World, object: &Value) {
    let pods = world.pods.get_or_insert_default();
    if object["kind"] == "Pod" {
        let pod = serde_json::from_value(object.clone()).unwrap();
        pods.pods.push(Arc::new(Pod::of(pod)));
    } else {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let labels = serde_json::from_value(object["metadata"]["labels"].clone()).unwrap();
        pods.namespaces.insert(name, Arc::new(labels));
    }
}
