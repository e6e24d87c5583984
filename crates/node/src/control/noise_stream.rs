//! A byte stream inside Noise records.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tailwharf_wire::noise::{Early, Frame, Initiator, MAX_PLAINTEXT_LEN, NoiseError, Session};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::dial::DialError;
use crate::stream::MaybeTls;

/// Room for the next read. Small, since a control connection is idle nearly always.
const READ_CHUNK: usize = 2048;

/// An output buffer that grew above this is given back once it is written.
const KEPT_OUTPUT: usize = 8192;

/// The plaintext side of a control connection. The server's early payload is taken out on the way.
pub(crate) struct NoiseStream {
    inner: MaybeTls,
    session: Session,
    /// Read, not decrypted.
    sealed_in: BytesMut,
    /// Decrypted, not handed on.
    plain_in: BytesMut,
    /// Encrypted, not written.
    sealed_out: BytesMut,
    /// Whether the early payload, if there is one, is still to come.
    before_early: bool,
}

impl NoiseStream {
    /// Reads the server's answer to the initiation. `read` is what came behind the HTTP answer already.
    pub(crate) async fn finish_handshake(
        mut inner: MaybeTls,
        read: Bytes,
        initiator: Initiator,
    ) -> Result<Self, DialError> {
        let mut sealed_in = BytesMut::from(read);
        let response = loop {
            if let Some(frame) = Frame::decode(&mut sealed_in).map_err(DialError::Noise)? {
                break frame;
            }
            sealed_in.reserve(READ_CHUNK);
            if inner
                .read_buf(&mut sealed_in)
                .await
                .map_err(DialError::Handshake)?
                == 0
            {
                return Err(DialError::Handshake(io::ErrorKind::UnexpectedEof.into()));
            }
        };
        let session = initiator.finish(&response).map_err(DialError::Noise)?;
        let (plain_in, sealed_out) = (BytesMut::new(), BytesMut::new());
        Ok(Self {
            inner,
            session,
            sealed_in,
            plain_in,
            sealed_out,
            before_early: true,
        })
    }

    /// Decrypts the next record. `false`: it is not complete.
    fn open_record(&mut self) -> Result<bool, NoiseError> {
        let Some(record) = self.session.opener.open(&mut self.sealed_in)? else {
            return Ok(false);
        };
        if self.plain_in.is_empty() {
            self.plain_in = record;
        } else {
            self.plain_in.extend_from_slice(&record);
        }
        if self.before_early && !self.plain_in.is_empty() {
            // The challenge in the payload serves proofs that this node never has to give.
            self.before_early = matches!(Early::decode(&mut self.plain_in)?, Early::Incomplete);
        }
        Ok(true)
    }

    /// Writes what is encrypted.
    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.sealed_out.is_empty() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.sealed_out))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sealed_out.advance(written);
        }
        if self.sealed_out.capacity() > KEPT_OUTPUT {
            self.sealed_out = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for NoiseStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.before_early && !this.plain_in.is_empty() {
                let length = buf.remaining().min(this.plain_in.len());
                buf.put_slice(&this.plain_in.split_to(length));
                return Poll::Ready(Ok(()));
            }
            if this.open_record().map_err(io::Error::other)? {
                continue;
            }
            this.sealed_in.reserve(READ_CHUNK);
            if ready!(pin!(this.inner.read_buf(&mut this.sealed_in)).poll(cx))? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for NoiseStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_write_out(cx))?;
        let length = buf.len().min(MAX_PLAINTEXT_LEN);
        this.session
            .sealer
            .seal(&buf[..length], &mut this.sealed_out)
            .map_err(io::Error::other)?;
        // What does not go out now goes out with the flush that follows.
        if let Poll::Ready(Err(error)) = this.poll_write_out(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_write_out(cx))?;
        Pin::new(&mut this.inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_write_out(cx))?;
        Pin::new(&mut this.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use tailwharf_wire::key::MachinePrivate;
    use tailwharf_wire::noise::{encode_early, error_frame, respond};
    use tailwharf_wire::tailcfg::EarlyNoise;
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// Both ends after the initiation, and the server's answer to it.
    async fn pair() -> (MaybeTls, Initiator, TcpStream, [u8; 51], Session) {
        let mut rng = StdRng::seed_from_u64(1);
        let (server_key, machine_key) = (
            MachinePrivate::generate(&mut rng),
            MachinePrivate::generate(&mut rng),
        );
        let (initiator, initiation) =
            Initiator::new(&machine_key, &server_key.public(), 131, &mut rng).unwrap();
        let accepted = respond(&server_key, &initiation, &mut rng).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        (
            MaybeTls::Plain(client),
            initiator,
            server,
            accepted.response,
            accepted.session,
        )
    }

    /// What the client reads when the server's plaintext comes in records of `record` bytes.
    async fn read_through(plaintext: &[u8], record: usize) -> Vec<u8> {
        let (client, initiator, mut server, response, mut session) = pair().await;
        let mut out = BytesMut::from(&response[..]);
        for chunk in plaintext.chunks(record) {
            session.sealer.seal(chunk, &mut out).unwrap();
        }
        // A part of the answer arrives together with the HTTP header.
        let early = out.split_to(20).freeze();
        let writing = tokio::spawn(async move {
            server.write_all(&out).await.unwrap();
            server.shutdown().await.unwrap();
            server
        });
        let mut stream = NoiseStream::finish_handshake(client, early, initiator)
            .await
            .unwrap();
        let mut read = Vec::new();
        stream.read_to_end(&mut read).await.unwrap();
        writing.await.unwrap();
        read
    }

    #[tokio::test]
    async fn the_early_payload_is_taken_out_however_it_is_cut() {
        let content: Vec<u8> = (0..20_000_u32).map(|n| n as u8).collect();
        let with_early = [encode_early(&EarlyNoise::default()), content.clone()].concat();
        for record in [1, 7, 100, MAX_PLAINTEXT_LEN] {
            assert_eq!(
                read_through(&with_early, record).await,
                content,
                "records of {record} bytes"
            );
        }
        assert_eq!(read_through(&content, 1000).await, content, "no early payload");
    }

    #[tokio::test]
    async fn what_is_written_arrives_in_order() {
        let (client, initiator, mut server, response, mut session) = pair().await;
        let content: Vec<u8> = (0..50_000_u32).map(|n| (n / 7) as u8).collect();
        let answer = Bytes::copy_from_slice(&response);
        let sent = content.clone();
        let writing = async {
            let mut stream = NoiseStream::finish_handshake(client, answer, initiator)
                .await
                .unwrap();
            stream.write_all(&sent).await.unwrap();
            stream.shutdown().await.unwrap();
        };
        let reading = async {
            let (mut sealed, mut plain) = (BytesMut::new(), Vec::new());
            while server.read_buf(&mut sealed).await.unwrap() > 0 {
                while let Some(record) = session.opener.open(&mut sealed).unwrap() {
                    plain.extend_from_slice(&record);
                }
            }
            plain
        };
        let ((), received) = tokio::join!(writing, reading);
        assert_eq!(received, content);
    }

    #[tokio::test]
    async fn a_refusal_is_told_in_the_servers_words() {
        let (client, initiator, _server, _, _) = pair().await;
        let refusal = Bytes::from(error_frame("client too old"));
        let Err(error) = NoiseStream::finish_handshake(client, refusal, initiator).await else {
            panic!()
        };
        assert!(matches!(error, DialError::Noise(NoiseError::Refused(reason)) if reason == "client too old"));
    }
}
