//! IP packets as the filter and the stack see them: addresses, protocol, ports, flags; and the few packets that a node writes itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::offload::checksum;

/// Largest inner packet: the MTU of every tailnet.
pub const INNER_MTU: usize = 1280;

/// Bytes of an IPv4 header without options.
const V4_HEADER: usize = 20;
/// Bytes of an IPv6 header.
const V6_HEADER: usize = 40;
/// Bytes of a UDP header.
const UDP_HEADER: usize = 8;
/// Time to live of packets that we write.
const HOP_LIMIT: u8 = 64;

/// IP protocol numbers that have a meaning here.
pub mod proto {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// The IPv6 fragment extension header.
    pub const V6_FRAGMENT: u8 = 44;
    /// ICMP for IPv6.
    pub const ICMP6: u8 = 58;
    /// Tailscale's own messages between nodes.
    pub const TSMP: u8 = 99;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// TCP flag bits.
pub(crate) mod tcp_flags {
    pub(crate) const FIN: u8 = 0x01;
    pub(crate) const SYN: u8 = 0x02;
    pub(crate) const RST: u8 = 0x04;
    pub(crate) const PSH: u8 = 0x08;
    pub(crate) const ACK: u8 = 0x10;
}

/// Why bytes are not an IP packet that we understand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Shorter than its headers say.
    #[error("the packet ends inside its headers")]
    Short,
    /// The version nibble is neither 4 nor 6.
    #[error("not an IP packet")]
    NotIp,
    /// A first fragment too small to hold the ports, as used to slip past filters (RFC 1858).
    #[error("the first fragment does not hold the transport header")]
    TinyFragment,
}

/// Whether a packet is a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// A whole packet.
    No,
    /// The first of several; it has the transport header.
    First,
    /// A later one; ports are unknown and zero.
    Later,
}

/// What an IP packet says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Transport protocol, see [`proto`].
    pub proto: u8,
    /// Source port, or zero where the protocol has none.
    pub src_port: u16,
    /// Destination port, or zero where the protocol has none.
    pub dst_port: u16,
    /// TCP flags, or the ICMP type.
    pub flags: u8,
    /// Whether this is a fragment.
    pub fragment: Fragment,
    /// Where the transport header begins.
    pub transport: usize,
    /// Where the packet ends.
    pub end: usize,
}

impl Parsed {
    /// Reads the headers of an IP packet.
    ///
    /// # Errors
    /// The packet is cut, of another protocol, or a fragment that hides its ports.
    pub fn parse(packet: &[u8]) -> Result<Self, PacketError> {
        match packet.first().map(|byte| byte >> 4) {
            Some(4) => Self::parse_v4(packet),
            Some(6) => Self::parse_v6(packet),
            Some(_) => Err(PacketError::NotIp),
            None => Err(PacketError::Short),
        }
    }

    fn parse_v4(packet: &[u8]) -> Result<Self, PacketError> {
        let header: &[u8; V4_HEADER] = packet.first_chunk().ok_or(PacketError::Short)?;
        let transport = usize::from(header[0] & 0x0f) * 4;
        let end = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if transport < V4_HEADER || end < transport || end > packet.len() {
            return Err(PacketError::Short);
        }
        let fragmentation = u16::from_be_bytes([header[6], header[7]]);
        let fragment = match (fragmentation & 0x1fff, fragmentation & 0x2000) {
            (0, 0) => Fragment::No,
            (0, _) => Fragment::First,
            _ => Fragment::Later,
        };
        Self {
            src: Ipv4Addr::new(header[12], header[13], header[14], header[15]).into(),
            dst: Ipv4Addr::new(header[16], header[17], header[18], header[19]).into(),
            proto: header[9],
            src_port: 0,
            dst_port: 0,
            flags: 0,
            fragment,
            transport,
            end,
        }
        .with_transport(packet)
    }

