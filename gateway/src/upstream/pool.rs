//! Connections to one upstream address: the one used last is used first, so that spare ones can expire.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use doorman_crds::api::UpstreamAddress;
use http::header::{CONNECTION, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Request, Response, Uri, Version};
use http_body::Body as _;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::attentive::{Attentive, Known};
use super::body::{Progress, RequestBody, ResponseBody};
use super::breaker::Breaker;
use super::connect::{Stream, Way, connect};
use super::tls::{self, Tls};
use super::usage::Usage;
use super::{CallTimeouts, Phase, PoolOptions, UpstreamError};

/// How long a connection that was kept may take to be ready for the next request.
const READY_WITHIN: Duration = Duration::from_millis(10);
/// How long an HTTP/2 server may be silent while it owes an answer before it is asked whether it is still there, and how long
/// it may take to say so.
const PING_EVERY: Duration = Duration::from_secs(15);
const PING_WAIT: Duration = Duration::from_secs(10);

/// All connections to one address.
#[derive(Debug)]
pub struct Pool {
    host: Box<str>,
    port: u16,
    tls: bool,
    /// What an API says of TLS to its servers.
    own_tls: Option<Arc<Tls>>,
    /// Made for the first connection.
    way: OnceLock<Way>,
    options: Arc<PoolOptions>,
    /// Those of all who call it.
    breakers: Mutex<Vec<Weak<Breaker>>>,
    /// One permit per call in flight over HTTP/1, from before it has a connection, and one per open HTTP/2 connection.
    permits: Arc<Semaphore>,
    /// These hold no permit; together with those that do they are never more than there may be.
    idle: Mutex<VecDeque<Idle>>,
    /// The connection that calls share, and news of one.
    http2: Mutex<Option<http2::SendRequest<RequestBody>>>,
    opened: Notify,
}

#[derive(Debug)]
struct Idle {
    connection: Http1,
    since: Instant,
}

#[derive(Debug)]
struct Http1 {
    sender: http1::SendRequest<RequestBody>,
    known: Known,
    /// Ends with the last use of the connection, even in the middle of a message.
    _task: AbortOnDropHandle<()>,
}

/// A connection that carries a call, and what lets that be in flight. Dropped in this order: whoever gets the permit may
/// open another connection.
#[derive(Debug)]
struct Busy {
    http1: Http1,
    permit: OwnedSemaphorePermit,
}

/// What a call goes on with.
#[derive(Debug)]
enum Turn {
    /// A connection that carries many calls.
    Shared(http2::SendRequest<RequestBody>),
    /// Leave to be in flight on a connection of its own.
    Own(OwnedSemaphorePermit),
}

/// What came of sending a request: an answer, or the request as it was and why nothing of it was sent.
type Exchanged = Result<Response<ResponseBody>, (Request<RequestBody>, hyper::Error)>;

#[derive(Debug)]
enum Connection {
    Http1(Busy),
    Http2(http2::SendRequest<RequestBody>),
}

/// A connection in use; dropped without [`Lease::give_back`] one of HTTP/1 closes.
#[derive(Debug)]
pub(super) struct Lease {
    pool: Arc<Pool>,
    connection: Connection,
    upload: Option<Arc<Progress>>,
}

