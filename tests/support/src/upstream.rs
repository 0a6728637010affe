//! The sample upstream: a server whose answer to any request is known in advance.
//!
//! | route | answer |
//! |---|---|
//! | `GET /health` | `{"status":"ok"}` |
//! | `/bytes/{n}`, and any path below it | exactly `n` bytes of JSON, the same ones each time |
//! | `/status/{code}` | that status |
//! | `/failing/{n}` | 503 to the first `n` calls with the same query, then the request as it arrived |
//! | `/slow/{ms}` | after that many milliseconds |
//! | `/stream/{n}` | `n` chunks, one every 50 ms |
//! | `/headers` | the echo, with the response headers `X-Upstream` and `X-Secret` |
//! | `POST /upload` | `{"bytes":n}`, counted as they arrive, never held |
//! | anything else | the request as it arrived: method, path, query, headers, body, and who answered |
//!
//! It answers over HTTP/1.1 and over HTTP/2 with prior knowledge, on one thread: cheap enough not to be what a benchmark
//! of a gateway measures. With [`Tls`] the echo also tells by which name it was called and which certificate it was shown.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde::Serialize;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::LocalOptions;
use tokio_rustls::TlsAcceptor;

use crate::certificates::{Certificate, fingerprint};

/// Bodies above this size are refused by the echo; `/upload` takes any size.
const ECHO_LIMIT: usize = 10 << 20;
/// `/bytes/{n}` above this size is refused.
const BYTES_LIMIT: usize = 64 << 20;
/// Only bodies up to this size are kept between requests, and only so many of them.
const CACHED_SIZE: usize = 1 << 20;
const CACHED_COUNT: usize = 64;
/// Between two chunks of `/stream/{n}`.
const STREAM_PAUSE: Duration = Duration::from_millis(50);
/// How long calls in flight may take after a stop was asked for.
const DRAIN: Duration = Duration::from_secs(10);

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What TLS is spoken with.
#[derive(Clone)]
pub struct Tls(TlsAcceptor);

impl Tls {
    /// Shows this certificate. With `clients`, an authority in PEM, only those are let in whose certificate it has signed.
    pub fn new(own: &Certificate, clients: Option<&str>) -> anyhow::Result<Self> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(CertificateDer::from_pem_slice(authority.as_bytes())?)?;
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let chain = CertificateDer::pem_slice_iter(own.chain.as_bytes()).collect::<Result<_, _>>()?;
        let mut config = builder.with_single_cert(chain, PrivateKeyDer::from_pem_slice(own.key.as_bytes())?)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }

    /// As the files of a mounted Secret say: `tls.crt`, `tls.key`, and with `ca.crt` only clients that it has signed.
    pub fn load(folder: &Path) -> anyhow::Result<Self> {
        let read = |name: &str| std::fs::read_to_string(folder.join(name));
        let own = Certificate { chain: read("tls.crt")?, key: read("tls.key")? };
        let clients = if folder.join("ca.crt").exists() { Some(read("ca.crt")?) } else { None };
        Self::new(&own, clients.as_deref())
    }
}

/// Serves on `listener` with the calling thread until `stop` resolves, then finishes the calls in flight (for at most
/// 10 s) and returns.
pub fn run(listener: std::net::TcpListener, tls: Option<Tls>, stop: impl Future<Output = ()>) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    // Everything stays on one thread; unlike a `LocalSet`, this runtime wakes a task without a system call.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
    runtime.block_on(async { serve(TcpListener::from_std(listener)?, tls, stop).await })
}

async fn serve(listener: TcpListener, tls: Option<Tls>, stop: impl Future<Output = ()>) -> std::io::Result<()> {
    let port = listener.local_addr()?.port();
    let answers =
        Rc::new(Answers { hostname: hostname(), port, sizes: RefCell::default(), failing: RefCell::default() });
    let connections = GracefulShutdown::new();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => accept(stream, tls.clone(), Rc::clone(&answers), connections.watcher()),
                // Out of file descriptors or a connection gone before it was taken: the next one may be fine.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
        }
    }
    drop(listener);
    // Whoever has not finished by then is cut off: a test server must end.
    let _ = tokio::time::timeout(DRAIN, connections.shutdown()).await;
    Ok(())
}

