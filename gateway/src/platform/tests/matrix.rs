//! Who may call what, by what the routes say of themselves: every route with every role that lacks or has one permission.

use super::*;

/// Bodies that get past the look at the body, by path and method. A route that takes one and has none here fails below.
fn sample(method: &str, path: &str) -> Option<Value> {
    Some(match (method, path) {
        ("post", "/platform/authorization") => json!({ "email": "nobody@example.com", "password": "x" }),
        ("post", "/platform/authorization/register") => json!({ "email": "new@example.com", "password": "weak" }),
        ("post", "/platform/authorization/invalidate") => json!({ "username": "somebody" }),
        ("post", "/platform/vault") => json!({ "key_name": "new", "value": "x" }),
        ("put", "/platform/vault/{key_name}") => json!({ "description": "x" }),
        ("post", "/platform/user") => json!({ "username": "newcomer", "email": "new@example.com", "role": "nothing",
            "password": "Correct-Horse-9-Battery" }),
        ("put", "/platform/user/{username}") => json!({ "ui_access": true }),
        ("put", "/platform/user/{username}/update-password") => json!({ "new_password": "Correct-Horse-9-Battery" }),
        ("post", "/platform/role") => json!({ "role_name": "new" }),
        ("post", path) if path.ends_with("/adopt") => json!({ "force": false }),
        ("put", "/platform/role/{role_name}") => json!({ "view_logs": false }),
        ("post", "/platform/config/import") => json!({ "groups": [{ "group_name": "new" }] }),
        ("post", "/platform/tools/chaos/toggle") => json!({ "backend": "redis", "enabled": false }),
        ("post", "/platform/tools/cors/check") => json!({ "origin": "http://localhost", "method": "GET" }),
        ("post", "/platform/group") => json!({ "group_name": "new" }),
        ("put", "/platform/group/{group_name}") => json!({ "group_description": "x" }),
        ("put", "/platform/security/settings") => json!({ "enable_auto_save": false }),
        ("post", "/platform/memory/dump" | "/platform/memory/restore") => json!({ "path": "nowhere" }),
        ("post", "/platform/api") => json!({ "api_name": "new", "api_version": "v1" }),
        ("put", "/platform/api/{api_name}/{api_version}") => json!({ "active": true }),
        ("post", "/platform/wsdl/parse") => json!("<definitions/>"),
        ("post", "/platform/openapi/parse") => json!({ "openapi": "3.1.0" }),
        ("post", "/platform/endpoint") => json!({ "api_name": "new", "api_version": "v1", "endpoint_method": "GET",
            "endpoint_uri": "/x", "endpoint_description": "x" }),
        ("put", path) if path.starts_with("/platform/endpoint/{") => json!({ "endpoint_description": "x" }),
        ("post", path) if path.ends_with("/validation") => json!({ "endpoint_id": "x", "validation_enabled": true,
            "validation_schema": { "validation_schema": { "x": { "required": true, "type": "string" } } } }),
        ("put", path) if path.contains("/validation/") => json!({ "validation_enabled": false }),
        ("post", "/platform/routing") => json!({ "routing_name": "new", "routing_servers": ["http://127.0.0.1:1"] }),
        ("put", "/platform/routing/{client_key}") => json!({ "routing_name": "x" }),
        ("post", "/platform/credit/rotate-key") => json!({ "api_credit_group": "new" }),
        ("post", "/platform/credit/{name}") => json!({ "username": "somebody", "users_credits": {} }),
        ("post" | "put", path) if path.starts_with("/platform/credit") => json!({ "api_credit_group": "somebody",
            "api_key": "x", "api_key_header": "x-api-key", "credit_tiers": [{ "tier_name": "x", "credits": 1,
            "input_limit": 0, "output_limit": 0, "reset_frequency": "monthly" }] }),
        ("post", "/platform/tiers") => json!({ "tier_id": "new", "name": "pro", "display_name": "x", "limits": {} }),
        ("put", "/platform/tiers/{tier_id}") => json!({ "enabled": true }),
        ("post", "/platform/tiers/assignments" | "/platform/tiers/trial/start") => {
            json!({ "user_id": "somebody", "tier_id": "new" })
        }
        ("post", "/platform/tiers/upgrade" | "/platform/tiers/downgrade") => {
            json!({ "user_id": "somebody", "new_tier_id": "new" })
        }
        ("post", "/platform/tiers/temporary-upgrade") => {
            json!({ "user_id": "somebody", "temp_tier_id": "new", "duration_days": 1 })
        }
        ("post", "/platform/tiers/payment/failure") => json!({ "user_id": "somebody" }),
        ("post", "/platform/tiers/compare") => json!(["new"]),
        ("post", "/platform/rate-limits") => json!({ "rule_id": "new", "rule_type": "global", "time_window": "day",
            "limit": 1 }),
        ("put", "/platform/rate-limits/{rule_id}") => json!({ "limit": 2 }),
        ("post", "/platform/rate-limits/{rule_id}/duplicate") => json!({ "new_rule_id": "new" }),
        ("post", path) if path.starts_with("/platform/rate-limits/bulk/") => json!({ "rule_ids": ["new"] }),
        ("post", "/platform/subscription/subscribe" | "/platform/subscription/unsubscribe") => {
            json!({ "username": "somebody", "api_name": "new", "api_version": "v1" })
        }
        _ => return None,
    })
}

