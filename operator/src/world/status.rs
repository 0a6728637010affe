//! What conditions say, as pure functions of what was observed.

use std::collections::BTreeMap;

use doorman_crds::api::{GatewayProgress, SecretVersion};
use doorman_crds::conditions::{
    self, ACCEPTED, AVAILABLE, KEYS_READY, PROGRAMMED, PROGRESSING, READY, RESOLVED_REFS, STORAGE_REACHABLE, Status,
};
use doorman_crds::gateway::{LaggingPod, StorageMode};
use doorman_crds::revision::Stores;
use doorman_crds::verdict::Refusal;
use doorman_crds::{DoormanApiStatus, DoormanGatewayStatus, DoormanRoleStatus, Reason};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::ObjectId;

/// Most pods named in a status.
const MAX_LAGGING: usize = 20;

/// How far a gateway's ready pods are with its objects of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acked {
    /// Too early to tell: nothing is said anew.
    #[default]
    Undecided,
    /// There is no ready pod.
    NoPods,
    /// Some ready pod does not say what it serves.
    Unknown,
    /// All ready pods serve this state of the [`super::track::Track`] or a later one.
    State(u64),
}

/// Which stores the pods of a gateway reach, by their own word.
#[derive(Debug, Default)]
pub struct Reached {
    answers: usize,
    missing: BTreeMap<&'static str, Vec<String>>,
}

impl Reached {
    /// Adds what one pod says.
    pub fn add(&mut self, pod: &str, stores: Stores) {
        self.answers += 1;
        for store in stores.missing() {
            self.missing.entry(store).or_default().push(pod.to_owned());
        }
    }

    /// Which store is not reached by which pods, in words; `None`: all are reached by all.
    fn missing(&self) -> Option<String> {
        let parts = self.missing.iter().map(|(store, pods)| {
            let named = pods.iter().take(MAX_LAGGING).map(String::as_str).collect::<Vec<_>>().join(", ");
            let more = if pods.len() > MAX_LAGGING { ", ..." } else { "" };
            format!("{store} is not reached by {} of {} pods: {named}{more}", pods.len(), self.answers)
        });
        (!self.missing.is_empty()).then(|| parts.collect::<Vec<_>>().join("; "))
    }
}

/// How far one gateway is with one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Progress {
    /// Too early to tell.
    #[default]
    Undecided,
    /// No ready pod.
    NoPods,
    /// Some ready pod does not answer.
    Unknown,
    /// Some ready pod serves an older form.
    Pending,
    /// All ready pods serve it.
    Served,
}

impl Progress {
    /// Of an object that is in the set since this state.
    pub fn of(acked: Acked, since: u64) -> Self {
        match acked {
            Acked::Undecided => Self::Undecided,
            Acked::NoPods => Self::NoPods,
            Acked::Unknown => Self::Unknown,
            Acked::State(state) if state >= since => Self::Served,
            Acked::State(_) => Self::Pending,
        }
    }

    /// The one that says less of two.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        if self.rank() <= other.rank() { self } else { other }
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Undecided => 0,
            Self::NoPods => 1,
            Self::Unknown => 2,
            Self::Pending => 3,
            Self::Served => 4,
        }
    }
}

/// One gateway that takes an object.
#[derive(Clone, Debug)]
pub struct Taker {
    /// The gateway.
    pub gateway: ObjectId,
    /// Whether it serves the object.
    pub verdict: Result<(), Refusal>,
    /// How far its pods are.
    pub progress: Progress,
    /// Ready pods that serve this form.
    pub acked: usize,
    /// Ready pods.
    pub expected: usize,
}

/// What `Programmed` comes to over all gateways.
struct Programmed {
    status: Status,
    reason: &'static str,
    message: String,
}

fn programmed(takers: &[Taker]) -> Option<Programmed> {
    let says = |status, reason, message: String| Some(Programmed { status, reason, message });
    let named = |progress: &Progress| takers.iter().find(|t| t.progress == *progress).map(|t| t.gateway.to_string());
    if takers.is_empty() {
        let message = "no DoormanGateway takes this object: see its spec.apis and this object's labels and gatewayRefs";
        return says(Status::False, "NoGateway", message.to_owned());
    }
    if named(&Progress::Undecided).is_some() {
        None
    } else if let Some(gateway) = named(&Progress::NoPods) {
        says(Status::False, "NoReadyPods", format!("DoormanGateway {gateway} has no ready pod"))
    } else if let Some(gateway) = named(&Progress::Unknown) {
        let message = format!("some pod of DoormanGateway {gateway} does not tell what it serves: see its status");
        says(Status::Unknown, "PodsUnreachable", message)
    } else if let Some(gateway) = named(&Progress::Pending) {
        let message = format!("waiting for the pods of DoormanGateway {gateway}: see its status");
        says(Status::False, "Pending", message)
    } else {
        says(Status::True, "Programmed", "all ready pods serve this generation".to_owned())
    }
}

