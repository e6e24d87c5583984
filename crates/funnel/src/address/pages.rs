//! The listener at port 80: pages that prove the name to the authority (RFC 8555, 8.3), and the way to `server_url` for everybody else.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::service::service_fn;
use tailwharf_coordinator::config::FunnelLimits;
use tailwharf_http::{HttpLimits, Server, Version};
use tailwharf_node::acme::Proof;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::AddressError;
use crate::places::Places;

/// Where the authority looks, before the token.
const PREFIX: &str = "/.well-known/acme-challenge/";
/// Who asks here asks once.
const LIMITS: HttpLimits = HttpLimits {
    header_bytes: 16 * 1024,
    headers: 64,
    header_time: Duration::from_secs(10),
    streams: 1,
    buffer: 16 * 1024,
    ping: Duration::from_secs(10),
};
const PLACES: FunnelLimits = FunnelLimits {
    connections: 256,
    connections_per_source: 16,
};
/// How long to wait when the system gives no more sockets.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The pages that are published, by token.
#[derive(Clone)]
pub(super) struct Pages {
    published: Arc<Mutex<HashMap<String, String>>>,
    server_url: Url,
}

impl Pages {
    /// Serves them until `stop` is cancelled.
    pub(super) async fn serve(
        addr: SocketAddr,
        server_url: Url,
        stop: CancellationToken,
    ) -> Result<Self, AddressError> {
        let listener = TcpListener::bind(addr)
            .await
            .map_err(|source| AddressError::Listen { addr, source })?;
        let pages = Self {
            published: Arc::default(),
            server_url,
        };
        tokio::spawn(accept(listener, pages.clone(), stop));
        Ok(pages)
    }

    pub(super) fn publish(&self, proof: Proof) {
        self.lock().insert(proof.place, proof.content);
    }

    /// Takes all back.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        let (status, location, page) = match path.strip_prefix(PREFIX) {
            Some(token) => match self.lock().get(token) {
                Some(page) => (StatusCode::OK, None, page.clone()),
                None => (StatusCode::NOT_FOUND, None, "no such challenge\n".to_owned()),
            },
            None => {
                let mut url = self.server_url.clone();
                url.set_path(path);
                url.set_query(request.uri().query());
                (StatusCode::PERMANENT_REDIRECT, Some(url), String::new())
            }
        };
        let mut response = Response::new(Full::from(page));
        *response.status_mut() = status;
        if let Some(location) = location.and_then(|url| url.as_str().parse().ok()) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        response
    }
}

async fn accept(listener: TcpListener, pages: Pages, stop: CancellationToken) {
    let (server, places) = (Server::new(LIMITS), Places::new(PLACES));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let (socket, source) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection at the port of `[acme]` could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(place) = places.take(source.ip()) else {
            tracing::debug!(%source, "too many connections at the port of `[acme]`");
            continue;
        };
        let (server, pages, stop) = (server.clone(), pages.clone(), stop.clone());
        tokio::spawn(async move {
            let _place = place;
            let service = service_fn(move |request| {
                let answer = pages.answer(&request);
                async move { Ok::<_, Infallible>(answer) }
            });
            if let Err(error) = server.serve(socket, Version::Http1, service, &stop).await {
                tracing::debug!(%source, %error, "a connection at the port of `[acme]` ended");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn get(addr: SocketAddr, path: &str) -> String {
        let mut socket = tokio::net::TcpStream::connect(addr).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: hub.example.com\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn the_authority_finds_the_proof_and_everybody_else_the_server() {
        // The port of a listener that has just gone.
        let addr = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let url = "https://hub.example.com:8443".parse().unwrap();
        let stop = CancellationToken::new();
        let pages = Pages::serve(addr, url, stop.clone()).await.unwrap();
        pages.publish(Proof {
            place: "abc".to_owned(),
            content: "abc.thumb".to_owned(),
        });
        let found = get(addr, "/.well-known/acme-challenge/abc").await;
        assert!(
            found.starts_with("HTTP/1.1 200") && found.ends_with("abc.thumb"),
            "{found}"
        );
        for path in ["/.well-known/acme-challenge/", "/.well-known/acme-challenge/abd"] {
            assert!(get(addr, path).await.starts_with("HTTP/1.1 404"));
        }
        let elsewhere = get(addr, "/admin?x=1").await;
        assert!(elsewhere.starts_with("HTTP/1.1 308"), "{elsewhere}");
        assert!(
            elsewhere.contains("location: https://hub.example.com:8443/admin?x=1\r\n"),
            "{elsewhere}"
        );
        pages.clear();
        assert!(
            get(addr, "/.well-known/acme-challenge/abc")
                .await
                .starts_with("HTTP/1.1 404")
        );
        let taken = Pages::serve(addr, "https://a.example".parse().unwrap(), stop.clone()).await;
        assert!(matches!(taken, Err(AddressError::Listen { .. })));
        stop.cancel();
    }
}
