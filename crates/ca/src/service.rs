//! The requests of ACME: who may ask for what, and the answers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State as Shared};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use jiff::Timestamp;
use rand::RngCore;
use rand::rngs::OsRng;
use ring::digest::{SHA256, digest};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::authority::{Authority, SERIAL_RANDOM, reason};
use crate::book::{Book, Revoked};
use crate::jws::{Jwk, Signer, Unverified};
use crate::nonces::Nonces;
use crate::orders::{Authorization, Name, Order, Orders, State};
use crate::problem::{Kind, Problem};
use crate::{CaConfig, CaError, TxtRecords};

const MAX_BODY: usize = 64 * 1024;
/// How often a client is to look whether a certificate is to be renewed.
const RENEWAL_CHECK: &str = "21600";

pub(crate) struct Service {
    /// The address of everything below, with a slash at its end.
    base: String,
    suffix: String,
    authority: Authority,
    records: Arc<dyn TxtRecords>,
    clock: fn() -> Timestamp,
    state: Mutex<Memory>,
}

struct Memory {
    book: Book,
    orders: Orders,
    nonces: Nonces,
}

/// An answer: status, body, and what goes into headers.
struct Reply {
    status: StatusCode,
    body: Content,
    location: Option<String>,
}

enum Content {
    Json(Value),
    Chain(String),
    Empty,
}

type Outcome = Result<Reply, Problem>;

/// A request whose signature is valid, of a known account.
struct Signed<'a> {
    account: &'a str,
    key: &'a Jwk,
    payload: &'a [u8],
}

pub(crate) fn router(service: Arc<Service>) -> Router {
    Router::new()
        .route("/acme/{*path}", get(read).post(post))
        .layer(axum::extract::DefaultBodyLimit::max(MAX_BODY))
        .with_state(service)
}

async fn read(Shared(service): Shared<Arc<Service>>, method: Method, Path(path): Path<String>) -> Response {
    let answer = tokio::task::spawn_blocking(move || service.read(&method, &path)).await;
    answer.unwrap_or_else(|_| Problem::internal().into_response())
}

async fn post(Shared(service): Shared<Arc<Service>>, Path(path): Path<String>, body: Bytes) -> Response {
    // Signatures and the disk take their time.
    let answer = tokio::task::spawn_blocking(move || service.post(&path, &body)).await;
    answer.unwrap_or_else(|_| Problem::internal().into_response())
}

impl Service {
    pub(crate) fn open(
        config: &CaConfig,
        records: Arc<dyn TxtRecords>,
        clock: fn() -> Timestamp,
    ) -> Result<Self, CaError> {
        Ok(Self {
            base: format!("{}/acme/", config.server_url.trim_end_matches('/')),
            suffix: config.suffix.clone(),
            authority: Authority::load_or_create(
                &config.data_dir,
                &config.suffix,
                config.short_names,
                clock(),
            )?,
            records,
            clock,
            state: Mutex::new(Memory {
                book: Book::open(&config.data_dir)?,
                orders: Orders::default(),
                nonces: Nonces::default(),
            }),
        })
    }

