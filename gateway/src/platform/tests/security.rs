//! Security settings, memory dumps and caches.

use std::{fs, path::Path, time::Instant};

use tempfile::TempDir;

use super::*;

const SETTINGS: &str = "/platform/security/settings";
const KEY: (&str, &str) = ("MEM_ENCRYPTION_KEY", "0123456789abcdef0123456789abcdef");

/// Memory mode with a key, all files in a folder of its own.
async fn keeping(folder: &TempDir, changes: &[(&str, &str)]) -> Fixture {
    let (dumps, mirror) = (folder.path().join("memory_dump.bin"), folder.path().join("security_settings.json"));
    let files = [("MEM_DUMP_PATH", dumps.to_str().unwrap()), ("SECURITY_SETTINGS_FILE", mirror.to_str().unwrap()), KEY];
    Fixture::with(&[&files, changes].concat()).await
}

async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !is_so().await {
        assert!(start.elapsed() < Duration::from_secs(10), "still not: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn dumps_in(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).unwrap().flatten();
    entries.filter(|entry| entry.path().extension().is_some_and(|end| end == "bin")).count()
}

#[tokio::test]
async fn settings_are_told_with_what_helps_to_change_them() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = keeping(&folder, &[]).await;
    let token = fixture.token().await;
    let call = fixture.call("GET", SETTINGS).bearer(&token).from("192.0.2.9");
    call.header("x-forwarded-for", "203.0.113.9, 10.0.0.1").send().await.is(
        200,
        json!({
            "enable_auto_save": false, "auto_save_memory_enabled": false, "auto_save_frequency_seconds": 900,
            "auto_save_memory_interval_minutes": 15, "dump_path": folder.path().join("memory_dump.bin"),
            "ip_whitelist": [], "ip_blacklist": [], "trust_x_forwarded_for": false, "xff_trusted_proxies": [],
            "allow_localhost_bypass": true, "memory_only": true, "allow_localhost_bypass_locked": false,
            "security_warnings": [], "client_ip": "192.0.2.9", "client_ip_xff": "203.0.113.9",
        }),
    );
    let pinned = keeping(&folder, &[("LOCAL_HOST_IP_BYPASS", "false")]).await;
    let seen = pinned.send("GET", SETTINGS, &pinned.token().await, Value::Null).await.json();
    assert_eq!(
        (&seen["allow_localhost_bypass"], &seen["allow_localhost_bypass_locked"]),
        (&json!(false), &json!(true))
    );
}

#[tokio::test]
async fn an_update_is_in_force_when_it_is_answered_and_after_a_start() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = keeping(&folder, &[]).await;
    let token = fixture.token().await;
    let update = json!({
        "ip_blacklist": ["192.0.2.66"], "auto_save_memory_interval_minutes": 30, "trust_x_forwarded_for": "on",
        "ip_whitelist": null, "unknown": {}
    });
    let seen = fixture.send("PUT", SETTINGS, &token, update).await;
    assert_eq!((seen.status, &seen.json()["auto_save_frequency_seconds"]), (200, &json!(1_800)), "{seen:?}");
    assert!(seen.json().get("memory_only").is_some() && seen.json().get("type").is_none());
    let denied = |fixture: &Fixture| {
        let active = fixture.persistence.security().active();
        active.admit(&HeaderMap::new(), "192.0.2.66".parse().unwrap()).is_err()
    };
    assert!(denied(&fixture));
    for (content_type, body) in [("application/json", ""), ("text/plain", ""), ("application/json", "{}")] {
        let call = fixture.call("PUT", SETTINGS).bearer(&token).header("content-type", content_type);
        assert_eq!(call.body(body).send().await.status, 200, "an update of nothing: {body:?}");
    }

    // No dump was written: the mirror file has the settings.
    let again = keeping(&folder, &[]).await;
    again.persistence.restore_at_start().await.unwrap();
    assert!(denied(&again));
    let stored = again.identity.store().find(crate::store::Collection::Settings, &["security_settings"]).await.unwrap();
    assert!(stored.unwrap().get_bool("trust_x_forwarded_for").unwrap());
}

