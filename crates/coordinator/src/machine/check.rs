//! Fresh sign-ins, as nodes ask for them: for their own programs, and for the SSH server of the official client.

use std::time::Duration;

use axum::body::Body;
use http::{Response, StatusCode};
use jiff::SignedDuration;
use tailwharf_wire::{
    key::MachinePublic,
    tailcfg::{CheckRequest, CheckResponse, NodeId, SshAction},
};
use tokio::time::sleep;

use super::{Control, FOLLOW_UP, Fault, answer, json_answer};
use crate::{
    model::{CONFIRMATION_MEMORY, CheckTarget, Node, ServiceName},
    ops::{CheckAnswer, CheckQuestion, OpError},
    web,
};

/// Where the official client asks for the verdict of an SSH rule with `check`; what follows names both nodes.
pub(super) const SSH_PATH: &str = "/machine/ssh/action/";
/// How long the SSH server of a node waits for a person: as long as a page is open.
const SSH_WAIT: Duration = Duration::from_secs(600);

/// How old a confirmation may always be for those who waited for it.
const MOMENT: SignedDuration = SignedDuration::from_secs(60);

/// The address that is told with SSH rules. The host has no meaning: the client asks over its control connection.
pub(crate) fn ssh_check_url() -> String {
    format!("https://unused{SSH_PATH}$SRC_NODE_ID/to/$DST_NODE_ID?period=$CHECK_PERIOD&as=$LOCAL_USER")
}

impl Control {
    pub(super) async fn check(
        &self,
        machine: MachinePublic,
        request: CheckRequest,
    ) -> Result<Response<Body>, Fault> {
        let asker = self.node(machine, &request.node_key)?;
        let world = self.ops.world();
        let source = world
            .find_node(&request.source.0)
            .filter(|node| node.stable_id == request.source)
            .ok_or_else(|| OpError::not_found("device", &request.source))?;
        let seconds = i64::try_from(request.max_age).unwrap_or(i64::MAX);
        let question = CheckQuestion {
            source: self.visible(asker.id, source.id)?,
            target: self.target(&asker, &request.service)?,
            purpose: request.purpose,
            max_age: SignedDuration::from_secs(seconds).min(CONFIRMATION_MEMORY),
        };
        let wait = request.wait.then_some(FOLLOW_UP);
        let response = match self.ask_person(question, wait).await? {
            CheckAnswer::Confirmed(at) => CheckResponse {
                confirmed: Some(at),
                ..CheckResponse::default()
            },
            CheckAnswer::Asked(check) => CheckResponse {
                url: web::check_url(&self.server_url, &check.id).to_string(),
                code: check.code.clone(),
                expires: Some(check.expires),
                ..CheckResponse::default()
            },
            refused => CheckResponse {
                refused: refusal(&refused).to_owned(),
                ..CheckResponse::default()
            },
        };
        json_answer(&response)
    }

    /// For whom a node may ask: for itself, or for a service of which it is an approved host.
    fn target(&self, asker: &Node, service: &str) -> Result<CheckTarget, Fault> {
        if service.is_empty() {
            return Ok(CheckTarget::Node(asker.id));
        }
        let name: ServiceName = service
            .parse()
            .map_err(|_| OpError::Invalid(format!("`{service}` is not the name of a service")))?;
        let world = self.ops.world();
        let found = world
            .service(&name)
            .ok_or_else(|| OpError::not_found("service", &name))?;
        if asker.services.contains(&name) && world.is_service_host_approved(found, asker) {
            return Ok(CheckTarget::Service(name));
        }
        Err(Fault::NotHost)
    }