    pub(crate) fn root_pem(&self) -> String {
        self.authority.root_pem()
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    // What everybody may read.

    fn read(&self, method: &Method, path: &str) -> Response {
        match path.split_once('/').unwrap_or((path, "")) {
            ("directory", "") => axum::Json(self.directory()).into_response(),
            ("new-nonce", "") => {
                let status = if method == Method::HEAD {
                    StatusCode::OK
                } else {
                    StatusCode::NO_CONTENT
                };
                self.with_nonce(status.into_response())
            }
            ("root.pem", "") => typed("application/x-pem-file", self.root_pem()),
            ("crl", "") => {
                let revoked = self.memory().book.revoked().to_vec();
                match self.authority.revocations(&revoked, (self.clock)()) {
                    Ok(list) => typed("application/pkix-crl", list),
                    Err(error) => {
                        tracing::error!(%error, "the list of revoked certificates could not be signed");
                        Problem::internal().into_response()
                    }
                }
            }
            ("renewal-info", id) if !id.is_empty() => {
                let window = self.authority.renewal_window(id, self.memory().book.revoked());
                match window {
                    Ok((start, end)) => {
                        let body = json!({"suggestedWindow": {"start": whole(start), "end": whole(end)}});
                        ([(header::RETRY_AFTER, RENEWAL_CHECK)], axum::Json(body)).into_response()
                    }
                    Err(problem) => problem.into_response(),
                }
            }
            _ => Problem::not_found("page").into_response(),
        }
    }

    fn directory(&self) -> Value {
        json!({
            "newNonce": self.url("new-nonce"),
            "newAccount": self.url("new-account"),
            "newOrder": self.url("new-order"),
            "revokeCert": self.url("revoke-cert"),
            "keyChange": self.url("key-change"),
            "renewalInfo": self.url("renewal-info"),
            "meta": {"externalAccountRequired": false, "website": self.url("root.pem")},
        })
    }

    // What is signed.

    fn post(&self, path: &str, body: &[u8]) -> Response {
        let response = match self.answer(path, body) {
            Ok(reply) => self.respond(reply),
            Err(problem) => problem.into_response(),
        };
        self.with_nonce(response)
    }

    fn respond(&self, reply: Reply) -> Response {
        let mut response = match reply.body {
            Content::Json(body) => axum::Json(body).into_response(),
            Content::Chain(chain) => typed("application/pem-certificate-chain", chain),
            Content::Empty => Body::empty().into_response(),
        };
        *response.status_mut() = reply.status;
        let location = reply.location.and_then(|url| HeaderValue::from_str(&url).ok());
        if let Some(location) = location {
            response.headers_mut().insert(header::LOCATION, location);
        }
        response
    }

    fn with_nonce(&self, mut response: Response) -> Response {
        let nonce = random_id();
        if let Ok(value) = HeaderValue::from_str(&nonce) {
            self.memory().nonces.give(nonce);
            response.headers_mut().insert("replay-nonce", value);
        }
        let index = format!("<{}>;rel=\"index\"", self.url("directory"));
        if let Ok(value) = HeaderValue::from_str(&index) {
            response.headers_mut().insert(header::LINK, value);
        }
        response
            .headers_mut()
            .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }

    fn answer(&self, path: &str, body: &[u8]) -> Outcome {
        let request = Unverified::parse(body)?;
        if request.url != self.url(path) {
            let detail = format!(
                "the request was signed for {}, not for {}",
                request.url,
                self.url(path)
            );
            return Err(Problem::new(Kind::Unauthorized, detail));
        }
        if !self.memory().nonces.take(&request.nonce) {
            return Err(Problem::new(
                Kind::BadNonce,
                "the nonce was used before, or is not from here",
            ));
        }
        let parts: Vec<&str> = path.split('/').collect();
        if parts == ["new-account"] {
            return self.new_account(request);
        }
        if parts == ["revoke-cert"] {
            return self.revoke(request);
        }
        let Signer::Account(url) = &request.signer else {
            return Err(Problem::malformed("this request has to be signed with `kid`"));
        };
        let account = url
            .strip_prefix(&self.url("account/"))
            .unwrap_or_default()
            .to_owned();
        let key = self.memory().book.account(&account)?.key.clone();
        let payload = request.verify(&key)?;
        let signed = Signed {
            account: &account,
            key: &key,
            payload: &payload,
        };
        match parts.as_slice() {
            ["account", id] if *id == account => self.account(&signed),
            ["key-change"] => self.change_key(&signed),
            ["new-order"] => self.new_order(&signed),
            ["order", id] => self.order(&signed, id),
            ["order", id, "finalize"] => self.finalize(&signed, id),
            ["authz", id, number] => self.authorization(&signed, id, number),
            ["challenge", id, number] => self.challenge(&signed, id, number),
            ["cert", id] => self.certificate(&signed, id),
            _ => Err(Problem::not_found("page")),
        }
    }

    fn new_account(&self, request: Unverified) -> Outcome {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Wish {
            #[serde(default)]
            contact: Vec<String>,
            #[serde(default)]
            only_return_existing: bool,
        }
        let Signer::Key(key) = request.signer.clone() else {
            return Err(Problem::malformed("a new account is asked for with `jwk`"));
        };
        key.check()?;
        let wish: Wish = parse(&request.verify(&key)?)?;
        let mut memory = self.memory();
        let known = memory.book.of_key(&key).map(str::to_owned);
        let (status, id) = match known {
            Some(id) => (StatusCode::OK, id),
            None if wish.only_return_existing => {
                return Err(Problem::new(
                    Kind::AccountDoesNotExist,
                    "this key has no account here",
                ));
            }
            None => {
                let id = random_id();
                memory.book.register(&id, key, wish.contact, (self.clock)())?;
                (StatusCode::CREATED, id)
            }
        };
        let body = Content::Json(account_view(&memory.book, &id)?);
        let location = Some(self.url(&format!("account/{id}")));
        Ok(Reply {
            status,
            body,
            location,
        })
    }

    fn account(&self, signed: &Signed<'_>) -> Outcome {
        #[derive(Deserialize)]
        struct Change {
            contact: Option<Vec<String>>,
            status: Option<String>,
        }
        let mut memory = self.memory();
        let id = signed.account;
        if !signed.payload.is_empty() {
            let change: Change = parse(signed.payload)?;
            if let Some(contact) = change.contact {
                memory.book.set_contact(id, contact)?;
            }
            match change.status.as_deref() {
                None => {}
                Some("deactivated") => {
                    let mut view = account_view(&memory.book, id)?;
                    memory.book.deactivate(id)?;
                    view["status"] = "deactivated".into();
                    return Ok(Reply::ok(view));
                }
                Some(other) => return Err(Problem::malformed(format!("an account cannot become `{other}`"))),
            }
        }
        account_view(&memory.book, id).map(Reply::ok)
    }

    /// RFC 8555, section 7.3.5: the old key signs a request in which the new key signs.
    fn change_key(&self, signed: &Signed<'_>) -> Outcome {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Change {
            account: String,
            old_key: Jwk,
        }
        let inner = Unverified::parse(signed.payload)?;
        let Signer::Key(new) = inner.signer.clone() else {
            return Err(Problem::malformed(
                "the inner request has to be signed with the new key, as `jwk`",
            ));
        };
        new.check()?;
        if inner.url != self.url("key-change") {
            return Err(Problem::malformed("the inner request is for another URL"));
        }
        let change: Change = parse(&inner.verify(&new)?)?;
        if change.account != self.url(&format!("account/{}", signed.account)) || change.old_key != *signed.key
        {
            return Err(Problem::malformed(
                "the inner request names another account or key",
            ));
        }
        let mut memory = self.memory();
        if let Some(holder) = memory.book.of_key(&new).map(str::to_owned) {
            let mut reply = Reply::empty(StatusCode::CONFLICT);
            reply.location = Some(self.url(&format!("account/{holder}")));
            return Ok(reply);
        }
        memory.book.change_key(signed.account, new)?;
        account_view(&memory.book, signed.account).map(Reply::ok)
    }

