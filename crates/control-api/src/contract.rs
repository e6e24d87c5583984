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

use ipnet::IpNet;

use crate::error::Error;
use crate::network::{DnsConfig, DnsPreferences, Resolver, VipService};
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
    services(subject).await;
    dns(subject).await;
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

    let route: IpNet = "10.1.0.0/16".parse().expect("a prefix");
    let routes = api
        .set_device_routes(&id, &[route])
        .await
        .expect("routes are approved");
    assert_eq!(routes.advertised, [], "the device offers none");
    assert_eq!(api.device_routes(&id).await.expect("routes are read"), routes);

    api.delete_device(&id).await.expect("the device is removed");
    for outcome in [
        api.device(&id).await.map(drop),
        api.device_routes(&id).await.map(drop),
        api.set_device_routes(&id, &[route]).await.map(drop),
        api.set_device_tags(&id, &tags).await,
        api.delete_device(&id).await,
    ] {
        expect_missing(outcome);
    }
}

async fn services(subject: &impl Subject) {
    let api = subject.api();
    let mut wanted = VipService {
        name: "svc:contract".to_owned(),
        comment: "contract test".to_owned(),
        annotations: [("owner".to_owned(), "{\"a\": [1]}".to_owned())].into(),
        ports: vec!["tcp:443".to_owned(), "tcp:80".to_owned()],
        tags: vec![subject.allowed_tag()],
        ..VipService::default()
    };
    let name = wanted.name.clone();
    expect_missing(api.service(&name).await.map(drop));
    expect_missing(api.delete_service(&name).await);
    api.put_service(&wanted).await.expect("a service is made");
    let made = api.service(&name).await.expect("the service is there");
    assert!(!made.addresses.is_empty(), "a service has addresses");
    wanted.addresses.clone_from(&made.addresses);
    assert_eq!(made, wanted, "what was written is read, in its order");
    assert_eq!(api.list_services().await.expect("services are listed"), [made]);

    wanted.ports = vec!["do-not-validate".to_owned()];
    wanted.addresses.clear();
    api.put_service(&wanted).await.expect("the service is changed");
    let changed = api.service(&name).await.expect("the service is there");
    assert_eq!(changed.ports, wanted.ports);
    assert!(!changed.addresses.is_empty(), "it keeps its addresses");

    for refused in [
        VipService {
            tags: vec![subject.foreign_tag()],
            ..wanted.clone()
        },
        VipService {
            name: "contract".to_owned(),
            ..wanted.clone()
        },
    ] {
        match api.put_service(&refused).await {
            Err(Error::Forbidden { .. } | Error::Invalid { .. }) => {}
            other => panic!("a service of no use: {other:?}"),
        }
    }
    api.delete_service(&name).await.expect("the service is deleted");
    expect_missing(api.service(&name).await.map(drop));
}

async fn dns(subject: &impl Subject) {
    let api = subject.api();
    let before = api.dns().await.expect("the DNS configuration is read");
    let resolver = |address: &str| Resolver {
        address: address.to_owned(),
    };
    let wanted = DnsConfig {
        nameservers: vec![resolver("192.0.2.53")],
        split: [("corp.example.com".to_owned(), vec![resolver("192.0.2.54")])].into(),
        search_paths: vec!["corp.example.com".to_owned()],
        preferences: DnsPreferences {
            override_local: true,
            magic_dns: true,
        },
    };
    for config in [&wanted, &before] {
        api.set_dns(config).await.expect("the DNS configuration is set");
        let stored = api.dns().await.expect("the DNS configuration is read");
        assert_eq!(stored, *config);
    }
}

fn expect_missing(outcome: Result<(), Error>) {
    match outcome {
        Err(Error::NotFound { .. }) => {}
        other => panic!("a call about a thing that is not there: {other:?}"),
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
