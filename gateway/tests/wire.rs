//! The wire: what a client may send over HTTP/1.1, HTTP/2 and TLS, and what the upstream then sees.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use doorman_tests::gateway::{GatewayProcess, PATIENCE, Start};
use doorman_tests::raw;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use reqwest::{Client, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio_rustls::TlsAcceptor;

const BINARY: &str = env!("CARGO_BIN_EXE_doorman-gateway");

fn api(upstream: &str) -> String {
    format!(
        "apiVersion: doorman.dev/v1alpha1\nkind: DoormanApi\nmetadata: {{name: a}}\nspec:\n  name: a\n  version: v1\n  \
         protocol: REST\n  public: true\n  servers: ['{upstream}']\n  endpoints:\n  - {{method: GET, uri: /x}}\n  \
         - {{method: POST, uri: /x}}\n  - {{method: GET, uri: /y}}\n  - {{method: POST, uri: /y}}\n"
    )
}

/// What an upstream saw: the request line and the body.
type Seen = (String, Version, Vec<u8>);

/// An upstream of the test's own: tells what it saw, answers as asked by the path's query.
struct Upstream {
    address: SocketAddr,
    seen: mpsc::UnboundedReceiver<Seen>,
    connections: Arc<AtomicUsize>,
    hung: Arc<Notify>,
    gone: Arc<Notify>,
}

/// Tells when an answer is dropped before it was complete.
struct OnDrop(Arc<Notify>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

async fn answer(
    request: http::Request<Incoming>,
    seen: mpsc::UnboundedSender<Seen>,
    hung: Arc<Notify>,
    gone: Arc<Notify>,
) -> Result<http::Response<Full<Bytes>>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    if query == "hang" {
        let _told = OnDrop(gone);
        hung.notify_one();
        std::future::pending::<()>().await;
    }
    let authority = parts.uri.authority().map(ToString::to_string);
    let host = authority.or_else(|| parts.headers.get("host")?.to_str().ok().map(str::to_owned)).unwrap_or_default();
    let path = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    let line = format!("{} {path} {host}", parts.method);
    let body = match &*query {
        "early" => Bytes::new(),
        "early-and-read-on" => {
            tokio::spawn(body.collect());
            Bytes::new()
        }
        _ => body.collect().await?.to_bytes(),
    };
    let _ = seen.send((line, parts.version, body.to_vec()));
    let status = query.parse().unwrap_or(200);
    let content = if matches!(status, 204 | 304) { Bytes::new() } else { Bytes::from_static(b"fine") };
    let mut response = http::Response::new(Full::new(content));
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or_default();
    Ok(response)
}

impl Upstream {
    async fn start(tls: Option<TlsAcceptor>) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (sender, seen) = mpsc::unbounded_channel();
        let (connections, hung, gone) =
            (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (counter, told) = (connections.clone(), (hung.clone(), gone.clone()));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::Relaxed);
                let (tls, sender, (hung, gone)) = (tls.clone(), sender.clone(), told.clone());
                let service = service_fn(move |request| answer(request, sender.clone(), hung.clone(), gone.clone()));
                tokio::spawn(async move {
                    let builder = auto::Builder::new(TokioExecutor::new());
                    match tls {
                        None => drop(builder.serve_connection(TokioIo::new(stream), service).await),
                        Some(tls) => {
                            let Ok(stream) = tls.accept(stream).await else { return };
                            drop(builder.serve_connection(TokioIo::new(stream), service).await);
                        }
                    }
                });
            }
        });
        Ok(Self { address, seen, connections, hung, gone })
    }

    fn gateway(&self) -> Result<GatewayProcess> {
        Start::new(BINARY)?.manifest("a.yaml", &api(&format!("http://{}", self.address)))?.run()
    }

    fn lines(&mut self) -> Vec<(String, Vec<u8>)> {
        std::iter::from_fn(|| self.seen.try_recv().ok()).map(|(line, _, body)| (line, body)).collect()
    }
}

