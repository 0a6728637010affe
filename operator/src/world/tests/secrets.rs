//! Secrets that APIs name: who is given the right to read which, and what an API's status says of them.

use doorman_crds::api::{CONSENT_LABEL, GATEWAYS_ANNOTATION, MAX_SECRETS};
use doorman_crds::revision::Rejection;

use super::*;
use crate::render::Secrets;

fn id(namespace: &str, name: &str) -> ObjectId {
    ObjectId { namespace: namespace.into(), name: name.into() }
}

/// A Secret in the gateway's namespace in this version, with the consent of its owner.
fn secret(name: &str, version: u32) -> Event {
    secret_in("edge", name, version, &json!({ CONSENT_LABEL: "true" }), &json!({}))
}

fn secret_in(namespace: &str, name: &str, version: u32, labels: &Value, annotations: &Value) -> Event {
    let meta = json!({ "uid": format!("uid-{name}"), "resourceVersion": version.to_string(), "labels": labels,
        "annotations": annotations });
    Event::Secret(id(namespace, name), Some(SecretMeta::of(&serde_json::from_value(meta).unwrap())))
}

fn naming(secret: &str) -> Value {
    json!({ "servers": ["https://upstream"], "upstream": { "tls": { "caSecretRef": { "name": secret } } } })
}

impl Fixture {
    /// Pods that serve everything defined and use these Secrets, and say this of APIs.
    fn pods_use(&mut self, secrets: &[(&str, u32)], unusable: &[(&str, &str)]) {
        for pod in ["pod-1", "pod-2"] {
            self.pod_uses(pod, secrets, unusable);
        }
    }

    fn pod_uses(&mut self, pod: &str, secrets: &[(&str, u32)], unusable: &[(&str, &str)]) {
        let states =
            secrets.iter().map(|(name, version)| ObjectHash::of_secret(&format!("uid-{name}"), &version.to_string()));
        let revision = Revision { secrets: states.collect(), ..self.current() };
        let refused = |(name, message): &(&str, &str)| Rejection {
            kind: "DoormanApi".into(),
            namespace: "edge".into(),
            name: (*name).into(),
            reason: "InvalidSecret".into(),
            message: (*message).into(),
        };
        let unusable: Vec<_> = unusable.iter().map(refused).collect();
        let report = RevisionReport { revision, unusable, ..RevisionReport::default() };
        self.event(Event::Report(pod.into(), Box::new(report)));
    }

    /// What the gateway may read by the last word.
    fn granted(&self) -> Secrets {
        let mut granted = Secrets::new();
        for grant in &self.jobs.last().unwrap().rendered.grants {
            let role = grant.objects.iter().find(|object| object.kind == Kind::Role).unwrap();
            assert_eq!(role.namespace.as_deref(), Some(&*grant.namespace));
            let rules = role.manifest["rules"].as_array().unwrap();
            assert_eq!((rules.len(), &rules[0]["resources"]), (1, &json!(["secrets"])));
            let names = serde_json::from_value(rules[0]["resourceNames"].clone()).unwrap();
            granted.insert(grant.namespace.clone(), names);
        }
        granted
    }

    fn version_seen(&self, api: &str) -> Option<String> {
        Some(self.status(api)?.secrets?.first()?.resource_version.clone())
    }
}

/// As [`running`], with an API that names the Secret `ca`, which is there and used.
fn secured() -> Fixture {
    let mut fixture = running();
    fixture.event(secret("ca", 1));
    fixture.api("c", 1, naming("ca"));
    fixture.settle();
    fixture.pods_use(&[("ca", 1)], &[]);
    fixture.run_out();
    fixture
}

/// What pods say of an API whose Secret holds no certificates.
const NO_PEM: &str = "spec.upstream.tls.caSecretRef: no PEM";

