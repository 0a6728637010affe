//! Reads one HTTP/1.1 answer from whatever pieces it arrives in (RFC 9112).
//!
//! Bodies are counted and dropped, unless the expectation needs them or the status is a surprise worth showing.

use super::plan::Expectation;

const MAX_HEADERS: usize = 100;
const MAX_HEAD: usize = 64 << 10;
/// Kept of a body that is searched for a text.
const KEEP_ALL: usize = 16 << 20;
/// Kept of the body of an unexpected answer.
const KEEP_SOME: usize = 512;

/// A complete answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Bytes of body, without framing.
    pub(super) length: u64,
    /// The connection can't be used again.
    pub(super) closes: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Partial,
    Complete(Answer),
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("the answer's head is not HTTP/1: {0}")]
    Head(httparse::Error),
    #[error("the answer's head is longer than {MAX_HEAD} bytes")]
    LongHead,
    #[error("the answer's length is given twice or is not a number")]
    Length,
    #[error("the answer's chunks are not well formed")]
    Chunk,
    #[error("{0} bytes follow the answer")]
    Excess(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Head,
    /// This many bytes to come.
    Length(u64),
    Chunked(Chunk),
    UntilClose,
    Complete,
}

/// Where in a chunked body (RFC 9112 section 7.1) the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chunk {
    Size { value: u64, digits: u8 },
    Extension { value: u64 },
    Data(u64),
    DataEnd,
    Trailer { is_empty: bool },
}

pub(super) struct Reader {
    expected: Vec<u16>,
    keeps_all: bool,
    part: Part,
    /// A head that came in pieces.
    head: Vec<u8>,
    is_head_request: bool,
    status: u16,
    length: u64,
    closes: bool,
    keep: usize,
    kept: Vec<u8>,
}

impl Reader {
    pub(super) fn new(expect: &Expectation) -> Self {
        Self {
            expected: expect.statuses.clone(),
            keeps_all: expect.body_contains.is_some(),
            part: Part::Head,
            head: Vec::new(),
            is_head_request: false,
            status: 0,
            length: 0,
            closes: false,
            keep: 0,
            kept: Vec::new(),
        }
    }

    /// Forgets the last answer and waits for the next.
    pub(super) fn begin(&mut self, is_head_request: bool) {
        self.part = Part::Head;
        self.head.clear();
        self.kept.clear();
        self.is_head_request = is_head_request;
        self.length = 0;
    }

    /// Whether any byte of an answer came.
    pub(super) fn has_begun(&self) -> bool {
        self.part != Part::Head || !self.head.is_empty()
    }

    /// What was kept of the body.
    pub(super) fn kept(&self) -> &[u8] {
        &self.kept
    }

    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Progress, Malformed> {
        if self.part != Part::Head {
            return self.body(bytes);
        }
        if self.head.is_empty() {
            return match self.head(bytes)? {
                Some(rest) => self.body(&bytes[rest..]),
                None => self.wait_for_more(bytes),
            };
        }
        let mut head = std::mem::take(&mut self.head);
        head.extend_from_slice(bytes);
        match self.head(&head)? {
            Some(rest) => self.body(&head[rest..]),
            None => self.wait_for_more(&head),
        }
    }

    /// The connection ended: a complete answer only if that is how its body ends.
    pub(super) fn end(&mut self) -> Option<Answer> {
        (self.part == Part::UntilClose).then(|| self.complete())
    }

    fn wait_for_more(&mut self, head: &[u8]) -> Result<Progress, Malformed> {
        if head.len() > MAX_HEAD {
            return Err(Malformed::LongHead);
        }
        self.head.extend_from_slice(head);
        Ok(Progress::Partial)
    }

