//! DNS as a node: names of the tailnet, and the resolvers that the tailnet names.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde_json::{Value, json};
use tailwharf_node::TailnetNode;
use tailwharf_node::dns::Transport;
use tailwharf_node::run::{Settings, run};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;

use crate::command::settings;
use crate::common::{Tailnet, eventually, is_online, reached};
use crate::scripted::{Call, Reply, Scripted, accepted, first_map};

const A: u16 = 1;

/// A query as a client sends it.
pub(crate) fn query(id: u16, name: &str, kind: u16) -> Vec<u8> {
    let mut message = [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend_from_slice(label.as_bytes());
    }
    message.push(0);
    message.extend_from_slice(&kind.to_be_bytes());
    message.extend_from_slice(&[0, 1]);
    message
}

/// The code of an answer, and the address at its end.
pub(crate) fn answered(answer: &[u8]) -> (u8, Ipv4Addr) {
    let address: [u8; 4] = *answer.last_chunk().unwrap();
    (answer[3] & 0x0f, address.into())
}

/// An answer with one address.
pub(crate) fn answer_with(query: &[u8], address: [u8; 4]) -> Vec<u8> {
    let mut answer = query.to_vec();
    answer[2] |= 0x80;
    answer[7] = 1;
    answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    answer.extend_from_slice(&address);
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_answers_over_udp_and_tcp() {
    let tailnet = Tailnet::start().await;
    let server = tailnet.join("server", "tag:server").await;
    let listen = crate::common::free_port();
    let settings = Settings {
        dns_listen: Some(listen),
        ..settings(&tailnet, "laptop", tailnet.auth_key("tag:client").await)
    };
    let running = tokio::spawn(run(settings, CancellationToken::new()));
    let expected = crate::common::v4(&server.status().borrow());
    let message = query(7, "server.tail1234.ts.net", A);

    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(listen).await.unwrap();
    eventually("the name is known over UDP", async || {
        socket.send(&message).await.map_err(|error| error.to_string())?;
        let mut answer = vec![0; 1500];
        let received = tokio::time::timeout(Duration::from_secs(2), socket.recv(&mut answer)).await;
        let length = received
            .map_err(|_| "lost".to_owned())?
            .map_err(|error| error.to_string())?;
        match answered(&answer[..length]) {
            (0, address) if address == expected => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;

    let mut stream = TcpStream::connect(listen).await.unwrap();
    for _ in 0..2 {
        stream
            .write_u16(u16::try_from(message.len()).unwrap())
            .await
            .unwrap();
        stream.write_all(&message).await.unwrap();
        let mut answer = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(answered(&answer), (0, expected));
        assert_eq!(answer[..2], message[..2]);
    }
    running.abort();
}

/// A resolver that answers over UDP as `answer` says, and over TCP with 192.0.2.2.
async fn resolver(answer: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + 'static) -> SocketAddr {
    let addr = crate::common::free_port();
    let udp = UdpSocket::bind(addr).await.unwrap();
    let tcp = TcpListener::bind(addr).await.unwrap();
    tokio::spawn(async move {
        let mut query = vec![0; 1500];
        while let Ok((length, from)) = udp.recv_from(&mut query).await {
            if let Some(answer) = answer(&query[..length]) {
                udp.send_to(&answer, from).await.unwrap();
            }
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let mut query = vec![0; stream.read_u16().await.unwrap().into()];
            stream.read_exact(&mut query).await.unwrap();
            let answer = answer_with(&query, [192, 0, 2, 2]);
            stream
                .write_u16(u16::try_from(answer.len()).unwrap())
                .await
                .unwrap();
            stream.write_all(&answer).await.unwrap();
        }
    });
    addr
}

/// A node whose tailnet has this DNS configuration.
async fn node_with(dns: Value) -> tailwharf_node::Node {
    let control = Scripted::start(move |call: Call| {
        let reply = if call.is_register() {
            Some(accepted())
        } else {
            call.is_stream().then(|| {
                let mut map = first_map(&call.body);
                map["DNSConfig"] = dns.clone();
                Reply::Maps(vec![map])
            })
        };
        async { reply }
    })
    .await;
    let node = control.node("node").await;
    reached(&node, "online", is_online).await;
    node
}

async fn ask(node: &tailwharf_node::Node, name: &str) -> (u8, Ipv4Addr) {
    let message = query(99, name, A);
    let answer = node.resolver().answer(&message, Transport::Udp).await.unwrap();
    assert_eq!(answer[..2], message[..2]);
    answered(&answer)
}

#[tokio::test]
async fn other_names_are_asked_for_where_the_tailnet_says() {
    let good = resolver(|query| Some(answer_with(query, [192, 0, 2, 1]))).await;
    let long = resolver(|query| {
        let mut answer = query.to_vec();
        answer[2] |= 0x82;
        Some(answer)
    })
    .await;
    let broken = resolver(|query| {
        let mut answer = query.to_vec();
        (answer[2], answer[3]) = (answer[2] | 0x80, 2);
        Some(answer)
    })
    .await;
    let liar = resolver(|query| {
        let mut answer = answer_with(query, [203, 0, 113, 9]);
        answer[0] ^= 1;
        Some(answer)
    })
    .await;
    let of = |addrs: &[SocketAddr]| -> Value { addrs.iter().map(|addr| json!({"Addr": addr})).collect() };
    let node = node_with(json!({
        "Proxied": true,
        "Domains": ["tail1.ts.net"],
        "Resolvers": of(&[good]),
        "Routes": {
            "tail1.ts.net": [],
            "long.example": of(&[long]),
            "broken.example": of(&[broken]),
            "second.example": of(&[broken, good]),
            "liar.example": of(&[liar, good]),
        },
    }))
    .await;
    let first = Ipv4Addr::new(192, 0, 2, 1);
    assert_eq!(ask(&node, "www.example").await, (0, first));
    assert_eq!(
        ask(&node, "a.long.example").await,
        (0, Ipv4Addr::new(192, 0, 2, 2)),
        "a cut answer is asked for over TCP"
    );
    assert_eq!(ask(&node, "a.broken.example").await.0, 2, "its own code");
    assert_eq!(ask(&node, "a.second.example").await, (0, first));
    assert_eq!(ask(&node, "a.liar.example").await, (0, first));
    assert_eq!(
        ask(&node, "node.tail1.ts.net").await,
        (0, Ipv4Addr::new(100, 64, 0, 1))
    );
    assert_eq!(ask(&node, "other.tail1.ts.net").await.0, 3);
}

#[tokio::test]
async fn silence_of_all_resolvers_ends_in_a_failure() {
    let silent = resolver(|_| None).await;
    let node = node_with(json!({"Resolvers": [{"Addr": silent}]})).await;
    let alone = node_with(json!({})).await;
    tokio::time::pause();
    assert_eq!(ask(&node, "www.example").await.0, 2);
    alone.resolver().set_system_resolvers(Vec::new());
    assert_eq!(ask(&alone, "www.example").await.0, 2, "nobody to ask");
}
