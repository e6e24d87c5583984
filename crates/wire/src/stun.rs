//! STUN (RFC 5389), as far as nodes and relays need it: what is my address, seen from outside?
//!
//! A request holds the attribute SOFTWARE with the value `tailnode` and, as its last one, FINGERPRINT. Requests without these
//! are refused, as Tailscale's relays do: an answer is then hardly longer than what it answers, which makes the server
//! useless for reflected floods.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::BufMut;
use rand_core::CryptoRngCore;

/// Length of a request.
pub const REQUEST_LEN: usize = 40;

const BINDING_REQUEST: u16 = 0x0001;
const BINDING_SUCCESS: u16 = 0x0101;
const COOKIE: u32 = 0x2112_A442;
const HEADER_LEN: usize = 20;
const FINGERPRINT_LEN: usize = 8;
const FINGERPRINT_XOR: u32 = 0x5354_554E;
const SOFTWARE_NAME: &[u8; 8] = b"tailnode";

const MAPPED_ADDRESS: u16 = 0x0001;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
/// Sent by servers that followed a draft of the RFC.
const XOR_MAPPED_ADDRESS_DRAFT: u16 = 0x8020;
const SOFTWARE: u16 = 0x8022;
const FINGERPRINT: u16 = 0x8028;

/// Why a packet was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StunError {
    /// It is not STUN.
    #[error("not a STUN packet")]
    NotStun,
    /// It is STUN, but of another type.
    #[error("STUN packet of type {0:#06x} does not belong here")]
    UnexpectedType(u16),
    /// Its attributes do not fit its length.
    #[error("malformed attributes in a STUN packet")]
    Attributes,
    /// It does not end in the fingerprint of itself.
    #[error("STUN packet without a valid fingerprint")]
    Fingerprint,
    /// It comes from software that is no tailnet node.
    #[error("STUN request does not come from a tailnet node")]
    Software,
    /// It names no address.
    #[error("STUN response without an address")]
    NoAddress,
}

/// Ties a response to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TxId(pub [u8; 12]);

impl TxId {
    /// A new id.
    #[must_use]
    pub fn generate(rng: &mut impl CryptoRngCore) -> Self {
        let mut bytes = [0; 12];
        rng.fill_bytes(&mut bytes);
        Self(bytes)
    }
}

/// Whether `packet` is STUN, and so neither disco nor WireGuard.
#[must_use]
pub fn is_stun(packet: &[u8]) -> bool {
    header(packet).is_some()
}

/// Type, id and attributes of a STUN packet.
fn header(packet: &[u8]) -> Option<(u16, TxId, &[u8])> {
    let (header, attributes) = packet.split_first_chunk::<HEADER_LEN>()?;
    let [t0, t1, _, _, cookie @ .., _, _, _, _, _, _, _, _, _, _, _, _] = *header;
    let kind = u16::from_be_bytes([t0, t1]);
    let tx_id = TxId(*header.last_chunk::<12>()?);
    (kind & 0xC000 == 0 && u32::from_be_bytes(cookie) == COOKIE).then_some((kind, tx_id, attributes))
}

/// Goes through attributes, each padded to a multiple of four bytes.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<(u16, &'a [u8]), StunError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let Some((&[k0, k1, l0, l1], rest)) = self.0.split_first_chunk::<4>() else {
            self.0 = &[];
            return Some(Err(StunError::Attributes));
        };
        let len = usize::from(u16::from_be_bytes([l0, l1]));
        let Some(value) = rest.get(..len) else {
            self.0 = &[];
            return Some(Err(StunError::Attributes));
        };
        self.0 = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok((u16::from_be_bytes([k0, k1]), value)))
    }
}

/// A binding request.
#[must_use]
pub fn request(tx_id: TxId) -> [u8; REQUEST_LEN] {
    let mut packet = [0; REQUEST_LEN];
    let mut out = packet.as_mut_slice();
    out.put_u16(BINDING_REQUEST);
    out.put_u16((REQUEST_LEN - HEADER_LEN) as u16);
    out.put_u32(COOKIE);
    out.put_slice(&tx_id.0);
    out.put_u16(SOFTWARE);
    out.put_u16(SOFTWARE_NAME.len() as u16);
    out.put_slice(SOFTWARE_NAME);
    let fingerprint = fingerprint(&packet[..REQUEST_LEN - FINGERPRINT_LEN]);
    let mut out = &mut packet[REQUEST_LEN - FINGERPRINT_LEN..];
    out.put_u16(FINGERPRINT);
    out.put_u16(4);
    out.put_u32(fingerprint);
    packet
}

