//! What upstreams say of themselves, over the platform API: real processes, real upstreams.

use anyhow::Result;
use bytes::Bytes;
use doorman_tests::gateway::{GatewayProcess, Start, free_address};
use doorman_tests::scripted::Scripted;
use http::Response;
use serde_json::{Value, json};

mod support;

use support::Session;

const BINARY: &str = env!("CARGO_BIN_EXE_doorman-gateway");

/// A gateway, an upstream that says what it is told, and an administrator.
struct Stage {
    _gateway: GatewayProcess,
    upstream: Scripted,
    admin: Session,
}

impl Stage {
    async fn set(settings: &[(&str, &str)]) -> Result<Self> {
        let upstream = Scripted::start().await?;
        let mut start = Start::new(BINARY)?;
        for (name, value) in settings {
            start = start.with(name, *value);
        }
        let gateway = start.run()?;
        let admin = Session::admin(gateway.url("")).await?;
        Ok(Self { _gateway: gateway, upstream, admin })
    }

    /// An API of this name at this upstream.
    async fn api(&self, name: &str, more: Value) -> Result<()> {
        let mut api = json!({ "api_name": name, "api_version": "v1", "api_servers": [self.upstream.url()],
            "api_public": true, "api_allowed_groups": ["ALL"] });
        api.as_object_mut().into_iter().for_each(|api| api.extend(more.as_object().cloned().unwrap_or_default()));
        self.admin.does("POST", "/platform/api", api).await.map(drop)
    }

    async fn get(&self, path: &str) -> Result<(u16, Value)> {
        self.admin.send("GET", &format!("/platform/api/{path}"), Value::Null).await
    }

    async fn post(&self, path: &str) -> Result<(u16, Value)> {
        self.admin.send("POST", &format!("/platform/api/{path}"), Value::Null).await
    }
}

fn refusal(status: u16, code: &str, message: &str) -> (u16, Value) {
    (status, json!({ "error_code": code, "error_message": message }))
}

fn document(title: &str, paths: Value) -> String {
    json!({ "openapi": "3.1.0", "info": { "title": title, "version": "1" }, "paths": paths }).to_string()
}

#[tokio::test]
async fn a_document_is_asked_for_once_until_something_changes() -> Result<()> {
    let stage = Stage::set(&[]).await?;
    stage
        .api(
            "pets",
            json!({ "api_servers": [format!("{}/base?a=b", stage.upstream.url())], "api_openapi_url": "/o.json?c=d" }),
        )
        .await?;
    let asked = || stage.upstream.asked("/base/o.json?a=b&c=d");
    let say = |title: &str, paths: Value| stage.upstream.say("/base/o.json?a=b&c=d", document(title, paths));
    let title = async || -> Result<Value> { Ok(stage.get("pets/v1/openapi").await?.1["info"]["title"].clone()) };
    say("first", json!({}));
    let together = futures::future::join_all((0..8).map(|_| title())).await;
    assert!(together.iter().all(|title| matches!(title, Ok(title) if title == "first")), "{together:?}");
    assert_eq!(asked().len(), 1);
    let request = &asked()[0];
    assert_eq!((request.method().as_str(), request.body().len()), ("GET", 0));
    assert_eq!(request.headers()["accept-encoding"], "identity");
    assert!(!request.headers().contains_key("authorization"));

    say("second", json!({ "/a": { "get": {}, "post": {} }, "/b": {} }));
    assert_eq!(title().await?, "first");
    let refreshed = stage.post("pets/v1/openapi/refresh").await?;
    assert_eq!(refreshed, (200, json!({ "message": "OpenAPI spec refreshed successfully", "endpoints_found": 2 })));
    assert_eq!((title().await?, asked().len()), (json!("second"), 2));

    say("third", json!({}));
    stage.admin.does("DELETE", "/api/caches", Value::Null).await?;
    assert_eq!((title().await?, asked().len()), (json!("third"), 3));
    stage.admin.does("PUT", "/platform/api/pets/v1", json!({ "api_description": "changed" })).await?;
    say("fourth", json!({}));
    assert_eq!((title().await?, title().await?, asked().len()), (json!("fourth"), json!("fourth"), 4));
    Ok(())
}

