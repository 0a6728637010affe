//! What calls may cost and how often they may come: real gateways, alone and three on shared stores, as clients see them.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use doorman_tests::gateway::{GatewayProcess, PATIENCE, Start};
use doorman_tests::stores::Neighbour;
use doorman_tests::upstream;
use futures::future::{join_all, try_join_all};
use serde_json::{Value, json};

mod support;

use support::Session;
use support::orders::{BINARY, ECHO, Stage, balance, charging, define_credits, give, subscription};

async fn statuses(user: &Session, calls: usize) -> Result<Vec<u16>> {
    let mut statuses = Vec::new();
    for _ in 0..calls {
        statuses.push(user.get(ECHO).await?.status().as_u16());
    }
    Ok(statuses)
}

/// Calls until the answer is 200; tells how long that took.
async fn until_let_in(user: &Session) -> Result<Duration> {
    let start = Instant::now();
    while user.get(ECHO).await?.status() != 200 {
        ensure!(start.elapsed() < PATIENCE, "never let in again");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(start.elapsed())
}

async fn refusal(user: &Session, path: &str) -> Result<(u16, Value, http::HeaderMap)> {
    let answer = user.get(path).await?;
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    Ok((status, answer.json().await?, headers))
}

#[tokio::test]
async fn a_rate_holds_over_all_calls_of_its_user_and_follows_its_changes() -> Result<()> {
    let stage = Stage::set(json!({})).await?;
    let amy = stage.user("amy", json!({ "rate_limit_duration": 1, "rate_limit_duration_type": "second" })).await?;
    let bob = stage.user("bob", json!({})).await?;
    let start = Instant::now();
    assert_eq!(statuses(&amy, 1).await?, [200]);
    let (status, body, headers) = refusal(&amy, ECHO).await?;
    assert_eq!(status, 429);
    assert_eq!(body, json!({ "error_code": "Rate limit exceeded", "error_message": "Rate limit exceeded" }));
    assert_eq!(headers["x-ratelimit-limit"], "1");
    assert!(["1", "2"].contains(&headers["retry-after"].to_str()?));
    assert_eq!(statuses(&bob, 3).await?, [200, 200, 200], "others are not concerned");
    until_let_in(&amy).await?;
    assert!(start.elapsed() >= Duration::from_secs(1) && start.elapsed() < Duration::from_millis(1_500));
    stage.admin.does("PUT", "/platform/user/amy", json!({ "rate_limit_duration": 1_000 })).await?;
    assert_eq!(statuses(&amy, 3).await?, [200, 200, 200]);
    Ok(())
}

#[tokio::test]
async fn a_throttle_lets_wait_and_refuses_beyond_its_queue() -> Result<()> {
    let stage = Stage::set(json!({})).await?;
    let waits = json!({ "throttle_duration": 1, "throttle_duration_type": "minute", "throttle_queue_limit": 2,
        "throttle_wait_duration": 0.1 });
    let amy = stage.user("amy", waits).await?;
    assert_eq!(statuses(&amy, 1).await?, [200]);
    let start = Instant::now();
    assert_eq!(statuses(&amy, 1).await?, [200]);
    assert!(start.elapsed() >= Duration::from_millis(490), "half a second, as nothing else is said");
    let (status, body, headers) = refusal(&amy, ECHO).await?;
    assert_eq!((status, &body["error_code"]), (429, &json!("Throttle queue limit exceeded")));
    assert!(headers.contains_key("retry-after") && !headers.contains_key("x-ratelimit-limit"));
    stage.admin.does("DELETE", "/api/caches", Value::Null).await?;
    assert_eq!(statuses(&amy, 1).await?, [200], "clearing caches starts counters again");
    Ok(())
}

#[tokio::test]
async fn bytes_are_counted_after_a_call_and_refuse_the_next() -> Result<()> {
    let stage = Stage::set(json!({})).await?;
    let amy = stage.user("amy", json!({ "bandwidth_limit_bytes": 1, "bandwidth_limit_window": "day" })).await?;
    let start = Instant::now();
    assert_eq!(statuses(&amy, 1).await?, [200]);
    let (status, body, _) = refusal(&amy, ECHO).await?;
    assert_eq!((status, &body["error_code"]), (429, &json!("Bandwidth limit exceeded")));
    let me = amy.does("GET", "/platform/user/me", Value::Null).await?;
    assert!(me["bandwidth_usage_bytes"].as_u64() > Some(100), "{me}");
    assert!(me["bandwidth_resets_at"].as_u64() > Some(1_700_000_000), "{me}");
    stage.admin.does("DELETE", "/api/caches", Value::Null).await?;
    assert_eq!(statuses(&amy, 1).await?, [429], "bytes are not forgotten with caches");

    let streams = stage.user("bob", json!({ "bandwidth_limit_bytes": 5_000 })).await?;
    let used = async || {
        let me = streams.does("GET", "/platform/user/me", Value::Null).await?;
        anyhow::Ok(me["bandwidth_usage_bytes"].as_u64().unwrap_or_default())
    };
    let length = streams.get("/api/rest/orders/v1/stream/3").await?.bytes().await?.len() as u64;
    while used().await? < length {
        ensure!(start.elapsed() < PATIENCE, "a body of unknown length is not counted");
    }
    Ok(())
}

#[tokio::test]
async fn a_tier_counts_every_call_of_its_user_and_refuses_before_all_else() -> Result<()> {
    let stage = Stage::set(json!({})).await?;
    let (admin, amy) = (&stage.admin, stage.user("amy", json!({})).await?);
    let tier = json!({ "tier_id": "two", "name": "custom", "display_name": "Two",
        "limits": { "requests_per_minute": 2, "requests_per_hour": null, "max_queue_time_ms": 0 } });
    admin.does("POST", "/platform/tiers/", tier).await?;
    assert_eq!(statuses(&amy, 3).await?, [200, 200, 200]);
    admin.does("POST", "/platform/tiers/assignments", json!({ "user_id": "amy", "tier_id": "two" })).await?;
    let first = amy.get(ECHO).await?;
    let told = |name: &str| first.headers()[name].to_str().unwrap_or_default().to_owned();
    assert_eq!((told("x-ratelimit-limit"), told("x-ratelimit-remaining")), ("2".into(), "1".into()));
    // One that calls no API counts too.
    assert_eq!(amy.get("/api/health").await?.status(), 200);
    for path in [ECHO, "/api/rest/orders/v1/none", "/api/rest/none/v1/x", "/api/health", "/api/nothing", "/nothing"] {
        let (status, body, headers) = refusal(&amy, path).await?;
        assert_eq!(status, 429, "{path}");
        assert_eq!(
            (&body["error"], &body["error_code"]),
            (&json!("Rate limit exceeded"), &json!("RATE_LIMIT_EXCEEDED"))
        );
        assert_eq!(body["message"], "Rate limit exceeded: quota 2 per minute");
        assert_eq!((&body["limit"], &body["remaining"]), (&json!(2), &json!(0)));
        let after = body["retry_after"].as_u64().unwrap_or_default();
        assert!((50..=61).contains(&after), "{body}");
        assert_eq!(headers["retry-after"], after.to_string());
        assert_eq!(headers["x-ratelimit-retry-after"], after.to_string());
        assert_eq!(headers["x-ratelimit-remaining"], "0");
    }
    for (method, path, status) in
        [("OPTIONS", ECHO, 429), ("PURGE", ECHO, 429), ("POST", "/api/health", 429), ("GET", "/health", 404)]
    {
        assert_eq!(amy.request(method, path).send().await?.status(), status, "{method} {path}");
        assert_ne!(stage.admin.http.get(stage.gateway.url(path)).send().await?.status(), 429, "{path} without a token");
    }
    admin.does("PUT", "/platform/tiers/two", json!({ "limits": { "requests_per_minute": 3 } })).await?;
    assert_eq!(statuses(&amy, 2).await?, [200, 429], "a change counts at once");
    admin.does("DELETE", "/platform/tiers/assignments/amy", Value::Null).await?;
    assert_eq!(statuses(&amy, 3).await?, [200, 200, 200]);
    Ok(())
}

#[tokio::test]
async fn a_tier_may_let_calls_wait_for_their_turn() -> Result<()> {
    let stage = Stage::set(json!({})).await?;
    let amy = stage.user("amy", json!({})).await?;
    let tier = json!({ "tier_id": "queue", "name": "custom", "display_name": "Queue",
        "limits": { "requests_per_second": 1, "enable_throttling": true, "max_queue_time_ms": 5_000 } });
    stage.admin.does("POST", "/platform/tiers/", tier).await?;
    stage.admin.does("POST", "/platform/tiers/assignments", json!({ "user_id": "amy", "tier_id": "queue" })).await?;
    let start = Instant::now();
    assert_eq!(statuses(&amy, 3).await?, [200, 200, 200]);
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
    Ok(())
}

/// Scripts that a Redis has run.
async fn scripts(redis: &redis::Client) -> Result<u64> {
    let mut connection = redis.get_multiplexed_async_connection().await?;
    let stats: String = redis::cmd("INFO").arg("commandstats").query_async(&mut connection).await?;
    let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls=")?.split(',').next());
    Ok(calls.unwrap_or("0").parse()?)
}

#[tokio::test]
async fn calls_that_wait_for_their_turn_ask_the_store_little() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (redis, mongo) = (Neighbour::redis(&[])?, Neighbour::mongo(folder.path())?);
    let start = Start::new(BINARY)?.stores(redis.address(), mongo.address());
    let stage = Stage::set_with(json!({}), start).await?;
    let amy = stage.user("amy", json!({})).await?;
    let tier = json!({ "tier_id": "queue", "name": "custom", "display_name": "Queue",
        "limits": { "requests_per_second": 6, "enable_throttling": true, "max_queue_time_ms": 30_000 } });
    stage.admin.does("POST", "/platform/tiers/", tier).await?;
    stage.admin.does("POST", "/platform/tiers/assignments", json!({ "user_id": "amy", "tier_id": "queue" })).await?;
    let redis = redis::Client::open(format!("redis://{}", redis.address()))?;
    let before = scripts(&redis).await?;
    let calls = try_join_all((0..30).map(|_| amy.get(ECHO))).await?;
    assert!(calls.iter().all(|answer| answer.status() == 200));
    // Each asks when it comes, those that wait once more, and the first of them once for each part of a window.
    let asked = scripts(&redis).await? - before;
    assert!(asked < 80, "{asked}");
    Ok(())
}

