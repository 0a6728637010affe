//! The compress stage: answers as gzip to clients that take it (reference: gateway behaviour 2, layer 4).
//!
//! In: an answer with all its headers. Out: the same, or its body as gzip. Bodies stream: what an upstream has sent so
//! far goes out compressed as soon as the upstream pauses, and nothing is held whole. What is compressed already, is a
//! part of something, or must arrive as it was sent, is left alone.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use flate2::{Compress, CompressError, Compression, FlushCompress, Status};
use http::header::{
    ACCEPT_ENCODING, ACCEPT_RANGES, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderName,
    VARY,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version};
use http_body::{Body as HttpBody, Frame};

use super::Body;
use super::transform::OF_BYTES;
use crate::request::media;
use crate::settings::Features;

/// Bits of the window of deflate: all there are.
pub(super) const WINDOW: u8 = 15;
/// Compressors kept for later, at the most; each holds about 300 KiB.
const MAX_IDLE: usize = 8;
/// Answers compressed at the same time, at the most: 40 MiB. Further ones go out plain.
const MAX_AT_WORK: usize = 128;
/// Most bytes compressed at once.
const PIECE: usize = 64 << 10;
/// Bytes compressed before other tasks get a turn: some milliseconds.
const TURN: usize = 4 * PIECE;
/// Bytes that a frame of a compressed body has at least, unless the body pauses or ends.
pub(super) const FRAME: usize = 8 << 10;

/// Types that are compressed by themselves, or of unknown content.
const COMPRESSED: [&str; 15] = [
    "application/octet-stream",
    "application/gzip",
    "application/x-gzip",
    "application/zip",
    "application/zstd",
    "application/x-bzip2",
    "application/x-xz",
    "application/x-7z-compressed",
    "application/vnd.rar",
    "application/x-rar-compressed",
    "application/java-archive",
    "application/pdf",
    "application/epub+zip",
    "font/woff",
    "font/woff2",
];
/// Images that are not.
const PLAIN_IMAGES: [&str; 4] = ["image/svg+xml", "image/bmp", "image/x-icon", "image/vnd.microsoft.icon"];
/// Types whose readers wait for each message by itself, and those of media.
const APART: [&str; 6] =
    ["text/event-stream", "application/grpc", "multipart/x-mixed-replace", "image/", "audio/", "video/"];

/// Marks an answer whose body must arrive as it is.
#[derive(Clone, Copy, Debug)]
pub struct LeftAlone;

#[derive(Debug, Default)]
struct Compressors {
    idle: Vec<Compress>,
    at_work: usize,
}

/// Compresses answers.
#[derive(Debug)]
pub struct Gzip {
    level: Compression,
    /// Least length of an answer, where it is known.
    minimum: u64,
    /// A new one costs about as much as what it does to a small answer.
    compressors: Mutex<Compressors>,
}

impl Gzip {
    /// As the settings have it; `None` when they switch it off.
    pub fn new(features: &Features) -> Option<Arc<Self>> {
        let gzip = || Self {
            level: Compression::new(features.compression_level.into()),
            minimum: features.compression_minimum.0,
            compressors: Mutex::default(),
        };
        features.compression.then(|| Arc::new(gzip()))
    }

    /// `None`: too many answers are being compressed; clients may take theirs as slowly as they like.
    fn take(&self) -> Option<Compress> {
        let mut compressors = self.compressors.lock().unwrap_or_else(PoisonError::into_inner);
        if compressors.at_work >= MAX_AT_WORK {
            return None;
        }
        compressors.at_work += 1;
        let idle = compressors.idle.pop();
        drop(compressors);
        Some(idle.unwrap_or_else(|| Compress::new_gzip(self.level, WINDOW)))
    }

    fn give_back(&self, mut compress: Compress) {
        compress.reset();
        let mut compressors = self.compressors.lock().unwrap_or_else(PoisonError::into_inner);
        compressors.at_work -= 1;
        if compressors.idle.len() < MAX_IDLE {
            compressors.idle.push(compress);
        }
    }
}

