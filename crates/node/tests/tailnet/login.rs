//! The life of a login: by a page, again before and after its end, and away.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use tailwharf_coordinator::model::{Actor, NodeOwner, RegistrationId};
use tailwharf_coordinator::ops::NodeRef;
use tailwharf_node::{MemoryStore, Node, NodeConfig, NodeStatus, Phase, StateStore, TailnetNode};
use tokio::sync::Notify;

use crate::common::{Tailnet, is_online, reached};
use crate::scripted::{Call, Reply, Scripted, accepted, first_map};

const PAGE: &str = "https://control.example/a/1";

/// A server that answers registrations by `answer`, and each map request by a first map changed by `edit`.
async fn server(
    answer: impl Fn(Value) -> BoxFuture<'static, Reply> + Send + Sync + 'static,
    edit: impl Fn(&Value, &mut Value) + Send + Sync + 'static,
) -> Scripted {
    Scripted::start(move |call: Call| {
        if call.is_register() {
            answer(call.body).map(Some).boxed()
        } else if call.is_stream() {
            let mut map = first_map(&call.body);
            edit(&call.body, &mut map);
            async { Some(Reply::Maps(vec![map])) }.boxed()
        } else {
            async { None }.boxed()
        }
    })
    .await
}

fn now(reply: Reply) -> BoxFuture<'static, Reply> {
    async { reply }.boxed()
}

fn page() -> Reply {
    Reply::Json(json!({"AuthURL": PAGE}))
}

fn needs_login(status: &NodeStatus) -> bool {
    status.phase == Phase::NeedsLogin { url: PAGE.into() }
}

#[tokio::test]
async fn a_person_signs_in_on_the_page_and_the_node_goes_on_by_itself() {
    let signed_in = Arc::new(Notify::new());
    let waiting = signed_in.clone();
    let control = server(
        move |request| {
            if request["Followup"] == PAGE {
                let waiting = waiting.clone();
                async move {
                    waiting.notified().await;
                    accepted()
                }
                .boxed()
            } else {
                now(page())
            }
        },
        |_, _| {},
    )
    .await;
    let config = NodeConfig {
        ephemeral: true,
        tags: vec!["tag:a".into()],
        ..control.config("laptop")
    };
    let node = control.node_with(config, Arc::new(MemoryStore::default())).await;
    reached(&node, "the page is shown", needs_login).await;
    signed_in.notify_one();
    let status = reached(&node, "online", is_online).await;
    assert_eq!(status.fqdn.as_deref(), Some("node.tail1.ts.net"));

    let registrations = control.registrations();
    assert_eq!(registrations.len(), 2, "one request waits: {registrations:?}");
    assert_eq!(registrations[0]["Followup"], "");
    assert_eq!(registrations[0]["NodeKey"], registrations[1]["NodeKey"]);
    for request in &registrations {
        assert_eq!(request["Ephemeral"], true);
        assert_eq!(request["Hostinfo"]["RequestTags"], json!(["tag:a"]));
        assert!(request["Auth"].is_null());
    }
}

#[tokio::test]
async fn a_login_survives_a_broken_connection_and_a_new_page() {
    let control = server(
        |request| match request["Followup"].as_str() {
            Some("") => now(page()),
            Some(PAGE) => now(Reply::Status(502, "bad gateway")),
            _ => now(accepted()),
        },
        |_, _| {},
    )
    .await;
    let node = control.node("laptop").await;
    reached(&node, "the page is shown", needs_login).await;
    crate::common::eventually("the same page is asked for again", async || {
        let asked = control.registrations().into_iter();
        match asked.filter(|request| request["Followup"] == PAGE).count() {
            0..=2 => Err("not yet"),
            _ => Ok(()),
        }
    })
    .await;
    assert!(needs_login(&node.status().borrow()), "it is still shown");
}