impl Lease {
    /// Of an answer that came before its request was read from the client nothing is given back: the next call would wait
    /// for the rest of this one.
    pub(super) fn give_back(self) {
        let Connection::Http1(busy) = self.connection else { return };
        if self.upload.is_none_or(|upload| upload.is_sent()) {
            self.pool.put(busy.http1);
            // Last, so that the call that it wakes finds the connection.
            drop(busy.permit);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while these are held; a poisoned pool would still be a usable pool.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    pub(super) fn new(address: &UpstreamAddress, own_tls: Option<Arc<Tls>>, options: Arc<PoolOptions>) -> Self {
        Self {
            host: address.host.as_str().into(),
            port: address.port,
            tls: address.tls,
            own_tls,
            way: OnceLock::new(),
            breakers: Mutex::default(),
            permits: Arc::new(Semaphore::new(options.max_connections)),
            options,
            idle: Mutex::default(),
            http2: Mutex::default(),
            opened: Notify::new(),
        }
    }

    /// A breaker for the calls of one more API.
    pub(super) fn new_breaker(&self) -> Arc<Breaker> {
        let (breaker, mut all) = (Arc::default(), lock(&self.breakers));
        if all.len() == all.capacity() {
            all.retain(|known| known.strong_count() > 0);
        }
        all.push(Arc::downgrade(&breaker));
        breaker
    }

    /// Does it call this address, over TLS or not as that says?
    pub fn is_of(&self, address: &UpstreamAddress) -> bool {
        *self.host == *address.host && self.port == address.port && self.tls == address.tls
    }

    /// Host and port.
    pub(super) fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    pub(super) fn usage(&self) -> Usage {
        let idle = lock(&self.idle).iter().filter(|entry| !entry.connection.sender.is_closed()).count();
        let open_breakers = lock(&self.breakers).iter().filter_map(Weak::upgrade).filter(|own| own.is_open()).count();
        let busy = self.options.max_connections.saturating_sub(self.permits.available_permits());
        Usage { busy: busy as u64, idle: idle as u64, open_breakers: open_breakers as u64 }
    }

    /// Sends a request and waits for the head of its answer. `is_sent` becomes true when the upstream may have seen
    /// something of the request, before it can, and is what it was when it is certain that it has not. `may_reuse`: a
    /// connection that was kept may be used.
    ///
    /// # Errors
    /// See [`UpstreamError`].
    pub async fn send(
        self: &Arc<Self>,
        mut request: Request<RequestBody>,
        timeouts: &CallTimeouts,
        progress: Option<&Arc<Progress>>,
        may_reuse: bool,
        is_sent: &mut bool,
    ) -> Result<Response<ResponseBody>, UpstreamError> {
        // A connection that turns out closed before the request was written gives the request back; after two such
        // the third attempt uses a new connection.
        for attempt in 0..3 {
            let (connection, reused) = self.checkout(timeouts, may_reuse && attempt < 2).await?;
            match self.exchange((connection, reused), request, timeouts, progress, is_sent).await? {
                Ok(response) => return Ok(response),
                Err((unsent, _)) if reused => request = unsent,
                Err((_, error)) => {
                    let closed =
                        format!("{} closed the connection before the request was sent: {error}", self.address());
                    return Err(UpstreamError::Connect(closed));
                }
            }
        }
        Err(UpstreamError::Connect(format!("{} closes every connection", self.address())))
    }

    /// Sends a request by a connection, which was kept or not; gives the request back when nothing of it was sent.
    async fn exchange(
        self: &Arc<Self>,
        (connection, reused): (Connection, bool),
        mut request: Request<RequestBody>,
        timeouts: &CallTimeouts,
        progress: Option<&Arc<Progress>>,
        is_sent: &mut bool,
    ) -> Result<Exchanged, UpstreamError> {
        let (started, was_sent) = (Instant::now(), *is_sent);
        let mut is_stale = false;
        let mut error = match connection {
            Connection::Http1(mut busy) => {
                shape_for_http1(&mut request);
                *is_sent = true;
                busy.http1.known.begin(!request.body().is_end_stream());
                let answer = busy.http1.sender.try_send_request(request);
                match within(answer, started, timeouts, progress.map(AsRef::as_ref)).await? {
                    Ok(response) => {
                        let connection = Connection::Http1(busy);
                        let lease = Lease { pool: self.clone(), connection, upload: progress.cloned() };
                        return Ok(Ok(response.map(|body| ResponseBody::new(body, lease, timeouts.read))));
                    }
                    Err(error) => {
                        is_stale = reused && !busy.http1.known.has_answered();
                        error
                    }
                }
            }
            Connection::Http2(mut sender) => {
                shape_for_http2(&mut request, self.tls)?;
                *is_sent = true;
                let answer = sender.try_send_request(request);
                match within(answer, started, timeouts, progress.map(AsRef::as_ref)).await? {
                    Ok(response) => {
                        let lease = Lease { pool: self.clone(), connection: Connection::Http2(sender), upload: None };
                        return Ok(Ok(response.map(|body| ResponseBody::new(body, lease, timeouts.read))));
                    }
                    Err(error) => error,
                }
            }
        };
        let unsent = error.take_message();
        let error = error.into_error();
        if unsent.is_some() || is_unprocessed(&error) {
            *is_sent = was_sent;
        }
        match unsent {
            Some(unsent) => Ok(Err((unsent, error))),
            None if is_stale && !error.is_user() => Err(UpstreamError::Stale(error)),
            None => Err(error.into()),
        }
    }

    /// An idle connection if there is one and it may be used, else a new one.
    async fn checkout(
        self: &Arc<Self>,
        timeouts: &CallTimeouts,
        may_reuse: bool,
    ) -> Result<(Connection, bool), UpstreamError> {
        let permit = match timeout(timeouts.pool, self.turn(may_reuse)).await {
            Ok(Some(Turn::Own(permit))) => permit,
            Ok(Some(Turn::Shared(sender))) => return Ok((Connection::Http2(sender), true)),
            Ok(None) | Err(_) => return Err(UpstreamError::Timeout(Phase::Connection)),
        };
        while may_reuse && let Some(mut http1) = self.take() {
            // Ready at once unless the connection task has not seen the end of its last answer yet. Or something of
            // the last request is still to be sent, and the server takes it when it likes: nobody waits for that.
            let ready = timeout(READY_WITHIN, http1.sender.ready()).await;
            if matches!(ready, Ok(Ok(()))) && http1.known.is_usable() {
                return Ok((Connection::Http1(Busy { http1, permit }), true));
            }
        }
        self.make_room();
        match timeout(timeouts.connect, self.open(permit)).await {
            Ok(opened) => opened.map(|connection| (connection, false)),
            Err(_) => Err(UpstreamError::Timeout(Phase::Connecting)),
        }
    }

    /// Lets one call go on, in the order in which they ask; all at once where there is a connection to share.
    async fn turn(&self, may_share: bool) -> Option<Turn> {
        let may_share = may_share && self.tls && self.options.http2;
        loop {
            // What is told from here on is heard.
            let opened = self.opened.notified();
            let shared = if may_share { self.shared() } else { None };
            if let Some(mut shared) = shared
                && shared.ready().await.is_ok()
            {
                return Some(Turn::Shared(shared));
            }
            if let Ok(permit) = self.permits.clone().try_acquire_owned() {
                return Some(Turn::Own(permit));
            }
            tokio::select! {
                permit = self.permits.clone().acquire_owned() => return permit.ok().map(Turn::Own),
                () = opened, if may_share => {}
            }
        }
    }

    /// The connection that calls share, while it is open.
    fn shared(&self) -> Option<http2::SendRequest<RequestBody>> {
        lock(&self.http2).clone().filter(|sender| !sender.is_closed())
    }

    async fn open(&self, permit: OwnedSemaphorePermit) -> Result<Connection, UpstreamError> {
        let way = if self.tls { Some(self.way()?) } else { None };
        let stream = connect(&self.host, self.port, way, self.options.allow_loopback).await?;
        match stream {
            Stream::Plain(stream) => self.http1_over(stream, permit).await,
            Stream::Tls(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                let opened = http2_protocol().handshake(TokioIo::new(*stream)).await;
                let (sender, connection) = opened.map_err(|error| self.no_handshake(&error))?;
                tokio::spawn(async move {
                    let _permit = permit;
                    let _ = connection.await;
                });
                self.share(&sender);
                Ok(Connection::Http2(sender))
            }
            Stream::Tls(stream) => self.http1_over(*stream, permit).await,
        }
    }

    async fn http1_over<S>(&self, stream: S, permit: OwnedSemaphorePermit) -> Result<Connection, UpstreamError>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let (stream, known) = Attentive::new(stream, self.tls);
        let opened = http1::Builder::new().handshake(TokioIo::new(stream)).await;
        let (sender, connection) = opened.map_err(|error| self.no_handshake(&error))?;
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an upstream connection ended");
            }
        }));
        Ok(Connection::Http1(Busy { http1: Http1 { sender, known, _task: task }, permit }))
    }

    fn no_handshake(&self, error: &hyper::Error) -> UpstreamError {
        UpstreamError::Connect(format!("{} takes no request: {error}", self.address()))
    }

    /// How TLS is spoken with this address.
    fn way(&self) -> Result<&Way, UpstreamError> {
        if let Some(way) = self.way.get() {
            return Ok(way);
        }
        let http2 = self.options.http2;
        let config = match &self.own_tls {
            Some(own) => own.config(http2),
            None => tls::usual_config(http2).map_err(|error| UpstreamError::Connect(error.to_string()))?,
        };
        let own_name = || ServerName::try_from(String::from(&*self.host));
        let name = self.own_tls.as_ref().and_then(|own| own.name.clone()).map_or_else(own_name, Ok);
        let name = name.map_err(|error| UpstreamError::Connect(error.to_string()))?;
        Ok(self.way.get_or_init(|| Way { config, name }))
    }

    fn take(&self) -> Option<Http1> {
        let mut idle = lock(&self.idle);
        while let Some(entry) = idle.pop_back() {
            if !entry.connection.sender.is_closed() && entry.since.elapsed() < self.options.idle_life {
                return Some(entry.connection);
            }
        }
        None
    }

    fn put(&self, connection: Http1) {
        if connection.sender.is_closed() || !connection.known.is_usable() {
            return;
        }
        let now = Instant::now();
        let mut idle = lock(&self.idle);
        idle.push_back(Idle { connection, since: now });
        let expired = |entry: &Idle| now.duration_since(entry.since) >= self.options.idle_life;
        while idle.len() > self.options.max_idle || idle.front().is_some_and(expired) {
            idle.pop_front();
        }
    }

    /// Makes room for the connection that somebody with a permit is about to open: those that are idle are never more than
    /// the permits that are left, and the oldest close first.
    fn make_room(&self) {
        let mut idle = lock(&self.idle);
        let most = self.permits.available_permits();
        while idle.len() > most {
            idle.pop_front();
        }
    }

    /// Further calls go by this connection, those that wait first.
    fn share(&self, sender: &http2::SendRequest<RequestBody>) {
        *lock(&self.http2) = Some(sender.clone());
        self.opened.notify_waiters();
    }
}

