//! Definitions from the cluster: a watch on DoormanApi and DoormanRole, kept without help of anybody else.
//!
//! The first state is published when every kind has been listed once. Later a lost API server only means that the state
//! grows old: watches are taken up again with growing pauses, and what was served is served on. An object that does
//! not even have the shape of its kind is set aside and named; the others arrive all the same. Secrets that APIs name are
//! watched one by one ([`Named`]); a changed API that newly names one comes into force when the Secret is there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use doorman_crds::pauses::Pauses;
use doorman_crds::revision::Rejection;
use doorman_crds::selection::Selection;
use doorman_crds::{DoormanApi, DoormanRole, gateway};
use futures::StreamExt;
use futures::stream::{BoxStream, select_all};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::DeserializeGuard;
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::disk::Disk;
use super::named::Named;
use super::owner::keep_owner;
use super::{Definitions, ObjectId};

/// Most events taken together into one state.
const BATCH: usize = 4096;
/// Least time between two writes of the disk copy; a burst of changes is written once.
const DISK_EVERY: Duration = Duration::from_secs(2);
/// Longest wait for the next first word on a Secret before the first state, and for all of them; a word comes with the
/// first answer. An API whose Secret is not known is refused, and a pod that is ready gets its calls.
const NEXT_WORD: Duration = Duration::from_secs(3);
const FIRST_WORDS: Duration = Duration::from_secs(8);
/// Time before the old state on disk would be taken, in which a state that lacks some Secrets is: it is the newer one.
const BEFORE_DISK: Duration = Duration::from_secs(1);
/// Longest an API is left as it was while a Secret that it newly names is awaited. It is short, since the change may also
/// close what was open.
const HOLD: Duration = Duration::from_secs(5);

