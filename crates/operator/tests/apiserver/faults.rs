//! What people, the control server and crashes can do to the operator.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::events::v1::Event;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use serde_json::json;
use tailwharf_control_api::Error;
use tailwharf_control_api::fake::{Asked, Fake};
use tailwharf_kube_types::{StateSecret, names};
use tailwharf_operator::StartError;

use crate::bed::{Bed, Cluster, NAMESPACE, exposed, holds, until};

async fn event(cluster: &Cluster, namespace: &str, reason: &str) -> Result<Event> {
    until("the event", async || {
        let events: Api<Event> = Api::namespaced(cluster.client.clone(), namespace);
        let all = events.list(&ListParams::default()).await?;
        all.into_iter()
            .find(|event| event.reason.as_deref() == Some(reason))
            .context(reason.to_owned())
    })
    .await
}

pub(crate) fn an_invalid_hostname_makes_nothing(bed: &mut Bed) -> Result<()> {
    let Bed {
        runtime,
        cluster,
        tailnet,
    } = bed;
    runtime.block_on(async {
        cluster.namespace("invalid").await?;
        let operator = cluster.operate(tailnet.clone())?;
        cluster.settled(tailnet).await?;
        let annotations = json!({"tailscale.com/expose": "true", "tailscale.com/hostname": "no dots.here"});
        cluster
            .service(
                "invalid",
                "web",
                &json!({"metadata": {"annotations": annotations}}),
            )
            .await?;
        let told = cluster
            .condition("invalid", "web", |condition| condition.reason == "ProxyInvalid")
            .await?;
        ensure!(told.message.contains("tailscale.com/hostname"), "{told:?}");
        let event = event(cluster, "invalid", "INVALIDSERVICE").await?;
        ensure!(event.note == Some(told.message), "{event:?}");
        cluster.empty().await?;
        ensure!(
            cluster
                .services("invalid")
                .get("web")
                .await?
                .finalizers()
                .is_empty()
        );

        let mended = json!({"metadata": {"annotations": {"tailscale.com/hostname": "shop"}}});
        cluster.change("invalid", "web", &mended).await?;
        cluster
            .condition("invalid", "web", |condition| condition.reason == "ProxyPending")
            .await?;
        cluster.delete("invalid", "web").await?;
        cluster.empty().await?;
        operator.stop().await
    })
}

pub(crate) fn a_refused_tag_is_named(bed: &mut Bed) -> Result<()> {
    let Bed {
        runtime,
        cluster,
        tailnet,
    } = bed;
    runtime.block_on(async {
        cluster.namespace("refused").await?;
        let operator = cluster.operate(tailnet.clone())?;
        let annotations = json!({"tailscale.com/expose": "true", "tailscale.com/tags": "tag:prod"});
        cluster
            .service(
                "refused",
                "web",
                &json!({"metadata": {"annotations": annotations}}),
            )
            .await?;
        let told = cluster
            .condition("refused", "web", |condition| condition.reason == "ProxyFailed")
            .await?;
        ensure!(told.message.contains("tag:prod"), "{told:?}");
        let event = event(cluster, "refused", "AuthKeyRefused").await?;
        ensure!(event.note.unwrap_or_default().contains("tag:prod"));
        cluster.empty().await?;

        let mended = json!({"metadata": {"annotations": {"tailscale.com/tags": "tag:k8s"}}});
        cluster.change("refused", "web", &mended).await?;
        cluster
            .condition("refused", "web", |condition| condition.reason == "ProxyPending")
            .await?;
        cluster.delete("refused", "web").await?;
        cluster.empty().await?;
        operator.stop().await
    })
}

pub(crate) fn what_somebody_else_made_is_not_written_over(bed: &mut Bed) -> Result<()> {
    let Bed {
        runtime,
        cluster,
        tailnet,
    } = bed;
    runtime.block_on(async {
        cluster.namespace("taken").await?;
        let operator = cluster.operate(tailnet.clone())?;
        let service = cluster.service("taken", "web", &json!({})).await?;
        let identity = names::identity_name("web", &service.uid().context("no uid")?);
        let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), NAMESPACE);
        let theirs = serde_json::from_value(json!({
            "metadata": {"name": names::secret_name(&identity)}, "stringData": {"password": "theirs"},
        }))?;
        let theirs = secrets.create(&PostParams::default(), &theirs).await?;
        cluster.change("taken", "web", &exposed()).await?;
        let told = cluster
            .condition("taken", "web", |condition| condition.reason == "ProxyFailed")
            .await?;
        ensure!(told.message.contains(&names::secret_name(&identity)), "{told:?}");
        let event = event(cluster, "taken", "NameTaken").await?;
        ensure!(event.note == Some(told.message), "{event:?}");
        let after = secrets.get(&theirs.name_any()).await?;
        ensure!(after.resource_version() == theirs.resource_version(), "{after:?}");

        secrets
            .delete(&theirs.name_any(), &DeleteParams::default())
            .await?;
        cluster
            .condition("taken", "web", |condition| condition.reason == "ProxyPending")
            .await?;
        cluster.delete("taken", "web").await?;
        cluster.empty().await?;
        operator.stop().await
    })
}