    fn parse_v6(packet: &[u8]) -> Result<Self, PacketError> {
        let header: &[u8; V6_HEADER] = packet.first_chunk().ok_or(PacketError::Short)?;
        let end = V6_HEADER + usize::from(u16::from_be_bytes([header[4], header[5]]));
        if end > packet.len() {
            return Err(PacketError::Short);
        }
        let (src, dst): ([u8; 16], [u8; 16]) = (array(&header[8..24])?, array(&header[24..40])?);
        let mut parsed = Self {
            src: Ipv6Addr::from(src).into(),
            dst: Ipv6Addr::from(dst).into(),
            proto: header[6],
            src_port: 0,
            dst_port: 0,
            flags: 0,
            fragment: Fragment::No,
            transport: V6_HEADER,
            end,
        };
        // Of the extension headers only the fragment header is followed: official nodes send no other, and each further one is a way around a filter.
        if parsed.proto == proto::V6_FRAGMENT {
            let extension: [u8; 8] = array(
                packet
                    .get(V6_HEADER..(V6_HEADER + 8).min(end))
                    .ok_or(PacketError::Short)?,
            )?;
            let offset = u16::from_be_bytes([extension[2], extension[3]]);
            parsed.proto = extension[0];
            parsed.transport += 8;
            parsed.fragment = match (offset >> 3, offset & 1) {
                (0, 0) => Fragment::No,
                (0, _) => Fragment::First,
                _ => Fragment::Later,
            };
        }
        parsed.with_transport(packet)
    }

    fn with_transport(mut self, packet: &[u8]) -> Result<Self, PacketError> {
        if self.fragment == Fragment::Later {
            return Ok(self);
        }
        let body = &packet[self.transport..self.end];
        let least = match self.proto {
            proto::TCP => 20,
            proto::UDP | proto::ICMP => 8,
            proto::SCTP => 12,
            proto::ICMP6 => 4,
            proto::TSMP => 1,
            _ => 0,
        };
        if body.len() < least {
            return Err(if self.fragment == Fragment::First {
                PacketError::TinyFragment
            } else {
                PacketError::Short
            });
        }
        match self.proto {
            proto::TCP | proto::UDP | proto::SCTP => {
                self.src_port = u16::from_be_bytes([body[0], body[1]]);
                self.dst_port = u16::from_be_bytes([body[2], body[3]]);
                if self.proto == proto::TCP {
                    self.flags = body[13];
                }
            }
            proto::ICMP | proto::ICMP6 => self.flags = body[0],
            _ => {}
        }
        Ok(self)
    }

    /// Reads the headers of a packet of which an error quotes the beginning; at least eight bytes of the transport header are there.
    pub(crate) fn parse_quoted(quoted: &[u8]) -> Option<Self> {
        let mut packet = [0; 128];
        let length = quoted.len().min(packet.len());
        packet[..length].copy_from_slice(&quoted[..length]);
        // What was cut off is read as zeros.
        if packet[0] >> 4 == 4 {
            packet[2..4].copy_from_slice(&128u16.to_be_bytes());
        } else {
            packet[4..6].copy_from_slice(&(128 - V6_HEADER as u16).to_be_bytes());
        }
        let parsed = Self::parse(&packet).ok()?;
        (length >= parsed.transport + 8).then_some(Self {
            end: length,
            ..parsed
        })
    }

    /// The sender's address and port.
    #[must_use]
    pub fn source(&self) -> SocketAddr {
        SocketAddr::new(self.src, self.src_port)
    }

    /// The receiver's address and port.
    #[must_use]
    pub fn destination(&self) -> SocketAddr {
        SocketAddr::new(self.dst, self.dst_port)
    }

    /// A segment that asks for a new connection: SYN without ACK.
    #[must_use]
    pub fn is_bare_syn(&self) -> bool {
        self.proto == proto::TCP && self.flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN
    }

    /// An ICMP answer or error: it belongs to something that we sent.
    #[must_use]
    pub fn is_icmp_answer(&self) -> bool {
        match self.proto {
            // Echo reply, destination unreachable, time exceeded, parameter problem (RFC 792).
            proto::ICMP => matches!(self.flags, 0 | 3 | 11 | 12),
            // Types below 128 are errors; 129 is the echo reply (RFC 4443).
            proto::ICMP6 => self.flags < 128 || self.flags == 129,
            _ => false,
        }
    }