/// Why no definitions could be had at the start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No access to any cluster is configured.
    #[error("no Kubernetes API server is configured: {0}; run in a cluster or give --manifests DIR")]
    Config(#[from] kube::config::InferConfigError),
    /// The client can't be built.
    #[error("the Kubernetes client can't be set up: {0}")]
    Client(#[from] kube::Error),
}

/// Starts watching. Returns when there is a first state: from the cluster, or after `wait` from the folder of the last
/// good one; without either it keeps trying.
///
/// # Errors
/// [`StartError`] when no cluster is configured.
pub async fn start(
    selection: Selection,
    snapshots: Option<&Path>,
    wait: Duration,
) -> Result<watch::Receiver<Arc<Definitions>>, StartError> {
    let mut config = kube::Config::infer().await?;
    // Watches have pauses of their own; an answer that says no for now must not wait in a call for its repetitions.
    config.default_retry = false;
    tracing::info!(server = %config.cluster_url, gateway = format!("{}/{}", selection.namespace, selection.name), "watching definitions");
    let client = Client::try_from(config)?;
    let disk = snapshots.map(Disk::new);
    let saved = disk.as_ref().and_then(Disk::load);
    let (publish, mut states) = watch::channel(None::<Arc<Definitions>>);
    tokio::spawn(follow(client, selection, publish, disk, saved.is_some().then_some(wait)));

    let first = match tokio::time::timeout(wait, states.wait_for(Option::is_some)).await {
        Ok(Ok(state)) => state.clone(),
        _ => None,
    };
    let first = match (first, saved) {
        (Some(first), _) => first,
        (None, Some(saved)) => {
            tracing::warn!(
                apis = saved.apis.len(),
                "the API server can't be reached; the last good definitions are served"
            );
            Arc::new(saved)
        }
        (None, None) => {
            tracing::error!("the API server can't be reached and there is no saved state; waiting for it");
            loop {
                if let Some(state) = states.borrow_and_update().clone() {
                    break state;
                }
                if states.changed().await.is_err() {
                    break Arc::default();
                }
            }
        }
    };
    let (forward, definitions) = watch::channel(first);
    tokio::spawn(async move {
        // Also what came between the first look and now.
        states.mark_changed();
        while states.changed().await.is_ok() {
            let state = states.borrow_and_update().clone();
            if let Some(state) = state {
                forward.send_if_modified(|current| {
                    let is_new = **current != *state;
                    *current = state;
                    is_new
                });
            }
        }
    });
    Ok(definitions)
}

/// Objects of one kind.
struct Objects<K> {
    readable: BTreeMap<ObjectId, Arc<K>>,
    unreadable: BTreeMap<ObjectId, Rejection>,
}

/// One kind in the watched scope.
struct Kind<K> {
    now: Objects<K>,
    /// What is being listed anew; becomes the state when complete.
    listing: Option<Objects<K>>,
    is_listed: bool,
}

impl<K> Default for Objects<K> {
    fn default() -> Self {
        Self { readable: BTreeMap::new(), unreadable: BTreeMap::new() }
    }
}

impl<K> Default for Kind<K> {
    fn default() -> Self {
        Self { now: Objects::default(), listing: None, is_listed: false }
    }
}

fn identity(meta: &ObjectMeta) -> ObjectId {
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// Whether two states of one object mean the same to a gateway; status is not its business.
fn is_same(a: &ObjectMeta, b: &ObjectMeta) -> bool {
    a.uid == b.uid && a.generation == b.generation && a.labels == b.labels && a.managed_fields == b.managed_fields
}

impl<K: Resource<DynamicType = ()> + Clone> Kind<K> {
    /// Takes an event in; whether the state changed.
    fn apply(&mut self, event: Event<DeserializeGuard<K>>) -> bool {
        match event {
            Event::Init => {
                self.listing = Some(Objects::default());
                false
            }
            Event::InitApply(guard) => {
                self.listing.get_or_insert_default().put(guard, Some(&self.now));
                false
            }
            Event::InitDone => {
                let was_listed = std::mem::replace(&mut self.is_listed, true);
                let Some(listed) = self.listing.take() else { return !was_listed };
                let before = std::mem::replace(&mut self.now, listed);
                !was_listed || !self.now.is_same(&before)
            }
            Event::Apply(guard) => self.now.put(guard, None),
            Event::Delete(guard) => self.now.remove(&identity(guard.meta())),
        }
    }
}

impl<K: Resource<DynamicType = ()> + Clone> Objects<K> {
    /// Puts an object where it belongs; whether that changed anything. One that means the same as before stays the
    /// object it was (here or in `known`), so that it need not be compiled again.
    fn put(&mut self, guard: DeserializeGuard<K>, known: Option<&Self>) -> bool {
        let id = identity(guard.meta());
        let mut object = match guard.0 {
            Ok(object) => object,
            Err(invalid) => {
                let problem = Rejection {
                    kind: K::kind(&()).into_owned(),
                    namespace: id.0.clone(),
                    name: id.1.clone(),
                    reason: "Unreadable".to_owned(),
                    message: invalid.error,
                };
                let was_readable = self.readable.remove(&id).is_some();
                return self.unreadable.insert(id, problem.clone()).as_ref() != Some(&problem) || was_readable;
            }
        };
        keep_owner(object.meta_mut());
        let was_unreadable = self.unreadable.remove(&id).is_some();
        let same = |objects: &Self| objects.readable.get(&id).filter(|old| is_same(old.meta(), object.meta())).cloned();
        if same(self).is_some() {
            return was_unreadable;
        }
        let object = known.and_then(same).unwrap_or_else(|| Arc::new(object));
        self.readable.insert(id, object);
        true
    }

    fn remove(&mut self, id: &ObjectId) -> bool {
        let was_readable = self.readable.remove(id).is_some();
        self.unreadable.remove(id).is_some() || was_readable
    }

    fn is_same(&self, other: &Self) -> bool {
        self.unreadable == other.unreadable
            && self.readable.len() == other.readable.len()
            && self.readable.iter().all(|(id, own)| other.readable.get(id).is_some_and(|old| Arc::ptr_eq(old, own)))
    }
}

enum Change {
    Api(Box<Event<DeserializeGuard<DoormanApi>>>),
    Role(Box<Event<DeserializeGuard<DoormanRole>>>),
    Namespace(Box<Event<PartialObjectMeta<Namespace>>>),
    Failed(&'static str, watcher::Error),
}

/// A kind's events for ever; errors come through, with growing pauses after them.
fn events<K>(
    client: &Client,
    namespace: Option<&str>,
    kind: &'static str,
    wrap: fn(Box<Event<DeserializeGuard<K>>>) -> Change,
) -> BoxStream<'static, Change>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug
        + Send
        + 'static,
    DeserializeGuard<K>: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    let api: Api<DeserializeGuard<K>> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    watcher(api, watcher::Config::default())
        .backoff(Pauses::default())
        .map(move |event| event.map(Box::new).map_or_else(|error| Change::Failed(kind, error), wrap))
        .boxed()
}

/// Everything that was seen of the cluster.
#[derive(Default)]
struct State {
    apis: Kind<DoormanApi>,
    roles: Kind<DoormanRole>,
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    namespaces_listed: bool,
}

impl State {
    fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::Api(event) => self.apis.apply(*event),
            Change::Role(event) => self.roles.apply(*event),
            Change::Namespace(event) => match *event {
                Event::Init => false,
                Event::InitDone => !std::mem::replace(&mut self.namespaces_listed, true),
                Event::Apply(namespace) | Event::InitApply(namespace) => {
                    let labels = namespace.labels().clone();
                    self.namespaces.insert(namespace.name_any(), labels.clone()) != Some(labels)
                }
                Event::Delete(namespace) => self.namespaces.remove(&namespace.name_any()).is_some(),
            },
            Change::Failed(kind, error) => {
                tracing::warn!(kind, %error, "the watch is interrupted; what is known is served on");
                false
            }
        }
    }

    /// What the gateway takes, without Secrets.
    fn select(&self, selection: &Selection) -> Definitions {
        let labels = |namespace: &str| self.namespaces.get(namespace);
        let in_reach = |id: &ObjectId| {
            let meta = ObjectMeta { namespace: Some(id.0.clone()), ..ObjectMeta::default() };
            // Labels and references of what can't be read are not known; its namespace is.
            Selection { selector: None, ..selection.clone() }.takes(&meta, None, |namespace| labels(namespace))
        };
        let problems = self.apis.now.unreadable.iter().chain(&self.roles.now.unreadable);
        Definitions {
            apis: self
                .apis
                .now
                .readable
                .iter()
                .filter(|(_, api)| selection.takes(&api.metadata, api.spec.gateway_refs.as_deref(), |n| labels(n)))
                .map(|(id, api)| (id.clone(), api.clone()))
                .collect(),
            roles: self
                .roles
                .now
                .readable
                .iter()
                .filter(|(_, role)| selection.takes(&role.metadata, role.spec.gateway_refs.as_deref(), |n| labels(n)))
                .map(|(id, role)| (id.clone(), role.clone()))
                .collect(),
            unreadable: problems.filter(|(id, _)| in_reach(id)).map(|(_, problem)| problem.clone()).collect(),
            ..Definitions::default()
        }
    }
}

