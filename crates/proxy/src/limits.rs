//! Limits of one pod and of one identity in it.

use std::sync::Arc;
use std::time::Duration;

use tailwharf_node::splice::IdleLimits;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How much the pod takes on. What exceeds a limit is refused and counted; nothing else is affected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// TCP connections and UDP flows of all identities together.
    pub connections: usize,
    /// TCP connections and UDP flows of one identity.
    pub connections_per_identity: usize,
    /// TCP connections from the internet to one identity, beside those of the tailnet.
    pub public_connections_per_identity: usize,
    /// Silence after which a TCP connection is closed.
    pub tcp_idle: Duration,
    /// Silence after which a TCP connection is closed of which one side has ended already.
    pub tcp_half_closed: Duration,
    /// Silence after which a UDP flow is forgotten.
    pub udp_idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            connections_per_identity: 4096,
            public_connections_per_identity: 1024,
            tcp_idle: Duration::from_secs(2 * 60 * 60),
            tcp_half_closed: Duration::from_secs(10 * 60),
            udp_idle: Duration::from_secs(120),
        }
    }
}

impl Limits {
    /// The limits on silence of a TCP connection.
    #[must_use]
    pub(crate) fn idle(&self) -> IdleLimits {
        IdleLimits {
            open: self.tcp_idle,
            half_closed: self.tcp_half_closed,
        }
    }
}

/// Room for connections: of the pod, and of one identity in it.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    pod: Arc<Semaphore>,
    identity: Arc<Semaphore>,
}

/// The room that one connection takes; dropping it frees it.
#[derive(Debug)]
pub(crate) struct Permit {
    _pod: OwnedSemaphorePermit,
    _identity: OwnedSemaphorePermit,
}

impl Room {
    /// The room of one identity in a pod with this room.
    #[must_use]
    pub(crate) fn of_identity(pod: &Arc<Semaphore>, limits: &Limits) -> Self {
        Self {
            pod: pod.clone(),
            identity: Arc::new(Semaphore::new(limits.connections_per_identity)),
        }
    }

    /// Room of its own for what comes to the identity from the internet, so that nobody out there takes that of the tailnet.
    #[must_use]
    pub(crate) fn for_public(&self, limits: &Limits) -> Self {
        Self {
            pod: self.pod.clone(),
            identity: Arc::new(Semaphore::new(limits.public_connections_per_identity)),
        }
    }

    /// Takes room for one connection; `None` when there is none left.
    #[must_use]
    pub(crate) fn enter(&self) -> Option<Permit> {
        let identity = self.identity.clone().try_acquire_owned().ok()?;
        let pod = self.pod.clone().try_acquire_owned().ok()?;
        Some(Permit {
            _pod: pod,
            _identity: identity,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_identity_cannot_take_the_room_of_another() {
        let limits = Limits {
            connections: 3,
            connections_per_identity: 2,
            ..Limits::default()
        };
        let pod = Arc::new(Semaphore::new(limits.connections));
        let (a, b) = (Room::of_identity(&pod, &limits), Room::of_identity(&pod, &limits));
        let held = [a.enter(), a.enter(), a.enter(), b.enter(), b.enter()];
        assert_eq!(
            held.each_ref().map(Option::is_some),
            [true, true, false, true, false]
        );
        drop(held);
        assert!(b.enter().is_some());
    }

    #[test]
    fn the_internet_cannot_take_the_room_of_the_tailnet() {
        let limits = Limits {
            public_connections_per_identity: 1,
            ..Limits::default()
        };
        let room = Room::of_identity(&Arc::new(Semaphore::new(limits.connections)), &limits);
        let public = room.for_public(&limits);
        let held = [public.enter(), public.enter(), room.enter()];
        assert_eq!(held.each_ref().map(Option::is_some), [true, false, true]);
    }
}