    /// An ICMP echo request.
    #[must_use]
    pub fn is_icmp_echo(&self) -> bool {
        matches!((self.proto, self.flags), (proto::ICMP, 8) | (proto::ICMP6, 128))
    }

    /// Identifier and sequence number of an ICMP echo reply; `packet` is the one that this was parsed from.
    pub(crate) fn echo_reply_id(&self, packet: &[u8]) -> Option<[u8; 4]> {
        let is_reply = matches!((self.proto, self.flags), (proto::ICMP, 0) | (proto::ICMP6, 129));
        let id = packet.get(self.transport + 4..self.transport + 8)?;
        is_reply.then_some(id.try_into().ok()?)
    }
}

/// Where a fragment belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FragmentPlace {
    /// What the fragments of one packet share, beside addresses and protocol.
    pub(crate) id: u32,
    /// Bytes before this fragment.
    pub(crate) offset: usize,
    /// Whether another one follows.
    pub(crate) more: bool,
}

impl FragmentPlace {
    /// Reads it from a packet that was parsed and is a fragment.
    pub(crate) fn of(packet: &[u8]) -> Option<Self> {
        if packet.first()? >> 4 == 4 {
            let header: &[u8; V4_HEADER] = packet.first_chunk()?;
            let field = u16::from_be_bytes([header[6], header[7]]);
            return Some(Self {
                id: u16::from_be_bytes([header[4], header[5]]).into(),
                offset: usize::from(field & 0x1fff) * 8,
                more: field & 0x2000 != 0,
            });
        }
        let extension: &[u8; 8] = packet.get(V6_HEADER..)?.first_chunk()?;
        let field = u16::from_be_bytes([extension[2], extension[3]]);
        Some(Self {
            id: u32::from_be_bytes([extension[4], extension[5], extension[6], extension[7]]),
            offset: usize::from(field & 0xfff8),
            more: field & 1 != 0,
        })
    }
}

fn array<const N: usize>(bytes: &[u8]) -> Result<[u8; N], PacketError> {
    bytes.try_into().map_err(|_| PacketError::Short)
}

/// The Internet checksum (RFC 1071) over parts that are laid one after the other; each but the last has even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let sum = parts.iter().map(|part| checksum::sum(part)).sum();
    u16::from_be_bytes(checksum::finish(sum))
}

/// The checksum of a transport segment with the pseudo header of its IP version.
fn transport_checksum(src: IpAddr, dst: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
    let length = (segment.len() as u32).to_be_bytes();
    let tail = [length[0], length[1], length[2], length[3], 0, 0, 0, protocol];
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => checksum(&[&src.octets(), &dst.octets(), &tail, segment]),
        (src, dst) => checksum(&[&v6_octets(src), &v6_octets(dst), &tail, segment]),
    }
}

fn v6_octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// Starts a packet in `out` (cleared first): the IP header for `body_len` bytes of `protocol`. Both addresses are of one family.
fn ip_header(out: &mut Vec<u8>, src: IpAddr, dst: IpAddr, protocol: u8, body_len: usize) {
    let start = begin(out, src, dst, protocol, body_len);
    out.truncate(start);
}

/// Makes `out` a packet of `protocol`: the IP header, then `body_len` arbitrary bytes, which begin at the place that is returned. Both addresses are of one
/// family.
pub(crate) fn begin(out: &mut Vec<u8>, src: IpAddr, dst: IpAddr, protocol: u8, body_len: usize) -> usize {
    let start = header_len(src);
    // What is there from the packet before is overwritten: nothing need be cleared.
    out.resize(start + body_len, 0);
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let total = ((V4_HEADER + body_len) as u16).to_be_bytes();
            out[..12].copy_from_slice(&[
                0x45, 0, total[0], total[1], 0, 0, 0x40, 0, HOP_LIMIT, protocol, 0, 0,
            ]);
            out[12..16].copy_from_slice(&src.octets());
            out[16..20].copy_from_slice(&dst.octets());
            let sum = checksum(&[&out[..V4_HEADER]]).to_be_bytes();
            out[10..12].copy_from_slice(&sum);
        }
        (src, dst) => {
            let length = (body_len as u16).to_be_bytes();
            out[..8].copy_from_slice(&[0x60, 0, 0, 0, length[0], length[1], protocol, HOP_LIMIT]);
            out[8..24].copy_from_slice(&v6_octets(src));
            out[24..40].copy_from_slice(&v6_octets(dst));
        }
    }
    start
}

