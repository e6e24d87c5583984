//! X, as far as it is about fresh sign-ins.

use serde_json::{Value, json};
use tailwharf_apiproxy::OWN_CAPABILITY;
use tailwharf_node::WhoIs;
use tailwharf_wire::tailcfg::{CheckResponse, StableId, UserId};

use crate::bed::{Bed, NAME, device, groups};

const PODS: &str = "/api/v1/namespaces/a/pods";

fn checked(login: &str, rule: &Value) -> WhoIs {
    device(
        login,
        &[groups(&["team"]), (OWN_CAPABILITY, json!([{"check": rule}]))],
    )
}

/// A proxy before which nobody has confirmed anything.
async fn bed(rule: &Value) -> Bed {
    let bed = Bed::start().await;
    bed.tailnet.set(Some(checked("alice@example.com", rule)));
    open_page(&bed);
    bed
}

fn open_page(bed: &Bed) {
    *bed.tailnet.confirmed.lock().unwrap() = CheckResponse {
        url: "https://hub/check/abc".to_owned(),
        code: "KXQ-417".to_owned(),
        ..CheckResponse::default()
    };
}

fn confirm(bed: &Bed) {
    *bed.tailnet.confirmed.lock().unwrap() = CheckResponse {
        confirmed: Some("2026-11-30T21:00:00Z".parse().unwrap()),
        ..CheckResponse::default()
    };
}

fn delete() -> String {
    format!("DELETE {PODS}/p HTTP/1.1\r\nHost: {NAME}\r\n\r\n")
}

#[tokio::test]
async fn x_01_a_confirmation_is_for_one_device_and_one_person() {
    let rule = json!({"period": "12h"});
    let bed = bed(&rule).await;
    let status = bed.refused(delete(), 403).await;
    assert_eq!(
        status["message"],
        "confirm that it is you at https://hub/check/abc (code KXQ-417), then run the command again"
    );
    assert_eq!(status["details"]["causes"][0]["reason"], "ReauthRequired");
    confirm(&bed);
    assert_eq!(bed.send(delete()).await.code, 200);
    // For this device and person it is known for some seconds; nobody else profits from it.
    open_page(&bed);
    assert_eq!(bed.send(delete()).await.code, 200);
    for change in [
        (|who: &mut WhoIs| {
            let mut node = (*who.node).clone();
            node.stable_id = StableId("n8".to_owned());
            who.node = node.into();
        }) as fn(&mut WhoIs),
        |who| {
            let mut node = (*who.node).clone();
            node.user = UserId(9);
            who.node = node.into();
        },
    ] {
        bed.tailnet.set(Some(checked("alice@example.com", &rule)));
        bed.tailnet.change(change);
        bed.refused(delete(), 403).await;
    }
    let asked = bed.tailnet.asked.lock().unwrap().clone();
    assert_eq!(asked[0].source, StableId("n7".to_owned()));
    assert_eq!((asked[0].max_age, asked[0].wait), (12 * 3600, false));
    assert_eq!(asked[0].purpose, format!("kubectl on {NAME}"));
    assert_eq!(asked.last().unwrap().source, StableId("n7".to_owned()));
}

#[tokio::test]
async fn x_02_a_proxy_that_starts_anew_asks_anew() {
    let first = bed(&json!({"period": "1h"})).await;
    confirm(&first);
    assert_eq!(first.send(delete()).await.code, 200);
    let second = bed(&json!({"period": "1h"})).await;
    second.refused(delete(), 403).await;
}

#[tokio::test]
async fn x_05_the_strictest_demand_holds() {
    let bed = Bed::start().await;
    let rules = json!([{"check": {"period": "12h"}}, {}, {"check": {"period": "5m", "reads": true}}]);
    bed.tailnet.set(Some(device(
        "alice@example.com",
        &[groups(&["team"]), (OWN_CAPABILITY, rules)],
    )));
    open_page(&bed);
    bed.refused(format!("GET {PODS} HTTP/1.1\r\nHost: {NAME}\r\n\r\n"), 403)
        .await;
    assert_eq!(bed.tailnet.asked.lock().unwrap()[0].max_age, 300);
    for rule in [
        json!({"period": "1s"}),
        json!({}),
        json!({"period": "1h", "for": []}),
    ] {
        bed.tailnet.set(Some(checked("alice@example.com", &rule)));
        bed.refused(delete(), 403).await;
    }
    *bed.tailnet.confirmed.lock().unwrap() = CheckResponse {
        refused: "the device belongs to no person".to_owned(),
        ..CheckResponse::default()
    };
    bed.tailnet
        .set(Some(checked("alice@example.com", &json!({"period": "1h"}))));
    let status = bed.refused(delete(), 403).await;
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .contains("belongs to no person"),
        "{status}"
    );
}

#[tokio::test]
async fn x_06_what_clients_ask_first_stays_reachable() {
    let bed = bed(&json!({"period": "1h", "reads": true})).await;
    for path in ["/version", "/api", "/apis", "/openapi/v3", "/readyz"] {
        assert_eq!(bed.get(path, "").await.code, 200, "{path}");
    }
    let review = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let asked = format!("POST {review} HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 2\r\n\r\n{{}}");
    assert_eq!(bed.send(asked).await.code, 200);
    bed.refused(format!("GET {PODS} HTTP/1.1\r\nHost: {NAME}\r\n\r\n"), 403)
        .await;
    let bed = self::bed(&json!({"period": "1h"})).await;
    assert_eq!(bed.get(PODS, "").await.code, 200);
    assert_eq!(bed.get(&format!("{PODS}/p/log?follow=true"), "").await.code, 200);
    for path in [
        "/api/v1/namespaces/a/secrets/s",
        "/api/v1/namespaces/a/pods/p/proxy/x",
    ] {
        bed.refused(format!("GET {path} HTTP/1.1\r\nHost: {NAME}\r\n\r\n"), 403)
            .await;
    }
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    bed.refused(
        format!("GET {PODS}/p/exec HTTP/1.1\r\nHost: {NAME}\r\n{upgrade}\r\n"),
        403,
    )
    .await;
}

#[tokio::test]
async fn x_08_the_clock_of_the_control_server_does_not_matter() {
    let bed = bed(&json!({"period": "1m"})).await;
    for confirmed in ["1990-01-01T00:00:00Z", "2999-01-01T00:00:00Z"] {
        bed.tailnet.confirmed.lock().unwrap().confirmed = Some(confirmed.parse().unwrap());
        assert_eq!(bed.send(delete()).await.code, 200);
    }
}
