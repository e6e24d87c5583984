//! A node hosts a service of the tailnet.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use tailwharf_coordinator::model::Actor;
use tailwharf_coordinator::ops::{NewService, NodeRef};
use tailwharf_node::{DialError, TailnetNode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::common::{Tailnet, eventually, reached};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_is_offered_approved_and_reached_at_its_own_addresses() {
    let tailnet = Tailnet::start().await;
    let server = tailnet.join("server", "tag:server").await;
    let client = tailnet.join("client", "tag:client").await;
    let operations = tailnet.coordinator().operations();
    let service = NewService {
        name: "svc:web".parse().unwrap(),
        addresses: Vec::new(),
        comment: String::new(),
        annotations: BTreeMap::new(),
        ports: vec!["tcp:443".to_owned()],
        tags: ["tag:server".parse().unwrap()].into(),
    };
    let name = service.name.clone();
    operations
        .put_service(Actor::Administrator, service)
        .await
        .unwrap();

    let listener = server.listen_service(&"svc:web".parse().unwrap(), 443).unwrap();
    let whois = server.clone();
    let serving = tokio::spawn(async move {
        while let Ok((mut stream, from)) = listener.accept().await {
            let who = whois.whois_at(from, stream.local_addr().ip()).unwrap();
            let order = who.capability::<String>("example.com/cap/order").unwrap();
            let elsewhere = whois.whois(from).unwrap();
            assert!(!elsewhere.cap_map.contains_key("example.com/cap/order"));
            let answer = format!("{} {order:?}", who.node.name);
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    eventually("the server offers the service", async || {
        if operations.service_hosts(&name).is_empty() {
            Err("not yet")
        } else {
            Ok(())
        }
    })
    .await;
    let device = server.status().borrow().device_id.clone().unwrap();
    let id = operations.find_node(&NodeRef(device.0)).unwrap().id;
    operations
        .approve_service_host(Actor::Administrator, name, id, Some(true))
        .await
        .unwrap();
    let status = reached(&server, "it has the service", |status| {
        !status.services.is_empty()
    })
    .await;
    let addresses: Vec<IpAddr> = status.services["svc:web"].clone();
    assert_eq!(addresses.len(), 2, "{addresses:?}");
    assert!(
        addresses
            .iter()
            .all(|address| !status.addresses.contains(address))
    );

    for address in addresses {
        let answer = eventually("the service answers", async || {
            let mut stream = client.dial_tcp(SocketAddr::new(address, 443)).await?;
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer).await;
            Ok::<_, DialError>(answer)
        })
        .await;
        assert_eq!(answer, "client.tail1234.ts.net Some([\"tea\"])");
    }
    let own = SocketAddr::new(status.addresses[0], 443);
    assert!(
        client.dial_tcp(own).await.is_err(),
        "the node's own address is another place"
    );
    serving.abort();
}
