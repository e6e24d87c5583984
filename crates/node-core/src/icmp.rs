//! ICMP errors: what they say about a packet of ours, and those that we send.

use std::net::IpAddr;

use crate::packet::{INNER_MTU, Parsed, begin, finish_icmp, header_len, proto};

/// Bytes of an ICMP header.
const HEADER: usize = 8;
/// The least MTU that a router of IPv4 may name and be believed; below, each packet would be all header.
const LEAST_MTU: usize = 576;

/// What an error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Nothing takes packets of that protocol or for that port there.
    PortUnreachable,
    /// A link on the way takes packets of this size at most.
    TooBig { mtu: usize },
}

/// An error about a packet that we sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Complaint {
    pub(crate) cause: Cause,
    /// The headers of the packet, from us to the other side.
    pub(crate) about: Parsed,
    /// The first word after the ports: of TCP, the sequence number.
    pub(crate) word: u32,
}

impl Complaint {
    /// Reads an ICMP packet; `None` if it is no error, or one that changes nothing.
    pub(crate) fn read(packet: &[u8], parsed: &Parsed) -> Option<Self> {
        let body = packet.get(parsed.transport..parsed.end)?;
        let (header, quoted) = body.split_first_chunk::<HEADER>()?;
        let mtu = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        // Destination unreachable with its codes in IPv4 (RFC 792, RFC 1191), of their own type in IPv6 (RFC 4443).
        let cause = match (parsed.proto, header[0], header[1]) {
            (proto::ICMP, 3, 2 | 3) | (proto::ICMP6, 1, 4) => Cause::PortUnreachable,
            (proto::ICMP, 3, 4) => Cause::TooBig {
                mtu: mtu(&header[6..8]).max(LEAST_MTU),
            },
            (proto::ICMP6, 2, _) => Cause::TooBig {
                mtu: mtu(&header[4..8]).max(INNER_MTU),
            },
            _ => return None,
        };
        let about = Parsed::parse_quoted(quoted)?;
        let word = quoted.get(about.transport + 4..)?.first_chunk::<4>()?;
        Some(Self {
            cause,
            about,
            word: u32::from_be_bytes(*word),
        })
    }
}

/// Writes the error about `packet`, which came from a peer, into `out`.
pub(crate) fn write(out: &mut Vec<u8>, cause: Cause, packet: &[u8], parsed: &Parsed) {
    let (protocol, kind, code) = match (parsed.src, cause) {
        (IpAddr::V4(_), Cause::PortUnreachable) => (proto::ICMP, 3, 3),
        (IpAddr::V4(_), Cause::TooBig { .. }) => (proto::ICMP, 3, 4),
        (IpAddr::V6(_), Cause::PortUnreachable) => (proto::ICMP6, 1, 4),
        (IpAddr::V6(_), Cause::TooBig { .. }) => (proto::ICMP6, 2, 0),
    };
    // As much of the packet as keeps the error small (RFC 1812, 4.3.2.3).
    let most = LEAST_MTU - header_len(parsed.src) - HEADER;
    let quoted = &packet[..parsed.end.min(most)];
    let start = begin(out, parsed.dst, parsed.src, protocol, HEADER + quoted.len());
    let body = &mut out[start..];
    body[..HEADER].fill(0);
    body[0] = kind;
    body[1] = code;
    if let Cause::TooBig { mtu } = cause {
        // IPv4 has the MTU in the second half of the word, where a small number also is in IPv6.
        body[6..8].copy_from_slice(&(mtu as u16).to_be_bytes());
    }
    body[HEADER..].copy_from_slice(quoted);
    finish_icmp(out, start, parsed.dst, parsed.src, protocol);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::write_udp;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_is_read_back() {
        for (from, to) in [("100.64.0.2:9", "100.64.0.1:7"), ("[fd7a::2]:9", "[fd7a::1]:7")] {
            let (mut packet, mut error) = (Vec::new(), Vec::new());
            write_udp(
                &mut packet,
                from.parse().unwrap(),
                to.parse().unwrap(),
                &[5; 1200],
            );
            let parsed = Parsed::parse(&packet).unwrap();
            for cause in [Cause::PortUnreachable, Cause::TooBig { mtu: 1280 }] {
                write(&mut error, cause, &packet, &parsed);
                let answer = Parsed::parse(&error).unwrap();
                assert!(answer.is_icmp_answer() && error.len() <= LEAST_MTU);
                assert_eq!((answer.src, answer.dst), (parsed.dst, parsed.src));
                let complaint = Complaint::read(&error, &answer).unwrap();
                assert_eq!(complaint.cause, cause);
                assert_eq!(complaint.about.source(), parsed.source());
                assert_eq!(complaint.about.destination(), parsed.destination());
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(mut bytes in proptest::collection::vec(any::<u8>(), 28..200), v6: bool) {
            let (src, dst): (IpAddr, IpAddr) = if v6 {
                ("fd7a::1".parse().unwrap(), "fd7a::2".parse().unwrap())
            } else {
                ("100.64.0.1".parse().unwrap(), "100.64.0.2".parse().unwrap())
            };
            let protocol = if v6 { proto::ICMP6 } else { proto::ICMP };
            bytes[0] = [3, 1, 2][usize::from(bytes[0]) % 3];
            let mut packet = Vec::new();
            let start = begin(&mut packet, src, dst, protocol, bytes.len());
            packet[start..].copy_from_slice(&bytes);
            let parsed = Parsed::parse(&packet).unwrap();
            let _ = Complaint::read(&packet, &parsed);
        }
    }
}
