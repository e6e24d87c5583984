//! The controllers. Each is a table of contents: fetch, validate, build, execute, status.

mod connector;
mod ingress;
mod nameserver;
mod operator_device;
mod pool;
mod proxy_class;
mod service;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tailwharf_kube_types::contract::annotation;
use tailwharf_plan::identity::{Observed, SecretView};
use tailwharf_plan::{Applied, Failure, Plan, Reason, Retry, Step};

use crate::execute::{Executed, Executor, NotLeading};
use crate::queue::Next;
use crate::world::{Key, World};

/// After a plan that wrote something comes another look, should a change that came with the answer have been missed.
const SECOND_LOOK: Duration = Duration::from_millis(500);

/// How long a device that is being made is nothing to tell of.
const INTERIM: Duration = Duration::from_secs(2);

/// What controllers work with.
pub(crate) struct Context {
    pub(crate) world: Arc<World>,
    pub(crate) executor: Executor,
}

/// Brings one key in order and says when it comes again.
pub(crate) async fn reconcile(context: &Context, key: &Key, now: Timestamp) -> Result<Done, NotLeading> {
    if let Some(reason) = context.world.left_to_another(key) {
        tracing::debug!(key = ?key, reason, "left to the Go operator");
        return Ok(Done::left_to_another());
    }
    if let Key::Service(object) | Key::Ingress(object) = key
        && !context.world.settings.serves(&object.namespace)
    {
        return Ok(Done::not_served());
    }
    match key {
        Key::Service(service) => service::reconcile(context, service, now).await,
        Key::Ingress(ingress) => ingress::reconcile(context, ingress, now).await,
        Key::OperatorDevice => operator_device::reconcile(context, now).await,
        Key::Connector(name) => connector::reconcile(context, name, now).await,
        Key::ProxyClass(name) => proxy_class::reconcile(context, name, now).await,
        Key::Pool(name) => pool::reconcile(context, name, now).await,
        Key::Nameserver => nameserver::reconcile(context, now).await,
    }
}

/// How a reconciliation ended.
pub(crate) struct Done {
    pub(crate) next: Next,
    /// A fixed word for metrics.
    pub(crate) result: &'static str,
}

impl Done {
    /// Nothing was looked at, since the API server does not know the kind.
    const fn left_alone() -> Self {
        Self {
            next: Next::OnChange,
            result: "kind_absent",
        }
    }

    /// Nothing was looked at, since it is in a namespace that is not watched.
    const fn not_served() -> Self {
        Self {
            next: Next::OnChange,
            result: "not_served",
        }
    }

    /// Nothing was looked at, since the Go operator looks after it.
    const fn left_to_another() -> Self {
        Self {
            next: Next::OnChange,
            result: "left_to_another",
        }
    }

    /// The same, but the key comes again in this time at the latest.
    fn within(self, wait: Duration) -> Self {
        let next = match self.next {
            Next::OnChange => Next::After(wait),
            Next::After(planned) => Next::After(planned.min(wait)),
            soon @ (Next::Now | Next::Backoff(_)) => soon,
        };
        Self { next, ..self }
    }
}

/// When a key comes again after its plan.
fn done(plan: &Plan, executed: &Executed, now: Timestamp) -> Done {
    if let Some(failure) = &executed.applied.failure {
        let next = match failure.kind.retry() {
            Retry::AtOnce => Next::Now,
            Retry::BackOff => Next::Backoff(executed.least_wait),
        };
        return Done {
            next,
            result: failure.kind.category(),
        };
    }
    let planned = plan
        .wake_at
        .map(|at| Duration::try_from(at.duration_since(now)).unwrap_or_default());
    let second = (!plan.is_empty()).then_some(SECOND_LOOK);
    let next = match (planned, second) {
        (None, None) => Next::OnChange,
        (Some(wait), None) | (None, Some(wait)) => Next::After(wait),
        (Some(one), Some(other)) => Next::After(one.min(other)),
    };
    let result = plan.report.iter().next().map_or("ok", Reason::category);
    Done { next, result }
}

/// Whether the status would tell of a state that ends within milliseconds: the Secret was made this moment, and the
/// pool's Role is about to name it. If it is not soon, the next look tells.
fn is_interim(observed: &Observed, plan: &Plan, applied: &Applied, now: Timestamp) -> bool {
    let waits = plan
        .report
        .iter()
        .any(|reason| matches!(reason, Reason::PoolGrantPending { .. }));
    let minted = plan
        .steps
        .iter()
        .any(|step| matches!(step, Step::MintAuthKey { .. }));
    let minted_at = |secret: &SecretView| {
        secret
            .annotations
            .get(annotation::KEY_MINTED_AT)?
            .parse::<Timestamp>()
            .ok()
    };
    let minted_lately = observed.secrets.iter().filter_map(minted_at).any(|at| {
        let age = now.duration_since(at);
        !age.is_negative() && age.unsigned_abs() < INTERIM
    });
    waits && (minted || minted_lately) && applied.failure.is_none()
}

impl Executed {
    /// The same, failed by `failure` unless it failed before.
    fn or(self, failure: Option<Failure>) -> Self {
        let Self { applied, least_wait } = self;
        Self {
            applied: Applied {
                failure: applied.failure.or(failure),
                ..applied
            },
            least_wait,
        }
    }
}
