//! APIs managed over the platform API and called over the data plane: a real process, as clients see it.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use doorman_tests::gateway::{GatewayProcess, Start};
use doorman_tests::stores::Neighbour;
use doorman_tests::upstream;
use reqwest::Method;
use serde_json::{Value, json};

mod support;

use support::Session;

const BINARY: &str = env!("CARGO_BIN_EXE_doorman-gateway");

/// A gateway without manifests, an upstream, and an administrator who has signed in.
struct Stage {
    gateway: GatewayProcess,
    upstream: upstream::Running,
    admin: Session,
}

impl Stage {
    async fn set() -> Result<Self> {
        Self::set_with(&[]).await
    }

    async fn set_with(settings: &[(&str, &str)]) -> Result<Self> {
        let upstream = upstream::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let mut start = Start::new(BINARY)?;
        for (name, value) in settings {
            start = start.with(name, *value);
        }
        let gateway = start.run()?;
        let admin = Session::admin(gateway.url("")).await?;
        Ok(Self { gateway, upstream, admin })
    }

    async fn send(&self, method: &str, path: &str, body: Value) -> Result<(u16, Value)> {
        self.admin.send(method, path, body).await
    }

    async fn does(&self, method: &str, path: &str, body: Value) -> Result<Value> {
        self.admin.does(method, path, body).await
    }

    async fn call(&self, path: &str) -> Result<(u16, Value)> {
        self.send("GET", path, Value::Null).await
    }

    fn api(&self, more: Value) -> Value {
        let mut api = json!({ "api_name": "orders", "api_version": "v1", "api_description": "orders",
            "api_servers": [format!("http://{}", self.upstream.address())], "api_type": "REST",
            "api_allowed_roles": ["admin"], "api_allowed_groups": ["ALL"], "api_allowed_retry_count": 0 });
        api.as_object_mut().into_iter().for_each(|api| api.extend(more.as_object().cloned().unwrap_or_default()));
        api
    }

    async fn endpoint(&self, method: &str, uri: &str) -> Result<()> {
        let endpoint = json!({ "api_name": "orders", "api_version": "v1", "endpoint_method": method,
            "endpoint_uri": uri, "endpoint_description": "x" });
        self.does("POST", "/platform/endpoint", endpoint).await.map(|_| ())
    }
}

fn code(answer: &(u16, Value)) -> (u16, &str) {
    (answer.0, answer.1["error_code"].as_str().unwrap_or_default())
}

#[tokio::test]
async fn every_change_is_served_with_the_next_call() -> Result<()> {
    let stage = Stage::set().await?;
    let path = "/api/rest/orders/v1/items/7";
    assert_eq!(code(&stage.call(path).await?), (404, "GTW001"));
    let created = stage.send("POST", "/platform/api", stage.api(json!({ "api_public": true }))).await?;
    assert_eq!((created.0, &created.1["api"]["api_path"]), (201, &json!("/orders/v1")));
    assert_eq!(code(&stage.call(path).await?), (404, "GTW003"));
    stage.endpoint("GET", "/items/{id}").await?;
    let (status, seen) = stage.call(path).await?;
    assert_eq!(status, 200, "{seen}");
    let (status, answer) = stage.send("POST", "/platform/api", stage.api(json!({}))).await?;
    assert_eq!((status, answer), (200, json!({ "message": "API already exists" })));

    stage.does("PUT", "/platform/api/orders/v1", json!({ "active": false })).await?;
    assert_eq!(code(&stage.call(path).await?), (403, "GTW012"));
    stage.does("PUT", "/platform/api/orders/v1", json!({ "active": true })).await?;
    assert_eq!(stage.call(path).await?.0, 200);

    let endpoint = "/platform/endpoint/GET/orders/v1/items/{id}";
    let read = stage.does("GET", endpoint, Value::Null).await?;
    assert_eq!((&read["endpoint_uri"], read["endpoint_id"].is_string()), (&json!("/items/{id}"), true));
    stage.does("DELETE", endpoint, Value::Null).await?;
    assert_eq!(code(&stage.call(path).await?), (404, "GTW003"));
    stage.endpoint("GET", "/items/{id}").await?;
    stage.does("DELETE", "/platform/api/orders/v1", Value::Null).await?;
    assert_eq!(code(&stage.call(path).await?), (404, "GTW001"));
    let created = stage.send("POST", "/platform/api", stage.api(json!({ "api_public": true }))).await?;
    assert_eq!((created.0, stage.call(path).await?.0), (201, 200), "its endpoints are found again");
    Ok(())
}

