//! A control server that says what a test wants: Noise and HTTP/2 are real, the answers are hand-made.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use tailwharf_node::{Host, HostConfig, MemoryStore, Node, NodeConfig, StateStore};
use tailwharf_wire::key::MachinePrivate;
use tailwharf_wire::noise::{self, MAX_PLAINTEXT_LEN, Session};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// What the server answers to one request.
pub(crate) enum Reply {
    /// A JSON document.
    Json(Value),
    /// An error.
    Status(u16, &'static str),
    /// A map stream: each value is one message.
    Maps(Vec<Value>),
    /// A map stream that takes further messages.
    Stream(mpsc::UnboundedReceiver<Value>),
}

/// A request, as the script sees it.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) path: String,
    /// `Null` for what is not JSON.
    pub(crate) body: Value,
    pub(crate) raw: Bytes,
}

impl Call {
    /// Whether this opens a map stream.
    pub(crate) fn is_stream(&self) -> bool {
        self.path == "/machine/map" && self.body["Stream"] == true
    }

    pub(crate) fn is_register(&self) -> bool {
        self.path == "/machine/register"
    }
}

type Script = Arc<dyn Fn(Call) -> BoxFuture<'static, Reply> + Send + Sync>;

/// A running server. It ends with the test's runtime.
#[derive(Clone)]
pub(crate) struct Scripted {
    pub(crate) addr: SocketAddr,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Scripted {
    /// Starts a server that answers as `script` says. What a script has no answer for is answered by `{}`.
    pub(crate) async fn start<F>(script: impl Fn(Call) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Option<Reply>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            addr: listener.local_addr().unwrap(),
            calls: Arc::default(),
        };
        let calls = server.calls.clone();
        let script: Script = Arc::new(move |call: Call| {
            calls.lock().unwrap().push(call.clone());
            let answered = script(call);
            async move { answered.await.unwrap_or_else(|| Reply::Json(json!({}))) }.boxed()
        });
        let key = Arc::new(MachinePrivate::generate(&mut StdRng::seed_from_u64(99)));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (script, key) = (script.clone(), key.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request| plain(request, script.clone(), key.clone()));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .with_upgrades()
                        .await;
                });
            }
        });
        server
    }

    /// The requests so far.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    /// The bodies of the registrations so far.
    pub(crate) fn registrations(&self) -> Vec<Value> {
        let calls = self.calls().into_iter();
        calls.filter(Call::is_register).map(|call| call.body).collect()
    }

    pub(crate) fn config(&self, hostname: &str) -> NodeConfig {
        NodeConfig::new(format!("http://{}", self.addr).parse().unwrap(), hostname)
    }

    /// A node of this server with no state yet.
    pub(crate) async fn node(&self, hostname: &str) -> Node {
        self.node_with(self.config(hostname), Arc::new(MemoryStore::default()))
            .await
    }

    pub(crate) async fn node_with(&self, config: NodeConfig, store: Arc<dyn StateStore>) -> Node {
        let host = Host::new(&HostConfig::default()).unwrap();
        host.start(config, store).await.unwrap()
    }
}

/// A registration that was accepted.
pub(crate) fn accepted() -> Reply {
    Reply::Json(json!({
        "MachineAuthorized": true,
        "User": {"ID": 1, "DisplayName": "Alice"},
        "Login": {"ID": 1, "LoginName": "alice@example.com"},
    }))
}

/// A first map for the node of a map request, with nothing but the node itself.
pub(crate) fn first_map(request: &Value) -> Value {
    json!({
        "Node": own_node(request, 1, "node"),
        "Domain": "example.com",
        "UserProfiles": [{"ID": 1, "LoginName": "alice@example.com", "DisplayName": "Alice"}],
        "PacketFilters": {"base": []},
    })
}

