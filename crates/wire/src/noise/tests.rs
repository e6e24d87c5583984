use bytes::BytesMut;
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use x25519_dalek::StaticSecret;

use super::handshake::respond_body;
use super::*;
use crate::key::{ChallengePrivate, MachinePrivate, MachinePublic};
use crate::tailcfg::EarlyNoise;

fn hex32(text: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).unwrap();
    bytes
}

/// The vector of the Cacophony project for `Noise_IK_25519_ChaChaPoly_BLAKE2s`.
#[test]
fn known_answers_of_cacophony() {
    let prologue = b"John Galt";
    let machine = MachinePrivate::from_bytes(hex32(
        "e61ef9919cde45dd5f82166404bd08e38bceb5dfdfded0a34c8df7ed542214d1",
    ));
    let server = MachinePrivate::from_bytes(hex32(
        "4a3acbfdb163dec651dfa3194dece676d437029c62a408b4c5ea9114246e4893",
    ));
    let initiator_ephemeral = StaticSecret::from(hex32(
        "893e28b9dc6ca8d611ab664754b8ceb7bac5117349a4439a6b0569da977c464a",
    ));
    let responder_ephemeral = StaticSecret::from(hex32(
        "bbdb4cdbd309f1a1f2e1456967fe288cadd6f712d65dc7b7793d5e63da6b375b",
    ));

    let (initiator, initiation) = Initiator::start(
        machine.secret(),
        &server.public(),
        prologue,
        initiator_ephemeral,
        b"Ludwig von Mises",
    )
    .unwrap();
    assert_eq!(
        hex::encode(&initiation),
        "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c79440b03ddc7aac5123d06a1b23b71670e32\
         e76c28239a7ca4ac8f784de7e44c1adbfc6e83fef7352a58d9d56157400c0a737b1d171ce368229c7b752ac25b8faf4e\
         ca690f6d896f543be02c996ab2b86b76"
    );

    let (answer, payload) = respond_body(
        &server,
        prologue,
        &initiation,
        &responder_ephemeral,
        b"Murray Rothbard",
    )
    .unwrap();
    assert_eq!(payload, b"Ludwig von Mises");
    assert_eq!(answer.machine, machine.public());
    assert_eq!(
        hex::encode(&answer.body),
        "95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f144808843d9b5a8927f0ac9655ef76833bc7e5561\
         f42e691ac8404efd6fbd6308b6a27c"
    );

    let (mut client, payload) = initiator.finish_body(&answer.body).unwrap();
    assert_eq!(payload, b"Murray Rothbard");
    let mut records = BytesMut::new();
    client.sealer.seal(b"F. A. Hayek", &mut records).unwrap();
    assert_eq!(
        hex::encode(&records),
        "04001b2c256ed08fcd08c2980f954ee4beaccb61c9581340f5dd2fd1cf3b"
    );
    let mut server = answer.session;
    let mut back = BytesMut::new();
    server.sealer.seal(b"Carl Menger", &mut back).unwrap();
    assert_eq!(
        hex::encode(&back),
        "04001bd6033f70eee20945c7c9dba304e397ee3b284ff5e00fd9efb095d3"
    );
    assert_eq!(server.opener.open(&mut records).unwrap().unwrap(), "F. A. Hayek");
    assert_eq!(client.opener.open(&mut back).unwrap().unwrap(), "Carl Menger");
}

/// The vector of the snow project for the same pattern.
#[test]
fn known_answer_of_snow() {
    let machine = MachinePrivate::from_bytes(hex32(
        "b7e117ce8ede06ceb89500799a3778d097fc54a3f90bea744493dfc24ec21f32",
    ));
    let server = MachinePublic::from_bytes(hex32(
        "ea82fd2e81d1285f1b2029e46ca7bcaeeeafed15396d002bd434624a4d580655",
    ));
    let ephemeral = StaticSecret::from(hex32(
        "cc95b4ccc4912c5a52c8d2f6b808e13712392c4468f4e3f02a7d2d1590cb9178",
    ));
    let payload = hex32("910ef4a7c04090f66403fcd8ffaed066e70ed38b576792c4a554cc5016fe5120");
    let (_, initiation) = Initiator::start(
        machine.secret(),
        &server,
        b"There is no right and wrong. There's only fun and boring.",
        ephemeral,
        &payload,
    )
    .unwrap();
    assert_eq!(
        hex::encode(initiation),
        "df44a475167152d3e4767b9ad5b28468fb8bd6aaa0b0e7181afd87ede7a8c971e818de301c97393bfa71ac250becfc8a\
         cef64a969e039f407fe44c5ffc3d66d94ff57627ad4cc53882a1b2993babac3940edd1eaff34a3d3f08c53570166b3d2\
         9d06bd5de3cfb9b85b66001a60a5bb98d72b80da9485655f86db72b46f745c4e"
    );
}

