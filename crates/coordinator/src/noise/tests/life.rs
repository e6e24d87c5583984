//! A device that a person lets in, and questions of the server, as a client sees them.

use tailwharf_wire::tailcfg::{RegisterRequest, UserId};

use super::*;
use crate::model::{NodeOwner, RegistrationId};

#[tokio::test]
async fn a_device_waits_for_a_person() {
    let dir = tempfile::tempdir().unwrap();
    let handle = start(dir.path()).await;
    auth_key(&handle, false).await;
    let mut client = Client::connect(&handle, &machine(1)).await;
    let page = client.register(1, None, "web").await.auth_url;
    let id = RegistrationId(page.rsplit('/').next().unwrap().to_owned());
    let follow = RegisterRequest {
        followup: page.clone(),
        ..request(1, None, "web")
    };
    let approval = async {
        // Not before the client waits: its question is a request on the same connection.
        tokio::task::yield_now().await;
        let alice = Some(NodeOwner::User(UserId(1)));
        let ops = handle.operations();
        ops.approve_registration(Actor::Administrator, id.clone(), alice)
            .await
            .unwrap();
    };
    let ((status, body), ()) = tokio::join!(client.post("/machine/register", &follow), approval);
    assert_eq!(status, StatusCode::OK);
    let answer: RegisterResponse = serde_json::from_slice(&body).unwrap();
    assert!(answer.machine_authorized, "{answer:?}");
    let again = handle
        .operations()
        .approve_registration(Actor::Administrator, id, None)
        .await;
    assert!(
        matches!(again, Err(crate::OpError::NotFound { .. })),
        "the page is used up"
    );

    let mut thief = Client::connect(&handle, &machine(2)).await;
    let stolen = thief.register(1, None, "web").await;
    assert!(stolen.error.contains("another machine"), "{stolen:?}");
    handle.stop().await;
}

#[tokio::test]
async fn a_node_is_asked_for_its_services() {
    let dir = tempfile::tempdir().unwrap();
    let handle = start(dir.path()).await;
    let key = auth_key(&handle, false).await;
    let mut client = Client::connect(&handle, &machine(1)).await;
    client.register(1, Some(&key), "web").await;
    let mut stream = map_request(1, 900);
    stream.hostinfo.as_mut().unwrap().services_hash = "h1".to_owned();
    let mut maps = client.stream(&stream).await;
    let question = maps.find(|map| map.ping_request).await;
    assert_eq!(question.types, "c2n");
    assert!(question.payload.starts_with(b"GET /vip-services HTTP/1.1\r\n"));
    let path = url::Url::parse(&question.url).unwrap().path().to_owned();

    let mut thief = Client::connect(&handle, &machine(2)).await;
    let answer = b"HTTP/1.1 200 OK\r\n\r\n{\"VIPServices\":[{\"Name\":\"svc:web\",\"Active\":true},{\"Name\":\"svc:off\"}],\"ServicesHash\":\"h1\"}";
    let refused = thief.send(Method::POST, &path, answer.to_vec()).await;
    assert_eq!(
        refused.status(),
        StatusCode::NOT_FOUND,
        "only who was asked answers"
    );
    let mut worlds = handle.operations().watch();
    assert_eq!(
        client.send(Method::POST, &path, answer.to_vec()).await.status(),
        StatusCode::OK
    );
    let known = worlds.wait_for(|world| {
        world
            .node(NodeId(1))
            .is_some_and(|node| !node.services.is_empty())
    });
    let world = timeout(Duration::from_secs(10), known)
        .await
        .unwrap()
        .unwrap()
        .clone();
    let offered: Vec<&str> = world
        .node(NodeId(1))
        .unwrap()
        .services
        .iter()
        .map(|name| name.as_str())
        .collect();
    assert_eq!(offered, ["svc:web"]);
    handle.stop().await;
}
