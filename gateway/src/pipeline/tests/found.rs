//! What the model has once found.

use std::time::Duration;

use mongodb::bson::{Document, doc};
use serde_json::{Value, json};

use super::stage::{Ask, Setup, Stage};
use crate::security::SecuritySettings;
use crate::store::{Collection, User};

/// A user whom every limit of the user's own stops after the first call.
fn limited(username: &str) -> User {
    User {
        rate_limit_duration: Some(1),
        throttle_queue_limit: Some(1),
        bandwidth_limit_bytes: Some(1),
        ..User::new(username, &format!("{username}@example.com"), "user")
    }
}

fn api(name: &str, changes: Value) -> Value {
    let mut spec = json!({ "name": name, "version": "v1", "protocol": "REST", "servers": ["http://up:80"],
        "endpoints": [{ "method": "GET", "uri": "/items" }] });
    for (member, value) in changes.as_object().unwrap() {
        spec[member] = value.clone();
    }
    spec
}

/// Amy has subscribed to the API `own`.
fn subscription() -> (Collection, Document) {
    (Collection::Subscriptions, doc! { "username": "amy", "apis": ["own/v1"] })
}

fn per_ip(target: &str, limit: i32) -> (Collection, Document) {
    let rule = doc! { "rule_id": "r", "rule_type": "per_ip", "target_identifier": target, "time_window": "minute",
    "limit": limit };
    (Collection::RateLimitRules, rule)
}

async fn statuses<const N: usize>(stage: &Stage, ask: &Ask) -> [u16; N] {
    let mut statuses = [0; N];
    for status in &mut statuses {
        *status = stage.ask(ask).await.status;
    }
    statuses
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
        documents: vec![subscription()],
        ..Setup::default()
    })
    .await;
    let amy = stage.token("amy", 60);
    let ask = |api: &str| Ask::getting(&format!("/api/rest/{api}/v1/items")).bearer(&amy);
    assert_eq!(statuses(&stage, &ask("open")).await, [200, 200]);
    assert_eq!(statuses(&stage, &ask("optional")).await, [200, 200]);
    assert_eq!(statuses(&stage, &ask("own")).await, [200, 429]);
    assert_eq!(statuses(&stage, &ask("open")).await, [200]);
}

