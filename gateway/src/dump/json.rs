//! BSON documents as the JSON of a dump, and back.
//!
//! JSON has fewer types: bytes become `{"__type__":"bytes","data":base64}`; dates, object ids, regular expressions and
//! decimals become their text and stay text. An integer comes back in the smaller of the two sizes it fits, as dynamic
//! languages store it. The order of members stays. Keys that would be mistaken for one of the dump's own marks are
//! written as `__byteskey__:` + base64, which every reader undoes; so no document can be read as another one.

use std::fmt;

use base64::{Engine, prelude::BASE64_STANDARD};
use mongodb::bson::{Binary, Bson, Document, spec::BinarySubtype};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor},
    ser::{SerializeMap, SerializeSeq},
};
use serde_json::value::RawValue;

/// Says what an object stands for.
const TYPE: &str = "__type__";
/// The one such thing.
const BYTES: &str = "bytes";
/// Holds its content.
const DATA: &str = "data";
/// Tells bytes that are not just bytes apart; absent for those that are.
const SUBTYPE: &str = "subtype";
/// Begins a key that is base64.
const BYTES_KEY: &str = "__byteskey__:";
/// serde_json follows 128 levels; deeper ones are read in steps of this many.
const STEP: usize = 100;

/// A document that is written as JSON.
pub(crate) struct Json<'a>(pub(crate) &'a Document);

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let mut map = out.serialize_map(Some(self.0.len()))?;
        for (key, value) in self.0 {
            if key == TYPE || key.starts_with(BYTES_KEY) {
                map.serialize_entry(&format!("{BYTES_KEY}{}", BASE64_STANDARD.encode(key)), &Value(value))?;
            } else {
                map.serialize_entry(key, &Value(value))?;
            }
        }
        map.end()
    }
}

struct Value<'a>(&'a Bson);

impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Bson::Double(number) => out.serialize_f64(*number),
            Bson::Int32(number) => out.serialize_i32(*number),
            Bson::Int64(number) => out.serialize_i64(*number),
            Bson::Boolean(value) => out.serialize_bool(*value),
            Bson::String(text) | Bson::Symbol(text) | Bson::JavaScriptCode(text) => out.serialize_str(text),
            Bson::Array(values) => {
                let mut list = out.serialize_seq(Some(values.len()))?;
                values.iter().try_for_each(|value| list.serialize_element(&Value(value)))?;
                list.end()
            }
            Bson::Document(document) => Json(document).serialize(out),
            Bson::Binary(binary) => {
                let mut map = out.serialize_map(None)?;
                map.serialize_entry(TYPE, BYTES)?;
                map.serialize_entry(DATA, &BASE64_STANDARD.encode(&binary.bytes))?;
                if binary.subtype != BinarySubtype::Generic {
                    map.serialize_entry(SUBTYPE, &u8::from(binary.subtype))?;
                }
                map.end()
            }
            Bson::ObjectId(id) => out.serialize_str(&id.to_hex()),
            Bson::DateTime(date) => match date.try_to_rfc3339_string() {
                Ok(text) => out.serialize_str(&text),
                // Before year 0 or after 9999.
                Err(_) => out.serialize_i64(date.timestamp_millis()),
            },
            Bson::Decimal128(number) => out.collect_str(number),
            Bson::RegularExpression(regex) => out.serialize_str(regex.pattern.as_str()),
            Bson::JavaScriptCodeWithScope(code) => out.serialize_str(&code.code),
            Bson::Timestamp(stamp) => out.serialize_i64(i64::from(stamp.time) << 32 | i64::from(stamp.increment)),
            Bson::Null | Bson::Undefined | Bson::MaxKey | Bson::MinKey | Bson::DbPointer(_) => out.serialize_unit(),
        }
    }
}

/// Reads one document.
pub(super) fn read(text: &RawValue) -> Result<Document, serde_json::Error> {
    match value(text)? {
        Bson::Document(document) => Ok(document),
        _ => Err(serde_json::Error::custom("a document is not an object")),
    }
}

fn value(text: &RawValue) -> Result<Bson, serde_json::Error> {
    let mut source = serde_json::Deserializer::from_str(text.get());
    let value = Level(1).deserialize(&mut source)?;
    source.end().map(|()| value)
}

/// Reads a value that so many levels lie above.
#[derive(Clone, Copy)]
struct Level(usize);

impl<'de> DeserializeSeed<'de> for Level {
    type Value = Bson;

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<Bson, D::Error> {
        if self.0 < STEP {
            return source.deserialize_any(self);
        }
        value(<&RawValue>::deserialize(source)?).map_err(D::Error::custom)
    }
}

