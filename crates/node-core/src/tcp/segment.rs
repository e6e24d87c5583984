//! A look at segments that smoltcp has written, and one correction.
//!
//! After a retransmission timeout smoltcp sends again from the first byte that is not acknowledged, and numbers pure acknowledgements by where it stands then.
//! Such a number lies before the receiver's window, so the receiver drops the segment with the acknowledgement in it (RFC 9293, 3.10.7.4). When both sides
//! are in that state each waits for the other for good. As in BSD, a pure acknowledgement bears the highest number that was sent.

use crate::packet::tcp_flags::{FIN, RST, SYN};

/// Bytes of an IPv4 header without options, which smoltcp never writes.
const V4_HEADER: usize = 20;
/// Bytes of an IPv6 header.
const V6_HEADER: usize = 40;
/// Bytes of a TCP header without options.
const TCP_HEADER: usize = 20;

/// The highest sequence number that a connection has sent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Highest(Option<u32>);

impl Highest {
    /// Notes what a packet of smoltcp sends; if it is a pure acknowledgement, sees to it that it bears the highest number.
    pub(super) fn correct(&mut self, packet: &mut [u8]) {
        let start = if packet.first().is_some_and(|first| first >> 4 == 4) {
            V4_HEADER
        } else {
            V6_HEADER
        };
        let Some((header, rest)) = packet
            .get_mut(start..)
            .and_then(|tcp| tcp.split_first_chunk_mut::<TCP_HEADER>())
        else {
            return;
        };
        let options = (usize::from(header[12] >> 4) * 4).saturating_sub(TCP_HEADER);
        let payload = rest.len().saturating_sub(options) as u32;
        let flags = header[13];
        let sequence = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        let length = payload + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        match self.0 {
            Some(highest) if length == 0 && flags & RST == 0 && is_before(sequence, highest) => {
                let sum = u16::from_be_bytes([header[16], header[17]]);
                let sum = update_checksum(sum, sequence, highest);
                header[4..8].copy_from_slice(&highest.to_be_bytes());
                header[16..18].copy_from_slice(&sum.to_be_bytes());
            }
            Some(highest) if !is_before(highest, sequence.wrapping_add(length)) => {}
            _ => self.0 = Some(sequence.wrapping_add(length)),
        }
    }
}

/// Whether one sequence number comes before another (RFC 9293, 3.4).
fn is_before(one: u32, other: u32) -> bool {
    (one.wrapping_sub(other) as i32) < 0
}

/// A checksum after a 32-bit word of what it covers was changed (RFC 1624, equation 3).
fn update_checksum(sum: u16, before: u32, after: u32) -> u16 {
    let mut total = u32::from(!sum);
    for half in [before >> 16, before] {
        total += u32::from(!(half as u16));
    }
    for half in [after >> 16, after] {
        total += u32::from(half as u16);
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Parsed, tests::verifies};
    use proptest::prelude::*;
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{IpAddress, IpProtocol, IpRepr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};

    fn segment(sequence: u32, control: TcpControl, payload: &[u8]) -> Vec<u8> {
        let repr = TcpRepr {
            src_port: 80,
            dst_port: 4000,
            control,
            seq_number: TcpSeqNumber(sequence as i32),
            ack_number: Some(TcpSeqNumber(77)),
            window_len: 1000,
            window_scale: None,
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload,
        };
        let (src, dst) = (IpAddress::v4(100, 64, 0, 1), IpAddress::v4(100, 64, 0, 2));
        let ip = IpRepr::new(src, dst, IpProtocol::Tcp, repr.buffer_len(), 64);
        let mut bytes = vec![0; ip.buffer_len()];
        ip.emit(&mut bytes[..], &ChecksumCapabilities::default());
        let mut tcp = TcpPacket::new_unchecked(&mut bytes[V4_HEADER..]);
        repr.emit(&mut tcp, &src, &dst, &ChecksumCapabilities::default());
        bytes
    }

    fn sequence_of(packet: &[u8]) -> u32 {
        u32::from_be_bytes(packet[V4_HEADER + 4..V4_HEADER + 8].try_into().unwrap())
    }

    proptest! {
        #[test]
        fn a_pure_acknowledgement_bears_the_highest_number(start: u32, lengths in proptest::collection::vec(1usize..100, 1..5)) {
            let mut highest = Highest::default();
            let mut next = start;
            for length in lengths {
                let mut data = segment(next, TcpControl::None, &vec![7; length]);
                let before = data.clone();
                highest.correct(&mut data);
                prop_assert_eq!(&data, &before, "what carries data is left as it is");
                next = next.wrapping_add(length as u32);
            }
            let mut again = segment(start, TcpControl::None, b"x");
            highest.correct(&mut again);
            prop_assert_eq!(sequence_of(&again), start);
            let mut ack = segment(start, TcpControl::None, b"");
            highest.correct(&mut ack);
            prop_assert_eq!(sequence_of(&ack), next);
            prop_assert!(verifies(&ack));
            prop_assert!(Parsed::parse(&ack).is_ok());
            let mut reset = segment(start, TcpControl::Rst, b"");
            highest.correct(&mut reset);
            prop_assert_eq!(sequence_of(&reset), start);
        }
    }
}
