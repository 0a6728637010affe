//! Roles that are defined outside of the store: by manifests, or by objects of a cluster that REST may write.

use doorman_crds::{DoormanRole, selection::Selection};

use super::{cluster::*, *};
use crate::{
    definitions::{
        Origin,
        writer::{Writer, conflict},
    },
    identity::DefinedRole,
};

fn defined(object: Value, file: Option<&str>) -> (Arc<str>, DefinedRole) {
    let object: DoormanRole = serde_json::from_value(object).unwrap();
    let role = Arc::new(Role::from_spec(&object.spec));
    let file = file.map(Arc::from);
    (role.name.clone(), DefinedRole { role, origin: Origin::of(&object.metadata, file.as_ref()) })
}

fn manifest(spec: Value) -> (Arc<str>, DefinedRole) {
    let object = json!({ "apiVersion": "doorman.dev/v1alpha1", "kind": "DoormanRole", "metadata": { "name": "x" }, "spec": spec });
    defined(object, Some("roles.yaml"))
}

const READ_ONLY: &str = "Roles of this gateway are defined in the cluster (spec.platform.definitions is ReadOnly)";

#[tokio::test]
async fn a_defined_role_acts_on_the_next_request_and_before_a_stored_one() {
    let fixture = Fixture::usual().await;
    let user = fixture.with_role("ops", &[Permission::ManageGroups]).await;
    let define = |spec: Value| fixture.identity.define_roles(Arc::new([manifest(spec)].into()));
    let new = |name: &str| json!({ "group_name": name });
    assert_eq!(fixture.send("POST", "/platform/group", &user, new("a")).await.status, 201);
    define(json!({ "name": "ops" }));
    assert_eq!(fixture.send("POST", "/platform/group", &user, new("b")).await.status, 403);
    define(json!({ "name": "ops", "permissions": ["ManageGroups"] }));
    assert_eq!(fixture.send("POST", "/platform/group", &user, new("b")).await.status, 201);
    fixture.identity.define_roles(Arc::default());
    assert_eq!(
        fixture.send("POST", "/platform/group", &user, new("c")).await.status,
        201,
        "the stored one counts again"
    );
}

#[tokio::test]
async fn roles_are_listed_together_whatever_they_come_from() {
    let fixture = Fixture::usual().await;
    let admin = fixture.token().await;
    for name in ["b", "d"] {
        fixture
            .send("POST", "/platform/role", &admin, json!({ "role_name": name, "role_description": "stored" }))
            .await;
    }
    let roles =
        ["c", "b"].map(|name| manifest(json!({ "name": name, "description": "defined", "permissions": ["ViewLogs"] })));
    fixture.identity.define_roles(Arc::new(roles.into()));
    let mut seen = Vec::new();
    for page in 1..=3 {
        let path = format!("/platform/role/all?page={page}&page_size=2");
        let body = fixture.send("GET", &path, &admin, Value::Null).await.json();
        assert_eq!((&body["total"], &body["has_next"]), (&json!(4), &json!(page < 2)));
        let text = |role: &Value, member: &str| role[member].as_str().unwrap_or_default().to_owned();
        let of = |role: &Value| (text(role, "role_name"), text(role, "role_description"), text(role, "managed_by"));
        seen.extend(body["roles"].as_array().unwrap().iter().map(of));
    }
    let row = |name: &str, description: &str, owner: &str| (name.to_owned(), description.to_owned(), owner.to_owned());
    let file = "manifest roles.yaml";
    assert_eq!(
        seen,
        [
            row("admin", "Administrator role", ""),
            row("b", "defined", file),
            row("c", "defined", file),
            row("d", "stored", "")
        ]
    );
    let role = fixture.send("GET", "/platform/role/c", &admin, Value::Null).await.json();
    assert_eq!(
        (&role["view_logs"], &role["manage_users"], role.as_object().unwrap().len()),
        (&json!(true), &json!(false), 19)
    );
}

