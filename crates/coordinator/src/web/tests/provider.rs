//! Signing in by an identity provider that really runs: discovery, code, PKCE, token, by TLS.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Mutex;

use axum::Form;
use axum::Json;
use axum::extract::State;
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD as BASE64URL};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls;

use super::*;
use crate::config::OidcConfig;
use crate::http::serve_connection;
use crate::model::{CheckTarget, Node};
use crate::oidc::Provider;
use crate::ops::{CheckAnswer, CheckQuestion};

const CLIENT: &str = "tailwharf";
const SECRET: &str = "s&cret";
const CODE: &str = "the-code";

/// What the provider will say about the next person, and what it must be told for it.
#[derive(Default)]
struct Said {
    claims: Value,
    challenge: String,
}

struct Idp {
    issuer: String,
    key: EcdsaKeyPair,
    said: Mutex<Said>,
}

impl Idp {
    /// Runs one. The file with the certificate to trust is put into `dir`.
    async fn start(dir: &std::path::Path) -> Arc<Self> {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let key =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(dir.join("idp.pem"), made.cert.pem()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let private = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], private)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))
            .await
            .unwrap();
        let idp = Arc::new(Self {
            issuer: format!("https://localhost:{}", listener.local_addr().unwrap().port()),
            key,
            said: Mutex::default(),
        });
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(discovery))
            .route("/jwks", get(jwks))
            .route("/token", post(token))
            .with_state(idp.clone());
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, router) = (acceptor.clone(), router.clone());
                tokio::spawn(async move {
                    if let Ok(socket) = acceptor.accept(socket).await {
                        let _ = serve_connection(&CancellationToken::new(), socket, router).await;
                    }
                });
            }
        });
        idp
    }

    fn sign(&self, claims: &Value) -> String {
        let part = |value: &Value| BASE64URL.encode(value.to_string());
        let signed = format!("{}.{}", part(&json!({"alg": "ES256", "kid": "k1"})), part(claims));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", BASE64URL.encode(signature.as_ref()))
    }

    /// Plays the person and their browser at the provider: the path to which the browser comes back.
    fn visit(&self, location: &str, claims: &Value) -> String {
        let url = Url::parse(location).unwrap();
        assert!(
            location.starts_with(&format!("{}/authorize?", self.issuer)),
            "{location}"
        );
        let asked: HashMap<String, String> = url.query_pairs().into_owned().collect();
        assert_eq!(asked["client_id"], CLIENT);
        assert_eq!(asked["redirect_uri"], "http://127.0.0.1:1/login/callback");
        assert_eq!(asked["code_challenge_method"], "S256");
        assert!(asked["scope"].split(' ').any(|scope| scope == "openid"));
        let now = Timestamp::now().as_second();
        let mut all = json!({
            "iss": self.issuer, "aud": CLIENT, "sub": "1", "exp": now + 60, "iat": now,
            "nonce": asked["nonce"], "email_verified": true,
        });
        all.as_object_mut()
            .unwrap()
            .extend(claims.as_object().unwrap().clone());
        *self.said.lock().unwrap() = Said {
            claims: all,
            challenge: asked["code_challenge"].clone(),
        };
        format!("/login/callback?code={CODE}&state={}", asked["state"])
    }
}

async fn discovery(State(idp): State<Arc<Idp>>) -> Json<Value> {
    let at = |path: &str| format!("{}/{path}", idp.issuer);
    Json(json!({
        "issuer": idp.issuer, "authorization_endpoint": at("authorize"), "token_endpoint": at("token"), "jwks_uri": at("jwks"),
    }))
}

async fn jwks(State(idp): State<Arc<Idp>>) -> Json<Value> {
    let point = idp.key.public_key().as_ref();
    let (x, y) = (BASE64URL.encode(&point[1..33]), BASE64URL.encode(&point[33..]));
    Json(json!({"keys": [{"kty": "EC", "crv": "P-256", "use": "sig", "kid": "k1", "x": x, "y": y}]}))
}

async fn token(
    State(idp): State<Arc<Idp>>,
    headers: HeaderMap,
    Form(form): Form<HashMap<String, String>>,
) -> Result<Json<Value>, StatusCode> {
    let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("{CLIENT}:s%26cret")));
    let said = idp.said.lock().unwrap();
    let challenge = BASE64URL.encode(Sha256::digest(form["code_verifier"].as_bytes()));
    let good = headers[header::AUTHORIZATION] == *basic
        && form["code"] == CODE
        && form["grant_type"] == "authorization_code"
        && form["redirect_uri"] == "http://127.0.0.1:1/login/callback"
        && challenge == said.challenge;
    if !good {
        return Err(StatusCode::BAD_REQUEST);
    }
    Ok(Json(
        json!({"access_token": "unused", "token_type": "Bearer", "id_token": idp.sign(&said.claims)}),
    ))
}