#[tokio::test(start_paused = true)]
async fn whatever_is_asked_of_the_gateway_counts_for_tiers() {
    let tier = doc! { "tier_id": "free", "is_default": true, "limits": { "requests_per_minute": 1 } };
    for (method, target, first) in [
        ("GET", "/api/rest/open", 404),
        ("TRACE", "/api/rest/open/v1/items", 405),
        ("OPTIONS", "/api/rest/open/v1/items", 204),
        ("GET", "/api/unknown", 404),
        ("GET", "/api/health", 200),
    ] {
        let documents = vec![(Collection::Tiers, tier.clone())];
        let stage = Stage::new(Setup { users: vec![limited("amy")], documents, ..Setup::default() }).await;
        let ask = Ask::new(method, target).header("host", "gw").bearer(&stage.token("amy", 60));
        assert_eq!(statuses(&stage, &ask).await, [first, 429], "{method} {target}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_path_too_short_for_a_version_counts_for_rules() {
    let stage = Stage::new(Setup { documents: vec![per_ip("192.0.2.0/24", 2)], ..Setup::default() }).await;
    let ask = Ask::getting("/api/rest/open").from("192.0.2.1");
    assert_eq!(statuses(&stage, &ask).await, [404, 404, 429]);
}

#[tokio::test(start_paused = true)]
async fn ipv4_networks_in_ipv6_clothes_match_in_an_apis_lists_and_in_rules() {
    let lists = |mode: &str, list: &str| json!({ "public": true, "access": { "ip": { "mode": mode, list: ["::ffff:10.0.0.0/104"] } } });
    let stage = Stage::new(Setup {
        apis: vec![
            api("denied", lists("AllowAll", "deny")),
            api("allowed", lists("Whitelist", "allow")),
            api("open", json!({ "public": true })),
        ],
        documents: vec![per_ip("::ffff:192.0.2.0/120", 1)],
        ..Setup::default()
    })
    .await;
    let call = async |api: &str, from: &str| {
        stage.ask(&Ask::getting(&format!("/api/rest/{api}/v1/items")).from(from)).await.code
    };
    for from in ["10.1.2.3", "::ffff:10.1.2.3"] {
        assert_eq!(call("denied", from).await, "API011", "{from}");
        assert_eq!(call("allowed", from).await, "", "{from}");
    }
    assert_eq!(call("denied", "11.0.0.1").await, "");
    assert_eq!(call("allowed", "11.0.0.1").await, "API010");
    assert_eq!(call("open", "192.0.2.1").await, "");
    assert_eq!(call("open", "::ffff:192.0.2.1").await, "RATE_LIMIT_EXCEEDED");
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
        bandwidth_limit_bytes: None,
        ..limited("amy")
    };
    let stage = Stage::new(Setup {
        apis: vec![api("own", json!({}))],
        users: vec![amy],
        documents: vec![subscription()],
        ..Setup::default()
    })
    .await;
    let ask = Ask::getting("/api/rest/own/v1/items").bearer(&stage.token("amy", 86_400));
    assert_eq!(statuses(&stage, &ask).await, [200, 429, 429]);
    tokio::time::advance(Duration::from_secs(3_700)).await;
    assert_eq!(statuses(&stage, &ask).await, [200], "the rate still has the place that the refused calls didn't take");
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_the_next_day_in_a_tiers_queue() {
    crate::clock::moved::set("2026-03-31T23:59:58.500Z".parse().unwrap());
    let limits = doc! { "daily_request_quota": 1, "enable_throttling": true, "max_queue_time_ms": 5_000 };
    let tier = doc! { "tier_id": "free", "is_default": true, "limits": limits };
    let documents = vec![(Collection::Tiers, tier)];
    let stage = Stage::new(Setup { users: vec![limited("amy")], documents, ..Setup::default() }).await;
    let ask = Ask::getting("/api/health").bearer(&stage.token("amy", 60));
    assert_eq!(statuses(&stage, &ask).await, [200, 429]);
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(statuses(&stage, &ask).await, [200, 429]);
}

#[tokio::test(start_paused = true)]
async fn only_what_passes_becomes_the_upstreams_authorization() {
    let swap = |allowed: &[&str]| json!({ "public": true, "headers": { "allowed": allowed, "authorizationFieldSwap": "X-Up-Auth" } });
    let apis = vec![api("listed", swap(&["x-up-auth"])), api("unlisted", swap(&[]))];
    let stage = Stage::new(Setup { apis, ..Setup::default() }).await;
    for (name, expected) in [("listed", Some("Bearer S")), ("unlisted", None)] {
        let ask = Ask::getting(&format!("/api/rest/{name}/v1/items")).header("x-up-auth", "Bearer S").bearer("own");
        let sent = stage.ask(&ask).await.sent.unwrap().headers;
        let authorization = sent.iter().find(|(name, _)| name == "authorization").map(|(_, value)| value.as_str());
        assert_eq!(authorization, expected, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rule_with_another_window_or_target_counts_anew() {
    let apis = vec![api("open", json!({ "public": true })), api("other", json!({ "public": true }))];
    let stage = Stage::new(Setup { apis, ..Setup::default() }).await;
    // Counts of a minute would be taken for those of a day to come.
    tokio::time::advance(Duration::from_secs(100_000)).await;
    for (name, rule_type, target, window) in [
        ("open", "per_api", Some("open/v1"), "minute"),
        ("open", "per_api", Some("open/v1"), "day"),
        ("other", "per_api", Some("other/v1"), "day"),
        ("other", "global", None, "day"),
    ] {
        let rule = doc! { "rule_id": "r", "rule_type": rule_type, "target_identifier": target, "time_window": window, "limit": 1 };
        stage.save(Collection::RateLimitRules, rule).await;
        let ask = Ask::getting(&format!("/api/rest/{name}/v1/items"));
        assert_eq!(statuses(&stage, &ask).await, [200, 429], "{rule_type} {target:?} {window}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_not_let_in_uses_up_nothing_that_others_may_send() {
    let rule = |id: &str, rule_type: &str, target: &str| {
        let rule = doc! { "rule_id": id, "rule_type": rule_type, "target_identifier": target, "time_window": "hour", "limit": 1 };
        (Collection::RateLimitRules, rule)
    };
    let stage = Stage::new(Setup {
        apis: vec![api("own", json!({})), api("other", json!({}))],
        users: vec![User::new("amy", "amy@example.com", "user")],
        documents: vec![
            rule("api", "per_api", "own/v1"),
            rule("endpoint", "per_endpoint", "GET /own/v1/items"),
            rule("user", "per_user", "amy"),
            rule("all", "global", ""),
            subscription(),
        ],
        ..Setup::default()
    })
    .await;
    let token = stage.token("amy", 60);
    for _ in 0..3 {
        assert_eq!(stage.ask(&Ask::getting("/api/rest/own/v1/items")).await.status, 401);
        assert_eq!(stage.ask(&Ask::getting("/api/rest/own/v1/none").bearer(&token)).await.status, 404);
        assert_eq!(stage.ask(&Ask::getting("/api/rest/other/v1/items").bearer(&token)).await.status, 403);
    }
    let ask = Ask::getting("/api/rest/own/v1/items").bearer(&token);
    assert_eq!(statuses(&stage, &ask).await, [200, 429]);
}

#[tokio::test(start_paused = true)]
async fn so_many_calls_of_a_user_wait_for_a_turn_and_no_more() {
    let limits = doc! { "requests_per_second": 1, "enable_throttling": true, "max_queue_time_ms": 1_000_000 };
    let tier = doc! { "tier_id": "all", "is_default": true, "limits": limits };
    let documents = vec![(Collection::Tiers, tier)];
    let (apis, users) = (vec![api("open", json!({ "public": true }))], vec![limited("amy")]);
    let stage = Stage::new(Setup { apis, users, documents, ..Setup::default() }).await;
    let begin = tokio::time::Instant::now();
    let ask = Ask::getting("/api/rest/open/v1/items").bearer(&stage.token("amy", 600));
    let calls = (0..130).map(async |_| (stage.ask(&ask).await.status, begin.elapsed()));
    let calls = futures::future::join_all(calls).await;
    let at_once = |(_, after): &&(u16, Duration)| after.is_zero();
    let (admitted, refused): (Vec<_>, Vec<_>) = calls.iter().partition(|(status, _)| *status == 200);
    assert_eq!((admitted.len(), refused.len()), (101, 29));
    assert_eq!((admitted.iter().filter(at_once).count(), refused.iter().filter(at_once).count()), (1, 29));
    let last = admitted.iter().map(|(_, after)| *after).max().unwrap_or_default();
    assert!(last >= Duration::from_secs(100), "{last:?}");
}

#[tokio::test(start_paused = true)]
async fn an_empty_forwarding_header_says_nothing() {
    let security = SecuritySettings { trust_x_forwarded_for: Some(true), ..SecuritySettings::default() };
    let ip = json!({ "public": true, "access": { "ip": { "mode": "AllowAll", "deny": ["203.0.113.8"] } } });
    let stage = Stage::new(Setup { security, apis: vec![api("open", ip)], ..Setup::default() }).await;
    let ask = Ask::getting("/api/rest/open/v1/items").from("10.0.0.1").header("x-forwarded-for", "");
    assert_eq!(stage.ask(&ask).await.code, "");
    assert_eq!(stage.ask(&ask.header("x-real-ip", "203.0.113.8")).await.code, "API011");
}
