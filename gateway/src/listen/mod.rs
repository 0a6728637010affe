//! Sockets: TLS, protocol limits, and draining without losing a request.
//!
//! A connection is served until it ends by itself, no call runs on it for too long, or the listener drains. Draining has
//! two steps: while the gateway announces it (`Connection: close` on HTTP/1.1 answers) connections are still accepted;
//! then listening ends, HTTP/2 connections get GOAWAY, and calls in flight may finish within a bound. In this order, so
//! that a client that is asked to go finds the port closed and does not come back; a connection that was let in before
//! is served.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::{Request, Response, Version};
use http_body_util::Either;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use prometheus_client::metrics::gauge::Gauge;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use client_body::ClientBody;
use guard::Guarded;
pub use guard::TAKE_TIME;
use idle::Calls;
use patience::{Held, Patient};

use crate::client::Scheme;
use crate::pipeline::{Body, Gateway, Peer};
use crate::request::{MAX_HEADER_BYTES, MAX_HEADER_FIELDS};

mod client_body;
mod guard;
mod idle;
mod patience;
pub mod tls;

/// Longest time a TLS handshake may take.
const TLS_ACCEPT: Duration = Duration::from_secs(5);
/// Longest time from the beginning of a connection to its first call, and without a call after that.
const IDLE: Duration = Duration::from_secs(75);
/// Most concurrent streams of one HTTP/2 connection.
const MAX_STREAMS: u32 = 100;
/// How long the first call of a connection is waited for when listening ends.
const FIRST_CALL: Duration = Duration::from_secs(1);
/// How often an HTTP/2 peer is asked whether it is still there, and how long it may take to say so.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_WAIT: Duration = Duration::from_secs(20);

/// How far a shutdown is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Serving.
    Serving,
    /// No new connections; those that are open finish what they do.
    Closing,
}

/// Opens a listening socket on all addresses, IPv6 included where the machine has it.
///
/// # Errors
/// When the port can't be bound.
pub fn bind(port: u16) -> std::io::Result<TcpListener> {
    let open = |address: SocketAddr| -> std::io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(4096)?;
        TcpListener::from_std(socket.into())
    };
    open(SocketAddr::from(([0_u16; 8], port))).or_else(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => Err(error),
        _ => open(SocketAddr::from(([0, 0, 0, 0], port))),
    })
}

/// Accepts and serves connections until `phase` says [`Phase::Closing`] and all of them have ended.
pub async fn serve(
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    gateway: Arc<Gateway>,
    mut phase: watch::Receiver<Phase>,
) {
    let (connections, closing) = (TaskTracker::new(), CancellationToken::new());
    let builder = Arc::new(protocol());
    let begin = |stream: TcpStream, address: SocketAddr| {
        let (acceptor, gateway, builder) = (acceptor.clone(), gateway.clone(), builder.clone());
        let closing = closing.clone();
        let counted = Counted::new(gateway.metrics.connections.clone());
        connections.spawn(async move {
            let _counted = counted;
            let scheme = if acceptor.is_some() { Scheme::Https } else { Scheme::Http };
            let peer = Peer { address: address.ip().to_canonical(), scheme };
            connection(stream, acceptor, gateway, &builder, peer, closing).await;
        });
    };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // Also when the other end of the channel is gone.
            _ = phase.wait_for(|phase| *phase == Phase::Closing) => break,
        };
        match accepted {
            Ok((stream, address)) => begin(stream, address),
            Err(error) => {
                // Out of file descriptors, most likely; accepting again at once would only burn the processor.
                tracing::error!(%error, "a connection can't be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    for (stream, address) in waiting(listener) {
        begin(stream, address);
    }
    closing.cancel();
    connections.close();
    connections.wait().await;
}

/// The connections that the system has let in and nobody has accepted; nothing listens after it.
fn waiting(listener: TcpListener) -> Vec<(TcpStream, SocketAddr)> {
    let Ok(listener) = listener.into_std() else { return Vec::new() };
    let accept = || {
        let (stream, address) = listener.accept()?;
        stream.set_nonblocking(true)?;
        Ok::<_, std::io::Error>((TcpStream::from_std(stream)?, address))
    };
    std::iter::from_fn(|| accept().ok()).collect()
}

/// Counts a connection for as long as it lives.
struct Counted(Gauge);

impl Counted {
    fn new(connections: Gauge) -> Self {
        connections.inc();
        Self(connections)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn protocol() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE).max_headers(MAX_HEADER_FIELDS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEADER_BYTES).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(Some(128))
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_WAIT);
    builder
}

