//! Clients that show a token of their platform.

use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};

use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jiff::Timestamp;

use super::*;
use crate::config::IssuerConfig;

const ISSUER: &str = "https://kubernetes.default.svc";
const SUBJECT: &str = "system:serviceaccount:tailscale:operator";

/// A cluster that signs tokens and wrote its keys to a file.
struct Cluster {
    key: EcdsaKeyPair,
}

impl Cluster {
    fn new() -> Self {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap();
        Self { key }
    }

    fn keys(&self) -> String {
        let point = self.key.public_key().as_ref();
        let part = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        json!({"keys": [{"kty": "EC", "crv": "P-256", "kid": "a", "x": part(&point[1..33]), "y": part(&point[33..])}]})
            .to_string()
    }

    fn token(&self, subject: &str, audience: &str) -> String {
        let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let exp = Timestamp::now().as_second() + 600;
        let claims = json!({"iss": ISSUER, "sub": subject, "aud": [audience], "exp": exp});
        let signed = format!("{}.{}", part(&json!({"alg": "ES256", "kid": "a"})), part(&claims));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}

async fn site(cluster: &Cluster) -> Site {
    Site::start_with(|dir| {
        let file = dir.join("keys.json");
        std::fs::write(&file, cluster.keys()).unwrap();
        vec![IssuerConfig {
            url: ISSUER.to_owned(),
            jwks_file: Some(file),
            ca_file: None,
        }]
    })
    .await
}

fn new_client() -> Value {
    json!({"keyType": "federated", "issuer": ISSUER, "subject": SUBJECT, "scopes": ["auth_keys"], "tags": ["tag:k8s-operator"]})
}

#[tokio::test]
async fn a_token_of_the_cluster_is_traded_for_one_of_ours() {
    let cluster = Cluster::new();
    let site = site(&cluster).await;
    let client = site.admin_json(Method::POST, KEYS, &new_client()).await;
    assert_eq!(client.get("key"), None, "there is no secret");
    let (id, audience) = (
        client["id"].as_str().unwrap(),
        client["audience"].as_str().unwrap(),
    );
    assert_eq!(audience, format!("api.tailscale.com/{id}"));

    let token = site.exchange(id, &cluster.token(SUBJECT, audience)).await.ok();
    assert_eq!(token["scope"], "auth_keys");
    let bearer = format!("Bearer {}", token["access_token"].as_str().unwrap());
    site.call(Method::POST, KEYS, &bearer, &auth_key(&["tag:k8s"]))
        .await
        .ok();
    let refused = site
        .call(Method::POST, KEYS, &bearer, &auth_key(&["tag:other"]))
        .await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);

    for (token, words) in [
        (
            cluster.token("system:serviceaccount:default:default", audience),
            "the subject",
        ),
        (cluster.token(SUBJECT, "another"), "the audience"),
        (Cluster::new().token(SUBJECT, audience), "signature"),
        ("nonsense".to_owned(), "JWT"),
    ] {
        let refused = site.exchange(id, &token).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{}", refused.text);
        assert!(refused.text.contains(words), "{}", refused.text);
        assert!(!refused.text.contains(&token), "a token is not told back");
    }

    // Another binding ends what was granted under the former one.
    let mut other = new_client();
    other["subject"] = json!("system:serviceaccount:tailscale:other");
    site.admin_json(Method::PUT, &format!("{KEYS}/{id}"), &other)
        .await;
    assert_eq!(site.get(KEYS, &bearer).await.status, StatusCode::UNAUTHORIZED);
    let former = site.exchange(id, &cluster.token(SUBJECT, audience)).await;
    assert_eq!(former.status, StatusCode::BAD_REQUEST);
    site.admin(Method::DELETE, &format!("{KEYS}/{id}"), Body::empty())
        .await;
    let gone = site.exchange(id, &cluster.token(SUBJECT, audience)).await;
    assert_eq!(gone.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn clients_of_strange_issuers_are_not_made() {
    let site = site(&Cluster::new()).await;
    for (field, value, words) in [
        ("issuer", "https://elsewhere.example.com", "[[issuers]]"),
        ("subject", "", "subject"),
        ("subject", "*", "everybody"),
    ] {
        let mut client = new_client();
        client[field] = json!(value);
        let refused = exchange(
            &site.socket,
            request(Method::POST, KEYS, None, client.to_string()),
        )
        .await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{}", refused.text);
        assert!(refused.message().contains(words), "{}", refused.text);
    }
}

#[tokio::test]
async fn a_secret_client_cannot_be_used_by_a_token_nor_the_other_way_round() {
    let cluster = Cluster::new();
    let site = site(&cluster).await;
    let (id, secret) = site.client(&["auth_keys"], &["tag:k8s-operator"]).await;
    let by_token = site.exchange(&id, &cluster.token(SUBJECT, "x")).await;
    assert_eq!(by_token.status, StatusCode::UNAUTHORIZED);
    let federated = site.admin_json(Method::POST, KEYS, &new_client()).await;
    let federated = federated["id"].as_str().unwrap();
    let form = format!("client_id={federated}&client_secret={secret}");
    assert_eq!(
        site.token_answer(None, &form).await.status,
        StatusCode::UNAUTHORIZED
    );
}

impl Site {
    async fn exchange(&self, client: &str, token: &str) -> Answer {
        let form = format!("client_id={client}&jwt={token}");
        self.send_form_to("/api/v2/oauth/token-exchange", None, form)
            .await
    }
}