/// As [`secured`], with a Secret that has come to hold what can't be used.
fn spoiled() -> Fixture {
    let mut fixture = secured();
    fixture.event(secret("ca", 2));
    fixture.pods_use(&[("ca", 2)], &[("c", NO_PEM)]);
    fixture.run_out();
    assert_eq!(fixture.says("c", READY), pair("False", "InvalidSecret"));
    fixture
}

fn only(namespace: &str, names: &[&str]) -> Secrets {
    Secrets::from([(namespace.to_owned(), names.iter().map(|&name| name.to_owned()).collect())])
}

#[test]
fn a_named_secret_is_granted_and_the_api_programmed_when_every_pod_uses_it() {
    let mut fixture = running();
    fixture.event(secret("ca", 1));
    fixture.event(secret("other", 1));
    fixture.run_out();
    assert_eq!(fixture.granted(), Secrets::new(), "nobody names one");
    fixture.api("c", 1, naming("ca"));
    fixture.settle();
    assert_eq!(fixture.granted(), only("edge", &["ca"]));
    fixture.pods_use(&[], &[]);
    fixture.after(Duration::from_millis(400));
    assert_eq!(fixture.says("c", PROGRAMMED), pair("False", "Pending"));
    fixture.pod_uses("pod-1", &[("ca", 1)], &[]);
    fixture.settle();
    assert_eq!(fixture.says("c", PROGRAMMED), pair("False", "Pending"), "one pod does not use it yet");
    fixture.pod_uses("pod-2", &[("ca", 1)], &[]);
    fixture.run_out();
    assert_eq!(fixture.says("c", READY), pair("True", "Ready"));
    assert_eq!(fixture.version_seen("c").as_deref(), Some("1"));
}

#[test]
fn a_changed_secret_is_programmed_in_its_version_and_others_are_not_touched() {
    let mut fixture = secured();
    let others = |fixture: &Fixture| {
        fixture.writes.iter().filter(|(target, _)| matches!(target, Target::Api(id) if id.name != "c")).count()
    };
    let before = others(&fixture);
    fixture.event(secret("ca", 2));
    fixture.after(Duration::from_millis(400));
    assert_eq!(fixture.says("c", PROGRAMMED), pair("False", "Pending"));
    assert_eq!(fixture.version_seen("c").as_deref(), Some("2"));
    fixture.pods_use(&[("ca", 2)], &[]);
    fixture.run_out();
    assert_eq!(fixture.says("c", PROGRAMMED), pair("True", "Programmed"));
    // Pods that are quick cost one write, which names the version.
    let written = fixture.writes.len();
    fixture.event(secret("ca", 3));
    fixture.pods_use(&[("ca", 3)], &[]);
    fixture.settle();
    assert_eq!((fixture.writes.len() - written, fixture.version_seen("c").as_deref()), (1, Some("3")));
    assert_eq!(others(&fixture), before);
}