async fn connection(
    stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
    gateway: Arc<Gateway>,
    builder: &auto::Builder<TokioExecutor>,
    peer: Peer,
    closing: CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    let handle = |request| gateway.clone().handle(request, peer);
    match acceptor {
        None => exchange(stream, handle, builder, peer.address, closing).await,
        Some(acceptor) => match timeout(TLS_ACCEPT, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => exchange(stream, handle, builder, peer.address, closing).await,
            Ok(Err(error)) => tracing::debug!(client_ip = %peer.address, %error, "TLS handshake failed"),
            Err(_) => tracing::debug!(client_ip = %peer.address, "TLS handshake took too long"),
        },
    }
}

async fn exchange<S, H, A>(
    stream: S,
    handle: H,
    builder: &auto::Builder<TokioExecutor>,
    client: IpAddr,
    closing: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Incoming>) -> A,
    A: Future<Output = Response<Body>> + Send + 'static,
{
    let (called, held, calls) = (Notify::new(), Arc::<Held>::default(), Calls::new());
    // From the first call of an HTTP/1.1 connection on, the library looks after its idle times.
    let first = OnceLock::new();
    let service = service_fn(|request| {
        called.notify_one();
        let over_http2 = (request.version() == Version::HTTP_2).then(|| (held.clone(), calls.begin()));
        if over_http2.is_none() {
            first.get_or_init(|| calls.begin());
        }
        let answer = handle(request);
        async move {
            let answer = answer.await;
            Ok::<_, Infallible>(match over_http2 {
                Some((held, call)) => answer.map(|body| Either::Right(Patient::new(body, held, call))),
                None => answer.map(Either::Left),
            })
        }
    });
    let stream = TokioIo::new(Guarded::new(stream));
    let mut connection = std::pin::pin!(builder.serve_connection(stream, service));
    let mut close = std::pin::pin!(async {
        closing.cancelled().await;
        // A first call may be on its way; cut, nobody would know whether it was begun.
        let _ = timeout(FIRST_CALL, called.notified()).await;
    });
    let mut too_long = std::pin::pin!(held.too_long());
    let mut is_asked_to_end = false;
    let ended = loop {
        tokio::select! {
            ended = connection.as_mut() => break ended,
            () = close.as_mut() => {
                connection.as_mut().graceful_shutdown();
                break connection.await;
            }
            () = too_long.as_mut() => {
                tracing::info!(client_ip = %client, "a client takes nothing of an answer; its connection ends");
                // The others on it may be other people's, behind a proxy.
                connection.as_mut().graceful_shutdown();
                break timeout(TAKE_TIME, connection).await.unwrap_or(Ok(()));
            }
            () = calls.none_for(IDLE) => {
                // Whatever keeps an HTTP/2 connection then, it is no call.
                if is_asked_to_end {
                    break Ok(());
                }
                is_asked_to_end = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(client_ip = %client, error, "a connection ended");
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use hyper::client::conn::http2;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::task::JoinHandle;
    use tokio::time::{Instant, sleep};

    use super::*;

    /// Asks for an answer of so many bytes and takes none of them; how long the connection lives.
    async fn life_of_a_client_that_takes_nothing(bytes: usize, body: fn(Bytes) -> Body) -> Duration {
        let (near, far) = tokio::io::duplex(1 << 20);
        let handle = move |_| std::future::ready(Response::new(body(vec![b'a'; bytes].into())));
        let closing = CancellationToken::new();
        let serving = tokio::spawn(async move {
            exchange(far, handle, &protocol(), IpAddr::from([192, 0, 2, 1]), closing).await;
        });
        let (mut calls, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(100)
            .handshake(TokioIo::new(near))
            .await
            .unwrap();
        tokio::spawn(connection);
        let start = Instant::now();
        let request = Request::get("http://gateway.example/").body(String::new()).unwrap();
        let answer = calls.send_request(request).await.unwrap();
        // A client that has gone away without a word ends by pings, this one is there.
        let _ = timeout(TAKE_TIME * 20, serving).await;
        drop(answer);
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_with_answers_that_nobody_takes_is_closed() {
        let own: fn(Bytes) -> Body = |bytes| Body::Own(Some(bytes));
        let of_unknown_end = |bytes| {
            let piece = futures::stream::iter([Ok::<_, Infallible>(bytes)]);
            Body::Platform(axum::body::Body::from_stream(piece))
        };
        let endless = |bytes| {
            let pieces = futures::stream::repeat_with(move || Ok::<Bytes, Infallible>(Bytes::clone(&bytes)));
            Body::Platform(axum::body::Body::from_stream(pieces))
        };
        for body in [own, of_unknown_end, endless] {
            let life = life_of_a_client_that_takes_nothing(1000, body).await;
            assert!((TAKE_TIME * 5..TAKE_TIME * 7).contains(&life), "{life:?}");
        }
        // What was taken is waited for by nobody: the connection is idle.
        let life = life_of_a_client_that_takes_nothing(100, own).await;
        assert_eq!(life.as_secs(), IDLE.as_secs());
    }

    /// A connection on which each call takes so long: its client's side, and what ends with it.
    fn served(time: Duration) -> (DuplexStream, JoinHandle<()>) {
        let (near, far) = tokio::io::duplex(1 << 20);
        let handle = move |_| async move {
            sleep(time).await;
            Response::new(Body::Own(None))
        };
        let closing = CancellationToken::new();
        let serving = tokio::spawn(async move {
            exchange(far, handle, &protocol(), IpAddr::from([192, 0, 2, 1]), closing).await;
        });
        (near, serving)
    }

    /// How long until a connection ends.
    async fn life(serving: JoinHandle<()>) -> Duration {
        let start = Instant::now();
        timeout(IDLE * 3, serving).await.expect("the connection lives on").unwrap();
        start.elapsed()
    }

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_first_call_is_closed() {
        for bytes in [0, 16, 20] {
            let (mut client, serving) = served(Duration::ZERO);
            client.write_all(&PREFACE[..bytes]).await.unwrap();
            assert_eq!(life(serving).await.as_secs(), IDLE.as_secs(), "after {bytes} bytes");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_http1_connection_is_kept_between_calls_and_while_one_runs() {
        let (mut client, serving) = served(IDLE * 2);
        for _ in 0..3 {
            client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            let mut answer = [0; 1000];
            let length = client.read(&mut answer).await.unwrap();
            assert!(answer[..length].starts_with(b"HTTP/1.1 200"));
            sleep(IDLE / 2).await;
        }
        let life = life(serving).await;
        assert!(life.abs_diff(IDLE / 2) < Duration::from_secs(1), "{life:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_http2_connection_ends_when_no_call_runs_and_not_before() {
        let (near, serving) = served(IDLE * 2);
        let (mut calls, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(near)).await.unwrap();
        tokio::spawn(connection);
        for _ in 0..3 {
            let request = Request::get("http://gateway.example/").body(String::new()).unwrap();
            assert_eq!(calls.send_request(request).await.unwrap().status(), 200);
            sleep(IDLE / 2).await;
        }
        let life = life(serving).await;
        assert!(life.abs_diff(IDLE / 2) < Duration::from_secs(1), "{life:?}");
        drop(calls);
    }

    /// A client that is there, and never says that it has seen that it is to go.
    async fn stay(mut client: DuplexStream) {
        const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
        const PONG: &[u8] = &[0, 0, 8, 6, 1, 0, 0, 0, 0];
        const SHUTDOWN: &[u8] = &[0x0b, 0x7b, 0xa2, 0xf0, 0x8b, 0x9b, 0xfe, 0x54];
        client.write_all(&[PREFACE, SETTINGS].concat()).await.unwrap();
        let mut head = [0; 9];
        while client.read_exact(&mut head).await.is_ok() {
            let [_, high, low, kind, flags, ..] = head;
            let mut payload = vec![0; usize::from(u16::from_be_bytes([high, low]))];
            client.read_exact(&mut payload).await.unwrap();
            if kind == 6 && flags == 0 && payload != SHUTDOWN {
                client.write_all(&[PONG, &payload[..]].concat()).await.unwrap();
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_http2_client_that_does_not_go_is_cut() {
        let (near, serving) = served(Duration::ZERO);
        tokio::spawn(stay(near));
        let life = life(serving).await;
        assert!((IDLE..IDLE * 2 + Duration::from_secs(1)).contains(&life), "{life:?}");
    }
}
