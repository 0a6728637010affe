//! Everything the operator knows, and what follows from it: a state that takes events in and plans writes. No I/O, no
//! clock: time comes with each call.
//!
//! Cost: an event costs what it touches. A changed API costs itself times the gateways that take it, a pod's report
//! costs the pods of its gateway plus the objects whose answer it changes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use doorman_crds::api::{ApiKey, Consent};
use doorman_crds::gateway::ADMIN_PORT;
use doorman_crds::gateway::GatewayRef;
use doorman_crds::revision::{ObjectHash, Revision, RevisionReport, Stores};
use doorman_crds::selection::{self, Selection};
use doorman_crds::verdict::{self, Refusal};
use doorman_crds::{
    DoormanApi, DoormanApiStatus, DoormanGateway, DoormanGatewayStatus, DoormanRole, DoormanRoleStatus, FieldError,
};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::render::{Installation, Kind, Object, Rendered, Secrets};

mod events;
mod plan;
mod status;
mod track;

#[cfg(test)]
mod tests;

use status::{Acked, Rollout};
use track::Track;

/// How long a ready pod may stay silent before that is said of everything it serves.
const SILENCE: Duration = Duration::from_secs(10);
/// How long a gateway may be without ready pods before that is said of everything it serves.
const EMPTY: Duration = Duration::from_secs(3);
/// How long a pod may be behind before its gateway says so.
const BEHIND: Duration = Duration::from_secs(1);
/// How long the pods get to take a change up before it is called pending: mostly they are faster, and it is never written.
const TAKE_UP: Duration = Duration::from_millis(300);
/// Least time between two writes of a gateway's status that differ in counts only.
const COUNTS: Duration = Duration::from_secs(1);
/// Most writes of status at once.
const WRITES: usize = 16;
/// Pause after a failed write; doubles up to [`MAX_PAUSE`].
const PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// Namespace and name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId {
    /// Its namespace; empty for what has none.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl ObjectId {
    /// Of an object.
    pub fn of(meta: &ObjectMeta) -> Self {
        Self { namespace: meta.namespace.clone().unwrap_or_default(), name: meta.name.clone().unwrap_or_default() }
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What became of an object.
#[derive(Clone, Debug)]
pub enum Change<K> {
    /// It is like this now.
    Put(Box<K>),
    /// It exists and does not have the shape of its kind.
    Unreadable(Box<ObjectMeta>, String),
    /// It is gone.
    Gone(ObjectId),
}

/// A rendered object in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OwnedKey {
    /// What it is.
    pub kind: Kind,
    /// Where it is; a cluster-wide object has no namespace.
    pub id: ObjectId,
}

impl OwnedKey {
    /// Of a rendered object.
    pub fn of(object: &Object) -> Self {
        let namespace = object.namespace.clone().unwrap_or_default();
        Self { kind: object.kind, id: ObjectId { namespace, name: object.name.clone() } }
    }
}

/// What is known of a Secret: never what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretMeta {
    /// Its uid.
    pub uid: String,
    /// Its resource version.
    pub version: String,
    /// Whom its owner lets APIs use it for.
    pub consent: Consent,
}

impl SecretMeta {
    /// Of a Secret's metadata.
    pub fn of(meta: &ObjectMeta) -> Self {
        Self {
            uid: meta.uid.clone().unwrap_or_default(),
            version: meta.resource_version.clone().unwrap_or_default(),
            consent: Consent::of(meta),
        }
    }

    /// Whether its owner lets this gateway use it, as the Secret of that name.
    fn is_for(&self, id: &ObjectId, gateway: &ObjectId) -> bool {
        self.consent.covers(&id.namespace, &gateway.namespace, &gateway.name).is_ok()
    }
}

/// Which state of a rendered object this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The object's uid.
    pub uid: String,
    /// Its generation, or its resource version where the kind has no generation: it grows with every change of the spec.
    pub number: u64,
}

impl Version {
    /// Of an object as the API server returned it.
    pub fn of(meta: &ObjectMeta) -> Self {
        let generation = meta.generation.and_then(|generation| u64::try_from(generation).ok()).filter(|g| *g > 0);
        let version = || meta.resource_version.as_deref().and_then(|version| version.parse().ok());
        Self { uid: meta.uid.clone().unwrap_or_default(), number: generation.or_else(version).unwrap_or_default() }
    }

    fn is_after(&self, other: &Self) -> bool {
        self.uid != other.uid || self.number > other.number
    }
}

