//! The life of exposed Services when all goes well.

use anyhow::{Result, ensure};
use k8s_openapi::api::rbac::v1::Role;
use kube::ResourceExt;
use kube::api::Api;
use serde_json::json;
use tailwharf_control_api::fake::Asked;
use tailwharf_plan::pool;

use crate::bed::{Bed, NAMESPACE, condition, exposed, holds, until};

pub(crate) fn a_service_gets_a_device_and_loses_it(bed: &mut Bed) -> Result<()> {
    let Bed {
        runtime,
        cluster,
        tailnet,
    } = bed;
    runtime.block_on(async {
        cluster.namespace("life").await?;
        let operator = cluster.operate(tailnet.clone())?;
        let load_balancer = json!({"spec": {"type": "LoadBalancer", "loadBalancerClass": "tailscale"}});
        let service = cluster.service("life", "web", &load_balancer).await?;

        let identity = cluster.identity(&service).await?;
        ensure!(identity.spec.hostname.as_str() == "life-web");
        ensure!(identity.spec.listeners.len() == 1 && identity.spec.listeners[0].port == 80);
        let role: Role = Api::namespaced(cluster.client.clone(), NAMESPACE)
            .get("tailwharf-default")
            .await?;
        let secret = format!("{}-0", identity.name_any());
        ensure!(
            pool::granted(Some(&role)).contains(&secret),
            "the Identity exists before the pool may read its keys"
        );
        let pending = cluster
            .condition("life", "web", |condition| condition.reason == "ProxyPending")
            .await?;
        ensure!(pending.status == "False");

        let device = cluster.host(tailnet, &identity).await?;
        let ready = cluster
            .condition("life", "web", |condition| condition.status == "True")
            .await?;
        ensure!(
            ready.reason == "ProxyCreated" && ready.message.contains(&device.name),
            "{ready:?}"
        );
        let service = cluster.services("life").get("web").await?;
        let status = serde_json::to_value(&service.status)?;
        let ingress = json!([{"hostname": device.name}, {"ip": device.addresses[0]}]);
        let shown: Vec<_> = status["loadBalancer"]["ingress"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        for (shown, wanted) in shown.iter().zip(ingress.as_array().unwrap()) {
            for (key, value) in wanted.as_object().unwrap() {
                ensure!(shown[key] == *value, "{status}");
            }
        }
        ensure!(shown.len() == 2, "{status}");

        let other = json!({"metadata": {"annotations": {"tailscale.com/hostname": "shop"}}});
        cluster.change("life", "web", &other).await?;
        until("the new name is in the Identity", async || {
            let identity = cluster.identities().get(&identity.name_any()).await?;
            ensure!(identity.spec.hostname.as_str() == "shop");
            Ok(())
        })
        .await?;

        cluster
            .change(
                "life",
                "web",
                &json!({"spec": {"type": "ClusterIP", "loadBalancerClass": null}}),
            )
            .await?;
        cluster.empty().await?;
        ensure!(tailnet.asked().contains(&Asked::DeleteDevice(device.id.clone())));
        until("the Service is as if nothing had been", async || {
            let service = cluster.services("life").get("web").await?;
            ensure!(service.finalizers().is_empty(), "{:?}", service.finalizers());
            ensure!(condition(&service).is_none());
            Ok(())
        })
        .await?;
        operator.stop().await
    })
}

pub(crate) fn an_exposed_service_costs_six_requests(bed: &mut Bed) -> Result<()> {
    let Bed {
        runtime,
        cluster,
        tailnet,
    } = bed;
    runtime.block_on(async {
        cluster.namespace("cost").await?;
        let operator = cluster.operate(tailnet.clone())?;
        cluster.settled(tailnet).await?;
        until("the operator is ready", async || {
            ensure!(
                operator
                    .metric("tailwharf_operator_reconciliations_total", "pool")
                    .await?
                    > 0
            );
            ensure!(operator.page("/readyz").await?.starts_with("HTTP/1.1 200"));
            Ok(())
        })
        .await?;
        let before = cluster.requests(&operator)?.len();
        let service = cluster.service("cost", "web", &exposed()).await?;
        let identity = cluster.identity(&service).await?;
        cluster
            .condition("cost", "web", |condition| condition.reason == "ProxyPending")
            .await?;
        cluster.host(tailnet, &identity).await?;
        cluster
            .condition("cost", "web", |condition| condition.status == "True")
            .await?;
        let requests = cluster.requests(&operator)?.split_off(before);
        let mut resources: Vec<_> = requests
            .iter()
            .map(|(verb, resource, _)| format!("{verb} {resource}"))
            .collect();
        resources.sort();
        // The finalizer and two states of the condition; the key, the right to read it, and the device.
        let wanted = [
            "patch identities",
            "patch roles",
            "patch secrets",
            "patch services",
            "patch services",
            "patch services",
        ];
        ensure!(resources == wanted, "{requests:#?}");
        cluster.delete("cost", "web").await?;
        cluster.empty().await?;
        operator.stop().await
    })
}

pub(crate) fn a_restart_over_a_hundred_services_writes_nothing(bed: &mut Bed) -> Result<()> {
    const COUNT: usize = 100;
    let Bed {
        runtime,
        cluster,
        tailnet,
    } = bed;
    runtime.block_on(async {
        cluster.namespace("many").await?;
        let operator = cluster.operate(tailnet.clone())?;
        cluster.settled(tailnet).await?;
        let minted = tailnet
            .asked()
            .iter()
            .filter(|asked| matches!(asked, Asked::CreateKey(_)))
            .count();
        let mut services = Vec::new();
        for number in 0..COUNT {
            services.push(
                cluster
                    .service("many", &format!("web-{number}"), &exposed())
                    .await?,
            );
        }
        for service in &services {
            let identity = cluster.identity(service).await?;
            cluster.host(tailnet, &identity).await?;
        }
        for service in &services {
            cluster
                .condition("many", &service.name_any(), |condition| {
                    condition.status == "True"
                })
                .await?;
        }
        let minted = tailnet
            .asked()
            .iter()
            .filter(|asked| matches!(asked, Asked::CreateKey(_)))
            .count()
            - minted;
        // A key whose Secret was written without an answer is not known to be used: the next attempt mints another one.
        let unanswered = operator
            .metric("tailwharf_operator_reconciliations_total", "cluster_unreachable")
            .await?;
        ensure!(
            (COUNT..=COUNT + usize::try_from(unanswered)?).contains(&minted),
            "{minted} keys for {COUNT} Services, {unanswered} writes without an answer"
        );
        operator.stop().await?;

        let operator = cluster.operate(tailnet.clone())?;
        until("everything was looked at", async || {
            let looks = async |controller: &str| {
                operator
                    .metric(
                        "tailwharf_operator_reconciliations_total",
                        &format!("\"{controller}\""),
                    )
                    .await
            };
            ensure!(looks("service").await? >= u64::try_from(COUNT)?);
            ensure!(looks("pool").await? >= 1 && looks("operator_device").await? >= 1);
            ensure!(operator.metric("tailwharf_operator_queue_depth ", "").await? == 0);
            Ok(())
        })
        .await?;
        let writes: Vec<_> = cluster
            .requests(&operator)?
            .into_iter()
            .filter(|(verb, ..)| verb != "get" && verb != "list")
            .collect();
        ensure!(writes.is_empty(), "{writes:#?}");
        for service in &services {
            cluster.delete("many", &service.name_any()).await?;
        }
        cluster.empty().await?;
        let left = tailnet
            .devices()
            .iter()
            .filter(|device| device.hostname != "tailscale-operator")
            .count();
        ensure!(left == 0, "{left} devices are left");
        operator.stop().await
    })
}

pub(crate) fn a_standby_takes_over_when_the_leader_stops(bed: &mut Bed) -> Result<()> {
    let Bed {
        runtime,
        cluster,
        tailnet,
    } = bed;
    runtime.block_on(async {
        cluster.namespace("lease").await?;
        let leader = cluster.operate_as(tailnet.clone(), "operator-0")?;
        let leads = "tailwharf_operator_leader ";
        until("the first leads", async || {
            holds(leader.metric(leads, "").await? == 1)
        })
        .await?;
        let standby = cluster.operate_as(tailnet.clone(), "operator-1")?;
        until("the second is ready", async || {
            holds(standby.page("/readyz").await?.starts_with("HTTP/1.1 200"))
        })
        .await?;
        ensure!(standby.metric(leads, "").await? == 0);

        leader.stop().await?;
        let service = cluster.service("lease", "web", &exposed()).await?;
        cluster.identity(&service).await?;
        ensure!(standby.metric(leads, "").await? == 1);
        cluster.delete("lease", "web").await?;
        cluster.empty().await?;
        standby.stop().await
    })
}
