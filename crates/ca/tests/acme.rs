//! The authority as clients see it, over its routes.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by a panic, also in its helpers"
)]

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use jiff::Timestamp;
use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::{Value, json};
use tailwharf_ca::{CaConfig, CertificateAuthority, TxtRecords};
use tower::ServiceExt;

const BASE: &str = "https://control.test/acme/";
const NAME: &str = "web.tail1.ts.net";

#[derive(Default)]
struct Zone(Mutex<Vec<(String, String)>>);

impl TxtRecords for Zone {
    fn txt(&self, name: &str) -> Vec<String> {
        let records = self.0.lock().unwrap();
        records
            .iter()
            .filter(|(at, _)| at == name)
            .map(|(_, value)| value.clone())
            .collect()
    }
}

struct Bed {
    dir: tempfile::TempDir,
    zone: Arc<Zone>,
    router: Router,
}

fn clock() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn open(dir: &tempfile::TempDir, zone: &Arc<Zone>, short_names: bool) -> Router {
    let config = CaConfig {
        server_url: "https://control.test/".to_owned(),
        suffix: "tail1.ts.net".to_owned(),
        short_names,
        data_dir: dir.path().to_owned(),
    };
    CertificateAuthority::open(&config, zone.clone(), clock)
        .unwrap()
        .router()
}

impl Bed {
    fn new() -> Self {
        let (dir, zone) = (tempfile::tempdir().unwrap(), Arc::new(Zone::default()));
        let router = open(&dir, &zone, false);
        Self { dir, zone, router }
    }

    fn restart(&mut self) {
        self.router = open(&self.dir, &self.zone, false);
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let header = |name: &str| {
            response
                .headers()
                .get(name)
                .map(|value| value.to_str().unwrap().to_owned())
        };
        let (nonce, location) = (
            header("replay-nonce").unwrap_or_default(),
            header("location").unwrap_or_default(),
        );
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes().to_vec();
        Answer {
            status,
            nonce,
            location,
            body,
        }
    }

    async fn get(&self, path: &str) -> Answer {
        let request = Request::get(format!("{BASE}{path}")).body(Body::empty()).unwrap();
        self.send(request).await
    }
}

struct Answer {
    status: StatusCode,
    nonce: String,
    location: String,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The problem's kind, without its prefix.
    fn problem(&self) -> String {
        let kind = self.json()["type"].as_str().unwrap_or_default().to_owned();
        kind.trim_start_matches("urn:ietf:params:acme:error:").to_owned()
    }

    fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
}

/// A key of an account, or of a certificate.
struct Key(EcdsaKeyPair, KeyPair);

impl Key {
    fn new() -> Self {
        let pair = KeyPair::generate().unwrap();
        let der = pair.serialize_der();
        Self(
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der, &SystemRandom::new()).unwrap(),
            pair,
        )
    }

    fn jwk(&self) -> Value {
        let point = self.1.der_bytes();
        let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        json!({"kty": "EC", "crv": "P-256", "x": encode(&point[1..33]), "y": encode(&point[33..])})
    }

    fn jws(&self, mut header: Value, payload: &str) -> Value {
        header["alg"] = "ES256".into();
        let encode = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
        let (header, payload) = (encode(&header.to_string()), encode(payload));
        let message = format!("{header}.{payload}");
        let signature = self.0.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        json!({"protected": header, "payload": payload, "signature": BASE64_URL_SAFE_NO_PAD.encode(signature)})
    }

    fn proof(&self, token: &str) -> String {
        let jwk = self.jwk();
        let canonical = format!(
            r#"{{"crv":"P-256","kty":"EC","x":{},"y":{}}}"#,
            jwk["x"], jwk["y"]
        );
        let thumbprint = BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, canonical.as_bytes()));
        BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, format!("{token}.{thumbprint}").as_bytes()))
    }
}

/// A client with an account.
struct Client<'a> {
    bed: &'a Bed,
    key: Key,
    account: String,
}

impl<'a> Client<'a> {
    async fn new(bed: &'a Bed) -> Self {
        let mut client = Self {
            bed,
            key: Key::new(),
            account: String::new(),
        };
        let answer = client
            .post("new-account", &json!({"termsOfServiceAgreed": true}))
            .await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
        client.account = answer.location;
        client
    }

    async fn post(&self, path: &str, payload: &Value) -> Answer {
        self.post_text(path, &payload.to_string()).await
    }

    async fn read(&self, path: &str) -> Answer {
        self.post_text(path, "").await
    }

    async fn post_text(&self, path: &str, payload: &str) -> Answer {
        let mut header =
            json!({"url": format!("{BASE}{path}"), "nonce": self.bed.get("new-nonce").await.nonce});
        if self.account.is_empty() {
            header["jwk"] = self.key.jwk();
        } else {
            header["kid"] = self.account.clone().into();
        }
        self.send(path, &self.key.jws(header, payload)).await
    }

