//! Logs, numbers, dashboard and status, as the reference and the guide have them (platform API 23 to 29).

use mongodb::bson::doc;
use tracing::subscriber::with_default;
use tracing_subscriber::layer::SubscriberExt;

use super::*;
use crate::{
    store::Collection,
    telemetry::traffic::{Call as Answered, Protocol},
};

impl Fixture {
    fn recorded(self, act: impl FnOnce()) -> Self {
        with_default(tracing_subscriber::registry().with(self.telemetry.logs.layer()), act);
        self
    }

    async fn get(&self, path: &str, token: &str) -> Seen {
        self.send("GET", path, token, Value::Null).await
    }
}

fn requests() {
    for (id, status, api) in [("r1", 200, "orders/v1"), ("r2", 500, "users/v2")] {
        tracing::info!(
            request_id = id,
            username = "alice",
            client_ip = "192.0.2.7",
            api,
            "Endpoint: GET /api/rest/{api}/a,b | status_code: {status} | Total time: 7ms"
        );
    }
}

#[tokio::test]
async fn records_are_listed_with_what_is_known_of_them() {
    let fixture = Fixture::usual().await.recorded(requests);
    let token = fixture.with_role("reader", &[Permission::ViewLogs]).await;
    let seen = fixture.get("/platform/logging/logs?limit=1&api=orders", &token).await;
    let mut body = seen.json();
    assert!(body["logs"][0]["timestamp"].as_str().unwrap().ends_with('Z'), "{seen:?}");
    body["logs"][0]["timestamp"] = Value::Null;
    let entry = json!({
        "timestamp": null, "level": "INFO", "source": "doorman.gateway", "type": "gateway", "request_id": "r1",
        "message": "Endpoint: GET /api/rest/orders/v1/a,b | status_code: 200 | Total time: 7ms", "user": "alice",
        "api": "orders/v1", "endpoint": "/api/rest/orders/v1/a,b", "method": "GET", "status_code": "200",
        "response_time": "7", "ip_address": "192.0.2.7", "protocol": "rest",
    });
    assert_eq!((seen.status, body), (200, json!({ "logs": [entry], "total": 1, "has_more": false })));
    let all = fixture.get("/platform/logging/logs", &token).await.json();
    assert_eq!((&all["total"], &all["logs"][0]["request_id"]), (&json!(2), &json!("r2")));
    for query in ["limit=0", "limit=1001", "offset=-1", "limit=x"] {
        let seen = fixture.get(&format!("/platform/logging/logs?{query}"), &token).await;
        assert_eq!((seen.status, &seen.json()["error_code"]), (422, &json!("VAL001")), "{query}");
    }
    let files = fixture.get("/platform/logging/logs/files", &token).await.json();
    assert_eq!((&files["count"], files["log_files"].as_array().map(Vec::len)), (&json!(2), Some(2)));
    let statistics = fixture.get("/platform/logging/logs/statistics", &token).await.json();
    assert_eq!((&statistics["total_logs"], &statistics["avg_response_time"]), (&json!(2), &json!(7.0)));
    assert_eq!(statistics["top_users"], json!([{ "name": "alice", "count": 2 }]));
}

#[tokio::test]
async fn records_are_exported_as_text_and_as_a_file() {
    let fixture = Fixture::usual().await.recorded(requests);
    let token = fixture.with_role("exporter", &[Permission::ExportLogs]).await;
    let export = fixture.get("/platform/logging/logs/export", &token).await.json();
    assert_eq!(export["format"], "json");
    let records: Value = serde_json::from_str(export["data"].as_str().unwrap()).unwrap();
    assert_eq!(records.as_array().map(Vec::len), Some(2));
    let file = fixture.get("/platform/logging/logs/download?format=csv&user=alice", &token).await;
    assert_eq!((file.status, file.header("content-type")), (200, "text/csv"));
    assert!(file.header("content-disposition").starts_with("attachment; filename=logs_export_"), "{file:?}");
    assert!(file.text.lines().nth(2).unwrap().contains("/api/rest/orders/v1/a;b"), "{file:?}");
    assert_eq!(fixture.get("/platform/logging/logs/export?format=xml", &token).await.status, 422);
}

