//! The store over days that pass as fast as a test wants.

use serde_json::{Value, json};

use super::count::OTHER;
use super::*;

/// 2024-01-15, 10:30.
const NOW: u64 = 28_421_910;
const DAY: u64 = 24 * 60;

fn open() -> Traffic {
    Traffic::open(None)
}

fn call(status: u16, millis: u64) -> Call<'static> {
    Call {
        status,
        elapsed: Duration::from_millis(millis),
        bytes_in: 10,
        bytes_out: 100,
        api: Some("orders/v1"),
        endpoint: Some("GET orders/v1/items/{id}"),
        user: Some("alice"),
        ..Call::default()
    }
}

/// As near as percentiles are promised to be.
fn is_near(shown: &Value, exact: f64) -> bool {
    shown.as_f64().is_some_and(|shown| (shown - exact).abs() <= exact / 16.0)
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
    assert!(is_near(&seen["p50_response_time_ms"], 49.0) && is_near(&seen["p99_response_time_ms"], 99.0), "{seen}");
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
    assert!(is_near(&seen["p50_response_time_ms"], 10.0) && is_near(&seen["p95_response_time_ms"], 30.0), "{seen}");
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
        let traffic = Traffic::open(Some(folder.path()));
        traffic.record_at(at - 200, &Call { protocol: Protocol::Grpc, ..call(200, 5) });
        drop(traffic.history(at));
        traffic.record_at(at, &call(404, 10));
        traffic.save().unwrap();
        monitor(&traffic, at, "24h")
    };
    let traffic = Traffic::open(Some(folder.path()));
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
        let traffic = Traffic::open(Some(folder.path()));
        assert_eq!(monitor(&traffic, NOW, "24h")["total_requests"], 0);
        assert_eq!(fs::read_to_string(folder.path().join("metrics.json.unread")).unwrap(), text);
        traffic.record_at(super::now(), &call(200, 1));
        traffic.save().unwrap();
    }
}

#[test]
fn what_an_earlier_version_saved_is_not_lost() {
    let (folder, hour) = (tempfile::tempdir().unwrap(), super::now() / 60 - 30);
    let minute = super::now() - 3;
    let of_orders = json!({ "statuses": [[200, 9], [500, 1]], "users": [["alice", 7]], "apis": [["rest", "orders/v1",
        { "n": 9, "e": 1, "us": 90_000 }]], "samples": { "seen": 10, "values": [10_000, 10_000, 20_000] } });
    let file = json!({
        "version": 1,
        "series": [[hour * 60 + 7, [6, 1, 0, 60_000, 1, 2, 0, 0, 10_000]],
            [hour * 60 + 8, [4, 0, 1, 40_000, 1, 2, 3, 4, 0]],
            [minute, [10, 0, 1, 100_000, 5, 6, 0, 0, 0]]],
        "minutes": [[minute, of_orders]],
        "hours": [[hour, of_orders]],
    });
    fs::write(folder.path().join(FILE), file.to_string()).unwrap();
    for _ in 0..2 {
        let traffic = Traffic::open(Some(folder.path()));
        let seen = monitor(&traffic, super::now(), "7d");
        for (name, value) in [
            ("total_requests", json!(20)),
            ("total_test_requests", json!(1)),
            ("total_errors", json!(2)),
            ("avg_response_ms", json!(10.0)),
            ("total_bytes_out", json!(10)),
            ("total_retries", json!(4)),
            ("status_counts", json!({ "200": 18, "500": 2 })),
            ("top_users", json!([["alice", 14]])),
            ("apis", json!({ "orders/v1": { "requests": 18, "errors": 2, "avg_response_time_ms": 10.0 } })),
        ] {
            assert_eq!(seen[name], value, "{name}");
        }
        assert!(is_near(&seen["p50_response_time_ms"], 10.0) && is_near(&seen["p95_response_time_ms"], 20.0), "{seen}");
        assert_eq!(seen["series"][0]["p95_ms"], 10.0);
        assert_eq!(monitor(&traffic, super::now(), "1h")["total_requests"], 10);
        // Then as this version saves it.
        traffic.is_changed.store(true, Ordering::Relaxed);
        traffic.save().unwrap();
        assert!(fs::read_to_string(folder.path().join(FILE)).unwrap().starts_with("{\"version\":2"));
    }
}

