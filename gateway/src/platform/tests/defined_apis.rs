//! APIs that are defined outside of the store: by manifests, or by objects of a cluster that REST may write.

use super::{cluster::*, *};
use crate::definitions::{Definitions, writer::conflict};

const KIND: &str = "DoormanApi";
const ORDERS: &str = "/platform/api/orders/v1";

fn orders() -> Value {
    json!({ "api_name": "orders", "api_version": "v1", "api_description": "Orders", "api_type": "SOAP",
        "api_servers": ["http://orders:8080"], "api_allowed_groups": ["ALL"], "api_allowed_retry_count": 2,
        "api_read_timeout": 1.5 })
}

fn spec() -> Value {
    json!({ "name": "orders", "version": "v1", "protocol": "REST", "servers": ["http://orders:8080"],
        "endpoints": [{ "method": "POST", "uri": "/b" }, { "method": "GET", "uri": "/a/{id}", "description": "reads" }] })
}

fn endpoint(uri: &str) -> Value {
    json!({ "api_name": "orders", "api_version": "v1", "endpoint_method": "GET", "endpoint_uri": uri,
        "endpoint_description": "x" })
}

fn manifest(definitions: &mut Definitions, name: &str, spec: &Value) {
    let object = json!({ "apiVersion": "doorman.dev/v1alpha1", "kind": KIND, "spec": spec,
        "metadata": { "name": name, "uid": name, "generation": 1 } });
    let id = (String::new(), name.to_owned());
    definitions.apis.insert(id, Arc::new(serde_json::from_value(object).unwrap()));
    definitions.files.insert(name.to_owned(), "apis.yaml".into());
}

/// A gateway without a cluster, of a folder with one API.
async fn with_manifest() -> (Fixture, String) {
    let fixture = Fixture::usual().await;
    let mut definitions = Definitions::default();
    manifest(&mut definitions, "orders-v1", &spec());
    serve(&fixture.identity, &fixture.snapshot, &definitions);
    let admin = fixture.token().await;
    (fixture, admin)
}

impl Fixture {
    pub(super) async fn found(&self, path: &str, token: &str) -> Value {
        let seen = self.send("GET", path, token, Value::Null).await;
        assert_eq!(seen.status, 200, "{path}: {seen:?}");
        seen.json()
    }

    pub(super) async fn does(&self, method: &str, path: &str, token: &str, body: Value) -> Value {
        let seen = self.send(method, path, token, body).await;
        assert!((200..300).contains(&seen.status), "{method} {path}: {seen:?}");
        seen.json()
    }
}

#[tokio::test]
async fn a_manifest_is_read_like_what_is_stored_and_changed_in_its_file() {
    let (fixture, admin) = with_manifest().await;
    let api = fixture.found(ORDERS, &admin).await;
    let stored = fixture.does("POST", "/platform/api", &admin, json!({ "api_name": "a", "api_version": "v1" })).await;
    let members = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let mut expected = members(&stored["api"]);
    expected.push("managed_by".to_owned());
    expected.sort();
    let mut seen = members(&api);
    seen.sort();
    assert_eq!(seen, expected, "all members, and one more");
    assert_eq!(
        (&api["api_servers"], &api["active"], &api["managed_by"], &api["api_allowed_groups"]),
        (&json!(["http://orders:8080"]), &json!(true), &json!("manifest apis.yaml"), &Value::Null)
    );
    let endpoints = fixture.found("/platform/endpoint/orders/v1", &admin).await;
    let uris: Vec<_> = endpoints["endpoints"].as_array().unwrap().iter().map(|one| &one["endpoint_uri"]).collect();
    assert_eq!(uris, ["/a/{id}", "/b"]);
    let one = fixture.found("/platform/endpoint/GET/orders/v1/a/{id}", &admin).await;
    assert_eq!((&one["api_id"], &one["endpoint_description"]), (&api["api_id"], &json!("reads")));

    let message = "API orders/v1 is defined by manifest apis.yaml; change it there";
    let validation = json!({ "endpoint_id": one["endpoint_id"], "validation_enabled": true,
        "validation_schema": { "validation_schema": { "a": { "required": true, "type": "string" } } } });
    let id = one["endpoint_id"].as_str().unwrap();
    for (method, path, body) in [
        ("POST", "/platform/api".to_owned(), orders()),
        ("PUT", ORDERS.to_owned(), json!({ "active": false })),
        ("DELETE", ORDERS.to_owned(), Value::Null),
        ("POST", "/platform/endpoint".to_owned(), endpoint("/c")),
        ("PUT", "/platform/endpoint/POST/orders/v1/b".to_owned(), json!({ "client_uri": "/c" })),
        ("DELETE", "/platform/endpoint/POST/orders/v1/b".to_owned(), Value::Null),
        ("POST", "/platform/endpoint/validation".to_owned(), validation),
        ("DELETE", format!("/platform/endpoint/validation/{id}"), Value::Null),
        ("POST", "/platform/config/import".to_owned(), json!({ "apis": [orders()] })),
    ] {
        refused(&fixture.send(method, &path, &admin, body).await, 409, "DEF409", message);
    }
    for hand in ["adopt", "release"] {
        let seen = fixture.send("POST", &format!("{ORDERS}/{hand}"), &admin, Value::Null).await;
        refused(&seen, 409, "DEF409", "runs without a cluster");
    }
}

