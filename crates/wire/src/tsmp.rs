//! TSMP, IP protocol 99: the small control protocol that runs inside tunnels. A message follows the IP header.

use crate::key::{DiscoPublic, KEY_LEN};

/// The protocol's number in IP headers.
pub const IP_PROTOCOL: u8 = 99;

const TYPE_REJECT: u8 = b'!';
const TYPE_PING: u8 = b'p';
const TYPE_PONG: u8 = b'o';
const TYPE_DISCO_KEY: u8 = b'a';
const FLAG_MAYBE_BROKEN: u8 = 1;

/// A message that is shorter than its type needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("TSMP message of {0} bytes is too short")]
pub struct TsmpError(pub usize);

/// Why a flow was rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RejectReason {
    /// By the packet filter.
    Acl,
    /// The node takes no connections.
    ShieldsUp,
    /// The router does not forward.
    IpForwarding,
    /// By the firewall of the host.
    HostFirewall,
    /// The app connector does not know the address.
    UnknownTransitIp,
    /// Something else.
    Other(u8),
}

impl RejectReason {
    const fn code(self) -> u8 {
        match self {
            Self::Acl => b'A',
            Self::ShieldsUp => b'S',
            Self::IpForwarding => b'F',
            Self::HostFirewall => b'W',
            Self::UnknownTransitIp => b'T',
            Self::Other(code) => code,
        }
    }

    const fn from_code(code: u8) -> Self {
        match code {
            b'A' => Self::Acl,
            b'S' => Self::ShieldsUp,
            b'F' => Self::IpForwarding,
            b'W' => Self::HostFirewall,
            b'T' => Self::UnknownTransitIp,
            other => Self::Other(other),
        }
    }
}

/// A message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// A flow that the receiver wants to open was rejected.
    Reject {
        /// IP protocol of the flow.
        protocol: u8,
        /// Why.
        reason: RejectReason,
        /// Source port of the flow, which is the receiver's.
        src_port: u16,
        /// Destination port of the flow.
        dst_port: u16,
        /// Whether the flow may work all the same, so that the receiver goes on trying.
        maybe_broken: bool,
    },
    /// Asks for a [`Message::Pong`] with the same bytes.
    Ping([u8; 8]),
    /// Answer to a [`Message::Ping`].
    Pong {
        /// The ping's bytes.
        data: [u8; 8],
        /// Port of the sender's peer API. 0: none.
        peer_api_port: u16,
    },
    /// The sender's disco key.
    DiscoKey(DiscoPublic),
    /// A message that is not known here. To be ignored.
    Unknown(u8),
}

impl Message {
    /// Reads what follows the IP header.
    ///
    /// # Errors
    /// When it is shorter than its type needs.
    pub fn decode(payload: &[u8]) -> Result<Self, TsmpError> {
        let too_short = TsmpError(payload.len());
        let (&kind, body) = payload.split_first().ok_or(too_short)?;
        match kind {
            TYPE_REJECT => {
                let (&[protocol, reason, s0, s1, d0, d1], flags) =
                    body.split_first_chunk::<6>().ok_or(too_short)?;
                Ok(Self::Reject {
                    protocol,
                    reason: RejectReason::from_code(reason),
                    src_port: u16::from_be_bytes([s0, s1]),
                    dst_port: u16::from_be_bytes([d0, d1]),
                    maybe_broken: flags.first().is_some_and(|flags| flags & FLAG_MAYBE_BROKEN != 0),
                })
            }
            TYPE_PING => Ok(Self::Ping(*body.first_chunk::<8>().ok_or(too_short)?)),
            TYPE_PONG => {
                let (data, port) = body.split_first_chunk::<8>().ok_or(too_short)?;
                let peer_api_port = port
                    .first_chunk::<2>()
                    .map_or(0, |port| u16::from_be_bytes(*port));
                Ok(Self::Pong {
                    data: *data,
                    peer_api_port,
                })
            }
            TYPE_DISCO_KEY => {
                let key = body.first_chunk::<KEY_LEN>().ok_or(too_short)?;
                Ok(Self::DiscoKey(DiscoPublic::from_bytes(*key)))
            }
            other => Ok(Self::Unknown(other)),
        }
    }

    /// Appends this message to `out`. [`Message::Unknown`] becomes a message without a body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Reject {
                protocol,
                reason,
                src_port,
                dst_port,
                maybe_broken,
            } => {
                out.extend_from_slice(&[TYPE_REJECT, protocol, reason.code()]);
                out.extend_from_slice(&src_port.to_be_bytes());
                out.extend_from_slice(&dst_port.to_be_bytes());
                if maybe_broken {
                    out.push(FLAG_MAYBE_BROKEN);
                }
            }
            Self::Ping(data) => {
                out.push(TYPE_PING);
                out.extend_from_slice(&data);
            }
            Self::Pong { data, peer_api_port } => {
                out.push(TYPE_PONG);
                out.extend_from_slice(&data);
                out.extend_from_slice(&peer_api_port.to_be_bytes());
            }
            Self::DiscoKey(key) => {
                out.push(TYPE_DISCO_KEY);
                out.extend_from_slice(key.as_bytes());
            }
            Self::Unknown(kind) => out.push(kind),
        }
    }
}
