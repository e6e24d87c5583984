//! A node that routes networks without a device, and others that use it. The network is the loopback interface of this machine.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use serde_json::json;
use tailwharf_node::{DialError, Node, NodeStatus, Prefs, TailnetNode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::time::timeout;

use crate::common::{DEADLINE, Tailnet, eventually, is_online, reached};
use crate::nodes::echo;
use crate::quirks::streamed;

/// An address of the loopback interface.
const INSIDE: Ipv4Addr = Ipv4Addr::new(127, 7, 0, 1);
/// The same in site 3.
const SITE: &str = "fd7a:115c:a1e0:b1a:0:3:7f07:1";

fn prefs(hostname: &str) -> Prefs {
    Prefs {
        hostname: hostname.into(),
        ..Prefs::default()
    }
}

/// A router for the network and the site, and a client that uses it.
async fn start() -> (Tailnet, Node, Node) {
    let tailnet = Tailnet::start().await;
    let router = tailnet.join("router", "tag:router").await;
    let client = tailnet.join("client", "tag:client").await;
    let routes: Vec<IpNet> = ["127.7.0.0/16", "fd7a:115c:a1e0:b1a:0:3:7f07:0/112"]
        .map(|net| net.parse().unwrap())
        .into();
    router.set_prefs(Prefs {
        routes: routes.clone(),
        ..prefs("router")
    });
    reached(&router, "the routes are approved", |status: &NodeStatus| {
        status.routes == routes
    })
    .await;
    client.set_prefs(Prefs {
        accept_routes: true,
        ..prefs("client")
    });
    (tailnet, router, client)
}

/// Answers each connection with what it got.
async fn serve(address: Ipv4Addr) -> SocketAddr {
    let listener = TcpListener::bind((address, 0)).await.unwrap();
    let local = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    local
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_lead_through_a_router_to_its_networks() {
    let (_tailnet, router, client) = start().await;
    let inside = serve(INSIDE).await;
    eventually("the client has the route", async || {
        echo(&client, inside, b"first").await
    })
    .await;
    let large: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    echo(&client, inside, &large).await.unwrap();
    let site = SocketAddr::new(SITE.parse().unwrap(), inside.port());
    echo(&client, site, &large).await.unwrap();

    let closed = SocketAddr::new(INSIDE.into(), 1);
    assert_eq!(
        client.dial_tcp(closed).await.unwrap_err(),
        DialError::Refused(closed)
    );
    let elsewhere = SocketAddr::new(Ipv4Addr::new(127, 8, 0, 1).into(), inside.port());
    assert!(matches!(
        client.dial_tcp(elsewhere).await.unwrap_err(),
        DialError::UnknownAddress(_)
    ));
    let counts = router.transit();
    assert_eq!((counts.connections, counts.refused), (3, 1));
    assert!(counts.bytes_to_networks >= 2_000_000 && counts.bytes_from_networks >= 2_000_000);
    eventually("nothing is left open", async || match router.transit().open {
        0 => Ok(()),
        open => Err(open),
    })
    .await;

    client.set_prefs(prefs("client"));
    eventually("the client uses no routes any more", async || {
        match client.dial_tcp(inside).await {
            Err(DialError::UnknownAddress(_)) => Ok(()),
            other => Err(other.map(drop)),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_ends_when_the_router_withdraws_the_network() {
    let (_tailnet, router, client) = start().await;
    let inside = serve(INSIDE).await;
    let mut stream = eventually("the client connects", async || client.dial_tcp(inside).await).await;
    stream.write_all(b"x").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
    router.set_prefs(prefs("router"));
    let ended = timeout(DEADLINE, stream.read_u8()).await.unwrap();
    assert!(ended.is_err(), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_lead_through_a_router_and_back() {
    let (_tailnet, router, client) = start().await;
    let server = UdpSocket::bind((INSIDE, 0)).await.unwrap();
    let inside = server.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = vec![0; 2048];
        while let Ok((length, from)) = server.recv_from(&mut buffer).await {
            // Longer than a packet of the tailnet.
            let answer = buffer[..length].repeat(3);
            let _ = server.send_to(&answer, from).await;
        }
    });
    let socket = client.bind_udp(0).unwrap();
    let site = SocketAddr::new(SITE.parse().unwrap(), inside.port());
    for to in [inside, site] {
        let answer = eventually("an answer comes back", async || {
            socket
                .send_to(&[7; 1000], to)
                .map_err(|error| error.to_string())?;
            match timeout(Duration::from_secs(1), socket.recv()).await {
                Ok(Ok(datagram)) if datagram.from == to => Ok(datagram),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        assert_eq!(answer.payload.len(), 3000);
    }
    assert_eq!(router.transit().flows, 2);
}

#[tokio::test]
async fn an_app_connector_announces_itself_and_its_fixed_routes() {
    let (control, node, _messages) = streamed(|_, map| {
        map["Node"]["CapMap"] = json!({"tailscale.com/app-connectors": [
            {"name": "docs", "connectors": ["*"], "domains": ["docs.example.com"], "routes": ["192.0.2.0/24"]},
        ]});
    })
    .await;
    reached(&node, "online", is_online).await;
    node.set_prefs(Prefs {
        app_connector: true,
        ..prefs("node")
    });
    eventually("it is announced", async || {
        let calls = control.calls();
        let told = calls.iter().rev().find(|call| call.path == "/machine/map");
        let info = told.map(|call| call.body["Hostinfo"].clone()).unwrap_or_default();
        let resolves = info["Services"].to_string().contains("peerapi-dns-proxy");
        if resolves && info["AppConnector"] == true && info["RoutableIPs"] == json!(["192.0.2.0/24"]) {
            Ok(())
        } else {
            Err(info)
        }
    })
    .await;
}