struct Pair {
    client: Session,
    server: Session,
}

fn rng() -> StdRng {
    StdRng::seed_from_u64(7)
}

fn pair() -> Pair {
    let mut rng = rng();
    let machine = MachinePrivate::generate(&mut rng);
    let server = MachinePrivate::generate(&mut rng);
    let (initiator, initiation) = Initiator::new(&machine, &server.public(), 131, &mut rng).unwrap();
    assert_eq!(initiation[..5], [0, 131, 1, 0, 96]);
    let accepted = respond(&server, &initiation, &mut rng).unwrap();
    assert_eq!((accepted.version, accepted.machine), (131, machine.public()));
    assert_eq!(accepted.response[..3], [2, 0, 48]);
    let mut buf = BytesMut::from(&accepted.response[..]);
    let response = Frame::decode(&mut buf).unwrap().unwrap();
    assert!(buf.is_empty());
    Pair {
        client: initiator.finish(&response).unwrap(),
        server: accepted.session,
    }
}

#[test]
fn a_response_that_comes_in_pieces_is_awaited() {
    let frame = error_frame("client is too old");
    let mut buf = BytesMut::new();
    for byte in &frame[..frame.len() - 1] {
        buf.extend_from_slice(&[*byte]);
        assert_eq!(Frame::decode(&mut buf).unwrap(), None);
    }
}

#[test]
fn a_changed_version_ends_the_handshake() {
    let mut rng = rng();
    let server = MachinePrivate::generate(&mut rng);
    let machine = MachinePrivate::generate(&mut rng);
    let (_, mut initiation) = Initiator::new(&machine, &server.public(), 131, &mut rng).unwrap();
    initiation[1] ^= 1;
    assert!(matches!(
        respond(&server, &initiation, &mut rng),
        Err(NoiseError::Decrypt)
    ));
}

#[test]
fn a_server_without_the_key_is_refused() {
    let mut rng = rng();
    let server = MachinePrivate::generate(&mut rng);
    let (_, initiation) = Initiator::new(
        &MachinePrivate::generate(&mut rng),
        &MachinePrivate::generate(&mut rng).public(),
        131,
        &mut rng,
    )
    .unwrap();
    assert!(matches!(
        respond(&server, &initiation, &mut rng),
        Err(NoiseError::Decrypt)
    ));
}

#[test]
fn a_key_of_low_order_is_refused() {
    let mut rng = rng();
    let server = MachinePrivate::generate(&mut rng);
    let mut initiation = [0; INITIATION_LEN];
    initiation[2] = 1;
    initiation[4] = 96;
    assert!(matches!(
        respond(&server, &initiation, &mut rng),
        Err(NoiseError::LowOrderKey)
    ));
    let zero = MachinePublic::default();
    let machine = MachinePrivate::generate(&mut rng);
    assert!(matches!(
        Initiator::new(&machine, &zero, 131, &mut rng),
        Err(NoiseError::LowOrderKey)
    ));
}

#[test]
fn a_refusal_is_told_with_its_reason() {
    let mut rng = rng();
    let server = MachinePrivate::generate(&mut rng);
    let machine = MachinePrivate::generate(&mut rng);
    let (initiator, _) = Initiator::new(&machine, &server.public(), 131, &mut rng).unwrap();
    let mut buf = BytesMut::from(&error_frame("client is too old")[..]);
    let frame = Frame::decode(&mut buf).unwrap().unwrap();
    let Err(NoiseError::Refused(reason)) = initiator.finish(&frame) else {
        panic!("not refused")
    };
    assert_eq!(reason, "client is too old");

    let mut buf = BytesMut::from(&error_frame(&"ä".repeat(5000))[..]);
    assert!(buf.len() <= MAX_FRAME_LEN);
    assert!(matches!(
        pair().client.opener.open(&mut buf),
        Err(NoiseError::Refused(_))
    ));
}

