//! The console over HTTP, in process.

mod provider;

use axum::Router;
use axum::body::Body;
use http::{Method, Request};
use http_body_util::BodyExt as _;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use rand::rngs::OsRng;
use tailwharf_wire::tailcfg::RegisterRequest;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::model::Role;
use crate::ops::NewUser;
use crate::workload::Issuers;
use crate::{Coordinator, Handle, lab};

struct Console {
    router: Router,
    site: Arc<Site>,
    handle: Handle,
    _dir: TempDir,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Console {
    /// With the users alice, an administrator, and bob, a member.
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = lab::config(dir.path());
        let handle = Coordinator::start(config.clone(), CancellationToken::new())
            .await
            .unwrap();
        let operations = handle.operations().clone();
        for (login, role) in [
            ("alice@example.com", Role::Admin),
            ("bob@example.com", Role::Member),
        ] {
            let new = NewUser {
                login: login.to_owned(),
                display_name: String::new(),
                role,
            };
            operations.create_user(Actor::Administrator, new).await.unwrap();
        }
        let limits = config.limits;
        let site = Arc::new(Site::new(
            operations,
            config.server_url,
            Issuers::default(),
            None,
            &limits,
        ));
        Self {
            router: router(site.clone()),
            site,
            handle,
            _dir: dir,
        }
    }

    async fn send(&self, method: Method, path: &str, cookie: Option<&str>, form: &str) -> Answer {
        self.send_from("http://hub.example.com", method, path, cookie, form)
            .await
    }

    async fn send_from(
        &self,
        origin: &str,
        method: Method,
        path: &str,
        cookie: Option<&str>,
        form: &str,
    ) -> Answer {
        let kind = "application/x-www-form-urlencoded";
        let mut request = Request::builder().method(method).uri(path);
        request = request
            .header(header::HOST, "hub.example.com")
            .header(header::ORIGIN, origin);
        request = request.header(header::CONTENT_TYPE, kind);
        if let Some(cookie) = cookie {
            request = request.header(header::COOKIE, format!("other=1; {COOKIE}={cookie}"));
        }
        let request = request.body(Body::from(form.to_owned())).unwrap();
        let service = TowerToHyperService::new(self.router.clone());
        let (head, body) = service.call(request).await.unwrap().into_parts();
        let text = String::from_utf8(body.collect().await.unwrap().to_bytes().into()).unwrap();
        Answer {
            status: head.status,
            headers: head.headers,
            text,
        }
    }

    async fn get(&self, path: &str, cookie: Option<&str>) -> Answer {
        self.send(Method::GET, path, cookie, "").await
    }

    /// Sends a form with the session's token.
    async fn submit(&self, path: &str, cookie: &str, form: &str) -> Answer {
        let token = self
            .site
            .sessions
            .find(cookie, Timestamp::now())
            .unwrap()
            .form_token;
        self.send(
            Method::POST,
            path,
            Some(cookie),
            &format!("form_token={token}&{form}"),
        )
        .await
    }

    fn link(&self, login: &str) -> String {
        let id = self.site.operations.world().user_by_login(login).unwrap().id;
        let invitation = self.site.sessions.invite(id, Timestamp::now(), &mut OsRng);
        login_url(&self.site.url, &invitation.token).path().to_owned()
    }

    /// Signs in as a browser does. The cookie's value.
    async fn sign_in(&self, login: &str) -> String {
        let answer = self.send(Method::POST, &self.link(login), None, "").await;
        assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", answer.text);
        let cookie = answer.headers[header::SET_COOKIE].to_str().unwrap();
        let (name, rest) = cookie.split_once('=').unwrap();
        assert_eq!(name, COOKIE);
        rest.split(';').next().unwrap().to_owned()
    }

    /// A device without auth key. The path of the page that it shows to its user.
    async fn ask(&self, seed: u8, hostname: &str) -> String {
        let request = RegisterRequest {
            node_key: lab::node_key(seed),
            hostinfo: Some(lab::hostinfo(hostname)),
            ..RegisterRequest::default()
        };
        let answer = self
            .site
            .operations
            .register(lab::machine(seed), request)
            .await
            .unwrap();
        assert!(answer.error.is_empty(), "{}", answer.error);
        Url::parse(&answer.auth_url).unwrap().path().to_owned()
    }

