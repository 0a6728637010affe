use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use doorman_crds::DoormanGateway;
use doorman_crds::gateway::{place_of, stop_seconds, validate};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn installation() -> Installation {
    Installation {
        image: "registry.example.com/doorman-gateway:0.1.0".to_owned(),
        pull_policy: Some("IfNotPresent".to_owned()),
        namespace: "doorman-system".to_owned(),
        reader_cluster_role: "doorman-gateway-reader".to_owned(),
        writer_cluster_role: "doorman-gateway-writer".to_owned(),
    }
}

fn cases() -> Vec<(PathBuf, DoormanGateway)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let cases: Vec<_> = files
        .filter(|path| path.to_string_lossy().ends_with(".gateway.yaml"))
        .map(|path| (path.clone(), serde_yaml::from_str(&fs::read_to_string(&path).unwrap()).unwrap()))
        .collect();
    assert!(cases.len() >= 5);
    cases
}

fn gateway(name: &str, spec: &Value) -> DoormanGateway {
    let metadata = json!({ "name": name, "namespace": "shop", "uid": "uid" });
    let object =
        json!({ "apiVersion": "doorman.dev/v1alpha1", "kind": "DoormanGateway", "metadata": metadata, "spec": spec });
    serde_json::from_value(object).unwrap()
}

/// Of a gateway whose APIs name no Secrets.
fn rendered(gateway: &DoormanGateway) -> Rendered {
    render(gateway, &installation(), &Secrets::new())
}

fn find(rendered: &Rendered, kind: Kind) -> &Value {
    &rendered.objects.iter().find(|object| object.kind == kind).unwrap().manifest
}

fn settings(rendered: &Rendered) -> BTreeMap<String, String> {
    serde_json::from_value(find(rendered, Kind::ConfigMap)["data"].clone()).unwrap()
}

#[test]
fn gateways_render_as_the_golden_files_say() {
    for (path, gateway) in cases() {
        assert_eq!(validate(&gateway.spec), [], "{}", path.display());
        let golden = PathBuf::from(path.to_string_lossy().replace(".gateway.yaml", ".rendered.yaml"));
        is_as_in(&golden, &to_yaml(&rendered(&gateway)));
    }
}

fn is_as_in(golden: &Path, text: &str) {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(golden, text).unwrap();
    }
    let expected = fs::read_to_string(golden).unwrap_or_default();
    assert!(text == expected, "{} differs; look at what UPDATE_GOLDEN=1 makes of it", golden.display());
}

#[test]
fn rights_to_secrets_are_by_name_and_in_their_namespace() {
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    let secrets =
        Secrets::from([("shop".to_owned(), names(&["orders", "trust"])), ("team".to_owned(), names(&["trust"]))]);
    let spec = json!({ "storage": { "mode": "Memory" }, "apis": { "namespaces": "All" } });
    let mut with = render(&gateway("edge", &spec), &installation(), &secrets);
    assert_eq!(with.objects, rendered(&gateway("edge", &spec)).objects);
    (with.objects, with.generated) = (Vec::new(), Vec::new());
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/upstream-tls.grants.yaml");
    is_as_in(&golden, &to_yaml(&with));
}

#[test]
fn every_setting_is_documented_and_can_not_be_said_twice() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/settings.md")).unwrap();
    let free = ["DOORMAN_DRAIN_SECONDS", "DOORMAN_SHUTDOWN_SECONDS"];
    for (_, gateway) in cases() {
        let own = gateway.spec.settings.clone().unwrap_or_default();
        for name in settings(&rendered(&gateway)).into_keys() {
            let is_listed = |setting: &str| page.contains(&format!("`{setting}`"));
            let setting = name.strip_suffix("_FILE").filter(|setting| is_listed(setting)).unwrap_or(&name);
            assert!(is_listed(setting), "{setting} is not on the settings page");
            let is_decided = place_of(setting).is_some();
            assert!(is_decided || free.contains(&setting) || own.contains_key(setting), "{setting} has no place");
        }
    }
}

