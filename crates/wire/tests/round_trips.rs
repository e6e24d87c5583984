//! What is encoded is decoded to the same.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests, too"
)]

mod samples;

use std::fmt::Debug;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tailwharf_wire::key::{DiscoPrivate, DiscoPublic, NodePrivate, NodePublic};
use tailwharf_wire::map_frame::{self, Compression};
use tailwharf_wire::tailcfg::{MapRequest, MapResponse, Node, RegisterRequest};
use tailwharf_wire::{derp, disco, json, stun, tsmp};

fn node_key() -> impl Strategy<Value = NodePublic> {
    any::<[u8; 32]>().prop_map(NodePublic::from_bytes)
}

fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..max).prop_map(Bytes::from)
}

/// An address without IPv6 zone and flow label, which no format here carries.
fn address() -> impl Strategy<Value = SocketAddr> {
    (any::<std::net::IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip.to_canonical(), port))
}

fn derp_frame() -> impl Strategy<Value = derp::Frame> {
    use derp::{Frame, PeerGoneReason};
    let millis = || any::<u32>().prop_map(|ms| Duration::from_millis(ms.into()));
    let reason = prop_oneof![
        Just(PeerGoneReason::Disconnected),
        Just(PeerGoneReason::NotHere),
        (2..=255u8).prop_map(PeerGoneReason::Other),
    ];
    prop_oneof![
        node_key().prop_map(Frame::ServerKey),
        (node_key(), bytes(300)).prop_map(|(key, sealed)| Frame::ClientInfo { key, sealed }),
        bytes(300).prop_map(|sealed| Frame::ServerInfo { sealed }),
        (node_key(), bytes(3000)).prop_map(|(to, packet)| Frame::SendPacket { to, packet }),
        (node_key(), bytes(3000)).prop_map(|(from, packet)| Frame::RecvPacket { from, packet }),
        Just(Frame::KeepAlive),
        any::<bool>().prop_map(Frame::NotePreferred),
        (node_key(), reason).prop_map(|(peer, reason)| Frame::PeerGone { peer, reason }),
        any::<[u8; 8]>().prop_map(Frame::Ping),
        any::<[u8; 8]>().prop_map(Frame::Pong),
        any::<String>().prop_map(Frame::Health),
        (millis(), millis()).prop_map(|(reconnect_in, try_for)| Frame::Restarting {
            reconnect_in,
            try_for
        }),
    ]
}

fn disco_message() -> impl Strategy<Value = disco::Message> {
    use disco::{Message, TxId};
    let tx_id = || any::<[u8; 12]>().prop_map(TxId);
    prop_oneof![
        (tx_id(), node_key(), 0..1400usize).prop_map(|(tx_id, node_key, padding)| Message::Ping {
            tx_id,
            node_key,
            padding
        }),
        (tx_id(), address()).prop_map(|(tx_id, src)| Message::Pong { tx_id, src }),
        prop::collection::vec(address(), 0..disco::MAX_ENDPOINTS)
            .prop_map(|endpoints| Message::CallMeMaybe { endpoints }),
        (4..=255u8).prop_map(Message::Unknown),
    ]
}

fn tsmp_message() -> impl Strategy<Value = tsmp::Message> {
    use tsmp::{Message, RejectReason};
    let reason = prop_oneof![
        Just(RejectReason::Acl),
        Just(RejectReason::ShieldsUp),
        Just(RejectReason::IpForwarding),
        Just(RejectReason::HostFirewall),
        Just(RejectReason::UnknownTransitIp),
        (128..=255u8).prop_map(RejectReason::Other),
    ];
    prop_oneof![
        (any::<(u8, u16, u16, bool)>(), reason).prop_map(
            |((protocol, src_port, dst_port, maybe_broken), reason)| Message::Reject {
                protocol,
                reason,
                src_port,
                dst_port,
                maybe_broken,
            }
        ),
        any::<[u8; 8]>().prop_map(Message::Ping),
        any::<([u8; 8], u16)>().prop_map(|(data, peer_api_port)| Message::Pong { data, peer_api_port }),
        any::<[u8; 32]>().prop_map(|key| Message::DiscoKey(DiscoPublic::from_bytes(key))),
    ]
}