#[tokio::test]
async fn credentials_of_upstreams_are_shown_to_those_who_may_change_them() {
    let fixture = Fixture::usual().await;
    let (admin, credentials) = (fixture.token().await, json!({ "username": "a", "password": "secret" }));
    let api = json!({ "api_name": "orders", "api_version": "v1", "api_ws_security": credentials });
    fixture.does("POST", "/platform/api", &admin, api).await;
    let manager = fixture.with_role("manager", &[Permission::ManageApis]).await;
    let reader = fixture.with_role("reader", &[Permission::ManageEndpoints]).await;
    for (token, shown) in [(&admin, &credentials), (&manager, &credentials), (&reader, &Value::Null)] {
        assert_eq!(&fixture.found(ORDERS, token).await["api_ws_security"], shown);
        for list in ["/platform/api", "/platform/api/all"] {
            assert_eq!(&fixture.found(list, token).await["apis"][0]["api_ws_security"], shown);
        }
    }
}

#[tokio::test]
async fn apis_are_listed_together_whatever_they_come_from() {
    let (fixture, admin) = with_manifest().await;
    for name in ["a", "z"] {
        fixture.does("POST", "/platform/api", &admin, json!({ "api_name": name, "api_version": "v1" })).await;
    }
    let mut seen = Vec::new();
    for page in 1..=2 {
        let body = fixture.found(&format!("/platform/api/all?page={page}&page_size=2"), &admin).await;
        assert_eq!((&body["total"], &body["has_next"]), (&json!(3), &json!(page < 2)));
        seen.extend(body["apis"].as_array().unwrap().iter().map(|api| api["api_name"].as_str().unwrap().to_owned()));
    }
    assert_eq!(seen, ["a", "orders", "z"]);
    let exported = fixture.found("/platform/config/export/all", &admin).await;
    let count = |part: &str| exported[part].as_array().unwrap().len();
    assert_eq!((count("apis"), count("endpoints")), (3, 2));
    // What an export holds can be imported again: it changes nothing of what is defined elsewhere.
    fixture.does("POST", "/platform/config/import", &admin, exported).await;
    let one = fixture.found("/platform/config/export/apis?api_name=orders&api_version=v1", &admin).await;
    assert_eq!(
        (&one["api"]["managed_by"], one["endpoints"].as_array().unwrap().len()),
        (&json!("manifest apis.yaml"), 2)
    );
}