/// Puts the checksum into the TCP segment that begins at `start`, whose field for it is zero.
pub(crate) fn finish_tcp(out: &mut [u8], start: usize, src: IpAddr, dst: IpAddr) {
    let sum = transport_checksum(src, dst, proto::TCP, &out[start..]).to_be_bytes();
    out[start + 16..start + 18].copy_from_slice(&sum);
}

/// Bytes of the IP headers that we write.
pub(crate) fn header_len(address: IpAddr) -> usize {
    if address.is_ipv4() { V4_HEADER } else { V6_HEADER }
}

/// Largest UDP payload that fits the tailnet's MTU without fragments.
#[must_use]
pub fn max_udp_payload(address: IpAddr) -> usize {
    INNER_MTU - header_len(address) - UDP_HEADER
}

/// Writes a UDP packet into `out`.
pub(crate) fn write_udp(out: &mut Vec<u8>, from: SocketAddr, to: SocketAddr, payload: &[u8]) {
    let length = UDP_HEADER + payload.len();
    ip_header(out, from.ip(), to.ip(), proto::UDP, length);
    let start = out.len();
    out.extend_from_slice(&from.port().to_be_bytes());
    out.extend_from_slice(&to.port().to_be_bytes());
    out.extend_from_slice(&(length as u16).to_be_bytes());
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(payload);
    // Zero on the wire means "no checksum" (RFC 768), so a computed zero is sent as its other form.
    let sum = match transport_checksum(from.ip(), to.ip(), proto::UDP, &out[start..]) {
        0 => 0xffff,
        sum => sum,
    };
    out[start + 6..start + 8].copy_from_slice(&sum.to_be_bytes());
}

/// The fragments of a packet, whose transport has `size` bytes in each but the last; `size` is a multiple of eight.
pub(crate) fn fragments<'a>(
    packet: &'a [u8],
    parsed: &'a Parsed,
    size: usize,
    id: u32,
) -> impl Iterator<Item = Vec<u8>> + 'a {
    let body = &packet[parsed.transport..parsed.end];
    body.chunks(size).enumerate().map(move |(index, piece)| {
        let (offset, more) = (index * size, (index + 1) * size < body.len());
        let mut out = Vec::with_capacity(V6_HEADER + 8 + piece.len());
        if parsed.src.is_ipv4() {
            ip_header(&mut out, parsed.src, parsed.dst, parsed.proto, piece.len());
            let field = (offset / 8) as u16 | if more { 0x2000 } else { 0 };
            out[4..6].copy_from_slice(&(id as u16).to_be_bytes());
            out[6..8].copy_from_slice(&field.to_be_bytes());
            out[10..12].fill(0);
            let sum = checksum(&[&out[..V4_HEADER]]).to_be_bytes();
            out[10..12].copy_from_slice(&sum);
        } else {
            let length = 8 + piece.len();
            ip_header(&mut out, parsed.src, parsed.dst, proto::V6_FRAGMENT, length);
            out.extend_from_slice(&[parsed.proto, 0]);
            out.extend_from_slice(&(offset as u16 | u16::from(more)).to_be_bytes());
            out.extend_from_slice(&id.to_be_bytes());
        }
        out.extend_from_slice(piece);
        out
    })
}

/// Writes a TSMP packet into `out`.
pub(crate) fn write_tsmp(out: &mut Vec<u8>, src: IpAddr, dst: IpAddr, body: &[u8]) {
    ip_header(out, src, dst, proto::TSMP, body.len());
    out.extend_from_slice(body);
}

