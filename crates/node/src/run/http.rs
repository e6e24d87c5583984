//! The HTTP proxy: CONNECT, and plain requests in absolute form.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{GREETING_TIMEOUT, Shared, Target, listen};
use crate::api::DialError;

type Body = BoxBody<Bytes, hyper::Error>;

pub(super) async fn start(tasks: &mut JoinSet<()>, addr: SocketAddr, shared: Shared) -> anyhow::Result<()> {
    listen::serve_tcp(tasks, addr, "HTTP proxy", shared, serve).await
}

/// One client. A CONNECT ends the HTTP part, and the bytes after it are carried here, under the client's slot.
async fn serve(client: TcpStream, shared: Shared) -> anyhow::Result<()> {
    let shared = &shared;
    let (tunnels, mut tunnel) = tokio::sync::mpsc::channel(1);
    let service = service_fn(|request| {
        let tunnels = tunnels.clone();
        async move { Ok::<_, Infallible>(answer(request, shared, &tunnels).await) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(GREETING_TIMEOUT)
        .serve_connection(TokioIo::new(client), service)
        .with_upgrades()
        .await?;
    if let Ok((upgrade, remote)) = tunnel.try_recv() {
        shared.carry(remote, TokioIo::new(upgrade.await?)).await?;
    }
    Ok(())
}

type Tunnels = tokio::sync::mpsc::Sender<(hyper::upgrade::OnUpgrade, crate::TcpStream)>;

async fn answer(mut request: Request<Incoming>, shared: &Shared, tunnels: &Tunnels) -> Response<Body> {
    let Some(target) = target_of(request.uri()) else {
        return refuse(
            StatusCode::BAD_REQUEST,
            "this is a proxy: send CONNECT host:port, or a whole http:// URL",
        );
    };
    let remote = match shared.dial(&target).await {
        Ok(remote) => remote,
        Err(error) => return refuse(status_of(&error), &error.to_string()),
    };
    if request.method() == Method::CONNECT {
        return match tunnels.try_send((hyper::upgrade::on(&mut request), remote)) {
            Ok(()) => Response::new(Full::default().map_err(|never| match never {}).boxed()),
            Err(_) => refuse(StatusCode::BAD_REQUEST, "one CONNECT per connection"),
        };
    }
    forward(request, remote)
        .await
        .unwrap_or_else(|error| refuse(StatusCode::BAD_GATEWAY, &error.to_string()))
}

/// Sends one plain request on a connection of its own.
async fn forward(
    mut request: Request<Incoming>,
    remote: crate::TcpStream,
) -> Result<Response<Body>, hyper::Error> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(remote)).await?;
    // Ends with the answer's body.
    tokio::spawn(connection);
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = Uri::try_from(path).unwrap_or_default();
    request.headers_mut().remove("proxy-connection");
    request
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    Ok(sender.send_request(request).await?.map(BodyExt::boxed))
}

fn target_of(uri: &Uri) -> Option<Target> {
    let port = match (uri.port_u16(), uri.scheme_str()) {
        (Some(port), None | Some("http")) => port,
        (None, Some("http")) => 80,
        _ => return None,
    };
    Some(Target::new(uri.host()?, port))
}

fn status_of(error: &DialError) -> StatusCode {
    match error {
        DialError::UnknownName(_) | DialError::UnknownAddress(_) | DialError::Refused(_) => {
            StatusCode::BAD_GATEWAY
        }
        DialError::Denied(_) => StatusCode::FORBIDDEN,
        DialError::TimedOut(_) => StatusCode::GATEWAY_TIMEOUT,
        DialError::Unavailable(_) | DialError::Closed => StatusCode::SERVICE_UNAVAILABLE,
    }
}

fn refuse(status: StatusCode, why: &str) -> Response<Body> {
    let body = Full::new(Bytes::from(format!("{why}\n")))
        .map_err(|never| match never {})
        .boxed();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_request_goes() {
        let target = |uri: &str| target_of(&uri.parse().unwrap());
        assert_eq!(target("nginx:8080"), Some(Target::Name("nginx".into(), 8080)));
        assert_eq!(
            target("[fd7a::1]:443"),
            Some(Target::Addr("[fd7a::1]:443".parse().unwrap()))
        );
        assert_eq!(
            target("http://nginx/index.html"),
            Some(Target::Name("nginx".into(), 80))
        );
        assert_eq!(target("/index.html"), None);
        assert_eq!(target("ftp://nginx/"), None);
    }
}