#[test]
fn a_setting_with_a_place_of_its_own_is_refused_elsewhere() {
    let refused = |spec: Value| {
        let errors = validate(&gateway("edge", &spec).spec);
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    let storage = json!({ "mode": "Memory" });
    for (name, part) in [
        ("PORT", "spec.listeners.port"),
        ("JWT_SECRET_KEY", "spec.keys.jwt"),
        ("JWT_SECRET_KEY_FILE", "spec.keys.jwt"),
        ("JWT_KEYS", "spec.keys.jwt"),
        ("DOORMAN_JWT_KEYS_DIR", "spec.keys.jwt"),
        ("REDIS_TLS_CA_FILE", "spec.storage.redis.caSecretRef"),
        ("DOORMAN_SNAPSHOT_DIR", "the operator decides"),
        ("no name", "not the name"),
    ] {
        let by_settings = refused(json!({ "storage": storage, "settings": { name: "1" } }));
        assert!(by_settings.contains(part) && by_settings.contains(name), "{by_settings}");
        let by_env = refused(json!({ "storage": storage, "podTemplate": { "env": [{ "name": name, "value": "1" }] } }));
        assert!(by_env.contains(part) && by_env.contains(name), "{by_env}");
    }
    let clash = refused(json!({ "storage": storage, "listeners": { "port": 9090 } }));
    assert!(clash.contains("spec.listeners.port"), "{clash}");
    let affinity = refused(json!({ "storage": storage, "podTemplate": { "affinity": { "nodeAffinity": 1 } } }));
    assert!(affinity.contains("spec.podTemplate.affinity"), "{affinity}");
    let long = refused(json!({ "storage": storage, "settings": { "DOORMAN_SHUTDOWN_SECONDS": "59" } }));
    assert!(long.contains("terminationGracePeriodSeconds"), "{long}");
    let word = refused(json!({ "storage": storage, "settings": { "DOORMAN_DRAIN_SECONDS": "soon" } }));
    assert!(word.contains("not a number of seconds"), "{word}");
}

#[test]
fn everything_in_a_namespace_is_owned_and_every_pod_is_restricted() {
    for (path, gateway) in cases() {
        let rendered = rendered(&gateway);
        for object in &rendered.objects {
            let owners = &object.manifest["metadata"]["ownerReferences"];
            if object.kind == Kind::ClusterRoleBinding {
                assert_eq!((owners, &object.namespace), (&Value::Null, &None));
            } else {
                assert_eq!(owners[0]["uid"].as_str(), gateway.metadata.uid.as_deref(), "{}", path.display());
                assert_eq!(owners[0]["controller"], true);
            }
        }
        assert!(rendered.generated.iter().all(|secret| secret.metadata.owner_references.is_some()));
        let pod = &find(&rendered, Kind::Deployment)["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        let container = &pod["containers"][0]["securityContext"];
        assert_eq!(container["allowPrivilegeEscalation"], false);
        assert_eq!(container["capabilities"]["drop"], json!(["ALL"]));
        assert_eq!(container["readOnlyRootFilesystem"], true);
    }
}

#[test]
fn changed_settings_replace_the_pods_and_nothing_else_does() {
    let hash = |spec: Value| {
        let rendered = rendered(&gateway("edge", &spec));
        find(&rendered, Kind::Deployment)["spec"]["template"]["metadata"]["annotations"][pods::CONFIG_HASH].clone()
    };
    let storage = json!({ "mode": "Memory" });
    let before = hash(json!({ "storage": storage }));
    assert_eq!(before, hash(json!({ "storage": storage, "service": { "port": 80 } })));
    assert_ne!(before, hash(json!({ "storage": storage, "settings": { "HTTP_TIMEOUT": "3" } })));
}

#[test]
fn all_keys_of_a_secret_for_tokens_are_mounted_and_nothing_else_is_taken_for_one() {
    let mounted = |keys: Value| {
        let spec = json!({ "storage": { "mode": "Memory" }, "keys": keys });
        let rendered = rendered(&gateway("edge", &spec));
        let volumes = &find(&rendered, Kind::Deployment)["spec"]["template"]["spec"]["volumes"];
        let volume = volumes.as_array().unwrap().iter().find(|volume| volume["name"] == "jwt").unwrap();
        let needed = rendered.needed.iter().find(|needed| needed.field == "spec.keys.jwt").unwrap().clone();
        let is_made = rendered.generated.iter().any(|made| made.metadata.name.as_ref() == Some(&needed.secret));
        assert_eq!(volume["secret"]["secretName"], needed.secret.as_str());
        assert_eq!(volume["secret"]["defaultMode"], 0o440);
        (needed.secret, needed.key, is_made, volume["secret"]["items"].clone())
    };
    let one = |key: &str| json!([{ "key": key, "path": "JWT_SECRET_KEY" }]);
    let named = |name: &str| json!({ "secretRef": { "name": name } });
    assert_eq!(mounted(json!({})), ("edge-jwt".into(), None, true, Value::Null));
    assert_eq!(mounted(json!({ "jwt": named("ring") })), ("ring".into(), None, false, Value::Null));
    let key = json!({ "jwt": { "secretRef": { "name": "ring", "key": "now" } } });
    assert_eq!(mounted(key), ("ring".into(), Some("now".into()), false, one("now")));
    let shared = json!({ "jwt": named("all"), "tokenEncryption": named("all") });
    assert_eq!(mounted(shared), ("all".into(), Some("JWT_SECRET_KEY".into()), false, one("JWT_SECRET_KEY")));
}

#[test]
fn memory_is_never_in_two_pods() {
    let rendered = rendered(&gateway("edge", &json!({ "storage": { "mode": "Memory" } })));
    let deployment = &find(&rendered, Kind::Deployment)["spec"];
    assert_eq!((&deployment["strategy"]["type"], &deployment["replicas"]), (&json!("Recreate"), &json!(1)));
}

proptest! {
    #[test]
    fn any_gateway_name_makes_good_object_names(name in "[a-z0-9]([-a-z0-9]{0,40}[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]{0,40}[a-z0-9])?){0,4}") {
        let spec = json!({ "storage": { "mode": "Memory" }, "apis": { "namespaces": "All" } });
        let rendered = rendered(&gateway(&name, &spec));
        prop_assert_eq!(&rendered, &self::rendered(&gateway(&name, &spec)));
        let own = rendered.objects.iter().filter(|object| object.kind != Kind::ClusterRoleBinding);
        let secrets = rendered.generated.iter().map(|secret| secret.metadata.name.as_deref().unwrap());
        for object in own.map(|object| object.name.as_str()).chain(secrets) {
            let is_label = object.len() <= 63
                && object.starts_with(|first: char| first.is_ascii_lowercase())
                && !object.ends_with('-')
                && object.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
            prop_assert!(is_label, "{}", object);
        }
        let binding = find(&rendered, Kind::ClusterRoleBinding);
        let annotation = &binding["metadata"]["annotations"][GATEWAY_ANNOTATION];
        prop_assert_eq!(annotation, &json!(format!("shop/{name}")));
    }

    #[test]
    fn gateways_never_share_a_name(a in "[a-z0-9.]{1,60}", b in "[a-z0-9.]{1,60}") {
        prop_assert_eq!(a == b, object_name(&a) == object_name(&b));
    }

    #[test]
    fn a_pod_stops_within_its_time(grace in 10..=3600_i64) {
        let spec = json!({ "storage": { "mode": "Memory" }, "podTemplate": { "terminationGracePeriodSeconds": grace } });
        let gateway = gateway("edge", &spec);
        let (drain, shutdown) = stop_seconds(&gateway.spec);
        prop_assert_eq!(validate(&gateway.spec), []);
        prop_assert!(drain >= 1.0 && shutdown >= 1.0);
        #[expect(clippy::cast_precision_loss, reason = "an hour of seconds")]
        let grace = grace as f64;
        prop_assert!(drain + shutdown < grace);
    }
}