/// A console whose people sign in by a provider.
async fn start() -> (Console, Arc<Idp>) {
    let mut console = Console::start().await;
    let dir = console._dir.path();
    let idp = Idp::start(dir).await;
    std::fs::write(dir.join("secret"), format!("{SECRET}\n")).unwrap();
    let config: OidcConfig = toml::from_str(&format!(
        "issuer = {:?}\nclient_id = {CLIENT:?}\nclient_secret_file = {:?}\nca_file = {:?}\nallowed_domains = [\"example.com\"]\nallowed_groups = [\"guests\"]",
        idp.issuer,
        dir.join("secret"),
        dir.join("idp.pem"),
    ))
    .unwrap();
    let provider = Provider::new(&config, &console.site.url).unwrap();
    let site = Site::new(
        console.site.operations.clone(),
        console.site.url.clone(),
        Issuers::default(),
        Some(provider),
        &crate::config::Limits::default(),
    );
    console.site = Arc::new(site);
    console.router = router(console.site.clone());
    (console, idp)
}

/// What a browser keeps of an answer's cookie.
fn cookie_of(answer: &Answer) -> String {
    let cookie = answer.headers[header::SET_COOKIE].to_str().unwrap();
    cookie.split(';').next().unwrap().to_owned()
}

impl Console {
    /// GET with a cookie of any name.
    async fn open(&self, path: &str, cookie: &str) -> Answer {
        let request = Request::builder()
            .uri(path)
            .header(header::HOST, "hub.example.com")
            .header(header::COOKIE, cookie)
            .body(Body::empty())
            .unwrap();
        let service = TowerToHyperService::new(self.router.clone());
        let (head, body) = service.call(request).await.unwrap().into_parts();
        let text = String::from_utf8(body.collect().await.unwrap().to_bytes().into()).unwrap();
        Answer {
            status: head.status,
            headers: head.headers,
            text,
        }
    }

    /// Signs in by the provider, which says so of the person.
    async fn by_provider(&self, idp: &Idp, to: &str, claims: Value) -> Answer {
        let left = self.get(&format!("/login/provider?{to}"), None).await;
        assert_eq!(left.status, StatusCode::SEE_OTHER, "{}", left.text);
        let back = idp.visit(left.headers[header::LOCATION].to_str().unwrap(), &claims);
        self.open(&back, &cookie_of(&left)).await
    }
}

#[tokio::test]
async fn a_person_whom_the_provider_knows_signs_in() {
    let (console, idp) = start().await;
    let first = console
        .by_provider(
            &idp,
            "to=/console",
            json!({"email": "Carol@Example.com", "name": "Carol"}),
        )
        .await;
    assert_eq!(first.status, StatusCode::OK, "{}", first.text);
    assert!(
        first.text.contains("carol@example.com") && first.text.contains("url=/console"),
        "{}",
        first.text
    );
    let world = console.site.operations.world();
    let carol = world.user_by_login("carol@example.com").unwrap();
    assert_eq!((carol.role, carol.display_name.as_str()), (Role::Member, "Carol"));
    let cookie = cookie_of(&first);
    let page = console.open("/console", &cookie).await;
    assert_eq!(page.status, StatusCode::OK, "{}", page.text);
    // Whoever is known already keeps their role.
    let alice = console
        .by_provider(&idp, "to=/console", json!({"email": ALICE}))
        .await;
    assert_eq!(alice.status, StatusCode::OK, "{}", alice.text);
    assert_eq!(
        console.site.operations.world().user_by_login(ALICE).unwrap().role,
        Role::Admin
    );
    let guest = json!({"email": "dave@elsewhere.org", "groups": ["guests"]});
    assert_eq!(console.by_provider(&idp, "", guest).await.status, StatusCode::OK);
    console.handle.stop().await;
}

#[tokio::test]
async fn strangers_and_forged_returns_are_refused() {
    let (console, idp) = start().await;
    let people = console.site.operations.world().users().count();
    for (claims, said) in [
        (json!({"email": "eve@elsewhere.org"}), "may not sign in here"),
        (
            json!({"email": "eve@example.com", "email_verified": false}),
            "e-mail address",
        ),
        (json!({}), "e-mail address"),
        (json!({"email": ALICE, "aud": "another"}), "not for this sign-in"),
        (
            json!({"email": ALICE, "aud": [CLIENT, "another"], "azp": "another"}),
            "not for this sign-in",
        ),
        (
            json!({"email": ALICE, "nonce": "replayed"}),
            "not for this sign-in",
        ),
        (
            json!({"email": ALICE, "iss": "https://evil.example"}),
            "not for this sign-in",
        ),
        (json!({"email": ALICE, "exp": 1_000}), "token is refused"),
    ] {
        let answer = console.by_provider(&idp, "", claims.clone()).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{claims}: {}", answer.text);
        assert!(answer.text.contains(said), "{claims}: {}", answer.text);
        assert!(!answer.headers.contains_key(header::SET_COOKIE), "{claims}");
    }
    let left = console.get("/login/provider", None).await;
    let back = idp.visit(
        left.headers[header::LOCATION].to_str().unwrap(),
        &json!({"email": ALICE}),
    );
    let forged = console.open(&back, "tailwharf_departure=other").await;
    assert_eq!(
        forged.status,
        StatusCode::FORBIDDEN,
        "another browser: {}",
        forged.text
    );
    let cookie = cookie_of(&left);
    assert_eq!(console.open(&back, &cookie).await.status, StatusCode::OK);
    assert_eq!(
        console.open(&back, &cookie).await.status,
        StatusCode::FORBIDDEN,
        "replayed"
    );
    let refused = console.get("/login/provider", None).await;
    let state = idp.visit(refused.headers[header::LOCATION].to_str().unwrap(), &json!({}));
    let state = state.rsplit_once("state=").unwrap().1;
    let path = format!("/login/callback?error=access_denied&error_description=%3Cb%3Eno&state={state}");
    let answer = console.open(&path, &cookie_of(&refused)).await;
    assert!(answer.text.contains("&lt;b&gt;no"), "{}", answer.text);
    assert_eq!(console.site.operations.world().users().count(), people);
    console.handle.stop().await;
}

