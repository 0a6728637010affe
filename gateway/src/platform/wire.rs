//! Members of bodies and queries, as leniently as clients rely on (reference: platform API 1.2): numbers may come as text
//! and the other way round, fractions lose what is behind the point. The schemas say the same.

use std::fmt;

use mongodb::bson::Bson;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, Visitor},
};
use serde_json::{Value, json};
use utoipa::{PartialSchema, ToSchema, openapi::RefOr, openapi::schema::Schema};

/// A schema from its JSON form.
pub(super) fn schema(form: &Value) -> RefOr<Schema> {
    // A form that is none would show in the tests of the document, not to clients.
    serde_json::from_value(form.clone()).map_or_else(|_| Schema::default().into(), RefOr::T)
}

/// Text of a bounded number of characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Text<const MIN: usize, const MAX: usize>(pub(super) String);

/// A whole number, no smaller than `MIN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Int<const MIN: i64>(pub(super) i64);

/// Yes or no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flag(pub(super) bool);

/// Text of any length.
pub(super) type AnyText = Text<0, { usize::MAX }>;

/// What a value may come as.
enum Given {
    Text(String),
    Whole(i64),
    Fraction(f64),
    Flag(bool),
}

impl<'de> Deserialize<'de> for Given {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        struct Any;
        impl Visitor<'_> for Any {
            type Value = Given;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("text, a number, true or false")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Given, E> {
                Ok(Given::Flag(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Given, E> {
                Ok(Given::Whole(value))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Given, E> {
                i64::try_from(value).map(Given::Whole).map_err(E::custom)
            }

            fn visit_f64<E>(self, value: f64) -> Result<Given, E> {
                Ok(Given::Fraction(value))
            }

            fn visit_str<E>(self, value: &str) -> Result<Given, E> {
                Ok(Given::Text(value.to_owned()))
            }
        }
        source.deserialize_any(Any)
    }
}

impl<'de, const MIN: usize, const MAX: usize> Deserialize<'de> for Text<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        let text = match Given::deserialize(source)? {
            Given::Text(text) => text,
            Given::Whole(number) => number.to_string(),
            Given::Fraction(number) => number.to_string(),
            Given::Flag(flag) => flag.to_string(),
        };
        // The stores keep no NUL in names.
        if text.contains('\0') {
            return Err(de::Error::custom("has a NUL character"));
        }
        let length = text.chars().count();
        if (MIN..=MAX).contains(&length) {
            Ok(Self(text))
        } else {
            Err(de::Error::custom(format_args!("must have {MIN} to {MAX} characters")))
        }
    }
}

fn whole(given: Given) -> Option<i64> {
    // Beyond this a float no longer names one whole number.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let truncated = |number: f64| (number.abs() <= EXACT).then_some(number.trunc() as i64);
    match given {
        Given::Whole(number) => Some(number),
        Given::Fraction(number) => truncated(number),
        Given::Flag(flag) => Some(flag.into()),
        Given::Text(text) => {
            let text = text.trim();
            text.parse().ok().or_else(|| truncated(text.parse().ok().filter(|number: &f64| number.fract() == 0.0)?))
        }
    }
}

impl<'de, const MIN: i64> Deserialize<'de> for Int<MIN> {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        let number = whole(Given::deserialize(source)?).ok_or_else(|| de::Error::custom("must be a whole number"))?;
        if number >= MIN { Ok(Self(number)) } else { Err(de::Error::custom(format_args!("must be {MIN} or more"))) }
    }
}

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        const YES: [&str; 6] = ["true", "t", "yes", "y", "on", "1"];
        const NO: [&str; 6] = ["false", "f", "no", "n", "off", "0"];
        let flag = match Given::deserialize(source)? {
            Given::Flag(flag) => Some(flag),
            Given::Whole(0) => Some(false),
            Given::Whole(1) => Some(true),
            Given::Fraction(number) if number.to_bits() == 0.0_f64.to_bits() => Some(false),
            Given::Fraction(number) if number.to_bits() == 1.0_f64.to_bits() => Some(true),
            Given::Whole(_) | Given::Fraction(_) => None,
            Given::Text(text) => {
                let is_one = |words: [&str; 6]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
                if is_one(YES) { Some(true) } else { is_one(NO).then_some(false) }
            }
        };
        flag.map(Self).ok_or_else(|| de::Error::custom("must be true or false"))
    }
}

