//! Users, as the reference has them (platform API 5).

use super::*;

const STRONG: &str = "Correct-Horse-9-Battery";

fn bea() -> Value {
    json!({ "username": "bea", "email": "bea@example.com", "password": STRONG, "role": "developer", "groups": ["ALL"] })
}

async fn manager(fixture: &Fixture) -> String {
    fixture.with_role("manager", &[Permission::ManageUsers]).await
}

#[tokio::test]
async fn a_user_is_added_read_changed_and_deleted() {
    let fixture = Fixture::usual().await;
    let admin = fixture.token().await;
    let created = fixture.send("POST", "/platform/user", &admin, bea()).await;
    created.is(201, json!({ "message": "User created successfully" }));
    let read = fixture.send("GET", "/platform/user/bea", &admin, Value::Null).await;
    let bea = read.json();
    assert_eq!(
        (&bea["email"], &bea["ui_access"], &bea["active"]),
        (&json!("bea@example.com"), &json!(false), &json!(true))
    );
    assert_eq!((&bea["groups"], &bea["bandwidth_limit_window"]), (&json!(["ALL"]), &json!("day")));
    assert!(bea.get("password").is_none() && bea.get("_id").is_none(), "{bea}");
    let by_email = fixture.send("GET", "/platform/user/email/bea@example.com", &admin, Value::Null).await;
    assert_eq!(by_email.json(), bea);

    let token = fixture.sign_in("bea", STRONG).send().await.cookie("access_token_cookie");
    let update = json!({ "ui_access": "yes", "throttle_wait_duration": 0.1, "old_password": "x", "role": null });
    let changed = fixture.send("PUT", "/platform/user/bea", &admin, update).await;
    changed.is(200, json!({ "message": "User updated successfully" }));
    let me = fixture.send("GET", "/platform/user/me", &token, Value::Null).await.json();
    assert_eq!(
        (&me["ui_access"], &me["throttle_wait_duration"], &me["role"]),
        (&json!(true), &json!(0), &json!("developer"))
    );

    let deleted = fixture.send("DELETE", "/platform/user/bea", &admin, Value::Null).await;
    deleted.is(200, json!({ "message": "User deleted successfully" }));
    let gone = refusal("USR002", "User not found");
    fixture.send("GET", "/platform/user/bea", &admin, Value::Null).await.is(404, gone.clone());
    fixture.send("DELETE", "/platform/user/bea", &admin, Value::Null).await.is(404, gone.clone());
    fixture.send("PUT", "/platform/user/bea", &admin, json!({ "ui_access": true })).await.is(404, gone);
    let expected = refusal("GTW998", "Unauthorized");
    fixture.send("GET", "/platform/user/me", &token, Value::Null).await.is(401, expected);
}

#[tokio::test]
async fn what_a_new_user_must_not_be_is_refused_in_order() {
    let fixture = Fixture::usual().await;
    let (admin, manager) = (fixture.token().await, manager(&fixture).await);
    fixture.send("POST", "/platform/user", &admin, bea()).await;
    let with = |changes: Value| {
        let mut user = bea();
        user["username"] = "cyd".into();
        user["email"] = "cyd@example.com".into();
        user.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        user
    };
    let many: serde_json::Map<_, _> = (0..11).map(|n| (n.to_string(), json!(n))).collect();
    let weak = "Password must include at least 16 characters, one uppercase letter, one lowercase letter, one digit, \
                and one special character";
    for (changes, status, body) in [
        (json!({ "username": "bea" }), 400, refusal("USR001", "Username already exists")),
        (json!({ "email": "bea@example.com" }), 400, refusal("USR001", "Email already exists")),
        (json!({ "password": "correct-horse-9-battery" }), 400, refusal("USR005", weak)),
        (
            json!({ "custom_attributes": many }),
            400,
            refusal("USR016", "Maximum 10 custom attributes allowed. Please replace an existing one."),
        ),
        (json!({ "role": "admin" }), 403, refusal("USR015", "Only admin may create users with the admin role")),
        (json!({ "username": "ab" }), 422, refusal("VAL001", "Validation Error")),
        (json!({ "groups": null }), 422, refusal("VAL001", "Validation Error")),
        (json!({ "rate_limit_duration": -1 }), 422, refusal("VAL001", "Validation Error")),
    ] {
        fixture.send("POST", "/platform/user", &manager, with(changes)).await.is(status, body);
    }
    let added = fixture.send("POST", "/platform/user", &admin, with(json!({ "role": "Platform Admin" }))).await;
    assert_eq!(added.status, 201, "an administrator may: {added:?}");
    let nobody = fixture.call("POST", "/platform/user").body("{").send().await;
    nobody.is(422, refusal("VAL001", "Validation Error"));
    let nobody = fixture.call("POST", "/platform/user").body(bea().to_string()).send().await;
    nobody.is(401, json!({ "detail": "Unauthorized" }));
    let typed = fixture.call("POST", "/platform/user").bearer(&admin).header("content-type", "text/plain");
    assert_eq!(typed.body(bea().to_string()).send().await.status, 422);
}