/// Drops fields, makes them `null`, and changes the case of keys.
fn scramble(value: &mut Value, rng: &mut StdRng) {
    match value {
        Value::Object(fields) => {
            for (name, mut field) in std::mem::take(fields) {
                scramble(&mut field, rng);
                let name = match rng.gen_range(0..8) {
                    0 => continue,
                    1 => name.to_lowercase(),
                    2 => name.to_uppercase(),
                    _ => name,
                };
                let field = if rng.gen_range(0..8) == 0 {
                    Value::Null
                } else {
                    field
                };
                fields.insert(name, field);
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| scramble(value, rng)),
        _ => {}
    }
}

fn survives<T: Serialize + DeserializeOwned + PartialEq + Debug>(mut value: Value, seed: u64) -> T {
    scramble(&mut value, &mut StdRng::seed_from_u64(seed));
    let message: T = json::from_slice(value.to_string().as_bytes()).unwrap();
    let again: T = json::from_slice(&json::to_vec(&message).unwrap()).unwrap();
    assert_eq!(again, message);
    message
}

proptest! {
    #[test]
    fn keys(raw in any::<[u8; 32]>()) {
        let public = NodePublic::from_bytes(raw);
        prop_assert_eq!(public.to_string().parse::<NodePublic>().unwrap(), public);
        let text = json::to_vec(&public).unwrap();
        prop_assert_eq!(json::from_slice::<NodePublic>(&text).unwrap(), public);
        let private = NodePrivate::from_bytes(raw);
        let again: NodePrivate = private.to_text().parse().unwrap();
        prop_assert_eq!(again.as_bytes(), &raw);
    }

    #[test]
    fn derp_frames_in_place_are_those_that_own_their_memory(frames in prop::collection::vec(derp_frame(), 1..6), missing in 0..50usize) {
        let mut encoded = BytesMut::new();
        for frame in &frames {
            frame.encode(&mut encoded);
        }
        encoded.truncate(encoded.len() - missing.min(encoded.len()));
        let mut owned = encoded.clone();
        let mut rest = &mut encoded[..];
        while let Some(mut frame) = derp::RawFrame::split_off(&mut rest).unwrap() {
            let expected = derp::Frame::decode(&mut owned).unwrap();
            prop_assert_eq!(Some(frame.to_frame().unwrap()), expected.clone());
            let sent = frame.send_packet().map(|(key, packet)| (key, packet.to_vec()));
            let received = frame.recv_packet().map(|(key, packet)| (key, packet.to_vec()));
            match expected {
                Some(derp::Frame::SendPacket { to, packet }) => prop_assert_eq!(sent, Some((to, packet.to_vec()))),
                Some(derp::Frame::RecvPacket { from, packet }) => prop_assert_eq!(received, Some((from, packet.to_vec()))),
                _ => prop_assert_eq!((sent, received), (None, None)),
            }
        }
        prop_assert_eq!(derp::Frame::decode(&mut owned).unwrap(), None);
        prop_assert_eq!(&rest[..], &owned[..]);
    }

    #[test]
    fn derp_frames_in_pieces(frames in prop::collection::vec(derp_frame(), 1..6), piece in 1..2000usize) {
        let mut stream = BytesMut::new();
        for frame in &frames {
            frame.encode(&mut stream);
        }
        let mut received = BytesMut::new();
        let mut decoded = Vec::new();
        for piece in stream.chunks(piece) {
            received.extend_from_slice(piece);
            while let Some(frame) = derp::Frame::decode(&mut received).unwrap() {
                decoded.push(frame);
            }
        }
        prop_assert_eq!(decoded, frames);
    }

    #[test]
    fn disco_messages(message in disco_message(), seed in any::<u64>()) {
        let mut rng = StdRng::seed_from_u64(seed);
        let (alice, bob) = (DiscoPrivate::generate(&mut rng), DiscoPrivate::generate(&mut rng));
        let mut packet = Vec::new();
        message.seal(&alice.public(), &alice.shared(&bob.public()), &mut rng, &mut packet).unwrap();
        let sender = disco::sender(&packet).unwrap();
        prop_assert_eq!(disco::Message::open(&mut packet, &bob.shared(&sender)).unwrap(), message);
    }

    #[test]
    fn stun_packets(tx_id in any::<[u8; 12]>().prop_map(stun::TxId), seen in address()) {
        prop_assert_eq!(stun::parse_request(&stun::request(tx_id)), Ok(tx_id));
        let mut packet = Vec::new();
        stun::encode_response(tx_id, seen, &mut packet);
        prop_assert_eq!(stun::parse_response(&packet), Ok((tx_id, seen)));
    }

    #[test]
    fn tsmp_messages(message in tsmp_message()) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        prop_assert_eq!(tsmp::Message::decode(&bytes), Ok(message));
    }

    #[test]
    fn control_messages(seed in any::<u64>()) {
        survives::<Node>(samples::node(), seed);
        survives::<MapRequest>(samples::map_request(), seed);
        survives::<RegisterRequest>(samples::register_request(), seed);
        let response = survives::<MapResponse>(samples::map_response(), seed);
        for compression in [Compression::None, Compression::Zstd] {
            let mut frame = BytesMut::from(&map_frame::encode(&response, compression).unwrap()[..]);
            let again = map_frame::decode(&mut frame, compression).unwrap().unwrap();
            prop_assert_eq!(&again, &response);
            prop_assert!(frame.is_empty());
        }
    }
}
