//! What follows from the state.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use doorman_crds::Reason;
use doorman_crds::api::{MAX_SECRETS, NoSecret, SecretVersion};
use doorman_crds::conditions::{self, RESOLVED_REFS};
use doorman_crds::gateway::LaggingPod;
use doorman_crds::selection::precedence;
use doorman_crds::verdict::{self, Refusal};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::status::{self, Acked, Fleet, Progress, Reached, Rollout, Taker};
use super::{
    Action, ApiRecord, BEHIND, COUNTS, EMPTY, GatewayRecord, Job, ObjectId, OwnedKey, PodRecord, SILENCE, SecretMeta,
    StatusOf, TAKE_UP, Target, Track, WRITES, World,
};
use crate::render::{self, Kind};

/// What a changed spec may leave over; everything else is always rendered.
const PRUNABLE: [Kind; 5] =
    [Kind::Role, Kind::RoleBinding, Kind::ClusterRoleBinding, Kind::NetworkPolicy, Kind::PodDisruptionBudget];

/// How far one pod is with one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PodAck {
    /// It serves this state.
    State(u64),
    /// It did not say yet.
    Hold,
    /// It does not say.
    Unknown,
}

/// How far all are, given how far they were.
fn together(before: Acked, pods: &[PodAck]) -> Acked {
    let lowest = pods.iter().filter_map(|pod| if let PodAck::State(state) = pod { Some(*state) } else { None }).min();
    if pods.contains(&PodAck::Unknown) {
        return Acked::Unknown;
    }
    match (pods.contains(&PodAck::Hold), before, lowest) {
        (false, _, Some(lowest)) => Acked::State(lowest),
        // Until a pod has spoken, nothing new counts as served, and what counted goes on counting.
        (true, Acked::State(before), lowest) => Acked::State(lowest.map_or(before, |lowest| lowest.min(before))),
        (true, Acked::Unknown, _) => Acked::Unknown,
        (true, Acked::Undecided | Acked::NoPods, _) => Acked::Undecided,
        (false, _, None) => Acked::NoPods,
    }
}

/// Takes in how far the pods are with one kind; the objects whose answer that changes.
fn acknowledge<'a>(track: &'a Track, acked: &mut Acked, pods: &[PodAck]) -> Vec<&'a ObjectId> {
    let after = together(*acked, pods);
    match (std::mem::replace(acked, after), after) {
        (Acked::State(a), Acked::State(b)) => track.changed(a.min(b), a.max(b)).collect(),
        (before, after) if before == after => Vec::new(),
        _ => track.members().collect(),
    }
}

impl GatewayRecord {
    /// Chooses the Secrets that it is to be granted: those that its APIs name and whose owners agree, of a namespace at most
    /// [`MAX_SECRETS`]. What is granted stays, since its pods use it, and so does what the status of an API speaks of, which
    /// is how an operator that has just started knows; of the rest, what older APIs name comes first. Returns the APIs that
    /// get another answer by that.
    fn choose_secrets(
        &mut self,
        own: &ObjectId,
        secrets: &BTreeMap<ObjectId, SecretMeta>,
        apis: &BTreeMap<ObjectId, ApiRecord>,
    ) -> BTreeSet<ObjectId> {
        let mut usable: BTreeMap<&str, Vec<&ObjectId>> = BTreeMap::new();
        for secret in self.users.keys() {
            if secrets.get(secret).is_some_and(|meta| meta.is_for(secret, own)) {
                usable.entry(&secret.namespace).or_default().push(secret);
            }
        }
        let (before, was_beyond) = (std::mem::take(&mut self.asked), std::mem::take(&mut self.beyond));
        for (namespace, mut named) in usable {
            if named.len() > MAX_SECRETS {
                let users = |secret| self.users.get(secret).into_iter().flatten().filter_map(|api| apis.get(api));
                let is_granted = |name| before.get(namespace).is_some_and(|names| names.contains(name));
                named.sort_by_cached_key(|&secret| {
                    let mut told = users(secret).flat_map(|api| api.status.secrets.iter().flatten());
                    let is_told = told.any(|told| told.name == secret.name);
                    let eldest = users(secret).map(|api| precedence(&api.meta)).min();
                    (!is_granted(&secret.name), !is_told, eldest)
                });
                self.beyond.extend(named.split_off(MAX_SECRETS).into_iter().cloned());
            }
            self.asked.insert(namespace.to_owned(), named.into_iter().map(|secret| secret.name.clone()).collect());
        }
        let changed = self.beyond.symmetric_difference(&was_beyond).filter_map(|secret| self.users.get(secret));
        changed.flatten().cloned().collect()
    }
}

