use super::*;
use crate::upstream::PoolOptions;
use doorman_crds::DoormanRole;
use serde_json::{Value, json};

fn compiler() -> Compiler {
    Compiler::new(Pools::new(PoolOptions::local()))
}

/// An API object; `created` orders claimants of one name.
fn api(object: &str, created: i64, spec: Value) -> Arc<DoormanApi> {
    let mut full = json!({"name": "orders", "version": "v1", "protocol": "REST", "servers": ["http://up:1"],
        "endpoints": [{"method": "GET", "uri": "/items/{id}"}, {"method": "GET", "uri": "/items/all"}]});
    for (key, value) in spec.as_object().unwrap() {
        full[key] = value.clone();
    }
    let created = jiff::Timestamp::from_second(created).unwrap().to_string();
    Arc::new(
        serde_json::from_value(json!({
            "apiVersion": "doorman.dev/v1alpha1", "kind": "DoormanApi", "spec": full,
            "metadata": {"name": object, "namespace": "edge", "uid": object, "generation": 1, "creationTimestamp": created},
        }))
        .unwrap(),
    )
}

fn role(name: &str) -> Arc<DoormanRole> {
    Arc::new(
        serde_json::from_value(json!({
            "apiVersion": "doorman.dev/v1alpha1", "kind": "DoormanRole", "spec": {"name": name},
            "metadata": {"name": name, "namespace": "edge", "uid": name, "generation": 1},
        }))
        .unwrap(),
    )
}

fn definitions(apis: Vec<Arc<DoormanApi>>, roles: Vec<Arc<DoormanRole>>) -> Definitions {
    let id = |name: &Option<String>| ("edge".to_owned(), name.clone().unwrap());
    Definitions {
        apis: apis.into_iter().map(|api| (id(&api.metadata.name), api)).collect(),
        roles: roles.into_iter().map(|role| (id(&role.metadata.name), role)).collect(),
        ..Definitions::default()
    }
}

fn served<'a>(snapshot: &'a Snapshot, name: &str) -> Option<&'a Arc<CompiledApi>> {
    match snapshot.find(name, "v1") {
        Some(Entry::Served(api)) => Some(api),
        _ => None,
    }
}

#[test]
fn secrets_of_apis_are_refused_where_none_are_read_and_missed_where_they_are() {
    let tls = json!({"servers": ["https://up:1"], "upstream": {"tls": {"caSecretRef": {"name": "ca"}}}});
    let mut definitions = definitions(vec![api("a", 1, tls)], Vec::new());
    let in_a_cluster = compiler().compile(&definitions);
    assert_eq!(in_a_cluster.rejected[0].reason, "UnsupportedValue", "{:?}", in_a_cluster.rejected);
    definitions.secrets = Some(BTreeMap::new());
    let alone = compiler().compile(&definitions);
    assert_eq!(alone.rejected[0].reason, "RefNotFound", "{:?}", alone.rejected);
    assert_eq!(alone.rejected[0].message, "spec.upstream.tls.caSecretRef: no Secret is named `ca`");
}

#[test]
fn one_invalid_api_among_many_harms_only_itself() {
    let mut apis: Vec<_> = (0..499).map(|n| api(&format!("a{n}"), 1, json!({"name": format!("a{n}")}))).collect();
    apis.push(api("bad", 1, json!({"name": "bad", "servers": ["nowhere"]})));
    let snapshot = compiler().compile(&definitions(apis, vec![]));
    assert_eq!(snapshot.served, 499);
    let Some(Entry::Unservable(reason)) = snapshot.find("bad", "v1") else { panic!("bad is not refused") };
    assert!(reason.contains("spec.servers[0]"), "{reason}");
    assert_eq!(snapshot.report().rejected.len(), 1);
}

#[test]
fn the_older_of_two_claimants_is_served() {
    let older = api("older", 1, json!({"description": "older"}));
    let younger = api("a-younger", 2, json!({"description": "younger"}));
    let snapshot = compiler().compile(&definitions(vec![younger, older], vec![]));
    assert_eq!(snapshot.served, 1);
    let rejected = &snapshot.rejected[0];
    assert_eq!((rejected.name.as_str(), rejected.reason.as_str()), ("a-younger", "Conflict"));
    assert!(rejected.message.contains("edge/older"), "{}", rejected.message);
}

#[test]
fn an_unknown_role_closes_the_api_until_the_role_exists() {
    let guarded = api("g", 1, json!({"access": {"roles": ["ops"]}}));
    let mut compiler = compiler();
    let without = compiler.compile(&definitions(vec![guarded.clone()], vec![]));
    assert!(matches!(without.find("orders", "v1"), Some(Entry::Unservable(_))));
    let with = compiler.compile(&definitions(vec![guarded], vec![role("ops")]));
    assert!(served(&with, "orders").is_some());
}

#[test]
fn what_did_not_change_is_not_compiled_again() {
    let mut compiler = compiler();
    let first = compiler.compile(&definitions(vec![api("a", 1, json!({}))], vec![]));
    let other = api("b", 1, json!({"name": "other"}));
    let second = compiler.compile(&definitions(vec![api("a", 1, json!({})), other], vec![]));
    assert!(Arc::ptr_eq(served(&first, "orders").unwrap(), served(&second, "orders").unwrap()));
    assert_ne!(first.revision, second.revision);
}

#[test]
fn a_literal_segment_beats_a_parameter() {
    let snapshot = compiler().compile(&definitions(vec![api("a", 1, json!({}))], vec![]));
    let paths = &served(&snapshot, "orders").unwrap().paths;
    let label = |path: &str| {
        let segments = crate::request::segments(path).unwrap();
        paths.find(doorman_crds::api::Method::Get, &segments).map(|m| m.client_path().to_string())
    };
    assert_eq!(label("/items/all").as_deref(), Some("/items/all"));
    assert_eq!(label("/items/7").as_deref(), Some("/items/{id}"));
    assert_eq!(label("/items"), None);
    assert_eq!(label("/items/7/x"), None);
}