/// A device of alice, and another one that asks her for a fresh sign-in: the path of the page.
async fn asked(console: &Console) -> String {
    let actor = Actor::User(console.site.operations.world().user_by_login(ALICE).unwrap().id);
    let mut nodes: Vec<Arc<Node>> = Vec::new();
    for (seed, name) in [(1, "laptop"), (2, "kube")] {
        let page = console.ask(seed, name).await;
        let id = RegistrationId(page.rsplit('/').next().unwrap().to_owned());
        let owner =
            crate::model::NodeOwner::User(console.site.operations.world().user_by_login(ALICE).unwrap().id);
        let admitted = console
            .site
            .operations
            .approve_registration(actor.clone(), id, Some(owner))
            .await;
        nodes.push(admitted.unwrap());
    }
    let question = CheckQuestion {
        source: nodes[0].id,
        target: CheckTarget::Node(nodes[1].id),
        purpose: "kubectl on prod".to_owned(),
        max_age: jiff::SignedDuration::from_hours(12),
    };
    match console.site.operations.check(question).await.unwrap() {
        CheckAnswer::Asked(check) => check_url(&console.site.url, &check.id).path().to_owned(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_fresh_sign_in_is_demanded_of_the_owner() {
    let (console, idp) = start().await;
    let page = asked(&console).await;
    let stranger = console.get(&page, None).await;
    assert!(
        !stranger.text.contains("laptop") && !stranger.text.contains("prod"),
        "{}",
        stranger.text
    );
    let bob = console.sign_in(BOB).await;
    assert!(!console.get(&page, Some(&bob)).await.text.contains("laptop"));
    let refused = console.submit(&page, &bob, "decision=confirm").await;
    assert_ne!(refused.status, StatusCode::OK, "{}", refused.text);
    // A session by a link is none of the provider's.
    let alice = console.sign_in(ALICE).await;
    let shown = console.get(&page, Some(&alice)).await;
    assert!(
        shown.text.contains("laptop") && shown.text.contains("Sign in again"),
        "{}",
        shown.text
    );
    let stale = console.submit(&page, &alice, "decision=confirm").await;
    assert_eq!(stale.status, StatusCode::FORBIDDEN, "{}", stale.text);
    let to = format!("again=true&to={page}");
    let old = Timestamp::now().as_second() - 3_600;
    let not_anew = console
        .by_provider(&idp, &to, json!({"email": ALICE, "auth_time": old}))
        .await;
    assert!(not_anew.text.contains("anew"), "{}", not_anew.text);
    let now = Timestamp::now().as_second();
    let anew = console
        .by_provider(&idp, &to, json!({"email": ALICE, "auth_time": now}))
        .await;
    assert!(anew.text.contains(&page), "{}", anew.text);
    let cookie = cookie_of(&anew);
    let (_, session) = cookie.split_once('=').unwrap();
    let confirmed = console.submit(&page, session, "decision=confirm").await;
    assert_eq!(confirmed.status, StatusCode::OK, "{}", confirmed.text);
    let again = console.submit(&page, session, "decision=confirm").await;
    assert_eq!(again.status, StatusCode::NOT_FOUND, "good for once");
    assert_eq!(console.site.operations.world().confirmations().count(), 1);
    console.handle.stop().await;
}

#[tokio::test]
async fn without_a_provider_whoever_is_signed_in_confirms() {
    let console = Console::start().await;
    let page = asked(&console).await;
    let alice = console.sign_in(ALICE).await;
    let shown = console.get(&page, Some(&alice)).await;
    assert!(shown.text.contains("It is me"), "{}", shown.text);
    let opened = console.site.operations.world().checks().count();
    assert_eq!(opened, 1, "looking confirms nothing");
    let denied = console.submit(&page, &alice, "decision=deny").await;
    assert_eq!(denied.status, StatusCode::OK, "{}", denied.text);
    assert_eq!(console.site.operations.world().confirmations().count(), 0);
    assert_eq!(
        console.get("/login/provider", None).await.status,
        StatusCode::NOT_FOUND
    );
    console.handle.stop().await;
}