    /// Reads the head, past interim answers (1xx); where it ends, if it is all there.
    fn head(&mut self, bytes: &[u8]) -> Result<Option<usize>, Malformed> {
        let mut start = 0;
        loop {
            let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
            let mut response = httparse::Response::new(&mut headers);
            let length = match response.parse(&bytes[start..]).map_err(Malformed::Head)? {
                httparse::Status::Complete(length) => length,
                // Interim answers before it are read again with the rest: they are short and rare.
                httparse::Status::Partial => return Ok(None),
            };
            start += length;
            let status = response.code.unwrap_or(0);
            if (100..200).contains(&status) && status != 101 {
                continue;
            }
            self.status = status;
            self.framing(response.version == Some(0), response.headers)?;
            let is_surprise = !self.expected.is_empty() && !self.expected.contains(&status);
            self.keep = match (self.keeps_all, is_surprise) {
                (true, _) => KEEP_ALL,
                (false, true) => KEEP_SOME,
                (false, false) => 0,
            };
            return Ok(Some(start));
        }
    }

    /// How the body ends (RFC 9112 section 6.3), and whether the connection does.
    fn framing(&mut self, is_http_10: bool, headers: &[httparse::Header<'_>]) -> Result<(), Malformed> {
        let mut length = None;
        let mut is_chunked = false;
        self.closes = is_http_10;
        for header in headers {
            if header.name.eq_ignore_ascii_case("content-length") {
                let text = std::str::from_utf8(header.value).map_err(|_| Malformed::Length)?;
                let is_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
                let value = text.parse().ok().filter(|_| is_digits && length.is_none()).ok_or(Malformed::Length)?;
                length = Some(value);
            } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
                is_chunked = header.value.to_ascii_lowercase().ends_with(b"chunked");
            } else if header.name.eq_ignore_ascii_case("connection") {
                for option in header.value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                    if option.eq_ignore_ascii_case(b"close") {
                        self.closes = true;
                    } else if option.eq_ignore_ascii_case(b"keep-alive") && is_http_10 {
                        self.closes = false;
                    }
                }
            }
        }
        if is_chunked && length.is_some() {
            return Err(Malformed::Length);
        }
        let has_no_body = self.is_head_request || matches!(self.status, 101 | 204 | 304);
        self.part = match length {
            _ if has_no_body => Part::Length(0),
            _ if is_chunked => Part::Chunked(Chunk::Size { value: 0, digits: 0 }),
            Some(length) => Part::Length(length),
            None => {
                self.closes = true;
                Part::UntilClose
            }
        };
        Ok(())
    }

    fn body(&mut self, mut bytes: &[u8]) -> Result<Progress, Malformed> {
        loop {
            match self.part {
                Part::Length(0) => {
                    if !bytes.is_empty() {
                        return Err(Malformed::Excess(bytes.len()));
                    }
                    return Ok(Progress::Complete(self.complete()));
                }
                _ if bytes.is_empty() => return Ok(Progress::Partial),
                Part::Length(remaining) => {
                    let (data, rest) = split(bytes, remaining);
                    self.data(data);
                    self.part = Part::Length(remaining - data.len() as u64);
                    bytes = rest;
                }
                Part::UntilClose => {
                    self.data(bytes);
                    return Ok(Progress::Partial);
                }
                Part::Chunked(Chunk::Data(remaining)) => {
                    let (data, rest) = split(bytes, remaining);
                    self.data(data);
                    let remaining = remaining - data.len() as u64;
                    self.part = Part::Chunked(if remaining == 0 { Chunk::DataEnd } else { Chunk::Data(remaining) });
                    bytes = rest;
                }
                Part::Chunked(chunk) => {
                    self.part = match chunk.after(bytes[0])? {
                        Some(chunk) => Part::Chunked(chunk),
                        None => Part::Length(0),
                    };
                    bytes = &bytes[1..];
                }
                Part::Head | Part::Complete => return Err(Malformed::Excess(bytes.len())),
            }
        }
    }

    fn data(&mut self, data: &[u8]) {
        self.length += data.len() as u64;
        let room = self.keep.saturating_sub(self.kept.len());
        self.kept.extend_from_slice(&data[..data.len().min(room)]);
    }

    fn complete(&mut self) -> Answer {
        self.part = Part::Complete;
        Answer { status: self.status, length: self.length, closes: self.closes }
    }
}

