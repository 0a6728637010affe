//! The strict parse of a request: one reading, on which everything decides and from which everything is forwarded.
//!
//! In: method, URI and headers as the HTTP library read them. Out: a [`Target`] with decoded path segments, or
//! [`Refused`]. What could be read in two ways is refused, never repaired (RFC 9110 4.2.4, RFC 9112 3).

use std::borrow::Cow;
use std::net::Ipv6Addr;

use http::header::{CONNECTION, HOST, UPGRADE};
use http::request::Parts;
use http::uri::Scheme;
use http::{HeaderMap, StatusCode, Uri, Version};
use smallvec::SmallVec;

pub mod forwarded;
pub mod media;

/// Largest sum of header name and value lengths, in bytes.
pub const MAX_HEADER_BYTES: usize = 16 * 1024;
/// Most header fields of one request.
pub const MAX_HEADER_FIELDS: usize = 100;

/// Decoded path segments, empty ones left out.
pub type Segments<'a> = SmallVec<[Cow<'a, str>; 12]>;

/// Why a request has no single reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The path holds an encoded delimiter, a dot segment, or bytes that are no UTF-8.
    #[error("The path is ambiguous: encoded / \\ NUL ; #, dot segments and invalid UTF-8 are refused")]
    Path,
    /// No `Host`, more than one, or one that disagrees with the request target.
    #[error("Exactly one valid Host is needed")]
    Host,
    /// The target is a URL, and not one of `http` or `https`.
    #[error("Only http and https URLs are served")]
    Scheme,
    /// More or longer header fields than are read.
    #[error("Too many or too large header fields")]
    Headers,
}

impl Refused {
    /// The status to refuse with.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Path | Self::Host | Self::Scheme => StatusCode::BAD_REQUEST,
            Self::Headers => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        }
    }
}

/// Parses the path of a request into decoded segments.
///
/// # Errors
/// [`Refused::Path`] when the path has more than one reading.
pub fn segments(path: &str) -> Result<Segments<'_>, Refused> {
    let mut segments = Segments::new();
    for raw in path.split('/').filter(|raw| !raw.is_empty()) {
        let segment = decode(raw)?;
        // Some servers cut off what follows `;` before they resolve dot segments: to them `..;x` is `..`.
        if matches!(segment.split(';').next(), Some("." | "..")) {
            return Err(Refused::Path);
        }
        segments.push(segment);
    }
    Ok(segments)
}

fn decode(raw: &str) -> Result<Cow<'_, str>, Refused> {
    if raw.bytes().any(|byte| matches!(byte, b'\\' | b'#' | b'?') || byte <= b' ' || byte == 0x7f) {
        return Err(Refused::Path);
    }
    if !raw.contains('%') {
        return Ok(Cow::Borrowed(raw));
    }
    let bytes = raw.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] != b'%' {
            decoded.push(bytes[at]);
            at += 1;
            continue;
        }
        let hex = |offset: usize| bytes.get(at + offset).and_then(|b| char::from(*b).to_digit(16));
        let (Some(high), Some(low)) = (hex(1), hex(2)) else { return Err(Refused::Path) };
        let byte = u8::try_from(high * 16 + low).map_err(|_| Refused::Path)?;
        if matches!(byte, b'/' | b'\\' | 0 | b';' | b'#') || byte.is_ascii_control() {
            return Err(Refused::Path);
        }
        decoded.push(byte);
        at += 3;
    }
    String::from_utf8(decoded).map(Cow::Owned).map_err(|_| Refused::Path)
}

/// Whether the request is the opening handshake of WebSocket (RFC 6455 4.2.1). Any other `Upgrade` is an offer that is
/// not taken up (RFC 9110 7.8).
pub fn asks_for_websocket(parts: &Parts) -> bool {
    let names = |header, wanted: &str| {
        let values = parts.headers.get_all(header).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|list| list.split(',')).any(|name| name.trim().eq_ignore_ascii_case(wanted))
    };
    parts.version < Version::HTTP_2 && names(UPGRADE, "websocket") && names(CONNECTION, "upgrade")
}