#[tokio::test]
async fn users_change_themselves_and_only_what_is_theirs() {
    let fixture = Fixture::usual().await;
    let own = fixture.with_role("plain", &[]).await;
    let own_limits = json!({ "rate_limit_duration": 1_000_000, "email": "other@example.com", "ui_access": true });
    assert_eq!(fixture.send("PUT", "/platform/user/plain", &own, own_limits).await.status, 200);
    let restricted = json!({ "role": "admin", "groups": [], "active": true, "force_password_reset": false });
    let message = "Cannot modify restricted fields without manage_users permission: active, force_password_reset, \
                   groups, role";
    fixture.send("PUT", "/platform/user/plain", &own, restricted).await.is(403, refusal("USR023", message));
    let other = fixture.send("PUT", "/platform/user/somebody", &own, json!({ "ui_access": true })).await;
    other.is(403, refusal("USR006", "Can only update your own information"));
    let other = fixture.send("GET", "/platform/user/somebody", &own, Value::Null).await;
    other.is(403, refusal("USR008", "Unable to retrieve information for user"));
    let other = fixture.send("DELETE", "/platform/user/somebody", &own, Value::Null).await;
    other.is(403, refusal("USR007", "Can only delete your own account"));
    assert_eq!(fixture.send("DELETE", "/platform/user/plain", &own, Value::Null).await.status, 200);
}

#[tokio::test]
async fn the_first_administrator_is_protected() {
    let fixture = Fixture::usual().await;
    let (admin, manager) = (fixture.token().await, manager(&fixture).await);
    for token in [&admin, &manager] {
        let modified = fixture.send("PUT", "/platform/user/admin", token, json!({ "email": "x@y.z" })).await;
        modified.is(403, refusal("USR020", "Super admin user cannot be modified"));
        let deleted = fixture.send("DELETE", "/platform/user/admin", token, Value::Null).await;
        deleted.is(403, refusal("USR021", "Super admin user cannot be deleted"));
        let path = "/platform/user/admin/update-password";
        let changed = fixture.send("PUT", path, token, json!({ "new_password": STRONG })).await;
        changed.is(403, refusal("USR022", "Super admin password cannot be changed via UI"));
    }
    let limits = json!({ "rate_limit_duration": 1_000_000, "throttle_queue_limit": 0, "throttle_wait_duration": 0.1,
        "role": null });
    assert_eq!(fixture.send("PUT", "/platform/user/admin", &admin, limits.clone()).await.status, 200);
    let refused = fixture.send("PUT", "/platform/user/admin", &manager, limits).await;
    refused.is(403, refusal("USR012", "Only admin may modify admin users"));
    let me = fixture.send("GET", "/platform/user/me", &admin, Value::Null).await.json();
    assert_eq!(
        (&me["username"], &me["ui_access"], &me["rate_limit_duration"]),
        (&json!("admin"), &json!(true), &json!(1_000_000))
    );
}

