//! How events change the state.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use doorman_crds::api::{self, ApiKey};
use doorman_crds::revision::ObjectHash;
use doorman_crds::selection::Selection;
use doorman_crds::{DoormanApi, DoormanGateway, DoormanRole, FieldError, gateway, role, verdict};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::status::Rollout;
use super::{
    ApiRecord, Change, DeploymentRecord, GatewayRecord, MAX_PAUSE, ObjectId, Outcome, Owned, OwnedKey, PAUSE,
    PodRecord, RoleRecord, StatusOf, Target, World, WriteError, claim,
};

impl World {
    pub(super) fn gateway(&mut self, change: Change<DoormanGateway>) {
        let object = match change {
            Change::Put(object) => Arc::new(*object),
            Change::Unreadable(meta, error) => {
                // Nothing can be done without its spec: what runs stays as it is.
                tracing::error!(gateway = %ObjectId::of(&meta), error, "the object can't be read");
                return;
            }
            Change::Gone(id) => {
                if let Some(gone) = self.gateways.remove(&id) {
                    self.queue.mark_apis(gone.apis.members());
                    self.queue.mark_roles(gone.roles.members());
                }
                self.orphans_wanted = true;
                return;
            }
        };
        let id = ObjectId::of(&object.metadata);
        let selection = Selection::new(&id.namespace, &id.name, object.spec.apis.as_ref());
        let same = |record: &GatewayRecord| record.object.metadata.uid == object.metadata.uid;
        if !self.gateways.get(&id).is_some_and(same) {
            self.gateway(Change::Gone(id.clone()));
            self.gateways.insert(id.clone(), GatewayRecord::new(object.clone(), selection.clone()));
            self.retake(&id);
        }
        let Some(record) = self.gateways.get_mut(&id) else { return };
        record.is_reconcile_wanted |= record.object.metadata.generation != object.metadata.generation;
        record.refusal = verdict::all_of(&gateway::validate(&object.spec)).err();
        record.status = object.status.clone().unwrap_or_default();
        record.object = object;
        let is_same_selection = record.selection == selection;
        record.selection = selection;
        if !is_same_selection {
            self.retake(&id);
        }
        self.queue.mark(Target::Gateway(id));
    }

    pub(super) fn api(&mut self, change: Change<DoormanApi>, now: Instant) {
        let record = match change {
            Change::Put(object) => {
                let meta = trimmed(object.metadata);
                let errors = api::parse(&object.spec).and_then(api::without_secrets).err().unwrap_or_default();
                ApiRecord {
                    hash: Some(ObjectHash::of("DoormanApi", uid(&meta), generation(&meta), &[])),
                    refs: object.spec.gateway_refs,
                    key: ApiKey { name: object.spec.name, version: object.spec.version },
                    roles: object.spec.access.and_then(|access| access.roles).unwrap_or_default(),
                    errors,
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
            let selective =
                self.gateways.iter().filter(|(_, g)| g.selection.namespaces == gateway::Namespaces::Selector);
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
            new.hash.is_some() && record.selection.takes(&new.meta, new.refs.as_deref(), |namespace| labels(namespace))
        });
        let was_taken = record.apis.since(id).is_some();
        if let Some(old) = old.filter(|_| was_taken) {
            record.api_claims.remove(&old.key, &claim(&old.meta));
            self.queue.mark_apis(record.api_claims.others(&old.key));
        }
        if let Some(new) = taken {
            record.api_claims.add(&new.key, claim(&new.meta));
            self.queue.mark_apis(record.api_claims.others(&new.key));
        }
        if record.apis.set(id, taken.and_then(|new| new.hash)) {
            self.queue.mark(Target::Api(id.clone()));
            self.queue.mark(Target::Gateway(gateway.clone()));
        }
    }

    fn place_role(&mut self, gateway: &ObjectId, id: &ObjectId, old: Option<&RoleRecord>, new: Option<&RoleRecord>) {
        let Some(record) = self.gateways.get_mut(gateway) else { return };
        let labels = |namespace: &str| self.namespaces.get(namespace);
        let taken = new.filter(|new| {
            new.hash.is_some() && record.selection.takes(&new.meta, new.refs.as_deref(), |namespace| labels(namespace))
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
                    stores: before.as_ref().and_then(|before| before.stores),
                    is_heard: before.as_ref().is_some_and(|before| before.is_heard),
                    uncertain_since: before.as_ref().and_then(|before| before.uncertain_since),
                    behind_since: before.as_ref().and_then(|before| before.behind_since),
                    uid,
                };
                self.pods.insert(id.clone(), record);
                id
            }
            Change::Unreadable(meta, _) => ObjectId::of(&meta),
            Change::Gone(id) => {
                self.pods.remove(&id);
                id
            }
        };
        self.touch_namespace(&id.namespace);
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
        for (id, gateway) in &mut self.gateways {
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
        // What the watch told meanwhile.
        record
            .applied
            .retain(|key, applied| self.owned.get(key).is_none_or(|owned| !owned.version.is_after(&applied.version)));
        record.missing_keys = outcome.missing_keys.or(record.missing_keys.take());
        record.failures = if outcome.failure.is_some() { record.failures + 1 } else { 0 };
        if outcome.failure.is_none() {
            record.written = record.rendered;
        }
        record.retry = outcome.failure.is_some().then(|| now + pause(record.failures));
        record.failure = outcome.failure;
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
