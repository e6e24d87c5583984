//! What `tailwharf doctor` says about installations that are in order, and about those that are not.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tailwharf_kube_types::{Parent, ParentKind};
use tailwharf_plan::doctor::{Control, Definition, Facts, Grade, diagnose};

fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn deployment(arguments: &[&str], ready: i32) -> Value {
    json!({
        "metadata": {"name": "operator"},
        "spec": {"replicas": 1, "selector": {}, "template": {"spec": {"containers": [{
            "name": "operator", "args": arguments, "env": [{"name": "OPERATOR_INITIAL_TAGS", "value": "tag:k8s-operator"}],
        }]}}},
        "status": {"readyReplicas": ready},
    })
}

fn pool(ready: i32, wanted: i32) -> Value {
    let parent = Parent {
        kind: ParentKind::Pool,
        namespace: "tailscale".to_owned(),
        name: "default".to_owned(),
    };
    json!({
        "metadata": {"name": "tailwharf-default", "labels": parent.labels()},
        "spec": {"replicas": wanted, "selector": {}, "template": {}, "serviceName": ""},
        "status": {"replicas": wanted, "readyReplicas": ready},
    })
}

fn identity(path: &str, ready: &str, message: &str) -> Value {
    json!({
        "apiVersion": "tailwharf.dev/v1alpha1", "kind": "Identity",
        "metadata": {"name": "ts-web", "labels": Parent::service("shop", "web").labels()},
        "spec": {"hostname": "web", "tags": [], "pool": "default", "loginServer": "http://control"},
        "status": {"host": "tailwharf-default-0", "path": path, "conditions": [{
            "type": "Ready", "status": ready, "reason": "Ready", "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]},
    })
}

fn healthy() -> Facts {
    Facts {
        namespace: "tailscale".to_owned(),
        now: "2026-01-01T00:00:05Z".parse().unwrap(),
        version: Ok((1, 36)),
        definitions: vec![("identities.tailwharf.dev".to_owned(), Definition::Served)],
        rights: Ok(vec![("list services".to_owned(), true)]),
        deployments: Ok(vec![read(deployment(&["operator"], 1))]),
        lease: Some(read(json!({"spec": {
            "holderIdentity": "operator-7d4-x", "renewTime": "2026-01-01T00:00:00.000000Z", "leaseDurationSeconds": 15,
        }}))),
        stateful_sets: Ok(vec![read(pool(2, 2))]),
        identities: Ok(vec![read(identity("Direct", "True", ""))]),
        control: Some(Control::GivesKeys {
            tags: "tag:k8s".to_owned(),
        }),
    }
}

/// What is different in a case.
type Change = fn(&mut Facts);

#[test]
fn what_is_in_order_is_told_in_a_line_each() {
    let diagnosis = diagnose(&healthy());
    assert_eq!(diagnosis.worst(), Grade::Good, "{diagnosis}");
    assert_eq!(
        diagnosis.to_string(),
        "cluster        ok       Kubernetes 1.36\n\
         definitions    ok       all 1 are served\n\
         rights         ok       the operator's account has all 1\n\
         operator       ok       1 pods are ready, operator-7d4-x leads\n\
         pools          ok       2 pods of tailwharf-default are ready\n\
         devices        ok       all 1 are ready\n\
         paths          ok       1 devices are reached directly, 0 through a relay\n\
         control server ok       it gives keys for tag:k8s\n"
    );
}

#[test]
fn each_fault_is_told_with_the_next_step() {
    let cases: [(&str, Change); 13] = [
        ("Kubernetes 1.20 is older", |facts| facts.version = Ok((1, 20))),
        ("it does not answer", |facts| {
            facts.version = Err("refused".to_owned());
        }),
        ("is not installed", |facts| {
            facts.definitions[0].1 = Definition::Missing;
        }),
        ("is served as v1 only", |facts| {
            facts.definitions[0].1 = Definition::OtherVersion("v1".to_owned());
        }),
        ("may not list services", |facts| {
            facts.rights = Ok(vec![("list services".to_owned(), false)]);
        }),
        ("no Deployment in namespace", |facts| {
            facts.deployments = Ok(Vec::new());
        }),
        ("no pod of Deployment operator is ready", |facts| {
            facts.deployments = Ok(vec![read(deployment(&["operator"], 0))]);
        }),
        ("nobody leads", |facts| facts.lease = None),
        ("nobody leads", |facts| {
            facts.now = "2026-01-01T00:01:00Z".parse().unwrap();
        }),
        ("none of 2 pods", |facts| {
            facts.stateful_sets = Ok(vec![read(pool(0, 2))]);
        }),
        ("there is no pool", |facts| {
            facts.stateful_sets = Ok(Vec::new());
            facts.identities = Ok(Vec::new());
        }),
        ("which is not there", |facts| facts.stateful_sets = Ok(Vec::new())),
        ("refuses the operator's credentials", |facts| {
            facts.control = Some(Control::Refused {
                message: "unauthorized".to_owned(),
            });
        }),
    ];
    for (text, change) in cases {
        let mut facts = healthy();
        change(&mut facts);
        let diagnosis = diagnose(&facts);
        assert_eq!(diagnosis.worst(), Grade::Fault, "{text}\n{diagnosis}");
        let fault = diagnosis.0.iter().find(|finding| finding.text.contains(text));
        assert!(
            fault.is_some_and(|fault| fault.next.is_some()),
            "{text}\n{diagnosis}"
        );
    }
}

#[test]
fn what_works_in_part_is_no_fault() {
    let cases: [(&str, Grade, Change); 5] = [
        ("1 of 2 pods", Grade::Warning, |facts| {
            facts.stateful_sets = Ok(vec![read(pool(1, 2))]);
        }),
        ("runs beside it", Grade::Warning, |facts| {
            facts.deployments.as_mut().unwrap().push(read(deployment(&[], 1)));
        }),
        ("tailwharf explain -n shop service/web", Grade::Warning, |facts| {
            facts.identities = Ok(vec![read(identity(
                "Direct",
                "False",
                "The auth key was refused.",
            ))]);
        }),
        ("could not be looked at: forbidden", Grade::Warning, |facts| {
            facts.rights = Err("forbidden".to_owned());
        }),
        ("1 through a relay", Grade::Note, |facts| {
            facts.identities = Ok(vec![read(identity("Relay", "True", ""))]);
        }),
    ];
    for (text, grade, change) in cases {
        let mut facts = healthy();
        change(&mut facts);
        let diagnosis = diagnose(&facts);
        assert_eq!(diagnosis.worst(), grade, "{text}\n{diagnosis}");
        assert!(diagnosis.to_string().contains(text), "{text}\n{diagnosis}");
    }
}
