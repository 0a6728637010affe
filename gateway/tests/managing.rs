//! APIs managed over the platform API and called over the data plane: a real process, as clients see it.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use doorman_tests::gateway::{ADMIN_PASSWORD, GatewayProcess, Start};
use doorman_tests::upstream;
use reqwest::{Client, Method};
use serde_json::{Value, json};

const BINARY: &str = env!("CARGO_BIN_EXE_doorman-gateway");

/// A gateway without manifests, an upstream, and an administrator who has signed in.
struct Stage {
    gateway: GatewayProcess,
    upstream: upstream::Running,
    http: Client,
    token: String,
}

impl Stage {
    async fn set() -> Result<Self> {
        let upstream = upstream::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let gateway = Start::new(BINARY)?.run()?;
        let http = Client::new();
        let login = json!({ "email": "admin@doorman.dev", "password": ADMIN_PASSWORD });
        let answer: Value = http.post(gateway.url("/platform/authorization")).json(&login).send().await?.json().await?;
        let token = answer["access_token"].as_str().unwrap_or_default().to_owned();
        Ok(Self { gateway, upstream, http, token })
    }

    async fn send(&self, method: &str, path: &str, body: Value) -> Result<(u16, Value)> {
        let request = self.http.request(Method::from_bytes(method.as_bytes())?, self.gateway.url(path));
        let request = request.bearer_auth(&self.token);
        let request = if body.is_null() { request } else { request.json(&body) };
        let answer = request.send().await?;
        Ok((answer.status().as_u16(), answer.json().await.unwrap_or_default()))
    }

    /// The same, for what must succeed.
    async fn does(&self, method: &str, path: &str, body: Value) -> Result<Value> {
        let (status, answer) = self.send(method, path, body).await?;
        anyhow::ensure!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        Ok(answer)
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
async fn a_protected_api_asks_for_token_subscription_group_and_role() -> Result<()> {
    let stage = Stage::set().await?;
    stage.does("POST", "/platform/api", stage.api(json!({}))).await?;
    stage.endpoint("GET", "/echo").await?;
    let path = "/api/rest/orders/v1/echo";
    assert_eq!(stage.http.get(stage.gateway.url(path)).send().await?.status(), 401);
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
    assert_eq!(stage.call(path).await?.0, 503, "there is no such role");
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
    let root = endpoint(json!({ "endpoint_uri": "/" }));
    stage.does("POST", "/platform/endpoint", root).await?;
    assert_eq!(stage.does("GET", "/platform/endpoint/GET/orders/v1/", Value::Null).await?["endpoint_uri"], "/");
    let listed = stage.does("GET", "/platform/endpoint/orders/v1", Value::Null).await?;
    assert_eq!(listed["endpoints"].as_array().map(Vec::len), Some(3));
    Ok(())
}
