//! What each node is told about the tailnet.
//!
//! [`full`] and [`delta`] are pure: they depend on worlds alone. `stream` runs them for one client.

mod delta;
mod dns;
mod message;
mod stream;
mod view;

pub(crate) use self::stream::MapStream;
pub(crate) use self::{delta::delta, view::full};

pub(crate) use self::message::Message;
pub(crate) use self::view::own_profile;
pub(crate) use crate::sessions::Dirty;

#[cfg(test)]
mod tests;
