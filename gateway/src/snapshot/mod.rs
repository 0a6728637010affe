//! What the gateway serves: compiled from definitions off the request path, swapped as a whole.
//!
//! [`Compiler::compile`] is the only way in. An object that did not change keeps its compiled form, so a change costs
//! its own compilation plus one pass over the names. An object that can't be served harms only itself: calls to it get
//! 503 with the reason, all others are served, whatever pod compiled when. One thing only is remembered of what was: when
//! Secrets of an API come to hold what can't be used, it is called with the last ones that could.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use doorman_crds::api::{Api, ApiKey, NoSecret, UpstreamTls, WeightedServer};
use doorman_crds::revision::{MAX_REJECTED, MAX_UNUSABLE, ObjectHash, Rejection, Revision, RevisionReport};
use doorman_crds::verdict::{self, Refusal};
use doorman_crds::{DoormanApi, DoormanApiSpec, FieldError, Reason, api, role, selection};
use http::HeaderValue;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use smallvec::SmallVec;

use crate::definitions::documents::is_stored;
use crate::definitions::{Definitions, Origin, Secret};
use crate::identity::{DefinedRole, DefinedRoles};
use crate::settings::table::Upstream;
use crate::store::Role;
use crate::telemetry::per_api::{ApiCounter, PerApi};
use crate::upstream::{Breaker, CallTimeouts, Pool, Pools, RetryBudget, Target, Targets, Tls};

mod paths;
mod turns;

pub use paths::{Match, Paths};

use turns::Turns;

/// One consistent state of everything that decides about requests.
#[derive(Debug, Default)]
pub struct Snapshot {
    apis: HashMap<Box<str>, SmallVec<[Version; 1]>>,
    /// Objects that define what an older one defines already.
    shadowed: Vec<Arc<DoormanApi>>,
    /// The roles that are defined.
    pub roles: Arc<DefinedRoles>,
    /// What this state is called towards the operator.
    pub revision: Revision,
    /// Every object that is not served, and why.
    pub rejected: Vec<Rejection>,
    /// Every API whose Secrets hold something else than what is needed; served with the last ones that did, or rejected.
    pub unusable: Vec<Rejection>,
    /// Number of APIs served.
    pub served: usize,
}

/// One version of an API.
#[derive(Debug)]
struct Version {
    version: Box<str>,
    entry: Entry,
    definition: Definition,
}

/// What an API is defined by.
#[derive(Clone, Debug)]
pub struct Definition {
    /// The object, shared with where it comes from.
    pub object: Arc<DoormanApi>,
    /// The file it is in, of a folder.
    pub file: Option<Arc<str>>,
}

impl Definition {
    /// Whose it is.
    pub fn origin(&self) -> Origin {
        Origin::of(&self.object.metadata, self.file.as_ref())
    }

    /// Its uid.
    pub fn uid(&self) -> &str {
        self.object.metadata.uid.as_deref().unwrap_or_default()
    }
}

/// What callers are told of an API that is unservable: the reason may name servers and Secrets.
pub const CANNOT_BE_SERVED: &str = "The API is defined but can't be served; its status and the gateway's log say why";

/// What is known under one name and version.
#[derive(Clone, Debug)]
pub enum Entry {
    /// It can be called.
    Served(Arc<CompiledApi>),
    /// It exists but can't be served, for this reason; calls get 503.
    Unservable(Arc<str>),
}

/// An API ready to be called.
#[derive(Debug)]
pub struct CompiledApi {
    /// Its definition, but for what is compiled of it: the endpoints and the servers.
    pub api: Api,
    /// `name/version`, as metrics and logs show it.
    pub label: Box<str>,
    /// Its endpoints.
    pub paths: Paths,
    /// Where calls go unless the endpoint has servers of its own.
    pub servers: Servers,
    /// All that it calls; changed, the API goes on with those it still calls.
    targets: Box<[Target]>,
    /// How many of its failed calls may still be repeated.
    pub retries: Arc<RetryBudget>,
    /// What Prometheus is told of its calls.
    pub counter: Arc<ApiCounter>,
}

impl CompiledApi {
    /// Upper bounds of its calls: its own, else the gateway's.
    pub fn timeouts(&self, general: &Upstream) -> CallTimeouts {
        let own = &self.api.timeouts;
        CallTimeouts {
            connect: own.connect.unwrap_or(general.connect_timeout),
            read: own.read.unwrap_or(general.read_timeout),
            write: own.write.unwrap_or(general.write_timeout),
            pool: own.pool.unwrap_or(general.pool_timeout),
        }
    }
}