    /// Answers the SSH server of a node: `<source>/to/<destination>`, both by number. What it may do is told as an action of the protocol.
    pub(super) async fn ssh_action(
        &self,
        machine: MachinePublic,
        path: &str,
        query: Option<&str>,
    ) -> Result<Response<Body>, Fault> {
        let (source, destination) = path
            .strip_prefix(SSH_PATH)
            .and_then(|rest| rest.split_once("/to/"))
            .and_then(|(source, destination)| Some((source.parse().ok()?, destination.parse().ok()?)))
            .map(|(source, destination)| (NodeId(source), NodeId(destination)))
            .ok_or(Fault::NoSuchPath)?;
        let world = self.ops.world();
        let own = world.node(destination).ok_or(Fault::UnknownNode)?;
        if own.machine_key != machine {
            return Err(Fault::OtherMachine);
        }
        let query = Query::read(query.unwrap_or_default());
        let period = SignedDuration::from_secs(query.period);
        let question = CheckQuestion {
            source: self.visible(destination, source)?,
            target: CheckTarget::Ssh(destination),
            purpose: format!("ssh {}@{}", query.login, own.name),
            max_age: period,
        };
        let told = match self.ask_person(question, query.asked.then_some(SSH_WAIT)).await? {
            CheckAnswer::Confirmed(_) => SshAction {
                accept: true,
                ..permissions(period)
            },
            CheckAnswer::Asked(_) if query.asked => reject("Nobody signed in in time. Connect again.\n"),
            CheckAnswer::Asked(check) => {
                let page = web::check_url(&self.server_url, &check.id);
                let code = &check.code;
                SshAction {
                    message: format!("# Sign in to go on: {page}\n# The page shows {code}.\n"),
                    hold_and_delegate: query.again(source, destination),
                    ..permissions(period)
                }
            }
            refused => reject(&format!("{}.\n", refusal(&refused))),
        };
        let body = serde_json::to_vec(&told).map_err(|_| Fault::Encode)?;
        Ok(answer(StatusCode::OK, "application/json", body))
    }

    /// A device that a node sees. About others it may not ask.
    fn visible(&self, asker: NodeId, source: NodeId) -> Result<NodeId, OpError> {
        let world = self.ops.world();
        let seen = world.is_member(asker) && world.graph().can_see(asker, source);
        seen.then_some(source)
            .ok_or_else(|| OpError::not_found("device", source))
    }

    /// Asks, and waits for the person if `wait` says so. Whoever waits takes what was confirmed a moment ago, however short the period.
    async fn ask_person(
        &self,
        mut question: CheckQuestion,
        wait: Option<Duration>,
    ) -> Result<CheckAnswer, OpError> {
        let Some(wait) = wait else {
            return self.ops.check(question).await;
        };
        question.max_age = question.max_age.max(MOMENT);
        let known = self.ops.check(question.clone()).await?;
        let CheckAnswer::Asked(check) = &known else {
            return Ok(known);
        };
        tokio::select! {
            () = check.decided.cancelled() => {}
            () = sleep(wait) => return Ok(known),
            () = self.stop.cancelled() => return Ok(known),
        }
        self.ops.check(question).await
    }
}

/// What the SSH server of a node says about a connection, in the words that we told it.
#[derive(Default)]
struct Query {
    /// How old a confirmation may be, in seconds.
    period: i64,
    /// As whom somebody wants to log in.
    login: String,
    /// Whether the person was told the page already.
    asked: bool,
}

impl Query {
    fn read(text: &str) -> Self {
        let mut query = Self::default();
        for (name, value) in url::form_urlencoded::parse(text.as_bytes()) {
            match name.as_ref() {
                "period" => query.period = value.parse().unwrap_or_default(),
                "as" => query.login = value.into_owned(),
                "asked" => query.asked = true,
                _ => {}
            }
        }
        query
    }

    /// Where to ask again, now that the person knows.
    fn again(&self, source: NodeId, destination: NodeId) -> String {
        let query = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("period", &self.period.to_string())
            .append_pair("as", &self.login)
            .append_pair("asked", "1")
            .finish();
        format!("https://unused{SSH_PATH}{source}/to/{destination}?{query}")
    }
}

fn refusal(answer: &CheckAnswer) -> &'static str {
    match answer {
        CheckAnswer::Denied => "The owner of the device said no. Wait a minute before you try again",
        _ => "This asks for a person to sign in, and the device belongs to none",
    }
}

/// What whoever logs in may do. A session lasts no longer than a sign-in may be old.
fn permissions(period: SignedDuration) -> SshAction {
    SshAction {
        allow_agent_forwarding: true,
        allow_local_port_forwarding: true,
        allow_remote_port_forwarding: true,
        session_duration: i64::try_from(period.as_nanos()).unwrap_or(i64::MAX),
        ..SshAction::default()
    }
}

fn reject(message: &str) -> SshAction {
    SshAction {
        reject: true,
        message: message.to_owned(),
        ..SshAction::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_client_repeats_is_read_again() {
        let first = Query::read("period=43200&as=some%26one");
        assert_eq!(
            (first.period, first.login.as_str(), first.asked),
            (43_200, "some&one", false)
        );
        let again = first.again(NodeId(1), NodeId(2));
        let (path, query) = again.split_once('?').unwrap();
        assert_eq!(path, "https://unused/machine/ssh/action/1/to/2");
        let second = Query::read(query);
        assert_eq!(
            (second.period, second.login.as_str(), second.asked),
            (43_200, "some&one", true)
        );
    }
}
