//! TCP segments on the wire.

use std::net::SocketAddr;

use super::seq::Seq;
use crate::packet::{Parsed, begin, finish_tcp, tcp_flags};

/// Bytes of a TCP header without options.
const HEADER: usize = 20;
/// Most options there can be.
const MAX_OPTIONS: usize = 40;
/// Blocks of a selective acknowledgement that fit beside nothing else.
pub(super) const MAX_SACK: usize = 4;

/// Option kinds (RFC 9293, RFC 7323, RFC 2018).
mod option {
    pub(super) const END: u8 = 0;
    pub(super) const NOP: u8 = 1;
    pub(super) const MSS: u8 = 2;
    pub(super) const WINDOW_SCALE: u8 = 3;
    pub(super) const SACK_PERMITTED: u8 = 4;
    pub(super) const SACK: u8 = 5;
}

/// Ranges that arrived ahead of their turn, news first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SackBlocks {
    blocks: [(Seq, Seq); MAX_SACK],
    count: usize,
}

impl SackBlocks {
    /// Adds a block if there is room for one.
    pub(super) fn push(&mut self, from: Seq, to: Seq) {
        if let Some(block) = self.blocks.get_mut(self.count) {
            *block = (from, to);
            self.count += 1;
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Seq, Seq)> + '_ {
        self.blocks[..self.count].iter().copied()
    }

    pub(super) fn has_room(&self) -> bool {
        self.count < MAX_SACK
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// What the options of a segment say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) mss: Option<u16>,
    pub(super) window_scale: Option<u8>,
    pub(super) sack_permitted: bool,
    pub(super) sack: SackBlocks,
}

/// A segment that came in.
#[derive(Debug)]
pub(super) struct Segment<'a> {
    pub(super) seq: Seq,
    /// What is acknowledged; meaningless without the flag.
    pub(super) ack: Seq,
    pub(super) flags: u8,
    pub(super) window: u16,
    pub(super) options: Options,
    pub(super) payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Reads the segment of a packet; `None` if its header is longer than itself.
    pub(super) fn parse(packet: &'a [u8], parsed: &Parsed) -> Option<Self> {
        let tcp = packet.get(parsed.transport..parsed.end)?;
        let (header, rest) = tcp.split_first_chunk::<HEADER>()?;
        let options_len = (usize::from(header[12] >> 4) * 4).checked_sub(HEADER)?;
        let (options, payload) = rest.split_at_checked(options_len)?;
        Some(Self {
            seq: Seq(u32::from_be_bytes([header[4], header[5], header[6], header[7]])),
            ack: Seq(u32::from_be_bytes([header[8], header[9], header[10], header[11]])),
            flags: header[13],
            window: u16::from_be_bytes([header[14], header[15]]),
            options: parse_options(options),
            payload,
        })
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Numbers that the segment takes: its bytes, SYN and FIN.
    pub(super) fn len(&self) -> u32 {
        self.payload.len() as u32 + u32::from(self.has(tcp_flags::SYN)) + u32::from(self.has(tcp_flags::FIN))
    }

    pub(super) fn end(&self) -> Seq {
        self.seq + self.len()
    }
}

/// Reads options as far as they make sense.
fn parse_options(mut bytes: &[u8]) -> Options {
    let mut options = Options::default();
    while let [kind, rest @ ..] = bytes {
        if *kind == option::END {
            break;
        }
        if *kind == option::NOP {
            bytes = rest;
            continue;
        }
        let Some((body, after)) = rest
            .first()
            .and_then(|length| bytes.split_at_checked(usize::from(*length)))
        else {
            break;
        };
        match (*kind, body.get(2..)) {
            (option::MSS, Some(&[high, low])) => options.mss = Some(u16::from_be_bytes([high, low])),
            (option::WINDOW_SCALE, Some(&[shift])) => options.window_scale = Some(shift.min(14)),
            (option::SACK_PERMITTED, Some(&[])) => options.sack_permitted = true,
            (option::SACK, Some(blocks)) => {
                for block in blocks.chunks_exact(8) {
                    options.sack.push(
                        Seq(u32::from_be_bytes([block[0], block[1], block[2], block[3]])),
                        Seq(u32::from_be_bytes([block[4], block[5], block[6], block[7]])),
                    );
                }
            }
            (_, Some(_)) => {}
            // A length below two would be read again and again.
            (_, None) => break,
        }
        bytes = after;
    }
    options
}

/// A segment to be written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outgoing {
    pub(super) seq: Seq,
    pub(super) ack: Option<Seq>,
    pub(super) flags: u8,
    pub(super) window: u16,
    pub(super) options: Options,
}