/// How a Secret stands with a gateway one of whose APIs names it.
enum Standing {
    Refused(NoSecret),
    /// It is about to be granted.
    Awaited,
    /// It is in the gateway's set as it is since this state.
    Since(u64),
}

/// What the ready pods of a gateway come to with one API.
#[derive(Default)]
struct Counted {
    acked: usize,
    ready: usize,
    /// What one that is up to date says against the API's Secrets.
    unusable: Option<String>,
    /// Whether one that is up to date may have more to say.
    is_open: bool,
}

/// What a gateway's pods come to at one moment.
#[derive(Default)]
struct Seen {
    progress: Progress,
    lagging: Vec<LaggingPod>,
    ready: usize,
    stores: Reached,
}

impl World {
    /// What to do now. Everything returned counts as begun: its outcome must come back as an event.
    pub fn plan(&mut self, now: Instant, clock: &Time) -> Vec<Action> {
        let mut actions = Vec::new();
        if !self.is_complete {
            return actions;
        }
        while let Some((time, _)) = self.queue.later.first()
            && *time <= now
            && let Some((_, target)) = self.queue.later.pop_first()
        {
            self.queue.mark(target);
        }
        if std::mem::take(&mut self.orphans_wanted) {
            self.remove_orphans(&mut actions);
        }
        // Gateways sort first, so that what their pods say is settled before it is used.
        while let Some(target) = self.queue.now.first().cloned() {
            if !matches!(target, Target::Gateway(_)) && self.in_flight.len() >= WRITES {
                break;
            }
            self.queue.now.remove(&target);
            let write = match &target {
                Target::Gateway(id) => self.plan_gateway(id, now, clock, &mut actions),
                // What is being written is looked at again when that is done.
                _ if self.in_flight.contains_key(&target) => None,
                Target::Api(id) => self.plan_api(id, now, clock),
                Target::Role(id) => self.plan_role(id, now, clock),
            };
            if let Some((uid, status)) = write {
                self.in_flight.insert(target.clone(), status.clone());
                actions.push(Action::Write(target, uid, status));
            }
        }
        actions
    }

    /// Cluster-wide objects can't be owned by a gateway, so nobody else removes them.
    fn remove_orphans(&mut self, actions: &mut Vec<Action>) {
        let gateways = &self.gateways;
        self.owned.retain(|key, owned| {
            let is_orphan = owned.gateway.as_ref().is_some_and(|id| !gateways.contains_key(id));
            if is_orphan {
                actions.push(Action::Remove(key.clone(), owned.clone()));
            }
            !is_orphan
        });
    }

    fn plan_gateway(
        &mut self,
        id: &ObjectId,
        now: Instant,
        clock: &Time,
        actions: &mut Vec<Action>,
    ) -> Option<(String, StatusOf)> {
        let seen = self.settle(id, now)?;
        if let Some(job) = self.job(id, now) {
            actions.push(Action::Reconcile(Box::new(job)));
        }
        let target = Target::Gateway(id.clone());
        let rollout = self.rollout_of(id);
        let record = self.gateways.get(id)?;
        let is_terminating = record.meta.deletion_timestamp.is_some();
        if self.in_flight.contains_key(&target) || is_terminating {
            return None;
        }
        if !self.is_written_and_seen(record) {
            return None;
        }
        let fleet = Fleet {
            generation: record.meta.generation,
            refused: record.refusal.as_ref(),
            storage: record.object.as_ref().map(|object| object.spec.storage.mode),
            missing_keys: record.missing_keys.as_deref(),
            failure: record.failure.as_deref(),
            rollout: rollout.as_ref(),
            progress: seen.progress,
            lagging: seen.lagging,
            ready_pods: seen.ready,
            stores: &seen.stores,
            apis: record.apis.len(),
        };
        let wanted = status::of_gateway(&record.status, fleet, clock);
        if wanted == record.status {
            return None;
        }
        if wanted.conditions == record.status.conditions
            && let Some(due) = record.status_written.map(|written| written + COUNTS)
            && due > now
        {
            self.queue.at(due, target);
            return None;
        }
        Some((record.meta.uid.clone()?, StatusOf::Gateway(wanted)))
    }