#[tokio::test]
async fn a_wrong_update_changes_nothing_and_names_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = keeping(&folder, &[]).await;
    let token = fixture.token().await;
    for (wrong, named) in [
        (json!({ "auto_save_frequency_seconds": 59, "enable_auto_save": true }), "auto_save_frequency_seconds"),
        (json!({ "ip_blacklist": ["10.0.0.0/99"], "enable_auto_save": true }), "10.0.0.0/99"),
        (json!({ "ip_blacklist": "10.0.0.1", "enable_auto_save": true }), "Validation Error"),
        (json!({ "enable_auto_save": "perhaps" }), "Validation Error"),
    ] {
        let seen = fixture.send("PUT", SETTINGS, &token, wrong.clone()).await;
        assert_eq!((seen.status, &seen.json()["error_code"]), (422, &json!("VAL001")), "{wrong}");
        assert!(seen.json()["error_message"].as_str().unwrap().contains(named), "{seen:?}");
    }
    let seen = fixture.send("GET", SETTINGS, &token, Value::Null).await.json();
    assert_eq!(seen["enable_auto_save"], json!(false));
}

#[tokio::test]
async fn the_settings_can_be_changed_however_small_bodies_must_be() {
    let folder = tempfile::tempdir().unwrap();
    let small = [("MAX_BODY_SIZE_BYTES", "200"), ("BODY_LIMIT_EXCLUDE_PATHS", "/platform/role,/platform/gr*")];
    let fixture = keeping(&folder, &small).await;
    let token = fixture.token().await;
    let long = "x".repeat(200);
    let large = |mut body: Value| {
        body["more"] = json!(long);
        body
    };
    let status = async |method, path, body| fixture.send(method, path, &token, large(body)).await.status;
    assert_eq!(status("PUT", SETTINGS, json!({})).await, 200);
    assert_eq!(status("POST", "/platform/role", json!({ "role_name": "large" })).await, 201);
    assert_eq!(status("POST", "/platform/group", json!({ "group_name": "large" })).await, 201);
    assert_eq!(status("PUT", "/platform/role/large", json!({ "view_logs": true })).await, 413);
    let unlimited = keeping(&folder, &[small[0], ("DISABLE_BODY_SIZE_LIMIT", "true")]).await;
    let token = unlimited.token().await;
    let body = large(json!({ "role_name": "large" }));
    assert_eq!(unlimited.send("POST", "/platform/role", &token, body).await.status, 201);
}

#[tokio::test]
async fn turning_auto_save_on_dumps_at_once_and_so_does_each_further_change() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = keeping(&folder, &[]).await;
    let token = fixture.token().await;
    let kept = Arc::clone(&fixture.persistence);
    let task = tokio::spawn(async move { kept.maintain().await });
    fixture.send("PUT", SETTINGS, &token, json!({ "auto_save_frequency_seconds": 60 })).await;
    for n in 1..=2 {
        let update = json!({ "auto_save_memory_enabled": true, "auto_save_memory_interval_minutes": 30 });
        fixture.send("PUT", SETTINGS, &token, update).await;
        eventually("a dump", async || dumps_in(folder.path()) == n).await;
    }
    fixture.send("PUT", SETTINGS, &token, json!({ "enable_auto_save": false })).await;
    assert_eq!(dumps_in(folder.path()), 2, "off: a change of the interval alone dumps nothing");
    task.abort();
}

