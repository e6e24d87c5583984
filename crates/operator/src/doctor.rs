//! `tailwharf doctor`: looks at everything that an installation needs, as whoever runs the command. What it means is judged by
//! [`tailwharf_plan::doctor`].

use std::fmt::Display;

use anyhow::{Context as _, Result, bail};
use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Container, Secret};
use k8s_openapi::api::rbac::v1::PolicyRule;
use kube::Client;
use kube::api::{Api, DynamicObject, ListParams, PostParams};
use kube::core::ApiResource;
use serde::de::DeserializeOwned;
use tailwharf_control_api::{
    self as control, Client as ControlClient, ClientConfig, ControlApi as _, CreateKey,
};
use tailwharf_kube_types::Identity;
use tailwharf_plan::doctor::{Control, Definition, Facts};
use tailwharf_plan::migrate::is_own_operator;

use crate::error::is_not_found;

/// Questions about rights that are under way at a time.
const PARALLEL: usize = 8;
const LEASE: &str = "tailwharf-operator";
/// Definitions and the version that is needed of each.
const DEFINITIONS: [&str; 4] = [
    "identities.tailwharf.dev",
    "connectors.tailscale.com",
    "proxyclasses.tailscale.com",
    "dnsconfigs.tailscale.com",
];
const VERSION: &str = "v1alpha1";

/// What the manifests grant to the operator's account.
#[derive(Clone, Debug, Default)]
pub struct Granted {
    /// In the namespaces whose objects are served.
    pub served: Vec<PolicyRule>,
    /// For objects without a namespace.
    pub cluster: Vec<PolicyRule>,
    /// In its own namespace.
    pub namespace: Vec<PolicyRule>,
}

/// The operator's credentials, and what it asks for with them.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Control server.
    pub login_server: String,
    /// Its API, where that is elsewhere.
    pub api_url: Option<String>,
    /// Id of the OAuth client.
    pub id: String,
    /// Its secret.
    pub secret: control::Secret,
    /// Tags of devices that ask for none.
    pub tags: Vec<String>,
}

/// Looks at the cluster of the current kubeconfig.
pub struct Doctor {
    client: Client,
    namespace: String,
}

impl Doctor {
    /// Of the cluster of the current kubeconfig.
    ///
    /// # Errors
    /// When there is no kubeconfig.
    pub async fn new(namespace: &str) -> Result<Self> {
        Ok(Self::with(crate::here().await?, namespace))
    }

    /// Of the cluster of this client.
    #[must_use]
    pub fn with(client: Client, namespace: &str) -> Self {
        Self {
            client,
            namespace: namespace.to_owned(),
        }
    }

