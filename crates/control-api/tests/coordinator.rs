//! The contract, answered by our own coordinator over HTTP, with a real node that joins.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test program")]

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use tailwharf_control_api::contract::{self, Subject};
use tailwharf_control_api::{Client, ClientConfig, ControlApi, Credentials, DeviceId, Error, Secret};
use tailwharf_coordinator::model::Actor;
use tailwharf_coordinator::ops::NewOauthClient;
use tailwharf_coordinator::{Config, Coordinator, Handle};
use tailwharf_node::{AuthKey, Host, HostConfig, MemoryStore, NodeConfig, TailnetNode};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

const POLICY: &str =
    r#"{"tagOwners": {"tag:k8s-operator": [], "tag:k8s": ["tag:k8s-operator"], "tag:prod": []}}"#;

struct Site {
    client: Client,
    config: Config,
    handle: Handle,
    _dir: TempDir,
}

impl Site {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let policy = dir.path().join("policy.hujson");
        std::fs::write(&policy, POLICY).unwrap();
        let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let text = format!(
            "server_url = \"http://{listen}\"\nlisten = \"{listen}\"\ndata_dir = {:?}\n\
             magic_dns_suffix = \"tail1234.ts.net\"\npolicy_file = {policy:?}\n[relay]\nenabled = false\n",
            dir.path().join("data"),
        );
        let config = Config::parse(&text, &policy).unwrap();
        let handle = Coordinator::start(config.clone(), CancellationToken::new())
            .await
            .unwrap();
        let oauth = NewOauthClient {
            creator: Actor::Administrator,
            description: "operator".to_owned(),
            scopes: ["auth_keys", "devices", "services", "dns", "policy_file"]
                .map(str::to_owned)
                .into(),
            tags: BTreeSet::from(["tag:k8s-operator".parse().unwrap()]),
        };
        let minted = handle.operations().create_oauth_client(oauth).await.unwrap();
        let credentials = Credentials::OAuthClient {
            id: minted.record.id.to_string(),
            secret: Secret::new(minted.secret.reveal()),
        };
        let client = Client::new(ClientConfig::new(config.server_url.clone(), credentials)).unwrap();
        Self {
            client,
            config,
            handle,
            _dir: dir,
        }
    }
}

impl Subject for Site {
    fn api(&self) -> &dyn ControlApi {
        &self.client
    }

    fn allowed_tag(&self) -> String {
        "tag:k8s".to_owned()
    }

    fn foreign_tag(&self) -> String {
        "tag:prod".to_owned()
    }

    fn other_policy(&self) -> String {
        format!("// The same, with a comment.\n{POLICY}\n")
    }

    async fn join(&self, key: &Secret, hostname: &str) -> DeviceId {
        let host = Host::new(&HostConfig::default()).unwrap();
        let config = NodeConfig {
            auth_key: AuthKey::new(key.expose()),
            ..NodeConfig::new(self.config.server_url.clone(), hostname)
        };
        let node = host
            .start(config, Arc::new(MemoryStore::default()))
            .await
            .unwrap();
        let mut status = node.status();
        let wait = async {
            status
                .wait_for(|status| status.device_id.is_some())
                .await
                .map(|status| status.clone())
        };
        let registered = tokio::time::timeout(Duration::from_secs(30), wait)
            .await
            .unwrap()
            .unwrap();
        let id = registered.device_id.unwrap().to_string();
        node.shutdown().await;
        DeviceId(id)
    }
}

#[tokio::test]
async fn the_coordinator_keeps_the_contract() {
    let site = Site::start().await;
    contract::check(&site).await;
    site.handle.stop().await;
}

#[tokio::test]
async fn the_coordinator_refuses_a_wrong_client() {
    let site = Site::start().await;
    let secret = Secret::new("tskey-client-wrong");
    let credentials = Credentials::OAuthClient {
        id: "k1".to_owned(),
        secret,
    };
    let client = Client::new(ClientConfig::new(site.config.server_url.clone(), credentials)).unwrap();
    let error = client.verify().await.unwrap_err();
    assert!(matches!(error, Error::CredentialsRefused { .. }), "{error:?}");
    site.handle.stop().await;
}
