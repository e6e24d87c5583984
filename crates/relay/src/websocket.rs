//! DERP inside WebSocket (RFC 6455), for clients that run in a browser: the bytes of binary messages are the stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, BufMut, BytesMut};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What the protocol appends to the client's key.
const ACCEPT_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Longest message that is written at once.
const MAX_WRITE: usize = 64 * 1024;
/// Longest payload of a control frame.
const MAX_CONTROL: usize = 125;
/// How much is read at once.
const READ_LEN: usize = 16 * 1024;
/// Answers to pings that may wait for a client that does not read.
const MAX_UNSENT_CONTROL: usize = 4096;

mod opcode {
    pub(super) const CONTINUATION: u8 = 0;
    pub(super) const BINARY: u8 = 2;
    pub(super) const CLOSE: u8 = 8;
    pub(super) const PING: u8 = 9;
    pub(super) const PONG: u8 = 10;
}

/// What answers the client's `Sec-WebSocket-Key`.
pub(crate) fn accept_key(key: &str) -> String {
    let hash = digest(
        &SHA1_FOR_LEGACY_USE_ONLY,
        format!("{key}{ACCEPT_GUID}").as_bytes(),
    );
    STANDARD.encode(hash)
}

/// The server's side of a WebSocket, as a stream of bytes.
pub(crate) struct WebSocket<S> {
    inner: S,
    /// Read, not decoded.
    received: BytesMut,
    /// What is left of the message at hand.
    message: Option<Message>,
    unsent: BytesMut,
    closed: bool,
}

/// The rest of a frame that carries data.
struct Message {
    left: u64,
    mask: [u8; 4],
    /// Bytes that were unmasked before.
    done: usize,
}

impl<S> WebSocket<S> {
    /// `early`: what was read behind the client's request.
    pub(crate) fn new(inner: S, early: &[u8]) -> Self {
        Self {
            inner,
            received: BytesMut::from(early),
            message: None,
            unsent: BytesMut::new(),
            closed: false,
        }
    }

    /// Moves what was received to `buf`, and answers control frames. Returns whether more has to be read.
    fn decode(&mut self, buf: &mut ReadBuf<'_>) -> io::Result<bool> {
        loop {
            if let Some(message) = &mut self.message {
                let len = self.received.len().min(buf.remaining());
                let len = len.min(usize::try_from(message.left).unwrap_or(usize::MAX));
                let start = buf.filled().len();
                buf.put_slice(&self.received[..len]);
                unmask(&mut buf.filled_mut()[start..], message.mask, message.done);
                self.received.advance(len);
                message.done += len;
                message.left -= len as u64;
                if message.left > 0 {
                    return Ok(buf.remaining() > 0);
                }
                self.message = None;
            }
            if self.closed || buf.remaining() == 0 {
                return Ok(false);
            }
            if !self.begin_frame()? {
                return Ok(true);
            }
        }
    }

    /// Takes the head of a frame, or a whole control frame. Returns whether it was complete.
    fn begin_frame(&mut self) -> io::Result<bool> {
        let Some((opcode, length, mut head)) = header(&self.received)? else {
            return Ok(false);
        };
        let is_control = opcode >= opcode::CLOSE;
        let whole = head + 4 + if is_control { length as usize } else { 0 };
        if self.received.len() < whole {
            return Ok(false);
        }
        let mut mask = [0; 4];
        mask.copy_from_slice(&self.received[head..head + 4]);
        head += 4;
        match opcode {
            opcode::BINARY | opcode::CONTINUATION => {
                self.message = Some(Message {
                    left: length,
                    mask,
                    done: 0,
                });
                self.received.advance(head);
            }
            _ => {
                self.received.advance(head);
                let mut payload = self.received.split_to(length as usize);
                unmask(&mut payload, mask, 0);
                self.control(opcode, &payload)?;
            }
        }
        Ok(true)
    }

