//! The chain from an object of a user to its backend, link by link, and where it is broken: what `tailwharf explain` prints.

use std::fmt;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use tailwharf_kube_types::contract::{
    FINALIZER, LOAD_BALANCER_CLASS, PARKED_POOL, PROXY_READY, annotation, label,
};
use tailwharf_kube_types::names::is_numbered;
use tailwharf_kube_types::{ConditionStatus, ConditionType, Identity, PathKind};

/// The controller of Ingress classes that tailwharf serves.
pub const INGRESS_CONTROLLER: &str = "tailscale.com/ts-ingress";

/// What the cluster says about one object.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The object.
    pub object: Object,
    /// The operator's namespace.
    pub namespace: String,
    /// The Identity made for it.
    pub identity: Option<Identity>,
    /// The Services behind it.
    pub backends: Vec<BackendFacts>,
}

/// An object of a user.
#[derive(Clone, Debug)]
pub enum Object {
    /// A Service.
    Service(Box<Service>),
    /// An Ingress, with the controller of its class if that exists.
    Ingress(Box<Ingress>, Option<String>),
}

/// A Service behind an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendFacts {
    /// Its name.
    pub service: String,
    /// Its ready endpoints; `None` if there is no such Service. Of one that stands for an external name nothing is known.
    pub ready: Option<usize>,
    /// Whether it stands for an external name.
    pub external: bool,
}

/// How a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// In order.
    Good,
    /// Not there yet, or not known.
    Waiting,
    /// Somebody has to do something.
    Broken,
}

/// One link of the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: &'static str,
    /// How it is.
    pub state: State,
    /// What is known of it.
    pub text: String,
    /// What to do, if it is not in order.
    pub next: Option<String>,
}

/// The whole chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain(pub Vec<Link>);

impl Chain {
    /// The first link that is not in order.
    #[must_use]
    pub fn first_fault(&self) -> Option<&Link> {
        self.0.iter().find(|link| link.state != State::Good)
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Link {
            name, state, text, ..
        } in &self.0
        {
            let mark = match state {
                State::Good => "ok",
                State::Waiting => "waits",
                State::Broken => "BROKEN",
            };
            writeln!(f, "{name:<12} {mark:<7} {text}")?;
        }
        match self.first_fault() {
            None => f.write_str("Everything is in order."),
            Some(link) => {
                write!(f, "The chain ends at: {}.", link.name)?;
                match &link.next {
                    Some(next) => write!(f, " Next: {next}"),
                    None => Ok(()),
                }
            }
        }
    }
}

/// Puts the chain together.
#[must_use]
pub fn explain(facts: &Facts) -> Chain {
    let mut links = vec![object(facts)];
    if let Some(identity) = &facts.identity {
        links.push(identity_link(identity));
        if identity.spec.pool != PARKED_POOL {
            links.push(host(facts, identity));
            links.push(device(identity));
            links.extend(certificate(identity));
            links.push(path(identity));
            links.extend(internet(identity));
        }
    } else if links[0].state == State::Good {
        links.push(Link {
            name: "Identity",
            state: State::Waiting,
            text: "not made yet".to_owned(),
            next: Some(look_at_operator(&facts.namespace)),
        });
    }
    links.push(backend(facts));
    Chain(links)
}

fn look_at_operator(namespace: &str) -> String {
    format!("see whether the operator runs: kubectl -n {namespace} logs deployment/operator")
}

fn link(name: &'static str, state: State, text: impl Into<String>, next: Option<&str>) -> Link {
    Link {
        name,
        state,
        text: text.into(),
        next: next.map(str::to_owned),
    }
}

