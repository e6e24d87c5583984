//! Requests for an upgrade: exec, attach, port-forward, and what is proxied. Bytes flow only after the API server has agreed, with exactly
//! what the client asked for; whatever the client sent ahead waits until then, and is thrown away if it does not.

use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, HOST, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;

use crate::audit::Record;
use crate::body::{Answer, Outgoing, Relayed};
use crate::gate::Admission;
use crate::recording::{self, Recording};
use crate::refusal::Refusal;
use crate::relay;
use crate::request_info::RequestInfo;
use crate::service::{Allowed, Connection, Failed, end_to_end, unreachable};

/// Time until the API server and the kubelet agree.
const AGREEMENT_TIMEOUT: Duration = Duration::from_secs(60);
const STREAM_PROTOCOL: &str = "x-stream-protocol-version";

/// The protocols that Kubernetes upgrades to.
const PROTOCOLS: [&[u8]; 2] = [b"websocket", b"spdy/3.1"];

/// Whether what comes behind a request may be something else than HTTP, whatever is answered.
pub(crate) fn is_opaque(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(UPGRADE).iter();
    values.any(|value| {
        PROTOCOLS
            .iter()
            .any(|protocol| value.as_bytes().eq_ignore_ascii_case(protocol))
    })
}

/// Whether a request asks for an upgrade of a kind that Kubernetes uses. Others are requests like any other, without that header.
///
/// # Errors
/// When it asks in a way that others may read differently.
pub(crate) fn wanted(request: &Request<Incoming>) -> Result<bool, Refusal> {
    let headers = request.headers();
    let mut values = headers.get_all(UPGRADE).iter();
    let Some(value) = values.next() else {
        return Ok(false);
    };
    if values.next().is_some() || value.as_bytes().contains(&b',') {
        return Err(Refusal::Upgrade("it names several protocols"));
    }
    if !is_opaque(headers) {
        return Ok(false);
    }
    let connection = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let named = connection
        .flat_map(|value| value.split(','))
        .any(|word| word.trim().eq_ignore_ascii_case("upgrade"));
    if !named || request.version() != Version::HTTP_11 {
        return Err(Refusal::Upgrade("it has no \"Connection: Upgrade\" of HTTP/1.1"));
    }
    if ![Method::GET, Method::POST].contains(request.method()) {
        return Err(Refusal::Upgrade("only GET and POST can be upgraded"));
    }
    Ok(true)
}

/// Whether something at this path may take an upgrade.
pub(crate) fn possible(info: &RequestInfo) -> bool {
    info.is_resource && (!info.subresource.is_empty() || matches!(info.verb.as_str(), "watch" | "proxy"))
}

/// Asks the API server for the upgrade, and carries the session if it agrees.
pub(crate) async fn run(
    connection: &Arc<Connection>,
    mut request: Request<Incoming>,
    allowed: Allowed,
    id: HeaderValue,
    mut record: Record,
) -> Result<Response<Answer>, Failed> {
    let shared = &connection.shared;
    let limit = shared.settings.streams_per_user;
    let caller = &allowed.principal.caller;
    let open = match shared
        .open
        .open(connection.remote, connection.local, caller, limit)
    {
        Ok(open) => open,
        Err(refusal) => return Err(Failed::new(refusal, record)),
    };
    let client = hyper::upgrade::on(&mut request);
    let asked = request.headers().clone();
    let outgoing = match outgoing(connection, &request, &allowed, &id) {
        Ok(outgoing) => outgoing,
        Err(refusal) => return Err(Failed::new(refusal, record)),
    };
    // Before the API server hears of it: over WebSocket the command starts with its agreement.
    let recording = match record_first(connection, &request, &allowed, &mut record).await {
        Ok(recording) => recording,
        Err(refusal) => return Err(Failed::new(refusal, record)),
    };
    let mut response = match shared.upstream.upgrade(outgoing, AGREEMENT_TIMEOUT).await {
        Ok(response) => response,
        Err(error) => return Err(Failed::new(unreachable(&error), record)),
    };
    record.answered(response.status());
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return not_agreed(connection, response, record);
    }
    if let Err(refusal) = agrees(&asked, response.headers()) {
        return Err(Failed::new(refusal, record));
    }
    let server = hyper::upgrade::on(&mut response);
    record.started();
    let buffers = shared.buffers.clone();
    let spoken = Spoken::agreed(response.headers());
    shared.tasks.spawn(async move {
        let cut = open.cut();
        let both = tokio::select! {
            both = async { tokio::try_join!(client, server) } => both,
            () = cut.cancelled() => return,
        };
        match both {
            Ok((client, server)) => match recording {
                None => relay::carry(client, server, &buffers, open, record).await,
                Some(recording) => relay::record(recording, client, server, spoken, open, record).await,
            },
            Err(error) => {
                record.note(&format!("the session broke off before it began: {error}"));
                record.complete();
            }
        }
    });
    let mut answer = Response::new(Answer::Own(None));
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *answer.headers_mut() = std::mem::take(response.headers_mut());
    answer.headers_mut().remove("audit-id");
    answer
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    Ok(answer)
}

