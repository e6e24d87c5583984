//! Work that the kernel takes over for whole batches of packets: each part has a switch, is tried at the start, is left when it fails, and says so.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Which offloads a process may use. All by default; what the kernel does not have is left out by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OffloadSwitches {
    /// UDP: many datagrams in one send.
    pub udp_gso: bool,
    /// UDP: many datagrams in one receive.
    pub udp_gro: bool,
    /// TUN device: large TCP segments and checksums.
    pub tun_tso: bool,
    /// TUN device: large UDP datagrams that stand for several.
    pub tun_uso: bool,
}

impl OffloadSwitches {
    /// Every offload.
    pub const ALL: Self = Self {
        udp_gso: true,
        udp_gro: true,
        tun_tso: true,
        tun_uso: true,
    };

    /// No offload: each packet by itself, in batches of system calls at best.
    pub const NONE: Self = Self {
        udp_gso: false,
        udp_gro: false,
        tun_tso: false,
        tun_uso: false,
    };
}

/// A text names no offload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no offload {0:?}: use udp_gso, udp_gro, tun_tso, tun_uso or all, with commas between several"
)]
pub struct UnknownOffload(String);

impl OffloadSwitches {
    /// All offloads but those that a text names, with commas between: `udp_gso`, `udp_gro`, `tun_tso`, `tun_uso` or `all`.
    ///
    /// # Errors
    /// When a name is none.
    pub fn without(names: &str) -> Result<Self, UnknownOffload> {
        let mut switches = Self::ALL;
        for name in names.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            match name {
                "udp_gso" => switches.udp_gso = false,
                "udp_gro" => switches.udp_gro = false,
                "tun_tso" => switches.tun_tso = false,
                "tun_uso" => switches.tun_uso = false,
                "all" => switches = Self::NONE,
                unknown => return Err(UnknownOffload(unknown.to_owned())),
            }
        }
        Ok(switches)
    }
}

impl Default for OffloadSwitches {
    fn default() -> Self {
        Self::ALL
    }
}

/// How it stands with one offload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffloadState {
    /// In use.
    Active,
    /// Switched off by the settings.
    Disabled,
    /// The kernel does not have it.
    Unsupported,
    /// It failed while in use; packets go one by one since.
    Failed,
}

impl OffloadState {
    const ALL: [Self; 4] = [Self::Active, Self::Disabled, Self::Unsupported, Self::Failed];

    /// The state as metrics and messages name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Disabled => "disabled",
            Self::Unsupported => "unsupported",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for OffloadState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One offload of one node, by its name in settings and metrics: `udp_gso`, `udp_gro`, `tun_tso` or `tun_uso`.
pub type NamedOffload = (&'static str, OffloadState);

/// Which offload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    UdpGso,
    UdpGro,
    TunTso,
    TunUso,
}

impl Kind {
    const ALL: [Self; 4] = [Self::UdpGso, Self::UdpGro, Self::TunTso, Self::TunUso];

    fn name(self) -> &'static str {
        match self {
            Self::UdpGso => "udp_gso",
            Self::UdpGro => "udp_gro",
            Self::TunTso => "tun_tso",
            Self::TunUso => "tun_uso",
        }
    }
}

/// How many sockets and devices of this process are in each state, by offload.
static COUNTS: [[AtomicU64; 4]; 4] = [const { [const { AtomicU64::new(0) }; 4] }; 4];

/// How many sockets and devices of this process are in each state, by offload: for metrics.
pub fn offload_counts() -> impl Iterator<Item = (&'static str, OffloadState, u64)> {
    let states = |kind: Kind| OffloadState::ALL.map(|state| (kind.name(), state, count(kind, state)));
    Kind::ALL.into_iter().flat_map(states)
}

fn count(kind: Kind, state: OffloadState) -> u64 {
    COUNTS[kind as usize][state as usize].load(Ordering::Relaxed)
}

/// The state of one offload, which any thread may find broken.
#[derive(Debug)]
pub(crate) struct Offload {
    kind: Kind,
    state: AtomicU8,
}

impl Offload {
    /// Looks whether the offload may and can be used: `switch` is the setting, `probe` tries it out.
    pub(crate) fn probe(kind: Kind, switch: bool, probe: impl FnOnce() -> bool) -> Self {
        let state = match switch {
            false => OffloadState::Disabled,
            true if probe() => OffloadState::Active,
            true => OffloadState::Unsupported,
        };
        COUNTS[kind as usize][state as usize].fetch_add(1, Ordering::Relaxed);
        Self {
            kind,
            state: AtomicU8::new(state as u8),
        }
    }

    pub(crate) fn is_active(&self) -> bool {
        self.state() == OffloadState::Active
    }

    /// It failed: it is not used again.
    pub(crate) fn fail(&self, error: &dyn fmt::Display) {
        let offload = self.kind.name();
        tracing::warn!(offload, %error, "an offload of the kernel failed; packets go one by one from now on");
        let before = self.state.swap(OffloadState::Failed as u8, Ordering::Relaxed);
        let counts = &COUNTS[self.kind as usize];
        counts[usize::from(before)].fetch_sub(1, Ordering::Relaxed);
        counts[OffloadState::Failed as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn state(&self) -> OffloadState {
        OffloadState::ALL[usize::from(self.state.load(Ordering::Relaxed))]
    }

    pub(crate) fn named(&self) -> NamedOffload {
        (self.kind.name(), self.state())
    }
}

impl Drop for Offload {
    fn drop(&mut self) {
        COUNTS[self.kind as usize][self.state() as usize].fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offloads_are_switched_off_by_name() {
        assert_eq!(OffloadSwitches::without("").unwrap(), OffloadSwitches::ALL);
        assert_eq!(OffloadSwitches::without("all").unwrap(), OffloadSwitches::NONE);
        let some = OffloadSwitches::without("udp_gso, tun_uso").unwrap();
        assert_eq!(
            (some.udp_gso, some.udp_gro, some.tun_tso, some.tun_uso),
            (false, true, true, false)
        );
        assert!(
            OffloadSwitches::without("gso")
                .unwrap_err()
                .to_string()
                .contains("\"gso\"")
        );
    }

    #[test]
    fn an_offload_is_tried_only_if_it_may_be_used_and_left_when_it_fails() {
        let disabled = Offload::probe(Kind::UdpGso, false, || unreachable!());
        assert_eq!(disabled.named(), ("udp_gso", OffloadState::Disabled));
        assert_eq!(
            Offload::probe(Kind::UdpGro, true, || false).named().1,
            OffloadState::Unsupported
        );
        let active = Offload::probe(Kind::TunTso, true, || true);
        assert!(active.is_active());
        let failed = count(Kind::TunTso, OffloadState::Failed);
        active.fail(&"no");
        assert_eq!(active.named().1.name(), "failed");
        assert_eq!(count(Kind::TunTso, OffloadState::Failed), failed + 1);
        let told: Vec<_> = offload_counts().filter(|(name, ..)| *name == "tun_tso").collect();
        assert_eq!(told.len(), 4);
    }
}
