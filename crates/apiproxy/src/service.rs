//! One request from its first byte to its answer: who asks, for what, whether that may go on, and the way there and back.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::{CONNECTION, HOST, ORIGIN};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use tailwharf_node::WhoIs;

use crate::audit::{Asked, Record};
use crate::body::{Answer, Cut, Outgoing, Relayed};
use crate::caller::{Caller, Denial};
use crate::gate::{self, Admission};
use crate::headers::{self, ActingAs, Credential, Identity};
use crate::refusal::{Refusal, status_body};
use crate::request_info::{self, RequestInfo};
use crate::server::Shared;
use crate::strict::Finding;
use crate::upgrade;
use crate::upstream::{Class, UpstreamError};

/// Time until the head of an answer, for requests that the API server itself ends after a minute.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(90);
/// Largest refusal of the API server that is read to add to it.
const MAX_STATUS: usize = 64 * 1024;

/// A connection of a client.
pub(crate) struct Connection {
    pub(crate) shared: Arc<Shared>,
    pub(crate) remote: SocketAddr,
    pub(crate) local: IpAddr,
    /// What strict reading found, on HTTP/1.
    pub(crate) finding: Option<Arc<Finding>>,
    pub(crate) requests: AtomicU64,
    pub(crate) known: Mutex<Option<Known>>,
}

/// Who was behind the connection at the last request.
pub(crate) struct Known {
    who: WhoIs,
    verdict: Result<Arc<Principal>, Denial>,
}

/// A caller, ready to be put into requests.
#[derive(Debug)]
pub(crate) struct Principal {
    pub(crate) caller: Arc<Caller>,
    identity: Identity,
}

/// A request that may go on.
pub(crate) struct Allowed {
    pub(crate) principal: Arc<Principal>,
    pub(crate) acting_as: Option<Identity>,
    pub(crate) info: RequestInfo,
    pub(crate) upgrade: bool,
    pub(crate) admission: Admission,
}

/// A request that is not answered by the API server, and its record.
pub(crate) struct Failed {
    refusal: Refusal,
    record: Box<Record>,
}

impl Failed {
    pub(crate) fn new(refusal: Refusal, record: Record) -> Self {
        Self {
            refusal,
            record: Box::new(record),
        }
    }
}

impl Connection {
    /// Answers a request.
    pub(crate) async fn handle(self: Arc<Self>, request: Request<Incoming>) -> Response<Answer> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        self.shared.metrics.requests.fetch_add(1, Ordering::Relaxed);
        let asked = Asked::new(
            request.method(),
            request.uri(),
            request.headers(),
            self.remote.ip(),
        );
        let id = new_id();
        let opaque = upgrade::is_opaque(request.headers());
        let mut record = Record::new(&self.shared.audit, asked, id.clone());
        let mut allowed = self.allow(&request, number, &mut record);
        if let Ok(Allowed { principal, info, .. }) = &allowed {
            let (tailnet, caller) = (&*self.shared.tailnet, &principal.caller);
            if let Err(refusal) = self.shared.confirmations.require(tailnet, caller, info).await {
                allowed = Err(refusal);
            }
        }
        let answered = match allowed {
            Ok(allowed) if allowed.upgrade => upgrade::run(&self, request, allowed, id.clone(), record).await,
            Ok(allowed) => self.pass(request, allowed, &id, record).await,
            Err(refusal) => Err(Failed::new(refusal, record)),
        };
        let mut response = answered.unwrap_or_else(|failed| self.refuse(&failed.refusal, *failed.record));
        response.headers_mut().insert(headers::AUDIT_ID, id);
        if opaque && self.finding.is_some() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            // What follows was not looked at as HTTP, and must not be read as HTTP.
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    fn refuse(&self, refusal: &Refusal, mut record: Record) -> Response<Answer> {
        self.shared.metrics.refused.fetch_add(1, Ordering::Relaxed);
        record.refused(refusal.code(), refusal.reason(), refusal.to_string());
        record.complete();
        let mut response = refusal.response().map(|body| Answer::Own(Some(body)));
        if self.finding.is_none() {
            response.headers_mut().remove(CONNECTION);
        }
        response
    }

