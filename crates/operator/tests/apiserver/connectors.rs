//! Connectors and ProxyClasses.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tailwharf_control_api::fake::Asked;
use tailwharf_kube_types::contract::{CONNECTOR_READY, PROXY_CLASS_READY, ROUTES_APPROVED};
use tailwharf_kube_types::{Connector, Identity, ProxyClass};

use crate::bed::{Bed, Cluster, NAMESPACE, exposed, until};

impl Cluster {
    pub(crate) fn connectors(&self) -> Api<Connector> {
        Api::all(self.client.clone())
    }

    fn classes(&self) -> Api<ProxyClass> {
        Api::all(self.client.clone())
    }

    pub(crate) async fn connector(&self, name: &str, spec: Value) -> Result<()> {
        let body = json!({"apiVersion": "tailscale.com/v1alpha1", "kind": "Connector", "metadata": {"name": name}, "spec": spec});
        self.connectors()
            .create(&PostParams::default(), &serde_json::from_value(body)?)
            .await?;
        Ok(())
    }

    async fn class(&self, name: &str, spec: Value) -> Result<()> {
        let body = json!({"apiVersion": "tailscale.com/v1alpha1", "kind": "ProxyClass", "metadata": {"name": name}, "spec": spec});
        self.classes()
            .create(&PostParams::default(), &serde_json::from_value(body)?)
            .await?;
        Ok(())
    }

    async fn connector_condition(
        &self,
        name: &str,
        type_: &str,
        wanted: impl Fn(&Condition) -> bool,
    ) -> Result<Connector> {
        until("the condition of the Connector", async || {
            let connector = self.connectors().get(name).await?;
            let conditions = connector
                .status
                .as_ref()
                .and_then(|status| status.conditions.clone())
                .unwrap_or_default();
            let found = conditions.iter().find(|condition| condition.type_ == type_);
            let found = found.with_context(|| format!("no {type_} among {conditions:?}"))?;
            ensure!(wanted(found), "{found:?}");
            Ok(connector)
        })
        .await
    }

    /// Waits for the Identities of a Connector.
    pub(crate) async fn devices(&self, connector: &str, count: usize) -> Result<Vec<Identity>> {
        let selector =
            format!("tailscale.com/parent-resource-type=connector,tailscale.com/parent-resource={connector}");
        until("the Identities", async || {
            let list = self
                .identities()
                .list(&ListParams::default().labels(&selector))
                .await?;
            ensure!(list.items.len() == count, "{} Identities", list.items.len());
            Ok(list.items)
        })
        .await
    }

    /// Tells as the hosting pod which routes the tailnet has approved.
    async fn approve(&self, identity: &Identity, routes: &[&str]) -> Result<()> {
        let patch = Patch::Merge(json!({"status": {"routes": routes}}));
        self.identities()
            .patch_status(&identity.name_any(), &PatchParams::default(), &patch)
            .await?;
        Ok(())
    }
}

