//! The operator against a real kube-apiserver, with its real rights (`deploy/operator.yaml`), and a tailnet in memory.
//! No controller and no proxy runs: [`bed::Bed::host`] plays the proxy.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod bed;
mod connectors;
mod egress;
mod faults;
mod ingress;
mod kinds;
mod life;
mod migrate;
mod rights;

use std::process::ExitCode;

use tailwharf_testkit::requirements::Need;

use bed::Bed;

fn main() -> ExitCode {
    // RUST_LOG=tailwharf_operator=debug shows what the operators do.
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    tailwharf_e2e::run(
        &[Need::ApiServer],
        Bed::start,
        &[
            (
                "a_service_gets_a_device_and_loses_it",
                life::a_service_gets_a_device_and_loses_it,
            ),
            (
                "an_exposed_service_costs_six_requests",
                life::an_exposed_service_costs_six_requests,
            ),
            (
                "a_restart_over_a_hundred_services_writes_nothing",
                life::a_restart_over_a_hundred_services_writes_nothing,
            ),
            (
                "a_standby_takes_over_when_the_leader_stops",
                life::a_standby_takes_over_when_the_leader_stops,
            ),
            (
                "an_egress_service_leads_to_its_host",
                egress::an_egress_service_leads_to_its_host,
            ),
            (
                "only_some_pods_may_use_a_service",
                egress::only_some_pods_may_use_a_service,
            ),
            (
                "an_ingress_gets_a_device_and_loses_it",
                ingress::an_ingress_gets_a_device_and_loses_it,
            ),
            (
                "a_taken_name_is_told_and_free_when_its_holder_goes",
                ingress::a_taken_name_is_told_and_free_when_its_holder_goes,
            ),
            (
                "a_certificate_of_ones_own_is_followed_and_kept",
                ingress::a_certificate_of_ones_own_is_followed_and_kept,
            ),
            (
                "endpoints_of_a_headless_service_are_followed",
                ingress::endpoints_of_a_headless_service_are_followed,
            ),
            (
                "the_schema_refuses_what_cannot_work",
                connectors::the_schema_refuses_what_cannot_work,
            ),
            (
                "a_connector_gets_devices_and_loses_them",
                connectors::a_connector_gets_devices_and_loses_them,
            ),
            (
                "a_class_selects_a_pool_and_keeps_the_key",
                connectors::a_class_selects_a_pool_and_keeps_the_key,
            ),
            (
                "kinds_that_the_cluster_does_not_know_are_done_without",
                kinds::kinds_that_the_cluster_does_not_know_are_done_without,
            ),
            (
                "kinds_that_the_operator_may_not_list_are_done_without",
                kinds::kinds_that_the_operator_may_not_list_are_done_without,
            ),
            (
                "rights_end_with_the_namespaces_that_are_served",
                rights::rights_end_with_the_namespaces_that_are_served,
            ),
            (
                "an_invalid_hostname_makes_nothing",
                faults::an_invalid_hostname_makes_nothing,
            ),
            ("a_refused_tag_is_named", faults::a_refused_tag_is_named),
            (
                "what_somebody_else_made_is_not_written_over",
                faults::what_somebody_else_made_is_not_written_over,
            ),
            (
                "a_deletion_waits_for_the_control_server",
                faults::a_deletion_waits_for_the_control_server,
            ),
            (
                "a_service_deleted_meanwhile_leaves_no_device",
                faults::a_service_deleted_meanwhile_leaves_no_device,
            ),
            (
                "killed_at_any_point_it_converges",
                faults::killed_at_any_point_it_converges,
            ),
            (
                "a_namespace_goes_to_tailwharf_and_back",
                migrate::a_namespace_goes_to_tailwharf_and_back,
            ),
            (
                "refused_credentials_end_the_start",
                faults::refused_credentials_end_the_start,
            ),
        ],
    )
}