/// Appends a segment to a path for the upstream, percent-encoding what RFC 3986 does not allow in a segment.
pub fn push_segment(path: &mut String, segment: &str) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    path.push('/');
    for byte in segment.bytes() {
        let plain = byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&byte);
        if plain {
            path.push(char::from(byte));
        } else {
            path.push('%');
            path.push(char::from(HEX[usize::from(byte >> 4)]));
            path.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

/// Checks scheme, host and header bounds.
///
/// # Errors
/// [`Refused::Scheme`], [`Refused::Host`] or [`Refused::Headers`].
pub fn check(version: Version, uri: &Uri, headers: &HeaderMap) -> Result<(), Refused> {
    if headers.len() > MAX_HEADER_FIELDS {
        return Err(Refused::Headers);
    }
    let size: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if size > MAX_HEADER_BYTES {
        return Err(Refused::Headers);
    }
    if uri.scheme().is_some_and(|scheme| ![Scheme::HTTP, Scheme::HTTPS].contains(scheme)) {
        return Err(Refused::Scheme);
    }
    let mut hosts = headers.get_all(HOST).iter();
    let host = match (uri.authority().map(|authority| authority.as_str().as_bytes()), hosts.next(), hosts.next()) {
        (None, Some(host), None) => host.as_bytes(),
        // Probes of load balancers often are of this version and name none.
        (None, None, None) if version == Version::HTTP_10 => return Ok(()),
        // HTTP/1.1 says it in a field, whatever else says it (RFC 9112 3.2).
        (Some(authority), None, None) if version != Version::HTTP_11 => authority,
        (Some(authority), Some(host), None) if authority.eq_ignore_ascii_case(host.as_bytes()) => authority,
        _ => return Err(Refused::Host),
    };
    valid_host(host).then_some(()).ok_or(Refused::Host)
}

fn valid_host(host: &[u8]) -> bool {
    let is_port = |port: &[u8]| match port.split_first() {
        None => true,
        Some((colon, digits)) => *colon == b':' && digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
    };
    if let Some(literal) = host.strip_prefix(b"[") {
        let end = literal.iter().position(|byte| *byte == b']').unwrap_or_default();
        let address = std::str::from_utf8(&literal[..end]).ok().and_then(|text| text.parse::<Ipv6Addr>().ok());
        return address.is_some() && is_port(&literal[end + 1..]);
    }
    let usual = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let (name, port) = host.split_at(host.iter().position(|byte| *byte == b':').unwrap_or(host.len()));
    !name.is_empty() && name.iter().all(usual) && is_port(port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn empty_segments_disappear_and_escapes_are_decoded_once() {
        let parsed = segments("//a/v1///b%20c/%25/").unwrap();
        assert_eq!(parsed.as_slice(), ["a", "v1", "b c", "%"]);
    }

    #[test]
    fn paths_with_two_readings_are_refused() {
        for path in [
            "/a/%2f",
            "/a/%2F",
            "/a/%5c",
            "/a/\\b",
            "/a/%00",
            "/a/%3b",
            "/a/%23",
            "/a/..",
            "/a/..;/b",
            "/a/.;x=y/b",
            "/a/%2e.;",
            "/a/%2e%2e/b",
            "/a/.",
            "/a/%2e",
            "/a/%",
            "/a/%4",
            "/a/%zz",
            "/a/%ff",
            "/a/%0d%0a",
        ] {
            assert_eq!(segments(path), Err(Refused::Path), "{path}");
        }
    }

    #[test]
    fn host_must_be_one_and_valid() {
        let uri: Uri = "/x".parse().unwrap();
        let with = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(HOST, value.parse().unwrap());
            }
            check(Version::HTTP_11, &uri, &headers)
        };
        for good in ["a", "a.b:80", "127.0.0.1:5001", "[::1]:80", "_x.y"] {
            assert_eq!(with(&[good]), Ok(()), "{good}");
        }
        for bad in [
            &[][..],
            &["a", "a"],
            &["a b"],
            &["a/b"],
            &["a@b"],
            &["a:b"],
            &[""],
            &[":80"],
            &["[::1"],
            &["a,b"],
            &["[]"],
            &["[::g]"],
            &["[::1]x"],
        ] {
            assert_eq!(with(bad), Err(Refused::Host), "{bad:?}");
        }
    }

    #[test]
    fn target_and_host_must_agree() {
        let uri: Uri = "http://a/x".parse().unwrap();
        let mut headers = HeaderMap::new();
        assert_eq!(check(Version::HTTP_11, &uri, &headers), Err(Refused::Host));
        assert_eq!(check(Version::HTTP_2, &uri, &headers), Ok(()));
        headers.insert(HOST, "A".parse().unwrap());
        assert_eq!(check(Version::HTTP_11, &uri, &headers), Ok(()));
        headers.insert(HOST, "b".parse().unwrap());
        assert_eq!(check(Version::HTTP_11, &uri, &headers), Err(Refused::Host));
    }

    #[test]
    fn header_bounds_hold() {
        let uri: Uri = "/".parse().unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(HOST, "a".parse().unwrap());
        headers.insert("x", "v".repeat(MAX_HEADER_BYTES).parse().unwrap());
        assert_eq!(check(Version::HTTP_11, &uri, &headers), Err(Refused::Headers));
    }

    proptest! {
        #[test]
        fn what_is_forwarded_reads_back_as_what_was_decided_on(path in "(/[ -~]{0,8}){0,5}") {
            if let Ok(parsed) = segments(&path) {
                let mut forwarded = String::new();
                parsed.iter().for_each(|segment| push_segment(&mut forwarded, segment));
                // `;` is refused when encoded but passes as it is; encoding leaves it alone.
                let again: Vec<String> = segments(&forwarded).unwrap().iter().map(ToString::to_string).collect();
                let once: Vec<String> = parsed.iter().map(ToString::to_string).collect();
                prop_assert_eq!(again, once);
            }
        }
    }
}