fn object(facts: &Facts) -> Link {
    let (metadata, condition) = match &facts.object {
        Object::Service(service) => (&service.metadata, ready_condition(service)),
        Object::Ingress(ingress, _) => (&ingress.metadata, None),
    };
    let annotations = metadata.annotations.as_ref();
    let grouped = annotations.and_then(|all| all.get(annotation::PROXY_GROUP));
    if metadata.deletion_timestamp.is_some() {
        let next = format!(
            "wait, or give up on the control server with annotation {}: \"true\"",
            annotation::FORCE_REMOVAL
        );
        let ours = metadata.finalizers.iter().flatten().any(|name| name == FINALIZER);
        let text = if ours {
            "is being deleted; its device goes first"
        } else {
            "is being deleted"
        };
        return link("Object", State::Waiting, text, Some(&next));
    }
    if let Some(group) = grouped {
        let text = format!("asks for ProxyGroup {group:?}, which this operator does not serve");
        let next = format!(
            "for a device of its own, remove annotation {}",
            annotation::PROXY_GROUP
        );
        return link("Object", State::Broken, text, Some(&next));
    }
    if let Some(condition) =
        condition.filter(|condition| condition.reason == "ProxyInvalid" || condition.reason == "ProxyFailed")
    {
        return link(
            "Object",
            State::Broken,
            &*condition.message,
            Some("change the Service as the message says"),
        );
    }
    match &facts.object {
        Object::Service(service) => match service_asks(service) {
            Some(how) => link("Object", State::Good, format!("asks for a device: {how}"), None),
            None if facts.identity.is_some() || condition.is_some() => link(
                "Object",
                State::Good,
                "is served as a load balancer of the default class",
                None,
            ),
            None => {
                let next = format!("set annotation {}: \"true\"", annotation::EXPOSE);
                link("Object", State::Broken, "does not ask for a device", Some(&next))
            }
        },
        Object::Ingress(ingress, controller) => ingress_class(ingress, controller.as_deref()),
    }
}

fn ready_condition(service: &Service) -> Option<&Condition> {
    let conditions = service.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == PROXY_READY)
}

fn service_asks(service: &Service) -> Option<String> {
    let annotations = service.metadata.annotations.as_ref();
    let exposed = annotations.and_then(|all| all.get(annotation::EXPOSE));
    if exposed.is_some_and(|value| value == "true") {
        return Some(format!("annotation {}", annotation::EXPOSE));
    }
    let spec = service.spec.as_ref()?;
    let class = spec.load_balancer_class.as_deref();
    (spec.type_.as_deref() == Some("LoadBalancer") && class == Some(LOAD_BALANCER_CLASS))
        .then(|| format!("loadBalancerClass {LOAD_BALANCER_CLASS}"))
}

fn ingress_class(ingress: &Ingress, controller: Option<&str>) -> Link {
    let class = ingress
        .spec
        .as_ref()
        .and_then(|spec| spec.ingress_class_name.as_deref());
    match (class, controller) {
        (None, _) => link(
            "Object",
            State::Broken,
            "names no class",
            Some("set spec.ingressClassName: tailscale"),
        ),
        (Some(class), Some(INGRESS_CONTROLLER)) => link(
            "Object",
            State::Good,
            format!("asks for a device: class {class}"),
            None,
        ),
        (Some(class), Some(other)) => link(
            "Object",
            State::Broken,
            format!("its class {class} belongs to controller {other}"),
            Some("set spec.ingressClassName: tailscale"),
        ),
        // The operator goes by the name alone, so this is no fault of the chain.
        (Some(class), None) => link(
            "Object",
            State::Good,
            format!("asks for class {class}; no IngressClass has this name"),
            None,
        ),
    }
}

fn identity_link(identity: &Identity) -> Link {
    let name = identity.metadata.name.as_deref().unwrap_or_default();
    let accepted = identity
        .status
        .as_ref()
        .and_then(|status| status.condition(ConditionType::Accepted));
    match accepted {
        Some(condition) => {
            let next = match identity.spec.pool == PARKED_POOL {
                true => "change the object as the message says; until then it has no device",
                false => "change the object as the message says; what it does not name is served",
            };
            link("Identity", State::Broken, &*condition.message, Some(next))
        }
        None => link("Identity", State::Good, name, None),
    }
}

fn host(facts: &Facts, identity: &Identity) -> Link {
    let host = identity.status.as_ref().and_then(|status| status.host.as_deref());
    let Facts { namespace, .. } = facts;
    match host {
        Some(pod) => link("Host", State::Good, format!("pod {namespace}/{pod}"), None),
        None => {
            let next = format!(
                "see whether the pool's pods run: kubectl -n {namespace} get pods -l {}={}",
                label::POOL,
                identity.spec.pool
            );
            link("Host", State::Waiting, "no pod hosts it", Some(&next))
        }
    }
}

