//! The load generator counts what a client would suffer, and only that.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use doorman_tests::load::{self, Failure, Plan, Report};
use doorman_tests::upstream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Runs the plan to its own end.
async fn run(plan: Plan) -> Report {
    load::start(plan).expect("started").report().await
}

/// A server that treats each connection as `serve` says; connections are numbered from 0.
async fn server<S, F>(serve: S) -> String
where
    S: Fn(usize, TcpStream) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(ANY_PORT).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        for number in 0.. {
            let (stream, _) = listener.accept().await.expect("a connection");
            tokio::spawn(serve(number, stream));
        }
    });
    format!("http://{address}/")
}

/// Reads one request without a body; false when the client is gone.
async fn next_request(stream: &mut TcpStream) -> bool {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if !matches!(stream.read(&mut byte).await, Ok(1)) {
            return false;
        }
        request.push(byte[0]);
    }
    true
}

#[tokio::test]
async fn a_fixed_rate_is_kept_and_every_answer_counted() {
    let upstream = upstream::start(ANY_PORT).expect("started");
    let urls = [100, 10_240].map(|size| format!("http://{}/bytes/{size}", upstream.address()));
    let mut plan = Plan::new(&urls).expect("a plan").at(500.0, 8).lasting(Duration::from_secs(1));
    plan.expect.body_contains = Some(r#"{"data":"abc"#.into());
    let report = run(plan).await;
    assert_eq!((report.requests, report.succeeded, report.failed), (500, 500, 0), "{report}");
    assert_eq!(report.body_bytes, 250 * (100 + 10_240));
    assert_eq!(report.connections_opened, 8);
    assert!((0.9..1.6).contains(&report.seconds), "{report}");
    assert!(report.latency_us.p50 > 0.0 && report.latency_us.p50 <= report.latency_us.max);
}

#[tokio::test]
async fn a_closed_loop_ends_after_its_requests_however_long_they_take() {
    let upstream = upstream::start(ANY_PORT).expect("started");
    let url = format!("http://{}/slow/100", upstream.address());
    let mut plan = Plan::new(&[url]).expect("a plan").at(0.0, 2).counting(10);
    // Shorter than the whole, longer than each.
    plan.timeout = Duration::from_millis(300);
    let report = run(plan).await;
    assert_eq!((report.requests, report.failed), (10, 0), "{report}");
    assert!(report.seconds >= 0.5 && !report.saturated, "{report}");
}

#[tokio::test]
async fn latency_counts_from_when_a_request_was_due() {
    // One connection and 50 ms an answer: requests that are due every 10 ms wait for each other more and more.
    let upstream = upstream::start(ANY_PORT).expect("started");
    let url = format!("http://{}/slow/50", upstream.address());
    let report = run(Plan::new(&[url]).expect("a plan").at(100.0, 1).counting(20)).await;
    assert_eq!(report.failed, 0, "{report}");
    assert!(report.latency_us.max > 700_000.0, "{report}");
    assert!(report.saturated, "a schedule that was not kept is said to be so: {report}");
}

#[tokio::test]
async fn wrong_answers_fail_by_reason_and_are_shown() {
    let upstream = upstream::start(ANY_PORT).expect("started");
    let plan = |path: &str| {
        Plan::new(&[format!("http://{}{path}", upstream.address())]).expect("a plan").at(0.0, 1).counting(3)
    };

    let report = run(plan("/status/503")).await;
    assert_eq!((report.failed, report.failed_with(Failure::Status)), (3, 3), "{report}");
    assert!(report.samples[0].contains("status 503") && report.samples[0].contains(r#"{"status":503}"#), "{report}");
    assert_eq!(report.statuses[&503], 3);
    assert_eq!(run(plan("/status/503").expecting(503)).await.failed, 0);

    let mut other_length = plan("/bytes/100");
    other_length.expect.length = Some(99);
    assert_eq!(run(other_length).await.failed_with(Failure::Length), 3);

    let mut other_body = plan("/bytes/100");
    other_body.expect.body_contains = Some("nowhere in it".into());
    assert_eq!(run(other_body).await.failed_with(Failure::Body), 3);

    let mut too_slow = plan("/slow/5000");
    too_slow.timeout = Duration::from_millis(50);
    assert_eq!(run(too_slow).await.failed_with(Failure::Timeout), 3);
}

#[tokio::test]
async fn nobody_listening_fails_every_request() {
    let port = TcpListener::bind(ANY_PORT).await.expect("a port").local_addr().expect("an address");
    let report = run(Plan::new(&[format!("http://{port}/")]).expect("a plan").at(200.0, 2).counting(10)).await;
    assert_eq!((report.failed, report.failed_with(Failure::Connect)), (10, 10), "{report}");
}

#[tokio::test]
async fn a_politely_closed_connection_is_replaced_without_a_failure() {
    // Even connections announce the close, odd ones close a while after an answer without announcing it.
    let url = server(|number, mut stream| async move {
        if !next_request(&mut stream).await {
            return;
        }
        if number % 2 == 0 {
            let answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
            stream.write_all(answer).await.expect("written");
        } else {
            stream.write_all(OK).await.expect("written");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let report = run(Plan::new(&[url]).expect("a plan").at(20.0, 1).counting(20)).await;
    assert_eq!((report.succeeded, report.failed), (20, 0), "{report}");
    assert_eq!(report.connections_opened, 20);
    assert!(report.connections_closed_politely >= 19, "{report}");
}

#[tokio::test]
async fn a_request_without_an_answer_is_lost() {
    let url = server(|number, mut stream| async move {
        if number == 1 {
            next_request(&mut stream).await;
            return;
        }
        let mut answers = 0;
        while (number > 1 || answers < 3) && next_request(&mut stream).await {
            stream.write_all(OK).await.expect("written");
            answers += 1;
        }
    })
    .await;
    // Connection 0 answers three and closes, connection 1 takes one request and closes, connection 2 works.
    let report = run(Plan::new(&[url]).expect("a plan").at(50.0, 1).counting(10)).await;
    assert_eq!((report.succeeded, report.failed, report.lost), (9, 1, 1), "{report}");
    assert!(report.samples[0].contains("without an answer"), "{report}");
}

#[tokio::test]
async fn half_an_answer_and_no_http_are_failures_of_their_own() {
    let url = server(|number, mut stream| async move {
        if next_request(&mut stream).await {
            let answer: &[u8] = if number == 0 { &OK[..OK.len() - 1] } else { b"SSH-2.0-OpenSSH_9\r\n\r\n" };
            stream.write_all(answer).await.expect("written");
        }
    })
    .await;
    let report = run(Plan::new(&[url]).expect("a plan").at(50.0, 1).counting(2)).await;
    assert_eq!(report.failed, 2, "{report}");
    assert_eq!((report.failed_with(Failure::Truncated), report.failed_with(Failure::Malformed)), (1, 1), "{report}");
}

#[tokio::test]
async fn a_hanging_server_cannot_hide_what_was_due() {
    let url = server(|_, stream| async move {
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(stream);
    })
    .await;
    let mut plan = Plan::new(&[url]).expect("a plan").at(100.0, 2).lasting(Duration::from_millis(500));
    plan.timeout = Duration::from_millis(400);
    let before = Instant::now();
    let report = run(plan).await;
    assert_eq!((report.requests, report.failed), (50, 50), "{report}");
    assert!(report.failed_with(Failure::Unsent) > 0 && report.failed_with(Failure::Timeout) > 0, "{report}");
    assert!(before.elapsed() < Duration::from_secs(3), "it ends soon after its time");
}

#[tokio::test]
async fn a_load_can_run_while_something_else_happens() {
    let upstream = upstream::start(ANY_PORT).expect("started");
    let url = format!("http://{}/bytes/100", upstream.address());
    let load = load::start(Plan::new(&[url]).expect("a plan").at(200.0, 4)).expect("started");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let report = load.finish().await;
    assert!((50..=150).contains(&report.requests), "{report}");
    assert_eq!(report.failed, 0, "{report}");
}

#[tokio::test]
async fn the_program_reports_json_on_sigterm_and_its_exit_code_tells_failure() {
    let upstream = upstream::start(ANY_PORT).expect("started");
    let loadgen = |path: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loadgen"));
        let url = format!("http://{}{path}", upstream.address());
        command.args(["--json", "--rate", "200", "--connections", "2", "--url", &url]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };

    let endless = loadgen("/bytes/100").spawn().expect("started");
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(Command::new("kill").args(["-TERM", &endless.id().to_string()]).status().expect("kill").success());
    let output = endless.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(report["requests"].as_u64() > Some(20) && report["failed"] == 0, "{report}");

    let failing = loadgen("/status/500").args(["--requests", "5"]).output().expect("it ends");
    assert_eq!(failing.status.code(), Some(1), "{failing:?}");
    let report: serde_json::Value = serde_json::from_slice(&failing.stdout).expect("JSON");
    assert_eq!(report["failures"]["status"], 5, "{report}");

    let wrong = Command::new(env!("CARGO_BIN_EXE_loadgen")).args(["--url", "ftp://x"]).output().expect("it ends");
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
}
