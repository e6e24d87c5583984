//! H and N: who a request is taken for.

use serde_json::json;
use tailwharf_apiproxy::{CAPABILITY, OWN_CAPABILITY};

use crate::backend::Then;
use crate::backend::{answer, raw};
use crate::bed::{Bed, NAME, alice, device, eventually, groups, tagged};

const PODS: &str = "/api/v1/pods";

fn get(headers: &str) -> String {
    format!("GET {PODS} HTTP/1.1\r\nHost: {NAME}\r\n{headers}\r\n")
}

#[tokio::test]
async fn h_00_a_user_of_the_tailnet_is_a_user_of_the_cluster() {
    let bed = Bed::start().await;
    let response = bed
        .get(
            PODS,
            "Accept: application/json\r\nAuthorization: Bearer unused\r\n",
        )
        .await;
    assert_eq!((response.code, &response.body[..]), (200, &b"{}"[..]));
    let seen = bed.backend.only();
    assert_eq!(seen.all("impersonate-user"), ["alice@example.com"]);
    assert_eq!(seen.all("impersonate-group"), ["team"]);
    assert_eq!(
        seen.all("impersonate-extra-tailwharf.dev%2fdevice"),
        ["laptop.tail1234.ts.net"]
    );
    assert_eq!(seen.all("impersonate-extra-tailwharf.dev%2fdevice-id"), ["n7"]);
    assert_eq!(seen.all("authorization"), ["Bearer proxy-token"]);
    assert_eq!(seen.all("accept"), ["application/json"]);
    assert_eq!(seen.all("audit-id"), [response.header("audit-id").unwrap()]);
    assert_eq!(
        seen.all("impersonate-extra-tailwharf.dev%2frequest-id"),
        seen.all("audit-id")
    );
    eventually("an audit line is written", || !bed.audit().is_empty()).await;
    let line = &bed.audit()[0];
    assert_eq!(line["apiVersion"], "audit.k8s.io/v1");
    assert_eq!(line["user"]["username"], "alice@example.com");
    assert_eq!(
        line["user"]["extra"]["tailwharf.dev/device"],
        json!(["laptop.tail1234.ts.net"])
    );
    assert_eq!(
        (&line["verb"], &line["objectRef"]["resource"]),
        (&json!("list"), &json!("pods"))
    );
    assert_eq!(line["responseStatus"]["code"], 200);
    assert_eq!(line["auditID"], response.header("audit-id").unwrap());
}

#[tokio::test]
async fn h_01_acting_as_somebody_else_is_refused_by_default() {
    let bed = Bed::start().await;
    for headers in [
        "Impersonate-User: bob\r\n",
        "Impersonate-Group: admins\r\n",
        "Impersonate-Uid: 1\r\n",
        "Impersonate-Extra-x: 1\r\n",
        "Impersonate-User: a\r\nImpersonate-User: b\r\nImpersonate-Group: c\r\nImpersonate-Group: d\r\n",
    ] {
        let status = bed.refused(get(headers), 403).await;
        assert!(status["message"].as_str().unwrap().contains("--as"), "{status}");
    }
}

#[tokio::test]
async fn h_01_acting_as_somebody_else_is_allowed_by_grant_and_the_caller_stays_named() {
    let bed = Bed::start().await;
    let own = (
        OWN_CAPABILITY,
        json!([{"as": {"users": ["bob*", "system:serviceaccount:ci:*"], "groups": ["view"]}}]),
    );
    bed.tailnet
        .set(Some(device("alice@example.com", &[groups(&["team"]), own])));
    let response = bed
        .get(
            PODS,
            "Impersonate-User: bob@example.com\r\nImpersonate-Group: view\r\n",
        )
        .await;
    assert_eq!(response.code, 200);
    let seen = bed.backend.only();
    assert_eq!(seen.all("impersonate-user"), ["bob@example.com"]);
    assert_eq!(seen.all("impersonate-group"), ["view"]);
    assert_eq!(
        seen.all("impersonate-extra-tailwharf.dev%2foriginal-user"),
        ["alice@example.com"]
    );
    for headers in [
        "Impersonate-User: carol\r\n",
        "Impersonate-User: bob\r\nImpersonate-Group: system:masters\r\n",
        "Impersonate-User: system:admin\r\n",
    ] {
        bed.refused(get(headers), 403).await;
    }
    for headers in [
        "Impersonate-User: bob\r\nImpersonate-Extra-Tailwharf.dev%2foriginal-user: x\r\n",
        "Impersonate-Group: view\r\n",
    ] {
        bed.refused(get(headers), 400).await;
    }
}

