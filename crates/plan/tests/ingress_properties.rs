//! What holds for every history of an Ingress: planning what was applied changes nothing, what is not ours stays as it is, no device is forgotten, and a
//! certificate that the Identity names is in its Secret.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that fails says where"
)]

mod harness;

use harness::{NAMESPACE, World, at, settings};
use k8s_openapi::api::core::v1::Secret;
use proptest::prelude::*;
use serde_json::{Value, json};
use tailwharf_kube_types::contract::{FINALIZER, PARKED_POOL};
use tailwharf_kube_types::{Identity, names};
use tailwharf_plan::identity::SecretView;
use tailwharf_plan::ingress::{CertificateFacts, CertificateSecret};
use tailwharf_plan::{Kind, ObjectRef, Settings};

/// Something that happens.
#[derive(Clone, Debug)]
enum Act {
    Serve {
        host: &'static str,
        class: &'static str,
        path: &'static str,
        tags: Option<&'static str>,
    },
    Delete,
    /// The Service behind it comes or goes.
    Service {
        there: bool,
    },
    /// The Secret with the certificate of `own.test` changes.
    Certificate(Certificate),
    /// An older Ingress with the name comes or goes.
    Rival {
        there: bool,
    },
    Operator {
        steps: usize,
    },
    Pool,
    HostReads,
    HostRegisters,
    HostDies,
    ControlServer {
        down: bool,
    },
    Wait,
}

#[derive(Clone, Debug)]
enum Certificate {
    Good {
        digest: &'static str,
    },
    /// For another name.
    Mistaken,
    Expired,
    Bad,
    Missing,
}

fn act() -> impl Strategy<Value = Act> {
    let certificate = prop_oneof![
        prop_oneof![Just("aaaaaaaaaaaaaaaa"), Just("bbbbbbbbbbbbbbbb")]
            .prop_map(|digest| Certificate::Good { digest }),
        Just(Certificate::Mistaken),
        Just(Certificate::Expired),
        Just(Certificate::Bad),
        Just(Certificate::Missing),
    ];
    prop_oneof![
        2 => (
            prop_oneof![Just("web"), Just("shop.example.com"), Just("-bad-")],
            prop_oneof![4 => Just("tailscale"), 1 => Just("nginx")],
            prop_oneof![Just("/"), Just("/api"), Just(""), Just("no-slash")],
            prop_oneof![Just(None), Just(Some("tag:web")), Just(Some("web"))],
        ).prop_map(|(host, class, path, tags)| Act::Serve { host, class, path, tags }),
        1 => Just(Act::Delete),
        1 => any::<bool>().prop_map(|there| Act::Service { there }),
        2 => certificate.prop_map(Act::Certificate),
        1 => any::<bool>().prop_map(|there| Act::Rival { there }),
        6 => prop_oneof![3 => Just(usize::MAX), 1 => 0..5_usize].prop_map(|steps| Act::Operator { steps }),
        3 => Just(Act::Pool),
        3 => Just(Act::HostReads),
        3 => Just(Act::HostRegisters),
        1 => Just(Act::HostDies),
        1 => any::<bool>().prop_map(|down| Act::ControlServer { down }),
        2 => Just(Act::Wait),
    ]
}

struct Play {
    world: World,
    settings: Settings,
    now: i64,
    ingresses: u32,
}

fn key() -> ObjectRef {
    ObjectRef::new(Kind::Ingress, "default", "nginx")
}