/// A rendered object as the watch shows it.
#[derive(Clone, Debug)]
pub struct Owned {
    /// Its state.
    pub version: Version,
    /// Uid of the DoormanGateway that owns it.
    pub owner: Option<String>,
    /// The gateway its labels name, for cluster-wide objects.
    pub gateway: Option<ObjectId>,
}

/// A rendered object as it was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// What was applied.
    pub manifest: serde_json::Value,
    /// What came of it.
    pub version: Version,
}

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// To a gateway.
    Gateway(Change<DoormanGateway>),
    /// To an API.
    Api(Change<DoormanApi>),
    /// To a role.
    Role(Change<DoormanRole>),
    /// To a namespace's labels.
    Namespace(String, Option<BTreeMap<String, String>>),
    /// To a pod of some gateway.
    Pod(Change<Pod>),
    /// To a Deployment of some gateway.
    Deployment(Change<Deployment>),
    /// To a rendered object.
    Owned(OwnedKey, Option<Owned>),
    /// To a Secret, maybe one that a gateway or an API uses.
    Secret(ObjectId, Option<SecretMeta>),
    /// A pod, by uid, says what it serves, and which stores it reaches if it uses any.
    Report(String, Box<RevisionReport>),
    /// A pod, by uid, can't be heard.
    Silent(String),
    /// A status was written, or why not.
    Written(Target, Result<(), WriteError>),
    /// A gateway's objects were written.
    Reconciled(ObjectId, Outcome),
    /// Every watch has delivered its first list.
    Complete,
}

/// Why a status was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteError {
    /// The object is gone or another one by now; its events tell.
    Gone,
    /// Anything else; worth another try.
    Failed,
}

/// What came of writing a gateway's objects.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Everything that is applied now.
    pub applied: BTreeMap<OwnedKey, Applied>,
    /// Needed keys that don't exist, in words; `None` when they could not be looked up.
    pub missing_keys: Option<Vec<String>>,
    /// What went wrong first.
    pub failure: Option<String>,
    /// Namespaces whose Secrets could not be granted, and why.
    pub ungranted: BTreeMap<String, String>,
}

/// An object with a status. Gateways come first: what they say of their pods decides about the others.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// A gateway.
    Gateway(ObjectId),
    /// A role.
    Role(ObjectId),
    /// An API.
    Api(ObjectId),
}

/// A status to write.
#[derive(Clone, Debug, PartialEq)]
pub enum StatusOf {
    /// Of a gateway.
    Gateway(DoormanGatewayStatus),
    /// Of a role.
    Role(DoormanRoleStatus),
    /// Of an API.
    Api(DoormanApiStatus),
}

/// Something to do.
#[derive(Debug)]
pub enum Action {
    /// Write a status, of the object with this uid only.
    Write(Target, String, StatusOf),
    /// Bring a gateway's objects to what is rendered.
    Reconcile(Box<Job>),
    /// Remove a cluster-wide object whose gateway is gone; said once, a failure is reported as if it had just been seen.
    Remove(OwnedKey, Owned),
}

/// A gateway's objects, as they should be.
#[derive(Debug)]
pub struct Job {
    /// The gateway.
    pub gateway: ObjectId,
    /// What should be.
    pub rendered: Rendered,
    /// What was applied before and is still so.
    pub applied: BTreeMap<OwnedKey, Applied>,
    /// What should not be any more.
    pub remove: Vec<OwnedKey>,
}

/// One claim to a name; the least in this order wins.
type Claim = (i64, ObjectId, String);

fn claim(meta: &ObjectMeta) -> Claim {
    let (created, _, _, uid) = selection::precedence(meta);
    (created, ObjectId::of(meta), uid.to_owned())
}

/// Claims to names within one gateway.
#[derive(Debug)]
struct Claims<N>(HashMap<N, BTreeSet<Claim>>);

impl<N> Default for Claims<N> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<N: std::hash::Hash + Eq + Clone> Claims<N> {
    fn winner(&self, name: &N) -> Option<&ObjectId> {
        self.0.get(name).and_then(|claims| claims.first()).map(|(_, id, _)| id)
    }

    fn others<'a>(&'a self, name: &N) -> impl Iterator<Item = &'a ObjectId> + use<'a, N> {
        self.0.get(name).into_iter().flatten().map(|(_, id, _)| id)
    }

    fn add(&mut self, name: &N, claim: Claim) {
        self.0.entry(name.clone()).or_default().insert(claim);
    }

    fn remove(&mut self, name: &N, claim: &Claim) {
        if let Some(claims) = self.0.get_mut(name) {
            claims.remove(claim);
            if claims.is_empty() {
                self.0.remove(name);
            }
        }
    }
}