pub(crate) fn the_schema_refuses_what_cannot_work(bed: &mut Bed) -> Result<()> {
    let Bed { runtime, cluster, .. } = bed;
    let routes = json!({"advertiseRoutes": ["10.40.0.0/14"]});
    let good = [
        json!({"subnetRouter": routes}),
        json!({"exitNode": true}),
        json!({"appConnector": {}}),
        json!({"appConnector": {"routes": ["192.0.2.0/24"]}, "exitNode": false}),
        json!({"subnetRouter": routes, "exitNode": true, "tags": ["tag:a-1"], "replicas": 3, "hostnamePrefix": "way"}),
        json!({"exitNode": true, "hostname": "one", "replicas": 1}),
        json!({"exitNode": true, "replicas": 0, "proxyClass": "x", "tailnet": "y"}),
    ];
    let bad = [
        (json!({}), "does nothing without a role"),
        (json!({"exitNode": false}), "does nothing without a role"),
        (
            json!({"appConnector": {}, "exitNode": true}),
            "cannot be a subnet router or an exit node",
        ),
        (
            json!({"appConnector": {}, "subnetRouter": routes}),
            "cannot be a subnet router or an exit node",
        ),
        (
            json!({"exitNode": true, "hostname": "one", "replicas": 2}),
            "Several replicas cannot have one hostname",
        ),
        (
            json!({"exitNode": true, "hostname": "one", "hostnamePrefix": "way"}),
            "exclude each other",
        ),
        (
            json!({"exitNode": true, "hostnamePrefix": "a".repeat(62)}),
            "use a shorter prefix",
        ),
        (json!({"exitNode": true, "hostname": "One"}), "spec.hostname"),
        (json!({"exitNode": true, "tags": ["web"]}), "spec.tags"),
        (json!({"exitNode": true, "replicas": -1}), "spec.replicas"),
        (json!({"subnetRouter": {}}), "advertiseRoutes"),
        (
            json!({"subnetRouter": {"advertiseRoutes": []}}),
            "advertiseRoutes",
        ),
        (
            json!({"subnetRouter": {"advertiseRoutes": ["ten"]}}),
            "advertiseRoutes",
        ),
    ];
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    runtime.block_on(async {
        let create = async |spec: &Value| {
            let body = json!({"apiVersion": "tailscale.com/v1alpha1", "kind": "Connector", "metadata": {"name": "dry"}, "spec": spec});
            let object: kube::api::DynamicObject = serde_json::from_value(body)?;
            let resource = kube::core::ApiResource::erase::<Connector>(&());
            let api: Api<kube::api::DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
            anyhow::Ok(api.create(&dry, &object).await?)
        };
        for spec in &good {
            create(spec).await.with_context(|| spec.to_string())?;
        }
        for (spec, why) in &bad {
            let error = create(spec).await.err().with_context(|| format!("{spec} was taken"))?;
            let text = format!("{error:#}");
            ensure!(text.contains(why), "{spec}: {text}");
        }
        let class = json!({"apiVersion": "tailscale.com/v1alpha1", "kind": "ProxyClass", "metadata": {"name": "dry"},
            "spec": {"metrics": {"enable": false, "serviceMonitor": {"enable": true}}}});
        let refused = cluster.classes().create(&dry, &serde_json::from_value(class)?).await;
        ensure!(refused.is_err(), "a ServiceMonitor without metrics was taken");
        let class = json!({"apiVersion": "tailscale.com/v1alpha1", "kind": "ProxyClass", "metadata": {"name": "dry"},
            "spec": {"statefulSet": {"pod": {
                "tailscaleContainer": {"resources": {"limits": {"cpu": 1, "memory": "64Mi"}}, "securityContext": {"privileged": true}},
                "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
                    {"weight": 1, "podAffinityTerm": {"topologyKey": "zone", "labelSelector": {"matchLabels": {"a": "b"}}}}]}},
                "tolerations": [{"operator": "Exists"}]}}}});
        cluster.classes().create(&dry, &serde_json::from_value(class)?).await?;
        Ok(())
    })
}

pub(crate) fn a_connector_gets_devices_and_loses_them(bed: &mut Bed) -> Result<()> {
    let Bed {
        runtime,
        cluster,
        tailnet,
    } = bed;
    runtime.block_on(async {
        let operator = cluster.operate(tailnet.clone())?;
        cluster.settled(tailnet).await?;
        let routes = ["10.40.0.0/14", "10.96.0.0/16"];
        let spec =
            json!({"subnetRouter": {"advertiseRoutes": routes}, "hostnamePrefix": "way", "replicas": 2});
        cluster.connector("way", spec).await?;
        let identities = cluster.devices("way", 2).await?;
        let mut hosts = Vec::new();
        for identity in &identities {
            let router = identity.spec.router.clone().unwrap_or_default();
            ensure!(
                router
                    .routes
                    .iter()
                    .map(ToString::to_string)
                    .eq(["10.40.0.0/14", "10.96.0.0/16"])
            );
            hosts.push(cluster.host(tailnet, identity).await?);
        }
        let connector = cluster
            .connector_condition("way", CONNECTOR_READY, |condition| {
                condition.reason == "ConnectorCreated"
            })
            .await?;
        let status = connector.status.unwrap_or_default();
        ensure!(
            status.subnet_routes.as_deref() == Some("10.40.0.0/14,10.96.0.0/16"),
            "{status:?}"
        );
        ensure!(status.is_exit_node == Some(false) && status.is_app_connector == Some(false));
        let devices = status.devices.unwrap_or_default();
        ensure!(
            devices.len() == 2 && status.hostname == devices[0].hostname,
            "{devices:?}"
        );
        cluster
            .connector_condition("way", ROUTES_APPROVED, |condition| {
                condition.reason == "RoutesPending"
            })
            .await?;
        for identity in &identities {
            cluster.approve(identity, &routes).await?;
        }
        cluster
            .connector_condition("way", ROUTES_APPROVED, |condition| condition.status == "True")
            .await?;
        let events: Api<Event> = Api::namespaced(cluster.client.clone(), "default");
        let told = events.list(&ListParams::default()).await?;
        let pending = told
            .iter()
            .any(|event| event.reason.as_deref() == Some("RoutesPending"));
        ensure!(pending, "no event about routes that are not approved");

        let fewer = Patch::Merge(json!({"spec": {"replicas": 1}}));
        cluster
            .connectors()
            .patch("way", &PatchParams::default(), &fewer)
            .await?;
        cluster.devices("way", 1).await?;
        cluster
            .connectors()
            .delete("way", &DeleteParams::default())
            .await?;
        cluster.empty().await?;
        for host in hosts {
            ensure!(tailnet.asked().contains(&Asked::DeleteDevice(host.id)));
        }
        operator.stop().await
    })
}

