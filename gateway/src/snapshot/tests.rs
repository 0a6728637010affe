use super::*;
use crate::definitions::Secrets;
use crate::upstream::PoolOptions;
use doorman_crds::DoormanRole;
use doorman_crds::revision::SetHash;
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

/// A Secret `ca` with this under `ca.crt`.
fn secret(version: &str, ca: &str) -> Arc<Secret> {
    let object = json!({"metadata": {"uid": "ca", "resourceVersion": version}, "stringData": {"ca.crt": ca}});
    Arc::new(serde_json::from_value::<k8s_openapi::api::core::v1::Secret>(object).unwrap().into())
}

/// One API that names the Secret `ca`, which is so, and one that names none.
fn with_secret(generation: i64, ca: Result<Arc<Secret>, NoSecret>) -> Definitions {
    let tls = json!({"servers": ["https://up:1"], "upstream": {"tls": {"caSecretRef": {"name": "ca"}}}});
    let mut secure = Arc::unwrap_or_clone(api("secure", 1, tls));
    secure.metadata.generation = Some(generation);
    let mut definitions = definitions(vec![Arc::new(secure), api("b", 1, json!({"name": "plain"}))], Vec::new());
    definitions.secrets = Secrets::known([(("edge".to_owned(), "ca".to_owned()), ca)].into());
    definitions
}

fn authority() -> String {
    rcgen::generate_simple_self_signed(vec!["up".to_owned()]).unwrap().cert.pem()
}

#[test]
fn an_api_whose_secret_can_not_be_had_is_closed_and_says_why() {
    for (why, reason, message) in [
        (NoSecret::NotFound, "SecretNotFound", "spec.upstream.tls.caSecretRef: no Secret is named `ca`"),
        (NoSecret::NotRead, "SecretNotRead", "has not been read yet"),
        (NoSecret::NoConsent, "RefNotPermitted", "doorman.dev/upstream-tls: \"true\""),
        (NoSecret::Forbidden(None), "RefNotPermitted", "may not read the Secret `ca`"),
    ] {
        let snapshot = compiler().compile(&with_secret(1, Err(why)));
        let Some(Entry::Unservable(told)) = snapshot.find("orders", "v1") else { panic!("it is not refused") };
        assert_eq!(snapshot.rejected[0].reason, reason);
        assert!(told.contains(message), "{told}");
        assert!(served(&snapshot, "plain").is_some());
        assert_eq!((snapshot.unusable.len(), snapshot.revision.secrets), (0, SetHash::default()));
    }
}

#[test]
fn content_that_can_not_be_used_leaves_what_was_and_is_told() {
    let mut compiler = compiler();
    let good = compiler.compile(&with_secret(1, Ok(secret("1", &authority()))));
    let pool = |snapshot: &Snapshot| served(snapshot, "orders").unwrap().servers.all()[0].pool.clone();
    assert!(good.unusable.is_empty());

    let bad = compiler.compile(&with_secret(1, Ok(secret("2", "none"))));
    assert!(Arc::ptr_eq(&pool(&good), &pool(&bad)), "it is called in another way");
    assert_eq!((bad.rejected.len(), bad.unusable[0].reason.as_str()), (0, "InvalidSecret"));
    assert!(bad.unusable[0].message.contains("`ca.crt` of the Secret `ca`"), "{:?}", bad.unusable);
    assert_eq!(bad.revision.secrets, [ObjectHash::of_secret("ca", "2")].into_iter().collect());
    let report = bad.report();
    assert_eq!((report.unusable.len(), report.unusable_untold.len()), (1, 0));
    // A change of the API elsewhere leaves it so.
    assert!(Arc::ptr_eq(&pool(&good), &pool(&compiler.compile(&with_secret(2, Ok(secret("2", "none")))))));

    let new = compiler.compile(&with_secret(2, Ok(secret("3", &authority()))));
    assert!(!Arc::ptr_eq(&pool(&good), &pool(&new)) && new.unusable.is_empty());

    // A Secret that was gone, or taken back, in between has left nothing to fall back on; a cold gateway has nothing.
    compiler.compile(&with_secret(2, Err(NoSecret::NoConsent)));
    for mut compiler in [compiler, self::compiler()] {
        let closed = compiler.compile(&with_secret(2, Ok(secret("4", "none"))));
        assert!(matches!(closed.find("orders", "v1"), Some(Entry::Unservable(_))));
        assert_eq!((closed.rejected[0].reason.as_str(), closed.unusable.len()), ("InvalidSecret", 1));
    }
}

#[test]
fn a_secret_whose_content_stays_costs_no_compilation_and_is_another_state() {
    let (mut compiler, ca) = (compiler(), authority());
    let first = compiler.compile(&with_secret(1, Ok(secret("1", &ca))));
    let second = compiler.compile(&with_secret(1, Ok(secret("2", &ca))));
    assert!(Arc::ptr_eq(served(&first, "orders").unwrap(), served(&second, "orders").unwrap()));
    assert_eq!(first.revision.apis, second.revision.apis);
    assert_ne!(first.revision.secrets, second.revision.secrets);
}