/// Limit and what is left of it, as a call that passes is told.
async fn told(user: &Session) -> Result<Option<[u64; 2]>> {
    let answer = user.get(ECHO).await?;
    ensure!(answer.status() == 200, "{answer:?}");
    let number = |name: &str| answer.headers().get(name)?.to_str().ok()?.parse().ok();
    let (limit, remaining) = (number("x-ratelimit-limit"), number("x-ratelimit-remaining"));
    ensure!(number("x-ratelimit-reset").is_some() == limit.is_some(), "{answer:?}");
    Ok(limit.zip(remaining).map(Into::into))
}

#[tokio::test]
async fn a_call_that_passes_tells_of_the_tightest_limit_that_is_its_callers_own() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (redis, mongo) = (Neighbour::redis(&[])?, Neighbour::mongo(folder.path())?);
    for start in [Start::new(BINARY)?, Start::new(BINARY)?.stores(redis.address(), mongo.address())] {
        let stage = Stage::set_with(json!({}), start).await?;
        let rate = json!({ "rate_limit_duration": 50, "rate_limit_duration_type": "hour" });
        let (amy, bob) = (stage.user("amy", rate).await?, stage.user("bob", json!({})).await?);
        assert_eq!(told(&amy).await?, Some([50, 49]));
        for (rule_type, target, limit) in [("global", None, 10), ("per_api", Some("orders/v1"), 9)] {
            let rule = json!({ "rule_id": rule_type, "rule_type": rule_type, "target_identifier": target, "limit": limit,
                "time_window": "hour" });
            stage.admin.does("POST", "/platform/rate-limits/", rule).await?;
        }
        assert_eq!(told(&bob).await?, None, "what others do is not told");
        assert_eq!(told(&amy).await?, Some([50, 48]));
        let rule = json!({ "rule_id": "each", "rule_type": "per_user_api", "limit": 20, "time_window": "day" });
        stage.admin.does("POST", "/platform/rate-limits/", rule).await?;
        assert_eq!((told(&amy).await?, told(&bob).await?), (Some([20, 19]), Some([20, 19])));
        let tier = json!({ "tier_id": "wide", "name": "custom", "display_name": "Wide", "is_default": true,
            "limits": { "daily_request_quota": 5 } });
        stage.admin.does("POST", "/platform/tiers/", tier).await?;
        assert_eq!(told(&amy).await?, Some([5, 4]), "a quota");
        let limits = json!({ "limits": { "daily_request_quota": 5, "requests_per_hour": 100 } });
        stage.admin.does("PUT", "/platform/tiers/wide", limits).await?;
        assert_eq!(told(&amy).await?, Some([100, 99]), "a window of the tier is told before all");
    }
    Ok(())
}

