//! Export, import and rollback, as the reference has them (platform API 20).

use mongodb::bson::doc;

use super::*;
use crate::store::{Collection, Listing};

const IMPORT: &str = "/platform/config/import";

async fn export(fixture: &Fixture, token: &str, what: &str) -> Value {
    let seen = fixture.send("GET", &format!("/platform/config/export/{what}"), token, Value::Null).await;
    assert_eq!(seen.status, 200, "{seen:?}");
    seen.json()
}

fn sample() -> Value {
    json!({
        "apis": [{ "api_name": "orders", "api_version": "v1", "api_servers": ["http://127.0.0.1:1"], "custom": { "a": 1 } }],
        "endpoints": [{ "api_name": "orders", "api_version": "v1", "endpoint_method": "GET", "endpoint_uri": "/items" }],
        "roles": [{ "role_name": "ops", "view_logs": true }],
        "groups": [{ "group_name": "team", "api_access": ["orders/v1"] }],
        "routings": [{ "client_key": "k1", "routing_name": "one", "routing_servers": ["http://127.0.0.1:2"] }],
    })
}

fn counts(apis: u32, endpoints: u32, roles: u32, groups: u32, routings: u32) -> Value {
    json!({ "imported": { "apis": apis, "endpoints": endpoints, "roles": roles, "groups": groups, "routings": routings } })
}

#[tokio::test]
async fn what_was_exported_can_be_imported_and_is_then_the_same() {
    for (fixture, _servers) in in_either_store(&[]).await {
        let admin = fixture.token().await;
        fixture.send("POST", IMPORT, &admin, sample()).await.is(200, counts(1, 1, 1, 1, 1));
        let exported = export(&fixture, &admin, "all").await;
        let api = &exported["apis"][0];
        assert_eq!((&api["api_path"], &api["custom"]), (&json!("/orders/v1"), &json!({ "a": 1 })));
        assert!(uuid::Uuid::parse_str(api["api_id"].as_str().unwrap()).is_ok());
        let endpoint = &exported["endpoints"][0];
        assert_eq!(endpoint["api_id"], api["api_id"]);
        assert!(uuid::Uuid::parse_str(endpoint["endpoint_id"].as_str().unwrap()).is_ok());
        assert_eq!(exported["roles"].as_array().unwrap().len(), 2);
        assert!(!exported.to_string().contains("\"_id\""));

        let number = |part: &str| u32::try_from(exported[part].as_array().unwrap().len()).unwrap();
        let all = counts(number("apis"), number("endpoints"), number("roles"), number("groups"), number("routings"));
        fixture.send("POST", IMPORT, &admin, exported.clone()).await.is(200, all);
        assert_eq!(export(&fixture, &admin, "all").await, exported);
    }
}

#[tokio::test]
async fn one_api_goes_out_and_comes_back_with_its_endpoints() {
    let fixture = Fixture::usual().await;
    let admin = fixture.token().await;
    fixture.send("POST", IMPORT, &admin, sample()).await;
    let one = export(&fixture, &admin, "apis?api_name=orders&api_version=v1").await;
    assert_eq!(one["endpoints"].as_array().unwrap().len(), 1);
    let store = fixture.identity.store();
    assert!(store.remove(Collection::Apis, &["orders", "v1"]).await.unwrap());
    assert!(store.remove(Collection::Endpoints, &["GET", "orders", "v1", "/items"]).await.unwrap());
    let gone =
        fixture.send("GET", "/platform/config/export/apis?api_name=orders&api_version=v1", &admin, Value::Null).await;
    gone.is(404, refusal("CFG404", "API not found"));
    let body = json!({ "apis": [one["api"]], "endpoints": one["endpoints"] });
    fixture.send("POST", IMPORT, &admin, body).await.is(200, counts(1, 1, 0, 0, 0));
    assert_eq!(export(&fixture, &admin, "apis?api_name=orders&api_version=v1").await, one);
}

#[tokio::test]
async fn exports_of_one_kind_are_lists_or_one_document() {
    let fixture = Fixture::usual().await;
    let admin = fixture.token().await;
    fixture.send("POST", IMPORT, &admin, sample()).await;
    for (what, member) in [
        ("apis", "apis"),
        ("apis?api_name=orders", "apis"),
        ("roles", "roles"),
        ("groups", "groups"),
        ("routings", "routings"),
        ("endpoints?api_version=v1&api_name=", "endpoints"),
    ] {
        assert!(!export(&fixture, &admin, what).await[member].as_array().unwrap().is_empty(), "{what}");
    }
    assert_eq!(export(&fixture, &admin, "endpoints?api_name=none").await, json!({ "endpoints": [] }));
    for (what, member, name) in [
        ("roles?role_name=ops", "role", json!({ "role_name": "ops", "view_logs": true })),
        ("groups?group_name=team", "group", json!({ "group_name": "team", "api_access": ["orders/v1"] })),
    ] {
        assert_eq!(export(&fixture, &admin, what).await, json!({ member: name }));
    }
    assert_eq!(export(&fixture, &admin, "routings?client_key=k1").await["routing"]["routing_name"], "one");
    for (what, code, message) in [
        ("roles?role_name=none", "CFG405", "Role not found"),
        ("groups?group_name=none", "CFG406", "Group not found"),
        ("routings?client_key=none", "CFG407", "Routing not found"),
    ] {
        let seen = fixture.send("GET", &format!("/platform/config/export/{what}"), &admin, Value::Null).await;
        seen.is(404, refusal(code, message));
    }
}