/// Reads a binding request.
///
/// # Errors
/// When `packet` is not one, or one that did not come from a tailnet node.
pub fn parse_request(packet: &[u8]) -> Result<TxId, StunError> {
    let (kind, tx_id, attributes) = header(packet).ok_or(StunError::NotStun)?;
    if kind != BINDING_REQUEST {
        return Err(StunError::UnexpectedType(kind));
    }
    let mut from_node = false;
    let mut last = None;
    for attribute in Attributes(attributes) {
        let (kind, value) = attribute?;
        from_node |= kind == SOFTWARE && value == SOFTWARE_NAME;
        last = Some((kind, value));
    }
    if !from_node {
        return Err(StunError::Software);
    }
    let (signed, _) = packet
        .split_last_chunk::<FINGERPRINT_LEN>()
        .ok_or(StunError::Fingerprint)?;
    match last {
        Some((FINGERPRINT, value)) if value == fingerprint(signed).to_be_bytes() => Ok(tx_id),
        _ => Err(StunError::Fingerprint),
    }
}

/// Appends the answer to the request `tx_id` that came from `seen` to `out`.
pub fn encode_response(tx_id: TxId, seen: SocketAddr, out: &mut Vec<u8>) {
    let ip = seen.ip().to_canonical();
    let (family, ip_len) = match ip {
        IpAddr::V4(_) => (1, 4),
        IpAddr::V6(_) => (2, 16),
    };
    out.put_u16(BINDING_SUCCESS);
    out.put_u16(8 + ip_len);
    out.put_u32(COOKIE);
    out.put_slice(&tx_id.0);
    out.put_u16(XOR_MAPPED_ADDRESS);
    out.put_u16(4 + ip_len);
    out.put_u16(family);
    out.put_u16(seen.port() ^ (COOKIE >> 16) as u16);
    let mask = mask(tx_id);
    match ip {
        IpAddr::V4(ip) => out.extend(ip.octets().iter().zip(mask).map(|(byte, mask)| byte ^ mask)),
        IpAddr::V6(ip) => out.extend(ip.octets().iter().zip(mask).map(|(byte, mask)| byte ^ mask)),
    }
}

/// Reads a response: which request it answers, and from where the server saw that come.
///
/// # Errors
/// When `packet` is not a successful answer to a binding request.
pub fn parse_response(packet: &[u8]) -> Result<(TxId, SocketAddr), StunError> {
    let (kind, tx_id, attributes) = header(packet).ok_or(StunError::NotStun)?;
    if kind != BINDING_SUCCESS {
        return Err(StunError::UnexpectedType(kind));
    }
    let mut fallback = None;
    for attribute in Attributes(attributes) {
        match attribute? {
            (XOR_MAPPED_ADDRESS | XOR_MAPPED_ADDRESS_DRAFT, value) => {
                return address(value, mask(tx_id))
                    .map(|seen| (tx_id, seen))
                    .ok_or(StunError::Attributes);
            }
            (MAPPED_ADDRESS, value) => fallback = address(value, [0; 16]),
            _ => {}
        }
    }
    fallback.map(|seen| (tx_id, seen)).ok_or(StunError::NoAddress)
}

fn address(value: &[u8], mask: [u8; 16]) -> Option<SocketAddr> {
    let (&[_, family, p0, p1], ip) = value.split_first_chunk::<4>()?;
    let port = u16::from_be_bytes([p0 ^ mask[0], p1 ^ mask[1]]);
    let ip = match family {
        1 => {
            let mut ip = *ip.first_chunk::<4>()?;
            ip.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
            IpAddr::from(Ipv4Addr::from_octets(ip))
        }
        2 => {
            let mut ip = *ip.first_chunk::<16>()?;
            ip.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
            IpAddr::from(Ipv6Addr::from_octets(ip))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip.to_canonical(), port))
}

/// What addresses are XORed with, so that no router on the way takes them for its own business.
fn mask(tx_id: TxId) -> [u8; 16] {
    let mut mask = [0; 16];
    mask[..4].copy_from_slice(&COOKIE.to_be_bytes());
    mask[4..].copy_from_slice(&tx_id.0);
    mask
}

fn fingerprint(packet: &[u8]) -> u32 {
    crc32(packet) ^ FINGERPRINT_XOR
}

/// CRC-32 of IEEE 802.3. Bit by bit: packets are 32 bytes long.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg())
        })
    })
}