#[tokio::test]
async fn rules_of_the_gateway_hold_for_everybody() -> Result<()> {
    let stage = Stage::set(json!({ "api_public": true })).await?;
    let rule = json!({ "rule_id": "home", "rule_type": "per_ip", "time_window": "hour", "limit": 2,
        "target_identifier": "127.0.0.0/8" });
    stage.admin.does("POST", "/platform/rate-limits/", rule).await?;
    let calls = try_join_all((0..5).map(|_| stage.gateway_call_without_token(ECHO))).await?;
    assert_eq!(calls.iter().filter(|status| **status == 200).count(), 2, "{calls:?}");
    assert_eq!(stage.gateway_call_without_token("/api/health").await?, 200, "no API is called");
    stage.admin.does("POST", "/platform/rate-limits/home/disable", Value::Null).await?;
    assert_eq!(stage.gateway_call_without_token(ECHO).await?, 200);
    Ok(())
}

#[tokio::test]
async fn calls_cost_a_credit_each_and_are_paid_upstream() -> Result<()> {
    let stage = Stage::set(charging()).await?;
    let amy = stage.user("amy", json!({})).await?;
    let no_credits = json!({ "error_code": "GTW008", "error_message": "User does not have any credits" });
    assert_eq!(amy.send("GET", ECHO, Value::Null).await?, (401, no_credits.clone()), "nothing is defined");
    define_credits(&stage.admin).await?;
    assert_eq!(amy.send("GET", ECHO, Value::Null).await?, (401, no_credits.clone()));
    give(&stage.admin, "amy", 5, None).await?;

    let calls = join_all((0..6).map(|_| amy.send("GET", ECHO, Value::Null))).await;
    let calls = calls.into_iter().collect::<Result<Vec<_>>>()?;
    let refused: Vec<_> = calls.iter().filter(|(status, _)| *status != 200).collect();
    assert_eq!(refused, [&(401, no_credits)]);
    for (_, seen) in calls.iter().filter(|(status, _)| *status == 200) {
        assert_eq!(seen["headers"]["x-api-key"], json!(["general-key"]));
    }
    assert_eq!(stage.credits("amy").await?, 0);

    give(&stage.admin, "amy", 2, Some("own-key")).await?;
    let sent = amy.request("GET", ECHO).header("x-api-key", "forged").send().await?.json::<Value>().await?;
    assert_eq!(sent["headers"]["x-api-key"], json!(["own-key"]));
    assert_eq!(stage.credits("amy").await?, 1);
    Ok(())
}

