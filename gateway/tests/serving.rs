//! The data plane seen from outside: a real gateway process, a real upstream, real sockets.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use doorman_tests::gateway::{ADMIN_PASSWORD, GatewayProcess, PATIENCE, Start, free_address};
use doorman_tests::load::{self, Plan};
use doorman_tests::stores::Neighbour;
use doorman_tests::upstream;
use reqwest::{Client, StatusCode, Version};
use serde_json::{Value, json};

const BINARY: &str = env!("CARGO_BIN_EXE_doorman-gateway");

/// A manifest of a public API named `name`; `more` is added to its spec.
fn api(name: &str, upstream: SocketAddr, more: &str) -> String {
    format!(
        "apiVersion: doorman.dev/v1alpha1\nkind: DoormanApi\nmetadata: {{name: {name}}}\nspec:\n  name: {name}\n  \
         version: v1\n  protocol: REST\n  public: true\n  servers: ['http://{upstream}']\n  endpoints:\n  \
         - {{method: GET, uri: /echo}}\n  - {{method: POST, uri: /echo}}\n  - {{method: GET, uri: '/items/{{id}}'}}\n  \
         - {{method: GET, uri: '/status/{{code}}'}}\n  - {{method: GET, uri: '/slow/{{ms}}'}}\n  \
         - {{method: GET, uri: '/bytes/{{n}}'}}\n  - {{method: GET, uri: '/stream/{{n}}'}}\n  \
         - {{method: POST, uri: /upload}}\n  - {{method: GET, uri: /headers}}\n{more}"
    )
}

fn started(more: &str) -> Result<(GatewayProcess, upstream::Running)> {
    let upstream = upstream::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let gateway = Start::new(BINARY)?.manifest("a.yaml", &api("a", upstream.address(), more))?.run()?;
    Ok((gateway, upstream))
}

async fn get(url: String) -> Result<(StatusCode, Value)> {
    let answer = Client::new().get(url).send().await?;
    let status = answer.status();
    Ok((status, answer.json().await.unwrap_or_default()))
}

/// Asks until the answer is as wanted; fails with the last one.
async fn eventually(url: String, wanted: impl Fn(StatusCode, &Value) -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (status, body) = get(url.clone()).await?;
        if wanted(status, &body) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{url} still answers {status} {body}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_call_reaches_the_upstream_as_it_was_meant() -> Result<()> {
    let (gateway, upstream) =
        started("  headers: {allowed: [X-Pass, X-Hop, X_Doorman_User, X-User-Email, Set_Cookie]}\n")?;
    let answer = Client::new()
        .post(gateway.url("/api/rest/a/v1/echo?b=2&a=1&b=3"))
        .header("X-Pass", "yes")
        .header("X-Secret", "no")
        .header("Authorization", "Bearer mine")
        .header("X-Doorman-User", "admin")
        .header("X_Doorman_User", "admin")
        .header("X-User-Email", "admin")
        .header("Set_Cookie", "a=b")
        .header("Connection", "keep-alive, X-Hop")
        .header("X-Hop", "no")
        .header("Cookie", "a=b")
        .header("X-Request-ID", "trace-1")
        .body("{\"k\": 1}")
        .send()
        .await?;
    assert_eq!(answer.headers()["x-request-id"], "trace-1");
    assert_eq!(answer.headers()["request_id"], "trace-1");
    assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
    let seen: Value = answer.json().await?;
    assert_eq!((&seen["method"], &seen["path"]), (&"POST".into(), &"/echo".into()));
    assert_eq!(seen["query"], "b=2&a=1&b=3");
    assert_eq!(seen["body"], "{\"k\": 1}");
    let headers = &seen["headers"];
    assert_eq!(headers["host"][0], upstream.address().to_string());
    assert_eq!((&headers["x-pass"][0], &headers["x-request-id"][0]), (&"yes".into(), &"trace-1".into()));
    assert_eq!(headers["content-length"][0], "8");
    for hidden in [
        "authorization",
        "cookie",
        "set_cookie",
        "x-secret",
        "x-hop",
        "x-doorman-user",
        "x_doorman_user",
        "x-user-email",
        "connection",
        "transfer-encoding",
    ] {
        assert!(headers[hidden].is_null(), "{hidden} passed: {headers}");
    }
    Ok(())
}

#[tokio::test]
async fn values_go_upstream_without_tags_and_cut() -> Result<()> {
    let (gateway, _upstream) =
        started("  headers: {allowed: [X-Pass, X-Long, X-Up-Auth, Link], authorizationFieldSwap: X-Up-Auth}\n")?;
    let long = format!("<b>{}", "a".repeat(8_193));
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let client = match version {
            Version::HTTP_2 => Client::builder().http2_prior_knowledge().build()?,
            _ => Client::new(),
        };
        let answer = client
            .post(gateway.url("/api/rest/a/v1/echo"))
            .header("X-Pass", "1 <script>alert(1)</script>")
            .header("X-Pass", "1 < 2")
            .header("X-Long", &long)
            .header("X-Up-Auth", "Bearer <S>")
            .header("Link", "<http://a.example/2>; rel=next")
            .header("User-Agent", "crawler <http://a.example/>")
            .header("Accept", "text/html")
            .send()
            .await?;
        assert_eq!(answer.version(), version);
        let seen: Value = answer.json().await?;
        let of = |name: &str| seen["headers"][name].clone();
        assert_eq!(of("x-pass"), json!(["1 alert(1)", "1 < 2"]));
        assert_eq!(of("x-long"), json!(["a".repeat(8_192)]));
        assert_eq!((of("x-up-auth"), of("authorization")), (json!(["Bearer"]), json!(["Bearer <S>"])));
        assert_eq!((of("link"), of("user-agent")), (json!(["; rel=next"]), json!(["crawler"])));
        assert_eq!(of("accept"), json!(["text/html"]));
    }
    Ok(())
}

