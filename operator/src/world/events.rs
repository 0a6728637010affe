//! How events change the state.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use doorman_crds::api::{self, ApiKey, MAX_SECRETS};
use doorman_crds::revision::{ObjectHash, Rejection, RevisionReport};
use doorman_crds::selection::Selection;
use doorman_crds::{DoormanApi, DoormanGateway, DoormanRole, FieldError, gateway, role, verdict};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::status::Rollout;
use crate::render::Secrets;

use super::{
    ApiRecord, Change, DeploymentRecord, GatewayRecord, MAX_PAUSE, ObjectId, Outcome, Owned, OwnedKey, PAUSE,
    PodRecord, RoleRecord, SecretMeta, StatusOf, Target, World, WriteError, claim,
};

impl World {
    pub(super) fn gateway(&mut self, change: Change<DoormanGateway>) {
        let (meta, read) = match change {
            Change::Put(object) => (object.metadata.clone(), Ok(object)),
            Change::Unreadable(meta, error) => (*meta, Err(error)),
            Change::Gone(id) => {
                if let Some(gone) = self.gateways.remove(&id) {
                    self.queue.mark_apis(gone.apis.members());
                    self.queue.mark_roles(gone.roles.members());
                }
                self.orphans_wanted = true;
                return;
            }
        };
        let id = ObjectId::of(&meta);
        if self.gateways.get(&id).is_none_or(|record| record.meta.uid != meta.uid) {
            self.gateway(Change::Gone(id.clone()));
            self.gateways.insert(id.clone(), GatewayRecord::new(meta.clone()));
        }
        let Some(record) = self.gateways.get_mut(&id) else { return };
        record.is_reconcile_wanted |= record.meta.generation != meta.generation;
        record.meta = meta;
        match read {
            Ok(object) => {
                let selection = Some(Selection::new(&id.namespace, &id.name, object.spec.apis.as_ref()));
                record.refusal = verdict::all_of(&gateway::validate(&object.spec)).err();
                record.status = object.status.clone().unwrap_or_default();
                record.object = Some(Arc::new(*object));
                if record.selection != selection {
                    record.selection = selection;
                    self.retake(&id);
                }
            }
            Err(error) => {
                // Nothing can be done without its spec: what runs stays as it is until it is read again.
                tracing::error!(gateway = %id, error, "the object can't be read");
                record.refusal = verdict::all_of(&[FieldError::invalid("spec", error)]).err();
                record.is_reconcile_wanted = true;
            }
        }
        self.queue.mark(Target::Gateway(id));
    }

    pub(super) fn api(&mut self, change: Change<DoormanApi>, now: Instant) {
        let record = match change {
            Change::Put(object) => {
                let meta = trimmed(object.metadata);
                let secrets = object.spec.secrets().map(|(field, name)| (field, name.to_owned())).collect();
                ApiRecord {
                    errors: api::parse(&object.spec).err().unwrap_or_default(),
                    secrets,
                    hash: Some(ObjectHash::of("DoormanApi", uid(&meta), generation(&meta), &[])),
                    refs: object.spec.gateway_refs,
                    key: ApiKey { name: object.spec.name, version: object.spec.version },
                    roles: object.spec.access.and_then(|access| access.roles).unwrap_or_default(),
                    status: object.status.unwrap_or_default(),
                    changed: now,
                    meta,
                }
            }
            Change::Unreadable(meta, error) => ApiRecord {
                meta: trimmed(*meta),
                refs: None,
                key: ApiKey { name: String::new(), version: String::new() },
                roles: Vec::new(),
                secrets: Vec::new(),
                errors: vec![FieldError::invalid("spec", error)],
                hash: None,
                status: doorman_crds::DoormanApiStatus::default(),
                changed: now,
            },
            Change::Gone(id) => {
                if let Some(old) = self.apis.remove(&id) {
                    for gateway in self.gateways.keys().cloned().collect::<Vec<_>>() {
                        self.place_api(&gateway, &id, Some(&old), None);
                    }
                }
                return;
            }
        };
        let id = ObjectId::of(&record.meta);
        let old = self.apis.remove(&id);
        let changed = match &old {
            Some(old) if is_same(&old.meta, &record.meta) => old.changed,
            _ => now,
        };
        for gateway in self.gateways.keys().cloned().collect::<Vec<_>>() {
            self.place_api(&gateway, &id, old.as_ref(), Some(&record));
        }
        self.apis.insert(id.clone(), ApiRecord { changed, ..record });
        self.queue.mark(Target::Api(id));
    }