#[tokio::test]
async fn servers_are_asked_in_turn_and_only_a_whole_document_counts() -> Result<()> {
    let stage = Stage::set(&[]).await?;
    let (dead, other) = (free_address()?, Scripted::start().await?);
    let (url, first) = ("/openapi.yaml", stage.upstream.url());
    let servers = json!([format!("http://{dead}"), first, other.url()]);
    stage.api("pets", json!({ "api_servers": servers, "api_openapi_url": "openapi.yaml" })).await?;
    other.say(url, "info:\n  title: other\n");
    let answer = |status: u16, name: &str, value: &str, body: &str| {
        let response = Response::builder().status(status).header(name, value).body(Bytes::from(body.to_owned()));
        response.unwrap_or_default()
    };
    let redirect = format!("{first}/elsewhere");
    let big = format!("{{\"a\":\"{}\"}}", "x".repeat(10 << 20));
    for bad in [
        answer(302, "location", &redirect, "{}"),
        answer(204, "x", "y", ""),
        answer(500, "x", "y", "{}"),
        answer(200, "content-encoding", "gzip", "{}"),
        answer(200, "x", "y", &big),
    ] {
        stage.upstream.say_all(url, bad);
        stage.post("pets/v1/openapi/refresh").await?;
        let found = stage.get("pets/v1/openapi").await?;
        assert_eq!(found, (200, json!({ "info": { "title": "other" } })), "YAML is told as JSON");
    }
    assert_eq!(stage.upstream.asked("/elsewhere").len(), 0, "no redirect is followed");
    assert_eq!(stage.upstream.asked(url).len(), 5);

    let failed = refusal(502, "OPENAPI003", "Failed to fetch OpenAPI spec");
    for bad in ["<html></html>", "[]", "a: &a [*a]", "{\"a\":1,\"a\":2}", "\"{}\""] {
        stage.upstream.say_all(url, answer(200, "content-type", "application/json", bad));
        assert_eq!(stage.post("pets/v1/openapi/refresh").await?, failed, "{bad}");
    }
    let (status, none) = stage.post("pets/v1/openapi/import").await?;
    assert_eq!((status, none), refusal(404, "OPENAPI003", "No OpenAPI spec available"));
    Ok(())
}

