//! SOCKS5 (RFC 1928) without authentication: CONNECT to IPv4, IPv6 and names of the tailnet.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{GREETING_TIMEOUT, Shared, Target, listen};
use crate::api::DialError;

const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const NO_ACCEPTABLE_METHOD: u8 = 0xff;
const CONNECT: u8 = 1;

/// The reply field of RFC 1928, chapter 6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Reply {
    Succeeded = 0,
    GeneralFailure = 1,
    NotAllowed = 2,
    HostUnreachable = 4,
    Refused = 5,
    CommandNotSupported = 7,
    AddressNotSupported = 8,
}

/// A request that cannot be served.
#[derive(Debug, thiserror::Error)]
enum SocksError {
    #[error("the client broke off")]
    Io(#[from] io::Error),
    #[error("the client speaks SOCKS version {0}, not 5")]
    Version(u8),
    #[error("the client insists on an authentication method")]
    Authentication,
    #[error("command {0} is not supported, only CONNECT")]
    Command(u8),
    #[error("address type {0} is not known")]
    AddressType(u8),
    #[error("the name is not text")]
    Name,
}

pub(super) async fn start(tasks: &mut JoinSet<()>, addr: SocketAddr, shared: Shared) -> anyhow::Result<()> {
    listen::serve_tcp(tasks, addr, "SOCKS5 proxy", shared, serve).await
}

async fn serve(mut client: TcpStream, shared: Shared) -> anyhow::Result<()> {
    let target = tokio::time::timeout(GREETING_TIMEOUT, read_request(&mut client))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    match shared.dial(&target).await {
        Ok(remote) => {
            reply(&mut client, Reply::Succeeded).await?;
            shared.carry(remote, client).await?;
        }
        Err(error) => {
            tracing::debug!(?target, %error, "SOCKS5 connection refused");
            reply(&mut client, refusal(&error)).await?;
        }
    }
    Ok(())
}

fn refusal(error: &DialError) -> Reply {
    match error {
        DialError::UnknownName(_) | DialError::UnknownAddress(_) | DialError::TimedOut(_) => {
            Reply::HostUnreachable
        }
        DialError::Refused(_) => Reply::Refused,
        DialError::Denied(_) => Reply::NotAllowed,
        DialError::Unavailable(_) | DialError::Closed => Reply::GeneralFailure,
    }
}

/// Greeting and request, up to the reply that the caller gives. What cannot be served is answered here.
async fn read_request<S: AsyncRead + AsyncWrite + Unpin>(client: &mut S) -> Result<Target, SocksError> {
    let version = client.read_u8().await?;
    if version != VERSION {
        return Err(SocksError::Version(version));
    }
    let mut methods = vec![0; client.read_u8().await?.into()];
    client.read_exact(&mut methods).await?;
    if !methods.contains(&NO_AUTHENTICATION) {
        client.write_all(&[VERSION, NO_ACCEPTABLE_METHOD]).await?;
        return Err(SocksError::Authentication);
    }
    client.write_all(&[VERSION, NO_AUTHENTICATION]).await?;

    let [version, command, _reserved, address_type] = client.read_u32().await?.to_be_bytes();
    if version != VERSION {
        return Err(SocksError::Version(version));
    }
    let host = match address_type {
        1 => IpAddr::from(Ipv4Addr::from(client.read_u32().await?)).to_string(),
        3 => {
            let mut name = vec![0; client.read_u8().await?.into()];
            client.read_exact(&mut name).await?;
            String::from_utf8(name).map_err(|_| SocksError::Name)?
        }
        4 => IpAddr::from(Ipv6Addr::from(client.read_u128().await?)).to_string(),
        other => {
            reply(client, Reply::AddressNotSupported).await?;
            return Err(SocksError::AddressType(other));
        }
    };
    let port = client.read_u16().await?;
    if command != CONNECT {
        reply(client, Reply::CommandNotSupported).await?;
        return Err(SocksError::Command(command));
    }
    Ok(Target::new(&host, port))
}

/// The bound address is told as unspecified: it means nothing to a client of a tailnet.
async fn reply<S: AsyncWrite + Unpin>(client: &mut S, reply: Reply) -> io::Result<()> {
    client
        .write_all(&[VERSION, reply as u8, 0, 1, 0, 0, 0, 0, 0, 0])
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a whole client side against `read_request`, gives its result and what the client got.
    async fn exchange(input: &[u8]) -> (Result<Target, SocksError>, Vec<u8>) {
        let (mut client, mut server) = tokio::io::duplex(1024);
        client.write_all(input).await.unwrap();
        client.shutdown().await.unwrap();
        let result = read_request(&mut server).await;
        drop(server);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        (result, answer)
    }

    #[tokio::test]
    async fn each_kind_of_address() {
        let v4 = [&[5, 1, 0][..], &[5, 1, 0, 1, 100, 64, 0, 9, 0, 80]].concat();
        let (target, answer) = exchange(&v4).await;
        assert_eq!(target.unwrap(), Target::Addr("100.64.0.9:80".parse().unwrap()));
        assert_eq!(answer, [5, 0]);

        let name = [&[5, 2, 2, 0][..], &[5, 1, 0, 3, 5], b"nginx", &[0x1f, 0x90]].concat();
        assert_eq!(
            exchange(&name).await.0.unwrap(),
            Target::Name("nginx".into(), 8080)
        );

        let address_as_name = [&[5, 1, 0][..], &[5, 1, 0, 3, 10], b"100.64.0.9", &[0, 80]].concat();
        assert_eq!(
            exchange(&address_as_name).await.0.unwrap(),
            Target::Addr("100.64.0.9:80".parse().unwrap())
        );

        let v6 = [
            &[5, 1, 0, 5, 1, 0, 4][..],
            &Ipv6Addr::LOCALHOST.octets(),
            &[1, 187],
        ]
        .concat();
        assert_eq!(
            exchange(&v6).await.0.unwrap(),
            Target::Addr("[::1]:443".parse().unwrap())
        );
    }

    #[tokio::test]
    async fn what_cannot_be_served_is_answered_as_the_rfc_says() {
        let (result, answer) = exchange(&[5, 1, 2]).await;
        assert!(matches!(result, Err(SocksError::Authentication)));
        assert_eq!(answer, [5, 0xff]);

        let (result, answer) = exchange(&[5, 1, 0, 5, 3, 0, 1, 1, 2, 3, 4, 0, 80]).await;
        assert!(matches!(result, Err(SocksError::Command(3))));
        assert_eq!(answer[2..4], [5, Reply::CommandNotSupported as u8]);

        let (result, answer) = exchange(&[5, 1, 0, 5, 1, 0, 9]).await;
        assert!(matches!(result, Err(SocksError::AddressType(9))));
        assert_eq!(answer[2..4], [5, Reply::AddressNotSupported as u8]);

        assert!(matches!(
            exchange(&[4, 1, 0]).await.0,
            Err(SocksError::Version(4))
        ));
        assert!(matches!(
            exchange(&[5, 1, 0, 5, 1, 0, 3, 2, 0xff, 0xfe, 0, 80]).await.0,
            Err(SocksError::Name)
        ));
    }

    #[tokio::test]
    async fn every_cut_ends_with_an_error() {
        let whole = [&[5, 1, 0][..], &[5, 1, 0, 3, 5], b"nginx", &[0x1f, 0x90]].concat();
        for length in 0..whole.len() {
            assert!(
                matches!(exchange(&whole[..length]).await.0, Err(SocksError::Io(_))),
                "cut at {length}"
            );
        }
    }
}