#[tokio::test]
async fn a_usual_header_that_is_listed_too_goes_upstream_once() -> Result<()> {
    let (gateway, _upstream) = started("  headers: {allowed: [Content-Type, accept, X-Pass]}\n")?;
    let call =
        Client::new().post(gateway.url("/api/rest/a/v1/echo")).header("Accept", "text/html").header("X-Pass", "1");
    let seen: Value = call.header("Content-Type", "text/plain").body("x").send().await?.json().await?;
    for (name, value) in [("content-type", "text/plain"), ("accept", "text/html"), ("x-pass", "1")] {
        assert_eq!(seen["headers"][name], json!([value]));
    }
    Ok(())
}

#[tokio::test]
async fn only_allowed_response_headers_reach_the_client() -> Result<()> {
    let (gateway, _upstream) = started("  headers: {allowed: [x-upstream]}\n")?;
    let answer = Client::new().get(gateway.url("/api/rest/a/v1/headers")).send().await?;
    assert!(answer.headers().contains_key("x-upstream"), "{:?}", answer.headers());
    assert!(!answer.headers().contains_key("x-secret"), "{:?}", answer.headers());
    assert!(answer.headers().contains_key("x-gateway-time") && answer.headers().contains_key("x-backend-time"));
    Ok(())
}

#[tokio::test]
async fn what_is_not_defined_is_refused_with_the_code_of_the_reference() -> Result<()> {
    let (gateway, _upstream) = started("")?;
    for (path, status, code) in [
        ("/api/rest/b/v1/echo", 404, "GTW001"),
        ("/api/rest/a/v2/echo", 404, "GTW001"),
        ("/api/rest/a", 404, "GTW001"),
        ("/api/rest/a/v1/none", 404, "GTW003"),
        ("/api/rest/a/v1/items/1/2", 404, "GTW003"),
        ("/api/rest/a/v1/status/404", 404, "GTW005"),
        ("/api/rest/a/v1/items/a%2fb", 400, "GTW011"),
    ] {
        let (got, body) = get(gateway.url(path)).await?;
        assert_eq!((got.as_u16(), &body["error_code"]), (status, &code.into()), "{path}: {body}");
    }
    let (status, body) = get(gateway.url("/nowhere")).await?;
    assert_eq!((status.as_u16(), body), (404, serde_json::json!({"detail": "Not Found"})));
    Ok(())
}