impl<'de> Visitor<'de> for Level {
    type Value = Bson;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Bson, E> {
        Ok(Bson::Boolean(value))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Bson, E> {
        Ok(i32::try_from(number).map_or(Bson::Int64(number), Bson::Int32))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Bson, E> {
        i64::try_from(number).map_or(Ok(Bson::Double(number as f64)), |number| self.visit_i64(number))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Bson, E> {
        Ok(Bson::Double(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Bson, E> {
        Ok(Bson::String(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Bson, E> {
        Ok(Bson::String(text))
    }

    fn visit_unit<E>(self) -> Result<Bson, E> {
        Ok(Bson::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Bson, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(Self(self.0 + 1))? {
            values.push(value);
        }
        Ok(Bson::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Bson, A::Error> {
        let (mut document, mut is_marked) = (Document::new(), false);
        while let Some(key) = map.next_key::<String>()? {
            is_marked |= key == TYPE;
            document.insert(plain_key(key), map.next_value_seed(Self(self.0 + 1))?);
        }
        let bytes = if is_marked { bytes(&document) } else { None };
        Ok(bytes.map_or(Bson::Document(document), Bson::Binary))
    }
}

/// BSON has no other keys than texts.
fn plain_key(key: String) -> String {
    let bytes = key.strip_prefix(BYTES_KEY).and_then(|coded| BASE64_STANDARD.decode(coded).ok());
    bytes.and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or(key)
}

/// What is marked as bytes and holds none is an ordinary document.
fn bytes(marked: &Document) -> Option<Binary> {
    let data = marked.get_str(DATA).ok().filter(|_| marked.get_str(TYPE).is_ok_and(|kind| kind == BYTES))?;
    let bytes = BASE64_STANDARD.decode(data).ok()?;
    let subtype = marked.get_i32(SUBTYPE).ok().and_then(|subtype| u8::try_from(subtype).ok());
    Some(Binary { subtype: subtype.map_or(BinarySubtype::Generic, BinarySubtype::from), bytes })
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{DateTime, doc, oid::ObjectId};
    use proptest::prelude::*;

    use super::*;

    fn written(document: &Document) -> String {
        serde_json::to_string(&Json(document)).unwrap()
    }

    fn back(document: &Document) -> Document {
        read(&RawValue::from_string(written(document)).unwrap()).unwrap()
    }

    #[test]
    fn bytes_are_written_as_the_format_says() {
        let hash = Binary { subtype: BinarySubtype::Generic, bytes: b"$2b$12$hash".to_vec() };
        let document = doc! { "password": hash };
        assert_eq!(written(&document), r#"{"password":{"__type__":"bytes","data":"JDJiJDEyJGhhc2g="}}"#);
        assert_eq!(back(&document), document);
    }

    #[test]
    fn byte_keys_are_read() {
        let text = r#"{"__byteskey__:a2V5":1,"__byteskey__:/w==":2,"__byteskey__:?":3}"#;
        let read = read(&RawValue::from_string(text.to_owned()).unwrap()).unwrap();
        assert_eq!(read, doc! { "key": 1, "__byteskey__:/w==": 2, "__byteskey__:?": 3 });
    }

    #[test]
    fn integers_come_back_in_the_smaller_size() {
        let sizes = doc! { "small": 5_i64, "large": i64::from(i32::MAX) + 1, "float": 5.0 };
        assert_eq!(back(&sizes), doc! { "small": 5_i32, "large": i64::from(i32::MAX) + 1, "float": 5.0 });
    }

    #[test]
    fn dates_and_object_ids_become_text() {
        let id = ObjectId::parse_str("65a5b1f0c0ffee0000000001").unwrap();
        let document = doc! { "_id": id, "at": DateTime::from_millis(1_705_314_600_000) };
        assert_eq!(back(&document), doc! { "_id": "65a5b1f0c0ffee0000000001", "at": "2024-01-15T10:30:00Z" });
    }

    #[test]
    fn documents_that_look_like_marks_stay_what_they_are() {
        for odd in [
            doc! { "__type__": "bytes", "data": "aGVsbG8=" },
            doc! { "__type__": "bytes", "data": "not base64" },
            doc! { "__byteskey__:a2V5": { "__type__": 7 } },
        ] {
            assert_eq!(back(&doc! { "custom_attributes": odd.clone() }), doc! { "custom_attributes": odd });
        }
        let damaged = r#"{"a":{"__type__":"bytes","data":"?"}}"#;
        assert!(read(&RawValue::from_string(damaged.to_owned()).unwrap()).is_ok());
    }

    #[test]
    fn what_was_nested_deeper_than_json_readers_follow_comes_back() {
        let mut deep = doc! { "end": true };
        for level in 0..300 {
            deep = if level % 2 == 0 {
                doc! { "a": [deep] }
            } else {
                doc! { "a": deep }
            };
        }
        assert!(back(&deep) == deep);
    }

    fn any_bson() -> impl Strategy<Value = Bson> {
        let leaf = prop_oneof![
            Just(Bson::Null),
            any::<bool>().prop_map(Bson::Boolean),
            any::<i32>().prop_map(Bson::Int32),
            any::<i64>().prop_filter("small ones become Int32", |n| i32::try_from(*n).is_err()).prop_map(Bson::Int64),
            any::<f64>().prop_map(Bson::Double),
            ".*".prop_map(Bson::String),
            (any::<u8>(), prop::collection::vec(any::<u8>(), 0..40))
                .prop_map(|(subtype, bytes)| { Bson::Binary(Binary { subtype: BinarySubtype::from(subtype), bytes }) }),
        ];
        let key = prop_oneof![4 => "[a-z_$.]{0,6}", 1 => "(__type__|data|subtype|__byteskey__:[a-zA-Z=]{0,4})"];
        leaf.prop_recursive(5, 60, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Bson::Array),
                prop::collection::vec((key.clone(), inner), 0..6)
                    .prop_map(|members| Bson::Document(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_document_comes_back_as_it_was(value in any_bson()) {
            let document = doc! { "value": value };
            prop_assert_eq!(back(&document), document);
        }
    }
}
