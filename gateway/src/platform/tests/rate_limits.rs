//! Rules on rates, as the reference has them (platform API 15).

use super::*;
use crate::store::Collection;

const RULES: &str = "/platform/rate-limits";

fn rule(id: &str, members: Value) -> Value {
    let mut rule = json!({ "rule_id": id, "rule_type": "global", "time_window": "minute", "limit": 10 });
    rule.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
    rule
}

fn detail(reason: &str) -> Value {
    json!({ "detail": reason })
}

async fn manager(fixture: &Fixture) -> String {
    fixture.with_role("manager", &[Permission::ManageRateLimits]).await
}

fn ids(rules: &Value) -> Vec<&str> {
    let rules = rules.as_array().unwrap_or_else(|| panic!("{rules}"));
    rules.iter().map(|rule| rule["rule_id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_rule_is_added_read_changed_switched_copied_and_deleted() {
    let fixture = Fixture::usual().await;
    let token = manager(&fixture).await;
    let members = json!({ "rule_type": "per_api", "target_identifier": "orders/v1" });
    let created = fixture.send("POST", "/platform/rate-limits/", &token, rule("r1", members.clone())).await;
    let first = created.json();
    let expected = json!({
        "rule_id": "r1", "rule_type": "per_api", "time_window": "minute", "limit": 10, "target_identifier": "orders/v1",
        "burst_allowance": 0, "priority": 0, "enabled": true, "description": null,
        "created_at": first["created_at"], "updated_at": first["updated_at"],
    });
    created.is(201, expected);
    let twice = fixture.send("POST", RULES, &token, rule("r1", members)).await;
    twice.is(400, detail("Rule with ID r1 already exists"));
    fixture.send("GET", "/platform/rate-limits/r1/", &token, Value::Null).await.is(200, first.clone());

    let update = json!({ "limit": 20, "target_identifier": "orders/v2", "burst_allowance": 5, "priority": -1,
        "description": "x", "enabled": null, "rule_type": "global" });
    let updated = fixture.send("PUT", "/platform/rate-limits/r1", &token, update).await;
    let now = updated.json();
    assert_eq!(
        (
            updated.status,
            &now["limit"],
            &now["target_identifier"],
            &now["priority"],
            &now["enabled"],
            &now["rule_type"]
        ),
        (200, &json!(20), &json!("orders/v2"), &json!(-1), &json!(true), &json!("per_api"))
    );
    assert_eq!((&now["created_at"], &now["description"]), (&first["created_at"], &json!("x")));
    for (what, is_on) in [("disable", false), ("enable", true)] {
        let switched = fixture.send("POST", &format!("/platform/rate-limits/r1/{what}"), &token, Value::Null).await;
        assert_eq!((switched.status, &switched.json()["enabled"]), (200, &json!(is_on)));
        let read = fixture.send("GET", "/platform/rate-limits/r1", &token, Value::Null).await.json();
        assert_eq!(read["enabled"], is_on);
    }
    let copy = fixture.send("POST", "/platform/rate-limits/r1/duplicate", &token, json!({ "new_rule_id": "r2" })).await;
    let copied = copy.json();
    assert_eq!(
        (copy.status, &copied["rule_id"], &copied["description"], &copied["limit"]),
        (201, &json!("r2"), &json!("Copy of r1"), &json!(20))
    );
    for (source, new, reason) in
        [("r1", "r2", "Rule with ID r2 already exists"), ("none", "r3", "Source rule none not found")]
    {
        let path = format!("/platform/rate-limits/{source}/duplicate");
        fixture.send("POST", &path, &token, json!({ "new_rule_id": new })).await.is(400, detail(reason));
    }
    let deleted = fixture.send("DELETE", "/platform/rate-limits/r1", &token, Value::Null).await;
    deleted.is(200, json!({ "deleted": true, "rule_id": "r1" }));
    for (method, rest, body) in [
        ("GET", "", Value::Null),
        ("PUT", "", json!({ "limit": 1 })),
        ("PUT", "", json!({ "target_identifier": "x" })),
        ("DELETE", "", Value::Null),
        ("POST", "/enable", Value::Null),
        ("POST", "/disable", Value::Null),
    ] {
        let seen = fixture.send(method, &format!("/platform/rate-limits/r1{rest}"), &token, body).await;
        seen.is(404, detail("Rule r1 not found"));
    }
}

#[tokio::test]
async fn what_is_no_rule_is_refused_and_the_reason_told() {
    let fixture = Fixture::usual().await;
    let token = manager(&fixture).await;
    for (members, error) in [
        (json!({ "rule_type": "per_user" }), "Target identifier required for per_user rules"),
        (
            json!({ "rule_type": "per_ip", "target_identifier": "localhost" }),
            "Target identifier of per_ip rules must be an IP address or a CIDR",
        ),
        (
            json!({ "rule_type": "per_user_api", "target_identifier": "orders/v1/items" }),
            "Target identifier of per_user_api rules must be the name of an API, or its `name/version`",
        ),
    ] {
        fixture.send("POST", RULES, &token, rule("r1", members)).await.is(400, json!({ "errors": [error] }));
    }
    for (member, value, allowed) in [("rule_type", "per_moon", "`per_user`"), ("time_window", "week", "`second`")] {
        let seen = fixture.send("POST", RULES, &token, rule("r1", json!({ member: value }))).await;
        let reason = seen.json()["detail"].as_str().unwrap_or_default().to_owned();
        assert_eq!(seen.status, 400, "{seen:?}");
        assert!([member, value, allowed].iter().all(|part| reason.contains(part)), "{reason}");
    }
    let reserved = fixture.send("POST", RULES, &token, rule("bulk", json!({}))).await;
    reserved.is(400, detail("A rule can't have the ID bulk: a route has that name"));
    for body in [
        rule("r1", json!({ "limit": 0 })),
        rule("r1", json!({ "burst_allowance": -1 })),
        rule("r1", json!({ "enabled": null })),
        rule("", json!({})),
        json!({ "rule_id": "r1" }),
        json!([rule("r1", json!({}))]),
    ] {
        assert_eq!(fixture.send("POST", RULES, &token, body.clone()).await.status, 422, "{body}");
    }
    assert_eq!(fixture.identity.store().all(Collection::RateLimitRules).await.unwrap().len(), 0);
    let members = json!({ "rule_type": "per_ip", "target_identifier": "10.0.0.0/8" });
    fixture.send("POST", RULES, &token, rule("r1", members)).await;
    let seen = fixture.send("PUT", "/platform/rate-limits/r1", &token, json!({ "target_identifier": "x" })).await;
    seen.is(400, json!({ "errors": ["Target identifier of per_ip rules must be an IP address or a CIDR"] }));
    assert_eq!(fixture.send("PUT", "/platform/rate-limits/r1", &token, json!({ "limit": 0 })).await.status, 422);
}

#[tokio::test]
async fn rules_are_listed_searched_counted_and_changed_together_in_either_store() {
    for (fixture, _servers) in in_either_store(&[]).await {
        let token = manager(&fixture).await;
        for new in [
            rule("a", json!({ "priority": 1, "description": "The Slow One" })),
            rule("b", json!({ "priority": 5, "enabled": false })),
            rule("c", json!({ "rule_type": "per_user", "target_identifier": "Amy.*", "priority": 5 })),
        ] {
            assert_eq!(fixture.send("POST", RULES, &token, new).await.status, 201);
        }
        let get = async |path: &str| fixture.send("GET", &format!("{RULES}{path}"), &token, Value::Null).await;
        for (path, found) in [
            ("/", vec!["b", "c", "a"]),
            ("?enabled_only=true", vec!["c", "a"]),
            ("?rule_type=per_user", vec!["c"]),
            ("?skip=1&limit=1", vec!["c"]),
            ("/search?q=slow", vec!["a"]),
            ("/search/?q=AMY", vec!["c"]),
            ("/search?q=.*", vec!["c"]),
            ("/search?q=B", vec!["b"]),
            ("/search?q=none", vec![]),
        ] {
            let seen = get(path).await;
            assert_eq!((seen.status, ids(&seen.json())), (200, found), "{path}");
        }
        assert_eq!(get("?rule_type=per_moon").await.status, 400);
        for path in ["/search", "?limit=1001", "?limit=0"] {
            assert_eq!(get(path).await.status, 422, "{path}");
        }
        let summary = json!({ "total_rules": 3, "enabled_rules": 2, "disabled_rules": 1,
            "rules_by_type": { "global": 2, "per_user": 1 } });
        get("/statistics/summary").await.is(200, summary);

        let bulk = async |what: &str, ids: Value| {
            fixture.send("POST", &format!("{RULES}/bulk/{what}"), &token, json!({ "rule_ids": ids })).await
        };
        bulk("disable", json!(["a", "c", "none", "a"])).await.is(200, json!({ "disabled_count": 2 }));
        assert_eq!(ids(&get("?enabled_only=true").await.json()), Vec::<&str>::new());
        bulk("enable/", json!(["b", "c"])).await.is(200, json!({ "enabled_count": 2 }));
        assert_eq!(ids(&get("?enabled_only=true").await.json()), ["b", "c"]);
        bulk("delete", json!(["b", "none"])).await.is(200, json!({ "deleted_count": 1 }));
        assert_eq!(ids(&get("").await.json()), ["c", "a"]);
        bulk("delete", json!([])).await.is(200, json!({ "deleted_count": 0 }));
        assert_eq!(bulk("delete", json!("a")).await.status, 422);
    }
}

#[tokio::test]
async fn callers_are_told_the_rules_that_their_calls_may_fall_under() {
    let fixture = Fixture::usual().await;
    let (token, own) = (manager(&fixture).await, fixture.with_role("plain", &[]).await);
    for new in [
        rule("all", json!({ "description": "everyone" })),
        rule("off", json!({ "enabled": false })),
        rule("own", json!({ "rule_type": "per_user", "target_identifier": "plain", "priority": 1 })),
        rule("other", json!({ "rule_type": "per_user", "target_identifier": "amy" })),
        rule("here", json!({ "rule_type": "per_ip", "target_identifier": "192.0.2.0/24" })),
        rule("there", json!({ "rule_type": "per_ip", "target_identifier": "198.51.100.7" })),
        rule("orders", json!({ "rule_type": "per_user_api", "target_identifier": "orders/v1" })),
    ] {
        assert_eq!(fixture.send("POST", RULES, &token, new).await.status, 201);
    }
    let seen = fixture.send("GET", "/platform/rate-limits/status/", &own, Value::Null).await;
    let status = seen.json();
    assert_eq!((seen.status, &status["user_id"]), (200, &json!("plain")));
    assert_eq!(ids(&status["applicable_rules"]), ["own", "all", "here", "orders"]);
    let all = json!({ "rule_id": "all", "rule_type": "global", "time_window": "minute", "limit": 10,
        "burst_allowance": 0, "description": "everyone" });
    assert_eq!(status["applicable_rules"][1], all);
    assert!(status["note"].is_string());
}

#[tokio::test]
async fn rules_are_for_those_who_manage_them() {
    let fixture = Fixture::usual().await;
    let nothing = fixture.with_role("nothing", &[]).await;
    let denied = detail("You do not have permission to manage rate limit rules");
    let ids = json!({ "rule_ids": ["a"] });
    for (method, path, body) in [
        ("POST", "", rule("a", json!({}))),
        ("GET", "", Value::Null),
        ("GET", "/search?q=a", Value::Null),
        ("GET", "/a", Value::Null),
        ("PUT", "/a", json!({})),
        ("DELETE", "/a", Value::Null),
        ("POST", "/a/enable", Value::Null),
        ("POST", "/a/disable", Value::Null),
        ("POST", "/a/duplicate", json!({ "new_rule_id": "b" })),
        ("POST", "/bulk/delete", ids.clone()),
        ("POST", "/bulk/enable", ids.clone()),
        ("POST", "/bulk/disable", ids.clone()),
        ("GET", "/statistics/summary", Value::Null),
    ] {
        let path = format!("{RULES}{path}");
        fixture.send(method, &path, &nothing, body.clone()).await.is(403, denied.clone());
        fixture.call(method, &path).body(body.to_string()).send().await.is(401, detail("Unauthorized"));
    }
    fixture.call("GET", "/platform/rate-limits/status").send().await.is(401, detail("Unauthorized"));
}
