//! An upstream that answers what a test says, and remembers what it was asked.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A server on the runtime that starts it; it stops when dropped.
#[derive(Debug)]
pub struct Scripted {
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Script {
    answers: HashMap<String, Response<Bytes>>,
    asked: HashMap<String, Vec<Request<Bytes>>>,
}

fn lock(script: &Mutex<Script>) -> MutexGuard<'_, Script> {
    script.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Scripted {
    /// One that answers 404 to everything.
    ///
    /// # Errors
    /// When it can't listen.
    pub async fn start() -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let (address, script) = (listener.local_addr()?, Arc::<Mutex<Script>>::default());
        let own = script.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let script = own.clone();
                let service = service_fn(move |request| {
                    let script = script.clone();
                    async move { Ok::<_, Infallible>(answer(&script, request).await) }
                });
                tokio::spawn(async move {
                    // A client that goes away is its own business.
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Ok(Self { address, script, task })
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on answers 200 and this to whoever asks for this path and query.
    pub fn say(&self, path: &str, body: impl Into<Bytes>) {
        self.say_all(path, Response::new(body.into()));
    }

    /// The same with status and headers.
    pub fn say_all(&self, path: &str, response: Response<Bytes>) {
        lock(&self.script).answers.insert(path.to_owned(), response);
    }

    /// All requests for this path and query.
    pub fn asked(&self, path: &str) -> Vec<Request<Bytes>> {
        lock(&self.script).asked.get(path).cloned().unwrap_or_default()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(script: &Mutex<Script>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let mut script = lock(script);
    script.asked.entry(path.clone()).or_default().push(Request::from_parts(parts, body));
    let said = script.answers.get(&path).cloned();
    said.unwrap_or_else(|| {
        let mut unknown = Response::new(Bytes::new());
        *unknown.status_mut() = StatusCode::NOT_FOUND;
        unknown
    })
    .map(Full::new)
}
