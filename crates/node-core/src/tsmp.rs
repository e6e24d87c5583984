//! TSMP, the messages that nodes exchange inside the tunnel.

use std::time::{Duration, Instant};

use tailwharf_wire::tsmp::{Message, RejectReason};

use crate::packet::{Parsed, proto, write_tsmp};

/// How many denials are told per [`WINDOW`]; a scan gets no more answers than that.
const MAX_REJECTS: u32 = 20;
const WINDOW: Duration = Duration::from_secs(1);

/// Tells peers that the filter turned a connection down, so that it fails at once in place of a timeout.
#[derive(Debug, Default)]
pub(crate) struct Rejecter {
    window: Option<Instant>,
    sent: u32,
}

impl Rejecter {
    /// Writes the answer to a denied SYN into `out`. Returns `false` if enough were sent lately.
    pub(crate) fn reject(&mut self, denied: &Parsed, out: &mut Vec<u8>, now: Instant) -> bool {
        if self
            .window
            .is_none_or(|start| now.duration_since(start) >= WINDOW)
        {
            self.window = Some(now);
            self.sent = 0;
        }
        if self.sent == MAX_REJECTS {
            return false;
        }
        self.sent += 1;
        let message = Message::Reject {
            protocol: proto::TCP,
            reason: RejectReason::Acl,
            src_port: denied.src_port,
            dst_port: denied.dst_port,
            maybe_broken: false,
        };
        write(out, denied, &message);
        true
    }
}

/// Writes a message back to the sender of `packet` into `out`.
pub(crate) fn write(out: &mut Vec<u8>, packet: &Parsed, message: &Message) {
    let mut body = Vec::with_capacity(16);
    message.encode(&mut body);
    write_tsmp(out, packet.dst, packet.src, &body);
}