#[tokio::test]
async fn what_was_dumped_is_restored_with_all_that_depends_on_it() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = keeping(&folder, &[]).await;
    let token = fixture.token().await;
    fixture.add(amy()).await;
    fixture.send("PUT", SETTINGS, &token, json!({ "ip_blacklist": ["192.0.2.66"] })).await;
    fixture.identity.store().set_user_revoked("eve", true).await.unwrap();
    let hint = folder.path().join("new/folder/");
    let seen = fixture.send("POST", "/platform/memory/dump", &token, json!({ "path": hint })).await;
    let path = seen.json()["response"]["path"].as_str().unwrap().to_owned();
    assert!(path.starts_with(hint.to_str().unwrap()) && path.contains("/memory_dump-") && path.ends_with("Z.bin"));

    fixture.add(User::new("bob", "bob@example.com", "user")).await;
    fixture.identity.store().delete_user("amy").await.unwrap();
    fixture.send("PUT", SETTINGS, &token, json!({ "ip_blacklist": [] })).await;
    let restored = fixture.send("POST", "/platform/memory/restore", &token, json!({ "path": path })).await;
    assert_eq!((restored.status, &restored.json()["response"]["version"]), (200, &json!(1)), "{restored:?}");
    assert!(restored.json()["response"]["created_at"].as_str().unwrap().ends_with('Z'));

    assert_eq!(fixture.status_with(&token).await, 200, "the caller's session stays");
    assert_eq!(fixture.send("GET", "/platform/user/amy", &token, Value::Null).await.status, 200);
    assert_eq!(fixture.send("GET", "/platform/user/bob", &token, Value::Null).await.status, 404);
    assert_eq!(fixture.sign_in("amy", "Amy's password").send().await.status, 200);
    assert_eq!(fixture.sign_in("admin", PASSWORD).send().await.status, 200);
    assert!(fixture.identity.store().is_user_revoked("eve").await.unwrap());
    let active = fixture.persistence.security().active();
    assert!(active.admit(&HeaderMap::new(), "192.0.2.66".parse().unwrap()).is_err());
}

#[tokio::test]
async fn a_start_has_what_the_last_dump_holds() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = keeping(&folder, &[]).await;
    fixture.add(amy()).await;
    fixture.persistence.dump_at_end().await;
    let other = [("DOORMAN_ADMIN_PASSWORD", "another-long-password"), ("DOORMAN_ADMIN_EMAIL", "new@example.com")];
    let again = keeping(&folder, &other).await;
    again.persistence.restore_at_start().await.unwrap();
    assert_eq!(again.sign_in("amy", "Amy's password").send().await.status, 200);
    assert_eq!(again.sign_in("new@example.com", "another-long-password").send().await.status, 200);
    assert_eq!(again.sign_in("admin", PASSWORD).send().await.status, 400);
}

#[tokio::test]
async fn a_dump_that_leaves_no_room_for_the_administrator_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = keeping(&folder, &[("DOORMAN_ADMIN_EMAIL", "first@example.com")]).await;
    fixture.add(User::new("amy", "second@example.com", "user")).await;
    fixture.persistence.dump_at_end().await;
    let again = keeping(&folder, &[("DOORMAN_ADMIN_EMAIL", "second@example.com")]).await;
    let refused = again.persistence.restore_at_start().await.unwrap_err().to_string();
    assert!(refused.contains("amy") && refused.contains("DOORMAN_ADMIN_EMAIL"), "{refused}");
    assert!(again.identity.store().user("amy").await.unwrap().is_none());
    assert_eq!(again.sign_in("admin", PASSWORD).send().await.status, 200);
}

