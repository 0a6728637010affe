//! Values of client headers as upstreams get them (reference: gateway behaviour 10.1).
//!
//! In: what a client sent under a name that passes. Out: the same without anything shaped like an HTML tag, and no longer
//! than [`MOST`]. CR, LF and NUL need no care: a value that has them is not read at all.

use std::borrow::Cow;

use http::HeaderValue;
use memchr::memchr;

/// Characters of a value. In one that is not UTF-8 each byte is a character.
pub const MOST: usize = 8_192;

/// The value to send; a copy only if something is taken away.
pub fn forwarded(value: &HeaderValue) -> HeaderValue {
    let bytes = value.as_bytes();
    let is_tagged = memchr(b'<', bytes).is_some();
    if bytes.len() <= MOST && !is_tagged {
        return value.clone();
    }
    let untagged = if is_tagged { without_tags(bytes) } else { Cow::Borrowed(bytes) };
    let kept = cut(&untagged);
    if kept.len() == bytes.len() {
        return value.clone();
    }
    // White space around a value is no part of it (RFC 9110 5.5), and none may be there in HTTP/2.
    let mut kept = HeaderValue::from_bytes(kept.trim_ascii()).unwrap_or_else(|_| HeaderValue::from_static(""));
    kept.set_sensitive(value.is_sensitive());
    kept
}

/// Takes away each `<` up to the next `>`, unless there is nothing between them.
fn without_tags(bytes: &[u8]) -> Cow<'_, [u8]> {
    let (mut kept, mut rest) = (Cow::Borrowed(&bytes[..0]), bytes);
    while let Some(open) = memchr(b'<', rest)
        && let Some(length) = memchr(b'>', &rest[open..])
    {
        let (before, after) = (if length == 1 { open + 2 } else { open }, open + length + 1);
        kept.to_mut().extend_from_slice(&rest[..before]);
        rest = &rest[after..];
    }
    if rest.len() == bytes.len() {
        return Cow::Borrowed(bytes);
    }
    kept.to_mut().extend_from_slice(rest);
    kept
}

fn cut(bytes: &[u8]) -> &[u8] {
    if bytes.len() <= MOST {
        return bytes;
    }
    let end = match str::from_utf8(bytes) {
        Ok(text) => text.char_indices().nth(MOST).map_or(bytes.len(), |(end, _)| end),
        Err(_) => MOST,
    };
    &bytes[..end]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sent(bytes: &[u8]) -> Vec<u8> {
        forwarded(&HeaderValue::from_bytes(bytes).unwrap()).as_bytes().to_vec()
    }

    #[test]
    fn what_is_shaped_like_a_tag_is_taken_away() {
        for (value, kept) in [
            ("plain", "plain"),
            ("", ""),
            ("<script src=x>alert(1)</script>", "alert(1)"),
            ("a<b>c", "ac"),
            ("a <b> ", "a"),
            ("<b>", ""),
            ("1 < 2, 3 > 2", "1  2"),
            ("1 < 2", "1 < 2"),
            ("2 > 1 < 3", "2 > 1 < 3"),
            ("<>", "<>"),
            ("<><b>", "<>"),
            ("<<b>script>", "script>"),
            ("<scr<b>ipt>", "ipt>"),
            ("</ caf\u{e9}>caf\u{e9}", "caf\u{e9}"),
            ("<b", "<b"),
            ("<http://a.example/?page=2>; rel=\"next\"", "; rel=\"next\""),
        ] {
            assert_eq!(String::from_utf8(sent(value.as_bytes())).unwrap(), kept, "{value}");
        }
        assert_eq!(sent(b"\xff<\xfe>\xfd"), b"\xff\xfd");
    }

    #[test]
    fn a_long_value_is_cut_between_characters_after_its_tags_are_gone() {
        let of = |unit: &str, number: usize| unit.repeat(number).into_bytes();
        for unit in ["a", "\u{e9}", "\u{20ac}", "\u{1f600}"] {
            assert_eq!(sent(&of(unit, MOST)), of(unit, MOST), "{unit}");
            assert_eq!(sent(&of(unit, MOST + 1)), of(unit, MOST), "{unit}");
        }
        assert_eq!(sent(&[0xe9; MOST + 1]), [0xe9; MOST], "not UTF-8");
        let tagged = format!("<{}>{}", "x".repeat(MOST), "a".repeat(MOST));
        assert_eq!(sent(tagged.as_bytes()), of("a", MOST));
        let mut spaced = of("a", MOST - 1);
        spaced.extend(b" b");
        assert_eq!(sent(&spaced), of("a", MOST - 1));
    }

    #[test]
    fn a_value_stays_as_secret_as_it_was() {
        let mut value = HeaderValue::from_static("<b>secret");
        assert!(!forwarded(&value).is_sensitive());
        value.set_sensitive(true);
        assert!(forwarded(&value).is_sensitive());
    }

    proptest! {
        #[test]
        fn nothing_that_is_left_is_taken_away_the_next_time(value in "[<>a\u{e9} ]{0,40}") {
            let once = sent(value.as_bytes());
            let text = String::from_utf8(once.clone()).unwrap();
            prop_assert!(!regex::Regex::new("<[^>]+>").unwrap().is_match(&text), "{text}");
            prop_assert_eq!(sent(&once), once);
        }
    }
}