#[tokio::test]
async fn h_02_groups_of_the_client_are_never_added_to_ours() {
    let bed = Bed::start().await;
    bed.tailnet.set(Some(device("bob@example.com", &[])));
    bed.refused(get("Impersonate-Group: system:masters\r\n"), 403)
        .await;
    bed.get(PODS, "").await;
    assert!(bed.backend.only().all("impersonate-group").is_empty());
}

#[tokio::test]
async fn h_03_every_header_of_that_name_is_refused_whatever_its_spelling() {
    let bed = Bed::start().await;
    for name in [
        "iMPERSONATE-uSER",
        "Impersonate-Extra-%2e",
        "Impersonate-Extra-",
        "Impersonate-Anything",
        "Impersonate",
    ] {
        bed.refused(get(&format!("{name}: x\r\n")), 403).await;
    }
}

#[tokio::test]
async fn h_04_names_that_others_may_read_as_an_identity_are_refused() {
    let bed = Bed::start().await;
    for line in [
        "Impersonate_User: x",
        "Impersonate-User : x",
        "Impersonate-User\t: x",
        "X-A: b\r\n Impersonate-User: x",
        "Impersonate-User\0: x",
        "Impersonat\u{e9}-User: x",
        "X_Remote_User: x",
        "Authorization_: x\0",
    ] {
        bed.refused(get(&format!("{line}\r\n")), 400).await;
    }
}

#[tokio::test]
async fn h_05_trailers_do_not_go_on() {
    let bed = Bed::start().await;
    let request = format!(
        "POST {PODS} HTTP/1.1\r\nHost: {NAME}\r\nTransfer-Encoding: chunked\r\nTrailer: Impersonate-User\r\n\r\n\
         2\r\n{{}}\r\n0\r\nImpersonate-User: bob\r\nImpersonate-Group: system:masters\r\n\r\n"
    );
    assert_eq!(bed.send(request).await.code, 200);
    let seen = bed.backend.only();
    assert_eq!(seen.body, b"{}");
    assert_eq!(seen.all("impersonate-user"), ["alice@example.com"]);
    assert!(!seen.names().contains(&"trailer".to_owned()));
}

#[tokio::test]
async fn h_06_headers_of_other_front_proxies_do_not_go_on() {
    let bed = Bed::start().await;
    bed.get(
        PODS,
        "X-Remote-User: root\r\nX-Remote-Group: system:masters\r\nX-Remote-Extra-a: b\r\nX-SSL-Client-CN: root\r\n",
    )
    .await;
    let names = bed.backend.only().names();
    assert!(
        !names
            .iter()
            .any(|name| name.starts_with("x-remote") || name.starts_with("x-ssl")),
        "{names:?}"
    );
}

#[tokio::test]
async fn h_07_nominated_headers_take_nothing_of_ours_away() {
    let bed = Bed::start().await;
    let many = vec!["x"; 1000].join(",");
    for connection in [
        "Impersonate-User, Impersonate-Group, Authorization, Audit-ID, Impersonate-Extra-Tailwharf.dev%2fdevice",
        " ,\timpersonate-user\t,, IMPERSONATE-GROUP ,authorization",
        "close, Impersonate-User",
        &many,
    ] {
        bed.get(PODS, &format!("Connection: {connection}\r\n")).await;
    }
    let seen = bed.backend.seen();
    assert_eq!(seen.len(), 4);
    for seen in seen {
        assert_eq!(seen.all("impersonate-user"), ["alice@example.com"]);
        assert_eq!(seen.all("impersonate-group"), ["team"]);
        assert_eq!(seen.all("authorization"), ["Bearer proxy-token"]);
        assert_eq!(seen.all("audit-id").len(), 1);
    }
}

