//! Members of bodies and queries, as leniently as clients rely on (reference: platform API 1.2): numbers may come as text
//! and the other way round, fractions lose what is behind the point. The schemas say the same.

use std::fmt;

use mongodb::bson::{Bson, Document, serialize_to_document};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, Visitor},
};
use serde_json::{Value, json};
use utoipa::{PartialSchema, ToSchema, openapi::RefOr, openapi::schema::Schema};

use super::request::invalid_as;
use crate::problem::Problem;

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

/// A number that is not negative, such as a price.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Amount(pub(super) f64);

/// Text of any length.
pub(super) type AnyText = Text<0, { usize::MAX }>;

/// The largest number that is taken, and its negative the smallest: a bound that the schemas can tell.
const LARGEST: i64 = 1_000_000_000_000_000_000;
/// Characters that every number between the two has room in, also in the form of a fraction.
const LONGEST_NUMBER: usize = 25;

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

impl<const MIN: usize, const MAX: usize> Text<MIN, MAX> {
    const TAKES_FLAGS: bool = MIN <= "true".len() && "false".len() <= MAX;
    const TAKES_ANY_NUMBER: bool = MIN <= 1 && LONGEST_NUMBER <= MAX;

    /// The whole numbers whose text surely has the length: of fewer digits than a bound, as a schema can tell.
    fn numbers() -> std::ops::RangeInclusive<i64> {
        let power = |digits: usize| u32::try_from(digits).ok().and_then(|digits| 10_i64.checked_pow(digits));
        let least = if MIN <= 1 { 0 } else { power(MIN - 1).unwrap_or(i64::MAX) };
        let most = power(MAX).map_or(LARGEST, |power| LARGEST.min(power - 1));
        if Self::TAKES_ANY_NUMBER { -LARGEST..=LARGEST } else { least..=most }
    }
}

/// The whole number that a float stands for, if it is one.
fn exact(number: f64) -> Option<i64> {
    (number.fract() == 0.0 && number.abs() <= LARGEST as f64).then_some(number as i64)
}

impl<'de, const MIN: usize, const MAX: usize> Deserialize<'de> for Text<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        let whole = |number: i64| Self::numbers().contains(&number).then(|| number.to_string());
        let text = match Given::deserialize(source)? {
            Given::Text(text) => Some(text),
            Given::Whole(number) => whole(number),
            Given::Fraction(number) => match exact(number) {
                Some(number) => whole(number),
                None if number.abs() > LARGEST as f64 => None,
                None => Self::TAKES_ANY_NUMBER.then(|| json!(number).to_string()),
            },
            Given::Flag(flag) => Self::TAKES_FLAGS.then(|| flag.to_string()),
        };
        let wrong = || de::Error::custom(format_args!("must have {MIN} to {MAX} characters"));
        let text = text.ok_or_else(wrong)?;
        // The stores keep no NUL in names.
        if text.contains('\0') {
            return Err(de::Error::custom("has a NUL character"));
        }
        if (MIN..=MAX).contains(&text.chars().count()) { Ok(Self(text)) } else { Err(wrong()) }
    }
}

impl<const MIN: i64> Int<MIN> {
    const LEAST: i64 = if MIN > -LARGEST { MIN } else { -LARGEST };

    fn of(given: Given) -> Option<i64> {
        let is_fine = |number: &i64| (Self::LEAST..=LARGEST).contains(number);
        match given {
            Given::Whole(number) => Some(number).filter(is_fine),
            // Looked at before its fraction is gone, as the schemas do.
            Given::Fraction(number) => {
                (Self::LEAST as f64..=LARGEST as f64).contains(&number).then_some(number.trunc() as i64)
            }
            Given::Flag(flag) => Some(flag.into()).filter(is_fine),
            Given::Text(text) => {
                let text = text.trim();
                text.parse().ok().or_else(|| exact(text.parse().ok()?)).filter(is_fine)
            }
        }
    }
}

impl<'de, const MIN: i64> Deserialize<'de> for Int<MIN> {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        let wrong = || de::Error::custom(format_args!("must be a whole number from {} to {LARGEST}", Self::LEAST));
        Self::of(Given::deserialize(source)?).map(Self).ok_or_else(wrong)
    }
}

impl Amount {
    /// Floats still tell it from its neighbours.
    const MOST: i64 = 1_000_000_000_000;
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        let amount = match Given::deserialize(source)? {
            Given::Whole(number) => Some(number as f64),
            Given::Fraction(number) => Some(number),
            Given::Text(text) => text.trim().parse().ok(),
            Given::Flag(_) => None,
        };
        let amount = amount.filter(|amount| (0.0..=Self::MOST as f64).contains(amount));
        amount.map(Self).ok_or_else(|| de::Error::custom(format_args!("must be a number from 0 to {}", Self::MOST)))
    }
}

impl Flag {
    /// What a flag is by default, where that is `true`.
    pub(super) fn yes() -> Self {
        Self(true)
    }

