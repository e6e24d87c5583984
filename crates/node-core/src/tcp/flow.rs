//! A connection and its place in the stack.

use std::time::Instant;

use super::conn::{Conn, State};
use crate::budget::Share;
use crate::slab::Key;

/// Where a flow is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// We asked for it.
    Opening,
    /// A SYN came for this listener, its handshake is under way.
    HalfOpen(Key),
    /// It waits at this listener to be accepted.
    Queued(Key),
    /// An application has it.
    Open,
    /// The application has closed it; it ends by itself.
    Orphan,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) conn: Conn,
    pub(super) stage: Stage,
    /// Whether the peer asked for it, so that our packet filter decides over it.
    pub(super) is_inbound: bool,
    /// Whether our address is one that this node routes.
    pub(super) is_routed: bool,
    /// Whether the application waits for data, or for room.
    pub(super) want_read: bool,
    pub(super) want_write: bool,
    /// Whether it is in the list of flows to be served.
    pub(super) is_dirty: bool,
    /// The earliest entry in the timer heap.
    pub(super) armed: Option<Instant>,
    /// Whether it is among those that wait for a sign of life from their peer.
    pub(super) is_stalled: bool,
    /// Whether nothing more is sent or taken; what was received can still be read.
    pub(super) is_finished: bool,
    _share: Share,
}

impl Flow {
    pub(super) fn new(conn: Conn, stage: Stage, share: Share) -> Self {
        Self {
            conn,
            stage,
            is_inbound: matches!(stage, Stage::HalfOpen(_)),
            is_routed: false,
            want_read: false,
            want_write: false,
            is_dirty: false,
            armed: None,
            is_stalled: false,
            is_finished: false,
            _share: share,
        }
    }

    pub(super) fn state(&self) -> State {
        self.conn.state
    }

    /// The application lets go. What it wrote is still sent; if it left data unread the other side is told so by a reset (RFC 2525, 2.17).
    pub(super) fn orphan(&mut self) {
        self.stage = Stage::Orphan;
        self.conn.orphan();
        if self.has_data() {
            self.conn.abort();
        } else {
            self.conn.close();
        }
    }

    pub(super) fn has_data(&self) -> bool {
        self.conn.recv.buffer.ready() > 0
    }

    /// Whether a read would return something: data, the end, or an error.
    pub(super) fn is_readable(&self) -> bool {
        self.has_data() || self.is_finished || self.is_at_end()
    }

    /// Whether the other side has sent everything and it was read.
    pub(super) fn is_at_end(&self) -> bool {
        let is_over = self.conn.has_received_fin() || (self.is_finished && self.conn.ended.is_none());
        is_over && !self.has_data()
    }

    /// Whether a write is worth the wake-up: room for a good part, or an error to tell.
    pub(super) fn is_writable(&self) -> bool {
        self.is_finished || (self.conn.may_send() && self.conn.has_room())
    }
}
