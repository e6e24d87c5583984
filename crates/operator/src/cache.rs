//! One watch and one cache per kind. A cache holds views: of each object what controllers read, and nothing else.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fmt::Debug;
use std::sync::{Arc, PoisonError, RwLock};

use futures::StreamExt;
use kube::api::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tailwharf_kube_types::Parent;
use tokio::sync::watch;

use crate::error::{is_forbidden, is_not_found};

/// Name of an object within its kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ObjectKey {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl ObjectKey {
    pub(crate) fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    pub(crate) fn of(object: &impl ResourceExt) -> Self {
        Self::new(object.namespace().unwrap_or_default(), object.name_any())
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// An object that came, changed or went.
pub(crate) struct Change<'a, V> {
    pub(crate) key: &'a ObjectKey,
    pub(crate) before: Option<&'a V>,
    pub(crate) after: Option<&'a V>,
}

/// What the API server has told of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// Nothing yet.
    Nothing,
    /// That there is no such kind, or none for this operator, so far.
    Absent,
    /// Its objects.
    Listed,
}

/// Whether the operator can do without a kind that the API server does not know or does not let it list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// It cannot: what it did not see would be taken for gone.
    Required,
    /// It can.
    Optional,
}

/// What happens to a watch.
pub(crate) enum News<'a> {
    /// The API server does not know the kind. Told once.
    Absent,
    /// It does not let this operator list the kind. Told once.
    Forbidden,
    /// It lists it now.
    Appeared,
    /// The watch broke and begins again.
    Broke(&'a watcher::Error),
}

/// The objects `W` of one kind as the last watch event left them, each as a view `V`.
pub(crate) struct Cache<W, V = W> {
    objects: RwLock<Objects<V>>,
    known: watch::Sender<Known>,
    view: fn(W) -> V,
    parent: fn(&V) -> Option<Parent>,
}

struct Objects<V> {
    by_key: HashMap<ObjectKey, Entry<V>>,
    by_parent: HashMap<Parent, BTreeSet<ObjectKey>>,
    /// The newest resource version that each watch has told, by its namespace; that of a watch of all is under an empty name.
    seen: BTreeMap<String, u64>,
    /// The namespaces whose first list is here, likewise.
    listed: BTreeSet<String>,
    /// How many watches fill the cache.
    watches: usize,
}

struct Entry<V> {
    version: u64,
    view: Arc<V>,
}