#[tokio::test]
async fn what_can_not_be_asked_is_refused_with_its_code() -> Result<()> {
    let stage = Stage::set(&[]).await?;
    let openapi = json!({ "api_openapi_url": "/o" });
    stage.api("silent", json!({})).await?;
    stage.api("nowhere", json!({ "api_servers": [], "api_openapi_url": "/o" })).await?;
    stage
        .api("away", json!({ "api_servers": [format!("http://{}", free_address()?)], "api_openapi_url": "/o" }))
        .await?;
    stage.api("elsewhere", json!({ "api_openapi_url": format!("{}/o", stage.upstream.url()) })).await?;
    let no_url = "No OpenAPI URL configured";
    let away = "Failed to fetch OpenAPI spec";
    let table = [
        ("none", 404, "API001", ["API not found"; 2]),
        ("silent", 404, "OPENAPI001", ["No OpenAPI URL configured for this API", no_url]),
        ("nowhere", 404, "OPENAPI002", ["No upstream servers configured"; 2]),
        ("away", 502, "OPENAPI003", ["Failed to fetch OpenAPI spec from upstream", away]),
        ("elsewhere", 502, "OPENAPI003", ["Failed to fetch OpenAPI spec from upstream", away]),
    ];
    for (api, status, code, [read, refreshed]) in table {
        assert_eq!(stage.get(&format!("{api}/v1/openapi")).await?, refusal(status, code, read));
        assert_eq!(stage.post(&format!("{api}/v1/openapi/refresh")).await?, refusal(status, code, refreshed));
        let wanted = if code == "API001" {
            refusal(404, "API001", "API not found")
        } else {
            refusal(404, "OPENAPI003", "No OpenAPI spec available")
        };
        assert_eq!(stage.post(&format!("{api}/v1/openapi/import")).await?, wanted, "{api}");
    }
    let user = stage.admin.user("bea", json!({})).await?;
    for (method, path) in [
        ("GET", "/platform/api/silent/v1/openapi"),
        ("POST", "/platform/api/silent/v1/openapi/refresh"),
        ("POST", "/platform/api/silent/v1/openapi/import"),
        ("POST", "/platform/openapi/parse"),
    ] {
        let body = if path.ends_with("parse") { openapi.clone() } else { Value::Null };
        assert_eq!(user.send(method, path, body).await?, refusal(403, "AUTHZ001", "Not authorized"), "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn an_import_adds_what_the_api_does_not_have() -> Result<()> {
    let stage = Stage::set(&[]).await?;
    stage.api("pets", json!({ "api_openapi_url": "/o" })).await?;
    let own = json!({ "api_name": "pets", "api_version": "v1", "endpoint_method": "GET", "endpoint_uri": "/pets/{key}",
        "endpoint_description": "mine" });
    stage.admin.does("POST", "/platform/endpoint", own).await?;
    stage.upstream.say(
        "/o",
        document(
            "pets",
            json!({
                "/pets": { "get": { "summary": "Lists\npets" }, "post": {}, "options": {} },
                "/pets/{id}": { "get": {}, "delete": { "description": "x".repeat(300) } },
                "/pets/{name}/": { "delete": {} },
                "/report.{format}": { "get": {} },
            }),
        ),
    );
    let report = stage.post("pets/v1/openapi/import").await?;
    let skipped = |method: &str, uri: &str, reason: &str| json!({ "endpoint_method": method, "endpoint_uri": uri, "reason": reason });
    let taken = "the API has an endpoint for these calls";
    let expected = json!({ "message": "OpenAPI import completed", "endpoints_found": 7, "endpoints_imported": 3,
        "endpoints_skipped": 4, "skipped": [
            skipped("OPTIONS", "/pets", "the gateway answers calls of this method itself"),
            skipped("GET", "/pets/{id}", taken),
            skipped("DELETE", "/pets/{name}/", taken),
            skipped("GET", "/report.{format}", "endpoint_uri: `report.{format}`: a parameter must be a whole segment"),
        ] });
    assert_eq!(report, (200, expected));
    let listed = stage.admin.does("GET", "/platform/endpoint/pets/v1", Value::Null).await?;
    let shown = |one: &Value| {
        let text = |member: &str| one[member].as_str().unwrap_or_default().to_owned();
        [text("endpoint_method"), text("endpoint_uri"), text("endpoint_description")]
    };
    let mut found: Vec<_> = listed["endpoints"].as_array().into_iter().flatten().map(shown).collect();
    found.sort();
    assert_eq!(
        found,
        [
            ["DELETE".into(), "/pets/{id}".into(), "x".repeat(255)],
            ["GET".into(), "/pets".into(), "Lists pets".into()],
            ["GET".into(), "/pets/{key}".into(), "mine".into()],
            ["POST".into(), "/pets".into(), "POST /pets".into()],
        ] as [[String; 3]; 4]
    );
    assert!(listed["endpoints"][0]["endpoint_id"].is_string() && listed["endpoints"][0]["client_uri"].is_null());
    stage.upstream.say("/pets", "[]");
    assert_eq!(stage.admin.send("POST", "/api/rest/pets/v1/pets", json!({})).await?, (200, json!([])));

    let (status, again) = stage.post("pets/v1/openapi/import").await?;
    assert_eq!((status, &again["endpoints_imported"], &again["endpoints_skipped"]), (200, &json!(0), &json!(7)));
    Ok(())
}

#[tokio::test]
async fn documents_are_told_apart_when_they_are_sent() -> Result<()> {
    let stage = Stage::set(&[("STRICT_RESPONSE_ENVELOPE", "true")]).await?;
    let parse = async |body: &str, kind: &str| -> Result<Value> {
        let request = stage.admin.request("POST", "/platform/openapi/parse").header("content-type", kind);
        Ok(request.body(body.to_owned()).send().await?.json().await?)
    };
    let expected = json!({ "status_code": 200, "response": { "title": "pets", "version": "1", "endpoints_count": 1,
        "endpoints": [{ "endpoint_uri": "/a", "endpoint_method": "GET", "endpoint_description": "", "endpoint_tags": [],
        "endpoint_parameters": [], "endpoint_request_body": null, "endpoint_responses": {} }] } });
    assert_eq!(parse(&document("pets", json!({ "/a": { "get": {} } })), "application/json").await?, expected);
    let yaml = "info: {title: pets, version: '1'}\npaths: {/a: {get: {}}}\n";
    assert_eq!(parse(yaml, "application/yaml").await?, expected);
    for bad in ["", "[]", "{", "\u{0}", "a: [", "7"] {
        let refused =
            json!({ "status_code": 400, "error_code": "OPENAPI004", "error_message": "Invalid OpenAPI spec" });
        assert_eq!(parse(bad, "application/json").await?, refused, "{bad}");
    }
    stage
        .admin
        .send(
            "POST",
            "/platform/api",
            json!({ "api_name": "pets", "api_version": "v1", "api_public": true,
        "api_servers": [stage.upstream.url()], "api_openapi_url": "/o" }),
        )
        .await?;
    stage.upstream.say("/o", r#"{"b": 1.50, "a": []}"#);
    let found = stage.admin.get("/platform/api/pets/v1/openapi").await?.text().await?;
    assert_eq!(found, r#"{"status_code":200,"response":{"b": 1.50, "a": []}}"#, "letter by letter");
    Ok(())
}

fn wsdl(name: &str, location: &str) -> String {
    format!(
        "<definitions xmlns='http://schemas.xmlsoap.org/wsdl/' xmlns:s='http://schemas.xmlsoap.org/wsdl/soap/' \
         targetNamespace='urn:{name}'><portType name='p'><operation name='Add'><input message='AddIn'/></operation>\
         <operation name='Ping'/></portType><binding name='b' type='p'><operation name='Add'>\
         <s:operation soapAction='urn:add'/></operation></binding><service name='{name}'>\
         <port><s:address location='{location}'/></port></service></definitions>"
    )
}

#[tokio::test]
async fn a_wsdl_is_read_and_its_address_imported() -> Result<()> {
    let stage = Stage::set(&[]).await?;
    let base = format!("{}/base", stage.upstream.url());
    stage.api("calc", json!({ "api_servers": [base], "api_wsdl_url": "calc.asmx?wsdl", "api_type": "SOAP" })).await?;
    let (place, text) = ("/base/calc.asmx?wsdl", wsdl("Calc", "http://internal/base/calc.asmx"));
    stage.upstream.say(place, text.clone());
    for cached in [false, true] {
        assert_eq!(stage.get("calc/v1/wsdl").await?, (200, json!({ "wsdl": text, "cached": cached })));
    }
    let refreshed = json!({ "message": "WSDL refreshed successfully", "service_name": "Calc", "operations_found": 2 });
    assert_eq!(stage.post("calc/v1/wsdl/refresh").await?, (200, refreshed));
    assert_eq!(stage.upstream.asked(place).len(), 2);

    let report = |imported: usize, skipped: Value| {
        json!({ "message": "WSDL import completed", "service_name": "Calc", "operations_found": 2,
            "endpoints_imported": imported, "endpoints_skipped": 1 - imported, "skipped": skipped })
    };
    assert_eq!(stage.post("calc/v1/wsdl/import").await?, (200, report(1, json!([]))));
    let taken = json!([{ "endpoint_method": "POST", "endpoint_uri": "/calc.asmx",
        "reason": "the API has an endpoint for these calls" }]);
    assert_eq!(stage.post("calc/v1/wsdl/import").await?, (200, report(0, taken)));
    let path = "/platform/endpoint/POST/calc/v1/calc.asmx";
    let endpoint = stage.admin.does("GET", path, Value::Null).await?;
    assert_eq!(endpoint["endpoint_description"], "Calc: Add, Ping");
    stage.upstream.say("/base/calc.asmx", "<ok/>");
    let call = stage.admin.request("POST", "/api/rest/calc/v1/calc.asmx").header("content-type", "text/xml");
    assert_eq!(call.body("<a/>").send().await?.text().await?, "<ok/>");

    stage.upstream.say(place, "<!DOCTYPE a [<!ENTITY b 'c'>]><definitions/>");
    let invalid = refusal(400, "WSDL004", "Invalid WSDL: DTDs and entities are not allowed");
    assert_eq!(stage.post("calc/v1/wsdl/refresh").await?, invalid);
    let none = refusal(404, "WSDL003", "No WSDL available");
    assert_eq!(stage.post("calc/v1/wsdl/import").await?, none);
    Ok(())
}

#[tokio::test]
async fn a_wsdl_may_be_elsewhere_but_not_everywhere() -> Result<()> {
    let stage = Stage::set(&[]).await?;
    let other = Scripted::start().await?;
    let text = wsdl("Other", "/a");
    other.say("/w?wsdl", text.clone());
    let url = format!("{}/w?wsdl", other.url());
    stage.api("other", json!({ "api_servers": [], "api_wsdl_url": url })).await?;
    assert_eq!(stage.get("other/v1/wsdl").await?, (200, json!({ "wsdl": text, "cached": false })));
    assert_eq!(other.asked("/w?wsdl")[0].headers()["host"], other.url().trim_start_matches("http://"));

    let mut moved = Response::new(Bytes::new());
    *moved.status_mut() = http::StatusCode::FOUND;
    moved.headers_mut().insert("location", url.parse()?);
    stage.upstream.say_all("/moved", moved);
    let forbidden = [
        "http://169.254.169.254/latest/meta-data".to_owned(),
        "http://[fe80::1]/".to_owned(),
        "http://metadata.google.internal/".to_owned(),
        "file:///etc/passwd".to_owned(),
        "gopher://127.0.0.1:6379/_x".to_owned(),
        format!("http://user:password@{}/w?wsdl", other.url().trim_start_matches("http://")),
        format!("{}/moved", stage.upstream.url()),
    ];
    for (n, url) in forbidden.iter().enumerate() {
        let name = format!("bad{n}");
        stage.api(&name, json!({ "api_wsdl_url": url })).await?;
        let failed = refusal(502, "WSDL003", "Failed to fetch WSDL from upstream");
        assert_eq!(stage.get(&format!("{name}/v1/wsdl")).await?, failed, "{url}");
    }
    assert_eq!(other.asked("/w?wsdl").len(), 1);
    stage.api("silent", json!({})).await?;
    stage.api("nowhere", json!({ "api_servers": [], "api_wsdl_url": "/w" })).await?;
    for (api, read, refreshed) in [
        (
            "silent",
            refusal(404, "WSDL001", "No WSDL URL configured for this API"),
            refusal(404, "WSDL001", "No WSDL URL configured"),
        ),
        (
            "nowhere",
            refusal(404, "WSDL002", "No upstream servers configured"),
            refusal(502, "WSDL003", "Failed to fetch WSDL"),
        ),
        ("none", refusal(404, "API001", "API not found"), refusal(404, "API001", "API not found")),
    ] {
        assert_eq!(stage.get(&format!("{api}/v1/wsdl")).await?, read);
        assert_eq!(stage.post(&format!("{api}/v1/wsdl/refresh")).await?, refreshed);
    }
    Ok(())
}

#[tokio::test]
async fn a_wsdl_that_is_sent_is_told_apart() -> Result<()> {
    let stage = Stage::set(&[]).await?;
    let parse = async |body: String| -> Result<(u16, Value)> {
        let answer = stage.admin.request("POST", "/platform/wsdl/parse").body(body).send().await?;
        Ok((answer.status().as_u16(), answer.json().await?))
    };
    let operation = |name: &str, action: &str, input: &str| json!({ "name": name, "soap_action": action, "input_message": input, "output_message": "" });
    let expected = json!({ "service_name": "Calc", "target_namespace": "urn:Calc", "endpoints_count": 2,
        "operations": [operation("Add", "urn:add", "AddIn"), operation("Ping", "", "")] });
    assert_eq!(parse(wsdl("Calc", "/a")).await?, (200, expected));
    assert_eq!(parse(" \n".into()).await?, refusal(400, "WSDL004", "Empty WSDL content"));
    let other = refusal(400, "WSDL004", "Invalid WSDL: its root must be definitions");
    assert_eq!(parse("<a/>".into()).await?, other);
    Ok(())
}

#[tokio::test]
async fn a_schema_is_asked_for_by_introspection() -> Result<()> {
    let stage = Stage::set(&[]).await?;
    stage.api("graph", json!({})).await?;
    let not_known = refusal(404, "GQL003", "Schema not cached. Call GET schema first.");
    assert_eq!(stage.get("graph/v1/graphql/types").await?, not_known);
    assert_eq!(stage.get("none/v1/graphql/types").await?, not_known);
    assert_eq!(
        stage.get("graph/v1/graphql/schema").await?,
        refusal(502, "GQL002", "Failed to fetch schema from upstream")
    );
    assert_eq!(stage.post("graph/v1/graphql/schema/refresh").await?, refusal(502, "GQL002", "Failed to fetch schema"));

    let schema = json!({ "queryType": { "name": "Q" }, "subscriptionType": { "name": "S" }, "types": [
        { "kind": "OBJECT", "name": "Q", "description": null, "fields": [
            { "name": "a", "type": { "kind": "NON_NULL", "ofType": { "kind": "SCALAR", "name": "Int" } } }] },
        { "kind": "OBJECT", "name": "__Schema" }] });
    stage.upstream.say("/graphql", json!({ "data": { "__schema": schema } }).to_string());
    let refreshed = json!({ "message": "Schema refreshed successfully", "types_count": 1, "has_subscriptions": true });
    assert_eq!(stage.post("graph/v1/graphql/schema/refresh").await?, (200, refreshed));
    let told = json!({ "schema": schema, "cached": true, "has_subscriptions": true,
        "operation_types": { "query": "Q", "mutation": null, "subscription": "S" } });
    assert_eq!(stage.get("graph/v1/graphql/schema").await?, (200, told));
    let types = json!({ "types_count": 1, "types": [{ "name": "Q", "kind": "OBJECT", "description": null,
        "fields": [{ "name": "a", "type": "Int!" }] }] });
    assert_eq!(stage.get("graph/v1/graphql/types").await?, (200, types));
    let asked = stage.upstream.asked("/graphql");
    let last = asked.last().map(|last| (last.method().as_str(), last.headers()["content-type"].to_str().unwrap_or("")));
    assert_eq!(last, Some(("POST", "application/json")));
    let question: Value = serde_json::from_slice(asked[0].body())?;
    assert!(question["query"].as_str().is_some_and(|query| query.contains("__schema")), "{question}");

    stage.admin.does("PUT", "/platform/api/graph/v1", json!({ "api_graphql_schema_url": "/g" })).await?;
    assert_eq!(stage.get("graph/v1/graphql/types").await?, not_known);
    stage.upstream.say("/g", r#"{"errors":[{"message":"no introspection"}]}"#);
    assert_eq!(stage.post("graph/v1/graphql/schema/refresh").await?, refusal(502, "GQL002", "Failed to fetch schema"));
    stage.api("nowhere", json!({ "api_servers": [] })).await?;
    assert_eq!(stage.get("nowhere/v1/graphql/schema").await?, refusal(404, "GQL001", "No upstream servers configured"));
    Ok(())
}

#[tokio::test]
async fn services_are_listed_without_asking_anybody() -> Result<()> {
    let stage = Stage::set(&[]).await?;
    let more = json!({ "api_grpc_allowed_services": ["Greeter", "Health"], "api_grpc_reflection_url": "/r" });
    stage.api("greeter", more).await?;
    stage.api("any", json!({})).await?;
    stage.api("nowhere", json!({ "api_servers": [] })).await?;
    for (api, services, is_reflected) in [("greeter", json!(["Greeter", "Health"]), true), ("any", json!([]), false)] {
        let (status, told) = stage.get(&format!("{api}/v1/grpc/services")).await?;
        assert_eq!((status, &told["services"], &told["reflection_enabled"]), (200, &services, &json!(is_reflected)));
        assert!(told["note"].is_string());
    }
    let nowhere = refusal(404, "GRPC001", "No upstream servers configured");
    assert_eq!(stage.get("nowhere/v1/grpc/services").await?, nowhere);
    assert_eq!(stage.get("none/v1/grpc/services").await?, refusal(404, "API001", "API not found"));
    Ok(())
}