pub(crate) fn a_class_selects_a_pool_and_keeps_the_key(bed: &mut Bed) -> Result<()> {
    let Bed {
        runtime,
        cluster,
        tailnet,
    } = bed;
    runtime.block_on(async {
        cluster.namespace("classes").await?;
        let operator = cluster.operate(tailnet.clone())?;
        cluster.settled(tailnet).await?;
        let spec = json!({"statefulSet": {"pod": {"nodeSelector": {"disk": "fast"}}, "patch": {"spec": {"replicas": 1}}}});
        cluster.class("fast", spec).await?;
        until("the class is ready", async || {
            let class = cluster.classes().get("fast").await?;
            ensure!(class.is_ready(), "{:?}", class.status);
            Ok(())
        })
        .await?;

        let service = cluster.service("classes", "web", &exposed()).await?;
        let identity = cluster.identity(&service).await?;
        let device = cluster.host(tailnet, &identity).await?;
        let with_class = json!({"metadata": {"labels": {"tailscale.com/proxy-class": "fast"}}});
        cluster.change("classes", "web", &with_class).await?;
        until("the Identity is in the pool of the class", async || {
            let identity = cluster.identities().get(&identity.name_any()).await?;
            ensure!(identity.spec.pool == "fast", "{}", identity.spec.pool);
            ensure!(identity.labels()["tailwharf.dev/pool"] == "fast");
            Ok(())
        })
        .await?;
        let sets: Api<StatefulSet> = Api::namespaced(cluster.client.clone(), NAMESPACE);
        let set = until("the pool has its pods", async || Ok(sets.get("tailwharf-fast").await?)).await?;
        let pods = set.spec.context("a spec")?;
        ensure!(pods.replicas == Some(1));
        let selector = pods.template.spec.and_then(|pod| pod.node_selector);
        ensure!(selector.is_some_and(|labels| labels["disk"] == "fast"));
        let secret = cluster.secrets().get(&format!("{}-0", identity.name_any())).await?;
        let id = secret.data.unwrap_or_default().remove("device_id").context("a device")?;
        ensure!(id.0 == device.id.to_string().into_bytes(), "the device is another one");

        let unknown = json!({"metadata": {"labels": {"tailscale.com/proxy-class": "slow"}}});
        cluster.change("classes", "web", &unknown).await?;
        cluster
            .condition("classes", "web", |condition| {
                condition.reason == "ProxyFailed" && condition.message.contains("slow")
            })
            .await?;
        cluster.delete("classes", "web").await?;
        cluster.empty().await?;
        until("the pool is gone", async || {
            ensure!(sets.get_opt("tailwharf-fast").await?.is_none());
            Ok(())
        })
        .await?;

        let broken = json!({"statefulSet": {"patch": {"spec": {"selector": null}}}});
        cluster.class("broken", broken).await?;
        until("the class is refused", async || {
            let class = cluster.classes().get("broken").await?;
            let condition = class.condition().context(PROXY_CLASS_READY)?;
            ensure!(condition.reason == "ProxyClassInvalid", "{condition:?}");
            Ok(())
        })
        .await?;
        operator.stop().await
    })
}
