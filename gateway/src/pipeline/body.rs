//! The body of an answer, whoever made it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Version;
use http_body::{Body as HttpBody, Frame, SizeHint};

use smallvec::SmallVec;

use super::compress::Compressed;
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
    /// One of the others with something around it.
    Framed(Box<Framed>),
    /// From the management API.
    Platform(axum::body::Body),
    /// One of the others as gzip.
    Compressed(Box<Compressed>),
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
            Self::Framed(body) => Pin::new(&mut **body).poll_frame(cx),
            Self::Platform(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Compressed(body) => Pin::new(&mut **body).poll_frame(cx),
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
            Self::Framed(body) => body.is_end_stream(),
            Self::Platform(body) => body.is_end_stream(),
            Self::Compressed(body) => body.is_end_stream(),
            Self::Metered(metered) => metered.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Upstream(body) => body.size_hint(),
            Self::Patient(body) => body.size_hint(),
            Self::Framed(body) => body.size_hint(),
            Self::Platform(body) => body.size_hint(),
            Self::Compressed(body) => body.size_hint(),
            Self::Metered(metered) => metered.body.size_hint(),
        }
    }
}

/// A body with bytes before and after it.
#[derive(Debug)]
pub struct Framed {
    /// Comes with the body's first data.
    before: Option<Bytes>,
    /// That first data.
    held: Option<Bytes>,
    body: Body,
    /// Comes at the end of a body that had data, once.
    after: Option<Bytes>,
    /// Comes instead of all when there was no data.
    empty: Bytes,
}

impl Framed {
    /// A body between bytes; `empty` stands for all three if the body turns out to be empty.
    pub(super) fn around(before: Bytes, body: Body, after: Bytes, empty: Bytes) -> Self {
        Self { before: Some(before), held: None, body, after: Some(after), empty }
    }

    /// What was read of a body, and the rest of it.
    pub(super) fn after(read: Bytes, rest: Body) -> Self {
        Self { before: Some(read.clone()), held: None, body: rest, after: None, empty: read }
    }

    fn end(&mut self) -> Option<Bytes> {
        let after = self.after.take();
        if self.before.take().is_some() { Some(std::mem::take(&mut self.empty)) } else { after }
    }
}

impl HttpBody for Framed {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        if let Some(held) = this.held.take() {
            return Poll::Ready(Some(Ok(Frame::data(held))));
        }
        loop {
            let Some(frame) = ready!(Pin::new(&mut this.body).poll_frame(cx)).transpose()? else {
                return Poll::Ready(this.end().map(|bytes| Ok(Frame::data(bytes))));
            };
            let Ok(data) = frame.into_data() else { continue };
            if data.is_empty() {
                continue;
            }
            let Some(before) = this.before.take() else { return Poll::Ready(Some(Ok(Frame::data(data)))) };
            this.held = Some(data);
            return Poll::Ready(Some(Ok(Frame::data(before))));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.before.is_none() && self.held.is_none() && self.after.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let length = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
        match self.body.size_hint().exact() {
            Some(0) if self.before.is_some() => SizeHint::with_exact(self.empty.len() as u64),
            Some(exact) => {
                let around = length(&self.before) + length(&self.held) + length(&self.after);
                SizeHint::with_exact(exact + around)
            }
            None => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use proptest::prelude::*;

    use super::*;

    fn framed(pieces: &[String]) -> Framed {
        let frames: Vec<_> = pieces.iter().map(|piece| Ok::<_, std::io::Error>(Bytes::from(piece.clone()))).collect();
        let body = Body::Platform(axum::body::Body::from_stream(futures::stream::iter(frames)));
        Framed::around("<".into(), body, ">".into(), "-".into())
    }

    #[tokio::test]
    async fn the_length_is_told_where_the_body_tells_it() {
        for (inner, wanted) in [("", "-"), ("abc", "<abc>")] {
            let own = Body::Own(Some(Bytes::from_static(inner.as_bytes())));
            let mut body = Framed::around("<".into(), own, ">".into(), "-".into());
            assert_eq!(body.size_hint().exact(), Some(wanted.len() as u64));
            let mut left = wanted.len() as u64;
            while let Some(frame) = body.frame().await {
                left -= frame.unwrap().data_ref().unwrap().len() as u64;
                assert!(body.size_hint().exact().is_none_or(|told| told == left), "{inner}");
            }
            assert!(body.is_end_stream());
            assert!(body.frame().await.is_none());
        }
    }

    proptest! {
        #[test]
        fn what_is_framed_comes_whole_and_once(pieces in prop::collection::vec("[a-z]{0,3}", 0..5)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let read = runtime.block_on(framed(&pieces).collect()).unwrap().to_bytes();
            let inner = pieces.concat();
            let wanted = if inner.is_empty() { "-".to_owned() } else { format!("<{inner}>") };
            prop_assert_eq!(read, wanted);
            let body = Body::Platform(axum::body::Body::from(inner.clone()));
            let read = runtime.block_on(Framed::after("read".into(), body).collect()).unwrap().to_bytes();
            prop_assert_eq!(read, format!("read{inner}"));
        }
    }
}
