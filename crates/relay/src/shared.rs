//! What all connections share: the machine under a lock, the limits, the counts.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::BytesMut;
use rand::Rng;
use rand::rngs::OsRng;
use tailwharf_wire::derp::{DerpError, RawFrame, ServerInfo};
use tailwharf_wire::key::{NodePrivate, NodePublic};

use crate::connection::{self, Link};
use crate::machine::{ClientId, Command, Machine};
use crate::metrics::{Metrics, ShellCounters};
use crate::server::{Admission, Limits, ServeError};

/// What all connections share.
pub(crate) struct Shared {
    key: NodePrivate,
    admission: Option<Admission>,
    limits: Limits,
    pub(crate) counters: Arc<ShellCounters>,
    state: Mutex<State>,
}

struct State {
    machine: Machine,
    links: HashMap<ClientId, Arc<Link>>,
    sources: HashMap<IpAddr, usize>,
    connections: usize,
}

impl State {
    fn handle_frames(&mut self, id: ClientId, rest: &mut &mut [u8], now: Instant) -> Result<(), DerpError> {
        while let Some(mut frame) = RawFrame::split_off(rest)? {
            match frame.send_packet() {
                Some((to, packet)) => self.machine.handle_packet(id, to, packet, now),
                None => self.machine.handle_frame(id, &frame.to_frame()?, now),
            }
        }
        Ok(())
    }

    /// Obeys the machine.
    fn obey(&mut self) {
        while let Some(command) = self.machine.poll_command() {
            match command {
                Command::Wake(id) => {
                    if let Some(link) = self.links.get(&id) {
                        link.wake();
                    }
                }
                Command::Close(id, reason) => {
                    if let Some(link) = self.links.remove(&id) {
                        link.close(reason);
                    }
                }
            }
        }
    }
}

impl Shared {
    pub(crate) fn new(key: NodePrivate, admission: Option<Admission>, limits: Limits) -> Self {
        Self {
            key,
            admission,
            limits,
            counters: Arc::default(),
            state: Mutex::new(State {
                machine: Machine::new(limits.rates, OsRng.r#gen()),
                links: HashMap::new(),
                sources: HashMap::new(),
                connections: 0,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn key(&self) -> &NodePrivate {
        &self.key
    }

    pub(crate) fn admits(&self, key: &NodePublic) -> bool {
        let admitted = self.admission.as_ref().is_none_or(|admits| admits(key));
        if !admitted {
            self.counters.refused_admission.add();
        }
        admitted
    }

    /// What each client is told about its limits.
    pub(crate) fn info(&self) -> ServerInfo {
        connection::info(self.limits.rates.client)
    }

    pub(crate) fn connect(
        &self,
        key: NodePublic,
        source: IpAddr,
        can_ack_pings: bool,
        link: Arc<Link>,
    ) -> ClientId {
        let mut state = self.state();
        let id = state.machine.connect(key, source, can_ack_pings, now());
        state.links.insert(id, link);
        state.obey();
        id
    }

    pub(crate) fn disconnect(&self, id: ClientId) {
        let mut state = self.state();
        state.links.remove(&id);
        state.machine.disconnect(id);
        state.obey();
    }

    /// Takes the frames that are complete off the begin of `received`. Returns how many bytes they are.
    pub(crate) fn handle_frames(&self, id: ClientId, received: &mut [u8]) -> Result<usize, DerpError> {
        let now = now();
        let len = received.len();
        let mut rest = received;
        let mut state = self.state();
        let handled = state.handle_frames(id, &mut rest, now);
        state.obey();
        handled.map(|()| len - rest.len())
    }

    /// Until when nothing must be read from a client.
    pub(crate) fn paced(&self, id: ClientId) -> Option<tokio::time::Instant> {
        if self.limits.rates.client.is_none() && self.limits.rates.source.is_none() {
            return None;
        }
        self.state().machine.paced(id, now()).map(Into::into)
    }

    pub(crate) fn take(&self, id: ClientId, out: &mut BytesMut) {
        self.state().machine.take(id, out);
    }

    /// When [`Shared::handle_timeout`] has to be called. A client that the machine has forgotten is about to be closed.
    pub(crate) fn timeout(&self, id: ClientId) -> Instant {
        self.state().machine.timeout(id).unwrap_or_else(now)
    }

    pub(crate) fn handle_timeout(&self, id: ClientId) {
        let mut state = self.state();
        state.machine.handle_timeout(id, now());
        state.obey();
    }

    pub(crate) fn note_end(&self, source: SocketAddr, ended: &ServeError) {
        let is_fault = match ended {
            ServeError::TlsTimeout | ServeError::Tls(_) | ServeError::Http(_) => true,
            ServeError::Derp(ended) => ended.is_fault(),
        };
        if is_fault {
            self.counters.faulty.add();
        }
        let cause = std::error::Error::source(ended).map(ToString::to_string);
        tracing::debug!(%source, reason = %ended, cause, "connection ended");
    }

    pub(crate) fn metrics(&self) -> Metrics {
        let state = self.state();
        Metrics {
            clients: state.machine.len() as u64,
            homes: state.machine.homes() as u64,
            connections: state.connections as u64,
            accepted: self.counters.accepted.get(),
            refused_limit: self.counters.refused_limit.get(),
            refused_admission: self.counters.refused_admission.get(),
            faulty: self.counters.faulty.get(),
            carried: state.machine.counters(),
            stun_answered: self.counters.stun_answered.get(),
            stun_ignored: self.counters.stun_ignored.get(),
        }
    }
}

/// The present time, which tests may stop.
fn now() -> Instant {
    tokio::time::Instant::now().into()
}

/// What counts as one source: an IPv4 address, or the network that is given to one IPv6 site.
pub(crate) fn site(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

/// The right to one connection.
pub(crate) struct Slot {
    pub(crate) shared: Arc<Shared>,
    pub(crate) source: IpAddr,
}

impl Slot {
    /// `None`: there are too many connections, of all or of this source.
    pub(crate) fn claim(shared: &Arc<Shared>, source: IpAddr) -> Option<Self> {
        let mut state = shared.state();
        let of_source = state.sources.get(&source).copied().unwrap_or_default();
        if state.connections >= shared.limits.connections || of_source >= shared.limits.connections_per_source
        {
            shared.counters.refused_limit.add();
            return None;
        }
        state.connections += 1;
        state.sources.insert(source, of_source + 1);
        shared.counters.accepted.add();
        Some(Self {
            shared: shared.clone(),
            source,
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.connections -= 1;
        if let Some(of_source) = state.sources.get_mut(&self.source) {
            *of_source -= 1;
            if *of_source == 0 {
                state.sources.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_counted_by_site() {
        let site = |ip: &str| site(ip.parse().unwrap()).to_string();
        assert_eq!(site("192.0.2.7"), "192.0.2.7");
        assert_eq!(site("::ffff:192.0.2.7"), "192.0.2.7");
        assert_eq!(site("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
    }
}
