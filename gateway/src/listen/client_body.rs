//! A client's body, and what happens to the rest of it when nobody reads it to its end.
//!
//! The next request of an HTTP/1.1 connection comes behind the body of this one (RFC 9112, 9.3), and a client that still
//! sends when its connection is closed may lose the answer to a reset (RFC 9112, 9.6). So the rest is read and thrown away
//! while the answer is on its way: within bounds, for whoever is refused may not keep a connection for it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Version, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::runtime::Handle;
use tokio::time::timeout;

/// The most that is thrown away of one body, and the longest that takes; beyond them the connection is closed.
const MOST_BYTES: usize = 16 << 20;
/// The most of who may send nothing at all at the moment.
const FEW_BYTES: usize = 64 << 10;
const LONGEST: Duration = Duration::from_secs(10);

/// See the module's own words.
#[derive(Debug)]
pub struct ClientBody {
    /// `None`: it was read to its end, or nobody is to read on.
    inner: Option<Incoming>,
    /// Bodies of HTTP/2 have streams of their own, and are in nobody's way.
    has_own_stream: bool,
    /// Is the rest in the way of anything?
    is_in_the_way: bool,
    /// How much of it is thrown away.
    most: usize,
}

impl ClientBody {
    /// The body of a request with this head.
    pub fn new(inner: Incoming, head: &Parts) -> Self {
        let has_own_stream = head.version == Version::HTTP_2;
        // Who waits to be told to go on is not told by whoever doesn't want the body.
        let is_in_the_way = !has_own_stream && !head.headers.contains_key(header::EXPECT);
        let inner = (!inner.is_end_stream()).then_some(inner);
        Self { inner, has_own_stream, is_in_the_way, most: MOST_BYTES }
    }

    /// Little is to be taken of what follows: the client is over a limit, or not welcome.
    pub fn take_little(&mut self) {
        self.most = FEW_BYTES;
    }

    /// Leaves the rest where it is: the connection ends.
    pub fn leave(mut self) {
        self.inner = None;
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        this.is_in_the_way = !this.has_own_stream;
        let frame = ready!(Pin::new(inner).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            this.inner = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or(SizeHint::with_exact(0), Incoming::size_hint)
    }
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        let rest = self.inner.take().filter(|inner| self.is_in_the_way && !inner.is_end_stream());
        if let Some((rest, runtime)) = rest.zip(Handle::try_current().ok()) {
            runtime.spawn(timeout(LONGEST, discard(rest, self.most)));
        }
    }
}

/// Reads to the end, or to the most.
async fn discard(mut rest: Incoming, most: usize) {
    let mut bytes = 0;
    while let Some(Ok(frame)) = rest.frame().await {
        bytes += frame.data_ref().map_or(0, Bytes::len);
        if bytes > most {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{Request, Response};
    use http_body_util::StreamBody;
    use hyper::service::service_fn;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::sync::mpsc;

    use super::*;

    /// Reads the beginning of a body and answers.
    async fn refuse(request: Request<Incoming>) -> Result<Response<String>, Infallible> {
        let (head, body) = request.into_parts();
        let first = ClientBody::new(body, &head).frame().await;
        assert!(matches!(first, Some(Ok(_))), "{first:?}");
        Ok(Response::new(String::new()))
    }

    #[tokio::test]
    async fn of_an_http2_body_that_is_refused_the_rest_is_not_taken() {
        const PIECE: &[u8] = &[b'a'; 8 << 10];
        let (near, far) = tokio::io::duplex(1 << 20);
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        tokio::spawn(server.serve_connection(TokioIo::new(far), service_fn(refuse)));
        let (mut calls, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(near)).await.unwrap();
        tokio::spawn(connection);
        let (sender, mut sent) = mpsc::unbounded_channel();
        let pieces = (0..2 * MOST_BYTES / PIECE.len()).map(move |_| {
            let _ = sender.send(PIECE.len());
            Ok::<_, Infallible>(Frame::data(Bytes::from_static(PIECE)))
        });
        let body = StreamBody::new(futures::stream::iter(pieces));
        let _answer = calls.send_request(Request::post("http://gateway.example/").body(body).unwrap()).await.unwrap();
        let mut bytes = 0;
        // Until the client gives its body up.
        while let Some(piece) = sent.recv().await {
            bytes += piece;
        }
        // What the windows let through, at most.
        assert!(bytes < MOST_BYTES / 2, "{bytes} bytes were taken");
    }
}