#[tokio::test]
async fn what_is_not_sent_is_not_charged() -> Result<()> {
    let stage = Stage::set(charging()).await?;
    define_credits(&stage.admin).await?;
    let amy = stage.user("amy", json!({})).await?;
    give(&stage.admin, "amy", 3, None).await?;
    let dead = doorman_tests::gateway::free_address()?;
    let servers = |address: SocketAddr| json!({ "api_servers": [format!("http://{address}")] });
    stage.admin.does("PUT", "/platform/api/orders/v1", servers(dead)).await?;
    assert_eq!(amy.get(ECHO).await?.status(), 500);
    assert_eq!(amy.get("/api/rest/orders/v1/none").await?.status(), 404);
    assert_eq!(stage.credits("amy").await?, 3);
    // A failed attempt that is repeated costs no more than one that was not.
    stage.admin.does("PUT", "/platform/api/orders/v1", servers(stage.upstream.address())).await?;
    assert_eq!(amy.get(ECHO).await?.status(), 200);
    assert_eq!(stage.credits("amy").await?, 2);
    stage.admin.does("PUT", "/platform/api/orders/v1", json!({ "api_auth_required": false })).await?;
    let seen: Value = stage.admin.http.get(stage.gateway.url(ECHO)).send().await?.json().await?;
    assert_eq!(seen["headers"]["x-api-key"], json!(["general-key"]), "paid for by nobody");
    assert_eq!(stage.credits("amy").await?, 2);
    Ok(())
}

