//! JSON with one reading: no member twice, and not deeper than the gateway follows it.

use std::fmt;

use super::content::{Content, Member, Members};
use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};

/// Objects and arrays within each other, at the most.
const MAX_DEPTH: usize = 64;

/// Reads a body.
///
/// # Errors
/// When it is not JSON, has a member twice, or is nested too deeply; the text says where.
pub fn parse(body: &[u8]) -> Result<Content, serde_json::Error> {
    let mut source = serde_json::Deserializer::from_slice(body);
    let value = Strict { depth: 0 }.deserialize(&mut source)?;
    source.end()?;
    Ok(value)
}

/// A value this many levels down.
#[derive(Clone, Copy)]
struct Strict {
    depth: usize,
}

impl Strict {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth == MAX_DEPTH {
            return Err(E::custom(format_args!("nested more than {MAX_DEPTH} deep")));
        }
        Ok(Self { depth: self.depth + 1 })
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Content;

    fn deserialize<D: serde::Deserializer<'de>>(self, source: D) -> Result<Content, D::Error> {
        source.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Content;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Content, E> {
        Ok(Content::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Content, E> {
        Ok(Content::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Content, E> {
        Ok(Content::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Content, E> {
        Ok(Content::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Content, E> {
        serde_json::Number::from_f64(value).map(Content::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Content, E> {
        Ok(Content::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Content, E> {
        Ok(Content::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut source: A) -> Result<Content, A::Error> {
        let inner = self.deeper()?;
        let mut items = Vec::new();
        while let Some(item) = source.next_element_seed(inner)? {
            items.push(item);
        }
        Ok(Content::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut source: A) -> Result<Content, A::Error> {
        let inner = self.deeper()?;
        let mut members = Vec::new();
        while let Some(name) = source.next_key::<Box<str>>()? {
            members.push((name, Member::Value(source.next_value_seed(inner)?)));
        }
        let members: Members = members.into_iter().collect();
        match members.repeated() {
            Some(name) => Err(A::Error::custom(format_args!("the member `{name}` is there twice"))),
            None => Ok(Content::Object(members)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn what_has_two_readings_is_refused() {
        for (body, message) in [
            (&br#"{"a":1,"b":{"c":1,"c":2}}"#[..], "the member `c` is there twice at line 1 column 24"),
            (br#"{"a":1,"\u0061":2}"#, "twice"),
            (b"{} x", "trailing characters"),
            (b"", "EOF"),
            (b"{'a':1}", "line 1 column 2"),
            (b"\"\xff\"", "unicode"),
            (b"NaN", "expected value"),
            (b"1e400", "number out of range"),
            (b"[-1e400]", "number out of range"),
            (b"0x10", "trailing characters"),
            (b"01", "invalid number"),
            (br#""\ud800""#, "unexpected end of hex escape"),
            (br#"{"\ud800a":1}"#, "unexpected end of hex escape"),
            (br#"{"\udc00":1}"#, "lone"),
            (b"{\"a\0\":1}", "control character"),
            (b"{\"a\":1}\0", "trailing characters"),
            (b"\xef\xbb\xbf{}", "expected value"),
            (b"\xff\xfe{\0}\0", "expected value"),
            (b"\0{\0}", "expected value"),
            (b"{\"a\":1,}", "trailing comma"),
            (b"{\"a\":1}{\"a\":2}", "trailing characters"),
            (b"/**/{}", "expected value"),
        ] {
            let error = parse(body).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(nested(MAX_DEPTH).as_bytes()).is_ok());
        assert!(parse(nested(MAX_DEPTH + 1).as_bytes()).unwrap_err().to_string().contains("nested more than 64 deep"));
        assert!(parse(nested(1_000_000).as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn what_is_taken_reads_as_usual(text in r#"[\[\]{}:,"a1.\-e tru]{0,24}"#) {
            if let Ok(value) = parse(text.as_bytes()) {
                prop_assert!(value.is(&serde_json::from_str::<Value>(&text).unwrap()), "{:?}", value);
            }
        }
    }
}
