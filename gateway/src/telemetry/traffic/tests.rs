//! The store over days that pass as fast as a test wants.

use serde_json::{Value, json};

use super::*;

/// 2024-01-15, 10:30.
const NOW: u64 = 28_421_910;
const DAY: u64 = 24 * 60;

fn open() -> Traffic {
    Traffic::open(None, 500)
}

fn call(status: u16, millis: u64) -> Call<'static> {
    Call {
        status,
        elapsed: Duration::from_millis(millis),
        bytes_in: 10,
        bytes_out: 100,
        api: Some("orders/v1"),
        user: Some("alice"),
        ..Call::default()
    }
}

fn monitor(traffic: &Traffic, now: u64, range: &str) -> Value {
    let monitor = traffic.monitor_at(now, Range::parse(range), Grouping::Minute, Sorting::Ascending);
    serde_json::to_value(monitor).unwrap()
}

#[test]
fn the_monitor_has_the_members_of_the_guide_and_of_the_reference() {
    let traffic = open();
    for millis in 1..=100 {
        traffic.record_at(NOW, &call(if millis > 98 { 500 } else { 200 }, millis));
    }
    traffic.record_at(NOW - 1, &Call { api: Some("users/v2"), protocol: Protocol::Soap, user: None, ..call(404, 7) });
    traffic.record_at(NOW - 1, &Call { api: None, user: Some("bob"), timeouts: 1, retries: 2, ..call(404, 0) });
    traffic.record_at(NOW - 1, &Call { is_test: true, user: Some("tester"), ..call(200, 0) });
    traffic.record_at(NOW - 60, &call(200, 1));
    let seen = monitor(&traffic, NOW, "1h");
    for (name, value) in [
        ("period", json!("1h")),
        ("total_requests", json!(103)),
        ("total_errors", json!(4)),
        ("error_rate", json!(4.0 / 103.0)),
        ("p50_response_time_ms", json!(49.0)),
        ("p99_response_time_ms", json!(99.0)),
        (
            "apis",
            json!({
                "orders/v1": {"requests": 100, "errors": 2, "avg_response_time_ms": 50.5},
                "users/v2": {"requests": 1, "errors": 1, "avg_response_time_ms": 7.0},
            }),
        ),
        ("total_test_requests", json!(1)),
        ("avg_response_ms", json!(49.097)),
        ("avg_response_time_ms", json!(49.097)),
        ("total_bytes_in", json!(1030)),
        ("total_bytes_out", json!(10300)),
        ("total_upstream_timeouts", json!(1)),
        ("total_retries", json!(2)),
        ("unique_users", json!(2)),
        ("status_counts", json!({"200": 99, "404": 2, "500": 2})),
        ("top_users", json!([["alice", 100], ["bob", 1]])),
        ("top_apis", json!([["rest:orders", 100], ["rest:unknown", 1], ["soap:users", 1]])),
    ] {
        assert_eq!(seen[name], value, "{name}");
    }
    assert_eq!(
        seen["series"][0],
        json!({
            "timestamp": (NOW - 1) * 60, "count": 3, "test_count": 1, "error_count": 2, "avg_ms": 2.333, "p95_ms": 7.0,
            "bytes_in": 30, "bytes_out": 300, "error_rate": 2.0 / 3.0, "upstream_timeouts": 1, "retries": 2,
        })
    );
    assert_eq!(seen["series"].as_array().map(Vec::len), Some(2));
    assert_eq!(monitor(&traffic, NOW, "24h")["total_requests"], 104);
    assert_eq!(monitor(&traffic, NOW, "what")["period"], "24h");
}

#[test]
fn details_of_past_hours_stay_exact_in_number_and_go_after_thirty_days() {
    let traffic = open();
    let mut now = NOW - 35 * DAY;
    // Each hour one request of alice and one of bob, one of them failing.
    while now < NOW {
        traffic.record_at(now, &call(200, 10));
        traffic.record_at(now, &Call { user: Some("bob"), ..call(503, 30) });
        drop(traffic.history(now));
        now += 60;
    }
    let seen = monitor(&traffic, NOW, "30d");
    let hours = seen["total_requests"].as_u64().unwrap() / 2;
    assert!((719..=721).contains(&hours), "{hours}");
    assert_eq!(seen["status_counts"], json!({"200": hours, "503": hours}));
    assert_eq!(seen["apis"]["orders/v1"]["requests"], 2 * hours);
    assert_eq!(seen["top_users"], json!([["alice", hours], ["bob", hours]]));
    assert_eq!((&seen["p50_response_time_ms"], &seen["p95_response_time_ms"]), (&json!(10.0), &json!(30.0)));
    assert_eq!(seen["series"][0]["p95_ms"], 30.0, "known after the details went");
    let days = traffic.monitor_at(NOW, Range::Week, Grouping::Day, Sorting::Descending);
    let days = serde_json::to_value(days).unwrap();
    assert_eq!(days["series"].as_array().map(Vec::len), Some(8));
    assert_eq!((&days["series"][1]["count"], &days["series"][1]["p95_ms"]), (&json!(48), &Value::Null));
    assert!(days["series"][0]["timestamp"].as_u64() > days["series"][1]["timestamp"].as_u64());
}