#[tokio::test]
async fn a_client_key_leads_to_its_own_servers() -> Result<()> {
    let stage = Stage::set(json!({ "api_public": true })).await?;
    let other = upstream::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let routing = json!({ "routing_name": "beta", "client_key": "beta",
        "routing_servers": [format!("http://{}", other.address())] });
    stage.admin.does("POST", "/platform/routing", routing).await?;
    let host = async |key: &str| {
        let seen = stage.admin.request("GET", ECHO).header("client-key", key).send().await?.json::<Value>().await?;
        anyhow::Ok(seen["headers"]["host"][0].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(host("beta").await?, other.address().to_string());
    assert_eq!(host("unknown").await?, stage.upstream.address().to_string());
    stage.admin.does("DELETE", "/platform/routing/beta", Value::Null).await?;
    assert_eq!(host("beta").await?, stage.upstream.address().to_string());
    Ok(())
}

#[tokio::test]
async fn an_apis_credentials_are_not_for_the_servers_of_a_client_key() -> Result<()> {
    let mut api = charging();
    api["api_allowed_headers"] = json!(["x-up-auth"]);
    api["api_authorization_field_swap"] = "x-up-auth".into();
    // Nor by another name.
    api["api_request_transform"] = json!({ "headers": { "rename": { "x-up-auth": "x-token" } } });
    for (setting, is_sent) in [("false", false), ("true", true)] {
        let start = Start::new(BINARY)?.with("DOORMAN_ROUTING_CREDENTIALS", setting);
        let stage = Stage::set_with(api.clone(), start).await?;
        define_credits(&stage.admin).await?;
        let amy = stage.user("amy", json!({})).await?;
        give(&stage.admin, "amy", 5, None).await?;
        let other = upstream::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let (other_address, own_address) = (other.address(), stage.upstream.address());
        for (key, server) in [
            ("other", other_address.to_string()),
            ("own", format!("http://{own_address}")),
            ("path", format!("http://{own_address}/tenant")),
        ] {
            let routing = json!({ "routing_name": key, "client_key": key, "routing_servers": [server] });
            stage.admin.does("POST", "/platform/routing", routing).await?;
        }
        for (key, server, is_sent) in [
            ("other", &other, is_sent),
            ("own", &stage.upstream, true),
            ("path", &stage.upstream, is_sent),
            ("", &stage.upstream, true),
        ] {
            let call = amy.request("GET", ECHO).header("client-key", key).header("x-up-auth", "secret");
            let seen = call.send().await?.json::<Value>().await?;
            assert_eq!(seen["headers"]["host"], json!([server.address().to_string()]));
            let sent = |name: &str| seen["headers"][name][0].as_str();
            let secrets = ["x-api-key", "authorization", "x-token"].map(sent);
            let wanted = [Some("general-key"), Some("secret"), Some("secret")];
            assert_eq!(secrets, if is_sent { wanted } else { [None; 3] }, "{key} {setting}");
            assert_eq!(sent("x-doorman-user"), Some("amy"));
        }
        assert_eq!(stage.credits("amy").await?, 1, "each is a call");
    }
    Ok(())
}

/// Three gateways on one Redis and one MongoDB.
struct Fleet {
    gateways: Vec<GatewayProcess>,
    admin: Session,
    _upstream: upstream::Running,
    _folders: [tempfile::TempDir; 2],
}

impl Fleet {
    async fn start(fail_mode: &str) -> Result<(Self, Neighbour, Neighbour)> {
        let folders = [tempfile::tempdir()?, tempfile::tempdir()?];
        let (redis, mongo) = (Neighbour::durable_redis(folders[0].path())?, Neighbour::mongo(folders[1].path())?);
        let upstream = upstream::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let api = format!(
            r#"{{"apiVersion": "doorman.dev/v1alpha1", "kind": "DoormanApi", "metadata": {{"name": "orders"}},
            "spec": {{"name": "orders", "version": "v1", "protocol": "REST", "servers": ["http://{}"],
            "credits": {{"enabled": true, "group": "basic"}}, "access": {{"groups": ["ALL"]}},
            "endpoints": [{{"method": "GET", "uri": "/echo"}}]}}}}"#,
            upstream.address()
        );
        let start = || {
            Start::new(BINARY)?
                .stores(redis.address(), mongo.address())
                .with("DOORMAN_LIMITS_FAIL_MODE", fail_mode)
                .manifest("orders.yaml", &api)?
                .run()
        };
        let gateways = (0..3).map(|_| start()).collect::<Result<Vec<_>>>()?;
        let admin = Session::admin(gateways[0].url("")).await?;
        define_credits(&admin).await?;
        Ok((Self { gateways, admin, _upstream: upstream, _folders: folders }, redis, mongo))
    }

    /// A user with so many credits and these limits.
    async fn user(&self, name: &str, credits: i64, more: Value) -> Result<Session> {
        let user = self.admin.user(name, more).await?;
        give(&self.admin, name, credits, None).await?;
        user.does("POST", "/platform/subscription/subscribe", subscription(name)).await?;
        Ok(user)
    }

    /// Sixteen clients send this many calls in all, to the gateways in turn. How many had which status?
    async fn calls(&self, user: &Session, calls: usize) -> std::collections::BTreeMap<u16, usize> {
        let next = AtomicUsize::new(0);
        let client = async || {
            let mut seen = Vec::new();
            loop {
                let number = next.fetch_add(1, Relaxed);
                if number >= calls {
                    return seen;
                }
                let url = self.gateways[number % self.gateways.len()].url(ECHO);
                let answer = user.http.get(url).bearer_auth(&user.token).send().await;
                seen.push(answer.map_or(0, |answer| answer.status().as_u16()));
            }
        };
        let mut counted = std::collections::BTreeMap::new();
        for status in join_all((0..16).map(|_| client())).await.into_iter().flatten() {
            *counted.entry(status).or_default() += 1;
        }
        counted
    }
}

