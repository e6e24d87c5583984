//! SPDY/3.1 as remote commands speak it, read from what goes by. Pure; nothing is gathered but the headers of new streams.
//!
//! A client opens a stream for each of error, stdin, stdout, stderr and resize, and names it in the header `streamtype`.

use std::collections::BTreeMap;

use super::inflate::{Inflater, MAX_BLOCK};
use super::{Channel, From, Malformed, Tap};

const VERSION: u16 = 3;
const SYN_STREAM: u16 = 1;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;
const FIN: u8 = 1;
const FRAME_HEAD: usize = 8;
/// Bytes before the headers in SYN_STREAM and HEADERS.
const SYN_HEAD: usize = 10;
const HEADERS_HEAD: usize = 4;
/// Most streams of a session: five are needed.
const MAX_STREAMS: usize = 64;
/// Most headers of a stream.
const MAX_HEADERS: u32 = 32;
/// Longest control frame that carries no headers. The longest that is needed is one setting.
const MAX_CONTROL: usize = 1024;

/// A session, both ways.
pub(crate) struct Session {
    inflater: Inflater,
    streams: BTreeMap<u32, Stream>,
    last: u32,
    client: Reader,
    server: Reader,
}

struct Stream {
    channel: Channel,
    /// Who has ended it.
    client_ended: bool,
    server_ended: bool,
}

/// Where the reading of one direction is.
#[derive(Default)]
struct Reader {
    head: Vec<u8>,
    frame: Option<Frame>,
}

enum Frame {
    /// Data of a stream; the bytes that are still to come, and whether it is the last.
    Data { stream: u32, left: usize, fin: bool },
    /// Headers, which are gathered.
    Block { kind: u16, bytes: Vec<u8>, left: usize },
    /// A frame that does not matter here.
    Other { left: usize },
}

impl Session {
    pub(crate) fn new() -> Self {
        Self {
            inflater: Inflater::new(),
            streams: BTreeMap::new(),
            last: 0,
            client: Reader::default(),
            server: Reader::default(),
        }
    }

    /// Whether something may be put between what the server says.
    pub(crate) fn at_border(&self) -> bool {
        self.server.frame.is_none() && self.server.head.is_empty()
    }

    /// What tells a client on its error stream how the session ended.
    pub(crate) fn farewell(&self, status: &[u8]) -> Option<Vec<u8>> {
        let (id, _) = self
            .streams
            .iter()
            .find(|(_, stream)| stream.channel == Channel::Error)?;
        let mut frame = id.to_be_bytes().to_vec();
        frame.push(FIN);
        frame.extend(&(status.len() as u32).to_be_bytes()[1..]);
        frame.extend(status);
        Some(frame)
    }

    /// Reads the next bytes of a direction.
    pub(crate) fn feed(&mut self, from: From, mut bytes: &[u8], tap: &mut dyn Tap) -> Result<(), Malformed> {
        while !bytes.is_empty() {
            let reader = self.reader(from);
            match reader.frame.take() {
                None => {
                    let wanted = FRAME_HEAD - reader.head.len();
                    let (head, rest) = bytes.split_at(wanted.min(bytes.len()));
                    reader.head.extend_from_slice(head);
                    bytes = rest;
                    if reader.head.len() == FRAME_HEAD {
                        let head = std::mem::take(&mut reader.head);
                        self.begin(from, &head)?;
                    }
                }
                Some(Frame::Data { stream, left, fin }) => {
                    let (part, rest) = bytes.split_at(left.min(bytes.len()));
                    bytes = rest;
                    self.data(from, stream, part, tap)?;
                    self.go_on(
                        from,
                        Frame::Data {
                            stream,
                            left: left - part.len(),
                            fin,
                        },
                    )?;
                }
                Some(Frame::Block {
                    kind,
                    bytes: mut block,
                    left,
                }) => {
                    let (part, rest) = bytes.split_at(left.min(bytes.len()));
                    bytes = rest;
                    block.extend_from_slice(part);
                    self.go_on(
                        from,
                        Frame::Block {
                            kind,
                            bytes: block,
                            left: left - part.len(),
                        },
                    )?;
                }
                Some(Frame::Other { left }) => {
                    let part = left.min(bytes.len());
                    bytes = &bytes[part..];
                    self.go_on(from, Frame::Other { left: left - part })?;
                }
            }
        }
        Ok(())
    }

    fn reader(&mut self, from: From) -> &mut Reader {
        match from {
            From::Client => &mut self.client,
            From::Server => &mut self.server,
        }
    }