impl<W, V> Cache<W, V>
where
    W: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    /// An empty cache of what `view` makes of objects, findable by `parent`.
    pub(crate) fn new(view: fn(W) -> V, parent: fn(&V) -> Option<Parent>) -> Self {
        let objects = Objects {
            by_key: HashMap::new(),
            by_parent: HashMap::new(),
            seen: BTreeMap::new(),
            listed: BTreeSet::new(),
            watches: 1,
        };
        Self {
            objects: RwLock::new(objects),
            known: watch::Sender::new(Known::Nothing),
            view,
            parent,
        }
    }

    pub(crate) fn get(&self, key: &ObjectKey) -> Option<Arc<V>> {
        self.read(|objects| objects.by_key.get(key).map(|entry| entry.view.clone()))
    }

    /// What was made for a parent.
    pub(crate) fn of_parent(&self, parent: &Parent) -> Vec<Arc<V>> {
        self.read(|objects| {
            let keys = objects.by_parent.get(parent).into_iter().flatten();
            keys.filter_map(|key| objects.by_key.get(key))
                .map(|entry| entry.view.clone())
                .collect()
        })
    }

    /// For whom an object was made: `None` if it is not known here, `Some(None)` if for nobody that tailwharf knows.
    pub(crate) fn owner(&self, key: &ObjectKey) -> Option<Option<Parent>> {
        self.get(key).map(|view| (self.parent)(&view))
    }

    /// Everything, in no order.
    pub(crate) fn all(&self) -> Vec<Arc<V>> {
        self.read(|objects| objects.by_key.values().map(|entry| entry.view.clone()).collect())
    }

    pub(crate) fn keys(&self) -> Vec<ObjectKey> {
        self.read(|objects| objects.by_key.keys().cloned().collect())
    }

    /// What is known of the kind, now and later.
    pub(crate) fn known(&self) -> watch::Receiver<Known> {
        self.known.subscribe()
    }

    /// Whether the first list is here: without it, an object that is not found may exist all the same.
    pub(crate) fn is_listed(&self) -> bool {
        *self.known.borrow() == Known::Listed
    }

    /// Takes the answer to a write of our own, so that the next look does not see the time before it.
    ///
    /// Nothing happens if the watch is further already: it then has told this write, and perhaps what came after.
    pub(crate) fn remember(&self, object: W, mut changed: impl FnMut(&Change<'_, V>)) {
        let (key, version) = (ObjectKey::of(&object), version(&object));
        if self.read(|objects| objects.has_seen(&key, version)) {
            return;
        }
        self.put(&key, version, object, &mut changed);
    }

    /// Several watches fill the cache, one for each of so many namespaces. To be said before they begin.
    pub(crate) fn expect(&self, watches: usize) {
        self.write(|objects| objects.watches = watches);
    }

    /// Follows the API server until the task is dropped, and tells `changed` about what it did not know yet. `scope` is the namespace that is watched,
    /// empty for all.
    pub(crate) async fn follow(
        &self,
        api: Api<W>,
        scope: &str,
        config: watcher::Config,
        need: Need,
        mut changed: impl FnMut(&Change<'_, V>),
        mut tell: impl FnMut(&News<'_>),
    ) {
        let mut listed = HashMap::new();
        let mut events = std::pin::pin!(watcher(api, config).default_backoff());
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => listed = HashMap::new(),
                Ok(Event::InitApply(object)) => {
                    let (key, version) = (ObjectKey::of(&object), version(&object));
                    listed.insert(
                        key,
                        Entry {
                            version,
                            view: Arc::new((self.view)(object)),
                        },
                    );
                }
                Ok(Event::InitDone) => {
                    let before = *self.known.borrow();
                    self.replace(scope, std::mem::take(&mut listed), &mut changed);
                    if before == Known::Absent {
                        tell(&News::Appeared);
                    }
                }
                Ok(Event::Apply(object)) => {
                    let (key, version) = (ObjectKey::of(&object), version(&object));
                    self.put(&key, version, object, &mut changed);
                    // Only now: an answer that is left to the watch is in the cache then.
                    self.write(|objects| objects.see(scope, version));
                }
                Ok(Event::Delete(object)) => {
                    let (key, version) = (ObjectKey::of(&object), version(&object));
                    let before = self.write(|objects| {
                        objects.see(scope, version);
                        objects.remove(&key, self.parent)
                    });
                    if let Some(before) = before {
                        changed(&Change {
                            key: &key,
                            before: Some(&before),
                            after: None,
                        });
                    }
                }
                Err(error) => match absence(&error) {
                    Some(news) if need == Need::Optional && !self.is_listed() => {
                        if self.known.send_replace(Known::Absent) != Known::Absent {
                            tell(&news);
                        }
                    }
                    _ => tell(&News::Broke(&error)),
                },
            }
        }
    }

    fn put(&self, key: &ObjectKey, version: u64, object: W, changed: &mut impl FnMut(&Change<'_, V>)) {
        if self.read(|objects| {
            objects
                .by_key
                .get(key)
                .is_some_and(|known| known.version >= version)
        }) {
            return;
        }
        let after = Arc::new((self.view)(object));
        let entry = Entry {
            version,
            view: after.clone(),
        };
        let before = self.write(|objects| objects.insert(key.clone(), entry, self.parent));
        changed(&Change {
            key,
            before: before.as_deref(),
            after: Some(&after),
        });
    }

    /// Puts a complete list of a namespace, or of all, in place of what was known.
    fn replace(
        &self,
        scope: &str,
        listed: HashMap<ObjectKey, Entry<V>>,
        changed: &mut impl FnMut(&Change<'_, V>),
    ) {
        let keys: Vec<_> = listed.keys().cloned().collect();
        let (mut before, is_complete) = self.write(|objects| {
            let newest = listed.values().map(|entry| entry.version).max().unwrap_or(0);
            objects.see(scope, newest);
            let before = objects.take(scope, self.parent);
            for (key, entry) in listed {
                objects.insert(key, entry, self.parent);
            }
            objects.listed.insert(scope.to_owned());
            (before, objects.listed.len() >= objects.watches)
        });
        if is_complete {
            self.known.send_replace(Known::Listed);
        }
        for key in &keys {
            let known = before.remove(key);
            let Some((version, after)) = self.read(|objects| {
                objects
                    .by_key
                    .get(key)
                    .map(|entry| (entry.version, entry.view.clone()))
            }) else {
                continue;
            };
            if known.as_ref().is_none_or(|known| known.version != version) {
                let before = known.as_ref().map(|known| known.view.as_ref());
                changed(&Change {
                    key,
                    before,
                    after: Some(&after),
                });
            }
        }
        for (key, gone) in &before {
            changed(&Change {
                key,
                before: Some(&gone.view),
                after: None,
            });
        }
    }

    fn read<T>(&self, look: impl FnOnce(&Objects<V>) -> T) -> T {
        look(&self.objects.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, change: impl FnOnce(&mut Objects<V>) -> T) -> T {
        change(&mut self.objects.write().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<V> Objects<V> {
    /// Whether the watch that tells of this object is at `version` or further.
    fn has_seen(&self, key: &ObjectKey, version: u64) -> bool {
        let of_namespace = self.seen.get(&key.namespace);
        let seen = of_namespace.or_else(|| self.seen.get(""));
        seen.is_some_and(|seen| version <= *seen)
    }

    fn see(&mut self, scope: &str, version: u64) {
        let seen = self.seen.entry(scope.to_owned()).or_default();
        *seen = version.max(*seen);
    }

    /// Takes everything out that is in a namespace, or all.
    fn take(&mut self, scope: &str, parent: fn(&V) -> Option<Parent>) -> HashMap<ObjectKey, Entry<V>> {
        if scope.is_empty() {
            self.by_parent.clear();
            return std::mem::take(&mut self.by_key);
        }
        let keys: Vec<_> = self
            .by_key
            .keys()
            .filter(|key| key.namespace == scope)
            .cloned()
            .collect();
        let taken = keys
            .into_iter()
            .filter_map(|key| Some((key.clone(), self.remove_entry(&key, parent)?)));
        taken.collect()
    }

    fn insert(
        &mut self,
        key: ObjectKey,
        entry: Entry<V>,
        parent: fn(&V) -> Option<Parent>,
    ) -> Option<Arc<V>> {
        let before = self.remove(&key, parent);
        if let Some(parent) = parent(&entry.view) {
            self.by_parent.entry(parent).or_default().insert(key.clone());
        }
        self.by_key.insert(key, entry);
        before
    }

    fn remove(&mut self, key: &ObjectKey, parent: fn(&V) -> Option<Parent>) -> Option<Arc<V>> {
        self.remove_entry(key, parent).map(|entry| entry.view)
    }

    fn remove_entry(&mut self, key: &ObjectKey, parent: fn(&V) -> Option<Parent>) -> Option<Entry<V>> {
        let entry = self.by_key.remove(key)?;
        if let Some(parent) = parent(&entry.view)
            && let Some(keys) = self.by_parent.get_mut(&parent)
        {
            keys.remove(key);
            if keys.is_empty() {
                self.by_parent.remove(&parent);
            }
        }
        Some(entry)
    }
}

/// What an error means if it says that there is no list of this kind to be had.
fn absence(error: &watcher::Error) -> Option<News<'static>> {
    match error {
        watcher::Error::InitialListFailed(source) if is_not_found(source) => Some(News::Absent),
        watcher::Error::InitialListFailed(source) if is_forbidden(source) => Some(News::Forbidden),
        _ => None,
    }
}

/// Resource versions of one kind grow: they are revisions of etcd, and Kubernetes promises so since 1.35.
fn version(object: &impl ResourceExt) -> u64 {
    object
        .resource_version()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::ObjectMeta;

    use super::*;

    type Told = Vec<(String, Option<String>, Option<String>)>;

    fn object(name: &str, version: u64, note: &str) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                namespace: Some("ns".to_owned()),
                name: Some(name.to_owned()),
                resource_version: Some(version.to_string()),
                labels: Some(Parent::service("ns", note).labels()),
                ..ObjectMeta::default()
            },
            data: Some([("note".to_owned(), note.to_owned())].into()),
            ..ConfigMap::default()
        }
    }

    fn cache() -> Cache<ConfigMap, String> {
        Cache::new(
            |object| object.data.unwrap()["note"].clone(),
            |note| Some(Parent::service("ns", note)).filter(|_| !note.is_empty()),
        )
    }

    fn list(cache: &Cache<ConfigMap, String>, objects: impl IntoIterator<Item = ConfigMap>) -> Told {
        let entries = objects
            .into_iter()
            .map(|object| {
                let (key, version) = (ObjectKey::of(&object), version(&object));
                (
                    key,
                    Entry {
                        version,
                        view: Arc::new((cache.view)(object)),
                    },
                )
            })
            .collect();
        let mut told = Told::new();
        cache.replace("", entries, &mut |change| {
            told.push((
                change.key.name.clone(),
                change.before.cloned(),
                change.after.cloned(),
            ));
        });
        told.sort();
        told
    }

    fn view(cache: &Cache<ConfigMap, String>, name: &str) -> Option<String> {
        cache
            .get(&ObjectKey::new("ns", name))
            .map(|view| view.as_ref().clone())
    }

    #[test]
    fn own_writes_are_seen_at_once_but_never_over_newer_news() {
        let cache = cache();
        list(&cache, [object("a", 10, "old")]);
        let mut told = 0;
        cache.remember(object("a", 12, "mine"), |_| told += 1);
        cache.remember(object("a", 12, "mine"), |_| told += 1);
        assert_eq!((view(&cache, "a").as_deref(), told), (Some("mine"), 1));
        list(&cache, [object("b", 20, "theirs")]);
        cache.remember(object("a", 15, "late"), |_| told += 1);
        assert_eq!(
            (view(&cache, "a"), told),
            (None, 1),
            "the watch is past this write: the object was deleted since"
        );
    }

    #[test]
    fn a_new_list_tells_what_came_changed_and_went_and_nothing_else() {
        let cache = cache();
        list(
            &cache,
            [object("a", 1, "1"), object("b", 2, "2"), object("c", 3, "3")],
        );
        assert!(cache.is_listed());
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(
            list(
                &cache,
                [object("b", 2, "2"), object("c", 5, "5"), object("d", 4, "4")]
            ),
            [
                ("a".to_owned(), text("1"), None),
                ("c".to_owned(), text("3"), text("5")),
                ("d".to_owned(), None, text("4"))
            ]
        );
    }

    #[test]
    fn objects_are_found_by_the_parent_that_they_have_now() {
        let cache = cache();
        list(&cache, [object("a", 1, "x"), object("b", 2, "x")]);
        let count = |name: &str| cache.of_parent(&Parent::service("ns", name)).len();
        assert_eq!((count("x"), count("y")), (2, 0));
        cache.remember(object("a", 3, "y"), |_| ());
        assert_eq!((count("x"), count("y")), (1, 1));
        list(&cache, []);
        assert_eq!((count("x"), count("y")), (0, 0));
    }
}