#[tokio::test]
async fn a_key_that_ends_while_nobody_says_so_is_replaced_by_the_old_ones_name() {
    let first_key = Arc::new(std::sync::Mutex::new(Value::Null));
    let known = first_key.clone();
    let control = server(
        move |request| {
            let mut known = known.lock().unwrap();
            if known.is_null() {
                *known = request["NodeKey"].clone();
                now(accepted())
            } else if request["NodeKey"] == *known {
                now(Reply::Json(json!({"NodeKeyExpired": true})))
            } else {
                now(page())
            }
        },
        |_, map| {
            // The server's clock is an hour behind ours; its own time counts.
            let server = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(1);
            map["ControlTime"] = json!(server);
            map["Node"]["KeyExpiry"] = json!(server + jiff::SignedDuration::from_millis(700));
        },
    )
    .await;
    let store = Arc::new(MemoryStore::default());
    let node = control.node_with(control.config("laptop"), store.clone()).await;
    let online = reached(&node, "online", is_online).await;
    assert!(online.key_expiry.is_some() && online.health[0].contains("the node key ends"));
    reached(&node, "the page is shown once the key has ended", needs_login).await;
    let old = first_key.lock().unwrap().clone();
    let last = control.registrations().pop().unwrap();
    assert_eq!(last["OldNodeKey"], old);
    assert_ne!(last["NodeKey"], old);
    let state = store.load().await.unwrap().unwrap();
    assert_eq!(json!(state.node_key.public()), last["NodeKey"]);
    assert_eq!(json!(state.old_node_key), old);
}

/// The address of the page that a node shows, without the server before it.
async fn shown_page(node: &Node) -> RegistrationId {
    let status = reached(node, "a page is shown", |status| {
        matches!(status.phase, Phase::NeedsLogin { .. })
    })
    .await;
    let Phase::NeedsLogin { url } = status.phase else {
        panic!()
    };
    RegistrationId(url.rsplit('/').next().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_own_server_shows_a_page_and_lets_in_or_turns_down() {
    let tailnet = Tailnet::start().await;
    let operations = tailnet.coordinator().operations();
    let guest = tailnet.node_config("guest", None);
    let node = tailnet.start_node(guest, Arc::new(MemoryStore::default())).await;
    let page = shown_page(&node).await;
    let owner = NodeOwner::Tags(["tag:server".parse().unwrap()].into());
    operations
        .approve_registration(Actor::Administrator, page, Some(owner.clone()))
        .await
        .unwrap();
    let before = reached(&node, "reachable", NodeStatus::reachable).await;
    assert_eq!(before.tags, ["tag:server"]);

    // Again, once its key has ended: the person decides about the same device.
    let id = operations
        .find_node(&NodeRef(before.device_id.clone().unwrap().0))
        .unwrap()
        .id;
    operations.expire_node(Actor::Administrator, id).await.unwrap();
    let page = shown_page(&node).await;
    operations
        .approve_registration(Actor::Administrator, page, None)
        .await
        .unwrap();
    let after = reached(&node, "reachable again", NodeStatus::reachable).await;
    assert_eq!(
        (after.device_id, after.addresses),
        (before.device_id, before.addresses)
    );

    let stranger = tailnet
        .start_node(
            tailnet.node_config("stranger", None),
            Arc::new(MemoryStore::default()),
        )
        .await;
    let page = shown_page(&stranger).await;
    operations
        .deny_registration(Actor::Administrator, page)
        .await
        .unwrap();
    reached(&stranger, "refused", |status| {
        matches!(status.phase, Phase::Refused { .. })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forced_login_changes_the_key_and_not_the_device() {
    let tailnet = Tailnet::start().await;
    let store = Arc::new(MemoryStore::default());
    let config = tailnet.node_config("server", Some(tailnet.reusable_auth_key("tag:server").await));
    let node = tailnet.start_node(config.clone(), store.clone()).await;
    let before = reached(&node, "reachable", NodeStatus::reachable).await;
    let old = store.load().await.unwrap().unwrap().node_key.public();
    node.shutdown().await;

    let forced = NodeConfig {
        force_reauth: true,
        ..config
    };
    let node = tailnet.start_node(forced, store.clone()).await;
    let after = reached(&node, "reachable again", NodeStatus::reachable).await;
    assert_eq!(
        (after.device_id, after.addresses),
        (before.device_id, before.addresses)
    );
    let state = store.load().await.unwrap().unwrap();
    assert_ne!(state.node_key.public(), old);
    assert_eq!(state.old_node_key, None);
}
