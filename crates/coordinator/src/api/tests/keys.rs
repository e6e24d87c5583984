//! Auth keys and OAuth clients.

use super::*;

#[tokio::test]
async fn an_auth_key_is_shown_once_and_ends_when_revoked() {
    let site = Site::start().await;
    let bearer = site
        .bearer(&["auth_keys", "devices:core"], &["tag:k8s-operator"])
        .await;
    let created = site
        .call(Method::POST, KEYS, &bearer, &auth_key(&["tag:k8s"]))
        .await
        .ok();
    let id = created["id"].as_str().unwrap();
    assert!(
        created["key"]
            .as_str()
            .unwrap()
            .starts_with(&format!("tskey-auth-{id}-"))
    );
    assert_eq!(created["keyType"], "auth");
    assert_eq!(created["capabilities"], auth_key(&["tag:k8s"])["capabilities"]);
    let path = format!("{KEYS}/{id}");
    let shown = site.get(&path, &bearer).await.ok();
    assert_eq!((shown.get("key"), &shown["invalid"]), (None, &json!(false)));
    let list = site.get(KEYS, &bearer).await.ok();
    let list = list["keys"].as_array().unwrap();
    assert_eq!(
        list.iter().map(|key| &key["id"]).collect::<Vec<_>>(),
        [&json!(id)],
        "clients need another scope to be listed"
    );
    site.call(Method::DELETE, &path, &bearer, &Value::Null).await.ok();
    assert_eq!(site.get(&path, &bearer).await.ok()["invalid"], true);
    let missing = site.get(&format!("{KEYS}/kNone"), &bearer).await;
    assert_eq!(
        (missing.status, missing.message()),
        (StatusCode::NOT_FOUND, "there is no key `kNone`".to_owned())
    );
}

#[tokio::test]
async fn a_client_gives_only_tags_that_its_tags_own() {
    let site = Site::start().await;
    let bearer = site
        .bearer(&["auth_keys", "devices:core"], &["tag:k8s-operator"])
        .await;
    for tags in [["tag:k8s"], ["tag:k8s-operator"]] {
        site.call(Method::POST, KEYS, &bearer, &auth_key(&tags))
            .await
            .ok();
    }
    for (tags, named) in [
        (vec!["tag:other"], "tag:other"),
        (vec!["tag:k8s", "tag:undefined"], "tag:undefined"),
        (vec!["web"], "web"),
    ] {
        let refused = site.call(Method::POST, KEYS, &bearer, &auth_key(&tags)).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST);
        assert!(refused.message().contains(named), "{}", refused.text);
    }
    let untagged = site.call(Method::POST, KEYS, &bearer, &auth_key(&[])).await;
    assert_eq!(untagged.status, StatusCode::BAD_REQUEST);
    let device = site.device(1, "nginx", "tag:k8s").await;
    let path = format!("/api/v2/device/{device}/tags");
    let refused = site
        .call(Method::POST, &path, &bearer, &json!({"tags": ["tag:other"]}))
        .await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert!(refused.message().contains("tag:other"));
    site.call(
        Method::POST,
        &path,
        &bearer,
        &json!({"tags": ["tag:k8s-operator"]}),
    )
    .await
    .ok();
}

#[tokio::test]
async fn clients_get_no_more_than_their_maker_has() {
    let site = Site::start().await;
    let bearer = site
        .bearer(&["oauth_keys", "devices:core"], &["tag:k8s-operator"])
        .await;
    let client = |scopes: Value, tags: Value| json!({"keyType": "client", "scopes": scopes, "tags": tags});
    let good = client(json!(["devices:core:read"]), json!(["tag:k8s"]));
    site.call(Method::POST, KEYS, &bearer, &good).await.ok();
    let wider = site
        .call(
            Method::POST,
            KEYS,
            &bearer,
            &client(json!(["policy_file"]), json!([])),
        )
        .await;
    assert_eq!(wider.status, StatusCode::FORBIDDEN);
    for (scopes, tags, named) in [
        (json!(["devices:core"]), json!([]), "tag"),
        (json!(["devices:cor"]), json!(["tag:k8s"]), "devices:cor"),
        (json!([]), json!(["tag:k8s"]), "scope"),
        (json!(["devices:core"]), json!(["tag:other"]), "tag:other"),
    ] {
        let refused = site
            .call(Method::POST, KEYS, &bearer, &client(scopes, tags))
            .await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{}", refused.text);
        assert!(refused.message().contains(named), "{}", refused.text);
    }
    let named = json!({"user": "alice@example.com", "keyType": "auth"});
    let auth = site.bearer(&["auth_keys"], &["tag:k8s-operator"]).await;
    assert_eq!(
        site.call(Method::POST, KEYS, &auth, &named).await.status,
        StatusCode::BAD_REQUEST
    );
}
