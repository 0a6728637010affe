//! Answers as gzip: a real gateway process between real sockets.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::mpsc::{Receiver, channel};

use anyhow::{Context, Result, ensure};
use doorman_tests::gateway::{GatewayProcess, Start};
use doorman_tests::raw::{answer_of, fixed, serve};
use doorman_tests::upstream;
use flate2::read::GzDecoder;
use reqwest::{Client, Response};
use serde_json::{Value, json};

const BINARY: &str = env!("CARGO_BIN_EXE_doorman-gateway");
const GZIP: (&str, &str) = ("accept-encoding", "gzip");

/// A gateway with one public API, `a/v1`, in front of an upstream.
struct Stage {
    gateway: GatewayProcess,
    http: Client,
    _upstream: Option<upstream::Running>,
}

impl Stage {
    fn set(settings: &[(&str, &str)]) -> Result<Self> {
        let upstream = upstream::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let stage = Self::before(upstream.address(), settings, &json!({}))?;
        Ok(Self { _upstream: Some(upstream), ..stage })
    }

    fn before(upstream: SocketAddr, settings: &[(&str, &str)], more: &Value) -> Result<Self> {
        let paths = ["/bytes/{n}", "/status/{code}", "/stream/{n}", "/fixed"];
        let endpoints = paths.map(|uri| json!({ "method": "GET", "uri": uri }));
        let mut spec = json!({ "name": "a", "version": "v1", "protocol": "REST", "public": true,
            "servers": [format!("http://{upstream}")], "endpoints": endpoints });
        spec.as_object_mut().into_iter().for_each(|spec| spec.extend(more.as_object().cloned().unwrap_or_default()));
        let manifest = json!({ "apiVersion": "doorman.dev/v1alpha1", "kind": "DoormanApi", "metadata": { "name": "a" }, "spec": spec });
        let mut start = Start::new(BINARY)?.manifest("a.yaml", &manifest.to_string())?;
        for (name, value) in settings {
            start = start.with(name, *value);
        }
        Ok(Self { gateway: start.run()?, http: Client::new(), _upstream: None })
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Result<Response> {
        let mut request = self.http.request(method.parse()?, self.gateway.url(path));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Ok(request.send().await?)
    }

    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Result<Response> {
        self.send("GET", &format!("/api/rest/a/v1{path}"), headers).await
    }
}

/// What gzip tells of its own effort (RFC 1952 2.3.1, XFL).
const FAST: u8 = 4;
const BEST: u8 = 2;

async fn how_well(stage: &Stage) -> Result<u8> {
    let packed = stage.get("/bytes/3000", &[GZIP]).await?.bytes().await?;
    packed.get(8).copied().context("it has no head")
}

/// A value of the header for all of its fields, as one list.
fn list(answer: &Response, name: &str) -> String {
    let values: Vec<_> = answer.headers().get_all(name).iter().map(|value| value.to_str().unwrap_or("?")).collect();
    values.join(", ")
}

fn is_gzip(answer: &Response) -> bool {
    list(answer, "content-encoding") == "gzip"
}

async fn unpacked(answer: Response) -> Result<Vec<u8>> {
    let packed = answer.bytes().await?;
    let mut body = Vec::new();
    let mut decoder = GzDecoder::new(&*packed);
    decoder.read_to_end(&mut body)?;
    ensure!(decoder.into_inner().is_empty(), "something follows the end");
    Ok(body)
}

#[tokio::test]
async fn who_takes_gzip_gets_it() -> Result<()> {
    let stage = Stage::set(&[])?;
    let plain = stage.get("/bytes/3000", &[]).await?;
    assert_eq!((list(&plain, "vary").as_str(), list(&plain, "content-length").as_str()), ("Accept-Encoding", "3000"));
    let plain = plain.bytes().await?;
    for (taken, is_taken) in [
        ("gzip", true),
        ("deflate, gzip;q=1.0, *;q=0.5", true),
        ("*", true),
        ("x-gzip", true),
        ("gzip;q=0", false),
        ("br", false),
        ("", false),
    ] {
        let answer = stage.get("/bytes/3000", &[("accept-encoding", taken)]).await?;
        assert_eq!((is_gzip(&answer), list(&answer, "vary").as_str()), (is_taken, "Accept-Encoding"), "{taken}");
        assert_eq!(list(&answer, "x-body-length"), "3000");
        if is_taken {
            assert!(!answer.headers().contains_key("content-length"), "{answer:?}");
            assert_eq!(unpacked(answer).await?, plain, "{taken}");
        } else {
            assert_eq!(answer.bytes().await?, plain, "{taken}");
        }
    }
    // An answer of the gateway itself.
    let missing = stage.send("GET", "/api/rest/a/v1/none", &[GZIP]).await?;
    assert!(missing.status() == 404 && !is_gzip(&missing), "it is small");
    let head = stage.send("HEAD", "/api/rest/a/v1/bytes/3000", &[GZIP]).await?;
    assert_eq!((is_gzip(&head), list(&head, "content-length").as_str()), (false, "3000"));
    Ok(())
}

#[tokio::test]
async fn the_settings_say_whether_what_and_how_well() -> Result<()> {
    let off = Stage::set(&[("COMPRESSION_ENABLED", "false")])?;
    let answer = off.get("/bytes/3000", &[GZIP]).await?;
    assert!(!is_gzip(&answer) && !answer.headers().contains_key("vary"), "{answer:?}");

    let usual = Stage::set(&[])?;
    for (size, is_large) in [(0, false), (1, false), (499, false), (500, true)] {
        let answer = usual.get(&format!("/bytes/{size}"), &[GZIP]).await?;
        assert_eq!(is_gzip(&answer), is_large, "{size}");
        assert_eq!(answer.headers().contains_key("vary"), is_large, "{size}");
    }
    assert_eq!(how_well(&usual).await?, FAST);

    let small = Stage::set(&[("COMPRESSION_MINIMUM_SIZE", "1"), ("COMPRESSION_LEVEL", "9")])?;
    assert!(!is_gzip(&small.get("/bytes/0", &[GZIP]).await?));
    assert_eq!(unpacked(small.get("/bytes/1", &[GZIP]).await?).await?, b"0");
    let missing = small.get("/none", &[GZIP]).await?;
    assert_eq!((missing.status().as_u16(), is_gzip(&missing)), (404, true));
    let refused: Value = serde_json::from_slice(&unpacked(missing).await?)?;
    assert_eq!(refused["error_code"], "GTW003");
    assert_eq!(how_well(&small).await?, BEST);

    let wrong = Stage::set(&[("COMPRESSION_LEVEL", "10")])?;
    assert_eq!(how_well(&wrong).await?, FAST, "1 is used instead");
    Ok(())
}

#[tokio::test]
async fn what_gains_nothing_or_must_stay_as_it_is_is_left_alone() -> Result<()> {
    let body = "a".repeat(2_000);
    let seen = json!({ "headers": { "allowed": ["etag", "accept-ranges", "content-range", "repr-digest", "vary"] } });
    for (head, is_packed) in [
        ("200 OK\r\nContent-Type: application/json", true),
        ("200 OK\r\nContent-Type: text/html; charset=utf-8", true),
        ("500 No\r\nContent-Type: text/plain", true),
        ("200 OK\r\nContent-Type: image/svg+xml", true),
        ("200 OK\r\nContent-Type: application/x-own", true),
        ("200 OK\r\nContent-Type: text/plain\r\nVary: *", true),
        ("200 OK", false),
        ("200 OK\r\nContent-Type: application/octet-stream", false),
        ("200 OK\r\nContent-Type: Application/ZIP", false),
        ("200 OK\r\nContent-Type: image/png", false),
        ("200 OK\r\nContent-Type: video/mp4", false),
        ("200 OK\r\nContent-Type: text/event-stream; charset=utf-8", false),
        ("200 OK\r\nContent-Type: application/grpc+proto", false),
        ("200 OK\r\nContent-Type: application/grpc-web-text", false),
        ("206 Part\r\nContent-Type: text/plain\r\nContent-Range: bytes 0-1999/9999", false),
        ("200 OK\r\nContent-Type: text/plain\r\nContent-Range: bytes 0-1999/9999", false),
        ("200 OK\r\nContent-Type: text/plain\r\nCache-Control: public, No-Transform", false),
        ("200 OK\r\nContent-Type: text/plain\r\nRepr-Digest: sha-256=:AA==:", false),
        ("200 OK\r\nContent-Type: text/plain\r\nContent-Encoding: br", false),
        ("200 OK\r\nContent-Type: text/plain\r\nContent-Encoding: gzip", false),
    ] {
        let stage = Stage::before(fixed(&answer_of(head, body.as_bytes()))?, &[], &seen)?;
        let answer = stage.get("/fixed", &[GZIP]).await?;
        let is_encoded = head.contains("Content-Encoding");
        assert_eq!(answer.headers().contains_key("content-encoding"), is_packed || is_encoded, "{head}");
        let vary = match head {
            _ if head.contains("Vary: *") => "*",
            _ if is_packed || is_encoded => "Accept-Encoding",
            _ => "",
        };
        assert_eq!(list(&answer, "vary"), vary, "{head}");
        let sent = if is_packed { unpacked(answer).await? } else { answer.bytes().await?.to_vec() };
        assert_eq!(sent, body.as_bytes(), "{head}");
        if is_packed {
            let answer = stage.get("/fixed", &[GZIP, ("cache-control", "no-transform")]).await?;
            assert!(!is_gzip(&answer), "{head}");
        }
    }
    let tagged =
        "200 OK\r\nContent-Type: text/plain\r\nETag: \"x\"\r\nAccept-Ranges: bytes\r\nVary: X-Own, accept-encoding";
    let stage = Stage::before(fixed(&answer_of(tagged, body.as_bytes()))?, &[], &seen)?;
    let of = |answer: &Response| [list(answer, "etag"), list(answer, "accept-ranges"), list(answer, "vary")];
    assert_eq!(of(&stage.get("/fixed", &[GZIP]).await?), ["W/\"x\"", "", "X-Own, accept-encoding"]);
    assert_eq!(of(&stage.get("/fixed", &[]).await?), ["\"x\"", "bytes", "X-Own, accept-encoding"]);
    for (head, status) in [("204 None\r\nContent-Type: text/plain", 204), ("304 Same\r\nContent-Type: text/plain", 304)]
    {
        let head = format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n");
        let stage = Stage::before(serve(move |stream| drop(stream.write_all(head.as_bytes())))?, &[], &seen)?;
        let answer = stage.get("/fixed", &[GZIP]).await?;
        assert_eq!((answer.status().as_u16(), is_gzip(&answer), list(&answer, "vary").as_str()), (status, false, ""));
    }
    Ok(())
}

/// An upstream that sends `first`, waits for a word, then goes on.
fn in_two_pieces(then: &'static [u8]) -> Result<(SocketAddr, std::sync::mpsc::Sender<()>)> {
    let (go_on, word): (_, Receiver<()>) = channel();
    let address = serve(move |stream| {
        let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n";
        let _ = stream.write_all(head);
        let _ = word.recv();
        let _ = stream.write_all(then);
    })?;
    Ok((address, go_on))
}

#[tokio::test]
async fn what_is_there_arrives_before_the_rest() -> Result<()> {
    for is_http2 in [false, true] {
        let (upstream, go_on) = in_two_pieces(b"6\r\nsecond\r\n0\r\n\r\n")?;
        let mut stage = Stage::before(upstream, &[], &json!({}))?;
        if is_http2 {
            stage.http = Client::builder().http2_prior_knowledge().build()?;
        }
        let mut answer = stage.get("/fixed", &[GZIP]).await?;
        assert!(is_gzip(&answer));
        let mut decoder = flate2::write::GzDecoder::new(Vec::new());
        while decoder.get_ref() != b"first" {
            decoder.write_all(&answer.chunk().await?.context("it ends before the first piece is out")?)?;
            decoder.flush()?;
        }
        go_on.send(())?;
        while let Some(chunk) = answer.chunk().await? {
            decoder.write_all(&chunk)?;
        }
        assert_eq!(decoder.finish()?, b"firstsecond");
    }
    Ok(())
}

#[tokio::test]
async fn an_answer_that_breaks_off_has_no_good_end() -> Result<()> {
    let (upstream, go_on) = in_two_pieces(b"6\r\nsec")?;
    go_on.send(())?;
    // The next one gets no word, and with it nothing more.
    drop(go_on);
    let stage = Stage::before(upstream, &[], &json!({}))?;
    let answer = stage.get("/fixed", &[GZIP]).await?;
    assert!(is_gzip(&answer) && answer.bytes().await.is_err());
    Ok(())
}

#[tokio::test]
async fn large_answers_come_whole() -> Result<()> {
    let mut stage = Stage::set(&[])?;
    for is_http2 in [false, true] {
        if is_http2 {
            stage.http = Client::builder().http2_prior_knowledge().build()?;
        }
        let size = 5_000_000;
        let plain = stage.get(&format!("/bytes/{size}"), &[]).await?.bytes().await?;
        let calls = (0..4).map(|_| async { unpacked(stage.get(&format!("/bytes/{size}"), &[GZIP]).await?).await });
        for body in futures::future::join_all(calls).await {
            assert!(body? == plain);
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_platform_answers_with_gzip_too() -> Result<()> {
    let stage = Stage::set(&[])?;
    let plain = stage.send("GET", "/platform/openapi.json", &[]).await?.bytes().await?;
    let answer = stage.send("GET", "/platform/openapi.json", &[GZIP]).await?;
    assert_eq!((is_gzip(&answer), list(&answer, "vary").as_str()), (true, "Origin"));
    assert!(!answer.headers().contains_key("content-length"), "{answer:?}");
    assert_eq!(unpacked(answer).await?, plain);
    let small = stage.send("GET", "/platform/monitor/liveness", &[GZIP]).await?;
    assert!(!is_gzip(&small), "{small:?}");
    Ok(())
}

#[tokio::test]
async fn changed_and_wrapped_answers_are_compressed_last() -> Result<()> {
    let body = format!("{{\"a\":\"{}\"}}", "x".repeat(1_000));
    let more = json!({ "envelope": true, "responseTransform": { "body": { "set": { "$.b": 1 } } },
        "cors": { "allowOrigins": ["http://a.example"] } });
    let upstream = fixed(&answer_of("200 OK\r\nContent-Type: application/json", body.as_bytes()))?;
    let stage = Stage::before(upstream, &[], &more)?;
    let answer = stage.get("/fixed", &[GZIP, ("origin", "http://a.example")]).await?;
    assert_eq!((is_gzip(&answer), list(&answer, "vary").as_str()), (true, "Origin, Accept-Encoding"));
    let seen: Value = serde_json::from_slice(&unpacked(answer).await?)?;
    assert_eq!((&seen["status_code"], &seen["response"]["b"]), (&json!(200), &json!(1)));
    Ok(())
}

fn packed(body: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(body)?;
    Ok(encoder.finish()?)
}

#[tokio::test]
async fn what_an_upstream_compressed_is_plain_for_clients_that_take_no_gzip() -> Result<()> {
    let body: Vec<u8> = (0..400_000_u32).flat_map(|n| n.to_string().into_bytes()).collect();
    let seen = json!({ "headers": { "allowed": ["etag", "repr-digest"] } });
    let head =
        "200 OK\r\nContent-Type: text/plain\r\nETag: \"x\"\r\nRepr-Digest: sha-256=:AA==:\r\nContent-Encoding: gzip";
    let stage = Stage::before(fixed(&answer_of(head, &packed(&body)?))?, &[], &seen)?;
    for taken in [&[][..], &[("accept-encoding", "br")], &[("accept-encoding", "gzip;q=0")]] {
        let answer = stage.get("/fixed", taken).await?;
        let of = ["content-encoding", "content-length", "x-body-length", "repr-digest", "etag", "vary"];
        assert_eq!(of.map(|name| list(&answer, name)), ["", "", "", "", "W/\"x\"", "Accept-Encoding"], "{taken:?}");
        assert!(answer.bytes().await? == body, "{taken:?}");
    }
    let answer = stage.get("/fixed", &[GZIP]).await?;
    assert_eq!((is_gzip(&answer), list(&answer, "etag").as_str()), (true, "\"x\""));
    assert!(unpacked(answer).await? == body);

    // A file of several members, and what is no member behind it.
    let (one, other) = body.split_at(1_000);
    let members = [packed(one)?, packed(other)?, vec![0; 512]].concat();
    let stage = Stage::before(fixed(&answer_of(head, &members))?, &[], &seen)?;
    assert!(stage.get("/fixed", &[]).await?.bytes().await? == body);

    let held = "200 OK\r\nContent-Type: text/plain\r\nCache-Control: no-transform\r\nContent-Encoding: gzip";
    let stage = Stage::before(fixed(&answer_of(held, &packed(&body)?))?, &[], &seen)?;
    assert!(unpacked(stage.get("/fixed", &[]).await?).await? == body);
    Ok(())
}

#[tokio::test]
async fn what_is_no_gzip_or_not_all_of_it_has_no_good_end() -> Result<()> {
    let head = "200 OK\r\nContent-Type: text/plain\r\nContent-Encoding: gzip";
    let whole = packed(&b"much of it ".repeat(10_000))?;
    for sent in [&whole[..whole.len() - 9], b"plain text", &whole[..5]] {
        let stage = Stage::before(fixed(&answer_of(head, sent))?, &[], &json!({}))?;
        let read = async { anyhow::Ok(stage.get("/fixed", &[]).await?.bytes().await?) };
        assert!(read.await.is_err(), "{} bytes", sent.len());
    }
    Ok(())
}

#[tokio::test]
async fn what_an_upstream_compressed_unasked_is_changed_all_the_same() -> Result<()> {
    let more = json!({ "envelope": true, "responseTransform": { "body": { "set": { "$.b": 1 } } } });
    let head = "200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip";
    let upstream = fixed(&answer_of(head, &packed(br#"{"a":2}"#)?))?;
    let stage = Stage::before(upstream, &[], &more)?;
    // What a client says about compression is not about what an API takes out of its answers.
    for more in [&[][..], &[("cache-control", "no-transform")]] {
        let answer = stage.get("/fixed", &[&[GZIP], more].concat()).await?;
        // It is small now that its length is known.
        assert!(!is_gzip(&answer), "{answer:?}");
        let seen: Value = answer.json().await?;
        assert_eq!(seen, json!({ "status_code": 200, "response": { "a": 2, "b": 1 } }));
    }
    Ok(())
}
