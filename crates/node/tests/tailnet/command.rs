//! `tailwharf node`: proxies, forwards and served ports.

use std::net::{Ipv4Addr, SocketAddr};

use tailwharf_node::TailnetNode;
use tailwharf_node::run::{LocalSocket, Settings, run};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::common::{DEADLINE, Tailnet, eventually, free_port};
use crate::nodes::serve_echo;

type Attempt = Result<(), Box<dyn std::error::Error + Send + Sync>>;

pub(crate) fn settings(tailnet: &Tailnet, hostname: &str, key: tailwharf_node::AuthKey) -> Settings {
    Settings {
        node: tailnet.node_config(hostname, Some(key)),
        state_file: None,
        ca_file: None,
        http_proxies: tailwharf_node::HttpProxies::default(),
        socks5_listen: None,
        http_proxy_listen: None,
        dns_listen: None,
        forwards: Vec::new(),
        serves: Vec::new(),
        direct: false,
        tun: None,
        system: tailwharf_node::tun::TunSettings::default(),
        offloads: tailwharf_node::OffloadSwitches::default(),
        socket: LocalSocket {
            path: std::env::temp_dir().join(format!("tailwharf-{}-{hostname}.sock", std::process::id())),
            required: true,
        },
        logout_on_exit: false,
    }
}

/// Sends `ping` and expects it back, then closes.
async fn echoes(mut stream: TcpStream) -> Attempt {
    stream.write_all(b"ping").await?;
    let mut answer = [0; 4];
    timeout(DEADLINE, stream.read_exact(&mut answer)).await??;
    if &answer == b"ping" {
        Ok(())
    } else {
        Err("another answer".into())
    }
}

async fn through_socks(proxy: SocketAddr, host: &str) -> Attempt {
    let mut stream = TcpStream::connect(proxy).await?;
    stream.write_all(&[5, 1, 0]).await?;
    let mut method = [0; 2];
    stream.read_exact(&mut method).await?;
    let request = [
        &[5, 1, 0, 3, host.len() as u8],
        host.as_bytes(),
        &80_u16.to_be_bytes(),
    ]
    .concat();
    stream.write_all(&request).await?;
    let mut reply = [0; 10];
    stream.read_exact(&mut reply).await?;
    match reply[1] {
        0 => echoes(stream).await,
        code => Err(format!("SOCKS reply {code}").into()),
    }
}

