//! Recordings of sessions: taken over HTTP from whoever the tailnet lets in, kept as asciicast files in a folder, listed and played.
//!
//! Start reading at `serve.rs` (the protocol), then `store.rs` (the folder) and `play.rs`.

#![forbid(unsafe_code)]

mod play;
mod seal;
mod serve;
mod store;

pub use play::{Pace, PlayError, play};
pub use seal::{KeyError, PublicKey, SealKey, Verdict};
pub use serve::serve;
pub use store::{Entry, Limits, Store, StoreError};