    async fn send(&self, path: &str, body: &Value) -> Answer {
        let request = Request::post(format!("{BASE}{path}"))
            .header("content-type", "application/jose+json")
            .body(Body::from(body.to_string()))
            .unwrap();
        self.bed.send(request).await
    }

    async fn order(&self, names: &[&str]) -> (String, Value) {
        let identifiers: Vec<_> = names
            .iter()
            .map(|name| json!({"type": "dns", "value": name}))
            .collect();
        let answer = self.post("new-order", &json!({"identifiers": identifiers})).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
        (path(&answer.location), answer.json())
    }

    /// Sets the records of an order, and says so.
    async fn prove(&self, order: &Value) {
        for url in order["authorizations"].as_array().unwrap() {
            let authorization = self.read(&path(url.as_str().unwrap())).await.json();
            let challenge = &authorization["challenges"][0];
            let value = self.key.proof(challenge["token"].as_str().unwrap());
            let place = format!(
                "_acme-challenge.{}",
                authorization["identifier"]["value"].as_str().unwrap()
            );
            self.bed.zone.0.lock().unwrap().push((place, value));
            let answer = self
                .post(&path(challenge["url"].as_str().unwrap()), &json!({}))
                .await;
            assert_eq!(answer.json()["status"], "valid", "{}", answer.text());
        }
    }

    async fn finalize(&self, order: &Value, names: &[&str], key: &KeyPair) -> Answer {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let request = CertificateParams::new(names)
            .unwrap()
            .serialize_request(key)
            .unwrap();
        let csr = BASE64_URL_SAFE_NO_PAD.encode(request.der());
        self.post(&path(order["finalize"].as_str().unwrap()), &json!({"csr": csr}))
            .await
    }

    /// The DER of a certificate for `names`, leaf first.
    async fn certify(&self, names: &[&str], key: &KeyPair) -> Vec<Vec<u8>> {
        let (_, order) = self.order(names).await;
        self.prove(&order).await;
        let answer = self.finalize(&order, names, key).await;
        assert_eq!(answer.json()["status"], "valid", "{}", answer.text());
        let chain = self
            .read(&path(answer.json()["certificate"].as_str().unwrap()))
            .await
            .text();
        x509_parser::pem::Pem::iter_from_buffer(chain.as_bytes())
            .map(|pem| pem.unwrap().contents)
            .collect()
    }
}

fn path(url: &str) -> String {
    url.strip_prefix(BASE)
        .unwrap_or_else(|| panic!("{url} is not below {BASE}"))
        .to_owned()
}