#[test]
fn a_held_api_is_served_as_it_was_and_reported_as_it_is() {
    for ca in [Ok(secret("1", &authority())), Ok(secret("1", "none"))] {
        let is_usable = served(&compiler().compile(&with_secret(1, ca.clone())), "orders").is_some();
        let mut changed = with_secret(1, ca);
        let id = ("edge".to_owned(), "secure".to_owned());
        let old = changed.apis[&id].clone();
        let mut new = Arc::unwrap_or_clone(old.clone());
        new.metadata.generation = Some(2);
        new.spec.upstream = serde_json::from_value(json!({"tls": {"caSecretRef": {"name": "new"}}})).unwrap();
        changed.apis.insert(id.clone(), Arc::new(new));
        let unheld = compiler().compile(&changed);
        changed.held.insert(id, old);
        let held = compiler().compile(&changed);
        assert_eq!(served(&held, "orders").is_some(), is_usable);
        assert_eq!(held.revision, unheld.revision);
        assert_eq!(held.revision.secrets, SetHash::default(), "the Secret that is awaited, and none that was before");
        assert_eq!((held.rejected.len(), held.unusable.len()), (0, 0), "nothing is said of the state before");
    }
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

/// An API with these members.
fn compiled(members: Value) -> Arc<CompiledApi> {
    let snapshot = compiler().compile(&definitions(vec![api("a", 1, members)], vec![]));
    served(&snapshot, "orders").unwrap().clone()
}

fn host(server: &Server) -> &str {
    server.authority.to_str().unwrap().trim_end_matches(|end: char| end == ':' || end.is_ascii_digit())
}

/// The servers of so many calls, of which those called `away` admit none.
fn called<'a>(servers: &'a Servers, calls: usize, away: &str) -> Vec<&'a str> {
    let admit = |server: &'a Server| (host(server) != away).then(|| host(server));
    (0..calls).filter_map(|_| servers.choose(admit).map(|(_, host)| host)).collect()
}

#[test]
fn servers_take_turns_by_their_weights() {
    let two = json!(["http://one:1", "http://two:2"]);
    let alike = compiled(json!({ "servers": two }));
    assert_eq!(called(&alike.servers, 4, ""), ["one", "two", "one", "two"]);
    let own = json!([{ "method": "GET", "uri": "/a", "servers": two, "serverWeights": [0, 7] }]);
    let weighted = compiled(json!({ "servers": two, "serverWeights": [30, 10], "endpoints": own }));
    assert_eq!(called(&weighted.servers, 5, ""), ["one", "one", "one", "two", "one"]);
    let endpoint = weighted.paths.find(doorman_crds::api::Method::Get, &["a".into()]).unwrap();
    assert_eq!(called(endpoint.servers().unwrap(), 3, ""), ["two"; 3], "one of weight 0 is never called");
}

#[test]
fn a_server_that_is_left_alone_leaves_the_others_their_shares() {
    let servers = ["http://one:1", "http://two:2", "http://three:3"];
    let api = compiled(json!({ "servers": servers, "serverWeights": [100, 2, 1] }));
    let seen = called(&api.servers, 300, "one");
    let count = |name: &str| seen.iter().filter(|other| **other == name).count();
    assert_eq!((count("two"), count("three")), (200, 100));
    let mut asked = Vec::new();
    assert!(
        api.servers
            .choose(|server| {
                asked.push(host(server));
                None::<()>
            })
            .is_none()
    );
    asked.sort_unstable();
    assert_eq!(asked, ["one", "three", "two"], "each is asked once");
}

#[test]
fn a_server_that_is_well_is_found_while_others_take_its_turns() {
    let api = compiled(json!({ "servers": ["http://one:1", "http://two:2"] }));
    let chosen = api.servers.choose(|server| {
        // The turn of the other one goes to another call.
        api.servers.choose(|_| Some(()));
        (host(server) == "two").then_some(())
    });
    assert_eq!(host(chosen.unwrap().0), "two");
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
fn no_namespace_crowds_out_what_is_said_of_another() {
    let of = |namespace: &str, count: usize| {
        let one = move |number: usize| Rejection {
            kind: "DoormanApi".to_owned(),
            namespace: namespace.to_owned(),
            name: number.to_string(),
            reason: "InvalidSecret".to_owned(),
            message: String::new(),
        };
        (0..count).map(one).collect::<Vec<_>>()
    };
    let all = [of("a", 1000), of("b", 3), of("c", 40), of("d", 1)].concat();
    let told = |room| {
        let (shared, untold) = share_out(&all, room);
        let count = |namespace| shared.iter().filter(|one| one.namespace == namespace).count();
        (["a", "b", "c", "d"].map(count), Vec::from_iter(untold).join(" "))
    };
    assert_eq!(told(2000), ([1000, 3, 40, 1], String::new()));
    assert_eq!(told(500), ([456, 3, 40, 1], "a".to_owned()));
    assert_eq!(told(50), ([23, 3, 23, 1], "a c".to_owned()));
    assert_eq!(told(0), ([0; 4], "a b c d".to_owned()));
}
