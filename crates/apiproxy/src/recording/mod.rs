//! Recordings of sessions: what a session shows is read from a copy of its bytes and sent to a recorder of the tailnet as it comes.
//!
//! The bytes themselves go by as they are. [`Recorder`] reads them (`spdy.rs`, `websocket.rs`) into lines (`cast.rs`), and
//! [`upload`] sends those.

mod cast;
mod dictionary;
mod inflate;
mod session;
mod spdy;
#[cfg(test)]
mod tests;
pub(crate) mod upload;
mod websocket;

pub(crate) use self::session::{Recording, begin};

use std::time::Duration;

use self::cast::Writer;

/// What a client sent, or a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    Client,
    Server,
}

/// One of the streams of a remote command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Channel {
    Error,
    Input,
    Output,
    ErrorOutput,
    Resize,
}

/// A session breaks its protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Malformed(pub(crate) &'static str);

/// Takes what a session shows.
pub(crate) trait Tap {
    /// Something was printed.
    fn output(&mut self, channel: Channel, bytes: &[u8]);

    /// The client's terminal tells its size, in JSON that may be cut anywhere.
    ///
    /// # Errors
    /// When that is too long.
    fn resize(&mut self, bytes: &[u8]) -> Result<(), Malformed>;
}

/// How a session is spoken.
enum Protocol {
    Spdy(Box<spdy::Session>),
    WebSocket(websocket::Session),
}

/// Reads a session into the lines of a recording. Pure: the time comes in.
pub(crate) struct Recorder {
    protocol: Protocol,
    writer: Writer,
}

impl Recorder {
    /// `websocket`: the session is spoken over WebSocket with the subprotocol `chosen`, otherwise over SPDY.
    pub(crate) fn new(websocket: bool, chosen: Option<&str>, terminal: bool) -> Self {
        let protocol = if websocket {
            Protocol::WebSocket(websocket::Session::new(chosen))
        } else {
            Protocol::Spdy(Box::new(spdy::Session::new()))
        };
        Self {
            protocol,
            writer: Writer::new(terminal),
        }
    }

    /// Reads the next bytes of a direction, `now` after the begin; the lines that they make are returned.
    ///
    /// # Errors
    /// When the session breaks its protocol; nothing more can be read of it then.
    pub(crate) fn feed(&mut self, from: From, bytes: &[u8], now: Duration) -> Result<Vec<u8>, Malformed> {
        self.writer.at(now);
        match &mut self.protocol {
            Protocol::Spdy(session) => session.feed(from, bytes, &mut self.writer)?,
            Protocol::WebSocket(session) => session.feed(from, bytes, &mut self.writer)?,
        }
        Ok(self.writer.take())
    }

    /// The last lines.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        self.writer.finish()
    }

    /// What tells the client, in its protocol, why the session ends; `None` in the midst of something else.
    pub(crate) fn farewell(&self, status: &[u8]) -> Option<Vec<u8>> {
        match &self.protocol {
            Protocol::Spdy(session) if session.at_border() => session.farewell(status),
            Protocol::WebSocket(session) if session.at_border() => Some(session.farewell(status)),
            _ => None,
        }
    }
}
