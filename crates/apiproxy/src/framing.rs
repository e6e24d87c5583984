//! Where requests of an HTTP/1 connection begin and end, read strictly and before the HTTP library sees a byte of them: what two programs
//! might read in two ways is refused, so that no request hides in another. A state machine over bytes, without I/O.

use std::ops::ControlFlow;

/// Most bytes of a request's head.
const MAX_HEAD: usize = 96 * 1024;
/// Most bytes of the line that begins a chunk. Extensions are allowed by HTTP and used by nobody.
const MAX_CHUNK_LINE: usize = 256;
/// Most bytes of trailers.
const MAX_TRAILERS: usize = 8 * 1024;

/// What is wrong with the bytes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The first line is not a method, a target and a version of HTTP/1.
    #[error("its first line is not a method, a path and HTTP/1.1")]
    RequestLine,
    /// A line does not end as HTTP says.
    #[error("a line does not end with CR LF")]
    LineEnd,
    /// A header has a wrong form.
    #[error("a header has a name or a value that HTTP does not allow")]
    Header,
    /// The host is missing or there are several.
    #[error("it must have exactly one Host header")]
    Host,
    /// The length of the body is not one number.
    #[error("its Content-Length is not one number")]
    Length,
    /// The coding of the body is another than `chunked`.
    #[error("its Transfer-Encoding is not \"chunked\" in HTTP/1.1")]
    Coding,
    /// Length and coding contradict each other.
    #[error("it has both Content-Length and Transfer-Encoding")]
    LengthAndCoding,
    /// A chunk has a wrong form.
    #[error("a chunk of its body has a wrong form")]
    Chunk,
    /// An upgrade that has a body.
    #[error("a request for an upgrade must have no body")]
    UpgradeWithBody,
    /// Head or trailers are too long.
    #[error("its head is too long")]
    TooLong,
}

/// What comes next on the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    Fixed(u64),
    ChunkLine(usize),
    ChunkData(u64),
    /// The CR LF behind a chunk; how many of its bytes have come.
    ChunkEnd(u8),
    Trailers(usize),
    /// A request for an upgrade has come: what follows is not HTTP, or the end.
    Opaque,
}

/// What the bytes given last are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Piece {
    /// So many bytes may go on.
    Pass(usize),
    /// A head that is not complete: keep all of it and come again with more.
    Partial,
}

/// Follows one connection.
#[derive(Debug)]
pub(crate) struct Framing {
    state: State,
    line: Vec<u8>,
    heads: u64,
    /// How much of a partial head was looked at.
    seen: usize,
    /// What was wrong behind the part that passed last.
    failed: Option<Violation>,
}

impl Default for Framing {
    fn default() -> Self {
        Self {
            state: State::Head,
            line: Vec::new(),
            heads: 0,
            seen: 0,
            failed: None,
        }
    }
}

impl Framing {
    /// How many heads have passed.
    pub(crate) fn heads(&self) -> u64 {
        self.heads
    }

    /// Whether a head is what comes next.
    pub(crate) fn at_head(&self) -> bool {
        self.state == State::Head
    }

    /// Looks at what has come: whole heads and parts of bodies pass.
    ///
    /// # Errors
    /// When it is refused. Nothing of the connection may be read after that.
    pub(crate) fn inspect(&mut self, bytes: &[u8]) -> Result<Piece, Violation> {
        let mut used = 0;
        while used < bytes.len() && self.failed.is_none() {
            match self.step(&bytes[used..]) {
                Ok(0) => break,
                Ok(taken) => used += taken,
                Err(violation) => self.failed = Some(violation),
            }
        }
        match self.failed {
            _ if used > 0 => Ok(Piece::Pass(used)),
            Some(violation) => Err(violation),
            None => Ok(Piece::Partial),
        }
    }

    /// Uses up a part of the bytes, or nothing when it takes more of a head.
    fn step(&mut self, rest: &[u8]) -> Result<usize, Violation> {
        match self.state {
            State::Opaque => Ok(rest.len()),
            State::Head => {
                let end = head_end(rest, self.seen.min(rest.len()))?;
                if end.unwrap_or(rest.len()) > MAX_HEAD {
                    return Err(Violation::TooLong);
                }
                let Some(end) = end else {
                    self.seen = rest.len();
                    return Ok(0);
                };
                self.seen = 0;
                self.state = head(&rest[..end])?;
                self.heads += 1;
                Ok(end)
            }
            _ => self.body(rest),
        }
    }