    fn control(&mut self, opcode: u8, payload: &[u8]) -> io::Result<()> {
        match opcode {
            opcode::PING if self.unsent.len() < MAX_UNSENT_CONTROL => {
                put_frame(opcode::PONG, payload, &mut self.unsent);
            }
            opcode::PING | opcode::PONG => {}
            opcode::CLOSE => {
                put_frame(opcode::CLOSE, payload, &mut self.unsent);
                self.closed = true;
            }
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
        Ok(())
    }
}

/// Opcode, length of the payload and length of the head without the mask, as soon as they are there.
fn header(bytes: &[u8]) -> io::Result<Option<(u8, u64, usize)>> {
    let Some(&[first, second]) = bytes.first_chunk::<2>() else {
        return Ok(None);
    };
    let opcode = first & 0x0f;
    let is_masked = second & 0x80 != 0;
    let (length, head) = match second & 0x7f {
        126 => match bytes[2..].first_chunk::<2>() {
            Some(length) => (u16::from_be_bytes(*length).into(), 4),
            None => return Ok(None),
        },
        127 => match bytes[2..].first_chunk::<8>() {
            Some(length) => (u64::from_be_bytes(*length), 10),
            None => return Ok(None),
        },
        short => (short.into(), 2),
    };
    // Clients must mask; text and reserved kinds carry no DERP; control frames are short and whole.
    let is_known = matches!(
        opcode,
        opcode::CONTINUATION | opcode::BINARY | opcode::CLOSE | opcode::PING | opcode::PONG
    );
    let is_short = opcode < opcode::CLOSE || (length <= MAX_CONTROL as u64 && first & 0x80 != 0);
    if !is_masked || first & 0x70 != 0 || !is_known || !is_short {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(Some((opcode, length, head)))
}

fn unmask(bytes: &mut [u8], mask: [u8; 4], done: usize) {
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte ^= mask[(done + at) % 4];
    }
}

fn put_frame(opcode: u8, payload: &[u8], out: &mut BytesMut) {
    out.put_u8(0x80 | opcode);
    match payload.len() {
        short @ 0..=125 => out.put_u8(short as u8),
        middle @ 126..=0xffff => {
            out.put_u8(126);
            out.put_u16(middle as u16);
        }
        long => {
            out.put_u8(127);
            out.put_u64(long as u64);
        }
    }
    out.put_slice(payload);
}

impl<S: AsyncWrite + Unpin> WebSocket<S> {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let sent = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.unsent))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unsent.advance(sent);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocket<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        loop {
            let wants_more = this.decode(buf)?;
            // A pong must not wait for the next packet.
            if let Poll::Ready(Err(error)) = this.poll_send(cx) {
                return Poll::Ready(Err(error));
            }
            if buf.filled().len() > before || !wants_more {
                if this.received.is_empty() {
                    this.received = BytesMut::new();
                }
                return Poll::Ready(Ok(()));
            }
            let mut room = [0; READ_LEN];
            let mut read = ReadBuf::new(&mut room);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            this.received.extend_from_slice(read.filled());
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocket<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        let bytes = &bytes[..bytes.len().min(MAX_WRITE)];
        put_frame(opcode::BINARY, bytes, &mut this.unsent);
        if let Poll::Ready(Err(error)) = this.poll_send(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        if this.unsent.is_empty() {
            this.unsent = BytesMut::new();
        }
        Pin::new(&mut this.inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// A frame as a client sends it.
    fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = BytesMut::new();
        put_frame(0, payload, &mut out);
        let head = out.len() - payload.len();
        let mask = [1, 2, 3, 4];
        let mut body = out.split_off(head);
        unmask(&mut body, mask, 0);
        out[0] = first;
        out[1] |= 0x80;
        [&out[..], &mask, &body].concat()
    }

    #[test]
    fn the_key_is_answered_as_in_the_rfc() {
        assert_eq!(
            accept_key("dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }

    #[tokio::test]
    async fn messages_are_a_stream_and_pings_are_answered_between() {
        let long: Vec<u8> = (0..70_000).map(|at| at as u8).collect();
        let sent = [
            masked(0x02, b"one "),
            masked(0x89, b"ping"),
            masked(0x80, b"two "),
            masked(0x82, &long),
            masked(0x88, &[3, 232]),
        ]
        .concat();
        for piece in [1, 7, 100_000] {
            let (mut client, server) = duplex(1 << 20);
            let (early, rest) = sent.split_at(3);
            let mut server = WebSocket::new(server, early);
            let mut received = Vec::new();
            for part in rest.chunks(piece) {
                client.write_all(part).await.unwrap();
            }
            server.read_to_end(&mut received).await.unwrap();
            assert_eq!(&received[..8], b"one two ");
            assert!(received[8..] == long);
            server.write_all(b"answer").await.unwrap();
            server.flush().await.unwrap();
            drop(server);
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, b"\x8a\x04ping\x88\x02\x03\xe8\x82\x06answer");
        }
    }

    #[tokio::test]
    async fn what_a_client_must_not_send_is_refused() {
        let mut unmasked = BytesMut::new();
        put_frame(opcode::BINARY, b"data", &mut unmasked);
        for bad in [
            unmasked.to_vec(),
            masked(0x81, b"text"),
            masked(0xc2, b"reserved"),
            masked(0x09, b"ping in parts"),
            masked(0x89, &[0; 126]),
            masked(0x8b, b""),
        ] {
            let (_client, server) = duplex(1024);
            let mut server = WebSocket::new(server, &bad);
            let error = server.read(&mut [0; 100]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{bad:?}");
        }
    }
}
