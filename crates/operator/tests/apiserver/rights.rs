//! An operator that serves some namespaces only, with rights that end there.

use anyhow::{Result, ensure};

use crate::bed::{Bed, NAMESPACE, exposed, until};

const ROLE: &str = "tailscale-operator";

/// Whether the operator's account may list Services in a namespace.
fn may_list(bed: &Bed, namespace: &str) -> bool {
    let account = format!("--as=system:serviceaccount:{NAMESPACE}:operator");
    let words = ["auth", "can-i", "list", "services", "-n", namespace, &account];
    bed.cluster.kubectl().run(&words).is_ok()
}

pub(crate) fn rights_end_with_the_namespaces_that_are_served(bed: &mut Bed) -> Result<()> {
    let kubectl = bed.cluster.kubectl();
    bed.runtime.block_on(async {
        bed.cluster.namespace("served").await?;
        bed.cluster.namespace("elsewhere").await
    })?;
    // What was made while everything was served.
    let Bed {
        runtime,
        cluster,
        tailnet,
    } = &mut *bed;
    let kept = runtime.block_on(async {
        let operator = cluster.operate(tailnet.clone())?;
        let service = cluster.service("elsewhere", "early", &exposed()).await?;
        let identity = cluster.identity(&service).await?;
        cluster.host(tailnet, &identity).await?;
        cluster
            .condition("elsewhere", "early", |condition| condition.status == "True")
            .await?;
        operator.stop().await?;
        anyhow::Ok(identity)
    })?;

    kubectl.run(&["delete", "clusterrolebinding", ROLE])?;
    let (role, account) = (
        format!("--clusterrole={ROLE}"),
        format!("--serviceaccount={NAMESPACE}:operator"),
    );
    for namespace in ["served", NAMESPACE] {
        kubectl.run(&["create", "rolebinding", ROLE, "-n", namespace, &role, &account])?;
    }
    let Bed { runtime, .. } = &*bed;
    runtime.block_on(until("the rights are narrower", async || {
        ensure!(
            may_list(bed, "served") && !may_list(bed, "elsewhere"),
            "they are not"
        );
        Ok(())
    }))?;

    let Bed {
        runtime,
        cluster,
        tailnet,
    } = bed;
    runtime.block_on(async {
        let operator = cluster.operate_with(tailnet.clone(), "operator-0", &["served"])?;
        cluster.service("elsewhere", "late", &exposed()).await?;
        let service = cluster.service("served", "web", &exposed()).await?;
        let identity = cluster.identity(&service).await?;
        cluster.host(tailnet, &identity).await?;
        cluster
            .condition("served", "web", |condition| condition.status == "True")
            .await?;
        let name = kept.metadata.name.as_deref().unwrap_or_default();
        cluster.identities().get(name).await?;
        let late = cluster.services("elsewhere").get("late").await?;
        ensure!(late.metadata.finalizers.is_none(), "it was seen: {late:?}");
        cluster.delete("served", "web").await?;
        until("the served one is gone", async || {
            let left = cluster.services("served").get_opt("web").await?;
            ensure!(left.is_none(), "it is still there");
            Ok(())
        })
        .await?;
        operator.stop().await
    })?;

    for namespace in ["served", NAMESPACE] {
        kubectl.run(&["delete", "rolebinding", ROLE, "-n", namespace])?;
    }
    cluster.install()?;
    runtime.block_on(async {
        let operator = cluster.operate(tailnet.clone())?;
        for name in ["early", "late"] {
            cluster.delete("elsewhere", name).await?;
        }
        cluster.empty().await?;
        operator.stop().await
    })
}
