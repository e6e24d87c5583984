//! Bytes on the wire, written by hand from the specifications.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests, too"
)]

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tailwharf_wire::key::{DiscoPrivate, NodePrivate, NodePublic};
use tailwharf_wire::{derp, disco, stun, tsmp};

fn key(byte: u8) -> NodePublic {
    NodePublic::from_bytes([byte; 32])
}

fn hex32(text: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).unwrap();
    bytes
}

#[test]
fn keys_have_text_forms() {
    let text = "nodekey:00000000000000000000000000000000000000000000000000000000000000ff";
    let parsed: NodePublic = text.parse().unwrap();
    assert_eq!(parsed.as_bytes()[31], 0xff);
    assert_eq!(parsed.to_string(), text);
    assert!("".parse::<NodePublic>().unwrap().is_zero());
    for bad in [
        "nodekey:",
        "nodekey:0",
        "mkey:00",
        &text[..text.len() - 1],
        &format!("{text}0"),
        "nodekey:é",
    ] {
        assert!(bad.parse::<NodePublic>().is_err(), "{bad}");
    }
}

#[test]
fn private_keys_are_not_printed() {
    let private = NodePrivate::from_bytes([0xab; 32]);
    assert_eq!(format!("{private:?}"), "NodePrivate(redacted)");
    let text = private.to_text();
    assert_eq!(*text, format!("privkey:{}", "ab".repeat(32)));
    assert_eq!(
        text.parse::<NodePrivate>().unwrap().as_bytes(),
        private.as_bytes()
    );
}

/// RFC 7748, section 6.1: Alice's keys.
#[test]
fn public_keys_are_those_of_x25519() {
    let alice = NodePrivate::from_bytes(hex32(
        "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
    ));
    let public = hex32("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a");
    assert_eq!(alice.public(), NodePublic::from_bytes(public));
}

/// The box of the test suite of Sodium Compat.
#[test]
fn boxes_are_those_of_nacl() {
    let alice = NodePrivate::from_bytes(hex32(
        "68f208412d8dd5db9d0c6d18512e86f0ec75665ab841372d57b042b27ef89d4c",
    ));
    let bob = NodePrivate::from_bytes(hex32(
        "b581fb5ae182a16f603f39270d4e3b95bc008310b727a11dd4e784a0044d461b",
    ));
    let mut nonce = [0; 24];
    hex::decode_to_slice("69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37", &mut nonce).unwrap();
    let plaintext = hex::decode(
        "be075fc53c81f2d5cf141316ebeb0c7b5228c52a4c62cbd44b66849b64244ffce5ecbaaf33bd751a1ac728d45e6c6129\
         6cdc3c01233561f41db66cce314adb310e3be8250c46f06dceea3a7fa1348057e2f6556ad6b1318a024a838f21af1fde\
         048977eb48f59ffd4924ca1c60902e52f0a089bc76897040e082f937763848645e0705",
    )
    .unwrap();
    let mut ciphertext = hex::decode(
        "c03f27d188ef650cd12936913137bb17ed4c98c2648939e2e1d2e855470a7b8c632cabfd5ab3b3c2d313dc8c9ecf5da1\
         73e1f9c318cdef1dced6d2519e695085e6b5c401a2bd5331442986c7076d412625497c4cb2fd94c6f103961033b2c930\
         d7e82e0341f29d3879bd6ab9d881ea3a1f365d634e653c6e171aac7fc1e76934d23be6f04a54010808dbf0f9bd30f63b\
         68d026",
    )
    .unwrap();

    let mut sealed = plaintext.clone();
    let tag = alice
        .shared(&bob.public())
        .seal_in_place(&nonce, &mut sealed)
        .unwrap();
    assert_eq!((&tag[..], &sealed[..]), ciphertext.split_at(16));
    let bob_box = bob.shared(&alice.public());
    assert_eq!(
        bob_box.open_in_place(&nonce, &mut ciphertext.clone()).unwrap(),
        plaintext
    );
    ciphertext[0] ^= 1;
    assert!(bob_box.open_in_place(&nonce, &mut ciphertext).is_err());
    assert!(bob_box.open_in_place(&nonce, &mut [0; 15]).is_err());
}

