//! The operator's decisions, event by event, with a clock of the tests.

use std::time::{Duration, Instant};

use doorman_crds::conditions::{self, ACCEPTED, PROGRAMMED, READY, RESOLVED_REFS, STORAGE_REACHABLE};
use doorman_crds::gateway::LaggingPod;
use doorman_crds::revision::{ObjectHash, RevisionReport};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde_json::{Value, json};

use super::*;

mod drift;
mod secrets;
mod unreadable;

/// A world whose writes always succeed, and what was written.
struct Fixture {
    world: World,
    now: Instant,
    apis: Vec<(String, i64)>,
    writes: Vec<(Target, StatusOf)>,
    jobs: Vec<Job>,
    removed: Vec<OwnedKey>,
    /// Namespaces where no right can be given, and why.
    ungranted: BTreeMap<String, String>,
}

fn put<K: serde::de::DeserializeOwned>(object: Value) -> Change<K> {
    Change::Put(Box::new(serde_json::from_value(object).unwrap()))
}

fn meta(name: &str, generation: i64) -> Value {
    json!({ "name": name, "namespace": "edge", "uid": format!("uid-{name}"), "generation": generation,
        "creationTimestamp": "2026-01-01T00:00:00Z" })
}

impl Fixture {
    /// One gateway, its Deployment complete, no pods.
    fn new() -> Self {
        let installation = Installation {
            image: "gateway:1".into(),
            pull_policy: None,
            namespace: "doorman-system".into(),
            reader_cluster_role: "reader".into(),
            writer_cluster_role: "writer".into(),
        };
        let mut fixture = Self {
            world: World::new(installation),
            now: Instant::now(),
            apis: Vec::new(),
            writes: Vec::new(),
            jobs: Vec::new(),
            removed: Vec::new(),
            ungranted: BTreeMap::new(),
        };
        fixture.gateway(json!({ "storage": { "mode": "Memory" } }));
        let deployment = json!({
            "metadata": { "name": "main", "namespace": "edge", "generation": 1, "ownerReferences": [
                { "apiVersion": "doorman.dev/v1alpha1", "kind": "DoormanGateway", "name": "main", "uid": "uid-main", "controller": true }] },
            "spec": { "replicas": 1, "selector": { "matchLabels": { "app": "main" } }, "template": {} },
            "status": { "observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1, "availableReplicas": 1,
                "conditions": [{ "type": "Available", "status": "True" }] },
        });
        fixture.event(Event::Deployment(put(deployment)));
        fixture
    }

    fn gateway(&mut self, spec: Value) {
        self.gateway_of(1, spec);
    }

    fn gateway_of(&mut self, generation: i64, spec: Value) {
        let object = json!({ "apiVersion": "doorman.dev/v1alpha1", "kind": "DoormanGateway", "metadata": meta("main", generation), "spec": spec });
        self.event(Event::Gateway(put(object)));
    }

    fn event(&mut self, event: Event) {
        self.world.apply(event, self.now);
    }

    fn pod(&mut self, name: &str, is_ready: bool) {
        let pod = json!({
            "metadata": { "name": name, "namespace": "edge", "uid": name, "labels": { "app": "main" } },
            "status": { "podIP": "10.0.0.1", "conditions": [{ "type": "Ready", "status": if is_ready { "True" } else { "False" } }] },
        });
        self.event(Event::Pod(put(pod)));
    }

    /// A valid API with this generation; `changes` are merged into its spec.
    fn api(&mut self, name: &str, generation: i64, changes: Value) {
        self.api_in(meta(name, generation), changes);
    }

    /// The same with this metadata.
    fn api_in(&mut self, meta: Value, changes: Value) {
        let name = meta["name"].as_str().unwrap().to_owned();
        let mut spec = json!({ "name": name, "version": "v1", "protocol": "REST", "public": true,
            "servers": ["http://upstream"], "endpoints": [{ "method": "GET", "uri": "/a" }] });
        for (key, value) in changes.as_object().unwrap() {
            spec[key] = value.clone();
        }
        self.apis.retain(|(known, _)| *known != name);
        self.apis.push((name.clone(), meta["generation"].as_i64().unwrap()));
        let object = json!({ "apiVersion": "doorman.dev/v1alpha1", "kind": "DoormanApi", "metadata": meta, "spec": spec,
            "status": self.status(&name) });
        self.event(Event::Api(put(object)));
    }

