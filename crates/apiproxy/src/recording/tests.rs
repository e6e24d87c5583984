//! R and S of the hostile list, as far as they are about bytes.

use std::time::Duration;

use super::cast::{Header, Kubernetes};
use super::{From, Malformed, Recorder};

const ERROR: u32 = 1;
const OUTPUT: u32 = 3;
const RESIZE: u32 = 129;

/// A deflate block that is not compressed.
fn stored(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u16).to_le_bytes();
    let inverse = (!(bytes.len() as u16)).to_le_bytes();
    [&[0], &length[..], &inverse, bytes].concat()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut block = (pairs.len() as u32).to_be_bytes().to_vec();
    for text in pairs.iter().flat_map(|(name, value)| [name, value]) {
        block.extend((text.len() as u32).to_be_bytes());
        block.extend(text.as_bytes());
    }
    block
}

fn control(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&[0x80, 3], &kind.to_be_bytes()[..], &[0], &length[1..], payload].concat()
}

/// SYN_STREAM with compressed headers; the first of a session begins the zlib stream.
fn open_raw(id: u32, compressed: &[u8]) -> Vec<u8> {
    control(1, &[&id.to_be_bytes()[..], &[0; 6], compressed].concat())
}

fn open(id: u32, first: bool, headers: &[(&str, &str)]) -> Vec<u8> {
    let begin: &[u8] = if first {
        &[0x78, 0xf9, 0xe3, 0xc6, 0xa7, 0xc2]
    } else {
        &[]
    };
    open_raw(id, &[begin, &stored(&pairs(headers))].concat())
}

fn data(id: u32, fin: bool, bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u32).to_be_bytes();
    [&id.to_be_bytes()[..], &[u8::from(fin)], &length[1..], bytes].concat()
}

fn opened() -> Vec<u8> {
    [
        open(ERROR, true, &[("streamtype", "error")]),
        open(OUTPUT, false, &[("streamtype", "stdout")]),
        open(5, false, &[("streamtype", "stderr")]),
        open(7, false, &[("streamtype", "stdin")]),
        open(RESIZE, false, &[("streamtype", "resize")]),
    ]
    .concat()
}

fn frame(from: From, head: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [1, 2, 3, 4];
    let flag = if from == From::Client { 0x80 } else { 0 };
    let mut bytes = vec![head];
    match payload.len() {
        length @ ..=125 => bytes.push(flag | length as u8),
        length => {
            bytes.push(flag | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
    }
    if from == From::Client {
        bytes.extend(mask);
        bytes.extend(
            payload
                .iter()
                .zip(0..)
                .map(|(byte, at): (&u8, usize)| byte ^ mask[at % 4]),
        );
    } else {
        bytes.extend(payload);
    }
    bytes
}

type Script = Vec<(From, Vec<u8>)>;

fn lines(recorder: &mut Recorder, script: &Script, piece: usize) -> Result<String, Malformed> {
    let mut all = Vec::new();
    for (from, bytes) in script {
        for part in bytes.chunks(piece) {
            all.extend(recorder.feed(*from, part, Duration::from_secs(1))?);
        }
    }
    all.extend(recorder.finish());
    Ok(String::from_utf8(all).unwrap())
}

fn spdy() -> Recorder {
    Recorder::new(false, Some("v4.channel.k8s.io"), true)
}

fn websocket() -> Recorder {
    Recorder::new(true, Some("v5.channel.k8s.io"), true)
}

/// What is shown; output that comes in pieces is put together.
fn shown(recorder: Recorder, script: &Script) -> String {
    let mut recorder = recorder;
    let text = lines(&mut recorder, script, usize::MAX).unwrap();
    let mut events: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        let (_, code, data): (f64, String, String) = serde_json::from_str(line).unwrap();
        match events.last_mut() {
            Some((known, all)) if known == "o" && code == "o" => all.push_str(&data),
            _ => events.push((code, data)),
        }
    }
    events
        .iter()
        .map(|(code, data)| format!("{code}:{data};"))
        .collect()
}

fn fails(mut recorder: Recorder, from: From, bytes: Vec<u8>) -> &'static str {
    lines(&mut recorder, &vec![(from, bytes)], usize::MAX)
        .unwrap_err()
        .0
}

