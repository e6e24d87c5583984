//! Every decoder of the crate as a function of bytes that must not panic, whatever the bytes are. The tests run these on the
//! corpus and on random input; the fuzz targets in `/fuzz` run them under libFuzzer.

use bytes::BytesMut;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tailwharf_wire::key::{
    DiscoPrivate, DiscoPublic, MachinePrivate, MachinePublic, NodePrivate, NodePublic,
};
use tailwharf_wire::map_frame::{self, Compression};
use tailwharf_wire::noise::{Early, Frame, Initiator, respond};
use tailwharf_wire::tailcfg::{MapRequest, MapResponse, RegisterRequest, RegisterResponse};
use tailwharf_wire::{derp, disco, json, stun, tsmp};

type Decoder = fn(&[u8]);

/// All decoders by the names of their corpora.
pub(crate) const DECODERS: &[(&str, Decoder)] = &[
    ("key", key),
    ("noise", noise),
    ("control", control),
    ("map_frame", map_frame),
    ("derp", derp),
    ("disco", disco),
    ("stun", stun),
    ("tsmp", tsmp),
];

/// Runs `decode` until it wants more input or fails. Each success must take something off the buffer.
fn drain<T, E>(input: &[u8], mut decode: impl FnMut(&mut BytesMut) -> Result<Option<T>, E>) {
    let mut buf = BytesMut::from(input);
    loop {
        let before = buf.len();
        match decode(&mut buf) {
            Ok(Some(_)) => assert!(buf.len() < before, "decoded something out of nothing"),
            Ok(None) | Err(_) => return,
        }
    }
}

pub(crate) fn key(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Ok(key) = text.parse::<NodePublic>()
        && !text.is_empty()
    {
        assert_eq!(key.to_string(), text.to_lowercase());
    }
    let _ = text.parse::<MachinePublic>();
    let _ = text.parse::<NodePrivate>();
    let _ = json::from_slice::<DiscoPublic>(input);
}

pub(crate) fn noise(input: &[u8]) {
    let mut rng = StdRng::seed_from_u64(0);
    let server = MachinePrivate::from_bytes([1; 32]);
    let machine = MachinePrivate::from_bytes([2; 32]);
    let _ = respond(&server, input, &mut rng);
    drain(input, Frame::decode);
    let (initiator, initiation) = Initiator::new(&machine, &server.public(), 131, &mut rng).unwrap();
    if let Ok(Some(frame)) = Frame::decode(&mut BytesMut::from(input)) {
        let _ = initiator.finish(&frame);
    }
    let mut session = respond(&server, &initiation, &mut rng).unwrap().session;
    drain(input, |buf| session.opener.open(buf));
    drain(input, |buf| {
        Early::decode(buf).map(|early| match early {
            Early::Payload(payload) => Some(payload),
            Early::Absent | Early::Incomplete => None,
        })
    });
}

pub(crate) fn control(input: &[u8]) {
    let _ = json::from_slice::<RegisterRequest>(input);
    let _ = json::from_slice::<RegisterResponse>(input);
    let _ = json::from_slice::<MapRequest>(input);
    if let Ok(response) = json::from_slice::<MapResponse>(input) {
        let again = json::to_vec(&response).unwrap();
        assert_eq!(json::from_slice::<MapResponse>(&again).unwrap(), response);
    }
}

pub(crate) fn map_frame(input: &[u8]) {
    drain(input, |buf| map_frame::decode(buf, Compression::None));
    drain(input, |buf| map_frame::decode(buf, Compression::Zstd));
}

pub(crate) fn derp(input: &[u8]) {
    let relay = NodePrivate::from_bytes([1; 32]);
    let peer = NodePrivate::from_bytes([2; 32]).public();
    let mut in_place = input.to_vec();
    let mut rest = &mut in_place[..];
    while let Ok(Some(mut frame)) = derp::RawFrame::split_off(&mut rest) {
        drop(frame.to_frame());
        let _ = frame.send_packet();
        let _ = frame.recv_packet();
    }
    drain(input, |buf| {
        let frame = derp::Frame::decode(buf)?;
        match &frame {
            Some(derp::Frame::ClientInfo { key, sealed }) => {
                drop(derp::ClientInfo::open(sealed, key, &relay));
            }
            Some(derp::Frame::ServerInfo { sealed }) => {
                drop(derp::ServerInfo::open(sealed, &peer, &relay));
            }
            _ => {}
        }
        Ok::<_, derp::DerpError>(frame)
    });
}

pub(crate) fn disco(input: &[u8]) {
    let _ = disco::Message::decode(input);
    let own = DiscoPrivate::from_bytes([1; 32]);
    if let Some(sender) = disco::sender(input) {
        let _ = disco::Message::open(&mut input.to_vec(), &own.shared(&sender));
    }
    let _ = disco::Message::open(&mut input.to_vec(), &own.shared(&own.public()));
}

pub(crate) fn stun(input: &[u8]) {
    let request = stun::parse_request(input);
    let response = stun::parse_response(input);
    assert!(stun::is_stun(input) || (request.is_err() && response.is_err()));
    if let Ok((tx_id, seen)) = response {
        let mut packet = Vec::new();
        stun::encode_response(tx_id, seen, &mut packet);
        assert_eq!(stun::parse_response(&packet), Ok((tx_id, seen)));
    }
}

pub(crate) fn tsmp(input: &[u8]) {
    if let Ok(message) = tsmp::Message::decode(input) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        assert_eq!(tsmp::Message::decode(&bytes), Ok(message));
    }
}