    /// Everything but the control server.
    pub async fn examine(&self, granted: &Granted) -> Facts {
        let version = self.version().await;
        let mut definitions = Vec::new();
        let mut account = None;
        let mut served = Vec::new();
        let deployments = self.list::<Deployment>().await;
        if version.is_ok() {
            for name in DEFINITIONS {
                definitions.push((name.to_owned(), self.definition(name).await));
            }
            let own = deployments
                .iter()
                .flatten()
                .find(|deployment| is_own_operator(deployment));
            let spec = own.and_then(|own| own.spec.as_ref()?.template.spec.as_ref());
            account = spec.and_then(|spec| spec.service_account_name.clone());
            let container = spec.and_then(|spec| spec.containers.first());
            let named = container.and_then(|container| variable(container, "OPERATOR_WATCH_NAMESPACES"));
            served = named
                .into_iter()
                .flat_map(|names| names.split(','))
                .map(str::to_owned)
                .collect();
        }
        let rights = match account {
            Some(account) => self.rights(&account, granted, &served).await,
            None => Err("the operator's Deployment, which names its account, was not found".to_owned()),
        };
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), &self.namespace);
        Facts {
            namespace: self.namespace.clone(),
            version,
            definitions,
            rights,
            deployments,
            // Without it nobody leads, which is what is told then.
            lease: leases.get(LEASE).await.ok(),
            now: Timestamp::now(),
            stateful_sets: self.list::<StatefulSet>().await,
            identities: self.list::<Identity>().await,
            control: None,
        }
    }

    async fn version(&self) -> Result<(u32, u32), String> {
        let info = self.client.apiserver_version().await.map_err(said)?;
        // Some clusters say "33+".
        let number = |text: &str| {
            text.trim_end_matches(|c: char| !c.is_ascii_digit())
                .parse::<u32>()
        };
        match (number(&info.major), number(&info.minor)) {
            (Ok(major), Ok(minor)) => Ok((major, minor)),
            _ => Err(format!("its version {}.{} is not known", info.major, info.minor)),
        }
    }

    async fn list<K>(&self) -> Result<Vec<K>, String>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.namespace);
        Ok(api.list(&ListParams::default()).await.map_err(said)?.items)
    }

    async fn definition(&self, name: &str) -> Definition {
        let resource = ApiResource {
            group: "apiextensions.k8s.io".to_owned(),
            version: "v1".to_owned(),
            api_version: "apiextensions.k8s.io/v1".to_owned(),
            kind: "CustomResourceDefinition".to_owned(),
            plural: "customresourcedefinitions".to_owned(),
        };
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
        let found = match api.get(name).await {
            Ok(found) => found,
            Err(error) if is_not_found(&error) => return Definition::Missing,
            Err(error) => return Definition::Unknown(said(error)),
        };
        let versions = found.data["spec"]["versions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let served = versions.iter().filter(|version| version["served"] == true);
        let served: Vec<_> = served.filter_map(|version| version["name"].as_str()).collect();
        if served.contains(&VERSION) {
            Definition::Served
        } else {
            Definition::OtherVersion(served.join(", "))
        }
    }

    /// Whether the operator's account has each right that the manifests grant.
    async fn rights(
        &self,
        account: &str,
        granted: &Granted,
        served: &[String],
    ) -> Result<Vec<(String, bool)>, String> {
        let places: Vec<Option<&str>> = match served {
            [] => vec![None],
            named => named.iter().map(|name| Some(name.as_str())).collect(),
        };
        let served = granted.served.iter();
        let served = served.flat_map(|rule| places.iter().flat_map(|place| questions(rule, *place)));
        let in_cluster = granted.cluster.iter().flat_map(|rule| questions(rule, None));
        let own = granted
            .namespace
            .iter()
            .flat_map(|rule| questions(rule, Some(&self.namespace)));
        let asked = served
            .chain(in_cluster)
            .chain(own)
            .map(|question| self.may(account, question));
        let answers: Vec<_> = futures::stream::iter(asked).buffered(PARALLEL).collect().await;
        answers.into_iter().collect()
    }

    async fn may(&self, account: &str, question: ResourceAttributes) -> Result<(String, bool), String> {
        let namespace = &self.namespace;
        let part = |text: &Option<String>| text.clone().unwrap_or_default();
        let subresource = question
            .subresource
            .as_ref()
            .map(|name| format!("/{name}"))
            .unwrap_or_default();
        let place = match &question.namespace {
            None => " in the whole cluster".to_owned(),
            Some(name) => format!(" in namespace {name}"),
        };
        let told = format!(
            "{} {}{subresource}{place}",
            part(&question.verb),
            part(&question.resource)
        );
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(format!("system:serviceaccount:{namespace}:{account}")),
                groups: Some(vec![
                    "system:serviceaccounts".to_owned(),
                    format!("system:serviceaccounts:{namespace}"),
                    "system:authenticated".to_owned(),
                ]),
                resource_attributes: Some(question),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &review).await.map_err(said)?;
        Ok((told, answer.status.is_some_and(|status| status.allowed)))
    }

    /// The operator's credentials, as its Deployment names them.
    ///
    /// # Errors
    /// When there are none that could be used from here.
    pub async fn credentials(&self) -> Result<Credentials> {
        let deployments = self.list::<Deployment>().await.map_err(anyhow::Error::msg)?;
        let own = deployments
            .into_iter()
            .find(is_own_operator)
            .context("there is no operator")?;
        let pod = own
            .spec
            .and_then(|spec| spec.template.spec)
            .context("it has no pods")?;
        let container = pod.containers.first().context("it has no container")?;
        if variable(container, "CLIENT_ID").is_some() {
            bail!("they are tokens of its account (workload identity), which only its own pod has");
        }
        let volumes = pod.volumes.iter().flatten();
        let names = volumes.filter_map(|volume| volume.secret.as_ref()?.secret_name.clone());
        let name = names.into_iter().next().context("they are in no Secret")?;
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let data = secrets
            .get(&name)
            .await
            .with_context(|| format!("Secret {name}"))?
            .data
            .unwrap_or_default();
        let value = |key: &str| {
            let value = data
                .get(key)
                .with_context(|| format!("Secret {name} has no {key}"))?;
            let text = std::str::from_utf8(&value.0).with_context(|| format!("{key} of Secret {name}"))?;
            anyhow::Ok(text.trim().to_owned())
        };
        let tags = variable(container, "PROXY_TAGS").unwrap_or("tag:k8s").split(',');
        Ok(Credentials {
            login_server: variable(container, "OPERATOR_LOGIN_SERVER")
                .unwrap_or_default()
                .to_owned(),
            api_url: variable(container, "OPERATOR_API_URL").map(str::to_owned),
            id: value("client_id")?,
            secret: control::Secret::new(value("client_secret")?),
            tags: tags.map(|tag| tag.trim().to_owned()).collect(),
        })
    }
}

