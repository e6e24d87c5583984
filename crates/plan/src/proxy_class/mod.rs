//! ProxyClasses: whether they can be used. What they mean for pods is in [`crate::pool`], and for devices in [`crate::class`].

mod status;
mod validate;

use std::sync::Arc;

use tailwharf_kube_types::ProxyClass;

use crate::plan::{Kind, ObjectRef, Plan};
use crate::subject::Subject;

pub use status::status;
pub use validate::{Problem, validate};

/// A ProxyClass and what it has to agree with.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Name of the class.
    pub name: String,
    /// The class; `None` if it is gone.
    pub class: Option<Arc<ProxyClass>>,
    /// All others.
    pub others: Vec<Arc<ProxyClass>>,
}

impl Snapshot {
    fn reference(&self) -> ObjectRef {
        ObjectRef::cluster(Kind::ProxyClass, &self.name)
    }
}

/// Plans that a class which is being deleted goes. It holds nothing that would have to be removed first; other versions of the operator set the
/// finalizer.
#[must_use]
pub fn build(snapshot: &Snapshot) -> Plan {
    let mut plan = Plan::default();
    if let Some(class) = &snapshot.class
        && class.metadata.deletion_timestamp.is_some()
    {
        let change = Subject(Some(&class.metadata)).remove_finalizer();
        plan.set_finalizers(&snapshot.reference(), change.as_ref());
    }
    plan
}
