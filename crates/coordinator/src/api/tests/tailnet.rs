//! Devices, the policy, and the rest of a tailnet.

use std::collections::BTreeMap;

use super::*;

#[tokio::test]
async fn devices_are_listed_changed_and_deleted() {
    let site = Site::start().await;
    let bearer = site.bearer(&["devices"], &["tag:k8s-operator"]).await;
    let stable = site.device(1, "nginx", "tag:k8s").await;
    let list = site.get(&format!("{DEVICES}?fields=all"), &bearer).await.ok();
    let device = &list["devices"][0];
    let expected = BTreeMap::from([
        ("nodeId", json!(stable)),
        ("name", json!("nginx.t.example.net")),
        ("hostname", json!("nginx")),
        ("user", json!("tagged-devices")),
        ("tags", json!(["tag:k8s"])),
        ("authorized", json!(true)),
        ("connectedToControl", json!(false)),
        ("keyExpiryDisabled", json!(true)),
        ("expires", json!("0001-01-01T00:00:00Z")),
        ("advertisedRoutes", json!([])),
    ]);
    for (field, value) in expected {
        assert_eq!(device[field], value, "{field}");
    }
    assert_eq!(device["addresses"].as_array().unwrap().len(), 2);
    assert_eq!(
        site.get(DEVICES, &bearer).await.ok()["devices"][0].get("enabledRoutes"),
        None
    );

    let number = device["id"].as_str().unwrap();
    for reference in [number, stable.as_str()] {
        assert_eq!(
            site.get(&format!("/api/v2/device/{reference}"), &bearer)
                .await
                .ok()["nodeId"],
            json!(stable)
        );
    }
    let path = |call: &str| format!("/api/v2/device/{stable}/{call}");
    site.call(
        Method::POST,
        &path("name"),
        &bearer,
        &json!({"name": "web.t.example.net"}),
    )
    .await
    .ok();
    site.call(
        Method::POST,
        &path("authorized"),
        &bearer,
        &json!({"authorized": false}),
    )
    .await
    .ok();
    let routes = site
        .call(
            Method::POST,
            &path("routes"),
            &bearer,
            &json!({"routes": ["10.1.2.3/16"]}),
        )
        .await
        .ok();
    assert_eq!(
        routes,
        json!({"advertisedRoutes": [], "enabledRoutes": []}),
        "not advertised, so not enabled"
    );
    let set = site
        .call(
            Method::POST,
            &path("attributes/custom:tier"),
            &bearer,
            &json!({"value": "gold"}),
        )
        .await
        .ok();
    assert_eq!(set["attributes"]["custom:tier"], "gold");
    assert_eq!(set["attributes"]["node:os"], "linux");
    site.call(Method::POST, &path("expire"), &bearer, &Value::Null)
        .await
        .ok();
    let changed = site.get(&format!("/api/v2/device/{number}"), &bearer).await.ok();
    assert_eq!(
        (&changed["name"], &changed["authorized"]),
        (&json!("web.t.example.net"), &json!(false))
    );
    assert_eq!(changed["keyExpiryDisabled"], false);

    site.call(
        Method::DELETE,
        &format!("/api/v2/device/{stable}"),
        &bearer,
        &Value::Null,
    )
    .await
    .ok();
    let gone = site
        .call(
            Method::DELETE,
            &format!("/api/v2/device/{stable}"),
            &bearer,
            &Value::Null,
        )
        .await;
    assert_eq!(gone.status, StatusCode::NOT_FOUND);
    assert_eq!(site.get(DEVICES, &bearer).await.ok()["devices"], json!([]));
}