/// What to add to the path of a route whose query has required parts.
fn query(_method: &str, path: &str) -> &'static str {
    match path {
        "/platform/monitor/report" => "?start=2024-01-15&end=2024-01-15",
        "/platform/rate-limits/search" => "?q=x",
        _ => "",
    }
}

struct Operation {
    method: String,
    path: String,
    target: String,
    /// `None`: anyone; the permissions any of which is enough, if any.
    scopes: Option<Vec<Permission>>,
    body: Value,
}

fn operations() -> Vec<Operation> {
    let document = document();
    let mut operations = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let scopes = operation["security"][0]["token"].as_array().map(|scopes| {
                let flag = |scope: &Value| {
                    let of = |permission: &Permission| Some(permission.flag()) == scope.as_str();
                    Permission::ALL.into_iter().find(of).unwrap_or_else(|| panic!("{method} {path}: no flag {scope}"))
                };
                scopes.iter().map(flag).collect()
            });
            let body = sample(method, path);
            let takes_body = operation.get("requestBody").is_some();
            assert_eq!(
                takes_body,
                body.is_some(),
                "{method} {path}: give it a sample body, and only where it takes one"
            );
            // Nobody and nothing of this name exists, and nobody calls from it.
            let mut target = path.clone();
            while let Some((start, rest)) = target.split_once('{') {
                target = format!("{start}somebody{}", rest.split_once('}').unwrap().1);
            }
            target.push_str(query(method, path));
            let method = method.to_uppercase();
            operations.push(Operation { method, path: path.clone(), target, scopes, body: body.unwrap_or_default() });
        }
    }
    operations
}

async fn status(fixture: &Fixture, operation: &Operation, token: &str) -> u16 {
    fixture.send(&operation.method, &operation.target, token, operation.body.clone()).await.status
}

#[tokio::test]
async fn every_route_asks_for_the_permission_it_names_and_for_no_other() {
    // Sign-in has its own limits, and what ends sessions would end those of this test.
    let operations = operations();
    assert!(operations.len() > 20);
    let mut checked = 0;
    for permission in Permission::ALL {
        let fixture = Fixture::usual().await;
        let others: Vec<_> = Permission::ALL.into_iter().filter(|other| *other != permission).collect();
        let lacking = fixture.with_role("lacking", &others).await;
        for operation in operations.iter().filter(|op| op.scopes.as_deref() == Some(&[permission])) {
            let denied = status(&fixture, operation, &lacking).await;
            assert_eq!(denied, 403, "{} {} without {}", operation.method, operation.path, permission.flag());
            // Each with a role of its own: some routes change or end what the others need.
            let fixture = Fixture::usual().await;
            let having = fixture.with_role("having", &[permission]).await;
            let allowed = status(&fixture, operation, &having).await;
            assert!(
                ![401, 403, 405].contains(&allowed) && allowed < 500,
                "{} {} with {}: {allowed}",
                operation.method,
                operation.path,
                permission.flag()
            );
            checked += 1;
        }
    }
    let fixture = Fixture::usual().await;
    for operation in &operations {
        let Some(scopes) = &operation.scopes else { continue };
        let stranger = fixture.call(&operation.method, &operation.target).body(operation.body.to_string()).send().await;
        assert_eq!(stranger.status, 401, "{} {} without a token: {stranger:?}", operation.method, operation.path);
        if scopes.is_empty() {
            let fixture = Fixture::usual().await;
            let nothing = fixture.with_role("nothing", &[]).await;
            let mut operation_status = status(&fixture, operation, &nothing).await;
            if operation.path == "/platform/authorization/invalidate" {
                // To end another's session takes `manage_auth`, one's own nothing.
                operation_status = fixture.send("POST", &operation.target, &nothing, Value::Null).await.status;
            }
            assert!(
                ![401, 403].contains(&operation_status),
                "{} {}: {operation_status}",
                operation.method,
                operation.path
            );
        }
        checked += 1;
    }
    assert!(checked > 20, "{checked}");
}

#[tokio::test]
async fn the_description_is_served_and_says_all_that_is_needed() {
    let fixture = Fixture::usual().await;
    let seen = fixture.call("GET", "/platform/openapi.json").send().await;
    let document = seen.json();
    assert_eq!(document["openapi"], "3.1.0");
    let mut ids = std::collections::BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let what = format!("{method} {path}");
            assert!(operation["summary"].as_str().is_some_and(|text| !text.is_empty()), "{what} has no summary");
            assert!(operation["tags"][0].is_string(), "{what} has no tag");
            assert!(ids.insert(operation["operationId"].as_str().unwrap().to_owned()), "{what} has another's id");
            for name in path.split('{').skip(1).map(|rest| rest.split('}').next().unwrap()) {
                let is_said = |parameter: &Value| parameter["name"] == name && parameter["in"] == "path";
                assert!(
                    operation["parameters"].as_array().unwrap().iter().any(is_said),
                    "{what} doesn't tell of {name}"
                );
            }
        }
    }
    let text = document.to_string();
    let named = text.split("\"$ref\":\"#/components/schemas/").skip(1).map(|rest| rest.split('"').next().unwrap());
    for name in named {
        assert!(document["components"]["schemas"].get(name).is_some(), "there is no schema {name}");
    }
}
