//! What a running `tailwharf node` tells other processes of its user.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use tailwharf_node::local::{Kind, LocalError, PathReport, Via, ask_ping, ask_status};
use tailwharf_node::run::run;
use tokio_util::sync::CancellationToken;

use crate::command::settings;
use crate::common::{Tailnet, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_and_pings_through_the_socket() {
    let tailnet = Tailnet::start().await;
    let _server = tailnet.join("server", "tag:server").await;
    let mut settings = settings(&tailnet, "asked", tailnet.auth_key("tag:client").await);
    settings.direct = true;
    let (socket, stop) = (settings.socket.path.clone(), CancellationToken::new());
    let running = tokio::spawn(run(settings, stop.clone()));

    for kind in [Kind::Disco, Kind::Tsmp, Kind::Icmp] {
        let pong = eventually("a pong", async || ask_ping(&socket, "server", kind).await).await;
        assert_eq!(pong.name, "server");
    }
    eventually("a direct pong", async || {
        match ask_ping(&socket, "server.tail1234.ts.net", Kind::Disco).await {
            Ok(pong) if matches!(pong.via, Via::Direct(_)) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    let unknown = ask_ping(&socket, "nobody", Kind::Disco).await;
    assert!(matches!(unknown, Err(LocalError::Failed(why)) if why.contains("nobody")));

    let report = ask_status(&socket).await.unwrap();
    assert_eq!(report.phase, "online");
    assert_eq!(report.network.udp, Some(true));
    let [peer] = &report.peers[..] else {
        panic!("{report:?}")
    };
    assert_eq!(peer.fqdn, "server.tail1234.ts.net");
    assert!(matches!(peer.path, Some(PathReport::Direct { .. })), "{peer:?}");
    let mode = fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    stop.cancel();
    running.await.unwrap().unwrap();
    assert!(!socket.exists());
    assert!(matches!(
        ask_status(&socket).await,
        Err(LocalError::Connect { .. })
    ));
}
