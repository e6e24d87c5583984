//! Fresh sign-ins, as nodes ask for them.

use tailwharf_wire::tailcfg::{CheckRequest, CheckResponse, SshAction, StableId};

use super::*;
use crate::model::CheckId;

/// Alice's laptop (1), alice's server (2), both in a tailnet where everybody sees everybody.
async fn pair(handle: &Handle) -> (Client, Client, StableId) {
    let key = auth_key(handle, false).await;
    let mut laptop = Client::connect(handle, &machine(1)).await;
    laptop.register(1, Some(&key), "laptop").await;
    let mut server = Client::connect(handle, &machine(2)).await;
    server.register(2, Some(&key), "server").await;
    let source = handle
        .operations()
        .world()
        .node_by_name("laptop")
        .unwrap()
        .stable_id
        .clone();
    (laptop, server, source)
}

fn ask(source: &StableId) -> CheckRequest {
    CheckRequest {
        node_key: node_key(2),
        source: source.clone(),
        purpose: "kubectl on prod".to_owned(),
        max_age: 3600,
        ..CheckRequest::default()
    }
}

async fn answered(client: &mut Client, request: &CheckRequest) -> (StatusCode, CheckResponse) {
    let (status, body) = client.post("/machine/check", request).await;
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

fn id(url: &str) -> CheckId {
    CheckId(url.rsplit('/').next().unwrap().to_owned())
}

#[tokio::test]
async fn a_node_asks_waits_and_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let handle = start(dir.path()).await;
    let (_laptop, mut server, source) = pair(&handle).await;
    let (status, asked) = answered(&mut server, &ask(&source)).await;
    assert_eq!(status, StatusCode::OK);
    assert!(asked.url.starts_with("http://127.0.0.1:1/check/"), "{asked:?}");
    assert!(asked.confirmed.is_none() && asked.expires.is_some() && asked.code.len() == 7);
    let (_, same) = answered(&mut server, &ask(&source)).await;
    assert_eq!((&same.url, &same.code), (&asked.url, &asked.code));
    let waiting = CheckRequest {
        wait: true,
        ..ask(&source)
    };
    let alice = handle.operations().world().users().next().unwrap().id;
    let confirm = async {
        tokio::task::yield_now().await;
        handle
            .operations()
            .confirm_check(alice, id(&asked.url))
            .await
            .unwrap();
    };
    let ((_, told), ()) = tokio::join!(answered(&mut server, &waiting), confirm);
    assert!(told.confirmed.is_some() && told.url.is_empty(), "{told:?}");
    let (_, fresh) = answered(&mut server, &ask(&source)).await;
    assert_eq!(fresh.confirmed, told.confirmed);
    handle.stop().await;
    // It is stored.
    let handle = start(dir.path()).await;
    let mut server = Client::connect(&handle, &machine(2)).await;
    let (_, kept) = answered(&mut server, &ask(&source)).await;
    assert_eq!(kept.confirmed, told.confirmed);
    handle.stop().await;
}

#[tokio::test]
async fn nobody_asks_in_the_name_of_others_or_about_what_they_do_not_see() {
    let dir = tempfile::tempdir().unwrap();
    let handle = start(dir.path()).await;
    let (mut laptop, mut server, source) = pair(&handle).await;
    let (status, _) = answered(&mut laptop, &ask(&source)).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "the key of another machine");
    let unknown = ask(&StableId("nobody".to_owned()));
    assert_eq!(answered(&mut server, &unknown).await.0, StatusCode::NOT_FOUND);
    for (service, expected) in [
        ("svc:kube", StatusCode::NOT_FOUND),
        ("kube", StatusCode::BAD_REQUEST),
    ] {
        let request = CheckRequest {
            service: service.to_owned(),
            ..ask(&source)
        };
        assert_eq!(answered(&mut server, &request).await.0, expected, "{service}");
    }
    let closed = r#"{"acls": []}"#.to_owned();
    handle
        .operations()
        .set_policy(Actor::Administrator, closed, None)
        .await
        .unwrap();
    assert_eq!(
        answered(&mut server, &ask(&source)).await.0,
        StatusCode::NOT_FOUND
    );
    handle.stop().await;
}

#[tokio::test]
async fn the_ssh_server_of_a_node_holds_a_login_until_the_person_confirms() {
    let dir = tempfile::tempdir().unwrap();
    let handle = start(dir.path()).await;
    let (_laptop, mut server, _) = pair(&handle).await;
    let policy = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
        "ssh": [{"action": "check", "checkPeriod": "1h", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["root"]}]}"#;
    handle
        .operations()
        .set_policy(Actor::Administrator, policy.to_owned(), None)
        .await
        .unwrap();
    let map: MapResponse = {
        let mut maps = server.stream(&map_request(2, 900)).await;
        maps.find(|map| {
            map.ssh_policy.map(|policy| MapResponse {
                ssh_policy: Some(policy),
                ..MapResponse::default()
            })
        })
        .await
    };
    let rule = map.ssh_policy.unwrap().rules.remove(0).action.unwrap();
    // As the client does.
    let url = rule
        .hold_and_delegate
        .replace("$SRC_NODE_ID", "1")
        .replace("$DST_NODE_ID", "2")
        .replace("$LOCAL_USER", "root");
    let path = |url: &str| url.strip_prefix("https://unused").unwrap().to_owned();
    let (status, body) = server.get(&path(&url)).await;
    assert_eq!(status, StatusCode::OK);
    let first: SshAction = serde_json::from_slice(&body).unwrap();
    let page = first
        .message
        .split_whitespace()
        .find(|word| word.starts_with("http"))
        .unwrap();
    let alice = handle.operations().world().users().next().unwrap().id;
    let confirm = async {
        tokio::task::yield_now().await;
        handle.operations().confirm_check(alice, id(page)).await.unwrap();
    };
    let again = path(&first.hold_and_delegate);
    let ((_, body), ()) = tokio::join!(server.get(&again), confirm);
    let second: SshAction = serde_json::from_slice(&body).unwrap();
    assert!(second.accept && !second.reject, "{second:?}");
    // The next one within the hour goes straight through; from another machine nothing does.
    let (_, body) = server.get(&path(&url)).await;
    assert!(serde_json::from_slice::<SshAction>(&body).unwrap().accept);
    let mut thief = Client::connect(&handle, &machine(3)).await;
    assert_eq!(thief.get(&path(&url)).await.0, StatusCode::FORBIDDEN);
    for path in [
        "/machine/ssh/action/",
        "/machine/ssh/action/x/to/2",
        "/machine/ssh/action/77/to/2",
    ] {
        assert_eq!(server.get(path).await.0, StatusCode::NOT_FOUND, "{path}");
    }
    handle.stop().await;
}
