//! The control protocol over loopback, as a client sees it.

mod check;
mod hostile;
mod life;

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http2::SendRequest};
use tailwharf_wire::{
    key::{DiscoPrivate, MachinePrivate, MachinePublic},
    map_frame::{self, Compression},
    noise::{Early, Frame, Initiator},
    tailcfg::{MapRequest, MapResponse, NodeId, RegisterResponse},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_util::sync::CancellationToken;

use super::{stream::NoiseStream, *};
use crate::{
    lab::{Switched, config, hostinfo_at, node_key, request},
    model::{Actor, Role},
    ops::{NewAuthKey, NewUser},
    secret::Secret,
    server::{Coordinator, Handle, start_on},
    store::SqliteStore,
};

const VERSION: u16 = 131;

async fn start(dir: &std::path::Path) -> Handle {
    Coordinator::start(config(dir), CancellationToken::new())
        .await
        .unwrap()
}

/// A coordinator whose store refuses writes while the switch is on.
async fn start_switched(dir: &std::path::Path) -> (Handle, Arc<AtomicBool>) {
    let config = config(dir);
    std::fs::create_dir(&config.data_dir).unwrap();
    let socket = crate::admin::bind(&config.admin_socket()).unwrap();
    let read_only = Arc::new(AtomicBool::new(false));
    let store = Switched {
        store: SqliteStore::open(&config.store_file()).unwrap(),
        read_only: read_only.clone(),
    };
    let handle = start_on(config, Box::new(store), socket, CancellationToken::new())
        .await
        .unwrap();
    (handle, read_only)
}

async fn auth_key(handle: &Handle, ephemeral: bool) -> Secret {
    let ops = handle.operations();
    let world = ops.world();
    let user = match world.users().next() {
        Some(user) => user.clone(),
        None => {
            let login = "alice@example.com".to_owned();
            ops.create_user(
                Actor::Administrator,
                NewUser {
                    login,
                    display_name: String::new(),
                    role: Role::Owner,
                },
            )
            .await
            .unwrap()
        }
    };
    let new = NewAuthKey {
        creator: Actor::User(user.id),
        owner: None,
        description: String::new(),
        reusable: true,
        ephemeral,
        preauthorized: true,
        tags: Default::default(),
        lifetime: None,
    };
    ops.create_auth_key(new).await.unwrap().secret
}

/// Sends the upgrade request and returns what follows the answer's headers.
async fn upgrade(addr: SocketAddr, handshake: &[u8]) -> (TcpStream, BytesMut, String) {
    let mut socket = TcpStream::connect(addr).await.unwrap();
    let request = format!(
        "POST /ts2021 HTTP/1.1\r\nHost: x\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\
         X-Tailscale-Handshake: {}\r\nContent-Length: 0\r\n\r\n",
        STANDARD.encode(handshake)
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut head = BytesMut::new();
    loop {
        if let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = head.split_off(end + 4);
            return (socket, rest, String::from_utf8(head.to_vec()).unwrap());
        }
        assert_ne!(socket.read_buf(&mut head).await.unwrap(), 0, "no answer");
    }
}

async fn frame(socket: &mut TcpStream, buffer: &mut BytesMut) -> Frame {
    loop {
        if let Some(frame) = Frame::decode(buffer).unwrap() {
            return frame;
        }
        assert_ne!(socket.read_buf(buffer).await.unwrap(), 0, "no frame");
    }
}

struct Client(SendRequest<Full<Bytes>>);

impl Client {
    async fn connect(handle: &Handle, machine: &MachinePrivate) -> Self {
        let server: MachinePublic = handle.server_key();
        let (initiator, initiation) = Initiator::new(machine, &server, VERSION, &mut OsRng).unwrap();
        let (mut socket, mut buffer, head) = upgrade(handle.local_addr(), &initiation).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let response = frame(&mut socket, &mut buffer).await;
        let session = initiator.finish(&response).unwrap();
        let mut stream = NoiseStream::new(io_with(buffer, socket), session);
        let mut early = BytesMut::new();
        loop {
            match Early::decode(&mut early).unwrap() {
                Early::Payload(payload) => {
                    break assert!(!payload.node_key_challenge.as_bytes().iter().all(|b| *b == 0));
                }
                Early::Absent => panic!("no early payload"),
                Early::Incomplete => {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).await.unwrap();
                    early.extend_from_slice(&byte);
                }
            }
        }
        let (send, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        tokio::spawn(connection);
        Self(send)
    }

    async fn send(&mut self, method: Method, path: &str, body: Vec<u8>) -> http::Response<Incoming> {
        let request = Request::builder()
            .method(method)
            .uri(format!("https://x{path}"))
            .body(Full::from(body))
            .unwrap();
        self.0.send_request(request).await.unwrap()
    }

    async fn post(&mut self, path: &str, body: &impl serde::Serialize) -> (StatusCode, Bytes) {
        let response = self
            .send(Method::POST, path, serde_json::to_vec(body).unwrap())
            .await;
        (
            response.status(),
            response.into_body().collect().await.unwrap().to_bytes(),
        )
    }

    async fn get(&mut self, path: &str) -> (StatusCode, Bytes) {
        let response = self.send(Method::GET, path, Vec::new()).await;
        (
            response.status(),
            response.into_body().collect().await.unwrap().to_bytes(),
        )
    }

    async fn register(&mut self, seed: u8, key: Option<&Secret>, hostname: &str) -> RegisterResponse {
        let (status, body) = self
            .post("/machine/register", &request(seed, key, hostname))
            .await;
        assert_eq!(status, StatusCode::OK);
        serde_json::from_slice(&body).unwrap()
    }

    async fn stream(&mut self, request: &MapRequest) -> Maps {
        let body = serde_json::to_vec(&MapRequest {
            stream: true,
            ..request.clone()
        })
        .unwrap();
        let response = self.send(Method::POST, "/machine/map", body).await;
        assert_eq!(response.status(), StatusCode::OK);
        Maps {
            body: response.into_body(),
            buffer: BytesMut::new(),
            compression: Compression::of(request),
        }
    }
}

/// Puts bytes that were read too early back in front of a socket.
fn io_with(buffer: BytesMut, socket: TcpStream) -> impl AsyncRead + AsyncWrite + Unpin {
    let (read, write) = socket.into_split();
    tokio::io::join(std::io::Cursor::new(buffer).chain(read), write)
}

struct Maps {
    body: Incoming,
    buffer: BytesMut,
    compression: Compression,
}

impl Maps {
    /// The next message; `None` at the end.
    async fn next(&mut self) -> Option<MapResponse> {
        loop {
            if let Some(message) = map_frame::decode(&mut self.buffer, self.compression).unwrap() {
                return Some(message);
            }
            let frame = self.body.frame().await?.ok()?;
            self.buffer.extend_from_slice(&frame.into_data().unwrap());
        }
    }

    /// Waits for a message of which `pick` makes something.
    async fn find<T>(&mut self, mut pick: impl FnMut(MapResponse) -> Option<T>) -> T {
        loop {
            let message = self.next().await.expect("the stream goes on");
            if let Some(found) = pick(message) {
                return found;
            }
        }
    }
}

fn map_request(seed: u8, region: i32) -> MapRequest {
    MapRequest {
        node_key: node_key(seed),
        disco_key: DiscoPrivate::from_bytes([seed; 32]).public(),
        compress: "zstd".to_owned(),
        keep_alive: true,
        hostinfo: Some(hostinfo_at("web", region)),
        ..MapRequest::default()
    }
}

fn machine(seed: u8) -> MachinePrivate {
    MachinePrivate::from_bytes([seed; 32])
}

#[tokio::test]
async fn two_nodes_join_and_see_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let handle = start(dir.path()).await;
    let key = auth_key(&handle, false).await;

    let mut first = Client::connect(&handle, &machine(1)).await;
    assert!(first.register(1, Some(&key), "web").await.machine_authorized);
    let mut maps = first.stream(&map_request(1, 900)).await;
    let map = maps.next().await.unwrap();
    assert_eq!(map.node.unwrap().name, "web.t.example.net.");
    assert!(map.debug.unwrap().disable_log_tail && map.dns_config.unwrap().proxied);
    assert_eq!(map.peers, []);

    let mut second = Client::connect(&handle, &machine(2)).await;
    second.register(2, Some(&key), "web").await;
    let mut others = second.stream(&map_request(2, 901)).await;
    assert_eq!(others.next().await.unwrap().peers.len(), 1);
    let peer = maps.find(|map| map.peers_changed.into_iter().next()).await;
    assert_eq!(
        (peer.name.as_str(), peer.home_derp.0),
        ("web-1.t.example.net.", 901),
        "reachable at first sight"
    );
    assert_eq!(peer.online, Some(true));

    let update = MapRequest {
        omit_peers: true,
        ..map_request(2, 902)
    };
    let (status, body) = second.post("/machine/map", &update).await;
    assert_eq!((status, body.len()), (StatusCode::OK, 0));
    let patch = maps.find(|map| map.peers_changed_patch.into_iter().next()).await;
    assert_eq!(patch.derp_region.0, 902);

    handle
        .operations()
        .delete_node(Actor::Administrator, NodeId(2))
        .await
        .unwrap();
    assert_eq!(
        maps.find(|map| map.peers_removed.into_iter().next()).await,
        NodeId(2)
    );
    while others.next().await.is_some() {}
    assert_eq!(
        second.post("/machine/map", &map_request(2, 900)).await.0,
        StatusCode::NOT_FOUND
    );
    handle.stop().await;
}

