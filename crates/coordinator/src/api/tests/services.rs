//! Services, name resolution, settings and the log of changes.

use super::*;

fn at(path: &str) -> String {
    format!("/api/v2/tailnet/-/{path}")
}

#[tokio::test]
async fn a_service_is_kept_as_the_go_operator_writes_it() {
    let site = Site::start().await;
    let bearer = site.bearer(&["services"], &["tag:k8s-operator"]).await;
    let path = at("vip-services/svc:shop");
    let list = site.get(&at("vip-services"), &bearer).await.ok();
    assert_eq!(list, json!({"vipServices": []}));
    assert_eq!(site.get(&path, &bearer).await.status, StatusCode::NOT_FOUND);

    let wanted = json!({
        "name": "svc:shop",
        "comment": "managed",
        "annotations": {"tailscale.com/owner-references": "{\"ownerRefs\":[]}"},
        "ports": ["tcp:443", "tcp:80"],
        "tags": ["tag:k8s"],
    });
    site.call(Method::PUT, &path, &bearer, &wanted).await.ok();
    let mut stored = site.get(&path, &bearer).await.ok();
    let addresses = stored["addrs"].take();
    assert_eq!(addresses.as_array().unwrap().len(), 2);
    stored.as_object_mut().unwrap().remove("addrs");
    assert_eq!(
        stored, wanted,
        "the operator compares what it reads with what it wrote"
    );

    let mut again = wanted.clone();
    again["addrs"] = addresses.clone();
    again["ports"] = json!(["do-not-validate"]);
    let changed = site.call(Method::PUT, &path, &bearer, &again).await.ok();
    assert_eq!(
        (&changed["addrs"], &changed["ports"]),
        (&addresses, &again["ports"])
    );
    let listed = site.get(&at("services"), &bearer).await.ok();
    assert_eq!(listed["vipServices"], json!([changed]));

    site.call(Method::DELETE, &path, &bearer, &Value::Null).await.ok();
    let gone = site.call(Method::DELETE, &path, &bearer, &Value::Null).await;
    assert_eq!(gone.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn services_of_no_use_are_refused() {
    let site = Site::start().await;
    let bearer = site.bearer(&["services"], &["tag:k8s-operator"]).await;
    let reader = site.bearer(&["services:read"], &[]).await;
    let put = async |name: &str, body: Value, bearer: &str| {
        let path = at(&format!("vip-services/{name}"));
        site.call(Method::PUT, &path, bearer, &body).await
    };
    for (name, body) in [
        ("shop", json!({})),
        ("svc:Shop", json!({})),
        ("svc:a", json!({"name": "svc:b"})),
        ("svc:a", json!({"ports": ["443"]})),
        ("svc:a", json!({"tags": ["tag:other"]})),
        ("svc:a", json!({"addrs": ["192.0.2.1"]})),
        ("svc:a", json!({"addrs": ["x"]})),
    ] {
        let refused = put(name, body.clone(), &bearer).await;
        assert_eq!(
            refused.status,
            StatusCode::BAD_REQUEST,
            "{name} {body}: {}",
            refused.text
        );
    }
    assert_eq!(
        put("svc:a", json!({}), &reader).await.status,
        StatusCode::FORBIDDEN
    );
}

#[tokio::test]
async fn hosts_of_a_service_are_approved_one_by_one() {
    let site = Site::start().await;
    let bearer = site.bearer(&["services"], &["tag:k8s-operator"]).await;
    let path = at("vip-services/svc:shop");
    site.call(Method::PUT, &path, &bearer, &json!({"tags": ["tag:k8s"]}))
        .await
        .ok();
    let node = site.device(1, "host", "tag:k8s").await;
    let approved = format!("{path}/device/{node}/approved");
    let before = site.get(&approved, &bearer).await.ok();
    assert_eq!(before, json!({"approved": false, "autoApproved": false}));
    let after = site
        .call(Method::POST, &approved, &bearer, &json!({"approved": true}))
        .await
        .ok();
    assert_eq!(after, json!({"approved": true, "autoApproved": false}));
    let hosts = site.get(&format!("{path}/devices"), &bearer).await.ok();
    assert_eq!(hosts["hosts"], json!([]), "it offers nothing");
}

#[tokio::test]
async fn name_resolution_is_set_as_a_whole_and_in_parts() {
    let site = Site::start().await;
    let bearer = site.bearer(&["dns"], &[]).await;
    let post = async |path: &str, body: Value| site.call(Method::POST, &at(path), &bearer, &body).await.ok();
    let dns = post("dns/nameservers", json!({"dns": ["192.0.2.53"]})).await;
    assert_eq!(dns, json!({"dns": ["192.0.2.53"], "magicDNS": true}));
    post("dns/searchpaths", json!({"searchPaths": ["corp.example.com"]})).await;
    let split = json!({"corp.example.com": ["192.0.2.54"], "b.example.com": ["192.0.2.55"]});
    let set = site
        .call(Method::PUT, &at("dns/split-dns"), &bearer, &split)
        .await
        .ok();
    assert_eq!(set, split);
    let update = json!({"b.example.com": null, "c.example.com": ["192.0.2.56"]});
    let updated = site
        .call(Method::PATCH, &at("dns/split-dns"), &bearer, &update)
        .await
        .ok();
    assert_eq!(
        updated,
        json!({"corp.example.com": ["192.0.2.54"], "c.example.com": ["192.0.2.56"]})
    );
    post("dns/preferences", json!({"magicDNS": false})).await;

    let mut whole = site.get(&at("dns/configuration"), &bearer).await.ok();
    assert_eq!(whole["nameservers"][0]["address"], "192.0.2.53");
    assert_eq!(whole["splitDNS"]["c.example.com"][0]["address"], "192.0.2.56");
    assert_eq!(
        whole["preferences"],
        json!({"magicDNS": false, "overrideLocalDNS": false})
    );
    whole["preferences"]["magicDNS"] = json!(true);
    whole["extraRecords"] = json!([{"name": "db.example.com", "value": "100.64.0.9"}]);
    assert_eq!(post("dns/configuration", whole.clone()).await, whole);
    whole.as_object_mut().unwrap().remove("extraRecords");
    let kept = post("dns/configuration", whole).await;
    assert_eq!(kept["extraRecords"][0]["name"], "db.example.com");

    for (path, body) in [
        ("dns/nameservers", json!({"dns": ["nobody"]})),
        ("dns/searchpaths", json!({"searchPaths": ["not a domain"]})),
        (
            "dns/configuration",
            json!({"nameservers": [{"address": "192.0.2.1", "useWithExitNode": true}]}),
        ),
    ] {
        let refused = site.call(Method::POST, &at(path), &bearer, &body).await;
        assert_eq!(
            refused.status,
            StatusCode::BAD_REQUEST,
            "{path}: {}",
            refused.text
        );
    }
}

#[tokio::test]
async fn settings_are_changed_one_by_one() {
    let site = Site::start().await;
    let bearer = site.bearer(&["feature_settings"], &[]).await;
    let patch = async |body: Value| site.call(Method::PATCH, &at("settings"), &bearer, &body).await;
    let changed =
        patch(json!({"devicesApprovalOn": true, "devicesKeyDurationDays": 30, "httpsEnabled": null}));
    let changed = changed.await.ok();
    assert_eq!(changed["devicesApprovalOn"], true);
    assert_eq!(changed["devicesKeyDurationDays"], 30);
    assert_eq!(site.get(&at("settings"), &bearer).await.ok(), changed);
    assert_eq!(
        patch(json!({"networkFlowLoggingOn": false})).await.ok(),
        changed,
        "what it is already"
    );
    for (body, words) in [
        (json!({"networkFlowLoggingOn": true}), "always false"),
        (json!({"color": "blue"}), "no setting `color`"),
        (json!({"devicesApprovalOn": "yes"}), "type"),
        (json!({"devicesKeyDurationDays": -1}), "type"),
    ] {
        let refused = patch(body).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST);
        assert!(refused.message().contains(words), "{}", refused.text);
    }
}

#[tokio::test]
async fn the_log_says_who_changed_what() {
    let site = Site::start().await;
    let bearer = site.bearer(&["logs:configuration:read"], &[]).await;
    site.device(1, "web", "tag:k8s").await;
    let log = site
        .get(&at("logging/configuration?limit=100"), &bearer)
        .await
        .ok();
    let entries = log["logs"].as_array().unwrap();
    let key = entries
        .iter()
        .find(|entry| entry["target"]["type"] == "AUTH_KEY")
        .unwrap();
    assert_eq!(key["action"], "CREATE");
    assert_eq!(key["actor"]["loginName"], "the administrator");
    let text = log.to_string();
    assert!(!text.contains("tskey-"), "no secret is in the log: {text}");
    let latest = site.get(&at("logging/configuration?limit=1"), &bearer).await.ok();
    assert_eq!(latest["logs"], json!([entries[0]]));
}