/// Sends bytes and reads until the gateway closes, or has answered as often as wanted.
fn exchange(address: SocketAddr, bytes: &[u8], answers: usize) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // A gateway that has refused the beginning may have closed by now.
    let _ = stream.write_all(bytes);
    let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => text.extend_from_slice(&buffer[..count]),
        }
        let so_far = String::from_utf8_lossy(&text);
        // Each answer to a good case ends with its body.
        if answers > 0 && so_far.matches("fine").count() >= answers {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn statuses(text: &str) -> Vec<u16> {
    text.match_indices("HTTP/1.1 ")
        .filter_map(|(at, found)| text.get(at + found.len()..)?.get(..3)?.parse().ok())
        .collect()
}

const P: &str = "POST /api/rest/a/v1/x HTTP/1.1\r\nHost: g\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn answers_without_a_body_and_before_the_request_is_complete_keep_their_framing() -> Result<()> {
    let mut upstream = Upstream::start(None).await?;
    let gateway = upstream.gateway()?;
    let client = Client::new();
    let head = client.head(gateway.url("/api/rest/a/v1/x")).send().await?;
    assert_eq!((head.status().as_u16(), head.headers()["content-length"].to_str()?), (200, "4"));
    assert_eq!(upstream.lines()[0].0, format!("HEAD /x {}", upstream.address));
    for status in [204, 304, 500] {
        let answer = client.get(gateway.url(&format!("/api/rest/a/v1/x?{status}"))).send().await?;
        assert_eq!(answer.status().as_u16(), status);
    }
    // The upstream answers and closes its eyes on the body; the client gets that answer while it still sends.
    let address = gateway.address();
    let early = "POST /api/rest/a/v1/x?early HTTP/1.1\r\nHost: g\r\nContent-Length: 1000000\r\n\r\nabc";
    let text = tokio::task::spawn_blocking(move || exchange(address, early.as_bytes(), 1)).await??;
    assert_eq!(statuses(&text), [200], "{text}");
    // Nobody asked for another protocol.
    let switched = client.get(gateway.url("/api/rest/a/v1/x?101")).send().await?;
    assert_eq!(switched.status().as_u16(), 500);
    Ok(())
}

/// Where the upstream reads on after an early answer, the connection is busy for as long as the client likes.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_answered_early_delays_nobody() -> Result<()> {
    let upstream = Upstream::start(None).await?;
    let gateway = upstream.gateway()?;
    let mut uploading = TcpStream::connect(gateway.address())?;
    uploading.set_read_timeout(Some(PATIENCE))?;
    let head = "POST /api/rest/a/v1/x?early-and-read-on HTTP/1.1\r\nHost: g\r\nContent-Length: 1000000\r\n\r\nabc";
    uploading.write_all(head.as_bytes())?;
    let mut status = [0; 12];
    uploading.read_exact(&mut status)?;
    assert_eq!(&status, b"HTTP/1.1 200");
    let client = Client::builder().timeout(PATIENCE).build()?;
    let answer = client.get(gateway.url("/api/rest/a/v1/x")).send().await?;
    assert_eq!(answer.status().as_u16(), 200);
    drop(uploading);
    Ok(())
}

/// Reads the head and the body of one answer.
fn read_answer(stream: &mut TcpStream) -> Result<u16> {
    let head = String::from_utf8(raw::read_head(stream)?)?.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).context("no length")?;
    stream.read_exact(&mut vec![0; length.parse()?])?;
    head.get(9..12).and_then(|status| status.parse().ok()).context(head.clone())
}