#[tokio::test]
async fn dumps_are_refused_with_the_codes_of_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = keeping(&folder, &[]).await;
    let token = fixture.token().await;
    let code = async |fixture: &Fixture, token: &str, path: &str, body: Value| {
        let seen = fixture.send("POST", path, token, body).await;
        (seen.status, seen.json()["error_code"].as_str().unwrap_or_default().to_owned())
    };
    let missing = json!({ "path": folder.path().join("nothing.bin") });
    let restore = "/platform/memory/restore";
    assert_eq!(code(&fixture, &token, restore, missing).await, (404, "MEM003".into()));
    assert_eq!(code(&fixture, &token, restore, Value::Null).await, (404, "MEM003".into()));
    fs::write(folder.path().join("memory_dump.bin"), "DMP1, and nothing that follows from it").unwrap();
    assert_eq!(code(&fixture, &token, restore, Value::Null).await, (500, "GTW999".into()));
    let keyless = Fixture::usual().await;
    let token = keyless.token().await;
    for path in ["/platform/memory/dump", restore] {
        assert_eq!(code(&keyless, &token, path, Value::Null).await, (400, "MEM002".into()));
    }
    let powerless = keyless.with_role("powerless", &[]).await;
    assert_eq!(code(&keyless, &powerless, "/platform/memory/dump", Value::Null).await, (403, "SEC003".into()));
    assert_eq!(code(&keyless, &powerless, restore, Value::Null).await, (403, "SEC004".into()));
}

#[tokio::test]
async fn a_restart_is_made_only_where_someone_looks_after_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let pid_file = folder.path().join("doorman.pid");
    let fixture = keeping(&folder, &[("PID_FILE", pid_file.to_str().unwrap())]).await;
    let token = fixture.token().await;
    let restart = async || fixture.send("POST", "/platform/security/restart", &token, Value::Null).await;
    for written in [None, Some("1"), Some("nonsense")] {
        if let Some(text) = written {
            fs::write(&pid_file, text).unwrap();
        }
        let seen = restart().await;
        assert_eq!((seen.status, &seen.json()["error_code"]), (409, &json!("SEC004")), "{written:?}");
    }
    fs::write(&pid_file, format!("{}\n", std::process::id())).unwrap();
    restart().await.is(202, json!({ "message": "Restart scheduled" }));
    tokio::time::timeout(Duration::from_secs(5), fixture.restart.notified()).await.unwrap();
    let in_cluster = Fixture::with(&[("DOORMAN_GATEWAY_NAME", "edge")]).await;
    let token = in_cluster.token().await;
    assert_eq!(in_cluster.send("POST", "/platform/security/restart", &token, Value::Null).await.status, 202);
}

#[tokio::test]
async fn clearing_caches_is_for_who_may_and_told_to_browsers() {
    let fixture = Fixture::usual().await;
    let token = fixture.token().await;
    let seen =
        fixture.call("DELETE", "/api/caches").bearer(&token).header("origin", "https://a.example.com").send().await;
    seen.is(200, json!({ "message": "All caches cleared" }));
    assert_eq!(seen.header("access-control-allow-origin"), "https://a.example.com");
    let preflight = fixture.call("OPTIONS", "/api/caches").send().await;
    assert_eq!((preflight.status, &*preflight.text), (204, ""));
    assert_eq!(fixture.call("DELETE", "/api/caches").send().await.status, 401);
}

#[tokio::test]
async fn clearing_caches_gives_nobody_more_sign_ins() {
    let (hour, redis) = ("3600", Server::redis(&[]));
    let limits = [
        ("LOGIN_ACCOUNT_RATE_LIMIT", "1"),
        ("LOGIN_ACCOUNT_RATE_WINDOW", hour),
        ("LOGIN_IP_RATE_LIMIT", "3"),
        ("LOGIN_IP_RATE_WINDOW", hour),
    ];
    let settings = external(redis.port, 1, &limits);
    let shared = with_redis(&settings).await;
    for fixture in [Fixture::with(&limits).await, Fixture::over(settings, shared)] {
        let sign_in = async |login, password, from| fixture.sign_in(login, password).from(from).send().await;
        let code = |seen: &Seen| seen.json()["error_code"].as_str().unwrap_or_default().to_owned();
        let token = sign_in("admin", PASSWORD, "192.0.2.1").await.json()["access_token"].as_str().unwrap().to_owned();
        for address in ["192.0.2.2", "192.0.2.3", "192.0.2.3", "192.0.2.3"] {
            sign_in("amy", "wrong", address).await;
        }
        for _ in 0..2 {
            assert_eq!(code(&sign_in("amy", "wrong", "192.0.2.4").await), "AUTH009", "by name");
            assert_eq!(code(&sign_in("admin", PASSWORD, "192.0.2.3").await), "IP_RATE_LIMIT", "by address");
            assert_eq!(fixture.call("DELETE", "/api/caches").bearer(&token).send().await.status, 200);
        }
    }
}