#[tokio::test]
async fn an_endpoint_is_found_with_and_without_the_slashes_at_its_ends() -> Result<()> {
    let stage = Stage::set().await?;
    stage.does("POST", "/platform/api", stage.api(json!({ "api_public": true }))).await?;
    for (stored, asked) in [("/items/", "items/"), ("/items/", "items"), ("things", "things"), ("/a/b", "a/b/")] {
        stage.endpoint("GET", stored).await?;
        let path = format!("/platform/endpoint/GET/orders/v1/{asked}");
        assert_eq!(stage.does("GET", &path, Value::Null).await?["endpoint_uri"], stored, "{asked}");
        let same = json!({ "endpoint_uri": asked, "endpoint_description": "y", "client_uri": "/c" });
        stage.does("PUT", &path, same).await?;
        assert_eq!(stage.does("GET", &path, Value::Null).await?["endpoint_uri"], stored, "it keeps its name");
        for other in ["endpoint_method", "api_name", "api_version", "endpoint_uri"] {
            let renamed = json!({ other: format!("{}/", if other == "endpoint_uri" { "other" } else { "GET" }) });
            assert_eq!(code(&stage.send("PUT", &path, renamed).await?), (400, "END006"), "{other}");
        }
        assert_eq!(stage.does("GET", &path, Value::Null).await?["endpoint_description"], "y");
        stage.does("DELETE", &path, Value::Null).await?;
        assert_eq!(code(&stage.send("GET", &path, Value::Null).await?), (400, "END004"));
    }
    Ok(())
}

#[tokio::test]
async fn endpoints_added_at_once_never_take_their_api_out_of_service() -> Result<()> {
    let (folder, stores) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let (redis, mongo) = (Neighbour::durable_redis(folder.path())?, Neighbour::mongo(stores.path())?);
    let start = || Start::new(BINARY)?.stores(redis.address(), mongo.address()).run();
    let gateways = [start()?, start()?];
    let upstream = upstream::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let admin = Session::admin(gateways[0].url("")).await?;
    let api = json!({ "api_name": "orders", "api_version": "v1", "api_public": true, "api_allowed_groups": ["ALL"],
        "api_servers": [format!("http://{}", upstream.address())] });
    admin.does("POST", "/platform/api", api).await?;
    let others = [&admin, &Session::admin(gateways[1].url("")).await?];
    let mut won = 0;
    for number in 0..30 {
        let add = async |at: &Session, name: &str| {
            let endpoint = json!({ "api_name": "orders", "api_version": "v1", "endpoint_method": "GET",
                "endpoint_uri": format!("/{number}/{{{name}}}"), "endpoint_description": "x" });
            at.send("POST", "/platform/endpoint", endpoint).await
        };
        let (one, other) = tokio::try_join!(add(others[0], "x"), add(others[1], "y"))?;
        let created = [one.0, other.0].iter().filter(|status| **status == 201).count();
        assert!(created < 2, "both were told to be added: {one:?} {other:?}");
        won += created;
    }
    assert!(won > 0);
    let (status, answer) = admin.send("GET", "/api/rest/orders/v1/none", Value::Null).await?;
    assert_eq!((status, &answer["error_code"]), (404, &json!("GTW003")), "{answer}");
    Ok(())
}

#[tokio::test]
async fn a_protected_api_asks_for_token_subscription_group_and_role() -> Result<()> {
    let stage = Stage::set().await?;
    stage.does("POST", "/platform/api", stage.api(json!({}))).await?;
    stage.endpoint("GET", "/echo").await?;
    let path = "/api/rest/orders/v1/echo";
    assert_eq!(stage.admin.http.get(stage.gateway.url(path)).send().await?.status(), 401);
    let not_subscribed = "You are not subscribed to this resource";
    assert_eq!(code(&stage.call(path).await?), (403, not_subscribed));
    let subscription = json!({ "username": "admin", "api_name": "orders", "api_version": "v1" });
    let subscribe = "/platform/subscription/subscribe";
    stage.does("POST", subscribe, subscription.clone()).await?;
    assert_eq!(code(&stage.send("POST", subscribe, subscription.clone()).await?), (400, "SUB004"));
    let (status, seen) = stage.call(path).await?;
    assert_eq!((status, &seen["headers"]["x-doorman-user"][0]), (200, &json!("admin")));
    let listed = stage.does("GET", "/platform/subscription/subscriptions", Value::Null).await?;
    assert_eq!(listed, json!({ "apis": ["orders/v1"], "subscriptions": { "apis": ["orders/v1"] } }));

    stage.does("PUT", "/platform/api/orders/v1", json!({ "api_allowed_roles": ["other"] })).await?;
    let other_role = (403, "GTW014");
    assert_eq!(code(&stage.call(path).await?), other_role, "there is no such role, and nobody has it");
    let again = stage.send("POST", subscribe, subscription.clone()).await?;
    assert_eq!(code(&again), (400, "SUB004"), "subscriptions don't ask for roles");
    stage.does("PUT", "/platform/api/orders/v1", json!({ "api_allowed_roles": ["other", "admin"] })).await?;
    assert_eq!(stage.call(path).await?.0, 200, "a role that is no more takes nothing from the others");
    stage
        .does("PUT", "/platform/api/orders/v1", json!({ "api_allowed_roles": [], "api_allowed_groups": ["x"] }))
        .await?;
    assert_eq!(code(&stage.call(path).await?), (401, "You do not have the correct group for this"));
    assert_eq!(code(&stage.send("POST", subscribe, subscription.clone()).await?), (401, "GEN001"));
    stage.does("PUT", "/platform/api/orders/v1", json!({ "api_allowed_groups": ["ALL"] })).await?;
    assert_eq!(stage.call(path).await?.0, 200);

    let unsubscribe = "/platform/subscription/unsubscribe";
    stage.does("POST", unsubscribe, subscription.clone()).await?;
    assert_eq!(code(&stage.send("POST", unsubscribe, subscription).await?), (400, "SUB006"));
    assert_eq!(code(&stage.call(path).await?), (403, not_subscribed));
    let available = stage.does("GET", "/platform/subscription/available-apis/admin", Value::Null).await?;
    assert_eq!(available["apis"][0]["api_name"], "orders");
    Ok(())
}