#[tokio::test]
async fn a_restart_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let handle = start(dir.path()).await;
    let server_key = handle.server_key();
    let key = auth_key(&handle, false).await;
    let mut client = Client::connect(&handle, &machine(1)).await;
    client.register(1, Some(&key), "web").await;
    let mut maps = client.stream(&map_request(1, 900)).await;
    let before = maps.next().await.unwrap().node.unwrap();
    let policy = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:22"]}]}"#;
    handle
        .operations()
        .set_policy(Actor::Administrator, policy.to_owned(), None)
        .await
        .unwrap();
    let filter = maps.find(|map| map.packet_filters).await;
    handle.stop().await;
    while maps.next().await.is_some() {}

    let handle = start(dir.path()).await;
    assert_eq!(handle.server_key(), server_key);
    let mut client = Client::connect(&handle, &machine(1)).await;
    let mut maps = client.stream(&map_request(1, 900)).await;
    let map = maps.next().await.unwrap();
    assert_eq!(map.node.unwrap(), before);
    assert_eq!(map.packet_filters.unwrap(), filter);
    handle.stop().await;
}

#[tokio::test]
async fn running_nodes_keep_their_maps_while_nothing_can_be_stored() {
    let dir = tempfile::tempdir().unwrap();
    let (handle, read_only) = start_switched(dir.path()).await;
    let key = auth_key(&handle, false).await;
    let mut first = Client::connect(&handle, &machine(1)).await;
    first.register(1, Some(&key), "a").await;
    let mut maps = first.stream(&map_request(1, 900)).await;
    maps.next().await.unwrap();
    let mut second = Client::connect(&handle, &machine(2)).await;
    second.register(2, Some(&key), "b").await;

    read_only.store(true, Ordering::SeqCst);
    let register = request(3, Some(&key), "c");
    let mut third = Client::connect(&handle, &machine(3)).await;
    let (status, words) = third.post("/machine/register", &register).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(
        String::from_utf8_lossy(&words).contains("cannot be written"),
        "{words:?}"
    );
    let update = MapRequest {
        omit_peers: true,
        ..map_request(1, 902)
    };
    assert_eq!(
        first.post("/machine/map", &update).await.0,
        StatusCode::SERVICE_UNAVAILABLE
    );

    // A node that connects now gets its map, and its peers learn that it is there.
    let mut others = second.stream(&map_request(2, 901)).await;
    let map = others.next().await.unwrap();
    assert_eq!(
        map.peers.iter().map(|peer| peer.id).collect::<Vec<_>>(),
        [NodeId(1)]
    );
    let online = |node: &tailwharf_wire::tailcfg::Node| node.id == NodeId(2) && node.online == Some(true);
    maps.find(|map| {
        let patched = map
            .peers_changed_patch
            .iter()
            .any(|patch| patch.online == Some(true));
        (patched || map.peers_changed.iter().any(online)).then_some(())
    })
    .await;

    read_only.store(false, Ordering::SeqCst);
    let made = third.register(3, Some(&key), "c").await;
    assert!(made.machine_authorized && made.error.is_empty());
    let newcomer = |map: MapResponse| map.peers_changed.into_iter().find(|peer| peer.id == NodeId(3));
    maps.find(newcomer).await;
    others.find(newcomer).await;
    handle.stop().await;
}

