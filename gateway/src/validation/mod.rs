//! Whether a value is what an endpoint demands (reference: gateway behaviour 16).
//!
//! In: typed rules, compiled with the definition, and a [`Content`]: a JSON body, the children of a SOAP payload, the
//! variables of a query, the fields of a message. Out: nothing, or the first violation in the order of the rules. A
//! protocol that names its values with a prefix takes it off the steps before it asks.
//!
//! Of elements of XML that have one name each is checked.

use std::cmp::Ordering;

use doorman_crds::api::{Kind, Rule, Step};
use serde_json::{Number, Value};

pub mod content;
mod formats;
pub mod json;
pub mod soap;

pub use content::Content;

/// Longest message, in characters (reference: gateway behaviour 3.3).
const MAX_MESSAGE: usize = 255;

/// Checks a value against rules, up to the first violation.
///
/// # Errors
/// What the client is told.
pub fn check<'a>(rules: impl IntoIterator<Item = (&'a [Step], &'a Rule)>, value: &Content) -> Result<(), String> {
    rules.into_iter().try_for_each(|(steps, rule)| check_at(steps, rule, Some(value))).map_err(|mut message| {
        if let Some((end, _)) = message.char_indices().nth(MAX_MESSAGE) {
            message.truncate(end);
        }
        message
    })
}

/// Checks what is at the end of the steps. A member of a list, or an item of an object, is absent.
fn check_at(steps: &[Step], rule: &Rule, value: Option<&Content>) -> Result<(), String> {
    let Some((step, rest)) = steps.split_first() else { return check_field(rule, value) };
    match (step, value) {
        (Step::Member(name), Some(value)) => each(value, name, |value| check_at(rest, rule, value)),
        (Step::Item(index), Some(Content::List(items))) => check_at(rest, rule, items.get(*index)),
        _ => check_at(rest, rule, None),
    }
}

/// Asks about each member of this name, or once about none.
fn each<'a>(
    value: &'a Content,
    name: &str,
    mut check: impl FnMut(Option<&'a Content>) -> Result<(), String>,
) -> Result<(), String> {
    let mut named = value.named(name)?;
    let first = named.next();
    check(first)?;
    named.try_for_each(|value| check(Some(value)))
}

fn check_field(rule: &Rule, value: Option<&Content>) -> Result<(), String> {
    match value.filter(|value| **value != Content::Null) {
        Some(value) => check_value(rule, value),
        None if rule.required => Err("Field is required".into()),
        None => Ok(()),
    }
}