#[tokio::test]
async fn h_07_the_same_holds_for_upgrades() {
    let bed = Bed::answering(|_| {
        raw(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n",
            Then::Echo,
        )
    })
    .await;
    let path = "/api/v1/namespaces/a/pods/p/exec?command=sh";
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: {NAME}\r\nConnection: Upgrade, Impersonate-User, Authorization\r\nUpgrade: SPDY/3.1\r\n\r\n"
    );
    assert_eq!(bed.send(request).await.code, 101);
    let seen = bed.backend.only();
    assert_eq!(seen.all("impersonate-user"), ["alice@example.com"]);
    assert_eq!(seen.all("connection"), ["Upgrade"]);
}

#[tokio::test]
async fn h_08_two_connection_headers_and_other_hop_headers() {
    let bed = Bed::start().await;
    bed.get(
        PODS,
        "Connection:\r\nConnection: Impersonate-User, X-Gone\r\nX-Gone: 1\r\nKeep-Alive: Impersonate-User\r\nProxy-Connection: \
         Impersonate-User\r\nTE: trailers\r\nTrailer: Impersonate-User\r\n",
    )
    .await;
    let seen = bed.backend.only();
    assert_eq!(seen.all("impersonate-user"), ["alice@example.com"]);
    let names = seen.names();
    for gone in [
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "x-gone",
    ] {
        assert!(!names.contains(&gone.to_owned()), "{gone} went on");
    }
}

#[tokio::test]
async fn h_09_without_a_name_nobody_is_let_through() {
    let bed = Bed::start().await;
    for login in ["", " ", "\t"] {
        bed.tailnet.set(Some(device(login, &[groups(&["team"])])));
        bed.refused(get(""), 403).await;
    }
    let huge = vec!["g"; 3000];
    for values in [
        json!(["text"]),
        json!([{"impersonate": "admins"}]),
        json!([{"impersonate": {"groups": "admins"}}]),
        json!([{"impersonate": {"groups": [1]}}]),
        json!([null]),
        json!([{"enforceRecorder": "yes"}]),
        json!([{"recorderAddrs": ["no address"]}]),
        json!([{"impersonate": {"groups": huge.iter().enumerate().map(|(n, g)| format!("{g}{n}")).collect::<Vec<_>>()}}]),
    ] {
        for name in [CAPABILITY, "https://tailscale.com/cap/kubernetes"] {
            bed.tailnet
                .set(Some(device("alice@example.com", &[(name, values.clone())])));
            let status = bed.refused(get(""), 403).await;
            assert!(
                status["message"].as_str().unwrap().contains(CAPABILITY),
                "{status}"
            );
        }
    }
    bed.tailnet.set(Some(device(
        "alice@example.com",
        &[(OWN_CAPABILITY, json!([{"demandUnknownHere": true}]))],
    )));
    bed.refused(get(""), 403).await;
    bed.tailnet.set(None);
    bed.refused(get(""), 403).await;
    // Absent and null mean the same, and what only Tailscale's proxy knows changes nothing.
    let values = json!([{"impersonate": null}, {}, {"recorder": ["tag:rec"], "recorderAddrs": null}, {"impersonate": {"groups": ["b"]}}]);
    bed.tailnet
        .set(Some(device("alice@example.com", &[(CAPABILITY, values)])));
    bed.get(PODS, "").await;
    assert_eq!(bed.backend.only().all("impersonate-group"), ["b"]);
}

#[tokio::test]
async fn h_10_devices_with_tags_expired_keys_and_strangers() {
    let bed = Bed::start().await;
    bed.tailnet.set(Some(tagged(
        device("tagged-devices", &[]),
        &["tag:ci", "tag:prod"],
    )));
    bed.get(PODS, "").await;
    let seen = bed.backend.only();
    assert_eq!(seen.all("impersonate-user"), ["laptop.tail1234.ts.net"]);
    assert_eq!(seen.all("impersonate-group"), ["tag:ci", "tag:prod"]);
    bed.tailnet.set(Some(tagged(
        device("tagged-devices", &[groups(&["deployers"])]),
        &["tag:ci"],
    )));
    bed.get(PODS, "").await;
    assert_eq!(
        bed.backend.seen()[1].all("impersonate-group"),
        ["deployers"],
        "tags are not added"
    );
    bed.tailnet.set(Some(alice()));
    bed.tailnet.change(|who| {
        let mut node = (*who.node).clone();
        node.expired = true;
        who.node = std::sync::Arc::new(node);
    });
    let status = bed.refused(get(""), 403).await;
    assert!(
        status["message"].as_str().unwrap().contains("expired"),
        "{status}"
    );
}