#[tokio::test]
async fn the_policy_is_guarded_by_its_tag() {
    let site = Site::start().await;
    let bearer = site.bearer(&["policy_file"], &[]).await;
    let before = site.get(ACL, &bearer).await;
    assert_eq!((before.status, before.text.as_str()), (StatusCode::OK, POLICY));
    assert_eq!(before.headers[header::CONTENT_TYPE], "application/hujson");
    let tag = before.headers[header::ETAG].clone();

    let mut json = request(Method::GET, ACL, Some(&bearer), Body::empty());
    json.headers_mut()
        .insert(header::ACCEPT, "application/json".parse().unwrap());
    assert_eq!(
        exchange(&site.public, json).await.ok()["tagOwners"]["tag:k8s"],
        json!(["tag:k8s-operator"])
    );

    let put = async |if_match: &header::HeaderValue, text: &str| {
        let mut request = request(Method::POST, ACL, Some(&bearer), text.to_owned());
        request.headers_mut().insert(header::IF_MATCH, if_match.clone());
        exchange(&site.public, request).await
    };
    let closed = r#"{"acls": []}"#;
    assert_eq!(
        put(&"\"ts-default\"".parse().unwrap(), closed).await.status,
        StatusCode::PRECONDITION_FAILED
    );
    let after = put(&tag, closed).await;
    assert_eq!((after.status, after.text.as_str()), (StatusCode::OK, closed));
    assert_ne!(after.headers[header::ETAG], tag);
    assert_eq!(put(&tag, POLICY).await.status, StatusCode::PRECONDITION_FAILED);
    assert_eq!(site.get(ACL, &bearer).await.text, closed);
}

#[tokio::test]
async fn a_bad_policy_is_refused_with_line_and_column_and_the_old_one_stays() {
    let site = Site::start().await;
    let bearer = site.bearer(&["policy_file"], &[]).await;
    let bad = "{\n  \"acls\": [{\"action\": \"accept\", \"src\": [\"group:dev\"], \"dst\": [\"*:*\"]}],\n  \"akls\": [],\n}\n";
    let refused = exchange(&site.public, request(Method::POST, ACL, Some(&bearer), bad)).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert_eq!(
        refused.message(),
        "line 2, column 41: group \"group:dev\" is not defined in \"groups\""
    );
    let errors = refused.json()["data"][0]["errors"].clone();
    assert_eq!(
        errors[1],
        "line 3, column 3: unknown field \"akls\" in the policy; did you mean \"acls\"?"
    );
    assert_eq!(site.get(ACL, &bearer).await.text, POLICY);

    let validate = format!("{ACL}/validate");
    let checked = exchange(&site.public, request(Method::POST, &validate, Some(&bearer), bad))
        .await
        .ok();
    assert_eq!(checked["data"][0]["errors"], errors);
    let failing = r#"{"acls": [], "tests": [{"src": "a@example.com", "accept": ["10.0.0.1:80"]}]}"#;
    let checked = exchange(
        &site.public,
        request(Method::POST, &validate, Some(&bearer), failing),
    )
    .await
    .ok();
    assert!(
        checked["message"]
            .as_str()
            .unwrap()
            .contains("10.0.0.1:80 is denied"),
        "{checked}"
    );
    let good = exchange(
        &site.public,
        request(Method::POST, &validate, Some(&bearer), POLICY),
    )
    .await
    .ok();
    assert_eq!(good, json!({}));
    let preview = format!("{ACL}/preview?type=user&previewFor=eve@example.com");
    let open = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["100.64.0.9:22"]}]}"#;
    let shown = exchange(&site.public, request(Method::POST, &preview, Some(&bearer), open))
        .await
        .ok();
    assert_eq!(
        shown,
        json!({"type": "user", "previewFor": "eve@example.com",
               "matches": [{"users": ["*"], "ports": ["100.64.0.9:22"], "lineNumber": 1}]})
    );
    for query in ["type=user", "type=ipport&previewFor=x", "type=other&previewFor=x"] {
        let path = format!("{ACL}/preview?{query}");
        let refused = exchange(&site.public, request(Method::POST, &path, Some(&bearer), open)).await;
        assert_eq!(
            refused.status,
            StatusCode::BAD_REQUEST,
            "{query}: {}",
            refused.text
        );
    }
}
