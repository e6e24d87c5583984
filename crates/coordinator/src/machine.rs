//! The requests of a node whose machine key is proved: `/machine/…` inside a Noise connection.

mod check;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::{Serialize, de::DeserializeOwned};
use tailwharf_policy::AttributeValue;
use tailwharf_wire::{
    json,
    key::{MachinePrivate, MachinePublic, NodePublic},
    map_frame::Compression,
    tailcfg::{
        MapRequest, NodeId, QueryFeatureRequest, QueryFeatureResponse, RegisterRequest,
        SetDeviceAttributesRequest, SetDnsRequest, SetDnsResponse,
    },
};
use tokio::time::{sleep, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use url::Url;

pub(crate) use self::check::ssh_check_url;

use crate::{
    mapper::{self, MapStream},
    metrics::Counters,
    model::{Author, Node},
    ops::{Attribute, Decision, OpError, Operations},
    poll::{self, Kind},
    questions::Questions,
    register::{self, Registered},
    sessions::{Session, Sessions},
    world::{Change, Presence},
};

/// The longest body of a request.
const BODY_LIMIT: usize = 1 << 20;
/// How long a client may take to send a body.
const BODY_TIME: Duration = Duration::from_secs(30);
/// How long a node without stream still counts as online: time to come back after a network change or a restart.
const OFFLINE_GRACE: Duration = Duration::from_secs(10);
/// How long a node without stream keeps what another node could do as well.
const TRUST: Duration = Duration::from_secs(2);
/// In how many seconds a client that met too much load comes back.
const RETRY_AFTER: header::HeaderValue = header::HeaderValue::from_static("30");
/// How long a client's question for the decision of a person is held open.
const FOLLOW_UP: Duration = Duration::from_secs(120);
/// How long a new node is held back from its peers until it can be reached.
const HOLD: Duration = Duration::from_secs(1);

/// What the control protocol works with.
pub(crate) struct Control {
    pub(crate) ops: Operations,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) server_key: MachinePrivate,
    /// The address by which people and nodes reach this server.
    pub(crate) server_url: Url,
    /// What nodes were asked and have not answered yet.
    pub(crate) questions: Questions,
    /// What the store did.
    pub(crate) counters: Arc<Counters>,
    /// Ends streams and connections.
    pub(crate) stop: CancellationToken,
    /// What runs beside the connections.
    pub(crate) tasks: TaskTracker,
}

