//! TSMP, the messages that nodes exchange inside the tunnel.

use tailwharf_wire::tsmp::{Message, RejectReason};

use crate::packet::{Parsed, proto, write_tsmp};

/// Writes the answer to a SYN that the filter denied into `out`, so that the connection fails at once in place of a timeout.
pub(crate) fn write_reject(out: &mut Vec<u8>, denied: &Parsed) {
    let message = Message::Reject {
        protocol: proto::TCP,
        reason: RejectReason::Acl,
        src_port: denied.src_port,
        dst_port: denied.dst_port,
        maybe_broken: false,
    };
    write(out, denied, &message);
}

/// Writes a message back to the sender of `packet` into `out`.
pub(crate) fn write(out: &mut Vec<u8>, packet: &Parsed, message: &Message) {
    let mut body = Vec::with_capacity(16);
    message.encode(&mut body);
    write_tsmp(out, packet.dst, packet.src, &body);
}
