//! The TLS state machine of either side, as one type that turns records into plain text and back.

use std::io;

use bytes::{Buf, BytesMut};
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus, WriteTraffic};

/// One side of a TLS connection.
pub trait Session: Unpin {
    /// What rustls keeps for this side.
    type Data;

    /// Works on records up to the next event.
    fn process<'c, 'i>(&'c mut self, records: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Session for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, records: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(records)
    }
}

impl Session for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, records: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(records)
    }
}

/// How far a session came with what it had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The handshake needs more from the peer.
    Shaking,
    /// Plain text may go both ways.
    Open,
    /// The peer will send nothing more.
    PeerClosed,
    /// The peer broke the protocol; the session must not be used any more.
    Failed,
}

/// Works on `records` until nothing complete is left of them. Plain text goes to `plain`, what the session itself has to say
/// is appended to `own`. Returns how many bytes were used up.
///
/// The session remembers where in the rest it found the parts of a message that is not complete, so every later call must be
/// given this rest again, with or without more behind it.
pub(crate) fn open<S: Session>(
    session: &mut S,
    records: &mut [u8],
    own: &mut BytesMut,
    mut plain: impl FnMut(&[u8]),
) -> io::Result<(usize, Progress)> {
    let mut used = 0;
    loop {
        let UnbufferedStatus { mut discard, state } = session.process(&mut records[used..]);
        let state = match state {
            Ok(state) => state,
            Err(error) => {
                let used = (used + discard).min(records.len());
                tell(session, &mut records[used..], own);
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        };
        let done = match state {
            ConnectionState::ReadTraffic(mut traffic) => {
                while let Some(record) = traffic.next_record() {
                    let record = record.map_err(io::Error::other)?;
                    discard += record.discard;
                    plain(record.payload);
                }
                None
            }
            ConnectionState::EncodeTlsData(mut data) => {
                append(own, |room| encoded(data.encode(room)))?;
                None
            }
            ConnectionState::TransmitTlsData(data) => {
                // The bytes stand in `own`, in front of all that follows.
                data.done();
                None
            }
            ConnectionState::BlockedHandshake => Some(Progress::Shaking),
            ConnectionState::WriteTraffic(_) => Some(Progress::Open),
            ConnectionState::PeerClosed | ConnectionState::Closed => Some(Progress::PeerClosed),
            // Early data is not on.
            _ => return Err(io::ErrorKind::Unsupported.into()),
        };
        used += discard;
        if let Some(progress) = done {
            return Ok((used, progress));
        }
    }
}

/// Lets `act` seal something, after what the session itself has to say, which is appended to `own`. `rest` is what
/// [`open`] left of the records.
fn write<S: Session, R>(
    session: &mut S,
    rest: &mut BytesMut,
    own: &mut BytesMut,
    mut act: impl FnMut(&mut WriteTraffic<'_, S::Data>, &mut BytesMut) -> io::Result<R>,
) -> io::Result<R> {
    loop {
        let UnbufferedStatus { discard, state } = session.process(rest);
        let acted = match state.map_err(io::Error::other)? {
            ConnectionState::WriteTraffic(mut traffic) => Some(act(&mut traffic, own)),
            ConnectionState::EncodeTlsData(mut data) => {
                append(own, |room| encoded(data.encode(room)))?;
                None
            }
            ConnectionState::TransmitTlsData(data) => {
                data.done();
                None
            }
            // A peer that closed its side may still read.
            ConnectionState::PeerClosed => None,
            _ => return Err(io::ErrorKind::BrokenPipe.into()),
        };
        rest.advance(discard);
        if let Some(result) = acted {
            return result;
        }
    }
}

/// Seals `plain` into `room`, which is large enough for its records. Returns the length of the records.
pub(crate) fn seal<S: Session>(
    session: &mut S,
    rest: &mut BytesMut,
    own: &mut BytesMut,
    plain: &[u8],
    room: &mut [u8],
) -> io::Result<usize> {
    write(session, rest, own, |traffic, _| {
        traffic.encrypt(plain, room).map_err(|error| match error {
            EncryptError::InsufficientSize(_) => io::ErrorKind::OutOfMemory.into(),
            exhausted @ EncryptError::EncryptExhausted => io::Error::other(exhausted),
        })
    })
}

/// Appends the word by which this side ends the connection.
pub(crate) fn close<S: Session>(session: &mut S, rest: &mut BytesMut, own: &mut BytesMut) -> io::Result<()> {
    write(session, rest, own, |traffic, own| {
        append(own, |room| match traffic.queue_close_notify(room) {
            Ok(len) => Ok(Ok(len)),
            Err(EncryptError::InsufficientSize(needed)) => Ok(Err(needed.required_size)),
            Err(exhausted @ EncryptError::EncryptExhausted) => Err(io::Error::other(exhausted)),
        })
    })
}

/// Appends the alert that follows an error, if there is one. The session must not be used any more after that: it would look at
/// the bad records once more.
fn tell<S: Session>(session: &mut S, rest: &mut [u8], own: &mut BytesMut) {
    if let Ok(ConnectionState::EncodeTlsData(mut data)) = session.process(rest).state {
        // The error itself matters more than that the peer hears of it.
        let _ = append(own, |room| encoded(data.encode(room)));
    }
}

/// The length that was encoded, or how much room it takes.
type Encoded = Result<usize, usize>;

fn encoded(result: Result<usize, EncodeError>) -> io::Result<Encoded> {
    match result {
        Ok(len) => Ok(Ok(len)),
        Err(EncodeError::InsufficientSize(needed)) => Ok(Err(needed.required_size)),
        Err(twice @ EncodeError::AlreadyEncoded) => Err(io::Error::other(twice)),
    }
}

fn append(out: &mut BytesMut, mut encode: impl FnMut(&mut [u8]) -> io::Result<Encoded>) -> io::Result<()> {
    let start = out.len();
    let mut room = 0;
    loop {
        out.resize(start + room, 0);
        match encode(&mut out[start..])? {
            Ok(len) => {
                out.truncate(start + len);
                return Ok(());
            }
            Err(needed) if needed > room => room = needed,
            Err(_) => return Err(io::ErrorKind::OutOfMemory.into()),
        }
    }
}
