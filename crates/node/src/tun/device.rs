//! The device: `/dev/net/tun` (Linux `Documentation/networking/tuntap.rst`), with a header before each packet by which large packets go through it whole.

#![allow(unsafe_code)] // The two ioctls by which a device is made and set up: no crate in use has them in a safe form.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::libc;
use tailwharf_node_core::offload::{Gso, Split, TunPacket, VnetHeader};

use crate::offload::{Kind, NamedOffload, Offload, OffloadSwitches};

/// Where devices come from.
const CLONE_DEVICE: &str = "/dev/net/tun";
/// The longest packet with its header.
pub(super) const MAX_READ: usize = VnetHeader::LEN + 65_535;
/// Parts of one packet, and the header.
const MAX_SLICES: usize = 65;

/// Offloads of `TUNSETOFFLOAD` (Linux `include/uapi/linux/if_tun.h`): checksums; TCP over IPv4 and IPv6; UDP over IPv4 and IPv6.
const CHECKSUMS: libc::c_ulong = 0x01;
const LARGE_TCP: libc::c_ulong = CHECKSUMS | 0x02 | 0x04;
const LARGE_UDP: libc::c_ulong = LARGE_TCP | 0x20 | 0x40;

mod ioctl {
    use nix::libc;

    nix::ioctl_write_ptr_bad!(
        set_interface,
        nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
        libc::ifreq
    );
    nix::ioctl_write_int_bad!(
        set_offload,
        nix::request_code_write!(b'T', 208, size_of::<libc::c_uint>())
    );
}

/// A device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The name is not one of an interface.
    #[error("{0:?} cannot be the name of a network interface: use 1 to 15 letters, digits or dashes")]
    Name(String),
    /// There is no way to make devices.
    #[error("cannot open {CLONE_DEVICE}; load the module \"tun\", and give a container this device")]
    Open(#[source] io::Error),
    /// The device could not be made.
    #[error(
        "cannot make the network interface {name}; it takes the capability NET_ADMIN, and nobody else may hold it"
    )]
    Create {
        /// The interface's name.
        name: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A TUN device. It is gone once this is dropped.
#[derive(Debug)]
pub struct Device {
    file: File,
    name: String,
    tso: Offload,
    uso: Offload,
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Device {
    /// Makes a device of this name, or takes the persistent one that there is.
    ///
    /// # Errors
    /// When the name is none, or the kernel does not allow it.
    pub fn open(name: &str, switches: OffloadSwitches) -> Result<Self, TunError> {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let length = name.len();
        if length == 0 || length >= libc::IFNAMSIZ || !name.bytes().all(is_name) {
            return Err(TunError::Name(name.to_owned()));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(CLONE_DEVICE)
            .map_err(TunError::Open)?;
        create(&file, name).map_err(|source| TunError::Create {
            name: name.to_owned(),
            source,
        })?;
        let set = |offloads| set_offloads(&file, offloads).is_ok();
        let tso = Offload::probe(Kind::TunTso, switches.tun_tso, || set(LARGE_TCP));
        let uso = Offload::probe(Kind::TunUso, switches.tun_uso && tso.is_active(), || {
            set(LARGE_UDP)
        });
        if !tso.is_active() {
            set(0);
        }
        Ok(Self {
            file,
            name: name.to_owned(),
            tso,
            uso,
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn offloads(&self) -> [NamedOffload; 2] {
        [self.tso.named(), self.uso.named()]
    }

    /// Whether runs of TCP segments, and whether runs of datagrams, go through the device as one packet.
    pub(crate) fn takes_large(&self) -> (bool, bool) {
        (self.tso.is_active(), self.uso.is_active())
    }

    /// Reads the next packet of the kernel into `room`, [`MAX_READ`] long. `None` when there is none.
    pub(super) fn read<'a>(&self, room: &'a mut [u8]) -> Option<(VnetHeader, &'a mut [u8])> {
        let length = match (&self.file).read(room) {
            Ok(length) => length,
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    tracing::trace!(%error, "a packet could not be read from the device");
                }
                return None;
            }
        };
        let (header, packet) = room.get_mut(..length)?.split_first_chunk_mut()?;
        Some((VnetHeader::decode(header), packet))
    }

    /// Gives a packet to the kernel, or loses it, as any network may. Returns `false` if the device turned out not to take large packets.
    pub(crate) fn write(&self, packet: &TunPacket<'_>) -> bool {
        let header = packet.header.encode();
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let mut count = 0;
        for (slice, part) in slices
            .iter_mut()
            .zip(std::iter::once(&header[..]).chain(packet.parts()))
        {
            *slice = IoSlice::new(part);
            count += 1;
        }
        match (&self.file).write_vectored(&slices[..count]) {
            Err(error)
                if packet.header.gso != Gso::None && error.raw_os_error() == Some(Errno::EINVAL as i32) =>
            {
                self.refuse_large(packet, &error);
                false
            }
            Err(error) => {
                tracing::trace!(%error, "a packet could not be written to the device");
                true
            }
            Ok(_) => true,
        }
    }

    /// Does without large packets from now on, beginning with this one.
    fn refuse_large(&self, packet: &TunPacket<'_>, error: &io::Error) {
        let failed = if packet.header.gso == Gso::Udp {
            &self.uso
        } else {
            &self.tso
        };
        failed.fail(error);
        let offloads = match self.takes_large() {
            (true, true) => LARGE_UDP,
            (true, false) => LARGE_TCP,
            (false, _) => 0,
        };
        if let Err(error) = set_offloads(&self.file, offloads) {
            tracing::warn!(%error, device = self.name, "the offloads of the device cannot be changed");
        }
        let mut whole = packet.parts().collect::<Vec<_>>().concat();
        if let Ok(mut pieces) = Split::new(&mut whole, &packet.header) {
            while let Some(piece) = pieces.next_packet() {
                let header = VnetHeader::default().encode();
                let _ = (&self.file).write_vectored(&[IoSlice::new(&header), IoSlice::new(piece)]);
            }
        }
    }
}

fn create(file: &File, name: &str) -> io::Result<()> {
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short,
        },
    };
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte as libc::c_char;
    }
    // SAFETY: the request outlives the call, is of the type that TUNSETIFF reads, and its name ends with a zero.
    unsafe { ioctl::set_interface(file.as_raw_fd(), &raw const request) }?;
    Ok(())
}

fn set_offloads(file: &File, offloads: libc::c_ulong) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes a number, no pointer.
    unsafe { ioctl::set_offload(file.as_raw_fd(), offloads as libc::c_int) }?;
    Ok(())
}
