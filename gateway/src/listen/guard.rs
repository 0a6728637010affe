//! A look at the bytes of an HTTP/1.1 connection before the HTTP library reads them.
//!
//! The library repairs three things that another reader in front of us may read differently, and repaired requests are
//! how requests are smuggled: it drops `Content-Length` beside `Transfer-Encoding`, takes a bare LF for a line end, and
//! cuts a target off where `#` begins a fragment. It also has one limit of time for an idle connection and a slow head.
//! So the guard holds each head back until all of it is there, refuses what has no single reading (RFC 9112 2.2, 3.2,
//! 6.3), and follows the framing to where the next head begins. What it refuses the library sees as a malformed head,
//! which it answers with 400 or 431 and the end of the connection. HTTP/2 passes untouched.
//!
//! Nor has the library a limit for a client that takes nothing of its answer, and with it holds a connection to the
//! upstream. Here it has [`TAKE_TIME`].

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use memchr::memchr;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tokio_util::io::poll_read_buf;

use crate::request::{MAX_HEADER_BYTES, MAX_HEADER_FIELDS};

/// Longest time from the first byte of a head to its last.
pub const HEAD_TIME: Duration = Duration::from_secs(10);
/// Longest time a client may take nothing of what is sent to it.
pub const TAKE_TIME: Duration = Duration::from_secs(60);
/// Longest request line.
const MAX_REQUEST_LINE: usize = 8 * 1024;
/// Longest head: names and values, their separators, and the request line.
const MAX_HEAD: usize = MAX_HEADER_BYTES + 4 * MAX_HEADER_FIELDS + MAX_REQUEST_LINE;
/// Longest line with the size of a chunk, extensions included.
const MAX_CHUNK_LINE: usize = 1024;
/// How an HTTP/2 connection begins (RFC 9113 3.4); a request line that HTTP/1.1 does not know.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n";

/// Where in the stream the next byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    /// Bytes of a body that are still to come.
    Body(u64),
    ChunkSize,
    /// Bytes of a chunk that are still to come, its CRLF included.
    Chunk(u64),
    /// Lines after the last chunk; how many bytes of them have been.
    Trailers(usize),
    Http2,
}

/// Why the rest of the stream is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A line of a head does not end in CRLF.
    #[error("a line of the head does not end in CRLF")]
    LineEnd,
    /// The target has a fragment.
    #[error("the target holds `#`")]
    Target,
    /// The length of the body is given twice or in a form that is not understood.
    #[error("the length of the body has no single reading")]
    Framing,
    /// The head is longer than is read, or has too many fields.
    #[error("the head is too large")]
    TooLarge,
    /// A chunk does not have the form of one.
    #[error("a chunk is malformed")]
    Chunk,
}

impl Refused {
    /// What the HTTP library is given to read instead; nothing when it is in the middle of a body, which ends there.
    fn stand_in(self) -> Bytes {
        match self {
            Self::LineEnd | Self::Target | Self::Framing => Bytes::from_static(b"\0\r\n\r\n"),
            Self::TooLarge => {
                let mut head = BytesMut::from(&b"GET / HTTP/1.1\r\n"[..]);
                (0..=MAX_HEADER_FIELDS).for_each(|_| head.extend_from_slice(b"a:\r\n"));
                head.extend_from_slice(b"\r\n");
                head.freeze()
            }
            Self::Chunk => Bytes::new(),
        }
    }
}

/// Follows heads and bodies; says how much of what it is shown may be passed on.
#[derive(Debug)]
struct Scanner(State);

impl Scanner {
    /// The number of leading bytes that may be passed on. The others are shown again, with more after them, unless
    /// there is a reason not to go on.
    fn scan(&mut self, bytes: &[u8]) -> (usize, Option<Refused>) {
        let mut at = 0;
        loop {
            let rest = &bytes[at..];
            if rest.is_empty() {
                return (at, None);
            }
            let step = match self.0 {
                State::Head => self.head(rest),
                State::Body(left) => Ok(self.skip(left, rest.len(), State::Body, State::Head)),
                State::ChunkSize => self.chunk_size(rest),
                State::Chunk(left) => self.chunk(left, rest),
                State::Trailers(seen) => self.trailer(seen, rest),
                State::Http2 => Ok(rest.len()),
            };
            match step {
                Ok(0) => return (at, None),
                Ok(step) => at += step,
                Err(refused) => return (at, Some(refused)),
            }
        }
    }

    fn skip(&mut self, left: u64, there: usize, more: fn(u64) -> State, then: State) -> usize {
        let there = there as u64;
        self.0 = if there < left { more(left - there) } else { then };
        // Not more than `there`, which is a length.
        usize::try_from(left.min(there)).unwrap_or(usize::MAX)
    }