    pub(super) fn role(&mut self, change: Change<DoormanRole>, now: Instant) {
        let record = match change {
            Change::Put(object) => {
                let meta = trimmed(object.metadata);
                RoleRecord {
                    hash: Some(ObjectHash::of("DoormanRole", uid(&meta), generation(&meta), &[])),
                    errors: role::validate(&object.spec),
                    refs: object.spec.gateway_refs,
                    name: object.spec.name,
                    status: object.status.unwrap_or_default(),
                    changed: now,
                    meta,
                }
            }
            Change::Unreadable(meta, error) => RoleRecord {
                meta: trimmed(*meta),
                refs: None,
                name: String::new(),
                errors: vec![FieldError::invalid("spec", error)],
                hash: None,
                status: doorman_crds::DoormanRoleStatus::default(),
                changed: now,
            },
            Change::Gone(id) => {
                if let Some(old) = self.roles.remove(&id) {
                    for gateway in self.gateways.keys().cloned().collect::<Vec<_>>() {
                        self.place_role(&gateway, &id, Some(&old), None);
                    }
                }
                return;
            }
        };
        let id = ObjectId::of(&record.meta);
        let old = self.roles.remove(&id);
        let changed = match &old {
            Some(old) if is_same(&old.meta, &record.meta) => old.changed,
            _ => now,
        };
        for gateway in self.gateways.keys().cloned().collect::<Vec<_>>() {
            self.place_role(&gateway, &id, old.as_ref(), Some(&record));
        }
        self.roles.insert(id.clone(), RoleRecord { changed, ..record });
        self.queue.mark(Target::Role(id));
    }

