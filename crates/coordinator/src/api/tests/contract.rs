//! The contract that our client of API v2 expects of every control server, kept by this one over real connections.

use tailwharf_control_api::contract::{self, Subject};
use tailwharf_control_api::{Client, ClientConfig, ControlApi, Credentials, DeviceId, Secret};

use super::*;

struct Coordinated {
    site: Site,
    client: Client,
}

impl Subject for Coordinated {
    fn api(&self) -> &dyn ControlApi {
        &self.client
    }

    fn allowed_tag(&self) -> String {
        "tag:k8s".to_owned()
    }

    fn foreign_tag(&self) -> String {
        "tag:other".to_owned()
    }

    fn other_policy(&self) -> String {
        format!("// Another one.\n{POLICY}")
    }

    async fn join(&self, key: &Secret, hostname: &str) -> DeviceId {
        DeviceId::from(self.site.join(1, hostname, key.expose()).await.as_str())
    }
}

#[tokio::test]
async fn our_client_finds_what_it_expects() {
    let site = Site::start().await;
    let (id, secret) = site
        .client(
            &["auth_keys", "devices", "policy_file", "services", "dns"],
            &["tag:k8s-operator"],
        )
        .await;
    let url = format!("http://{}", site.handle.local_addr()).parse().unwrap();
    let credentials = Credentials::OAuthClient {
        id,
        secret: Secret::new(secret),
    };
    let client = Client::new(ClientConfig::new(url, credentials)).unwrap();
    contract::check(&Coordinated { site, client }).await;
}
