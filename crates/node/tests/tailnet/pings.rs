//! Pings that the control server asks for: each kind has a report of its own.

use serde_json::{Value, json};
use tailwharf_node::TailnetNode;

use crate::common::{eventually, is_online, reached};
use crate::quirks::streamed;

/// The reports on a ping of these kinds, by kind.
async fn reports(request: Value, kinds: &[&str]) -> Vec<Value> {
    let (control, node, messages) = streamed(|_, _| {}).await;
    let status = reached(&node, "online", is_online).await;
    let path = "/machine/ping/1";
    let mut ping =
        json!({"URL": format!("https://unused.example{path}"), "URLIsNoise": true, "Types": kinds.join(",")});
    ping["IP"] = match &request {
        Value::Null => json!(status.addresses[0]),
        other => other.clone(),
    };
    messages.send(json!({"PingRequest": ping})).unwrap();
    let reports = eventually("all reports come", async || {
        let calls = control.calls().into_iter();
        let reports: Vec<_> = calls
            .filter(|call| call.path == path)
            .map(|call| call.body)
            .collect();
        if reports.len() == kinds.len() {
            Ok(reports)
        } else {
            Err(reports)
        }
    })
    .await;
    node.shutdown().await;
    reports
}

#[tokio::test]
async fn a_peer_that_is_not_there_is_reported_by_kind() {
    let kinds = ["disco", "TSMP", "ICMP", "peerapi"];
    let reports = reports(json!("100.127.255.1"), &kinds).await;
    for (report, kind) in reports.iter().zip(kinds) {
        assert_eq!(
            (&report["Type"], &report["IP"]),
            (&json!(kind), &json!("100.127.255.1"))
        );
        let error = report["Err"].as_str().unwrap_or_default();
        assert!(error.contains("100.127.255.1"), "{report}");
    }
}

#[tokio::test]
async fn an_own_address_and_an_unknown_kind_are_told_as_such() {
    let reports = reports(Value::Null, &["TSMP", "smoke"]).await;
    assert_eq!(reports[0]["IsLocalIP"], true);
    assert!(
        reports[1]["Err"]
            .as_str()
            .is_some_and(|error| error.contains("kind of ping"))
    );
}
