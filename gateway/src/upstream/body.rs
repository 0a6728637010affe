//! Bodies in both directions: streamed, bounded, and watched for stalls.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::pool::Lease;
use super::{Phase, UpstreamError};
use crate::accounting::Received;

/// Boxed error of a body.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// What the sending side of a call tells the waiting side.
#[derive(Debug)]
pub struct Progress {
    started: Instant,
    last_millis: AtomicU64,
    sent: AtomicBool,
    too_large: AtomicBool,
    waits_for_client: AtomicBool,
    broken: AtomicBool,
}

impl Progress {
    fn new() -> Self {
        Self {
            started: Instant::now(),
            last_millis: AtomicU64::new(0),
            sent: AtomicBool::new(false),
            too_large: AtomicBool::new(false),
            waits_for_client: AtomicBool::new(false),
            broken: AtomicBool::new(false),
        }
    }

    fn note(&self) {
        let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_millis.store(millis, Ordering::Relaxed);
    }

    /// When the body last moved.
    pub fn last(&self) -> Instant {
        self.started + Duration::from_millis(self.last_millis.load(Ordering::Relaxed))
    }

    /// Whether the whole body was handed to the connection.
    pub fn is_sent(&self) -> bool {
        self.sent.load(Ordering::Relaxed)
    }

    /// Whether the upstream would take more, and the client sends nothing.
    pub fn waits_for_client(&self) -> bool {
        self.waits_for_client.load(Ordering::Relaxed)
    }

    /// Whether the client's body ended early or is malformed.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// Whether the body broke its bound.
    pub fn is_too_large(&self) -> bool {
        self.too_large.load(Ordering::Relaxed)
    }
}

/// A request body on its way upstream.
#[derive(Debug)]
pub enum RequestBody {
    /// Nothing.
    Empty,
    /// All of it, so that it can be sent again.
    Whole(Option<Bytes>),
    /// What the client sends, up to a number of bytes.
    Stream {
        /// The client's body.
        inner: Received,
        /// Bytes that may still come.
        remaining: u64,
        /// Told of every chunk.
        progress: Arc<Progress>,
    },
}

impl RequestBody {
    /// A body of at most `limit` bytes, and where to look how far it is.
    pub fn stream(inner: Received, limit: u64) -> (Self, Arc<Progress>) {
        let progress = Arc::new(Progress::new());
        (Self::Stream { inner, remaining: limit, progress: progress.clone() }, progress)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let (inner, remaining, progress) = match self.get_mut() {
            Self::Empty => return Poll::Ready(None),
            Self::Whole(bytes) => return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream { inner, remaining, progress } => (inner, remaining, progress),
        };
        let polled = Pin::new(&mut *inner).poll_frame(cx);
        progress.waits_for_client.store(polled.is_pending(), Ordering::Relaxed);
        match ready!(polled) {
            None => {
                progress.sent.store(true, Ordering::Relaxed);
                progress.note();
                Poll::Ready(None)
            }
            Some(Err(error)) => {
                progress.broken.store(true, Ordering::Relaxed);
                Poll::Ready(Some(Err(error.into())))
            }
            Some(Ok(frame)) => {
                progress.note();
                // Trailers are not forwarded, in neither direction: no header rule has been applied to them.
                let Ok(data) = frame.into_data() else {
                    progress.sent.store(true, Ordering::Relaxed);
                    return Poll::Ready(None);
                };
                let Some(rest) = remaining.checked_sub(data.len() as u64) else {
                    progress.too_large.store(true, Ordering::Relaxed);
                    return Poll::Ready(Some(Err("request body is larger than allowed".into())));
                };
                *remaining = rest;
                // Of a body whose length is known nobody asks for more after its last piece.
                progress.sent.store(inner.is_end_stream(), Ordering::Relaxed);
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(bytes) => bytes.is_none(),
            Self::Stream { inner, .. } => inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream { inner, .. } => inner.size_hint(),
        }
    }
}

/// An upstream's answer on its way to the client; gives the connection back at its end.
#[derive(Debug)]
pub struct ResponseBody {
    inner: Incoming,
    lease: Option<Lease>,
    read_timeout: Duration,
    stall: Option<Pin<Box<Sleep>>>,
}

impl ResponseBody {
    pub(super) fn new(inner: Incoming, lease: Lease, read_timeout: Duration) -> Self {
        let mut body = Self { inner, lease: Some(lease), read_timeout, stall: None };
        body.give_back_when_done();
        body
    }

    fn give_back_when_done(&mut self) {
        if self.inner.is_end_stream()
            && let Some(lease) = self.lease.take()
        {
            lease.give_back();
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        loop {
            let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) else {
                let wait = this.read_timeout;
                let stall = this.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(wait)));
                ready!(stall.as_mut().poll(cx));
                return Poll::Ready(Some(Err(UpstreamError::Timeout(Phase::Answer).into())));
            };
            this.stall = None;
            let Some(frame) = frame.transpose()? else {
                if let Some(lease) = this.lease.take() {
                    lease.give_back();
                }
                return Poll::Ready(None);
            };
            this.give_back_when_done();
            if let Ok(data) = frame.into_data() {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