    /// What a flag is by default, where that is `false`.
    pub(super) fn no() -> Self {
        Self(false)
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
            Given::Fraction(number) => exact(number).and_then(|number| match number {
                0 => Some(false),
                1 => Some(true),
                _ => None,
            }),
            Given::Whole(_) => None,
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

impl Serialize for Amount {
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
        let mut text = json!({ "type": "string", "minLength": MIN, "pattern": "^[^\\x00]*$" });
        if MAX < usize::MAX {
            text["maxLength"] = MAX.into();
        }
        let mut forms = vec![text];
        let (kind, numbers) = (if Self::TAKES_ANY_NUMBER { "number" } else { "integer" }, Self::numbers());
        if !numbers.is_empty() {
            forms.push(json!({ "type": kind, "minimum": numbers.start(), "maximum": numbers.end() }));
        }
        if Self::TAKES_FLAGS {
            forms.push(json!({ "type": "boolean" }));
        }
        schema(&json!({ "anyOf": forms }))
    }
}

impl<const MIN: usize, const MAX: usize> ToSchema for Text<MIN, MAX> {
    fn name() -> std::borrow::Cow<'static, str> {
        if MAX == usize::MAX { format!("TextFrom{MIN}").into() } else { format!("Text{MIN}To{MAX}").into() }
    }
}

impl<const MIN: i64> PartialSchema for Int<MIN> {
    fn schema() -> RefOr<Schema> {
        let digits = match Self::LEAST {
            ..0 => "-?[0-9]{1,18}",
            0 => "[0-9]{1,18}",
            1.. => "[1-9][0-9]{0,17}",
        };
        let mut forms = vec![
            json!({ "type": "number", "minimum": Self::LEAST, "maximum": LARGEST }),
            json!({ "type": "string", "pattern": format!("^ *{digits}(\\.0+)? *$") }),
        ];
        match Self::LEAST {
            ..=0 => forms.push(json!({ "type": "boolean" })),
            1 => forms.push(json!({ "type": "boolean", "enum": [true] })),
            2.. => {}
        }
        schema(&json!({ "anyOf": forms }))
    }
}

impl<const MIN: i64> ToSchema for Int<MIN> {
    fn name() -> std::borrow::Cow<'static, str> {
        if MIN == i64::MIN { "Int".into() } else { format!("IntFrom{MIN}").into() }
    }
}

impl PartialSchema for Amount {
    fn schema() -> RefOr<Schema> {
        let digits = json!({ "type": "string", "pattern": "^ *[0-9]{1,12}(\\.[0-9]+)? *$" });
        schema(&json!({ "anyOf": [{ "type": "number", "minimum": 0, "maximum": Self::MOST }, digits] }))
    }
}

impl ToSchema for Amount {}

impl PartialSchema for Flag {
    fn schema() -> RefOr<Schema> {
        let words =
            "^([Tt]([Rr][Uu][Ee])?|[Ff]([Aa][Ll][Ss][Ee])?|[Yy]([Ee][Ss])?|[Nn][Oo]?|[Oo][Nn]|[Oo][Ff][Ff]|0|1)$";
        let number = json!({ "type": "number", "enum": [0, 1] });
        schema(&json!({ "anyOf": [{ "type": "boolean" }, { "type": "string", "pattern": words }, number] }))
    }
}

impl ToSchema for Flag {}

/// The members that were given, to be set on a stored document; null never clears anything. Refused is what no store can
/// keep, such as a whole number beyond 64 bits.
pub(super) fn given(update: &impl Serialize) -> Result<Document, Problem> {
    let document = serialize_to_document(update).map_err(|error| invalid_as(error.to_string()))?;
    Ok(document.into_iter().filter(|(_, value)| *value != Bson::Null).collect())
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
        for text in ["-1", "\"x\"", "\"\"", "null", "[]", "{}", "1e300", "-0.5", "\"5.5\"", "9999999999999999999"] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(serde_json::from_str::<Int<{ i64::MIN }>>("-0.5").unwrap().0, 0);
    }

    #[test]
    fn amounts_keep_their_fraction_and_are_never_negative() {
        let read = |text| read::<Amount>(text).map(|amount| amount.0);
        for (text, amount) in [("0", 0.0), ("9.99", 9.99), ("\"9.99\"", 9.99)] {
            assert_eq!(read(text), Some(amount), "{text}");
        }
        for text in ["-0.01", "1000000000001", "\"NaN\"", "\"inf\"", "1e300", "true", "null", "\"\"", "[]"] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn text_is_counted_in_characters() {
        let read = |text| read::<Text<3, 5>>(text).map(|text| text.0);
        assert_eq!(read("\"äöü\"").as_deref(), Some("äöü"));
        assert_eq!(read("123").as_deref(), Some("123"));
        assert_eq!(read("true").as_deref(), Some("true"));
        assert_eq!(read("1000.0").as_deref(), Some("1000"));
        for text in ["\"ab\"", "\"abcdef\"", "null", "[\"abc\"]", "\"ab\\u0000\"", "99", "-999", "100000", "0.25"] {
            assert_eq!(read(text), None, "{text}");
        }
        let read = |text| serde_json::from_str::<Text<1, 50>>(text).map(|text| text.0);
        assert_eq!((read("-7").unwrap().as_str(), read("1e-300").unwrap().as_str()), ("-7", "1e-300"));
        assert!(read("1e300").is_err());
    }

    #[test]
    fn flags_come_in_many_words() {
        let read = |text| read::<Flag>(text).map(|flag| flag.0);
        for text in ["true", "1", "1.0", "\"YES\"", "\"on\"", "\"T\""] {
            assert_eq!(read(text), Some(true), "{text}");
        }
        for text in ["false", "0", "-0.0", "\"No\"", "\"off\"", "\"f\"", "\"0\""] {
            assert_eq!(read(text), Some(false), "{text}");
        }
        for text in ["2", "0.5", "\"maybe\"", "null", "[]"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
