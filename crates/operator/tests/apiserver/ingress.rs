//! Ingresses, the endpoints behind Services, and certificates for people's own domains.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::Ingress;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use tailwharf_kube_types::contract::PARKED_POOL;
use tailwharf_kube_types::{ConditionType, Identity, names};

use crate::bed::{Bed, Cluster, exposed, holds, until};

fn ingresses(cluster: &Cluster, namespace: &str) -> Api<Ingress> {
    Api::namespaced(cluster.client.clone(), namespace)
}

async fn ingress(cluster: &Cluster, namespace: &str, name: &str, tls: &Value) -> Result<Ingress> {
    let backend = json!({"service": {"name": "web", "port": {"number": 80}}});
    let body = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": name},
        "spec": {"ingressClassName": "tailscale", "defaultBackend": backend, "tls": tls},
    });
    let body = serde_json::from_value(body)?;
    Ok(ingresses(cluster, namespace)
        .create(&PostParams::default(), &body)
        .await?)
}

/// Waits until the Identity of an Ingress passes `wanted`.
async fn identity(
    cluster: &Cluster,
    ingress: &Ingress,
    wanted: impl Fn(&Identity) -> bool,
) -> Result<Identity> {
    let name = names::identity_name(&ingress.name_any(), &ingress.uid().unwrap_or_default());
    until("the Identity of the Ingress", async || {
        let found = cluster.identities().get(&name).await?;
        if wanted(&found) {
            Ok(found)
        } else {
            anyhow::bail!("{found:?}")
        }
    })
    .await
}

/// Message of the condition `Accepted`, while it stands there.
fn complaint(identity: &Identity) -> Option<&str> {
    let condition = identity.status.as_ref()?.condition(ConditionType::Accepted)?;
    Some(&condition.message)
}

fn certificates(identity: &Identity) -> Vec<String> {
    let hosts = identity.spec.web.iter().flat_map(|web| &web.hosts);
    hosts.filter_map(|host| host.certificate.clone()).collect()
}

pub(crate) fn an_ingress_gets_a_device_and_loses_it(bed: &mut Bed) -> Result<()> {
    let Bed {
        runtime,
        cluster,
        tailnet,
    } = bed;
    runtime.block_on(async {
        cluster.namespace("web").await?;
        let operator = cluster.operate(tailnet.clone())?;
        cluster.settled(tailnet).await?;
        cluster.service("web", "web", &json!({})).await?;
        let made = ingress(cluster, "web", "shop", &json!([{"hosts": ["shop"]}])).await?;
        let device = identity(cluster, &made, |identity| identity.spec.web.is_some()).await?;
        ensure!(device.spec.hostname.as_str() == "shop", "{:?}", device.spec);
        cluster.host(tailnet, &device).await?;
        let entries = until("the address of the Ingress", async || {
            let status = ingresses(cluster, "web").get("shop").await?.status;
            let balancer = status.and_then(|status| status.load_balancer);
            balancer.and_then(|balancer| balancer.ingress).context("none")
        })
        .await?;
        let ports: Vec<i32> = entries[0].ports.iter().flatten().map(|port| port.port).collect();
        ensure!(entries[0].hostname.is_some() && ports == [443], "{entries:?}");

        // The operator is away while the Ingress goes.
        operator.stop().await?;
        ingresses(cluster, "web")
            .delete("shop", &DeleteParams::default())
            .await?;
        let operator = cluster.operate(tailnet.clone())?;
        cluster.empty().await?;
        until("the Ingress is gone", async || {
            holds(ingresses(cluster, "web").get_opt("shop").await?.is_none())
        })
        .await?;
        operator.stop().await
    })
}