/// Conditions and their times: what is wanted, after what was.
struct Writer<'a> {
    old: &'a [Condition],
    generation: Option<i64>,
    now: &'a Time,
    wanted: Vec<Condition>,
}

impl<'a> Writer<'a> {
    fn new(old: Option<&'a Vec<Condition>>, generation: Option<i64>, now: &'a Time) -> Self {
        Self { old: old.map_or(&[], Vec::as_slice), generation, now, wanted: Vec::new() }
    }

    fn say(&mut self, type_: &str, status: Status, reason: &str, message: impl Into<String>) {
        self.wanted.push(conditions::condition(type_, status, reason, message, self.generation, self.now));
    }

    /// Keeps what was said of this generation; until something was, the answer is not known.
    fn keep(&mut self, type_: &str) {
        let old = conditions::find(self.old, type_).filter(|old| old.observed_generation == self.generation).cloned();
        match old {
            Some(old) => self.wanted.push(old),
            None => self.say(type_, Status::Unknown, "Pending", "waiting for the pods' first word"),
        }
    }

    /// `Ready` is true when the others of `kinds` are; else it repeats the first that is not.
    fn ready(&mut self, kinds: &[&str], message: &str) {
        let first = kinds.iter().find_map(|kind| {
            let condition = conditions::find(&self.wanted, kind)?;
            (condition.status != Status::True.as_str()).then(|| condition.clone())
        });
        match first {
            None => self.say(READY, Status::True, "Ready", message),
            Some(first) => {
                let status = if first.status == Status::False.as_str() { Status::False } else { Status::Unknown };
                self.say(READY, status, &first.reason, format!("{}: {}", first.type_, first.message));
            }
        }
    }

    fn finish(self) -> Vec<Condition> {
        conditions::merge(self.old, self.wanted)
    }
}

fn first_refusal(takers: &[Taker], is_ref: bool) -> Option<&Refusal> {
    let refusals = takers.iter().filter_map(|taker| taker.verdict.as_ref().err());
    refusals.into_iter().find(|refusal| refusal.reason.is_of_reference() == is_ref)
}

fn say_programmed(writer: &mut Writer<'_>, takers: &[Taker], refusal: Option<&Refusal>) {
    match (refusal, programmed(takers)) {
        (Some(refusal), _) => {
            let message = match refusal.reason {
                Reason::InvalidSecret => {
                    "served with the last Secret that could be used by pods that had one, by others not"
                }
                _ => "it is not served: see the other conditions",
            };
            writer.say(PROGRAMMED, Status::False, refusal.reason.as_str(), message);
        }
        (None, Some(programmed)) => writer.say(PROGRAMMED, programmed.status, programmed.reason, programmed.message),
        (None, None) => writer.keep(PROGRAMMED),
    }
}

/// Status of a DoormanApi; `own` is what is wrong with it whoever takes it, `secrets` those that it names as they are.
pub fn of_api(
    old: &DoormanApiStatus,
    generation: Option<i64>,
    own: Option<&Refusal>,
    takers: &[Taker],
    secrets: Vec<SecretVersion>,
    now: &Time,
) -> DoormanApiStatus {
    let mut writer = Writer::new(old.conditions.as_ref(), generation, now);
    let refused = own.or_else(|| first_refusal(takers, false));
    let unresolved = first_refusal(takers, true);
    match refused {
        Some(refusal) => writer.say(ACCEPTED, Status::False, refusal.reason.as_str(), &refusal.message),
        None => writer.say(ACCEPTED, Status::True, "Accepted", "the definition is valid"),
    }
    match (refused, unresolved) {
        (_, Some(refusal)) => writer.say(RESOLVED_REFS, Status::False, refusal.reason.as_str(), &refusal.message),
        (Some(_), None) => writer.say(RESOLVED_REFS, Status::Unknown, "NotAccepted", "the definition is not accepted"),
        (None, None) => writer.say(RESOLVED_REFS, Status::True, "ResolvedRefs", "everything it refers to exists"),
    }
    say_programmed(&mut writer, takers, refused.or(unresolved));
    writer.ready(&[ACCEPTED, RESOLVED_REFS, PROGRAMMED], "it is served");
    let gateways: Vec<_> = takers
        .iter()
        .map(|taker| GatewayProgress {
            namespace: taker.gateway.namespace.clone(),
            name: taker.gateway.name.clone(),
            acked: i32::try_from(taker.acked).unwrap_or(i32::MAX),
            expected: i32::try_from(taker.expected).unwrap_or(i32::MAX),
        })
        .collect();
    let new = DoormanApiStatus {
        observed_generation: generation,
        conditions: Some(writer.finish()),
        gateways: (!gateways.is_empty()).then_some(gateways),
        secrets: (!secrets.is_empty()).then_some(secrets),
    };
    // The counts tell how it was when the conditions were decided; alone they are not worth a write.
    let names = |status: &DoormanApiStatus| -> Vec<(String, String)> {
        status.gateways.iter().flatten().map(|g| (g.namespace.clone(), g.name.clone())).collect()
    };
    if new.conditions == old.conditions
        && names(&new) == names(old)
        && new.observed_generation == old.observed_generation
        && new.secrets == old.secrets
    {
        return old.clone();
    }
    new
}

