//! Both sides against each other over a pipe of any width, and against rustls's own buffered side.

use std::io::{Read as _, Write as _};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{RootCertStore, ServerConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;

struct Configs {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

fn configs() -> Configs {
    let made = rcgen::generate_simple_self_signed(vec!["relay.example".to_owned()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::from_pem_slice(made.signing_key.serialize_pem().as_bytes()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(certificate.to_vec())).unwrap();
    let client = ClientConfig::builder_with_provider(crate::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut server = ServerConfig::builder_with_provider(crate::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    // A server that has more to say waits for room; on a narrow pipe nobody would make any.
    server.send_tls13_tickets = 0;
    Configs {
        client: client.into(),
        server: server.into(),
    }
}

fn name(text: &'static str) -> ServerName<'static> {
    text.try_into().unwrap()
}

async fn pair(width: usize) -> (ClientTls<DuplexStream>, ServerTls<DuplexStream>) {
    let (near, far) = duplex(width);
    let configs = configs();
    let (client, server) = tokio::join!(
        connect(near, configs.client, name("relay.example")),
        accept(far, configs.server)
    );
    (client.unwrap(), server.unwrap())
}

/// Bytes that differ from place to place.
fn text(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 / 7) as u8).collect()
}

#[tokio::test]
async fn text_goes_both_ways_whatever_the_width_of_the_pipe() {
    for width in [100, 5000, 1 << 20] {
        let (mut client, mut server) = pair(width).await;
        for len in [1, 16 * 1024 - 1, 16 * 1024 + 1, 150_000] {
            let sent = text(len);
            let mut received = vec![0; len];
            let (wrote, read) = tokio::join!(
                async {
                    client.write_all(&sent).await?;
                    client.flush().await
                },
                server.read_exact(&mut received)
            );
            wrote.unwrap();
            read.unwrap();
            assert!(received == sent, "{width} {len}");
            let (wrote, read) = tokio::join!(
                async {
                    server.write_all(&sent).await?;
                    server.flush().await
                },
                client.read_exact(&mut received)
            );
            wrote.unwrap();
            read.unwrap();
            assert!(received == sent, "{width} {len}");
        }
        assert!(client.partial.is_empty() && client.plain.is_empty() && client.unsent.capacity() == 0);
    }
}

#[tokio::test]
async fn a_reader_with_little_room_loses_nothing() {
    let (mut client, mut server) = pair(1 << 20).await;
    let sent = text(100_000);
    client.write_all(&sent).await.unwrap();
    client.shutdown().await.unwrap();
    let mut received = Vec::new();
    let mut piece = [0; 777];
    loop {
        let len = server.read(&mut piece).await.unwrap();
        received.extend_from_slice(&piece[..len]);
        if len == 0 {
            break;
        }
    }
    assert!(received == sent);
}

#[tokio::test]
async fn an_end_without_a_word_is_an_error_and_one_with_a_word_is_not() {
    let (mut client, mut server) = pair(1 << 20).await;
    client.shutdown().await.unwrap();
    assert_eq!(server.read(&mut [0; 10]).await.unwrap(), 0);
    // Half of the connection stays.
    server.write_all(b"still here").await.unwrap();
    server.flush().await.unwrap();
    let mut answer = [0; 10];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"still here");

    let (client, mut server) = pair(1 << 20).await;
    drop(client);
    let error = server.read(&mut [0; 10]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn a_wrong_name_is_refused_and_the_server_hears_why() {
    let (near, far) = duplex(1 << 20);
    let configs = configs();
    let (client, server) = tokio::join!(
        connect(near, configs.client, name("other.example")),
        accept(far, configs.server)
    );
    assert!(client.unwrap_err().to_string().contains("certificate"));
    // The handshake may be over for the server before the client has looked.
    if let Ok(mut server) = server {
        let error = server.read(&mut [0; 10]).await.unwrap_err();
        assert!(error.to_string().contains("alert"), "{error}");
    }
}

#[tokio::test]
async fn what_is_no_tls_is_refused() {
    let (mut near, far) = duplex(1 << 20);
    near.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let error = accept(far, configs().server).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}

#[tokio::test]
async fn after_a_broken_record_nothing_works_and_nothing_panics() {
    let (mut client, mut server) = pair(1 << 20).await;
    client.inner.write_all(&[23, 3, 3, 0, 30]).await.unwrap();
    client.inner.write_all(&[7; 30]).await.unwrap();
    let error = server.read(&mut [0; 10]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(server.read(&mut [0; 10]).await.is_err());
    assert!(server.write(b"more").await.is_err());
    server.shutdown().await.unwrap();
    let told = client.read(&mut [0; 10]).await.unwrap_err();
    assert!(told.to_string().contains("alert"), "{told}");
}

#[tokio::test]
async fn what_came_before_a_broken_record_is_read_and_then_the_failure_told() {
    for room in [2, 100] {
        let (mut client, mut server) = pair(1 << 20).await;
        client.write_all(b"whole").await.unwrap();
        client.flush().await.unwrap();
        client.inner.write_all(&[23, 3, 3, 0, 30]).await.unwrap();
        client.inner.write_all(&[7; 30]).await.unwrap();
        let mut received = Vec::with_capacity(room);
        let error = server.read_to_end(&mut received).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert_eq!(received, b"whole");
    }
}

#[tokio::test]
async fn a_change_of_keys_goes_unnoticed() {
    let (near, mut far) = duplex(1 << 20);
    let configs = configs();
    let mut server = ServerConnection::new(configs.server).unwrap();
    let shaking = tokio::spawn(connect(near, configs.client, name("relay.example")));
    let mut wire = [0; 4096];
    while server.is_handshaking() {
        let len = far.read(&mut wire).await.unwrap();
        let mut rest = &wire[..len];
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
        }
        server.process_new_packets().unwrap();
        let mut out = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut out).unwrap();
        }
        far.write_all(&out).await.unwrap();
    }
    let mut client = shaking.await.unwrap().unwrap();
    server.writer().write_all(b"before ").unwrap();
    server.refresh_traffic_keys().unwrap();
    server.writer().write_all(b"after").unwrap();
    let mut out = Vec::new();
    while server.wants_write() {
        server.write_tls(&mut out).unwrap();
    }
    far.write_all(&out).await.unwrap();
    let mut received = [0; 12];
    client.read_exact(&mut received).await.unwrap();
    assert_eq!(&received, b"before after");

    // The client has changed its keys too, and what it sends afterwards can be read.
    client.write_all(b"hello").await.unwrap();
    client.flush().await.unwrap();
    let mut heard = [0; 5];
    let mut len = 0;
    while len < heard.len() {
        let got = far.read(&mut wire).await.unwrap();
        let mut rest = &wire[..got];
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
        }
        server.process_new_packets().unwrap();
        len += server.reader().read(&mut heard[len..]).unwrap_or_default();
    }
    assert_eq!(&heard, b"hello");
}

/// Tickets in many small records: while one is not complete, the client must be able to write.
#[tokio::test]
async fn the_parts_of_a_message_may_come_between_writes() {
    let (near, mut far) = duplex(1 << 20);
    let Configs { client, server } = configs();
    let mut server = Arc::unwrap_or_clone(server);
    server.max_fragment_size = Some(64);
    server.send_tls13_tickets = 2;
    let mut server = ServerConnection::new(server.into()).unwrap();
    let shaking = tokio::spawn(connect(near, client, name("relay.example")));
    let mut wire = [0; 4096];
    let mut held = Vec::new();
    while server.is_handshaking() {
        let len = far.read(&mut wire).await.unwrap();
        server.read_tls(&mut &wire[..len]).unwrap();
        server.process_new_packets().unwrap();
        held.clear();
        while server.wants_write() {
            server.write_tls(&mut held).unwrap();
        }
        if server.is_handshaking() {
            far.write_all(&held).await.unwrap();
        }
    }
    assert!(held.len() > 200, "tickets");
    let mut client = shaking.await.unwrap().unwrap();
    server.writer().write_all(b"done").unwrap();
    while server.wants_write() {
        server.write_tls(&mut held).unwrap();
    }
    let mut received = Vec::new();
    for piece in held.chunks(50) {
        far.write_all(piece).await.unwrap();
        let mut room = [0; 100];
        let looked = poll_fn(|cx| {
            let mut buf = ReadBuf::new(&mut room);
            Poll::Ready(match Pin::new(&mut client).poll_read(cx, &mut buf) {
                Poll::Ready(done) => done.map(|()| buf.filled().to_vec()),
                Poll::Pending => Ok(Vec::new()),
            })
        });
        received.extend(looked.await.unwrap());
        client.write_all(b"x").await.unwrap();
        client.flush().await.unwrap();
    }
    assert_eq!(received, b"done");
    client.shutdown().await.unwrap();
}