    /// Decides whether a request may go on. Nothing has been sent to the API server before this.
    fn allow(
        &self,
        request: &Request<Incoming>,
        number: u64,
        record: &mut Record,
    ) -> Result<Allowed, Refusal> {
        if let Some(violation) = self.finding.as_ref().and_then(|finding| finding.of(number)) {
            return Err(violation.into());
        }
        let principal = self.principal()?;
        record.by(principal.caller.clone());
        let method = request.method();
        if ![
            Method::GET,
            Method::HEAD,
            Method::POST,
            Method::PUT,
            Method::PATCH,
            Method::DELETE,
            Method::OPTIONS,
        ]
        .contains(method)
        {
            return Err(Refusal::Method);
        }
        self.check_target(request)?;
        let query = request.uri().query().unwrap_or_default();
        let info = RequestInfo::parse(method, request.uri().path(), query)?;
        record.about(info.clone());
        check_browser(request.headers(), |host| self.shared.tailnet.is_called(host))?;
        let mut acting_as = None;
        if self.shared.settings.impersonates() {
            let whom = headers::acting_as(request.headers(), &principal.caller)?;
            if let Some(whom) = &whom {
                acting_as = Some(self.become_somebody_else(whom, &principal.caller)?);
            }
            record.acting(whom);
        }
        let upgrade = upgrade::wanted(request)?;
        if upgrade && !upgrade::possible(&info) {
            return Err(Refusal::Upgrade("nothing at this path takes one"));
        }
        let session = gate::session(&info, upgrade);
        let admission = gate::admit(session, &info, &principal.caller)?;
        Ok(Allowed {
            principal,
            acting_as,
            info,
            upgrade,
            admission,
        })
    }

    fn become_somebody_else(&self, whom: &ActingAs, caller: &Caller) -> Result<Identity, Refusal> {
        Ok(Identity::acting(whom, caller, self.shared.settings.extras)?)
    }

    /// Who is behind the connection now. It is looked up for every request, and worked out anew only when it has changed.
    fn principal(&self) -> Result<Arc<Principal>, Refusal> {
        let who = self
            .shared
            .tailnet
            .whois(self.remote, self.local)
            .ok_or(Denial::Unknown)?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*known {
            if known.who.node.stable_id != who.node.stable_id {
                return Err(Refusal::OtherDevice);
            }
            if known.who == who {
                return known.verdict.clone().map_err(Refusal::from);
            }
        }
        let settings = &self.shared.settings;
        let verdict = Caller::new(&who, &settings.system_groups).and_then(|caller| {
            let identity = Identity::of(&caller, settings.extras)?;
            Ok(Arc::new(Principal {
                caller: Arc::new(caller),
                identity,
            }))
        });
        *known = Some(Known {
            who,
            verdict: verdict.clone(),
        });
        Ok(verdict?)
    }

    /// The target must be a path at one of this proxy's names.
    fn check_target(&self, request: &Request<Incoming>) -> Result<(), Refusal> {
        if !request.uri().path().starts_with('/') {
            return Err(Refusal::Target);
        }
        let tailnet = &self.shared.tailnet;
        let authority = request.uri().authority().map(http::uri::Authority::as_str);
        let mut header = request.headers().get_all(HOST).iter();
        let named = match (header.next(), header.next()) {
            (Some(host), None) => Some(host.to_str().map_err(|_| Refusal::Target)?),
            (None, _) => None,
            (Some(_), Some(_)) => return Err(Refusal::Target),
        };
        if authority.is_none() && named.is_none() {
            return Err(Refusal::Target);
        }
        for host in [authority, named].into_iter().flatten() {
            if !tailnet.is_called(host) {
                return Err(Refusal::Host {
                    host: host.chars().take(256).collect(),
                    name: tailnet.name(),
                });
            }
        }
        Ok(())
    }

    /// The headers under which a request goes on.
    pub(crate) fn outbound(
        &self,
        client: &HeaderMap,
        allowed: &Allowed,
        id: &HeaderValue,
    ) -> Result<HeaderMap, Refusal> {
        let source = HeaderValue::from_str(&self.remote.ip().to_string()).map_err(|_| Refusal::Target)?;
        let token = self.shared.upstream.token();
        let credential = match &token {
            Some(token) => Credential::Impersonating {
                identity: allowed.acting_as.as_ref().unwrap_or(&allowed.principal.identity),
                request_extra: self.shared.settings.extras,
                token,
            },
            None => Credential::Clients,
        };
        Ok(headers::outbound(client, credential, &source, id))
    }

    /// Passes an ordinary request on, and its answer back.
    async fn pass(
        &self,
        request: Request<Incoming>,
        allowed: Allowed,
        id: &HeaderValue,
        mut record: Record,
    ) -> Result<Response<Answer>, Failed> {
        let class = class(&allowed.info, request.uri().query().unwrap_or_default());
        let caller = &allowed.principal.caller;
        let open = match class {
            Class::Short => None,
            Class::Long => {
                let limit = self.shared.settings.streams_per_user;
                match self.shared.open.open(self.remote, self.local, caller, limit) {
                    Ok(open) => Some(open),
                    Err(refusal) => return Err(Failed::new(refusal, record)),
                }
            }
        };
        let outgoing = match self.outgoing(request, &allowed, id) {
            Ok(outgoing) => outgoing,
            Err(refusal) => return Err(Failed::new(refusal, record)),
        };
        let limit = (!allowed.info.leads_elsewhere()).then_some(ANSWER_TIMEOUT);
        let (response, hold) = match self.shared.upstream.send(outgoing, class, limit).await {
            Ok(sent) => sent,
            Err(error) => return Err(Failed::new(unreachable(&error), record)),
        };
        let (mut parts, body) = response.into_parts();
        record.answered(parts.status);
        end_to_end(&mut parts.headers);
        if self.shared.settings.impersonates() {
            match parts.status {
                StatusCode::UNAUTHORIZED => {
                    self.shared.upstream.token_refused();
                    return Err(Failed::new(Refusal::OwnToken, record));
                }
                StatusCode::FORBIDDEN if !caller.grant.granted && caller.tags.is_empty() => {
                    return Ok(explain(parts, body, caller, record).await);
                }
                _ => {}
            }
        }
        if open.is_some() {
            record.started();
        }
        let relayed = Relayed {
            body,
            hold: Some(hold),
            record: Some(record),
            stream: open.map(Cut::new),
        };
        Ok(Response::from_parts(parts, Answer::Relayed(Box::new(relayed))))
    }

