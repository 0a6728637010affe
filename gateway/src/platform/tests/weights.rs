//! Weights of servers: of APIs, of endpoints, of routings; stored and in objects of the cluster.

use super::{cluster::*, *};

const API: &str = "/platform/api/orders/v1";
const ENDPOINT: &str = "/platform/endpoint/GET/orders/v1/a";
const ROUTING: &str = "/platform/routing/k1";

fn api(more: Value) -> Value {
    with(json!({ "api_name": "orders", "api_version": "v1", "api_servers": ["http://a", "http://b"] }), more)
}

fn endpoint(more: Value) -> Value {
    let endpoint = json!({ "api_name": "orders", "api_version": "v1", "endpoint_method": "GET", "endpoint_uri": "/a",
        "endpoint_description": "x", "endpoint_servers": ["http://c", "http://d"] });
    with(endpoint, more)
}

fn routing(more: Value) -> Value {
    let servers = ["http://e", "http://f"];
    with(json!({ "routing_name": "one", "client_key": "k1", "routing_servers": servers }), more)
}

fn with(mut one: Value, more: Value) -> Value {
    let Value::Object(more) = more else { panic!("{more}") };
    one.as_object_mut().unwrap().extend(more);
    one
}

/// Where a kind is added and where it is found, one of it, its members of weights and servers, and the code of refusals.
type Kind = (&'static str, &'static str, fn(Value) -> Value, &'static str, &'static str, &'static str);

const KINDS: [Kind; 3] = [
    ("/platform/api", API, api, "api_server_weights", "api_servers", "API014"),
    ("/platform/endpoint", ENDPOINT, endpoint, "endpoint_server_weights", "endpoint_servers", "END024"),
    ("/platform/routing", ROUTING, routing, "routing_server_weights", "routing_servers", "RTG014"),
];

/// What holds for each kind, wherever it is kept.
async fn keeps_weights(fixture: &Fixture, token: &str, (path, one, new, weights, servers, code): Kind) {
    for (wrong, why) in [
        (json!([1]), "must have one weight for each server: 2, not 1"),
        (json!([1, 101]), "must be 0 to 100 each"),
        (json!([-1, 1]), "must be 0 to 100 each"),
        (json!(["0", 0]), "must not all be 0"),
    ] {
        let seen = fixture.send("POST", path, token, new(json!({ weights: wrong }))).await;
        refused(&seen, 400, code, &format!("{weights} {why}"));
    }
    fixture.does("POST", path, token, new(json!({ weights: [3, "1"] }))).await;
    assert_eq!(fixture.found(one, token).await[weights], json!([3, 1]), "{one}");
    for wrong in [json!({ servers: ["http://x"] }), json!({ weights: [1, 2, 3] }), json!({ weights: [0, 0] })] {
        refused(&fixture.send("PUT", one, token, wrong).await, 400, code, weights);
    }
    fixture.does("PUT", one, token, json!({ weights: [0, 7] })).await;
    fixture.does("PUT", one, token, json!({ servers: ["http://x"], weights: [5] })).await;
    assert_eq!(fixture.found(one, token).await[weights], json!([5]));
    fixture.does("PUT", one, token, json!({ weights: [] })).await;
    fixture.does("PUT", one, token, json!({ servers: ["http://x", "http://y"] })).await;
    let shown = fixture.found(one, token).await;
    assert!(shown.get(weights).is_none_or(|weights| *weights == json!([])), "{shown}");
    fixture.does("DELETE", one, token, Value::Null).await;
    fixture.does("POST", path, token, new(json!({}))).await;
    let shown = fixture.found(one, token).await;
    assert!(shown.get(weights).is_none(), "who gives none sees none: {shown}");
}

#[tokio::test]
async fn weights_are_kept_where_they_fit_and_refused_where_not() {
    for (fixture, _servers) in in_either_store(&[]).await {
        let admin = fixture.token().await;
        for kind in KINDS {
            keeps_weights(&fixture, &admin, kind).await;
        }
    }
}

#[tokio::test]
async fn weights_are_written_to_objects() {
    let (fixture, cluster) = in_cluster(Cluster::usual()).await;
    let admin = fixture.token().await;
    for kind in &KINDS[..2] {
        keeps_weights(&fixture, &admin, *kind).await;
    }
    fixture.does("PUT", API, &admin, json!({ "api_server_weights": [99, 1] })).await;
    fixture.does("PUT", ENDPOINT, &admin, json!({ "endpoint_server_weights": [0, 1] })).await;
    let spec = cluster.object("DoormanApi", "orders-v1")["spec"].clone();
    assert_eq!(spec["serverWeights"], json!([99, 1]));
    assert_eq!(spec["endpoints"][0]["serverWeights"], json!([0, 1]));
    fixture.does("PUT", API, &admin, json!({ "api_server_weights": [] })).await;
    assert!(cluster.object("DoormanApi", "orders-v1")["spec"].get("serverWeights").is_none());
}

#[tokio::test]
async fn weights_go_out_and_come_in_with_the_configuration() {
    const IMPORT: &str = "/platform/config/import";
    let fixture = Fixture::usual().await;
    let admin = fixture.token().await;
    let all = json!({
        "apis": [api(json!({ "api_server_weights": [3, 1] }))],
        "endpoints": [endpoint(json!({ "endpoint_server_weights": [0, 1] }))],
        "routings": [routing(json!({ "routing_server_weights": [2, 1] }))],
    });
    fixture.does("POST", IMPORT, &admin, all).await;
    let exported = fixture.found("/platform/config/export/all", &admin).await;
    assert_eq!(exported["apis"][0]["api_server_weights"], json!([3, 1]));
    assert_eq!(exported["endpoints"][0]["endpoint_server_weights"], json!([0, 1]));
    assert_eq!(exported["routings"][0]["routing_server_weights"], json!([2, 1]));
    fixture.does("POST", IMPORT, &admin, exported.clone()).await;
    assert_eq!(fixture.found("/platform/config/export/all", &admin).await, exported);

    let fewer = json!({ "api_name": "orders", "api_version": "v1", "api_servers": ["http://a"] });
    for (part, item, why) in [
        ("apis", fewer, "apis[0].api_server_weights must have one weight for each server: 1, not 2"),
        ("apis", api(json!({ "api_server_weights": [0.5, 1] })), "apis[0].api_server_weights must be a list of whole"),
        ("endpoints", endpoint(json!({ "endpoint_server_weights": [0, 0] })), "endpoints[0].endpoint_server_weights"),
        ("routings", routing(json!({ "routing_server_weights": [1] })), "routings[0].routing_server_weights"),
    ] {
        refused(&fixture.send("POST", IMPORT, &admin, json!({ part: [item] })).await, 422, "VAL001", why);
    }
    assert_eq!(fixture.found("/platform/config/export/all", &admin).await, exported, "nothing of it was stored");
}
