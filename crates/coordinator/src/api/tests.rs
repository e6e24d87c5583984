//! The API over HTTP, in process, on a store in a temporary directory.

mod access;
mod contract;
mod federation;
mod keys;
mod services;
mod tailnet;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tailwharf_wire::tailcfg::{RegisterAuth, RegisterRequest};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::{BODY_LIMIT, POLICY_LIMIT, router, socket_router};
use crate::config::IssuerConfig;
use crate::lab;
use crate::register;
use crate::workload::Issuers;
use crate::{Coordinator, Handle};

const POLICY: &str = r#"{
    // The operator gives its tag to what it makes.
    "tagOwners": {"tag:k8s-operator": [], "tag:k8s": ["tag:k8s-operator"], "tag:other": []},
    "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
}
"#;

struct Site {
    handle: Handle,
    public: Router,
    socket: Router,
    _dir: TempDir,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {}", self.text))
    }

    fn message(&self) -> String {
        self.json()["message"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    fn ok(self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{}", self.text);
        self.json()
    }
}

async fn exchange(router: &Router, request: Request<Body>) -> Answer {
    let response = TowerToHyperService::new(router.clone())
        .call(request)
        .await
        .unwrap();
    let (head, body) = response.into_parts();
    let text = String::from_utf8(body.collect().await.unwrap().to_bytes().into()).unwrap();
    Answer {
        status: head.status,
        headers: head.headers,
        text,
    }
}

fn request(method: Method, path: &str, authorization: Option<&str>, body: impl Into<Body>) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(value) = authorization {
        request = request.header(header::AUTHORIZATION, value);
    }
    request.body(body.into()).unwrap()
}

impl Site {
    async fn start() -> Self {
        Self::start_with(|_| Vec::new()).await
    }

    /// A coordinator that believes issuers whose files are in its directory.
    async fn start_with(issuers: impl FnOnce(&std::path::Path) -> Vec<IssuerConfig>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = lab::config(dir.path());
        config.issuers = issuers(dir.path());
        let handle = Coordinator::start(config.clone(), CancellationToken::new())
            .await
            .unwrap();
        let operations = handle.operations().clone();
        let shared = crate::site::Site::new(
            operations,
            config.server_url.clone(),
            Issuers::new(&config.issuers).unwrap(),
            None,
            &config.limits,
        );
        let shared = Arc::new(shared);
        let site = Self {
            public: router(shared.clone()),
            socket: socket_router(shared),
            handle,
            _dir: dir,
        };
        site.admin(Method::POST, "/api/v2/tailnet/-/acl", POLICY).await;
        site
    }

    /// A call at the administrator's socket that must succeed.
    async fn admin(&self, method: Method, path: &str, body: impl Into<Body>) -> String {
        let answer = exchange(&self.socket, request(method, path, None, body)).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text);
        answer.text
    }

    async fn admin_json(&self, method: Method, path: &str, body: &Value) -> Value {
        serde_json::from_str(&self.admin(method, path, body.to_string()).await).unwrap()
    }

    /// Id and secret of a new OAuth client.
    async fn client(&self, scopes: &[&str], tags: &[&str]) -> (String, String) {
        let body = json!({"keyType": "client", "scopes": scopes, "tags": tags});
        let key = self
            .admin_json(Method::POST, "/api/v2/tailnet/-/keys", &body)
            .await;
        (
            key["id"].as_str().unwrap().to_owned(),
            key["key"].as_str().unwrap().to_owned(),
        )
    }

    async fn token_answer(&self, authorization: Option<&str>, form: &str) -> Answer {
        self.send_form(authorization, form.to_owned()).await
    }

    async fn send_form(&self, authorization: Option<&str>, form: impl Into<Body>) -> Answer {
        self.send_form_to("/api/v2/oauth/token", authorization, form)
            .await
    }

    async fn send_form_to(&self, path: &str, authorization: Option<&str>, form: impl Into<Body>) -> Answer {
        let mut request = request(Method::POST, path, authorization, form);
        let kind = header::HeaderValue::from_static("application/x-www-form-urlencoded");
        request.headers_mut().insert(header::CONTENT_TYPE, kind);
        exchange(&self.public, request).await
    }

    /// The `Authorization` of a new client with these scopes and tags.
    async fn bearer(&self, scopes: &[&str], tags: &[&str]) -> String {
        let (id, secret) = self.client(scopes, tags).await;
        let form = format!("grant_type=client_credentials&client_id={id}&client_secret={secret}");
        let token = self.token_answer(None, &form).await.ok();
        format!("Bearer {}", token["access_token"].as_str().unwrap())
    }

    async fn call(&self, method: Method, path: &str, authorization: &str, body: &Value) -> Answer {
        let body = if body.is_null() {
            Body::empty()
        } else {
            body.to_string().into()
        };
        exchange(&self.public, request(method, path, Some(authorization), body)).await
    }

    async fn get(&self, path: &str, authorization: &str) -> Answer {
        self.call(Method::GET, path, authorization, &Value::Null).await
    }

    /// A device that joined with a new tagged auth key. Its stable id.
    async fn device(&self, seed: u8, hostname: &str, tag: &str) -> String {
        let body = json!({"capabilities": {"devices": {"create": {"tags": [tag], "preauthorized": true}}}});
        let key = self
            .admin_json(Method::POST, "/api/v2/tailnet/-/keys", &body)
            .await;
        self.join(seed, hostname, key["key"].as_str().unwrap()).await
    }

    /// Lets a device register with an auth key. Its stable id.
    async fn join(&self, seed: u8, hostname: &str, auth_key: &str) -> String {
        let request = RegisterRequest {
            node_key: lab::node_key(seed),
            auth: Some(RegisterAuth {
                auth_key: auth_key.to_owned(),
            }),
            hostinfo: Some(lab::hostinfo(hostname)),
            ..RegisterRequest::default()
        };
        let machine = lab::machine(seed);
        let operations = self.handle.operations();
        operations
            .submit(move |world, context| register::register(world, context, machine, request))
            .await
            .unwrap();
        let world = operations.world();
        world.node_by_name(hostname).unwrap().stable_id.to_string()
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

fn auth_key(tags: &[&str]) -> Value {
    json!({"capabilities": {"devices": {"create": {"reusable": false, "ephemeral": false, "preauthorized": true, "tags": tags}}},
           "expirySeconds": 0, "description": ""})
}

const KEYS: &str = "/api/v2/tailnet/-/keys";
const DEVICES: &str = "/api/v2/tailnet/-/devices";
const ACL: &str = "/api/v2/tailnet/-/acl";
