//! Services that stand for something on the tailnet, and the nameserver that knows them.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use serde_json::{Value, json};
use tailwharf_kube_types::dns_config::DNSConfig;

use crate::bed::{Bed, Cluster, NAMESPACE, holds, until};

const NAME: &str = "db.other.example";

fn reaching(target: &str) -> Value {
    json!({
        "metadata": {"annotations": {"tailscale.com/tailnet-fqdn": target}},
        "spec": {"type": "ExternalName", "externalName": "placeholder", "selector": null},
    })
}

/// What leads pods to identities: Services and EndpointSlices of the operator's namespace.
async fn led(cluster: &Cluster) -> Result<(Vec<Service>, Vec<EndpointSlice>)> {
    let ours = ListParams::default().labels("tailscale.com/svc-type=egress");
    let services = Api::<Service>::namespaced(cluster.client.clone(), NAMESPACE);
    let slices = Api::<EndpointSlice>::namespaced(cluster.client.clone(), NAMESPACE);
    Ok((services.list(&ours).await?.items, slices.list(&ours).await?.items))
}

pub(crate) fn an_egress_service_leads_to_its_host(bed: &mut Bed) -> Result<()> {
    let Bed {
        runtime,
        cluster,
        tailnet,
    } = bed;
    runtime.block_on(async {
        cluster.namespace("egress").await?;
        let operator = cluster.operate(tailnet.clone())?;
        let service = cluster.service("egress", "db", &reaching(NAME)).await?;
        let identity = cluster.identity(&service).await?;
        ensure!(identity.spec.egress.is_some() && identity.spec.listeners.is_empty());
        cluster.host(tailnet, &identity).await?;
        cluster
            .condition("egress", "db", |condition| {
                condition.status == "True" && condition.message.contains(NAME)
            })
            .await?;
        let external = format!("{}.{NAMESPACE}.svc.cluster.local", identity.name_any());
        let spec = cluster
            .services("egress")
            .get("db")
            .await?
            .spec
            .unwrap_or_default();
        ensure!(spec.external_name == Some(external), "{spec:?}");
        until("the EndpointSlice names the host", async || {
            let (_, slices) = led(cluster).await?;
            let addresses = slices.iter().flat_map(|slice| &slice.endpoints);
            holds(
                addresses
                    .flat_map(|endpoint| &endpoint.addresses)
                    .any(|ip| ip == "10.1.2.3"),
            )
        })
        .await?;

        nameserver(cluster).await?;

        // The same Service is exposed instead: pods are led nowhere any more.
        let exposed = json!({"metadata": {"annotations": {
            "tailscale.com/expose": "true", "tailscale.com/tailnet-fqdn": null,
        }}});
        cluster.change("egress", "db", &exposed).await?;
        until("nobody is led to the identity", async || {
            let now = cluster.identities().get(&identity.name_any()).await?;
            let (services, slices) = led(cluster).await?;
            holds(now.spec.egress.is_none() && services.is_empty() && slices.is_empty())
        })
        .await?;
        cluster.change("egress", "db", &reaching("db2")).await?;
        cluster.delete("egress", "db").await?;
        cluster.empty().await?;
        until("nobody is led anywhere", async || {
            let (services, slices) = led(cluster).await?;
            holds(services.is_empty() && slices.is_empty())
        })
        .await?;
        operator.stop().await
    })
}

/// A DNSConfig gets its objects, and the records of what is reached.
async fn nameserver(cluster: &Cluster) -> Result<()> {
    let configs: Api<DNSConfig> = Api::all(cluster.client.clone());
    let config = json!({
        "apiVersion": "tailscale.com/v1alpha1", "kind": "DNSConfig", "metadata": {"name": "ts-dns"},
        "spec": {"nameserver": {"pod": {"tolerations": [{"operator": "Exists"}]}}},
    });
    configs
        .create(&PostParams::default(), &serde_json::from_value(config)?)
        .await?;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    until("the records have the name", async || {
        let data = maps.get("dnsrecords").await?.data.unwrap_or_default();
        holds(data.get("records.json").is_some_and(|text| text.contains(NAME)))
    })
    .await?;
    until("the status has the address", async || {
        let status = configs.get("ts-dns").await?.status.unwrap_or_default();
        holds(
            status
                .nameserver
                .is_some_and(|nameserver| nameserver.ip.is_some()),
        )
    })
    .await?;
    configs.delete("ts-dns", &DeleteParams::default()).await?;
    Ok(())
}