#[tokio::test]
async fn statuses_and_bodies_pass_as_they_are() -> Result<()> {
    let (gateway, _upstream) = started("")?;
    let (status, _) = get(gateway.url("/api/rest/a/v1/status/503")).await?;
    assert_eq!(status, 503);
    let (status, seen) = get(gateway.url("/api/rest/a/v1/items/b%20%C3%A9?")).await?;
    assert_eq!((status.as_u16(), &seen["path"]), (200, &"/items/b%20%C3%A9".into()));
    let bytes = Client::new().get(gateway.url("/api/rest/a/v1/bytes/300000")).send().await?.bytes().await?;
    assert_eq!(bytes.len(), 300_000);
    let head = Client::new().head(gateway.url("/api/rest/a/v1/bytes/77")).send().await?;
    assert_eq!(head.headers()["content-length"], "77");
    Ok(())
}

#[tokio::test]
async fn a_private_api_asks_for_a_token() -> Result<()> {
    let upstream = upstream::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let manifest = api("a", upstream.address(), "").replace("public: true", "public: false");
    let gateway = Start::new(BINARY)?.manifest("a.yaml", &manifest)?.run()?;
    let (status, body) = get(gateway.url("/api/rest/a/v1/echo")).await?;
    assert_eq!((status.as_u16(), &body["error_code"]), (401, &"Unauthorized".into()));

    let login = serde_json::json!({"email": "admin@doorman.dev", "password": ADMIN_PASSWORD});
    let answer = Client::new().post(gateway.url("/platform/authorization")).json(&login).send().await?;
    assert_eq!(answer.headers()["vary"], "Origin");
    assert_eq!(answer.headers()["x-frame-options"], "DENY");
    let answer: Value = answer.json().await?;
    let token = answer["access_token"].as_str().context("no token")?;
    let subscription = serde_json::json!({"username": "admin", "api_name": "a", "api_version": "v1"});
    let subscribe = Client::new().post(gateway.url("/platform/subscription/subscribe")).json(&subscription);
    assert_eq!(subscribe.bearer_auth(token).send().await?.status(), 200);
    let call = |token: String| Client::new().get(gateway.url("/api/rest/a/v1/echo")).bearer_auth(token).send();
    let answer = call(token.to_owned()).await?;
    assert_eq!(answer.status(), 200);
    let seen: Value = answer.json().await?;
    assert_eq!(seen["headers"]["x-doorman-user"][0], "admin");
    assert!(seen["headers"]["authorization"].is_null(), "the token went upstream");
    assert_eq!(call(format!("{token}x")).await?.status(), 401);

    let (status, body) = get(gateway.url("/api/rest/a/v1/none")).await?;
    assert_eq!((status.as_u16(), &body["error_code"]), (404, &"GTW003".into()));
    Ok(())
}

#[tokio::test]
async fn address_rules_and_inactive_apis_refuse() -> Result<()> {
    let upstream = upstream::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let rules = "  access: {ip: {mode: AllowAll, deny: [127.0.0.0/8]}}\n";
    let listed = "  access: {ip: {mode: Whitelist, allow: [10.0.0.0/8]}}\n";
    let gateway = Start::new(BINARY)?
        .manifest("denied.yaml", &api("denied", upstream.address(), rules))?
        .manifest("listed.yaml", &api("listed", upstream.address(), listed))?
        .manifest("off.yaml", &api("off", upstream.address(), "  active: false\n"))?
        .with("LOCAL_HOST_IP_BYPASS", "false")
        .run()?;
    for (name, code) in [("denied", "API011"), ("listed", "API010"), ("off", "GTW012")] {
        let (status, body) = get(gateway.url(&format!("/api/rest/{name}/v1/echo"))).await?;
        assert_eq!((status.as_u16(), &body["error_code"]), (403, &code.into()), "{name}: {body}");
    }
    Ok(())
}

#[tokio::test]
async fn upstream_failures_have_their_codes_and_never_hang() -> Result<()> {
    let dead = free_address()?;
    let (gateway, upstream) = started("  upstream: {timeouts: {readMillis: 200}}\n")?;
    gateway.write_manifest("dead.yaml", &api("dead", dead, ""))?;
    eventually(gateway.url("/api/rest/dead/v1/echo"), |status, body| status == 500 && body["error_code"] == "GTW006")
        .await?;
    let (status, body) = get(gateway.url("/api/rest/a/v1/slow/5000")).await?;
    assert_eq!((status.as_u16(), &body["error_code"]), (504, &"GTW010".into()));
    drop(upstream);
    let (status, _) = get(gateway.url("/api/rest/a/v1/echo")).await?;
    assert_eq!(status, 500);
    Ok(())
}