#[tokio::test]
async fn a_role_of_a_manifest_is_changed_there() {
    let fixture = Fixture::usual().await;
    let admin = fixture.token().await;
    fixture.identity.define_roles(Arc::new([manifest(json!({ "name": "ops" }))].into()));
    let message = "Role ops is defined by manifest roles.yaml; change it there";
    for (method, path, body) in [
        ("POST", "/platform/role", json!({ "role_name": "ops" })),
        ("PUT", "/platform/role/ops", json!({ "view_logs": true })),
        ("DELETE", "/platform/role/ops", Value::Null),
    ] {
        let seen = fixture.send(method, path, &admin, body).await;
        seen.is(409, json!({ "error_code": "DEF409", "error_message": message }));
    }
    let seen = fixture.send("PUT", "/platform/role/ops", &admin, json!({ "role_name": "other" })).await;
    assert_eq!(seen.json()["error_code"], "ROLE005");
    assert_eq!(fixture.send("POST", "/platform/role", &admin, json!({ "role_name": "other" })).await.status, 201);
}

#[tokio::test]
async fn what_a_cluster_would_not_serve_is_not_stored() {
    let fixture = writing(Writing::ReadOnly).await;
    let admin = fixture.token().await;
    let api = json!({ "api_name": "orders", "api_version": "v1" });
    let endpoint = json!({ "api_name": "orders", "api_version": "v1", "endpoint_method": "GET", "endpoint_uri": "/x",
        "endpoint_description": "x" });
    for (method, path, body) in [
        ("POST", "/platform/api", api.clone()),
        ("PUT", "/platform/api/orders/v1", json!({ "active": true })),
        ("DELETE", "/platform/api/orders/v1", Value::Null),
        ("POST", "/platform/endpoint", endpoint),
        ("DELETE", "/platform/endpoint/GET/orders/v1/x", Value::Null),
        ("POST", "/platform/config/import", json!({ "apis": [api] })),
        ("POST", "/platform/config/import", json!({ "roles": [{ "role_name": "ops" }] })),
    ] {
        let seen = fixture.send(method, path, &admin, body).await;
        refused(&seen, 409, "DEF409", "of this gateway are defined in the cluster");
    }
    let groups = json!({ "groups": [{ "group_name": "team" }] });
    assert_eq!(fixture.send("POST", "/platform/config/import", &admin, groups).await.status, 200);
}

#[tokio::test]
async fn without_read_write_the_cluster_defines_all_roles_but_the_built_in_one() {
    let fixture = writing(Writing::ReadOnly).await;
    let admin = fixture.token().await;
    let manager = fixture.with_role("left-over", &[Permission::ManageRoles]).await;
    let seen = fixture.send("POST", "/platform/role", &admin, json!({ "role_name": "ops" })).await;
    seen.is(409, json!({ "error_code": "DEF409", "error_message": READ_ONLY }));
    let seen = fixture.send("PUT", "/platform/role/left-over", &admin, json!({ "view_logs": true })).await;
    refused(&seen, 409, "DEF409", READ_ONLY);
    let seen = fixture.send("PUT", "/platform/role/admin", &admin, json!({ "view_logs": true })).await;
    assert_eq!(seen.status, 200, "{seen:?}");
    // What an older database holds still grants something, so it can be removed.
    assert_eq!(fixture.send("DELETE", "/platform/role/left-over", &admin, Value::Null).await.status, 200);
    assert_eq!(fixture.send("POST", "/platform/role", &manager, json!({ "role_name": "ops" })).await.status, 403);
}

