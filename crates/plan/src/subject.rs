//! The object of a user for which something is made: what all kinds have in common.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tailwharf_kube_types::Tag;
use tailwharf_kube_types::contract::{FINALIZER, annotation};
use tailwharf_kube_types::values::TagError;

use crate::identity::{self, Observed};
use crate::plan::{ObjectRef, Plan};
use crate::settings::Settings;

/// Finalizers to set, with the resource version they are for.
pub type Finalizers = (String, Vec<String>);

/// An object that is to have no device any more.
#[derive(Clone, Debug)]
pub struct Release {
    /// The object.
    pub object: ObjectRef,
    /// The finalizers that remain, if ours is there.
    pub remove_finalizer: Option<Finalizers>,
    /// What exists of the device.
    pub observed: Observed,
    /// Whether to leave the device at the control server.
    pub force: bool,
}

impl Release {
    /// Plans the removal. The finalizer goes last, so that nothing is forgotten.
    pub(crate) fn plan(&self, plan: &mut Plan, settings: &Settings, now: Timestamp) {
        if identity::release(plan, &self.observed, &settings.namespace, self.force, now) {
            plan.set_finalizers(&self.object, self.remove_finalizer.as_ref());
        }
    }
}

/// The metadata of an object; `None` if it is gone.
#[derive(Clone, Copy)]
pub(crate) struct Subject<'a>(pub(crate) Option<&'a ObjectMeta>);

impl<'a> Subject<'a> {
    pub(crate) fn annotation(self, key: &str) -> Option<&'a str> {
        let annotations = self.0?.annotations.as_ref()?;
        annotations.get(key).map(String::as_str)
    }

    /// An annotation that says something.
    pub(crate) fn given(self, key: &str) -> Option<&'a str> {
        self.annotation(key).filter(|value| !value.is_empty())
    }

    pub(crate) fn has_finalizer(self) -> bool {
        self.finalizers().iter().any(|finalizer| finalizer == FINALIZER)
    }

    fn finalizers(self) -> &'a [String] {
        self.0
            .and_then(|metadata| metadata.finalizers.as_deref())
            .unwrap_or_default()
    }

    /// The finalizers with ours, unless it is there already.
    pub(crate) fn add_finalizer(self) -> Option<Finalizers> {
        (!self.has_finalizer()).then(|| {
            let ours = FINALIZER.to_owned();
            let all = self.finalizers().iter().cloned().chain([ours]).collect();
            (self.resource_version(), all)
        })
    }

    /// The finalizers without ours, if it is there.
    pub(crate) fn remove_finalizer(self) -> Option<Finalizers> {
        self.has_finalizer().then(|| {
            let others = self.finalizers().iter().filter(|name| *name != FINALIZER);
            (self.resource_version(), others.cloned().collect())
        })
    }

    /// The removal of everything that was made for the object.
    pub(crate) fn release(self, object: ObjectRef, observed: &Observed) -> Release {
        Release {
            object,
            remove_finalizer: self.remove_finalizer(),
            observed: observed.clone(),
            force: self.annotation(annotation::FORCE_REMOVAL) == Some("true"),
        }
    }

    pub(crate) fn tags(self, settings: &Settings) -> Result<Vec<Tag>, TagError> {
        match self.given(annotation::TAGS) {
            Some(text) => Tag::parse_list(text),
            None => Ok(settings.default_tags.clone()),
        }
    }

    fn resource_version(self) -> String {
        self.0
            .and_then(|metadata| metadata.resource_version.clone())
            .unwrap_or_default()
    }
}
