//! The viewer over real files and a real ring.

use std::fs;

use super::*;
use crate::settings::LogFormat;
use crate::telemetry::audit::{Action, Event};
use crate::telemetry::logs::tests::{Sandbox, settings};
use crate::telemetry::logs::{APPLICATION_FILE, AUDIT_FILE};

/// Old files, and no ring.
fn with_files(files: &[(&str, &str)]) -> (Arc<Logs>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    let settings = settings(folder.path(), LogFormat::Plain, crate::settings::LogLevel::Info);
    let settings = crate::settings::Logs { memory: false, ..settings };
    (Arc::new(Logs::open(&settings, folder.path(), std::io::sink()).0), folder)
}

fn messages(page: &Page) -> Vec<&str> {
    page.logs.iter().map(|entry| &*entry.message).collect()
}

async fn all(logs: &Arc<Logs>, query: Query) -> Page {
    page(logs, query, 1000, 0).await.unwrap()
}

#[expect(clippy::unnecessary_wraps, reason = "the fields are optional")]
fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[tokio::test]
async fn a_record_in_memory_and_in_a_file_counts_once_and_equal_records_each() {
    for format in [LogFormat::Plain, LogFormat::Json] {
        let sandbox = Sandbox::new(format);
        sandbox.during(|| {
            for n in 0..3 {
                tracing::info!("first {n}");
                tracing::info!("again");
            }
            Event::new(Action::AuthLogin, "bob", "bob", "success").write();
        });
        // Written before this process and its ring began.
        let file = sandbox.folder.path().join("doorman.log.1");
        fs::write(file, "2020-01-01 10:00:00 INFO again\n2020-01-01 10:00:00 INFO again\n").unwrap();
        let logs = Arc::new(sandbox.logs);
        let page = all(&logs, Query::default()).await;
        assert_eq!((page.total, page.has_more), (9, false), "{page:?}");
        assert_eq!(messages(&page).iter().filter(|message| **message == "again").count(), 5);
        let order: Vec<&str> = messages(&page).into_iter().filter(|message| message.starts_with("first")).collect();
        assert_eq!(order, ["first 2", "first 1", "first 0"]);
        assert_eq!(page.logs.iter().filter(|entry| entry.user.as_deref() == Some("bob")).count(), 1);
    }
}

#[tokio::test]
async fn what_no_file_could_take_is_found_in_memory() {
    let sandbox = Sandbox::new(LogFormat::Plain);
    sandbox.during(|| tracing::info!("kept"));
    fs::write(sandbox.folder.path().join(APPLICATION_FILE), "").unwrap();
    let logs = Arc::new(sandbox.logs);
    assert_eq!(messages(&all(&logs, Query::default()).await), ["kept"]);
}