#[test]
fn derp_frames() {
    let two = hex::encode([2; 32]);
    let cases: Vec<(derp::Frame, String)> = vec![
        (
            derp::Frame::ServerKey(key(2)),
            format!("0100000028{}{two}", "44455250f09f9491"),
        ),
        (
            derp::Frame::ClientInfo {
                key: key(2),
                sealed: Bytes::from_static(&[9, 9]),
            },
            format!("0200000022{two}0909"),
        ),
        (
            derp::Frame::ServerInfo {
                sealed: Bytes::from_static(&[9]),
            },
            "030000000109".into(),
        ),
        (
            derp::Frame::SendPacket {
                to: key(2),
                packet: Bytes::from_static(b"hi"),
            },
            format!("0400000022{two}6869"),
        ),
        (
            derp::Frame::RecvPacket {
                from: key(2),
                packet: Bytes::from_static(b"hi"),
            },
            format!("0500000022{two}6869"),
        ),
        (derp::Frame::KeepAlive, "0600000000".into()),
        (derp::Frame::NotePreferred(true), "070000000101".into()),
        (
            derp::Frame::PeerGone {
                peer: key(2),
                reason: derp::PeerGoneReason::NotHere,
            },
            format!("0800000021{two}01"),
        ),
        (
            derp::Frame::Ping(*b"12345678"),
            "12000000083132333435363738".into(),
        ),
        (
            derp::Frame::Pong(*b"12345678"),
            "13000000083132333435363738".into(),
        ),
        (derp::Frame::Health("dup".into()), "1400000003647570".into()),
        (
            derp::Frame::Restarting {
                reconnect_in: Duration::from_millis(258),
                try_for: Duration::from_secs(1),
            },
            "150000000800000102000003e8".into(),
        ),
    ];
    for (frame, expected) in cases {
        let mut buf = BytesMut::new();
        frame.encode(&mut buf);
        assert_eq!(hex::encode(&buf), expected);
        assert_eq!(derp::Frame::decode(&mut buf).unwrap(), Some(frame));
        assert!(buf.is_empty());
    }
    let mut buf = BytesMut::from(&derp::recv_packet_header(&key(2), 2)[..]);
    buf.extend_from_slice(b"hi");
    assert_eq!(hex::encode(buf), format!("0500000022{two}6869"));
}

#[test]
fn derp_frames_of_other_versions() {
    let mut old_peer_gone =
        BytesMut::from(&hex::decode(format!("0800000020{}", "02".repeat(32))).unwrap()[..]);
    assert_eq!(
        derp::Frame::decode(&mut old_peer_gone).unwrap(),
        Some(derp::Frame::PeerGone {
            peer: key(2),
            reason: derp::PeerGoneReason::Disconnected
        })
    );
    let mut future = BytesMut::from(&[0x77, 0, 0, 0, 1, 5, 0x06, 0, 0, 0, 0][..]);
    assert_eq!(
        derp::Frame::decode(&mut future).unwrap(),
        Some(derp::Frame::Unknown(0x77))
    );
    assert_eq!(
        derp::Frame::decode(&mut future).unwrap(),
        Some(derp::Frame::KeepAlive)
    );
}

#[test]
fn derp_frames_have_limits() {
    for (kind, len) in [
        (4, 32 + derp::MAX_PACKET_LEN),
        (2, 32 + derp::MAX_INFO_LEN),
        (6, derp::MAX_OTHER_LEN),
        (0x77, derp::MAX_OTHER_LEN),
    ] {
        let header = |len: usize| {
            let mut buf = BytesMut::from(&[kind][..]);
            buf.extend_from_slice(&(len as u32).to_be_bytes());
            buf
        };
        assert_eq!(derp::Frame::decode(&mut header(len)).unwrap(), None);
        assert_eq!(
            derp::Frame::decode(&mut header(len + 1)),
            Err(derp::DerpError::TooLong { kind, len: len + 1 })
        );
    }
    let mut short = BytesMut::from(&[4, 0, 0, 0, 1, 0][..]);
    assert_eq!(
        derp::Frame::decode(&mut short),
        Err(derp::DerpError::TooShort { kind: 4, len: 1 })
    );
    let mut magic = BytesMut::from(&[1, 0, 0, 0, 40][..]);
    magic.extend_from_slice(&[0; 40]);
    assert_eq!(derp::Frame::decode(&mut magic), Err(derp::DerpError::Magic));
}

