//! Endpoints that documents of upstreams describe, added to objects of a cluster.

use doorman_tests::scripted::Scripted;

use super::{cluster::*, *};

const KIND: &str = "DoormanApi";
const IMPORT: &str = "/platform/api/orders/v1/openapi/import";

fn spec(upstream: &Scripted, more: Value) -> Value {
    let mut spec = json!({ "name": "orders", "version": "v1", "protocol": "REST", "servers": [upstream.url()],
        "openapiUrl": "/o", "endpoints": [{ "method": "GET", "uri": "/a/{id}", "description": "mine" }] });
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    spec
}

async fn upstream() -> Scripted {
    let upstream = Scripted::start().await.unwrap();
    let paths: serde_json::Map<_, _> = (0..50).map(|n| (format!("/{n}"), json!({ "get": {} }))).collect();
    let mut paths = Value::from(paths);
    paths["/a/{key}"] = json!({ "get": {}, "put": { "summary": "Changes" } });
    upstream.say("/o", json!({ "paths": paths }).to_string());
    upstream
}

#[tokio::test]
async fn an_import_is_one_write_of_the_object() {
    let upstream = upstream().await;
    let (fixture, cluster) = in_cluster(Cluster::usual()).await;
    let admin = fixture.token().await;
    let api = json!({ "api_name": "orders", "api_version": "v1", "api_servers": [upstream.url()],
        "api_openapi_url": "/o", "api_wsdl_url": "/w", "api_graphql_schema_url": "/g" });
    assert_eq!(fixture.send("POST", "/platform/api", &admin, api).await.status, 201);
    let mut read = fixture.send("GET", "/platform/api/orders/v1", &admin, Value::Null).await.json();
    let told = ["api_openapi_url", "api_wsdl_url", "api_graphql_schema_url"].map(|member| read[member].take());
    assert_eq!(told, ["/o", "/w", "/g"]);

    let seen = fixture.send("POST", IMPORT, &admin, Value::Null).await;
    let (report, object) = (seen.json(), cluster.object(KIND, "orders-v1"));
    assert_eq!(
        (seen.status, &report["endpoints_imported"], &report["endpoints_skipped"]),
        (200, &json!(52), &json!(0))
    );
    assert_eq!(
        (&object["metadata"]["generation"], object["spec"]["endpoints"].as_array().unwrap().len()),
        (&json!(2), 52)
    );
    assert_eq!(
        object["spec"]["endpoints"][51],
        json!({ "method": "PUT", "uri": "/a/{key}", "description": "Changes" })
    );
    let again = fixture.send("POST", IMPORT, &admin, Value::Null).await.json();
    assert_eq!((&again["endpoints_imported"], &again["endpoints_skipped"]), (&json!(0), &json!(52)));
    let unchanged = cluster.object(KIND, "orders-v1");
    assert_eq!(unchanged["metadata"]["resourceVersion"], object["metadata"]["resourceVersion"], "nothing is written");
    assert_eq!(upstream.asked("/o").len(), 2, "once for each state of the API");
}

#[tokio::test]
async fn what_others_own_is_read_and_not_added_to() {
    let upstream = upstream().await;
    let (fixture, cluster) = in_cluster(Cluster::usual()).await;
    let admin = fixture.token().await;
    cluster.put(KIND, "theirs", "kubectl", &spec(&upstream, json!({})));
    cluster.serve();
    let message = "API orders/v1 is defined by kubectl as DoormanApi edge/theirs; change it there";
    refused(&fixture.send("POST", IMPORT, &admin, Value::Null).await, 409, "DEF409", message);
    assert_eq!(upstream.asked("/o").len(), 0);
    let seen = fixture.send("GET", "/platform/api/orders/v1/openapi", &admin, Value::Null).await;
    assert_eq!((seen.status, seen.json()["paths"].as_object().unwrap().len()), (200, 51));
}

#[tokio::test]
async fn an_api_that_can_not_be_served_is_not_asked_for() {
    let upstream = upstream().await;
    let (fixture, cluster) = in_cluster(Cluster::usual()).await;
    let admin = fixture.token().await;
    cluster.put(KIND, "theirs", "kubectl", &spec(&upstream, json!({ "access": { "roles": ["nobody"] } })));
    cluster.serve();
    let seen = fixture.send("GET", "/platform/api/orders/v1/openapi", &admin, Value::Null).await;
    refused(&seen, 503, "GTW503", "nobody");
    assert_eq!(upstream.asked("/o").len(), 0);
}

#[tokio::test]
async fn each_kind_of_document_is_described_as_its_own() {
    let fixture = Fixture::with(&[]).await;
    let description = fixture.call("GET", "/platform/openapi.json").send().await.json();
    let api = "/platform/api/{api_name}/{api_version}";
    for (method, path, told) in [
        ("post", &*format!("{api}/openapi/refresh"), "endpoints_found"),
        ("post", &format!("{api}/openapi/import"), "endpoints_found"),
        ("post", "/platform/openapi/parse", "endpoints_count"),
        ("post", &format!("{api}/wsdl/refresh"), "service_name"),
        ("post", &format!("{api}/wsdl/import"), "service_name"),
        ("post", "/platform/wsdl/parse", "service_name"),
        ("post", &format!("{api}/graphql/schema/refresh"), "types_count"),
        ("get", "/platform/subscription/subscriptions", "apis"),
        ("get", "/platform/api", "page_size"),
    ] {
        let answer = &description["paths"][path][method]["responses"]["200"]["content"]["application/json"]["schema"];
        let name = answer["$ref"].as_str().and_then(|name| name.rsplit('/').next()).unwrap_or_default();
        let properties = &description["components"]["schemas"][name]["properties"];
        assert!(properties.get(told).is_some(), "{path} says {told}: {name} {properties}");
    }
}