    /// Looks at a part of a body; how many bytes of it were used up.
    fn body(&mut self, rest: &[u8]) -> Result<usize, Violation> {
        let take = |left: u64| rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        match self.state {
            State::Head | State::Opaque => Ok(0),
            State::Fixed(left) => {
                let taken = take(left);
                let left = left - taken as u64;
                self.state = if left == 0 {
                    State::Head
                } else {
                    State::Fixed(left)
                };
                Ok(taken)
            }
            State::ChunkData(left) => {
                let taken = take(left);
                let left = left - taken as u64;
                self.state = if left == 0 {
                    State::ChunkEnd(0)
                } else {
                    State::ChunkData(left)
                };
                Ok(taken)
            }
            State::ChunkEnd(seen) => match (seen, rest[0]) {
                (0, b'\r') => {
                    self.state = State::ChunkEnd(1);
                    Ok(1)
                }
                (1, b'\n') => {
                    self.state = State::ChunkLine(0);
                    Ok(1)
                }
                _ => Err(Violation::Chunk),
            },
            State::ChunkLine(length) => self.lines(rest, length, MAX_CHUNK_LINE, |line| {
                Ok(ControlFlow::Break(match chunk_size(line)? {
                    0 => State::Trailers(0),
                    size => State::ChunkData(size),
                }))
            }),
            State::Trailers(length) => self.lines(rest, length, MAX_TRAILERS, |line| {
                if line.is_empty() {
                    return Ok(ControlFlow::Break(State::Head));
                }
                field(line).map(|_| ControlFlow::Continue(()))
            }),
        }
    }

    /// Gathers one line and lets `end` decide what follows it.
    fn lines(
        &mut self,
        rest: &[u8],
        length: usize,
        limit: usize,
        end: impl Fn(&[u8]) -> Result<ControlFlow<State>, Violation>,
    ) -> Result<usize, Violation> {
        let line_end = rest.iter().position(|byte| *byte == b'\n');
        let taken = line_end.map_or(rest.len(), |at| at + 1);
        self.line.extend_from_slice(&rest[..taken]);
        let length = length + taken;
        if length > limit {
            return Err(Violation::TooLong);
        }
        let again = |length| match self.state {
            State::Trailers(_) => State::Trailers(length),
            _ => State::ChunkLine(length),
        };
        if line_end.is_none() {
            self.state = again(length);
            return Ok(taken);
        }
        let line = self.line.strip_suffix(b"\r\n").ok_or(Violation::LineEnd)?;
        if line.contains(&b'\r') {
            return Err(Violation::LineEnd);
        }
        self.state = match end(line)? {
            ControlFlow::Break(next) => next,
            ControlFlow::Continue(()) => again(length),
        };
        self.line.clear();
        Ok(taken)
    }
}

/// Where the head ends, behind its empty line; nothing before `from` is the end of a line that was not looked at.
fn head_end(bytes: &[u8], mut from: usize) -> Result<Option<usize>, Violation> {
    while let Some(at) = bytes[from..].iter().position(|byte| *byte == b'\n') {
        let end = from + at;
        if end == 0 || bytes[end - 1] != b'\r' {
            return Err(Violation::LineEnd);
        }
        if end >= 3 && bytes[end - 3..end - 1] == *b"\r\n" {
            return Ok(Some(end + 1));
        }
        from = end + 1;
    }
    Ok(None)
}

/// What a head says of what follows it.
fn head(bytes: &[u8]) -> Result<State, Violation> {
    let text = bytes.strip_suffix(b"\r\n\r\n").ok_or(Violation::LineEnd)?;
    let mut lines = text.split(|byte| *byte == b'\n');
    let mut line = || match lines.next() {
        Some(line) => {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.contains(&b'\r') {
                Err(Violation::LineEnd)
            } else {
                Ok(Some(line))
            }
        }
        None => Ok(None),
    };
    let old = request_line(line()?.ok_or(Violation::RequestLine)?)?;
    let (mut hosts, mut length, mut chunked, mut upgrade) = (0, None, false, false);
    while let Some(line) = line()? {
        let (name, value) = field(line)?;
        if name.eq_ignore_ascii_case(b"host") {
            hosts += 1;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            if length.is_some() {
                return Err(Violation::Length);
            }
            length = Some(number(value)?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if chunked || old || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Violation::Coding);
            }
            chunked = true;
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            upgrade |= value.eq_ignore_ascii_case(b"websocket") || value.eq_ignore_ascii_case(b"spdy/3.1");
        }
    }
    if hosts > 1 || hosts == 0 && !old {
        return Err(Violation::Host);
    }
    match (length, chunked) {
        (Some(_), true) => Err(Violation::LengthAndCoding),
        (Some(1..), false) | (None, true) if upgrade => Err(Violation::UpgradeWithBody),
        (None | Some(0), false) if upgrade => Ok(State::Opaque),
        (None, true) => Ok(State::ChunkLine(0)),
        (Some(length @ 1..), false) => Ok(State::Fixed(length)),
        (None | Some(0), false) => Ok(State::Head),
    }
}