#[tokio::test]
async fn h_10_a_user_without_a_grant_is_told_what_is_missing() {
    let bed = Bed::answering(|_| {
        answer(
            "403 Forbidden",
            "",
            r#"{"kind":"Status","message":"pods is forbidden"}"#,
        )
    })
    .await;
    bed.tailnet.set(Some(device("carol@example.com", &[])));
    let response = bed.get(PODS, "").await;
    assert_eq!(response.code, 403);
    let message = response.status()["message"].as_str().unwrap().to_owned();
    assert!(message.starts_with("pods is forbidden: "), "{message}");
    assert!(
        message.contains(CAPABILITY) && message.contains("srcPosture") && message.contains("laptop"),
        "{message}"
    );
    bed.tailnet.set(Some(alice()));
    assert_eq!(
        bed.get(PODS, "").await.body,
        br#"{"kind":"Status","message":"pods is forbidden"}"#
    );
}

#[tokio::test]
async fn h_11_names_from_the_policy_stay_what_they_are_or_are_refused() {
    let bed = Bed::start().await;
    let long = "x".repeat(64 * 1024);
    for group in [
        "a\r\nImpersonate-Group: system:masters",
        "a\0",
        "a\n",
        "",
        " a",
        &long,
    ] {
        bed.tailnet
            .set(Some(device("alice@example.com", &[groups(&[group])])));
        bed.refused(get(""), 403).await;
    }
    bed.tailnet.set(Some(device("alice\r\nX: y@example.com", &[])));
    bed.refused(get(""), 403).await;
    let odd = ["a,b", "a:b", "50%", "grüße"];
    bed.tailnet
        .set(Some(device("jürgen@example.com", &[groups(&odd)])));
    bed.get(PODS, "").await;
    let seen = bed.backend.only();
    assert_eq!(seen.all("impersonate-group"), odd);
    assert_eq!(seen.all("impersonate-user"), ["jürgen@example.com"]);
}

#[tokio::test]
async fn h_12_names_of_the_cluster_itself_are_refused_but_the_administrators() {
    let bed = Bed::start().await;
    for group in [
        "system:nodes",
        "system:kube-controller-manager",
        "system:serviceaccounts",
        "system:unauthenticated",
    ] {
        bed.tailnet
            .set(Some(device("alice@example.com", &[groups(&[group])])));
        let status = bed.refused(get(""), 403).await;
        assert!(status["message"].as_str().unwrap().contains(group), "{status}");
    }
    for user in [
        "system:node:a",
        "system:serviceaccount:a:b",
        "system:anonymous",
        "system:kube-scheduler",
    ] {
        bed.tailnet.set(Some(device(user, &[])));
        bed.refused(get(""), 403).await;
    }
    bed.tailnet
        .set(Some(device("alice@example.com", &[groups(&["system:masters"])])));
    assert_eq!(bed.get(PODS, "").await.code, 200);
}

#[tokio::test]
async fn h_13_the_audit_id_is_ours() {
    let bed = Bed::start().await;
    bed.get(PODS, "Audit-ID: mine\r\nAudit-ID: mine too\r\n").await;
    let seen = bed.backend.only().all("audit-id");
    assert_eq!((seen.len(), seen[0].len()), (1, 36), "{seen:?}");
}

#[tokio::test]
async fn h_14_the_source_address_is_that_of_the_tailnet() {
    let bed = Bed::start().await;
    bed.get(
        PODS,
        "X-Forwarded-For: 1.2.3.4\r\nForwarded: for=1.2.3.4\r\nX-Real-IP: 1.2.3.4\r\nX-Forwarded-Host: a\r\n",
    )
    .await;
    let seen = bed.backend.only();
    assert_eq!(seen.all("x-forwarded-for"), ["127.0.0.1"]);
    for gone in ["forwarded", "x-real-ip", "x-forwarded-host"] {
        assert!(!seen.names().contains(&gone.to_owned()), "{gone} went on");
    }
}