pub(crate) fn a_taken_name_is_told_and_free_when_its_holder_goes(bed: &mut Bed) -> Result<()> {
    let Bed {
        runtime,
        cluster,
        tailnet,
    } = bed;
    runtime.block_on(async {
        cluster.namespace("older").await?;
        cluster.namespace("newer").await?;
        let operator = cluster.operate(tailnet.clone())?;
        cluster.settled(tailnet).await?;
        for namespace in ["older", "newer"] {
            cluster.service(namespace, "web", &json!({})).await?;
        }
        let tls = json!([{"hosts": ["same"]}]);
        let first = ingress(cluster, "older", "a", &tls).await?;
        identity(cluster, &first, |identity| identity.spec.web.is_some()).await?;
        // Kubernetes' times have seconds, and of two of one second the name decides.
        let second = ingress(cluster, "newer", "z", &tls).await?;
        let is_told = |identity: &Identity| complaint(identity).is_some();
        let (holder, loser) = match first.creation_timestamp() < second.creation_timestamp() {
            true => (&first, &second),
            false => (&second, &first),
        };
        let parked = identity(cluster, loser, is_told).await?;
        let name = format!("{}/{}", holder.namespace().unwrap_or_default(), holder.name_any());
        ensure!(
            complaint(&parked).is_some_and(|text| text.contains(&name)),
            "{parked:?}"
        );

        let namespace = holder.namespace().unwrap_or_default();
        ingresses(cluster, &namespace)
            .delete(&holder.name_any(), &DeleteParams::default())
            .await?;
        identity(cluster, loser, |identity| {
            identity.spec.pool != PARKED_POOL && complaint(identity).is_none()
        })
        .await?;
        let namespace = loser.namespace().unwrap_or_default();
        ingresses(cluster, &namespace)
            .delete(&loser.name_any(), &DeleteParams::default())
            .await?;
        cluster.empty().await?;
        operator.stop().await
    })
}

fn tls(names: &[&str], key: &KeyPair, shown: &KeyPair) -> Result<Value> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let certificate = CertificateParams::new(names)?.self_signed(key)?.pem();
    Ok(
        json!({"type": "kubernetes.io/tls", "stringData": {"tls.crt": certificate, "tls.key": shown.serialize_pem()}}),
    )
}