impl Chunk {
    /// Where the byte after `byte` stands; `None` when that was the last of the body.
    fn after(self, byte: u8) -> Result<Option<Self>, Malformed> {
        let next = match self {
            Self::Size { value, digits } => match (byte, char::from(byte).to_digit(16)) {
                (_, Some(digit)) if digits < 15 => {
                    Self::Size { value: value << 4 | u64::from(digit), digits: digits + 1 }
                }
                (b'\r' | b';' | b' ' | b'\t', _) if digits > 0 => Self::Extension { value },
                _ => return Err(Malformed::Chunk),
            },
            Self::Extension { value } => match byte {
                b'\n' if value == 0 => Self::Trailer { is_empty: true },
                b'\n' => Self::Data(value),
                _ => self,
            },
            Self::DataEnd => match byte {
                b'\r' => self,
                b'\n' => Self::Size { value: 0, digits: 0 },
                _ => return Err(Malformed::Chunk),
            },
            Self::Trailer { is_empty } => match byte {
                b'\n' if is_empty => return Ok(None),
                b'\n' => Self::Trailer { is_empty: true },
                b'\r' => self,
                _ => Self::Trailer { is_empty: false },
            },
            Self::Data(_) => return Err(Malformed::Chunk),
        };
        Ok(Some(next))
    }
}

fn split(bytes: &[u8], at: u64) -> (&[u8], &[u8]) {
    bytes.split_at(usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_in_pieces(answer: &[u8], size: usize) -> Result<(Option<Answer>, Vec<u8>), Malformed> {
        let expect = Expectation { body_contains: Some(String::new()), ..Expectation::default() };
        let mut reader = Reader::new(&expect);
        reader.begin(false);
        let mut pieces = answer.chunks(size).peekable();
        while let Some(piece) = pieces.next() {
            if let Progress::Complete(answer) = reader.push(piece)? {
                assert!(pieces.peek().is_none(), "complete before its end");
                return Ok((Some(answer), reader.kept().to_vec()));
            }
        }
        Ok((reader.end(), reader.kept().to_vec()))
    }

    #[track_caller]
    fn check(text: &str, expected: Option<(u16, bool, &str)>) {
        for size in 1..=text.len() {
            let (answer, body) = read_in_pieces(text.as_bytes(), size).expect("well formed");
            let found = answer.map(|answer| (answer.status, answer.closes, answer.length));
            assert_eq!(found, expected.map(|(status, closes, body)| (status, closes, body.len() as u64)), "{size}");
            if let Some((.., expected)) = expected {
                assert_eq!(body, expected.as_bytes(), "in pieces of {size}");
            }
        }
    }

    #[test]
    fn every_framing_is_read_from_pieces_of_any_size() {
        check("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", Some((200, false, "hello")));
        check("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", Some((200, true, "")));
        check("HTTP/1.1 204 No Content\r\n\r\n", Some((204, false, "")));
        check("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", Some((200, true, "hi")));
        check("HTTP/1.1 200 OK\r\n\r\nuntil the end", Some((200, true, "until the end")));
        check(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nA;x=y\r\n, chunked!\r\n0\r\nT: 1\r\n\r\n",
            Some((200, false, "hello, chunked!")),
        );
        check(
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 1\r\n\r\nx",
            Some((201, false, "x")),
        );
    }

    #[test]
    fn an_answer_that_is_cut_off_is_not_complete() {
        check("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell", None);
        check("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n", None);
        check("HTTP/1.1 200 O", None);
    }

    #[test]
    fn what_is_not_one_answer_is_refused() {
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
            "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nhi",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
            "220 mail.example ESMTP\r\n",
        ] {
            assert!(read_in_pieces(text.as_bytes(), text.len()).is_err(), "{text}");
        }
    }

    #[test]
    fn an_answer_to_head_has_no_body() {
        let mut reader = Reader::new(&Expectation::default());
        reader.begin(true);
        let progress = reader.push(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n").expect("well formed");
        assert_eq!(progress, Progress::Complete(Answer { status: 200, length: 0, closes: false }));
    }
}
