//! The body of an answer, whoever made it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Version;
use http_body::{Body as HttpBody, Frame, SizeHint};

use smallvec::SmallVec;

use super::patience::Patient;
use crate::store::Store;
use crate::upstream::ResponseBody;

/// The body of an answer.
#[derive(Debug)]
pub enum Body {
    /// Made by the gateway.
    Own(Option<Bytes>),
    /// Streamed from an upstream.
    Upstream(ResponseBody),
    /// Streamed from an upstream to a client that may stop taking it without closing its connection.
    Patient(Patient<ResponseBody>),
    /// From the management API.
    Platform(axum::body::Body),
    /// One of unknown length whose bytes count against a limit.
    Metered(Box<Metered>),
}

/// Counts the bytes of a body, and books them when it ends or is given up.
#[derive(Debug)]
pub struct Metered {
    body: Body,
    store: Arc<Store>,
    counters: SmallVec<[(Arc<str>, u64); 2]>,
    bytes: u64,
}

impl Metered {
    pub(super) fn new(body: Body, store: Arc<Store>, counters: SmallVec<[(Arc<str>, u64); 2]>) -> Self {
        Self { body, store, counters, bytes: 0 }
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        let (store, counters, bytes) = (self.store.clone(), std::mem::take(&mut self.counters), self.bytes);
        // Without a runtime the process ends, and with it what is counted here.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { store.book(&counters, bytes).await });
        }
    }
}

impl Body {
    /// What an upstream answers to a request of this version.
    pub fn streamed(body: ResponseBody, version: Version) -> Self {
        if version == Version::HTTP_2 { Self::Patient(Patient::new(body)) } else { Self::Upstream(body) }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Upstream(body) => Pin::new(body).poll_frame(cx),
            Self::Patient(body) => Pin::new(body).poll_frame(cx),
            Self::Platform(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Metered(metered) => {
                let polled = Pin::new(&mut metered.body).poll_frame(cx);
                if let Poll::Ready(Some(Ok(frame))) = &polled {
                    metered.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                }
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Upstream(body) => body.is_end_stream(),
            Self::Patient(body) => body.is_end_stream(),
            Self::Platform(body) => body.is_end_stream(),
            Self::Metered(metered) => metered.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Upstream(body) => body.size_hint(),
            Self::Patient(body) => body.size_hint(),
            Self::Platform(body) => body.size_hint(),
            Self::Metered(metered) => metered.body.size_hint(),
        }
    }
}
