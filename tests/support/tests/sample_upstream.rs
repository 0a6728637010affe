//! The sample upstream answers as its table of routes says, over HTTP/1.1 and h2c.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use doorman_tests::upstream;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

async fn call(is_http2: bool, request: Request<Full<Bytes>>) -> Response<Bytes> {
    let client = Client::builder(TokioExecutor::new()).http2_only(is_http2).build_http();
    let (parts, body) = client.request(request).await.expect("an answer").into_parts();
    Response::from_parts(parts, body.collect().await.expect("a complete body").to_bytes())
}

async fn get(upstream: &upstream::Running, path: &str) -> Response<Bytes> {
    let request = Request::get(format!("http://{}{path}", upstream.address())).body(Full::default());
    call(false, request.expect("a request")).await
}

fn as_json(response: &Response<Bytes>) -> Value {
    serde_json::from_slice(response.body()).expect("JSON")
}

#[tokio::test]
async fn health_and_bytes_are_what_the_caller_can_predict() {
    let upstream = upstream::start(ANY_PORT).expect("started");
    let health = get(&upstream, "/health").await;
    assert_eq!(health.body(), r#"{"status":"ok"}"#);
    for size in [0, 1, 100, 10_240, 2 << 20] {
        let first = get(&upstream, &format!("/bytes/{size}")).await;
        assert_eq!(first.body().len(), size);
        assert_eq!(first.headers()["content-type"], "application/json");
        assert_eq!(first.headers()["content-length"], size.to_string());
        assert_eq!(first.body(), get(&upstream, &format!("/bytes/{size}")).await.body());
    }
    assert_eq!(get(&upstream, "/bytes/7/of/whatever").await.body().len(), 7);
    assert_eq!(get(&upstream, "/bytes/many").await.status(), 400);
    assert_eq!(get(&upstream, "/bytes/99999999999").await.status(), 400);
}

#[tokio::test]
async fn the_echo_shows_the_request_as_it_arrived() {
    let upstream = upstream::start(ANY_PORT).expect("started");
    for (is_http2, protocol) in [(false, "HTTP/1.1"), (true, "HTTP/2.0")] {
        let request = Request::put(format!("http://{}/a/b?c=d&e", upstream.address()))
            .header("X-Two", "1")
            .header("X-Two", "2")
            .body(Full::from("hello"))
            .expect("a request");
        let echo = as_json(&call(is_http2, request).await);
        assert_eq!(echo["method"], "PUT");
        assert_eq!(echo["path"], "/a/b");
        assert_eq!(echo["query"], "c=d&e");
        assert_eq!(echo["protocol"], protocol);
        assert_eq!(echo["headers"]["x-two"], json!(["1", "2"]));
        assert_eq!(echo["body"], "hello");
        assert_eq!(echo["server"]["port"], upstream.address().port());
        assert!(echo["server"]["hostname"].is_string());
    }
}

#[tokio::test]
async fn statuses_headers_uploads_and_pauses_are_as_asked() {
    let upstream = upstream::start(ANY_PORT).expect("started");
    for status in [200, 204, 404, 503, 599] {
        assert_eq!(get(&upstream, &format!("/status/{status}")).await.status(), status);
    }
    for wrong in ["/status/100", "/status/1", "/status/x", "/slow/x", "/stream/x"] {
        assert_eq!(get(&upstream, wrong).await.status(), 400, "{wrong}");
    }

    let headers = get(&upstream, "/headers").await;
    assert!(headers.headers().contains_key("x-upstream") && headers.headers().contains_key("x-secret"));
    assert_eq!(as_json(&headers)["path"], "/headers");

    let upload = Request::post(format!("http://{}/upload", upstream.address())).body(Full::from(vec![b'x'; 3 << 20]));
    assert_eq!(as_json(&call(false, upload.expect("a request")).await), json!({ "bytes": 3 << 20 }));

    let before = Instant::now();
    assert_eq!(get(&upstream, "/slow/120").await.status(), 200);
    assert!(before.elapsed() >= Duration::from_millis(120));
}

#[tokio::test]
async fn a_stream_comes_in_chunks_with_pauses_between() {
    let upstream = upstream::start(ANY_PORT).expect("started");
    let before = Instant::now();
    let stream = get(&upstream, "/stream/3").await;
    assert_eq!(stream.body(), "chunk 1\nchunk 2\nchunk 3\n");
    assert_eq!(stream.headers()["transfer-encoding"], "chunked");
    assert!(before.elapsed() >= Duration::from_millis(100));
    assert!(get(&upstream, "/stream/0").await.body().is_empty());
}

#[tokio::test]
async fn the_program_says_where_it_listens_and_finishes_calls_on_sigterm() {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let mut program = tokio::process::Command::from(Command::new(env!("CARGO_BIN_EXE_sample-upstream")))
        .args(["--port", "0"])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("started");
    let mut lines = BufReader::new(program.stdout.take().expect("its output")).lines();
    let line = lines.next_line().await.expect("its output").expect("a line");
    let address = line.strip_prefix("sample upstream listening on ").expect("the announcement");

    let url = format!("http://{address}/slow/400");
    let in_flight = tokio::spawn(call(false, Request::get(url).body(Full::default()).expect("a request")));
    tokio::time::sleep(Duration::from_millis(150)).await;
    let pid = program.id().expect("it runs").to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill").success());

    assert_eq!(in_flight.await.expect("an answer").status(), 200);
    let status = tokio::time::timeout(Duration::from_secs(5), program.wait()).await.expect("it ends");
    assert!(status.expect("its status").success());
}