    fn new_order(&self, signed: &Signed<'_>) -> Outcome {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Wish {
            identifiers: Vec<Identifier>,
            not_before: Option<String>,
            not_after: Option<String>,
        }
        #[derive(Deserialize)]
        struct Identifier {
            #[serde(rename = "type")]
            kind: String,
            value: String,
        }
        let wish: Wish = parse(signed.payload)?;
        if wish.not_before.is_some() || wish.not_after.is_some() {
            return Err(Problem::malformed(
                "the life of a certificate is chosen here: leave out notBefore and notAfter",
            ));
        }
        let name = |identifier: &Identifier| {
            if identifier.kind == "dns" {
                Name::parse(&identifier.value, &self.suffix)
            } else {
                Err(Problem::new(
                    Kind::UnsupportedIdentifier,
                    "only DNS names are certified here",
                ))
            }
        };
        let names = wish.identifiers.iter().map(name).collect::<Result<_, _>>()?;
        let id = random_id();
        let mut memory = self.memory();
        let order = memory
            .orders
            .open(id.clone(), signed.account, names, random_id, (self.clock)())?;
        Ok(Reply {
            status: StatusCode::CREATED,
            body: Content::Json(self.order_view(&id, order)),
            location: Some(self.url(&format!("order/{id}"))),
        })
    }

    fn order(&self, signed: &Signed<'_>, id: &str) -> Outcome {
        let mut memory = self.memory();
        let order = memory.orders.get(id, signed.account, (self.clock)())?;
        Ok(Reply::ok(self.order_view(id, order)))
    }

    fn authorization(&self, signed: &Signed<'_>, id: &str, number: &str) -> Outcome {
        let mut memory = self.memory();
        let order = memory.orders.get(id, signed.account, (self.clock)())?;
        let expires = order.expires;
        let authorization = part(order, number)?;
        let mut view = json!({
            "identifier": {"type": "dns", "value": authorization.name.base},
            "status": authorization.state(),
            "expires": whole(expires),
            "challenges": [self.challenge_view(id, number, authorization)],
        });
        if authorization.name.wildcard {
            view["wildcard"] = true.into();
        }
        Ok(Reply::ok(view))
    }

    /// The client says that the record is there; it is looked up at once, since it is this server that keeps it.
    fn challenge(&self, signed: &Signed<'_>, id: &str, number: &str) -> Outcome {
        let now = (self.clock)();
        let mut memory = self.memory();
        let authorization = part(memory.orders.get(id, signed.account, now)?, number)?;
        if authorization.outcome.is_none() && !signed.payload.is_empty() {
            let expected = proof(&authorization.token, signed.key);
            let place = authorization.name.challenge();
            let found = self.records.txt(&place);
            authorization.outcome = Some(if found.contains(&expected) {
                Ok(now)
            } else {
                let detail = format!(
                    "the TXT record {place} does not hold the proof ({} others do not fit): the node with this name has to set it by its control connection",
                    found.len()
                );
                Err(Problem::new(Kind::Dns, detail))
            });
        }
        Ok(Reply::ok(self.challenge_view(id, number, authorization)))
    }

    fn finalize(&self, signed: &Signed<'_>, id: &str) -> Outcome {
        #[derive(Deserialize)]
        struct Finalize {
            csr: String,
        }
        let request: Finalize = parse(signed.payload)?;
        let request = BASE64_URL_SAFE_NO_PAD
            .decode(&request.csr)
            .map_err(|_| Problem::new(Kind::BadCsr, "`csr` is not base64url"))?;
        let now = (self.clock)();
        let mut memory = self.memory();
        let order = memory.orders.get(id, signed.account, now)?;
        if order.state() != State::Ready {
            return Err(Problem::new(
                Kind::OrderNotReady,
                "not every name of the order is proven, or its certificate is issued already",
            ));
        }
        let mut random = [0; SERIAL_RANDOM];
        OsRng.fill_bytes(&mut random);
        let chain =
            self.authority
                .issue(&request, order.names(), signed.key, self.url("crl"), random, now)?;
        order.certificate = Some(chain);
        let names: Vec<String> = order.names().map(Name::text).collect();
        tracing::info!(
            names = names.join(","),
            account = signed.account,
            "a certificate was issued"
        );
        let mut reply = Reply::ok(self.order_view(id, order));
        reply.location = Some(self.url(&format!("order/{id}")));
        Ok(reply)
    }

    fn certificate(&self, signed: &Signed<'_>, id: &str) -> Outcome {
        let mut memory = self.memory();
        let order = memory.orders.get(id, signed.account, (self.clock)())?;
        let chain = order
            .certificate
            .clone()
            .ok_or_else(|| Problem::not_found("certificate"))?;
        Ok(Reply {
            status: StatusCode::OK,
            body: Content::Chain(chain),
            location: None,
        })
    }

    /// Whoever has the certificate's key may revoke it.
    fn revoke(&self, request: Unverified) -> Outcome {
        #[derive(Deserialize)]
        struct Wish {
            certificate: String,
            #[serde(default)]
            reason: u8,
        }
        let Signer::Key(key) = request.signer.clone() else {
            let detail = "a certificate is revoked with its own key: sign with `jwk`";
            return Err(Problem::new(Kind::Unauthorized, detail));
        };
        let wish: Wish = parse(&request.verify(&key)?)?;
        let certificate = BASE64_URL_SAFE_NO_PAD
            .decode(&wish.certificate)
            .map_err(|_| Problem::malformed("`certificate` is not base64url"))?;
        let issued = self.authority.read(&certificate)?;
        if key.point()?.is_none_or(|point| point != issued.key) {
            return Err(Problem::new(
                Kind::Unauthorized,
                "this is not the certificate's key",
            ));
        }
        if reason(wish.reason).is_none() {
            return Err(Problem::new(Kind::BadRevocationReason, "use 0, 1, 3, 4, 5 or 9"));
        }
        self.memory().book.revoke(Revoked {
            serial: issued.serial,
            at: (self.clock)(),
            reason: wish.reason,
            ends: issued.ends,
        })?;
        Ok(Reply::empty(StatusCode::OK))
    }

    fn order_view(&self, id: &str, order: &Order) -> Value {
        let identifiers: Vec<Value> = order
            .names()
            .map(|name| json!({"type": "dns", "value": name.text()}))
            .collect();
        let authorizations: Vec<String> = (0..order.authorizations.len())
            .map(|number| self.url(&format!("authz/{id}/{number}")))
            .collect();
        let mut view = json!({
            "status": order.state(),
            "expires": whole(order.expires),
            "identifiers": identifiers,
            "authorizations": authorizations,
            "finalize": self.url(&format!("order/{id}/finalize")),
        });
        if order.certificate.is_some() {
            view["certificate"] = self.url(&format!("cert/{id}")).into();
        }
        if let Some(problem) = order
            .authorizations
            .iter()
            .find_map(|part| part.outcome.as_ref()?.as_ref().err())
        {
            view["error"] = json!(problem);
        }
        view
    }

    fn challenge_view(&self, id: &str, number: &str, authorization: &Authorization) -> Value {
        let mut view = json!({
            "type": "dns-01",
            "url": self.url(&format!("challenge/{id}/{number}")),
            "token": authorization.token,
            "status": authorization.state(),
        });
        match &authorization.outcome {
            Some(Ok(at)) => view["validated"] = json!(whole(*at)),
            Some(Err(problem)) => view["error"] = json!(problem),
            None => {}
        }
        view
    }
}