    /// Whether what the watches show of a gateway's pods speaks of its newest spec; else a status would speak of an
    /// older rollout. Both come within moments, and their events ask again.
    fn is_written_and_seen(&self, record: &GatewayRecord) -> bool {
        if record.refusal.is_some() || record.failure.is_some() {
            return true;
        }
        let mut deployments = record.applied.iter().filter(|(key, _)| key.kind == Kind::Deployment);
        record.written == record.meta.generation
            && deployments.all(|(key, applied)| {
                self.owned.get(key).is_some_and(|owned| !applied.version.is_after(&owned.version))
            })
    }

    fn rollout_of(&self, id: &ObjectId) -> Option<Rollout> {
        let uid = self.gateways.get(id)?.meta.uid.as_deref()?;
        let mut own = self.deployments.iter().filter(|(deployment, record)| {
            deployment.namespace == id.namespace && record.owner.as_deref() == Some(uid)
        });
        own.next().map(|(_, record)| record.rollout.clone())
    }

    /// Brings what is known of a gateway's pods up to date and marks every object whose answer that changes.
    fn settle(&mut self, id: &ObjectId, now: Instant) -> Option<Seen> {
        let record = self.gateways.get_mut(id)?;
        if record.object.is_none() {
            // Nobody knows what the pods of a spec that was never read should serve.
            return Some(Seen::default());
        }
        let uid = record.meta.uid.as_deref();
        let labels = self.deployments.iter().find_map(|(deployment, own)| {
            (deployment.namespace == id.namespace && own.owner.as_deref() == uid).then_some(&own.pod_labels)
        });
        let belongs = |pod: &PodRecord| {
            labels.is_some_and(|labels| labels.iter().all(|(key, value)| pod.labels.get(key) == Some(value)))
        };
        let (mut apis, mut roles, mut secrets, mut lagging) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut is_behind, mut is_unsure) = (false, false);
        let mut stores = Reached::default();
        for (pod_id, pod) in &mut self.pods {
            if pod_id.namespace != id.namespace || pod.is_terminating || !belongs(pod) {
                continue;
            }
            if let Some(seen) = pod.stores.filter(|_| pod.is_heard) {
                stores.add(&pod_id.name, seen);
            }
            if !pod.is_ready {
                continue;
            }
            let api = pod.report.and_then(|report| record.apis.number_of(report.apis));
            let role = pod.report.and_then(|report| record.roles.number_of(report.roles));
            let secret = pod.report.and_then(|report| record.secrets.number_of(report.secrets));
            let is_certain = pod.is_heard && api.is_some() && role.is_some() && secret.is_some();
            let since = if is_certain { None } else { Some(pod.uncertain_since.unwrap_or(now)) };
            pod.uncertain_since = since;
            let is_silent = since.is_some_and(|since| now >= since + SILENCE);
            if let Some(since) = since.filter(|_| !is_silent) {
                self.queue.at(since + SILENCE, Target::Gateway(id.clone()));
            }
            // A sum of one kind that was never seen here says nothing against the others.
            let ack = |state: Option<u64>| match state.filter(|_| pod.is_heard || !is_silent) {
                Some(state) => PodAck::State(state),
                None if is_silent => PodAck::Unknown,
                None => PodAck::Hold,
            };
            apis.push(ack(api));
            roles.push(ack(role));
            secrets.push(ack(secret));
            let is_current = api == Some(record.apis.number())
                && role == Some(record.roles.number())
                && secret == Some(record.secrets.number());
            pod.behind_since = if is_current { None } else { Some(pod.behind_since.unwrap_or(now)) };
            if is_silent {
                lagging.push(LaggingPod { name: pod_id.name.clone(), reason: "Unreachable".to_owned() });
            } else if let Some(since) = pod.behind_since {
                if !is_certain || now < since + BEHIND {
                    is_unsure = true;
                    self.queue.at(since + BEHIND, Target::Gateway(id.clone()));
                }
                if is_certain && now >= since + BEHIND {
                    is_behind = true;
                    lagging.push(LaggingPod { name: pod_id.name.clone(), reason: "Behind".to_owned() });
                }
            } else if !is_certain {
                is_unsure = true;
            }
        }
        let ready = apis.len();
        record.empty_since = (ready == 0).then(|| record.empty_since.unwrap_or(now));
        let is_held =
            record.empty_since.is_some_and(|since| now < since + EMPTY) && matches!(record.apis_acked, Acked::State(_));
        if is_held {
            self.queue.at(record.empty_since.unwrap_or(now) + EMPTY, Target::Gateway(id.clone()));
        } else {
            self.queue.mark_apis(acknowledge(&record.apis, &mut record.apis_acked, &apis));
            let before = record.roles_acked;
            self.queue.mark_roles(acknowledge(&record.roles, &mut record.roles_acked, &roles));
            if before != record.roles_acked {
                let with_roles = |api: &&ObjectId| self.apis.get(*api).is_some_and(|api| !api.roles.is_empty());
                self.queue.mark_apis(record.apis.members().filter(with_roles));
            }
            for secret in acknowledge(&record.secrets, &mut record.secrets_acked, &secrets) {
                self.queue.mark_apis(record.users.get(secret).into_iter().flatten());
            }
        }
        let progress = if ready == 0 {
            Progress::NoPods
        } else if [record.apis_acked, record.roles_acked, record.secrets_acked].contains(&Acked::Unknown) {
            Progress::Unknown
        } else if is_behind {
            Progress::Pending
        } else if is_unsure {
            Progress::Undecided
        } else {
            Progress::Served
        };
        Some(Seen { progress, lagging, ready, stores })
    }

    fn job(&mut self, id: &ObjectId, now: Instant) -> Option<Job> {
        let record = self.gateways.get_mut(id)?;
        if let Some(retry) = record.retry {
            if retry > now && !record.is_reconcile_wanted {
                self.queue.at(retry, Target::Gateway(id.clone()));
            } else {
                record.is_reconcile_wanted = true;
            }
        }
        let is_terminating = record.meta.deletion_timestamp.is_some();
        let object = record.object.clone().filter(|_| record.refusal.is_none() && !is_terminating)?;
        if !record.is_reconcile_wanted || record.is_reconciling {
            return None;
        }
        (record.is_reconcile_wanted, record.is_reconciling, record.retry) = (false, true, None);
        record.rendered = record.meta.generation;
        self.queue.mark_apis(&record.choose_secrets(id, &self.secrets, &self.apis));
        let rendered = render::render(&object, &self.installation, &record.asked);
        record.needed = rendered.needed.iter().map(|needed| needed.secret.clone()).collect();
        record.needed.extend(rendered.generated.iter().filter_map(|generated| generated.metadata.name.clone()));
        let wanted: BTreeSet<_> = rendered.all().map(OwnedKey::of).collect();
        let uid = record.meta.uid.as_deref();
        let remove = self.owned.iter().filter(|(key, owned)| {
            let is_own = (uid.is_some() && owned.owner.as_deref() == uid) || owned.gateway.as_ref() == Some(id);
            is_own && PRUNABLE.contains(&key.kind) && !wanted.contains(key)
        });
        let remove = remove.map(|(key, _)| key.clone()).collect();
        Some(Job { gateway: id.clone(), applied: std::mem::take(&mut record.applied), rendered, remove })
    }

    fn takers(&self, of: impl Fn(&ObjectId, &GatewayRecord) -> Option<Taker>) -> Vec<Taker> {
        self.gateways.iter().filter_map(|(id, gateway)| of(id, gateway)).collect()
    }

    /// What a gateway's ready pods say of an API, `serves` being those that are up to date with it.
    fn counts(&self, gateway: &ObjectId, api: &ObjectId, serves: impl Fn(&PodRecord) -> bool) -> Counted {
        let uid = self.gateways.get(gateway).and_then(|gateway| gateway.meta.uid.as_deref());
        let labels = self.deployments.values().find(|own| own.owner.as_deref() == uid).map(|own| &own.pod_labels);
        let own = self.pods.iter().filter(|(id, pod)| {
            id.namespace == gateway.namespace
                && pod.is_ready
                && !pod.is_terminating
                && labels.is_some_and(|labels| labels.iter().all(|(key, value)| pod.labels.get(key) == Some(value)))
        });
        own.fold(Counted::default(), |mut counted, (_, pod)| {
            counted.ready += 1;
            if serves(pod) {
                counted.acked += 1;
                counted.unusable = counted.unusable.or_else(|| pod.unusable.get(api).cloned());
                counted.is_open |= pod.untold.contains(&api.namespace);
            }
            counted
        })
    }

    fn standing(&self, gateway_id: &ObjectId, gateway: &GatewayRecord, secret: &ObjectId) -> Standing {
        let Some(meta) = self.secrets.get(secret) else { return Standing::Refused(NoSecret::NotFound) };
        if let Err(refused) = meta.consent.covers(&secret.namespace, &gateway_id.namespace, &gateway_id.name) {
            return Standing::Refused(refused);
        }
        match (gateway.secrets.since(secret), gateway.ungranted.get(&secret.namespace)) {
            (Some(since), _) => Standing::Since(since),
            (None, _) if gateway.beyond.contains(secret) => Standing::Refused(NoSecret::TooMany),
            (None, Some(said)) => Standing::Refused(NoSecret::Forbidden(Some(said.clone()))),
            (None, None) => Standing::Awaited,
        }
    }

    /// How far a gateway is with an API that it takes.
    fn taker(&self, id: &ObjectId, api: &ApiRecord, gateway_id: &ObjectId, gateway: &GatewayRecord) -> Option<Taker> {
        let since = gateway.apis.since(id)?;
        let winner = gateway.api_claims.winner(&api.key).filter(|winner| *winner != id).map(ToString::to_string);
        let named = api.roles.iter().map(String::as_str);
        let roles = api.roles.iter().filter_map(|role| gateway.roles.since(gateway.role_claims.winner(role)?));
        let mut progress = roles.fold(Progress::of(gateway.apis_acked, since), |progress, since| {
            progress.and(Progress::of(gateway.roles_acked, since))
        });
        let (mut refused, mut secrets_since) = (Vec::new(), 0);
        for (field, name) in &api.secrets {
            let secret = ObjectId { namespace: id.namespace.clone(), name: name.clone() };
            match self.standing(gateway_id, gateway, &secret) {
                Standing::Refused(why) => refused.push(why.error(field, name)),
                Standing::Awaited => {
                    progress = progress.and(Progress::Undecided);
                    // No pod can speak of it yet.
                    secrets_since = u64::MAX;
                }
                Standing::Since(since) => {
                    progress = progress.and(Progress::of(gateway.secrets_acked, since));
                    secrets_since = secrets_since.max(since);
                }
            }
        }
        let counted = self.counts(gateway_id, id, |pod| {
            pod.report.is_some_and(|report| {
                gateway.apis.number_of(report.apis).is_some_and(|state| state >= since)
                    && gateway.secrets.number_of(report.secrets).is_some_and(|state| state >= secrets_since)
            })
        });
        if counted.is_open && counted.unusable.is_none() && !api.secrets.is_empty() {
            progress = progress.and(Progress::Unknown);
        }
        let is_role = |role: &str| gateway.is_role(role);
        let verdict = verdict::of_api(&api.key, winner.as_deref(), &api.errors, named, is_role, &refused);
        // What is in a Secret only the pods can tell; until one does, what was told of it holds.
        let told = counted.unusable.or_else(|| self.told_before(id, api).filter(|_| counted.acked == 0));
        let told = told.map(|message| Refusal { reason: Reason::InvalidSecret, message });
        let verdict = verdict.and_then(|()| told.map_or(Ok(()), Err));
        let (acked, expected) = (counted.acked, counted.ready);
        Some(Taker { gateway: gateway_id.clone(), verdict, progress, acked, expected })
    }

    /// What the status says against the Secrets of an API, if it speaks of them and of the API as they are now.
    fn told_before(&self, id: &ObjectId, api: &ApiRecord) -> Option<String> {
        let found = conditions::find(api.status.conditions.as_deref()?, RESOLVED_REFS)?;
        let is_of_secret = found.reason == Reason::InvalidSecret.as_str();
        let is_current = found.observed_generation == api.meta.generation
            && api.status.secrets.as_ref() == Some(&self.secret_versions(id, api));
        (is_of_secret && is_current).then(|| found.message.clone())
    }

    /// The Secrets that an API names and that a gateway which takes it uses or will, as they are now.
    fn secret_versions(&self, id: &ObjectId, api: &ApiRecord) -> Vec<SecretVersion> {
        let names: BTreeSet<_> = api.secrets.iter().map(|(_, name)| name).collect();
        let version = |name: &String| {
            let secret = ObjectId { namespace: id.namespace.clone(), name: name.clone() };
            let meta = self.secrets.get(&secret)?;
            let mut takers = self.gateways.iter().filter(|(_, gateway)| gateway.apis.since(id).is_some());
            takers.find(|(gateway, record)| meta.is_for(&secret, gateway) && !record.beyond.contains(&secret))?;
            Some(SecretVersion { name: secret.name, resource_version: meta.version.clone() })
        };
        names.into_iter().filter_map(version).collect()
    }

    fn plan_api(&mut self, id: &ObjectId, now: Instant, clock: &Time) -> Option<(String, StatusOf)> {
        let api = self.apis.get(id)?;
        let own = verdict::all_of(&api.errors).err();
        let takers = self.takers(|gateway_id, gateway| self.taker(id, api, gateway_id, gateway));
        let secrets = if takers.is_empty() { Vec::new() } else { self.secret_versions(id, api) };
        let wanted = status::of_api(&api.status, api.meta.generation, own.as_ref(), &takers, secrets, clock);
        if wanted == api.status {
            return None;
        }
        let uid = uid_of(&api.meta)?;
        if own.is_none() && is_on_its_way(&takers) && now < api.changed + TAKE_UP {
            self.queue.at(api.changed + TAKE_UP, Target::Api(id.clone()));
            return None;
        }
        Some((uid, StatusOf::Api(wanted)))
    }

    fn plan_role(&mut self, id: &ObjectId, now: Instant, clock: &Time) -> Option<(String, StatusOf)> {
        let role = self.roles.get(id)?;
        let own = verdict::all_of(&role.errors).err();
        let takers = self.takers(|gateway_id, gateway| {
            let since = gateway.roles.since(id)?;
            let winner = gateway.role_claims.winner(&role.name).filter(|winner| *winner != id).map(ToString::to_string);
            let (acked, expected) = (0, 0);
            Some(Taker {
                gateway: gateway_id.clone(),
                verdict: verdict::of_role(&role.name, winner.as_deref(), &role.errors),
                progress: Progress::of(gateway.roles_acked, since),
                acked,
                expected,
            })
        });
        let wanted = status::of_role(&role.status, role.meta.generation, own.as_ref(), &takers, clock);
        if wanted == role.status {
            return None;
        }
        let uid = uid_of(&role.meta)?;
        if own.is_none() && is_on_its_way(&takers) && now < role.changed + TAKE_UP {
            self.queue.at(role.changed + TAKE_UP, Target::Role(id.clone()));
            return None;
        }
        Some((uid, StatusOf::Role(wanted)))
    }
}

/// Whether nothing but the pods' word is missing: mostly it comes before a status could be written.
fn is_on_its_way(takers: &[Taker]) -> bool {
    takers.iter().all(|taker| taker.verdict.is_ok())
        && takers.iter().any(|taker| matches!(taker.progress, Progress::Pending | Progress::Undecided))
}

/// Objects being deleted get no status any more.
fn uid_of(meta: &ObjectMeta) -> Option<String> {
    meta.uid.clone()
}