/// A sample upstream on a thread of its own; it stops at once when dropped, whatever is under way.
#[derive(Debug)]
pub struct Running {
    address: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Starts a sample upstream on `address` (port 0: any free one) on a thread of its own.
pub fn start(address: SocketAddr) -> std::io::Result<Running> {
    start_with(address, None)
}

/// The same over TLS.
pub fn start_tls(address: SocketAddr, tls: Tls) -> std::io::Result<Running> {
    start_with(address, Some(tls))
}

fn start_with(address: SocketAddr, tls: Option<Tls>) -> std::io::Result<Running> {
    let listener = std::net::TcpListener::bind(address)?;
    let address = listener.local_addr()?;
    listener.set_nonblocking(true)?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let builder = std::thread::Builder::new().name("sample-upstream".into());
    let thread = builder.spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
        runtime.expect("a runtime").block_on(async {
            let listener = TcpListener::from_std(listener).expect("a listener on a runtime with I/O");
            // Draining would wait for a test that waits for this thread.
            tokio::select! {
                served = serve(listener, tls, std::future::pending()) => served.expect("a bound listener has an address"),
                _ = stopped => {}
            }
        });
    })?;
    Ok(Running { address, stop: Some(stop), thread: Some(thread) })
}

fn accept(stream: TcpStream, tls: Option<Tls>, answers: Rc<Answers>, connections: Watcher) {
    let _ = stream.set_nodelay(true);
    tokio::task::spawn_local(async move {
        // A client that went away in the middle of a call is its own business, and so is one that is not let in.
        let Some(Tls(acceptor)) = tls else { return talk(stream, None, answers, connections).await };
        let Ok(stream) = acceptor.accept(stream).await else { return };
        let session = stream.get_ref().1;
        let peer = Peer {
            server_name: session.server_name().map(str::to_owned),
            certificate: session.peer_certificates().and_then(<[_]>::first).map(fingerprint),
        };
        talk(stream, Some(Rc::new(peer)), answers, connections).await;
    });
}

async fn talk<S>(stream: S, peer: Option<Rc<Peer>>, answers: Rc<Answers>, connections: Watcher)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let mut builder = auto::Builder::new(LocalExecutor);
    builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(120));
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(1024);
    let service = service_fn(move |request| {
        let (answers, peer) = (Rc::clone(&answers), peer.clone());
        async move { Ok::<_, Infallible>(answers.answer(request, peer.as_deref()).await) }
    });
    let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
    let _ = connections.watch(connection).await;
}

/// Spawns HTTP/2 streams beside their connection, so that nothing needs to be `Send`.
#[derive(Clone, Copy)]
struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

/// What the answers depend on besides the request.
struct Answers {
    hostname: String,
    port: u16,
    sizes: RefCell<HashMap<usize, Bytes>>,
    /// Calls of `/failing/{n}` by path and query.
    failing: RefCell<HashMap<String, u32>>,
}

/// The request as it arrived.
#[derive(Serialize)]
struct Echo<'a> {
    method: &'a str,
    path: &'a str,
    query: &'a str,
    protocol: String,
    headers: BTreeMap<&'a str, Vec<String>>,
    body: String,
    server: Server<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<&'a Peer>,
}

/// What a client has told at the start of a TLS connection.
#[derive(Serialize)]
struct Peer {
    server_name: Option<String>,
    certificate: Option<String>,
}

#[derive(Serialize)]
struct Server<'a> {
    hostname: &'a str,
    port: u16,
}