/// HTTP/2 as it is spoken with upstreams. A server that owes no answer is not asked whether it is there: some end the
/// connection when they are.
fn http2_protocol() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .adaptive_window(true)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_WAIT);
    builder
}

/// A target in origin form, the authority in `Host` (RFC 9112 3.2.1).
fn shape_for_http1<B>(request: &mut Request<B>) {
    *request.version_mut() = Version::HTTP_11;
    let Some(authority) = request.uri().authority() else { return };
    // An authority that was made of a header value is one.
    if let Ok(host) = HeaderValue::from_str(authority.as_str()) {
        request.headers_mut().insert(HOST, host);
    }
    let target = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from(target);
}

/// Scheme and authority in the target, no `Host`, nothing of one connection (RFC 9113 8.2.2, 8.3.1).
fn shape_for_http2<B>(request: &mut Request<B>, tls: bool) -> Result<(), UpstreamError> {
    *request.version_mut() = Version::HTTP_2;
    let Some(host) = request.headers_mut().remove(HOST) else { return Ok(()) };
    for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE, TE] {
        request.headers_mut().remove(name);
    }
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(if tls { Scheme::HTTPS } else { Scheme::HTTP });
    parts.authority =
        Some(Authority::try_from(host.as_bytes()).map_err(|error| UpstreamError::Target(error.to_string()))?);
    *request.uri_mut() = Uri::from_parts(parts).map_err(|error| UpstreamError::Target(error.to_string()))?;
    Ok(())
}