/// The Secrets that an API names.
fn named(api: &DoormanApi) -> impl Iterator<Item = ObjectId> {
    let namespace = api.metadata.namespace.clone().unwrap_or_default();
    api.spec.secrets().map(move |(_, name)| (namespace.clone(), name.to_owned()))
}

/// The APIs that are left as they were, each with the time since when.
type Held = BTreeMap<ObjectId, Instant>;

/// Has an API served as it was before while a Secret that it newly names is awaited, and not longer than [`HOLD`]; nothing is
/// lost by a change then.
fn hold_back(new: &mut Definitions, before: &Definitions, held: &mut Held, is_awaited: impl Fn(&ObjectId) -> bool) {
    let now = Instant::now();
    let is_unlike = |old: &Arc<DoormanApi>, api: &Arc<DoormanApi>| {
        old.metadata.uid == api.metadata.uid && old.metadata.generation != api.metadata.generation
    };
    let mut still = Held::new();
    for (id, api) in &new.apis {
        let served = before.held.get(id).or_else(|| before.apis.get(id));
        if let Some(old) = served.filter(|old| is_unlike(old, api))
            && named(api).any(|secret| is_awaited(&secret))
        {
            let since = held.get(id).copied().unwrap_or(now);
            if now < since + HOLD {
                still.insert(id.clone(), since);
                new.held.insert(id.clone(), old.clone());
            }
        }
    }
    *held = still;
}