    pub(super) fn namespace(&mut self, name: String, labels: Option<BTreeMap<String, String>>) {
        let before = match &labels {
            Some(labels) => self.namespaces.insert(name, labels.clone()),
            None => self.namespaces.remove(&name),
        };
        if before != labels {
            let is_selective = |selection: &Selection| selection.namespaces == gateway::Namespaces::Selector;
            let selective = self.gateways.iter().filter(|(_, g)| g.selection.as_ref().is_some_and(is_selective));
            for gateway in selective.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
                self.retake(&gateway);
            }
        }
    }

    /// Decides anew about every object, for a gateway that selects differently now.
    fn retake(&mut self, gateway: &ObjectId) {
        let (apis, roles) = (std::mem::take(&mut self.apis), std::mem::take(&mut self.roles));
        for (id, record) in &roles {
            self.place_role(gateway, id, Some(record), Some(record));
        }
        for (id, record) in &apis {
            self.place_api(gateway, id, Some(record), Some(record));
        }
        (self.apis, self.roles) = (apis, roles);
    }

    /// Puts an API into a gateway's set or takes it out, and marks every object whose answer that changes.
    fn place_api(&mut self, gateway: &ObjectId, id: &ObjectId, old: Option<&ApiRecord>, new: Option<&ApiRecord>) {
        let Some(record) = self.gateways.get_mut(gateway) else { return };
        let labels = |namespace: &str| self.namespaces.get(namespace);
        let taken = new.filter(|new| {
            new.hash.is_some() && record.takes(&new.meta, new.refs.as_deref(), |namespace| labels(namespace))
        });
        let was_taken = record.apis.since(id).is_some();
        let secret = |name: &String| ObjectId { namespace: id.namespace.clone(), name: name.clone() };
        let mut secrets = BTreeSet::new();
        if let Some(old) = old.filter(|_| was_taken) {
            record.api_claims.remove(&old.key, &claim(&old.meta));
            self.queue.mark_apis(record.api_claims.others(&old.key));
            secrets.extend(old.secrets.iter().map(|(_, name)| secret(name)));
            for secret in &secrets {
                if let Some(users) = record.users.get_mut(secret) {
                    users.remove(id);
                    if users.is_empty() {
                        record.users.remove(secret);
                    }
                }
            }
        }
        if let Some(new) = taken {
            record.api_claims.add(&new.key, claim(&new.meta));
            self.queue.mark_apis(record.api_claims.others(&new.key));
            for (_, name) in &new.secrets {
                record.users.entry(secret(name)).or_default().insert(id.clone());
                secrets.insert(secret(name));
            }
        }
        if record.apis.set(id, taken.and_then(|new| new.hash)) {
            self.queue.mark(Target::Api(id.clone()));
            self.queue.mark(Target::Gateway(gateway.clone()));
        }
        for secret in &secrets {
            self.place_secret(gateway, secret);
        }
    }

    /// Puts a Secret into a gateway's set or takes it out: there are those that its APIs name, whose owners agree, and that
    /// it has been given the right to read. Asks for that right, or for its end, and marks every API whose answer changes.
    fn place_secret(&mut self, gateway: &ObjectId, id: &ObjectId) {
        let Some(record) = self.gateways.get_mut(gateway) else { return };
        let users = record.users.get(id);
        let usable = self.secrets.get(id).filter(|meta| users.is_some() && meta.is_for(id, gateway));
        let is_in = |secrets: &Secrets| secrets.get(&id.namespace).is_some_and(|names| names.contains(&id.name));
        // Of those beyond what it may read nothing is to be written.
        let is_full = record.asked.get(&id.namespace).is_some_and(|names| names.len() >= MAX_SECRETS);
        let is_beyond = match usable {
            None => record.beyond.remove(id),
            Some(_) if is_full && !is_in(&record.asked) => {
                record.beyond.insert(id.clone());
                true
            }
            Some(_) => record.beyond.contains(id),
        };
        if !is_beyond && usable.is_some() != is_in(&record.asked) {
            record.is_reconcile_wanted = true;
            self.queue.mark(Target::Gateway(gateway.clone()));
        }
        let granted = usable.filter(|_| is_in(&record.granted));
        if record.secrets.set(id, granted.map(|meta| ObjectHash::of_secret(&meta.uid, &meta.version))) {
            self.queue.mark(Target::Gateway(gateway.clone()));
        }
        self.queue.mark_apis(users.into_iter().flatten());
    }

    pub(super) fn secret(&mut self, id: &ObjectId, meta: Option<SecretMeta>, now: Instant) {
        for (gateway, record) in &mut self.gateways {
            if gateway.namespace == id.namespace && record.needed.contains(&id.name) {
                record.is_reconcile_wanted = true;
                self.queue.mark(Target::Gateway(gateway.clone()));
            }
        }
        let before = match &meta {
            Some(meta) => self.secrets.insert(id.clone(), meta.clone()),
            None => self.secrets.remove(id),
        };
        if before == meta {
            return;
        }
        let users = self.gateways.iter().filter_map(|(gateway, record)| Some((gateway.clone(), record.users.get(id)?)));
        let users: Vec<_> = users.map(|(gateway, apis)| (gateway, apis.clone())).collect();
        for (gateway, apis) in users {
            for api in apis {
                if let Some(record) = self.apis.get_mut(&api) {
                    record.changed = now;
                }
            }
            self.place_secret(&gateway, id);
        }
    }

    fn place_role(&mut self, gateway: &ObjectId, id: &ObjectId, old: Option<&RoleRecord>, new: Option<&RoleRecord>) {
        let Some(record) = self.gateways.get_mut(gateway) else { return };
        let labels = |namespace: &str| self.namespaces.get(namespace);
        let taken = new.filter(|new| {
            new.hash.is_some() && record.takes(&new.meta, new.refs.as_deref(), |namespace| labels(namespace))
        });
        let was_taken = record.roles.since(id).is_some();
        let mut names = Vec::new();
        if let Some(old) = old.filter(|_| was_taken) {
            record.role_claims.remove(&old.name, &claim(&old.meta));
            names.push(&old.name);
        }
        if let Some(new) = taken {
            if new.errors.is_empty() {
                record.role_claims.add(&new.name, claim(&new.meta));
            }
            names.push(&new.name);
        }
        if !record.roles.set(id, taken.and_then(|new| new.hash)) {
            return;
        }
        for name in names {
            self.queue.mark_roles(record.role_claims.others(name));
            let apis = record.apis.members();
            let apis = apis.filter(|api| self.apis.get(*api).is_some_and(|api| api.roles.contains(name)));
            self.queue.mark_apis(apis);
        }
        self.queue.mark(Target::Role(id.clone()));
        self.queue.mark(Target::Gateway(gateway.clone()));
    }

    pub(super) fn pod(&mut self, change: Change<Pod>) {
        let id = match change {
            Change::Put(pod) => {
                let id = ObjectId::of(&pod.metadata);
                let status = pod.status.unwrap_or_default();
                let uid = pod.metadata.uid.unwrap_or_default();
                let before = self.pods.remove(&id).filter(|before| before.uid == uid);
                let record = PodRecord {
                    labels: pod.metadata.labels.unwrap_or_default(),
                    address: status.pod_ip.and_then(|ip| ip.parse().ok()),
                    is_ready: status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True"),
                    is_terminating: pod.metadata.deletion_timestamp.is_some(),
                    report: before.as_ref().and_then(|before| before.report),
                    untold: before.as_ref().map(|before| before.untold.clone()).unwrap_or_default(),
                    stores: before.as_ref().and_then(|before| before.stores),
                    is_heard: before.as_ref().is_some_and(|before| before.is_heard),
                    uncertain_since: before.as_ref().and_then(|before| before.uncertain_since),
                    behind_since: before.as_ref().and_then(|before| before.behind_since),
                    unusable: before.map(|before| before.unusable).unwrap_or_default(),
                    uid,
                };
                // What it says against Secrets counts, or no longer does.
                self.queue.mark_apis(record.unusable.keys());
                self.pods.insert(id.clone(), record);
                id
            }
            Change::Unreadable(meta, _) => ObjectId::of(&meta),
            Change::Gone(id) => {
                let gone = self.pods.remove(&id);
                self.queue.mark_apis(gone.iter().flat_map(|pod| pod.unusable.keys()));
                id
            }
        };
        self.touch_namespace(&id.namespace);
    }

    /// What a pod says, with every API marked of which it says something else than before.
    pub(super) fn reported(&mut self, uid: &str, report: RevisionReport) {
        let of = |refused: &Rejection| ObjectId { namespace: refused.namespace.clone(), name: refused.name.clone() };
        let unusable: BTreeMap<_, _> =
            report.unusable.into_iter().map(|refused| (of(&refused), refused.message)).collect();
        let (mut changed, mut open) = (Vec::new(), BTreeSet::new());
        let untold = report.unusable_untold;
        self.heard(uid, |pod| {
            let apis = pod.unusable.keys().chain(unusable.keys());
            changed.extend(apis.filter(|api| pod.unusable.get(api) != unusable.get(api)).cloned());
            open = pod.untold.symmetric_difference(&untold).cloned().collect();
            (pod.report, pod.stores, pod.is_heard) = (Some(report.revision), report.stores, true);
            (pod.unusable, pod.untold) = (unusable, untold);
        });
        self.queue.mark_apis(&changed);
        if !open.is_empty() {
            let named = self.apis.iter().filter(|(id, api)| open.contains(&id.namespace) && !api.secrets.is_empty());
            self.queue.mark_apis(named.map(|(id, _)| id));
        }
    }

    pub(super) fn heard(&mut self, uid: &str, change: impl FnOnce(&mut PodRecord)) {
        let Some((id, pod)) = self.pods.iter_mut().find(|(_, pod)| pod.uid == uid) else { return };
        change(pod);
        let namespace = id.namespace.clone();
        self.touch_namespace(&namespace);
    }

    fn touch_namespace(&mut self, namespace: &str) {
        let gateways = self.gateways.keys().filter(|id| id.namespace == namespace);
        self.queue.now.extend(gateways.cloned().map(Target::Gateway));
    }

    pub(super) fn deployment(&mut self, change: Change<Deployment>) {
        let id = match change {
            Change::Put(deployment) => {
                let id = ObjectId::of(&deployment.metadata);
                let owners = deployment.metadata.owner_references.iter().flatten();
                let owner = owners.filter(|owner| owner.controller == Some(true)).map(|owner| owner.uid.clone()).next();
                let selector = deployment.spec.as_ref().and_then(|spec| spec.selector.match_labels.clone());
                let record =
                    DeploymentRecord { owner, pod_labels: selector.unwrap_or_default(), rollout: rollout(&deployment) };
                self.deployments.insert(id.clone(), record);
                id
            }
            Change::Unreadable(meta, _) => ObjectId::of(&meta),
            Change::Gone(id) => {
                self.deployments.remove(&id);
                id
            }
        };
        self.touch_namespace(&id.namespace);
    }

    pub(super) fn owned(&mut self, key: OwnedKey, owned: Option<Owned>) {
        let before = self.owned.get(&key).map(|before| &before.version.uid);
        let gone = before.filter(|uid| owned.as_ref().is_none_or(|owned| owned.version.uid != **uid)).cloned();
        for (id, gateway) in &mut self.gateways {
            if gateway.is_reconciling {
                gateway.told.entry(key.clone()).or_default().extend(gone.clone());
            }
            let is_drift = gateway
                .applied
                .get(&key)
                .is_some_and(|applied| owned.as_ref().is_none_or(|owned| owned.version.is_after(&applied.version)));
            if is_drift {
                gateway.applied.remove(&key);
                gateway.is_reconcile_wanted = true;
                self.queue.mark(Target::Gateway(id.clone()));
            }
        }
        match owned {
            Some(owned) => {
                self.orphans_wanted |= owned.gateway.as_ref().is_some_and(|id| !self.gateways.contains_key(id));
                self.owned.insert(key, owned);
            }
            None => drop(self.owned.remove(&key)),
        }
    }

    pub(super) fn written(&mut self, target: Target, result: Result<(), WriteError>, now: Instant) {
        let status = self.in_flight.remove(&target);
        match result {
            Ok(()) => {
                self.failures.remove(&target);
                match (&target, status) {
                    (Target::Gateway(id), Some(StatusOf::Gateway(status))) => {
                        if let Some(record) = self.gateways.get_mut(id) {
                            (record.status, record.status_written) = (status, Some(now));
                        }
                    }
                    (Target::Api(id), Some(StatusOf::Api(status))) => {
                        if let Some(record) = self.apis.get_mut(id) {
                            record.status = status;
                        }
                    }
                    (Target::Role(id), Some(StatusOf::Role(status))) => {
                        if let Some(record) = self.roles.get_mut(id) {
                            record.status = status;
                        }
                    }
                    _ => {}
                }
                self.queue.mark(target);
            }
            Err(WriteError::Gone) => drop(self.failures.remove(&target)),
            Err(WriteError::Failed) => {
                let failures = self.failures.entry(target.clone()).or_default();
                *failures += 1;
                self.queue.at(now + pause(*failures), target);
            }
        }
    }

    pub(super) fn reconciled(&mut self, id: &ObjectId, outcome: Outcome, now: Instant) {
        let Some(record) = self.gateways.get_mut(id) else { return };
        record.is_reconciling = false;
        record.applied = outcome.applied;
        // What went or was changed meanwhile is not as it was applied. What the watch showed before says nothing: it
        // may be behind what was just made.
        let told = std::mem::take(&mut record.told);
        let before = record.applied.len();
        record.applied.retain(|key, applied| {
            told.get(key).is_none_or(|gone| {
                let is_gone = gone.contains(&applied.version.uid);
                !is_gone && self.owned.get(key).is_none_or(|owned| !owned.version.is_after(&applied.version))
            })
        });
        record.is_reconcile_wanted |= record.applied.len() < before;
        record.missing_keys = outcome.missing_keys.or(record.missing_keys.take());
        let is_failure = outcome.failure.is_some() || !outcome.ungranted.is_empty();
        record.failures = if is_failure { record.failures + 1 } else { 0 };
        if outcome.failure.is_none() {
            record.written = record.rendered;
        }
        record.retry = is_failure.then(|| now + pause(record.failures));
        record.failure = outcome.failure;
        // Where it failed, what was granted before still is.
        let was_granted = std::mem::take(&mut record.granted);
        for (namespace, names) in &record.asked {
            let is_granted = !outcome.ungranted.contains_key(namespace);
            let names = if is_granted { Some(names) } else { was_granted.get(namespace) };
            record.granted.extend(names.map(|names| (namespace.clone(), names.clone())));
        }
        let is_as_before = record.granted == was_granted && record.ungranted == outcome.ungranted;
        record.ungranted = outcome.ungranted;
        let named: Vec<_> = if is_as_before { Vec::new() } else { record.users.keys().cloned().collect() };
        for secret in &named {
            self.place_secret(id, secret);
        }
        self.queue.mark(Target::Gateway(id.clone()));
    }
}