fn foreign() -> Vec<(ObjectRef, Value)> {
    let labels = json!({
        "tailscale.com/managed": "true", "tailscale.com/parent-resource-type": "svc",
        "tailscale.com/parent-resource": "nginx", "tailscale.com/parent-resource-ns": "default",
    });
    vec![
        // Of the Service of the same name.
        (
            ObjectRef::new(Kind::Secret, NAMESPACE, "ts-nginx-aaaaa-0"),
            json!({"metadata": {"labels": labels}, "data": {"device_id": "Zm9yZWlnbg=="}}),
        ),
        // With the finalizer, but of a ProxyGroup.
        (
            ObjectRef::new(Kind::Ingress, "default", "grouped"),
            json!({"metadata": {"finalizers": [FINALIZER], "annotations": {"tailscale.com/proxy-group": "ingress"}}, "spec": {"ingressClassName": "tailscale"}}),
        ),
    ]
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
            ingresses: 0,
        }
    }

    fn living(&self) -> Option<Value> {
        let body = self.world.objects.get(&key())?;
        body["metadata"]
            .get("deletionTimestamp")
            .is_none()
            .then(|| body.clone())
    }

    fn happen(&mut self, act: &Act) {
        match act {
            Act::Serve {
                host,
                class,
                path,
                tags,
            } => self.serve(host, class, path, *tags),
            Act::Delete => {
                if let Some(mut body) = self.living() {
                    if body["metadata"]["finalizers"]
                        .as_array()
                        .is_none_or(Vec::is_empty)
                    {
                        self.world.objects.remove(&key());
                    } else {
                        body["metadata"]["deletionTimestamp"] = json!(at(self.now).to_string());
                        self.world.put(key(), body);
                    }
                }
            }
            Act::Service { there } => {
                let service = ObjectRef::new(Kind::Service, "default", "web");
                let spec = json!({"type": "ClusterIP", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ports": [{"port": 80}]});
                match there {
                    true => self
                        .world
                        .put(service, json!({"metadata": {"uid": "s"}, "spec": spec})),
                    false => drop(self.world.objects.remove(&service)),
                }
            }
            Act::Certificate(certificate) => self.certificate(certificate),
            Act::Rival { there } => {
                let rival = ObjectRef::new(Kind::Ingress, "shop", "first");
                let body = json!({
                    "metadata": {"uid": "r", "creationTimestamp": "2020-01-01T00:00:00Z"},
                    "spec": {"ingressClassName": "tailscale", "tls": [{"hosts": ["web"]}]},
                });
                match there {
                    true => self.world.put(rival, body),
                    false => drop(self.world.objects.remove(&rival)),
                }
            }
            Act::Operator { steps } => {
                let now = at(self.now);
                self.world
                    .reconcile_ingress("default", "nginx", &self.settings, now, *steps);
            }
            Act::Pool => drop(self.world.reconcile_pool(&self.settings, usize::MAX)),
            Act::HostReads => self.each_identity(World::host_reads),
            Act::HostRegisters => {
                let now = at(self.now);
                self.each_identity(|world, name| world.host_registers(name, now));
            }
            Act::HostDies => self.each_identity(|world, name| drop(world.host_registers_and_dies(name))),
            Act::ControlServer { down } => self.world.control_down = *down,
            Act::Wait => self.now += 11,
        }
    }

    fn serve(&mut self, host: &str, class: &str, path: &str, tags: Option<&str>) {
        let mut body = match self.living() {
            Some(body) => body,
            None if self.world.objects.contains_key(&key()) => return, // It is being deleted.
            None => {
                self.ingresses += 1;
                json!({"metadata": {"uid": format!("uid-{}", self.ingresses), "creationTimestamp": at(self.now).to_string()}})
            }
        };
        body["metadata"]["annotations"] = match tags {
            Some(tags) => json!({"tailscale.com/tags": tags}),
            None => json!({}),
        };
        let backend = json!({"service": {"name": "web", "port": {"number": 80}}});
        body["spec"] = json!({
            "ingressClassName": class,
            "tls": [{"hosts": [host]}, {"hosts": ["own.test"], "secretName": "own"}],
            "rules": [{"http": {"paths": [{"path": path, "pathType": "ImplementationSpecific", "backend": backend}]}}],
        });
        self.world.put(key(), body);
    }

    fn certificate(&mut self, certificate: &Certificate) {
        let object = ObjectRef::new(Kind::Secret, "default", "own");
        let good = |world: &mut World, digest: &str, name: &str, not_after: i64| {
            world.put(
                object.clone(),
                json!({"metadata": {"uid": "own"}, "data": {"tls.crt": "eA==", "tls.key": "eA=="}}),
            );
            CertificateSecret::Good(CertificateFacts {
                resource_version: world.objects[&object]["metadata"]["resourceVersion"]
                    .as_str()
                    .unwrap()
                    .to_owned(),
                digest: digest.to_owned(),
                names: vec![name.to_owned()],
                not_before: at(-1000),
                not_after: at(not_after),
            })
        };
        let state = match certificate {
            Certificate::Good { digest } => good(&mut self.world, digest, "own.test", 1_000_000),
            Certificate::Mistaken => good(&mut self.world, "dddddddddddddddd", "other.test", 1_000_000),
            Certificate::Expired => good(&mut self.world, "cccccccccccccccc", "own.test", -10),
            Certificate::Bad => CertificateSecret::Invalid("tls.key is not PEM".to_owned()),
            Certificate::Missing => CertificateSecret::Missing,
        };
        self.world.certificates.insert("own".to_owned(), state);
    }

    /// For all identities that ever were, so that a late host can act for one that is gone.
    fn each_identity(&mut self, act: impl Fn(&mut World, &str)) {
        for n in 1..=self.ingresses {
            act(
                &mut self.world,
                &names::identity_name("nginx", &format!("uid-{n}")),
            );
        }
    }

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

    fn check(&self) {
        let secrets = self.world.of_kind::<Secret>(Kind::Secret);
        for device in self.world.devices.keys().filter(|id| *id != "foreign") {
            let known = secrets.iter().map(SecretView::from_secret).any(|view| {
                let by_key = view.node_key.and_then(|key| self.world.registered.get(&key));
                view.device_id.as_ref() == Some(device) || by_key == Some(device)
            });
            assert!(known, "device {device} is in no Secret");
            let ingress = self
                .world
                .objects
                .get(&key())
                .expect("a device outlives its Ingress");
            let finalizers = ingress["metadata"]["finalizers"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            assert!(
                finalizers.contains(&json!(FINALIZER)),
                "no finalizer, but device {device}"
            );
        }
        for identity in self.world.of_kind::<Identity>(Kind::Identity) {
            let name = names::certificates_name(identity.metadata.name.as_deref().unwrap());
            let stored = secrets
                .iter()
                .map(SecretView::from_secret)
                .find(|view| view.name == name)
                .map(|view| view.certificates)
                .unwrap_or_default();
            for host in identity.spec.web.iter().flat_map(|web| &web.hosts) {
                let certificate = host.certificate.as_ref();
                assert!(
                    certificate.is_none_or(|name| stored.contains(name)),
                    "{host:?} is not in {stored:?}"
                );
            }
        }
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
            let mut body = body;
            body["metadata"]["name"] = json!(object.name);
            body["metadata"]["namespace"] = json!(object.namespace);
            assert_eq!(found, body, "{object} was changed");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_history_forgets_a_device_or_touches_what_is_not_ours(acts in prop::collection::vec(act(), 1..40)) {
        let mut play = Play::new();
        for act in &acts {
            play.happen(act);
            let (settings, now) = (play.settings.clone(), at(play.now));
            play.world.reconcile_ingress("default", "grouped", &settings, now, usize::MAX);
            play.check();
        }
        play.settle();
        play.check();

        let ours = play.living().filter(|body| body["spec"]["ingressClassName"] == "tailscale");
        let identities = play.world.of_kind::<Identity>(Kind::Identity);
        if ours.is_none() {
            prop_assert!(play.world.devices.len() == 1 && identities.is_empty(), "{:?} {:?}", play.world.devices, identities);
            let left = play.world.objects.keys().filter(|object| object.kind == Kind::Secret && object.namespace == NAMESPACE);
            prop_assert_eq!(left.count(), 2);
            if let Some(body) = play.living() {
                prop_assert_eq!(&body["metadata"]["finalizers"].as_array().cloned().unwrap_or_default(), &Vec::<Value>::new());
            }
        } else {
            prop_assert_eq!(identities.len(), 1);
            let parked = identities[0].spec.pool == PARKED_POOL;
            prop_assert_eq!(play.world.devices.len(), if parked { 1 } else { 2 });
            let status = identities[0].status.clone().unwrap_or_default();
            prop_assert!(!parked || status.conditions.iter().any(|c| c.type_ == "Accepted" && c.status == "False"), "{:?}", status);
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
            let (plan, status) = play.world.reconcile_ingress("default", "nginx", &settings, at(play.now), usize::MAX);
            prop_assert!(plan.is_empty(), "{:?}", plan);
            prop_assert!(status.patch.is_none() && status.identity.is_none() && status.events.is_empty(), "{:?}", status);
            let plan = play.world.reconcile_pool(&settings, usize::MAX);
            prop_assert!(plan.is_empty(), "{:?}", plan);
            prop_assert!(play.world == before);
            play.now += 3600;
        }
    }
}
