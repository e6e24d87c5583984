//! What control servers send beyond, below and beside what is written: nothing of it may end a node.

use serde_json::{Value, json};
use tailwharf_node::{Node, NodeStatus, Phase, TailnetNode};
use tokio::sync::mpsc;

use crate::common::{eventually, is_online, reached};
use crate::scripted::{Call, Reply, Scripted, accepted, first_map, own_node};

/// A node that is online at a server to whose map stream the test adds messages. `edit` changes the first one.
pub(crate) async fn streamed(
    edit: impl Fn(&Value, &mut Value) + Send + Sync + 'static,
) -> (Scripted, Node, mpsc::UnboundedSender<Value>) {
    let (messages, receiver) = mpsc::unbounded_channel();
    let stream = std::sync::Mutex::new(Some((messages.clone(), receiver)));
    let control = Scripted::start(move |call: Call| {
        let reply = if call.is_register() {
            Some(accepted())
        } else if call.is_stream() {
            let taken = stream.lock().unwrap().take();
            Some(match taken {
                Some((messages, receiver)) => {
                    let mut map = first_map(&call.body);
                    edit(&call.body, &mut map);
                    messages.send(map).unwrap();
                    Reply::Stream(receiver)
                }
                None => Reply::Maps(vec![first_map(&call.body)]),
            })
        } else {
            None
        };
        async { reply }
    })
    .await;
    let node = control.node("node").await;
    (control, node, messages)
}

fn peer(id: u8) -> Value {
    let key = format!("nodekey:{}", format!("{id:02x}").repeat(32));
    own_node(&json!({"NodeKey": key}), id, &format!("peer{id}"))
}

/// Waits until the map says that `peer` is, or is not, there.
async fn sees(node: &Node, peer: &str, there: bool) {
    eventually("the peer comes or goes", async || {
        if node.resolve(peer).is_empty() == there {
            Err(format!("{peer} there: {}", !there))
        } else {
            Ok(())
        }
    })
    .await;
}

#[tokio::test]
async fn nulls_missing_and_unknown_fields_and_other_letters_are_read() {
    let (_control, node, messages) = streamed(|_, map| {
        map["PacketFilter"] = Value::Null;
        map["DERPMap"] = Value::Null;
        map["Peers"] = Value::Null;
        map["Node"]["Endpoints"] = Value::Null;
        map["Node"]["Hostinfo"] =
            json!({"Services": null, "NetInfo": null, "TPM": {"x": [1]}, "Location": null});
        map["Node"]["KeyExpiry"] = json!("0001-01-01T00:00:00Z");
        map["Node"]["LastSeen"] = Value::Null;
        map["Node"]["CapMap"] = json!({"default-auto-update": [true], "funnel": null});
        map["Node"]["NoSuchField"] = json!([{"deep": [[[[]]]]}]);
        map["DNSConfig"] =
            json!({"Routes": {"corp.example": null}, "Resolvers": null, "TempCorpIssue13969": "x"});
        map["SSHPolicy"] = json!({"rules": null});
        map["ClientVersion"] = json!({"RunningLatest": true});
        map["DefaultAutoUpdate"] = json!(false);
    })
    .await;
    let status = reached(&node, "online", is_online).await;
    assert_eq!(status.key_expiry, None, "Go's zero time is none");
    messages
        .send(json!({"peersChanged": [peer(7)], "PeersRemoved": null, "PeersChangedPatch": null}))
        .unwrap();
    sees(&node, "peer7", true).await;
}

#[tokio::test]
async fn deltas_for_nodes_that_are_not_there_are_ignored() {
    let (_control, node, messages) = streamed(|_, map| map["Peers"] = json!([peer(5), peer(3)])).await;
    sees(&node, "peer5", true).await;
    for message in [
        json!({"KeepAlive": true}),
        json!({}),
        json!({"Peers": []}),
        json!({"OnlineChange": {"3": false, "99": true}, "PeerSeenChange": {"98": true}}),
        json!({"PeersChangedPatch": [{"NodeID": 77, "Online": true}, {"NodeID": 3, "Endpoints": null, "DERPRegion": 900}]}),
        json!({"PeersRemoved": [66, 5]}),
        json!({"PacketFilters": {"*": null, "base": null, "other": []}}),
        json!({"UserProfiles": [{"ID": 1, "LoginName": "alice@example.com", "Groups": null}]}),
    ] {
        messages.send(message).unwrap();
    }
    sees(&node, "peer5", false).await;
    sees(&node, "peer3", true).await;
    assert!(is_online(&node.status().borrow()));
}

#[tokio::test]
async fn a_flapping_peer_and_a_large_map_end_in_the_last_word() {
    let (_control, node, messages) = streamed(|_, _| {}).await;
    reached(&node, "online", is_online).await;
    for round in 0..500 {
        let message = match round % 3 {
            0 => json!({"PeersChanged": [peer(9)]}),
            1 => json!({"PeersChangedPatch": [{"NodeID": 9, "Online": round % 2 == 0}]}),
            _ => json!({"PeersRemoved": [9]}),
        };
        messages.send(message).unwrap();
    }
    let many: Vec<Value> = (0..5000)
        .map(|number| {
            let id = json!(1000 + number);
            let mut peer = peer(200);
            peer["ID"] = id;
            peer["StableID"] = json!(format!("m{number}"));
            peer["Name"] = json!(format!("many{number}.tail1.ts.net."));
            peer["Key"] = json!(format!("nodekey:{number:064x}"));
            peer["Addresses"] = json!([format!("100.100.{}.{}/32", number / 250, number % 250)]);
            peer
        })
        .collect();
    messages.send(json!({"Peers": many})).unwrap();
    sees(&node, "many4999", true).await;
    sees(&node, "peer9", false).await;
    messages
        .send(json!({"PeersRemoved": (1000..5999).collect::<Vec<_>>()}))
        .unwrap();
    sees(&node, "many4998", false).await;
    sees(&node, "many4999", true).await;
}

