//! Tiers and who has them, as the reference has them (platform API 14).

use mongodb::bson::doc;

use super::*;
use crate::store::{Collection, Moment};

const TIERS: &str = "/platform/tiers";

fn tier(id: &str, members: Value) -> Value {
    let mut tier = json!({ "tier_id": id, "name": "pro", "display_name": id.to_uppercase(), "limits": {} });
    tier.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
    tier
}

fn detail(reason: &str) -> Value {
    json!({ "detail": reason })
}

async fn manager(fixture: &Fixture) -> String {
    fixture.with_role("manager", &[Permission::ManageTiers]).await
}

/// Adds tiers of these ids, the first as the default, and gives the token of who manages them.
async fn add_tiers(fixture: &Fixture, ids: &[&str]) -> String {
    let token = manager(fixture).await;
    for (place, id) in ids.iter().enumerate() {
        let new = tier(id, json!({ "is_default": place == 0 }));
        assert_eq!(fixture.send("POST", TIERS, &token, new).await.status, 201);
    }
    token
}

async fn with_tiers(ids: &[&str]) -> (Fixture, String) {
    let fixture = Fixture::usual().await;
    let token = add_tiers(&fixture, ids).await;
    (fixture, token)
}

fn in_days(days: i64) -> String {
    Moment::now().after_days(days).unwrap().to_string()
}

/// The id of the tier that a user has now.
async fn tier_of(fixture: &Fixture, token: &str, user: &str) -> Value {
    let path = format!("/platform/tiers/assignments/{user}/tier");
    fixture.send("GET", &path, token, Value::Null).await.json()["tier_id"].take()
}

/// The whole days from now until a moment of an assignment, rounded.
fn days_until(moment: &Value) -> i64 {
    let moment: jiff::Timestamp = moment.as_str().unwrap().parse().unwrap();
    (moment.as_second() - jiff::Timestamp::now().as_second() + 43_200).div_euclid(86_400)
}