    fn head(&mut self, bytes: &[u8]) -> Result<usize, Refused> {
        if bytes.starts_with(HTTP2) {
            self.0 = State::Http2;
            return Ok(HTTP2.len());
        }
        let mut framing = Framing::default();
        let (mut at, mut lines) = (0, 0);
        while let Some(length) = memchr(b'\n', &bytes[at..]) {
            let line = bytes[at..at + length].strip_suffix(b"\r").ok_or(Refused::LineEnd)?;
            at += length + 1;
            match (line.is_empty(), lines) {
                // Empty lines before a request line are skipped (RFC 9112 2.2).
                (true, 0) => continue,
                (true, _) => {
                    self.0 = framing.state()?;
                    return Ok(at);
                }
                (false, 0) if line.len() > MAX_REQUEST_LINE => return Err(Refused::TooLarge),
                (false, 0) if memchr(b'#', line).is_some() => return Err(Refused::Target),
                (false, 0) => {}
                (false, _) => framing.field(line)?,
            }
            lines += 1;
            if lines > MAX_HEADER_FIELDS + 1 || at > MAX_HEAD {
                return Err(Refused::TooLarge);
            }
        }
        if bytes.len() > MAX_HEAD { Err(Refused::TooLarge) } else { Ok(0) }
    }

    fn chunk_size(&mut self, bytes: &[u8]) -> Result<usize, Refused> {
        let Some(end) = memchr(b'\n', bytes) else {
            return if bytes.len() > MAX_CHUNK_LINE { Err(Refused::Chunk) } else { Ok(0) };
        };
        let line =
            bytes[..end].strip_suffix(b"\r").filter(|line| line.len() <= MAX_CHUNK_LINE).ok_or(Refused::Chunk)?;
        if line.iter().copied().any(is_control) {
            return Err(Refused::Chunk);
        }
        let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
        let is_size = (1..=15).contains(&digits.len()) && digits.iter().all(u8::is_ascii_hexdigit);
        let text = std::str::from_utf8(digits).ok().filter(|_| is_size).ok_or(Refused::Chunk)?;
        self.0 = match u64::from_str_radix(text, 16).map_err(|_| Refused::Chunk)? {
            0 => State::Trailers(0),
            size => State::Chunk(size + 2),
        };
        Ok(end + 1)
    }

    /// The CRLF after a chunk's data is looked at too: there the library and others might disagree.
    fn chunk(&mut self, left: u64, bytes: &[u8]) -> Result<usize, Refused> {
        let step = self.skip(left, bytes.len(), State::Chunk, State::ChunkSize);
        let before_end = |distance: u64| {
            let place = left.checked_sub(distance).and_then(|place| usize::try_from(place).ok());
            place.and_then(|place| bytes[..step].get(place)).copied()
        };
        let is_framed =
            before_end(2).is_none_or(|byte| byte == b'\r') && before_end(1).is_none_or(|byte| byte == b'\n');
        if is_framed { Ok(step) } else { Err(Refused::Chunk) }
    }

    fn trailer(&mut self, seen: usize, bytes: &[u8]) -> Result<usize, Refused> {
        let Some(end) = memchr(b'\n', bytes) else {
            return if seen + bytes.len() > MAX_HEADER_BYTES { Err(Refused::Chunk) } else { Ok(0) };
        };
        let line = bytes[..end].strip_suffix(b"\r").ok_or(Refused::Chunk)?;
        let seen = seen + end + 1;
        if seen > MAX_HEADER_BYTES || line.iter().copied().any(is_control) {
            return Err(Refused::Chunk);
        }
        self.0 = if line.is_empty() { State::Head } else { State::Trailers(seen) };
        Ok(end + 1)
    }

    /// Whether a head has begun and not ended, when `held` bytes of it wait.
    fn is_in_head(&self, held: usize) -> bool {
        self.0 == State::Head && held > 0
    }
}

/// In no line that begins or ends a chunk; the library would skip it in an extension.
fn is_control(byte: u8) -> bool {
    byte.is_ascii_control() && byte != b'\t'
}

/// What a head says of the length of its body.
#[derive(Debug, Default)]
struct Framing {
    length: Option<u64>,
    is_chunked: bool,
}