    fn outgoing(
        &self,
        request: Request<Incoming>,
        allowed: &Allowed,
        id: &HeaderValue,
    ) -> Result<Request<Outgoing>, Refusal> {
        let (mut parts, body) = request.into_parts();
        let mut headers = self.outbound(&parts.headers, allowed, id)?;
        if let Some(host) = parts.uri.authority() {
            let host = HeaderValue::from_str(host.as_str()).map_err(|_| Refusal::Target)?;
            headers.insert(HOST, host);
        }
        let path = parts.uri.path_and_query().ok_or(Refusal::Target)?;
        parts.uri = path.as_str().parse().map_err(|_| Refusal::Target)?;
        parts.version = Version::HTTP_11;
        parts.headers = headers;
        parts.extensions = http::Extensions::new();
        Ok(Request::from_parts(parts, Outgoing::Relayed(body)))
    }
}

/// The headers of an answer without those of one connection.
pub(crate) fn end_to_end(headers: &mut HeaderMap) {
    for name in [
        "connection",
        "keep-alive",
        "proxy-connection",
        "transfer-encoding",
        "upgrade",
        "audit-id",
    ] {
        headers.remove(name);
    }
}

/// What a failure on the way to the API server is to the client.
pub(crate) fn unreachable(error: &UpstreamError) -> Refusal {
    match error {
        UpstreamError::TimedOut(limit) => Refusal::TimedOut(limit.as_secs()),
        other => Refusal::Unreachable(other.to_string()),
    }
}

/// How long the answer will take.
fn class(info: &RequestInfo, query: &str) -> Class {
    let follows = info.subresource == "log" && request_info::is_set(query, "follow");
    if info.verb == "watch" || follows {
        Class::Long
    } else {
        Class::Short
    }
}

/// A refusal of the API server for a caller without a grant, with what the caller lacks.
async fn explain(
    mut parts: http::response::Parts,
    body: Incoming,
    caller: &Caller,
    mut record: Record,
) -> Response<Answer> {
    use http_body_util::{BodyExt, Limited};
    let read = Limited::new(body, MAX_STATUS).collect().await;
    let bytes = read.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let theirs = serde_json::from_slice::<serde_json::Value>(&bytes)
        .ok()
        .and_then(|status| Some(status.get("message")?.as_str()?.to_owned()));
    let message = match theirs {
        Some(theirs) => format!("{theirs}: {}", caller.missing_grant()),
        None => caller.missing_grant(),
    };
    record.refused(parts.status, "Forbidden", message.clone());
    let body = status_body(parts.status, "Forbidden", &message);
    for name in ["content-length", "content-encoding", "content-type"] {
        parts.headers.remove(name);
    }
    parts.headers.insert(
        http::header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    record.complete();
    Response::from_parts(parts, Answer::Own(Some(body)))
}

/// Whether a browser sends this for a page that is not ours. Whoever is on the tailnet is known without a password, so a page that a
/// person has open must not be able to speak for them.
fn check_browser(headers: &HeaderMap, is_ours: impl Fn(&str) -> bool) -> Result<(), Refusal> {
    for origin in headers.get_all(ORIGIN) {
        let text = origin.to_str().unwrap_or_default();
        let host = text
            .strip_prefix("https://")
            .or_else(|| text.strip_prefix("http://"));
        if !host.is_some_and(&is_ours) {
            return Err(Refusal::CrossSite(format!(
                "Origin: {}",
                text.chars().take(128).collect::<String>()
            )));
        }
    }
    match headers.get("sec-fetch-site").map(HeaderValue::as_bytes) {
        None | Some(b"same-origin" | b"none") => Ok(()),
        Some(_) => Err(Refusal::CrossSite("Sec-Fetch-Site".to_owned())),
    }
}

/// A random id in the form of a UUID.
fn new_id() -> HeaderValue {
    let mut bytes: [u8; 16] = rand::random();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let number = u128::from_be_bytes(bytes);
    let hex = format!("{number:032x}");
    let text = format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    );
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("unknown"))
}