/// The node behind a map request, with the addresses of `id`.
pub(crate) fn own_node(request: &Value, id: u8, name: &str) -> Value {
    json!({
        "ID": id,
        "StableID": format!("n{id}"),
        "Name": format!("{name}.tail1.ts.net."),
        "User": 1,
        "Key": request["NodeKey"],
        "DiscoKey": request["DiscoKey"],
        "Addresses": [format!("100.64.0.{id}/32"), format!("fd7a:115c:a1e0::{id:x}/128")],
        "HomeDERP": request["Hostinfo"]["NetInfo"]["PreferredDERP"],
        "MachineAuthorized": true,
        "Created": "2026-01-01T00:00:00Z",
        "Online": true,
    })
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Requests outside of Noise.
async fn plain(
    mut request: Request<Incoming>,
    script: Script,
    key: Arc<MachinePrivate>,
) -> Result<Response<Body>, Infallible> {
    if request.uri().path() == "/key" {
        return Ok(whole(
            StatusCode::OK,
            &json!({"publicKey": key.public().to_string()}),
        ));
    }
    let Some(initiation) = request.headers().get("x-tailscale-handshake") else {
        return Ok(whole(StatusCode::NOT_FOUND, &Value::Null));
    };
    let initiation = BASE64.decode(initiation.as_bytes()).unwrap();
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut io = TokioIo::new(upgrade.await.unwrap());
        let accepted = noise::respond(&key, &initiation, &mut StdRng::from_entropy()).unwrap();
        io.write_all(&accepted.response).await.unwrap();
        let (inside, outside) = tokio::io::duplex(64 << 10);
        tokio::spawn(carry(io, outside, accepted.session));
        let service = service_fn(move |request| serve(request, script.clone()));
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(inside), service)
            .await;
    });
    let response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header("Upgrade", "tailscale-control-protocol")
        .header("Connection", "upgrade");
    Ok(response.body(Full::default().boxed_unsync()).unwrap())
}

/// Carries bytes between the sealed and the plain side.
async fn carry(
    io: impl AsyncRead + AsyncWrite + Send + 'static,
    plain: tokio::io::DuplexStream,
    session: Session,
) {
    let Session {
        mut opener,
        mut sealer,
        ..
    } = session;
    let (mut sealed_in, mut sealed_out) = tokio::io::split(io);
    let (mut plain_in, mut plain_out) = tokio::io::split(plain);
    let incoming = async move {
        let mut read = BytesMut::new();
        while sealed_in.read_buf(&mut read).await.is_ok_and(|count| count > 0) {
            while let Ok(Some(record)) = opener.open(&mut read) {
                if plain_out.write_all(&record).await.is_err() {
                    return;
                }
            }
        }
    };
    let outgoing = async move {
        let mut buffer = vec![0; MAX_PLAINTEXT_LEN];
        while let Ok(count @ 1..) = plain_in.read(&mut buffer).await {
            let mut out = BytesMut::new();
            sealer.seal(&buffer[..count], &mut out).unwrap();
            if sealed_out.write_all(&out).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = incoming => {}
        () = outgoing => {}
    }
}

/// Requests inside of Noise.
async fn serve(request: Request<Incoming>, script: Script) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path_and_query().unwrap().to_string();
    let raw = request.into_body().collect().await.unwrap().to_bytes();
    let body = serde_json::from_slice(&raw).unwrap_or(Value::Null);
    Ok(match script(Call { path, body, raw }).await {
        Reply::Json(value) => whole(StatusCode::OK, &value),
        Reply::Status(code, text) => {
            let mut response = Response::new(Full::from(text).boxed_unsync());
            *response.status_mut() = StatusCode::from_u16(code).unwrap();
            response
        }
        Reply::Maps(messages) => {
            let (sender, receiver) = mpsc::unbounded_channel();
            for message in messages {
                sender.send(message).unwrap();
            }
            stream(receiver, Some(sender))
        }
        Reply::Stream(messages) => stream(messages, None),
    })
}

fn whole(status: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(Full::from(value.to_string()).boxed_unsync());
    *response.status_mut() = status;
    response
}

/// A map stream, which ends when its last sender is gone; `held` keeps it open.
fn stream(
    messages: mpsc::UnboundedReceiver<Value>,
    held: Option<mpsc::UnboundedSender<Value>>,
) -> Response<Body> {
    let messages = futures::stream::unfold((messages, held), |(mut messages, held)| async move {
        let message = messages.recv().await?;
        let compressed = zstd::bulk::compress(message.to_string().as_bytes(), 1).unwrap();
        let mut frame = u32::try_from(compressed.len()).unwrap().to_le_bytes().to_vec();
        frame.extend(compressed);
        Some((
            Ok::<_, Infallible>(Frame::data(Bytes::from(frame))),
            (messages, held),
        ))
    });
    Response::new(BodyExt::boxed_unsync(StreamBody::new(messages.boxed())))
}
