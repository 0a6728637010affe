//! Changes to JSON bodies.
//!
//! Only what is on the way to a change is taken apart; all else is copied as it is written, so that numbers keep their
//! digits and members their order.

use std::collections::HashMap;
use std::fmt;

use doorman_crds::api::{BodyEdits, Step};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;

/// Why a body stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum Unchanged {
    /// It is not JSON.
    #[error("the body is not JSON: {0}")]
    NotJson(#[from] serde_json::Error),
    /// A value is in the way.
    #[error("`{0}` can't be set: on the way there is a value that is neither an object nor a list it could be in")]
    InTheWay(String),
}

/// A value of which parts are taken apart.
enum Node<'a> {
    /// As it was written.
    Raw(&'a RawValue),
    /// From the changes.
    Given(&'a Value),
    Object(Vec<(String, Node<'a>)>),
    List(Vec<Node<'a>>),
}

/// Wraps, removes, renames and sets. Removing and renaming what is not there changes nothing; parents of what is set
/// are made where they are missing or null, and a list grows by one item at a time.
///
/// # Errors
/// See [`Unchanged`].
pub fn change(edits: &BodyEdits, body: &[u8]) -> Result<Vec<u8>, Unchanged> {
    let mut root = Node::Raw(serde_json::from_slice(body)?);
    if let Some(name) = &edits.wrap {
        root = Node::Object(vec![(name.to_string(), root)]);
    }
    for path in &edits.remove {
        take(&mut root, path.steps());
    }
    let taken: Vec<_> = edits.rename.iter().map(|(old, new)| (new, take(&mut root, old.steps()))).collect();
    let renamed = taken.into_iter().filter_map(|(new, value)| Some((new, value?)));
    for (path, value) in renamed.chain(edits.set.iter().map(|(path, value)| (path, Node::Given(value)))) {
        put(&mut root, path.steps(), value).map_err(|()| Unchanged::InTheWay(path.to_string()))?;
    }
    Ok(serde_json::to_vec(&root)?)
}

/// Takes out what is at the end of the steps, if it is there.
fn take<'a>(node: &mut Node<'a>, steps: &[Step]) -> Option<Node<'a>> {
    let (first, rest) = steps.split_first()?;
    node.take_apart();
    match (first, node) {
        (Step::Member(name), Node::Object(members)) => {
            let index = members.iter().position(|(member, _)| **member == **name)?;
            if rest.is_empty() { Some(members.remove(index).1) } else { take(&mut members[index].1, rest) }
        }
        (Step::Item(index), Node::List(items)) if *index < items.len() => {
            if rest.is_empty() {
                Some(items.remove(*index))
            } else {
                take(&mut items[*index], rest)
            }
        }
        _ => None,
    }
}

/// Puts a value at the end of the steps.
fn put<'a>(node: &mut Node<'a>, steps: &[Step], value: Node<'a>) -> Result<(), ()> {
    let Some((first, rest)) = steps.split_first() else {
        *node = value;
        return Ok(());
    };
    node.take_apart();
    if node.is_null() {
        *node = match first {
            Step::Member(_) => Node::Object(Vec::new()),
            Step::Item(_) => Node::List(Vec::new()),
        };
    }
    let next = match (first, node) {
        (Step::Member(name), Node::Object(members)) => {
            let index = members.iter().position(|(member, _)| **member == **name).unwrap_or_else(|| {
                members.push((name.to_string(), Node::NULL));
                members.len() - 1
            });
            &mut members[index].1
        }
        (Step::Item(index), Node::List(items)) if *index <= items.len() => {
            if *index == items.len() {
                items.push(Node::NULL);
            }
            &mut items[*index]
        }
        _ => return Err(()),
    };
    put(next, rest, value)
}

impl<'a> Node<'a> {
    const NULL: Self = Self::Given(&Value::Null);

    fn is_null(&self) -> bool {
        match self {
            Self::Raw(raw) => raw.get() == "null",
            Self::Given(value) => value.is_null(),
            Self::Object(_) | Self::List(_) => false,
        }
    }

    /// Makes members and items of an object or a list reachable.
    fn take_apart(&mut self) {
        let apart = match self {
            Self::Raw(raw) => match raw.get().as_bytes().first() {
                Some(b'{') => serde_json::from_str(raw.get()).ok().map(|Members(members)| Self::Object(members)),
                Some(b'[') => serde_json::from_str(raw.get())
                    .ok()
                    .map(|items: Vec<&'a RawValue>| Self::List(items.into_iter().map(Self::Raw).collect())),
                _ => None,
            },
            Self::Given(Value::Object(members)) => {
                Some(Self::Object(members.iter().map(|(name, value)| (name.clone(), Self::Given(value))).collect()))
            }
            Self::Given(Value::Array(items)) => Some(Self::List(items.iter().map(Self::Given).collect())),
            Self::Given(_) | Self::Object(_) | Self::List(_) => None,
        };
        if let Some(apart) = apart {
            *self = apart;
        }
    }
}

impl Serialize for Node<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Raw(raw) => raw.serialize(serializer),
            Self::Given(value) => value.serialize(serializer),
            Self::Object(members) => serializer.collect_map(members.iter().map(|(name, value)| (name, value))),
            Self::List(items) => serializer.collect_seq(items),
        }
    }
}