#[tokio::test]
async fn an_api_written_by_rest_is_an_object_of_the_platform() {
    let (fixture, cluster) = in_cluster(Cluster::usual()).await;
    let admin = fixture.token().await;
    let created = fixture.send("POST", "/platform/api", &admin, orders()).await;
    assert_eq!(created.status, 201, "{created:?}");
    let object = cluster.object(KIND, "orders-v1");
    assert_eq!(
        object["spec"],
        json!({ "name": "orders", "version": "v1", "protocol": "SOAP", "description": "Orders",
            "servers": ["http://orders:8080"], "access": { "groups": ["ALL"] }, "gatewayRefs": [{ "name": "main" }],
            "upstream": { "timeouts": { "readMillis": 1500 }, "retries": { "attempts": 2 } } })
    );
    assert_eq!(object["metadata"]["labels"], json!({ "app.kubernetes.io/managed-by": "doorman-platform" }));
    let read = fixture.found(ORDERS, &admin).await;
    assert_eq!(created.json()["api"], read);
    for (member, value) in orders().as_object().unwrap() {
        assert_eq!(&read[member], value, "{member}");
    }
    assert_eq!(read["managed_by"], "doorman-platform");
    let again = fixture.send("POST", "/platform/api", &admin, orders()).await;
    again.is(200, json!({ "message": "API already exists" }));
    assert!(fixture.identity.store().all(crate::store::Collection::Apis).await.unwrap().is_empty());

    fixture.does("PUT", ORDERS, &admin, json!({ "active": false, "api_allowed_roles": ["nobody"] })).await;
    assert_eq!(cluster.object(KIND, "orders-v1")["spec"]["active"], false);
    let (unservable, path) = (fixture.found(ORDERS, &admin).await, format!("{ORDERS}/x"));
    assert_eq!(unservable["api_allowed_roles"], json!(["nobody"]), "also what can't be served is told");
    assert_eq!(fixture.send("GET", &path, &admin, Value::Null).await.status, 404);
    let bad = fixture.send("PUT", ORDERS, &admin, json!({ "api_public": true, "api_credits_enabled": true })).await;
    refused(&bad, 400, "API013", "credits");
    for (body, part) in [
        (json!({ "api_is_crud": true }), "api_is_crud can't be kept in a DoormanApi object"),
        (json!({ "api_ws_security": { "username": "a" } }), "api_ws_security"),
        (json!({ "api_allowed_retry_count": 11 }), "api_allowed_retry_count"),
        (json!({ "api_request_transform": { "bodies": {} } }), "api_request_transform"),
    ] {
        refused(&fixture.send("PUT", ORDERS, &admin, body).await, 422, "VAL001", part);
    }

    let deleted = fixture.send("DELETE", ORDERS, &admin, Value::Null).await;
    deleted.is(200, json!({ "message": "API deleted successfully" }));
    assert!(cluster.object(KIND, "orders-v1").is_null());
    refused(&fixture.send("DELETE", ORDERS, &admin, Value::Null).await, 400, "API003", "does not exist");
    refused(&fixture.send("PUT", ORDERS, &admin, json!({ "active": true })).await, 400, "API003", "does not exist");
}