#[test]
fn what_is_wrong_with_a_secret_is_told_and_its_end_too() {
    let mut fixture = running();
    fixture.api("c", 1, naming("ca"));
    fixture.pods_use(&[], &[]);
    fixture.run_out();
    assert_eq!(fixture.says("c", ACCEPTED), pair("True", "Accepted"));
    for condition in [RESOLVED_REFS, READY] {
        assert_eq!(fixture.says("c", condition), pair("False", "SecretNotFound"));
    }
    assert!(fixture.condition("c", RESOLVED_REFS).message.contains("no Secret is named `ca`"));

    fixture.event(secret_in("edge", "ca", 1, &json!({}), &json!({})));
    fixture.run_out();
    assert_eq!(fixture.says("c", RESOLVED_REFS), pair("False", "RefNotPermitted"));
    assert_eq!((fixture.granted(), fixture.version_seen("c")), (Secrets::new(), None));

    fixture.event(secret("ca", 2));
    fixture.settle();
    assert_eq!(fixture.granted(), only("edge", &["ca"]));
    fixture.pods_use(&[("ca", 2)], &[("c", NO_PEM)]);
    fixture.run_out();
    assert_eq!(fixture.says("c", RESOLVED_REFS), pair("False", "InvalidSecret"));
    assert_eq!(fixture.says("c", PROGRAMMED), pair("False", "InvalidSecret"));
    assert_eq!(fixture.condition("c", RESOLVED_REFS).message, NO_PEM);
    assert_eq!(fixture.says("a", READY), pair("True", "Ready"));
    assert_eq!(fixture.gateway_says(READY), pair("True", "Ready"), "one bad Secret is not the gateway's");

    // What pods said of an older version says nothing of the newest.
    fixture.event(secret("ca", 3));
    fixture.after(Duration::from_millis(400));
    assert_eq!(fixture.says("c", RESOLVED_REFS), pair("True", "ResolvedRefs"));
    assert_eq!(fixture.says("c", PROGRAMMED), pair("False", "Pending"));
    fixture.pods_use(&[("ca", 3)], &[]);
    fixture.run_out();
    assert_eq!(fixture.says("c", READY), pair("True", "Ready"));

    fixture.event(secret_in("edge", "ca", 4, &json!({ CONSENT_LABEL: "no" }), &json!({})));
    fixture.pods_use(&[], &[]);
    fixture.run_out();
    assert_eq!(fixture.says("c", READY), pair("False", "RefNotPermitted"));
    assert_eq!(fixture.granted(), Secrets::new(), "the right has outlived the consent");
    fixture.event(Event::Secret(id("edge", "ca"), None));
    fixture.run_out();
    assert_eq!(fixture.says("c", READY), pair("False", "SecretNotFound"));
    assert_eq!(fixture.gateway_says(READY), pair("True", "Ready"));
}

#[test]
fn a_secret_that_can_not_be_used_stays_so_while_pods_are_replaced() {
    let mut fixture = spoiled();
    let written = fixture.writes.len();
    let of_c = |fixture: &Fixture| {
        fixture.writes[written..].iter().filter(|(target, _)| *target == Target::Api(id("edge", "c"))).count()
    };
    for pod in ["pod-1", "pod-2"] {
        fixture.event(Event::Pod(Change::Gone(id("edge", pod))));
    }
    fixture.after(Duration::from_secs(1));
    // A new pod speaks before it is ready.
    fixture.pod("pod-3", false);
    fixture.pod_uses("pod-3", &[("ca", 2)], &[("c", NO_PEM)]);
    fixture.settle();
    fixture.pod("pod-3", true);
    fixture.run_out();
    assert_eq!((of_c(&fixture), fixture.says("c", READY)), (0, pair("False", "InvalidSecret")));

    // One that can use it counts when it is alone.
    fixture.pod("pod-4", true);
    fixture.pod_uses("pod-4", &[("ca", 2)], &[]);
    fixture.settle();
    assert_eq!(fixture.says("c", READY), pair("False", "InvalidSecret"));
    fixture.pod("pod-3", false);
    fixture.run_out();
    assert_eq!(fixture.says("c", READY), pair("True", "Ready"));
    fixture.pod("pod-3", true);
    fixture.run_out();
    assert_eq!(fixture.says("c", READY), pair("False", "InvalidSecret"));
}

#[test]
fn a_secret_goes_with_the_last_api_that_names_it() {
    let mut fixture = secured();
    fixture.api("d", 1, naming("ca"));
    fixture.event(Event::Api(Change::Gone(id("edge", "c"))));
    fixture.apis.retain(|(name, _)| name != "c");
    fixture.run_out();
    assert_eq!(fixture.granted(), only("edge", &["ca"]));
    let key = |kind| OwnedKey { kind, id: id("edge", "main-upstream-tls") };
    for kind in [Kind::Role, Kind::RoleBinding] {
        let version = Version { uid: "u".into(), number: 1 };
        let owned = Owned { version, owner: Some("uid-main".into()), gateway: None };
        fixture.event(Event::Owned(key(kind), Some(owned)));
    }
    fixture.api("d", 2, json!({}));
    fixture.run_out();
    let job = fixture.jobs.last().unwrap();
    assert_eq!(
        (fixture.granted(), job.remove.as_slice()),
        (Secrets::new(), &[key(Kind::Role), key(Kind::RoleBinding)][..])
    );
}