/// Upstream servers that take turns. Those of weight 0 are not among them.
#[derive(Debug)]
pub struct Servers {
    servers: Vec<Server>,
    turns: Turns,
}

/// One upstream server.
#[derive(Debug)]
pub struct Server {
    /// Connections to it.
    pub pool: Arc<Pool>,
    /// Tells whether it is called at the moment.
    pub breaker: Arc<Breaker>,
    /// Value of `Host`.
    pub authority: HeaderValue,
    /// Path before the endpoint's.
    pub base_path: Box<str>,
    /// Query before the client's.
    pub query: Option<Box<str>>,
}

impl Servers {
    pub(crate) fn compile(listed: &[WeightedServer], targets: &mut Targets<'_>) -> Self {
        let called = listed.iter().filter(|server| server.weight > 0);
        let compiled = called.filter_map(|WeightedServer { address, weight }| {
            let (pool, breaker) = targets.of(address);
            let server = Server {
                pool,
                breaker,
                authority: HeaderValue::from_str(address.authority.as_str()).ok()?,
                base_path: address.base_path.as_str().into(),
                query: address.query.as_deref().map(Into::into),
            };
            Some((server, *weight))
        });
        let (servers, weights): (_, Vec<u8>) = compiled.unzip();
        Self { servers, turns: Turns::new(&weights) }
    }

    /// The first server in turn that is admitted, and with what. One that is not is asked once and passed over.
    pub fn choose<'a, T>(&'a self, mut admit: impl FnMut(&'a Server) -> Option<T>) -> Option<(&'a Server, T)> {
        let mut refused: SmallVec<[usize; 8]> = SmallVec::new();
        for _ in 0..self.turns.len() {
            let place = self.turns.take();
            if refused.contains(&place) {
                continue;
            }
            let server = self.servers.get(place)?;
            if let Some(leave) = admit(server) {
                return Some((server, leave));
            }
            refused.push(place);
            if refused.len() == self.servers.len() {
                return None;
            }
        }
        // Other calls took the turns of those that are left.
        let left = self.servers.iter().enumerate().filter(|(place, _)| !refused.contains(place));
        left.into_iter().find_map(|(_, server)| Some((server, admit(server)?)))
    }

    /// All of them that take turns.
    pub fn all(&self) -> &[Server] {
        &self.servers
    }

    /// Is this one of them, below the same path?
    pub fn have(&self, other: &Server) -> bool {
        self.servers.iter().any(|own| {
            Arc::ptr_eq(&own.pool, &other.pool) && (&own.base_path, &own.query) == (&other.base_path, &other.query)
        })
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }
}

impl Snapshot {
    /// Looks an API up; no allocation.
    pub fn find(&self, name: &str, version: &str) -> Option<&Entry> {
        self.version(name, version).map(|found| &found.entry)
    }

    fn version(&self, name: &str, version: &str) -> Option<&Version> {
        self.apis.get(name)?.iter().find(|one| *one.version == *version)
    }

    /// What defines an API, whether or not it can be served; not what is only stored.
    pub fn definition(&self, name: &str, version: &str) -> Option<&Definition> {
        self.version(name, version).map(|found| &found.definition).filter(|one| !is_stored(&one.object.metadata))
    }

    /// All that define an API, in no order.
    pub fn definitions(&self) -> impl Iterator<Item = &Definition> {
        let all = self.apis.values().flatten().map(|version| &version.definition);
        all.filter(|one| !is_stored(&one.object.metadata))
    }

    /// Has this object of an API been looked at, in this state or a later one, whatever came of it?
    pub fn knows(&self, key: &ApiKey, object: &Origin) -> bool {
        let is_it = |known: &Arc<DoormanApi>| {
            let meta = &known.metadata;
            meta.uid.as_deref() == Some(&*object.uid) && meta.generation.unwrap_or_default() >= object.generation
        };
        self.version(&key.name, &key.version).is_some_and(|found| is_it(&found.definition.object))
            || self.shadowed.iter().any(is_it)
    }

    /// All that can be called, in no order.
    pub fn apis(&self) -> impl Iterator<Item = &Arc<CompiledApi>> {
        self.apis.values().flatten().filter_map(|version| match &version.entry {
            Entry::Served(api) => Some(api),
            Entry::Unservable(_) => None,
        })
    }

    /// The report for the operator.
    pub fn report(&self) -> RevisionReport {
        let (unusable, unusable_untold) = share_out(&self.unusable, MAX_UNUSABLE);
        RevisionReport {
            revision: self.revision,
            rejected: self.rejected.iter().take(MAX_REJECTED).cloned().collect(),
            rejected_total: self.rejected.len(),
            unusable,
            unusable_untold,
            stores: None,
        }
    }
}