fn analysis(traffic: &Traffic, when: When) -> Analysis {
    traffic.analysis_at(NOW, when)
}

fn seen(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).unwrap()
}

#[test]
fn analytics_tell_who_called_what_how_fast() {
    let traffic = open();
    for millis in 1..=100 {
        traffic.record_at(NOW, &call(if millis > 98 { 500 } else { 200 }, millis));
    }
    let slow = Call { endpoint: Some("POST users/v2/"), api: Some("users/v2"), user: Some("bob"), ..call(404, 700) };
    traffic.record_at(NOW - 30, &slow);
    traffic.record_at(NOW - 31, &Call { protocol: Protocol::Grpc, endpoint: None, user: None, ..call(200, 1) });
    traffic.record_at(NOW - 31, &Call { api: None, endpoint: None, user: None, ..call(404, 1) });
    traffic.record_at(NOW, &Call { is_test: true, user: Some("tester"), ..call(500, 9_000) });
    let day = analysis(&traffic, When::Last(Range::Day));

    let overview = seen(&day.overview());
    let summary = json!({ "total_requests": 103, "total_errors": 4, "error_rate": 4.0 / 103.0, "avg_response_ms": 55.845,
        "unique_users": 2, "total_bandwidth": 11_330, "bandwidth_in": 1_030, "bandwidth_out": 10_300 });
    assert_eq!(overview["summary"], summary);
    assert_eq!(overview["status_distribution"], json!({ "200": 99, "404": 2, "500": 2 }));
    let end = NOW * 60 + 59;
    let range = json!({ "start_ts": (NOW + 1 - DAY) * 60, "end_ts": end, "duration_seconds": 86_399 });
    assert_eq!(overview["time_range"], range);
    let percentiles = &overview["percentiles"];
    assert!(is_near(&percentiles["p50"], 50.0) && is_near(&percentiles["p90"], 91.0), "{percentiles}");
    assert_eq!((&percentiles["min"], &percentiles["max"]), (&json!(1.0), &json!(700.0)));

    let apis = seen(&day.top_apis(1));
    assert_eq!((&apis["top_apis"], &apis["total_apis"]), (&json!([{ "api": "orders/v1", "count": 101 }]), &json!(2)));
    let users = seen(&day.top_users(5));
    let expected = json!([{ "user": "alice", "count": 100 }, { "user": "bob", "count": 1 }]);
    assert_eq!((&users["top_users"], &users["total_users"]), (&expected, &json!(2)));

    for (sort_by, first) in
        [(SortBy::Count, "/orders/v1/items/{id}"), (SortBy::AvgMs, "/users/v2/"), (SortBy::ErrorRate, "/users/v2/")]
    {
        let endpoints = seen(&day.top_endpoints(sort_by, 1));
        assert_eq!(
            (&endpoints["top_endpoints"][0]["endpoint_uri"], &endpoints["total_endpoints"]),
            (&json!(first), &json!(2))
        );
    }
    let api = seen(&day.api("users", "v2").unwrap());
    assert_eq!(api["summary"], json!({ "api": "users/v2", "count": 1 }));
    let all =
        json!({ "p50": 700.0, "p75": 700.0, "p90": 700.0, "p95": 700.0, "p99": 700.0, "min": 700.0, "max": 700.0 });
    let endpoint = json!([{ "endpoint_uri": "/users/v2/", "method": "POST", "count": 1, "error_count": 1, "error_rate": 1.0,
        "avg_ms": 700.0, "percentiles": all }]);
    assert_eq!(api["endpoints"], endpoint);
    assert_eq!(seen(&day.user("bob").unwrap())["summary"], json!({ "user": "bob", "count": 1 }));
    assert!(day.user("tester").is_none() && day.user(OTHER).is_none() && day.api("users", "v1").is_none());
    let earlier = analysis(&traffic, When::Between((NOW - 40) * 60, (NOW - 1) * 60 + 5));
    assert_eq!(seen(&earlier.overview())["summary"]["total_requests"], 3);
    assert_eq!(seen(&analysis(&traffic, When::Between(0, 59)).overview())["summary"]["total_requests"], 0);
}