/// Compresses an answer that gains by it, and tells caches which answers depend on what a client takes.
pub(super) fn compress(gzip: Option<&Arc<Gzip>>, request: &Parts, mut response: Response<Body>) -> Response<Body> {
    // Answers of the platform say `Vary: Origin` and nothing else (reference: platform API 1.4); no cache may keep them.
    let is_platform = request.uri.path().starts_with("/platform/");
    if !is_platform && media::is_compressed(response.headers()) {
        vary(response.headers_mut());
    }
    let Some(gzip) = gzip.filter(|gzip| is_worth_it(gzip, request, &response)) else { return response };
    if !is_platform {
        vary(response.headers_mut());
    }
    if request.version == Version::HTTP_10 || !takes_gzip(&request.headers) {
        return response;
    }
    let Some(compress) = gzip.take() else { return response };
    let headers = response.headers_mut();
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    change_bytes(headers);
    response.map(|body| Body::Compressed(Box::new(Compressed::new(body, gzip.clone(), compress))))
}

/// Takes back what an answer says of its bytes, which are others now; the meaning is the same (RFC 9110 8.8.1).
pub(super) fn change_bytes(headers: &mut HeaderMap) {
    headers.remove(CONTENT_LENGTH);
    headers.remove(ACCEPT_RANGES);
    if let Some(tag) = headers.get(ETAG).filter(|tag| tag.as_bytes().starts_with(b"\""))
        && let Ok(weak) = HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat())
    {
        headers.insert(ETAG, weak);
    }
}

/// Is there a whole body?
pub(super) fn has_a_body(request: &Parts, response: &Response<Body>) -> bool {
    const WITHOUT: [StatusCode; 4] =
        [StatusCode::NO_CONTENT, StatusCode::RESET_CONTENT, StatusCode::PARTIAL_CONTENT, StatusCode::NOT_MODIFIED];
    let headers = response.headers();
    request.method != Method::HEAD
        && !response.status().is_informational()
        && !WITHOUT.contains(&response.status())
        && !response.body().is_end_stream()
        && !headers.contains_key(CONTENT_RANGE)
}

/// Does nobody forbid to change how a body is written?
pub(super) fn may_be_rewritten(request: &Parts, response: &Response<Body>) -> bool {
    response.extensions().get::<LeftAlone>().is_none()
        && ![response.headers(), &request.headers].into_iter().any(media::forbids_changes)
}

fn is_worth_it(gzip: &Gzip, request: &Parts, response: &Response<Body>) -> bool {
    let headers = response.headers();
    has_a_body(request, response)
        && may_be_rewritten(request, response)
        && response.body().size_hint().exact().is_none_or(|length| length >= gzip.minimum && length > 0)
        && ![CONTENT_ENCODING].iter().chain(&OF_BYTES).any(|name| headers.contains_key(name))
        && headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).is_some_and(is_compressible)
}

fn is_compressible(kind: &str) -> bool {
    let essence = kind.split(';').next().unwrap_or_default().trim();
    let is = |known: &&str| essence.eq_ignore_ascii_case(known);
    let starts = |known: &&str| essence.get(..known.len()).is_some_and(|start| start.eq_ignore_ascii_case(known));
    PLAIN_IMAGES.iter().any(is) || !essence.is_empty() && !COMPRESSED.iter().any(is) && !APART.iter().any(starts)
}

/// Does the client take gzip, and not rather have none? (RFC 9110 12.5.3)
pub(super) fn takes_gzip(headers: &HeaderMap) -> bool {
    let (mut gzip, mut any, mut plain) = (None, None, None);
    for word in words(headers, ACCEPT_ENCODING) {
        let mut parts = word.split(';').map(str::trim);
        let coding = parts.next().unwrap_or_default();
        let weight = match parts.next().map(|weight| weight.split_once('=')) {
            None => 1.0,
            Some(Some((name, weight))) if name.trim().eq_ignore_ascii_case("q") => {
                weight.trim().parse().unwrap_or(0.0_f32)
            }
            Some(_) => 0.0,
        };
        match coding.to_ascii_lowercase().as_str() {
            "gzip" | "x-gzip" => gzip = Some(weight),
            "identity" => plain = Some(weight),
            "*" => any = Some(weight),
            _ => {}
        }
    }
    gzip.or(any).is_some_and(|gzip| gzip > 0.0 && plain.is_none_or(|plain| gzip >= plain))
}

/// Members of a list, over all fields of the name.
fn words(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).flat_map(|list| list.split(',')).map(str::trim)
}

fn vary(headers: &mut HeaderMap) {
    if !words(headers, VARY).any(|word| word == "*" || word.eq_ignore_ascii_case("accept-encoding")) {
        headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
    }
}

