//! The commands that ask a running node of this user: `tailwharf status` and `tailwharf ping`.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use tailwharf_node::local::{
    Kind, LocalError, PathReport, PeerReport, Pong, StatusReport, Via, ask_ping, ask_status,
};

use crate::args::{OutputFormat, PingArgs, PingKind, StatusArgs};
use crate::settings;

/// Between two pings.
const PAUSE: Duration = Duration::from_secs(1);

pub(crate) async fn status(args: StatusArgs) -> Result<ExitCode> {
    let report = ask_status(&settings::socket(args.socket.socket.as_deref())).await?;
    let mut out = io::stdout().lock();
    match args.output {
        OutputFormat::Json => writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?,
        OutputFormat::Table => write_status(&mut out, &report)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Pings until an answer came by a direct path, or as often as asked for. Fails when no answer came at all.
pub(crate) async fn ping(args: PingArgs) -> Result<ExitCode> {
    let socket = settings::socket(args.socket.socket.as_deref());
    let kind = match args.kind {
        PingKind::Disco => Kind::Disco,
        PingKind::Tsmp => Kind::Tsmp,
        PingKind::Icmp => Kind::Icmp,
    };
    let mut answered = false;
    for number in 0..args.count {
        if number > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        match ask_ping(&socket, &args.peer, kind).await {
            Ok(pong) => {
                answered = true;
                let line = match args.output {
                    OutputFormat::Json => serde_json::to_string(&pong)?,
                    OutputFormat::Table => pong_line(&pong),
                };
                writeln!(io::stdout().lock(), "{line}")?;
                if !args.all && matches!(pong.via, Via::Direct(_)) {
                    return Ok(ExitCode::SUCCESS);
                }
            }
            Err(LocalError::Failed(why)) => writeln!(io::stderr().lock(), "{why}")?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(if answered {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn pong_line(pong: &Pong) -> String {
    let via = match &pong.via {
        Via::Direct(address) => address.to_string(),
        Via::Relay(region) => format!("DERP({region})"),
    };
    let Pong {
        name,
        address,
        latency_ms,
        ..
    } = pong;
    format!("pong from {name} ({address}) via {via} in {latency_ms} ms")
}

fn write_status(out: &mut impl Write, report: &StatusReport) -> io::Result<()> {
    let join = |addresses: &[std::net::IpAddr]| {
        let texts: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        texts.join(" ")
    };
    let name = report.fqdn.as_deref().unwrap_or("-");
    writeln!(out, "{name}  {}  {}", join(&report.addresses), report.phase)?;
    let relay = report.relay.as_deref().unwrap_or("none");
    let stands = if report.relay_connected {
        ""
    } else {
        ", not connected"
    };
    let udp = match (
        report.network.udp,
        report.network.mapping_varies,
        report.network.translated,
    ) {
        (Some(false), ..) => "UDP does not get through",
        (_, Some(true), _) => "behind a NAT that gives each destination another port",
        (_, _, Some(true)) => "behind a NAT",
        (Some(true), ..) => "UDP gets through",
        (None, ..) => "UDP is not known yet",
    };
    writeln!(out, "relay {relay}{stands}; {udp}")?;
    for warning in &report.health {
        writeln!(out, "warning: {warning}")?;
    }
    writeln!(out)?;
    let width = |of: fn(&PeerReport) -> String| {
        report
            .peers
            .iter()
            .map(|peer| of(peer).chars().count())
            .max()
            .unwrap_or(0)
    };
    let (names, addresses, systems) = (
        width(peer_name),
        width(peer_address),
        width(|peer| peer.os.clone()),
    );
    for peer in &report.peers {
        writeln!(
            out,
            "{:names$}  {:addresses$}  {:systems$}  {}",
            peer_name(peer),
            peer_address(peer),
            peer.os,
            peer_path(peer)
        )?;
    }
    Ok(())
}

fn peer_name(peer: &PeerReport) -> String {
    peer.fqdn.split('.').next().unwrap_or_default().to_owned()
}

fn peer_address(peer: &PeerReport) -> String {
    peer.addresses
        .first()
        .map(ToString::to_string)
        .unwrap_or_default()
}

fn peer_path(peer: &PeerReport) -> String {
    match (&peer.path, peer.online) {
        (Some(PathReport::Direct { address, latency_ms }), _) => format!("direct {address}, {latency_ms} ms"),
        (Some(PathReport::Relay { region, why }), _) => format!("relay {region}: {why}"),
        (None, Some(false)) => "offline".to_owned(),
        (None, _) => "idle".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use tailwharf_node::local::NetworkReport;

    use super::*;

    #[test]
    fn pongs_read_like_those_of_the_official_client() {
        let mut pong = Pong {
            name: "nginx".to_owned(),
            address: [100, 64, 0, 7].into(),
            latency_ms: 0.42,
            via: Via::Direct("192.0.2.1:41641".parse().unwrap()),
        };
        assert_eq!(
            pong_line(&pong),
            "pong from nginx (100.64.0.7) via 192.0.2.1:41641 in 0.42 ms"
        );
        pong.via = Via::Relay("fra".to_owned());
        assert_eq!(
            pong_line(&pong),
            "pong from nginx (100.64.0.7) via DERP(fra) in 0.42 ms"
        );
    }

    #[test]
    fn a_status_is_a_table_that_says_why_a_peer_is_relayed() {
        let peer = |name: &str, address: [u8; 4], path| PeerReport {
            fqdn: format!("{name}.tail1234.ts.net"),
            addresses: vec![address.into()],
            os: "linux".to_owned(),
            tags: Vec::new(),
            online: Some(true),
            path,
        };
        let direct = PathReport::Direct {
            address: "192.0.2.1:41641".parse().unwrap(),
            latency_ms: 0.3,
        };
        let relay = PathReport::Relay {
            region: "fra".to_owned(),
            why: "the peer tells no address".to_owned(),
        };
        let report = StatusReport {
            phase: "online".to_owned(),
            fqdn: Some("harbor.tail1234.ts.net".to_owned()),
            addresses: vec![[100, 64, 0, 1].into()],
            relay: Some("fra".to_owned()),
            relay_connected: true,
            network: NetworkReport {
                udp: Some(true),
                translated: Some(true),
                ..NetworkReport::default()
            },
            health: Vec::new(),
            clusters: Vec::new(),
            peers: vec![
                peer("a", [100, 64, 0, 2], Some(direct)),
                peer("laptop", [100, 64, 0, 13], Some(relay)),
                peer("c", [100, 64, 0, 4], None),
            ],
        };
        let mut out = Vec::new();
        write_status(&mut out, &report).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "harbor.tail1234.ts.net  100.64.0.1  online\n\
             relay fra; behind a NAT\n\n\
             a       100.64.0.2   linux  direct 192.0.2.1:41641, 0.3 ms\n\
             laptop  100.64.0.13  linux  relay fra: the peer tells no address\n\
             c       100.64.0.4   linux  idle\n"
        );
    }
}