#[test]
fn what_was_counted_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let at = super::now();
    let before = {
        let traffic = Traffic::open(Some(folder.path()), 500);
        traffic.record_at(at - 200, &Call { protocol: Protocol::Grpc, ..call(200, 5) });
        drop(traffic.history(at));
        traffic.record_at(at, &call(404, 10));
        traffic.save().unwrap();
        monitor(&traffic, at, "24h")
    };
    let traffic = Traffic::open(Some(folder.path()), 500);
    assert_eq!(monitor(&traffic, at, "24h"), before);
    assert_eq!(before["total_requests"], 2);
    let written = fs::metadata(folder.path().join(FILE)).unwrap().modified().unwrap();
    traffic.save().unwrap();
    assert_eq!(fs::metadata(folder.path().join(FILE)).unwrap().modified().unwrap(), written, "nothing was new");
}

#[test]
fn a_file_that_cannot_be_read_is_put_aside() {
    let folder = tempfile::tempdir().unwrap();
    for text in ["{\"minutes\": ", r#"{"version":9,"series":[],"minutes":[],"hours":[]}"#] {
        fs::write(folder.path().join(FILE), text).unwrap();
        let traffic = Traffic::open(Some(folder.path()), 500);
        assert_eq!(monitor(&traffic, NOW, "24h")["total_requests"], 0);
        assert_eq!(fs::read_to_string(folder.path().join("metrics.json.unread")).unwrap(), text);
        traffic.record_at(super::now(), &call(200, 1));
        traffic.save().unwrap();
    }
}

#[test]
fn the_report_is_the_reference_s() {
    let traffic = open();
    traffic.record_at(NOW, &call(200, 10));
    traffic.record_at(NOW, &Call { user: Some("=cmd"), ..call(500, 20) });
    traffic.record_at(NOW - DAY, &call(200, 10));
    let report = traffic.report_at(NOW, "2024-01-15", "2024-01-15T23:59").unwrap();
    let expected = "Report,From,2024-01-15,To,2024-01-15T23:59\n\nOverview\ntotal_requests,2\ntotal_errors,1\nsuccesses,1\n\
         success_rate,50.00%\navg_response_ms,15.00\n\nBandwidth Overview\ntotal_bytes_in,20\ntotal_bytes_out,200\n\
         total_bytes,220\n\nStatus Codes\nstatus,count\n200,1\n500,1\n\nAPI Usage\napi,total,errors,successes,success_rate\n\
         orders/v1,2,1,1,50.00%\n\nUser Usage\nusername,requests\n'=cmd,1\nalice,1\n\n\"Bandwidth (per day, UTC)\"\n\
         date,bytes_in,bytes_out,total\n2024-01-15,20,200,220\n";
    assert_eq!(report, expected);
    let both = traffic.report_at(NOW, "2024-01-14", "2024-01-15").unwrap();
    assert!(
        both.contains("total_requests,3\n") && both.ends_with("2024-01-14,10,100,110\n2024-01-15,20,200,220\n"),
        "{both}"
    );
    assert!(traffic.report_at(NOW, "yesterday", "2024-01-15").unwrap_err().starts_with("Invalid date"));
    assert!(traffic.report_at(NOW, "2024-01-16", "2024-01-15").unwrap_err().starts_with("End date"));
}

#[test]
fn the_dashboard_leaves_synthetic_traffic_out() {
    let traffic = open();
    for _ in 0..1_234 {
        traffic.record_at(NOW - 20 * DAY, &call(200, 1));
    }
    traffic.record_at(NOW, &Call { is_test: true, ..call(200, 1) });
    traffic.record_at(NOW, &call(200, 1));
    let seen = serde_json::to_value(traffic.dashboard_at(NOW, 7)).unwrap();
    assert_eq!(
        seen,
        json!({
            "totalRequests": 1_235, "activeUsers": 1, "newApis": 7, "monthlyUsage": {"Dec": 1_234, "Jan": 1},
            "activeUsersList": [{"username": "alice", "requests": "1,235", "subscribers": 0}],
            "popularApis": [{"name": "rest:orders", "requests": "1,235", "subscribers": 0}],
        })
    );
}

#[test]
fn requests_of_many_threads_all_count() {
    let traffic = open();
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| (0..1_000).for_each(|n| traffic.record_at(NOW + n / 500, &call(200, 1))));
        }
    });
    assert_eq!(monitor(&traffic, NOW + 1, "1h")["total_requests"], 20_000);
}

#[test]
fn a_request_costs_next_to_nothing() {
    let traffic = open();
    let calls = 100_000;
    let started = std::time::Instant::now();
    for n in 0..calls {
        traffic.record(&call(200, u64::from(n % 50)));
    }
    let each = started.elapsed() / calls;
    println!("{each:?} a request");
    assert!(each < Duration::from_micros(100), "{each:?} a request");
}
