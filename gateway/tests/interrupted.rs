//! What becomes of a call that does not go as it should: its client goes away, its upstream or a store stops answering.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use doorman_tests::gateway::{PATIENCE, Start};
use doorman_tests::stores::Neighbour;
use serde_json::{Value, json};

mod support;

use support::Session;
use support::orders::{BINARY, ECHO, Stage, charging, define_credits, give};

/// A listener that nobody accepts from unless the test does.
fn silent() -> Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// A stage whose calls cost a credit each, of which `amy` has three.
async fn charged(more: Value, start: Start) -> Result<(Stage, Session)> {
    let mut api = charging();
    api.as_object_mut().into_iter().for_each(|api| api.extend(more.as_object().cloned().unwrap_or_default()));
    let stage = Stage::set_with(api, start).await?;
    define_credits(&stage.admin).await?;
    let amy = stage.user("amy", json!({})).await?;
    give(&stage.admin, "amy", 3, None).await?;
    Ok((stage, amy))
}

/// Begins a call on a connection of its own, which the caller may close at any time.
fn begin(stage: &Stage, user: &Session, path: &str, more: &str) -> Result<TcpStream> {
    let mut client = TcpStream::connect(stage.gateway.address())?;
    let method = if more.is_empty() { "GET" } else { "POST" };
    write!(client, "{method} {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\n{more}\r\n", user.token)?;
    Ok(client)
}

