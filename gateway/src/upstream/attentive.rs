//! A connection that is still read when the upstream takes no more of the request.
//!
//! A server may answer without reading the body it is sent, and close at once: what is sent after that fails, and what is read
//! ends in a reset, while the answer is here (RFC 9112, 9.6; reference: gateway behaviour 10.3). So that sending fails
//! ends nothing; and where there is such a body, a reset behind the beginning of an answer is the end of the
//! connection. Whether the answer is whole then, its framing tells, unless it has none. Not over TLS, where only the server
//! may say that it has ended.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is known of a connection. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Known(Arc<State>);

#[derive(Debug, Default)]
struct State {
    takes_nothing: AtomicBool,
    has_answered: AtomicBool,
    /// Is there a body that the server may leave unread?
    carries_body: AtomicBool,
}

impl Known {
    /// Can it carry another request?
    pub(super) fn is_usable(&self) -> bool {
        !self.0.takes_nothing.load(Relaxed)
    }

    /// Has something of the answer come?
    pub(super) fn has_answered(&self) -> bool {
        self.0.has_answered.load(Relaxed)
    }

    /// From here on, what is read answers a new request.
    pub(super) fn begin(&self, carries_body: bool) {
        self.0.has_answered.store(false, Relaxed);
        self.0.carries_body.store(carries_body, Relaxed);
    }

    fn may_end_in_reset(&self) -> bool {
        self.has_answered() && self.0.carries_body.load(Relaxed)
    }
}

/// See the module's own words.
pub(super) struct Attentive<S> {
    stream: S,
    known: Known,
    is_tls: bool,
}

impl<S> Attentive<S> {
    pub(super) fn new(stream: S, is_tls: bool) -> (Self, Known) {
        let known = Known::default();
        (Self { stream, known: known.clone(), is_tls }, known)
    }

    /// What of `all` counts as sent.
    fn sent(&self, outcome: io::Result<usize>, all: usize) -> io::Result<usize> {
        match outcome {
            Err(error) if is_gone(&error) => {
                self.known.0.takes_nothing.store(true, Relaxed);
                Ok(all)
            }
            other => other,
        }
    }
}

/// Does it say that the other end takes nothing more?
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

impl<S: AsyncRead + Unpin> AsyncRead for Attentive<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (this, before) = (self.get_mut(), buf.filled().len());
        match ready!(Pin::new(&mut this.stream).poll_read(cx, buf)) {
            Err(error) if !this.is_tls && is_gone(&error) && this.known.may_end_in_reset() => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error)),
            Ok(()) if buf.filled().len() > before => {
                this.known.0.has_answered.store(true, Relaxed);
                Poll::Ready(Ok(()))
            }
            // The reset was told to who tried to send.
            Ok(()) if !this.known.is_usable() && !this.known.may_end_in_reset() => {
                Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
            }
            Ok(()) => Poll::Ready(Ok(())),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Attentive<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if !this.known.is_usable() {
            return Poll::Ready(Ok(bytes.len()));
        }
        let outcome = ready!(Pin::new(&mut this.stream).poll_write(cx, bytes));
        Poll::Ready(this.sent(outcome, bytes.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let (this, all) = (self.get_mut(), slices.iter().map(|slice| slice.len()).sum());
        if !this.known.is_usable() {
            return Poll::Ready(Ok(all));
        }
        let outcome = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, slices));
        Poll::Ready(this.sent(outcome, all))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.known.is_usable() {
            return Poll::Ready(Ok(()));
        }
        let outcome = ready!(Pin::new(&mut this.stream).poll_flush(cx));
        Poll::Ready(this.sent(outcome.map(|()| 0), 0).map(|_| ()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