/// Why a request gets no regular answer.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("there is nothing at this path")]
    NoSuchPath,
    #[error("the request is not readable: {0}")]
    Json(#[from] json::JsonError),
    #[error("the request is longer than {BODY_LIMIT} bytes or broke off")]
    Body,
    #[error("the request took longer than {} seconds", BODY_TIME.as_secs())]
    Slow,
    #[error("this node key is not registered: log in again")]
    UnknownNode,
    #[error("this node key belongs to another machine")]
    OtherMachine,
    #[error("this node is no approved host of the service")]
    NotHost,
    #[error("{0}")]
    Operation(#[from] OpError),
    #[error("the answer could not be made")]
    Encode,
}

impl Fault {
    fn status(&self) -> StatusCode {
        match self {
            Self::NoSuchPath | Self::UnknownNode | Self::Operation(OpError::NotFound { .. }) => {
                StatusCode::NOT_FOUND
            }
            Self::Json(_) => StatusCode::BAD_REQUEST,
            Self::Body => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            Self::OtherMachine | Self::NotHost => StatusCode::FORBIDDEN,
            Self::Operation(OpError::Store(_) | OpError::Stopped) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Operation(OpError::Busy(_)) => StatusCode::TOO_MANY_REQUESTS,
            Self::Operation(_) => StatusCode::BAD_REQUEST,
            Self::Encode => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl Control {
    /// Answers one request of `machine`. Every answer has a status and a body: clients take an empty one for a broken connection.
    pub(crate) async fn serve(
        self: Arc<Self>,
        machine: MachinePublic,
        request: Request<Incoming>,
    ) -> Response<Body> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        match self.route(machine, request).await {
            Ok(response) => response,
            Err(fault) => {
                tracing::debug!(%machine, %method, path, %fault, "request refused");
                let mut response = answer(fault.status(), "text/plain; charset=utf-8", format!("{fault}\n"));
                if matches!(
                    fault.status(),
                    StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
                ) {
                    response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
                }
                response
            }
        }
    }

    async fn route(
        self: &Arc<Self>,
        machine: MachinePublic,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Fault> {
        let (parts, body) = request.into_parts();
        match (&parts.method, parts.uri.path()) {
            (&Method::POST, "/machine/register") => self.register(machine, read(body).await?).await,
            (&Method::POST, "/machine/map") => self.map(machine, read(body).await?).await,
            (&Method::POST, "/machine/set-dns") => self.set_dns(machine, read(body).await?).await,
            (&Method::PATCH, "/machine/set-device-attr") => {
                self.set_attributes(machine, read(body).await?).await
            }
            (&Method::POST, "/machine/check") => self.check(machine, read(body).await?).await,
            (&Method::GET, path) if path.starts_with(check::SSH_PATH) => {
                self.ssh_action(machine, path, parts.uri.query()).await
            }
            (&Method::POST, "/machine/feature/query") => self.query_feature(machine, &read(body).await?),
            (&Method::POST, "/machine/update-health" | "/machine/audit-log") => {
                collect(body).await?;
                Ok(ok_json(Bytes::from_static(b"{}")))
            }
            (&Method::POST | &Method::HEAD, path) if path.starts_with(Questions::PATH) => {
                let id = &path[Questions::PATH.len()..];
                if !self.questions.answered(id, machine, collect(body).await?) {
                    return Err(Fault::NoSuchPath);
                }
                Ok(ok_json(Bytes::from_static(b"{}")))
            }
            _ => Err(Fault::NoSuchPath),
        }
    }

    async fn register(
        self: &Arc<Self>,
        machine: MachinePublic,
        request: RegisterRequest,
    ) -> Result<Response<Body>, Fault> {
        let mut registered = match self.try_register(machine, request.clone()).await {
            Ok(registered) => registered,
            // What an administrator has to mend: the client shows it to its user.
            Err(error @ OpError::AddressesExhausted(_)) => return Ok(refuse_registration(&error)),
            Err(error) => return Err(error.into()),
        };
        if let Some(decided) = registered.waits.take().filter(|_| !request.followup.is_empty()) {
            tokio::select! {
                () = decided.cancelled() => {}
                () = sleep(FOLLOW_UP) => {}
                () = self.stop.cancelled() => {}
            }
            registered = self.try_register(machine, request).await?;
        }
        if let Some(id) = registered.created {
            tracing::info!(node = id.0, %machine, "node created");
            self.reveal_later(id);
        }
        json_answer(&registered.response)
    }

    async fn try_register(
        &self,
        machine: MachinePublic,
        request: RegisterRequest,
    ) -> Result<Registered, OpError> {
        let decide = move |world: &_, context: &mut _| register::register(world, context, machine, request);
        self.ops.submit(decide).await
    }

    async fn map(
        self: &Arc<Self>,
        machine: MachinePublic,
        request: MapRequest,
    ) -> Result<Response<Body>, Fault> {
        let id = self.node(machine, &request.node_key)?.id;
        let (compression, keep_alive, omit_peers) =
            (Compression::of(&request), request.keep_alive, request.omit_peers);
        match Kind::of(&request) {
            Kind::Stream => {
                let connected = self
                    .ops
                    .submit(move |world, context| poll::connect(world, context, id, request))
                    .await;
                match connected {
                    Ok(()) => {}
                    // A store that refuses writes does not take the map from a running node.
                    Err(OpError::Store(error)) => {
                        tracing::warn!(node = id.0, %error, "node connected unrecorded");
                        self.set_online(id, true).await?;
                    }
                    Err(error) => return Err(error.into()),
                }
                let stream = MapStream::open(self.clone(), id, compression, keep_alive);
                self.ask_for_services(id);
                tracing::debug!(node = id.0, "map stream opened");
                Ok(answer(
                    StatusCode::OK,
                    "application/octet-stream",
                    stream.into_body(),
                ))
            }
            Kind::Update => {
                self.ops
                    .submit(move |world, context| poll::update(world, context, id, request))
                    .await?;
                self.ask_for_services(id);
                if omit_peers {
                    return Ok(answer(StatusCode::OK, "application/octet-stream", Body::empty()));
                }
                self.map_once(id, compression)
            }
            Kind::Peek => self.map_once(id, compression),
        }
    }

    fn map_once(&self, id: NodeId, compression: Compression) -> Result<Response<Body>, Fault> {
        let message =
            mapper::full(&self.ops.world(), id, jiff::Timestamp::now()).ok_or(Fault::UnknownNode)?;
        let frame = message.encode(compression).ok_or(Fault::Encode)?;
        Ok(answer(StatusCode::OK, "application/octet-stream", frame))
    }

    async fn set_dns(&self, machine: MachinePublic, request: SetDnsRequest) -> Result<Response<Body>, Fault> {
        let id = self.node(machine, &request.node_key)?.id;
        if request.kind != "TXT" {
            return Err(OpError::Invalid("only TXT records can be set".to_owned()).into());
        }
        self.ops.set_dns_txt(id, request.name, request.value).await?;
        json_answer(&SetDnsResponse {})
    }

    async fn set_attributes(
        &self,
        machine: MachinePublic,
        request: SetDeviceAttributesRequest,
    ) -> Result<Response<Body>, Fault> {
        let node = self.node(machine, &request.node_key)?;
        let mut update = BTreeMap::new();
        for (name, value) in request.update {
            let value: Option<AttributeValue> = serde_json::from_value(value).map_err(|_| {
                OpError::Invalid(format!(
                    "attribute `{name}` must be a text, a number, or true or false"
                ))
            })?;
            update.insert(name, value.map(Attribute::from));
        }
        let author = Author::Node(node.stable_id.clone());
        self.ops.set_node_attributes(author, node.id, update).await?;
        Ok(ok_json(Bytes::from_static(b"{}")))
    }

    fn query_feature(
        &self,
        machine: MachinePublic,
        request: &QueryFeatureRequest,
    ) -> Result<Response<Body>, Fault> {
        self.node(machine, &request.node_key)?;
        json_answer(&QueryFeatureResponse {
            complete: true,
            ..QueryFeatureResponse::default()
        })
    }

    /// The node with this key, if it belongs to the machine of the connection.
    fn node(&self, machine: MachinePublic, key: &NodePublic) -> Result<Arc<Node>, Fault> {
        let world = self.ops.world();
        let node = world.node_by_key(key).ok_or(Fault::UnknownNode)?;
        if node.machine_key == machine {
            Ok(node.clone())
        } else {
            Err(Fault::OtherMachine)
        }
    }

    /// Shows a new node to its peers after [`HOLD`], if it was not shown before.
    fn reveal_later(self: &Arc<Self>, id: NodeId) {
        let control = self.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = sleep(HOLD) => {}
                () = control.stop.cancelled() => return,
            }
            if let Err(error) = control
                .ops
                .submit(move |world, _| Ok(poll::reveal(world, id)))
                .await
            {
                tracing::warn!(node = id.0, %error, "a node stays hidden from its peers");
            }
        });
    }

    /// Marks a node offline when its last stream has been over for [`OFFLINE_GRACE`]. Before that, another node takes over what it can.
    pub(crate) fn stream_ended(self: &Arc<Self>, session: &Arc<Session>, id: NodeId) {
        if !self.sessions.close(session) || self.stop.is_cancelled() {
            return;
        }
        let (control, session) = (self.clone(), session.clone());
        let wait = async move {
            sleep(TRUST).await;
            if control.sessions.is_last(&session) && control.ops.world().has_rival(id) {
                control.set_silent(id, true).await;
            }
            sleep(OFFLINE_GRACE - TRUST).await;
            if control.sessions.was_last(&session) {
                control.went_offline(id).await;
            }
        };
        let stop = self.stop.clone();
        self.tasks
            .spawn(async move { stop.run_until_cancelled(wait).await });
    }

    async fn went_offline(&self, id: NodeId) {
        let decide = move |world: &_, context: &mut _| Ok(poll::disconnect(world, context, id));
        let offline = match self.ops.submit(decide).await {
            Err(OpError::Store(_)) => self.set_online(id, false).await,
            other => other,
        };
        if let Err(error) = offline {
            tracing::warn!(node = id.0, %error, "a node that left is still shown online");
        }
    }

    /// Notes whether a node may be entrusted with what another could do as well.
    pub(crate) async fn set_silent(&self, id: NodeId, silent: bool) {
        let noted = self.ops.submit(move |world, _| {
            let presence = world.presence(id);
            let changes = if presence.silent == silent || world.node(id).is_none() {
                Vec::new()
            } else {
                vec![Change::SetPresence(id, Presence { silent, ..presence })]
            };
            Ok(Decision::new(changes, ()))
        });
        if let Err(error) = noted.await {
            tracing::warn!(node = id.0, %error, "a node's health was not noted");
        }
    }

    /// Notes whether a node is connected while nothing can be stored.
    async fn set_online(&self, id: NodeId, online: bool) -> Result<(), OpError> {
        self.ops
            .submit(move |world, _| Ok(poll::set_online(world, id, online)))
            .await
    }
}

fn refuse_registration(error: &OpError) -> Response<Body> {
    let body = serde_json::json!({ "Error": error.to_string() });
    ok_json(body.to_string().into())
}

async fn read<T: DeserializeOwned>(body: Incoming) -> Result<T, Fault> {
    Ok(json::from_slice(&collect(body).await?)?)
}

async fn collect(body: Incoming) -> Result<Bytes, Fault> {
    let whole = timeout(BODY_TIME, Limited::new(body, BODY_LIMIT).collect())
        .await
        .map_err(|_| Fault::Slow)?;
    Ok(whole.map_err(|_| Fault::Body)?.to_bytes())
}

fn json_answer<T: Serialize>(value: &T) -> Result<Response<Body>, Fault> {
    Ok(ok_json(json::to_vec(value).map_err(|_| Fault::Encode)?.into()))
}

fn ok_json(body: Bytes) -> Response<Body> {
    answer(StatusCode::OK, "application/json", body)
}

fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(content_type),
    );
    response
}
