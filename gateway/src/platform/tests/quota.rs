//! Quotas, as their users see them.

use mongodb::bson::doc;

use super::*;
use crate::store::Collection;

async fn stage() -> (Fixture, String) {
    let fixture = Fixture::usual().await;
    let token = fixture.with_role("amy", &[]).await;
    (fixture, token)
}

async fn assign(fixture: &Fixture, limits: mongodb::bson::Document) {
    let store = fixture.identity.store();
    let tier = doc! { "tier_id": "small", "name": "custom", "display_name": "Small", "limits": limits,
    "price_monthly": 5, "features": ["one"], "enabled": true };
    store.save(Collection::Tiers, tier).await.unwrap();
    let other = doc! { "tier_id": "large", "name": "pro", "display_name": "Large", "limits": {}, "enabled": true };
    store.save(Collection::Tiers, other).await.unwrap();
    let off = doc! { "tier_id": "gone", "name": "pro", "display_name": "Gone", "limits": {}, "enabled": false };
    store.save(Collection::Tiers, off).await.unwrap();
    let assignment = doc! { "user_id": "amy", "tier_id": "small" };
    store.save(Collection::TierAssignments, assignment).await.unwrap();
}

#[tokio::test]
async fn without_a_tier_there_is_nothing_to_tell() {
    let (fixture, token) = stage().await;
    for (method, path, reason) in [
        ("GET", "/platform/quota/status", "No tier assigned to user"),
        ("GET", "/platform/quota/status/daily_requests", "No limits found for user"),
        ("POST", "/platform/quota/usage/export", "No limits found for user"),
        ("GET", "/platform/quota/tier/info", "No tier assigned to user"),
        ("GET", "/platform/quota/burst/status", "No tier assigned to user"),
    ] {
        let answer = fixture.call(method, path).bearer(&token).send().await;
        assert_eq!((answer.status, answer.json()), (404, json!({ "detail": reason })), "{path}");
    }
    let history = fixture.call("GET", "/platform/quota/usage/history").bearer(&token).send().await;
    assert_eq!((history.status, &history.json()["history"]), (200, &json!([])));
    let stranger = fixture.call("GET", "/platform/quota/status").send().await;
    assert_eq!((stranger.status, stranger.json()), (401, json!({ "detail": "Unauthorized" })));
}

#[tokio::test]
async fn a_user_sees_what_calls_are_measured_by() {
    let (fixture, token) = stage().await;
    assign(&fixture, doc! { "monthly_request_quota": 100, "daily_request_quota": 10, "burst_per_minute": 3 }).await;
    let read = async |path: &str| {
        let answer = fixture.call("GET", &format!("/platform/quota/{path}")).bearer(&token).send().await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.json());
        answer.json()
    };
    let limits = doc! { "monthly_request_quota": 100, "daily_request_quota": 10 };
    for (quota, _) in &crate::accounting::Tier::of("amy", &limits).quotas {
        fixture.identity.store().book(&[quota.counter(crate::store::now())], 9).await;
    }
    let daily = read("status/daily_requests").await;
    assert_eq!(
        (&daily["current_usage"], &daily["remaining"], &daily["percentage_used"]),
        (&json!(9), &json!(1), &json!(90.0))
    );
    assert_eq!(
        (&daily["is_warning"], &daily["is_critical"], &daily["is_exhausted"]),
        (&json!(true), &json!(false), &json!(false))
    );
    let status = read("status").await;
    assert_eq!(status["tier_info"]["display_name"], "Small");
    assert_eq!(status["quotas"].as_array().unwrap().len(), 2);
    assert_eq!(status["usage_summary"]["total_requests_limit"], 100);
    assert_eq!(read("burst/status").await["burst_limits"]["per_minute"], 3);
    let info = read("tier/info").await;
    assert_eq!(info["current_tier"]["tier_id"], "small");
    let options: Vec<_> = info["upgrade_options"].as_array().unwrap().iter().map(|tier| &tier["tier_id"]).collect();
    assert_eq!(options, ["large"], "one that is off is no option");

    for (kind, status, reason) in [
        ("monthly_bandwidth", 404, "Quota monthly_bandwidth not configured for user"),
        ("yearly", 400, "Invalid quota type: yearly"),
    ] {
        let answer = fixture.call("GET", &format!("/platform/quota/status/{kind}")).bearer(&token).send().await;
        assert_eq!((answer.status, answer.json()), (status, json!({ "detail": reason })));
    }
    let export = fixture.call("POST", "/platform/quota/usage/export?format=csv").bearer(&token).send().await;
    let export = export.json();
    let text = export["data"].as_str().unwrap();
    assert!(text.starts_with("Type,Current Usage,Limit,Remaining,Percentage Used,Reset At\n"), "{text}");
    assert!(text.contains("\ndaily_requests,9,10,1,90,"), "{text}");
    let odd = fixture.call("POST", "/platform/quota/usage/export?format=xml").bearer(&token).send().await;
    assert_eq!(odd.status, 422);
}