/// The wait for a first word on each Secret.
struct FirstWords {
    unheard: usize,
    until: Instant,
    /// When it is over in any case.
    end: Instant,
}

impl FirstWords {
    /// An old state on disk, if there is one, is taken after `left`.
    fn new(unheard: usize, left: Option<Duration>) -> Self {
        let now = Instant::now();
        let left = left.map_or(FIRST_WORDS, |left| left.saturating_sub(BEFORE_DISK));
        let end = now + FIRST_WORDS.min(left);
        Self { unheard, until: end.min(now + NEXT_WORD), end }
    }

    /// Is it over, when there is none on so many?
    fn is_over(&mut self, unheard: usize) -> bool {
        let now = Instant::now();
        if unheard < self.unheard {
            self.until = self.end.min(now + NEXT_WORD);
        }
        self.unheard = unheard;
        unheard == 0 || now >= self.until
    }
}

async fn follow(
    client: Client,
    selection: Selection,
    publish: watch::Sender<Option<Arc<Definitions>>>,
    disk: Option<Disk>,
    old_state_after: Option<Duration>,
) {
    let start = Instant::now();
    let namespace = (selection.namespaces == gateway::Namespaces::Same).then_some(selection.namespace.as_str());
    let mut state = State { namespaces_listed: true, ..State::default() };
    let mut streams = vec![
        events(&client, namespace, "DoormanApi", Change::Api),
        events(&client, namespace, "DoormanRole", Change::Role),
    ];
    if selection.namespaces == gateway::Namespaces::Selector {
        state.namespaces_listed = false;
        let all = watcher(Api::<PartialObjectMeta<Namespace>>::all(client.clone()), watcher::Config::default());
        streams.push(
            all.backoff(Pauses::default())
                .map(|e| e.map(Box::new).map_or_else(|error| Change::Failed("Namespace", error), Change::Namespace))
                .boxed(),
        );
    }
    let mut secrets = Named::new(client, &selection.namespace, &selection.name);
    let mut changes = select_all(streams).ready_chunks(BATCH);
    let mut unsaved: Option<Arc<Definitions>> = None;
    let mut next_save = Instant::now();
    let mut published: Option<Arc<Definitions>> = None;
    let mut first_words: Option<FirstWords> = None;
    let mut held = Held::new();
    loop {
        let due = match (&published, &first_words) {
            (None, Some(words)) => Some(words.until),
            _ => held.values().min().map(|since| *since + HOLD),
        };
        let mut changed = false;
        tokio::select! {
            batch = changes.next() => {
                let Some(batch) = batch else { return };
                for change in batch {
                    if let Change::Api(event) = &change
                        && let Event::Apply(DeserializeGuard(Ok(api))) | Event::InitApply(DeserializeGuard(Ok(api))) = &**event
                    {
                        named(api).for_each(|secret| secrets.ask_again(&secret));
                    }
                    changed |= state.apply(change);
                }
            }
            is_new = secrets.changed() => changed = is_new,
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => changed = true,
            () = sleep_until(next_save), if unsaved.is_some() => {
                if let (Some(disk), Some(definitions)) = (disk.clone(), unsaved.take()) {
                    let _ = tokio::task::spawn_blocking(move || disk.save(&definitions)).await;
                }
                next_save = Instant::now() + DISK_EVERY;
            }
            () = publish.closed() => return,
        }
        let is_complete = state.apis.is_listed && state.roles.is_listed && state.namespaces_listed;
        if !changed || !is_complete {
            continue;
        }
        let mut definitions = state.select(&selection);
        let mut wanted: BTreeSet<_> = definitions.apis.values().flat_map(|api| named(api)).collect();
        if let Some(before) = &published {
            hold_back(&mut definitions, before, &mut held, |secret| secrets.is_awaited(secret));
            wanted.extend(definitions.held.values().flat_map(|api| named(api)));
        }
        secrets.watch(&wanted);
        let unheard = secrets.unheard();
        let words = || FirstWords::new(unheard, old_state_after.map(|after| after.saturating_sub(start.elapsed())));
        if published.is_none() && !first_words.get_or_insert_with(words).is_over(unheard) {
            continue;
        }
        definitions.secrets = secrets.known();
        let definitions = Arc::new(definitions);
        publish.send_replace(Some(definitions.clone()));
        unsaved = disk.is_some().then(|| definitions.clone());
        published = Some(definitions);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn api(uid: &str, generation: i64, secret: Option<&str>) -> Arc<DoormanApi> {
        let tls = secret.map(|name| json!({ "tls": { "caSecretRef": { "name": name } } }));
        Arc::new(
            serde_json::from_value(json!({
                "apiVersion": "doorman.dev/v1alpha1", "kind": "DoormanApi",
                "metadata": { "name": "a", "namespace": "shop", "uid": uid, "generation": generation },
                "spec": { "name": "a", "version": "v1", "protocol": "REST", "upstream": tls },
            }))
            .unwrap(),
        )
    }

    fn only(api: Arc<DoormanApi>) -> Definitions {
        Definitions { apis: [(identity(&api.metadata), api)].into(), ..Definitions::default() }
    }

    /// The generation that is served.
    fn served(definitions: &Definitions) -> i64 {
        let (id, api) = definitions.apis.first_key_value().unwrap();
        definitions.held.get(id).unwrap_or(api).metadata.generation.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_waits_for_a_secret_that_it_newly_names_and_others_do_not() {
        for (before, now, awaited, wanted) in [
            (api("1", 1, None), api("1", 2, Some("new")), true, 1),
            (api("1", 1, None), api("1", 2, Some("new")), false, 2),
            (api("1", 1, None), api("1", 2, Some("other")), true, 2),
            (api("1", 1, Some("new")), api("1", 2, None), true, 2),
            // Another object of the same name has nothing to do with the one before.
            (api("1", 1, None), api("2", 2, Some("new")), true, 2),
        ] {
            let mut held = Held::new();
            let newest = now.metadata.generation;
            let mut definitions = only(now);
            hold_back(&mut definitions, &only(before), &mut held, |id| awaited && id.1 == "new");
            assert_eq!(served(&definitions), wanted);
            assert_eq!(held.len(), usize::from(wanted == 1));
            let kept = definitions.apis.into_values().next().unwrap();
            assert_eq!(kept.metadata.generation, newest, "what is reported and kept on disk");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_api_waits_for_long_however_often_it_changes() {
        let (mut held, mut before) = (Held::new(), only(api("1", 1, None)));
        for (second, wanted) in [(0, 1), (2, 1), (4, 1), (6, 5)] {
            let mut next = only(api("1", 2 + second / 2, Some("new")));
            hold_back(&mut next, &before, &mut held, |id| id.1 == "new");
            assert_eq!(served(&next), wanted, "after {second} s");
            before = next;
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        assert!(held.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_waits_for_secrets_while_they_come() {
        let mut words = FirstWords::new(100, None);
        for unheard in (96..100).rev() {
            tokio::time::sleep(NEXT_WORD / 2).await;
            assert!(!words.is_over(unheard));
        }
        tokio::time::sleep(NEXT_WORD).await;
        assert!(words.is_over(96), "no word for a while");
        assert!(FirstWords::new(1, None).is_over(0));
        let seconds = Duration::from_secs;
        for (left, most) in [
            (None, FIRST_WORDS),
            (Some(seconds(60)), FIRST_WORDS),
            (Some(seconds(5)), seconds(4)),
            (Some(BEFORE_DISK), Duration::ZERO),
        ] {
            let (mut words, start) = (FirstWords::new(1000, left), Instant::now());
            while !words.is_over(words.unheard - 1) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            assert!((most..most + Duration::from_millis(200)).contains(&start.elapsed()), "{:?}", start.elapsed());
        }
    }
}