#[test]
fn a_gateway_of_another_namespace_must_be_named_on_the_secret() {
    let mut fixture = running();
    let everywhere = json!({ "storage": { "mode": "Memory" }, "apis": { "namespaces": "All" } });
    fixture.gateway_of(2, everywhere);
    let mut meta = meta("x", 1);
    meta["namespace"] = json!("shop");
    let mut spec = naming("ca");
    for (key, value) in [("name", "x"), ("version", "v1"), ("protocol", "REST")] {
        spec[key] = json!(value);
    }
    let object = json!({ "apiVersion": "doorman.dev/v1alpha1", "kind": "DoormanApi", "metadata": meta, "spec": spec });
    fixture.event(Event::Api(put(object)));
    fixture.event(secret_in("shop", "ca", 1, &json!({ CONSENT_LABEL: "true" }), &json!({})));
    fixture.run_out();
    let resolved = |fixture: &Fixture| fixture.condition("x", RESOLVED_REFS);
    assert_eq!(resolved(&fixture).reason, "RefNotPermitted");
    assert!(resolved(&fixture).message.contains("does not name edge/main"), "{}", resolved(&fixture).message);
    assert_eq!((fixture.granted(), fixture.version_seen("x")), (Secrets::new(), None));

    let named = json!({ GATEWAYS_ANNOTATION: "edge/main" });
    fixture.event(secret_in("shop", "ca", 2, &json!({ CONSENT_LABEL: "true" }), &named));
    fixture.run_out();
    assert_eq!((fixture.granted(), fixture.version_seen("x").as_deref()), (only("shop", &["ca"]), Some("2")));
    let grant = &fixture.jobs.last().unwrap().rendered.grants[0];
    for object in &grant.objects {
        let meta = &object.manifest["metadata"];
        assert_eq!((&meta["namespace"], &meta["ownerReferences"]), (&json!("shop"), &Value::Null));
        assert_eq!(meta["annotations"]["doorman.dev/gateway"], "edge/main");
    }
    let binding = grant.objects.iter().find(|object| object.kind == Kind::RoleBinding).unwrap();
    assert_eq!(
        binding.manifest["subjects"],
        json!([{ "kind": "ServiceAccount", "name": "main", "namespace": "edge" }])
    );
    assert_eq!(binding.manifest["roleRef"]["name"], grant.objects[0].name.as_str());
}

#[test]
fn a_right_that_can_not_be_given_concerns_its_apis_only_and_is_tried_again() {
    let mut fixture = running();
    fixture.ungranted = BTreeMap::from([("edge".to_owned(), "Role taken: it exists".to_owned())]);
    fixture.event(secret("ca", 1));
    fixture.api("c", 1, naming("ca"));
    fixture.pods_use(&[], &[]);
    fixture.settle();
    assert_eq!(fixture.says("c", RESOLVED_REFS), pair("False", "RefNotPermitted"));
    assert!(fixture.condition("c", RESOLVED_REFS).message.ends_with("Role taken: it exists"));
    assert_eq!(fixture.gateway_says(READY), pair("True", "Ready"));
    assert_eq!(fixture.says("a", READY), pair("True", "Ready"));
    let jobs = fixture.jobs.len();
    assert_eq!(fixture.settle(), 0);
    assert_eq!(fixture.jobs.len(), jobs, "it is not tried all the time");
    fixture.ungranted.clear();
    fixture.after(PAUSE);
    assert_eq!(fixture.jobs.len(), jobs + 1);
    fixture.pods_use(&[("ca", 1)], &[]);
    fixture.run_out();
    assert_eq!(fixture.says("c", READY), pair("True", "Ready"));
}

