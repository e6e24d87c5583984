//! Kinds that the cluster does not know.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};
use tailwharf_kube_types::Parent;

use crate::bed::{Bed, exposed, until};

const KINDS: [&str; 3] = [
    "connectors.tailscale.com",
    "proxyclasses.tailscale.com",
    "dnsconfigs.tailscale.com",
];

pub(crate) fn kinds_that_the_cluster_does_not_know_are_done_without(bed: &mut Bed) -> Result<()> {
    let Bed {
        runtime,
        cluster,
        tailnet,
    } = bed;
    cluster
        .kubectl()
        .run(&[&["delete", "crd", "--timeout=20s"][..], &KINDS].concat())?;
    runtime.block_on(async {
        cluster.namespace("kinds").await?;
        let mut labels = Parent::connector("lost").labels();
        labels.insert("tailwharf.dev/pool".to_owned(), "default".to_owned());
        let lost: Secret =
            serde_json::from_value(json!({"metadata": {"name": "ts-lost-0", "labels": labels}}))?;
        cluster.secrets().create(&PostParams::default(), &lost).await?;

        let operator = cluster.operate(tailnet.clone())?;
        cluster.settled(tailnet).await?;
        let service = cluster.service("kinds", "web", &exposed()).await?;
        let identity = cluster.identity(&service).await?;
        cluster.host(tailnet, &identity).await?;
        cluster
            .condition("kinds", "web", |condition| condition.status == "True")
            .await?;
        let page = operator.page("/readyz").await?;
        ensure!(page.starts_with("HTTP/1.1 200"), "{page}");
        let absent = operator.metric("tailwharf_operator_kind_absent{", "").await?;
        ensure!(absent == 3, "{absent} kinds are absent");
        until("the Connector is left alone", async || {
            let left = operator
                .metric("tailwharf_operator_reconciliations_total", "kind_absent")
                .await?;
            ensure!(left > 0, "nothing was left alone");
            Ok(())
        })
        .await?;
        // Its Connector may exist, for all that is known.
        cluster.secrets().get("ts-lost-0").await?;

        cluster.install()?;
        until("the kinds are known", async || {
            let absent = operator.metric("tailwharf_operator_kind_absent{", "").await?;
            ensure!(absent == 0, "{absent} kinds are absent");
            Ok(())
        })
        .await?;
        cluster.connector("late", json!({"exitNode": true})).await?;
        cluster.devices("late", 1).await?;
        cluster
            .connectors()
            .delete("late", &DeleteParams::default())
            .await?;
        cluster.delete("kinds", "web").await?;
        cluster.empty().await?;
        operator.stop().await
    })
}

/// A ClusterRole of an older version does not name every kind.
pub(crate) fn kinds_that_the_operator_may_not_list_are_done_without(bed: &mut Bed) -> Result<()> {
    let Bed {
        runtime,
        cluster,
        tailnet,
    } = bed;
    let role = cluster
        .kubectl()
        .get(&["clusterrole", "tailscale-operator-cluster"])?;
    let rules = role["rules"].as_array().cloned().unwrap_or_default();
    let newer = |rule: &&Value| rule["resources"][0] != "dnsconfigs" && rule["resources"][0] != "connectors";
    let older: Vec<&Value> = rules.iter().filter(newer).collect();
    let patch = json!({ "rules": older }).to_string();
    cluster.kubectl().run(&[
        "patch",
        "clusterrole",
        "tailscale-operator-cluster",
        "--type=merge",
        "-p",
        &patch,
    ])?;
    runtime.block_on(async {
        let operator = cluster.operate(tailnet.clone())?;
        until("it goes on without the kinds", async || {
            let page = operator.page("/readyz").await?;
            ensure!(page.starts_with("HTTP/1.1 200"), "{page}");
            Ok(())
        })
        .await?;
        let absent = operator.metric("tailwharf_operator_kind_absent{", "").await?;
        ensure!(absent == 3, "{absent} kinds are absent");
        cluster.install()?;
        until("the kinds are listed", async || {
            let absent = operator.metric("tailwharf_operator_kind_absent{", "").await?;
            ensure!(absent == 0, "{absent} kinds are absent");
            Ok(())
        })
        .await?;
        operator.stop().await
    })
}
