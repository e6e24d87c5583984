//! WebSocket as remote commands speak it, read from what goes by. Pure; a message is looked at as it comes and never gathered.
//!
//! The first byte of a message is its channel; `base64.channel.k8s.io` says it as a digit and the rest in base64. Whether a message is text
//! or binary means nothing to the API server, and so it does not here.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{Channel, From, Malformed, Tap};

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CONTROL: u8 = 8;
/// Longest payload of a control frame.
const MAX_CONTROL: u64 = 125;
/// Longest payload of any frame; the API server takes no longer ones.
const MAX_FRAME: u64 = 32 << 20;
/// The channel on which version 5 closes another one.
const CLOSE: u8 = 255;

/// A session, both ways.
pub(crate) struct Session {
    base64: bool,
    client: Reader,
    server: Reader,
}

/// Where the reading of one direction is.
#[derive(Default)]
struct Reader {
    head: Vec<u8>,
    frame: Option<Frame>,
    message: Option<Message>,
}

struct Frame {
    left: u64,
    mask: Option<[u8; 4]>,
    at: usize,
    fin: bool,
    control: bool,
}

/// A message of which not all frames are here.
#[derive(Default)]
struct Message {
    channel: Option<u8>,
    /// What is left of base64 behind the last group of four.
    group: Vec<u8>,
}

impl Session {
    /// `protocol`: the subprotocol that was agreed on.
    pub(crate) fn new(protocol: Option<&str>) -> Self {
        Self {
            base64: protocol.is_some_and(|protocol| protocol.starts_with("base64.")),
            client: Reader::default(),
            server: Reader::default(),
        }
    }

    /// Whether something may be put between what the server says.
    pub(crate) fn at_border(&self) -> bool {
        self.server.frame.is_none() && self.server.head.is_empty() && self.server.message.is_none()
    }

    /// What tells a client on the error channel how the session ended, and ends it.
    pub(crate) fn farewell(&self, status: &[u8]) -> Vec<u8> {
        let (code, payload) = if self.base64 {
            (TEXT, format!("3{}", STANDARD.encode(status)).into_bytes())
        } else {
            (BINARY, [&[3], status].concat())
        };
        let mut frame = vec![FIN | code, 126];
        frame.extend((payload.len() as u16).to_be_bytes());
        frame.extend(payload);
        // Closed because of an error (1011).
        frame.extend([FIN | CONTROL, 2, 0x03, 0xf3]);
        frame
    }

    /// Reads the next bytes of a direction.
    pub(crate) fn feed(&mut self, from: From, mut bytes: &[u8], tap: &mut dyn Tap) -> Result<(), Malformed> {
        let base64 = self.base64;
        let reader = match from {
            From::Client => &mut self.client,
            From::Server => &mut self.server,
        };
        while !bytes.is_empty() {
            if reader.frame.is_some() {
                bytes = reader.payload(from, bytes, base64, tap)?;
            } else {
                reader.head.push(bytes[0]);
                bytes = &bytes[1..];
                reader.begin(from, base64, tap)?;
            }
        }
        Ok(())
    }
}

impl Reader {
    /// Begins a frame if its head is complete.
    fn begin(&mut self, from: From, base64: bool, tap: &mut dyn Tap) -> Result<(), Malformed> {
        let [first, second, ..] = self.head[..] else {
            return Ok(());
        };
        let masked = second & MASKED != 0;
        let short = u64::from(second & !MASKED);
        let extended = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if self.head.len() < 2 + extended + if masked { 4 } else { 0 } {
            return Ok(());
        }
        let head = std::mem::take(&mut self.head);
        let (length, mask) = head[2..].split_at(extended);
        let length = match extended {
            0 => short,
            _ => length.iter().fold(0, |all, byte| all << 8 | u64::from(*byte)),
        };
        let code = first & 0x0f;
        if first & RESERVED != 0 {
            return Err(Malformed("a frame has bits that nobody has agreed on"));
        }
        if masked != (from == From::Client) {
            return Err(Malformed("a client's frame is not masked, or a server's is"));
        }
        if length > MAX_FRAME {
            return Err(Malformed("a frame is too long"));
        }
        let fin = first & FIN != 0;
        let control = code & CONTROL != 0;
        match code {
            _ if control && code <= 10 && fin && length <= MAX_CONTROL => {}
            TEXT | BINARY if self.message.is_none() => self.message = Some(Message::default()),
            CONTINUATION if self.message.is_some() => {}
            _ => return Err(Malformed("a frame is not where it may be")),
        }
        self.frame = Some(Frame {
            left: length,
            mask: mask.try_into().ok(),
            at: 0,
            fin,
            control,
        });
        if length == 0 {
            self.ended(from, base64, tap)
        } else {
            Ok(())
        }
    }

