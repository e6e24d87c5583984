//! API v2 over HTTP in this process, in front of a fake tailnet, with faults on request.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tailwharf_control_api::fake::Fake;
use tailwharf_control_api::{
    Client, ClientConfig, ControlApi, CreateKey, Credentials, Device, DeviceFilter, DeviceId, Error, KeyId,
    PolicyFile, Secret, VipService,
};
use tokio::net::TcpListener;

pub(crate) const CLIENT_SECRET: &str = "tskey-client-secret";
/// What the platform vouches for the client with.
pub(crate) const WORKLOAD_TOKEN: &str = "header.claims.signature";

/// What a request meets instead of its answer.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// A status with a body and an optional `Retry-After`.
    Status(u16, &'static str, Option<u64>),
    /// The answer comes after the request was carried out, but the connection breaks before.
    BreakAfter,
    /// Nothing comes.
    Silence,
    /// A success with a body of this many blanks.
    Blanks(usize),
}

#[derive(Default)]
struct Shared {
    tailnet: Option<Fake>,
    faults: Mutex<VecDeque<Fault>>,
    requests: Mutex<Vec<String>>,
    valid_token: AtomicUsize,
    connections: AtomicUsize,
}

pub(crate) struct Server {
    shared: Arc<Shared>,
    pub(crate) url: url::Url,
}

impl Server {
    pub(crate) async fn start(tailnet: Fake) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap())
            .parse()
            .unwrap();
        let shared = Arc::new(Shared {
            tailnet: Some(tailnet),
            ..Shared::default()
        });
        let serving = shared.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                serving.connections.fetch_add(1, Ordering::SeqCst);
                let shared = serving.clone();
                tokio::spawn(async move {
                    let service = service_fn(|request| answer(shared.clone(), request));
                    // A broken connection is one of the faults.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { shared, url }
    }

    pub(crate) fn tailnet(&self) -> &Fake {
        self.shared.tailnet.as_ref().unwrap()
    }

    pub(crate) fn config(&self) -> ClientConfig {
        let secret = Secret::new(CLIENT_SECRET);
        ClientConfig::new(
            self.url.clone(),
            Credentials::OAuthClient {
                id: "client".to_owned(),
                secret,
            },
        )
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.config()).unwrap()
    }

    /// Applies to API calls (not to the token endpoint), one each, in order.
    pub(crate) fn fault(&self, fault: Fault) {
        self.shared.faults.lock().unwrap().push_back(fault);
    }

    /// Makes the tokens given out so far worthless.
    pub(crate) fn revoke_tokens(&self) {
        self.shared.valid_token.fetch_add(1, Ordering::SeqCst);
    }

    /// `METHOD /path` of every request.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.shared.requests.lock().unwrap().clone()
    }

    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

type Reply = Response<Full<Bytes>>;

#[derive(Debug)]
struct Broken;

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("broken on purpose")
    }
}

impl std::error::Error for Broken {}

impl From<Infallible> for Broken {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Reply, Broken> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Broken)?.to_bytes();
    let path = parts.uri.path().to_owned();
    shared
        .requests
        .lock()
        .unwrap()
        .push(format!("{} {path}", parts.method));
    match path.as_str() {
        "/api/v2/oauth/token" => return Ok(token(&shared, &body, "client_secret", CLIENT_SECRET)),
        "/api/v2/oauth/token-exchange" => return Ok(token(&shared, &body, "jwt", WORKLOAD_TOKEN)),
        _ => {}
    }
    let wanted = format!("Bearer token-{}", shared.valid_token.load(Ordering::SeqCst));
    if parts
        .headers
        .get("authorization")
        .is_none_or(|value| value.as_bytes() != wanted.as_bytes())
    {
        return Ok(refusal(401, "API token invalid"));
    }
    let fault = shared.faults.lock().unwrap().pop_front();
    match fault {
        Some(Fault::Status(status, body, retry_after)) => {
            let mut reply = Response::builder().status(status);
            if let Some(seconds) = retry_after {
                reply = reply.header("retry-after", seconds);
            }
            return Ok(reply.body(Full::from(body)).unwrap());
        }
        Some(Fault::Silence) => std::future::pending().await,
        Some(Fault::Blanks(count)) => return Ok(Response::new(Full::from(vec![b' '; count]))),
        Some(Fault::BreakAfter) | None => {}
    }
    let if_match = parts
        .headers
        .get("if-match")
        .map(|value| value.to_str().unwrap().to_owned());
    let reply = route(
        shared.tailnet.as_ref().unwrap(),
        &parts.method,
        &path,
        &body,
        if_match.as_deref(),
    )
    .await;
    if matches!(fault, Some(Fault::BreakAfter)) {
        Err(Broken)
    } else {
        Ok(reply)
    }
}

fn token(shared: &Shared, body: &[u8], proof: &str, expected: &str) -> Reply {
    let form: std::collections::HashMap<_, _> = url::form_urlencoded::parse(body).into_owned().collect();
    let known = form.get("client_id").is_some_and(|id| id == "client")
        && form.get(proof).is_some_and(|secret| secret == expected);
    if !known {
        let secret = form.get(proof).cloned().unwrap_or_default();
        return json_reply(
            401,
            &json!({"error": "invalid_client", "error_description": format!("no client with {secret}")}),
        );
    }
    let number = shared.valid_token.load(Ordering::SeqCst);
    json_reply(
        200,
        &json!({"access_token": format!("token-{number}"), "token_type": "Bearer", "expires_in": 3600}),
    )
}