#[test]
fn derp_infos_open_for_whom_they_are_sealed() {
    let mut rng = StdRng::seed_from_u64(1);
    let (client, relay, other) = (
        NodePrivate::generate(&mut rng),
        NodePrivate::generate(&mut rng),
        NodePrivate::generate(&mut rng),
    );
    let info = derp::ClientInfo {
        version: derp::PROTOCOL_VERSION,
        can_ack_pings: true,
        ..derp::ClientInfo::default()
    };
    let derp::Frame::ClientInfo { key, sealed } = info.seal(&client, &relay.public(), &mut rng).unwrap()
    else {
        panic!("another frame")
    };
    assert_eq!(key, client.public());
    assert_eq!(derp::ClientInfo::open(&sealed, &key, &relay).unwrap(), info);
    assert_eq!(
        derp::ClientInfo::open(&sealed, &other.public(), &relay),
        Err(derp::DerpError::Sealed)
    );
    assert_eq!(
        derp::ClientInfo::open(&sealed[..30], &key, &relay),
        Err(derp::DerpError::Sealed)
    );

    let info = derp::ServerInfo {
        version: derp::PROTOCOL_VERSION,
        ..derp::ServerInfo::default()
    };
    let derp::Frame::ServerInfo { sealed } = info.seal(&relay, &client.public(), &mut rng).unwrap() else {
        panic!("another frame")
    };
    assert_eq!(
        derp::ServerInfo::open(&sealed, &relay.public(), &client).unwrap(),
        info
    );
}

#[test]
fn disco_messages() {
    let tx = disco::TxId(*b"0123456789ab");
    let tx_hex = hex::encode(tx.0);
    let v4: SocketAddr = "1.2.3.4:65535".parse().unwrap();
    let v6: SocketAddr = "[2001:db8::1]:256".parse().unwrap();
    let v4_hex = "00000000000000000000ffff01020304ffff";
    let v6_hex = "20010db80000000000000000000000010100";
    let cases = [
        (
            disco::Message::Ping {
                tx_id: tx,
                node_key: key(2),
                padding: 3,
            },
            format!("0100{tx_hex}{}000000", "02".repeat(32)),
        ),
        (
            disco::Message::Ping {
                tx_id: tx,
                node_key: NodePublic::default(),
                padding: 0,
            },
            format!("0100{tx_hex}"),
        ),
        (
            disco::Message::Pong { tx_id: tx, src: v4 },
            format!("0200{tx_hex}{v4_hex}"),
        ),
        (
            disco::Message::CallMeMaybe {
                endpoints: vec![v4, v6],
            },
            format!("0300{v4_hex}{v6_hex}"),
        ),
        (disco::Message::Unknown(9), "0900".into()),
    ];
    for (message, expected) in cases {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        assert_eq!(hex::encode(&bytes), expected);
        assert_eq!(disco::Message::decode(&bytes).unwrap(), message);
    }
    // Bytes that a later version adds are ignored.
    let longer = hex::decode(format!("0200{tx_hex}{v4_hex}ff")).unwrap();
    assert_eq!(
        disco::Message::decode(&longer).unwrap(),
        disco::Message::Pong { tx_id: tx, src: v4 }
    );
}

#[test]
fn disco_packets() {
    let mut rng = StdRng::seed_from_u64(1);
    let (alice, bob) = (DiscoPrivate::generate(&mut rng), DiscoPrivate::generate(&mut rng));
    let message = disco::Message::CallMeMaybe {
        endpoints: vec!["1.2.3.4:5".parse().unwrap()],
    };
    let mut packet = Vec::new();
    message
        .seal(
            &alice.public(),
            &alice.shared(&bob.public()),
            &mut rng,
            &mut packet,
        )
        .unwrap();
    assert_eq!(packet[..6], [0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac]);
    assert_eq!(packet[6..38], *alice.public().as_bytes());
    assert_eq!(packet.len(), 6 + 32 + 24 + 16 + 20);
    assert_eq!(disco::sender(&packet), Some(alice.public()));

    let shared = bob.shared(&alice.public());
    let mut changed = packet.clone();
    *changed.last_mut().unwrap() ^= 1;
    assert_eq!(
        disco::Message::open(&mut changed, &shared),
        Err(disco::DiscoError::Sealed)
    );
    assert_eq!(disco::Message::open(&mut packet, &shared).unwrap(), message);
    assert_eq!(disco::sender(&[0; 200]), None);
}