/// What is kept of an API.
#[derive(Debug)]
struct ApiRecord {
    meta: ObjectMeta,
    refs: Option<Vec<GatewayRef>>,
    key: ApiKey,
    roles: Vec<String>,
    /// Names of Secrets, each with its field.
    secrets: Vec<(&'static str, String)>,
    errors: Vec<FieldError>,
    /// `None` when it can't be read, so that no gateway counts it.
    hash: Option<ObjectHash>,
    status: DoormanApiStatus,
    changed: Instant,
}

/// What is kept of a role.
#[derive(Debug)]
struct RoleRecord {
    meta: ObjectMeta,
    refs: Option<Vec<GatewayRef>>,
    name: String,
    errors: Vec<FieldError>,
    hash: Option<ObjectHash>,
    status: DoormanRoleStatus,
    changed: Instant,
}

/// What is kept of a gateway.
#[derive(Debug)]
struct GatewayRecord {
    meta: ObjectMeta,
    /// As it was last read, maybe long before `meta`; `None` when it never was.
    object: Option<Arc<DoormanGateway>>,
    refusal: Option<Refusal>,
    /// What it takes by that.
    selection: Option<Selection>,
    status: DoormanGatewayStatus,
    status_written: Option<Instant>,
    apis: Track,
    roles: Track,
    /// Those that its APIs name and that it may use and read.
    secrets: Track,
    /// The APIs that name a Secret.
    users: BTreeMap<ObjectId, BTreeSet<ObjectId>>,
    api_claims: Claims<ApiKey>,
    role_claims: Claims<String>,
    apis_acked: Acked,
    roles_acked: Acked,
    secrets_acked: Acked,
    /// Secrets to be granted when its objects were last rendered, those that are granted, and namespaces where that failed.
    asked: Secrets,
    granted: Secrets,
    /// Secrets for which there was no room then: the gateway reads as many of their namespace as it may.
    beyond: BTreeSet<ObjectId>,
    ungranted: BTreeMap<String, String>,
    empty_since: Option<Instant>,
    needed: BTreeSet<String>,
    applied: BTreeMap<OwnedKey, Applied>,
    /// Rendered objects that the watch told of since the reconcile that runs began, each with the uids that went.
    told: BTreeMap<OwnedKey, BTreeSet<String>>,
    is_reconcile_wanted: bool,
    is_reconciling: bool,
    /// Generation of the spec that was last rendered, and of the one whose objects are all written.
    rendered: Option<i64>,
    written: Option<i64>,
    retry: Option<Instant>,
    failures: u32,
    missing_keys: Option<Vec<String>>,
    failure: Option<String>,
}

impl GatewayRecord {
    fn new(meta: ObjectMeta) -> Self {
        Self {
            meta,
            object: None,
            refusal: None,
            selection: None,
            status: DoormanGatewayStatus::default(),
            status_written: None,
            apis: Track::default(),
            roles: Track::default(),
            secrets: Track::default(),
            users: BTreeMap::new(),
            api_claims: Claims::default(),
            role_claims: Claims::default(),
            apis_acked: Acked::Undecided,
            roles_acked: Acked::Undecided,
            secrets_acked: Acked::Undecided,
            asked: Secrets::new(),
            granted: Secrets::new(),
            beyond: BTreeSet::new(),
            ungranted: BTreeMap::new(),
            empty_since: None,
            needed: BTreeSet::new(),
            applied: BTreeMap::new(),
            told: BTreeMap::new(),
            is_reconcile_wanted: true,
            is_reconciling: false,
            rendered: None,
            written: None,
            retry: None,
            failures: 0,
            missing_keys: None,
            failure: None,
        }
    }

    /// Whether it takes an object, `labels` being those of a namespace. One that was never read takes nothing.
    fn takes<'a>(
        &self,
        meta: &ObjectMeta,
        refs: Option<&[GatewayRef]>,
        labels: impl FnOnce(&str) -> Option<&'a BTreeMap<String, String>>,
    ) -> bool {
        self.selection.as_ref().is_some_and(|selection| selection.takes(meta, refs, labels))
    }

    fn is_role(&self, name: &str) -> bool {
        self.role_claims.winner(&name.to_owned()).is_some() || verdict::built_in_roles().contains(name)
    }
}

