//! The contract, answered by the fake itself and by the client over HTTP.

use tailwharf_control_api::contract::{self, Subject};
use tailwharf_control_api::fake::Fake;
use tailwharf_control_api::{Client, ControlApi, DeviceId, Secret};

use crate::server::Server;

const ALLOWED: &str = "tag:k8s";

struct InMemory(Fake);

impl Subject for InMemory {
    fn api(&self) -> &dyn ControlApi {
        &self.0
    }

    fn allowed_tag(&self) -> String {
        ALLOWED.to_owned()
    }

    fn foreign_tag(&self) -> String {
        "tag:prod".to_owned()
    }

    fn other_policy(&self) -> String {
        "// other\n{}".to_owned()
    }

    async fn join(&self, key: &Secret, hostname: &str) -> DeviceId {
        self.0.join(key, hostname).unwrap().id
    }
}

struct OverHttp {
    server: Server,
    client: Client,
}

impl Subject for OverHttp {
    fn api(&self) -> &dyn ControlApi {
        &self.client
    }

    fn allowed_tag(&self) -> String {
        ALLOWED.to_owned()
    }

    fn foreign_tag(&self) -> String {
        "tag:prod".to_owned()
    }

    fn other_policy(&self) -> String {
        "// other\n{}".to_owned()
    }

    async fn join(&self, key: &Secret, hostname: &str) -> DeviceId {
        self.server.tailnet().join(key, hostname).unwrap().id
    }
}

#[tokio::test]
async fn the_fake_keeps_the_contract() {
    contract::check(&InMemory(Fake::new([ALLOWED]))).await;
}

#[tokio::test]
async fn the_client_keeps_the_contract() {
    let server = Server::start(Fake::new([ALLOWED])).await;
    let client = server.client();
    contract::check(&OverHttp { server, client }).await;
}
