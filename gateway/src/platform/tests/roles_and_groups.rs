//! Roles and groups, as the reference has them (platform API 6 and 7).

use super::*;

#[tokio::test]
async fn a_role_acts_on_tokens_that_were_issued_before() {
    let fixture = Fixture::usual().await;
    let (admin, user) = (fixture.token().await, fixture.with_role("ops", &[]).await);
    let new = json!({ "group_name": "team" });
    let refused = fixture.send("POST", "/platform/group", &user, new.clone()).await;
    refused.is(403, refusal("GRP008", "You do not have permission to create groups"));
    let updated = fixture.send("PUT", "/platform/role/ops", &admin, json!({ "manage_groups": true })).await;
    let role = updated.json();
    assert_eq!(
        (updated.status, &role["role_name"], &role["manage_groups"], &role["view_logs"]),
        (200, &json!("ops"), &json!(true), &json!(false))
    );
    let added = fixture.send("POST", "/platform/group", &user, new).await;
    added.is(201, json!({ "message": "Group created successfully" }));
    let deleted = fixture.send("DELETE", "/platform/role/ops", &admin, Value::Null).await;
    deleted.is(200, json!({ "message": "Role deleted successfully" }));
    assert_eq!(fixture.send("DELETE", "/platform/group/team", &user, Value::Null).await.status, 403);
}

#[tokio::test]
async fn roles_are_kept_apart_and_named_once() {
    let fixture = Fixture::usual().await;
    let admin = fixture.token().await;
    let new = json!({ "role_name": "ops", "role_description": "operators", "view_logs": 1 });
    fixture
        .send("POST", "/platform/role", &admin, new.clone())
        .await
        .is(201, json!({ "message": "Role created successfully" }));
    fixture.send("POST", "/platform/role", &admin, new).await.is(400, refusal("ROLE001", "Role already exists"));
    let read = fixture.send("GET", "/platform/role/ops", &admin, Value::Null).await.json();
    assert_eq!(
        (&read["role_description"], &read["view_logs"], read.as_object().unwrap().len()),
        (&json!("operators"), &json!(true), 18)
    );
    for (method, body, status, code) in [
        ("PUT", json!({ "role_name": "other", "view_logs": true }), 400, "ROLE005"),
        ("PUT", json!({ "view_logs": null }), 400, "ROLE007"),
        ("PUT", json!({ "view_logs": "maybe" }), 422, "VAL001"),
    ] {
        let seen = fixture.send(method, "/platform/role/ops", &admin, body).await;
        assert_eq!((seen.status, &seen.json()["error_code"]), (status, &json!(code)), "{seen:?}");
    }
    for (method, status) in [("GET", 404), ("DELETE", 400)] {
        let seen = fixture.send(method, "/platform/role/none", &admin, Value::Null).await;
        seen.is(status, refusal("ROLE004", "Role does not exist"));
    }
    let seen = fixture.send("PUT", "/platform/role/none", &admin, json!({ "view_logs": true })).await;
    seen.is(400, refusal("ROLE004", "Role does not exist"));
}

#[tokio::test]
async fn administrators_roles_are_for_administrators() {
    let fixture = Fixture::usual().await;
    let (admin, manager) = (fixture.token().await, fixture.with_role("roles", &[Permission::ManageRoles]).await);
    let new = json!({ "role_name": " Platform Admin " });
    let refused = fixture.send("POST", "/platform/role", &manager, new).await;
    refused.is(403, refusal("ROLE013", "Only admin may create the admin role"));
    let update = json!({ "manage_users": false });
    let refused = fixture.send("PUT", "/platform/role/admin", &manager, update).await;
    refused.is(403, refusal("ROLE014", "Only admin may modify the admin role"));
    let refused = fixture.send("DELETE", "/platform/role/admin", &manager, Value::Null).await;
    refused.is(403, refusal("ROLE016", "Only admin may delete the admin role"));
    let refused = fixture.send("GET", "/platform/role/admin", &manager, Value::Null).await;
    refused.is(404, json!({ "error_message": "Role not found" }));
    let seen = fixture.send("GET", "/platform/role", &manager, Value::Null).await.json();
    assert_eq!(seen.as_object().unwrap().keys().collect::<Vec<_>>(), ["roles"]);
    assert_eq!(seen["roles"].as_array().unwrap().len(), 1);
    let seen = fixture.send("GET", "/platform/role/all?page_size=1", &admin, Value::Null).await.json();
    assert_eq!(
        (&seen["roles"][0]["role_name"], &seen["has_next"], &seen["total"]),
        (&json!("admin"), &json!(true), &json!(2))
    );
}

#[tokio::test]
async fn groups_are_added_read_changed_and_deleted() {
    let fixture = Fixture::usual().await;
    let admin = fixture.token().await;
    let new = json!({ "group_name": "team", "api_access": ["orders/v1"] });
    fixture
        .send("POST", "/platform/group", &admin, new.clone())
        .await
        .is(201, json!({ "message": "Group created successfully" }));
    fixture.send("POST", "/platform/group", &admin, new).await.is(400, refusal("GRP001", "Group already exists"));
    let read = fixture.send("GET", "/platform/group/team", &admin, Value::Null).await;
    read.is(200, json!({ "group_name": "team", "group_description": null, "api_access": ["orders/v1"] }));
    for (body, status, code) in [
        (json!({ "group_name": "other" }), 400, "GRP004"),
        (json!({}), 400, "GRP006"),
        (json!({ "group_description": "" }), 422, "VAL001"),
    ] {
        let seen = fixture.send("PUT", "/platform/group/team", &admin, body).await;
        assert_eq!((seen.status, &seen.json()["error_code"]), (status, &json!(code)), "{seen:?}");
    }
    let update = json!({ "group_name": "team", "group_description": "us" });
    fixture
        .send("PUT", "/platform/group/team", &admin, update)
        .await
        .is(200, json!({ "message": "Group updated successfully" }));
    let seen = fixture.send("GET", "/platform/group/all", &admin, Value::Null).await.json();
    assert_eq!(
        (&seen["total"], &seen["page"], &seen["page_size"], &seen["has_next"]),
        (&json!(3), &json!(1), &json!(10), &json!(false))
    );
    fixture
        .send("DELETE", "/platform/group/team", &admin, Value::Null)
        .await
        .is(200, json!({ "message": "Group deleted successfully" }));
    let gone = refusal("GRP003", "Group does not exist");
    fixture.send("DELETE", "/platform/group/team", &admin, Value::Null).await.is(400, gone.clone());
    fixture.send("GET", "/platform/group/team", &admin, Value::Null).await.is(404, gone);
    assert_eq!(fixture.send("GET", "/platform/group", &admin, Value::Null).await.status, 405);
}