/// RFC 5769, section 2.2: the IPv4 response, whose attribute XOR-MAPPED-ADDRESS names 192.0.2.1:32853.
#[test]
fn stun_response_of_rfc_5769() {
    let packet = hex::decode(
        "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000080001a147e112a643\
         000800142b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96",
    )
    .unwrap();
    let (tx_id, seen) = stun::parse_response(&packet).unwrap();
    assert_eq!(hex::encode(tx_id.0), "b7e7a701bc34d686fa87dfae");
    assert_eq!(seen, "192.0.2.1:32853".parse().unwrap());
}

/// RFC 5769, section 2.3: the IPv6 response.
#[test]
fn stun_response_of_rfc_5769_ipv6() {
    let packet = hex::decode(
        "010100482112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000140002a1470113a9fa\
         a5d3f179bc25f4b5bed2b9d900080014a382954e4be67bf11784c97c8292c275bfe3ed4180280004c8fb0b4c",
    )
    .unwrap();
    let (_, seen) = stun::parse_response(&packet).unwrap();
    assert_eq!(
        seen,
        "[2001:db8:1234:5678:11:2233:4455:6677]:32853".parse().unwrap()
    );
}

#[test]
fn stun_request() {
    let tx_id = stun::TxId(*b"0123456789ab");
    let packet = stun::request(tx_id);
    assert_eq!(
        hex::encode(&packet[..36]),
        format!(
            "000100142112a442{}802200087461696c6e6f646580280004",
            hex::encode(tx_id.0)
        )
    );
    assert!(stun::is_stun(&packet));
    assert_eq!(stun::parse_request(&packet), Ok(tx_id));

    let mut changed = packet;
    changed[10] ^= 1;
    assert_eq!(stun::parse_request(&changed), Err(stun::StunError::Fingerprint));
    assert_eq!(
        stun::parse_request(&packet[..32]),
        Err(stun::StunError::Fingerprint)
    );
    assert_eq!(stun::parse_request(&packet[..20]), Err(stun::StunError::Software));
    assert_eq!(
        stun::parse_request(&packet[..38]),
        Err(stun::StunError::Attributes)
    );
    assert_eq!(
        stun::parse_response(&packet),
        Err(stun::StunError::UnexpectedType(1))
    );
}

#[test]
fn tsmp_messages() {
    let reject = |maybe_broken| tsmp::Message::Reject {
        protocol: 6,
        reason: tsmp::RejectReason::Acl,
        src_port: 0x1234,
        dst_port: 443,
        maybe_broken,
    };
    let cases = [
        (reject(false), "210641123401bb".to_owned()),
        (reject(true), "210641123401bb01".to_owned()),
        (tsmp::Message::Ping(*b"12345678"), "703132333435363738".into()),
        (
            tsmp::Message::Pong {
                data: *b"12345678",
                peer_api_port: 258,
            },
            "6f31323334353637380102".into(),
        ),
        (
            tsmp::Message::DiscoKey(tailwharf_wire::key::DiscoPublic::from_bytes([3; 32])),
            format!("61{}", "03".repeat(32)),
        ),
    ];
    for (message, expected) in cases {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        assert_eq!(hex::encode(&bytes), expected);
        assert_eq!(tsmp::Message::decode(&bytes), Ok(message));
        assert!(tsmp::Message::decode(&bytes[..bytes.len() / 2]).is_err());
    }
    assert!(tsmp::Message::decode(&[]).is_err());
    assert_eq!(tsmp::Message::decode(b"z"), Ok(tsmp::Message::Unknown(b'z')));
}