#[tokio::test]
async fn a_policy_with_an_error_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let handle = start(dir.path()).await;
    let ops = handle.operations();
    let (before, tag) = ops.policy();
    let refused = ops
        .set_policy(Actor::Administrator, "{\n  \"alcs\": []\n}".to_owned(), None)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("line 2"), "{refused}");
    assert_eq!(ops.policy(), (before, tag.clone()));
    ops.set_policy(Actor::Administrator, "{}".to_owned(), Some(tag.clone()))
        .await
        .unwrap();
    let stale = ops
        .set_policy(Actor::Administrator, "{\"acls\": []}".to_owned(), Some(tag))
        .await;
    assert!(matches!(stale, Err(crate::OpError::PolicyChanged)));
    handle.stop().await;
}

#[tokio::test]
async fn requests_are_refused_with_status_and_words() {
    let dir = tempfile::tempdir().unwrap();
    let handle = start(dir.path()).await;
    let key = auth_key(&handle, false).await;
    let mut client = Client::connect(&handle, &machine(1)).await;
    client.register(1, Some(&key), "web").await;
    let mut stranger = Client::connect(&handle, &machine(9)).await;

    let map = serde_json::to_vec(&map_request(1, 900)).unwrap();
    let unknown = serde_json::to_vec(&map_request(8, 900)).unwrap();
    for (method, path, body, status) in [
        (Method::POST, "/machine/map", map, StatusCode::FORBIDDEN),
        (Method::POST, "/machine/map", unknown, StatusCode::NOT_FOUND),
        (
            Method::POST,
            "/machine/map",
            b"{".to_vec(),
            StatusCode::BAD_REQUEST,
        ),
        (
            Method::POST,
            "/machine/register",
            vec![b' '; (1 << 20) + 1],
            StatusCode::PAYLOAD_TOO_LARGE,
        ),
        (Method::GET, "/machine/map", Vec::new(), StatusCode::NOT_FOUND),
        (
            Method::POST,
            "/machine/tka/init/begin",
            Vec::new(),
            StatusCode::NOT_FOUND,
        ),
        (
            Method::POST,
            "/machine/update-health",
            b"anything".to_vec(),
            StatusCode::OK,
        ),
        (Method::POST, "/machine/audit-log", b"{}".to_vec(), StatusCode::OK),
    ] {
        let response = stranger.send(method, path, body).await;
        assert_eq!(response.status(), status, "{path}");
        assert!(
            !response
                .into_body()
                .collect()
                .await
                .unwrap()
                .to_bytes()
                .is_empty(),
            "{path}: a body"
        );
    }
    let refused = stranger.register(2, None, "x").await;
    assert!(
        refused.auth_url.starts_with("http"),
        "a person decides: {refused:?}"
    );
    handle.stop().await;
}

