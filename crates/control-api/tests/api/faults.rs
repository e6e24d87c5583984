//! What the client does when the server or the way to it misbehaves.

use std::time::Duration;

use tailwharf_control_api::fake::Fake;
use tailwharf_control_api::{
    Client, ClientConfig, ControlApi, CreateKey, Credentials, DeviceId, Error, Secret,
};

use crate::server::{Fault, Server, WORKLOAD_TOKEN};

fn key_request() -> CreateKey {
    CreateKey {
        tags: vec!["tag:k8s".to_owned()],
        ..CreateKey::default()
    }
}

async fn server() -> Server {
    Server::start(Fake::new(["tag:k8s"])).await
}

fn count(server: &Server, request: &str) -> usize {
    server.requests().iter().filter(|seen| *seen == request).count()
}

#[tokio::test]
async fn one_token_and_one_connection_serve_many_calls() {
    let server = server().await;
    let client = server.client();
    for _ in 0..5 {
        client.list_keys().await.unwrap();
    }
    assert_eq!(count(&server, "POST /api/v2/oauth/token"), 1);
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_revoked_token_is_renewed_once() {
    let server = server().await;
    let client = server.client();
    client.list_keys().await.unwrap();
    server.revoke_tokens();
    client.create_key(&key_request()).await.unwrap();
    assert_eq!(count(&server, "POST /api/v2/oauth/token"), 2);
    assert_eq!(server.tailnet().live_keys().len(), 1);
}

#[tokio::test]
async fn wrong_credentials_are_told_without_the_secret() {
    let server = server().await;
    let mut config = server.config();
    let secret = Secret::new("tskey-client-wrong");
    config.credentials = Credentials::OAuthClient {
        id: "client".to_owned(),
        secret,
    };
    assert!(!format!("{config:?}").contains("tskey"));
    let error = Client::new(config).unwrap().verify().await.unwrap_err();
    assert!(
        matches!(error, Error::CredentialsRefused { status: 401, .. }),
        "{error:?}"
    );
    assert!(!format!("{error} {error:?}").contains("tskey"));
}

#[tokio::test]
async fn a_workload_shows_the_token_that_its_platform_keeps_fresh() {
    let server = server().await;
    let dir = tempfile::tempdir().unwrap();
    let token_file = dir.path().join("token");
    let mut config = server.config();
    config.credentials = Credentials::Workload {
        id: "client".to_owned(),
        token_file: token_file.clone(),
    };
    let client = Client::new(config).unwrap();
    let missing = client.verify().await.unwrap_err();
    assert!(matches!(missing, Error::WorkloadToken { .. }), "{missing:?}");
    std::fs::write(&token_file, "an.old.token").unwrap();
    let refused = client.verify().await.unwrap_err();
    assert!(
        matches!(refused, Error::CredentialsRefused { status: 401, .. }),
        "{refused:?}"
    );
    assert!(!format!("{refused} {refused:?}").contains("old"));
    std::fs::write(&token_file, format!("{WORKLOAD_TOKEN}\n")).unwrap();
    client.verify().await.unwrap();
}

#[tokio::test]
async fn reads_are_repeated_after_server_errors_and_broken_connections() {
    let server = server().await;
    let client = server.client();
    server.fault(Fault::Status(503, "", None));
    server.fault(Fault::BreakAfter);
    client.list_keys().await.unwrap();
    assert_eq!(count(&server, "GET /api/v2/tailnet/-/keys"), 3);
}

#[tokio::test]
async fn repeated_failures_end_with_the_last_one() {
    let server = server().await;
    for _ in 0..10 {
        server.fault(Fault::Status(500, r#"{"message":"database is locked"}"#, None));
    }
    let error = server.client().list_keys().await.unwrap_err();
    assert!(matches!(&error, Error::Unexpected { status: 500, message } if message == "database is locked"));
    assert!(error.is_transient());
    assert_eq!(count(&server, "GET /api/v2/tailnet/-/keys"), 4);
}

#[tokio::test]
async fn minting_is_not_repeated_once_the_server_has_seen_it() {
    let server = server().await;
    let client = server.client();
    for fault in [Fault::BreakAfter, Fault::Status(500, "", None)] {
        server.fault(fault);
        client.create_key(&key_request()).await.unwrap_err();
    }
    assert_eq!(count(&server, "POST /api/v2/tailnet/-/keys"), 2);
    assert_eq!(
        server.tailnet().live_keys().len(),
        1,
        "only the first reached the tailnet"
    );
}

#[tokio::test]
async fn a_short_rate_limit_is_waited_for_even_when_minting() {
    let server = server().await;
    server.fault(Fault::Status(429, "", Some(0)));
    server.client().create_key(&key_request()).await.unwrap();
}

#[tokio::test]
async fn a_long_rate_limit_is_the_callers_to_schedule() {
    let server = server().await;
    server.fault(Fault::Status(429, "", Some(120)));
    let error = server.client().create_key(&key_request()).await.unwrap_err();
    assert!(
        matches!(error, Error::RateLimited { retry_after: Some(wait) } if wait == Duration::from_secs(120)),
        "{error:?}"
    );
}

#[tokio::test]
async fn statuses_become_types() {
    let server = server().await;
    let client = server.client();
    let body = r#"{"message":"calling actor does not have enough permissions"}"#;
    server.fault(Fault::Status(403, body, None));
    let id = DeviceId::from("nX");
    let forbidden = client.device(&id).await.unwrap_err();
    assert!(matches!(&forbidden, Error::Forbidden { message } if message.starts_with("calling actor")));
    server.fault(Fault::Status(403, body, None));
    let refused = client.create_key(&key_request()).await.unwrap_err();
    assert!(matches!(&refused, Error::KeyRefused { tags, .. } if *tags == ["tag:k8s"]));
    server.fault(Fault::Status(418, "<html>", None));
    let odd = client.device(&id).await.unwrap_err();
    assert!(
        matches!(&odd, Error::Unexpected { status: 418, message } if message == "I'm a teapot"),
        "{odd:?}"
    );
    let missing = client.device(&id).await.unwrap_err();
    assert_eq!(missing.to_string(), "the control server knows no device nX");
}

#[tokio::test]
async fn answers_of_the_wrong_shape_or_size_are_refused() {
    let server = server().await;
    let client = server.client();
    server.fault(Fault::Status(200, r#"{"keys":"none"}"#, None));
    let error = client.list_keys().await.unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error:?}");
    server.fault(Fault::Blanks((32 << 20) + 1));
    let error = client.list_keys().await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error:?}");
    server.fault(Fault::Status(200, "\u{1}", None));
    assert!(client.device(&DeviceId::from("nX")).await.is_err());
}

#[tokio::test]
async fn silence_ends_at_the_time_limit() {
    let server = server().await;
    for _ in 0..4 {
        server.fault(Fault::Silence);
    }
    let config = ClientConfig {
        timeout: Duration::from_millis(50),
        ..server.config()
    };
    let error = Client::new(config).unwrap().list_keys().await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unreachable() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap())
        .parse()
        .unwrap();
    drop(listener);
    let client = Client::new(ClientConfig::new(url, Credentials::ApiKey(Secret::new("k")))).unwrap();
    let error = client.create_key(&key_request()).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert!(error.is_transient());
}

#[test]
fn a_url_of_another_scheme_is_refused() {
    let url = "ftp://control.example.com".parse().unwrap();
    let refused = Client::new(ClientConfig::new(url, Credentials::ApiKey(Secret::new("k"))));
    assert!(refused.is_err_and(|error| error.to_string().contains("https://")));
}