/// Begins the recording of a session that has one.
async fn record_first(
    connection: &Connection,
    request: &Request<Incoming>,
    allowed: &Allowed,
    record: &mut Record,
) -> Result<Option<Recording>, Refusal> {
    let Admission::Recorded { kind, required } = allowed.admission else {
        return Ok(None);
    };
    let query = request.uri().query().unwrap_or_default();
    let (caller, tailnet) = (&allowed.principal.caller, &connection.shared.tailnet);
    match recording::begin(tailnet, caller, kind, &allowed.info, query, required).await {
        Ok(recording) => {
            record.note(&format!("the session is recorded at {}", recording.place()));
            Ok(Some(recording))
        }
        Err(error) if required => Err(Refusal::Recording {
            what: format!("'kubectl {}' session", kind.as_str()),
            why: format!("but {error}"),
        }),
        Err(error) => {
            record.note(&format!("the session is not recorded: {error}"));
            Ok(None)
        }
    }
}

/// How a session is spoken.
#[derive(Debug)]
pub(crate) struct Spoken {
    pub(crate) websocket: bool,
    /// The version of the protocol for remote commands.
    pub(crate) version: Option<String>,
}

impl Spoken {
    fn agreed(given: &HeaderMap) -> Self {
        let websocket = given
            .get(UPGRADE)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(PROTOCOLS[0]));
        let name = if websocket {
            SEC_WEBSOCKET_PROTOCOL.as_str()
        } else {
            STREAM_PROTOCOL
        };
        let version = given.get(name).and_then(|value| value.to_str().ok());
        Self {
            websocket,
            version: version.map(str::to_owned),
        }
    }
}

fn outgoing(
    connection: &Connection,
    request: &Request<Incoming>,
    allowed: &Allowed,
    id: &HeaderValue,
) -> Result<Request<Outgoing>, Refusal> {
    let mut headers = connection.outbound(request.headers(), allowed, id)?;
    let asked = request.headers();
    // What is compressed cannot be read.
    headers.remove(SEC_WEBSOCKET_EXTENSIONS);
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    for name in [UPGRADE, HOST] {
        if let Some(value) = asked.get(&name) {
            headers.insert(name, value.clone());
        }
    }
    let path = request.uri().path_and_query().ok_or(Refusal::Target)?;
    let mut outgoing = Request::new(Outgoing::Nothing);
    *outgoing.method_mut() = request.method().clone();
    *outgoing.uri_mut() = path.as_str().parse().map_err(|_| Refusal::Target)?;
    *outgoing.headers_mut() = headers;
    Ok(outgoing)
}

/// The API server has refused: its words go to the client, and both connections end.
fn not_agreed(
    connection: &Connection,
    response: Response<Incoming>,
    record: Record,
) -> Result<Response<Answer>, Failed> {
    let status = response.status();
    if status.is_redirection() {
        return Err(Failed::new(
            Refusal::Answer("it sends the upgrade somewhere else"),
            record,
        ));
    }
    if status.is_success() || status.is_informational() {
        return Err(Failed::new(
            Refusal::Answer("it does not upgrade and does not say why"),
            record,
        ));
    }
    if status == StatusCode::UNAUTHORIZED && connection.shared.settings.impersonates() {
        connection.shared.upstream.token_refused();
        return Err(Failed::new(Refusal::OwnToken, record));
    }
    let (mut parts, body) = response.into_parts();
    end_to_end(&mut parts.headers);
    parts
        .headers
        .insert(CONNECTION, HeaderValue::from_static("close"));
    let relayed = Relayed {
        body,
        hold: None,
        record: Some(record),
        stream: None,
    };
    Ok(Response::from_parts(parts, Answer::Relayed(Box::new(relayed))))
}

/// Whether the API server agrees to what was asked, and to nothing else.
fn agrees(asked: &HeaderMap, given: &HeaderMap) -> Result<(), Refusal> {
    let one = |headers: &HeaderMap, name: &str| {
        let mut values = headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => Some(value.as_bytes().to_ascii_lowercase()),
            _ => None,
        }
    };
    if one(given, UPGRADE.as_str()).is_none() || one(given, UPGRADE.as_str()) != one(asked, UPGRADE.as_str())
    {
        return Err(Refusal::Answer(
            "it upgrades to another protocol than was asked for",
        ));
    }
    if given.contains_key(SEC_WEBSOCKET_EXTENSIONS) {
        return Err(Refusal::Answer("it chooses an extension that was not offered"));
    }
    for name in [SEC_WEBSOCKET_PROTOCOL.as_str(), STREAM_PROTOCOL] {
        let chosen = given.get_all(name).iter();
        for chosen in chosen {
            let offered = asked
                .get_all(name)
                .iter()
                .flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
            if !offered
                .map(<[u8]>::trim_ascii)
                .any(|offer| offer == chosen.as_bytes())
            {
                return Err(Refusal::Answer("it chooses a subprotocol that was not offered"));
            }
        }
    }
    Ok(())
}