#[tokio::test]
async fn a_node_sets_its_own_records_and_attributes_alone() {
    let dir = tempfile::tempdir().unwrap();
    let handle = start(dir.path()).await;
    let key = auth_key(&handle, false).await;
    let mut client = Client::connect(&handle, &machine(1)).await;
    client.register(1, Some(&key), "web").await;
    let record = |name: &str, kind: &str| serde_json::json!({"Version": VERSION, "NodeKey": node_key(1), "Name": name, "Type": kind, "Value": "v"});
    for (name, kind, status) in [
        ("_acme-challenge.web.t.example.net", "TXT", StatusCode::OK),
        ("_acme-challenge.db.t.example.net", "TXT", StatusCode::BAD_REQUEST),
        ("web.t.example.net", "TXT", StatusCode::BAD_REQUEST),
        ("_acme-challenge.web.t.example.net", "A", StatusCode::BAD_REQUEST),
    ] {
        assert_eq!(
            client.post("/machine/set-dns", &record(name, kind)).await.0,
            status,
            "{name} {kind}"
        );
    }
    assert_eq!(handle.operations().world().dns_txt().count(), 1);
    let attributes = serde_json::json!({"NodeKey": node_key(1), "Update": {"custom:tier": "gold"}});
    let response = client
        .send(
            Method::PATCH,
            "/machine/set-device-attr",
            attributes.to_string().into(),
        )
        .await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(
        handle
            .operations()
            .world()
            .node(NodeId(1))
            .unwrap()
            .attributes
            .contains_key("custom:tier")
    );
    handle.stop().await;
}