#[test]
fn the_course_has_points_as_asked_for_and_as_the_past_is_kept() {
    let traffic = open();
    for at in [NOW - 60 * DAY, NOW - 20 * DAY, NOW - 3 * DAY, NOW - 3 * DAY + 1, NOW - 7, NOW - 6, NOW] {
        traffic.record_at(at, &call(200, 10));
        traffic.record_at(at, &Call { user: Some("bob"), ..call(500, 30) });
        drop(traffic.history(at));
    }
    let course = |when, granularity, metric| seen(&traffic.timeseries_at(NOW, when, granularity, metric));
    let times = |course: &Value| -> Vec<u64> {
        course["series"].as_array().unwrap().iter().map(|point| point["timestamp"].as_u64().unwrap() / 60).collect()
    };
    let hour = course(When::Last(Range::Hour), Granularity::Auto, None);
    assert_eq!((&hour["granularity"], &hour["data_points"]), (&json!("minute"), &json!(3)));
    assert_eq!(times(&hour), [NOW - 7, NOW - 6, NOW]);
    let point = &hour["series"][0];
    let members = json!({ "timestamp": (NOW - 7) * 60, "count": 2, "error_count": 1, "error_rate": 0.5, "avg_ms": 20.0,
        "percentiles": point["percentiles"], "bytes_in": 20, "bytes_out": 200, "unique_users": 2 });
    assert_eq!(point, &members);
    assert!(is_near(&point["percentiles"]["p50"], 10.0) && point["percentiles"]["max"] == 30.0, "{point}");
    let day = course(When::Last(Range::Day), Granularity::Auto, Some("request_count"));
    assert_eq!((&day["granularity"], times(&day)), (&json!("5minute"), vec![NOW - 10, NOW]));
    let week = course(When::Last(Range::Week), Granularity::Minute, Some("what"));
    assert_eq!(times(&week), [(NOW - 3 * DAY) / 5 * 5, NOW - 7, NOW - 6, NOW], "five minutes after a day");
    assert_eq!(week["series"][0], json!({ "timestamp": (NOW - 3 * DAY) / 5 * 300 }));
    let month = course(When::Last(Range::Month), Granularity::Auto, Some("bandwidth"));
    assert_eq!(times(&month), [(NOW - 20 * DAY) / DAY * DAY, (NOW - 3 * DAY) / DAY * DAY, NOW / DAY * DAY]);
    assert_eq!(
        month["series"][1],
        json!({ "timestamp": (NOW - 3 * DAY) / DAY * DAY * 60, "bytes_in": 40, "bytes_out": 400 })
    );
    let all = course(When::Between(0, NOW * 60), Granularity::Minute, Some("error_rate"));
    assert_eq!(times(&all)[..2], [(NOW - 60 * DAY) / DAY * DAY, (NOW - 20 * DAY) / 60 * 60], "days, hours");
}

/// A minute in which a thousand APIs, endpoints and users are busy that no other minute has.
fn hostile(minute: u64) -> Detail {
    let mut detail = Detail::default();
    let mut latencies = super::latencies::Latencies::default();
    (0..40).for_each(|n| latencies.add(100 + 5_000 * n, 1));
    for n in 0..1_000 {
        let name = format!("m{minute}n{n}/v1");
        let call = Call { api: Some(&name), user: Some(&name), endpoint: Some(&name), ..call(200, 1) };
        detail.record(&call);
    }
    detail.endpoints.values_mut().for_each(|endpoint| endpoint.latencies.merge(&latencies));
    detail
}

#[test]
fn memory_is_bounded_however_many_names_there_are() {
    let (mut history, mut counted) = (History::default(), 0);
    let earlier = (1..89).rev().map(|days| NOW - days * DAY);
    for minute in earlier.chain(NOW - 100..=NOW) {
        history.add(minute, &hostile(minute));
        history.tidy(minute);
        counted += 1_000;
        let bytes = history.bytes();
        assert!(bytes <= history::MOST_BYTES, "{bytes} after {counted}");
    }
    let all = history.sum(0, NOW).detail;
    assert_eq!(all.calls.numbers.count, counted, "nothing is lost");
    assert_eq!(all.users.values().sum::<u64>(), counted);
    assert_eq!(all.endpoints.values().map(|endpoint| endpoint.numbers.count).sum::<u64>(), counted);
    assert!(history.bytes() > history::MOST_BYTES / 4, "room is used: {}", history.bytes());
    assert_eq!(history.sum(NOW, NOW).detail.users.len(), 1_000, "the newest minute has its names");
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