#[tokio::test]
async fn each_refusal_has_the_code_of_its_route() {
    let fixture = Fixture::usual().await;
    let token = fixture.with_role("nothing", &[]).await;
    for (path, code) in [
        ("/platform/logging/logs", "LOG001"),
        ("/platform/logging/logs/statistics", "LOG002"),
        ("/platform/logging/logs/export", "LOG003"),
        ("/platform/logging/logs/download", "LOG004"),
        ("/platform/logging/logs/files", "LOG005"),
        ("/platform/monitor/metrics", "MON001"),
        ("/platform/monitor/report?start=2024-01-01&end=2024-01-01", "MON002"),
        ("/platform/analytics/overview", "ANALYTICS001"),
        ("/platform/analytics/timeseries", "ANALYTICS001"),
        ("/platform/analytics/top-apis", "ANALYTICS001"),
        ("/platform/analytics/top-users", "ANALYTICS001"),
        ("/platform/analytics/top-endpoints", "ANALYTICS001"),
        ("/platform/analytics/api/orders/v1", "ANALYTICS001"),
        ("/platform/analytics/user/nothing", "ANALYTICS001"),
        ("/api/status", "GTW013"),
    ] {
        let seen = fixture.get(path, &token).await;
        assert_eq!((seen.status, &seen.json()["error_code"]), (403, &json!(code)), "{path}");
        assert_eq!(fixture.call("GET", path).send().await.status, 401, "{path}");
    }
}

fn call(api: &str) -> Answered<'_> {
    Answered { status: 200, protocol: Protocol::Rest, api: Some(api), user: Some("amy"), ..Answered::default() }
}

#[tokio::test]
async fn the_monitor_and_the_report_tell_of_the_traffic() {
    let fixture = Fixture::usual().await;
    fixture.telemetry.traffic.record(&call("orders/v1"));
    fixture.telemetry.traffic.record(&Answered { status: 502, ..call("orders/v1") });
    let token = fixture.with_role("manager", &[Permission::ManageGateway]).await;
    let seen = fixture.get("/platform/monitor/metrics?range=1h&group=day&sort=desc", &token).await.json();
    assert_eq!((&seen["period"], &seen["total_requests"], &seen["total_errors"]), (&json!("1h"), &json!(2), &json!(1)));
    assert_eq!(seen["apis"]["orders/v1"]["requests"], 2);
    assert_eq!(seen["top_apis"], json!([["rest:orders", 2]]));
    assert!(seen["series"][0].get("p95_ms").is_none(), "a day: {seen}");
    let today = jiff::Timestamp::now().strftime("%Y-%m-%d").to_string();
    let report = fixture.get(&format!("/platform/monitor/report?start=2024-01-01&end={today}"), &token).await;
    assert_eq!((report.status, report.header("content-type")), (200, "text/csv"));
    let disposition = format!("attachment; filename=doorman_report_2024-01-01_to_{today}.csv");
    assert_eq!(report.header("content-disposition"), disposition);
    assert!(report.text.contains("orders/v1,2,1,1,50.00%"), "{report:?}");
    for (query, message) in [
        ("start=x&end=2024-01-01", "Invalid date format. Use YYYY-MM-DD or YYYY-MM-DDTHH:MM"),
        ("start=2024-01-02&end=2024-01-01", "End date must be after start date"),
    ] {
        let seen = fixture.get(&format!("/platform/monitor/report?{query}"), &token).await;
        seen.is(400, json!({ "error_code": "MON003", "error_message": message }));
    }
    assert_eq!(fixture.get("/platform/monitor/report?start=2024-01-01", &token).await.status, 422);
}

