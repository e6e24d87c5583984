//! Packets that wait for one client, in the form in which they are written to it.

use bytes::{Buf, BytesMut};
use tailwharf_wire::derp::{HEADER_LEN, recv_packet_header, recv_packet_len};
use tailwharf_wire::key::NodePublic;

/// Encoded packets, the oldest first. They have been copied, so a packet that waits holds no buffer of its sender.
#[derive(Debug, Default)]
pub(super) struct Queue {
    frames: BytesMut,
    packets: usize,
}

impl Queue {
    /// Bytes that wait.
    pub(super) fn len(&self) -> usize {
        self.frames.len()
    }

    /// Packets that wait.
    pub(super) const fn packets(&self) -> usize {
        self.packets
    }

    /// Bytes of these packets.
    pub(super) fn payload(&self) -> usize {
        self.frames.len() - self.packets * recv_packet_len(0)
    }

    /// Appends a packet, and drops the oldest until all fit into `limit`. The newest always stays. Returns how many were dropped.
    pub(super) fn push(&mut self, from: &NodePublic, packet: &[u8], limit: usize) -> u64 {
        let room = limit.saturating_sub(recv_packet_len(packet.len()));
        let mut dropped = 0;
        while self.frames.len() > room && self.pop() {
            dropped += 1;
        }
        self.frames.reserve(recv_packet_len(packet.len()));
        self.frames
            .extend_from_slice(&recv_packet_header(from, packet.len()));
        self.frames.extend_from_slice(packet);
        self.packets += 1;
        dropped
    }

    fn pop(&mut self) -> bool {
        let Some(&[_, l0, l1, l2, l3]) = self.frames.first_chunk::<HEADER_LEN>() else {
            return false;
        };
        let len = HEADER_LEN + u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        self.frames.advance(len.min(self.frames.len()));
        self.packets -= 1;
        true
    }

    /// Moves all to the end of `out`.
    pub(super) fn move_to(&mut self, out: &mut BytesMut) {
        if out.is_empty() {
            std::mem::swap(&mut self.frames, out);
        } else {
            out.extend_from_slice(&self.frames);
        }
        self.frames.clear();
        self.packets = 0;
    }

    /// Gives back memory that is not in use.
    pub(super) fn shrink(&mut self) {
        if self.frames.is_empty() {
            self.frames = BytesMut::new();
        }
    }
}