/// As many as there is room for, the same of each namespace that has as many, so that none crowds out another. With it:
/// the namespaces of which there are more.
fn share_out(all: &[Rejection], room: usize) -> (Vec<Rejection>, BTreeSet<String>) {
    let mut by_namespace = BTreeMap::<&str, Vec<&Rejection>>::new();
    for one in all {
        by_namespace.entry(&one.namespace).or_default().push(one);
    }
    let mut namespaces: Vec<_> = by_namespace.into_iter().collect();
    namespaces.sort_by_key(|(_, of_it)| of_it.len());
    let (mut shared, mut untold, count) = (Vec::new(), BTreeSet::new(), namespaces.len());
    for (number, (namespace, of_it)) in namespaces.into_iter().enumerate() {
        let share = (room - shared.len()) / (count - number);
        if of_it.len() > share {
            untold.insert(namespace.to_owned());
        }
        shared.extend(of_it.into_iter().take(share).cloned());
    }
    (shared, untold)
}

/// Identity of one state of one object: uid, generation, and the states of the Secrets that it names.
type ObjectKey = (String, i64, Vec<Result<String, NoSecret>>);

/// What came of an API.
#[derive(Clone, Debug)]
enum Compiled {
    /// It can be called; with errors: by TLS as it was before its Secrets had them.
    Ready(Arc<CompiledApi>, Arc<[FieldError]>),
    /// The definition can't be served.
    Invalid(Arc<[FieldError]>),
    /// The definition is fine; the Secrets that it names are not.
    Secretless(Arc<[FieldError]>),
}

/// How an API was last called over TLS, by its uid, and what it asked for.
type LastTls = HashMap<String, (UpstreamTls, Arc<Tls>)>;

/// Compiles definitions into snapshots and remembers what did not change.
#[derive(Debug)]
pub struct Compiler {
    pools: Pools,
    counters: Arc<PerApi>,
    apis: HashMap<ObjectKey, (Compiled, ObjectHash)>,
    tls: LastTls,
    stored_roles: BTreeSet<String>,
}

impl Compiler {
    /// A compiler that hands out connections from these pools.
    pub fn new(pools: Pools) -> Self {
        let (apis, tls, stored_roles) = (HashMap::new(), HashMap::new(), BTreeSet::new());
        Self { pools, counters: Arc::default(), apis, tls, stored_roles }
    }

    /// The same, with counters that are shown.
    #[must_use]
    pub fn counting(self, counters: Arc<PerApi>) -> Self {
        Self { counters, ..self }
    }

    /// Names of roles that APIs may refer to from now on besides the defined and the built-in ones. For a gateway without
    /// a cluster only: with one, what an API's status says must not depend on what the operator doesn't see.
    pub fn set_stored_roles(&mut self, names: BTreeSet<String>) {
        self.stored_roles = names;
    }

