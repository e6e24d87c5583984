//! R, and what of S and X is about recorders: sessions over the proxy, recorded by the recorder or by one that fails.

use std::net::SocketAddr;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tailwharf_apiproxy::CAPABILITY;
use tailwharf_recorder::{Limits, Store, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::backend::{Then, raw};
use crate::bed::{Bed, Client, NAME, device, eventually};
use crate::shared::accepted;

const EXEC: &str = "/api/v1/namespaces/a/pods/p/exec?command=sh&command=-c&container=c&tty=true";
const AGREED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                      Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n";

fn upgrade(path: &str, more: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {NAME}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n{more}\r\n"
    )
}

/// A recorder on loopback.
struct Place {
    addr: SocketAddr,
    store: Store,
    dir: tempfile::TempDir,
    stop: CancellationToken,
}

impl Place {
    async fn start(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), limits).unwrap();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(serve(accepted(listener), store.clone(), stop.clone()));
        Self {
            addr,
            store,
            dir,
            stop,
        }
    }

    /// The text of the only recording.
    fn text(&self) -> String {
        let entries = self.store.list().unwrap();
        assert_eq!(entries.len(), 1, "{entries:?}");
        std::fs::read_to_string(self.dir.path().join(format!("{}.cast", entries[0].name))).unwrap()
    }
}

/// Alice's sessions are recorded at `recorders`.
fn recorded(bed: &Bed, recorders: &[SocketAddr], enforced: bool) {
    let value = json!([{"recorderAddrs": recorders, "enforceRecorder": enforced, "impersonate": {"groups": ["team"]}}]);
    bed.tailnet
        .set(Some(device("alice@example.com", &[(CAPABILITY, value)])));
}

fn printing(text: &'static str) -> impl Fn(&crate::backend::Seen) -> crate::backend::Reply + Send + Sync {
    move |_| {
        let mut reply = raw(AGREED, Then::Echo);
        reply.bytes.extend([0x82, text.len() as u8 + 1, 1]);
        reply.bytes.extend(text.as_bytes());
        reply
    }
}

async fn nowhere() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    listener.local_addr().unwrap()
}

async fn noted(bed: &Bed, text: &str) {
    let notes = |line: &Value| line["annotations"]["tailwharf.dev/notes"].to_string();
    eventually(text, || bed.audit().iter().any(|line| notes(line).contains(text))).await;
}