/// What is kept of a pod.
#[derive(Debug)]
struct PodRecord {
    uid: String,
    labels: BTreeMap<String, String>,
    address: Option<IpAddr>,
    is_ready: bool,
    is_terminating: bool,
    report: Option<Revision>,
    /// APIs whose Secrets it can't use, with its words; the namespaces of which these are not all.
    unusable: BTreeMap<ObjectId, String>,
    untold: BTreeSet<String>,
    stores: Option<Stores>,
    is_heard: bool,
    uncertain_since: Option<Instant>,
    behind_since: Option<Instant>,
}

/// What is kept of a Deployment.
#[derive(Debug)]
struct DeploymentRecord {
    owner: Option<String>,
    pod_labels: BTreeMap<String, String>,
    rollout: Rollout,
}

/// What is to be looked at, now or later.
#[derive(Debug, Default)]
struct Queue {
    now: BTreeSet<Target>,
    later: BTreeSet<(Instant, Target)>,
}

impl Queue {
    fn mark(&mut self, target: Target) {
        self.now.insert(target);
    }

    fn mark_apis<'a>(&mut self, ids: impl IntoIterator<Item = &'a ObjectId>) {
        self.now.extend(ids.into_iter().cloned().map(Target::Api));
    }

    fn mark_roles<'a>(&mut self, ids: impl IntoIterator<Item = &'a ObjectId>) {
        self.now.extend(ids.into_iter().cloned().map(Target::Role));
    }

    fn at(&mut self, time: Instant, target: Target) {
        self.later.insert((time, target));
    }
}

/// The state.
#[derive(Debug)]
pub struct World {
    installation: Installation,
    is_complete: bool,
    gateways: BTreeMap<ObjectId, GatewayRecord>,
    apis: BTreeMap<ObjectId, ApiRecord>,
    roles: BTreeMap<ObjectId, RoleRecord>,
    secrets: BTreeMap<ObjectId, SecretMeta>,
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    pods: BTreeMap<ObjectId, PodRecord>,
    deployments: BTreeMap<ObjectId, DeploymentRecord>,
    owned: BTreeMap<OwnedKey, Owned>,
    queue: Queue,
    orphans_wanted: bool,
    in_flight: HashMap<Target, StatusOf>,
    failures: HashMap<Target, u32>,
}

impl World {
    /// Knows nothing yet; plans nothing before [`Event::Complete`].
    pub fn new(installation: Installation) -> Self {
        Self {
            installation,
            is_complete: false,
            gateways: BTreeMap::new(),
            apis: BTreeMap::new(),
            roles: BTreeMap::new(),
            secrets: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            pods: BTreeMap::new(),
            deployments: BTreeMap::new(),
            owned: BTreeMap::new(),
            queue: Queue::default(),
            orphans_wanted: false,
            in_flight: HashMap::new(),
            failures: HashMap::new(),
        }
    }

    /// Takes an event in.
    pub fn apply(&mut self, event: Event, now: Instant) {
        match event {
            Event::Gateway(change) => self.gateway(change),
            Event::Api(change) => self.api(change, now),
            Event::Role(change) => self.role(change, now),
            Event::Namespace(name, labels) => self.namespace(name, labels),
            Event::Pod(change) => self.pod(change),
            Event::Deployment(change) => self.deployment(change),
            Event::Owned(key, owned) => self.owned(key, owned),
            Event::Secret(id, meta) => self.secret(&id, meta, now),
            Event::Report(uid, report) => self.reported(&uid, *report),
            Event::Silent(uid) => self.heard(&uid, |pod| pod.is_heard = false),
            Event::Written(target, result) => self.written(target, result, now),
            Event::Reconciled(id, outcome) => self.reconciled(&id, outcome, now),
            Event::Complete => {
                self.is_complete = true;
                self.queue.now.extend(self.gateways.keys().cloned().map(Target::Gateway));
                self.queue.mark_apis(self.apis.keys());
                self.queue.mark_roles(self.roles.keys());
            }
        }
    }

    /// When [`Self::plan`] is due even if nothing happens.
    pub fn deadline(&self) -> Option<Instant> {
        self.queue.later.first().map(|(time, _)| *time)
    }

    /// Whom to listen to: address of the admin port by the pod's uid.
    pub fn listen_to(&self) -> HashMap<String, SocketAddr> {
        let heard = self.pods.values().filter(|pod| !pod.is_terminating);
        heard.filter_map(|pod| Some((pod.uid.clone(), SocketAddr::new(pod.address?, ADMIN_PORT)))).collect()
    }
}