#[tokio::test]
async fn a_role_written_by_rest_is_an_object_of_the_platform() {
    let (fixture, cluster) = in_cluster(Cluster::usual()).await;
    let admin = fixture.token().await;
    let new = json!({ "role_name": "ops", "role_description": "operators", "view_logs": true });
    let created = fixture.send("POST", "/platform/role", &admin, new.clone()).await;
    created.is(201, json!({ "message": "Role created successfully" }));
    let object = cluster.object("DoormanRole", "ops");
    assert_eq!(
        object["spec"],
        json!({ "name": "ops", "description": "operators", "permissions": ["ViewLogs"], "gatewayRefs": [{ "name": "main" }] })
    );
    assert_eq!(object["metadata"]["labels"], json!({ "app.kubernetes.io/managed-by": "doorman-platform" }));
    assert_eq!(fixture.send("POST", "/platform/role", &admin, new).await.json()["error_code"], "ROLE001");
    let read = fixture.send("GET", "/platform/role/ops", &admin, Value::Null).await.json();
    assert_eq!((&read["managed_by"], &read["view_logs"]), (&json!("doorman-platform"), &json!(true)));
    assert!(fixture.identity.store().role("ops").await.unwrap().is_none());

    let update = json!({ "manage_users": true, "view_logs": false });
    let updated = fixture.send("PUT", "/platform/role/ops", &admin, update).await;
    assert_eq!((updated.status, &updated.json()["manage_users"]), (200, &json!(true)));
    assert_eq!(cluster.object("DoormanRole", "ops")["spec"]["permissions"], json!(["ManageUsers"]));
    assert_eq!(cluster.object("DoormanRole", "ops")["spec"]["description"], "operators");
    let deleted = fixture.send("DELETE", "/platform/role/ops", &admin, Value::Null).await;
    deleted.is(200, json!({ "message": "Role deleted successfully" }));
    assert!(cluster.object("DoormanRole", "ops").is_null());
    assert_eq!(fixture.send("GET", "/platform/role/ops", &admin, Value::Null).await.status, 404);

    let new = json!({ "role_name": "Ops Team" });
    assert_eq!(fixture.send("POST", "/platform/role", &admin, new).await.status, 201);
    let name = cluster.objects.lock().unwrap().keys().next().unwrap().1.clone();
    assert!(name.starts_with("ops-team-"), "{name}");
    assert_eq!(fixture.send("GET", "/platform/role/Ops%20Team", &admin, Value::Null).await.status, 200);
    let seen = fixture.send("POST", "/platform/role", &admin, json!({ "role_name": " ops" })).await;
    refused(&seen, 422, "VAL001", "spec.name");
}

#[tokio::test]
async fn a_stored_role_becomes_an_object_with_its_first_change() {
    let (fixture, cluster) = in_cluster(Cluster::usual()).await;
    let admin = fixture.token().await;
    fixture.with_role("old", &[Permission::ViewLogs]).await;
    let updated = fixture.send("PUT", "/platform/role/old", &admin, json!({ "manage_users": true })).await;
    assert_eq!((updated.status, &updated.json()["managed_by"]), (200, &json!("doorman-platform")));
    assert_eq!(cluster.object("DoormanRole", "old")["spec"]["permissions"], json!(["ManageUsers", "ViewLogs"]));
    assert_eq!(fixture.send("DELETE", "/platform/role/old", &admin, Value::Null).await.status, 200);
    assert_eq!(
        fixture.send("GET", "/platform/role/old", &admin, Value::Null).await.status,
        404,
        "the stored one is gone too"
    );
}

