//! Packets that stand for several: a kernel with segmentation offload gives and takes runs of one flow as one large packet with a header of its own
//! (`struct virtio_net_hdr`, Linux `include/uapi/linux/virtio_net.h`). [`split`] makes single packets of one, [`inbox`] makes one of single packets.

pub(crate) mod checksum;
pub(crate) mod inbox;
mod split;

pub use self::inbox::TunPacket;
pub use self::split::{Split, SplitError};

/// What goes before each packet of a TUN device that was opened with `IFF_VNET_HDR`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// The transport checksum is to be made: its field holds the sum of the pseudo header alone.
    pub needs_checksum: bool,
    /// What kind of segments the packet stands for.
    pub gso: Gso,
    /// Bytes of all headers of a segment.
    pub header_len: u16,
    /// Bytes that each segment carries behind its headers, but for the last, which may have fewer.
    pub segment: u16,
    /// Where the transport header begins, if `needs_checksum`.
    pub checksum_start: u16,
    /// Where in it the checksum is.
    pub checksum_offset: u16,
}

/// Kinds of packets that stand for several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gso {
    /// A packet that is just itself.
    #[default]
    None,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over either.
    Udp,
    /// A kind that nobody asked for.
    Other(u8),
}

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CHECKSUM: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_ECN`: a mark beside the kind.
const ECN: u8 = 0x80;

impl VnetHeader {
    /// Bytes of a header.
    pub const LEN: usize = 10;

    /// Reads a header.
    #[must_use]
    pub fn decode(bytes: &[u8; Self::LEN]) -> Self {
        let half = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            needs_checksum: bytes[0] & NEEDS_CHECKSUM != 0,
            gso: match bytes[1] & !ECN {
                0 => Gso::None,
                1 => Gso::Tcp4,
                4 => Gso::Tcp6,
                5 => Gso::Udp,
                other => Gso::Other(other),
            },
            header_len: half(2),
            segment: half(4),
            checksum_start: half(6),
            checksum_offset: half(8),
        }
    }

    /// Writes the header.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0] = u8::from(self.needs_checksum);
        bytes[1] = match self.gso {
            Gso::None => 0,
            Gso::Tcp4 => 1,
            Gso::Tcp6 => 4,
            Gso::Udp => 5,
            Gso::Other(other) => other,
        };
        let halves = [
            self.header_len,
            self.segment,
            self.checksum_start,
            self.checksum_offset,
        ];
        for (place, half) in bytes[2..].chunks_exact_mut(2).zip(halves) {
            place.copy_from_slice(&half.to_ne_bytes());
        }
        bytes
    }
}

/// Offset of the checksum in a TCP header.
const TCP_CHECKSUM: usize = 16;
/// Offset of the checksum in a UDP header.
const UDP_CHECKSUM: usize = 6;

/// Sets the length in an IP header to that of the packet, and the IPv4 header's checksum.
fn set_ip_length(packet: &mut [u8], length: usize) {
    if packet[0] >> 4 == 4 {
        packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
        packet[10..12].copy_from_slice(&[0, 0]);
        let header = usize::from(packet[0] & 0x0f) * 4;
        let sum = checksum::finish(checksum::sum(&packet[..header]));
        packet[10..12].copy_from_slice(&sum);
    } else {
        packet[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
    }
}

/// The sum of the pseudo header of a packet, without its length field.
fn pseudo_sum(packet: &[u8], protocol: u8) -> u64 {
    let addresses = if packet[0] >> 4 == 4 {
        &packet[12..20]
    } else {
        &packet[8..40]
    };
    checksum::sum(addresses) + checksum::word(u16::from(protocol))
}

#[cfg(test)]
mod tests;
