//! Tools and pages, as the reference has them (platform API 22 and 1.1).

use proptest::prelude::*;

use super::*;

async fn cors_check(fixture: &Fixture, body: Value) -> Value {
    let seen = fixture.send("POST", "/platform/tools/cors/check", &fixture.token().await, body).await;
    assert_eq!(seen.status, 200, "{seen:?}");
    seen.json()
}

#[tokio::test]
async fn the_cors_report_tells_what_is_configured_and_what_follows() {
    let fixture = Fixture::usual().await;
    let question = json!({ "origin": "http://localhost:3000", "method": "put",
        "request_headers": ["X-CSRF-Token", " content-type", "X-Other"] });
    let report = cors_check(&fixture, question).await;
    assert_eq!(report["config"]["allow_methods"], json!(["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "HEAD"]));
    assert_eq!(report["config"]["allowed_origins"], json!(["*"]));
    assert_eq!(report["input"]["request_headers_normalized"], json!(["x-csrf-token", "content-type", "x-other"]));
    let preflight = &report["preflight"];
    assert_eq!((&preflight["allowed"], &preflight["allow_origin"]), (&json!(false), &json!(true)));
    assert_eq!(preflight["not_allowed_headers"], json!(["x-other"]));
    assert_eq!(preflight["response_headers"]["Access-Control-Allow-Credentials"], "true");
    assert_eq!(report["actual"]["allowed"], true);
    assert_eq!(report["notes"].as_array().unwrap().len(), 2, "{report}");
    let seen = fixture.send("POST", "/platform/tools/cors/check", "", json!({ "origin": "x" })).await;
    assert_eq!(seen.json()["error_code"], "VAL001");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_cors_report_agrees_with_what_is_sent(
        origins in prop_oneof![Just("*"), Just("https://a.example"), Just("http://localhost:3000,https://b.example:8443")],
        methods in prop_oneof![Just("*"), Just("GET"), Just("get,post,OPTIONS"), Just("")],
        headers in prop_oneof![Just("*"), Just("X-One, x-two"), Just("")],
        credentials: bool,
        strict: bool,
        origin in prop_oneof![
            "https?://(localhost|127\\.0\\.0\\.1|localhost\\.evil\\.example|a\\.example|A\\.example|b\\.example)(:(3000|8443))?",
            "[ -~]{0,20}",
            "\\PC{0,8}",
        ],
        method in prop_oneof![Just("GET"), Just("patch"), Just("PURGE")],
    ) {
        let setting = |on: bool| if on { "true" } else { "false" };
        let settings = [
            ("ALLOWED_ORIGINS", origins),
            ("ALLOW_METHODS", methods),
            ("ALLOW_HEADERS", headers),
            ("ALLOW_CREDENTIALS", setting(credentials)),
            ("CORS_STRICT", setting(strict)),
        ];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let fixture = Fixture::with(&settings).await;
            // What no request can carry is no origin.
            let sendable = http::HeaderValue::try_from(origin.as_str()).is_ok();
            let report = cors_check(&fixture, json!({ "origin": origin, "method": method })).await;
            let call = |verb| {
                let mut call = fixture.call(verb, "/platform/monitor/liveness");
                if sendable {
                    call.builder = call.builder.header("origin", http::HeaderValue::try_from(origin.as_str()).unwrap());
                }
                call
            };
            let (preflight, actual) = (call("OPTIONS").send().await, call("GET").send().await);
            for (name, part, seen) in [("preflight", &report["preflight"], &preflight), ("actual", &report["actual"], &actual)] {
                for (header, told) in part["response_headers"].as_object().unwrap() {
                    let sent = seen.headers.get(header).map(|value| value.to_str().unwrap());
                    let told = told.as_str().filter(|told| !(header.ends_with("Credentials") && *told == "false"));
                    assert_eq!(told, sent, "{header} of {name}: {report}");
                }
            }
            let echoed = actual.headers.get("access-control-allow-origin").is_some();
            assert_eq!(report["actual"]["allowed"], echoed);
            assert_eq!(report["preflight"]["allow_origin"], echoed);
            let listed = preflight.header("access-control-allow-methods").split(", ").any(|one| one.eq_ignore_ascii_case(method));
            assert_eq!(report["preflight"]["method_allowed"], listed);
        });
    }
}

#[tokio::test]
async fn the_grpc_report_has_its_members() {
    let fixture = Fixture::with(&[("DOORMAN_ENABLE_GRPC_REFLECTION", "true")]).await;
    let admin = fixture.token().await;
    let report = fixture.send("GET", "/platform/tools/grpc/check", &admin, Value::Null).await.json();
    assert!(report["available"]["grpc"].is_boolean() && report["available"]["grpc_tools_protoc"].is_boolean());
    assert_eq!(report["reflection_enabled"], true);
    assert!(report["notes"].is_array() && report["details"].is_object());
}

async fn toggle(fixture: &Fixture, token: &str, body: Value) -> Seen {
    fixture.send("POST", "/platform/tools/chaos/toggle", token, body).await
}

async fn statistics(fixture: &Fixture, token: &str) -> Value {
    fixture.send("GET", "/platform/tools/chaos/stats", token, Value::Null).await.json()
}

#[tokio::test]
async fn a_played_outage_of_redis_refuses_callers_and_can_be_ended() {
    let fixture = Fixture::usual().await;
    let admin = fixture.token().await;
    assert_eq!(
        statistics(&fixture, &admin).await,
        json!({ "redis_outage": false, "mongo_outage": false, "error_budget_burn": 0 })
    );
    let on = json!({ "backend": "Redis", "enabled": true });
    toggle(&fixture, &admin, on).await.is(200, json!({ "backend": "redis", "enabled": true }));
    let status = fixture.call("GET", "/platform/authorization/status").bearer(&admin).send().await;
    status.is(503, json!({ "error_code": "AUTH005", "error_message": "Service temporarily unavailable" }));
    let refused = fixture.send("GET", "/platform/group/all", &admin, Value::Null).await;
    refused.is(503, json!({ "detail": "Service temporarily unavailable" }));
    assert_eq!(fixture.call("GET", "/platform/monitor/liveness").send().await.status, 200);

    let seen = statistics(&fixture, &admin).await;
    assert_eq!(seen["redis_outage"], true);
    assert!(seen["error_budget_burn"].as_u64().unwrap() >= 2, "{seen}");
    let off = json!({ "backend": "redis", "enabled": "off" });
    toggle(&fixture, &admin, off).await.is(200, json!({ "backend": "redis", "enabled": false }));
    assert_eq!(fixture.status_with(&admin).await, 200);
}

#[tokio::test]
async fn a_played_outage_never_lets_a_revoked_token_in() {
    let fixture = Fixture::usual().await;
    let (admin, ended) = (fixture.token().await, fixture.token().await);
    fixture.call("POST", "/platform/authorization/invalidate").bearer(&ended).send().await;
    for backend in ["redis", "mongo"] {
        toggle(&fixture, &admin, json!({ "backend": backend, "enabled": true })).await;
        assert!([401, 503].contains(&fixture.status_with(&ended).await), "{backend}");
        toggle(&fixture, &admin, json!({ "backend": backend, "enabled": false })).await;
        assert_eq!(fixture.status_with(&ended).await, 401);
    }
}

#[tokio::test]
async fn a_played_outage_of_mongo_fails_what_needs_documents_and_ends_by_itself() {
    let fixture = Fixture::usual().await;
    let admin = fixture.token().await;
    let on = json!({ "backend": "mongo", "enabled": false, "duration_ms": 400 });
    toggle(&fixture, &admin, on).await.is(200, json!({ "backend": "mongo", "enabled": true }));
    let refused = fixture.send("GET", "/platform/group/all", &admin, Value::Null).await;
    refused.is(500, json!({ "error_code": "GTW999", "error_message": "Database unavailable" }));
    assert_eq!(fixture.status_with(&admin).await, 200, "what is cached goes on");
    let start = Instant::now();
    while fixture.send("GET", "/platform/group/all", &admin, Value::Null).await.status != 200 {
        assert!(start.elapsed() < Duration::from_secs(2), "the outage doesn't end");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(statistics(&fixture, &admin).await["mongo_outage"], false);
}

#[tokio::test]
async fn who_was_refused_in_an_outage_can_still_end_it() {
    let fixture = Fixture::usual().await;
    let admin = fixture.token().await;
    let second = fixture.with_role("ops", &[Permission::ManageGateway]).await;
    toggle(&fixture, &admin, json!({ "backend": "mongo", "enabled": true })).await;
    // Never seen before, so nothing of the caller is cached.
    assert_eq!(fixture.status_with(&second).await, 500);
    toggle(&fixture, &second, json!({ "backend": "mongo", "enabled": false }))
        .await
        .is(200, json!({ "backend": "mongo", "enabled": false }));
    assert_eq!(fixture.status_with(&second).await, 200);
}

#[tokio::test]
async fn an_outage_is_of_one_of_two_stores() {
    let fixture = Fixture::usual().await;
    let admin = fixture.token().await;
    let refusal = json!({ "error_code": "TLS002", "error_message": "backend must be redis or mongo" });
    toggle(&fixture, &admin, json!({ "backend": "disk", "enabled": true })).await.is(400, refusal);
    assert_eq!(toggle(&fixture, &admin, json!({ "backend": "redis" })).await.status, 422);
    let user = fixture.with_role("ops", &[Permission::ManageSecurity]).await;
    let refusal = json!({ "error_code": "TLS001", "error_message": "You do not have permission to use tools" });
    toggle(&fixture, &user, json!({ "backend": "redis", "enabled": true })).await.is(403, refusal);
}

#[tokio::test]
async fn pages_show_the_description_to_everyone() {
    let fixture = Fixture::with(&[("STRICT_RESPONSE_ENVELOPE", "true")]).await;
    for (path, part) in [
        ("/platform/docs", "swagger-ui-bundle.js"),
        ("/platform/docs/", "swagger-ui.css"),
        ("/platform/docs/oauth2-redirect", "oauth2-redirect.js"),
        ("/platform/redoc", "spec-url=\"/platform/openapi.json\""),
    ] {
        let seen = fixture.call("GET", path).send().await;
        assert_eq!((seen.status, seen.header("content-type")), (200, "text/html; charset=utf-8"));
        assert!(seen.text.contains(part), "{path}");
        assert!(seen.header("content-security-policy").contains("frame-ancestors *"));
        assert_eq!(fixture.call("POST", path).send().await.status, 405);
    }
}
