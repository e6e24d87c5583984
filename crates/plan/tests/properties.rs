//! What holds for every history: planning what was applied changes nothing, what is not ours stays as it is, and no device is forgotten.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that fails says where"
)]

mod harness;

use harness::{NAMESPACE, World, at, settings};
use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};
use tailwharf_kube_types::contract::{FINALIZER, MAX_IDENTITY_NAME};
use tailwharf_kube_types::{Identity, Tag};
use tailwharf_plan::{Kind, ObjectRef, Settings, operator_device, service};

const SERVICE: (&str, &str) = ("default", "nginx");

/// Something that happens.
#[derive(Clone, Debug)]
enum Act {
    Expose {
        hostname: Option<&'static str>,
        tags: Option<&'static str>,
        ports: u16,
        /// It is to stand for this instead.
        reaches: Option<&'static str>,
    },
    Hide,
    Delete,
    /// The operator looks at the Service, and may die after some steps.
    Operator {
        steps: usize,
    },
    /// The operator looks at the pool.
    Pool,
    HostReads,
    HostRegisters,
    /// It registers and dies before it writes that down.
    HostDies,
    ControlServer {
        down: bool,
    },
    Wait,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        2 => (
            prop_oneof![Just(None), Just(Some("web")), Just(Some("db"))],
            prop_oneof![Just(None), Just(Some("tag:web")), Just(Some("tag:b,tag:a"))],
            1..4_u16,
            prop_oneof![3 => Just(None), 1 => Just(Some("db")), 1 => Just(Some("a.other.example,b"))],
        ).prop_map(|(hostname, tags, ports, reaches)| Act::Expose { hostname, tags, ports, reaches }),
        1 => Just(Act::Hide),
        1 => Just(Act::Delete),
        6 => prop_oneof![3 => Just(usize::MAX), 1 => 0..5_usize].prop_map(|steps| Act::Operator { steps }),
        3 => Just(Act::Pool),
        3 => Just(Act::HostReads),
        3 => Just(Act::HostRegisters),
        2 => Just(Act::HostDies),
        1 => any::<bool>().prop_map(|down| Act::ControlServer { down }),
        2 => Just(Act::Wait),
    ]
}

struct Play {
    world: World,
    settings: Settings,
    now: i64,
    services: u32,
}

impl Play {
    fn new() -> Self {
        let mut world = World::default();
        for (object, body) in foreign() {
            world.put(object, body);
        }
        world.devices.insert("foreign".to_owned(), "tag:k8s".to_owned());
        Self {
            world,
            settings: settings(),
            now: 0,
            services: 0,
        }
    }

    fn now(&self) -> Timestamp {
        at(self.now)
    }

    fn service(&self) -> ObjectRef {
        ObjectRef::new(Kind::Service, SERVICE.0, SERVICE.1)
    }