impl Framing {
    fn field(&mut self, line: &[u8]) -> Result<(), Refused> {
        if !matches!(line[0], b'c' | b'C' | b't' | b'T') {
            return Ok(());
        }
        let value_of = |name: &[u8]| {
            let (start, rest) = line.split_at_checked(name.len())?;
            start.eq_ignore_ascii_case(name).then(|| rest.trim_ascii())
        };
        if let Some(value) = value_of(b"content-length:") {
            let is_number = (1..=18).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
            let text = std::str::from_utf8(value).ok().filter(|_| is_number).ok_or(Refused::Framing)?;
            if self.length.is_some() {
                return Err(Refused::Framing);
            }
            self.length = Some(text.parse().map_err(|_| Refused::Framing)?);
        } else if let Some(value) = value_of(b"transfer-encoding:") {
            if self.is_chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Refused::Framing);
            }
            self.is_chunked = true;
        }
        Ok(())
    }

    fn state(&self) -> Result<State, Refused> {
        match (self.length, self.is_chunked) {
            (Some(_), true) => Err(Refused::Framing),
            (None, true) => Ok(State::ChunkSize),
            (None | Some(0), false) => Ok(State::Head),
            (Some(length), false) => Ok(State::Body(length)),
        }
    }
}

/// A connection whose reads are guarded.
#[derive(Debug)]
pub struct Guarded<S> {
    inner: S,
    scanner: Scanner,
    /// Bytes that are not passed on yet.
    held: BytesMut,
    /// Bytes that are passed on next.
    passed: Bytes,
    refused: Option<Refused>,
    head_deadline: Option<Pin<Box<Sleep>>>,
    take_deadline: Option<Pin<Box<Sleep>>>,
}

impl<S> Guarded<S> {
    /// Guards a connection from its first byte on.
    pub fn new(inner: S) -> Self {
        Self {
            inner,
            scanner: Scanner(State::Head),
            held: BytesMut::new(),
            passed: Bytes::new(),
            refused: None,
            head_deadline: None,
            take_deadline: None,
        }
    }

    /// The outcome of a write; an error when the client has not taken anything for too long.
    fn taken<T>(&mut self, written: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.take_deadline = None;
            return written;
        }
        let deadline = self.take_deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(TAKE_TIME)));
        ready!(deadline.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing of its answer")))
    }

    /// Takes in a verdict on the bytes held back.
    fn take(&mut self, passed: usize, refused: Option<Refused>) {
        self.passed = self.held.split_to(passed).freeze();
        if let Some(refused) = refused {
            tracing::info!(reason = %refused, "a request is refused before it is read");
            self.refused = Some(refused);
            self.held.clear();
            let mut passed = BytesMut::from(&self.passed[..]);
            passed.extend_from_slice(&refused.stand_in());
            self.passed = passed.freeze();
        }
    }
}

