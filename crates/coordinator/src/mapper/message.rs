//! A map message, with the peers in it by reference: each is encoded once, however many are told of it.

use std::{cell::RefCell, sync::Arc};

use bytes::Bytes;
use tailwharf_wire::{
    json,
    map_frame::{self, Compression, Encoder},
    tailcfg::{MapResponse, Node as WireNode, RegionId},
};

use crate::world::{PeerRecord, Version};

thread_local! {
    /// One for each thread, not for each stream: it takes far more memory than a stream.
    static ENCODER: RefCell<Option<Encoder>> = const { RefCell::new(None) };
}

/// A peer as a node is told of it.
#[derive(Clone, Debug)]
pub(crate) enum Told {
    /// As the members of one region are.
    Shared(Arc<PeerRecord>, Option<RegionId>),
    /// As this node alone is, or a few are.
    Own(Arc<Version>),
}

impl Told {
    pub(super) fn new(record: Arc<PeerRecord>, region: Option<RegionId>) -> Self {
        Self::Shared(record, region)
    }

    pub(super) fn steered(node: WireNode) -> Self {
        Self::Own(Arc::new(Version::of(node)))
    }

    fn version(&self) -> &Version {
        match self {
            Self::Shared(record, region) => record.seen_from(*region),
            Self::Own(version) => version,
        }
    }

    pub(super) fn node(&self) -> &WireNode {
        self.version().node()
    }

    /// Whether both are the same version of the same node, without a look at what it says.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Shared(one, here), Self::Shared(other, there)) => Arc::ptr_eq(one, other) && here == there,
            _ => false,
        }
    }
}

/// A message to one node.
#[derive(Debug, Default)]
pub(crate) struct Message {
    /// All peers, sorted by id.
    pub(super) peers: Vec<Told>,
    /// Peers that are new or have changed, sorted by id.
    pub(super) peers_changed: Vec<Told>,
    /// Everything else.
    pub(crate) rest: MapResponse,
}

impl Message {
    /// A message without peers.
    pub(super) fn of(rest: MapResponse) -> Self {
        Self {
            rest,
            ..Self::default()
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.peers.is_empty() && self.peers_changed.is_empty() && self.rest == MapResponse::default()
    }

    /// The message as it is sent. `None` beyond the protocol's limit, which ends the stream.
    pub(crate) fn encode(&self, compression: Compression) -> Option<Bytes> {
        let frame = json::to_vec(&self.rest)
            .map_err(map_frame::MapFrameError::Json)
            .and_then(|mut json| {
                splice(&mut json, "Peers", &self.peers);
                splice(&mut json, "PeersChanged", &self.peers_changed);
                ENCODER.with_borrow_mut(|encoder| match encoder {
                    Some(encoder) => encoder.encode_json(&json, compression),
                    None => encoder.insert(Encoder::new()?).encode_json(&json, compression),
                })
            });
        match frame {
            Ok(frame) => Some(frame.into()),
            Err(error) => {
                tracing::error!(%error, "a map message could not be encoded");
                None
            }
        }
    }

    /// The message as its receiver understands it.
    #[cfg(test)]
    pub(crate) fn into_response(self) -> MapResponse {
        let mut frame = bytes::BytesMut::from(&self.encode(Compression::Zstd).unwrap()[..]);
        map_frame::decode(&mut frame, Compression::Zstd).unwrap().unwrap()
    }
}

/// Adds a list of peers to a JSON object that has no such field.
fn splice(object: &mut Vec<u8>, field: &str, peers: &[Told]) {
    if peers.is_empty() {
        return;
    }
    object.reserve(peers.iter().map(|peer| peer.version().json().len() + 1).sum());
    object.pop();
    if object.len() > 1 {
        object.push(b',');
    }
    object.extend_from_slice(format!("\"{field}\":[").as_bytes());
    for (index, peer) in peers.iter().enumerate() {
        if index > 0 {
            object.push(b',');
        }
        object.extend_from_slice(peer.version().json());
    }
    object.extend_from_slice(b"]}");
}