/// Members in their order; of those of one name the last, as most readers have it.
struct Members<'a>(Vec<(String, Node<'a>)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Vec<(String, &'de RawValue)>;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut source: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = source.next_entry()? {
                    members.push(member);
                }
                Ok(members)
            }
        }
        let mut members: Vec<(String, Node<'a>)> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        for (name, value) in source.deserialize_map(InOrder)? {
            if let Some(place) = places.get(&name) {
                members[*place].1 = Node::Raw(value);
            } else {
                places.insert(name.clone(), members.len());
                members.push((name, Node::Raw(value)));
            }
        }
        Ok(Self(members))
    }
}

#[cfg(test)]
mod tests {
    use doorman_crds::api::ResponseTransform;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn edits(spec: Value) -> BodyEdits {
        let spec = serde_json::from_value(json!({ "body": spec })).unwrap();
        ResponseTransform::parse("t", &spec).unwrap().unwrap_or_default().body.unwrap_or_default()
    }

    fn changed(spec: Value, body: &str) -> String {
        String::from_utf8(change(&edits(spec), body.as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn a_body_is_wrapped_then_cut_then_renamed_then_set() {
        let spec = json!({
            "wrap": "data", "remove": ["$.data.gone", "$.data.list[0]"],
            "rename": { "$.data.a": "$.b", "$.none": "$.other" }, "set": { "$.meta.list[0].x": 1, "$.meta.y": [true] },
        });
        assert_eq!(
            changed(spec, r#"{"z":1, "a":{"k": 1.50},"gone":2,"list":[1,2]}"#),
            r#"{"data":{"z":1,"list":[2]},"b":{"k": 1.50},"meta":{"list":[{"x":1}],"y":[true]}}"#
        );
    }

    #[test]
    fn what_is_not_touched_stays_as_it_was_written() {
        let body = r#"{"big": 123456789012345678901234567890, "f":1.10,"e":"\u00e4\/", "b":1, "a" : [ 1,2 ]}"#;
        let wanted = r#"{"big":123456789012345678901234567890,"f":1.10,"e":"\u00e4\/","a":[ 1,2 ]}"#;
        assert_eq!(changed(json!({ "remove": ["b"] }), body), wanted);
        let body = r#"{"a":[ 1,2 ],"f":1.10}"#;
        assert_eq!(changed(json!({ "remove": ["none.x", "a[7].y", "f.x"] }), body), r#"{"a":[1,2],"f":1.10}"#);
    }

    #[test]
    fn names_are_changed_all_at_once() {
        assert_eq!(changed(json!({ "rename": { "a": "b", "b": "a" } }), r#"{"a":1,"b":2}"#), r#"{"b":1,"a":2}"#);
    }

    #[test]
    fn missing_parents_are_made_and_lists_grow() {
        assert_eq!(changed(json!({ "set": { "a.b[0].c": 1 } }), r#"{"a":null}"#), r#"{"a":{"b":[{"c":1}]}}"#);
        assert_eq!(changed(json!({ "set": { "[1]": 2 } }), "[1]"), "[1,2]");
        assert_eq!(changed(json!({ "set": { "$.a": {"b": 1}, "$.a.c": 2 } }), "{}"), r#"{"a":{"b":1,"c":2}}"#);
        assert_eq!(changed(json!({ "wrap": "data" }), " [1, 2] "), r#"{"data":[1, 2]}"#);
    }

    #[test]
    fn what_is_in_the_way_is_told() {
        for (path, body) in [("a.b", r#"{"a":1}"#), ("a[2]", r#"{"a":[1]}"#), ("a", "[]"), ("a[0]", r#"{"a":{}}"#)] {
            let error = change(&edits(json!({ "set": { path: 1 } })), body.as_bytes()).unwrap_err();
            assert!(error.to_string().contains(path), "{error}");
        }
        assert!(matches!(change(&edits(json!({ "wrap": "a" })), b"{"), Err(Unchanged::NotJson(_))));
        assert!(matches!(change(&edits(json!({ "wrap": "a" })), b"\"\xff\""), Err(Unchanged::NotJson(_))));
    }

    #[test]
    fn of_a_name_that_is_there_twice_the_last_counts() {
        assert_eq!(changed(json!({ "remove": ["b"] }), r#"{"a":1,"b":2,"a":3,"b":4}"#), r#"{"a":3}"#);
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf =
            prop_oneof![Just(Value::Null), any::<i64>().prop_map(Value::from), "[a-z]{0,3}".prop_map(Value::from)];
        leaf.prop_recursive(3, 16, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[abc]", inner, 0..3).prop_map(|members| members.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_was_set_is_there_and_removing_it_takes_it_away(
            body in any_value(), path in "[abc](\\.[abc]|\\[[0-2]\\]){0,3}", value in any_value()
        ) {
            let body = body.to_string();
            if let Ok(set) = change(&edits(json!({ "set": { path.as_str(): value } })), body.as_bytes()) {
                let pointer = format!("/{}", path.replace(['.', '['], "/").replace(']', ""));
                let read: Value = serde_json::from_slice(&set).unwrap();
                prop_assert_eq!(read.pointer(&pointer), Some(&value));
                let removed = change(&edits(json!({ "remove": [path.as_str()] })), &set).unwrap();
                let before: Value = serde_json::from_str(&body).unwrap();
                if before.pointer(&pointer).is_none() {
                    let read: Value = serde_json::from_slice(&removed).unwrap();
                    prop_assert_eq!(read.pointer(&pointer), None);
                }
            }
        }

        #[test]
        fn a_wrapped_body_is_unwrapped_by_reading_its_member(body in any_value()) {
            let wrapped: Value = serde_json::from_str(&changed(json!({ "wrap": "data" }), &body.to_string())).unwrap();
            prop_assert_eq!(wrapped, json!({ "data": body }));
        }
    }
}