#[tokio::test]
async fn administrators_are_seen_and_changed_by_administrators_only() {
    let fixture = Fixture::usual().await;
    let (admin, manager) = (fixture.token().await, manager(&fixture).await);
    fixture.add(User::new("root", "root@example.com", "ADMIN")).await;
    let hidden = json!({ "error_message": "User not found" });
    for name in ["root", "admin"] {
        fixture.send("GET", &format!("/platform/user/{name}"), &manager, Value::Null).await.is(404, hidden.clone());
    }
    let by_email = fixture.send("GET", "/platform/user/email/root@example.com", &manager, Value::Null).await;
    by_email.is(404, hidden);
    let deleted = fixture.send("DELETE", "/platform/user/root", &manager, Value::Null).await;
    deleted.is(403, refusal("USR014", "Only admin may delete admin users"));
    let path = "/platform/user/root/update-password";
    let changed = fixture.send("PUT", path, &manager, json!({ "new_password": STRONG })).await;
    changed.is(403, refusal("USR012", "Only admin may modify admin users"));
    let raised = fixture.send("PUT", "/platform/user/manager", &manager, json!({ "role": "admin" })).await;
    raised.is(403, refusal("USR013", "Only admin may change admin role assignments"));
    let names = async |token: &str| {
        let seen = fixture.send("GET", "/platform/user/all?page_size=100", token, Value::Null).await.json();
        assert_eq!(seen.as_object().unwrap().len(), 1, "no paging metadata: {seen}");
        let names: Vec<_> = seen["users"].as_array().unwrap().iter().map(|user| user["username"].clone()).collect();
        json!(names)
    };
    assert_eq!(names(&admin).await, json!(["admin", "manager", "root"]));
    assert_eq!(names(&manager).await, json!(["manager"]));
    assert_eq!(fixture.send("GET", "/platform/user/root", &admin, Value::Null).await.status, 200);
}

#[tokio::test]
async fn a_password_is_changed_by_its_owner_or_a_manager_and_ends_a_forced_reset() {
    let fixture = Fixture::usual().await;
    let admin = fixture.token().await;
    fixture.send("POST", "/platform/user", &admin, bea()).await;
    let forced = fixture.send("PUT", "/platform/user/bea", &admin, json!({ "force_password_reset": true })).await;
    assert_eq!(forced.status, 200);
    assert_eq!(fixture.sign_in("bea", STRONG).send().await.json()["error_code"], "AUTH008");
    let path = "/platform/user/bea/update-password";
    let body = json!({ "new_password": "Another-Horse-7-Battery", "old_password": "whatever" });
    let other = fixture.with_role("plain", &[]).await;
    let refused = fixture.send("PUT", path, &other, body.clone()).await;
    refused.is(403, refusal("USR006", "Can only update your own password"));
    assert_eq!(fixture.send("PUT", path, &admin, json!({ "new_password": "too simple" })).await.status, 400);
    let changed = fixture.send("PUT", path, &admin, body).await;
    changed.is(200, json!({ "message": "User updated successfully" }));
    assert_eq!(fixture.sign_in("bea", STRONG).send().await.status, 400);
    let token = fixture.sign_in("bea", "Another-Horse-7-Battery").send().await.cookie("access_token_cookie");
    let own = fixture.send("PUT", path, &token, json!({ "new_password": STRONG })).await;
    assert_eq!(own.status, 200);
    assert_eq!(fixture.sign_in("bea", STRONG).send().await.status, 200);
    // By the update too, as a hash.
    let update = json!({ "password": "Another-Horse-7-Battery" });
    assert_eq!(fixture.send("PUT", "/platform/user/bea", &token, update).await.status, 200);
    assert_eq!(fixture.sign_in("bea", "Another-Horse-7-Battery").send().await.status, 200);
}

#[tokio::test]
async fn pages_have_bounds() {
    let fixture = Fixture::usual().await;
    let admin = fixture.token().await;
    let size = refusal("PAG001", "Page size exceeds maximum limit");
    for (query, status, body) in [
        ("page_size=101", 400, size.clone()),
        ("page_size=0", 400, size),
        ("page=0", 400, refusal("PAG001", "Invalid page or page size")),
        ("page=x", 422, refusal("VAL001", "Validation Error")),
    ] {
        let seen = fixture.send("GET", &format!("/platform/user?{query}"), &admin, Value::Null).await;
        seen.is(status, body);
    }
    let past = fixture.send("GET", "/platform/user?page=1000000000000000000&page_size=100", &admin, Value::Null).await;
    past.is(200, json!({ "users": [] }));
}