#[tokio::test]
async fn bodies_over_the_limit_are_refused_however_they_are_framed() -> Result<()> {
    let upstream = upstream::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let gateway = Start::new(BINARY)?
        .with("MAX_BODY_SIZE_BYTES", "1000")
        .manifest("a.yaml", &api("a", upstream.address(), ""))?
        .run()?;
    let send = |size: usize, chunked: bool| {
        let body = vec![b'x'; size];
        let request = Client::new().post(gateway.url("/api/rest/a/v1/upload"));
        let request = if chunked {
            let pieces: Vec<_> = body.chunks(100).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect();
            request.body(reqwest::Body::wrap_stream(futures::stream::iter(pieces)))
        } else {
            request.body(body)
        };
        async move {
            let answer = request.send().await?;
            anyhow::Ok((answer.status().as_u16(), answer.json::<Value>().await?))
        }
    };
    for chunked in [false, true] {
        let (status, body) = send(1000, chunked).await?;
        assert_eq!((status, &body["bytes"]), (200, &1000.into()), "chunked: {chunked}");
        let (status, body) = send(1001, chunked).await?;
        assert_eq!((status, &body["error_code"]), (413, &"REQ001".into()), "chunked: {chunked}");
        assert_eq!(body["error_message"], "Request entity too large (max: 1000 bytes)");
    }
    Ok(())
}

#[tokio::test]
async fn answers_stream_piece_by_piece() -> Result<()> {
    let (gateway, _upstream) = started("")?;
    let started = Instant::now();
    let mut answer = Client::new().get(gateway.url("/api/rest/a/v1/stream/10")).send().await?;
    answer.chunk().await?.context("no first piece")?;
    let first = started.elapsed();
    while answer.chunk().await?.is_some() {}
    assert!(started.elapsed() > first + Duration::from_millis(200), "the answer came in one piece");
    Ok(())
}

#[tokio::test]
async fn http2_without_tls_is_served() -> Result<()> {
    let (gateway, _upstream) = started("")?;
    let client = Client::builder().http2_prior_knowledge().build()?;
    let answer = client.get(gateway.url("/api/rest/a/v1/items/1")).send().await?;
    assert_eq!((answer.version(), answer.status()), (http::Version::HTTP_2, StatusCode::OK));
    Ok(())
}

#[tokio::test]
async fn manifests_are_followed_and_a_broken_one_harms_nobody() -> Result<()> {
    let (gateway, upstream) = started("")?;
    gateway.write_manifest("b.yaml", &api("b", upstream.address(), ""))?;
    eventually(gateway.url("/api/rest/b/v1/echo"), |status, _| status == 200).await?;

    gateway.write_manifest("bad.yaml", "kind: [")?;
    gateway.write_manifest("invalid.yaml", &api("c", upstream.address(), "").replace("http://", "nope://"))?;
    eventually(gateway.url("/api/rest/c/v1/echo"), |status, body| {
        // Why is for the log: it may name servers.
        status == 503 && body["error_code"] == "GTW503" && !body.to_string().contains("spec.servers[0]")
    })
    .await?;
    eventually(gateway.admin_url("/revision"), |_, report| report["rejected_total"] == 2).await?;
    for name in ["a", "b"] {
        let (status, _) = get(gateway.url(&format!("/api/rest/{name}/v1/echo"))).await?;
        assert_eq!(status, 200, "{name}");
    }

    std::fs::remove_file(gateway.manifests().join("b.yaml"))?;
    eventually(gateway.url("/api/rest/b/v1/echo"), |status, _| status == 404).await?;
    let log = gateway.log();
    let lines = log.lines().filter(|line| line.contains("rejected") && line.contains("bad.yaml")).count();
    assert_eq!(lines, 1, "said once, not again with every snapshot: {log}");
    assert!(log.contains("spec.servers[0]"), "{log}");
    Ok(())
}

/// The administrator's token.
async fn sign_in(gateway: &GatewayProcess) -> Result<String> {
    let login = serde_json::json!({"email": "admin@doorman.dev", "password": ADMIN_PASSWORD});
    let answer = Client::new().post(gateway.url("/platform/authorization")).json(&login).send().await?;
    Ok(answer.json::<Value>().await?["access_token"].as_str().context("no token")?.to_owned())
}