#[tokio::test]
async fn an_import_merges_and_counts_what_it_leaves_out() {
    let fixture = Fixture::usual().await;
    let admin = fixture.token().await;
    fixture.send("POST", IMPORT, &admin, sample()).await;
    let before = export(&fixture, &admin, "all").await;
    let body = json!({
        "apis": [{ "api_name": "orders", "api_version": "v1", "api_description": "new", "api_id": "other" }],
        "groups": [{ "group_description": "nameless" }, { "group_name": "team", "group_description": "us" }],
        "roles": null,
        "users": [{ "username": "mallory", "role": "admin" }],
    });
    fixture.send("POST", IMPORT, &admin, body).await.is(200, counts(1, 0, 0, 2, 0));
    let after = export(&fixture, &admin, "all").await;
    let mut expected = before["apis"][0].clone();
    expected["api_description"] = "new".into();
    assert_eq!(after["apis"], json!([expected]), "its id stays");
    let team = json!({ "group_name": "team", "api_access": ["orders/v1"], "group_description": "us" });
    assert!(after["groups"].as_array().unwrap().contains(&team));
    assert!(fixture.identity.store().user("mallory").await.unwrap().is_none());
}

#[tokio::test]
async fn a_malformed_item_stops_the_import_before_anything_is_stored() {
    let fixture = Fixture::usual().await;
    let admin = fixture.token().await;
    let before = export(&fixture, &admin, "all").await;
    let good = json!({ "group_name": "good" });
    for (body, message) in [
        (json!([1]), "Validation Error"),
        (json!({ "groups": [good, "text"] }), "Validation Error"),
        (json!({ "groups": { "group_name": "good" } }), "Validation Error"),
        (
            json!({ "groups": [good], "routings": [{ "client_key": "k", "routing_servers": "x" }] }),
            "Validation Error: routings[0].routing_servers must be a list of texts",
        ),
        (
            json!({ "groups": [good], "apis": [{ "api_name": "a", "api_version": "v1", "api_id": "x" },
                { "api_name": "b", "api_version": "v1", "api_id": "x" }] }),
            "Validation Error: apis[1].api_id is that of another API",
        ),
    ] {
        fixture.send("POST", IMPORT, &admin, body).await.is(422, refusal("VAL001", message));
    }
    assert_eq!(export(&fixture, &admin, "all").await, before);
    assert_eq!(fixture.identity.store().all(Collection::ConfigSnapshots).await.unwrap().len(), 0);
}

#[tokio::test]
async fn roles_are_imported_as_they_could_be_changed_otherwise() {
    let fixture = Fixture::usual().await;
    let admin = fixture.token().await;
    let gateway = fixture.with_role("gateway", &[Permission::ManageGateway]).await;
    let both = fixture.with_role("both", &[Permission::ManageGateway, Permission::ManageRoles]).await;
    let role = |role: Value| json!({ "groups": [{ "group_name": "new" }], "roles": [role] });
    let own = role(json!({ "role_name": "gateway", "manage_roles": true }));
    fixture.send("POST", IMPORT, &gateway, own.clone()).await.is(403, refusal("CFG006", "Insufficient permissions"));
    for (role, code, message) in [
        (json!({ "role_name": " Platform ADMIN" }), "ROLE013", "Only admin may create the admin role"),
        (json!({ "role_name": "gateway", "platform_admin": true }), "ROLE013", "Only admin may create the admin role"),
        (json!({ "role_name": "admin", "ui_access": false }), "ROLE014", "Only admin may modify the admin role"),
    ] {
        let body = json!({ "groups": [{ "group_name": "new" }], "roles": [role] });
        fixture.send("POST", IMPORT, &both, body).await.is(403, refusal(code, message));
    }
    for lowered in [json!(false), Value::Null] {
        let body = role(json!({ "role_name": "admin", "manage_roles": lowered }));
        let message = "An import can't take permissions from the role of the user admin";
        fixture.send("POST", IMPORT, &admin, body).await.is(403, refusal("ROLE014", message));
    }
    assert!(fixture.identity.store().find(Collection::Groups, &["new"]).await.unwrap().is_none(), "nothing is stored");

    // What changes nothing is nobody's business.
    let roles = export(&fixture, &admin, "roles").await;
    assert_eq!(fixture.send("POST", IMPORT, &both, roles).await.status, 200);
    fixture.send("POST", IMPORT, &both, own).await.is(200, counts(0, 0, 1, 1, 0));
    let seen = fixture.send("GET", "/platform/config/export/roles", &gateway, Value::Null).await;
    assert_eq!(seen.status, 200, "an imported role acts on tokens that were issued before");
}