/// Whether the first line asks by HTTP/1.0.
fn request_line(line: &[u8]) -> Result<bool, Violation> {
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Violation::RequestLine);
    };
    let visible = |byte: &u8| (0x21..0x7f).contains(byte);
    if method.is_empty()
        || !method.iter().all(u8::is_ascii_uppercase)
        || target.is_empty()
        || !target.iter().all(visible)
    {
        return Err(Violation::RequestLine);
    }
    match version {
        b"HTTP/1.1" => Ok(false),
        b"HTTP/1.0" => Ok(true),
        _ => Err(Violation::RequestLine),
    }
}

/// Name and value of a header, the value without the space around it.
fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Violation> {
    let at = line
        .iter()
        .position(|byte| *byte == b':')
        .ok_or(Violation::Header)?;
    let (name, value) = (&line[..at], &line[at + 1..]);
    if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
        return Err(Violation::Header);
    }
    if value.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
        return Err(Violation::Header);
    }
    let begin = value.iter().position(|byte| *byte != b' ').unwrap_or(value.len());
    let end = value
        .iter()
        .rposition(|byte| *byte != b' ')
        .map_or(begin, |at| at + 1);
    Ok((name, &value[begin..end]))
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn number(value: &[u8]) -> Result<u64, Violation> {
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return Err(Violation::Length);
    }
    Ok(value
        .iter()
        .fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}

fn chunk_size(line: &[u8]) -> Result<u64, Violation> {
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
    if digits.is_empty() || digits.len() > 15 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(Violation::Chunk);
    }
    let text = std::str::from_utf8(digits).map_err(|_| Violation::Chunk)?;
    u64::from_str_radix(text, 16).map_err(|_| Violation::Chunk)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GET: &[u8] = b"GET /version HTTP/1.1\r\nHost: a\r\n\r\n";
    const CHUNKED: &[u8] =
        b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nTrailer: x\r\n\r\n";

    fn whole(bytes: &[u8]) -> Result<Piece, Violation> {
        Framing::default().inspect(bytes)
    }

    #[test]
    fn requests_follow_each_other() {
        let all = [
            GET,
            CHUNKED,
            b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nGET ",
            GET,
        ]
        .concat();
        let mut framing = Framing::default();
        assert_eq!(framing.inspect(&all), Ok(Piece::Pass(all.len())));
        assert_eq!(framing.heads(), 4);
        assert!(framing.at_head());
    }

    #[test]
    fn nothing_is_looked_at_behind_an_upgrade() {
        let upgrade =
            b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x00\n\n";
        assert_eq!(whole(upgrade), Ok(Piece::Pass(upgrade.len())));
    }

    proptest! {
        /// However the bytes are cut, the same requests are found, and only whole heads pass.
        #[test]
        fn cuts_do_not_matter(sizes in prop::collection::vec(1_usize..9, 1..200)) {
            let all = [GET, CHUNKED, GET, CHUNKED].concat();
            let mut framing = Framing::default();
            let (mut held, mut passed, mut at) = (Vec::new(), Vec::new(), 0);
            for size in sizes.iter().cycle() {
                let end = (at + size).min(all.len());
                held.extend_from_slice(&all[at..end]);
                at = end;
                if let Piece::Pass(length) = framing.inspect(&held).unwrap() {
                    passed.extend(held.drain(..length));
                }
                if at == all.len() {
                    break;
                }
            }
            prop_assert_eq!(framing.heads(), 4);
            prop_assert_eq!(passed, all);
        }

        #[test]
        fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = whole(&bytes);
            let mut framing = Framing::default();
            let _ = framing.inspect(b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
            let _ = framing.inspect(&bytes);
        }
    }
}
