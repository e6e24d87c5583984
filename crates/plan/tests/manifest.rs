//! `deploy/operator.yaml` fits what plans ask of the operator.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that fails says where"
)]

mod harness;

use std::fs;
use std::path::Path;

use harness::{World, settings};
use k8s_openapi::api::rbac::v1::PolicyRule;
use serde_json::Value;
use tailwharf_plan::{Kind, Step};

fn documents() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/operator.yaml");
    serde_saphyr::from_multiple(&fs::read_to_string(path).unwrap()).unwrap()
}

/// The rules that hold for the operator in its own namespace.
fn operator_rules() -> Vec<PolicyRule> {
    let roles = documents()
        .into_iter()
        .filter(|document| matches!(document["kind"].as_str(), Some("Role" | "ClusterRole")));
    roles
        .flat_map(|role| serde_json::from_value::<Vec<PolicyRule>>(role["rules"].clone()).unwrap())
        .collect()
}

fn allows(rules: &[PolicyRule], group: &str, resource: &str, verb: &str) -> bool {
    let has = |list: &Option<Vec<String>>, item: &str| list.iter().flatten().any(|listed| listed == item);
    rules.iter().any(|rule| {
        rule.resource_names.is_none()
            && has(&rule.api_groups, group)
            && has(&rule.resources, resource)
            && rule.verbs.iter().any(|allowed| allowed == verb)
    })
}

/// A pool with one Secret, as the operator makes it.
fn pool() -> World {
    let mut world = World::default();
    let name = tailwharf_kube_types::names::OPERATOR_IDENTITY;
    for _ in 0..3 {
        world.reconcile_operator(&settings(), harness::at(0), usize::MAX);
        world.reconcile_pool(&settings(), usize::MAX);
        world.host_reads(name);
        world.host_registers(name, harness::at(0));
    }
    world
}

/// Kubernetes lets nobody give rights that they do not have.
#[test]
fn the_operator_has_every_right_that_it_gives_to_a_pool() {
    let role: k8s_openapi::api::rbac::v1::Role = pool()
        .get(Kind::Role, harness::NAMESPACE, "tailwharf-default")
        .unwrap();
    let operator = operator_rules();
    let given = role.rules.unwrap();
    assert!(
        given.iter().any(|rule| rule.resource_names.is_some()),
        "the pool may read no Secret"
    );
    for rule in given {
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                for verb in &rule.verbs {
                    assert!(
                        allows(&operator, group, resource, verb),
                        "the operator may not {verb} {resource} of {group:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn the_operator_may_carry_out_its_plans() {
    let mut world = World::default();
    let plan = world.reconcile_pool(&settings(), usize::MAX);
    let mut kinds: Vec<Kind> = plan
        .steps
        .iter()
        .map(|step| match step {
            Step::Apply(manifest) => manifest.object.kind,
            other => panic!("{other:?}"),
        })
        .collect();
    kinds.extend([Kind::Secret, Kind::Identity]);
    let operator = operator_rules();
    for kind in kinds {
        let group = kind.api_version().rsplit_once('/').map_or("", |(group, _)| group);
        for verb in ["get", "list", "watch", "create", "patch"] {
            assert!(
                allows(&operator, group, kind.plural(), verb),
                "the operator may not {verb} {}",
                kind.plural()
            );
        }
    }
    for resource in ["secrets", "identities"] {
        let group = if resource == "secrets" {
            ""
        } else {
            "tailwharf.dev"
        };
        assert!(
            allows(&operator, group, resource, "delete"),
            "the operator may not delete {resource}"
        );
    }
}

/// What the admission plugin of PodSecurity `restricted` asks of a pod.
fn assert_restricted(pod: &Value) {
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    for container in pod["containers"].as_array().unwrap() {
        let context = &container["securityContext"];
        assert_eq!(context["allowPrivilegeEscalation"], false);
        assert_eq!(context["capabilities"]["drop"], serde_json::json!(["ALL"]));
        assert_eq!(context["readOnlyRootFilesystem"], true);
    }
}

#[test]
fn pods_are_restricted() {
    let deployment = documents()
        .into_iter()
        .find(|document| document["kind"] == "Deployment")
        .unwrap();
    assert_restricted(&deployment["spec"]["template"]["spec"]);
    let pods: Vec<Value> = pool().of_kind(Kind::StatefulSet);
    assert_restricted(&pods[0]["spec"]["template"]["spec"]);
}