impl Answers {
    async fn answer(&self, request: Request<Incoming>, peer: Option<&Peer>) -> Response<Body> {
        let path = request.uri().path();
        let (first, rest) = path.trim_start_matches('/').split_once('/').unwrap_or((path.trim_start_matches('/'), ""));
        match (first, rest) {
            ("bytes", n) => match n.split('/').next().unwrap_or_default().parse() {
                Ok(n) if n <= BYTES_LIMIT => json_bytes(StatusCode::OK, self.bytes(n)),
                _ => refuse(&format!("/bytes/{{n}} takes a number up to {BYTES_LIMIT}")),
            },
            ("health", "") => json_bytes(StatusCode::OK, Bytes::from_static(br#"{"status":"ok"}"#)),
            ("status", code) => match code.parse().ok().and_then(|code| StatusCode::from_u16(code).ok()) {
                Some(code) if !code.is_informational() => json(code, &json!({ "status": code.as_u16() })),
                _ => refuse("/status/{code} takes a final status, 200 to 999"),
            },
            ("failing", n) => match n.parse::<u32>() {
                Ok(n) => {
                    let calls = {
                        let mut failing = self.failing.borrow_mut();
                        let calls = failing.entry(request.uri().to_string()).or_default();
                        *calls += 1;
                        *calls
                    };
                    if calls > n {
                        return self.echo(request, peer).await;
                    }
                    json(StatusCode::SERVICE_UNAVAILABLE, &json!({ "failed": calls }))
                }
                Err(_) => refuse("/failing/{n} takes a number of calls"),
            },
            ("slow", ms) => match ms.parse() {
                Ok(ms) => {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    json(StatusCode::OK, &json!({ "slept_ms": ms }))
                }
                Err(_) => refuse("/slow/{ms} takes a number of milliseconds"),
            },
            ("stream", n) => match n.parse() {
                Ok(n) => chunks(n),
                Err(_) => refuse("/stream/{n} takes a number of chunks"),
            },
            ("upload", "") if request.method() == Method::POST => count(request.into_body()).await,
            ("headers", "") => {
                let mut response = self.echo(request, peer).await;
                response.headers_mut().insert("x-upstream", HeaderValue::from_static("sample"));
                response.headers_mut().insert("x-secret", HeaderValue::from_static("not for clients"));
                response
            }
            _ => self.echo(request, peer).await,
        }
    }

    /// Exactly `n` bytes of JSON, made once for each size that is asked for.
    fn bytes(&self, n: usize) -> Bytes {
        if let Some(bytes) = self.sizes.borrow().get(&n) {
            return bytes.clone();
        }
        let bytes = Bytes::from(json_of_size(n));
        let mut sizes = self.sizes.borrow_mut();
        if n <= CACHED_SIZE && sizes.len() < CACHED_COUNT {
            sizes.insert(n, bytes.clone());
        }
        bytes
    }

    async fn echo(&self, request: Request<Incoming>, tls: Option<&Peer>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let Ok(body) = Limited::new(body, ECHO_LIMIT).collect().await else {
            return json(
                StatusCode::PAYLOAD_TOO_LARGE,
                &json!({ "error": format!("the echo takes bodies up to {ECHO_LIMIT} bytes, complete ones") }),
            );
        };
        let echo = Echo {
            method: parts.method.as_str(),
            path: parts.uri.path(),
            query: parts.uri.query().unwrap_or(""),
            protocol: format!("{:?}", parts.version),
            headers: by_name(&parts.headers),
            body: String::from_utf8_lossy(&body.to_bytes()).into_owned(),
            server: Server { hostname: &self.hostname, port: self.port },
            tls,
        };
        json(StatusCode::OK, &echo)
    }
}

/// `n` bytes of JSON: an object where there is room for one, else the longest value that fits.
fn json_of_size(n: usize) -> Vec<u8> {
    const OPEN: &[u8] = br#"{"data":""#;
    const CLOSE: &[u8] = br#""}"#;
    let letters = |count: usize| (b'a'..=b'z').cycle().take(count);
    match n {
        0 => Vec::new(),
        1 => b"0".to_vec(),
        _ if n < OPEN.len() + CLOSE.len() => std::iter::once(b'"').chain(letters(n - 2)).chain([b'"']).collect(),
        _ => OPEN.iter().copied().chain(letters(n - OPEN.len() - CLOSE.len())).chain(CLOSE.iter().copied()).collect(),
    }
}

async fn count(mut body: Incoming) -> Response<Body> {
    let mut bytes = 0_usize;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return refuse("the body ended before it was complete") };
        bytes += frame.data_ref().map_or(0, Bytes::len);
    }
    json(StatusCode::OK, &json!({ "bytes": bytes }))
}

fn chunks(n: u64) -> Response<Body> {
    let chunks = stream::unfold(0, move |sent| async move {
        if sent == n {
            return None;
        }
        if sent > 0 {
            tokio::time::sleep(STREAM_PAUSE).await;
        }
        Some((Ok(Frame::data(Bytes::from(format!("chunk {}\n", sent + 1)))), sent + 1))
    });
    let mut response = Response::new(StreamBody::new(chunks).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

fn by_name(headers: &HeaderMap) -> BTreeMap<&str, Vec<String>> {
    let mut names: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        names.entry(name.as_str()).or_default().push(String::from_utf8_lossy(value.as_bytes()).into_owned());
    }
    names
}

fn refuse(why: &str) -> Response<Body> {
    json(StatusCode::BAD_REQUEST, &json!({ "error": why }))
}

fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    json_bytes(status, Bytes::from(serde_json::to_vec(value).expect("plain data serialises")))
}

fn json_bytes(status: StatusCode, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Full::new(body).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map_or_else(|_| "unknown".into(), |name| name.trim().into())
}

#[cfg(test)]
mod tests {
    use super::json_of_size;

    #[test]
    fn every_size_is_exact_and_json() {
        for n in (1..300).chain([10_240]) {
            let body = json_of_size(n);
            assert_eq!(body.len(), n);
            serde_json::from_slice::<serde_json::Value>(&body).unwrap_or_else(|error| panic!("{n} bytes: {error}"));
        }
    }
}