/// A link from conditions of the Identity: the first that does not hold.
fn conditions(name: &'static str, identity: &Identity, steps: &[ConditionType], good: String) -> Link {
    for step in steps {
        let condition = identity
            .status
            .as_ref()
            .and_then(|status| status.condition(*step));
        let Some(condition) = condition else {
            return link(name, State::Waiting, format!("{step} is not known yet"), None);
        };
        match ConditionStatus::parse(&condition.status) {
            ConditionStatus::True => {}
            ConditionStatus::False => {
                let text = format!("{step}: {} ({})", condition.message, condition.reason);
                return link(name, State::Broken, text, Some(&condition.message));
            }
            ConditionStatus::Unknown => {
                return link(
                    name,
                    State::Waiting,
                    format!("{step}: {}", condition.message),
                    None,
                );
            }
        }
    }
    link(name, State::Good, good, None)
}

fn device(identity: &Identity) -> Link {
    let status = identity.status.clone().unwrap_or_default();
    let addresses: Vec<String> = status.addresses.iter().map(ToString::to_string).collect();
    let (fqdn, wanted) = (status.fqdn.unwrap_or_default(), identity.spec.hostname.as_str());
    let mut good = format!("{fqdn} {}", addresses.join(" "));
    if is_numbered(&fqdn, wanted) {
        good += &format!("; another device of the tailnet has the name {wanted}");
    }
    let steps = [ConditionType::Registered, ConditionType::Authorized];
    conditions("Device", identity, &steps, good)
}

fn certificate(identity: &Identity) -> Option<Link> {
    let web = identity.spec.web.as_ref()?;
    let names: Vec<String> = web.hosts.iter().map(|host| host.name.to_string()).collect();
    let good = format!("good for {}", names.join(", ").replace('@', "the device's name"));
    let steps = [ConditionType::CertificateReady];
    Some(conditions("Certificate", identity, &steps, good))
}

fn path(identity: &Identity) -> Link {
    let good = match identity.status.as_ref().and_then(|status| status.path) {
        Some(PathKind::Direct) => "the last peer is connected directly",
        Some(PathKind::Relay) => "the last peer is connected through a relay",
        None => "advertised; no peer has talked to it yet",
    };
    conditions("Path", identity, &[ConditionType::Advertised], good.to_owned())
}

fn internet(identity: &Identity) -> Option<Link> {
    let funnel = identity.spec.web.as_ref().is_some_and(|web| web.funnel);
    let steps = [ConditionType::FunnelReady];
    funnel.then(|| {
        conditions(
            "Internet",
            identity,
            &steps,
            "reaches it through Funnel".to_owned(),
        )
    })
}

