//! Kubernetes events on people's objects.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event as KubeEvent;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use tailwharf_kube_types::contract::EVENT_REPORTER;
use tailwharf_plan::{Event, EventType};
use tokio::time::{Instant, timeout};

/// The same event on the same object is told once in this time: of attempts whose status could not be written, and of
/// what lasts. Other than that, plans tell of changes only.
const QUIET: Duration = Duration::from_secs(600);
/// Beyond this many the memory of told events starts anew.
const MAX_REMEMBERED: usize = 1024;
const TIMEOUT: Duration = Duration::from_secs(5);
/// The API's own limit of a note.
const MAX_NOTE: usize = 1024;

/// Object, reason and text of an event.
type Told = (String, &'static str, String);

/// Publishes events, each once.
pub(crate) struct Events {
    client: Client,
    /// The replica, as `reportingInstance`.
    instance: String,
    told: Mutex<HashMap<Told, Instant>>,
}

impl Events {
    pub(crate) fn new(client: Client, instance: &str) -> Self {
        Self {
            client,
            instance: instance.to_owned(),
            told: Mutex::default(),
        }
    }

    /// Publishes an event on an object. A failure is only logged: the condition says the same.
    pub(crate) async fn publish(&self, event: &Event, regarding: &ObjectReference) {
        if !self.is_news(event, regarding) {
            return;
        }
        // Events on objects without a namespace live in this one.
        let namespace = regarding.namespace.as_deref().unwrap_or("default");
        let object = self.object(event, regarding, namespace, Timestamp::now());
        let api: Api<KubeEvent> = Api::namespaced(self.client.clone(), namespace);
        let params = PostParams::default();
        match timeout(TIMEOUT, api.create(&params, &object)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::info!(reason = event.reason, error = %error, "an event was not written");
            }
            Err(_) => {
                tracing::info!(reason = event.reason, "an event was not written in time");
            }
        }
    }

    fn is_news(&self, event: &Event, regarding: &ObjectReference) -> bool {
        let key = (
            regarding.uid.clone().unwrap_or_default(),
            event.reason,
            event.message.clone(),
        );
        let now = Instant::now();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.get(&key).is_some_and(|at| now.duration_since(*at) < QUIET) {
            return false;
        }
        if told.len() >= MAX_REMEMBERED {
            told.clear();
        }
        told.insert(key, now);
        true
    }

    fn object(
        &self,
        event: &Event,
        regarding: &ObjectReference,
        namespace: &str,
        now: Timestamp,
    ) -> KubeEvent {
        let type_ = match event.type_ {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        };
        KubeEvent {
            metadata: ObjectMeta {
                namespace: Some(namespace.to_owned()),
                generate_name: regarding.name.as_ref().map(|name| format!("{name}-")),
                ..ObjectMeta::default()
            },
            action: Some("Reconcile".to_owned()),
            event_time: Some(MicroTime(now)),
            note: Some(event.message.chars().take(MAX_NOTE).collect()),
            reason: Some(event.reason.to_owned()),
            regarding: Some(regarding.clone()),
            reporting_controller: Some(EVENT_REPORTER.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            type_: Some(type_.to_owned()),
            ..KubeEvent::default()
        }
    }
}