#[tokio::test]
async fn endpoints_and_what_they_demand_are_written_to_the_object() {
    let (fixture, cluster) = in_cluster(Cluster::usual()).await;
    let admin = fixture.token().await;
    refused(&fixture.send("POST", "/platform/endpoint", &admin, endpoint("/a")).await, 400, "END002", "API does not");
    fixture.does("POST", "/platform/api", &admin, orders()).await;
    fixture.does("POST", "/platform/endpoint", &admin, endpoint("/a/{id}")).await;
    fixture.does("POST", "/platform/endpoint", &admin, endpoint("/")).await;
    refused(&fixture.send("POST", "/platform/endpoint", &admin, endpoint("/")).await, 400, "END001", "already exists");
    let mut other = endpoint("/b");
    other["endpoint_method"] = "TRACE".into();
    refused(&fixture.send("POST", "/platform/endpoint", &admin, other).await, 422, "VAL001", "endpoint_method");

    let path = "/platform/endpoint/GET/orders/v1/a/{id}";
    fixture.does("PUT", path, &admin, json!({ "client_uri": "/c/{id}", "endpoint_servers": ["http://b"] })).await;
    let seen =
        fixture.send("PUT", "/platform/endpoint/GET/orders/v1", &admin, json!({ "client_uri": "/c/{id}" })).await;
    refused(&seen, 400, "END006", "Client URI conflicts");
    let read = fixture.found(path, &admin).await;
    assert_eq!((&read["client_uri"], &read["endpoint_description"]), (&json!("/c/{id}"), &json!("x")));
    fixture.does("DELETE", "/platform/endpoint/GET/orders/v1", &admin, Value::Null).await;
    let spec = cluster.object(KIND, "orders-v1")["spec"].clone();
    let expected = json!([{ "method": "GET", "uri": "/a/{id}", "clientUri": "/c/{id}", "description": "x",
        "servers": ["http://b"] }]);
    assert_eq!(spec["endpoints"], expected);

    let id = read["endpoint_id"].as_str().unwrap();
    let rules = json!({ "item": { "required": true, "type": "object", "nested_schema": { "list": { "required": false,
        "type": "array", "array_items": { "required": true, "type": "string", "min": 2 } } } } });
    let new =
        json!({ "endpoint_id": id, "validation_enabled": true, "validation_schema": { "validation_schema": rules } });
    fixture.does("POST", "/platform/endpoint/endpoint/validation", &admin, new.clone()).await;
    let again = fixture.send("POST", "/platform/endpoint/endpoint/validation", &admin, new).await;
    refused(&again, 400, "END017", "already exists");
    let rule = cluster.object(KIND, "orders-v1")["spec"]["endpoints"][0]["validation"]["rules"]["item"].clone();
    assert_eq!(rule["nestedSchema"]["list"]["arrayItems"], json!({ "required": true, "type": "string", "min": 2 }));
    let validation = format!("/platform/endpoint/endpoint/validation/{id}");
    fixture.does("PUT", &validation, &admin, json!({ "validation_enabled": false })).await;
    let read = fixture.found(&validation, &admin).await;
    let item = &read["validation_schema"]["validation_schema"]["item"]["nested_schema"]["list"]["array_items"];
    assert_eq!((&read["validation_enabled"], &item["min"], &item["max"]), (&json!(false), &json!(2), &Value::Null));
    for _ in 0..2 {
        fixture.does("DELETE", &validation, &admin, Value::Null).await;
    }
    assert!(cluster.object(KIND, "orders-v1")["spec"]["endpoints"][0].get("validation").is_none());
    refused(&fixture.send("GET", &validation, &admin, Value::Null).await, 400, "END018", "does not exist");
}

#[tokio::test]
async fn no_endpoint_is_lost_when_many_are_added_at_once_on_several_pods() {
    let cluster = Arc::new(Cluster::usual());
    let pods = [pod(&cluster).await, pod(&cluster).await, pod(&cluster).await];
    let admin = pods[0].token().await;
    pods[0].does("POST", "/platform/api", &admin, orders()).await;
    let create = |number: usize| {
        let (pod, admin) = (&pods[number % pods.len()], &admin);
        async move { pod.send("POST", "/platform/endpoint", admin, endpoint(&format!("/{number}"))).await.status }
    };
    let statuses = futures::future::join_all((0..60).map(create)).await;
    assert!(statuses.iter().all(|status| *status == 201), "{statuses:?}");
    let endpoints = cluster.object(KIND, "orders-v1")["spec"]["endpoints"].as_array().unwrap().len();
    assert_eq!(endpoints, 60);
}

