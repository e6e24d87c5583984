//! The one place that decides what becomes of a session before it begins: whether it is one, whether it is recorded, and whether it may
//! be. It looks at what the API server will do, never at what the client says of itself. Pure.

use crate::caller::Caller;
use crate::refusal::Refusal;
use crate::request_info::RequestInfo;

/// What a request opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Session {
    /// An answer like any other.
    None,
    /// A command in a container, or one that runs there already: what it prints can be recorded.
    Terminal(TerminalKind),
    /// Bytes to a program, in a form that nobody here reads: they cannot be recorded. Forwarded ports are such, too.
    Unreadable,
}

/// How a terminal came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TerminalKind {
    /// A new command.
    Exec,
    /// The container's own.
    Attach,
}

impl TerminalKind {
    /// The word of the contract.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Attach => "attach",
        }
    }
}

/// What a request opens. `upgrade`: the client asks for bytes both ways.
#[must_use]
pub fn session(info: &RequestInfo, upgrade: bool) -> Session {
    if !info.is_resource {
        return if upgrade {
            Session::Unreadable
        } else {
            Session::None
        };
    }
    let core = info.api_group.is_empty();
    match (info.resource.as_str(), info.subresource.as_str()) {
        // Without an upgrade the API server refuses these itself.
        ("pods", "exec") if core => upgraded(upgrade, Session::Terminal(TerminalKind::Exec)),
        ("pods", "attach") if core => upgraded(upgrade, Session::Terminal(TerminalKind::Attach)),
        // The kubelet runs commands for plain requests, too; and nobody knows what a proxied program does.
        _ if info.leads_elsewhere() => Session::Unreadable,
        _ => upgraded(upgrade && info.verb != "watch", Session::Unreadable),
    }
}

fn upgraded(upgrade: bool, session: Session) -> Session {
    if upgrade { session } else { Session::None }
}

/// What has to happen before a session begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Nothing.
    Free,
    /// It is recorded. `required`: it does not begin, and does not go on, without.
    Recorded {
        /// How it came to be.
        kind: TerminalKind,
        /// Whether it needs the recording.
        required: bool,
    },
}

/// Decides on a session.
///
/// # Errors
/// When it must be recorded and cannot be.
pub(crate) fn admit(session: Session, info: &RequestInfo, caller: &Caller) -> Result<Admission, Refusal> {
    let required = caller.grant.enforce_recorder;
    let refused = |what: String, why: &str| {
        Err(Refusal::Recording {
            what,
            why: why.to_owned(),
        })
    };
    match session {
        Session::None => Ok(Admission::Free),
        Session::Unreadable if required => refused(
            format!("access to {}", info.full_resource()),
            "and what goes through it cannot be; use a command that can, such as kubectl exec",
        ),
        Session::Unreadable => Ok(Admission::Free),
        Session::Terminal(kind) if !caller.grant.recorders.is_empty() => {
            Ok(Admission::Recorded { kind, required })
        }
        Session::Terminal(kind) if required => refused(
            format!("'kubectl {}' session", kind.as_str()),
            "but no recorders are available; the tailnet policy names a recorder that the tailnet does not have",
        ),
        Session::Terminal(_) => Ok(Admission::Free),
    }
}