/// The answer is there before the body is, and the next request is answered behind both.
#[tokio::test(flavor = "multi_thread")]
async fn the_rest_of_a_body_that_nobody_reads_is_in_nobodys_way() -> Result<()> {
    let upstream = Upstream::start(None).await?;
    let gateway = upstream.gateway()?;
    let address = gateway.address();
    let calls = [
        ("POST /nowhere HTTP/1.1", 404),
        ("POST /api/rest/none/v1/x HTTP/1.1", 404),
        ("PATCH /platform/user/me HTTP/1.1", 405),
        ("POST /platform/authorization/refresh HTTP/1.1", 401),
        ("GET /api/rest/a/v1/x HTTP/1.1", 200),
    ];
    tokio::task::spawn_blocking(move || {
        for (first, status) in calls {
            for body in ["Content-Length: 2\r\n\r\n,{}", "Transfer-Encoding: chunked\r\n\r\n,2\r\n{}\r\n0\r\n\r\n"] {
                let (head, body) = body.split_once(',').context("no body")?;
                let mut stream = TcpStream::connect(address)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.write_all(format!("{first}\r\nHost: g\r\n{head}").as_bytes())?;
                ensure!(read_answer(&mut stream)? == status, "{first}");
                stream.write_all(format!("{body}GET /api/rest/a/v1/x HTTP/1.1\r\nHost: g\r\n\r\n").as_bytes())?;
                ensure!(read_answer(&mut stream)? == 200, "after {first}");
            }
        }
        // Who doesn't look before all is sent sees the answer too.
        for path in ["/platform/authorization", "/api/rest/a/v1/x"] {
            let mut stream = TcpStream::connect(address)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let length = 5_000_000;
            stream
                .write_all(format!("POST {path} HTTP/1.1\r\nHost: g\r\nContent-Length: {length}\r\n\r\n").as_bytes())?;
            stream.write_all(&vec![b'x'; length])?;
            ensure!(read_answer(&mut stream)? == 413, "{path}");
        }
        Ok(())
    })
    .await?
}