pub(crate) fn a_certificate_of_ones_own_is_followed_and_kept(bed: &mut Bed) -> Result<()> {
    let Bed {
        runtime,
        cluster,
        tailnet,
    } = bed;
    runtime.block_on(async {
        cluster.namespace("own").await?;
        let operator = cluster.operate(tailnet.clone())?;
        cluster.settled(tailnet).await?;
        cluster.service("own", "web", &json!({})).await?;
        let hosts = json!([{"hosts": ["shop.example.com"], "secretName": "shop-tls"}]);
        let made = ingress(cluster, "own", "shop", &hosts).await?;
        let missing = identity(cluster, &made, |identity| complaint(identity).is_some()).await?;
        ensure!(
            complaint(&missing).is_some_and(|text| text.contains("\"shop-tls\"")),
            "{missing:?}"
        );
        ensure!(missing.spec.web.is_some() && certificates(&missing).is_empty());

        let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), "own");
        let (one, two) = (KeyPair::generate()?, KeyPair::generate()?);
        let mut body = tls(&["shop.example.com"], &one, &one)?;
        body["metadata"] = json!({"name": "shop-tls"});
        secrets
            .create(&PostParams::default(), &serde_json::from_value(body)?)
            .await?;
        let good = identity(cluster, &made, |identity| {
            !certificates(identity).is_empty() && complaint(identity).is_none()
        })
        .await?;
        let first = certificates(&good)[0].clone();
        let name = names::certificates_name(&good.name_any());
        let stored = async || -> Result<Vec<String>> {
            let data = cluster.secrets().get(&name).await?.data.unwrap_or_default();
            Ok(data.into_keys().collect())
        };
        ensure!(stored().await? == [format!("{first}.crt"), format!("{first}.key")]);

        // Someone puts in the wrong key: the certificate of before stays.
        let change = async |body: Value| -> Result<()> {
            let patch = Patch::Merge(body);
            secrets.patch("shop-tls", &PatchParams::default(), &patch).await?;
            Ok(())
        };
        change(tls(&["shop.example.com"], &two, &one)?).await?;
        let bad = identity(cluster, &made, |identity| complaint(identity).is_some()).await?;
        ensure!(
            complaint(&bad).is_some_and(|text| text.contains("stays in use")),
            "{bad:?}"
        );
        ensure!(certificates(&bad).first() == Some(&first));

        // So it does when the new one is for another name, or has ended.
        let mut ended = CertificateParams::new(vec!["shop.example.com".to_owned()])?;
        ended.not_after = rcgen::date_time_ymd(2020, 1, 1);
        let ended = json!({"stringData": {
            "tls.crt": ended.self_signed(&two)?.pem(), "tls.key": two.serialize_pem(),
        }});
        for (body, words) in [
            (
                tls(&["other.example.com"], &two, &two)?,
                "not for \"shop.example.com\"",
            ),
            (ended, "renew it"),
            (json!({"stringData": {"tls.crt": "nonsense"}}), "stays in use"),
        ] {
            change(body).await?;
            let bad = identity(cluster, &made, |identity| {
                complaint(identity).is_some_and(|text| text.contains(words))
            })
            .await?;
            ensure!(
                complaint(&bad).is_some_and(|text| text.contains("stays in use")),
                "{bad:?}"
            );
            ensure!(certificates(&bad).first() == Some(&first), "{bad:?}");
        }

        change(tls(&["shop.example.com"], &two, &two)?).await?;
        let renewed = identity(cluster, &made, |identity| {
            complaint(identity).is_none() && certificates(identity).first() != Some(&first)
        })
        .await?;
        cluster.host(tailnet, &renewed).await?;
        until("the old certificate is gone", async || {
            holds(stored().await?.iter().all(|key| !key.starts_with(&first)))
        })
        .await?;
        ingresses(cluster, "own")
            .delete("shop", &DeleteParams::default())
            .await?;
        cluster.empty().await?;
        operator.stop().await
    })
}

pub(crate) fn endpoints_of_a_headless_service_are_followed(bed: &mut Bed) -> Result<()> {
    let Bed {
        runtime,
        cluster,
        tailnet,
    } = bed;
    runtime.block_on(async {
        cluster.namespace("headless").await?;
        let operator = cluster.operate(tailnet.clone())?;
        cluster.settled(tailnet).await?;
        let mut over = exposed();
        over["spec"] = json!({"clusterIP": "None", "ports": [{"name": "http", "port": 80}]});
        let service = cluster.service("headless", "db", &over).await?;
        let made = cluster.identity(&service).await?;
        ensure!(made.spec.listeners[0].backends.is_empty(), "{:?}", made.spec);
        let slices: Api<EndpointSlice> = Api::namespaced(cluster.client.clone(), "headless");
        let slice = json!({
            "metadata": {"name": "db-1", "labels": {"kubernetes.io/service-name": "db"}}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.244.0.7"], "conditions": {"ready": true}}],
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        });
        slices.create(&PostParams::default(), &serde_json::from_value(slice)?).await?;
        let backends = async |wanted: &[&str]| {
            until("the backends", async || {
                let found = cluster.identities().get(&made.name_any()).await?;
                let backends = &found.spec.listeners[0].backends;
                let found: Vec<String> = backends
                    .iter()
                    .map(|backend| format!("{}:{}", backend.address, backend.port))
                    .collect();
                holds(found == wanted)
            })
            .await
        };
        backends(&["10.244.0.7:8080"]).await?;
        let more = json!({"endpoints": [
            {"addresses": ["10.244.0.7"], "conditions": {"ready": false}}, {"addresses": ["10.244.0.8"]},
        ]});
        slices.patch("db-1", &PatchParams::default(), &Patch::Merge(more)).await?;
        backends(&["10.244.0.8:8080"]).await?;
        cluster.delete("headless", "db").await?;
        cluster.empty().await?;
        operator.stop().await
    })
}