#[tokio::test]
async fn an_api_of_a_manifest_is_read_through_the_platform_api_and_changed_in_its_file() -> Result<()> {
    let (gateway, upstream) = started("")?;
    let token = sign_in(&gateway).await?;
    let send = |method: reqwest::Method, path: &str, body: Value| {
        Client::new().request(method, gateway.url(path)).bearer_auth(&token).json(&body).send()
    };
    let api_of =
        async || anyhow::Ok(send(reqwest::Method::GET, "/platform/api/a/v1", Value::Null).await?.json().await?);
    let shown: Value = api_of().await?;
    assert_eq!(shown["managed_by"], "manifest a.yaml", "{shown}");
    let answer = send(reqwest::Method::PUT, "/platform/api/a/v1", serde_json::json!({ "active": false })).await?;
    assert_eq!(answer.status(), 409);
    let message = answer.json::<Value>().await?["error_message"].clone();
    assert_eq!(message, "API a/v1 is defined by manifest a.yaml; change it there");
    gateway.write_manifest("a.yaml", &api("a", upstream.address(), "  active: false\n"))?;
    eventually(gateway.url("/api/rest/a/v1/echo"), |status, _| status == 403).await?;
    let changed: Value = api_of().await?;
    assert_eq!((&changed["active"], &changed["api_id"]), (&Value::Bool(false), &shown["api_id"]));
    Ok(())
}

