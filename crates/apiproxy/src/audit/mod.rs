//! The audit log: one JSON line for each request, in the form of `audit.k8s.io/v1`, with the device behind it.

mod file;
mod queue;
mod webhook;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, HeaderValue, StatusCode, header};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

pub use self::file::{AuditError, FileSettings};
use self::webhook::Webhook;
pub use self::webhook::WebhookSettings;
use crate::caller::Caller;
use crate::headers::ActingAs;
use crate::request_info::RequestInfo;

/// Longest text that is taken over from a client.
const MAX_TEXT: usize = 4096;

/// Where audit lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Standard output.
    Stdout,
    /// A file that is replaced by a new one when it is full.
    File(FileSettings),
}

/// Takes audit lines. They are written by threads of their own, so that no request waits for a disk.
#[derive(Debug, Clone)]
pub(crate) struct Audit(Arc<Outputs>);

#[derive(Debug)]
struct Outputs {
    writers: Vec<file::Writer>,
    webhook: Option<Webhook>,
}

impl Audit {
    /// Opens the outputs; without any, nothing is written.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub(crate) fn open(
        output: Option<&Output>,
        webhook: Option<&WebhookSettings>,
    ) -> Result<Self, AuditError> {
        let webhook = webhook.cloned().map(Webhook::open).transpose()?;
        let sinks = output.map(file::Sink::open).transpose()?.into_iter();
        let sinks = sinks.chain(
            webhook
                .as_ref()
                .map(|webhook| file::Sink::Queue(webhook.queue().clone())),
        );
        Ok(Self(Arc::new(Outputs {
            writers: sinks.map(file::Writer::start).collect::<Result<_, _>>()?,
            webhook,
        })))
    }

    /// Delivers lines to the webhook until `over`, then what is left as long as that succeeds at once.
    pub(crate) async fn deliver(&self, over: CancellationToken) {
        match &self.0.webhook {
            Some(webhook) => webhook.deliver(over).await,
            None => over.cancelled().await,
        }
    }

    /// Waits until the lines that have come are written, for some seconds at most.
    pub(crate) async fn flush(&self) {
        let outputs = self.0.clone();
        // A task that is not run any more flushes nothing; the end of the writers does.
        let _ =
            tokio::task::spawn_blocking(move || outputs.writers.iter().for_each(file::Writer::flush)).await;
    }

    /// Lines that were not written because an output did not take them.
    pub(crate) fn dropped(&self) -> u64 {
        let lost: u64 = self.0.writers.iter().map(file::Writer::dropped).sum();
        lost + self
            .0
            .webhook
            .as_ref()
            .map_or(0, |webhook| webhook.queue().dropped())
    }

    /// Appends counters in the text form for Prometheus.
    pub(crate) fn render(&self, out: &mut String) {
        if let Some(webhook) = &self.0.webhook {
            webhook.render(out);
        }
    }
}

/// What was asked, as far as it is known when a request comes in.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) uri: String,
    pub(crate) method: http::Method,
    pub(crate) user_agent: Option<HeaderValue>,
    pub(crate) source: IpAddr,
}

