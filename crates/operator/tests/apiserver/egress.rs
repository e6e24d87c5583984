//! Services that stand for something on the tailnet, and the nameserver that knows them.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
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

/// A Service that only some pods may use: their addresses come and go with their labels.
pub(crate) fn only_some_pods_may_use_a_service(bed: &mut Bed) -> Result<()> {
    let Bed {
        runtime,
        cluster,
        tailnet,
    } = bed;
    runtime.block_on(async {
        cluster.namespace("guarded").await?;
        let operator = cluster.operate(tailnet.clone())?;
        let mut guarded = reaching(NAME);
        guarded["metadata"]["annotations"]["tailwharf.dev/egress-from"] =
            json!(r#"{"podSelector": {"matchLabels": {"role": "front"}}}"#);
        let service = cluster.service("guarded", "db", &guarded).await?;
        let identity = cluster.identity(&service).await?;
        let from = async || {
            let identity = cluster.identities().get(&identity.name_any()).await?;
            let from = identity.spec.egress.and_then(|egress| egress.from);
            anyhow::Ok(from.map(|ranges| ranges.iter().map(ToString::to_string).collect::<Vec<_>>()))
        };
        ensure!(from().await? == Some(Vec::new()), "{:?}", from().await?);

        let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), "guarded");
        let account = serde_json::from_value(json!({"metadata": {"name": "default"}}))?;
        accounts.create(&PostParams::default(), &account).await?;
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "guarded");
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "front", "labels": {"role": "front"}},
            "spec": {"containers": [{"name": "front", "image": "front"}]},
        });
        pods.create(&PostParams::default(), &serde_json::from_value(pod)?)
            .await?;
        let status =
            json!({"status": {"phase": "Running", "podIP": "10.244.0.7", "podIPs": [{"ip": "10.244.0.7"}]}});
        pods.patch_status("front", &PatchParams::default(), &Patch::Merge(status))
            .await?;
        until("the pod may come in", async || {
            holds(from().await? == Some(vec!["10.244.0.7/32".to_owned()]))
        })
        .await?;
        let other = json!({"metadata": {"labels": {"role": "back"}}});
        pods.patch("front", &PatchParams::default(), &Patch::Merge(other))
            .await?;
        until("the pod may come in no more", async || {
            holds(from().await? == Some(Vec::new()))
        })
        .await?;
        let all = json!({"metadata": {"annotations": {"tailwharf.dev/egress-from": null}}});
        cluster.change("guarded", "db", &all).await?;
        until("all may come in", async || holds(from().await?.is_none())).await?;
        let now = DeleteParams::default().grace_period(0);
        pods.delete("front", &now).await?;
        cluster.delete("guarded", "db").await?;
        cluster.empty().await?;
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
