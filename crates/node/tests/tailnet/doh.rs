//! Names that the tailnet has resolved over HTTPS.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use serde_json::json;
use tailwharf_node::dns::Transport;
use tailwharf_node::{Host, HostConfig, MemoryStore, TailnetNode};
use tokio::net::TcpListener;

use crate::common::{is_online, reached};
use crate::dns::{answer_with, answered, query};
use crate::scripted::{Call, Reply, Scripted, accepted, first_map};

const A: u16 = 1;
const FOUND: [u8; 4] = [192, 0, 2, 7];

/// Answers each query that is posted as RFC 8484 says, and no other request. Gives the address and the certificate to trust.
async fn resolver(name: &str) -> (SocketAddr, String) {
    let certified = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(tailwharf_tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = tailwharf_tls::accept(stream, config.clone()).await else {
                continue;
            };
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service_fn(answer)),
            );
        }
    });
    (addr, certified.cert.pem())
}

async fn answer(request: Request<hyper::body::Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let is_query = request.method() == Method::POST
        && request.uri().path() == "/dns-query"
        && request
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind| kind == "application/dns-message");
    let body = request.into_body().collect().await.map(|body| body.to_bytes());
    let mut response = Response::new(Full::default());
    match body {
        Ok(query) if is_query => *response.body_mut() = answer_with(&query, FOUND).into(),
        _ => *response.status_mut() = StatusCode::BAD_REQUEST,
    }
    Ok(response)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resolver_over_https_is_asked_at_the_addresses_that_the_tailnet_knows() {
    let (addr, pem) = resolver("doh.example").await;
    let url = format!("https://doh.example:{}/dns-query", addr.port());
    let control = Scripted::start(move |call: Call| {
        let url = url.clone();
        let reply = if call.is_register() {
            Some(accepted())
        } else {
            call.is_stream().then(|| {
                let mut map = first_map(&call.body);
                map["DNSConfig"] =
                    json!({"Resolvers": [{"Addr": url, "BootstrapResolution": ["127.0.0.1"]}]});
                Reply::Maps(vec![map])
            })
        };
        async { reply }
    })
    .await;
    for (extra_ca_pem, expected) in [
        (Some(pem.into_bytes()), (0, Ipv4Addr::from(FOUND))),
        (None, (2, Ipv4Addr::new(0, 1, 0, 1))),
    ] {
        let host = Host::new(&HostConfig {
            extra_ca_pem,
            ..HostConfig::default()
        })
        .unwrap();
        let started = host
            .start(control.config("node"), Arc::new(MemoryStore::default()))
            .await;
        let node = started.unwrap();
        reached(&node, "online", is_online).await;
        let answer = node
            .resolver()
            .answer(&query(9, "www.example.com", A), Transport::Stream)
            .await
            .unwrap();
        assert_eq!(answered(&answer), expected, "whom to trust decides");
        node.shutdown().await;
    }
}