#[tokio::test]
async fn what_others_own_in_the_cluster_is_theirs() {
    let (fixture, cluster) = in_cluster(Cluster::usual()).await;
    let admin = fixture.token().await;
    cluster.put("DoormanRole", "ops", "kubectl", &json!({ "name": "ops" }));
    cluster.serve();
    let message = "Role ops is defined by kubectl as DoormanRole edge/ops; change it there";
    for (method, path, body) in [
        ("POST", "/platform/role", json!({ "role_name": "ops" })),
        ("PUT", "/platform/role/ops", json!({ "view_logs": true })),
        ("DELETE", "/platform/role/ops", Value::Null),
    ] {
        refused(&fixture.send(method, path, &admin, body).await, 409, "DEF409", message);
    }
    // Not served here, and the name of the object is taken all the same.
    cluster.put(
        "DoormanRole",
        "taken",
        "argocd-controller",
        &json!({ "name": "taken", "gatewayRefs": [{ "name": "other" }] }),
    );
    let seen = fixture.send("POST", "/platform/role", &admin, json!({ "role_name": "taken" })).await;
    refused(&seen, 409, "DEF409", "Argo CD");
    assert_eq!(cluster.object("DoormanRole", "taken")["metadata"]["generation"], 1);

    // One of the platform's own, for another gateway.
    cluster.put(
        "DoormanRole",
        "theirs",
        "doorman-platform",
        &json!({ "name": "theirs", "gatewayRefs": [{ "name": "other" }] }),
    );
    let label = json!({ "app.kubernetes.io/managed-by": "doorman-platform" });
    cluster.edit("DoormanRole", "theirs", |object| object["metadata"]["labels"] = label);
    let seen = fixture.send("POST", "/platform/role", &admin, json!({ "role_name": "theirs" })).await;
    refused(&seen, 409, "DEF409", "another gateway");
}

#[tokio::test(start_paused = true)]
async fn what_the_api_server_says_is_told() {
    let status = |code: u16, reason: &str| json!({ "kind": "Status", "status": "Failure", "reason": reason, "code": code, "message": "because of a rule" });
    for (answer, code, error, part) in [
        (conflict("kubectl-edit"), 409, "DEF409", "kubectl"),
        (status(409, "Conflict"), 409, "DEF409", "try again"),
        (status(422, "Invalid"), 422, "VAL001", "because of a rule"),
        (status(403, "Forbidden"), 503, "DEF503", "may not write"),
        (status(503, "ServiceUnavailable"), 503, "DEF503", "does not answer"),
    ] {
        let (fixture, _) = in_cluster(Cluster { answer: Some(answer), ..Cluster::usual() }).await;
        let admin = fixture.token().await;
        let seen = fixture.send("POST", "/platform/role", &admin, json!({ "role_name": "ops" })).await;
        refused(&seen, code, error, part);
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_that_others_overtake_is_made_all_the_same() {
    let (fixture, cluster) = in_cluster(Cluster { overtaken: 50.into(), ..Cluster::usual() }).await;
    let admin = fixture.token().await;
    let seen = fixture.send("POST", "/platform/role", &admin, json!({ "role_name": "ops" })).await;
    assert_eq!(seen.status, 201, "{seen:?}");
    assert!(cluster.object("DoormanRole", "ops").is_object());
}

#[tokio::test(start_paused = true)]
async fn a_role_that_is_written_and_not_served_is_no_success() {
    let (fixture, cluster) = in_cluster(Cluster { is_watched: false, ..Cluster::usual() }).await;
    let admin = fixture.token().await;
    let seen = fixture.send("POST", "/platform/role", &admin, json!({ "role_name": "ops" })).await;
    refused(&seen, 504, "DEF504", "Role ops is stored in the cluster");
    assert!(cluster.object("DoormanRole", "ops").is_object());
}

#[tokio::test]
async fn an_api_server_that_is_away_is_told() {
    let address = doorman_tests::gateway::free_address().unwrap();
    let config = kube::Config::new(format!("http://{address}").parse().unwrap());
    let client = kube::Client::try_from(config).unwrap();
    let (_served, is_served) = watch::channel(());
    let writer = Writer::new(client, Selection::new("edge", "main", None), is_served);
    let fixture = writing(Writing::Cluster(writer)).await;
    let admin = fixture.token().await;
    let seen = fixture.send("POST", "/platform/role", &admin, json!({ "role_name": "ops" })).await;
    refused(&seen, 503, "DEF503", "Role ops can't be written now");
}