fn pause(failures: u32) -> Duration {
    PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(MAX_PAUSE)
}

fn uid(meta: &ObjectMeta) -> &str {
    meta.uid.as_deref().unwrap_or_default()
}

fn generation(meta: &ObjectMeta) -> i64 {
    meta.generation.unwrap_or_default()
}

fn is_same(a: &ObjectMeta, b: &ObjectMeta) -> bool {
    a.uid == b.uid && a.generation == b.generation
}

/// What decisions need of it: most of an object's size is elsewhere.
fn trimmed(meta: ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        name: meta.name,
        namespace: meta.namespace,
        uid: meta.uid,
        generation: meta.generation,
        labels: meta.labels,
        creation_timestamp: meta.creation_timestamp,
        ..ObjectMeta::default()
    }
}

fn rollout(deployment: &Deployment) -> Rollout {
    let (spec, status) = (deployment.spec.as_ref(), deployment.status.clone().unwrap_or_default());
    let conditions = status.conditions.unwrap_or_default();
    let stuck = conditions.iter().find(|condition| {
        (condition.type_ == "Progressing" && condition.status == "False")
            || (condition.type_ == "ReplicaFailure" && condition.status == "True")
    });
    let labels = spec.and_then(|spec| spec.selector.match_labels.clone()).unwrap_or_default();
    Rollout {
        wanted: spec.and_then(|spec| spec.replicas).unwrap_or(1),
        replicas: status.replicas.unwrap_or_default(),
        updated: status.updated_replicas.unwrap_or_default(),
        ready: status.ready_replicas.unwrap_or_default(),
        available: status.available_replicas.unwrap_or_default(),
        is_observed: status.observed_generation == deployment.metadata.generation,
        is_available: conditions.iter().any(|c| c.type_ == "Available" && c.status == "True"),
        stuck: stuck.map(|c| c.message.clone().unwrap_or_else(|| c.reason.clone().unwrap_or_default())),
        selector: labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(","),
    }
}