#[tokio::test]
async fn roles_come_from_manifests_and_from_the_platform_api_and_open_apis() -> Result<()> {
    let (gateway, _upstream) = started("  access: {roles: [admin, ops]}\n")?;
    let token = sign_in(&gateway).await?;
    let send = |method: reqwest::Method, path: &str, body: Value| {
        Client::new().request(method, gateway.url(path)).bearer_auth(&token).json(&body).send()
    };
    let (status, _) = get(gateway.url("/api/rest/a/v1/echo")).await?;
    assert_eq!(status, 503, "there is no role ops");
    let role = serde_json::json!({ "role_name": "ops" });
    assert_eq!(send(reqwest::Method::POST, "/platform/role", role).await?.status(), 201);
    eventually(gateway.url("/api/rest/a/v1/echo"), |status, _| status == 200).await?;
    assert_eq!(send(reqwest::Method::DELETE, "/platform/role/ops", Value::Null).await?.status(), 200);
    eventually(gateway.url("/api/rest/a/v1/echo"), |status, _| status == 503).await?;

    let manifest = "apiVersion: doorman.dev/v1alpha1\nkind: DoormanRole\nmetadata: {name: ops}\nspec: {name: ops}\n";
    gateway.write_manifest("roles.yaml", manifest)?;
    eventually(gateway.url("/api/rest/a/v1/echo"), |status, _| status == 200).await?;
    let answer = send(reqwest::Method::PUT, "/platform/role/ops", serde_json::json!({ "view_logs": true })).await?;
    assert_eq!(answer.status(), 409);
    let message = answer.json::<Value>().await?["error_message"].clone();
    assert_eq!(message, "Role ops is defined by manifest roles.yaml; change it there");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_lost_when_the_gateway_drains() -> Result<()> {
    let upstream = upstream::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let mut gateway = Start::new(BINARY)?
        .with("DOORMAN_DRAIN_SECONDS", "2")
        .with("LOG_LEVEL", "WARNING")
        .manifest("a.yaml", &api("a", upstream.address(), ""))?
        .run()?;
    let plan = Plan::new(&[gateway.url("/api/rest/a/v1/bytes/100")])?.at(500.0, 16).lasting(Duration::from_secs(30));
    let mut load = load::start(plan)?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    gateway.terminate()?;
    eventually(gateway.url("/platform/monitor/readiness"), |status, _| status == 503).await?;
    assert_eq!(get(gateway.admin_url("/readyz")).await?.0, 503);
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Still inside the drain window: everybody who asked was served.
    load.stop();
    let report = load.finish().await;
    assert_eq!(report.failed, 0, "{report:?}");
    assert!(report.requests > 400, "{report:?}");
    assert!(gateway.wait()?.success());
    Ok(())
}

#[tokio::test]
async fn a_hang_up_makes_level_and_limits_those_of_the_file() -> Result<()> {
    let upstream = upstream::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("doorman.yaml");
    std::fs::write(&file, "log: {level: WARNING}\n")?;
    let gateway = Start::new(BINARY)?
        .with("DOORMAN_CONFIG_FILE", file.to_string_lossy())
        .manifest("a.yaml", &api("a", upstream.address(), ""))?
        .run()?;
    let post = || Client::new().post(gateway.url("/api/rest/a/v1/echo")).body("0123456789").send();
    assert_eq!(post().await?.status(), 200);
    assert!(!gateway.log().contains("Endpoint: "), "{}", gateway.log());

    std::fs::write(&file, "log: {level: INFO}\nmax_body_size_bytes: 5\n")?;
    gateway.hang_up()?;
    let deadline = Instant::now() + PATIENCE;
    while post().await?.status() != 413 {
        ensure!(Instant::now() < deadline, "the limit is not that of the file:\n{}", gateway.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let records = [
        "configuration reloaded | changed=\"MAX_BODY_SIZE_BYTES, LOG_LEVEL\"",
        "Endpoint: POST /api/rest/a/v1/echo | status_code: 413",
    ];
    // Records are written a moment after they are made.
    while !records.iter().all(|record| gateway.log().contains(record)) {
        ensure!(Instant::now() < deadline, "{records:?} are not in\n{}", gateway.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

#[tokio::test]
async fn only_pages_with_a_policy_of_their_own_may_be_framed() -> Result<()> {
    let gateway = Start::new(BINARY)?.run()?;
    for (path, may_be_framed) in
        [("/platform/docs", true), ("/platform/redoc", true), ("/platform/openapi.json", false)]
    {
        let answer = Client::new().get(gateway.url(path)).send().await?;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers().contains_key("x-frame-options"), !may_be_framed, "{path}");
        let policy = answer.headers()["content-security-policy"].to_str()?;
        assert_eq!(policy.contains("https://cdn.jsdelivr.net"), may_be_framed, "{path}: {policy}");
    }
    Ok(())
}

#[tokio::test]
async fn a_call_in_flight_outlives_the_listener() -> Result<()> {
    let (mut gateway, _upstream) = started("")?;
    let url = gateway.url("/api/rest/a/v1/slow/1500");
    let call = tokio::spawn(async move { get(url).await });
    let metrics = gateway.url("/api/health");
    eventually(metrics, |status, _| status == 200).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    gateway.terminate()?;
    let (status, _) = call.await??;
    assert_eq!(status, 200);
    assert!(gateway.wait()?.success());
    Ok(())
}

#[tokio::test]
async fn without_its_stores_a_gateway_stays_ready_and_serves_what_needs_none() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (mut redis, mut mongo) = (Neighbour::redis(&[])?, Neighbour::mongo(folder.path())?);

    let upstream = upstream::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let gateway = Start::new(BINARY)?
        .stores(redis.address(), mongo.address())
        .manifest("a.yaml", &api("a", upstream.address(), ""))?
        .run()?;
    let reaches = async |mongodb: bool, redis: bool| {
        let stores = serde_json::json!({ "mongodb": mongodb, "redis": redis });
        eventually(gateway.admin_url("/revision"), |_, report| report["stores"] == stores).await?;
        let expected = if mongodb && redis { 200 } else { 503 };
        assert_eq!(get(gateway.url("/platform/monitor/readiness")).await?.0, expected);
        assert_eq!(get(gateway.admin_url("/readyz")).await?.0, 200);
        assert_eq!(get(gateway.url("/api/rest/a/v1/echo")).await?.0, 200);
        anyhow::Ok(())
    };
    reaches(true, true).await?;
    redis.stop()?;
    reaches(true, false).await?;
    mongo.stop()?;
    reaches(false, false).await?;
    redis.start_again()?;
    mongo.start_again()?;
    reaches(true, true).await
}

#[test]
fn a_start_with_a_wrong_password_says_which_settings_to_look_at() -> Result<()> {
    let redis = Neighbour::redis(&["--requirepass", "right"])?;
    let output = Start::new(BINARY)?
        .with("MEM_OR_EXTERNAL", "REDIS")
        .with("REDIS_HOST", redis.address().to_string())
        .with("REDIS_PASSWORD", "a-wrong-one")
        .with("MONGO_DB_HOSTS", "127.0.0.1:1")
        .fail()?;
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("see REDIS_USERNAME and REDIS_PASSWORD"), "{text}");
    assert!(text.contains("Cannot connect to MongoDB at 127.0.0.1:1 after 3 tries"), "{text}");
    assert!(!text.contains("a-wrong-one"), "{text}");
    Ok(())
}

#[tokio::test]
async fn without_a_folder_the_platform_api_alone_defines() -> Result<()> {
    let upstream = upstream::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let gateway = Start::new(BINARY)?.alone()?.run()?;
    let token = sign_in(&gateway).await?;
    for (path, body) in [
        (
            "/platform/api",
            serde_json::json!({ "api_name": "a", "api_version": "v1", "api_description": "a", "api_public": true, "api_type": "REST",
                "api_servers": [format!("http://{}", upstream.address())], "api_allowed_groups": ["ALL"] }),
        ),
        (
            "/platform/endpoint",
            serde_json::json!({ "api_name": "a", "api_version": "v1", "endpoint_method": "GET", "endpoint_uri": "/echo",
                "endpoint_description": "a" }),
        ),
    ] {
        let answer = Client::new().post(gateway.url(path)).bearer_auth(&token).json(&body).send().await?;
        assert_eq!(answer.status(), 201, "{path}");
    }
    assert_eq!(get(gateway.url("/api/rest/a/v1/echo")).await?.0, 200);
    for (name, text) in [("KUBERNETES_SERVICE_HOST", "nothing to serve"), ("DOORMAN_GATEWAY_NAME", "go together")] {
        let output = Start::new(BINARY)?.alone()?.with(name, "x").fail()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(text), "{name}: {said}");
    }
    Ok(())
}

#[test]
fn every_reason_not_to_start_is_listed_at_once() -> Result<()> {
    let output = Start::new(BINARY)?
        .with("ENV", "production")
        .with("JWT_SECRET_KEY", "")
        .with("THREADS", "2")
        .with("SSL_CERTFILE", "/nowhere/cert.pem")
        .with("SSL_KEYFILE", "/nowhere/key.pem")
        .fail()?;
    let text = String::from_utf8_lossy(&output.stderr);
    assert_ne!(output.status.code(), Some(0));
    for variable in ["JWT_SECRET_KEY", "THREADS", "HTTPS_ONLY", "SSL_CERTFILE", "MEM_ENCRYPTION_KEY"] {
        assert!(text.contains(variable), "{variable} is not named in:\n{text}");
    }
    Ok(())
}

/// Sends bytes as they are and reads until the gateway closes or answers.
fn raw(gateway: &GatewayProcess, bytes: &[u8]) -> Result<String> {
    let mut stream = TcpStream::connect(gateway.address())?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(bytes)?;
    let mut text = vec![0; 4096];
    let read = stream.read(&mut text)?;
    Ok(String::from_utf8_lossy(&text[..read]).into_owned())
}

#[tokio::test]
async fn messages_with_two_readings_are_refused() -> Result<()> {
    let (gateway, _upstream) = started("")?;
    let line = "GET /api/rest/a/v1/echo HTTP/1.1\r\n";
    for (name, message) in [
        ("two hosts", format!("{line}Host: a\r\nHost: b\r\n\r\n")),
        ("dot segment", "GET /api/rest/a/v1/items/.. HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        ("encoded dots", "GET /api/rest/a/v1/items/%2e%2e HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        ("no host", format!("{line}\r\n")),
        ("folded header", format!("{line}Host: a\r\nX: 1\r\n 2\r\n\r\n")),
        ("two lengths", format!("{line}Host: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx")),
        ("1.0 with chunks", "POST /x HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned()),
        ("blank before colon", format!("{line}Host : a\r\n\r\n")),
    ] {
        let answer = raw(&gateway, message.as_bytes())?;
        assert!(answer.starts_with("HTTP/1.1 400") || answer.starts_with("HTTP/1.0 400"), "{name}: {answer}");
    }
    Ok(())
}

#[tokio::test]
async fn a_call_is_in_the_log_the_numbers_and_the_metrics_and_survives_a_restart() -> Result<()> {
    let (mut gateway, _upstream) = started("")?;
    let client = Client::new();
    let sent = client.get(gateway.url("/api/rest/a/v1/echo")).header("X-Request-ID", "call-1").send().await?;
    assert_eq!(sent.status(), StatusCode::OK);
    let login = serde_json::json!({"email": "admin@doorman.dev", "password": ADMIN_PASSWORD});
    let answer = client.post(gateway.url("/platform/authorization")).json(&login).send().await?;
    let token = answer.json::<Value>().await?["access_token"].as_str().context("no token")?.to_owned();
    let read = async |path: &str| -> Result<Value> {
        Ok(client.get(gateway.url(path)).bearer_auth(&token).send().await?.json().await?)
    };
    let logs = read("/platform/logging/logs?request_id=call-1").await?;
    assert_eq!(
        (&logs["total"], &logs["logs"][0]["api"], &logs["logs"][0]["status_code"]),
        (&1.into(), &"a/v1".into(), &"200".into())
    );
    let monitor = read("/platform/monitor/metrics?range=1h").await?;
    assert_eq!((&monitor["total_requests"], &monitor["apis"]["a/v1"]["requests"]), (&1.into(), &1.into()), "{monitor}");
    let status = read("/api/status").await?;
    assert!(status["status"] == "ok" && status["active_connections"].as_i64() > Some(0), "{status}");

    let scraped = client.get(gateway.url("/metrics")).send().await?;
    assert_eq!(scraped.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let text = scraped.text().await?;
    assert!(text.contains("\ndoorman_http_requests_total{code=\"200\"} 1\n"), "{text}");
    let open = client.get(gateway.url("/metrics")).header("Accept", "application/openmetrics-text").send().await?;
    assert!(open.text().await?.ends_with("# EOF\n"));
    let proxied = client.get(gateway.url("/metrics")).header("X-Forwarded-For", "127.0.0.1").send().await?;
    assert_eq!((proxied.status().as_u16(), proxied.text().await?.as_str()), (403, "prometheus_forbidden 1\n"));

    let folder = gateway.folder().join("logs");
    gateway.terminate()?;
    ensure!(gateway.wait()?.success(), "{}", gateway.log());
    let log = std::fs::read_to_string(folder.join("doorman.log"))?;
    assert!(log.lines().last().is_some_and(|line| line.ends_with("stopped")), "{log}");
    assert!(log.contains("Application startup complete"), "{log}");
    let saved: Value = serde_json::from_slice(&std::fs::read(folder.join("metrics.json"))?)?;
    let series = saved["history"]["series"].as_object().context("no series")?;
    assert_eq!(series.values().next().map(|numbers| &numbers[0]), Some(&1.into()), "{saved}");
    Ok(())
}

#[tokio::test]
async fn metrics_are_for_those_the_settings_name() -> Result<()> {
    let ask = async |settings: &[(&str, &str)], headers: &[(&str, &str)]| -> Result<(u16, String)> {
        let start = settings.iter().fold(Start::new(BINARY)?, |start, (name, value)| start.with(name, *value));
        let gateway = start.run()?;
        let request = headers.iter().fold(Client::new().get(gateway.url("/metrics")), |r, (n, v)| r.header(*n, *v));
        let answer = request.send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    };
    let token = [("PROMETHEUS_BEARER_TOKEN", "letmein")];
    assert_eq!(ask(&[("PROMETHEUS_ENABLED", "false")], &[]).await?, (503, "prometheus_disabled 1\n".into()));
    assert_eq!(ask(&token, &[]).await?.0, 403);
    assert_eq!(ask(&token, &[("Authorization", "Bearer letmein")]).await?.0, 200);
    assert_eq!(ask(&token, &[("X-Prometheus-Token", "letmein")]).await?.0, 200);
    assert_eq!(ask(&[("PROMETHEUS_ALLOWLIST", "192.0.2.0/24")], &[]).await?.0, 403);
    assert_eq!(ask(&[("PROMETHEUS_ALLOWLIST", "192.0.2.0/24"), ("PROMETHEUS_PUBLIC", "true")], &[]).await?.0, 200);
    let behind = [
        ("PROMETHEUS_ALLOWLIST", "192.0.2.0/24"),
        ("PROMETHEUS_TRUST_XFF", "true"),
        ("xff_trusted_proxies", "127.0.0.1"),
    ];
    assert_eq!(ask(&behind, &[("X-Forwarded-For", "192.0.2.7")]).await?.0, 200);
    assert_eq!(ask(&behind[..2], &[("X-Forwarded-For", "192.0.2.7")]).await?.0, 403, "nobody may vouch for it");
    Ok(())
}