/// Not within the bounds, and not where the client waits to be told to send it.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_without_end_is_not_read_for_ever() -> Result<()> {
    let upstream = Upstream::start(None).await?;
    let gateway = upstream.gateway()?;
    let address = gateway.address();
    tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"POST /nowhere HTTP/1.1\r\nHost: g\r\nContent-Length: 1000000000\r\n\r\n")?;
        let piece = vec![b'x'; 1 << 20];
        let sent = std::iter::repeat_with(|| stream.write_all(&piece)).take(900).take_while(Result::is_ok).count();
        ensure!(sent < 900, "all of it was taken");
        let mut waiting = TcpStream::connect(address)?;
        waiting.set_read_timeout(Some(PATIENCE))?;
        waiting.write_all(b"POST /nowhere HTTP/1.1\r\nHost: g\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")?;
        ensure!(read_answer(&mut waiting)? == 404, "told to go on");
        Ok(())
    })
    .await?
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_answers_and_closes_without_reading_is_heard() -> Result<()> {
    for (name, answer) in [
        ("its length told", &b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nfine"[..]),
        ("its end that of the connection", b"HTTP/1.0 200 OK\r\n\r\nfine"),
    ] {
        let upstream = raw::fixed(answer)?;
        let gateway = Start::new(BINARY)?.manifest("a.yaml", &api(&format!("http://{upstream}")))?.run()?;
        let client = Client::builder().timeout(PATIENCE).build()?;
        for size in [1, 20_000, 60_000, 200_000, 900_000] {
            for round in 0..10 {
                let call = client.post(gateway.url("/api/rest/a/v1/x")).body(vec![b'x'; size]);
                let at = || format!("{name}, {size} bytes, round {round}");
                let seen = call.send().await.with_context(at)?;
                let (status, text) = (seen.status().as_u16(), seen.text().await.with_context(at)?);
                assert_eq!((status, text.as_str()), (200, "fine"), "{name}, {size} bytes, round {round}");
            }
        }
    }
    Ok(())
}

/// The server ends a connection that was kept just when the next request arrives.
#[tokio::test(flavor = "multi_thread")]
async fn what_may_be_sent_twice_is_not_lost_with_a_connection_that_was_kept() -> Result<()> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let upstream = listener.local_addr()?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            drop(raw::read_head(&mut stream));
            drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine"));
            drop(raw::read_head(&mut stream));
        }
    });
    let gateway = Start::new(BINARY)?.manifest("a.yaml", &api(&format!("http://{upstream}")))?.run()?;
    let client = Client::builder().timeout(PATIENCE).build()?;
    let url = gateway.url("/api/rest/a/v1/x");
    for _ in 0..3 {
        assert_eq!(client.get(&url).send().await?.text().await?, "fine");
    }
    let answer = client.post(&url).send().await?;
    assert_eq!(answer.status().as_u16(), 500, "it may have arrived");
    assert_eq!(client.post(&url).send().await?.text().await?, "fine", "by a connection of its own");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_of_an_upstream_do_not_slip_past_the_header_rules() -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await?;
        let mut head = [0; 4096];
        // The request is short enough to come in one piece, and small requests are written whole.
        let _ = stream.read(&mut head).await?;
        let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Secret\r\n\r\n4\r\nfine\r\n0\r\nX-Secret: s\r\n\r\n";
        stream.write_all(answer.as_bytes()).await?;
        let _ = stream.read(&mut head).await?;
        std::io::Result::Ok(())
    });
    let gateway = Start::new(BINARY)?.manifest("a.yaml", &api(&format!("http://{address}")))?.run()?;
    let stream = TokioIo::new(tokio::net::TcpStream::connect(gateway.address()).await?);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await?;
    tokio::spawn(connection);
    let request = http::Request::get(gateway.url("/api/rest/a/v1/x")).header("te", "trailers");
    let answer = sender.send_request(request.body(Full::<Bytes>::default())?).await?;
    assert_eq!(answer.status().as_u16(), 200);
    let body = answer.into_body().collect().await?;
    assert_eq!(body.trailers(), None);
    assert_eq!(body.to_bytes(), "fine");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_takes_its_upstream_call_with_it() -> Result<()> {
    let upstream = Upstream::start(None).await?;
    let gateway = upstream.gateway()?;
    let mut stream = TcpStream::connect(gateway.address())?;
    stream.write_all(b"GET /api/rest/a/v1/x?hang HTTP/1.1\r\nHost: g\r\n\r\n")?;
    tokio::time::timeout(PATIENCE, upstream.hung.notified()).await.context("the call does not reach the upstream")?;
    drop(stream);
    tokio::time::timeout(PATIENCE, upstream.gone.notified()).await.context("the upstream call goes on")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_are_let_go() -> Result<()> {
    let mut upstream = Upstream::start(None).await?;
    let gateway = Start::new(BINARY)?
        .with("HTTP_WRITE_TIMEOUT", "1")
        .with("HTTP_READ_TIMEOUT", "1")
        .manifest("a.yaml", &api(&format!("http://{}", upstream.address)))?
        .run()?;
    let address = gateway.address();
    let stalled = tokio::task::spawn_blocking(move || {
        exchange(address, format!("{P}Content-Length: 9\r\n\r\nabc").as_bytes(), 0)
    });
    let head = tokio::task::spawn_blocking(move || {
        let start = Instant::now();
        exchange(address, b"GET /api/rest/a/v1/x HTTP/1.1\r\nHost", 0).map(|text| (text, start.elapsed()))
    });
    let text = stalled.await??;
    assert_eq!(statuses(&text), [408], "{text}");
    assert!(text.contains("REQ005") && text.to_lowercase().contains("connection: close"), "{text}");
    let (text, time) = head.await??;
    assert!(text.is_empty() && (9..15).contains(&time.as_secs()), "{text} after {time:?}");
    assert_eq!(upstream.lines(), []);
    Ok(())
}

type Certified = rcgen::CertifiedKey<rcgen::KeyPair>;

fn certified() -> Result<Certified> {
    Ok(rcgen::generate_simple_self_signed(["localhost".to_owned()])?)
}

fn acceptor(made: &Certified, protocols: &[&[u8]]) -> Result<TlsAcceptor> {
    let key =
        rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn trusting(made: &Certified, gateway: &GatewayProcess) -> Result<reqwest::ClientBuilder> {
    let root = reqwest::Certificate::from_pem(made.cert.pem().as_bytes())?;
    Ok(Client::builder().tls_certs_only([root]).resolve("localhost", gateway.address()))
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_serves_both_versions_and_takes_up_a_new_certificate() -> Result<()> {
    let upstream = Upstream::start(None).await?;
    let folder = tempfile::tempdir()?;
    let (first, second) = (certified()?, certified()?);
    let (chain, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
    std::fs::write(&chain, first.cert.pem())?;
    std::fs::write(&key, first.signing_key.serialize_pem())?;
    let gateway = Start::new(BINARY)?
        .with("HTTPS_ONLY", "true")
        .with("SSL_CERTFILE", chain.display().to_string())
        .with("SSL_KEYFILE", key.display().to_string())
        .manifest("a.yaml", &api(&format!("http://{}", upstream.address)))?
        .run()?;
    let url = format!("https://localhost:{}/api/rest/a/v1/x", gateway.address().port());
    let old = trusting(&first, &gateway)?.build()?;
    assert_eq!(old.get(&url).send().await?.version(), Version::HTTP_2);
    let answer = trusting(&first, &gateway)?.http1_only().build()?.get(&url).send().await?;
    assert_eq!((answer.version(), answer.status().as_u16()), (Version::HTTP_11, 200));
    assert!(answer.headers().contains_key("strict-transport-security"));

    // A file that is no certificate changes nothing but the log.
    std::fs::write(&chain, "not a certificate")?;
    let deadline = Instant::now() + PATIENCE;
    gateway.logged("the old one stays").await?;
    assert_eq!(trusting(&first, &gateway)?.build()?.get(&url).send().await?.status().as_u16(), 200);

    std::fs::write(&key, second.signing_key.serialize_pem())?;
    std::fs::write(&chain, second.cert.pem())?;
    loop {
        match trusting(&second, &gateway)?.build()?.get(&url).send().await {
            Ok(answer) => break assert_eq!(answer.status().as_u16(), 200),
            Err(error) if Instant::now() > deadline + PATIENCE => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    // Connections of before live on.
    assert_eq!(old.get(&url).send().await?.status().as_u16(), 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn https_upstreams_are_called_over_one_http2_connection_where_they_offer_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let made = certified()?;
    let roots = folder.path().join("roots.pem");
    std::fs::write(&roots, made.cert.pem())?;
    let (both, old): (&[&[u8]], &[&[u8]]) = (&[b"h2", b"http/1.1"], &[b"http/1.1"]);
    for (protocols, version) in [(both, Version::HTTP_2), (old, Version::HTTP_11)] {
        let mut upstream = Upstream::start(Some(acceptor(&made, protocols)?)).await?;
        let authority = format!("localhost:{}", upstream.address.port());
        let gateway = Start::new(BINARY)?
            .with("HTTP_ENABLE_HTTP2", "true")
            .with("SSL_CERT_FILE", roots.display().to_string())
            .manifest("a.yaml", &api(&format!("https://{authority}")))?
            .run()?;
        let client = Client::new();
        let first = client.post(gateway.url("/api/rest/a/v1/x?200")).body("abc").send().await?;
        assert_eq!((first.status().as_u16(), first.text().await?.as_str()), (200, "fine"), "{}", gateway.log());
        let calls = (0..20).map(|_| client.post(gateway.url("/api/rest/a/v1/x")).body("abc").send());
        for answer in futures::future::join_all(calls).await {
            assert_eq!(answer?.status().as_u16(), 200);
        }
        for _ in 0..21 {
            let (line, seen, body) = upstream.seen.try_recv()?;
            assert!(line.starts_with("POST /x") && line.ends_with(&authority), "{line}");
            assert_eq!((seen, body.as_slice()), (version, &b"abc"[..]));
        }
        let connections = upstream.connections.load(Ordering::Relaxed);
        assert!(version != Version::HTTP_2 || connections == 1, "{connections} connections");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http2_client_loses_nothing_in_a_drain() -> Result<()> {
    let upstream = Upstream::start(None).await?;
    let gateway = Start::new(BINARY)?
        .with("DOORMAN_DRAIN_SECONDS", "2")
        .manifest("a.yaml", &api(&format!("http://{}", upstream.address)))?
        .run()?;
    let client = Client::builder().http2_prior_knowledge().build()?;
    let url = gateway.url("/api/rest/a/v1/x");
    assert_eq!(client.get(&url).send().await?.version(), Version::HTTP_2);
    gateway.terminate()?;
    gateway.logged("readiness is off").await?;
    let mut served = 0;
    // Until the listener is closed every call is answered; then none can be begun.
    let refused = loop {
        match client.get(&url).send().await {
            Ok(answer) => assert_eq!(answer.status().as_u16(), 200),
            Err(error) => break error,
        }
        served += 1;
    };
    assert!(served > 0 && refused.is_connect(), "{served} calls, then {refused:?}");
    Ok(())
}