#[tokio::test]
async fn balances_and_limits_are_exact_across_gateways() -> Result<()> {
    let (fleet, _redis, _mongo) = Fleet::start("Closed").await?;
    let rich = fleet.user("rich", 1_000, json!({})).await?;
    let counted = fleet.calls(&rich, 1_300).await;
    assert_eq!(counted, [(200, 1_000), (401, 300)].into());
    assert_eq!(balance(&fleet.admin, "rich").await?, 0);

    let limits = json!({ "rate_limit_duration": 100, "rate_limit_duration_type": "minute" });
    let limited = fleet.user("limited", 1_000, limits).await?;
    let start = Instant::now();
    let counted = fleet.calls(&limited, 400).await;
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    assert_eq!(counted, [(200, 100), (429, 300)].into());
    assert_eq!(balance(&fleet.admin, "limited").await?, 900, "what is refused is not charged");

    // Whichever gateway is asked tells of all calls, whoever answered them.
    for gateway in &fleet.gateways {
        let start = Instant::now();
        let told = loop {
            let asked = fleet.admin.http.get(gateway.url("/platform/monitor/metrics")).bearer_auth(&fleet.admin.token);
            let told: Value = asked.send().await?.json().await?;
            if told["total_requests"] == 1_700 || start.elapsed() > PATIENCE {
                break told;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        assert_eq!(told["status_counts"], json!({ "200": 1_100, "401": 300, "429": 300 }), "{told}");
        assert_eq!(told["top_users"], json!([["rich", 1_300], ["limited", 400]]));
    }
    Ok(())
}

#[tokio::test]
async fn nothing_is_spent_twice_while_the_stores_die_and_come_back() -> Result<()> {
    let (fleet, mut redis, mut mongo) = Fleet::start("Closed").await?;
    let limits = json!({ "rate_limit_duration": 700, "rate_limit_duration_type": "hour" });
    let amy = fleet.user("amy", 500, limits).await?;
    let kills = async {
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            redis.stop()?;
            mongo.stop()?;
            tokio::time::sleep(Duration::from_millis(300)).await;
            redis.start_again()?;
            mongo.start_again()?;
        }
        anyhow::Ok(())
    };
    let (counted, killed) = tokio::join!(fleet.calls(&amy, 1_500), kills);
    killed?;
    let let_in = counted.get(&200).copied().unwrap_or_default();
    let start = Instant::now();
    let left = loop {
        match balance(&fleet.admin, "amy").await {
            Ok(left) => break left,
            Err(error) => ensure!(start.elapsed() < PATIENCE, "the stores don't come back: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let spent = usize::try_from(500 - left)?;
    assert!(let_in > 0 && let_in <= spent && spent <= 500, "{counted:?}, {left} left");
    // Those who were refused were told in the documented ways; nobody was let in for nothing.
    assert!(counted.keys().all(|status| [200, 401, 429, 500, 503].contains(status)), "{counted:?}");
    Ok(())
}