/// Asks the control server for an auth key with these tags, and revokes it.
pub async fn ask(config: ClientConfig, tags: &[String]) -> Control {
    let shown = tags.join(", ");
    let client = match ControlClient::new(config) {
        Ok(client) => client,
        Err(error) => {
            return Control::NoCredentials {
                message: error.to_string(),
            };
        }
    };
    let outcome = async {
        client.verify().await?;
        let request = CreateKey {
            tags: tags.to_vec(),
            description: "tailwharf doctor".to_owned(),
            ..CreateKey::default()
        };
        let key = client.create_key(&request).await?;
        client.delete_key(&key.id).await
    };
    match outcome.await {
        Ok(()) => Control::GivesKeys { tags: shown },
        Err(control::Error::KeyRefused { message, .. }) => Control::TagsRefused { tags: shown, message },
        Err(error) if error.is_transient() => Control::Unreachable {
            message: error.to_string(),
        },
        Err(error) => Control::Refused {
            message: error.to_string(),
        },
    }
}

/// Each right of a rule as a question.
fn questions(rule: &PolicyRule, namespace: Option<&str>) -> Vec<ResourceAttributes> {
    let groups = rule.api_groups.as_deref().unwrap_or_default();
    let resources = rule.resources.as_deref().unwrap_or_default();
    let each = groups
        .iter()
        .flat_map(|group| resources.iter().map(move |resource| (group, resource)));
    each.flat_map(|(group, resource)| rule.verbs.iter().map(move |verb| (group, resource, verb)))
        .map(|(group, resource, verb)| {
            let (resource, subresource) = match resource.split_once('/') {
                Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
                None => (resource.as_str(), None),
            };
            ResourceAttributes {
                group: Some(group.clone()),
                resource: Some(resource.to_owned()),
                subresource,
                verb: Some(verb.clone()),
                namespace: namespace.map(str::to_owned),
                ..ResourceAttributes::default()
            }
        })
        .collect()
}

fn variable<'a>(container: &'a Container, name: &str) -> Option<&'a str> {
    let found = container
        .env
        .iter()
        .flatten()
        .find(|variable| variable.name == name)?;
    found.value.as_deref().filter(|value| !value.is_empty())
}

fn said(error: impl Display) -> String {
    error.to_string()
}