fn spdy_script() -> Script {
    vec![
        (
            From::Client,
            [opened(), data(RESIZE, false, br#"{"Width":100,"Height":30}"#)].concat(),
        ),
        (
            From::Server,
            [
                data(OUTPUT, false, b"one "),
                control(6, &[0; 4]),
                data(5, true, b"two"),
            ]
            .concat(),
        ),
        (From::Client, data(7, true, b"typed")),
        (From::Server, data(OUTPUT, true, " grün".as_bytes())),
    ]
}

fn websocket_script() -> Script {
    vec![
        (From::Server, frame(From::Server, 0x82, &[])),
        (
            From::Client,
            frame(From::Client, 0x81, b"\x04{\"Width\":100,\"Height\":30}"),
        ),
        (
            From::Server,
            [
                frame(From::Server, 0x02, b"\x01on"),
                frame(From::Server, 0x89, b"ping"),
                frame(From::Server, 0x80, b"e "),
                frame(From::Server, 0x81, b"\x02two"),
            ]
            .concat(),
        ),
        (
            From::Client,
            [
                frame(From::Client, 0x82, b"\0typed"),
                frame(From::Client, 0x82, b"\xff\0"),
            ]
            .concat(),
        ),
        (From::Server, frame(From::Server, 0x82, "\u{1} grün".as_bytes())),
        (From::Server, frame(From::Server, 0x88, &[3, 0xe8])),
    ]
}

#[test]
fn r_01_what_the_client_received_is_what_is_recorded() {
    assert_eq!(shown(spdy(), &spdy_script()), "r:100x30;o:one two grün;");
    for protocol in [
        Some("v5.channel.k8s.io"),
        Some("v4.channel.k8s.io"),
        Some("channel.k8s.io"),
        None,
    ] {
        let recorder = Recorder::new(true, protocol, true);
        assert_eq!(
            shown(recorder, &websocket_script()),
            "r:100x30;o:one two grün;",
            "{protocol:?}"
        );
    }
    let script = vec![
        (
            From::Client,
            frame(From::Client, 0x81, b"4eyJXaWR0aCI6MSwiSGVpZ2h0IjoyfQ=="),
        ),
        (
            From::Server,
            [
                frame(From::Server, 0x01, b"1b25"),
                frame(From::Server, 0x80, b"lIA=="),
            ]
            .concat(),
        ),
    ];
    let base64 = Recorder::new(true, Some("base64.channel.k8s.io"), true);
    assert_eq!(shown(base64, &script), "r:1x2;o:one ;");
    let golden = [
        open_raw(1, b"\x78\xf9\xe3\xc6\xa7\xc2\x02\xe5\x0e\x70\x3a\x2b\x29\x4a\x4d\xcc\x85\x16\x25\xac\xa9\xa0\x80\x46\xcb\x12\x88\xb4\x07\x00\x00\x00\xff\xff"),
        open_raw(3, b"\xc2\xaa\x07\x98\xca\x53\xf2\xc1\x85\x37\x76\x4d\x00\x00\x00\x00\xff\xff"),
    ];
    let script = vec![
        (From::Client, golden.concat()),
        (From::Server, data(3, false, b"zlib")),
    ];
    assert_eq!(shown(spdy(), &script), "o:zlib;");
}

#[test]
fn r_02_it_does_not_matter_how_the_bytes_are_cut() {
    for (make, script) in [
        (spdy as fn() -> Recorder, spdy_script()),
        (websocket, websocket_script()),
    ] {
        let joined = |text: String| {
            let events = text
                .lines()
                .map(|line| serde_json::from_str::<(f64, String, String)>(line).unwrap());
            events
                .filter(|(_, code, _)| code == "o")
                .map(|(_, _, data)| data)
                .collect::<String>()
        };
        for piece in 1..40 {
            assert_eq!(
                joined(lines(&mut make(), &script, piece).unwrap()),
                "one two grün",
                "{piece}"
            );
        }
    }
}

#[test]
fn r_03_a_client_cannot_forge_output() {
    let frames = [1, 2, 3, 200, 255].map(|channel| frame(From::Client, 0x82, &[channel, b'x']));
    assert_eq!(shown(websocket(), &vec![(From::Client, frames.concat())]), "");
    let script = vec![(
        From::Client,
        [opened(), data(OUTPUT, false, b"x"), data(5, false, b"x")].concat(),
    )];
    assert_eq!(shown(spdy(), &script), "");
}

#[test]
fn r_04_sizes_of_terminals() {
    let sizes = |text: &str| {
        shown(
            websocket(),
            &vec![(
                From::Client,
                frame(From::Client, 0x82, format!("\u{4}{text}").as_bytes()),
            )],
        )
    };
    assert_eq!(sizes(r#"{"Width":0,"Height":0}"#), "r:0x0;");
    assert_eq!(
        sizes(r#"{"width":65535,"HEIGHT":1}{"Width":2,"Height":3}"#),
        "r:65535x1;r:2x3;"
    );
    // The API server reads no more after one that it cannot read.
    assert_eq!(sizes(r#"{"Width":-1,"Height":1}{"Width":2,"Height":3}"#), "");
    assert_eq!(sizes("no size"), "");
    let long = format!("\u{4}{{\"Width\":\"{}", "9".repeat(5000));
    assert!(
        fails(
            websocket(),
            From::Client,
            frame(From::Client, 0x82, long.as_bytes())
        )
        .contains("too long")
    );
    let many = frame(From::Client, 0x82, b"\x04{\"Width\":2,\"Height\":3}").repeat(100_000);
    assert_eq!(
        lines(&mut websocket(), &vec![(From::Client, many)], 4096)
            .unwrap()
            .lines()
            .count(),
        100_000
    );
}

#[test]
fn r_05_characters_that_are_cut_are_joined_and_broken_ones_replaced() {
    let say = |parts: &[&[u8]]| {
        let frames = parts
            .iter()
            .map(|part| frame(From::Server, 0x82, &[&[1], *part].concat()));
        shown(
            websocket(),
            &vec![(From::Server, frames.collect::<Vec<_>>().concat())],
        )
    };
    assert_eq!(say(&[b"\xf0\x9f", b"\x98", b"\x80!"]), "o:😀!;");
    assert_eq!(say(&[b"\xff\xfea"]), "o:\u{fffd}\u{fffd}a;");
    assert_eq!(say(&[b"a\xc3"]), "o:a\u{fffd};");
}

#[test]
fn r_08_what_is_no_text_is_summed_up() {
    let mut recorder = Recorder::new(true, Some("v5.channel.k8s.io"), false);
    let script = vec![
        (From::Server, frame(From::Server, 0x82, b"\x01tar\0")),
        (
            From::Server,
            frame(From::Server, 0x82, &[&[1][..], &[0xff; 996]].concat()),
        ),
    ];
    let text = lines(&mut recorder, &script, usize::MAX).unwrap();
    assert!(
        text.contains("1000 bytes that are no text, sha256 ") && text.lines().count() == 1,
        "{text}"
    );
}

#[test]
fn r_09_names_cannot_break_the_first_line() {
    let odd = format!("a\"b\nc\u{1b}{}", "x".repeat(100_000));
    let header = Header {
        version: 2,
        width: 80,
        height: 24,
        timestamp: 1,
        command: odd.clone(),
        src_node: odd.clone(),
        src_node_id: "n".to_owned(),
        src_node_tags: vec![odd.clone()],
        src_node_user_id: None,
        src_node_user: String::new(),
        env: None,
        ssh_user: "",
        local_user: "",
        connection_id: String::new(),
        kubernetes: Kubernetes {
            pod_name: odd.clone(),
            namespace: "a".to_owned(),
            container: odd.clone(),
            session_type: "exec",
        },
    };
    let line = header.line();
    assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
    let read: serde_json::Value = serde_json::from_slice(&line).unwrap();
    assert_eq!(read["kubernetes"]["PodName"], odd.as_str());
    assert_eq!(read["srcNodeID"], "n");
}

#[test]
fn r_10_times_never_go_back() {
    let mut recorder = websocket();
    let say = |recorder: &mut Recorder, at| {
        let lines = recorder
            .feed(From::Server, &frame(From::Server, 0x82, b"\x01x"), at)
            .unwrap();
        serde_json::from_slice::<(f64, String, String)>(&lines).unwrap().0
    };
    assert!((say(&mut recorder, Duration::from_secs(5)) - 5.0).abs() < 1e-9);
    assert!((say(&mut recorder, Duration::from_secs(2)) - 5.0).abs() < 1e-9);
}

#[test]
fn s_01_headers_are_bounded() {
    let header = [0x78, 0xf9, 0xe3, 0xc6, 0xa7, 0xc2];
    let bomb = miniz_oxide::deflate::compress_to_vec(&vec![0; 8 << 20], 9);
    let bombed = open_raw(1, &[&header[..], &bomb].concat());
    assert!(fails(spdy(), From::Client, bombed).contains("too large"));
    for block in [
        u32::MAX.to_be_bytes().to_vec(),
        [1_u32.to_be_bytes(), (1_u32 << 31).to_be_bytes()].concat(),
    ] {
        let sent = open_raw(1, &[&header[..], &stored(&block)].concat());
        assert!(fails(spdy(), From::Client, sent).contains("headers"));
    }
    assert!(fails(spdy(), From::Client, vec![0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]).contains("too large"));
}

#[test]
fn s_02_settings_are_bounded() {
    assert!(fails(spdy(), From::Client, vec![0x80, 3, 0, 4, 0, 0xff, 0xff, 0xff]).contains("too long"));
}

#[test]
fn s_03_streams_are_bounded() {
    let mut many = open(1, true, &[("streamtype", "error")]);
    for number in 1..100_u32 {
        many.extend(open(2 * number + 1, false, &[("streamtype", "stdout")]));
        many.extend(control(3, &[0; 8]));
    }
    assert!(fails(spdy(), From::Client, many).contains("second stream"));
}

#[test]
fn s_04_a_long_frame_is_not_gathered() {
    let mut recorder = spdy();
    recorder.feed(From::Client, &opened(), Duration::ZERO).unwrap();
    let head = [&OUTPUT.to_be_bytes()[..], &[0, 0xff, 0xff, 0xff]].concat();
    recorder.feed(From::Server, &head, Duration::ZERO).unwrap();
    for _ in 0..1000 {
        let told = recorder.feed(From::Server, b"x", Duration::ZERO).unwrap();
        assert_eq!(told, b"[0.0,\"o\",\"x\"]\n");
    }
}

#[test]
fn s_05_compression_that_is_broken_ends_it() {
    let other = open_raw(1, &[&[0x78, 0xf9, 1, 2, 3, 4][..], &stored(&pairs(&[]))].concat());
    assert!(fails(spdy(), From::Client, other).contains("SPDY/3"));
    let garbage = open_raw(3, b"\xff\xff\xff\xff\xff\xff");
    assert!(
        fails(
            spdy(),
            From::Client,
            [open(1, true, &[("streamtype", "error")]), garbage].concat()
        )
        .contains("decompressed")
    );
    // A second zlib stream where the first goes on.
    let again = open(3, true, &[("streamtype", "stdout")]);
    fails(
        spdy(),
        From::Client,
        [open(1, true, &[("streamtype", "error")]), again].concat(),
    );
    assert!(fails(spdy(), From::Server, open(2, true, &[])).contains("server opens"));
}

#[test]
fn s_06_numbers_of_streams() {
    for id in [0, 2, 1 << 30] {
        assert!(fails(spdy(), From::Client, open(id, true, &[("streamtype", "error")])).contains("number"));
    }
    for second in [5, 3] {
        let sent = [
            open(5, true, &[("streamtype", "error")]),
            open(second, false, &[("streamtype", "stdout")]),
        ];
        assert!(fails(spdy(), From::Client, sent.concat()).contains("number"));
    }
    for id in [129, 257, 0x7fff_ffff] {
        let script = vec![
            (From::Client, open(id, true, &[("streamtype", "stdout")])),
            (From::Server, data(id, false, b"x")),
        ];
        assert_eq!(shown(spdy(), &script), "o:x;");
    }
}

#[test]
fn s_07_streams_are_what_they_say_and_once() {
    for headers in [
        &[("streamtype", "stdout"), ("streamtype", "stderr")][..],
        &[("StreamType", "stdout")],
        &[("streamtype", "other")],
        &[("port", "80")],
        &[("", "x"), ("streamtype", "stdout")],
    ] {
        fails(spdy(), From::Client, open(1, true, headers));
    }
    let twice = [
        open(1, true, &[("streamtype", "stdout")]),
        open(3, false, &[("streamtype", "stdout")]),
    ];
    assert!(fails(spdy(), From::Client, twice.concat()).contains("second"));
    assert!(fails(spdy(), From::Server, data(9, false, b"x")).contains("nobody"));
    let mut recorder = spdy();
    recorder.feed(From::Client, &opened(), Duration::ZERO).unwrap();
    assert!(
        fails(
            recorder,
            From::Server,
            [data(OUTPUT, true, b"x"), data(OUTPUT, false, b"y")].concat()
        )
        .contains("ended")
    );
}

#[test]
fn s_08_frames_of_websockets() {
    let bad = |from, bytes: &[u8]| fails(websocket(), from, bytes.to_vec());
    assert!(bad(From::Client, &[0x82, 1, 0]).contains("masked"));
    assert!(bad(From::Server, &[0x82, 0x81, 0, 0, 0, 0, 0]).contains("masked"));
    for reserved in [0xc2, 0xa2, 0x92] {
        assert!(bad(From::Server, &[reserved, 1, 0]).contains("bits"));
    }
    assert!(bad(From::Server, &[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0]).contains("too long"));
    for sent in [
        &[0x89, 126, 0, 126][..],
        &[0x09, 0],
        &[0x80, 0],
        &[0x83, 0],
        &[0x02, 1, 1, 0x82, 1, 1],
    ] {
        assert!(bad(From::Server, sent).contains("where it may be"), "{sent:?}");
    }
}

#[test]
fn s_09_channels_that_are_closed_or_unknown_mean_nothing() {
    let sent = [&[255, 9][..], &[255, 0], &[255, 0], &[77, 1], &[]]
        .map(|payload| frame(From::Client, 0x82, payload));
    let script = vec![
        (From::Client, sent.concat()),
        (From::Server, frame(From::Server, 0x82, b"\x01x")),
    ];
    assert_eq!(shown(websocket(), &script), "o:x;");
}

#[test]
fn whoever_is_cut_off_is_told_in_the_protocol() {
    let mut recorder = spdy();
    assert_eq!(recorder.farewell(b"why"), None, "there is no error stream yet");
    recorder.feed(From::Client, &opened(), Duration::ZERO).unwrap();
    assert_eq!(recorder.farewell(b"why"), Some(data(ERROR, true, b"why")));
    recorder
        .feed(From::Server, &data(OUTPUT, false, b"half")[..9], Duration::ZERO)
        .unwrap();
    assert_eq!(recorder.farewell(b"why"), None, "in the midst of a frame");
    let told = websocket().farewell(b"why").unwrap();
    assert_eq!(told, b"\x82\x7e\0\x04\x03why\x88\x02\x03\xf3");
}
