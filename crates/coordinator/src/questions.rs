//! What the coordinator asks nodes: whether they are there, and which services they offer.
//!
//! A question goes out by the node's map stream and names an address that is told to this node alone; the answer comes as a request of its own.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use rand::rngs::OsRng;
use tailwharf_wire::{
    json,
    key::MachinePublic,
    tailcfg::{C2nVipServicesResponse, NodeId, PingRequest},
};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};
use url::Url;

use crate::{
    machine::Control,
    model::{Node, ServiceName},
    ops::{Decision, OpError, replacement},
    secret,
    world::World,
};

/// How long a node may take to answer.
const ANSWER_TIME: Duration = Duration::from_secs(4);
/// Characters of the name of a question.
const ID_LEN: usize = 24;
/// How often a node is asked for its services, and how long to wait in between.
const TRIES: u32 = 5;
const RETRY: Duration = Duration::from_secs(2);
/// Services that one node may offer.
const OFFER_LIMIT: usize = 1024;
/// How often the health of nodes is looked at that others could stand in for.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// Nodes that are probed at one time.
const PROBES: usize = 64;

/// Questions that wait for their answers.
#[derive(Debug)]
pub(crate) struct Questions {
    base: String,
    waiting: Mutex<HashMap<String, (MachinePublic, oneshot::Sender<Bytes>)>>,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unanswered {
    #[error("the node is not connected")]
    NotConnected,
    #[error("the node did not answer in {} seconds", ANSWER_TIME.as_secs())]
    Silent,
    #[error("the answer is not what was asked for")]
    Unreadable,
}

impl Questions {
    /// Where answers come in; the name of the question follows.
    pub(crate) const PATH: &str = "/machine/answer/";

    pub(crate) fn new(server_url: &Url) -> Self {
        // Always by https: official clients take other schemes for a way around the Noise connection.
        let host = server_url.host_str().unwrap_or_default();
        let port = server_url
            .port()
            .map(|port| format!(":{port}"))
            .unwrap_or_default();
        Self {
            base: format!("https://{host}{port}{}", Self::PATH),
            waiting: Mutex::default(),
        }
    }