async fn route(tailnet: &Fake, method: &Method, path: &str, body: &[u8], if_match: Option<&str>) -> Reply {
    let segments: Vec<_> = path.trim_start_matches("/api/v2/").split('/').collect();
    match (method.as_str(), segments.as_slice()) {
        ("GET", ["tailnet", "-", "keys"]) => reply(tailnet.list_keys().await, |keys| json!({ "keys": keys })),
        ("POST", ["tailnet", "-", "keys"]) => {
            let body: Value = serde_json::from_slice(body).unwrap();
            let create = &body["capabilities"]["devices"]["create"];
            let request = CreateKey {
                tags: serde_json::from_value(create["tags"].clone()).unwrap(),
                reusable: create["reusable"].as_bool().unwrap(),
                ephemeral: create["ephemeral"].as_bool().unwrap(),
                preauthorized: create["preauthorized"].as_bool().unwrap(),
                lifetime: body["expirySeconds"].as_u64().map(Duration::from_secs),
                description: body["description"].as_str().unwrap_or_default().to_owned(),
            };
            reply(
                tailnet.create_key(&request).await,
                |key| json!({"id": key.id, "key": key.key.expose(), "keyType": "auth", "expires": "2030-01-01T00:00:00Z"}),
            )
        }
        ("DELETE", ["tailnet", "-", "keys", id]) => {
            reply(tailnet.delete_key(&KeyId::from(*id)).await, |()| json!({}))
        }
        ("GET", ["tailnet", "-", "devices"]) => {
            let all = tailnet.list_devices(&DeviceFilter::default()).await;
            reply(
                all,
                |devices| json!({"devices": devices.iter().map(device).collect::<Vec<_>>()}),
            )
        }
        ("GET", ["device", id]) => reply(tailnet.device(&DeviceId::from(*id)).await, |found| device(&found)),
        ("POST", ["device", id, "tags"]) => {
            let body: Value = serde_json::from_slice(body).unwrap();
            let tags: Vec<String> = serde_json::from_value(body["tags"].clone()).unwrap();
            reply(tailnet.set_device_tags(&DeviceId::from(*id), &tags).await, |()| {
                Value::Null
            })
        }
        ("DELETE", ["device", id]) => reply(tailnet.delete_device(&DeviceId::from(*id)).await, |()| {
            Value::Null
        }),
        ("GET", ["device", id, "routes"]) => {
            reply(tailnet.device_routes(&DeviceId::from(*id)).await, |routes| {
                json!(routes)
            })
        }
        ("POST", ["device", id, "routes"]) => {
            let body: Value = serde_json::from_slice(body).unwrap();
            let routes: Vec<ipnet::IpNet> = serde_json::from_value(body["routes"].clone()).unwrap();
            let stored = tailnet.set_device_routes(&DeviceId::from(*id), &routes).await;
            reply(stored, |routes| json!(routes))
        }
        (_, ["tailnet", "-", "vip-services", ..]) => service(tailnet, method, &segments[3..], body).await,
        ("GET", ["tailnet", "-", "dns", "configuration"]) => reply(tailnet.dns().await, |dns| json!(dns)),
        ("POST", ["tailnet", "-", "dns", "configuration"]) => {
            let dns = serde_json::from_slice(body).unwrap();
            reply(tailnet.set_dns(&dns).await, |()| Value::Null)
        }
        ("GET", ["tailnet", "-", "acl"]) => policy(tailnet.policy().await),
        ("POST", ["tailnet", "-", "acl"]) => policy(
            tailnet
                .set_policy(std::str::from_utf8(body).unwrap(), if_match)
                .await,
        ),
        _ => refusal(404, "no such path"),
    }
}

async fn service(tailnet: &Fake, method: &Method, segments: &[&str], body: &[u8]) -> Reply {
    match (method.as_str(), segments) {
        ("GET", []) => reply(
            tailnet.list_services().await,
            |services| json!({ "vipServices": services }),
        ),
        ("GET", [name]) => reply(tailnet.service(name).await, |service| json!(service)),
        ("PUT", [name]) => {
            let service: VipService = serde_json::from_slice(body).unwrap();
            assert_eq!(service.name, *name);
            reply(tailnet.put_service(&service).await, |()| Value::Null)
        }
        ("DELETE", [name]) => reply(tailnet.delete_service(name).await, |()| Value::Null),
        _ => refusal(404, "no such path"),
    }
}

fn device(device: &Device) -> Value {
    json!({
        "id": "1", "nodeId": device.id, "name": device.name, "hostname": device.hostname,
        "addresses": device.addresses, "tags": device.tags, "authorized": device.authorized, "os": "linux",
    })
}

fn policy(outcome: Result<PolicyFile, Error>) -> Reply {
    match outcome {
        Ok(file) => Response::builder()
            .header("etag", file.etag.unwrap())
            .body(Full::from(file.hujson))
            .unwrap(),
        Err(error) => reply(Err(error), |()| Value::Null),
    }
}

fn reply<T>(outcome: Result<T, Error>, body: impl FnOnce(T) -> Value) -> Reply {
    match outcome {
        Ok(value) => json_reply(200, &body(value)),
        Err(Error::NotFound { what }) => refusal(404, &format!("{what} not found")),
        Err(Error::KeyRefused { message, .. } | Error::Invalid { message }) => refusal(400, &message),
        Err(Error::Conflict { message }) => refusal(412, &message),
        Err(other) => refusal(500, &other.to_string()),
    }
}

fn refusal(status: u16, message: &str) -> Reply {
    json_reply(status, &json!({ "message": message }))
}

fn json_reply(status: u16, body: &Value) -> Reply {
    Response::builder()
        .status(StatusCode::from_u16(status).unwrap())
        .header("content-type", "application/json")
        .body(Full::from(body.to_string()))
        .unwrap()
}