#[tokio::test]
async fn what_others_own_is_theirs_until_it_is_adopted() {
    let (fixture, cluster) = in_cluster(Cluster::usual()).await;
    let admin = fixture.token().await;
    cluster.put(KIND, "theirs", "kubectl", &spec());
    cluster.serve();
    let message = "API orders/v1 is defined by kubectl as DoormanApi edge/theirs; change it there";
    let id = fixture.found("/platform/endpoint/POST/orders/v1/b", &admin).await["endpoint_id"].clone();
    for (method, path, body) in [
        ("POST", "/platform/api", orders()),
        ("PUT", ORDERS, json!({ "active": false })),
        ("DELETE", ORDERS, Value::Null),
        ("POST", "/platform/endpoint", endpoint("/c")),
        (
            "POST",
            "/platform/config/import",
            json!({ "groups": [{ "group_name": "g" }], "endpoints": [endpoint("/c")] }),
        ),
        ("POST", "/platform/api/orders/v1/release", Value::Null),
    ] {
        refused(&fixture.send(method, path, &admin, body).await, 409, "DEF409", message);
    }
    let group = fixture.send("GET", "/platform/group/g", &admin, Value::Null).await;
    assert_eq!(group.status, 404, "nothing of a refused import is stored");

    let adopt = format!("{ORDERS}/adopt");
    let user = fixture.with_role("ops", &[Permission::ManageEndpoints]).await;
    refused(&fixture.send("POST", &adopt, &user, Value::Null).await, 403, "API008", "permission");
    fixture.does("POST", &adopt, &admin, Value::Null).await;
    fixture.does("POST", &adopt, &admin, json!({})).await;
    assert_eq!(fixture.found(ORDERS, &admin).await["managed_by"], "doorman-platform");
    fixture.does("PUT", ORDERS, &admin, json!({ "active": false })).await;
    let object = cluster.object(KIND, "theirs");
    assert_eq!((&object["spec"]["active"], object["spec"].get("gatewayRefs")), (&json!(false), None));
    let managers: Vec<_> =
        object["metadata"]["managedFields"].as_array().unwrap().iter().map(|entry| &entry["manager"]).collect();
    assert_eq!(managers, ["doorman-platform"]);
    let kept = fixture.found("/platform/endpoint/POST/orders/v1/b", &admin).await["endpoint_id"].clone();
    assert_eq!(kept, id, "ids outlive the change of hands");

    fixture.does("POST", &format!("{ORDERS}/release"), &admin, Value::Null).await;
    let object = cluster.object(KIND, "theirs");
    assert_eq!(object["metadata"]["labels"], json!({}));
    let owns_spec = |entry: &Value| entry["fieldsV1"].get("f:spec").is_some();
    assert!(!object["metadata"]["managedFields"].as_array().unwrap().iter().any(owns_spec), "{object}");
    let seen = fixture.send("PUT", ORDERS, &admin, json!({ "active": true })).await;
    refused(&seen, 409, "DEF409", "whoever it was released to");
    refused(&fixture.send("POST", &format!("{ORDERS}/release"), &admin, Value::Null).await, 409, "DEF409", "released");
    fixture.does("POST", &adopt, &admin, Value::Null).await;
    assert_eq!(cluster.object(KIND, "theirs")["metadata"]["annotations"], json!({}));
}

#[tokio::test]
async fn what_a_tool_keeps_is_adopted_by_force_only() {
    let (fixture, cluster) = in_cluster(Cluster::usual()).await;
    let admin = fixture.token().await;
    cluster.put(KIND, "theirs", "argocd-controller", &spec());
    cluster.put("DoormanRole", "ops", "argocd-controller", &json!({ "name": "ops" }));
    cluster.serve();
    for path in [format!("{ORDERS}/adopt"), "/platform/role/ops/adopt".to_owned()] {
        let seen = fixture.send("POST", &path, &admin, Value::Null).await;
        refused(&seen, 409, "DEF409", "is kept by Argo CD, which would take it back");
        fixture.does("POST", &path, &admin, json!({ "force": true })).await;
    }
    fixture.does("PUT", "/platform/role/ops", &admin, json!({ "view_logs": true })).await;
    fixture.does("POST", "/platform/role/ops/release", &admin, Value::Null).await;
    let seen = fixture.send("PUT", "/platform/role/ops", &admin, json!({ "view_logs": false })).await;
    refused(&seen, 409, "DEF409", "Role ops is defined by whoever it was released to");
    let seen = fixture.send("POST", "/platform/role/none/adopt", &admin, Value::Null).await;
    refused(&seen, 400, "ROLE004", "does not exist");
}

