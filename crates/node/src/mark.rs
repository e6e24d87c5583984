//! The mark on packets of this process's own sockets, by which the kernel keeps them out of the tunnel that they carry.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Mark;

/// The mark, and the bits of a mark that are looked at: those that Tailscale's client uses, so that both fit beside what else
/// marks packets.
pub(crate) const BYPASS: (u32, u32) = (0x0008_0000, 0x00ff_0000);

/// A process has one such mark: a TUN device of any of its nodes concerns the sockets of all.
static ON: AtomicBool = AtomicBool::new(false);

/// From now on [`apply`] marks. To be called before sockets are opened.
pub(crate) fn turn_on() {
    ON.store(true, Ordering::Relaxed);
}

/// Marks a socket towards the control server, a relay or a peer, if marks are on.
pub(crate) fn apply(socket: &impl AsFd) -> io::Result<()> {
    if ON.load(Ordering::Relaxed) {
        setsockopt(socket, Mark, &BYPASS.0)?;
    }
    Ok(())
}