impl Reply {
    fn ok(body: Value) -> Self {
        Self {
            status: StatusCode::OK,
            body: Content::Json(body),
            location: None,
        }
    }

    fn empty(status: StatusCode) -> Self {
        Self {
            status,
            body: Content::Empty,
            location: None,
        }
    }
}

fn typed(form: &'static str, body: impl Into<Body>) -> Response {
    ([(header::CONTENT_TYPE, form)], body.into()).into_response()
}

fn part<'a>(order: &'a mut Order, number: &str) -> Result<&'a mut Authorization, Problem> {
    let number: Option<usize> = number.parse().ok();
    number
        .and_then(|number| order.authorizations.get_mut(number))
        .ok_or_else(|| Problem::not_found("authorization"))
}

fn account_view(book: &Book, id: &str) -> Result<Value, Problem> {
    let account = book.account(id)?;
    Ok(json!({"status": "valid", "contact": account.contact}))
}

fn parse<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(payload)
        .map_err(|error| Problem::malformed(format!("the payload cannot be read: {error}")))
}

/// What the TXT record has to hold (RFC 8555, section 8.4).
fn proof(token: &str, key: &Jwk) -> String {
    let authorization = format!("{token}.{}", key.thumbprint());
    BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, authorization.as_bytes()))
}

/// 128 random bits in base64url.
fn random_id() -> String {
    let mut bytes = [0; 16];
    OsRng.fill_bytes(&mut bytes);
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// RFC 3339 without fractions of a second.
fn whole(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second())
        .unwrap_or(time)
        .to_string()
}
