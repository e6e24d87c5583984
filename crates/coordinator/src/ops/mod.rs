//! What can be done to the coordinator's data.
//!
//! Every operation is a pure decision, `(&World, &mut Context) -> Decision`, run by the one writer (`writer`), which stores the changes before it
//! answers. [`Operations`] is the handle by which the API, the administrator's commands and the control protocol ask for them.

mod backup;
mod checks;
mod clients;
mod credentials;
mod dns_txt;
mod funnel;
mod log;
mod nodes;
mod policy;
mod registrations;
mod services;
mod settings;
mod users;

use std::{fmt, sync::Arc};

use jiff::Timestamp;
use rand::rngs::StdRng;
use tokio::sync::{mpsc, oneshot, watch};
use url::Url;

pub(crate) use self::{
    checks::{CheckAnswer, CheckQuestion, confirmations_of},
    log::{Subject, note},
    nodes::{removal, replacement},
};
pub use self::{
    clients::{CLIENT_TOKEN_LIFE, NewFederation, NewOauthClient},
    credentials::{AUTH_KEY_LIFE, Access, AccessError, Minted, NewApiToken, NewAuthKey},
    funnel::{FunnelRefusal, FunnelTarget, GATEWAY_NAME},
    log::LogQuery,
    nodes::{Attribute, NodeRef},
    policy::{PolicyTag, PreviewOf},
    services::{NewService, ServiceHost},
    users::NewUser,
};
use crate::{
    ipam::Prefixes,
    model::{Action, Actor, Author, Tag},
    names::Suffix,
    store::StoreError,
    world::{Change, World},
    writer::{Job, Message, Settled},
};

/// Why an operation was refused. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum OpError {
    /// There is no such thing.
    #[error("there is no {kind} `{id}`")]
    NotFound {
        /// What was looked for: `user`, `node`, `auth key`…
        kind: &'static str,
        /// By which name.
        id: String,
    },
    /// Something stands in the way: a duplicate, or something that still depends on it.
    #[error("{0}")]
    Conflict(String),
    /// An argument has no meaning here.
    #[error("{0}")]
    Invalid(String),
    /// The policy gives the tag to others only.
    #[error("tag `{tag}` may not be given by {actor}: add {actor} to `tagOwners` of `{tag}` in the policy")]
    TagNotPermitted {
        /// The tag.
        tag: Tag,
        /// Who asked for it.
        actor: String,
    },
    /// The text is not a policy, or fails its own tests.
    #[error("the policy is not valid, the former one stays: {}", list(.0))]
    PolicyInvalid(Vec<tailwharf_policy::PolicyError>),
    /// The policy changed since it was read.
    #[error("the policy has changed since you read it: read it again and repeat the change")]
    PolicyChanged,
    /// The actor may do this for others only, or not at all.
    #[error("{0}")]
    Forbidden(String),
    /// Too many of a kind wait already.
    #[error("{0}")]
    Busy(&'static str),
    /// All addresses of a prefix are taken.
    #[error("no free address is left in {0}: remove unused nodes or configure a larger prefix")]
    AddressesExhausted(ipnet::IpNet),
    /// The change could not be stored.
    #[error("the change could not be stored and was not made: {0}")]
    Store(Arc<StoreError>),
    /// The coordinator is stopping.
    #[error("the coordinator is stopping")]
    Stopped,
}

fn list(errors: &[tailwharf_policy::PolicyError]) -> String {
    errors
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

impl OpError {
    pub(crate) fn not_found(kind: &'static str, id: impl fmt::Display) -> Self {
        Self::NotFound {
            kind,
            id: id.to_string(),
        }
    }
}

/// What an operation may use beside the world.
#[derive(Debug)]
pub struct Context {
    /// The time of the decision.
    pub now: Timestamp,
    /// Randomness for credentials and ids.
    pub rng: StdRng,
    /// From which prefixes nodes get their addresses.
    pub prefixes: Prefixes,
    /// The domain under which nodes get their names.
    pub suffix: Suffix,
    /// The address by which nodes and people reach the coordinator.
    pub server_url: Url,
}

/// Changes to make, and the answer to give once they are stored.
#[derive(Debug)]
pub struct Decision<T> {
    pub(crate) changes: Vec<Change>,
    pub(crate) answer: T,
}

impl<T> Decision<T> {
    pub(crate) fn new(changes: Vec<Change>, answer: T) -> Self {
        Self { changes, answer }
    }

    /// Adds an entry to the log of changes.
    pub(crate) fn noted(
        mut self,
        world: &World,
        context: &Context,
        author: impl Into<Author>,
        action: Action,
        subject: Subject,
    ) -> Self {
        note(world, context, &mut self.changes, author.into(), action, subject);
        self
    }

    /// The same changes with another answer.
    pub(crate) fn answering<U>(self, answer: U) -> Decision<U> {
        Decision {
            changes: self.changes,
            answer,
        }
    }

    /// An answer that changes nothing.
    pub(crate) fn unchanged(answer: T) -> Self {
        Self {
            changes: Vec::new(),
            answer,
        }
    }
}

/// The handle to the writer. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Operations {
    jobs: mpsc::Sender<Message>,
    world: watch::Receiver<Arc<World>>,
}

impl Operations {
    pub(crate) fn new(jobs: mpsc::Sender<Message>, world: watch::Receiver<Arc<World>>) -> Self {
        Self { jobs, world }
    }

    /// The present state. Immutable: hold it as long as one answer needs it.
    pub fn world(&self) -> Arc<World> {
        self.world.borrow().clone()
    }

    /// A receiver that sees each new state.
    pub fn watch(&self) -> watch::Receiver<Arc<World>> {
        self.world.clone()
    }

    /// Ends the writer once it has run what waits.
    pub(crate) async fn close(&self) {
        // An error means that it has ended already.
        let _ = self.jobs.send(Message::Stop).await;
    }

    /// Runs a decision on the writer and waits until its changes are stored.
    pub(crate) async fn submit<T: Send + 'static>(
        &self,
        decide: impl FnOnce(&World, &mut Context) -> Result<Decision<T>, OpError> + Send + 'static,
    ) -> Result<T, OpError> {
        let (reply, answered) = oneshot::channel();
        let job: Job = Box::new(move |world, context| match decide(world, context) {
            Ok(Decision { changes, answer }) => Settled {
                changes,
                reply: Box::new(move |stored| {
                    // An asker that has gone away has no use for the answer; the change stands.
                    let _ = reply.send(stored.map(|()| answer).map_err(OpError::Store));
                }),
            },
            Err(error) => {
                let _ = reply.send(Err(error));
                Settled::nothing()
            }
        });
        self.jobs
            .send(Message::Job(job))
            .await
            .map_err(|_| OpError::Stopped)?;
        answered.await.map_err(|_| OpError::Stopped)?
    }
}

/// Refuses the first tag that `actor` may not give.
pub(crate) fn check_tags<'a>(
    world: &World,
    actor: &Actor,
    tags: impl IntoIterator<Item = &'a Tag>,
) -> Result<(), OpError> {
    for tag in tags {
        if !world.may_assign_tag(actor, tag) {
            return Err(OpError::TagNotPermitted {
                tag: tag.clone(),
                actor: world.describe(actor),
            });
        }
    }
    Ok(())
}