    /// Takes what belongs to the frame; the rest is returned.
    fn payload<'a>(
        &mut self,
        from: From,
        bytes: &'a [u8],
        base64: bool,
        tap: &mut dyn Tap,
    ) -> Result<&'a [u8], Malformed> {
        let Some(frame) = &mut self.frame else {
            return Ok(bytes);
        };
        let length = usize::try_from(frame.left).unwrap_or(usize::MAX).min(bytes.len());
        let (part, rest) = bytes.split_at(length);
        let unmasked: Vec<u8>;
        let part = match frame.mask {
            None => part,
            Some(mask) => {
                unmasked = part
                    .iter()
                    .zip(frame.at..)
                    .map(|(byte, at)| byte ^ mask[at % 4])
                    .collect();
                &unmasked
            }
        };
        frame.at += length;
        frame.left -= length as u64;
        let (control, done) = (frame.control, frame.left == 0);
        if !control && let Some(message) = &mut self.message {
            message.take(from, part, base64, tap)?;
        }
        if done {
            self.ended(from, base64, tap)?;
        }
        Ok(rest)
    }

    /// The frame is complete.
    fn ended(&mut self, from: From, base64: bool, tap: &mut dyn Tap) -> Result<(), Malformed> {
        if let Some(frame) = self.frame.take()
            && frame.fin
            && !frame.control
            && let Some(message) = self.message.take()
            && base64
        {
            message.end(from, tap)?;
        }
        Ok(())
    }
}

impl Message {
    fn take(
        &mut self,
        from: From,
        mut part: &[u8],
        base64: bool,
        tap: &mut dyn Tap,
    ) -> Result<(), Malformed> {
        let channel = match (self.channel, part.split_first()) {
            (Some(channel), _) => channel,
            (None, None) => return Ok(()),
            (None, Some((first, rest))) => {
                part = rest;
                let channel = if base64 { first.wrapping_sub(b'0') } else { *first };
                *self.channel.insert(channel)
            }
        };
        if !base64 {
            return told(from, channel, part, tap);
        }
        self.group.extend_from_slice(part);
        let whole = self.group.len() / 4 * 4;
        let rest = self.group.split_off(whole);
        let group = std::mem::replace(&mut self.group, rest);
        let decoded = STANDARD.decode(&group).map_err(|_| NOT_BASE64)?;
        told(from, channel, &decoded, tap)
    }

    fn end(self, _: From, _: &mut dyn Tap) -> Result<(), Malformed> {
        if self.group.is_empty() {
            Ok(())
        } else {
            Err(NOT_BASE64)
        }
    }
}

const NOT_BASE64: Malformed = Malformed("a message is not base64, as was agreed on");

/// Tells what a message on a channel means. The API server takes nothing from a client on a channel of its own, and so nothing is told.
fn told(from: From, channel: u8, bytes: &[u8], tap: &mut dyn Tap) -> Result<(), Malformed> {
    match (from, channel) {
        _ if bytes.is_empty() || channel == CLOSE => {}
        (From::Server, 1) => tap.output(Channel::Output, bytes),
        (From::Server, 2) => tap.output(Channel::ErrorOutput, bytes),
        (From::Client, 4) => tap.resize(bytes)?,
        _ => {}
    }
    Ok(())
}