#[tokio::test]
async fn a_silent_stream_says_that_it_is_alive() {
    let dir = tempfile::tempdir().unwrap();
    let handle = start(dir.path()).await;
    let key = auth_key(&handle, false).await;
    let mut client = Client::connect(&handle, &machine(1)).await;
    client.register(1, Some(&key), "web").await;
    let mut maps = client.stream(&map_request(1, 900)).await;
    maps.next().await.unwrap();
    // From here on time passes as soon as everybody waits.
    tokio::time::pause();
    let opened = tokio::time::Instant::now();
    let message = maps.next().await.unwrap();
    assert_eq!(
        message,
        MapResponse {
            keep_alive: true,
            ..MapResponse::default()
        }
    );
    let silence = opened.elapsed();
    assert!(
        (Duration::from_secs(49)..Duration::from_secs(61)).contains(&silence),
        "{silence:?}"
    );
    tokio::time::resume();
    handle.stop().await;
}

#[tokio::test]
async fn a_node_that_never_tells_its_region_is_shown_after_the_hold() {
    let dir = tempfile::tempdir().unwrap();
    let handle = start(dir.path()).await;
    let key = auth_key(&handle, false).await;
    let mut watcher = Client::connect(&handle, &machine(1)).await;
    watcher.register(1, Some(&key), "a").await;
    let mut maps = watcher.stream(&map_request(1, 900)).await;
    maps.next().await.unwrap();
    let mut mute = Client::connect(&handle, &machine(2)).await;
    mute.register(2, Some(&key), "b").await;
    assert!(handle.operations().world().presence(NodeId(2)).held);
    let peer = maps.find(|map| map.peers_changed.into_iter().next()).await;
    assert_eq!((peer.id, peer.home_derp.is_none()), (NodeId(2), true));
    handle.stop().await;
}

#[tokio::test]
async fn a_node_that_left_is_offline_after_the_grace() {
    let dir = tempfile::tempdir().unwrap();
    let handle = start(dir.path()).await;
    let key = auth_key(&handle, false).await;
    let mut watcher = Client::connect(&handle, &machine(1)).await;
    watcher.register(1, Some(&key), "a").await;
    let mut maps = watcher.stream(&map_request(1, 900)).await;
    let mut leaving = Client::connect(&handle, &machine(2)).await;
    leaving.register(2, Some(&key), "b").await;
    let mut others = leaving.stream(&map_request(2, 900)).await;
    others.next().await.unwrap();
    maps.find(|map| {
        map.peers_changed
            .into_iter()
            .chain(map.peers)
            .find(|peer| peer.online == Some(true))
    })
    .await;
    tokio::time::pause();
    let left = tokio::time::Instant::now();
    drop((leaving, others));
    let patch = maps
        .find(|map| {
            map.peers_changed_patch
                .into_iter()
                .find(|patch| patch.online == Some(false))
        })
        .await;
    assert!(patch.last_seen.is_some());
    assert!(left.elapsed() >= Duration::from_secs(10), "{:?}", left.elapsed());
    tokio::time::resume();
    handle.stop().await;
}
