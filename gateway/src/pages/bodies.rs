//! `docs/bodies.md`: every member of what the platform API is sent, from its description, and where members of an API are
//! in a `DoormanApi`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use serde_json::{Map, Value};

use crate::definitions::fields;

const INTRO: &str = "\
What calls of the platform API are sent, by the name that [its description](routes.md#platform-api) has for it. Members with a star
must be given. Of a change nothing must be: what is absent or null stays as it is.

Numbers may come as text and text as numbers, fractions lose what is behind the point, and `true` may be `\"yes\"`, `\"on\"` or `1`.
Members that are not listed are ignored.
";
/// Bodies with members of an API.
const OF_APIS: [&str; 2] = ["NewApi", "ApiUpdate"];

/// The page without its title.
pub(super) fn page() -> String {
    let document = crate::platform::document();
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let mut text = format!("{INTRO}\n");
    let (mut wanted, mut told) = (in_calls(&document), BTreeSet::new());
    while let Some((name, calls)) = wanted.pop_first() {
        if !told.insert(name.clone()) {
            continue;
        }
        let members = members(schemas, &schemas[&name]);
        let calls: Vec<String> = calls.iter().map(|call| format!("`{call}`")).collect();
        let of = if calls.is_empty() { String::new() } else { format!(" {}.", calls.join(", ")) };
        let what = first_paragraph(&schemas[&name]);
        let places = OF_APIS.contains(&name.as_str());
        let (column, line) = if places { (" In a `DoormanApi` |", "---|") } else { ("", "") };
        let _ = write!(text, "## {name}\n\n{what}{of}\n\n| Member | Form |{column} Meaning |\n|---|---|{line}---|\n");
        for (member, (schema, is_required)) in members {
            let star = if is_required { " \\*" } else { "" };
            let place = if places { format!(" {} |", place(&member)) } else { String::new() };
            let form = form(schemas, schema, &mut |inner| {
                wanted.entry(inner.to_owned()).or_default();
            });
            let _ = writeln!(text, "| `{member}`{star} | {form} |{place} {} |", meaning(schema));
        }
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

/// The calls that are sent each schema.
fn in_calls(document: &Value) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            if let Some(name) = referred(schema).or_else(|| referred(&schema["oneOf"][0])) {
                found.entry(name.to_owned()).or_default().push(format!("{} {path}", method.to_uppercase()));
            }
        }
    }
    found
}

fn referred(schema: &Value) -> Option<&str> {
    schema["$ref"].as_str()?.rsplit('/').next()
}

/// The members of an object, those of its parts too, and whether each is required.
fn members<'a>(schemas: &'a Map<String, Value>, schema: &'a Value) -> BTreeMap<String, (&'a Value, bool)> {
    let mut all = BTreeMap::new();
    for part in schema["allOf"].as_array().into_iter().flatten() {
        all.extend(members(schemas, referred(part).map_or(part, |name| &schemas[name])));
    }
    let required = |name: &str| schema["required"].as_array().is_some_and(|names| names.iter().any(|one| one == name));
    let own = schema["properties"].as_object().into_iter().flatten();
    all.extend(own.map(|(name, member)| (name.clone(), (member, required(name)))));
    all
}

/// In words; `inner` is told the objects that the page must tell of too.
fn form(schemas: &Map<String, Value>, schema: &Value, inner: &mut dyn FnMut(&str)) -> String {
    if let Some(some) = schema["oneOf"].as_array().and_then(|forms| forms.iter().find(|form| form["type"] != "null")) {
        return form(schemas, some, inner);
    }
    if let Some(words) = schema["enum"].as_array() {
        return words
            .iter()
            .map(|word| format!("`{}`", word.as_str().unwrap_or_default()))
            .collect::<Vec<_>>()
            .join(", ");
    }
    if let Some(name) = referred(schema) {
        return named(schemas, name, inner);
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
        one => one.as_str().into_iter().collect(),
    };
    match types.iter().find(|one| **one != "null") {
        Some(&"array") => format!("list of {}", form(schemas, &schema["items"], inner)),
        Some(&"object") if schema["additionalProperties"].is_object() => {
            format!("map of {}", form(schemas, &schema["additionalProperties"], inner))
        }
        Some(&"string") => "text".to_owned(),
        Some(&"boolean") => "`true` or `false`".to_owned(),
        Some(one) => (*one).to_owned(),
        None => "anything".to_owned(),
    }
}

fn named(schemas: &Map<String, Value>, name: &str, inner: &mut dyn FnMut(&str)) -> String {
    let schema = &schemas[name];
    let bounds = name.trim_start_matches(char::is_alphabetic);
    if name == "Flag" {
        return "`true` or `false`".to_owned();
    }
    if name.starts_with("Int") {
        return format!(
            "whole number{}",
            if bounds.is_empty() { String::new() } else { format!(", {bounds} or more") }
        );
    }
    if name.starts_with("Text") {
        return match (&schema["anyOf"][0]["minLength"], &schema["anyOf"][0]["maxLength"]) {
            (_, Value::Number(most)) => format!("text, up to {most} characters"),
            _ => "text".to_owned(),
        };
    }
    match name {
        "Amount" => "number".to_owned(),
        "Moment" => "date and time".to_owned(),
        _ if schema["enum"].is_array() => form(schemas, schema, inner),
        _ if schema["properties"].is_object() || schema["allOf"].is_array() => {
            inner(name);
            format!("[{name}](#{})", name.to_lowercase())
        }
        _ => form(schemas, schema, inner),
    }
}

fn line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

fn meaning(schema: &Value) -> String {
    let own = schema["description"].as_str();
    let of_some = || schema["oneOf"].as_array()?.iter().find_map(|form| form["description"].as_str());
    line(own.or_else(of_some).unwrap_or_default())
}

fn first_paragraph(schema: &Value) -> String {
    line(schema["description"].as_str().unwrap_or_default().split("\n\n").next().unwrap_or_default())
}

/// Where a member of an API is in an object.
fn place(member: &str) -> String {
    match member {
        "api_name" => "`spec.name`".to_owned(),
        "api_version" => "`spec.version`".to_owned(),
        _ => fields::place_of(member).map_or_else(|| "nowhere".to_owned(), |path| format!("`spec.{path}`")),
    }
}
