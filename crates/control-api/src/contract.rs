//! What every implementation of [`ControlApi`] must answer, as one test: call [`check`] with a tailnet of your own.
//!
//! It panics at the first difference, as a test does.
#![allow(
    clippy::panic,
    clippy::expect_used,
    reason = "a test suite that other crates' tests call"
)]

use std::future::Future;
use std::time::Duration;

use crate::error::Error;
use crate::secret::Secret;
use crate::types::{CreateKey, Device, DeviceFilter, DeviceId, KeyId};
use crate::{AuthKey, ControlApi};

/// A tailnet under test.
pub trait Subject {
    /// The client or the fake.
    fn api(&self) -> &dyn ControlApi;

    /// A tag that the credentials may give.
    fn allowed_tag(&self) -> String;

    /// A well-formed tag that they may not give.
    fn foreign_tag(&self) -> String;

    /// A valid policy, other than the one that is set, under which `allowed_tag` stays allowed.
    fn other_policy(&self) -> String;

    /// Lets a device join with `key`; returns its id.
    fn join(&self, key: &Secret, hostname: &str) -> impl Future<Output = DeviceId>;
}

/// Runs every check.
pub async fn check(subject: &impl Subject) {
    subject
        .api()
        .verify()
        .await
        .expect("the credentials are accepted");
    keys(subject).await;
    refused_tags(subject).await;
    devices(subject).await;
    policy(subject).await;
}

async fn mint(subject: &impl Subject) -> AuthKey {
    let request = CreateKey {
        tags: vec![subject.allowed_tag()],
        lifetime: Some(Duration::from_secs(3600)),
        description: "contract test".to_owned(),
        ..CreateKey::default()
    };
    subject.api().create_key(&request).await.expect("a key is minted")
}

async fn keys(subject: &impl Subject) {
    let api = subject.api();
    let first = mint(subject).await;
    let second = mint(subject).await;
    assert_ne!(first.id, second.id);
    assert_ne!(first.key, second.key);
    let listed = api.list_keys().await.expect("keys are listed");
    for id in [&first.id, &second.id] {
        assert!(listed.iter().any(|key| key.id == *id), "key {id} is not listed");
    }
    for id in [&first.id, &second.id] {
        api.delete_key(id).await.expect("a key is revoked");
    }
    match api.delete_key(&KeyId::from("kMissingCNTRL")).await {
        Err(Error::NotFound { .. }) => {}
        other => panic!("revoking a key that is not there: {other:?}"),
    }
}

async fn refused_tags(subject: &impl Subject) {
    let foreign = subject.foreign_tag();
    let request = CreateKey {
        tags: vec![foreign.clone()],
        ..CreateKey::default()
    };
    match subject.api().create_key(&request).await {
        Err(error @ Error::KeyRefused { .. }) => {
            assert!(
                error.to_string().contains(&foreign),
                "{error} does not name {foreign}"
            );
            assert!(!error.is_transient());
        }
        other => panic!("a key for a tag that is not allowed: {other:?}"),
    }
}

async fn devices(subject: &impl Subject) {
    let api = subject.api();
    let key = mint(subject).await;
    let id = subject.join(&key.key, "contract-web").await;

    let device = api.device(&id).await.expect("the device is there");
    assert_eq!(device.id, id);
    assert_eq!(device.hostname, "contract-web");
    assert_eq!(device.tags, [subject.allowed_tag()]);
    assert!(device.name.starts_with("contract-web"), "name {}", device.name);
    assert!(!device.addresses.is_empty());

    let found = api
        .list_devices(&DeviceFilter::by_hostname("Contract-Web"))
        .await
        .expect("devices are listed");
    let ids = |devices: &[Device]| devices.iter().map(|device| device.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&found), [device.id]);
    let none = api
        .list_devices(&DeviceFilter::by_hostname("contract-none"))
        .await
        .expect("devices are listed");
    assert_eq!(ids(&none), []);

    let tags = [subject.allowed_tag()];
    api.set_device_tags(&id, &tags).await.expect("the tags are set");
    match api.set_device_tags(&id, &[subject.foreign_tag()]).await {
        Err(Error::Forbidden { .. } | Error::Invalid { .. }) => {}
        other => panic!("setting a tag that is not allowed: {other:?}"),
    }
    assert_eq!(api.device(&id).await.expect("the device is there").tags, tags);

    api.delete_device(&id).await.expect("the device is removed");
    for outcome in [
        api.device(&id).await.map(drop),
        api.set_device_tags(&id, &tags).await,
        api.delete_device(&id).await,
    ] {
        match outcome {
            Err(Error::NotFound { .. }) => {}
            other => panic!("a call about a removed device: {other:?}"),
        }
    }
}

async fn policy(subject: &impl Subject) {
    let api = subject.api();
    let before = api.policy().await.expect("the policy is read");
    let hujson = subject.other_policy();
    let stored = api
        .set_policy(&hujson, before.etag.as_deref())
        .await
        .expect("the policy is replaced");
    assert_eq!(stored.hujson, hujson);
    assert_eq!(api.policy().await.expect("the policy is read"), stored);
    match api.set_policy(&before.hujson, Some("\"stale\"")).await {
        Err(Error::Conflict { .. }) => {}
        other => panic!("a replacement of a version that is gone: {other:?}"),
    }
}
