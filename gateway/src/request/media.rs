//! What kind of body a message says it has.

use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue};

/// Kinds of bodies that the gateway can look into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    /// One JSON value.
    Json,
    /// An XML document.
    Xml,
}

/// Types that speak of JSON and hold many values.
const SEQUENCES: [&str; 4] = ["ndjson", "jsonl", "json-seq", "stream+json"];
/// Encodings in which each byte of ASCII means itself and nothing else.
const CHARSETS: [&str; 4] = ["utf-8", "utf8", "us-ascii", "iso-8859-1"];

/// The kind of a body (reference: gateway behaviour 11: JSON is what has `json` in its type).
pub fn media(headers: &HeaderMap) -> Option<Media> {
    let text = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let essence = text.split(';').next().unwrap_or_default();
    let has =
        |word: &str| essence.as_bytes().windows(word.len()).any(|part| part.eq_ignore_ascii_case(word.as_bytes()));
    if has("json") {
        return (!SEQUENCES.into_iter().any(has)).then_some(Media::Json);
    }
    has("xml").then_some(Media::Xml)
}

/// Is this a name of an encoding that reads markup as UTF-8 does?
pub fn is_readable_charset(name: &str) -> bool {
    CHARSETS.iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// Whether type and encoding leave one way to read a body: one type, in UTF-8 or a part of it, not compressed.
pub fn has_one_reading(headers: &HeaderMap) -> bool {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let (first, second) = (types.next(), types.next());
    let charset = |value: &HeaderValue| {
        let parameters = value.to_str().unwrap_or_default().split(';').skip(1);
        let mut named = parameters.filter_map(|parameter| parameter.split_once('='));
        named.all(|(name, value)| {
            !name.trim().eq_ignore_ascii_case("charset") || is_readable_charset(value.trim().trim_matches('"'))
        })
    };
    second.is_none() && first.is_none_or(charset) && !is_compressed(headers)
}

/// Whether a body's bytes are not its content.
pub fn is_compressed(headers: &HeaderMap) -> bool {
    headers.get_all(CONTENT_ENCODING).iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn the_type_tells_the_kind() {
        let json = Some(Media::Json);
        for (text, kind) in [
            ("application/json", json),
            ("Application/JSON; charset=utf-8", json),
            ("application/problem+json", json),
            ("text/xml", Some(Media::Xml)),
            ("application/soap+xml; action=\"json\"", Some(Media::Xml)),
            ("application/x-www-form-urlencoded; a=json", None),
            ("application/x-ndjson", None),
            ("application/json-seq", None),
            ("text/plain", None),
            ("", None),
        ] {
            assert_eq!(media(&headers(&[("content-type", text)])), kind, "{text}");
        }
        assert_eq!(media(&HeaderMap::new()), None);
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_noticed() {
        let json = ("content-type", "application/json");
        for fine in
            [&[][..], &[json], &[("content-type", "text/xml; charset=\"UTF-8\"")], &[("content-encoding", "identity")]]
        {
            assert!(has_one_reading(&headers(fine)), "{fine:?}");
        }
        for bad in [
            &[json, ("content-type", "text/xml")][..],
            &[("content-type", "application/json; charset=utf-7")],
            &[("content-type", "application/json;a=b;charset=utf-16")],
            &[json, ("content-encoding", "gzip")],
        ] {
            assert!(!has_one_reading(&headers(bad)), "{bad:?}");
        }
    }
}