#[test]
fn client_paths_are_rewritten_with_their_parameters() {
    let endpoint = json!([{"method": "GET", "uri": "/v2/things/{id}/x", "clientUri": "/a/{id}"}]);
    let snapshot = compiler().compile(&definitions(vec![api("a", 1, json!({"endpoints": endpoint}))], vec![]));
    let segments = crate::request::segments("/a/b%20c").unwrap();
    let paths = &served(&snapshot, "orders").unwrap().paths;
    let mut out = String::new();
    paths.find(doorman_crds::api::Method::Get, &segments).unwrap().write_path(&segments, &mut out);
    assert_eq!(out, "/v2/things/b%20c/x");
}

#[test]
fn servers_take_turns() {
    let snapshot = compiler()
        .compile(&definitions(vec![api("a", 1, json!({"servers": ["http://one:1", "http://two:2"]}))], vec![]));
    let servers = &served(&snapshot, "orders").unwrap().servers;
    let seen: Vec<_> = (0..4).map(|_| servers.next().unwrap().authority.to_str().unwrap().to_owned()).collect();
    assert_eq!(seen, ["one:1", "two:2", "one:1", "two:2"]);
}

#[test]
fn a_stored_role_opens_an_api_where_stored_roles_count() {
    let guarded = definitions(vec![api("g", 1, json!({"access": {"roles": ["ops"]}}))], vec![]);
    let mut compiler = compiler();
    compiler.set_stored_roles(["ops".to_owned()].into());
    assert!(served(&compiler.compile(&guarded), "orders").is_some());
    compiler.set_stored_roles([].into());
    assert!(matches!(compiler.compile(&guarded).find("orders", "v1"), Some(Entry::Unservable(_))));
}

#[test]
fn defined_roles_are_in_the_snapshot_with_their_origin() {
    let mut ops = (*role("ops")).clone();
    ops.spec.permissions = Some(vec![doorman_crds::role::Permission::ViewLogs]);
    let mut refused = (*role("bad")).clone();
    refused.spec.name = "admin".into();
    let mut definitions = definitions(vec![], vec![Arc::new(ops), Arc::new(refused)]);
    definitions.files.insert("ops".into(), "roles.yaml".into());
    let snapshot = compiler().compile(&definitions);
    assert_eq!(snapshot.roles.keys().map(|name| &**name).collect::<Vec<_>>(), ["ops"]);
    let ops = &snapshot.roles["ops"];
    assert!(ops.role.permissions.contains(doorman_crds::role::Permission::ViewLogs));
    assert_eq!((ops.origin.owner.to_string(), ops.origin.generation), ("manifest roles.yaml".to_owned(), 1));
}

#[test]
fn temporary_sizes() {
    use std::mem::size_of;
    macro_rules! show { ($($t:ty),*) => { $( println!("{:>6} {}", size_of::<$t>(), stringify!($t)); )* } }
    show!(
        DoormanApi,
        doorman_crds::DoormanApiSpec,
        ObjectMeta,
        doorman_crds::api::EndpointSpec,
        doorman_crds::api::Api,
        doorman_crds::api::Endpoint,
        doorman_crds::api::Cors,
        doorman_crds::api::Access,
        doorman_crds::api::Headers,
        doorman_crds::api::RequestTransform,
        doorman_crds::api::ResponseTransform,
        doorman_crds::api::UpstreamAddress,
        doorman_crds::api::Timeouts,
        doorman_crds::api::UpstreamTls,
        CompiledApi,
        Server,
        Servers,
        Version,
        Entry,
        Definition,
        ObjectKey,
        Compiled,
        ObjectHash,
        Paths
    );
    paths::temporary_sizes();
    let rss = || {
        let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
        let line = text.lines().find(|line| line.starts_with("Rss:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let folder = tempfile::tempdir().unwrap();
    let count = 10_000;
    for file in 0..count / 100 {
        let mut text = String::new();
        for n in 0..100 {
            let name = format!("api-{:05}", file * 100 + n);
            let mut endpoints: Vec<_> =
                [100, 10_240].iter().map(|size| json!({"method": "GET", "uri": format!("/bytes/{size}")})).collect();
            endpoints.extend((0..8).map(|n| json!({"method": "GET", "uri": format!("/items/{n}/{{id}}")})));
            let object = json!({"apiVersion": "doorman.dev/v1alpha1", "kind": "DoormanApi", "metadata": {"name": format!("{name}-v1")},
                "spec": {"name": name, "version": "v1", "protocol": "REST", "public": true, "servers": ["http://127.0.0.1:7000"], "endpoints": endpoints}});
            text.push_str(&object.to_string());
            text.push_str("\n---\n");
        }
        std::fs::write(folder.path().join(format!("apis-{file:05}.yaml")), text).unwrap();
    }
    let start = rss();
    let mut directory = crate::definitions::directory::Directory::new(folder.path());
    let definitions = directory.read().unwrap().unwrap();
    let read = rss();
    let mut compiler = compiler();
    let snapshot = compiler.compile(&definitions);
    let compiled = rss();
    println!("read {} B an API, compiled {} B", (read - start) * 1024 / count, (compiled - read) * 1024 / count);
    let at = std::time::Instant::now();
    directory.read().unwrap();
    println!("looked again {:?}", at.elapsed());
    assert_eq!(snapshot.served, 10_000);
}