    /// The last status written, as the API server would return it.
    fn status(&self, name: &str) -> Option<DoormanApiStatus> {
        self.writes.iter().rev().find_map(|(target, status)| match (target, status) {
            (Target::Api(id), StatusOf::Api(status)) if id.name == name => Some(status.clone()),
            _ => None,
        })
    }

    /// What a pod reports that serves everything defined now.
    fn current(&self) -> Revision {
        let hashes = self
            .apis
            .iter()
            .map(|(name, generation)| ObjectHash::of("DoormanApi", &format!("uid-{name}"), *generation, &[]));
        Revision { apis: hashes.collect(), ..Revision::default() }
    }

    fn reports(&mut self, pod: &str, revision: Revision) {
        self.event(Event::Report(pod.into(), Box::new(RevisionReport { revision, ..RevisionReport::default() })));
    }

    /// A pod serves everything, and says which stores it reaches.
    fn reaches(&mut self, pod: &str, mongodb: bool, redis: bool) {
        let (revision, stores) = (self.current(), Some(Stores { mongodb, redis }));
        self.event(Event::Report(
            pod.into(),
            Box::new(RevisionReport { revision, stores, ..RevisionReport::default() }),
        ));
    }

    /// Plans and carries out until nothing is left to do now; returns the number of writes.
    fn settle(&mut self) -> usize {
        let before = self.writes.len();
        loop {
            let actions = self.world.plan(self.now, &Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
            if actions.is_empty() {
                return self.writes.len() - before;
            }
            for action in actions {
                match action {
                    Action::Write(target, _, status) => {
                        self.writes.push((target.clone(), status));
                        self.event(Event::Written(target, Ok(())));
                    }
                    Action::Reconcile(job) => {
                        let ungranted = self.ungranted.clone();
                        let outcome = Outcome { missing_keys: Some(Vec::new()), ungranted, ..Outcome::default() };
                        self.event(Event::Reconciled(job.gateway.clone(), outcome));
                        self.jobs.push(*job);
                    }
                    Action::Remove(key, _) => self.removed.push(key),
                }
            }
        }
    }

    fn after(&mut self, time: Duration) -> usize {
        self.now += time;
        self.settle()
    }

    /// Runs every deadline there is.
    fn run_out(&mut self) {
        for _ in 0..100 {
            self.settle();
            let Some(deadline) = self.world.deadline() else { return };
            self.now = deadline;
        }
        panic!("it never comes to rest");
    }

    fn condition(&self, name: &str, type_: &str) -> Condition {
        let status = self.status(name).unwrap_or_else(|| panic!("{name} has no status"));
        conditions::find(status.conditions.as_deref().unwrap(), type_).unwrap().clone()
    }

    fn says(&self, name: &str, type_: &str) -> (String, String) {
        let condition = self.condition(name, type_);
        (condition.status, condition.reason)
    }

    fn gateway_says(&self, type_: &str) -> (String, String) {
        let condition = self.gateway_condition(type_);
        (condition.status, condition.reason)
    }

    fn gateway_condition(&self, type_: &str) -> Condition {
        let written = self.writes.iter().rev().find_map(|(_, status)| match status {
            StatusOf::Gateway(status) => Some(status.clone()),
            _ => None,
        });
        let conditions = written.unwrap().conditions.unwrap();
        conditions::find(&conditions, type_).unwrap().clone()
    }
}

fn pair(status: &str, reason: &str) -> (String, String) {
    (status.into(), reason.into())
}

/// One gateway with two pods that serve two APIs; everything written.
fn running() -> Fixture {
    let mut fixture = Fixture::new();
    fixture.api("a", 1, json!({}));
    fixture.api("b", 1, json!({}));
    fixture.pod("pod-1", true);
    fixture.pod("pod-2", true);
    fixture.reports("pod-1", fixture.current());
    fixture.reports("pod-2", fixture.current());
    fixture.event(Event::Complete);
    fixture.run_out();
    fixture
}

#[test]
fn an_api_is_programmed_when_every_ready_pod_serves_it() {
    let mut fixture = running();
    assert_eq!(fixture.says("a", PROGRAMMED), pair("True", "Programmed"));
    assert_eq!(fixture.says("a", READY), pair("True", "Ready"));
    assert_eq!(fixture.gateway_says(READY), pair("True", "Ready"));

    fixture.api("a", 2, json!({ "description": "new" }));
    fixture.settle();
    fixture.reports("pod-1", fixture.current());
    fixture.after(Duration::from_millis(400));
    assert_eq!(fixture.says("a", PROGRAMMED), pair("False", "Pending"));
    assert_eq!(fixture.says("b", PROGRAMMED), pair("True", "Programmed"));
    fixture.reports("pod-2", fixture.current());
    fixture.settle();
    assert_eq!(fixture.says("a", PROGRAMMED), pair("True", "Programmed"));
    assert_eq!(fixture.condition("a", PROGRAMMED).observed_generation, Some(2));
    let progress = fixture.status("a").unwrap().gateways.unwrap();
    assert_eq!((progress[0].acked, progress[0].expected), (2, 2));
}

#[test]
fn pods_that_are_quick_cost_one_write_a_change() {
    let mut fixture = running();
    fixture.api("a", 2, json!({}));
    assert_eq!(fixture.settle(), 0);
    fixture.reports("pod-2", fixture.current());
    fixture.reports("pod-1", fixture.current());
    assert_eq!(fixture.settle(), 1);
}

#[test]
fn a_pod_may_report_before_the_operator_hears_of_the_change() {
    let mut fixture = running();
    let ahead = Revision {
        apis: [("uid-a", 2), ("uid-b", 1)].iter().map(|(uid, g)| ObjectHash::of("DoormanApi", uid, *g, &[])).collect(),
        ..Revision::default()
    };
    fixture.reports("pod-1", ahead);
    fixture.reports("pod-2", ahead);
    assert_eq!(fixture.settle(), 0);
    fixture.api("a", 2, json!({}));
    fixture.settle();
    assert_eq!(fixture.says("a", PROGRAMMED), pair("True", "Programmed"));
    assert_eq!(fixture.condition("a", PROGRAMMED).observed_generation, Some(2));
}

#[test]
fn rest_means_no_writes() {
    let mut fixture = running();
    let written = fixture.writes.len();
    fixture.reports("pod-1", fixture.current());
    fixture.pod("pod-2", true);
    fixture.after(Duration::from_hours(1));
    fixture.run_out();
    assert_eq!(fixture.writes.len(), written);
}

#[test]
fn a_cold_operator_beside_a_running_fleet_changes_nothing() {
    let warm = running();
    let mut cold = Fixture::new();
    for name in ["a", "b"] {
        let status = warm.status(name).unwrap();
        cold.writes
            .push((Target::Api(ObjectId { namespace: "edge".into(), name: name.into() }), StatusOf::Api(status)));
        cold.api(name, 1, json!({}));
    }
    cold.writes.clear();
    cold.pod("pod-1", true);
    cold.pod("pod-2", true);
    cold.event(Event::Complete);
    cold.settle();
    cold.after(Duration::from_secs(2));
    cold.reports("pod-1", cold.current());
    cold.after(Duration::from_secs(2));
    cold.reports("pod-2", cold.current());
    cold.run_out();
    let apis = cold.writes.iter().filter(|(target, _)| matches!(target, Target::Api(_))).count();
    assert_eq!(apis, 0, "{:?}", cold.writes);
}

#[test]
fn a_silent_pod_makes_it_unknown_and_is_named() {
    let mut fixture = running();
    fixture.event(Event::Silent("pod-2".into()));
    fixture.after(SILENCE / 2);
    assert_eq!(fixture.says("a", PROGRAMMED), pair("True", "Programmed"));
    fixture.after(SILENCE);
    assert_eq!(fixture.says("a", PROGRAMMED), pair("Unknown", "PodsUnreachable"));
    assert_eq!(fixture.gateway_says(PROGRAMMED), pair("Unknown", "PodsUnreachable"));
    let StatusOf::Gateway(status) =
        &fixture.writes.iter().rev().find(|(t, _)| matches!(t, Target::Gateway(_))).unwrap().1
    else {
        panic!()
    };
    assert_eq!(
        status.lagging_pods.as_ref().unwrap()[0],
        LaggingPod { name: "pod-2".into(), reason: "Unreachable".into() }
    );
    fixture.reports("pod-2", fixture.current());
    fixture.run_out();
    assert_eq!(fixture.says("a", PROGRAMMED), pair("True", "Programmed"));
    assert_eq!(fixture.gateway_says(READY), pair("True", "Ready"));
}

#[test]
fn a_pod_that_falls_back_takes_only_what_it_lacks_with_it() {
    let mut fixture = running();
    let old = fixture.current();
    fixture.api("b", 2, json!({}));
    for pod in ["pod-1", "pod-2"] {
        fixture.reports(pod, fixture.current());
    }
    fixture.run_out();
    assert_eq!(fixture.condition("b", PROGRAMMED).observed_generation, Some(2));
    fixture.now += Duration::from_mins(1);
    // As after a restart from the copy on disk.
    fixture.reports("pod-2", old);
    fixture.run_out();
    assert_eq!(fixture.says("a", PROGRAMMED), pair("True", "Programmed"));
    assert_eq!(fixture.says("b", PROGRAMMED), pair("False", "Pending"));
    assert_eq!(fixture.gateway_says(PROGRAMMED), pair("False", "PodsBehind"));
}

#[test]
fn a_new_pod_that_has_not_spoken_changes_nothing_and_holds_back_what_is_new() {
    let mut fixture = running();
    fixture.pod("pod-3", true);
    fixture.after(Duration::from_secs(2));
    assert_eq!(fixture.says("a", PROGRAMMED), pair("True", "Programmed"));
    fixture.api("a", 2, json!({}));
    fixture.reports("pod-1", fixture.current());
    fixture.reports("pod-2", fixture.current());
    fixture.after(Duration::from_secs(1));
    assert_eq!(fixture.says("a", PROGRAMMED), pair("False", "Pending"));
    fixture.reports("pod-3", fixture.current());
    fixture.settle();
    assert_eq!(fixture.says("a", PROGRAMMED), pair("True", "Programmed"));
}

#[test]
fn without_ready_pods_nothing_is_programmed() {
    let mut fixture = running();
    fixture.pod("pod-1", false);
    fixture.event(Event::Pod(Change::Gone(ObjectId { namespace: "edge".into(), name: "pod-2".into() })));
    fixture.settle();
    assert_eq!(fixture.gateway_says(PROGRAMMED), pair("False", "NoReadyPods"));
    fixture.after(EMPTY);
    assert_eq!(fixture.says("a", PROGRAMMED), pair("False", "NoReadyPods"));
    assert_eq!(fixture.says("b", READY), pair("False", "NoReadyPods"));
}

#[test]
fn the_bad_one_is_named_and_the_others_are_not_touched() {
    let mut fixture = running();
    let before = fixture.writes.len();
    fixture.api("c", 1, json!({ "servers": ["ftp://upstream"] }));
    fixture.settle();
    assert_eq!(fixture.says("c", ACCEPTED), pair("False", "Invalid"));
    assert!(fixture.condition("c", ACCEPTED).message.contains("spec.servers[0]"));
    assert_eq!(fixture.says("c", PROGRAMMED), pair("False", "Invalid"));
    fixture.reports("pod-1", fixture.current());
    fixture.reports("pod-2", fixture.current());
    fixture.settle();
    let others = |(target, _): &&(Target, StatusOf)| matches!(target, Target::Api(id) if id.name != "c");
    assert_eq!(fixture.writes[before..].iter().filter(others).count(), 0);
}

#[test]
fn of_two_with_one_name_the_older_wins_until_it_is_gone() {
    let mut fixture = running();
    fixture.api("younger", 1, json!({ "name": "a" }));
    fixture.settle();
    assert_eq!(fixture.says("younger", ACCEPTED), pair("False", "Conflict"));
    assert!(fixture.condition("younger", ACCEPTED).message.contains("edge/a"));
    assert_eq!(fixture.says("a", ACCEPTED), pair("True", "Accepted"));
    fixture.event(Event::Api(Change::Gone(ObjectId { namespace: "edge".into(), name: "a".into() })));
    fixture.apis.retain(|(name, _)| name != "a");
    fixture.reports("pod-1", fixture.current());
    fixture.reports("pod-2", fixture.current());
    fixture.run_out();
    assert_eq!(fixture.says("younger", READY), pair("True", "Ready"));
}

#[test]
fn a_missing_role_is_named_and_its_coming_is_enough() {
    let mut fixture = running();
    fixture.api("c", 1, json!({ "public": false, "access": { "roles": ["buyers"] } }));
    fixture.reports("pod-1", fixture.current());
    fixture.reports("pod-2", fixture.current());
    fixture.run_out();
    assert_eq!(fixture.says("c", ACCEPTED), pair("True", "Accepted"));
    assert_eq!(fixture.says("c", RESOLVED_REFS), pair("False", "RefNotFound"));
    assert_eq!(fixture.says("c", READY), pair("False", "RefNotFound"));

    let role = json!({ "apiVersion": "doorman.dev/v1alpha1", "kind": "DoormanRole", "metadata": meta("buyers", 1),
        "spec": { "name": "buyers", "permissions": [] } });
    fixture.event(Event::Role(put(role)));
    fixture.after(Duration::from_millis(400));
    assert_eq!(fixture.says("c", RESOLVED_REFS), pair("True", "ResolvedRefs"));
    assert_eq!(fixture.says("c", PROGRAMMED), pair("False", "Pending"), "no pod has the role yet");
    let roles = [ObjectHash::of("DoormanRole", "uid-buyers", 1, &[])].into_iter().collect();
    for pod in ["pod-1", "pod-2"] {
        fixture.reports(pod, Revision { roles, ..fixture.current() });
    }
    fixture.run_out();
    assert_eq!(fixture.says("c", READY), pair("True", "Ready"));
}

#[test]
fn an_api_nobody_takes_says_so() {
    let mut fixture = running();
    fixture.api("c", 1, json!({ "gatewayRefs": [{ "name": "other" }] }));
    fixture.settle();
    assert_eq!(fixture.says("c", PROGRAMMED), pair("False", "NoGateway"));
    fixture.event(Event::Gateway(Change::Gone(ObjectId { namespace: "edge".into(), name: "main".into() })));
    fixture.settle();
    assert_eq!(fixture.says("a", PROGRAMMED), pair("False", "NoGateway"));
}

#[test]
fn a_spec_that_can_not_run_is_refused_and_what_runs_is_left_alone() {
    let mut fixture = running();
    let jobs = fixture.jobs.len();
    let object = json!({ "apiVersion": "doorman.dev/v1alpha1", "kind": "DoormanGateway", "metadata": meta("main", 2),
        "spec": { "storage": { "mode": "Memory" }, "replicas": 2 } });
    fixture.event(Event::Gateway(put(object)));
    fixture.settle();
    assert_eq!(fixture.gateway_says(ACCEPTED), pair("False", "Invalid"));
    assert_eq!(fixture.jobs.len(), jobs);
}

#[test]
fn a_failed_write_is_tried_again_after_a_pause() {
    let mut fixture = running();
    fixture.api("c", 1, json!({ "servers": ["ftp://upstream"] }));
    let actions = fixture.world.plan(fixture.now, &Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
    let target = Target::Api(ObjectId { namespace: "edge".into(), name: "c".into() });
    assert!(actions.iter().any(|action| matches!(action, Action::Write(of, ..) if *of == target)));
    fixture.event(Event::Written(target, Err(WriteError::Failed)));
    assert_eq!(fixture.settle(), 0);
    assert!(fixture.after(PAUSE) >= 1);
    assert_eq!(fixture.says("c", ACCEPTED), pair("False", "Invalid"));
}

#[test]
fn drift_is_put_right_and_our_own_writes_are_not_drift() {
    let mut fixture = running();
    let jobs = fixture.jobs.len();
    let key = OwnedKey { kind: Kind::ConfigMap, id: ObjectId { namespace: "edge".into(), name: "main".into() } };
    let version = |number| Version { uid: "u".into(), number };
    let applied = Applied { manifest: json!({}), version: version(7) };
    let outcome =
        Outcome { applied: [(key.clone(), applied)].into(), missing_keys: Some(Vec::new()), ..Outcome::default() };
    fixture.event(Event::Reconciled(key.id.clone(), outcome));
    let seen = |number| Owned { version: version(number), owner: Some("uid-main".into()), gateway: None };
    fixture.event(Event::Owned(key.clone(), Some(seen(6))));
    fixture.event(Event::Owned(key.clone(), Some(seen(7))));
    fixture.settle();
    assert_eq!(fixture.jobs.len(), jobs);
    fixture.event(Event::Owned(key.clone(), Some(seen(8))));
    fixture.settle();
    assert_eq!(fixture.jobs.len(), jobs + 1);
    assert!(!fixture.jobs.last().unwrap().applied.contains_key(&key), "it must be applied again");
}

#[test]
fn a_new_spec_is_not_ready_by_the_pods_of_the_old_one() {
    let mut fixture = Fixture::new();
    fixture.event(Event::Complete);
    fixture.settle();
    fixture.pod("a", true);
    fixture.reports("a", fixture.current());
    fixture.settle();
    fixture.gateway_of(2, json!({ "storage": { "mode": "Memory" }, "settings": { "HTTP_TIMEOUT": "3" } }));
    let actions = fixture.world.plan(fixture.now, &Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
    let [Action::Reconcile(job)] = actions.as_slice() else { panic!("{actions:?}") };

    // Written, and not yet seen by the watch: nothing is said.
    let key = OwnedKey { kind: Kind::Deployment, id: job.gateway.clone() };
    let version = |number| Version { uid: "deployment".into(), number };
    let applied = Applied { version: version(2), manifest: Value::Null };
    let outcome = Outcome {
        applied: BTreeMap::from([(key.clone(), applied)]),
        missing_keys: Some(Vec::new()),
        ..Outcome::default()
    };
    fixture.event(Event::Reconciled(job.gateway.clone(), outcome));
    assert_eq!(fixture.settle(), 0);
    let owned = |number| Owned { version: version(number), owner: Some("uid-main".into()), gateway: None };
    fixture.event(Event::Owned(key.clone(), Some(owned(1))));
    fixture.event(Event::Gateway(put(json!({ "apiVersion": "doorman.dev/v1alpha1", "kind": "DoormanGateway",
        "metadata": meta("main", 2), "spec": { "storage": { "mode": "Memory" }, "settings": { "HTTP_TIMEOUT": "3" } } }))));
    assert_eq!(fixture.settle(), 0);

    // Seen, with a rollout to come: the new generation is not ready.
    let deployment = json!({
        "metadata": { "name": "main", "namespace": "edge", "generation": 2, "ownerReferences": [
            { "apiVersion": "doorman.dev/v1alpha1", "kind": "DoormanGateway", "name": "main", "uid": "uid-main", "controller": true }] },
        "spec": { "replicas": 1, "selector": { "matchLabels": { "app": "main" } }, "template": {} },
        "status": { "observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1, "availableReplicas": 1,
            "conditions": [{ "type": "Available", "status": "True" }] },
    });
    fixture.event(Event::Owned(key, Some(owned(2))));
    fixture.event(Event::Deployment(put(deployment)));
    fixture.settle();
    let Some((_, StatusOf::Gateway(status))) = fixture.writes.last() else { panic!("{:?}", fixture.writes) };
    let ready = conditions::find(status.conditions.as_deref().unwrap(), conditions::READY).unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "RollingOut"));
}

#[test]
fn a_store_that_pods_do_not_reach_is_named_with_the_pods() {
    let mut fixture = Fixture::new();
    fixture.gateway(json!({ "storage": { "mode": "External",
        "redis": { "mode": "Standalone", "hosts": ["redis"] }, "mongo": { "hosts": ["mongo"] } } }));
    fixture.event(Event::Complete);
    fixture.run_out();
    assert_eq!(fixture.gateway_says(STORAGE_REACHABLE), pair("Unknown", "NoReadyPods"));

    // Pods are ready and have not spoken: nothing is known, and nothing is said that was not.
    fixture.pod("pod-1", true);
    fixture.pod("pod-2", true);
    fixture.settle();
    assert_eq!(fixture.gateway_says(STORAGE_REACHABLE), pair("Unknown", "NoReadyPods"));
    fixture.reaches("pod-1", true, true);
    fixture.reaches("pod-2", true, true);
    fixture.run_out();
    assert_eq!(fixture.gateway_says(STORAGE_REACHABLE), pair("True", "Reachable"));
    assert_eq!(fixture.gateway_says(READY), pair("True", "Ready"));

    fixture.reaches("pod-2", true, false);
    fixture.run_out();
    assert_eq!(fixture.gateway_says(STORAGE_REACHABLE), pair("False", "Unreachable"));
    assert_eq!(fixture.gateway_condition(STORAGE_REACHABLE).message, "Redis is not reached by 1 of 2 pods: pod-2");
    assert_eq!(fixture.gateway_says(READY), pair("False", "Unreachable"));
    assert_eq!(fixture.gateway_says(PROGRAMMED), pair("True", "Programmed"), "definitions are served all the same");
    fixture.reaches("pod-1", false, false);
    fixture.run_out();
    let message = fixture.gateway_condition(STORAGE_REACHABLE).message;
    assert_eq!(
        message,
        "MongoDB is not reached by 1 of 2 pods: pod-1; Redis is not reached by 2 of 2 pods: pod-1, pod-2"
    );

    // A pod that is not ready speaks too; one that is gone does not.
    fixture.pod("pod-1", false);
    fixture.run_out();
    assert_eq!(fixture.gateway_condition(STORAGE_REACHABLE).message, message);
    fixture.reaches("pod-1", true, true);
    fixture.reaches("pod-2", true, true);
    fixture.run_out();
    assert_eq!(fixture.gateway_says(STORAGE_REACHABLE), pair("True", "Reachable"));
}

#[test]
fn when_no_pod_answers_the_stores_are_unknown() {
    let mut fixture = Fixture::new();
    fixture.gateway(json!({ "storage": { "mode": "External",
        "redis": { "mode": "Standalone", "hosts": ["redis"] }, "mongo": { "hosts": ["mongo"] } } }));
    fixture.pod("pod-1", true);
    fixture.reaches("pod-1", true, true);
    fixture.event(Event::Complete);
    fixture.run_out();
    assert_eq!(fixture.gateway_says(STORAGE_REACHABLE), pair("True", "Reachable"));
    fixture.event(Event::Silent("pod-1".into()));
    fixture.after(SILENCE / 2);
    assert_eq!(fixture.gateway_says(STORAGE_REACHABLE), pair("True", "Reachable"));
    fixture.after(SILENCE);
    assert_eq!(fixture.gateway_says(STORAGE_REACHABLE), pair("Unknown", "PodsUnreachable"));
}

#[test]
fn the_right_to_write_goes_with_the_field() {
    let mut fixture = running();
    let key =
        OwnedKey { kind: Kind::RoleBinding, id: ObjectId { namespace: "edge".into(), name: "main-writer".into() } };
    let storage = json!({ "mode": "Memory" });
    fixture.gateway_of(2, json!({ "storage": storage, "platform": { "definitions": "ReadWrite" } }));
    fixture.settle();
    let job = fixture.jobs.last().unwrap();
    let is_rendered = |job: &Job| job.rendered.objects.iter().any(|object| object.name == key.id.name);
    assert!(is_rendered(job) && job.remove.is_empty());
    let version = Version { uid: "u".into(), number: 1 };
    let owned = Owned { version, owner: Some("uid-main".into()), gateway: None };
    fixture.event(Event::Owned(key.clone(), Some(owned)));
    fixture.gateway_of(3, json!({ "storage": storage, "platform": { "definitions": "ReadOnly" } }));
    fixture.settle();
    let job = fixture.jobs.last().unwrap();
    assert!(!is_rendered(job));
    assert_eq!(job.remove, [key]);
}