impl Asked {
    pub(crate) fn new(method: &http::Method, uri: &http::Uri, headers: &HeaderMap, source: IpAddr) -> Self {
        let path = uri
            .path_and_query()
            .map_or_else(|| uri.path(), |path| path.as_str());
        Self {
            uri: cut(path),
            method: method.clone(),
            user_agent: headers.get(header::USER_AGENT).cloned(),
            source,
        }
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// The record of one request. It is written when the request has ended, whichever way.
#[derive(Debug)]
pub(crate) struct Record {
    audit: Audit,
    asked: Asked,
    id: HeaderValue,
    received: Timestamp,
    began: Instant,
    info: Option<RequestInfo>,
    caller: Option<Arc<Caller>>,
    acting_as: Option<ActingAs>,
    code: StatusCode,
    reason: Option<(&'static str, String)>,
    bytes: u64,
    notes: Vec<String>,
    /// The answer took the client; nothing is told a second time.
    told: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ObjectRef<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    resource: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    namespace: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    api_group: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    api_version: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    subresource: &'a str,
}

impl Record {
    pub(crate) fn new(audit: &Audit, asked: Asked, id: HeaderValue) -> Self {
        Self {
            audit: audit.clone(),
            asked,
            id,
            received: Timestamp::now(),
            began: Instant::now(),
            info: None,
            caller: None,
            acting_as: None,
            code: StatusCode::OK,
            reason: None,
            bytes: 0,
            notes: Vec::new(),
            told: false,
        }
    }

    pub(crate) fn about(&mut self, info: RequestInfo) {
        self.info = Some(info);
    }

    pub(crate) fn by(&mut self, caller: Arc<Caller>) {
        self.caller = Some(caller);
    }

    pub(crate) fn acting(&mut self, whom: Option<ActingAs>) {
        self.acting_as = whom;
    }

    pub(crate) fn answered(&mut self, code: StatusCode) {
        self.code = code;
    }

    pub(crate) fn refused(&mut self, code: StatusCode, reason: &'static str, message: String) {
        self.code = code;
        self.reason = Some((reason, message));
    }

    pub(crate) fn sent(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// Something that whoever reads the log should know.
    pub(crate) fn note(&mut self, text: &str) {
        self.notes.push(text.to_owned());
    }

    /// The head of an answer that goes on has been sent.
    pub(crate) fn started(&self) {
        self.write("ResponseStarted");
    }

    /// The request has ended.
    pub(crate) fn complete(self) {
        drop(self);
    }

    fn write(&self, stage: &str) {
        let writers = &self.audit.0.writers;
        if writers.is_empty() {
            return;
        }
        let mut line = self.line(stage);
        line.push(b'\n');
        for writer in writers {
            writer.write(&line);
        }
    }

    fn line(&self, stage: &str) -> Vec<u8> {
        let text = |value: &HeaderValue| cut(&String::from_utf8_lossy(value.as_bytes()));
        let user = self.caller.as_ref().map(|caller| {
            json!({
                "username": caller.user,
                "groups": caller.groups,
                "extra": {
                    "tailwharf.dev/device": [caller.device],
                    "tailwharf.dev/device-id": [caller.device_id],
                },
            })
        });
        let object = self
            .info
            .as_ref()
            .filter(|info| info.is_resource)
            .map(|info| ObjectRef {
                resource: &info.resource,
                namespace: &info.namespace,
                name: &info.name,
                api_group: &info.api_group,
                api_version: &info.api_version,
                subresource: &info.subresource,
            });
        let mut status = json!({"metadata": {}, "code": self.code.as_u16()});
        if let Some((reason, message)) = &self.reason {
            status["status"] = "Failure".into();
            status["reason"] = (*reason).into();
            status["message"] = message.as_str().into();
        }
        let mut annotations = json!({
            "tailwharf.dev/latency": format!("{:.3}ms", self.began.elapsed().as_secs_f64() * 1000.0),
            "tailwharf.dev/response-bytes": self.bytes.to_string(),
        });
        if !self.notes.is_empty() {
            annotations["tailwharf.dev/notes"] = self.notes.join("; ").into();
        }
        let verb = match &self.info {
            Some(info) => info.verb.clone(),
            None => self.asked.method.as_str().to_ascii_lowercase(),
        };
        let event = json!({
            "kind": "Event",
            "apiVersion": "audit.k8s.io/v1",
            "level": "Metadata",
            "auditID": text(&self.id),
            "stage": stage,
            "requestURI": self.asked.uri,
            "verb": verb,
            "user": user.unwrap_or_else(|| json!({})),
            "impersonatedUser": self.acting_as.as_ref().map(|whom| json!({"username": whom.user, "groups": whom.groups})),
            "sourceIPs": [self.asked.source],
            "userAgent": self.asked.user_agent.as_ref().map(text),
            "objectRef": object,
            "responseStatus": status,
            "requestReceivedTimestamp": micros(self.received),
            "stageTimestamp": micros(Timestamp::now()),
            "annotations": annotations,
        });
        without_nulls(event).to_string().into_bytes()
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !std::mem::replace(&mut self.told, true) {
            self.write("ResponseComplete");
        }
    }
}

/// A time with six digits of the second, as Kubernetes writes it.
fn micros(time: Timestamp) -> String {
    format!("{time:.6}")
}

fn without_nulls(mut value: serde_json::Value) -> serde_json::Value {
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|_, field| !field.is_null());
    }
    value
}