async fn begin(bed: &Bed) -> Client {
    let mut client = bed.connect().await;
    client.write(upgrade(EXEC, "")).await;
    let response = client.response().await;
    assert_eq!(response.code, 101, "{response:?}");
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn r_01_a_session_is_on_the_recorder_as_the_client_saw_it() {
    let place = Place::start(Limits::default()).await;
    let bed = Bed::answering(printing("hello")).await;
    recorded(&bed, &[nowhere().await, place.addr], true);
    let mut client = begin(&bed).await;
    client.until("hello").await;
    drop(client);
    eventually("the recording is whole", || bed.proxy.open_streams() == 0).await;
    noted(&bed, "the session is recorded at").await;
    let text = place.text();
    let mut lines = text.lines();
    let header: Value = serde_json::from_str(lines.next().unwrap()).unwrap();
    assert_eq!(header["version"], 2);
    assert_eq!(header["command"], "sh -c");
    assert_eq!(header["srcNode"], "laptop.tail1234.ts.net");
    assert_eq!(header["srcNodeUser"], "alice@example.com");
    assert_eq!(
        header["kubernetes"],
        json!({"PodName": "p", "Namespace": "a", "Container": "c", "SessionType": "exec"})
    );
    let event: (f64, String, String) = serde_json::from_str(lines.next().unwrap()).unwrap();
    assert_eq!((event.1.as_str(), event.2.as_str()), ("o", "hello"));
}

#[tokio::test(flavor = "multi_thread")]
async fn r_06_without_a_recorder_nothing_reaches_the_api_server() {
    let bed = Bed::answering(printing("hello")).await;
    // Nobody; somebody who hangs up; somebody whose store takes nothing.
    let hangs_up = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let silent = hangs_up.local_addr().unwrap();
    tokio::spawn(async move { while hangs_up.accept().await.is_ok() {} });
    let full = Place::start(Limits {
        recording: 10,
        ..Limits::default()
    })
    .await;
    let busy = Place::start(Limits {
        concurrent: 0,
        ..Limits::default()
    })
    .await;
    for recorder in [nowhere().await, silent, full.addr, busy.addr, bed.backend.addr] {
        recorded(&bed, &[recorder], true);
        let status = bed.refused(upgrade(EXEC, ""), 403).await;
        let message = status["message"].as_str().unwrap();
        assert!(
            message.contains("must be recorded") && message.contains(&recorder.to_string()),
            "{message}"
        );
    }
    // What is no session goes on.
    assert_eq!(bed.proxy.open_streams(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn r_06_a_session_ends_with_its_recorder_and_says_why() {
    let place = Place::start(Limits::default()).await;
    let bed = Bed::answering(printing("hello")).await;
    recorded(&bed, &[place.addr], true);
    let mut client = begin(&bed).await;
    client.until("hello").await;
    place.stop.cancel();
    client.until("had to be recorded").await;
    client.ends().await;
    eventually("nothing is left", || bed.proxy.open_streams() == 0).await;
    noted(&bed, "had to be recorded").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r_07_where_the_policy_allows_it_a_session_goes_on_unrecorded() {
    let bed = Bed::answering(printing("hello")).await;
    recorded(&bed, &[nowhere().await], false);
    let mut client = begin(&bed).await;
    client.until("hello").await;
    drop(client);
    noted(&bed, "the session is not recorded").await;
    // What breaks the protocol cannot be recorded, and goes on, too.
    let place = Place::start(Limits::default()).await;
    let bed = Bed::answering(|_| raw(AGREED, Then::Echo)).await;
    recorded(&bed, &[place.addr], false);
    let mut client = begin(&bed).await;
    client.write("hello").await;
    client.until("HELLO").await;
    drop(client);
    noted(&bed, "not recorded from here on").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r_02_what_breaks_the_protocol_ends_a_session_that_must_be_recorded() {
    let place = Place::start(Limits::default()).await;
    let bed = Bed::answering(|_| raw(AGREED, Then::Echo)).await;
    recorded(&bed, &[place.addr], true);
    let mut client = begin(&bed).await;
    client.write("hello").await;
    client.ends().await;
    assert!(
        bed.backend.raw.lock().unwrap().is_empty(),
        "what was not recorded went on"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn r_12_what_a_client_says_of_itself_changes_nothing() {
    let bed = Bed::answering(printing("hello")).await;
    recorded(&bed, &[nowhere().await], true);
    for (path, hints) in [
        (
            EXEC,
            "Kubectl-Command: kubectl cp\r\nUser-Agent: kubectl/v1.36.3\r\n",
        ),
        ("/api/v1/namespaces/a/pods/p/exec?command=tar&command=xf", ""),
        ("/api/v1/namespaces/a/pods/p/%65xec/?command=sh", ""),
        ("/api/v1/namespaces/a/pods/p/attach", "User-Agent: recorder\r\n"),
    ] {
        bed.refused(upgrade(path, hints), 403).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r_13_a_full_disk_ends_a_session_that_must_be_recorded() {
    let place = Place::start(Limits {
        recording: 390,
        ..Limits::default()
    })
    .await;
    let bed = Bed::answering(printing(
        "a text of which the end has no room on the disk any more, whatever is done about it",
    ))
    .await;
    recorded(&bed, &[place.addr], true);
    let mut client = begin(&bed).await;
    client.until("longer than 390 bytes").await;
    client.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s_10_forwarded_ports_are_carried_as_they_are() {
    let place = Place::start(Limits::default()).await;
    let bed = Bed::answering(|_| {
        raw(
            &AGREED.replace("v5.channel.k8s.io", "SPDY/3.1+portforward.k8s.io"),
            Then::Echo,
        )
    })
    .await;
    recorded(&bed, &[place.addr], false);
    let mut client = bed.connect().await;
    let path = "/api/v1/namespaces/a/pods/p/portforward?ports=0&ports=65536&ports=x";
    client
        .write(upgrade(path, "").replace("v5.channel.k8s.io", "SPDY/3.1+portforward.k8s.io"))
        .await;
    assert_eq!(client.response().await.code, 101);
    client
        .write([&[0x80, 3, 0, 1, 0, 0xff][..], b"any bytes"].concat())
        .await;
    client.until("ANY BYTES").await;
    assert!(place.store.list().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn x_07_a_recorder_hears_who_the_tailnet_says_and_no_credential() {
    let dump = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let addr = dump.local_addr().unwrap();
    let heard = tokio::spawn(async move {
        let (mut stream, _) = dump.accept().await.unwrap();
        let mut bytes = vec![0; 64 * 1024];
        // An empty SETTINGS, so that the client speaks.
        stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        let length = stream.read(&mut bytes).await.unwrap();
        bytes[..length].to_vec()
    });
    let bed = Bed::answering(printing("hello")).await;
    recorded(&bed, &[addr], true);
    bed.refused(
        upgrade(
            EXEC,
            "Authorization: Bearer stolen-token\r\nRecorder: 127.0.0.1:9\r\n",
        ),
        403,
    )
    .await;
    let heard = String::from_utf8_lossy(&heard.await.unwrap()).into_owned();
    assert!(
        !heard.contains("stolen-token") && !heard.contains("proxy-token"),
        "{heard:?}"
    );
    let place = Place::start(Limits::default()).await;
    recorded(&bed, &[place.addr], true);
    let mut client = bed.connect().await;
    client
        .write(upgrade(
            &format!("{EXEC}&srcNode=evil&srcNodeUser=bob"),
            "srcNodeUser: bob\r\n",
        ))
        .await;
    assert_eq!(client.response().await.code, 101);
    client.until("hello").await;
    let text = place.text();
    assert!(
        text.contains("\"srcNodeUser\":\"alice@example.com\"") && !text.contains("bob"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn r_08_an_answer_is_not_held_up_by_its_recording() {
    let place = Place::start(Limits::default()).await;
    let bed = Bed::answering(|_| {
        let mut reply = raw(AGREED, Then::Echo);
        for _ in 0..32 {
            reply.bytes.extend([0x82, 126, 0x40, 1, 1]);
            reply.bytes.extend([b'x'; 16 * 1024]);
        }
        reply.bytes.extend(b"\x82\x04\x01end");
        reply
    })
    .await;
    recorded(&bed, &[place.addr], true);
    let mut client = begin(&bed).await;
    client.until("end").await;
    drop(client);
    eventually("the recording is whole", || bed.proxy.open_streams() == 0).await;
    let events = place
        .text()
        .lines()
        .skip(1)
        .map(|line| {
            let (_, _, data): (f64, String, String) = serde_json::from_str(line).unwrap();
            data.len()
        })
        .sum::<usize>();
    assert_eq!(events, 32 * 16 * 1024 + 3, "no byte is lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn r_08_much_that_is_no_text_goes_through_and_is_summed_up() {
    const FRAMES: usize = 4096;
    const FRAME: usize = 16 * 1024;
    let place = Place::start(Limits::default()).await;
    let bed = Bed::answering(|_| {
        let mut reply = raw(AGREED, Then::Close);
        for number in 0..FRAMES {
            reply.bytes.extend([0x82, 126, 0x40, 1, 1]);
            reply.bytes.extend(binary(number));
        }
        reply
    })
    .await;
    recorded(&bed, &[place.addr], true);
    let mut client = bed.connect().await;
    client.write(upgrade(&EXEC.replace("&tty=true", ""), "")).await;
    assert_eq!(client.response().await.code, 101);
    let received = client.rest().await;
    drop(client);
    let mut wanted = Sha256::new();
    for (number, frame) in received.chunks_exact(FRAME + 5).take(FRAMES).enumerate() {
        wanted.update(binary(number));
        assert_eq!(frame[5..], binary(number), "frame {number}");
    }
    assert!(received.len() >= FRAMES * (FRAME + 5), "{}", received.len());
    eventually("the recording is whole", || bed.proxy.open_streams() == 0).await;
    let text = place.text();
    let summed = format!(
        "{} bytes that are no text, sha256 {:x}",
        FRAMES * FRAME,
        wanted.finalize()
    );
    assert!(text.contains(&summed), "{}", &text[..text.len().min(2000)]);
    assert!(text.len() < 64 * 1024, "the bytes themselves are not kept");

    fn binary(number: usize) -> Vec<u8> {
        let mut bytes = vec![0xff; FRAME];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        bytes
    }
}
