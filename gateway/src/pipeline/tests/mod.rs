//! What is decided about requests, without sockets and upstreams.

use serde_json::json;

use self::stage::{Ask, Setup, Stage};
use crate::store::User;

mod stage;

/// A user whom every limit of the user's own stops after the first call.
fn limited(username: &str) -> User {
    User {
        rate_limit_duration: Some(1),
        throttle_queue_limit: Some(1),
        bandwidth_limit_bytes: Some(1),
        groups: ["ALL".into()].into(),
        ..User::new(username, &format!("{username}@example.com"), "user")
    }
}

fn api(name: &str, changes: serde_json::Value) -> serde_json::Value {
    let mut spec = json!({ "name": name, "version": "v1", "protocol": "REST", "servers": ["http://up:80"],
        "endpoints": [{ "method": "GET", "uri": "/items" }] });
    for (member, value) in changes.as_object().unwrap() {
        spec[member] = value.clone();
    }
    spec
}

#[tokio::test(start_paused = true)]
async fn users_own_limits_leave_calls_alone_that_need_no_user() {
    let stage = Stage::new(Setup {
        apis: vec![
            api("open", json!({ "public": true })),
            api("optional", json!({ "authRequired": false })),
            api("own", json!({})),
        ],
        users: vec![limited("amy")],
        subscriptions: vec![("amy".into(), vec!["own/v1".into()])],
        ..Setup::default()
    })
    .await;
    let amy = stage.token("amy", 60);
    let call = async |api: &str| stage.ask(&Ask::get(&format!("/api/rest/{api}/v1/items")).bearer(&amy)).await.status;
    for _ in 0..2 {
        assert_eq!((call("open").await, call("optional").await), (200, 200));
    }
    assert_eq!((call("own").await, call("own").await), (200, 429));
    assert_eq!((call("open").await, call("optional").await), (200, 200));
}

#[tokio::test(start_paused = true)]
async fn a_path_too_short_for_a_version_counts_for_tiers_and_rules() {
    let rule = |id: &str, rule_type: &str, target: &str, limit: i32| {
        mongodb::bson::doc! { "rule_id": id, "rule_type": rule_type, "target_identifier": target,
        "time_window": "minute", "limit": limit }
    };
    let stage = Stage::new(Setup { rules: vec![rule("r", "per_ip", "192.0.2.0/24", 2)], ..Setup::default() }).await;
    let ask = Ask::get("/api/rest/open").from("192.0.2.1");
    let seen = [stage.ask(&ask).await.status, stage.ask(&ask).await.status, stage.ask(&ask).await.status];
    assert_eq!(seen, [404, 404, 429]);

    let tier = mongodb::bson::doc! { "tier_id": "free", "is_default": true, "limits": { "requests_per_minute": 1 } };
    let stage = Stage::new(Setup { users: vec![limited("amy")], tiers: vec![tier], ..Setup::default() }).await;
    let ask = Ask::get("/api/rest/open").bearer(&stage.token("amy", 60));
    assert_eq!([stage.ask(&ask).await.status, stage.ask(&ask).await.status], [404, 429]);
}