    /// Takes an answer of `machine`. `false`: nobody asked this machine.
    pub(crate) fn answered(&self, id: &str, machine: MachinePublic, answer: Bytes) -> bool {
        let mut waiting = self.lock();
        let expected = waiting.get(id).is_some_and(|(asked, _)| *asked == machine);
        let Some((_, reply)) = expected.then(|| waiting.remove(id)).flatten() else {
            return false;
        };
        reply.send(answer).is_ok()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, (MachinePublic, oneshot::Sender<Bytes>)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Control {
    /// Asks a node and waits for its answer.
    async fn ask(&self, id: NodeId, question: PingRequest) -> Result<Bytes, Unanswered> {
        let world = self.ops.world();
        let machine = world.node(id).ok_or(Unanswered::NotConnected)?.machine_key;
        let name = secret::random_text(ID_LEN, &mut OsRng);
        let (reply, answer) = oneshot::channel();
        self.questions.lock().insert(name.clone(), (machine, reply));
        let question = PingRequest {
            url: format!("{}{name}", self.questions.base),
            url_is_noise: true,
            ..question
        };
        let result = if self.sessions.ask(id, question) {
            match timeout(ANSWER_TIME, answer).await {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(_)) | Err(_) => Err(Unanswered::Silent),
            }
        } else {
            Err(Unanswered::NotConnected)
        };
        self.questions.lock().remove(&name);
        result
    }

    /// Asks a node over HTTP, as if it were a server. The body of the answer.
    async fn get(&self, id: NodeId, path: &str) -> Result<Bytes, Unanswered> {
        let question = PingRequest {
            types: "c2n".to_owned(),
            payload: format!("GET {path} HTTP/1.1\r\nHost: node\r\n\r\n").into_bytes(),
            ..PingRequest::default()
        };
        body_of(&self.ask(id, question).await?)
    }

    /// Learns which services a node offers, when it says that they have changed.
    pub(crate) fn ask_for_services(self: &Arc<Self>, id: NodeId) {
        if !self.ops.world().node(id).is_some_and(|node| has_news(node)) {
            return;
        }
        let control = self.clone();
        let stop = self.stop.clone();
        self.tasks
            .spawn(async move { stop.run_until_cancelled(control.learn_services(id)).await });
    }

    async fn learn_services(&self, id: NodeId) {
        for _ in 0..TRIES {
            let offer = match self.get(id, "/vip-services").await {
                Ok(body) => {
                    json::from_slice::<C2nVipServicesResponse>(&body).map_err(|_| Unanswered::Unreadable)
                }
                Err(unanswered) => Err(unanswered),
            };
            match offer {
                Ok(offer) => {
                    let decide = move |world: &World, context: &mut _| {
                        let Some(node) = world.node(id) else {
                            return Ok(Decision::unchanged(false));
                        };
                        let next = Arc::new(with_offer(node, &offer));
                        let is_settled = !has_news(&next);
                        let changes = if **node == *next {
                            Vec::new()
                        } else {
                            replacement(world, context, &next)
                        };
                        Ok::<_, OpError>(Decision::new(changes, is_settled))
                    };
                    match self.ops.submit(decide).await {
                        Ok(true) => return,
                        // It has changed again meanwhile.
                        Ok(false) => {}
                        Err(error) => {
                            tracing::warn!(node = id.0, %error, "the services of a node were not noted");
                        }
                    }
                }
                // It is asked when it comes back.
                Err(Unanswered::NotConnected) => return,
                Err(unanswered) => {
                    tracing::debug!(node = id.0, %unanswered, "a node does not tell its services");
                }
            }
            sleep(RETRY).await;
        }
    }

    /// Looks after nodes that others could stand in for, until the coordinator stops.
    pub(crate) async fn probe(self: Arc<Self>) {
        let rounds = async {
            loop {
                sleep(PROBE_INTERVAL).await;
                let world = self.ops.world();
                let nodes: Vec<NodeId> = world.nodes_with_rivals();
                let probes = nodes.into_iter().map(|id| self.probe_one(id));
                futures::StreamExt::collect::<()>(futures::StreamExt::buffer_unordered(
                    futures::stream::iter(probes),
                    PROBES,
                ))
                .await;
            }
        };
        self.stop.run_until_cancelled(rounds).await;
    }

    async fn probe_one(&self, id: NodeId) {
        if !self.ops.world().presence(id).online {
            return;
        }
        let silent = self.ask(id, PingRequest::default()).await.is_err();
        if silent != self.ops.world().presence(id).silent {
            tracing::info!(node = id.0, silent, "a router or service host changed its health");
            self.set_silent(id, silent).await;
        }
    }
}

/// Whether a node offers other services than those that are known.
fn has_news(node: &Node) -> bool {
    node.hostinfo.services_hash != node.services_hash
}

fn with_offer(node: &Node, offer: &C2nVipServicesResponse) -> Node {
    let active = offer.vip_services.iter().filter(|service| service.active);
    let services: BTreeSet<ServiceName> = active
        .filter_map(|service| service.name.parse().ok())
        .take(OFFER_LIMIT)
        .collect();
    Node {
        services,
        services_hash: offer.services_hash.clone(),
        ..node.clone()
    }
}

/// The body of an HTTP/1 answer that says 200. Official clients send it whole, up to the end.
fn body_of(answer: &Bytes) -> Result<Bytes, Unanswered> {
    let ok = answer.starts_with(b"HTTP/1.1 200") || answer.starts_with(b"HTTP/1.0 200");
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    match end.filter(|_| ok) {
        Some(end) => Ok(answer.slice(end + 4..)),
        None => Err(Unanswered::Unreadable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_of_an_answer() {
        let body = |answer: &'static [u8]| body_of(&Bytes::from_static(answer));
        assert_eq!(
            body(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n{}"),
            Ok(Bytes::from_static(b"{}"))
        );
        assert_eq!(
            body(b"HTTP/1.1 404 Not Found\r\n\r\n{}"),
            Err(Unanswered::Unreadable)
        );
        assert_eq!(body(b"HTTP/1.1 200 OK\r\n"), Err(Unanswered::Unreadable));
    }

    #[test]
    fn an_answer_counts_once_and_from_the_machine_asked() {
        let questions = Questions::new(&Url::parse("http://10.0.0.1:8080").unwrap());
        assert_eq!(questions.base, "https://10.0.0.1:8080/machine/answer/");
        let (reply, mut answer) = oneshot::channel();
        let (asked, other) = (crate::lab::machine(1), crate::lab::machine(2));
        questions.lock().insert("a".to_owned(), (asked, reply));
        assert!(!questions.answered("a", other, Bytes::new()));
        assert!(answer.try_recv().is_err());
        assert!(questions.answered("a", asked, Bytes::from_static(b"x")));
        assert_eq!(answer.try_recv().unwrap(), Bytes::from_static(b"x"));
        assert!(!questions.answered("a", asked, Bytes::new()), "only once");
    }
}