/// Bounds, pattern and format are for what the value is, so that a rule of any type can have them too.
fn check_value(rule: &Rule, value: &Content) -> Result<(), String> {
    let expected = match rule.kind {
        Kind::String => Some("string"),
        Kind::Number => Some("number"),
        Kind::Boolean => Some("boolean"),
        Kind::Array => Some("array"),
        Kind::Object => Some("object"),
        Kind::Any => None,
    };
    if let Some(expected) = expected.filter(|expected| *expected != value.kind()) {
        return Err(format!("Expected {expected}, got {}", value.kind()));
    }
    match value {
        Content::Text(text) | Content::Attributed(text, _) => check_text(rule, text)?,
        Content::Number(number) => {
            if let Some(least) = rule.min.filter(|least| compare(number, *least) == Ordering::Less) {
                return Err(format!("Value must be at least {least}"));
            }
            if let Some(most) = rule.max.filter(|most| compare(number, *most) == Ordering::Greater) {
                return Err(format!("Value must be at most {most}"));
            }
        }
        Content::List(items) => {
            if let Some(least) = rule.min.filter(|least| (items.len() as f64) < *least) {
                return Err(format!("Array must have at least {least} items"));
            }
            if let Some(most) = rule.max.filter(|most| items.len() as f64 > *most) {
                return Err(format!("Array must have at most {most} items"));
            }
        }
        Content::Null | Content::Bool(_) | Content::Object(_) => {}
    }
    if let Some(allowed) = rule.allowed.as_ref().filter(|allowed| !allowed.iter().any(|one| value.is(one))) {
        return Err(format!("Value must be one of {}", Value::from(allowed.as_slice())));
    }
    match value {
        Content::Object(_) | Content::Attributed(..) => rule.members.iter().try_for_each(|(name, rule)| {
            each(value, name, |value| match value.filter(|value| **value != Content::Null) {
                Some(value) => check_value(rule, value),
                None if rule.required => Err(format!("Required field {name} is missing")),
                None => Ok(()),
            })
        }),
        Content::List(items) => match &rule.items {
            Some(rule) => items.iter().try_for_each(|item| check_field(rule, Some(item))),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

fn check_text(rule: &Rule, text: &str) -> Result<(), String> {
    // To some readers text ends there.
    if text.contains('\0') {
        return Err("String must not have a NUL".into());
    }
    if rule.min.is_some() || rule.max.is_some() {
        let length = text.chars().count() as f64;
        if let Some(least) = rule.min.filter(|least| length < *least) {
            return Err(format!("String length must be at least {least}"));
        }
        if let Some(most) = rule.max.filter(|most| length > *most) {
            return Err(format!("String length must be at most {most}"));
        }
    }
    if let Some(pattern) = rule.pattern.as_ref().filter(|pattern| !pattern.matches(text)) {
        return Err(format!("String does not match pattern {}", pattern.as_str()));
    }
    match rule.format {
        Some(format) => formats::check(format, text).map_err(Into::into),
        None => Ok(()),
    }
}

/// Exact also where a whole number has more digits than a float.
fn compare(number: &Number, bound: f64) -> Ordering {
    let Some(whole) = number.as_i128() else {
        return number.as_f64().and_then(|number| number.partial_cmp(&bound)).unwrap_or(Ordering::Equal);
    };
    // A cast of a float stops at the ends of the type, where no number of JSON is.
    match whole.cmp(&(bound.floor() as i128)) {
        Ordering::Equal if bound.fract() != 0.0 => Ordering::Less,
        ordering => ordering,
    }
}

#[cfg(test)]
mod tests {
    use doorman_crds::api::Validation;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn rules(rules: Value) -> Validation {
        let spec = serde_json::from_value(json!({ "rules": rules })).unwrap();
        Validation::parse("validation", &spec).unwrap().unwrap()
    }

    fn content(value: &Value) -> Content {
        json::parse(value.to_string().as_bytes()).unwrap()
    }

    fn violation(rule: Value, value: Value) -> Option<String> {
        check(rules(json!({ "x": rule })).rules(), &content(&json!({ "x": value }))).err()
    }

    #[test]
    fn each_violation_has_its_message() {
        let table = [
            (json!({ "type": "string" }), json!(null), "Field is required"),
            (json!({ "type": "string" }), json!(1), "Expected string, got number"),
            (json!({ "type": "number" }), json!("1"), "Expected number, got string"),
            (json!({ "type": "number" }), json!(true), "Expected number, got boolean"),
            (json!({ "type": "boolean" }), json!(0), "Expected boolean, got number"),
            (json!({ "type": "array" }), json!({}), "Expected array, got object"),
            (json!({ "type": "object" }), json!([]), "Expected object, got array"),
            (json!({ "type": "string", "min": 2 }), json!("ä"), "String length must be at least 2"),
            (json!({ "type": "string", "max": 2 }), json!("äöü"), "String length must be at most 2"),
            (json!({ "type": "number", "min": 1 }), json!(0), "Value must be at least 1"),
            (json!({ "type": "number", "min": 0.5 }), json!(0.25), "Value must be at least 0.5"),
            (json!({ "type": "number", "max": 1.5 }), json!(2), "Value must be at most 1.5"),
            (json!({ "type": "array", "min": 1 }), json!([]), "Array must have at least 1 items"),
            (json!({ "type": "array", "max": 1 }), json!([1, 2]), "Array must have at most 1 items"),
            (json!({ "type": "string", "pattern": "[a-z]+" }), json!("1a"), "String does not match pattern [a-z]+"),
            (json!({ "type": "string", "format": "email" }), json!("a"), "Invalid email format"),
            (json!({ "type": "string", "format": "url" }), json!("a"), "Invalid URL format"),
            (json!({ "type": "string", "format": "date" }), json!("a"), "Invalid date format (YYYY-MM-DD)"),
            (json!({ "type": "string", "format": "datetime" }), json!("a"), "Invalid datetime format (ISO 8601)"),
            (json!({ "type": "string", "format": "uuid" }), json!("a"), "Invalid UUID format"),
            (json!({ "type": "string", "enum": ["a", 1] }), json!("b"), r#"Value must be one of ["a",1]"#),
            (
                json!({ "type": "object", "nestedSchema": { "f": { "required": true, "type": "string" } } }),
                json!({ "f": null }),
                "Required field f is missing",
            ),
            (
                json!({ "type": "array", "arrayItems": { "required": true, "type": "string" } }),
                json!(["a", null]),
                "Field is required",
            ),
            (json!({ "type": "odd", "min": 2 }), json!("a"), "String length must be at least 2"),
        ];
        for (mut rule, value, message) in table {
            rule["required"] = true.into();
            assert_eq!(violation(rule.clone(), value).as_deref(), Some(message), "{rule}");
        }
    }

    #[test]
    fn what_keeps_the_rules_passes() {
        let table = [
            (json!({ "type": "string", "min": 2, "max": 2 }), json!("äö")),
            (json!({ "type": "number", "min": 1, "max": 1 }), json!(1.0)),
            (json!({ "type": "number", "enum": [1] }), json!(1.0)),
            (json!({ "type": "string", "pattern": "a" }), json!("ab")),
            (json!({ "type": "string", "format": "odd" }), json!("anything")),
            (json!({ "type": "odd" }), json!({ "any": ["thing"] })),
            (json!({ "type": "object", "nestedSchema": {} }), json!({ "undeclared": 1 })),
            (json!({ "type": "string", "min": 9, "required": false }), json!(null)),
        ];
        for (mut rule, value) in table {
            rule.as_object_mut().unwrap().entry("required").or_insert(true.into());
            assert_eq!(violation(rule.clone(), value), None, "{rule}");
        }
    }

    #[test]
    fn large_numbers_are_compared_digit_by_digit() {
        let rule = json!({ "required": true, "type": "number", "max": 9_007_199_254_740_992_i64 });
        assert_eq!(violation(rule.clone(), json!(9_007_199_254_740_992_i64)), None);
        assert!(violation(rule, json!(9_007_199_254_740_993_i64)).is_some());
        let rule = json!({ "required": true, "type": "number", "min": -1.5, "max": 1e30 });
        assert_eq!(violation(rule.clone(), json!(-1)), None);
        assert_eq!(violation(rule.clone(), json!(u64::MAX)), None);
        assert!(violation(rule, json!(-2)).is_some());
    }

    #[test]
    fn the_first_violation_in_the_order_of_paths_is_told() {
        let rule = |type_: &str| json!({ "required": true, "type": type_ });
        let rules = rules(json!({ "b": rule("string"), "a.c": rule("number"), "a": rule("object") }));
        let told = |value: Value| check(rules.rules(), &content(&value)).unwrap_err();
        assert_eq!(told(json!({ "b": 1, "a": 1 })), "Expected object, got number");
        assert_eq!(told(json!({ "b": 1, "a": { "c": "" } })), "Expected number, got string");
        assert_eq!(told(json!({ "b": 1, "a": { "c": 2 } })), "Expected string, got number");
        assert_eq!(told(json!(null)), "Field is required");
    }

    #[test]
    fn paths_lead_through_members_and_items() {
        let rules = rules(json!({ "items[1].id": { "required": true, "type": "number" } }));
        assert_eq!(check(rules.rules(), &content(&json!({ "items": [0, { "id": 1 }] }))), Ok(()));
        for value in [json!({ "items": [{ "id": 1 }] }), json!({ "items": { "1": { "id": 1 } } }), json!([])] {
            assert_eq!(check(rules.rules(), &content(&value)), Err("Field is required".into()));
        }
    }

    #[test]
    fn what_could_be_taken_for_a_member_that_is_checked_is_refused() {
        let rules = rules(json!({
            "amount": { "required": false, "type": "number", "max": 10 },
            "items[0].id": { "required": false, "type": "number" },
            "user": { "required": false, "type": "object", "nestedSchema": { "role": { "required": false, "type": "string" } } },
            "list": { "required": false, "type": "array", "arrayItems": { "required": true, "type": "object",
                "nestedSchema": { "n": { "required": false, "type": "number" } } } },
        }));
        for (value, is_refused) in [
            (json!({ "amount": 1, "other": { "Amount": 99 } }), false),
            (json!({ "Amount": 99 }), true),
            (json!({ "amount": 1, "AMOUNT": 99 }), true),
            (json!({ "amount": 1, "amount\0": 99 }), true),
            (json!({ "amount": 1, "amount\0x": 99 }), true),
            (json!({ "items": [{ "ID": 1 }] }), true),
            (json!({ "items": [{ "id": 1 }, { "ID": 1 }] }), false),
            (json!({ "Items": [] }), true),
            (json!({ "user": { "role": "a", "Role": "b" } }), true),
            (json!({ "user": { "name": "a", "Name": "b" } }), false),
            (json!({ "user": { "role": "a\0b" } }), true),
            (json!({ "list": [{ "n": 1 }, { "N": "x" }] }), true),
        ] {
            assert_eq!(check(rules.rules(), &content(&value)).is_err(), is_refused, "{value}");
        }
    }

    #[test]
    fn each_element_of_one_name_is_checked() {
        let rules = rules(json!({
            "item.id": { "required": true, "type": "string", "max": 2 },
            "list": { "required": false, "type": "object", "nestedSchema": { "x": { "required": true, "type": "string", "max": 1 } } },
        }));
        let told = |inside: &str| {
            let message = format!(
                "<s:Envelope xmlns:s='http://schemas.xmlsoap.org/soap/envelope/'><s:Body><m>{inside}</m></s:Body></s:Envelope>"
            );
            check(rules.rules(), &soap::payload(message.as_bytes()).unwrap()).err()
        };
        let good = "<item><id>1</id></item>";
        let long = || Some("String length must be at most 2".to_owned());
        for (inside, wanted) in [
            (good.to_owned(), None),
            (good.repeat(3), None),
            (format!("<item><id>123</id></item>{good}"), long()),
            (format!("{good}<item><id>123</id></item>"), long()),
            (format!("{good}<item><id>12</id><id>123</id><id>1</id></item>"), long()),
            (format!("{good}<item><other/></item>"), Some("Field is required".to_owned())),
            (format!("{good}<list><x>1</x><x>12</x></list>"), Some("String length must be at most 1".to_owned())),
            (format!("{good}<list><x>1</x></list><list><y/></list>"), Some("Required field x is missing".to_owned())),
            (format!("{good}<Item/>"), Some(r#""Item" is too much like "item", which is checked"#.to_owned())),
            (
                "<item id='123'><id>1</id></item>".to_owned(),
                Some(r#""id" is checked as an element, and is an attribute"#.to_owned()),
            ),
            (
                format!("{good}<item id='1'>x</item>"),
                Some(r#""id" is checked as an element, and is an attribute"#.to_owned()),
            ),
            (format!("{good}<item unit='x'><id unit='y'>1</id></item>"), None),
        ] {
            assert_eq!(told(&inside), wanted, "{inside}");
        }
    }

    #[test]
    fn a_prefix_is_taken_off_by_who_knows_it() {
        let rules = rules(json!({ "HelloOp.x": { "required": true, "type": "string", "min": 2 } }));
        let of_operation = |value: &Value| {
            let named = rules.rules().filter_map(|(steps, rule)| match steps {
                [Step::Member(operation), rest @ ..] if **operation == *"HelloOp" => Some((rest, rule)),
                _ => None,
            });
            check(named, &content(value))
        };
        assert!(of_operation(&json!({ "x": "A" })).is_err());
        assert!(of_operation(&json!({ "x": "Alan" })).is_ok());
    }

    #[test]
    fn messages_are_bounded() {
        let rule = json!({ "required": true, "type": "string", "enum": ["ä".repeat(1_000)] });
        assert_eq!(violation(rule, json!("b")).unwrap().chars().count(), MAX_MESSAGE);
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[a-z@.:/0-9-]{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec(("[abc]", inner), 0..4).prop_map(|members| members.into_iter().collect()),
            ]
        })
    }

    fn any_rule() -> impl Strategy<Value = Value> {
        let types = prop::sample::select(vec!["string", "number", "boolean", "array", "object", "odd"]);
        let formats = prop::sample::select(vec!["email", "url", "date", "datetime", "uuid"]);
        let bounds = (prop::option::of(-3.0..3.0_f64), prop::option::of(-3.0..3.0_f64));
        let rule = (any::<bool>(), types, bounds, prop::option::of(formats)).prop_map(|(required, type_, bounds, format)| {
            json!({ "required": required, "type": type_, "min": bounds.0, "max": bounds.1, "format": format })
        });
        rule.prop_recursive(3, 16, 3, |inner| {
            (inner.clone(), prop::collection::btree_map("[abc]", inner.clone(), 0..3), prop::option::of(inner))
                .prop_map(|(mut rule, members, items)| {
                    rule["nestedSchema"] = json!(members);
                    rule["arrayItems"] = json!(items);
                    rule
                })
        })
    }

    proptest! {
        #[test]
        fn any_rule_decides_about_any_value(rule in any_rule(), path in "[abc](\\.[abc]|\\[[0-2]\\]){0,3}", value in any_value()) {
            let decided = check(rules(json!({ path: rule.clone() })).rules(), &content(&value));
            if let Err(message) = &decided {
                prop_assert!(!message.is_empty());
            }
            // What is optional may always be left out.
            let mut optional = rule;
            optional["required"] = false.into();
            prop_assert_eq!(violation(optional, json!(null)), None);
        }
    }
}
