//! Answers of the API server and the control server as the failures that plans know.

use tailwharf_control_api as control;
use tailwharf_kube_types::Tag;
use tailwharf_plan::{Failure, FailureKind};

/// 409: somebody else wrote first.
pub(crate) fn is_conflict(error: &kube::Error) -> bool {
    has_code(error, 409)
}

/// 404: there is no such object.
pub(crate) fn is_not_found(error: &kube::Error) -> bool {
    has_code(error, 404)
}

/// 403: whoever asks may not.
pub(crate) fn is_forbidden(error: &kube::Error) -> bool {
    has_code(error, 403)
}

fn has_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

/// What a failed write to the cluster means. The message does not change from one attempt to the next.
pub(crate) fn cluster_failure(action: &str, error: &kube::Error) -> Failure {
    match error {
        kube::Error::Api(status) => {
            let kind = match status.code {
                409 | 410 => FailureKind::Conflict,
                429 | 500.. => FailureKind::ClusterUnreachable,
                _ => FailureKind::ClusterRefused,
            };
            Failure {
                kind,
                message: format!("{action}: {}", status.message),
            }
        }
        _ => no_answer(action),
    }
}

/// The API server did not answer, or not in time.
pub(crate) fn no_answer(action: &str) -> Failure {
    let message = format!("{action}: the Kubernetes API does not answer");
    Failure {
        kind: FailureKind::ClusterUnreachable,
        message,
    }
}

/// What a failed call of the control server means.
pub(crate) fn control_failure(error: &control::Error, tags: &[Tag]) -> Failure {
    let kind = match error {
        control::Error::KeyRefused { .. } => FailureKind::AuthKeyRefused { tags: tags.to_vec() },
        error if error.is_transient() => FailureKind::ControlServerUnreachable,
        _ => FailureKind::ControlServerRefused,
    };
    // The tags are in the kind; the server's words are what is left to tell.
    let message = match error {
        control::Error::KeyRefused { message, .. } => message.clone(),
        error => error.to_string(),
    };
    Failure { kind, message }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn answer(code: u16) -> FailureKind {
        let status = Status {
            code,
            message: "no".to_owned(),
            ..Status::default()
        };
        cluster_failure("applying Secret a/b", &kube::Error::Api(status.boxed())).kind
    }

    #[test]
    fn statuses_become_kinds() {
        assert_eq!(answer(409), FailureKind::Conflict);
        assert_eq!(answer(403), FailureKind::ClusterRefused);
        assert_eq!(answer(422), FailureKind::ClusterRefused);
        assert_eq!(answer(429), FailureKind::ClusterUnreachable);
        assert_eq!(answer(503), FailureKind::ClusterUnreachable);
    }

    #[test]
    fn a_refused_key_names_its_tags() {
        let tags = ["tag:prod".parse().unwrap()];
        let error = control::Error::KeyRefused {
            tags: vec!["tag:prod".to_owned()],
            message: "not yours".to_owned(),
        };
        let failure = control_failure(&error, &tags);
        assert_eq!(failure.kind, FailureKind::AuthKeyRefused { tags: tags.to_vec() });
        assert_eq!(failure.message, "not yours");
        let error = control::Error::RateLimited { retry_after: None };
        assert_eq!(
            control_failure(&error, &[]).kind,
            FailureKind::ControlServerUnreachable
        );
    }
}