#[tokio::test]
async fn an_unreadable_message_ends_the_stream_and_the_next_one_is_good() {
    for junk in [
        json!([]),
        json!("text"),
        json!({"Node": {"ID": "seven"}}),
        json!({"Peers": [{"Key": "nodekey:12"}]}),
        json!({"PeersChanged": {"a": 1}}),
    ] {
        let (control, node, messages) = streamed(|_, _| {}).await;
        reached(&node, "online", is_online).await;
        messages.send(junk.clone()).unwrap();
        eventually("the node asks for a new stream", async || {
            let streams = control.calls().into_iter();
            match streams.filter(Call::is_stream).count() {
                0..=1 => Err(junk.clone()),
                _ => Ok(()),
            }
        })
        .await;
        reached(&node, "online again", is_online).await;
    }
}

#[tokio::test]
async fn a_clock_that_jumps_ends_no_key() {
    let (_control, node, messages) = streamed(|_, map| {
        map["ControlTime"] = json!("2026-01-01T00:00:00Z");
        map["Node"]["KeyExpiry"] = json!("2026-06-01T00:00:00Z");
    })
    .await;
    reached(&node, "online by the server's clock", is_online).await;
    for time in [
        "2026-05-30T00:00:00Z",
        "1999-01-01T00:00:00Z",
        "2026-01-01T00:00:01Z",
    ] {
        messages
            .send(json!({"ControlTime": time, "PeersChanged": [peer(8)]}))
            .unwrap();
    }
    sees(&node, "peer8", true).await;
    assert!(is_online(&node.status().borrow()));
}

#[tokio::test]
async fn tailnet_lock_stops_the_node_with_a_reason() {
    let (_control, node, messages) = streamed(|_, map| map["Peers"] = json!([peer(5)])).await;
    sees(&node, "peer5", true).await;
    messages.send(json!({"TKAInfo": {"Head": "abc"}})).unwrap();
    let status = reached(&node, "refused", |status: &NodeStatus| {
        matches!(status.phase, Phase::Refused { .. })
    })
    .await;
    let Phase::Refused { reason } = status.phase else {
        panic!()
    };
    assert!(reason.contains("tailnet lock is on"), "{reason}");
    sees(&node, "peer5", false).await;
}

#[tokio::test]
async fn an_answer_of_another_kind_is_told_and_tried_again() {
    for (answer, word) in [
        (Reply::Status(500, "database is down"), "database is down"),
        (Reply::Status(429, "slow down"), "slow down"),
        (Reply::Json(json!([1])), "cannot be understood"),
    ] {
        let answer = std::sync::Mutex::new(Some(answer));
        let control = Scripted::start(move |call: Call| {
            let first = answer.lock().unwrap().take();
            let reply = if call.is_register() {
                Some(first.unwrap_or_else(accepted))
            } else {
                call.is_stream().then(|| Reply::Maps(vec![first_map(&call.body)]))
            };
            async { reply }
        })
        .await;
        let node = control.node("node").await;
        reached(
            &node,
            word,
            |status| matches!(&status.phase, Phase::Disconnected { reason } if reason.contains(word)),
        )
        .await;
        reached(&node, "online", is_online).await;
    }
}

/// A control request with its answer, as it came to the place that the server named.
async fn asked(control: &Scripted, messages: &mpsc::UnboundedSender<Value>, request: &str) -> String {
    use base64::Engine as _;
    let path = format!("/machine/ping/{}", control.calls().len());
    let payload = base64::engine::general_purpose::STANDARD.encode(request);
    let ping = json!({"URL": format!("https://unused.example{path}"), "URLIsNoise": true, "Types": "c2n", "Payload": payload});
    messages.send(json!({"PingRequest": ping})).unwrap();
    eventually("the answer comes", async || {
        let calls = control.calls();
        let answer = calls.iter().find(|call| call.path == path).ok_or("none yet")?;
        Ok::<_, &str>(String::from_utf8_lossy(&answer.raw).into_owned())
    })
    .await
}

#[tokio::test]
async fn a_hosted_service_is_announced_and_told_on_request() {
    let (control, node, messages) = streamed(|_, _| {}).await;
    reached(&node, "online", is_online).await;
    let echo = asked(&control, &messages, "GET /echo HTTP/1.1\r\n\r\nhello").await;
    assert!(
        echo.starts_with("HTTP/1.1 200 OK") && echo.ends_with("hello"),
        "{echo}"
    );

    let service = "svc:web".parse().unwrap();
    let listener = node.listen_service(&service, 443).unwrap();
    assert!(node.listen_service(&service, 443).is_err(), "one listener a port");
    let hash = eventually("the hash is announced", async || {
        let calls = control.calls();
        let told = calls.iter().rev().find(|call| call.path == "/machine/map");
        let hash = told.and_then(|call| call.body["Hostinfo"]["ServicesHash"].as_str());
        hash.map(str::to_owned)
            .filter(|hash| !hash.is_empty())
            .ok_or("not yet")
    })
    .await;
    let answer = asked(&control, &messages, "GET /vip-services HTTP/1.1\r\n\r\n").await;
    assert!(answer.contains(&hash) && answer.contains("tcp:443"), "{answer}");

    drop(listener);
    eventually("it is withdrawn", async || {
        let answer = asked(&control, &messages, "GET /vip-services HTTP/1.1\r\n\r\n").await;
        if answer.contains("svc:web") {
            Err(answer)
        } else {
            Ok(())
        }
    })
    .await;
}