    /// Compiles a whole state.
    pub fn compile(&mut self, definitions: &Definitions) -> Snapshot {
        let mut snapshot = Snapshot { rejected: definitions.unreadable.clone(), ..Snapshot::default() };
        let defined = roles(definitions, &mut snapshot);
        let built_in = verdict::built_in_roles();
        let is_role =
            |role: &str| defined.contains_key(role) || built_in.contains(role) || self.stored_roles.contains(role);

        let mut before = std::mem::take(&mut self.apis);
        let states: OnceCell<HashMap<String, Arc<CompiledApi>>> = OnceCell::new();
        let mut tls_before = std::mem::take(&mut self.tls);
        let mut ordered: Vec<_> = definitions.apis.iter().collect();
        ordered.sort_by(|(_, a), (_, b)| selection::precedence(&a.metadata).cmp(&selection::precedence(&b.metadata)));
        let mut owners: BTreeMap<ApiKey, String> = BTreeMap::new();
        let mut secrets_named: BTreeMap<(&str, &str), ObjectHash> = BTreeMap::new();
        for (id, newest) in ordered {
            let held = definitions.held.get(id);
            let object = held.unwrap_or(newest);
            let meta = &object.metadata;
            let secrets = SecretsOf { definitions, namespace: meta.namespace.as_deref().unwrap_or_default() };
            // A report is of the newest state: that its Secret is missing among those named tells that it is not served yet.
            secrets_named.extend(secrets.states(&newest.spec));
            let uid = meta.uid.clone().unwrap_or_default();
            let last = tls_before.remove(&uid);
            let key = (uid, meta.generation.unwrap_or_default(), secrets.digests(&object.spec));
            let (compiled, hash, last) = if let Some((compiled, hash)) = before.remove(&key) {
                (compiled, hash, last)
            } else {
                // States that did not change are taken out of it, and asked for by nobody.
                let states = states.get_or_init(|| by_uid(&before));
                let last = Last { tls: last, api: states.get(&key.0).map(AsRef::as_ref) };
                let (compiled, last) = compile_api(&object.spec, &self.pools, &self.counters, &secrets, last);
                (compiled, hash_of_api(meta), last)
            };
            snapshot.revision.apis.insert(held.map_or(hash, |_| hash_of_api(&newest.metadata)));
            self.tls.extend(last.map(|last| (key.0.clone(), last)));
            let name = ApiKey { name: object.spec.name.clone(), version: object.spec.version.clone() };
            let winner = owners.get(&name).cloned();
            let roles = object.spec.access.as_ref().and_then(|access| access.roles.as_deref()).unwrap_or_default();
            let named = roles.iter().map(String::as_str);
            let (errors, secret_errors): (&[FieldError], &[FieldError]) = match &compiled {
                Compiled::Ready(..) => (&[], &[]),
                Compiled::Invalid(errors) => (errors, &[]),
                Compiled::Secretless(errors) => (&[], errors),
            };
            // A stored API lets in who has a role of that name, whether or not there is one (reference: gateway behaviour 6.6).
            let is_stored = is_stored(meta);
            let is_role = |role: &str| is_stored || is_role(role);
            let verdict = verdict::of_api(&name, winner.as_deref(), errors, named, is_role, secret_errors);
            // What is wrong with a state that is on its way out says nothing of the one that is reported.
            if winner.is_none() && held.is_none() {
                snapshot.note_unusable(meta, &compiled);
            }
            let entry = match (&compiled, verdict) {
                (Compiled::Ready(api, _), Ok(())) => Some(Entry::Served(api.clone())),
                (_, Err(refusal)) => {
                    if held.is_none() {
                        snapshot.rejected.push(rejection("DoormanApi", meta, &refusal));
                    }
                    winner.is_none().then(|| Entry::Unservable(refusal.message.into()))
                }
                (_, Ok(())) => None,
            };
            if winner.is_some() {
                snapshot.shadowed.push(object.clone());
            } else {
                owners.insert(name.clone(), shown(meta));
            }
            if let Some(entry) = entry {
                snapshot.served += usize::from(matches!(entry, Entry::Served(_)));
                let file = definitions.files.get(&key.0).cloned();
                let definition = Definition { object: object.clone(), file };
                let version = Version { version: name.version.into(), entry, definition };
                snapshot.apis.entry(name.name.into()).or_default().push(version);
            }
            self.apis.insert(key, (compiled, hash));
        }
        snapshot.revision.secrets = secrets_named.into_values().collect();
        snapshot.roles = Arc::new(defined);
        drop((before, tls_before));
        self.pools.forget_unused();
        snapshot
    }
}

impl Snapshot {
    /// Says of an API that its Secrets can't be used, where the content is why.
    fn note_unusable(&mut self, meta: &ObjectMeta, compiled: &Compiled) {
        let (Compiled::Ready(_, errors) | Compiled::Secretless(errors)) = compiled else { return };
        if let Err(refusal) = verdict::all_of(errors)
            && refusal.reason == Reason::InvalidSecret
        {
            self.unusable.push(rejection("DoormanApi", meta, &refusal));
        }
    }
}

fn hash_of_api(meta: &ObjectMeta) -> ObjectHash {
    let uid = meta.uid.as_deref().unwrap_or_default();
    ObjectHash::of("DoormanApi", uid, meta.generation.unwrap_or_default(), &[])
}

fn rejection(kind: &str, meta: &ObjectMeta, refusal: &Refusal) -> Rejection {
    Rejection {
        kind: kind.to_owned(),
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        reason: refusal.reason.as_str().to_owned(),
        message: refusal.message.clone(),
    }
}