impl<S: AsyncRead + Unpin> Guarded<S> {
    /// Reads more of what is held back. Ends with an error when its head takes too long.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(read) = poll_read_buf(Pin::new(&mut self.inner), cx, &mut self.held) {
            return Poll::Ready(read);
        }
        if self.scanner.is_in_head(self.held.len()) {
            let deadline = self.head_deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(HEAD_TIME)));
            ready!(deadline.as_mut().poll(cx));
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the head of a request took too long")));
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.scanner.0 == State::Http2 && this.passed.is_empty() && this.held.is_empty() {
            return Pin::new(&mut this.inner).poll_read(cx, buffer);
        }
        loop {
            if !this.passed.is_empty() {
                let step = this.passed.len().min(buffer.remaining());
                buffer.put_slice(&this.passed[..step]);
                this.passed.advance(step);
                return Poll::Ready(Ok(()));
            }
            match this.refused {
                Some(Refused::Chunk) => return Poll::Ready(Err(io::Error::from(io::ErrorKind::InvalidData))),
                Some(_) => return Poll::Ready(Ok(())),
                None => {}
            }
            if this.held.is_empty() {
                // The usual case: whole heads and pieces of bodies, looked at where they are to be read.
                let before = buffer.filled().len();
                ready!(Pin::new(&mut this.inner).poll_read(cx, buffer))?;
                let new = &buffer.filled()[before..];
                let (passed, refused) = this.scanner.scan(new);
                if passed == new.len() && refused.is_none() {
                    return Poll::Ready(Ok(()));
                }
                this.held.extend_from_slice(&new[passed..]);
                buffer.set_filled(before + passed);
                this.take(0, refused);
                if passed > 0 {
                    return Poll::Ready(Ok(()));
                }
            } else {
                if ready!(this.poll_more(cx))? == 0 {
                    return Poll::Ready(Ok(()));
                }
                let (passed, refused) = this.scanner.scan(&this.held);
                this.take(passed, refused);
            }
            if !this.scanner.is_in_head(this.held.len()) || !this.passed.is_empty() {
                this.head_deadline = None;
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.inner).poll_write(cx, bytes);
        this.taken(written, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.inner).poll_write_vectored(cx, slices);
        this.taken(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.inner).poll_flush(cx);
        this.taken(written, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// What passes when the stream comes in pieces of these sizes, in turn.
    fn pass(stream: &[u8], sizes: &[usize]) -> (Vec<u8>, Option<Refused>) {
        let (mut scanner, mut held, mut passed) = (Scanner(State::Head), Vec::new(), Vec::new());
        let (mut at, mut sizes) = (0, sizes.iter().cycle());
        while at < stream.len() {
            let size = (*sizes.next().unwrap()).max(1).min(stream.len() - at);
            held.extend_from_slice(&stream[at..at + size]);
            at += size;
            let (step, refused) = scanner.scan(&held);
            passed.extend(held.drain(..step));
            if refused.is_some() {
                return (passed, refused);
            }
        }
        (passed, None)
    }

    const GOOD: &[&str] = &[
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab\ncd",
        "POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: Chunked \r\n\r\n5;x=y\r\nab\ncd\r\n0\r\nT: v\r\n\r\n",
        "PUT / HTTP/1.1\r\nContent-Length:0\r\n\r\n",
    ];

    proptest! {
        #[test]
        fn good_streams_pass_whole_however_they_are_cut(
            picks in prop::collection::vec(0..GOOD.len(), 1..6),
            sizes in prop::collection::vec(1..40_usize, 1..8),
        ) {
            let stream: String = picks.into_iter().map(|pick| GOOD[pick]).collect();
            prop_assert_eq!(pass(stream.as_bytes(), &sizes), (stream.clone().into_bytes(), None));
        }

        #[test]
        fn the_verdict_does_not_depend_on_the_cuts(
            stream in prop::collection::vec(prop_oneof![
                Just("GET / HTTP/1.1\r\n"), Just("Host: a\r\n"), Just("\r\n"), Just("\n"), Just("Content-Length: 3\r\n"),
                Just("Transfer-Encoding: chunked\r\n"), Just("abc"), Just("3\r\n"), Just("0\r\n"), Just("\r"), Just("x\n"),
            ], 1..14),
            sizes in prop::collection::vec(1..9_usize, 1..5),
        ) {
            let stream = stream.concat();
            let whole = pass(stream.as_bytes(), &[stream.len()]);
            let cut = pass(stream.as_bytes(), &sizes);
            prop_assert_eq!(whole.1, cut.1);
            // Of a body that turns out malformed, more or less may have passed by then.
            if whole.1 != Some(Refused::Chunk) {
                prop_assert_eq!(whole.0, cut.0);
            }
        }
    }

    #[test]
    fn what_has_two_readings_is_refused_and_nothing_of_it_passes() {
        for (stream, refused) in [
            ("GET / HTTP/1.1\nHost: a\r\n\r\n", Refused::LineEnd),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n", Refused::LineEnd),
            ("\nGET / HTTP/1.1\r\n\r\n", Refused::LineEnd),
            ("GET /#/ HTTP/1.1\r\n\r\n", Refused::Target),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n", Refused::Framing),
            ("POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", Refused::Framing),
            ("POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", Refused::Framing),
            ("POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", Refused::Framing),
            ("POST / HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\n", Refused::Framing),
            ("POST / HTTP/1.1\r\nContent-Length:\r\n\r\n", Refused::Framing),
            ("POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", Refused::Framing),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", Refused::Framing),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", Refused::Framing),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: \x0bchunked\r\n\r\n", Refused::Framing),
        ] {
            assert_eq!(pass(stream.as_bytes(), &[stream.len()]), (Vec::new(), Some(refused)), "{stream:?}");
        }
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(MAX_HEADER_FIELDS + 1));
        assert_eq!(pass(many.as_bytes(), &[many.len()]).1, Some(Refused::TooLarge));
        let endless = "GET /".to_owned() + &"a".repeat(MAX_HEAD);
        assert_eq!(pass(endless.as_bytes(), &[1000]).1, Some(Refused::TooLarge));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_let_go_and_a_slow_one_is_served() {
        let (mut client, server) = tokio::io::duplex(8);
        let mut server = Guarded::new(server);
        let slow = async {
            for _ in 0..8 {
                tokio::time::sleep(TAKE_TIME / 2).await;
                client.read_exact(&mut [0; 8]).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(server.write_all(&[0; 64]), slow);
        written.unwrap();
        let begin = tokio::time::Instant::now();
        assert_eq!(server.write_all(&[0; 64]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(begin.elapsed().as_secs(), TAKE_TIME.as_secs());
    }

    #[test]
    fn malformed_chunks_end_the_stream() {
        for chunks in [
            "x\r\n",
            "5 \r\n",
            "\r\n",
            "1\r\nab\r\n",
            "1\r\na\n0\r\n",
            "1\na\r\n",
            "-1\r\n",
            "0x1\r\n",
            "0\r\nA: b\n",
            "1;\0\r\n",
            "1;\r;\r\n",
        ] {
            let stream = format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
            assert_eq!(pass(stream.as_bytes(), &[stream.len()]).1, Some(Refused::Chunk), "{chunks:?}");
        }
    }
}