    fn happen(&mut self, act: &Act) {
        let key = self.service();
        match act {
            Act::Expose {
                hostname,
                tags,
                ports,
                reaches,
            } => {
                let mut body = self
                    .living()
                    .unwrap_or_else(|| json!({"metadata": {"uid": "none"}}));
                if body["metadata"]["uid"] == "none" {
                    if self.world.objects.contains_key(&key) {
                        return; // It is being deleted.
                    }
                    self.services += 1;
                    body["metadata"]["uid"] = json!(format!("uid-of-service-{}", self.services));
                }
                let mut annotations = match reaches {
                    Some(targets) => json!({"tailscale.com/tailnet-fqdn": targets}),
                    None => json!({"tailscale.com/expose": "true"}),
                };
                if let Some(hostname) = hostname {
                    annotations["tailscale.com/hostname"] = json!(hostname);
                }
                if let Some(tags) = tags {
                    annotations["tailscale.com/tags"] = json!(tags);
                }
                body["metadata"]["annotations"] = annotations;
                let ports: Vec<Value> = (0..*ports)
                    .map(|n| json!({"name": format!("p{n}"), "port": 80 + n}))
                    .collect();
                body["spec"] = if reaches.is_some() {
                    json!({"type": "ExternalName", "externalName": "placeholder", "ports": ports})
                } else {
                    json!({"type": "ClusterIP", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ports": ports})
                };
                self.world.put(key, body);
            }
            Act::Hide => {
                if let Some(mut body) = self.living() {
                    body["metadata"]["annotations"] = json!({});
                    self.world.put(key, body);
                }
            }
            Act::Delete => {
                if let Some(mut body) = self.living() {
                    if body["metadata"]["finalizers"]
                        .as_array()
                        .is_none_or(Vec::is_empty)
                    {
                        self.world.objects.remove(&key);
                    } else {
                        body["metadata"]["deletionTimestamp"] = json!(self.now().to_string());
                        self.world.put(key, body);
                    }
                }
            }
            Act::Operator { steps } => {
                self.world
                    .reconcile_service(SERVICE.0, SERVICE.1, &self.settings, self.now(), *steps);
            }
            Act::Pool => {
                self.world.reconcile_pool(&self.settings, usize::MAX);
            }
            Act::HostReads => self.each_identity(World::host_reads),
            Act::HostRegisters => {
                let now = self.now();
                self.each_identity(|world, name| world.host_registers(name, now));
            }
            Act::HostDies => self.each_identity(|world, name| {
                world.host_registers_and_dies(name);
            }),
            Act::ControlServer { down } => self.world.control_down = *down,
            Act::Wait => {
                self.now += 11;
            }
        }
    }

    /// The names of all identities that ever were, so that a late host can act for one that is gone.
    fn each_identity(&mut self, act: impl Fn(&mut World, &str)) {
        for n in 1..=self.services {
            let name = tailwharf_kube_types::names::identity_name(SERVICE.1, &format!("uid-of-service-{n}"));
            act(&mut self.world, &name);
        }
    }

    fn living(&self) -> Option<Value> {
        let body = self.world.objects.get(&self.service())?;
        body["metadata"]
            .get("deletionTimestamp")
            .is_none()
            .then(|| body.clone())
    }

    fn own_devices(&self) -> Vec<(&String, &String)> {
        self.world
            .devices
            .iter()
            .filter(|(id, _)| *id != "foreign")
            .collect()
    }

    /// Everything works again and acts until nothing changes.
    fn settle(&mut self) {
        for _ in 0..12 {
            for act in [
                Act::ControlServer { down: false },
                Act::Operator { steps: usize::MAX },
                Act::Pool,
                Act::HostReads,
                Act::HostRegisters,
                Act::Wait,
            ] {
                self.happen(&act);
            }
        }
    }

    /// Whoever has a device can find it again.
    fn check_nothing_forgotten(&self) {
        let secrets = self
            .world
            .of_kind::<k8s_openapi::api::core::v1::Secret>(Kind::Secret);
        for (device, _) in self.own_devices() {
            let known = secrets.iter().any(|secret| {
                let view = tailwharf_plan::identity::SecretView::from_secret(secret);
                let by_key = view.node_key.and_then(|key| self.world.registered.get(&key));
                view.device_id.as_ref() == Some(device) || by_key == Some(device)
            });
            assert!(known, "device {device} is in no Secret");
            let service = self
                .world
                .objects
                .get(&self.service())
                .expect("a device outlives its Service");
            let finalizers = service["metadata"]["finalizers"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            assert!(
                finalizers.contains(&json!(FINALIZER)),
                "the Service of device {device} has no finalizer"
            );
        }
    }

    /// Pods are led to the hosting pod if the Service stands for something on the tailnet, and nowhere if not.
    fn check_led(&self, reaches: bool) {
        let own = |object: &&ObjectRef| object.namespace == NAMESPACE && object.name.starts_with("ts-nginx-");
        let of = |kind: Kind| {
            self.world
                .objects
                .keys()
                .filter(own)
                .filter(move |object| object.kind == kind)
        };
        assert_eq!(of(Kind::Service).count(), usize::from(reaches));
        assert_eq!(of(Kind::EndpointSlice).count(), 2 * usize::from(reaches));
        let Some(child) = of(Kind::Service).next() else {
            return;
        };
        let slice = &self.world.objects
            [&ObjectRef::new(Kind::EndpointSlice, NAMESPACE, &format!("{}-ipv4", child.name))];
        assert_eq!(slice["endpoints"][0]["addresses"], json!(["10.244.0.7"]));
        let targets = |ports: &Value, field: &str| -> Vec<Value> {
            ports
                .as_array()
                .unwrap()
                .iter()
                .map(|port| port[field].clone())
                .collect()
        };
        assert_eq!(
            targets(&slice["ports"], "port"),
            targets(&self.world.objects[child]["spec"]["ports"], "targetPort")
        );
        let spec = &self.world.objects[&self.service()]["spec"];
        assert_eq!(
            spec["externalName"],
            json!(format!("{}.{NAMESPACE}.svc.cluster.local", child.name))
        );
    }

    fn check_foreign_untouched(&self) {
        for (object, body) in foreign() {
            let mut found = self
                .world
                .objects
                .get(&object)
                .expect("a foreign object is gone")
                .clone();
            found["metadata"]
                .as_object_mut()
                .unwrap()
                .remove("resourceVersion");
            // What it is told is all that happens to it.
            found.as_object_mut().unwrap().remove("status");
            let mut body = body;
            body["metadata"]["name"] = json!(object.name);
            body["metadata"]["namespace"] = json!(object.namespace);
            assert_eq!(found, body, "{object} was changed");
        }
        assert!(self.world.devices.contains_key("foreign"));
    }
}

/// Objects of others that look like ours.
fn foreign() -> Vec<(ObjectRef, Value)> {
    let labels = |name: &str| {
        json!({
            "tailscale.com/managed": "true", "tailscale.com/parent-resource-type": "svc",
            "tailscale.com/parent-resource": name, "tailscale.com/parent-resource-ns": "default",
        })
    };
    let mut unmanaged = labels("nginx");
    unmanaged.as_object_mut().unwrap().remove("tailscale.com/managed");
    vec![
        // Without all labels, although the name could be ours.
        (
            ObjectRef::new(Kind::Secret, NAMESPACE, "ts-nginx-aaaaa-0"),
            json!({"metadata": {"labels": unmanaged}, "data": {"device_id": "Zm9yZWlnbg=="}}),
        ),
        // Of another Service.
        (
            ObjectRef::new(Kind::Secret, NAMESPACE, "ts-other-bbbbb-0"),
            json!({"metadata": {"labels": labels("other")}, "data": {"device_id": "Zm9yZWlnbg=="}}),
        ),
        // With the finalizer, but of a ProxyGroup.
        (
            ObjectRef::new(Kind::Service, "default", "grouped"),
            json!({"metadata": {"finalizers": [FINALIZER], "annotations": {"tailscale.com/proxy-group": "ingress", "tailscale.com/expose": "true"}}, "spec": {"clusterIP": "10.96.0.11"}}),
        ),
        (
            ObjectRef::new(Kind::ServiceAccount, NAMESPACE, "tailwharf-default"),
            json!({"metadata": {"labels": {"app": "theirs"}}}),
        ),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_history_forgets_a_device_or_touches_what_is_not_ours(acts in prop::collection::vec(act(), 1..40)) {
        let mut play = Play::new();
        for act in &acts {
            play.happen(act);
            play.world.reconcile_service("default", "grouped", &play.settings.clone(), play.now(), usize::MAX);
            play.check_nothing_forgotten();
            play.check_foreign_untouched();
        }
        play.settle();
        play.check_nothing_forgotten();
        play.check_foreign_untouched();

        let asks = |body: &Value, key: &str| body["metadata"]["annotations"].get(key).is_some();
        let reaches = play.living().is_some_and(|body| asks(&body, "tailscale.com/tailnet-fqdn"));
        play.check_led(reaches);
        let exposed = play.living().filter(|body| reaches || asks(body, "tailscale.com/expose"));
        let identities = play.world.of_kind::<Identity>(Kind::Identity);
        match exposed {
            None => {
                prop_assert!(play.own_devices().is_empty());
                prop_assert!(identities.is_empty());
                // Of the operator's device, of the pool's accounts, and one that is not ours.
                prop_assert_eq!(play.world.objects.keys().filter(|object| object.kind == Kind::Secret).count(), 3);
                if let Some(body) = play.living() {
                    prop_assert_eq!(&body["metadata"]["finalizers"].as_array().cloned().unwrap_or_default(), &Vec::<Value>::new());
                }
            }
            Some(body) => {
                prop_assert_eq!(identities.len(), 1);
                let name = identities[0].metadata.name.clone().unwrap();
                prop_assert!(name.len() <= MAX_IDENTITY_NAME);
                let wanted = body["metadata"]["annotations"]["tailscale.com/tags"].as_str().unwrap_or("tag:k8s");
                let wanted = Tag::join(&Tag::parse_list(wanted).unwrap());
                let devices = play.own_devices();
                prop_assert_eq!(devices.len(), 1);
                prop_assert_eq!(devices[0].1, &wanted);
                let condition = &body["status"]["conditions"][0];
                prop_assert_eq!(&condition["status"], "True", "{}", condition);
            }
        }
    }

    #[test]
    fn an_operator_that_leaves_takes_with_it_what_is_its_own(acts in prop::collection::vec(act(), 1..30)) {
        let mut play = Play::new();
        let settings = play.settings.clone();
        play.world.reconcile_operator(&settings, play.now(), usize::MAX);
        acts.iter().for_each(|act| play.happen(act));
        play.settings.releasing = true;
        let settings = play.settings.clone();
        for _ in 0..2 {
            play.world.reconcile_operator(&settings, play.now(), usize::MAX);
            play.settle();
            play.check_nothing_forgotten();
        }
        prop_assert!(play.own_devices().is_empty());
        play.check_foreign_untouched();
        let people_have = |object: &&ObjectRef| **object == play.service() || foreign().iter().any(|(theirs, _)| theirs == *object);
        let left: Vec<_> = play.world.objects.keys().filter(|object| !people_have(object)).collect();
        prop_assert!(left.is_empty(), "{:?}", left);
        if let Some(service) = play.living() {
            prop_assert_eq!(&service["metadata"]["finalizers"].as_array().cloned().unwrap_or_default(), &Vec::<Value>::new());
        }
    }

    #[test]
    fn planning_what_was_applied_changes_nothing(acts in prop::collection::vec(act(), 1..30)) {
        let mut play = Play::new();
        acts.iter().for_each(|act| play.happen(act));
        play.settle();
        for _ in 0..2 {
            let before = play.world.clone();
            let settings = play.settings.clone();
            let pass = play.world.reconcile_service(SERVICE.0, SERVICE.1, &settings, play.now(), usize::MAX);
            prop_assert!(pass.plan.is_empty(), "{:?}", pass.plan);
            prop_assert!(pass.status.patch.is_none() && pass.status.events.is_empty(), "{:?}", pass.status);
            prop_assert!(pass.plan.wake_at.is_none());
            let plan = play.world.reconcile_pool(&settings, usize::MAX);
            prop_assert!(plan.is_empty(), "{:?}", plan);
            prop_assert!(play.world == before);
            play.now += 3600;
        }
    }

    #[test]
    fn the_same_snapshot_gives_the_same_plan(acts in prop::collection::vec(act(), 1..30)) {
        let mut play = Play::new();
        acts.iter().for_each(|act| play.happen(act));
        let snapshot = play.world.service_snapshot(SERVICE.0, SERVICE.1, &play.settings);
        let text = || {
            let validated = service::validate(&snapshot, &play.settings);
            let plan = validated.as_ref().map(|validated| service::build(validated, &play.settings, play.now())).unwrap_or_default();
            let applied = tailwharf_plan::Applied::complete(plan.steps.len());
            let status = service::status(&snapshot, &validated, &plan, &applied, &play.settings, play.now());
            serde_json::to_string(&json!({"plan": plan, "status": status})).unwrap()
        };
        prop_assert_eq!(text(), text());
    }
}

#[test]
fn the_operators_device_reaches_its_fixed_point() {
    let mut play = Play::new();
    let settings = play.settings.clone();
    let name = tailwharf_kube_types::names::OPERATOR_IDENTITY;
    for _ in 0..4 {
        play.world.reconcile_operator(&settings, at(0), usize::MAX);
        play.world.reconcile_pool(&settings, usize::MAX);
        play.world.host_reads(name);
        play.world.host_registers(name, at(1));
    }
    let plan = play.world.reconcile_operator(&settings, at(2), usize::MAX);
    assert!(plan.is_empty() && plan.report.0.is_empty(), "{plan:?}");
    assert_eq!(play.own_devices().len(), 1);
    assert_eq!(operator_device::parent(&settings).namespace, NAMESPACE);
}

#[test]
fn a_pool_without_identities_may_read_its_accounts_alone() {
    let mut play = Play::new();
    let settings = play.settings.clone();
    play.world.objects.retain(|object, _| object.kind != Kind::Secret);
    play.world.reconcile_pool(&settings, usize::MAX);
    let role: k8s_openapi::api::rbac::v1::Role = play
        .world
        .get(Kind::Role, NAMESPACE, "tailwharf-default")
        .unwrap();
    let on_secrets = role
        .rules
        .unwrap()
        .into_iter()
        .filter(|rule| rule.resources.iter().flatten().any(|name| name == "secrets"));
    let names: Vec<_> = on_secrets
        .map(|rule| rule.resource_names.unwrap_or_default())
        .collect();
    assert_eq!(names, [["tailwharf-default-acme"]]);
}