#[tokio::test]
async fn what_apis_and_endpoints_must_not_be_is_refused() -> Result<()> {
    let stage = Stage::set().await?;
    let refused = [
        ("GET", "/platform/api/none/v1", Value::Null, 400, "API003"),
        ("PUT", "/platform/api/none/v1", json!({ "active": true }), 400, "API003"),
        ("DELETE", "/platform/api/none/v1", Value::Null, 400, "API003"),
        ("PUT", "/platform/api/none/v1", json!({ "api_name": "other" }), 400, "API005"),
        ("POST", "/platform/api", stage.api(json!({ "api_public": true, "api_credits_enabled": true })), 400, "API013"),
        ("POST", "/platform/api", stage.api(json!({ "api_version": "version-1" })), 422, "VAL001"),
        ("GET", "/platform/endpoint/none/v1", Value::Null, 400, "END005"),
        ("GET", "/platform/endpoint/GET/none/v1/x", Value::Null, 400, "END004"),
        ("PUT", "/platform/endpoint/GET/none/v1/x", json!({ "endpoint_description": "y" }), 400, "END008"),
    ];
    for (method, path, body, status, expected) in refused {
        let answer = stage.send(method, path, body).await?;
        assert_eq!(code(&answer), (status, expected), "{method} {path}: {answer:?}");
    }
    let endpoint = |changes: Value| {
        let mut endpoint = json!({ "api_name": "orders", "api_version": "v1", "endpoint_method": "GET",
            "endpoint_uri": "/echo", "endpoint_description": "x" });
        endpoint.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        endpoint
    };
    assert_eq!(code(&stage.send("POST", "/platform/endpoint", endpoint(json!({}))).await?), (400, "END002"));
    stage.does("POST", "/platform/api", stage.api(json!({ "api_public": true }))).await?;
    stage.does("POST", "/platform/endpoint", endpoint(json!({}))).await?;
    assert_eq!(code(&stage.send("POST", "/platform/endpoint", endpoint(json!({}))).await?), (400, "END001"));
    let twin = endpoint(json!({ "endpoint_uri": "/other", "client_uri": "/echo" }));
    assert_eq!(code(&stage.send("POST", "/platform/endpoint", twin).await?), (400, "END001"));
    let renamed = endpoint(json!({ "endpoint_uri": "/headers", "client_uri": "/shown" }));
    stage.does("POST", "/platform/endpoint", renamed).await?;
    assert_eq!(stage.call("/api/rest/orders/v1/shown").await?.0, 200);
    let path = "/platform/endpoint/GET/orders/v1/headers";
    let taken = stage.send("PUT", path, json!({ "client_uri": "/echo" })).await?;
    assert_eq!(code(&taken), (400, "END006"));
    assert_eq!(code(&stage.send("PUT", path, json!({ "endpoint_uri": "/x" })).await?), (400, "END006"));
    assert_eq!(code(&stage.send("PUT", path, json!({ "client_uri": null })).await?), (400, "END007"));
    stage.does("POST", "/platform/endpoint", endpoint(json!({ "endpoint_uri": "/items/{id}" }))).await?;
    for (uri, client_uri, expected) in [
        ("/items/{key}", Value::Null, "END001"),
        ("/shown", Value::Null, "END001"),
        ("/other/{id}", json!("/items/{id}"), "END001"),
        ("/a{b}", Value::Null, "END003"),
        ("/x/{a}", json!("/y"), "END003"),
    ] {
        let answer = stage
            .send("POST", "/platform/endpoint", endpoint(json!({ "endpoint_uri": uri, "client_uri": client_uri })))
            .await?;
        assert_eq!(code(&answer), (400, expected), "{uri}: {answer:?}");
    }
    assert_eq!(code(&stage.send("PUT", path, json!({ "client_uri": "/items/{x}" })).await?), (400, "END006"));
    assert_eq!(code(&stage.send("PUT", path, json!({ "client_uri": "/.." })).await?), (400, "END003"));
    assert_eq!(stage.call("/api/rest/orders/v1/items/7").await?.0, 200, "it is served on");
    let root = endpoint(json!({ "endpoint_uri": "/" }));
    stage.does("POST", "/platform/endpoint", root).await?;
    assert_eq!(stage.does("GET", "/platform/endpoint/GET/orders/v1/", Value::Null).await?["endpoint_uri"], "/");
    let listed = stage.does("GET", "/platform/endpoint/orders/v1", Value::Null).await?;
    assert_eq!(listed["endpoints"].as_array().map(Vec::len), Some(4));
    Ok(())
}