#[test]
fn a_cold_operator_says_nothing_new_of_secrets() {
    let warm = secured();
    let mut cold = Fixture::new();
    for name in ["a", "b", "c"] {
        let status = warm.status(name).unwrap();
        cold.writes.push((Target::Api(id("edge", name)), StatusOf::Api(status)));
        cold.api(name, 1, if name == "c" { naming("ca") } else { json!({}) });
    }
    cold.writes.clear();
    cold.event(secret("ca", 1));
    cold.pod("pod-1", true);
    cold.pod("pod-2", true);
    cold.event(Event::Complete);
    cold.settle();
    cold.after(Duration::from_secs(2));
    cold.pods_use(&[("ca", 1)], &[]);
    cold.run_out();
    let apis = cold.writes.iter().filter(|(target, _)| matches!(target, Target::Api(_))).count();
    assert_eq!(apis, 0, "{:?}", cold.writes);
    assert_eq!(cold.granted(), only("edge", &["ca"]));
}

#[test]
fn a_pod_that_can_not_say_all_leaves_it_open() {
    let mut fixture = secured();
    let revision =
        Revision { secrets: [ObjectHash::of_secret("uid-ca", "1")].into_iter().collect(), ..fixture.current() };
    for (namespace, said) in [
        ("other", pair("True", "Programmed")),
        ("edge", pair("Unknown", "PodsUnreachable")),
        ("other", pair("True", "Programmed")),
    ] {
        let unusable_untold = [namespace.to_owned()].into();
        let report = RevisionReport { revision, unusable_untold, ..RevisionReport::default() };
        fixture.event(Event::Report("pod-1".into(), Box::new(report)));
        fixture.run_out();
        assert_eq!(fixture.says("c", PROGRAMMED), said);
        assert_eq!(fixture.says("a", PROGRAMMED), pair("True", "Programmed"));
    }
}

/// Metadata of an API that is so many minutes old.
fn aged(name: &str, minutes: usize) -> Value {
    let mut meta = meta(name, 1);
    meta["creationTimestamp"] = format!("2025-12-31T{:02}:{:02}:00Z", 23 - minutes / 60, 59 - minutes % 60).into();
    meta
}

/// More Secrets than there is room for, each named by an API, those of the highest numbers the oldest; the pods use what is
/// granted. An API of another namespace names one too.
fn crowded() -> Fixture {
    let mut fixture = running();
    fixture.gateway_of(2, json!({ "storage": { "mode": "Memory" }, "apis": { "namespaces": "All" } }));
    for number in 0..MAX_SECRETS + 2 {
        let name = format!("s{number:03}");
        fixture.event(secret(&name, 1));
        fixture.api_in(aged(&format!("with-{name}"), number), naming(&name));
    }
    let labels = json!({ CONSENT_LABEL: "true" });
    fixture.event(secret_in("shop", "far", 1, &labels, &json!({ GATEWAYS_ANNOTATION: "edge/main" })));
    let mut far = meta("far", 1);
    far["namespace"] = json!("shop");
    fixture.api_in(far, naming("far"));
    fixture.settle();
    use_granted(&mut fixture);
    fixture
}

fn use_granted(fixture: &mut Fixture) {
    let granted = fixture.granted();
    let used: Vec<_> = granted.values().flatten().map(|name| (name.as_str(), 1)).collect();
    fixture.pods_use(&used, &[]);
    fixture.run_out();
}

fn names(numbers: impl Iterator<Item = usize>) -> std::collections::BTreeSet<String> {
    numbers.map(|number| format!("s{number:03}")).collect()
}

