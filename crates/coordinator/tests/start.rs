//! What a coordinator does with the files and addresses that it is given.

#![expect(clippy::unwrap_used, reason = "helpers of the tests, which fail by panic")]

use std::{fs, net::SocketAddr, path::Path, sync::Arc};

use rustls_pki_types::{CertificateDer, ServerName};
use tailwharf_coordinator::{Config, Coordinator, Handle, StartError};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsConnector, rustls};
use tokio_util::sync::CancellationToken;

fn config(dir: &Path, listen: SocketAddr, top: &str, relay: &str) -> Config {
    let text = format!(
        "server_url = \"http://127.0.0.1:1\"\nlisten = \"{listen}\"\ndata_dir = {:?}\nmagic_dns_suffix = \"t.example.net\"\n{top}\n[relay]\n{relay}\n",
        dir.join("data"),
    );
    Config::parse(&text, dir).unwrap()
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

async fn start(config: Config) -> Result<Handle, StartError> {
    Coordinator::start(config, CancellationToken::new()).await
}

const NO_RELAY: &str = "enabled = false";

#[tokio::test]
async fn the_listener_speaks_tls_with_the_files_given() {
    let dir = tempfile::tempdir().unwrap();
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    fs::write(&cert, certified.cert.pem()).unwrap();
    fs::write(&key, certified.signing_key.serialize_pem()).unwrap();
    let tls = format!("[tls]\ncert_file = {cert:?}\nkey_file = {key:?}");
    let handle = start(config(dir.path(), loopback(), &tls, NO_RELAY))
        .await
        .unwrap();

    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from(certified.cert.der().to_vec()))
        .unwrap();
    let client =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
    let socket = TcpStream::connect(handle.local_addr()).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = TlsConnector::from(Arc::new(client))
        .connect(name, socket)
        .await
        .unwrap();
    stream
        .write_all(b"GET /key?v=131 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    // An end without a TLS goodbye is an end.
    let _ = stream.read_to_string(&mut answer).await;
    assert!(answer.contains(&handle.server_key().to_string()), "{answer}");
    handle.stop().await;
}

#[tokio::test]
async fn files_of_no_use_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing.pem");
    let tls = format!("[tls]\ncert_file = {missing:?}\nkey_file = {missing:?}");
    let error = start(config(dir.path(), loopback(), &tls, NO_RELAY))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("missing.pem"), "{error}");

    let policy = dir.path().join("policy.hujson");
    fs::write(
        &policy,
        "{\n  \"acls\": [{\"action\": \"accept\", \"src\": [\"group:x\"], \"dst\": [\"*:*\"]}]\n}",
    )
    .unwrap();
    let top = format!("policy_file = {policy:?}");
    let error = start(config(dir.path(), loopback(), &top, NO_RELAY))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("line 2"), "{error}");
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind(loopback()).await.unwrap();
    let addr = taken.local_addr().unwrap();
    let error = start(config(dir.path(), addr, "", NO_RELAY)).await.unwrap_err();
    assert!(
        matches!(error, StartError::Listen { .. }) && error.to_string().contains(&addr.to_string()),
        "{error}"
    );
}

#[tokio::test]
async fn the_first_policy_comes_from_the_file_and_later_ones_stay() {
    let dir = tempfile::tempdir().unwrap();
    let policy = dir.path().join("policy.hujson");
    let top = format!("policy_file = {policy:?}");
    fs::write(&policy, "{\"acls\": []}").unwrap();
    let handle = start(config(dir.path(), loopback(), &top, NO_RELAY))
        .await
        .unwrap();
    assert_eq!(handle.operations().policy().0.text, "{\"acls\": []}");
    let actor = tailwharf_coordinator::model::Actor::Administrator;
    handle
        .operations()
        .set_policy(actor, "{}".to_owned(), None)
        .await
        .unwrap();
    handle.stop().await;
    let handle = start(config(dir.path(), loopback(), &top, NO_RELAY))
        .await
        .unwrap();
    assert_eq!(
        handle.operations().policy().0.text,
        "{}",
        "the store wins over the file"
    );
    handle.stop().await;
}

async fn get(addr: SocketAddr, path: &str) -> String {
    let mut socket = TcpStream::connect(addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn supervisors_are_answered_at_an_address_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path(), loopback(), "", NO_RELAY);
    config.metrics.listen = Some(loopback());
    let handle = start(config).await.unwrap();
    let addr = handle.metrics_addr().unwrap();
    let metrics = get(addr, "/metrics").await;
    assert!(metrics.starts_with("HTTP/1.1 200 "), "{metrics}");
    assert!(metrics.contains("application/openmetrics-text"), "{metrics}");
    assert!(
        metrics.contains("tailwharf_coordinator_nodes{state=\"online\"} 0\n"),
        "{metrics}"
    );
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
    for addr in [addr, handle.local_addr()] {
        let health = get(addr, "/health").await;
        assert!(
            health.starts_with("HTTP/1.1 200 ") && health.ends_with("{\"status\":\"pass\"}"),
            "{health}"
        );
    }
    let hidden = get(handle.local_addr(), "/metrics").await;
    assert!(hidden.starts_with("HTTP/1.1 404 "), "{hidden}");
    handle.stop().await;
}

fn deployed(name: &str) -> String {
    fs::read_to_string(format!("{}/../../deploy/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

#[test]
fn the_configuration_of_the_manifest_is_one() {
    let manifest = deployed("coordinator.yaml");
    let (_, text) = manifest.split_once("coordinator.toml: |\n").unwrap();
    let text: Vec<&str> = text
        .lines()
        .take_while(|line| line.is_empty() || line.starts_with("    "))
        .map(str::trim)
        .collect();
    Config::parse(&text.join("\n"), Path::new("coordinator.yaml")).unwrap();
}

#[test]
fn systemd_understands_the_unit() {
    let dir = tempfile::tempdir().unwrap();
    let unit = dir.path().join("tailwharf-coordinator.service");
    // Only the program is another one: systemd looks whether it is there.
    let text = deployed("tailwharf-coordinator.service").replace("/usr/local/bin/tailwharf", "/bin/true");
    fs::write(&unit, text).unwrap();
    let verified = std::process::Command::new("systemd-analyze")
        .arg("verify")
        .arg(&unit)
        .output();
    let Ok(verified) = verified else {
        // Not a machine with systemd.
        return;
    };
    let said = String::from_utf8_lossy(&verified.stderr);
    let about_ours = said.lines().filter(|line| line.contains("tailwharf-coordinator"));
    assert_eq!(about_ours.collect::<Vec<_>>(), Vec::<&str>::new());
}

#[tokio::test]
async fn the_embedded_relay_stands_in_the_derp_map() {
    let dir = tempfile::tempdir().unwrap();
    let relay =
        "listen = \"127.0.0.1:0\"\nstun_listen = \"127.0.0.1:0\"\nregion_id = 901\nregion_code = \"lab\"";
    let handle = start(config(dir.path(), loopback(), "", relay)).await.unwrap();
    let world = handle.operations().world();
    let region = world.derp_map().regions.values().next().unwrap();
    assert_eq!((region.region_id.0, region.region_code.as_str()), (901, "lab"));
    assert_eq!(region.nodes, [handle.relay().unwrap().derp_node()]);
    assert!(
        region.nodes[0].cert_name.starts_with("sha256-raw:"),
        "{:?}",
        region.nodes
    );
    handle.stop().await;
}