#[tokio::test]
async fn old_and_new_files_are_read_together_newest_first() {
    let (logs, _folder) = with_files(&[
        (
            APPLICATION_FILE,
            "2024-01-15 10:30:02 INFO three\n{\"timestamp\":\"2024-01-15T10:30:04Z\",\"level\":\"INFO\",\"message\":\"five\"}\n",
        ),
        ("doorman.log.1", "2024-01-15 10:30:00,500 - doorman.gateway - WARNING - id1 | one\nnot a record\n"),
        (AUDIT_FILE, "2024-01-15 10:30:03 INFO {\"action\":\"api.create\",\"actor\":\"admin\"}\n"),
        (
            "doorman-trail.log.2",
            "{\"time\":\"2024-01-15T10:30:01\",\"name\":\"doorman.audit\",\"level\":\"INFO\",\"message\":\"two\"}\n",
        ),
    ]);
    let page = all(&logs, Query::default()).await;
    assert_eq!(messages(&page), ["five", r#"{"action":"api.create","actor":"admin"}"#, "three", "two", "one"]);
    assert_eq!(page.logs[4].request_id.as_deref(), Some("id1"));
    let page = super::page(&logs, Query::default(), 2, 1).await.unwrap();
    assert_eq!((page.total, page.has_more, page.logs.len()), (5, true, 2));
    assert_eq!(page.logs[1].message, "three");
    let page = super::page(&logs, Query::default(), 2, 3).await.unwrap();
    assert!(!page.has_more);
    let files = log_files(&logs).await.unwrap();
    assert_eq!(files.len(), 4);
    assert!(files.iter().any(|file| file.ends_with("/doorman-trail.log.2")), "{files:?}");
}

fn requests() -> String {
    let line = |time: &str, id: &str, method: &str, path: &str, status: u16, ms: u32, more: &str| {
        format!(
            "{time} INFO [request_id={id}] Endpoint: {method} {path} | status_code: {status} | Total time: {ms}ms | {more}\n"
        )
    };
    [
        line(
            "2024-01-14 23:59:59",
            "r1",
            "GET",
            "/api/rest/orders/v1/a",
            200,
            5,
            "username=alice client_ip=192.0.2.1 api=orders/v1",
        ),
        line(
            "2024-01-15 10:30:00",
            "r2",
            "POST",
            "/api/rest/users/v2/b",
            500,
            50,
            "username=Bob client_ip=192.0.2.2 api=users/v2",
        ),
        line("2024-01-15 12:00:30", "r3", "GET", "/platform/user/me", 200, 7, "client_ip=192.0.2.1"),
        line("2024-01-16 00:00:00", "r4", "POST", "/platform/authorization", 200, 90, "client_ip=10.0.0.1"),
    ]
    .concat()
}

#[tokio::test]
async fn each_filter_leaves_what_it_should() {
    let (logs, _folder) = with_files(&[(APPLICATION_FILE, &requests())]);
    let query = Query::default;
    for (name, query, expected) in [
        ("start", Query { start_date: text("2024-01-15"), ..query() }, "r4 r3 r2"),
        ("whole last day", Query { end_date: text("2024-01-15"), ..query() }, "r3 r2 r1"),
        ("from a minute", Query { start_date: text("2024-01-15"), start_time: text("10:31"), ..query() }, "r4 r3"),
        ("to a minute", Query { end_date: text("2024-01-15"), end_time: text("12:00"), ..query() }, "r3 r2 r1"),
        ("of every day", Query { start_time: text("10:00"), end_time: text("12:00"), ..query() }, "r3 r2"),
        ("no date", Query { start_date: text("soon"), ..query() }, ""),
        ("user", Query { user: text("bo"), ..query() }, "r2"),
        ("api", Query { api: text("ORDERS"), ..query() }, "r1"),
        ("endpoint", Query { endpoint: text("/platform"), ..query() }, "r4 r3"),
        ("id", Query { request_id: text("R3"), ..query() }, "r3"),
        ("method", Query { method: text("post"), ..query() }, "r4 r2"),
        ("address", Query { ip_address: text("192.0.2"), ..query() }, "r3 r2 r1"),
        ("level", Query { level: text("info"), ..query() }, "r4 r3 r2 r1"),
        ("type", Query { kind: text("gateway"), ..query() }, "r2 r1"),
        ("no platform", Query { exclude_type: text("platform"), ..query() }, "r2 r1"),
        ("no auth", Query { exclude_type: text("auth"), ..query() }, "r3 r2 r1"),
        ("slow", Query { min_response_time: text("50"), ..query() }, "r4 r2"),
        ("fast", Query { max_response_time: text("7"), ..query() }, "r3 r1"),
        ("no number", Query { max_response_time: text("x"), ..query() }, ""),
        ("blank", Query { user: text(" "), ..query() }, "r4 r3 r2 r1"),
    ] {
        let page = all(&logs, query).await;
        let ids: Vec<&str> = page.logs.iter().filter_map(|entry| entry.request_id.as_deref()).collect();
        assert_eq!(ids.join(" "), expected, "{name}");
        assert_eq!(page.total, ids.len(), "{name}");
    }
}

#[tokio::test]
async fn statistics_count_by_level_api_user_and_path() {
    let more = "2024-01-15 13:00:00 ERROR x\n2024-01-15 13:00:00 WARNING x\n2024-01-15 13:00:00 DEBUG x\n";
    let (logs, _folder) = with_files(&[(APPLICATION_FILE, &(requests() + more))]);
    let all = statistics(&logs).await.unwrap();
    assert_eq!((all.total_logs, all.error_count, all.warning_count, all.info_count, all.debug_count), (7, 1, 1, 4, 1));
    assert!((all.avg_response_time - 38.0).abs() < 0.01, "{}", all.avg_response_time);
    assert_eq!(all.top_apis[0], Counted { name: "orders/v1".into(), count: 1 });
    assert_eq!((all.top_users.len(), all.top_endpoints.len()), (2, 4));
}

#[tokio::test]
async fn exports_are_files_that_a_spreadsheet_takes_for_text() {
    let evil = "2024-01-15 10:30:00 INFO =HYPERLINK(\"http://x\",1), then more | username=@bob\n";
    let (logs, _folder) = with_files(&[(APPLICATION_FILE, evil)]);
    let csv = export(&logs, Query::default(), Format::Csv).await.unwrap();
    let lines: Vec<&str> = csv.data.lines().collect();
    assert_eq!(
        lines[1],
        r#"2024-01-15T10:30:00Z,INFO,"'=HYPERLINK(""http://x"";1); then more",doorman.gateway,'@bob,,,,,,,,,,"#
    );
    assert_eq!(lines[0].split(',').count(), 15);
    assert!(
        csv.filename.starts_with("logs_export_2") && csv.filename.split('.').nth(1) == Some("csv"),
        "{}",
        csv.filename
    );
    let json = export(&logs, Query::default(), Format::Json).await.unwrap();
    let read: serde_json::Value = serde_json::from_str(&json.data).unwrap();
    assert_eq!(read[0]["user"], "@bob");
    assert!(json.data.starts_with("[\n"));
}

#[tokio::test]
async fn many_large_files_are_read_in_bounded_time() {
    let line = "2024-01-15 10:30:00 INFO [request_id=r] Endpoint: GET /api/rest/orders/v1/a | status_code: 200 | Total time: 5ms | api=orders/v1\n";
    let (logs, _folder) = with_files(&[(APPLICATION_FILE, &line.repeat(20_000))]);
    let started = std::time::Instant::now();
    let page = super::page(&logs, Query::default(), 10, 0).await.unwrap();
    assert_eq!((page.total, page.logs.len(), page.has_more), (20_000, 10, true));
    println!("{:?} a record", started.elapsed() / 20_000);
}