/// Status of a DoormanRole; `own` is what is wrong with it whoever takes it.
pub fn of_role(
    old: &DoormanRoleStatus,
    generation: Option<i64>,
    own: Option<&Refusal>,
    takers: &[Taker],
    now: &Time,
) -> DoormanRoleStatus {
    let mut writer = Writer::new(old.conditions.as_ref(), generation, now);
    let refused = own.or_else(|| first_refusal(takers, false));
    match refused {
        Some(refusal) => writer.say(ACCEPTED, Status::False, refusal.reason.as_str(), &refusal.message),
        None => writer.say(ACCEPTED, Status::True, "Accepted", "the definition is valid"),
    }
    say_programmed(&mut writer, takers, refused);
    writer.ready(&[ACCEPTED, PROGRAMMED], "it is in force");
    DoormanRoleStatus { observed_generation: generation, conditions: Some(writer.finish()) }
}

/// What is known of a gateway's Deployment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rollout {
    /// Pods wanted.
    pub wanted: i32,
    /// Pods that exist.
    pub replicas: i32,
    /// Pods of the current template.
    pub updated: i32,
    /// Pods that are ready.
    pub ready: i32,
    /// Pods that have been ready long enough.
    pub available: i32,
    /// Whether these numbers speak of the current spec.
    pub is_observed: bool,
    /// The Deployment's own `Available` condition.
    pub is_available: bool,
    /// Why it is stuck, by its `Progressing` or `ReplicaFailure` condition.
    pub stuck: Option<String>,
    /// Selector of the pods as text.
    pub selector: String,
}

impl Rollout {
    /// Whether all pods are there, of the current template, and no others.
    pub fn is_complete(&self) -> bool {
        self.is_observed && self.updated == self.wanted && self.available == self.wanted && self.replicas == self.wanted
    }
}

/// What was observed of a gateway, as far as its status tells it.
#[derive(Debug)]
pub struct Fleet<'a> {
    /// Generation of the spec that this speaks of.
    pub generation: Option<i64>,
    /// Why the spec can't be turned into pods.
    pub refused: Option<&'a Refusal>,
    /// Where state lives; `None`: the spec was never read.
    pub storage: Option<StorageMode>,
    /// Keys that are missing, in words; `None`: not looked up yet.
    pub missing_keys: Option<&'a [String]>,
    /// Why the last attempt to write the objects failed.
    pub failure: Option<&'a str>,
    /// Its Deployment, once it exists.
    pub rollout: Option<&'a Rollout>,
    /// How far its ready pods are.
    pub progress: Progress,
    /// Ready pods that do not serve the wanted revision.
    pub lagging: Vec<LaggingPod>,
    /// Ready pods as the operator sees them.
    pub ready_pods: usize,
    /// What the pods say of their stores.
    pub stores: &'a Reached,
    /// DoormanApi objects it takes.
    pub apis: usize,
}