impl<const MIN: usize, const MAX: usize> Serialize for Text<MIN, MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<const MIN: i64> Serialize for Int<MIN> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl Serialize for Flag {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<const MIN: usize, const MAX: usize> PartialSchema for Text<MIN, MAX> {
    fn schema() -> RefOr<Schema> {
        let mut text = json!({ "type": "string", "minLength": MIN });
        if MAX < usize::MAX {
            text["maxLength"] = MAX.into();
        }
        schema(&json!({ "anyOf": [text, { "type": "number" }, { "type": "boolean" }] }))
    }
}

impl<const MIN: usize, const MAX: usize> ToSchema for Text<MIN, MAX> {
    fn name() -> std::borrow::Cow<'static, str> {
        if MAX == usize::MAX { format!("TextFrom{MIN}").into() } else { format!("Text{MIN}To{MAX}").into() }
    }
}

impl<const MIN: i64> PartialSchema for Int<MIN> {
    fn schema() -> RefOr<Schema> {
        let mut number = json!({ "type": "number" });
        if MIN > i64::MIN {
            number["minimum"] = MIN.into();
        }
        schema(&json!({ "anyOf": [number, { "type": "string", "pattern": "^\\s*-?[0-9]+" }, { "type": "boolean" }] }))
    }
}

impl<const MIN: i64> ToSchema for Int<MIN> {
    fn name() -> std::borrow::Cow<'static, str> {
        if MIN == i64::MIN { "Int".into() } else { format!("IntFrom{MIN}").into() }
    }
}

impl PartialSchema for Flag {
    fn schema() -> RefOr<Schema> {
        let words =
            "^([Tt]([Rr][Uu][Ee])?|[Ff]([Aa][Ll][Ss][Ee])?|[Yy]([Ee][Ss])?|[Nn][Oo]?|[Oo][Nn]|[Oo][Ff][Ff]|0|1)$";
        let number = json!({ "type": "number", "enum": [0, 1] });
        schema(&json!({ "anyOf": [{ "type": "boolean" }, { "type": "string", "pattern": words }, number] }))
    }
}

impl ToSchema for Flag {}

/// The members that were given, to be set on a stored document; null never clears anything.
pub(super) fn given(update: &impl Serialize) -> mongodb::bson::Document {
    let document = mongodb::bson::serialize_to_document(update).unwrap_or_else(|error| {
        tracing::error!(%error, "an update has no stored form");
        mongodb::bson::Document::new()
    });
    document.into_iter().filter(|(_, value)| *value != Bson::Null).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: de::DeserializeOwned>(text: &str) -> Option<T> {
        serde_json::from_str(text).ok()
    }

    #[test]
    fn numbers_come_as_clients_send_them() {
        let read = |text| read::<Int<0>>(text).map(|number| number.0);
        for (text, number) in
            [("7", 7), ("0.1", 0), ("7.9", 7), ("\"5\"", 5), ("\" 5 \"", 5), ("\"5.0\"", 5), ("true", 1), ("false", 0)]
        {
            assert_eq!(read(text), Some(number), "{text}");
        }
        for text in ["-1", "\"x\"", "\"\"", "null", "[]", "{}", "1e300", "\"5.5\"", "99999999999999999999"] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(serde_json::from_str::<Int<{ i64::MIN }>>("-0.5").unwrap().0, 0);
    }

    #[test]
    fn text_is_counted_in_characters() {
        let read = |text| read::<Text<3, 5>>(text).map(|text| text.0);
        assert_eq!(read("\"äöü\"").as_deref(), Some("äöü"));
        assert_eq!(read("123").as_deref(), Some("123"));
        assert_eq!(read("true").as_deref(), Some("true"));
        for text in ["\"ab\"", "\"abcdef\"", "null", "[\"abc\"]", "\"ab\\u0000\""] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn flags_come_in_many_words() {
        let read = |text| read::<Flag>(text).map(|flag| flag.0);
        for text in ["true", "1", "1.0", "\"YES\"", "\"on\"", "\"T\""] {
            assert_eq!(read(text), Some(true), "{text}");
        }
        for text in ["false", "0", "\"No\"", "\"off\"", "\"f\"", "\"0\""] {
            assert_eq!(read(text), Some(false), "{text}");
        }
        for text in ["2", "0.5", "\"maybe\"", "null", "[]"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