#[tokio::test]
async fn a_rollback_brings_back_the_state_before_the_latest_import() {
    for (fixture, _servers) in in_either_store(&[]).await {
        let admin = fixture.token().await;
        let none = fixture.send("POST", "/platform/config/rollback", &admin, Value::Null).await;
        none.is(404, refusal("CFG404", "No snapshot found"));
        fixture.send("POST", IMPORT, &admin, sample()).await;
        let wanted = export(&fixture, &admin, "all").await;
        let body = json!({
            "apis": [{ "api_name": "orders", "api_version": "v1", "api_description": "x" }, { "api_name": "b", "api_version": "v1" }],
            "roles": [{ "role_name": "ops", "view_logs": false }, { "role_name": "later", "view_logs": true }],
            "groups": [{ "group_name": "team", "api_access": [] }],
        });
        fixture.send("POST", IMPORT, &admin, body).await.is(200, counts(2, 0, 2, 1, 0));
        fixture.identity.store().remove(Collection::Routings, &["k1"]).await.unwrap();
        assert_ne!(export(&fixture, &admin, "all").await, wanted);

        let seen = fixture.send("POST", "/platform/config/rollback", &admin, Value::Null).await;
        let message = seen.json()["message"].as_str().unwrap().to_owned();
        assert!(seen.status == 200 && message.starts_with("Configuration rolled back to 20"), "{seen:?}");
        assert_eq!(export(&fixture, &admin, "all").await, wanted);
    }
}

#[tokio::test]
async fn a_state_larger_than_a_document_may_be_is_kept_and_comes_back() {
    for (fixture, _servers) in in_either_store(&[]).await {
        let (admin, store) = (fixture.token().await, fixture.identity.store());
        let large = "x".repeat(3 << 20);
        for number in 0..3 {
            let group = doc! { "group_name": number.to_string(), "group_description": &large };
            store.insert(Collection::Groups, group).await.unwrap();
            let routing = doc! { "client_key": number.to_string(), "routing_description": &large };
            store.insert(Collection::Routings, routing).await.unwrap();
        }
        let body = json!({ "groups": [{ "group_name": "0", "group_description": "short" }, { "group_name": "new" }] });
        fixture.send("POST", IMPORT, &admin, body).await.is(200, counts(0, 0, 0, 2, 0));
        let heads = Listing { members: Some(&["created_by"]), ..Listing::default() };
        let heads = store.list(Collection::ConfigSnapshots, &heads).await.unwrap().0;
        assert_eq!(heads.iter().map(|head| &**head).collect::<Vec<_>>(), [&doc! { "created_by": "admin" }]);

        fixture.does("POST", "/platform/config/rollback", &admin, Value::Null).await;
        let group = store.find(Collection::Groups, &["0"]).await.unwrap().unwrap();
        assert!(group.get_str("group_description").unwrap() == large);
        assert!(store.find(Collection::Groups, &["new"]).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn a_rollback_gives_nobody_more_and_takes_nothing_from_the_first_administrator() {
    let fixture = Fixture::usual().await;
    let admin = fixture.token().await;
    let store = fixture.identity.store();
    let lowered = json!({ "manage_tiers": false });
    fixture.send("PUT", "/platform/role/admin", &admin, lowered).await;
    let gateway = fixture.with_role("gateway", &[Permission::ManageGateway, Permission::ManageRoles]).await;
    fixture.send("POST", IMPORT, &admin, json!({ "groups": [] })).await.is(200, counts(0, 0, 0, 0, 0));
    fixture.send("PUT", "/platform/role/admin", &admin, json!({ "manage_tiers": true })).await;
    fixture.send("PUT", "/platform/role/gateway", &admin, json!({ "manage_roles": false })).await;

    let refused = fixture.send("POST", "/platform/config/rollback", &gateway, Value::Null).await;
    refused.is(403, refusal("CFG006", "Insufficient permissions"));
    assert_eq!(fixture.send("POST", "/platform/config/rollback", &admin, Value::Null).await.status, 200);
    let role = store.role("admin").await.unwrap().unwrap();
    assert!(role.permissions.contains(Permission::ManageTiers), "kept");
    assert!(store.role("gateway").await.unwrap().unwrap().permissions.contains(Permission::ManageRoles), "back");
}

#[tokio::test]
async fn the_newest_ten_states_are_kept() {
    let fixture = Fixture::usual().await;
    let admin = fixture.token().await;
    for number in 0..12 {
        let body = json!({ "groups": [{ "group_name": "team", "group_description": number.to_string() }] });
        fixture.send("POST", IMPORT, &admin, body).await.is(200, counts(0, 0, 0, 1, 0));
    }
    let snapshots = fixture.identity.store().all(Collection::ConfigSnapshots).await.unwrap();
    assert_eq!(snapshots.len(), 10);
    fixture.send("POST", "/platform/config/rollback", &admin, Value::Null).await;
    assert_eq!(export(&fixture, &admin, "groups?group_name=team").await["group"]["group_description"], "10");
}