pub(crate) fn a_deletion_waits_for_the_control_server(bed: &mut Bed) -> Result<()> {
    let Bed {
        runtime,
        cluster,
        tailnet,
    } = bed;
    runtime.block_on(async {
        cluster.namespace("waits").await?;
        let operator = cluster.operate(tailnet.clone())?;
        cluster.settled(tailnet).await?;
        let service = cluster.service("waits", "web", &exposed()).await?;
        let identity = cluster.identity(&service).await?;
        let device = cluster.host(tailnet, &identity).await?;
        cluster
            .condition("waits", "web", |condition| condition.status == "True")
            .await?;

        for _ in 0..3 {
            tailnet.fail_next(Error::Unexpected {
                status: 503,
                message: "down".to_owned(),
            });
        }
        cluster.delete("waits", "web").await?;
        let told = cluster
            .condition("waits", "web", |condition| condition.reason == "ProxyFailed")
            .await?;
        ensure!(told.message.contains("tailwharf.dev/force-removal"), "{told:?}");
        cluster.empty().await?;
        ensure!(!tailnet.devices().contains(&device));
        until("the Service is gone", async || {
            holds(cluster.services("waits").get_opt("web").await?.is_none())
        })
        .await?;
        operator.stop().await
    })
}

pub(crate) fn a_service_deleted_meanwhile_leaves_no_device(bed: &mut Bed) -> Result<()> {
    let Bed {
        runtime,
        cluster,
        tailnet,
    } = bed;
    runtime.block_on(async {
        cluster.namespace("meanwhile").await?;
        let operator = cluster.operate(tailnet.clone())?;
        let service = cluster.service("meanwhile", "web", &exposed()).await?;
        let identity = cluster.identity(&service).await?;
        let device = cluster.register(tailnet, &identity).await?;
        drop(operator);
        cluster.delete("meanwhile", "web").await?;
        ensure!(
            cluster.services("meanwhile").get_opt("web").await?.is_some(),
            "the finalizer keeps it"
        );

        let operator = cluster.operate(tailnet.clone())?;
        cluster.empty().await?;
        ensure!(!tailnet.devices().contains(&device));
        until("the Service is gone", async || {
            holds(cluster.services("meanwhile").get_opt("web").await?.is_none())
        })
        .await?;
        operator.stop().await
    })
}

pub(crate) fn killed_at_any_point_it_converges(bed: &mut Bed) -> Result<()> {
    const COUNT: usize = 12;
    let Bed {
        runtime,
        cluster,
        tailnet,
    } = bed;
    runtime.block_on(async {
        cluster.namespace("killed").await?;
        let mut services = Vec::new();
        for number in 0..COUNT {
            services.push(
                cluster
                    .service("killed", &format!("web-{number}"), &exposed())
                    .await?,
            );
        }
        // Each run is killed after one more call of the control server, wherever the other workers are then.
        for calls in 1..=COUNT {
            let operator = cluster.operate(tailnet.clone())?;
            let before = tailnet.asked().len();
            let fed = async || holds(tailnet.asked().len() > before + calls % 3);
            // The last runs may find nothing left to ask for.
            let _ = tokio::time::timeout(Duration::from_secs(2), until("a call", fed)).await;
            drop(operator);
        }
        let operator = cluster.operate(tailnet.clone())?;
        let mut keys = Vec::new();
        for service in &services {
            let identity = cluster.identity(service).await?;
            let secret = cluster
                .secrets()
                .get(&format!("{}-0", identity.name_any()))
                .await?;
            let state = StateSecret::from_data(&secret.data.unwrap_or_default())?;
            keys.push(state.auth_key.context("no key")?.reveal().to_owned());
            cluster.host(tailnet, &identity).await?;
        }
        keys.sort();
        keys.dedup();
        ensure!(keys.len() == COUNT, "two devices share a key");
        for service in &services {
            cluster
                .condition("killed", &service.name_any(), |condition| {
                    condition.status == "True"
                })
                .await?;
        }
        ensure!(
            tailnet
                .devices()
                .iter()
                .filter(|device| device.hostname.starts_with("killed-"))
                .count()
                == COUNT
        );

        // The same for the removal.
        for service in &services {
            cluster.delete("killed", &service.name_any()).await?;
        }
        drop(operator);
        for _ in 0..4 {
            let operator = cluster.operate(tailnet.clone())?;
            let before = tailnet.asked().len();
            let fed = async || holds(tailnet.asked().len() > before + 1);
            let _ = tokio::time::timeout(Duration::from_secs(2), until("a call", fed)).await;
            drop(operator);
        }
        let operator = cluster.operate(tailnet.clone())?;
        cluster.empty().await?;
        let left: Vec<_> = tailnet
            .devices()
            .into_iter()
            .filter(|device| device.hostname.starts_with("killed-"))
            .collect();
        ensure!(left.is_empty(), "{left:?}");
        operator.stop().await
    })
}

pub(crate) fn refused_credentials_end_the_start(bed: &mut Bed) -> Result<()> {
    let Bed { runtime, cluster, .. } = bed;
    runtime.block_on(async {
        let tailnet = Arc::new(Fake::new([]));
        tailnet.fail_next(Error::CredentialsRefused {
            status: 401,
            message: "unknown client".to_owned(),
        });
        let error = cluster.operate(tailnet.clone())?.ended().await.unwrap_err();
        ensure!(matches!(error, StartError::Credentials { .. }), "{error:?}");
        ensure!(error.to_string().contains("CLIENT_SECRET_FILE"));
        ensure!(tailnet.asked() == [Asked::ListKeys]);
        Ok(())
    })
}