#[tokio::test]
async fn h_15_tokens_of_the_client_do_not_go_on() {
    let bed = Bed::start().await;
    let token = "base64url.bearer.authorization.k8s.io";
    bed.get(PODS, "Authorization: Bearer a\r\nAuthorization: Basic Yg==\r\n")
        .await;
    bed.get(
        PODS,
        &format!("Sec-WebSocket-Protocol: {token}.YQ, v4.channel.k8s.io, {token}.!!\r\n"),
    )
    .await;
    bed.get(
        PODS,
        &format!("Sec-WebSocket-Protocol: {}.YQ\r\n", token.to_uppercase()),
    )
    .await;
    let seen = bed.backend.seen();
    assert!(
        seen.iter()
            .all(|seen| seen.all("authorization") == ["Bearer proxy-token"])
    );
    assert_eq!(seen[1].all("sec-websocket-protocol"), ["v4.channel.k8s.io"]);
    assert!(seen[2].all("sec-websocket-protocol").is_empty());
}

#[tokio::test]
async fn h_16_many_groups_work_up_to_a_limit_that_is_told() {
    let bed = Bed::start().await;
    for count in [99, 100, 101, 256] {
        let many: Vec<String> = (0..count).map(|number| format!("group-{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        bed.tailnet
            .set(Some(device("alice@example.com", &[groups(&many)])));
        assert_eq!(bed.get(PODS, "").await.code, 200);
        assert_eq!(bed.backend.seen().last().unwrap().all("impersonate-group"), many);
    }
    let many: Vec<String> = (0..2000).map(|number| format!("group-{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    bed.tailnet
        .set(Some(device("alice@example.com", &[groups(&many)])));
    let status = bed.refused(get(""), 403).await;
    assert!(status["message"].as_str().unwrap().contains("256"), "{status}");
    let headers: String = (0..200)
        .map(|number| format!("X-{number}: {}\r\n", "x".repeat(400)))
        .collect();
    bed.tailnet.set(Some(alice()));
    bed.refused(get(&headers), 431).await;
}

#[tokio::test]
async fn h_17_a_connection_belongs_to_the_device_that_opened_it() {
    let bed = Bed::start().await;
    let mut client = bed.connect().await;
    client.write(get("")).await;
    assert_eq!(client.response().await.code, 200);
    bed.tailnet.change(|who| {
        let mut node = (*who.node).clone();
        node.stable_id.0 = "n8".to_owned();
        who.node = std::sync::Arc::new(node);
    });
    client.write(get("")).await;
    let response = client.response().await;
    assert_eq!(response.code, 403);
    client.ends().await;
    assert_eq!(bed.backend.seen().len(), 1);
    // A grant that is gone counts from the next request on, also on an open connection.
    bed.tailnet.set(Some(alice()));
    let mut client = bed.connect().await;
    client.write(get("")).await;
    client.response().await;
    bed.tailnet
        .set(Some(device("alice@example.com", &[groups(&["other"])])));
    client.write(get("")).await;
    client.response().await;
    assert_eq!(bed.backend.seen()[2].all("impersonate-group"), ["other"]);
}

#[tokio::test]
async fn n_01_without_impersonation_the_clients_own_words_go_on() {
    let bed = Bed::tuned(
        |_| answer("401 Unauthorized", "", "{}"),
        |settings| settings.upstream.token_file = None,
    )
    .await;
    let response = bed
        .get(
            PODS,
            "Authorization: Bearer mine\r\nImpersonate-User: bob\r\nImpersonate-Extra-A%2fb: c\r\n\
             Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.YQ, v4.channel.k8s.io\r\n",
        )
        .await;
    assert_eq!(response.code, 401, "their answer, not ours");
    let seen = bed.backend.only();
    assert_eq!(seen.all("authorization"), ["Bearer mine"]);
    assert_eq!(seen.all("impersonate-user"), ["bob"]);
    assert_eq!(seen.all("impersonate-extra-a%2fb"), ["c"]);
    assert!(seen.all("impersonate-group").is_empty());
    assert_eq!(
        seen.all("sec-websocket-protocol"),
        ["base64url.bearer.authorization.k8s.io.YQ, v4.channel.k8s.io"]
    );
    eventually("an audit line is written", || !bed.audit().is_empty()).await;
    bed.tailnet.set(None);
    assert_eq!(bed.get(PODS, "").await.code, 403, "only the tailnet gets through");
}
