//! Servers by client key, as the reference has them (platform API 12).

use super::*;

const ROUTING: &str = "/platform/routing";

fn sample(key: &str) -> Value {
    let servers = ["http://127.0.0.1:1", "grpc://orders:50051"];
    json!({ "routing_name": "one", "routing_servers": servers, "client_key": key })
}

#[tokio::test]
async fn a_routing_is_added_read_changed_and_deleted() {
    let fixture = Fixture::usual().await;
    let token = fixture.with_role("router", &[Permission::ManageRoutings]).await;
    let created = fixture.send("POST", ROUTING, &token, sample("k1")).await;
    created.is(201, json!({ "message": "Routing created successfully with key: k1" }));
    let twice = fixture.send("POST", ROUTING, &token, sample("k1")).await;
    twice.is(400, refusal("RTG001", "Routing already exists"));
    let mut stored = sample("k1");
    stored["routing_description"] = Value::Null;
    stored["server_index"] = json!(0);
    fixture.send("GET", "/platform/routing/k1", &token, Value::Null).await.is(200, stored.clone());

    let update =
        json!({ "client_key": "k1", "routing_servers": ["https://b"], "server_index": 7, "routing_name": null });
    let updated = fixture.send("PUT", "/platform/routing/k1/", &token, update.clone()).await;
    updated.is(200, json!({ "message": "Routing updated successfully" }));
    assert_eq!(fixture.send("PUT", "/platform/routing/k1", &token, update).await.status, 200, "the same again");
    stored["routing_servers"] = json!(["https://b"]);
    fixture.send("GET", "/platform/routing/k1/", &token, Value::Null).await.is(200, stored);
    for (body, code, message) in [
        (json!({ "client_key": "k2", "routing_name": "x" }), "RTG005", "Routing key cannot be changed"),
        (json!({ "routing_name": null, "server_index": 1 }), "RTG007", "No data to update"),
    ] {
        fixture.send("PUT", "/platform/routing/k1", &token, body).await.is(400, refusal(code, message));
    }
    let deleted = fixture.send("DELETE", "/platform/routing/k1", &token, Value::Null).await;
    deleted.is(200, json!({ "message": "Routing deleted successfully" }));
    let gone = refusal("RTG004", "Routing does not exist");
    for (method, body) in [("GET", Value::Null), ("PUT", json!({ "routing_name": "x" })), ("DELETE", Value::Null)] {
        fixture.send(method, "/platform/routing/k1", &token, body).await.is(400, gone.clone());
    }
}

#[tokio::test]
async fn a_key_is_made_where_none_is_given_and_told_in_the_message() {
    let fixture = Fixture::usual().await;
    let token = fixture.with_role("router", &[Permission::ManageRoutings]).await;
    let new =
        json!({ "routing_name": "one", "routing_servers": ["http://a"], "client_key": null, "server_index": "1" });
    let created = fixture.send("POST", "/platform/routing/", &token, new).await.json();
    let key = created["message"].as_str().unwrap().split("key: ").nth(1).unwrap().to_owned();
    assert!(uuid::Uuid::parse_str(&key).is_ok(), "{created}");
    let read = fixture.send("GET", &format!("/platform/routing/{key}"), &token, Value::Null).await.json();
    assert_eq!((&read["client_key"], &read["server_index"]), (&json!(key), &json!(1)));
}

#[tokio::test]
async fn routings_come_in_pages_in_the_order_of_their_keys() {
    let fixture = Fixture::usual().await;
    let token = fixture.with_role("router", &[Permission::ManageRoutings]).await;
    for key in ["c", "a", "b"] {
        fixture.send("POST", ROUTING, &token, sample(key)).await;
    }
    let page = fixture.send("GET", "/platform/routing/all?page=1&page_size=2", &token, Value::Null).await.json();
    let keys: Vec<_> =
        page["routings"].as_array().unwrap().iter().map(|routing| routing["client_key"].as_str().unwrap()).collect();
    assert_eq!((keys, &page["has_next"], &page["total"]), (vec!["a", "b"], &json!(true), &json!(3)));
    let past = fixture.send("GET", "/platform/routing/all?page=9", &token, Value::Null).await;
    past.is(200, json!({ "routings": [], "page": 9, "page_size": 10, "has_next": false, "total": 3 }));
    let wrong = fixture.send("GET", "/platform/routing/all?page_size=1000", &token, Value::Null).await;
    wrong.is(400, refusal("PAG001", "Page size exceeds maximum limit"));
}

#[tokio::test]
async fn what_could_not_be_called_or_sent_is_refused_and_the_reason_told() {
    let fixture = Fixture::usual().await;
    let token = fixture.with_role("router", &[Permission::ManageRoutings]).await;
    let with = |member: &str, value: Value| {
        let mut body = sample("k1");
        body[member] = value;
        body
    };
    for (member, value) in [
        ("routing_servers", json!(["http://a", "ftp://b"])),
        ("routing_servers", json!(["http://169.254.169.254"])),
        ("routing_servers", json!([""])),
        ("client_key", json!("a\nb")),
        ("client_key", json!(" a")),
        ("client_key", json!("a/b")),
        ("client_key", json!("all")),
        ("client_key", json!("schlüssel")),
    ] {
        let seen = fixture.send("POST", ROUTING, &token, with(member, value.clone())).await;
        let message = seen.json()["error_message"].as_str().unwrap().to_owned();
        assert_eq!((seen.status, &seen.json()["error_code"]), (400, &json!("RTG002")), "{value}: {seen:?}");
        assert!(message.starts_with(member), "{message}");
    }
    for body in [
        with("routing_servers", json!([])),
        with("routing_servers", json!("http://a")),
        with("routing_name", json!("")),
        with("client_key", json!("k".repeat(51))),
        with("server_index", json!(-1)),
        json!({ "routing_name": "x" }),
        json!([sample("k1")]),
    ] {
        fixture.send("POST", ROUTING, &token, body).await.is(422, refusal("VAL001", "Validation Error"));
    }
    assert_eq!(fixture.identity.store().all(crate::store::Collection::Routings).await.unwrap().len(), 0);
    fixture.send("POST", ROUTING, &token, sample("k1")).await;
    let seen = fixture.send("PUT", "/platform/routing/k1", &token, json!({ "routing_servers": ["ftp://b"] })).await;
    seen.is(400, refusal("RTG006", "routing_servers[0]: `ftp://b`: scheme `ftp` is not served; use http or https"));
    let seen = fixture.send("PUT", "/platform/routing/k1", &token, json!({ "routing_servers": [] })).await;
    assert_eq!(seen.status, 422);
}

#[tokio::test]
async fn each_refusal_has_the_code_of_its_route() {
    let fixture = Fixture::usual().await;
    let token = fixture.with_role("nothing", &[]).await;
    for (method, path, body, code, what) in [
        ("POST", ROUTING, sample("k1"), "RTG009", "create"),
        ("PUT", "/platform/routing/k1", json!({}), "RTG010", "update"),
        ("DELETE", "/platform/routing/k1", Value::Null, "RTG011", "delete"),
        ("GET", "/platform/routing/all", Value::Null, "RTG012", "get"),
        ("GET", "/platform/routing/k1", Value::Null, "RTG013", "get"),
    ] {
        let message = format!("You do not have permission to {what} routings");
        fixture.send(method, path, &token, body.clone()).await.is(403, refusal(code, &message));
        let stranger = fixture.call(method, path).body(body.to_string()).send().await;
        stranger.is(401, json!({ "detail": "Unauthorized" }));
    }
}
