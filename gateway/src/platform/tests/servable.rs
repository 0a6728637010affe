//! What would take an API out of service is refused when it is written, in documents and in objects of a cluster.

use super::{cluster::*, *};

const API: &str = "/platform/api/orders/v1";
const ENDPOINT: &str = "/platform/endpoint/GET/orders/v1/a";

fn api(more: Value) -> Value {
    let mut api = json!({ "api_name": "orders", "api_version": "v1", "api_servers": ["http://a"] });
    api.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    api
}

fn endpoint(uri: &str, servers: Value) -> Value {
    json!({ "api_name": "orders", "api_version": "v1", "endpoint_method": "GET", "endpoint_uri": uri,
        "endpoint_description": "x", "endpoint_servers": servers })
}

async fn keeps_apis_servable(fixture: &Fixture, token: &str) {
    let unusable = [
        (json!({ "api_servers": ["http://a b"] }), "servers[0]"),
        (json!({ "api_servers": ["ftp://a"] }), "use http or https"),
        (json!({ "api_servers": ["http://169.254.169.254"] }), "169.254.169.254"),
        (json!({ "api_ip_whitelist": ["nonsense"] }), "nonsense"),
        (json!({ "api_allowed_headers": ["bad header"] }), "`bad header` is not a header name"),
        (json!({ "api_cors_allow_methods": ["BAD METHOD"] }), "`BAD METHOD` is not an HTTP method"),
    ];
    for (more, why) in &unusable {
        refused(&fixture.send("POST", "/platform/api", token, api(more.clone())).await, 400, "API015", why);
    }
    for name in ["..", "a/b", "a b"] {
        let seen = fixture.send("POST", "/platform/api", token, api(json!({ "api_name": name }))).await;
        refused(&seen, 400, "API015", "must be 1 to 64 characters");
    }
    fixture.does("POST", "/platform/api", token, api(json!({ "api_allowed_roles": ["not-there-yet"] }))).await;
    fixture.does("POST", "/platform/endpoint", token, endpoint("/a", Value::Null)).await;
    for (more, why) in unusable {
        refused(&fixture.send("PUT", API, token, more).await, 400, "API015", why);
    }
    let seen = fixture.send("POST", "/platform/endpoint", token, endpoint("/b", json!(["ftp://b"]))).await;
    refused(&seen, 400, "API015", "use http or https");
    let seen = fixture.send("PUT", ENDPOINT, token, json!({ "endpoint_servers": ["ftp://b"] })).await;
    refused(&seen, 400, "API015", "use http or https");
    assert_eq!(fixture.found(API, token).await["api_servers"], json!(["http://a"]));
}

#[tokio::test]
async fn documents_that_can_not_be_served_are_not_kept() {
    let fixture = Fixture::with(&[]).await;
    let token = fixture.token().await;
    keeps_apis_servable(&fixture, &token).await;
    let wrong = json!({ "api_ip_mode": "whitelst" });
    refused(&fixture.send("PUT", API, &token, wrong).await, 400, "API015", "must be `allow_all` or `whitelist`");
    // Hosts alone and addresses of gRPC servers stay as clients of existing installations wrote them.
    let servers = json!(["a:8080", "grpc://b:50051", "grpcs://c"]);
    fixture.does("PUT", API, &token, json!({ "api_servers": servers })).await;
    fixture.does("POST", "/platform/endpoint", &token, endpoint("/b", json!(["d"]))).await;
    assert_eq!(fixture.found(API, &token).await["api_servers"], servers);
}

#[tokio::test]
async fn objects_that_can_not_be_served_are_not_written() {
    let (fixture, cluster) = in_cluster(Cluster::usual()).await;
    let token = fixture.token().await;
    keeps_apis_servable(&fixture, &token).await;
    assert_eq!(cluster.object("DoormanApi", "orders-v1")["spec"]["servers"], json!(["http://a"]));
}

#[tokio::test]
async fn what_was_unusable_before_can_be_mended_bit_by_bit() {
    let fixture = Fixture::with(&[]).await;
    let token = fixture.token().await;
    let old = mongodb::bson::doc! { "api_name": "orders", "api_version": "v1", "api_servers": ["ftp://a"],
    "api_ip_whitelist": ["nonsense"], "api_ip_mode": "whitelst" };
    fixture.identity.store().save(crate::store::Collection::Apis, old).await.unwrap();
    for mended in [
        json!({ "api_description": "old" }),
        json!({ "api_servers": ["http://a"] }),
        json!({ "api_ip_mode": "whitelist" }),
        json!({ "api_ip_whitelist": ["10.0.0.0/8"] }),
    ] {
        fixture.does("PUT", API, &token, mended).await;
    }
    refused(&fixture.send("PUT", API, &token, json!({ "api_servers": ["ftp://a"] })).await, 400, "API015", "ftp");
}
