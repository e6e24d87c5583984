//! HTTP: a server that stands behind proxies, and a client that watches which of several answers.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tailwharf_tls::ClientTls;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// An answer that takes longer does not come.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of the two pages.
const SMALL: usize = 128;
const LARGE: usize = 1024 * 1024;
/// Most bytes of a head, and how much is read at once.
const ROOM: usize = 64 * 1024;
const HEAD_END: &[u8] = b"\r\n\r\n";
/// Between two requests of [`follow`].
const STEP: Duration = Duration::from_millis(5);

/// Serves `/small` and `/large`, which begin with `name`, until the process is ended.
pub(crate) async fn serve(address: SocketAddr, name: &str) -> Result<()> {
    let listener = TcpListener::bind(address).await?;
    let page = |length: usize| {
        let mut page = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n{name}\n"
        )
        .into_bytes();
        let name_len = name.len() + 1;
        page.resize(page.len() + length - name_len, b'.');
        page
    };
    let pages = Arc::new((page(SMALL), page(LARGE)));
    println!("{{}}");
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let pages = pages.clone();
        // A client that goes away ends its own connection only.
        tokio::spawn(async move { answer(stream, &pages.0, &pages.1).await });
    }
}

async fn answer(mut stream: TcpStream, small: &[u8], large: &[u8]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut room, mut have) = (vec![0; ROOM], 0);
    loop {
        let end = loop {
            if let Some(end) = head_end(&room[..have]) {
                break end;
            }
            match stream.read(&mut room[have..]).await? {
                0 => return Ok(()),
                read => have += read,
            }
        };
        let page = if room.starts_with(b"GET /large") {
            large
        } else {
            small
        };
        room.copy_within(end..have, 0);
        have -= end;
        stream.write_all(page).await?;
    }
}

fn head_end(bytes: &[u8]) -> Option<usize> {
    let at = bytes
        .windows(HEAD_END.len())
        .position(|window| window == HEAD_END)?;
    Some(at + HEAD_END.len())
}

/// Where to ask, and whom to trust for it.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    /// Its name in URLs and in its certificate.
    pub(crate) name: String,
    /// PEM of the root that has to be behind the certificate.
    pub(crate) root: PathBuf,
}

impl Server {
    fn config(&self) -> Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_file_iter(&self.root)? {
            roots.add(root?)?;
        }
        let config = ClientConfig::builder_with_provider(tailwharf_tls::provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Arc::new(config))
    }

    fn request(&self, path: &str) -> Vec<u8> {
        format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.name).into_bytes()
    }

    async fn open(&self, config: &Arc<ClientConfig>) -> Result<Connection> {
        let name = ServerName::try_from(self.name.clone())?;
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(Connection {
            stream: tailwharf_tls::connect(stream, config.clone(), name).await?,
            room: vec![0; ROOM],
        })
    }
}

/// A kept connection.
struct Connection {
    stream: ClientTls<TcpStream>,
    room: Vec<u8>,
}

impl Connection {
    /// The first line of the answer's body, which has to fit into the room.
    async fn get(&mut self, request: &[u8]) -> Result<String> {
        self.stream.write_all(request).await?;
        self.stream.flush().await?;
        let (mut have, mut whole) = (0, ROOM);
        let mut head = None;
        while have < whole {
            let read = self.stream.read(&mut self.room[have..]).await?;
            ensure!(read > 0, "the connection ends within an answer");
            have += read;
            if head.is_none()
                && let Some(end) = head_end(&self.room[..have])
            {
                whole = end + content_length(&self.room[..end])?;
                ensure!(whole <= ROOM, "the answer is too long");
                head = Some(end);
            }
        }
        let body = &self.room[head.context("a head that is too long")?..whole];
        let text = String::from_utf8_lossy(body);
        Ok(text.lines().next().unwrap_or_default().to_owned())
    }
}

/// The length of an answer that says 200.
fn content_length(head: &[u8]) -> Result<usize> {
    let head = std::str::from_utf8(head)?;
    ensure!(
        head.starts_with("HTTP/1.1 200 "),
        "{}",
        head.lines().next().unwrap_or_default()
    );
    let field = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim())
    });
    Ok(field.context("no Content-Length")?.parse()?)
}

/// Asks again and again until the process is ended, and prints when an answer came (microseconds since 1970) and who gave it.
pub(crate) async fn follow(server: Server) -> Result<()> {
    let config = server.config()?;
    let request = server.request("/small");
    let mut connection = None;
    loop {
        let asked = async {
            let open = match &mut connection {
                Some(open) => open,
                None => connection.insert(server.open(&config).await?),
            };
            open.get(&request).await
        };
        let who = match timeout(PATIENCE, asked).await {
            Ok(Ok(who)) => who,
            Ok(Err(_)) | Err(_) => {
                connection = None;
                "nobody".to_owned()
            }
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros();
        println!("{now} {who}");
        tokio::time::sleep(STEP).await;
    }
}