#[tokio::test]
async fn rules_of_bodies_act_with_the_next_call() -> Result<()> {
    let stage = Stage::set().await?;
    stage.does("POST", "/platform/api", stage.api(json!({ "api_public": true }))).await?;
    stage.endpoint("POST", "/items").await?;
    let (path, short) = ("/api/rest/orders/v1/items", json!({ "user": { "name": "A" } }));
    assert_eq!(stage.send("POST", path, short.clone()).await?.0, 200);

    let endpoint = stage.does("GET", "/platform/endpoint/POST/orders/v1/items", Value::Null).await?;
    let rules = |more: Value| {
        let mut rule = json!({ "required": true, "type": "string", "min": 2 });
        rule.as_object_mut().into_iter().for_each(|rule| rule.extend(more.as_object().cloned().unwrap_or_default()));
        json!({ "endpoint_id": endpoint["endpoint_id"], "validation_enabled": true,
            "validation_schema": { "validation_schema": { "user.name": rule } } })
    };
    for (more, told) in [
        (json!({ "pattern": "(" }), "validation_schema.rules[user.name].pattern: `(` can't be used"),
        (json!({ "array_items": { "required": true, "type": "string", "pattern": "(?=a)" } }), "array_items.pattern"),
    ] {
        let refused = stage.send("POST", "/platform/endpoint/endpoint/validation", rules(more)).await?;
        assert_eq!(code(&refused), (422, "VAL001"));
        assert!(refused.1["error_message"].as_str().unwrap_or_default().contains(told), "{refused:?}");
    }
    stage.does("POST", "/platform/endpoint/endpoint/validation", rules(json!({ "format": null }))).await?;
    assert_eq!(code(&stage.send("POST", path, short.clone()).await?), (400, "GTW011"));
    assert_eq!(stage.send("POST", path, json!({ "user": { "name": "Alan" } })).await?.0, 200);
    let validation =
        format!("/platform/endpoint/endpoint/validation/{}", endpoint["endpoint_id"].as_str().unwrap_or_default());
    stage.does("PUT", &validation, json!({ "validation_enabled": false })).await?;
    assert_eq!(stage.send("POST", path, short.clone()).await?.0, 200);
    stage.does("PUT", &validation, json!({ "validation_enabled": true })).await?;
    assert_eq!(code(&stage.send("POST", path, short.clone()).await?), (400, "GTW011"));
    stage.does("DELETE", &validation, Value::Null).await?;
    assert_eq!(stage.send("POST", path, short).await?.0, 200);
    Ok(())
}