    /// The head of a frame is complete.
    fn begin(&mut self, from: From, head: &[u8]) -> Result<(), Malformed> {
        let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let flags = head[4];
        let left = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
        if first >> 31 == 0 {
            return self.go_on(
                from,
                Frame::Data {
                    stream: first,
                    left,
                    fin: flags & FIN != 0,
                },
            );
        }
        let (version, kind) = ((first >> 16 & 0x7fff) as u16, first as u16);
        if version != VERSION {
            return Err(Malformed("a frame has another version than 3"));
        }
        let frame = match (kind, from) {
            (SYN_STREAM, From::Server) => return Err(Malformed("the server opens a stream")),
            (SYN_STREAM | HEADERS, From::Client) if left > MAX_BLOCK => {
                return Err(Malformed("the headers of a stream are too large"));
            }
            (SYN_STREAM | HEADERS, From::Client) => Frame::Block {
                kind,
                bytes: Vec::new(),
                left,
            },
            (SYN_STREAM..=RST_STREAM | SETTINGS | 6 | GOAWAY | HEADERS | WINDOW_UPDATE, _)
                if left <= MAX_CONTROL =>
            {
                Frame::Other { left }
            }
            (SYN_STREAM..=WINDOW_UPDATE, _) => return Err(Malformed("a control frame is too long")),
            _ => return Err(Malformed("a control frame is of no known kind")),
        };
        self.go_on(from, frame)
    }

    /// Keeps a frame for later, or finishes it.
    fn go_on(&mut self, from: From, frame: Frame) -> Result<(), Malformed> {
        match frame {
            Frame::Data {
                stream,
                left: 0,
                fin: true,
            } => {
                let stream = self.streams.get_mut(&stream).ok_or(UNKNOWN)?;
                match from {
                    From::Client => stream.client_ended = true,
                    From::Server => stream.server_ended = true,
                }
                Ok(())
            }
            Frame::Data { stream, left: 0, .. } => {
                self.streams.contains_key(&stream).then_some(()).ok_or(UNKNOWN)
            }
            Frame::Block { kind, bytes, left: 0 } => self.block(kind, &bytes),
            Frame::Other { left: 0 } => Ok(()),
            unfinished => {
                self.reader(from).frame = Some(unfinished);
                Ok(())
            }
        }
    }

    fn data(&mut self, from: From, id: u32, bytes: &[u8], tap: &mut dyn Tap) -> Result<(), Malformed> {
        let stream = self.streams.get(&id).ok_or(UNKNOWN)?;
        let ended = match from {
            From::Client => stream.client_ended,
            From::Server => stream.server_ended,
        };
        if ended {
            return Err(Malformed("data come on a stream that has ended"));
        }
        match (from, stream.channel) {
            (From::Server, Channel::Output | Channel::ErrorOutput) => tap.output(stream.channel, bytes),
            (From::Client, Channel::Resize) => tap.resize(bytes)?,
            _ => {}
        }
        Ok(())
    }

    /// The headers of a client's stream are complete.
    fn block(&mut self, kind: u16, bytes: &[u8]) -> Result<(), Malformed> {
        let head = if kind == SYN_STREAM {
            SYN_HEAD
        } else {
            HEADERS_HEAD
        };
        let compressed = bytes
            .get(head..)
            .ok_or(Malformed("a frame with headers is too short"))?;
        let headers = self.inflater.block(compressed)?;
        let named = stream_type(&headers)?;
        if kind == HEADERS {
            return Ok(());
        }
        let id = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) & 0x7fff_ffff;
        if id.is_multiple_of(2) || id <= self.last {
            return Err(Malformed(
                "a client's stream has a number that is even or came before",
            ));
        }
        self.last = id;
        let channel = named.ok_or(Malformed("a stream says not what it is for"))?;
        if self.streams.values().any(|stream| stream.channel == channel) {
            return Err(Malformed("a second stream is for the same"));
        }
        if self.streams.len() == MAX_STREAMS {
            return Err(Malformed("there are too many streams"));
        }
        self.streams.insert(
            id,
            Stream {
                channel,
                client_ended: false,
                server_ended: false,
            },
        );
        Ok(())
    }
}

const UNKNOWN: Malformed = Malformed("data come on a stream that nobody has opened");

/// What the headers of a stream say that it is for.
fn stream_type(block: &[u8]) -> Result<Option<Channel>, Malformed> {
    let mut rest = block;
    let count = number(&mut rest)?;
    if count > MAX_HEADERS {
        return Err(Malformed("a stream has too many headers"));
    }
    let mut names = Vec::new();
    let mut channel = None;
    for _ in 0..count {
        let (name, value) = (text(&mut rest)?, text(&mut rest)?);
        if name.is_empty() || name.iter().any(u8::is_ascii_uppercase) || names.contains(&name) {
            return Err(Malformed(
                "a header's name is empty, not in small letters, or there twice",
            ));
        }
        names.push(name);
        if name == b"streamtype" {
            channel = Some(match value {
                b"error" => Channel::Error,
                b"stdin" => Channel::Input,
                b"stdout" => Channel::Output,
                b"stderr" => Channel::ErrorOutput,
                b"resize" => Channel::Resize,
                _ => return Err(Malformed("a stream is for nothing that is known")),
            });
        }
    }
    if rest.is_empty() {
        Ok(channel)
    } else {
        Err(Malformed("something stands behind the headers of a stream"))
    }
}

fn number(rest: &mut &[u8]) -> Result<u32, Malformed> {
    let (number, behind) = rest
        .split_first_chunk()
        .ok_or(Malformed("the headers of a stream are cut"))?;
    *rest = behind;
    Ok(u32::from_be_bytes(*number))
}

fn text<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let length = number(rest)? as usize;
    let (text, behind) = rest
        .split_at_checked(length)
        .ok_or(Malformed("the headers of a stream are cut"))?;
    *rest = behind;
    Ok(text)
}
