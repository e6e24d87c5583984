//! The device by which smoltcp is driven by hand: one packet in, one packet out.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface};
use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::wire::{HardwareAddress, IpCidr};

use crate::packet::INNER_MTU;

/// A device that holds at most one packet each way.
#[derive(Debug)]
pub(super) struct OnePacket<'a> {
    pub(super) rx: Option<&'a [u8]>,
    pub(super) tx: &'a mut Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Rx<'a>(&'a [u8]);

#[derive(Debug)]
pub(super) struct Tx<'a>(&'a mut Vec<u8>);

impl RxToken for Rx<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        self.0.clear();
        self.0.resize(length, 0);
        write(self.0)
    }
}

impl Device for OnePacket<'_> {
    type RxToken<'t>
        = Rx<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Tx<'t>
    where
        Self: 't;

    fn receive(&mut self, _now: smoltcp::time::Instant) -> Option<(Rx<'_>, Tx<'_>)> {
        self.rx.take().map(|packet| (Rx(packet), Tx(self.tx)))
    }

    fn transmit(&mut self, _now: smoltcp::time::Instant) -> Option<Tx<'_>> {
        if self.tx.is_empty() {
            Some(Tx(self.tx))
        } else {
            None
        }
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = INNER_MTU;
        // What comes in was authenticated by WireGuard. What goes out may leave a peer's tunnel for a network that checks.
        let mut checksum = ChecksumCapabilities::default();
        checksum.ipv4 = Checksum::Tx;
        checksum.tcp = Checksum::Tx;
        capabilities.checksum = checksum;
        capabilities
    }
}

/// smoltcp's interface, which all flows of a core share: it holds no state of theirs, only the time, a random generator and the address that is ours.
pub(super) struct Wire {
    pub(super) iface: Interface,
    address: Option<IpAddr>,
    epoch: Instant,
}

/// smoltcp takes the time zero for "never", so the clock starts later.
const EPOCH_OFFSET: Duration = Duration::from_secs(1);

impl Wire {
    pub(super) fn new(random_seed: u64, epoch: Instant) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = random_seed;
        let mut none = Vec::new();
        let mut device = OnePacket {
            rx: None,
            tx: &mut none,
        };
        Self {
            iface: Interface::new(config, &mut device, smoltcp::time::Instant::ZERO),
            address: None,
            epoch,
        }
    }

    /// Makes `address` the one that is ours. Flows of different addresses take turns.
    pub(super) fn set_address(&mut self, address: IpAddr) {
        if self.address == Some(address) {
            return;
        }
        self.address = Some(address);
        let bits = if address.is_ipv4() { 32 } else { 128 };
        self.iface.update_ip_addrs(|addresses| {
            addresses.clear();
            // There is room for two, and this is the only one.
            let _ = addresses.push(IpCidr::new(address.into(), bits));
        });
    }

    pub(super) fn time(&self, now: Instant) -> smoltcp::time::Instant {
        let since = now.duration_since(self.epoch) + EPOCH_OFFSET;
        smoltcp::time::Instant::from_micros(since.as_micros() as i64)
    }

    pub(super) fn instant(&self, time: smoltcp::time::Instant) -> Instant {
        let micros = u64::try_from(time.total_micros()).unwrap_or(0);
        self.epoch + Duration::from_micros(micros).saturating_sub(EPOCH_OFFSET)
    }
}
