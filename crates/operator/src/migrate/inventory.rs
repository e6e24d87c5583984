//! Reading what a migration has to know.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{Secret, Service};
use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DynamicObject, ListParams};
use kube::core::ApiResource;
use kube::{Client, ResourceExt as _};
use serde::de::DeserializeOwned;
use tailwharf_kube_types::{Connector, Identity, Parent};
use tailwharf_plan::class;
use tailwharf_plan::migrate::{Inventory, Owner, StateView};

use crate::error::is_not_found;

/// Kinds of the Go operator that tailwharf does not serve: kind and plural, of `tailscale.com/v1alpha1`.
const UNSERVED: [(&str, &str); 3] = [
    ("ProxyGroup", "proxygroups"),
    ("PeerRelay", "peerrelays"),
    ("Recorder", "recorders"),
];

pub(super) async fn read(client: &Client, namespace: &str) -> Result<Inventory> {
    let own = |what| {
        move |error| {
            anyhow::Error::new(error).context(format!("{what} of namespace {namespace} cannot be read"))
        }
    };
    let secrets: Vec<Secret> = list(&Api::namespaced(client.clone(), namespace))
        .await
        .map_err(own("the Secrets"))?;
    Ok(Inventory {
        namespace: namespace.to_owned(),
        deployments: list::<Deployment>(&Api::namespaced(client.clone(), namespace))
            .await
            .map_err(own("the Deployments"))?,
        stateful_sets: list::<StatefulSet>(&Api::namespaced(client.clone(), namespace))
            .await
            .map_err(own("the StatefulSets"))?,
        services: list::<Service>(&Api::namespaced(client.clone(), namespace))
            .await
            .map_err(own("the Services"))?,
        states: secrets.iter().filter_map(StateView::from_secret).collect(),
        identities: list::<Identity>(&Api::namespaced(client.clone(), namespace))
            .await
            .context(
                "Identities cannot be read: install tailwharf with its CustomResourceDefinitions first",
            )?,
        owners: owners(client).await?,
        unserved: unserved(client).await?,
    })
}

async fn list<K>(api: &Api<K>) -> Result<Vec<K>, kube::Error>
where
    K: Clone + std::fmt::Debug + DeserializeOwned,
{
    Ok(api.list(&ListParams::default()).await?.items)
}

/// All objects of people that can have devices.
async fn owners(client: &Client) -> Result<BTreeMap<Parent, Owner>> {
    let mut owners = BTreeMap::new();
    let mut add = |parent: Parent, metadata: &ObjectMeta, class: Option<&str>| {
        let owner = Owner {
            uid: metadata.uid.clone().unwrap_or_default(),
            class: class.map(str::to_owned),
        };
        owners.insert(parent, owner);
    };
    for service in list::<Service>(&Api::all(client.clone()))
        .await
        .context("the Services cannot be read")?
    {
        let parent = Parent::service(&service.namespace().unwrap_or_default(), &service.name_any());
        add(
            parent,
            &service.metadata,
            class::of_object(&service.metadata, None),
        );
    }
    for ingress in list::<Ingress>(&Api::all(client.clone()))
        .await
        .context("the Ingresses cannot be read")?
    {
        let parent = Parent::ingress(&ingress.namespace().unwrap_or_default(), &ingress.name_any());
        add(
            parent,
            &ingress.metadata,
            class::of_object(&ingress.metadata, None),
        );
    }
    for connector in or_none(list::<Connector>(&Api::all(client.clone())).await)
        .context("the Connectors cannot be read")?
    {
        let parent = Parent::connector(&connector.name_any());
        add(parent, &connector.metadata, connector.spec.proxy_class.as_deref());
    }
    Ok(owners)
}

async fn unserved(client: &Client) -> Result<Vec<String>> {
    let mut unserved = Vec::new();
    for (kind, plural) in UNSERVED {
        let resource = ApiResource {
            group: "tailscale.com".to_owned(),
            version: "v1alpha1".to_owned(),
            api_version: "tailscale.com/v1alpha1".to_owned(),
            kind: kind.to_owned(),
            plural: plural.to_owned(),
        };
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        let found = or_none(list(&api).await).with_context(|| format!("{plural} cannot be read"))?;
        unserved.extend(found.iter().map(|object| format!("{kind} {}", object.name_any())));
    }
    Ok(unserved)
}

/// A kind that the cluster does not know has no objects.
fn or_none<K>(listed: Result<Vec<K>, kube::Error>) -> Result<Vec<K>, kube::Error> {
    match listed {
        Err(error) if is_not_found(&error) => Ok(Vec::new()),
        other => other,
    }
}