fn shown(meta: &ObjectMeta) -> String {
    shown_at(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

fn shown_at(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

/// The roles that are defined, each by the older of its claimants.
fn roles(definitions: &Definitions, snapshot: &mut Snapshot) -> DefinedRoles {
    let mut ordered: Vec<_> = definitions.roles.values().collect();
    ordered.sort_by(|a, b| selection::precedence(&a.metadata).cmp(&selection::precedence(&b.metadata)));
    let mut defined = DefinedRoles::new();
    for object in ordered {
        let meta = &object.metadata;
        let uid = meta.uid.as_deref().unwrap_or_default();
        let hash = ObjectHash::of("DoormanRole", uid, meta.generation.unwrap_or_default(), &[]);
        snapshot.revision.roles.insert(hash);
        let (name, errors) = (&object.spec.name, role::validate(&object.spec));
        let winner = defined.get(name.as_str()).map(|winner| shown_at(&winner.origin.namespace, &winner.origin.name));
        match verdict::of_role(name, winner.as_deref(), &errors) {
            Ok(()) => {
                let role = Arc::new(Role::from_spec(&object.spec));
                let origin = Origin::of(meta, definitions.files.get(uid));
                defined.insert(role.name.clone(), DefinedRole { role, origin });
            }
            Err(refusal) => snapshot.rejected.push(rejection("DoormanRole", meta, &refusal)),
        }
    }
    defined
}

/// The Secrets that an API in this namespace may name.
struct SecretsOf<'a> {
    definitions: &'a Definitions,
    namespace: &'a str,
}

impl<'a> SecretsOf<'a> {
    fn find(&self, name: &str) -> Result<&'a Secret, &'a NoSecret> {
        self.definitions.secrets.get(self.namespace, name).map(AsRef::as_ref)
    }

    /// Of what an API names, in the order of its fields.
    fn digests(&self, spec: &DoormanApiSpec) -> Vec<Result<String, NoSecret>> {
        let found = spec.secrets().map(|(_, name)| self.find(name));
        found.map(|found| found.map(|secret| secret.digest().to_owned()).map_err(Clone::clone)).collect()
    }

    /// Of those it names that are there.
    fn states<'b>(
        &'b self,
        spec: &'a DoormanApiSpec,
    ) -> impl Iterator<Item = ((&'a str, &'a str), ObjectHash)> + use<'a, 'b> {
        spec.secrets().filter_map(|(_, name)| Some(((self.namespace, name), self.find(name).ok()?.state())))
    }
}

/// What is known of an API from an earlier state of it.
struct Last<'a> {
    /// How it spoke TLS to its servers.
    tls: Option<(UpstreamTls, Arc<Tls>)>,
    api: Option<&'a CompiledApi>,
}

/// APIs by the uid of their object.
fn by_uid(compiled: &HashMap<ObjectKey, (Compiled, ObjectHash)>) -> HashMap<String, Arc<CompiledApi>> {
    let ready = compiled.iter().filter_map(|((uid, ..), (compiled, _))| match compiled {
        Compiled::Ready(api, _) => Some((uid.clone(), api.clone())),
        Compiled::Invalid(_) | Compiled::Secretless(_) => None,
    });
    ready.collect()
}

/// Compiles an API. With Secrets that hold what can't be used, it is called as `last`, if it asks for the same as then; one
/// that is gone, or may not be used any more, leaves no such way.
fn compile_api(
    spec: &DoormanApiSpec,
    pools: &Pools,
    counters: &PerApi,
    secrets: &SecretsOf<'_>,
    last: Last<'_>,
) -> (Compiled, Option<(UpstreamTls, Arc<Tls>)>) {
    let mut api = match api::parse(spec) {
        Ok(api) => api,
        Err(errors) => return (Compiled::Invalid(errors.into()), None),
    };
    let (tls, errors) = match &api.tls {
        None => (None, Vec::new()),
        Some(wanted) => match Tls::new(spec, wanted, |name| secrets.find(name)) {
            Ok(tls) => (Some((wanted.clone(), Arc::new(tls))), Vec::new()),
            Err(errors) => {
                let is_content = errors.iter().all(|error| error.reason == Reason::InvalidSecret);
                match last.tls.filter(|(asked, _)| is_content && asked == wanted) {
                    Some(last) => (Some(last), errors),
                    None => return (Compiled::Secretless(errors.into()), None),
                }
            }
        },
    };
    let before = last.api.map_or(&[][..], |before| &before.targets);
    let mut targets = Targets::new(pools, tls.as_ref().map(|(_, tls)| tls), before);
    let servers = Servers::compile(&std::mem::take(&mut api.servers), &mut targets);
    let label: Box<str> = api.key.to_string().into();
    let endpoints = std::mem::take(&mut api.endpoints);
    let paths = Paths::compile(&label, endpoints, |own| Servers::compile(own, &mut targets));
    let counter = counters.of(&label);
    let retries = last.api.map(|before| before.retries.clone()).unwrap_or_default();
    let targets = targets.into_all();
    (
        Compiled::Ready(Arc::new(CompiledApi { api, label, paths, servers, targets, retries, counter }), errors.into()),
        tls,
    )
}

#[cfg(test)]
mod tests;