impl Outgoing {
    /// Writes the packet into `out`; `fill` writes `payload` bytes.
    pub(super) fn write(
        &self,
        local: SocketAddr,
        remote: SocketAddr,
        payload: usize,
        out: &mut Vec<u8>,
        fill: impl FnOnce(&mut [u8]),
    ) {
        let mut options = [option::NOP; MAX_OPTIONS];
        let options_len = self.write_options(&mut options);
        let length = HEADER + options_len + payload;
        let start = begin(out, local.ip(), remote.ip(), crate::packet::proto::TCP, length);
        let Some((header, rest)) = out[start..].split_first_chunk_mut::<HEADER>() else {
            return;
        };
        let flags = self.flags | if self.ack.is_some() { tcp_flags::ACK } else { 0 };
        header[0..2].copy_from_slice(&local.port().to_be_bytes());
        header[2..4].copy_from_slice(&remote.port().to_be_bytes());
        header[4..8].copy_from_slice(&self.seq.0.to_be_bytes());
        header[8..12].copy_from_slice(&self.ack.unwrap_or_default().0.to_be_bytes());
        header[12] = (((HEADER + options_len) / 4) << 4) as u8;
        header[13] = flags;
        header[14..16].copy_from_slice(&self.window.to_be_bytes());
        header[16..20].fill(0);
        let (room, body) = rest.split_at_mut(options_len);
        room.copy_from_slice(&options[..options_len]);
        fill(body);
        finish_tcp(out, start, local.ip(), remote.ip());
    }

    /// Writes the options, padded to whole words, and returns their length.
    fn write_options(&self, room: &mut [u8; MAX_OPTIONS]) -> usize {
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            room[at..at + bytes.len()].copy_from_slice(bytes);
            // Whole words, the rest of the last one stays padding.
            at += bytes.len().next_multiple_of(4);
        };
        if let Some(mss) = self.options.mss {
            let [high, low] = mss.to_be_bytes();
            put(&[option::MSS, 4, high, low]);
        }
        if let Some(shift) = self.options.window_scale {
            put(&[option::WINDOW_SCALE, 3, shift]);
        }
        if self.options.sack_permitted {
            put(&[option::SACK_PERMITTED, 2]);
        }
        if !self.options.sack.is_empty() {
            let count = self.options.sack.iter().count();
            put(&[option::NOP, option::NOP, option::SACK, (2 + 8 * count) as u8]);
            for (from, to) in self.options.sack.iter() {
                put(&from.0.to_be_bytes());
                put(&to.0.to_be_bytes());
            }
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::tests::verifies;
    use proptest::prelude::*;

    fn written(outgoing: &Outgoing, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let (local, remote) = (
            "100.64.0.1:80".parse().unwrap(),
            "100.64.0.2:4000".parse().unwrap(),
        );
        outgoing.write(local, remote, payload.len(), &mut out, |room| {
            room.copy_from_slice(payload);
        });
        out
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            seq: u32,
            ack in proptest::option::of(any::<u32>()),
            window: u16,
            syn in proptest::option::of((any::<u16>(), 0u8..15)),
            sacks in proptest::collection::vec(any::<(u32, u32)>(), 0..5),
            payload in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let mut sack = SackBlocks::default();
            for (from, to) in sacks {
                sack.push(Seq(from), Seq(to));
            }
            let options = match syn {
                Some((mss, shift)) => Options { mss: Some(mss), window_scale: Some(shift), sack_permitted: true, ..Options::default() },
                None => Options { sack, ..Options::default() },
            };
            let outgoing = Outgoing { seq: Seq(seq), ack: ack.map(Seq), flags: tcp_flags::FIN, window, options };
            let packet = written(&outgoing, &payload);
            prop_assert!(verifies(&packet));
            let parsed = Parsed::parse(&packet).unwrap();
            let segment = Segment::parse(&packet, &parsed).unwrap();
            prop_assert_eq!(segment.seq, Seq(seq));
            prop_assert_eq!(segment.has(tcp_flags::ACK).then_some(segment.ack), ack.map(Seq));
            prop_assert_eq!(segment.window, window);
            prop_assert_eq!(segment.options, options);
            prop_assert_eq!(segment.payload, &payload[..]);
            prop_assert_eq!(segment.len() as usize, payload.len() + 1);
        }

        #[test]
        fn no_options_panic_or_loop(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            parse_options(&bytes);
        }
    }
}
