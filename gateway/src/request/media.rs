//! What kind of body a message says it has.

use std::str::FromStr;

use http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue};
use mime::Mime;

/// Kinds of bodies that the gateway can look into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    /// One JSON value.
    Json,
    /// An XML document.
    Xml,
}

/// A body that has one reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readable {
    /// Its kind.
    pub media: Media,
    /// Whether it must not have more than ASCII.
    pub is_ascii: bool,
}

/// Why a body can't be read, or could be read in two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Not of one type, or of one that is neither.
    #[error("it needs one Content-Type, of JSON or XML")]
    Type,
    /// In another encoding of characters.
    #[error("its charset must be utf-8 or us-ascii")]
    Charset,
    /// Its bytes are not its content.
    #[error("it must not have a Content-Encoding")]
    Compressed,
}

/// A few servers look for these anywhere in the field.
const FORMS: [&str; 2] = ["multipart/", "x-www-form-urlencoded"];

/// The kind of a body whose type is JSON or XML.
pub fn media(headers: &HeaderMap) -> Option<Media> {
    media_of(&one_type(headers)?)
}

/// The kind of a body that everybody reads alike: one type, in UTF-8 or a part of it, not compressed.
///
/// # Errors
/// Why it may be read otherwise.
pub fn readable(headers: &HeaderMap) -> Result<Readable, Unreadable> {
    let kind = one_type(headers).ok_or(Unreadable::Type)?;
    let media = media_of(&kind).ok_or(Unreadable::Type)?;
    let text = kind.as_ref().to_ascii_lowercase();
    // What is quoted with escapes, or is nothing, is read in more than one way.
    let is_odd = |(_, value): (_, mime::Name<'_>)| value.as_str().is_empty() || value.as_str().contains(['"', '\\']);
    if FORMS.iter().any(|form| text.contains(form))
        || kind.params().any(is_odd)
        || kind.get_param(mime::BOUNDARY).is_some()
    {
        return Err(Unreadable::Type);
    }
    if is_compressed(headers) {
        return Err(Unreadable::Compressed);
    }
    let mut charsets = kind.params().filter(|(name, _)| *name == mime::CHARSET).map(|(_, charset)| charset);
    let is_ascii = match (charsets.next(), charsets.next()) {
        (None, _) => false,
        (Some(charset), None) if is_readable_charset(charset.as_str()) => charset == "us-ascii",
        _ => return Err(Unreadable::Charset),
    };
    Ok(Readable { media, is_ascii })
}

/// Whether text in it is UTF-8: that or a part of it.
pub fn is_readable_charset(name: &str) -> bool {
    ["utf-8", "utf8", "us-ascii"].iter().any(|readable| readable.eq_ignore_ascii_case(name))
}

/// Whether a body's bytes are not its content.
pub fn is_compressed(headers: &HeaderMap) -> bool {
    headers.get_all(CONTENT_ENCODING).iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// Whether nobody on the way may change the body (RFC 9111 5.2.1.6 and 5.2.2.6).
pub fn forbids_changes(headers: &HeaderMap) -> bool {
    let lists = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    lists.flat_map(|list| list.split(',')).any(|word| word.trim().eq_ignore_ascii_case("no-transform"))
}

/// The type, where there is exactly one and it is well-formed (RFC 9110 8.3).
fn one_type(headers: &HeaderMap) -> Option<Mime> {
    let mut types = headers.get_all(CONTENT_TYPE).iter().map(HeaderValue::to_str);
    let (Some(Ok(text)), None) = (types.next(), types.next()) else { return None };
    // The library takes no white space there; it is allowed (RFC 9110 5.6.6).
    match text.split_once(';') {
        Some((essence, parameters)) if essence.ends_with([' ', '\t']) => {
            Mime::from_str(&format!("{};{parameters}", essence.trim_end_matches([' ', '\t']))).ok()
        }
        _ => Mime::from_str(text).ok(),
    }
}

fn media_of(kind: &Mime) -> Option<Media> {
    match (kind.essence_str(), kind.suffix().map(|suffix| suffix.as_str())) {
        // Holds many values.
        ("application/stream+json", _) => None,
        ("application/json" | "text/json", _) | (_, Some("json")) => Some(Media::Json),
        ("application/xml" | "text/xml", _) | (_, Some("xml")) => Some(Media::Xml),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::Unreadable::{Charset, Compressed, Type};
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
        let (json, xml) = (Some(Media::Json), Some(Media::Xml));
        for (text, kind) in [
            ("application/json", json),
            ("Application/JSON; charset=utf-8", json),
            ("application/json;", json),
            ("application/json \t; charset=utf-8", json),
            ("text/json", json),
            ("application/problem+json", json),
            ("application/vnd.a.b-v1+json; profile=\"http://a.example/b c\"", json),
            ("text/xml", xml),
            ("application/soap+xml; action=\"json\"", xml),
            ("application/json+xml", xml),
            ("application/x-www-form-urlencoded; a=json", None),
            ("application/x-www-form-urlencoded, application/json", None),
            ("application/json, application/x-www-form-urlencoded", None),
            ("application/json application/x-www-form-urlencoded", None),
            ("application/json/xml", None),
            ("application/jsonx", None),
            ("application/x-json", None),
            ("application/+json", None),
            ("json", None),
            ("text/plain+json;;", None),
            ("application/json; charset", None),
            ("application/json; a=b c=d", None),
            ("application/json; \u{e4}=b", None),
            ("application/x-ndjson", None),
            ("application/json-seq", None),
            ("application/stream+json", None),
            ("application/xml-dtd", None),
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
        for (fine, is_ascii) in [
            (&[json][..], false),
            (&[("content-type", "text/xml; charset=\"UTF-8\"")], false),
            (&[("content-type", "text/xml; charset=UTF8; action=\"a\"")], false),
            (&[("content-type", "application/json; charset=us-ascii")], true),
            (&[json, ("content-encoding", "identity")], false),
        ] {
            assert_eq!(readable(&headers(fine)).map(|readable| readable.is_ascii), Ok(is_ascii), "{fine:?}");
        }
        for (bad, why) in [
            (&[][..], Type),
            (&[json, json], Type),
            (&[json, ("content-type", "text/xml")], Type),
            (&[("content-type", "application/json; boundary=x")], Type),
            (&[("content-type", "application/json; a=\"multipart/form-data\"")], Type),
            (&[("content-type", "multipart/x+json")], Type),
            (&[("content-type", "application/x-www-form-urlencoded+json")], Type),
            (&[("content-type", "application/json; a=\"\"; charset=utf-16;b=\"")], Type),
            (&[("content-type", "application/json; a=\"\\\"; charset=utf-16; b=\"")], Type),
            (&[("content-type", "application/json; charset=")], Type),
            (&[("content-type", "application/json; charset=utf-7")], Charset),
            (&[("content-type", "application/json; charset=utf-16")], Charset),
            (&[("content-type", "application/json; charset=iso-8859-1")], Charset),
            (&[("content-type", "application/json; charset=utf-8; charset=utf-16")], Charset),
            (&[("content-type", "application/json;a=b;charset=utf-16")], Charset),
            (&[json, ("content-encoding", "gzip")], Compressed),
            (&[json, ("content-encoding", "identity, gzip")], Compressed),
            (&[json, ("content-encoding", "identity"), ("content-encoding", "br")], Compressed),
            (&[json, ("content-encoding", "")], Compressed),
        ] {
            assert_eq!(readable(&headers(bad)), Err(why), "{bad:?}");
        }
    }
}