/// A body as gzip.
#[derive(Debug)]
pub struct Compressed {
    body: Body,
    gzip: Arc<Gzip>,
    /// `None` when the end is written.
    compress: Option<Compress>,
    /// What comes next of the body.
    input: Bytes,
    output: Vec<u8>,
    is_read: bool,
    /// Whether the compressor holds bytes back.
    holds_back: bool,
    /// Bytes since other tasks had a turn.
    turn: usize,
}

impl Compressed {
    fn new(body: Body, gzip: Arc<Gzip>, compress: Compress) -> Self {
        let (input, output) = (Bytes::new(), Vec::new());
        Self { body, gzip, compress: Some(compress), input, output, is_read: false, holds_back: false, turn: 0 }
    }

    /// Compresses a piece of the input, up to where `flush` asks for.
    fn work(&mut self, flush: FlushCompress) -> Result<(), CompressError> {
        let Some(compress) = &mut self.compress else { return Ok(()) };
        let mut piece = self.input.split_to(self.input.len().min(PIECE));
        self.turn += piece.len();
        self.holds_back = matches!(flush, FlushCompress::None);
        loop {
            if self.output.len() == self.output.capacity() {
                self.output.reserve(FRAME);
            }
            let before = compress.total_in();
            let status = compress.compress_vec(&piece, &mut self.output, flush)?;
            piece.advance(usize::try_from(compress.total_in() - before).unwrap_or(usize::MAX));
            let is_done = match flush {
                FlushCompress::Finish => status == Status::StreamEnd,
                FlushCompress::None => piece.is_empty(),
                // There is more while it fills what it gets.
                _ => self.output.len() < self.output.capacity() || status == Status::BufError,
            };
            if is_done {
                return Ok(());
            }
        }
    }

    fn emit(&mut self) -> Frame<Bytes> {
        Frame::data(std::mem::take(&mut self.output).into())
    }
}

impl Drop for Compressed {
    fn drop(&mut self) {
        if let Some(compress) = self.compress.take() {
            self.gzip.give_back(compress);
        }
    }
}