async fn through_http(proxy: SocketAddr, request: &str) -> Result<(String, TcpStream), std::io::Error> {
    let mut stream = TcpStream::connect(proxy).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    Ok((String::from_utf8_lossy(&head).into_owned(), stream))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxies_and_forwards_lead_into_the_tailnet() {
    let tailnet = Tailnet::start().await;
    let server = tailnet.join("server", "tag:server").await;
    let _serving = serve_echo(&server);
    let (socks, http, forward) = (free_port(), free_port(), free_port());
    let settings = Settings {
        socks5_listen: Some(socks),
        http_proxy_listen: Some(http),
        forwards: vec![format!("{forward}=server:80").parse().unwrap()],
        ..settings(&tailnet, "laptop", tailnet.auth_key("tag:client").await)
    };
    let stop = CancellationToken::new();
    let running = tokio::spawn(run(settings, stop.clone()));

    eventually("a name through SOCKS5", async || {
        through_socks(socks, "server").await
    })
    .await;
    through_socks(socks, &server.status().borrow().addresses[1].to_string())
        .await
        .unwrap();
    assert!(
        through_socks(socks, "nobody")
            .await
            .unwrap_err()
            .to_string()
            .contains("reply 4")
    );

    let (head, stream) = through_http(http, "CONNECT server:80 HTTP/1.1\r\nHost: server:80\r\n\r\n")
        .await
        .unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    echoes(stream).await.unwrap();
    let (head, _) = through_http(http, "CONNECT nobody:80 HTTP/1.1\r\nHost: nobody:80\r\n\r\n")
        .await
        .unwrap();
    assert!(head.starts_with("HTTP/1.1 502"), "{head}");
    let (head, _) = through_http(http, "GET /index.html HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    assert!(head.starts_with("HTTP/1.1 400"), "{head}");

    echoes(TcpStream::connect(forward).await.unwrap()).await.unwrap();

    stop.cancel();
    timeout(DEADLINE, running).await.unwrap().unwrap().unwrap();
    assert!(TcpStream::connect(socks).await.is_err(), "the proxy has ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_request_goes_through_the_http_proxy() {
    let tailnet = Tailnet::start().await;
    let server = tailnet.join("server", "tag:server").await;
    let listener = server.listen_tcp(80).unwrap();
    let served = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
            .await
            .unwrap();
        String::from_utf8(head).unwrap()
    });
    let http = free_port();
    let client = settings(&tailnet, "laptop", tailnet.auth_key("tag:client").await);
    let running = tokio::spawn(run(
        Settings {
            http_proxy_listen: Some(http),
            ..client
        },
        CancellationToken::new(),
    ));

    let mut stream = eventually("the proxy reaches the server", async || {
        let request =
            "GET http://server/page?q=1 HTTP/1.1\r\nHost: server\r\nProxy-Connection: close\r\n\r\n";
        let (head, stream) = through_http(http, request)
            .await
            .map_err(|error| error.to_string())?;
        if head.starts_with("HTTP/1.1 200") {
            Ok(stream)
        } else {
            Err(head)
        }
    })
    .await;
    let mut body = [0; 5];
    timeout(DEADLINE, stream.read_exact(&mut body))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&body, b"hello");
    let head = served.await.unwrap();
    assert!(head.starts_with("GET /page?q=1 HTTP/1.1\r\n"), "{head}");
    assert!(!head.to_ascii_lowercase().contains("proxy-connection"), "{head}");
    running.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn served_ports_lead_out_of_the_tailnet_and_a_logout_ends_the_key() {
    let tailnet = Tailnet::start().await;
    let client = tailnet.join("client", "tag:client").await;
    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let serves = [
        (80, "tcp", tcp.local_addr().unwrap()),
        (5353, "udp", udp.local_addr().unwrap()),
    ];
    let settings = Settings {
        serves: serves
            .map(|(port, kind, to)| format!("{port}/{kind}={to}").parse().unwrap())
            .to_vec(),
        direct: false,
        tun: None,
        system: tailwharf_node::tun::TunSettings::default(),
        offloads: tailwharf_node::OffloadSwitches::default(),
        logout_on_exit: true,
        ..settings(&tailnet, "gateway", tailnet.auth_key("tag:server").await)
    };
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    tokio::spawn(async move {
        let mut datagram = [0; 64];
        while let Ok((length, from)) = udp.recv_from(&mut datagram).await {
            let _ = udp.send_to(&datagram[..length], from).await;
        }
    });
    let stop = CancellationToken::new();
    let running = tokio::spawn(run(settings, stop.clone()));

    let mut stream = eventually("the gateway is reached", async || {
        client.dial_name("gateway", 80).await
    })
    .await;
    stream.write_all(b"ping").await.unwrap();
    let mut answer = [0; 4];
    timeout(DEADLINE, stream.read_exact(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&answer, b"ping");

    let socket = client.bind_udp(0).unwrap();
    let to = SocketAddr::new(client.resolve("gateway")[0], 5353);
    eventually("a datagram comes back", async || {
        socket.send_to(b"pong", to).map_err(|error| error.to_string())?;
        let received = timeout(std::time::Duration::from_millis(500), socket.recv()).await;
        let datagram = received
            .map_err(|_| "lost".to_owned())?
            .map_err(|error| error.to_string())?;
        if datagram.payload == b"pong" && datagram.from == to {
            Ok(())
        } else {
            Err("another one".to_owned())
        }
    })
    .await;

    stop.cancel();
    timeout(DEADLINE, running).await.unwrap().unwrap().unwrap();
    let world = tailnet.coordinator().operations().world();
    let gateway = world.nodes().find(|node| node.name == "gateway").unwrap();
    assert!(
        gateway.expires.is_some(),
        "its key has ended, although keys of tagged nodes do not"
    );
}
