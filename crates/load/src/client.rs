//! The least client of the control protocol: a Noise connection, HTTP/2 in it, and map streams that are searched rather than understood.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rand::rngs::OsRng;
use tailwharf_coordinator::NoiseStream;
use tailwharf_wire::{
    json,
    key::{MachinePrivate, MachinePublic},
    map_frame::{self, Compression},
    noise::{Early, Frame, Initiator},
    tailcfg::{MapRequest, OverTlsPublicKeyResponse, RegisterRequest, RegisterResponse},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Join, join},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinHandle,
};

/// The capability version that the nodes claim.
const VERSION: u16 = 131;

type Socket = Join<tokio::io::Chain<std::io::Cursor<BytesMut>, OwnedReadHalf>, OwnedWriteHalf>;

/// One Noise connection.
#[derive(Debug)]
pub(crate) struct Client {
    requests: SendRequest<Full<Bytes>>,
    connection: JoinHandle<Result<(), hyper::Error>>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Client {
    pub(crate) async fn connect(
        server: SocketAddr,
        key: &MachinePublic,
        machine: &MachinePrivate,
    ) -> Result<Self> {
        let (initiator, initiation) = Initiator::new(machine, key, VERSION, &mut OsRng)?;
        let mut socket = TcpStream::connect(server).await?;
        socket.set_nodelay(true)?;
        let request = format!(
            "POST /ts2021 HTTP/1.1\r\nHost: {server}\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\
             X-Tailscale-Handshake: {}\r\nContent-Length: 0\r\n\r\n",
            STANDARD.encode(initiation)
        );
        socket.write_all(request.as_bytes()).await?;
        let mut buffer = head(&mut socket).await?;
        let response = loop {
            if let Some(frame) = Frame::decode(&mut buffer)? {
                break frame;
            }
            ensure!(socket.read_buf(&mut buffer).await? > 0, "the handshake broke off");
        };
        let session = initiator.finish(&response)?;
        let (read, write) = socket.into_split();
        let mut stream = NoiseStream::new(join(std::io::Cursor::new(buffer).chain(read), write), session);
        skip_early(&mut stream).await?;
        let (requests, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(1 << 20)
            .handshake(TokioIo::new(stream))
            .await?;
        Ok(Self {
            requests,
            connection: tokio::spawn(connection),
        })
    }

    async fn post(&self, path: &str, body: Vec<u8>) -> Result<http::Response<Incoming>> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("https://control{path}"))
            .body(Full::from(body))?;
        let mut requests = self.requests.clone();
        requests.ready().await?;
        let response = requests.send_request(request).await?;
        if response.status() != StatusCode::OK {
            let status = response.status();
            let words = response.into_body().collect().await?.to_bytes();
            bail!("{path}: {status}: {}", String::from_utf8_lossy(&words));
        }
        Ok(response)
    }

    pub(crate) async fn register(&self, request: &RegisterRequest) -> Result<RegisterResponse> {
        let response = self
            .post("/machine/register", serde_json::to_vec(request)?)
            .await?;
        let body = response.into_body().collect().await?.to_bytes();
        let answer: RegisterResponse = json::from_slice(&body)?;
        ensure!(answer.error.is_empty(), "registration refused: {}", answer.error);
        Ok(answer)
    }

    /// A lite update.
    pub(crate) async fn update(&self, request: &MapRequest) -> Result<()> {
        let response = self.post("/machine/map", serde_json::to_vec(request)?).await?;
        response.into_body().collect().await?;
        Ok(())
    }

    pub(crate) async fn stream(&self, request: &MapRequest) -> Result<Maps> {
        let response = self.post("/machine/map", serde_json::to_vec(request)?).await?;
        Ok(Maps {
            body: response.into_body(),
            buffer: BytesMut::new(),
            compression: Compression::of(request),
        })
    }
}

/// The messages of one map stream.
#[derive(Debug)]
pub(crate) struct Maps {
    body: Incoming,
    buffer: BytesMut,
    compression: Compression,
}

impl Maps {
    /// The JSON of the next message; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            if let Some(json) = map_frame::decode_json(&mut self.buffer, self.compression)? {
                return Ok(Some(json));
            }
            let Some(frame) = self.body.frame().await else {
                return Ok(None);
            };
            if let Ok(data) = frame?.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }
}

/// The server's key.
pub(crate) async fn server_key(server: SocketAddr) -> Result<MachinePublic> {
    let mut socket = TcpStream::connect(server).await?;
    let request = format!("GET /key?v={VERSION} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    let mut body = head(&mut socket).await?;
    while socket.read_buf(&mut body).await? > 0 {}
    let answer: OverTlsPublicKeyResponse = json::from_slice(&body)?;
    Ok(answer.public_key)
}

/// Reads the headers of an answer; what follows them is returned.
async fn head(socket: &mut TcpStream) -> Result<BytesMut> {
    let mut head = BytesMut::new();
    loop {
        if let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = head.split_off(end + 4);
            let status = head.get(9..12).context("no status")?;
            ensure!(
                matches!(status, b"101" | b"200"),
                "{}",
                String::from_utf8_lossy(&head)
            );
            return Ok(rest);
        }
        ensure!(socket.read_buf(&mut head).await? > 0, "no answer");
    }
}

async fn skip_early(stream: &mut NoiseStream<Socket>) -> Result<()> {
    let mut early = BytesMut::new();
    loop {
        match Early::decode(&mut early)? {
            Early::Payload(_) => return Ok(()),
            Early::Absent => bail!("no early payload"),
            Early::Incomplete => early.extend_from_slice(&[stream.read_u8().await?]),
        }
    }
}