/// Does the server say that it did nothing about the request (RFC 9113 6.8 and 8.7)?
fn is_unprocessed(error: &hyper::Error) -> bool {
    let mut causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    let error = causes.find_map(|cause| cause.downcast_ref::<h2::Error>());
    // GOAWAY ends only those streams that are beyond the last one it names.
    error.is_some_and(|error| {
        error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM))
    })
}

/// Waits for the head of an answer: `read` after the request was sent, `write` between two pieces of its body.
async fn within<F, T>(
    answer: F,
    started: Instant,
    timeouts: &CallTimeouts,
    progress: Option<&Progress>,
) -> Result<T, UpstreamError>
where
    F: Future<Output = T>,
{
    let mut answer = std::pin::pin!(answer);
    let mut deadline = started + timeouts.read;
    loop {
        if let Ok(outcome) = tokio::time::timeout_at(deadline, answer.as_mut()).await {
            return Ok(outcome);
        }
        let Some(progress) = progress else { return Err(UpstreamError::Timeout(Phase::Answer)) };
        let (bound, phase) =
            if progress.is_sent() { (timeouts.read, Phase::Answer) } else { (timeouts.write, Phase::Sending) };
        let later = progress.last() + bound;
        if later <= Instant::now() {
            let is_client = !progress.is_sent() && progress.waits_for_client();
            return Err(if is_client { UpstreamError::ClientStalled } else { UpstreamError::Timeout(phase) });
        }
        deadline = later;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use http_body_util::BodyExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const TIMEOUTS: CallTimeouts = CallTimeouts {
        connect: Duration::from_secs(5),
        read: Duration::from_secs(5),
        write: Duration::from_secs(5),
        pool: Duration::from_secs(5),
    };

    fn pool(address: &str) -> Arc<Pool> {
        let address = address.parse().unwrap();
        Arc::new(Pool::new(&address, None, Arc::new(PoolOptions::local())))
    }

    fn request() -> Request<RequestBody> {
        let mut request = Request::new(RequestBody::Empty);
        request.headers_mut().insert(HOST, HeaderValue::from_static("a:80"));
        request
    }

    #[tokio::test]
    async fn what_a_closed_connection_gives_back_was_not_sent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let pool = pool(&format!("http://{}", listener.local_addr().unwrap()));
        for was_sent in [false, true] {
            let (connection, _) = pool.checkout(&TIMEOUTS, false).await.unwrap();
            drop(listener.accept().await.unwrap());
            let Connection::Http1(busy) = &connection else { panic!() };
            while !busy.http1.sender.is_closed() {
                tokio::task::yield_now().await;
            }
            let mut is_sent = was_sent;
            let exchanged = pool.exchange((connection, false), request(), &TIMEOUTS, None, &mut is_sent).await.unwrap();
            assert!(exchanged.is_err(), "the request comes back");
            assert_eq!(is_sent, was_sent, "another attempt may have been sent");
        }
    }

    /// A pool of so many connections to a server that answers each request, and how many that server has seen.
    async fn served(max_connections: usize) -> (Arc<Pool>, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let opened = Arc::new(AtomicUsize::new(0));
        let counted = opened.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Relaxed);
                tokio::spawn(answer(stream));
            }
        });
        let options = PoolOptions { max_connections, ..PoolOptions::local() };
        (Arc::new(Pool::new(&address, None, Arc::new(options))), opened)
    }

    async fn answer(mut stream: TcpStream) {
        let mut head = Vec::new();
        while matches!(stream.read_buf(&mut head).await, Ok(1..)) {
            if head.ends_with(b"\r\n\r\n") {
                head.clear();
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            }
        }
    }

    /// The head of an answer; the call is in flight until its body is read.
    async fn call(pool: &Arc<Pool>, may_reuse: bool) -> Response<ResponseBody> {
        pool.send(request(), &TIMEOUTS, None, may_reuse, &mut false).await.unwrap()
    }

    async fn finish(answer: Response<ResponseBody>) {
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ok");
    }

    /// Connections that are busy, and that are idle.
    fn standing(pool: &Pool) -> (u64, u64) {
        let usage = pool.usage();
        (usage.busy, usage.idle)
    }

    #[tokio::test]
    async fn a_call_that_waits_gets_the_connection_that_another_gives_back() {
        let (pool, opened) = served(1).await;
        let first = call(&pool, true).await;
        assert_eq!(standing(&pool), (1, 0));
        // The second one is asked first, and waits.
        tokio::join!(async { finish(call(&pool, true).await).await }, finish(first));
        assert_eq!((standing(&pool), opened.load(Relaxed)), ((0, 1), 1));
    }

    #[tokio::test]
    async fn what_is_idle_and_not_to_be_used_makes_room_for_what_is_opened() {
        let (pool, opened) = served(2).await;
        let (first, second) = tokio::join!(call(&pool, true), call(&pool, true));
        assert_eq!(standing(&pool), (2, 0));
        tokio::join!(finish(first), finish(second));
        assert_eq!(standing(&pool), (0, 2));
        let third = call(&pool, false).await;
        assert_eq!((standing(&pool), opened.load(Relaxed)), ((1, 1), 3));
        let fourth = call(&pool, false).await;
        assert_eq!((standing(&pool), opened.load(Relaxed)), ((2, 0), 4));
        tokio::join!(finish(third), finish(fourth));
        assert_eq!(standing(&pool), (0, 2));
    }

    /// An HTTP/2 connection, and the server at its other end, which does nothing unless it is told to.
    async fn over_http2() -> (http2::SendRequest<RequestBody>, Server) {
        let (near, far) = tokio::io::duplex(65_536);
        let server = tokio::spawn(async move { h2::server::handshake(far).await.unwrap() });
        let (sender, connection) = http2_protocol().handshake(TokioIo::new(near)).await.unwrap();
        tokio::spawn(connection);
        (sender, server.await.unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn an_http2_connection_on_which_nobody_is_there_ends() {
        let pool = pool("https://a:80");
        let (sender, _server) = over_http2().await;
        let patient = CallTimeouts { read: Duration::from_secs(3_600), ..TIMEOUTS };
        let answer = pool.exchange((Connection::Http2(sender), true), request(), &patient, None, &mut false).await;
        assert!(matches!(answer, Err(UpstreamError::Connection(error)) if error.is_timeout()));
    }

    #[tokio::test]
    async fn a_call_that_waits_shares_the_connection_that_another_opens() {
        let options = PoolOptions { max_connections: 1, http2: true, ..PoolOptions::local() };
        let pool = Pool::new(&"https://a:80".parse().unwrap(), None, Arc::new(options));
        let Some(Turn::Own(_permit)) = pool.turn(true).await else { panic!("there is nothing to share") };
        let (sender, _server) = over_http2().await;
        let open = async {
            tokio::task::yield_now().await;
            pool.share(&sender);
        };
        let (waited, also, ()) = tokio::join!(pool.turn(true), pool.turn(true), open);
        assert!(matches!((waited, also), (Some(Turn::Shared(_)), Some(Turn::Shared(_)))));
    }

    /// What an HTTP/2 server says of the first request, and whether the upstream may have seen that.
    async fn is_sent_when(refuse: impl FnOnce(&mut Server, h2::server::SendResponse<bytes::Bytes>)) -> bool {
        let (pool, mut is_sent) = (pool("https://a:80"), false);
        let (sender, mut server) = over_http2().await;
        let exchange = pool.exchange((Connection::Http2(sender), false), request(), &TIMEOUTS, None, &mut is_sent);
        let serve = async {
            let (_, respond) = server.accept().await.unwrap().unwrap();
            refuse(&mut server, respond);
            while let Some(Ok(_)) = server.accept().await {}
            std::future::pending::<()>().await;
        };
        let exchanged = tokio::select! { exchanged = exchange => exchanged, () = serve => panic!() };
        assert!(matches!(exchanged, Err(UpstreamError::Connection(_))));
        is_sent
    }

    type Server = h2::server::Connection<tokio::io::DuplexStream, bytes::Bytes>;

    #[tokio::test]
    async fn what_an_http2_server_says_it_did_not_process_was_not_sent() {
        assert!(
            !is_sent_when(|server, mut respond| {
                respond.send_reset(h2::Reason::REFUSED_STREAM);
                server.graceful_shutdown();
            })
            .await
        );
        assert!(
            is_sent_when(|server, mut respond| {
                respond.send_reset(h2::Reason::INTERNAL_ERROR);
                server.graceful_shutdown();
            })
            .await
        );
        // It has processed this stream, or may have.
        assert!(is_sent_when(|server, _| server.abrupt_shutdown(h2::Reason::INTERNAL_ERROR)).await);
    }
}