#[tokio::test]
async fn calls_are_attributed_to_their_api_endpoint_and_user() -> Result<()> {
    let stage = Stage::set().await?;
    stage.does("POST", "/platform/api", stage.api(json!({ "api_public": true }))).await?;
    for uri in ["/items/{id}", "/status/{code}"] {
        stage.endpoint("GET", uri).await?;
    }
    let bea = stage.admin.user("bea", json!({})).await?;
    for path in ["items/1", "items/2", "status/503", "nowhere"] {
        bea.get(&format!("/api/rest/orders/v1/{path}")).await?;
    }
    stage.call("/api/rest/orders/v1/items/3").await?;
    let synthetic = stage.admin.request("GET", "/api/rest/orders/v1/items/4").header("X-Is-Test", "1");
    assert_eq!(synthetic.send().await?.status(), 200);

    let read = async |path: &str| stage.does("GET", &format!("/platform/analytics/{path}"), Value::Null).await;
    let overview = read("overview?range=1h").await?;
    assert_eq!(overview["summary"]["total_requests"], 5, "{overview}");
    assert_eq!(overview["top_apis"], json!([{ "api": "orders/v1", "count": 5 }]));
    assert_eq!(overview["top_users"], json!([{ "user": "bea", "count": 4 }, { "user": "admin", "count": 1 }]));
    assert_eq!(overview["status_distribution"], json!({ "200": 3, "404": 1, "503": 1 }));
    let api = read("api/orders/v1").await?;
    let used = |n: usize| {
        (&api["endpoints"][n]["method"], &api["endpoints"][n]["endpoint_uri"], &api["endpoints"][n]["count"])
    };
    assert_eq!(used(0), (&json!("GET"), &json!("/orders/v1/items/{id}"), &json!(3)), "{api}");
    assert_eq!(used(1), (&json!("GET"), &json!("/orders/v1/status/{code}"), &json!(1)), "{api}");
    assert_eq!(read("user/bea").await?["summary"]["count"], 4);

    let metrics =
        async || -> Result<String> { Ok(reqwest::get(stage.gateway.admin_url("/metrics")).await?.text().await?) };
    let before = metrics().await?;
    let address = stage.upstream.address();
    for line in [
        r#"doorman_api_requests_total{api="orders/v1",code_class="2xx"} 3"#.to_owned(),
        r#"doorman_api_requests_total{api="orders/v1",code_class="5xx"} 1"#.to_owned(),
        format!(r#"doorman_upstream_breakers_open{{address="{address}"}} 0"#),
        format!(r#"doorman_upstream_connections{{address="{address}",state="busy"}} 0"#),
    ] {
        assert!(before.lines().any(|own| own == line), "{line} is not in\n{before}");
    }
    stage.does("PUT", "/platform/api/orders/v1", json!({ "api_description": "changed" })).await?;
    let changed = metrics().await?;
    assert!(changed.contains(r#"{api="orders/v1",code_class="2xx"} 3"#), "counters outlive a change\n{changed}");
    stage.does("DELETE", "/platform/api/orders/v1", Value::Null).await?;
    let gone = metrics().await?;
    assert!(!gone.contains(r#"api="orders/v1""#) && !gone.contains("address="), "{gone}");
    Ok(())
}

#[tokio::test]
async fn changes_and_the_envelope_act_with_the_next_call() -> Result<()> {
    let stage = Stage::set().await?;
    let wrong = json!({ "api_request_transform": { "request": { "headers": { "add": { "Authorization": "x" } } } } });
    let refused = stage.send("POST", "/platform/api", stage.api(wrong.clone())).await?;
    assert_eq!(code(&refused), (422, "VAL001"));
    let told = refused.1["error_message"].as_str().unwrap_or_default();
    assert!(told.contains("api_request_transform.headers.add[Authorization]: "), "{told}");
    stage.does("POST", "/platform/api", stage.api(json!({ "api_public": true }))).await?;
    stage.endpoint("GET", "/headers").await?;
    assert_eq!(code(&stage.send("PUT", "/platform/api/orders/v1", wrong).await?), (422, "VAL001"));

    let changes = json!({
        "api_request_transform": { "request": { "headers": { "add": { "X-Tenant": 7 } } } },
        "api_response_transform": { "body": { "rename": { "$.headers.x-tenant": "$.tenant" }, "remove": ["$.server"] } },
        "api_response_envelope": true,
    });
    stage.does("PUT", "/platform/api/orders/v1", changes.clone()).await?;
    let (status, seen) = stage.call("/api/rest/orders/v1/headers").await?;
    assert_eq!(
        (status, &seen["status_code"], &seen["response"]["tenant"]),
        (200, &json!(200), &json!(["7"])),
        "{seen}"
    );
    let read = stage.does("GET", "/platform/api/orders/v1", Value::Null).await?;
    assert_eq!(read["api_response_transform"], changes["api_response_transform"]);
    Ok(())
}

#[tokio::test]
async fn the_line_of_a_request_tells_who_called_and_what_took_the_time() -> Result<()> {
    let stage = Stage::set().await?;
    stage.does("POST", "/platform/api", stage.api(json!({ "api_public": true }))).await?;
    stage.endpoint("GET", "/slow/{ms}").await?;
    for (id, path) in [("call-1", "/api/rest/orders/v1/slow/60"), ("platform-1", "/platform/user/me")] {
        assert_eq!(stage.admin.request("GET", path).header("X-Request-ID", id).send().await?.status(), 200, "{path}");
    }
    reqwest::Client::new()
        .get(stage.gateway.url("/platform/user/me"))
        .header("X-Request-ID", "nobody-1")
        .send()
        .await?;
    for (id, user, api) in [
        ("call-1", json!("admin"), json!("orders/v1")),
        ("platform-1", json!("admin"), Value::Null),
        ("nobody-1", Value::Null, Value::Null),
    ] {
        let logs = stage.does("GET", &format!("/platform/logging/logs?request_id={id}"), Value::Null).await?;
        let line = logs["logs"].as_array().and_then(|logs| logs.iter().find(|line| line["endpoint"].is_string()));
        assert_eq!(line.map(|line| (&line["user"], &line["api"])), Some((&user, &api)), "{logs}");
    }
    let file = stage.gateway.folder().join("logs/doorman.log");
    let deadline = std::time::Instant::now() + doorman_tests::gateway::PATIENCE;
    let line = loop {
        let log = std::fs::read_to_string(&file).unwrap_or_default();
        if let Some(line) = log.lines().find(|line| line.contains("call-1") && line.contains("Total time")) {
            break line.to_owned();
        }
        anyhow::ensure!(std::time::Instant::now() < deadline, "not in the log:\n{log}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    let part = |name: &str| -> Option<u64> {
        line.split_once(name)?.1.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    let (backend, gateway, total) = (part("backend_ms="), part("gateway_ms="), part("Total time: "));
    assert!(backend >= Some(60) && gateway < backend && total >= backend, "{line}");
    Ok(())
}

#[tokio::test]
async fn failed_attempts_are_repeated_as_often_as_the_api_says() -> Result<()> {
    let stage = Stage::set().await?;
    stage.does("POST", "/platform/api", stage.api(json!({ "api_public": true, "api_allowed_retry_count": 1 }))).await?;
    for method in ["GET", "POST"] {
        stage.endpoint(method, "/failing/{n}").await?;
    }
    stage.endpoint("GET", "/status/{code}").await?;
    assert_eq!(stage.call("/api/rest/orders/v1/failing/1?k=a").await?.0, 200);
    let body = json!({ "kept": "for the second attempt" });
    let (status, seen) = stage.send("POST", "/api/rest/orders/v1/failing/1?k=b", body.clone()).await?;
    assert_eq!((status, seen["body"].as_str()), (200, Some(&*body.to_string())));
    assert_eq!(stage.call("/api/rest/orders/v1/failing/2?k=c").await?.0, 503, "the last answer counts");
    let metrics = reqwest::get(stage.gateway.admin_url("/metrics")).await?.text().await?;
    assert!(metrics.contains("doorman_http_retries_total 3"), "{metrics}");

    stage.does("PUT", "/platform/api/orders/v1", json!({ "api_allowed_retry_count": 0 })).await?;
    assert_eq!(stage.call("/api/rest/orders/v1/failing/1?k=d").await?.0, 503);
    assert_eq!(stage.call("/api/rest/orders/v1/failing/1?k=d").await?.0, 200);
    Ok(())
}

#[tokio::test]
async fn an_upstream_that_keeps_failing_is_left_alone_and_another_is_called() -> Result<()> {
    let stage = Stage::set_with(&[("CIRCUIT_BREAKER_THRESHOLD", "3"), ("CIRCUIT_BREAKER_TIMEOUT", "1")]).await?;
    stage.does("POST", "/platform/api", stage.api(json!({ "api_public": true }))).await?;
    stage.endpoint("GET", "/failing/{n}").await?;
    stage.endpoint("GET", "/echo").await?;
    for _ in 0..3 {
        assert_eq!(stage.call("/api/rest/orders/v1/failing/3").await?.0, 503);
    }
    let refused = stage.call("/api/rest/orders/v1/echo").await?;
    assert_eq!(code(&refused), (503, "GTW999"));
    assert_eq!(refused.1["error_message"], "Upstream circuit open");
    stage.endpoint("GET", "/later").await?;
    assert_eq!(code(&stage.call("/api/rest/orders/v1/echo").await?), (503, "GTW999"), "a change closes no breaker");
    let of_another = json!({ "api_name": "stock", "api_public": true });
    stage.does("POST", "/platform/api", stage.api(of_another)).await?;
    stage
        .does(
            "POST",
            "/platform/endpoint",
            json!({ "api_name": "stock", "api_version": "v1", "endpoint_method": "GET", "endpoint_uri": "/echo",
                "endpoint_description": "x" }),
        )
        .await?;
    assert_eq!(stage.call("/api/rest/stock/v1/echo").await?.0, 200, "what one API meets there is nothing to another");

    // Nobody listens there; the other one serves from the first call on that finds it open.
    let other = upstream::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let servers =
        json!([format!("http://{}", doorman_tests::gateway::free_address()?), format!("http://{}", other.address())]);
    stage.does("PUT", "/platform/api/orders/v1", json!({ "api_servers": servers })).await?;
    let mut statuses = Vec::new();
    for _ in 0..12 {
        statuses.push(stage.call("/api/rest/orders/v1/echo").await?.0);
    }
    assert_eq!(statuses.iter().filter(|status| **status == 500).count(), 3, "{statuses:?}");
    assert!(statuses[6..].iter().all(|status| *status == 200), "{statuses:?}");
    Ok(())
}

#[tokio::test]
async fn servers_get_the_share_of_calls_that_their_weights_say() -> Result<()> {
    let stage = Stage::set().await?;
    let others = (0..2).map(|_| upstream::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))));
    let others = others.collect::<std::io::Result<Vec<_>>>()?;
    let hosts: Vec<_> =
        [&stage.upstream, &others[0], &others[1]].iter().map(|upstream| upstream.address().to_string()).collect();
    let servers: Vec<_> = hosts.iter().map(|host| format!("http://{host}")).collect();
    let weighted = json!({ "api_public": true, "api_servers": servers, "api_server_weights": [60, 30, 0] });
    stage.does("POST", "/platform/api", stage.api(weighted)).await?;
    stage.endpoint("GET", "/echo").await?;
    let shares = async |calls: usize, key: &str| {
        let mut seen = vec![0; hosts.len()];
        for _ in 0..calls {
            let call = stage.admin.request("GET", "/api/rest/orders/v1/echo").header("client-key", key);
            let answer: Value = call.send().await?.json().await?;
            let host = answer["headers"]["host"][0].as_str().unwrap_or_default();
            seen[hosts.iter().position(|other| other == host).ok_or_else(|| anyhow::anyhow!("{answer}"))?] += 1;
        }
        anyhow::Ok(seen)
    };
    assert_eq!(shares(30, "none").await?, [20, 10, 0]);
    stage.does("PUT", "/platform/api/orders/v1", json!({ "api_server_weights": [0, 1, 4] })).await?;
    assert_eq!(shares(10, "none").await?, [0, 2, 8]);
    let own = json!({ "endpoint_servers": servers, "endpoint_server_weights": [1, 0, 0] });
    stage.does("PUT", "/platform/endpoint/GET/orders/v1/echo", own).await?;
    assert_eq!(shares(5, "none").await?, [5, 0, 0]);
    let routing = json!({ "routing_name": "beta", "client_key": "beta", "routing_servers": servers,
        "routing_server_weights": [1, 2, 1] });
    stage.does("POST", "/platform/routing", routing).await?;
    assert_eq!(shares(8, "beta").await?, [2, 4, 2]);
    Ok(())
}

#[tokio::test]
async fn browsers_are_told_what_the_api_allows() -> Result<()> {
    let stage = Stage::set().await?;
    let cors = json!({ "api_public": true, "api_cors_allow_origins": ["http://ok.example", "https://*.example.com"],
        "api_cors_allow_methods": ["GET", "POST"], "api_cors_allow_headers": ["Content-Type", "X-CSRF-Token"],
        "api_cors_allow_credentials": true, "api_cors_expose_headers": ["X-Backend-Time"] });
    stage.does("POST", "/platform/api", stage.api(cors)).await?;
    stage.endpoint("GET", "/echo").await?;
    let url = stage.gateway.url("/api/rest/orders/v1/echo");
    let ask = |method: Method, origin: &str| {
        let request = stage.admin.http.request(method, &url).header("Origin", origin);
        request.header("Access-Control-Request-Method", "GET").header("Access-Control-Request-Headers", "Content-Type")
    };
    let preflight = ask(Method::OPTIONS, "http://ok.example").send().await?;
    assert_eq!(preflight.status(), 204);
    let told = |answer: &reqwest::Response, name: &str| {
        answer.headers().get(name).map(|value| value.to_str().unwrap_or_default().to_owned()).unwrap_or_default()
    };
    assert_eq!(told(&preflight, "access-control-allow-origin"), "http://ok.example");
    assert_eq!(told(&preflight, "access-control-allow-methods"), "GET, POST, OPTIONS");
    assert_eq!(told(&preflight, "access-control-allow-headers"), "Content-Type, X-CSRF-Token");
    assert_eq!(told(&preflight, "access-control-allow-credentials"), "true");
    assert_eq!(told(&preflight, "vary"), "Origin");

    let answer = ask(Method::GET, "https://a.example.com").send().await?;
    assert_eq!(
        (answer.status().as_u16(), told(&answer, "access-control-allow-origin")),
        (200, "https://a.example.com".into())
    );
    assert_eq!(told(&answer, "access-control-expose-headers"), "X-Backend-Time");
    let stranger = ask(Method::GET, "http://evil.example").send().await?;
    assert_eq!((stranger.status().as_u16(), told(&stranger, "access-control-allow-origin")), (200, String::new()));
    assert_eq!(told(&stranger, "access-control-allow-credentials"), "");
    let refusal = stage.admin.http.get(format!("{url}/none")).header("Origin", "http://ok.example").send().await?;
    assert_eq!(
        (refusal.status().as_u16(), told(&refusal, "access-control-allow-origin")),
        (404, "http://ok.example".into())
    );
    let without = stage.admin.http.get(&url).send().await?;
    assert_eq!(without.headers().get("access-control-allow-origin"), None);
    let unknown = stage.admin.http.request(Method::OPTIONS, stage.gateway.url("/api/rest/none/v1/x")).send().await?;
    assert_eq!(unknown.status(), 204);
    Ok(())
}

#[tokio::test]
async fn who_changes_what_is_in_the_audit_trail() -> Result<()> {
    let stage = Stage::set_with(&[("MAX_BODY_SIZE_BYTES", "2000"), ("MAX_BODY_SIZE_BYTES_REST", "10")]).await?;
    let wrong = json!({ "email": "admin@doorman.dev", "password": "a wrong password" });
    assert_eq!(stage.send("POST", "/platform/authorization", wrong).await?.0, 400);
    let bea = json!({ "username": "bea", "email": "bea@example.com", "password": "Correct-Horse-9-Battery", "role": "nothing" });
    stage.does("POST", "/platform/user", bea).await?;
    let password = json!({ "new_password": "Another-Horse-7-Battery" });
    stage.does("PUT", "/platform/user/bea/update-password", password).await?;
    assert_eq!(stage.send("PUT", "/platform/user/admin", json!({ "email": "x@y.z" })).await?.0, 403);
    let denied = json!({ "api_public": true, "api_ip_blacklist": ["127.0.0.0/8"] });
    stage.does("POST", "/platform/api", stage.api(denied)).await?;
    stage.endpoint("GET", "/echo").await?;
    assert_eq!(code(&stage.call("/api/rest/orders/v1/echo").await?), (403, "API011"));
    assert_eq!(stage.send("POST", "/api/rest/orders/v1/echo", json!({ "k": "longer than ten bytes" })).await?.0, 413);
    let import = stage.send("POST", "/platform/api/orders/v1/openapi/import", Value::Null).await?;
    assert_eq!(code(&import), (404, "OPENAPI003"));
    stage.does("GET", "/platform/config/export/apis?api_name=orders&api_version=v1", Value::Null).await?;
    stage.does("DELETE", "/api/caches", Value::Null).await?;
    let tier =
        json!({ "tier_name": "basic", "credits": 1, "input_limit": 1, "output_limit": 1, "reset_frequency": "" });
    let credits =
        json!({ "api_credit_group": "ai", "api_key": "sk-7f3", "api_key_header": "x-key", "credit_tiers": [tier] });
    stage.does("POST", "/platform/credit", credits).await?;
    let balance = json!({ "tier_name": "basic", "available_credits": 1, "user_api_key": "sk-7f4" });
    stage
        .does("POST", "/platform/credit/bea", json!({ "username": "bea", "users_credits": { "ai": balance } }))
        .await?;
    stage.does("POST", "/platform/rate-limits/bulk/delete", json!({ "rule_ids": ["slow"] })).await?;
    let assignment = json!({ "user_id": "bea", "tier_id": "none" });
    assert_eq!(stage.send("POST", "/platform/tiers/assignments", assignment).await?.0, 400);
    stage.does("POST", "/platform/authorization/invalidate", json!({ "username": "bea" })).await?;

    let expected = [
        ("auth.login", "admin", "admin", json!(200)),
        ("user.update", "admin", "admin", json!(200)),
        ("auth.login_failed", "", "admin", json!(400)),
        ("user.create", "admin", "bea", json!(201)),
        ("user.password", "admin", "bea", json!(200)),
        ("user.update", "admin", "admin", json!(403)),
        ("api.create", "admin", "orders/v1", json!(201)),
        ("endpoint.create", "admin", "GET/orders/v1/echo", json!(201)),
        ("ip.api_deny", "admin", "orders/v1", json!("blocked")),
        ("request.body_size_exceeded", "admin", "/api/rest/orders/v1/echo", json!("blocked")),
        ("endpoint.import", "admin", "orders/v1", json!(404)),
        ("config.export_api", "admin", "orders", json!("success")),
        ("gateway.clear_caches", "admin", "all", json!("success")),
        ("credit_def.create", "admin", "ai", json!(201)),
        ("user_credits.save", "admin", "bea", json!(200)),
        ("rate_limit_rule.delete", "admin", "list", json!(200)),
        ("tier_assignment.save", "admin", "bea/none", json!(400)),
        ("auth.revoke", "admin", "bea", json!(200)),
    ];
    let file = stage.gateway.folder().join("logs/doorman-trail.log");
    let deadline = std::time::Instant::now() + doorman_tests::gateway::PATIENCE;
    let trail = loop {
        let trail = std::fs::read_to_string(&file).unwrap_or_default();
        if trail.lines().count() >= expected.len() {
            break trail;
        }
        anyhow::ensure!(std::time::Instant::now() < deadline, "the trail has only:\n{trail}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    let events: Vec<Value> = trail
        .lines()
        .map(|line| serde_json::from_str(&line[line.find('{').unwrap_or(0)..line.rfind('}').map_or(0, |end| end + 1)]))
        .collect::<Result<_, _>>()?;
    for (event, (action, actor, target, status)) in events.iter().zip(&expected) {
        let seen = (&event["action"], &event["actor"], &event["target"], &event["status"]);
        assert_eq!(seen, (&json!(action), &json!(actor), &json!(target), status), "{trail}");
        assert_eq!((&event["ip"], event["request_id"].is_string()), (&json!("127.0.0.1"), true), "{event}");
    }
    let details = |action: &str| events.iter().find(|event| event["action"] == action).map(|event| &event["details"]);
    assert_eq!(details("user_credits.save"), Some(&json!({ "groups": ["ai"] })));
    assert_eq!(details("rate_limit_rule.delete"), Some(&json!({ "rule_ids": ["slow"] })));
    let secrets = ["Battery", "wrong password", "sk-7f"];
    assert!(secrets.iter().all(|secret| !trail.contains(secret)), "{trail}");
    Ok(())
}

#[tokio::test]
async fn what_a_manifest_defines_is_not_changed_over_rest() -> Result<()> {
    let stage = Stage::set().await?;
    let manifest = format!(
        "apiVersion: doorman.dev/v1alpha1\nkind: DoormanApi\nmetadata: {{name: orders}}\nspec:\n  name: orders\n  \
         version: v1\n  protocol: REST\n  public: true\n  servers: ['http://{}']\n  endpoints: [{{method: GET, uri: /echo}}]\n",
        stage.upstream.address()
    );
    stage.gateway.write_manifest("orders.yaml", &manifest)?;
    let deadline = std::time::Instant::now() + doorman_tests::gateway::PATIENCE;
    while stage.call("/api/rest/orders/v1/echo").await?.0 != 200 {
        anyhow::ensure!(std::time::Instant::now() < deadline, "the manifest is not served");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    for (method, path, body) in [
        ("POST", "/platform/api", stage.api(json!({}))),
        ("PUT", "/platform/api/orders/v1", json!({ "active": false })),
        ("DELETE", "/platform/api/orders/v1", Value::Null),
    ] {
        let refused = stage.send(method, path, body).await?;
        assert_eq!(code(&refused), (409, "DEF409"), "{method} {path}: {refused:?}");
    }
    assert_eq!(stage.call("/api/rest/orders/v1/echo").await?.0, 200);
    Ok(())
}