impl HttpBody for Compressed {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        while this.compress.is_some() {
            if this.turn >= TURN {
                this.turn = 0;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if !this.input.is_empty() {
                this.work(FlushCompress::None)?;
            } else if this.is_read {
                this.work(FlushCompress::Finish)?;
                this.compress.take().into_iter().for_each(|compress| this.gzip.give_back(compress));
                return Poll::Ready(Some(Ok(this.emit())));
            } else {
                match Pin::new(&mut this.body).poll_frame(cx)? {
                    Poll::Ready(None) => this.is_read = true,
                    Poll::Ready(Some(frame)) => this.input = frame.into_data().unwrap_or_default(),
                    Poll::Pending => {
                        this.turn = 0;
                        if this.holds_back {
                            this.work(FlushCompress::Sync)?;
                        }
                        return if this.output.is_empty() { Poll::Pending } else { Poll::Ready(Some(Ok(this.emit()))) };
                    }
                }
            }
            if this.output.len() >= FRAME {
                return Poll::Ready(Some(Ok(this.emit())));
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.compress.is_none()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::io::Read;

    use http_body_util::{BodyExt, StreamBody};
    use proptest::prelude::*;

    use super::*;

    fn gzip(level: u32) -> Arc<Gzip> {
        Arc::new(Gzip { level: Compression::new(level), minimum: 1, compressors: Mutex::default() })
    }

    fn compressed(body: Body, gzip: &Arc<Gzip>) -> Compressed {
        Compressed::new(body, gzip.clone(), gzip.take().unwrap())
    }

    /// A body of these pieces, which pauses where there is none.
    fn in_pieces(pieces: Vec<Option<Bytes>>) -> Body {
        let mut pieces = VecDeque::from(pieces);
        let frames = futures::stream::poll_fn(move |cx| match pieces.pop_front() {
            Some(None) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Some(Some(piece)) => Poll::Ready(Some(Ok::<_, std::io::Error>(Frame::data(piece)))),
            None => Poll::Ready(None),
        });
        Body::Platform(axum::body::Body::new(StreamBody::new(frames)))
    }

    fn unpacked(packed: &[u8]) -> Vec<u8> {
        let mut body = Vec::new();
        let mut decoder = flate2::read::GzDecoder::new(packed);
        decoder.read_to_end(&mut body).unwrap();
        assert!(decoder.into_inner().is_empty(), "something follows the end");
        body
    }

    #[test]
    fn a_client_takes_gzip_if_it_says_so() {
        for (lists, takes) in [
            (&[][..], false),
            (&["gzip"], true),
            (&["GZIP;q=0.5"], true),
            (&["br, x-gzip"], true),
            (&["br", "gzip"], true),
            (&["*"], true),
            (&["*;q=0, gzip"], true),
            (&["gzip;q=0"], false),
            (&["gzip; q=0.000, *"], false),
            (&["identity, gzip;q=0.5"], false),
            (&["identity;q=0.5, gzip;q=0.5"], true),
            (&["gzip;q=x"], false),
            (&["gzip;level=1"], false),
            (&["gzipped"], false),
            (&["deflate, br"], false),
            (&[""], false),
        ] {
            let mut headers = HeaderMap::new();
            for list in lists {
                headers.append(ACCEPT_ENCODING, list.parse().unwrap());
            }
            assert_eq!(takes_gzip(&headers), takes, "{lists:?}");
        }
    }

    #[test]
    fn types_tell_whether_there_is_something_to_gain() {
        for (kind, is_worth_it) in [
            ("application/json", true),
            ("Text/HTML ; charset=utf-8", true),
            ("image/svg+xml; charset=utf-8", true),
            ("application/x-own", true),
            ("", false),
            ("; charset=utf-8", false),
            ("IMAGE/png", false),
            ("font/woff2", false),
            ("application/octet-stream", false),
            ("text/event-stream", false),
            ("application/grpc", false),
            ("application/grpc-web+proto", false),
        ] {
            assert_eq!(is_compressible(kind), is_worth_it, "{kind}");
        }
    }

    #[tokio::test]
    async fn what_was_sent_before_a_pause_can_be_read_in_it() {
        let mut pieces = vec![Some(Bytes::from_static(b"first")), None];
        pieces.extend([Some(Bytes::from_static(b"second")), None]);
        let mut body = compressed(in_pieces(pieces), &gzip(1));
        let mut decoder = flate2::write::GzDecoder::new(Vec::new());
        for wanted in ["first", "firstsecond"] {
            let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
            std::io::Write::write_all(&mut decoder, &frame).unwrap();
            std::io::Write::flush(&mut decoder).unwrap();
            assert_eq!(decoder.get_ref().as_slice(), wanted.as_bytes());
        }
    }

    #[tokio::test]
    async fn compressors_are_used_again() {
        let gzip = gzip(1);
        for round in 0..3 {
            let text = format!("round {round}").repeat(100);
            let body = compressed(in_pieces(vec![Some(text.clone().into())]), &gzip);
            assert_eq!(unpacked(&body.collect().await.unwrap().to_bytes()), text.as_bytes());
            // One that is given up leaves nothing of itself behind.
            let mut given_up = compressed(in_pieces(vec![Some(text.into()), None]), &gzip);
            given_up.frame().await.unwrap().unwrap();
            drop(given_up);
            let compressors = gzip.compressors.lock().unwrap();
            assert_eq!((compressors.idle.len(), compressors.at_work), (1, 0));
        }
    }

    #[test]
    fn no_more_than_so_many_are_at_work() {
        let gzip = gzip(1);
        let mut at_work: Vec<_> = (0..MAX_AT_WORK).map_while(|_| gzip.take()).collect();
        assert_eq!((at_work.len(), gzip.take().is_none()), (MAX_AT_WORK, true));
        gzip.give_back(at_work.pop().unwrap());
        assert!(gzip.take().is_some() && gzip.take().is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_packed_is_what_was_sent(
            pieces in prop::collection::vec(
                prop_oneof![Just(None), (any::<u8>(), 0..200_000_usize, any::<bool>()).prop_map(Some)], 0..8),
            level in 1..10_u32,
        ) {
            // Noise does not get smaller, runs nearly vanish.
            let piece = |(seed, length, is_noise): (u8, usize, bool)| {
                let mut random = fastrand::Rng::with_seed(seed.into());
                (0..length).map(|_| if is_noise { random.u8(..) } else { seed }).collect()
            };
            let pieces: Vec<Option<Bytes>> = pieces.into_iter().map(|one| one.map(piece)).collect();
            let sent: Vec<u8> = pieces.iter().flatten().flatten().copied().collect();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let packed = runtime.block_on(compressed(in_pieces(pieces), &gzip(level)).collect()).unwrap().to_bytes();
            prop_assert!(unpacked(&packed) == sent);
        }
    }
}
