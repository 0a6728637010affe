//! Whether a value is what an endpoint demands (reference: gateway behaviour 16).
//!
//! In: typed rules, compiled with the definition, and a value: a JSON body, the children of a SOAP payload, the
//! variables of a query, the fields of a message. Out: nothing, or the first violation in the order of the rules. A
//! protocol that names its values with a prefix takes it off the steps before it asks.

use std::cmp::Ordering;

use doorman_crds::api::{Kind, Rule, Step};
use serde_json::{Number, Value};

mod formats;
pub mod soap;

/// Longest message, in characters (reference: gateway behaviour 3.3).
const MAX_MESSAGE: usize = 255;

/// Checks a value against rules, up to the first violation.
///
/// # Errors
/// What the client is told.
pub fn check<'a>(rules: impl IntoIterator<Item = (&'a [Step], &'a Rule)>, value: &Value) -> Result<(), String> {
    rules.into_iter().try_for_each(|(steps, rule)| check_field(rule, at(value, steps))).map_err(|mut message| {
        if let Some((end, _)) = message.char_indices().nth(MAX_MESSAGE) {
            message.truncate(end);
        }
        message
    })
}

/// The value at the end of the steps. A member of a list, or an item of an object, is absent.
fn at<'a>(value: &'a Value, steps: &[Step]) -> Option<&'a Value> {
    steps.iter().try_fold(value, |value, step| match step {
        Step::Member(name) => value.as_object()?.get(&**name),
        Step::Item(index) => value.as_array()?.get(*index),
    })
}

fn check_field(rule: &Rule, value: Option<&Value>) -> Result<(), String> {
    match value.filter(|value| !value.is_null()) {
        Some(value) => check_value(rule, value),
        None if rule.required => Err("Field is required".into()),
        None => Ok(()),
    }
}

/// Bounds, pattern and format are for what the value is, so that a rule of any type can have them too.
fn check_value(rule: &Rule, value: &Value) -> Result<(), String> {
    let (is_right, expected) = match rule.kind {
        Kind::String => (value.is_string(), "string"),
        Kind::Number => (value.is_number(), "number"),
        Kind::Boolean => (value.is_boolean(), "boolean"),
        Kind::Array => (value.is_array(), "array"),
        Kind::Object => (value.is_object(), "object"),
        Kind::Any => (true, ""),
    };
    if !is_right {
        return Err(format!("Expected {expected}, got {}", name(value)));
    }
    match value {
        Value::String(text) => check_text(rule, text)?,
        Value::Number(number) => {
            if let Some(least) = rule.min.filter(|least| compare(number, *least) == Ordering::Less) {
                return Err(format!("Value must be at least {least}"));
            }
            if let Some(most) = rule.max.filter(|most| compare(number, *most) == Ordering::Greater) {
                return Err(format!("Value must be at most {most}"));
            }
        }
        Value::Array(items) => {
            if let Some(least) = rule.min.filter(|least| (items.len() as f64) < *least) {
                return Err(format!("Array must have at least {least} items"));
            }
            if let Some(most) = rule.max.filter(|most| items.len() as f64 > *most) {
                return Err(format!("Array must have at most {most} items"));
            }
        }
        Value::Null | Value::Bool(_) | Value::Object(_) => {}
    }
    if let Some(allowed) = rule.allowed.as_ref().filter(|allowed| !allowed.iter().any(|one| is_same(one, value))) {
        return Err(format!("Value must be one of {}", Value::from(allowed.as_slice())));
    }
    match value {
        Value::Object(members) => rule.members.iter().try_for_each(|(name, rule)| {
            match members.get(&**name).filter(|value| !value.is_null()) {
                Some(value) => check_value(rule, value),
                None if rule.required => Err(format!("Required field {name} is missing")),
                None => Ok(()),
            }
        }),
        Value::Array(items) => match &rule.items {
            Some(rule) => items.iter().try_for_each(|item| check_field(rule, Some(item))),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

fn check_text(rule: &Rule, text: &str) -> Result<(), String> {
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

/// What a value is, in the words of the rules.
fn name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
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

/// `1` and `1.0` are the same value.
fn is_same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) if one.is_f64() || other.is_f64() => one.as_f64() == other.as_f64(),
        _ => one == other,
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

    fn violation(rule: Value, value: Value) -> Option<String> {
        check(rules(json!({ "x": rule })).rules(), &json!({ "x": value })).err()
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
        let told = |value: Value| check(rules.rules(), &value).unwrap_err();
        assert_eq!(told(json!({ "b": 1, "a": 1 })), "Expected object, got number");
        assert_eq!(told(json!({ "b": 1, "a": { "c": "" } })), "Expected number, got string");
        assert_eq!(told(json!({ "b": 1, "a": { "c": 2 } })), "Expected string, got number");
        assert_eq!(told(json!(null)), "Field is required");
    }

    #[test]
    fn paths_lead_through_members_and_items() {
        let rules = rules(json!({ "items[1].id": { "required": true, "type": "number" } }));
        assert_eq!(check(rules.rules(), &json!({ "items": [0, { "id": 1 }] })), Ok(()));
        for value in [json!({ "items": [{ "id": 1 }] }), json!({ "items": { "1": { "id": 1 } } }), json!([])] {
            assert_eq!(check(rules.rules(), &value), Err("Field is required".into()));
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
            check(named, value)
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
            let decided = check(rules(json!({ path: rule.clone() })).rules(), &value);
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