#[test]
fn records_open_once_and_in_order() {
    let Pair {
        mut client,
        mut server,
    } = pair();
    let mut wire = BytesMut::new();
    client.sealer.seal(b"one", &mut wire).unwrap();
    let mut first = wire.clone();
    client.sealer.seal(b"", &mut wire).unwrap();
    assert_eq!(server.opener.open(&mut wire).unwrap().unwrap(), "one");
    assert_eq!(server.opener.open(&mut wire).unwrap().unwrap(), "");
    assert!(server.opener.open(&mut wire).unwrap().is_none());
    assert!(matches!(server.opener.open(&mut first), Err(NoiseError::Decrypt)));
}

#[test]
fn nonces_count_in_big_endian_and_end() {
    let mut counter = 0x0102_0304_0506_0708;
    assert_eq!(
        next_nonce(&mut counter).unwrap().as_ref(),
        &[0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]
    );
    let mut counter = u64::MAX;
    assert!(matches!(next_nonce(&mut counter), Err(NoiseError::Exhausted)));
}

#[test]
fn records_have_a_limit() {
    let Pair {
        mut client,
        mut server,
    } = pair();
    let mut wire = BytesMut::new();
    client.sealer.seal(&[7; MAX_PLAINTEXT_LEN], &mut wire).unwrap();
    assert_eq!(wire.len(), MAX_FRAME_LEN);
    assert_eq!(
        server.opener.open(&mut wire).unwrap().unwrap().len(),
        MAX_PLAINTEXT_LEN
    );
    assert!(matches!(
        client.sealer.seal(&[7; MAX_PLAINTEXT_LEN + 1], &mut wire),
        Err(NoiseError::TooLong(_))
    ));
    let mut long = BytesMut::from(&[4, 0x0f, 0xfe][..]);
    assert!(matches!(
        server.opener.open(&mut long),
        Err(NoiseError::Length { .. })
    ));
    let mut short = BytesMut::from(&[4, 0, 2, 1, 1][..]);
    assert!(matches!(server.opener.open(&mut short), Err(NoiseError::Decrypt)));
}

#[test]
fn early_payload_golden() {
    let challenge = ChallengePrivate::from_bytes([1; 32]).public();
    let early = EarlyNoise {
        node_key_challenge: challenge,
    };
    let bytes = encode_early(&early);
    let json = format!(r#"{{"nodeKeyChallenge":"{challenge}"}}"#);
    assert_eq!(
        bytes[..9],
        [0xff, 0xff, 0xff, b'T', b'S', 0, 0, 0, json.len() as u8]
    );
    assert_eq!(&bytes[9..], json.as_bytes());

    let mut buf = BytesMut::from(&bytes[..]);
    buf.extend_from_slice(b"PRI");
    assert_eq!(Early::decode(&mut buf).unwrap(), Early::Payload(early));
    assert_eq!(buf, "PRI");
    assert_eq!(Early::decode(&mut buf).unwrap(), Early::Absent);
    assert_eq!(
        Early::decode(&mut BytesMut::from(&bytes[..7])).unwrap(),
        Early::Incomplete
    );
    let mut long = BytesMut::from(&[0xff, 0xff, 0xff, b'T', b'S', 1, 0, 0, 0][..]);
    assert!(matches!(
        Early::decode(&mut long),
        Err(NoiseError::EarlyPayloadLength(_))
    ));
}

proptest! {
    #[test]
    fn what_is_sealed_is_opened(messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..8)) {
        let Pair { mut client, mut server } = pair();
        let mut wire = BytesMut::new();
        for message in &messages {
            server.sealer.seal(message, &mut wire).unwrap();
        }
        for message in &messages {
            prop_assert_eq!(&client.opener.open(&mut wire).unwrap().unwrap(), message);
        }
        prop_assert!(wire.is_empty());
    }

    #[test]
    fn a_changed_initiation_is_refused(at in 0..INITIATION_LEN, bit in 0..8u8) {
        let mut rng = rng();
        let server = MachinePrivate::generate(&mut rng);
        let machine = MachinePrivate::generate(&mut rng);
        let (_, mut initiation) = Initiator::new(&machine, &server.public(), 131, &mut rng).unwrap();
        initiation[at] ^= 1 << bit;
        // X25519 ignores the highest bit of a public key, but the hash of the handshake does not.
        prop_assert!(respond(&server, &initiation, &mut rng).is_err());
    }
}