fn backend(facts: &Facts) -> Link {
    for backend in &facts.backends {
        let BackendFacts { service, ready, .. } = backend;
        match ready {
            None => {
                let text = format!("Service {service} does not exist");
                return link("Backend", State::Broken, text, Some("create it, or name another"));
            }
            Some(0) if !backend.external => {
                let text = format!("no endpoint of Service {service} is ready");
                let next = format!("check its pods and its selector: kubectl describe service {service}");
                return link("Backend", State::Broken, text, Some(&next));
            }
            Some(_) => {}
        }
    }
    let counts: Vec<String> = facts
        .backends
        .iter()
        .map(|backend| match backend.external {
            true => format!("{} (external name)", backend.service),
            false => format!(
                "{} ({} ready)",
                backend.service,
                backend.ready.unwrap_or_default()
            ),
        })
        .collect();
    let good = counts.join(", ");
    match facts
        .identity
        .as_ref()
        .filter(|identity| identity.spec.pool != PARKED_POOL)
    {
        Some(identity) => conditions("Backend", identity, &[ConditionType::BackendReachable], good),
        None => link("Backend", State::Good, good, None),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn facts(object: Object, identity: Option<serde_json::Value>, ready: Option<usize>) -> Facts {
        Facts {
            object,
            namespace: "tailscale".to_owned(),
            identity: identity.map(|identity| serde_json::from_value(identity).unwrap()),
            backends: vec![BackendFacts {
                service: "web".to_owned(),
                ready,
                external: false,
            }],
        }
    }

    fn service(annotations: &serde_json::Value) -> Object {
        let service = json!({"metadata": {"name": "web", "annotations": annotations}, "spec": {"clusterIP": "10.96.0.1"}});
        Object::Service(serde_json::from_value(service).unwrap())
    }

    fn ingress(controller: Option<&str>) -> Object {
        let ingress = json!({"metadata": {"name": "web"}, "spec": {"ingressClassName": "tailscale"}});
        Object::Ingress(
            serde_json::from_value(ingress).unwrap(),
            controller.map(str::to_owned),
        )
    }

    fn identity(pool: &str, conditions: &[(&str, &str, &str)]) -> serde_json::Value {
        let conditions: Vec<_> = conditions
            .iter()
            .map(|(kind, status, message)| {
                json!({"type": kind, "status": status, "reason": "Done", "message": message, "lastTransitionTime": "2027-01-01T00:00:00Z"})
            })
            .collect();
        json!({
            "metadata": {"name": "ts-web-abcde"},
            "spec": {"hostname": "web", "tags": [], "pool": pool, "loginServer": "http://c", "listeners": []},
            "status": {"host": "tailwharf-default-0", "fqdn": "web.tail.ts.net", "addresses": ["100.64.0.1"], "path": "Direct", "conditions": conditions},
        })
    }

    fn fault(facts: &Facts) -> (&'static str, String) {
        let chain = explain(facts);
        let link = chain.first_fault().expect("a fault");
        (link.name, link.next.clone().unwrap_or_default())
    }

    const GOOD: [(&str, &str, &str); 4] = [
        ("Registered", "True", ""),
        ("Authorized", "True", ""),
        ("Advertised", "True", ""),
        ("BackendReachable", "True", ""),
    ];

    #[test]
    fn a_good_chain_has_no_end() {
        let exposed = || service(&json!({"tailscale.com/expose": "true"}));
        let chain = explain(&facts(exposed(), Some(identity("default", &GOOD)), Some(2)));
        assert_eq!(chain.first_fault(), None, "{chain}");
        assert!(
            chain.to_string().contains("web.tail.ts.net 100.64.0.1"),
            "{chain}"
        );
        assert!(chain.to_string().ends_with("Everything is in order."), "{chain}");
        let mut second = identity("default", &GOOD);
        second["status"]["fqdn"] = json!("web-1.tail.ts.net");
        let chain = explain(&facts(exposed(), Some(second), Some(2)));
        assert!(chain.to_string().contains("has the name web"), "{chain}");
    }

    #[test]
    fn the_first_fault_is_told_with_what_to_do() {
        let exposed = || service(&json!({"tailscale.com/expose": "true"}));
        let (name, next) = fault(&facts(service(&json!({})), None, Some(1)));
        assert!(
            name == "Object" && next.contains("tailscale.com/expose"),
            "{next}"
        );
        let (name, next) = fault(&facts(exposed(), None, Some(1)));
        assert!(
            name == "Identity" && next.contains("deployment/operator"),
            "{next}"
        );
        let mut conditions = GOOD;
        conditions[1] = ("Authorized", "False", "Approve the device.");
        let (name, next) = fault(&facts(exposed(), Some(identity("default", &conditions)), Some(1)));
        assert_eq!((name, next.as_str()), ("Device", "Approve the device."));
        let (name, next) = fault(&facts(exposed(), Some(identity("default", &GOOD)), Some(0)));
        assert!(
            name == "Backend" && next.contains("kubectl describe service web"),
            "{next}"
        );
        let mut public = identity("default", &GOOD);
        public["spec"]["web"] = json!({"hosts": [{"name": "@"}], "funnel": true});
        let mut told = public["status"]["conditions"].as_array().unwrap().clone();
        for (kind, status) in [("CertificateReady", "True"), ("FunnelReady", "False")] {
            let mut condition = told[0].clone();
            condition["type"] = kind.into();
            condition["status"] = status.into();
            told.push(condition);
        }
        public["status"]["conditions"] = told.into();
        let (name, _) = fault(&facts(ingress(Some(INGRESS_CONTROLLER)), Some(public), Some(1)));
        assert_eq!(name, "Internet");
        let parked = identity("none", &[("Accepted", "False", "The name is taken.")]);
        let chain = explain(&facts(ingress(Some(INGRESS_CONTROLLER)), Some(parked), None));
        assert_eq!(
            chain.first_fault().map(|link| &*link.text),
            Some("The name is taken.")
        );
        let (name, next) = fault(&facts(ingress(Some("example.com/other")), None, Some(1)));
        assert!(name == "Object" && next.contains("ingressClassName"), "{next}");
    }
}