#[tokio::test]
async fn a_tier_is_added_read_changed_and_deleted() {
    let fixture = Fixture::usual().await;
    let token = manager(&fixture).await;
    let limits = json!({ "requests_per_minute": 1, "requests_per_day": null, "max_queue_time_ms": 0 });
    let new =
        json!({ "tier_id": "gold", "name": "custom", "display_name": "Gold", "limits": limits, "price_monthly": 9.5 });
    let created = fixture.send("POST", "/platform/tiers/", &token, new.clone()).await;
    let gold = created.json();
    let all = json!({
        "requests_per_second": null, "requests_per_minute": 1, "requests_per_hour": null, "requests_per_day": null,
        "requests_per_month": null, "burst_per_second": 0, "burst_per_minute": 0, "burst_per_hour": 0,
        "monthly_request_quota": null, "daily_request_quota": null, "monthly_bandwidth_quota": null,
        "enable_throttling": false, "max_queue_time_ms": 0,
    });
    let expected = json!({
        "tier_id": "gold", "name": "custom", "display_name": "Gold", "description": null, "limits": all,
        "price_monthly": 9.5, "price_yearly": null, "features": [], "is_default": false, "enabled": true,
        "created_at": gold["created_at"], "updated_at": gold["updated_at"],
    });
    created.is(201, expected);
    assert!(gold["created_at"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
    let again = fixture.send("POST", TIERS, &token, tier("gold", json!({ "enabled": false }))).await;
    again.is(201, gold.clone());
    fixture.send("GET", "/platform/tiers/gold", &token, Value::Null).await.is(200, gold.clone());

    let update =
        json!({ "limits": { "requests_per_hour": "5" }, "enabled": false, "description": "x", "features": ["a"] });
    let updated = fixture.send("PUT", "/platform/tiers/gold/", &token, update).await;
    let now = updated.json();
    assert_eq!(
        (updated.status, &now["limits"]["requests_per_hour"], &now["limits"]["requests_per_minute"], &now["enabled"]),
        (200, &json!(5), &Value::Null, &json!(false)),
        "limits are replaced as a whole"
    );
    assert_eq!((&now["created_at"], &now["price_monthly"]), (&gold["created_at"], &json!(9.5)));
    fixture.send("PUT", "/platform/tiers/gold", &token, json!({ "name": null })).await.is(200, now.clone());
    fixture.send("GET", "/platform/tiers/gold", &token, Value::Null).await.is(200, now);

    let deleted = fixture.send("DELETE", "/platform/tiers/gold", &token, Value::Null).await;
    deleted.is(
        200,
        json!({ "status_code": 200, "response_headers": null, "response": null, "message": "Tier deleted",
        "error_code": null, "error_message": null }),
    );
    for (method, body) in
        [("GET", Value::Null), ("PUT", json!({ "enabled": true })), ("PUT", json!({})), ("DELETE", Value::Null)]
    {
        fixture.send(method, "/platform/tiers/gold", &token, body).await.is(404, detail("Tier gold not found"));
    }
}

#[tokio::test]
async fn what_is_no_tier_is_refused() {
    let fixture = Fixture::usual().await;
    let token = manager(&fixture).await;
    let invalid = json!({ "error_code": "VAL001", "error_message": "Validation Error" });
    for body in [
        tier("gold", json!({ "name": "platinum" })),
        tier("gold", json!({ "limits": { "requests_per_minute": -1 } })),
        tier("gold", json!({ "limits": { "burst_per_minute": null } })),
        tier("gold", json!({ "limits": null })),
        tier("gold", json!({ "price_monthly": -1 })),
        tier("gold", json!({ "features": "x" })),
        tier("gold", json!({ "is_default": null })),
        tier("", json!({})),
        json!([tier("gold", json!({}))]),
    ] {
        fixture.send("POST", TIERS, &token, body).await.is(422, invalid.clone());
    }
    let reserved = fixture.send("POST", TIERS, &token, tier("compare", json!({}))).await;
    reserved.is(400, detail("A tier can't have the id compare: a route has that name"));
    assert_eq!(fixture.identity.store().all(Collection::Tiers).await.unwrap().len(), 0);
}

#[tokio::test]
async fn tiers_are_listed_in_slices_and_found_by_text() {
    let fixture = Fixture::usual().await;
    let token = manager(&fixture).await;
    for new in [
        tier("a", json!({ "description": "For Startups" })),
        tier("b", json!({ "enabled": false, "name": "free" })),
        tier("c", json!({ "display_name": "Big.*" })),
    ] {
        fixture.send("POST", TIERS, &token, new).await;
    }
    for (query, ids, total, has_next) in [
        ("", vec!["a", "b", "c"], 3, false),
        ("?skip=1&limit=1", vec!["b"], 3, true),
        ("?page=2&page_size=2", vec!["c"], 3, false),
        ("?enabled_only=true", vec!["a", "c"], 2, false),
        ("?search=startUPS", vec!["a"], 1, false),
        ("?search=FREE&enabled_only=false", vec!["b"], 1, false),
        ("?search=.*", vec!["c"], 1, false),
        ("?skip=9", vec![], 3, false),
    ] {
        let seen = fixture.send("GET", &format!("/platform/tiers/{query}"), &token, Value::Null).await;
        let list = seen.json();
        let found: Vec<_> =
            list["tiers"].as_array().unwrap().iter().map(|tier| tier["tier_id"].as_str().unwrap()).collect();
        assert_eq!(
            (seen.status, found, &list["total"], &list["has_next"]),
            (200, ids, &json!(total), &json!(has_next)),
            "{query}"
        );
    }
    for query in ["?page=0", "?page_size=201"] {
        let seen = fixture.send("GET", &format!("/platform/tiers{query}"), &token, Value::Null).await;
        assert_eq!((seen.status, &seen.json()["error_code"]), (400, &json!("PAG001")), "{query}");
    }
    let list = fixture.send("GET", "/platform/tiers?skip=2&limit=2", &token, Value::Null).await.json();
    assert_eq!(
        (&list["page"], &list["page_size"], &list["skip"], &list["limit"]),
        (&json!(2), &json!(2), &json!(2), &json!(2))
    );
    for query in ["limit=0", "limit=1001", "skip=-1", "limit=x", "enabled_only=maybe"] {
        assert_eq!(fixture.send("GET", &format!("{TIERS}?{query}"), &token, Value::Null).await.status, 422, "{query}");
    }
}

#[tokio::test]
async fn an_assignment_holds_within_its_bounds_and_the_default_tier_without() {
    let (fixture, token) = with_tiers(&["basic", "gold"]).await;
    let assigned = "/platform/tiers/assignments/amy";
    let nobody = detail("No assignment found for user amy");
    fixture.send("GET", assigned, &token, Value::Null).await.is(404, nobody.clone());
    fixture.send("DELETE", assigned, &token, Value::Null).await.is(404, nobody);
    assert_eq!(tier_of(&fixture, &token, "amy").await, "basic");

    let new = json!({ "user_id": "amy", "tier_id": "gold", "effective_from": "2020-01-01T00:00:00", "notes": "vip",
        "effective_until": in_days(1), "override_limits": { "requests_per_minute": 3 } });
    let seen = fixture.send("POST", "/platform/tiers/assignments/", &token, new).await;
    let assignment = seen.json();
    assert_eq!(
        (seen.status, &assignment["effective_from"], &assignment["assigned_by"], &assignment["notes"]),
        (201, &json!("2020-01-01T00:00:00.000000Z"), &json!("manager"), &json!("vip"))
    );
    assert_eq!(assignment["override_limits"]["requests_per_minute"], 3);
    assert_eq!(assignment["override_limits"]["max_queue_time_ms"], 5000);
    let members = [
        "assigned_at",
        "assigned_by",
        "effective_from",
        "effective_until",
        "notes",
        "override_limits",
        "tier_id",
        "user_id",
    ];
    let mut names: Vec<_> = assignment.as_object().unwrap().keys().collect();
    names.sort();
    assert_eq!(names, members);
    fixture.send("GET", assigned, &token, Value::Null).await.is(200, assignment);
    assert_eq!(tier_of(&fixture, &token, "amy").await, "gold");

    for (bounds, tier) in [
        (json!({ "effective_until": "2020-01-01" }), "basic"),
        (json!({ "effective_from": in_days(1) }), "basic"),
        (json!({ "effective_from": null, "effective_until": null }), "gold"),
    ] {
        let mut new = json!({ "user_id": "amy", "tier_id": "gold" });
        new.as_object_mut().unwrap().extend(bounds.as_object().unwrap().clone());
        let replaced = fixture.send("POST", "/platform/tiers/assignments", &token, new).await.json();
        assert_eq!((&replaced["override_limits"], &replaced["notes"]), (&Value::Null, &Value::Null), "nothing is left");
        assert_eq!(tier_of(&fixture, &token, "amy").await, tier, "{bounds}");
    }
    let removed = fixture.send("DELETE", assigned, &token, Value::Null).await;
    assert_eq!((removed.status, &removed.json()["message"]), (200, &json!("Assignment removed")));
    assert_eq!(tier_of(&fixture, &token, "amy").await, "basic");
    fixture.send("DELETE", "/platform/tiers/basic", &token, Value::Null).await;
    let none = fixture.send("GET", "/platform/tiers/assignments/amy/tier", &token, Value::Null).await;
    none.is(404, detail("No tier found for user amy"));
}

#[tokio::test]
async fn of_several_default_tiers_the_one_with_the_smallest_id_counts() {
    let (fixture, token) = with_tiers(&["m"]).await;
    for id in ["z", "c"] {
        fixture.send("POST", TIERS, &token, tier(id, json!({ "is_default": true }))).await;
    }
    assert_eq!(tier_of(&fixture, &token, "amy").await, "c");
}

#[tokio::test]
async fn a_tier_that_is_off_binds_only_whom_it_is_assigned_to() {
    let (fixture, token) = with_tiers(&["basic"]).await;
    let set = async |id: &str, changes: Value| {
        let seen = fixture.send("PUT", &format!("{TIERS}/{id}"), &token, changes).await;
        assert_eq!(seen.status, 200, "{seen:?}");
    };
    let payment_fails = async || {
        let body = json!({ "user_id": "amy" });
        fixture.send("POST", "/platform/tiers/payment/failure", &token, body).await
    };
    fixture.send("POST", TIERS, &token, tier("c", json!({ "is_default": true }))).await;
    set("basic", json!({ "enabled": false })).await;
    assert_eq!(tier_of(&fixture, &token, "amy").await, "c", "the next default");
    set("c", json!({ "enabled": false })).await;
    let none = fixture.send("GET", "/platform/tiers/assignments/amy/tier", &token, Value::Null).await;
    none.is(404, detail("No tier found for user amy"));
    payment_fails().await.is(400, detail("No default tier configured for fallback"));
    let assignment = json!({ "user_id": "amy", "tier_id": "basic" });
    let assigned = fixture.send("POST", "/platform/tiers/assignments", &token, assignment).await;
    assert_eq!(assigned.status, 201);
    assert_eq!(tier_of(&fixture, &token, "amy").await, "basic");
    set("c", json!({ "enabled": true })).await;
    assert_eq!(tier_of(&fixture, &token, "bob").await, "c");
    assert_eq!(payment_fails().await.json()["tier_id"], "c");
}

#[tokio::test]
async fn assignments_that_make_no_sense_are_refused() {
    let (fixture, token) = with_tiers(&["basic"]).await;
    let path = |rest: &str| format!("/platform/tiers/{rest}");
    let until_before_from = json!({ "user_id": "amy", "tier_id": "basic", "effective_from": "2026-01-02",
        "effective_until": "2026-01-02" });
    for (rest, body, status, reason) in [
        ("assignments", json!({ "user_id": "amy", "tier_id": "none" }), 400, "Tier none not found"),
        ("assignments", until_before_from, 400, "effective_until must be after effective_from"),
        ("upgrade", json!({ "user_id": "amy", "new_tier_id": "none" }), 400, "Tier none not found"),
        ("downgrade", json!({ "user_id": "amy", "new_tier_id": "none" }), 400, "Tier none not found"),
        (
            "temporary-upgrade",
            json!({ "user_id": "amy", "temp_tier_id": "none", "duration_days": 1 }),
            400,
            "Tier none not found",
        ),
        ("trial/start", json!({ "user_id": "amy", "tier_id": "none" }), 404, "Tier none not found"),
        (
            "upgrade",
            json!({ "user_id": "amy", "new_tier_id": "basic", "immediate": false }),
            400,
            "scheduled_date is required unless immediate",
        ),
        (
            "upgrade",
            json!({ "user_id": "amy", "new_tier_id": "basic", "immediate": true, "scheduled_date": in_days(1) }),
            400,
            "scheduled_date can't be given together with immediate",
        ),
        (
            "upgrade",
            json!({ "user_id": "amy", "new_tier_id": "basic", "scheduled_date": "2020-01-01" }),
            400,
            "scheduled_date must be in the future",
        ),
        (
            "downgrade",
            json!({ "user_id": "amy", "new_tier_id": "basic", "grace_period_days": 1_000_000_000_000_i64 }),
            400,
            "So many days are more than calendars have",
        ),
    ] {
        fixture.send("POST", &path(rest), &token, body.clone()).await.is(status, detail(reason));
    }
    for (rest, body) in [
        ("assignments", json!({ "user_id": "amy", "tier_id": "basic", "effective_from": "soon" })),
        ("assignments", json!({ "user_id": "amy", "tier_id": "basic", "override_limits": { "requests_per_day": -1 } })),
        ("assignments", json!({ "tier_id": "basic" })),
        ("assignments", json!([{ "user_id": "amy", "tier_id": "basic" }])),
        ("upgrade", json!({ "user_id": "amy", "new_tier_id": "basic", "scheduled_date": 7 })),
        ("temporary-upgrade", json!({ "user_id": "amy", "temp_tier_id": "basic", "duration_days": 0 })),
        ("trial/start", json!({ "user_id": "amy", "tier_id": "basic", "days": -1 })),
        ("compare", json!({ "ids": [] })),
    ] {
        assert_eq!(fixture.send("POST", &path(rest), &token, body.clone()).await.status, 422, "{rest} {body}");
    }
    assert_eq!(fixture.identity.store().all(Collection::TierAssignments).await.unwrap().len(), 0);
}

#[tokio::test]
async fn upgrades_and_downgrades_act_at_once_or_later() {
    let (fixture, token) = with_tiers(&["basic", "gold", "pro"]).await;
    let upgrade = async |body: Value| fixture.send("POST", "/platform/tiers/upgrade", &token, body).await;
    let seen = upgrade(json!({ "user_id": "amy", "new_tier_id": "pro" })).await;
    assert_eq!((seen.status, &seen.json()["notes"]), (200, &json!("Upgraded from default")));
    assert_eq!(tier_of(&fixture, &token, "amy").await, "pro");

    // Nothing holds for bob yet: until the date, that is the default tier.
    let planned = upgrade(json!({ "user_id": "bob", "new_tier_id": "pro", "scheduled_date": in_days(3) })).await.json();
    assert_eq!((days_until(&planned["effective_from"]), &planned["tier_id"]), (3, &json!("pro")));
    assert_eq!(tier_of(&fixture, &token, "bob").await, "basic");

    let date = in_days(5);
    let planned =
        upgrade(json!({ "user_id": "amy", "new_tier_id": "gold", "immediate": false, "scheduled_date": date })).await;
    let ordered = planned.json();
    assert_eq!((planned.status, &ordered["tier_id"], ordered.get("next")), (200, &json!("gold"), None));
    assert_eq!((&ordered["effective_from"], &ordered["notes"]), (&json!(date), &json!("Upgraded from pro")));
    assert_eq!(tier_of(&fixture, &token, "amy").await, "pro");
    let store = fixture.identity.store();
    let then = Moment::now().after_days(6).unwrap();
    assert_eq!(store.tier_of("amy", then).await.unwrap().unwrap().get_str("tier_id").unwrap(), "gold");
    let read = fixture.send("GET", "/platform/tiers/assignments/amy", &token, Value::Null).await;
    assert_eq!((&read.json()["tier_id"], &read.json()["next"]), (&json!("pro"), &ordered));
    let refused = fixture.send("DELETE", "/platform/tiers/gold", &token, Value::Null).await;
    refused.is(400, detail("Cannot delete tier gold: 1 users are assigned to it"));

    let body = json!({ "user_id": "amy", "new_tier_id": "basic", "grace_period_days": 10 });
    let grace = fixture.send("POST", "/platform/tiers/downgrade", &token, body).await.json();
    assert_eq!((&grace["tier_id"], days_until(&grace["effective_from"])), (&json!("basic"), 10));
    assert_eq!(grace["notes"], "Downgraded from pro with 10 day grace period");
    assert_eq!(tier_of(&fixture, &token, "amy").await, "pro");
    let at_once = json!({ "user_id": "amy", "new_tier_id": "basic" });
    let lowered = fixture.send("POST", "/platform/tiers/downgrade", &token, at_once).await.json();
    assert_eq!((&lowered["tier_id"], lowered.get("next")), (&json!("basic"), None));
    assert_eq!(lowered["notes"], "Downgraded from pro with 0 day grace period");
}

#[tokio::test]
async fn a_tier_for_some_days_ends_in_what_held_before() {
    for (fixture, _servers) in in_either_store(&[]).await {
        let token = add_tiers(&fixture, &["basic", "gold", "pro"]).await;
        let own =
            json!({ "user_id": "amy", "tier_id": "pro", "override_limits": { "requests_per_day": 7 }, "notes": "own" });
        fixture.send("POST", "/platform/tiers/assignments", &token, own).await;
        let body = json!({ "user_id": "amy", "temp_tier_id": "gold", "duration_days": 2 });
        let lent = fixture.send("POST", "/platform/tiers/temporary-upgrade", &token, body).await.json();
        assert_eq!((&lent["notes"], days_until(&lent["effective_until"])), (&json!("Temporary upgrade for 2 days"), 2));
        let next = &lent["next"];
        assert_eq!(
            (&next["tier_id"], &next["notes"], &next["effective_from"]),
            (&json!("pro"), &json!("own"), &lent["effective_until"])
        );
        assert_eq!(next["override_limits"]["requests_per_day"], 7);
        let store = fixture.identity.store();
        for (days, tier) in [(1, "gold"), (3, "pro")] {
            let then = Moment::now().after_days(days).unwrap();
            assert_eq!(store.tier_of("amy", then).await.unwrap().unwrap().get_str("tier_id").unwrap(), tier);
        }

        let trial = json!({ "user_id": "bob", "tier_id": "gold" });
        let trial = fixture.send("POST", "/platform/tiers/trial/start", &token, trial).await.json();
        assert_eq!((days_until(&trial["effective_until"]), trial.get("next")), (14, None), "then the default tier");
        let body = json!({ "user_id": "bob", "reason": "card expired" });
        let failed = fixture.send("POST", "/platform/tiers/payment/failure", &token, body).await.json();
        assert_eq!((&failed["tier_id"], &failed["notes"]), (&json!("basic"), &json!("Payment failed: card expired")));
    }
    let (fixture, token) = with_tiers(&[]).await;
    let seen = fixture.send("POST", "/platform/tiers/payment/failure", &token, json!({ "user_id": "bob" })).await;
    seen.is(400, detail("No default tier configured for fallback"));
}

#[tokio::test]
async fn the_users_of_tiers_are_listed_and_counted_and_keep_a_tier_from_being_deleted() {
    let (fixture, token) = with_tiers(&["basic", "gold"]).await;
    for (user, until) in [("amy", None), ("bob", Some("2020-01-01")), ("cy", None)] {
        let new = json!({ "user_id": user, "tier_id": "gold", "effective_until": until });
        fixture.send("POST", "/platform/tiers/assignments", &token, new).await;
    }
    let users = fixture.send("GET", "/platform/tiers/gold/users?skip=1&limit=1", &token, Value::Null).await.json();
    assert_eq!((users.as_array().unwrap().len(), &users[0]["user_id"]), (1, &json!("bob")));
    let nobody = fixture.send("GET", "/platform/tiers/basic/users/", &token, Value::Null).await;
    nobody.is(200, json!([]));
    fixture.send("GET", "/platform/tiers/none/users", &token, Value::Null).await.is(200, json!([]));
    let gold = json!({ "tier_id": "gold", "total_users": 3, "active_users": 2, "inactive_users": 1 });
    fixture.send("GET", "/platform/tiers/gold/statistics", &token, Value::Null).await.is(200, gold);
    let all = fixture.send("GET", "/platform/tiers/statistics/all/", &token, Value::Null).await;
    all.is(
        200,
        json!([
            { "tier_id": "basic", "total_users": 0, "active_users": 0, "inactive_users": 0, "tier_name": "pro" },
            { "tier_id": "gold", "total_users": 3, "active_users": 2, "inactive_users": 1, "tier_name": "pro" },
        ]),
    );
    let none = fixture.send("GET", "/platform/tiers/none/statistics", &token, Value::Null).await;
    none.is(404, json!({ "error_message": "Tier none not found" }));
    let refused = fixture.send("DELETE", "/platform/tiers/gold", &token, Value::Null).await;
    refused.is(400, detail("Cannot delete tier gold: 3 users are assigned to it"));

    let (fixture, token) = with_tiers(&[]).await;
    fixture.send("GET", "/platform/tiers/statistics/all", &token, Value::Null).await.is(200, json!([]));
}

#[tokio::test]
async fn tiers_are_compared_in_the_order_they_are_asked_for() {
    let (fixture, token) = with_tiers(&["basic", "gold"]).await;
    let seen = fixture.send("POST", "/platform/tiers/compare/", &token, json!(["gold", "basic", "gold"])).await;
    let compared = seen.json();
    assert_eq!((seen.status, compared.as_array().unwrap().len()), (200, 2));
    assert_eq!(
        compared[0],
        json!({ "tier_id": "gold", "name": "pro", "display_name": "GOLD", "limits": compared[0]["limits"],
        "price_monthly": null, "price_yearly": null, "features": [] })
    );
    fixture.send("POST", "/platform/tiers/compare", &token, json!([])).await.is(200, json!([]));
    let unknown = fixture.send("POST", "/platform/tiers/compare", &token, json!(["gold", "x"])).await;
    unknown.is(404, detail("Tier x not found"));
}

#[tokio::test]
async fn lists_and_statistics_have_an_envelope_and_nothing_else_has() {
    let fixture = Fixture::with(&[("STRICT_RESPONSE_ENVELOPE", "true")]).await;
    let token = manager(&fixture).await;
    let created = fixture.send("POST", TIERS, &token, tier("gold", json!({}))).await;
    assert_eq!((created.status, &created.json()["tier_id"]), (201, &json!("gold")));
    let list = fixture.send("GET", TIERS, &token, Value::Null).await.json();
    assert_eq!((&list["status_code"], &list["response"]["total"]), (&json!(200), &json!(1)));
    let statistics = fixture.send("GET", "/platform/tiers/statistics/all", &token, Value::Null).await.json();
    assert_eq!(statistics["response"][0]["tier_id"], "gold");
    let nothing = fixture.with_role("nothing", &[]).await;
    let refused = fixture.send("GET", TIERS, &nothing, Value::Null).await;
    let message = "You do not have permission to manage tiers";
    refused.is(403, json!({ "status_code": 403, "error_code": "TIER001", "error_message": message }));
    fixture.send("GET", "/platform/tiers/gold", &nothing, Value::Null).await.is(403, detail(message));
    fixture.call("GET", TIERS).send().await.is(401, detail("Unauthorized"));
}

#[tokio::test]
async fn dates_of_existing_databases_are_read() {
    let (fixture, token) = with_tiers(&["basic", "gold"]).await;
    let past = mongodb::bson::DateTime::from_millis(0);
    let document = doc! { "user_id": "amy", "tier_id": "gold", "effective_from": past,
    "assigned_at": "2024-05-01T10:00:00.123456" };
    fixture.identity.store().insert(Collection::TierAssignments, document).await.unwrap();
    let read = fixture.send("GET", "/platform/tiers/assignments/amy", &token, Value::Null).await.json();
    assert_eq!(read["effective_from"], "1970-01-01T00:00:00Z");
    assert_eq!(tier_of(&fixture, &token, "amy").await, "gold");
    let again = json!({ "user_id": "amy", "new_tier_id": "gold" });
    assert_eq!(
        fixture.send("POST", "/platform/tiers/upgrade", &token, again).await.json()["notes"],
        "Upgraded from gold"
    );
}
