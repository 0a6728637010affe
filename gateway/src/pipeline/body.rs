//! The body of an answer, whoever made it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::task::JoinHandle;

use super::compress::Compressed;
use super::decompress::Decompressed;
use crate::accounting::{self, Meter};
use crate::upstream::ResponseBody;

/// The body of an answer.
#[derive(Debug)]
pub enum Body {
    /// Made by the gateway.
    Own(Option<Bytes>),
    /// Streamed from an upstream.
    Upstream(ResponseBody),
    /// One of the others with something around it.
    Framed(Box<Framed>),
    /// From the management API.
    Platform(axum::body::Body),
    /// One of the others as gzip.
    Compressed(Box<Compressed>),
    /// One that an upstream sent as gzip, as it was before.
    Decompressed(Box<Decompressed>),
    /// One whose bytes count against a limit.
    Metered(Box<Metered>),
}

/// Counts the bytes of a body as they are handed to the client's connection. The end is held back until they are
/// booked, so that a client that has its answer finds them counted with the next call.
#[derive(Debug)]
pub struct Metered {
    body: Body,
    meter: Arc<Meter>,
    end: End,
}

#[derive(Debug)]
enum End {
    /// Not yet.
    Open,
    /// The last of the body, when its bytes are booked.
    Held(Option<Frame<Bytes>>, JoinHandle<()>),
    Over,
}

impl Metered {
    pub(super) fn new(body: Body, meter: Arc<Meter>) -> Self {
        Self { body, meter, end: End::Open }
    }
}

impl HttpBody for Metered {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        loop {
            match &mut this.end {
                End::Over => return Poll::Ready(None),
                End::Held(last, booking) => {
                    // It can't fail, and if it could the answer would not be worse for it.
                    let _ = ready!(Pin::new(booking).poll(cx));
                    let last = last.take();
                    this.end = End::Over;
                    return Poll::Ready(last.map(Ok));
                }
                End::Open => {
                    let frame = ready!(Pin::new(&mut this.body).poll_frame(cx)).transpose()?;
                    if let Some(frame) = &frame {
                        this.meter.add(accounting::length(frame));
                    }
                    if frame.is_some() && !this.body.is_end_stream() {
                        return Poll::Ready(frame.map(Ok));
                    }
                    let Some(booking) = this.meter.book() else {
                        this.end = End::Over;
                        return Poll::Ready(frame.map(Ok));
                    };
                    this.end = End::Held(frame, booking);
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self.end {
            End::Open => self.body.is_end_stream(),
            End::Held(..) => false,
            End::Over => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.end {
            End::Open => self.body.size_hint(),
            End::Held(last, _) => SizeHint::with_exact(last.as_ref().map_or(0, accounting::length)),
            End::Over => SizeHint::with_exact(0),
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Upstream(body) => Pin::new(body).poll_frame(cx),
            Self::Framed(body) => Pin::new(&mut **body).poll_frame(cx),
            Self::Platform(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Compressed(body) => Pin::new(&mut **body).poll_frame(cx),
            Self::Decompressed(body) => Pin::new(&mut **body).poll_frame(cx),
            Self::Metered(body) => Pin::new(&mut **body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Upstream(body) => body.is_end_stream(),
            Self::Framed(body) => body.is_end_stream(),
            Self::Platform(body) => body.is_end_stream(),
            Self::Compressed(body) => body.is_end_stream(),
            Self::Decompressed(body) => body.is_end_stream(),
            Self::Metered(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Upstream(body) => body.size_hint(),
            Self::Framed(body) => body.size_hint(),
            Self::Platform(body) => body.size_hint(),
            Self::Compressed(body) => body.size_hint(),
            Self::Decompressed(body) => body.size_hint(),
            Self::Metered(body) => body.size_hint(),
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