/// Waits until this is so; `what` tells what it is otherwise.
async fn until<T: std::fmt::Debug>(
    what: &str,
    look: impl AsyncFn() -> Result<T>,
    is_so: impl Fn(&T) -> bool,
) -> Result<()> {
    let start = Instant::now();
    loop {
        let found = look().await?;
        if is_so(&found) {
            return Ok(());
        }
        ensure!(start.elapsed() < PATIENCE, "{what}: {found:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn until_credits(stage: &Stage, number: i64) -> Result<()> {
    until(&format!("not {number} credits"), async || stage.credits("amy").await, |left| *left == number).await
}

async fn counted(stage: &Stage, metric: &str) -> Result<String> {
    let metrics = stage.admin.http.get(stage.gateway.admin_url("/metrics")).send().await?.text().await?;
    let value = metrics.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '));
    Ok(value.unwrap_or_default().to_owned())
}

async fn until_counted(stage: &Stage, metric: &str, number: &str) -> Result<()> {
    until(metric, async || counted(stage, metric).await, |found| found == number).await
}

#[tokio::test]
async fn a_client_that_goes_away_while_its_call_connects_pays_nothing() -> Result<()> {
    let (upstream, address) = silent()?;
    // Nobody answers the handshake.
    let (stage, amy) = charged(json!({ "api_servers": [format!("https://{address}")] }), Start::new(BINARY)?).await?;
    let client = begin(&stage, &amy, ECHO, "")?;
    let _connection = upstream.accept()?;
    assert_eq!(stage.credits("amy").await?, 2, "it is charged before it is sent");
    drop(client);
    until_credits(&stage, 3).await
}

#[tokio::test]
async fn a_client_that_goes_away_while_its_call_waits_for_a_connection_pays_nothing() -> Result<()> {
    let (upstream, address) = silent()?;
    let start = Start::new(BINARY)?.with("HTTP_MAX_CONNECTIONS", "1");
    let (stage, amy) = charged(json!({ "api_servers": [format!("http://{address}")] }), start).await?;
    let first = begin(&stage, &amy, ECHO, "")?;
    let (mut connection, _) = upstream.accept()?;
    // The upstream has seen something of this one.
    connection.read_exact(&mut [0; 3])?;
    let second = begin(&stage, &amy, ECHO, "")?;
    until_credits(&stage, 1).await?;
    drop(second);
    until_credits(&stage, 2).await?;
    drop(first);
    connection.read_to_end(&mut Vec::new())?;
    assert_eq!(stage.credits("amy").await?, 2, "what may have reached the upstream stays paid for");
    Ok(())
}

#[tokio::test]
async fn a_client_that_goes_away_before_the_next_attempt_pays_for_what_was_sent() -> Result<()> {
    let dead = doorman_tests::gateway::free_address()?;
    let start =
        || anyhow::Ok(Start::new(BINARY)?.with("HTTP_RETRY_BASE_DELAY", "600").with("HTTP_RETRY_MAX_DELAY", "600"));
    let servers = json!({ "api_servers": [format!("http://{dead}")], "api_allowed_retry_count": 1 });
    let (stage, amy) = charged(servers, start()?).await?;
    let client = begin(&stage, &amy, ECHO, "")?;
    until_counted(&stage, "doorman_http_retries_total", "1").await?;
    assert_eq!(stage.credits("amy").await?, 2);
    drop(client);
    until_credits(&stage, 3).await?;

    // The sample upstream answers this with 503, so it has seen it.
    let (stage, amy) = charged(json!({ "api_allowed_retry_count": 1 }), start()?).await?;
    let endpoint = json!({ "api_name": "orders", "api_version": "v1", "endpoint_method": "GET",
        "endpoint_uri": "/status/{code}", "endpoint_description": "x" });
    stage.admin.does("POST", "/platform/endpoint", endpoint).await?;
    let others = counted(&stage, "doorman_connections").await?;
    let client = begin(&stage, &amy, "/api/rest/orders/v1/status/503", "")?;
    until_counted(&stage, "doorman_http_retries_total", "1").await?;
    drop(client);
    until_counted(&stage, "doorman_connections", &others).await?;
    assert_eq!(stage.credits("amy").await?, 2);
    Ok(())
}

#[tokio::test]
async fn what_an_upstream_has_seen_stays_paid_for() -> Result<()> {
    let (upstream, address) = silent()?;
    let start = Start::new(BINARY)?.with("CIRCUIT_BREAKER_ENABLED", "false");
    let (stage, amy) = charged(json!({ "api_servers": [format!("http://{address}")] }), start).await?;
    give(&stage.admin, "amy", 100, None).await?;
    // It closes each connection at once, before the call or just after.
    let seeing = std::thread::spawn(move || {
        let mut seen = 0;
        for connection in upstream.incoming().take(50) {
            let mut connection = connection?;
            connection.shutdown(std::net::Shutdown::Write)?;
            seen += i64::from(connection.read(&mut [0; 1]).unwrap_or_default() > 0);
        }
        std::io::Result::Ok(seen)
    });
    for _ in 0..50 {
        assert_eq!(amy.get(ECHO).await?.status(), 500);
    }
    let seen = seeing.join().map_err(|_| anyhow::anyhow!("the upstream failed"))??;
    let spent = 100 - stage.credits("amy").await?;
    assert!((seen..=50).contains(&spent), "{spent} paid for, {seen} seen");
    Ok(())
}

#[tokio::test]
async fn a_credit_whose_taking_is_not_heard_of_is_given_back() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (redis, mongo) = (Neighbour::redis(&[])?, Neighbour::mongo(folder.path())?);
    let start = Start::new(BINARY)?.stores(redis.address(), mongo.address());
    let (stage, amy) = charged(json!({}), start).await?;
    assert_eq!(amy.get(ECHO).await?.status(), 200);
    // One client waits for the answer, another one goes away.
    mongo.hang()?;
    let client = begin(&stage, &amy, ECHO, "")?;
    let (status, body) = amy.send("GET", ECHO, Value::Null).await?;
    assert_eq!((status, &body["error_code"]), (503, &json!("CRD503")));
    drop(client);
    // Now it does what it was asked.
    mongo.go_on()?;
    let paid = std::sync::atomic::AtomicUsize::new(0);
    let pay = async || {
        let status = amy.get(ECHO).await?.status().as_u16();
        ensure!([200, 401].contains(&status), "{status}");
        paid.fetch_add(usize::from(status == 200), Relaxed);
        Ok(paid.load(Relaxed))
    };
    until("the credits of both are gone", pay, |paid| *paid == 2).await?;
    assert_eq!((stage.credits("amy").await?, amy.get(ECHO).await?.status().as_u16()), (0, 401));
    Ok(())
}

/// An endpoint that answers with so many bytes.
async fn bytes_endpoint(stage: &Stage) -> Result<()> {
    let endpoint = json!({ "api_name": "orders", "api_version": "v1", "endpoint_method": "GET",
        "endpoint_uri": "/bytes/{n}", "endpoint_description": "x" });
    stage.admin.does("POST", "/platform/endpoint", endpoint).await.map(|_| ())
}

/// Bytes that are counted of a user.
async fn used(user: &Session) -> Result<u64> {
    let me = user.does("GET", "/platform/user/me", Value::Null).await?;
    Ok(me["bandwidth_usage_bytes"].as_u64().unwrap_or_default())
}

#[tokio::test]
async fn bytes_count_as_they_pass_whatever_is_declared() -> Result<()> {
    let stage = Stage::set(json!({})).await?;
    let limited = json!({ "bandwidth_limit_bytes": 1_000_000_000, "bandwidth_limit_window": "day" });
    let amy = stage.user("amy", limited).await?;
    // Refused for what it declares.
    let mut client = begin(&stage, &amy, ECHO, "Content-Length: 100000000000000000\r\nConnection: close\r\n")?;
    let mut answer = String::new();
    client.read_to_string(&mut answer)?;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let before = used(&amy).await?;
    assert!((100..5_000).contains(&before), "{before}");

    let pieces = (0..30).map(|_| Ok::<_, std::io::Error>(vec![b'a'; 1_000]));
    let chunked = reqwest::Body::wrap_stream(futures::stream::iter(pieces));
    assert_eq!(amy.request("POST", ECHO).body(chunked).send().await?.bytes().await?.len() / 1_000, 30);
    let before = before + 60_000;
    assert!((before..before + 5_000).contains(&used(&amy).await?), "{before}, {}", used(&amy).await?);

    let before = used(&amy).await?;
    let mut client = begin(&stage, &amy, ECHO, "Content-Length: 900000\r\n")?;
    client.write_all(&vec![b'a'; 40_000])?;
    drop(client);
    until("what was sent", async || used(&amy).await, |used| *used >= before + 40_000).await?;
    assert!(used(&amy).await? < before + 45_000);
    until_gone(&stage, "POST", 1).await
}

#[tokio::test]
async fn bytes_of_a_long_answer_count_in_the_window_they_pass_in() -> Result<()> {
    let stage = Stage::set(json!({})).await?;
    bytes_endpoint(&stage).await?;
    let limits = json!({ "bandwidth_limit_bytes": 1_000_000_000_000_u64, "bandwidth_limit_window": "second" });
    let amy = stage.user("amy", limits).await?;
    let mut client = begin(&stage, &amy, "/api/rest/orders/v1/bytes/60000000", "")?;
    client.read_exact(&mut vec![0; 2_000_000])?;
    until("the window is over", async || used(&amy).await, |used| *used == 0).await?;
    let read_on = async || {
        (&client).read_exact(&mut vec![0; 4_000_000])?;
        used(&amy).await
    };
    until("nothing counts any more", read_on, |used| *used > 0).await
}

#[tokio::test]
async fn an_upload_ends_where_its_users_bytes_do() -> Result<()> {
    for retries in [0, 1] {
        let stage = Stage::set(json!({ "api_allowed_retry_count": retries })).await?;
        let amy = stage.user("amy", json!({ "bandwidth_limit_bytes": 50_000 })).await?;
        let (sent, sending) = tokio::sync::mpsc::unbounded_channel::<std::io::Result<Vec<u8>>>();
        let pieces = futures::stream::unfold(sending, async |mut pieces| Some((pieces.recv().await?, pieces)));
        for _ in 0..100 {
            sent.send(Ok(vec![b'a'; 1_000]))?;
        }
        // The upload never ends by itself.
        let upload = amy.request("POST", ECHO).body(reqwest::Body::wrap_stream(Box::pin(pieces))).send().await?;
        assert_eq!(upload.status(), 429, "{retries}");
        assert!(upload.headers().contains_key("retry-after"));
        let body = upload.json::<Value>().await?;
        assert_eq!(body["error_code"], "Bandwidth limit exceeded");
        until("they are counted", async || used(&amy).await, |used| *used >= 50_000).await?;
        assert!(used(&amy).await? < 150_000);
        drop(sent);
    }
    Ok(())
}

#[tokio::test]
async fn of_an_answer_that_is_broken_off_only_what_was_sent_counts() -> Result<()> {
    let (upstream, address) = silent()?;
    let stage = Stage::set(json!({ "api_servers": [format!("http://{address}")] })).await?;
    let amy = stage.user("amy", json!({ "bandwidth_limit_bytes": 1_000_000_000 })).await?;
    let mut client = begin(&stage, &amy, ECHO, "")?;
    let (mut connection, _) = upstream.accept()?;
    // An answer to nothing would be of no use.
    connection.read_exact(&mut [0; 3])?;
    connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 900000\r\n\r\n")?;
    connection.write_all(&vec![b'a'; 40_000])?;
    client.read_exact(&mut vec![0; 40_000])?;
    drop(client);
    until("what was sent", async || used(&amy).await, |used| *used >= 39_000).await?;
    assert!(used(&amy).await? < 45_000);
    Ok(())
}

#[tokio::test]
async fn a_call_whose_client_goes_away_is_counted_and_logged() -> Result<()> {
    let (upstream, address) = silent()?;
    let stage = Stage::set(json!({ "api_servers": [format!("http://{address}")] })).await?;
    let amy = stage.user("amy", json!({ "bandwidth_limit_bytes": 1_000_000_000 })).await?;
    let client = begin(&stage, &amy, ECHO, "")?;
    let (mut connection, _) = upstream.accept()?;
    connection.read_exact(&mut [0; 3])?;
    drop(client);
    until("its headers", async || used(&amy).await, |used| *used > 100).await?;
    until_gone(&stage, "GET", 1).await?;

    // Over HTTP/2 the connection stays.
    let http2 = reqwest::Client::builder().http2_prior_knowledge().build()?;
    let call = tokio::spawn(http2.get(stage.gateway.url(ECHO)).bearer_auth(&amy.token).send());
    let _connection = tokio::task::spawn_blocking(move || upstream.accept()).await??;
    call.abort();
    until_gone(&stage, "GET", 2).await
}

/// Waits until so many calls whose client went away are counted and logged, each once.
async fn until_gone(stage: &Stage, method: &str, number: usize) -> Result<()> {
    until_counted(stage, r#"doorman_http_requests_total{code="499"}"#, &number.to_string()).await?;
    let line = format!("Endpoint: {method} {ECHO} | status_code: 499 | ");
    let logged =
        async || Ok(stage.gateway.log().lines().filter(|own| own.contains(&line)).map(str::to_owned).collect());
    until(&line, logged, |logged: &Vec<String>| logged.len() >= number).await?;
    let logged = logged().await?;
    let is_whose = |line: &String| line.contains("username=amy") && line.contains("api=orders/v1");
    assert!(logged.len() == number && logged.iter().all(is_whose), "{logged:?}");
    Ok(())
}