#[tokio::test]
async fn an_import_goes_to_objects_and_comes_back() {
    let (fixture, cluster) = in_cluster(Cluster::usual()).await;
    let admin = fixture.token().await;
    let mut payments = orders();
    payments["api_name"] = "payments".into();
    payments["api_description"] = "before".into();
    fixture.does("POST", "/platform/api", &admin, payments.clone()).await;
    payments["api_description"] = "after".into();
    payments["api_public"] = true.into();
    let import = json!({ "apis": [orders(), payments], "endpoints": [endpoint("/a"), endpoint("/b")],
        "roles": [{ "role_name": "ops", "view_logs": true }], "groups": [{ "group_name": "g" }] });
    let imported = fixture.does("POST", "/platform/config/import", &admin, import.clone()).await;
    assert_eq!(imported["imported"]["apis"], 2);
    let object = cluster.object(KIND, "orders-v1");
    assert_eq!(
        (&object["spec"]["protocol"], object["spec"]["endpoints"].as_array().unwrap().len()),
        (&json!("SOAP"), 2)
    );
    assert_eq!(cluster.object(KIND, "payments-v1")["spec"]["public"], true);
    assert_eq!(cluster.object("DoormanRole", "ops")["spec"]["permissions"], json!(["ViewLogs"]));
    assert_eq!(fixture.found("/platform/group/g", &admin).await["group_name"], "g");

    fixture.does("POST", "/platform/config/rollback", &admin, Value::Null).await;
    assert!(cluster.object(KIND, "orders-v1").is_null() && cluster.object("DoormanRole", "ops").is_null());
    let spec = cluster.object(KIND, "payments-v1")["spec"].clone();
    assert_eq!((&spec["description"], spec.get("public")), (&json!("before"), None));
    assert_eq!(fixture.send("GET", "/platform/group/g", &admin, Value::Null).await.status, 404);

    let lost = json!({ "endpoints": [endpoint("/a")] });
    let seen = fixture.send("POST", "/platform/config/import", &admin, lost).await;
    refused(&seen, 422, "VAL001", "endpoints of API orders/v1, which does not exist");
    let mut unfit = import;
    unfit["apis"][1]["api_is_crud"] = true.into();
    refused(&fixture.send("POST", "/platform/config/import", &admin, unfit).await, 422, "VAL001", "api_is_crud");
    assert!(cluster.object(KIND, "orders-v1").is_null(), "nothing of a refused import is written");
}

#[tokio::test]
async fn a_stored_api_becomes_an_object_with_its_first_change() {
    let (fixture, cluster) = in_cluster(Cluster::usual()).await;
    let admin = fixture.token().await;
    let store = fixture.identity.store();
    let document = |value: Value| mongodb::bson::serialize_to_document(&value).unwrap();
    store.insert(crate::store::Collection::Apis, document(orders())).await.unwrap();
    let mut old = endpoint("/old");
    old["endpoint_id"] = "7".into();
    store.insert(crate::store::Collection::Endpoints, document(old)).await.unwrap();
    fixture.does("POST", "/platform/endpoint", &admin, endpoint("/new")).await;
    let spec = cluster.object(KIND, "orders-v1")["spec"].clone();
    let uris: Vec<_> = spec["endpoints"].as_array().unwrap().iter().map(|one| &one["uri"]).collect();
    assert_eq!((&spec["description"], uris), (&json!("Orders"), vec![&json!("/old"), &json!("/new")]));
    fixture.does("DELETE", ORDERS, &admin, Value::Null).await;
    let seen = fixture.send("GET", ORDERS, &admin, Value::Null).await;
    refused(&seen, 400, "API003", "does not exist");
}

#[tokio::test]
async fn what_the_api_server_says_of_an_api_is_told() {
    let invalid = json!({ "kind": "Status", "status": "Failure", "reason": "Invalid", "code": 422, "message": "spec.servers: Too many" });
    for (answer, code, error, part) in
        [(invalid, 422, "VAL001", "Too many"), (conflict("kubectl-edit"), 409, "DEF409", "kubectl")]
    {
        let (fixture, _) = in_cluster(Cluster { answer: Some(answer), ..Cluster::usual() }).await;
        let admin = fixture.token().await;
        refused(&fixture.send("POST", "/platform/api", &admin, orders()).await, code, error, part);
    }
}

#[tokio::test(start_paused = true)]
async fn an_api_that_is_written_and_not_served_is_no_success() {
    let (fixture, cluster) = in_cluster(Cluster { is_watched: false, ..Cluster::usual() }).await;
    let admin = fixture.token().await;
    let seen = fixture.send("POST", "/platform/api", &admin, orders()).await;
    refused(&seen, 504, "DEF504", "API orders/v1 is stored in the cluster");
    assert!(cluster.object(KIND, "orders-v1").is_object());
}
