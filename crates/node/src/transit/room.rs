//! How much is carried at the same time.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::sync::lock;

/// Connections and flows of one peer.
const MAX_OF_PEER: usize = 4096;
/// Pings under way, of all peers of a node.
const MAX_ECHOES: usize = 64;

/// Room for what one node carries; that of all nodes of the process is limited besides.
#[derive(Debug)]
pub(super) struct Room {
    process: Arc<Semaphore>,
    echoes: Arc<Semaphore>,
    peers: Peers,
}

type Peers = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// The room that one connection or flow takes; dropping it frees it.
#[derive(Debug)]
pub(super) struct Place {
    _process: OwnedSemaphorePermit,
    peer: IpAddr,
    peers: Peers,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut peers = lock(&self.peers);
        if let Some(count) = peers.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                peers.remove(&self.peer);
            }
        }
    }
}

impl Room {
    pub(super) fn new(process: Arc<Semaphore>) -> Self {
        Self {
            process,
            echoes: Arc::new(Semaphore::new(MAX_ECHOES)),
            peers: Peers::default(),
        }
    }

    /// Room for a connection or flow of a peer, if there is any.
    pub(super) fn enter(&self, peer: IpAddr) -> Option<Place> {
        let process = self.process.clone().try_acquire_owned().ok()?;
        let mut peers = lock(&self.peers);
        let count = peers.entry(peer).or_default();
        if *count >= MAX_OF_PEER {
            return None;
        }
        *count += 1;
        drop(peers);
        Some(Place {
            _process: process,
            peer,
            peers: self.peers.clone(),
        })
    }

    /// Room for a ping of a peer, if there is any.
    pub(super) fn enter_for_echo(&self, peer: IpAddr) -> Option<(OwnedSemaphorePermit, Place)> {
        let echo = self.echoes.clone().try_acquire_owned().ok()?;
        Some((echo, self.enter(peer)?))
    }

    /// How much is taken.
    pub(super) fn taken(&self) -> u64 {
        lock(&self.peers).values().map(|count| *count as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peer_cannot_take_all_room() {
        let process = Arc::new(Semaphore::new(MAX_OF_PEER + 10));
        let room = Room::new(process.clone());
        let (one, other) = ("100.64.0.1".parse().unwrap(), "100.64.0.2".parse().unwrap());
        let places: Vec<_> = (0..MAX_OF_PEER).map(|_| room.enter(one).unwrap()).collect();
        assert!(room.enter(one).is_none());
        let others: Vec<_> = std::iter::from_fn(|| room.enter(other)).collect();
        assert_eq!(others.len(), 10);
        assert_eq!(room.taken(), (MAX_OF_PEER + 10) as u64);
        drop((places, others));
        assert_eq!((room.taken(), process.available_permits()), (0, MAX_OF_PEER + 10));
        let echoes: Vec<_> = std::iter::from_fn(|| room.enter_for_echo(one)).collect();
        assert_eq!(echoes.len(), MAX_ECHOES);
    }
}