/// Writes an ICMP echo request with this identifier and sequence number into `out`.
pub(crate) fn write_echo_request(out: &mut Vec<u8>, src: IpAddr, dst: IpAddr, id: [u8; 4]) {
    let (protocol, kind) = if src.is_ipv4() {
        (proto::ICMP, 8)
    } else {
        (proto::ICMP6, 128)
    };
    ip_header(out, src, dst, protocol, 8);
    let start = out.len();
    out.extend_from_slice(&[kind, 0, 0, 0]);
    out.extend_from_slice(&id);
    finish_icmp(out, start, src, dst, protocol);
}

/// Writes the answer to an ICMP echo request into `out`.
pub(crate) fn write_echo_reply(out: &mut Vec<u8>, request: &[u8], parsed: &Parsed) {
    let body = &request[parsed.transport..parsed.end];
    ip_header(out, parsed.dst, parsed.src, parsed.proto, body.len());
    let start = out.len();
    out.extend_from_slice(body);
    out[start] = if parsed.proto == proto::ICMP { 0 } else { 129 };
    out[start + 2..start + 4].copy_from_slice(&[0, 0]);
    finish_icmp(out, start, parsed.dst, parsed.src, parsed.proto);
}

/// Puts the checksum into the ICMP message that begins at `start`, whose field for it is zero.
pub(crate) fn finish_icmp(out: &mut [u8], start: usize, src: IpAddr, dst: IpAddr, protocol: u8) {
    let sum = if protocol == proto::ICMP {
        checksum(&[&out[start..]])
    } else {
        transport_checksum(src, dst, protocol, &out[start..])
    };
    out[start + 2..start + 4].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Whether the checksum of a packet's transport is right.
    pub(crate) fn verifies(packet: &[u8]) -> bool {
        let parsed = Parsed::parse(packet).unwrap();
        transport_checksum(
            parsed.src,
            parsed.dst,
            parsed.proto,
            &packet[parsed.transport..parsed.end],
        ) == 0
    }

    #[test]
    fn udp_has_right_checksums_in_both_families() {
        let mut out = Vec::new();
        for (from, to) in [
            ("100.64.0.1:53", "100.64.0.2:4000"),
            ("[fd7a::1]:53", "[fd7a::2]:4000"),
        ] {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            write_udp(&mut out, from, to, b"odd");
            assert!(verifies(&out));
            let parsed = Parsed::parse(&out).unwrap();
            assert_eq!((parsed.source(), parsed.destination()), (from, to));
        }
    }

    #[test]
    fn echo_is_answered_with_its_payload() {
        let mut request = Vec::new();
        ip_header(
            &mut request,
            "100.64.0.1".parse().unwrap(),
            "100.64.0.2".parse().unwrap(),
            proto::ICMP,
            12,
        );
        request.extend_from_slice(&[8, 0, 0, 0, 0, 7, 0, 1, b'p', b'i', b'n', b'g']);
        let parsed = Parsed::parse(&request).unwrap();
        assert!(parsed.is_icmp_echo());
        let mut reply = Vec::new();
        write_echo_reply(&mut reply, &request, &parsed);
        let answer = Parsed::parse(&reply).unwrap();
        assert!(answer.is_icmp_answer());
        assert_eq!((answer.src, answer.dst), (parsed.dst, parsed.src));
        assert_eq!(&reply[answer.transport + 4..], &request[parsed.transport + 4..]);
        assert_eq!(checksum(&[&reply[answer.transport..]]), 0);
    }

    #[test]
    fn fragments_are_told_apart() {
        let mut packet = Vec::new();
        write_udp(
            &mut packet,
            "1.2.3.4:5".parse().unwrap(),
            "1.2.3.5:6".parse().unwrap(),
            b"12345678",
        );
        packet[6] = 0x20;
        assert_eq!(Parsed::parse(&packet).unwrap().fragment, Fragment::First);
        packet[7] = 1;
        let later = Parsed::parse(&packet).unwrap();
        assert_eq!((later.fragment, later.dst_port), (Fragment::Later, 0));
        packet[7] = 0;
        packet[3] = 24;
        assert_eq!(Parsed::parse(&packet), Err(PacketError::TinyFragment));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(parsed) = Parsed::parse(&bytes) {
                prop_assert!(parsed.transport <= parsed.end && parsed.end <= bytes.len());
            }
        }
    }
}