#[test]
fn a_namespace_has_room_for_so_many_secrets_and_what_is_used_is_not_put_out() {
    let mut fixture = crowded();
    let mut first = names(2..MAX_SECRETS + 2);
    assert_eq!(
        fixture.granted(),
        Secrets::from([("edge".into(), first.clone()), only("shop", &["far"]).pop_first().unwrap()])
    );
    assert_eq!(fixture.says("with-s002", READY), pair("True", "Ready"));
    for api in ["with-s000", "with-s001"] {
        assert_eq!(fixture.says(api, RESOLVED_REFS), pair("False", "RefNotPermitted"));
        let message = fixture.condition(api, RESOLVED_REFS).message;
        assert!(message.contains("reads 100 Secrets of this namespace already"), "{message}");
        assert_eq!(fixture.version_seen(api), None);
    }

    // An older API that comes to name one takes nothing from those that are used, and nothing is written for that.
    let jobs = fixture.jobs.len();
    fixture.event(secret("z", 1));
    fixture.api_in(aged("z", 300), naming("z"));
    fixture.settle();
    fixture.event(secret_in("edge", "z", 2, &json!({}), &json!({})));
    fixture.event(secret("z", 3));
    fixture.settle();
    assert_eq!(fixture.jobs.len(), jobs);
    assert_eq!(fixture.says("z", RESOLVED_REFS), pair("False", "RefNotPermitted"));
    assert!(fixture.condition("z", RESOLVED_REFS).message.contains("already"));

    // It gets the room that another leaves.
    fixture.event(Event::Secret(id("edge", "s007"), None));
    fixture.settle();
    first.remove("s007");
    first.insert("z".to_owned());
    assert_eq!(fixture.granted()["edge"], first);
    let granted = first.iter().map(|name| (name.as_str(), if name == "z" { 3 } else { 1 }));
    fixture.pods_use(&granted.chain([("far", 1)]).collect::<Vec<_>>(), &[]);
    fixture.run_out();
    assert_eq!(fixture.says("z", READY), pair("True", "Ready"));
    assert_eq!(fixture.says("with-s007", READY), pair("False", "SecretNotFound"));
    assert_eq!(fixture.says("with-s001", READY), pair("False", "RefNotPermitted"));
}

#[test]
fn an_operator_that_starts_puts_no_secret_out_that_is_used() {
    let mut warm = crowded();
    warm.event(secret("z", 1));
    warm.api_in(aged("z", 300), naming("z"));
    warm.settle();
    let granted = warm.granted();
    let mut cold = Fixture::new();
    cold.gateway_of(2, json!({ "storage": { "mode": "Memory" }, "apis": { "namespaces": "All" } }));
    for name in std::iter::once("z".to_owned()).chain((0..MAX_SECRETS + 2).map(|number| format!("s{number:03}"))) {
        let (api, minutes) = match name[1..].parse() {
            Ok(number) => (format!("with-{name}"), number),
            Err(_) => (name.clone(), 300),
        };
        cold.writes.push((Target::Api(id("edge", &api)), StatusOf::Api(warm.status(&api).unwrap())));
        cold.event(secret(&name, 1));
        cold.api_in(aged(&api, minutes), naming(&name));
    }
    cold.event(Event::Complete);
    cold.settle();
    assert_eq!(cold.granted()["edge"], granted["edge"]);
}

#[test]
fn a_sum_of_secrets_that_was_never_seen_leaves_other_apis_alone() {
    let mut fixture = secured();
    fixture.pods_use(&[("ca", 7)], &[]);
    fixture.settle();
    fixture.after(SILENCE * 2);
    assert_eq!(fixture.says("c", PROGRAMMED), pair("Unknown", "PodsUnreachable"));
    assert_eq!(fixture.says("a", PROGRAMMED), pair("True", "Programmed"));
}

#[test]
fn what_was_wrong_with_a_secret_is_not_said_of_the_next_one() {
    let mut fixture = spoiled();
    // The API names another one, which is not granted yet; what pods said was of the one before.
    fixture.event(secret("new", 1));
    fixture.api("c", 2, naming("new"));
    fixture.pods_use(&[], &[("c", NO_PEM)]);
    fixture.after(Duration::from_millis(400));
    assert_ne!(fixture.says("c", RESOLVED_REFS), pair("False", "InvalidSecret"));
}