/// Status of a DoormanGateway.
pub fn of_gateway(old: &DoormanGatewayStatus, fleet: Fleet<'_>, now: &Time) -> DoormanGatewayStatus {
    let mut writer = Writer::new(old.conditions.as_ref(), fleet.generation, now);
    match fleet.refused {
        Some(refusal) => writer.say(ACCEPTED, Status::False, refusal.reason.as_str(), &refusal.message),
        None => writer.say(ACCEPTED, Status::True, "Accepted", "the spec is valid"),
    }
    match fleet.missing_keys {
        None => writer.keep(KEYS_READY),
        Some([]) => writer.say(KEYS_READY, Status::True, "KeysReady", "all Secrets exist"),
        Some(missing) => writer.say(KEYS_READY, Status::False, "SecretNotFound", missing.join("; ")),
    }
    match (fleet.storage, fleet.stores.answers, fleet.stores.missing()) {
        (Some(StorageMode::Memory), ..) => {
            writer.say(STORAGE_REACHABLE, Status::True, "Memory", "state lives in the pod");
        }
        (Some(StorageMode::External), 0, _) if fleet.ready_pods == 0 => {
            let message = "no pod is ready: a pod starts when Redis and MongoDB answer it";
            writer.say(STORAGE_REACHABLE, Status::Unknown, "NoReadyPods", message);
        }
        (Some(StorageMode::External), 0, _) if fleet.progress == Progress::Unknown => {
            writer.say(STORAGE_REACHABLE, Status::Unknown, "PodsUnreachable", "no pod tells which stores it reaches");
        }
        (None, ..) | (Some(StorageMode::External), 0, _) => writer.keep(STORAGE_REACHABLE),
        (Some(StorageMode::External), _, Some(missing)) => {
            writer.say(STORAGE_REACHABLE, Status::False, "Unreachable", missing);
        }
        (Some(StorageMode::External), _, None) => {
            writer.say(STORAGE_REACHABLE, Status::True, "Reachable", "the pods reach Redis and MongoDB");
        }
    }
    let rollout = fleet.rollout.cloned().unwrap_or_default();
    let counts =
        format!("{} of {} pods are up to date and available", rollout.updated.min(rollout.available), rollout.wanted);
    let is_settled = fleet.rollout.is_some() && rollout.is_complete() && fleet.failure.is_none();
    match (fleet.failure, &rollout.stuck) {
        (Some(failure), _) => writer.say(PROGRESSING, Status::False, "ApplyFailed", failure),
        (None, Some(stuck)) => writer.say(PROGRESSING, Status::False, "RolloutStuck", stuck),
        (None, None) if is_settled => writer.say(PROGRESSING, Status::False, "Settled", "the rollout is complete"),
        (None, None) => writer.say(PROGRESSING, Status::True, "RollingOut", &counts),
    }
    if fleet.rollout.is_none() {
        writer.say(AVAILABLE, Status::False, "NoDeployment", "the Deployment does not exist yet");
    } else if rollout.wanted == 0 {
        writer.say(AVAILABLE, Status::False, "ScaledToZero", "spec.replicas is 0");
    } else if rollout.is_available {
        writer.say(AVAILABLE, Status::True, "Available", "enough pods are available");
    } else {
        writer.say(AVAILABLE, Status::False, "Unavailable", "not enough pods are available");
    }
    let names = fleet.lagging.iter().map(|pod| pod.name.as_str()).take(MAX_LAGGING).collect::<Vec<_>>().join(", ");
    match fleet.progress {
        Progress::Undecided => writer.keep(PROGRAMMED),
        Progress::NoPods => writer.say(PROGRAMMED, Status::False, "NoReadyPods", "no pod is ready"),
        Progress::Unknown => {
            writer.say(PROGRAMMED, Status::Unknown, "PodsUnreachable", format!("no word from {names}"));
        }
        Progress::Pending => {
            writer.say(PROGRAMMED, Status::False, "PodsBehind", format!("waiting for {names}"));
        }
        Progress::Served => {
            writer.say(PROGRAMMED, Status::True, "Programmed", "all ready pods serve the wanted revision");
        }
    }
    writer.ready(&[ACCEPTED, KEYS_READY, STORAGE_REACHABLE, AVAILABLE, PROGRAMMED], "the fleet serves");
    // Ready while pods are still being replaced would tell "finished" too early.
    if !is_settled
        && let Some(ready) = writer.wanted.iter_mut().find(|c| c.type_ == READY && c.status == Status::True.as_str())
    {
        let progressing = if fleet.failure.is_some() { "ApplyFailed" } else { "RollingOut" };
        Status::False.as_str().clone_into(&mut ready.status);
        progressing.clone_into(&mut ready.reason);
        ready.message = fleet.failure.map_or(counts, str::to_owned);
    }
    DoormanGatewayStatus {
        observed_generation: fleet.generation,
        conditions: Some(writer.finish()),
        replicas: fleet.rollout.map(|rollout| rollout.replicas),
        ready_replicas: fleet.rollout.map(|rollout| rollout.ready),
        selector: fleet.rollout.map(|rollout| rollout.selector.clone()),
        apis: Some(i32::try_from(fleet.apis).unwrap_or(i32::MAX)),
        lagging_pods: (!fleet.lagging.is_empty()).then(|| fleet.lagging.into_iter().take(MAX_LAGGING).collect()),
    }
}