    fn owner(&self, name: &str) -> Option<String> {
        let world = self.site.operations.world();
        let node = world.node_by_name(name)?;
        Some(world.user(node.owner.user()?)?.login.clone())
    }

    fn id(&self, login: &str) -> String {
        self.site
            .operations
            .world()
            .user_by_login(login)
            .unwrap()
            .id
            .to_string()
    }
}

const ALICE: &str = "alice@example.com";
const BOB: &str = "bob@example.com";

#[tokio::test]
async fn a_link_is_shown_first_and_signs_in_once() {
    let console = Console::start().await;
    let link = console.link(ALICE);
    for _ in 0..2 {
        let shown = console.get(&link, None).await;
        assert!(
            shown.text.contains("Sign in as alice@example.com"),
            "{}",
            shown.text
        );
    }
    let signed_in = console.send(Method::POST, &link, None, "").await;
    let cookie = signed_in.headers[header::SET_COOKIE].to_str().unwrap();
    for attribute in ["HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    assert_eq!(signed_in.headers[header::LOCATION], "/console");
    for method in [Method::GET, Method::POST] {
        let again = console.send(method, &link, None, "").await;
        assert_eq!(again.status, StatusCode::NOT_FOUND, "a link is replayed");
        assert_eq!(again.headers.get(header::SET_COOKIE), None);
    }
}

#[tokio::test]
async fn pages_load_nothing_from_elsewhere_and_cannot_be_framed() {
    let console = Console::start().await;
    let cookie = console.sign_in(ALICE).await;
    let page = console.ask(1, "laptop").await;
    for path in [
        "/login",
        "/console",
        &page,
        "/a/none",
        "/console/devices/1/delete",
    ] {
        let answer = console.get(path, Some(&cookie)).await;
        let policy = answer.headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'"), "{path}: {policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(answer.headers[header::X_FRAME_OPTIONS], "DENY", "{path}");
        assert_eq!(answer.headers[header::CACHE_CONTROL], "no-store", "{path}");
        assert!(
            !answer.text.contains("<script") && !answer.text.contains("style="),
            "{path}"
        );
    }
    let style = console.get("/console/style.css", None).await;
    assert_eq!(style.headers[header::CONTENT_TYPE], "text/css; charset=utf-8");
}

#[tokio::test]
async fn an_administrator_lets_a_device_in_for_anybody() {
    let console = Console::start().await;
    let page = console.ask(1, "laptop").await;
    let stranger = console.get(&page, None).await;
    assert!(stranger.text.contains("laptop") && stranger.text.contains("login-link"));
    assert!(!stranger.text.contains("<form"), "a stranger decides nothing");

    let alice = console.sign_in(ALICE).await;
    let overview = console.get("/console", Some(&alice)).await;
    assert!(
        overview.text.contains(&format!("href=\"{page}\"")),
        "{}",
        overview.text
    );
    let form = format!("decision=approve&owner={}", console.id(BOB));
    let decided = console.submit(&page, &alice, &form).await;
    assert_eq!(decided.status, StatusCode::OK, "{}", decided.text);
    assert_eq!(console.owner("laptop").as_deref(), Some(BOB));
    let again = console.submit(&page, &alice, &form).await;
    assert_eq!(again.status, StatusCode::NOT_FOUND, "an address is replayed");
}

#[tokio::test]
async fn a_member_lets_in_devices_of_their_own_only() {
    let console = Console::start().await;
    let bob = console.sign_in(BOB).await;
    let page = console.ask(1, "laptop").await;
    let for_alice = format!("decision=approve&owner={}", console.id(ALICE));
    let refused = console.submit(&page, &bob, &for_alice).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    assert_eq!(console.owner("laptop"), None);
    let for_bob = format!("decision=approve&owner={}", console.id(BOB));
    console.submit(&page, &bob, &for_bob).await;
    assert_eq!(console.owner("laptop").as_deref(), Some(BOB));

    let alice = console.sign_in(ALICE).await;
    let page = console.ask(2, "phone").await;
    let for_alice = format!("decision=approve&owner={}", console.id(ALICE));
    console.submit(&page, &alice, &for_alice).await;
    let overview = console.get("/console", Some(&bob)).await;
    assert!(overview.text.contains("laptop") && !overview.text.contains("phone"));
    let others = console.submit("/console/devices/phone/delete", &bob, "").await;
    assert_eq!(others.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_device_is_turned_down() {
    let console = Console::start().await;
    let alice = console.sign_in(ALICE).await;
    let page = console.ask(1, "intruder").await;
    let decided = console.submit(&page, &alice, "decision=deny").await;
    assert_eq!(decided.status, StatusCode::OK, "{}", decided.text);
    assert_eq!(console.owner("intruder"), None);
    assert_eq!(
        console.get(&page, Some(&alice)).await.status,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn forms_of_other_sites_do_nothing() {
    let console = Console::start().await;
    let alice = console.sign_in(ALICE).await;
    let page = console.ask(1, "laptop").await;
    let owner = console.id(ALICE);
    for form in [
        format!("decision=approve&owner={owner}"),
        format!("form_token=&decision=approve&owner={owner}"),
        format!("form_token={}&decision=approve&owner={owner}", "x".repeat(32)),
        "x".repeat(FORM_LIMIT + 1),
    ] {
        let refused = console.send(Method::POST, &page, Some(&alice), &form).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{}", refused.text);
    }
    let nobody = console
        .send(Method::POST, &page, None, "form_token=x&decision=approve")
        .await;
    assert_eq!(nobody.status, StatusCode::UNAUTHORIZED);
    assert_eq!(console.owner("laptop"), None);
}

#[tokio::test]
async fn another_site_signs_nobody_in() {
    let console = Console::start().await;
    let link = console.link(ALICE);
    for origin in [
        "https://evil.example.com",
        "null",
        "",
        "http://hub.example.com.evil.example",
    ] {
        let refused = console.send_from(origin, Method::POST, &link, None, "").await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{origin}");
        assert_eq!(refused.headers.get(header::SET_COOKIE), None);
        assert_eq!(refused.headers[header::X_FRAME_OPTIONS], "DENY");
    }
    let own = console.send(Method::POST, &link, None, "").await;
    assert_eq!(own.status, StatusCode::SEE_OTHER, "the link was not used up");
}

#[tokio::test]
async fn devices_are_looked_after() {
    let console = Console::start().await;
    let alice = console.sign_in(ALICE).await;
    let page = console.ask(1, "laptop").await;
    let form = format!("decision=approve&owner={}", console.id(ALICE));
    console.submit(&page, &alice, &form).await;
    let asked = console.get("/console/devices/laptop/expire", Some(&alice)).await;
    assert!(asked.text.contains("Log out laptop"), "{}", asked.text);
    let world = || console.handle.operations().world();
    assert!(
        !world()
            .node_by_name("laptop")
            .unwrap()
            .is_expired(Timestamp::now())
    );
    let done = console.submit("/console/devices/laptop/expire", &alice, "").await;
    assert_eq!(done.headers[header::LOCATION], "/console");
    assert!(
        world()
            .node_by_name("laptop")
            .unwrap()
            .is_expired(Timestamp::now())
    );
    console.submit("/console/devices/laptop/delete", &alice, "").await;
    assert!(world().node_by_name("laptop").is_none());
    let unknown = console.get("/console/devices/laptop/explode", Some(&alice)).await;
    assert!(unknown.status.is_client_error());

    console.submit("/logout", &alice, "").await;
    assert_eq!(
        console.get("/console", Some(&alice)).await.status,
        StatusCode::UNAUTHORIZED
    );
}

#[tokio::test]
async fn what_a_device_says_about_itself_is_text() {
    let console = Console::start().await;
    let alice = console.sign_in(ALICE).await;
    let page = console.ask(1, "<script>alert(1)</script>").await;
    for path in [page.as_str(), "/console"] {
        let answer = console.get(path, Some(&alice)).await;
        assert!(!answer.text.contains("<script"), "{}", answer.text);
        assert!(answer.text.contains("&lt;script&gt;"), "{}", answer.text);
    }
}

#[tokio::test]
async fn guesses_are_limited() {
    let console = Console::start().await;
    let mut last = StatusCode::OK;
    for guess in 0..100 {
        last = console.get(&format!("/a/guess{guess}"), None).await.status;
        if last == StatusCode::TOO_MANY_REQUESTS {
            break;
        }
        assert_eq!(last, StatusCode::NOT_FOUND);
    }
    assert_eq!(last, StatusCode::TOO_MANY_REQUESTS);
}
