//! The thread that carries packets: between the device, the core and the UDP socket, run to completion.
//!
//! A wake-up costs more than sealing many packets, so what one wake-up brings is carried to its end by the same thread, and it sleeps only when neither
//! device nor socket has anything.

use std::io::PipeReader;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::runtime::Handle;

use super::device::{Device, MAX_READ};
use crate::direct::Socket;
use crate::engine::Engine;

/// What is read from the device before it is sent: so many bytes, which the next cache still holds, or so many packets.
const MAX_BYTES: usize = 128 << 10;
const MAX_PACKETS: usize = 128;

/// The device's queue is long, for bursts of small packets, and nothing in it should wait long. When it did not run empty for this time, large packets
/// are the reason: their senders take as much as there is, and slow down only when a segment is lost.
const STANDING: Duration = Duration::from_millis(4);
/// From here on a packet counts as large.
const LARGE: usize = 16 << 10;

/// Starts the thread. It ends with the node.
pub(crate) fn start(
    engine: &Arc<Engine>,
    device: Arc<Device>,
    socket: Option<Arc<Socket>>,
) -> std::io::Result<()> {
    let (ended, ends) = std::io::pipe()?;
    // The pipe is closed when the node's tasks end, which wakes the thread.
    engine.spawn(async move {
        let _ends = ends;
        std::future::pending::<()>().await;
    });
    let carrier = Carrier {
        engine: engine.clone(),
        device,
        socket,
        ended,
        room: vec![0; MAX_READ],
        full_since: None,
    };
    let runtime = Handle::current();
    std::thread::Builder::new()
        .name("tun".to_owned())
        .spawn(move || {
            // What packets lead to may start tasks: connections to relays.
            let _runtime = runtime.enter();
            carrier.run();
        })?;
    Ok(())
}

struct Carrier {
    engine: Arc<Engine>,
    device: Arc<Device>,
    socket: Option<Arc<Socket>>,
    ended: PipeReader,
    room: Vec<u8>,
    /// Since when the device's queue has not been empty.
    full_since: Option<Instant>,
}

impl Carrier {
    fn run(mut self) {
        loop {
            while self.round() {}
            // Others who wait for this processor go first. What they send meanwhile needs no wake-up, and comes as one batch.
            std::thread::yield_now();
            if self.round() {
                continue;
            }
            match self.wait() {
                Ok(true) => return,
                Ok(false) | Err(Errno::EINTR) => {}
                Err(error) => {
                    tracing::error!(%error, device = self.device.name(), "packets cannot be waited for; the device is left");
                    return;
                }
            }
        }
    }

    /// Carries what is there, some of it. Returns whether there was anything, and the node goes on.
    fn round(&mut self) -> bool {
        let Self {
            engine,
            device,
            socket,
            room,
            full_since,
            ..
        } = self;
        engine.carry(|core, now| {
            let mut any = false;
            if let Some(socket) = socket {
                let received = socket.receive(|from, datagrams, segment| {
                    core.handle_udp_batch(from, datagrams, segment, now);
                });
                any |= received.is_ok();
            }
            let mut bytes = 0;
            for _ in 0..MAX_PACKETS {
                let Some((header, packet)) = device.read(room) else {
                    *full_since = None;
                    break;
                };
                any = true;
                let since = full_since.get_or_insert(now);
                let slow_down = now.duration_since(*since) >= STANDING && packet.len() >= LARGE;
                if slow_down {
                    *since = now;
                }
                bytes += packet.len();
                core.handle_tun(&header, packet, slow_down, now);
                if bytes >= MAX_BYTES {
                    break;
                }
            }
            any
        })
    }

    /// Waits for packets. Returns whether it is over.
    fn wait(&self) -> nix::Result<bool> {
        let watch = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let ended = watch(self.ended.as_fd());
        let device = watch(self.device.as_fd());
        // Without a socket the end is watched twice.
        let socket = watch(
            self.socket
                .as_ref()
                .map_or_else(|| self.ended.as_fd(), |socket| socket.as_fd()),
        );
        let mut fds = [ended, device, socket];
        poll(&mut fds, PollTimeout::NONE)?;
        Ok(fds[0].any().unwrap_or(true))
    }
}
