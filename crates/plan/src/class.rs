//! The ProxyClass that an object names, and what follows for its devices.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tailwharf_kube_types::contract::{DEFAULT_POOL, annotation};
use tailwharf_kube_types::{ProxyClass, names};
use thiserror::Error;

/// A ProxyClass by name, and the class itself if there is one.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedClass {
    /// The name.
    pub name: String,
    /// The class; `None` if there is none of this name.
    pub class: Option<Arc<ProxyClass>>,
}

/// Where the devices of an object run, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    /// The pool whose pods host them.
    pub(crate) pool: String,
}

/// Why a class cannot be used now.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ClassProblem {
    /// There is none of this name.
    #[error("there is no ProxyClass {name:?}: create it, or name another")]
    Missing {
        /// The name.
        name: String,
    },
    /// It is not valid, or was not looked at yet.
    #[error("ProxyClass {name:?} is not ready: see its condition ProxyClassReady")]
    NotReady {
        /// The name.
        name: String,
    },
}

/// The name of a class, short enough for a message.
fn shown(name: &str) -> String {
    name.chars().take(80).collect()
}

/// Where devices run whose object names this class, or none.
pub(crate) fn place(named: Option<&NamedClass>) -> Result<Placement, ClassProblem> {
    let Some(NamedClass { name, class }) = named else {
        return Ok(Placement {
            pool: DEFAULT_POOL.to_owned(),
        });
    };
    match class {
        None => Err(ClassProblem::Missing { name: shown(name) }),
        Some(class) if !class.is_ready() => Err(ClassProblem::NotReady { name: shown(name) }),
        Some(_) => Ok(Placement {
            pool: names::pool_of_class(name),
        }),
    }
}

/// The class that a Service or Ingress names: by label, else by annotation, else that of the settings.
#[must_use]
pub fn of_object<'a>(object: &'a ObjectMeta, default: Option<&'a str>) -> Option<&'a str> {
    [&object.labels, &object.annotations]
        .into_iter()
        .flatten()
        .find_map(|map| map.get(annotation::PROXY_CLASS))
        .map(String::as_str)
        .or(default)
        .filter(|name| !name.is_empty())
}