#[tokio::test]
async fn analytics_answer_holders_of_their_permission() {
    let fixture = Fixture::usual().await;
    let endpoint = Some("GET orders/v1/items/{id}");
    fixture.telemetry.traffic.record(&Answered { endpoint, ..call("orders/v1") });
    fixture.telemetry.traffic.record(&Answered { endpoint, status: 502, user: Some("bob"), ..call("orders/v1") });
    fixture.telemetry.traffic.record(&Answered { is_test: true, ..call("orders/v1") });
    let token = fixture.with_role("analyst", &[Permission::ViewAnalytics]).await;
    let get = async |path: &str| fixture.get(&format!("/platform/analytics/{path}"), &token).await;
    let overview = get("overview?range=1h").await.json();
    assert_eq!((&overview["summary"]["total_requests"], &overview["summary"]["unique_users"]), (&json!(2), &json!(2)));
    assert_eq!(overview["top_apis"], json!([{ "api": "orders/v1", "count": 2 }]));
    let course = get("timeseries?granularity=5minute&metric_type=error_rate").await.json();
    assert_eq!((&course["granularity"], &course["series"][0]["error_count"]), (&json!("5minute"), &json!(1)));
    let endpoints = get("top-endpoints?sort_by=avg_ms&limit=100").await.json();
    assert_eq!((&endpoints["sort_by"], &endpoints["total_endpoints"]), (&json!("avg_ms"), &json!(1)));
    assert_eq!(endpoints["top_endpoints"][0]["endpoint_uri"], "/orders/v1/items/{id}");
    assert_eq!(get("top-apis").await.json()["total_apis"], 1);
    assert_eq!(get("top-users?limit=1").await.json()["top_users"], json!([{ "user": "amy", "count": 1 }]));
    let api = get("api/orders/v1?start_ts=0&end_ts=9999999999").await.json();
    assert_eq!((&api["summary"]["count"], &api["endpoints"][0]["error_count"]), (&json!(2), &json!(1)));
    assert_eq!(get("user/bob").await.json()["summary"], json!({ "user": "bob", "count": 1 }));

    let missing = |message| json!({ "error_code": "ANALYTICS404", "error_message": message });
    get("api/orders/v2").await.is(404, missing("No data found for API: orders/v2"));
    get("api/orders/v1?start_ts=0&end_ts=1").await.is(404, missing("No data found for API: orders/v1"));
    get("user/eve").await.is(404, missing("No data found for user: eve"));
    let message = "end_ts must not be before start_ts";
    get("overview?start_ts=9&end_ts=8")
        .await
        .is(400, json!({ "error_code": "ANALYTICS400", "error_message": message }));
    for query in [
        "top-apis?limit=0",
        "top-users?limit=101",
        "overview?start_ts=x",
        "overview?end_ts=-1",
        "top-endpoints?sort_by=name",
        "timeseries?granularity=year",
    ] {
        assert_eq!(get(query).await.status, 422, "{query}");
    }
}

#[tokio::test]
async fn the_dashboard_counts_subscriptions() {
    let fixture = Fixture::usual().await;
    for user in ["amy", "bob"] {
        let subscriptions = doc! { "username": user, "apis": ["orders/v1", "orders/v2", "users/v1"] };
        fixture.identity.store().save(Collection::Subscriptions, subscriptions).await.unwrap();
    }
    fixture.telemetry.traffic.record(&call("orders/v1"));
    let token = fixture.with_role("nothing", &[]).await;
    let seen = fixture.get("/platform/dashboard", &token).await.json();
    assert_eq!((&seen["totalRequests"], &seen["activeUsers"], &seen["newApis"]), (&json!(1), &json!(1), &json!(0)));
    assert_eq!(seen["activeUsersList"], json!([{ "username": "amy", "requests": "1", "subscribers": 3 }]));
    assert_eq!(seen["popularApis"], json!([{ "name": "rest:orders", "requests": "1", "subscribers": 2 }]));
}

#[tokio::test]
async fn the_status_has_the_members_of_the_guide_and_of_the_reference() {
    let fixture = Fixture::usual().await;
    let token = fixture.with_role("manager", &[Permission::ManageGateway]).await;
    let seen = fixture.get("/api/status", &token).await.json();
    assert_eq!((&seen["status"], &seen["mode"]), (&json!("ok"), &json!("memory")));
    assert_eq!(
        (&seen["mongodb"], &seen["redis"], &seen["active_connections"]),
        (&json!(true), &json!(true), &json!(0))
    );
    assert!(seen["uptime_seconds"].is_u64() && seen["memory_usage_mb"].as_u64() > Some(0), "{seen}");
    assert!(seen["memory_usage"].as_str().unwrap().ends_with('%') && seen["uptime"].as_str().unwrap().ends_with('s'));
    let stranger = fixture.call("GET", "/api/status").send().await;
    stranger.is(401, json!({ "error_code": "GTW401", "error_message": "Unauthorized" }));
}
