//! A tailnet of one device, for tests that need no more.

#![allow(dead_code, reason = "each test uses its part")]

pub(crate) mod certificate;
pub(crate) mod front;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use futures::stream::unfold;
use serde_json::{Value, json};
use tailwharf_apiproxy::{CAPABILITY, Listener, Stream, Tailnet};
use tailwharf_node::{CheckError, Peer, WhoIs};
use tailwharf_wire::tailcfg::{CheckRequest, CheckResponse, Node, StableId, UserProfile};
use tokio::net::{TcpListener, TcpStream};

/// The name of the proxy on the tailnet.
pub(crate) const NAME: &str = "proxy.tail1234.ts.net";

/// The connections of a listener.
pub(crate) fn accepted(listener: TcpListener) -> impl futures::Stream<Item = TcpStream> {
    unfold(listener, |listener| async move {
        let (stream, _) = listener.accept().await.ok()?;
        Some((stream, listener))
    })
}

/// The tailnet as the proxy sees it.
#[derive(Default)]
pub(crate) struct Fake {
    who: Mutex<Option<WhoIs>>,
    /// What the control server says of fresh sign-ins, and what it was asked.
    pub(crate) confirmed: Mutex<CheckResponse>,
    pub(crate) asked: Mutex<Vec<CheckRequest>>,
}

impl Fake {
    pub(crate) fn set(&self, who: Option<WhoIs>) {
        *self.who.lock().unwrap() = who;
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut WhoIs)) {
        change(self.who.lock().unwrap().as_mut().unwrap());
    }
}

impl Tailnet for Fake {
    fn whois(&self, _: SocketAddr, _: IpAddr) -> Option<WhoIs> {
        self.who.lock().unwrap().clone()
    }

    fn is_called(&self, host: &str) -> bool {
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        [NAME, "proxy", "127.0.0.1"].contains(&name)
    }

    fn name(&self) -> String {
        NAME.to_owned()
    }

    fn check(&self, request: CheckRequest) -> BoxFuture<'static, Result<CheckResponse, CheckError>> {
        self.asked.lock().unwrap().push(request);
        let answer = self.confirmed.lock().unwrap().clone();
        Box::pin(async move { Ok(answer) })
    }

    fn dial(&self, to: SocketAddr) -> BoxFuture<'static, std::io::Result<Box<dyn Stream>>> {
        Box::pin(async move { Ok(Box::new(TcpStream::connect(to).await?) as Box<dyn Stream>) })
    }
}

/// Connections on loopback, as if they came from the tailnet.
pub(crate) struct Loopback(pub(crate) TcpListener);

impl Listener for Loopback {
    type Stream = TcpStream;

    async fn accept(&mut self) -> Option<(TcpStream, SocketAddr, IpAddr)> {
        let (stream, remote) = self.0.accept().await.ok()?;
        Some((stream, remote, IpAddr::from([100, 64, 0, 1])))
    }
}

/// A device of a user, with values of capabilities.
pub(crate) fn device(login: &str, caps: &[(&str, Value)]) -> WhoIs {
    let node = Node {
        stable_id: StableId("n7".to_owned()),
        name: "laptop.tail1234.ts.net.".to_owned(),
        ..Node::default()
    };
    let caps = caps.iter().map(|(name, values)| {
        let values = values.as_array().unwrap().clone();
        ((*name).to_owned(), values)
    });
    WhoIs {
        node: Arc::new(Peer::from_node(&node)),
        user: Arc::new(UserProfile {
            login_name: login.to_owned(),
            ..UserProfile::default()
        }),
        cap_map: caps.collect(),
    }
}

/// The same device with tags.
pub(crate) fn tagged(mut who: WhoIs, tags: &[&str]) -> WhoIs {
    let mut node = (*who.node).clone();
    node.tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
    who.node = Arc::new(node);
    who
}

pub(crate) fn groups(groups: &[&str]) -> (&'static str, Value) {
    (CAPABILITY, json!([{"impersonate": {"groups": groups}}]))
}

/// Alice, who is in `team`.
pub(crate) fn alice() -> WhoIs {
    device("alice@example.com", &[groups(&["team"])])
}