#[tokio::test]
async fn a_proven_name_gets_a_certificate_that_the_root_vouches_for() {
    let bed = Bed::new();
    let client = Client::new(&bed).await;
    let chain = client
        .certify(&[NAME, "*.web.tail1.ts.net"], &KeyPair::generate().unwrap())
        .await;
    let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
    let (_, root) = x509_parser::parse_x509_certificate(&chain[1]).unwrap();
    leaf.verify_signature(Some(root.public_key())).unwrap();
    assert!(root.is_ca() && !leaf.is_ca());
    assert!(root.name_constraints().unwrap().is_some());
    let names = leaf
        .subject_alternative_name()
        .unwrap()
        .unwrap()
        .value
        .general_names
        .len();
    assert_eq!(names, 2);
    assert!(
        bed.get("root.pem")
            .await
            .text()
            .starts_with("-----BEGIN CERTIFICATE-----")
    );

    let identifier = leaf
        .extensions()
        .iter()
        .find_map(|extension| match extension.parsed_extension() {
            x509_parser::extensions::ParsedExtension::AuthorityKeyIdentifier(key) => {
                key.key_identifier.clone()
            }
            _ => None,
        })
        .unwrap();
    let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let id = format!("{}.{}", encode(identifier.0), encode(leaf.raw_serial()));
    let window = bed.get(&format!("renewal-info/{id}")).await.json();
    let start: Timestamp = window["suggestedWindow"]["start"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!((start.as_second() - clock().as_second()) / 86_400, 60);
    assert_eq!(
        bed.get("renewal-info/AAAA.AAAA").await.status,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn short_names_are_certified_if_the_server_is_to() {
    let mut bed = Bed::new();
    let constrained = bed.get("root.pem").await.text();
    bed.router = open(&bed.dir, &bed.zone, true);
    assert_ne!(bed.get("root.pem").await.text(), constrained);
    let client = Client::new(&bed).await;
    let names = [NAME, "*.web.tail1.ts.net", "a.b.tail1.ts.net"];
    let chain = client.certify(&names, &KeyPair::generate().unwrap()).await;
    let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
    let (_, root) = x509_parser::parse_x509_certificate(&chain[1]).unwrap();
    assert!(root.name_constraints().unwrap().is_none());
    let certified = leaf.subject_alternative_name().unwrap().unwrap().value;
    let mut certified: Vec<String> = certified.general_names.iter().map(ToString::to_string).collect();
    certified.sort();
    assert_eq!(
        certified,
        [
            "DNSName(*.web.tail1.ts.net)",
            "DNSName(a.b.tail1.ts.net)",
            "DNSName(web)",
            "DNSName(web.tail1.ts.net)"
        ]
    );
}

#[tokio::test]
async fn without_the_record_nothing_is_issued_and_the_reason_is_told() {
    let bed = Bed::new();
    let client = Client::new(&bed).await;
    let (place, order) = client.order(&[NAME]).await;
    let early = client
        .finalize(&order, &[NAME], &KeyPair::generate().unwrap())
        .await;
    assert_eq!(early.problem(), "orderNotReady");
    let authorization = client
        .read(&path(order["authorizations"][0].as_str().unwrap()))
        .await
        .json();
    let challenge = path(authorization["challenges"][0]["url"].as_str().unwrap());
    let answer = client.post(&challenge, &json!({})).await.json();
    assert_eq!(answer["status"], "invalid");
    assert!(
        answer["error"]["detail"]
            .as_str()
            .unwrap()
            .contains(&format!("_acme-challenge.{NAME}")),
        "{answer}"
    );
    assert_eq!(client.read(&place).await.json()["status"], "invalid");
}

#[tokio::test]
async fn another_account_sees_and_takes_nothing() {
    let bed = Bed::new();
    let (owner, other) = (Client::new(&bed).await, Client::new(&bed).await);
    let (place, order) = owner.order(&[NAME]).await;
    owner.prove(&order).await;
    assert_eq!(other.read(&place).await.status, StatusCode::NOT_FOUND);
    let stolen = other
        .finalize(&order, &[NAME], &KeyPair::generate().unwrap())
        .await;
    assert_eq!(stolen.status, StatusCode::NOT_FOUND);
    // The record that the owner set proves nothing for somebody else's key.
    let (_, again) = other.order(&[NAME]).await;
    let authorization = other
        .read(&path(again["authorizations"][0].as_str().unwrap()))
        .await
        .json();
    let answer = other
        .post(
            &path(authorization["challenges"][0]["url"].as_str().unwrap()),
            &json!({}),
        )
        .await;
    assert_eq!(answer.json()["status"], "invalid");
}

#[tokio::test]
async fn requests_for_other_names_or_with_the_accounts_key_are_refused() {
    let bed = Bed::new();
    let client = Client::new(&bed).await;
    let (_, order) = client.order(&[NAME]).await;
    client.prove(&order).await;
    let key = KeyPair::generate().unwrap();
    for names in [
        &["db.tail1.ts.net"][..],
        &[NAME, "db.tail1.ts.net"],
        &[NAME, "10.0.0.1"],
    ] {
        assert_eq!(
            client.finalize(&order, names, &key).await.problem(),
            "badCSR",
            "{names:?}"
        );
    }
    assert_eq!(
        client.finalize(&order, &[NAME], &client.key.1).await.problem(),
        "badCSR"
    );
    let garbage = client
        .post(
            &path(order["finalize"].as_str().unwrap()),
            &json!({"csr": "AAAA"}),
        )
        .await;
    assert_eq!(garbage.problem(), "badCSR");
    let answer = client.finalize(&order, &[NAME], &key).await;
    assert_eq!(
        answer.json()["status"],
        "valid",
        "a refused request does not spoil the order: {}",
        answer.text()
    );
}

#[tokio::test]
async fn foreign_names_and_other_identifiers_are_refused() {
    let bed = Bed::new();
    let client = Client::new(&bed).await;
    for (kind, value, problem) in [
        ("dns", "example.com", "rejectedIdentifier"),
        ("dns", "tail1.ts.net", "rejectedIdentifier"),
        ("ip", "100.64.0.1", "unsupportedIdentifier"),
    ] {
        let answer = client
            .post(
                "new-order",
                &json!({"identifiers": [{"type": kind, "value": value}]}),
            )
            .await;
        assert_eq!(answer.problem(), problem, "{value}");
    }
    assert_eq!(
        client
            .post("new-order", &json!({"identifiers": []}))
            .await
            .problem(),
        "malformed"
    );
    let many: Vec<_> = (0..101)
        .map(|n| json!({"type": "dns", "value": format!("n{n}.tail1.ts.net")}))
        .collect();
    assert_eq!(
        client
            .post("new-order", &json!({"identifiers": many}))
            .await
            .problem(),
        "malformed"
    );
}

#[tokio::test]
async fn a_request_counts_once_for_one_url_and_from_its_signer() {
    let bed = Bed::new();
    let client = Client::new(&bed).await;
    let header = |nonce: &str, path: &str| json!({"url": format!("{BASE}{path}"), "nonce": nonce, "kid": client.account});
    let payload = json!({"identifiers": [{"type": "dns", "value": NAME}]}).to_string();
    let nonce = bed.get("new-nonce").await.nonce;
    let request = client.key.jws(header(&nonce, "new-order"), &payload);
    assert_eq!(
        client.send("new-order", &request).await.status,
        StatusCode::CREATED
    );
    assert_eq!(client.send("new-order", &request).await.problem(), "badNonce");

    let nonce = bed.get("new-nonce").await.nonce;
    let elsewhere = client.key.jws(header(&nonce, "key-change"), &payload);
    assert_eq!(
        client.send("new-order", &elsewhere).await.problem(),
        "unauthorized"
    );

    let nonce = bed.get("new-nonce").await.nonce;
    let forged = Key::new().jws(header(&nonce, "new-order"), &payload);
    assert_eq!(client.send("new-order", &forged).await.problem(), "malformed");

    let large = json!({"protected": "A".repeat(70_000)});
    assert_eq!(
        client.send("new-order", &large).await.status,
        StatusCode::PAYLOAD_TOO_LARGE
    );
}

#[tokio::test]
async fn accounts_stay_over_restarts_change_their_key_and_end() {
    let mut bed = Bed::new();
    let (key, account) = {
        let client = Client::new(&bed).await;
        (client.key, client.account)
    };
    bed.restart();
    let mut client = Client {
        bed: &bed,
        key,
        account: String::new(),
    };
    let answer = client
        .post("new-account", &json!({"onlyReturnExisting": true}))
        .await;
    assert_eq!((answer.status, &answer.location), (StatusCode::OK, &account));
    client.account = account.clone();

    let new = Key::new();
    let inner = json!({"account": account, "oldKey": client.key.jwk()}).to_string();
    let inner = new.jws(
        json!({"url": format!("{BASE}key-change"), "jwk": new.jwk()}),
        &inner,
    );
    let answer = client.post("key-change", &inner).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    assert_eq!(
        client.read(&path(&account)).await.problem(),
        "malformed",
        "the old key is worth nothing"
    );
    client.key = new;
    let answer = client
        .post(&path(&account), &json!({"contact": ["mailto:a@example.com"]}))
        .await;
    assert_eq!(answer.json()["contact"][0], "mailto:a@example.com");
    let answer = client
        .post(&path(&account), &json!({"status": "deactivated"}))
        .await;
    assert_eq!(answer.json()["status"], "deactivated");
    assert_eq!(client.read(&path(&account)).await.problem(), "unauthorized");
    client.key = Key::new();
    client.account = String::new();
    let answer = client
        .post("new-account", &json!({"onlyReturnExisting": true}))
        .await;
    assert_eq!(answer.problem(), "accountDoesNotExist");
}

#[tokio::test]
async fn a_certificate_is_revoked_with_its_own_key_and_listed() {
    let bed = Bed::new();
    let client = Client::new(&bed).await;
    let key = Key::new();
    let chain = client.certify(&[NAME], &key.1).await;
    let payload = json!({"certificate": BASE64_URL_SAFE_NO_PAD.encode(&chain[0]), "reason": 1});
    assert_eq!(
        client.post("revoke-cert", &payload).await.problem(),
        "unauthorized"
    );
    let thief = Client {
        bed: &bed,
        key: Key::new(),
        account: String::new(),
    };
    assert_eq!(
        thief.post("revoke-cert", &payload).await.problem(),
        "unauthorized"
    );
    let holder = Client {
        bed: &bed,
        key,
        account: String::new(),
    };
    let root = json!({"certificate": BASE64_URL_SAFE_NO_PAD.encode(&chain[1])});
    assert_eq!(holder.post("revoke-cert", &root).await.problem(), "malformed");
    assert_eq!(holder.post("revoke-cert", &payload).await.status, StatusCode::OK);
    assert_eq!(
        holder.post("revoke-cert", &payload).await.problem(),
        "alreadyRevoked"
    );
    let list = bed.get("crl").await.body;
    let (_, list) = x509_parser::parse_x509_crl(&list).unwrap();
    let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
    let listed: Vec<_> = list
        .iter_revoked_certificates()
        .map(|revoked| revoked.raw_serial().to_vec())
        .collect();
    assert_eq!(listed, [leaf.raw_serial().to_vec()]);
}
