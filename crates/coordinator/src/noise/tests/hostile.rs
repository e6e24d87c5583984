//! Handshakes and records that are none, and clients that say nothing.

use super::*;

#[tokio::test]
async fn bad_handshakes_are_told_why() {
    let dir = tempfile::tempdir().unwrap();
    let handle = start(dir.path()).await;
    let (_, _, head) = upgrade(handle.local_addr(), &[1; 100]).await;
    assert!(head.starts_with("HTTP/1.1 400 "), "{head}");

    let initiation = |version, server: &MachinePublic| {
        Initiator::new(&machine(1), server, version, &mut OsRng)
            .unwrap()
            .1
    };
    let stranger = machine(7).public();
    for (initiation, words) in [
        (initiation(112, &handle.server_key()), "too old"),
        (initiation(VERSION, &stranger), "handshake failed"),
        ([0; 101], "handshake failed"),
    ] {
        let (mut socket, mut buffer, head) = upgrade(handle.local_addr(), &initiation).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let refused = frame(&mut socket, &mut buffer).await;
        let text = String::from_utf8(refused.body.to_vec()).unwrap();
        assert!(text.contains(words), "{text}");
        assert_eq!(
            socket.read_buf(&mut buffer).await.unwrap(),
            0,
            "and the connection ends"
        );
    }
    handle.stop().await;
}

#[tokio::test]
async fn records_that_are_none_end_the_connection_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let handle = start(dir.path()).await;
    let mut good = Client::connect(&handle, &machine(1)).await;
    let oversized: &[u8] = &[4, 0xff, 0xff, 0, 0];
    let garbage: &[u8] = &[
        4, 0, 32, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25,
        26, 27, 28, 29, 30, 31, 32,
    ];
    for bytes in [oversized, garbage, &[4, 0, 3, 1, 2, 3], &[9, 0, 0]] {
        let (_, initiation) = Initiator::new(&machine(2), &handle.server_key(), VERSION, &mut OsRng).unwrap();
        let (mut socket, mut buffer, _) = upgrade(handle.local_addr(), &initiation).await;
        socket.write_all(bytes).await.unwrap();
        // A reset is an end, too.
        while socket.read_buf(&mut buffer).await.is_ok_and(|read| read > 0) {}
    }
    assert_eq!(good.post("/machine/update-health", &()).await.0, StatusCode::OK);
    handle.stop().await;
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let handle = start(dir.path()).await;
    for said in ["", "POST /ts2021 HTTP/1.1\r\nHost: x\r\n"] {
        let mut socket = TcpStream::connect(handle.local_addr()).await.unwrap();
        socket.write_all(said.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 408"),
            "{answer}"
        );
    }
    // The same behind the Noise handshake: a client that never asks anything.
    let (_, initiation) = Initiator::new(&machine(1), &handle.server_key(), VERSION, &mut OsRng).unwrap();
    let (mut socket, _, _) = upgrade(handle.local_addr(), &initiation).await;
    let began = tokio::time::Instant::now();
    let mut rest = Vec::new();
    let _ = socket.read_to_end(&mut rest).await;
    assert!(
        began.elapsed() < Duration::from_secs(120),
        "{:?}",
        began.elapsed()
    );
    handle.stop().await;
}