#[tokio::test]
async fn clearing_caches_needs_no_csrf_token() {
    let fixture = Fixture::with(&[("HTTPS_ENABLED", "true")]).await;
    let token = fixture.token().await;
    let call = |method, path| fixture.call(method, path).bearer(&token).header("x-forwarded-proto", "https").send();
    assert_eq!(call("DELETE", "/api/caches").await.status, 200);
    assert_eq!(call("GET", SETTINGS).await.status, 401);
}

#[tokio::test]
async fn a_change_on_one_gateway_is_live_on_the_other_within_a_second() {
    let (redis, mongo) = (Server::redis(&[]), Server::mongo());
    let gateway = async |mirror: &Path| {
        let mirror = [("SECURITY_SETTINGS_FILE", mirror.to_str().unwrap())];
        let settings = external(redis.port, mongo.port, &mirror);
        let store = Store::open(&settings).await.unwrap();
        let fixture = Fixture::over(settings, store);
        fixture.persistence.restore_at_start().await.unwrap();
        let (identity, kept) = (Arc::clone(&fixture.identity), Arc::clone(&fixture.persistence));
        tokio::spawn(async move { futures::future::join(identity.maintain(), kept.maintain()).await });
        fixture
    };
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (gateway(&folder.path().join("1")).await, gateway(&folder.path().join("2")).await);
    let token = one.token().await;
    let denies = |fixture: &Fixture, address: &str| {
        let active = fixture.persistence.security().active();
        active.admit(&HeaderMap::new(), address.parse().unwrap()).is_err()
    };
    // Until the other one listens, it may miss news; then it reads everything again by itself.
    let update = json!({ "ip_blacklist": ["192.0.2.1"] });
    assert_eq!(one.send("PUT", SETTINGS, &token, update).await.status, 200);
    eventually("news arrive", async || denies(&other, "192.0.2.1")).await;

    for n in 2..10 {
        let address = format!("192.0.2.{n}");
        let (from, to) = if n % 2 == 0 { (&one, &other) } else { (&other, &one) };
        let start = Instant::now();
        let update = json!({ "ip_blacklist": [address] });
        assert_eq!(from.send("PUT", SETTINGS, &token, update).await.status, 200);
        assert!(denies(from, &address), "at once where it was changed");
        eventually("the change is live", async || denies(to, &address)).await;
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    }
    let seen = other.send("GET", SETTINGS, &token, Value::Null).await.json();
    assert_eq!((&seen["memory_only"], &seen["ip_blacklist"]), (&json!(false), &json!(["192.0.2.9"])));

    // A change doesn't take back another gateway's that it has not heard of yet.
    let (white, every) = (json!({ "ip_whitelist": ["192.0.2.0/24"] }), json!({ "auto_save_frequency_seconds": 70 }));
    assert_eq!(one.send("PUT", SETTINGS, &token, white).await.status, 200);
    assert_eq!(other.send("PUT", SETTINGS, &token, every).await.status, 200);
    for fixture in [&one, &other] {
        eventually("both changes", async || {
            let seen = fixture.send("GET", SETTINGS, &token, Value::Null).await.json();
            seen["ip_whitelist"] == json!(["192.0.2.0/24"]) && seen["auto_save_frequency_seconds"] == json!(70)
        })
        .await;
    }
    let refused = one.send("POST", "/platform/memory/dump", &token, Value::Null).await;
    assert_eq!((refused.status, &refused.json()["error_code"]), (400, &json!("MEM001")));
}