#[tokio::test(start_paused = true)]
async fn ipv4_networks_in_ipv6_clothes_match_in_an_apis_lists_and_in_rules() {
    let rule = mongodb::bson::doc! { "rule_id": "r", "rule_type": "per_ip", "target_identifier": "::ffff:192.0.2.0/120",
    "time_window": "minute", "limit": 1 };
    let lists = |mode: &str, list: &str| json!({ "public": true, "access": { "ip": { "mode": mode, list: ["::ffff:10.0.0.0/104"] } } });
    let stage = Stage::new(Setup {
        apis: vec![
            api("denied", lists("AllowAll", "deny")),
            api("allowed", lists("Whitelist", "allow")),
            api("open", json!({ "public": true })),
        ],
        rules: vec![rule],
        ..Setup::default()
    })
    .await;
    let call = async |api: &str, from: &str| {
        let answer = stage.ask(&Ask::get(&format!("/api/rest/{api}/v1/items")).from(from)).await;
        (answer.status, answer.code)
    };
    let refused = |code: &str| (403, Some(code.to_owned()));
    for from in ["10.1.2.3", "::ffff:10.1.2.3"] {
        assert_eq!(call("denied", from).await, refused("API011"), "{from}");
        assert_eq!(call("allowed", from).await, (200, None), "{from}");
    }
    assert_eq!(call("denied", "11.0.0.1").await, (200, None));
    assert_eq!(call("allowed", "11.0.0.1").await, refused("API010"));
    assert_eq!(call("open", "192.0.2.1").await, (200, None));
    assert_eq!(call("open", "::ffff:192.0.2.1").await, (429, Some("RATE_LIMIT_EXCEEDED".to_owned())));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_would_wait_too_long_is_counted_nowhere() {
    let amy = User {
        throttle_duration: Some(1),
        throttle_duration_type: Some("hour".into()),
        throttle_wait_duration: Some(61),
        throttle_queue_limit: Some(10),
        rate_limit_duration: Some(2),
        rate_limit_duration_type: Some("day".into()),
        ..limited("amy")
    };
    let amy = User { bandwidth_limit_bytes: None, ..amy };
    let stage = Stage::new(Setup {
        apis: vec![api("own", json!({}))],
        users: vec![amy],
        subscriptions: vec![("amy".into(), vec!["own/v1".into()])],
        ..Setup::default()
    })
    .await;
    let ask = Ask::get("/api/rest/own/v1/items").bearer(&stage.token("amy", 86_400));
    let codes = [stage.ask(&ask).await.code, stage.ask(&ask).await.code, stage.ask(&ask).await.code];
    let refused = Some("Throttle queue limit exceeded".to_owned());
    assert_eq!(codes, [None, refused.clone(), refused]);
    tokio::time::advance(std::time::Duration::from_secs(3_700)).await;
    assert_eq!(stage.ask(&ask).await.code, None, "the rate still has the place that the refused calls didn't take");
}

/// The limits of the one tier that everybody has.
fn tier(limits: mongodb::bson::Document) -> Vec<mongodb::bson::Document> {
    vec![mongodb::bson::doc! { "tier_id": "all", "is_default": true, "limits": limits }]
}

#[tokio::test(start_paused = true)]
async fn who_is_not_let_in_uses_up_nothing_that_others_may_send() {
    let rule = |id: &str, rule_type: &str, target: &str| {
        mongodb::bson::doc! { "rule_id": id, "rule_type": rule_type, "target_identifier": target,
        "time_window": "hour", "limit": 1 }
    };
    let rules = vec![
        rule("api", "per_api", "own/v1"),
        rule("endpoint", "per_endpoint", "GET /own/v1/items"),
        rule("user", "per_user", "amy"),
        rule("all", "global", ""),
    ];
    let apis = vec![api("own", json!({})), api("other", json!({}))];
    let amy = User { groups: ["ALL".into()].into(), ..User::new("amy", "amy@example.com", "user") };
    let subscriptions = vec![("amy".into(), vec!["own/v1".into()])];
    let stage = Stage::new(Setup { apis, users: vec![amy], subscriptions, rules, ..Setup::default() }).await;
    let token = stage.token("amy", 60);
    for _ in 0..3 {
        assert_eq!(stage.ask(&Ask::get("/api/rest/own/v1/items")).await.status, 401);
        assert_eq!(stage.ask(&Ask::get("/api/rest/own/v1/none").bearer(&token)).await.status, 404);
        assert_eq!(stage.ask(&Ask::get("/api/rest/other/v1/items").bearer(&token)).await.status, 403);
    }
    let ask = Ask::get("/api/rest/own/v1/items").bearer(&token);
    assert_eq!([stage.ask(&ask).await.status, stage.ask(&ask).await.status], [200, 429]);
}

#[tokio::test(start_paused = true)]
async fn so_many_calls_of_a_user_wait_for_a_turn_and_no_more() {
    let tiers = tier(
        mongodb::bson::doc! { "requests_per_second": 1, "enable_throttling": true, "max_queue_time_ms": 1_000_000 },
    );
    let stage = Stage::new(Setup { apis: vec![api("open", json!({ "public": true }))], tiers, ..Setup::default() });
    let stage = stage.await;
    let begin = tokio::time::Instant::now();
    let ask = Ask::get("/api/rest/open/v1/items").bearer(&stage.token("admin", 60));
    let calls = (0..130).map(async |_| (stage.ask(&ask).await.status, begin.elapsed()));
    let calls = futures::future::join_all(calls).await;
    let at_once = |(_, after): &&(u16, std::time::Duration)| after.is_zero();
    let (admitted, refused): (Vec<_>, Vec<_>) = calls.iter().partition(|(status, _)| *status == 200);
    assert_eq!((admitted.len(), refused.len()), (101, 29));
    assert_eq!((admitted.iter().filter(at_once).count(), refused.iter().filter(at_once).count()), (1, 29));
    let last = admitted.iter().map(|(_, after)| *after).max().unwrap_or_default();
    assert!(last >= std::time::Duration::from_secs(100), "{last:?}");
}

#[tokio::test(start_paused = true)]
async fn a_quota_that_is_used_up_lets_nobody_wait() {
    let year = 365 * 86_400_000_i64;
    let limits = mongodb::bson::doc! { "daily_request_quota": 1, "enable_throttling": true, "max_queue_time_ms": year };
    let apis = vec![api("open", json!({ "public": true }))];
    let stage = Stage::new(Setup { apis, tiers: tier(limits), ..Setup::default() }).await;
    let begin = tokio::time::Instant::now();
    let ask = Ask::get("/api/rest/open/v1/items").bearer(&stage.token("admin", 60));
    assert_eq!([stage.ask(&ask).await.status, stage.ask(&ask).await.status], [200, 429]);
    assert!(begin.elapsed().is_zero(), "{:?}", begin.elapsed());
}
