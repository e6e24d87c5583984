//! From one large packet of the kernel to the packets that it stands for.

use super::{Gso, TCP_CHECKSUM, UDP_CHECKSUM, VnetHeader, checksum, pseudo_sum, set_ip_length};
use crate::packet::{proto, tcp_flags};

/// Longest headers of a segment: IPv4 and TCP with all options, or IPv6 with some extensions.
const MAX_HEADERS: usize = 128;
/// The usual headers are no longer than this. Copies of a fixed length are many times quicker than those of any length.
const FEW_HEADERS: usize = 64;
/// Flags of which only the last segment has what the large packet has.
const LAST_FLAGS: u8 = tcp_flags::FIN | tcp_flags::PSH;
/// The flag that only the first segment has: "congestion window reduced" (RFC 3168).
const CWR: u8 = 0x80;

/// Why a large packet cannot be taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// The packet is shorter than its headers say, or these are no IP, TCP or UDP headers.
    #[error("the headers of a large packet do not fit it")]
    Headers,
    /// A kind of large packet that was not asked for.
    #[error("a large packet of a kind that was not asked for ({0})")]
    Kind(u8),
}

/// The packets that a large packet stands for, with checksums. They are made in place, one at a time: the headers of the next are written over the end of the
/// one before.
#[derive(Debug)]
pub struct Split<'a> {
    packet: &'a mut [u8],
    /// Where the payload of the next segment begins, and which it is.
    at: usize,
    number: usize,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// Given out as it is.
    Single,
    Segments(Box<Template>),
}

/// The headers that all segments begin with.
#[derive(Debug)]
struct Template {
    /// They end at the end of this.
    headers: [u8; MAX_HEADERS],
    length: usize,
    transport: usize,
    protocol: u8,
    payload: usize,
    pseudo: u64,
}

impl<'a> Split<'a> {
    /// Looks at a packet of the kernel.
    ///
    /// # Errors
    /// When the header does not fit the packet.
    pub fn new(packet: &'a mut [u8], header: &VnetHeader) -> Result<Self, SplitError> {
        let kind = match header.gso {
            Gso::None => {
                if header.needs_checksum {
                    make_checksum(packet, header)?;
                }
                Kind::Single
            }
            Gso::Tcp4 | Gso::Tcp6 => Kind::Segments(Template::new(packet, header, proto::TCP)?),
            Gso::Udp => Kind::Segments(Template::new(packet, header, proto::UDP)?),
            Gso::Other(kind) => return Err(SplitError::Kind(kind)),
        };
        let at = match &kind {
            Kind::Single => 0,
            Kind::Segments(template) => template.length,
        };
        Ok(Self {
            packet,
            at,
            number: 0,
            kind,
        })
    }

    /// The next packet.
    pub fn next_packet(&mut self) -> Option<&mut [u8]> {
        let start = self.at;
        if start >= self.packet.len() {
            return None;
        }
        let Kind::Segments(template) = &self.kind else {
            self.at = self.packet.len();
            return Some(self.packet);
        };
        self.at = (start + template.payload).min(self.packet.len());
        let is_last = self.at == self.packet.len();
        template.copy_to(&mut self.packet[..start]);
        let segment = &mut self.packet[start - template.length..self.at];
        template.finish(segment, self.number, is_last);
        self.number += 1;
        Some(segment)
    }
}

/// Makes the checksum of a packet whose field holds the sum of the pseudo header.
fn make_checksum(packet: &mut [u8], header: &VnetHeader) -> Result<(), SplitError> {
    let start = usize::from(header.checksum_start);
    let at = usize::from(header.checksum_offset);
    let covered = packet.get_mut(start..).ok_or(SplitError::Headers)?;
    let sum = checksum::finish(checksum::sum(covered));
    let field = covered.get_mut(at..at + 2).ok_or(SplitError::Headers)?;
    // Zero means "none" in UDP, and its other form is as right in TCP.
    field.copy_from_slice(if sum == [0, 0] { &[0xff; 2] } else { &sum });
    Ok(())
}

impl Template {
    fn new(packet: &[u8], header: &VnetHeader, protocol: u8) -> Result<Box<Self>, SplitError> {
        let transport = usize::from(header.checksum_start);
        let is_ip = match packet.first().ok_or(SplitError::Headers)? >> 4 {
            4 => transport >= 20 && transport == usize::from(packet[0] & 0x0f) * 4,
            6 => transport >= 40,
            _ => false,
        };
        let length = transport
            + match protocol {
                proto::TCP => usize::from(packet.get(transport + 12).ok_or(SplitError::Headers)? >> 4) * 4,
                _ => 8,
            };
        let least = transport + if protocol == proto::TCP { 20 } else { 8 };
        let payload = usize::from(header.segment);
        if !is_ip || length < least || length > MAX_HEADERS || packet.len() <= length || payload == 0 {
            return Err(SplitError::Headers);
        }
        let mut headers = [0; MAX_HEADERS];
        headers[MAX_HEADERS - length..].copy_from_slice(&packet[..length]);
        Ok(Box::new(Self {
            headers,
            length,
            transport,
            protocol,
            payload,
            pseudo: pseudo_sum(packet, protocol),
        }))
    }

    /// Writes the headers to the end of `before`, what is before the payload of a segment. More of it may be written over: it has been given out.
    fn copy_to(&self, before: &mut [u8]) {
        if self.length <= FEW_HEADERS
            && let (Some(to), Some(from)) = (
                before.last_chunk_mut::<FEW_HEADERS>(),
                self.headers.last_chunk::<FEW_HEADERS>(),
            )
        {
            *to = *from;
        } else if let Some(to) = before.last_chunk_mut::<MAX_HEADERS>() {
            *to = self.headers;
        } else {
            let start = before.len() - self.length;
            before[start..].copy_from_slice(&self.headers[MAX_HEADERS - self.length..]);
        }
    }

    /// Makes the headers of a segment, which are those of the whole, its own.
    fn finish(&self, segment: &mut [u8], number: usize, is_last: bool) {
        let total = segment.len();
        if segment[0] >> 4 == 4 {
            let id = u16::from_be_bytes([segment[4], segment[5]]).wrapping_add(number as u16);
            segment[4..6].copy_from_slice(&id.to_be_bytes());
        }
        set_ip_length(segment, total);
        let body = &mut segment[self.transport..];
        let at = if self.protocol == proto::TCP {
            let offset = (number * self.payload) as u32;
            let sequence = u32::from_be_bytes([body[4], body[5], body[6], body[7]]).wrapping_add(offset);
            body[4..8].copy_from_slice(&sequence.to_be_bytes());
            if !is_last {
                body[13] &= !LAST_FLAGS;
            }
            if number > 0 {
                body[13] &= !CWR;
            }
            TCP_CHECKSUM
        } else {
            let length = body.len() as u16;
            body[4..6].copy_from_slice(&length.to_be_bytes());
            UDP_CHECKSUM
        };
        body[at..at + 2].copy_from_slice(&[0, 0]);
        let sum = self.pseudo + checksum::word(body.len() as u16) + checksum::sum(body);
        let sum = checksum::finish(sum);
        body[at..at + 2].copy_from_slice(if sum == [0, 0] { &[0xff; 2] } else { &sum });
    }
}
