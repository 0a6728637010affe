//! Answers that an upstream compressed, as they were before (reference: gateway behaviour 10.5).
//!
//! In: an answer of an upstream. Out: the same, or its body decompressed as it streams, for clients that don't take gzip
//! and for APIs that change answers. Other codings pass: nobody but the client can have asked for them.

use std::io::{Error, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use flate2::{Decompress, FlushDecompress, Status};
use http::header::CONTENT_ENCODING;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response};
use http_body::{Body as HttpBody, Frame};

use super::Body;
use super::compress::{FRAME, WINDOW, change_bytes, has_a_body, may_be_rewritten, takes_gzip};
use super::transform::OF_BYTES;

/// Decompresses an answer that must be read: by a client that takes no gzip, or to change it.
pub(super) fn decompress(request: &Parts, is_to_be_changed: bool, mut response: Response<Body>) -> Response<Body> {
    let is_due = is_gzip(response.headers())
        && has_a_body(request, &response)
        && (is_to_be_changed || !takes_gzip(&request.headers) && may_be_rewritten(request, &response));
    if !is_due {
        return response;
    }
    let headers = response.headers_mut();
    headers.remove(CONTENT_ENCODING);
    for name in &OF_BYTES {
        headers.remove(name);
    }
    change_bytes(headers);
    response.map(|body| Body::Decompressed(Box::new(Decompressed::new(body))))
}

fn is_gzip(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(CONTENT_ENCODING).iter();
    let is_known = |coding: &HeaderValue| {
        ["gzip", "x-gzip"].iter().any(|name| coding.as_bytes().eq_ignore_ascii_case(name.as_bytes()))
    };
    codings.next().is_some_and(is_known) && codings.next().is_none()
}

/// How a member of a gzip file begins (RFC 1952 2.3.1); there may be several, one behind the other.
const MEMBER: u8 = 0x1f;

/// A body that was gzip.
#[derive(Debug)]
pub struct Decompressed {
    body: Body,
    /// `None` behind the end of a member.
    decompress: Option<Decompress>,
    /// What comes next of the body.
    input: Bytes,
    is_read: bool,
}

impl Decompressed {
    fn new(body: Body) -> Self {
        Self { body, decompress: Some(Decompress::new_gzip(WINDOW)), input: Bytes::new(), is_read: false }
    }
}

impl HttpBody for Decompressed {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        loop {
            if this.input.is_empty() && !this.is_read {
                match ready!(Pin::new(&mut this.body).poll_frame(cx)).transpose()? {
                    None => this.is_read = true,
                    Some(frame) => this.input = frame.into_data().unwrap_or_default(),
                }
            }
            let Some(decompress) = &mut this.decompress else {
                if this.input.first() == Some(&MEMBER) {
                    this.decompress = Some(Decompress::new_gzip(WINDOW));
                    continue;
                }
                // What else follows means nothing, but an upstream that breaks off did not say all.
                this.input.clear();
                if this.is_read {
                    return Poll::Ready(None);
                }
                continue;
            };
            let mut output = Vec::with_capacity(FRAME);
            let before = decompress.total_in();
            let status = decompress.decompress_vec(&this.input, &mut output, FlushDecompress::None)?;
            let taken = usize::try_from(decompress.total_in() - before).unwrap_or(usize::MAX);
            this.input.advance(taken);
            if status == Status::StreamEnd {
                this.decompress = None;
            } else if output.is_empty() && taken == 0 && (this.is_read || !this.input.is_empty()) {
                return Poll::Ready(Some(Err(Error::from(ErrorKind::UnexpectedEof).into())));
            }
            if !output.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(output.into()))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.decompress.is_none() && self.is_read && self.input.is_empty()
    }
}
