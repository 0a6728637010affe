//! The configuration file: YAML or JSON, nested or flat.
//!
//! Out: names as in the environment, and texts. Keys of nested mappings are joined with `_` and upper-cased. What can't be
//! one text is refused with its place, never passed over.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::Value;

/// The settings of this file; else what is wrong with it, reading on from its name.
pub(super) fn read(path: &Path) -> Result<BTreeMap<String, String>, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("can't be read: {error}"))?;
    let is_json = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("json"));
    parse(&text, is_json)
}

fn parse(text: &str, is_json: bool) -> Result<BTreeMap<String, String>, String> {
    let value: Value = if is_json {
        serde_json::from_str(text).map_err(|error| format!("is not JSON: {error}"))?
    } else {
        serde_yaml::from_str(text).map_err(|error| format!("is not YAML: {error}"))?
    };
    let mut entries = BTreeMap::new();
    match value {
        Value::Null => {}
        Value::Object(_) => flatten(String::new(), value, &mut entries)?,
        _ => return Err("is not a mapping of names to values".into()),
    }
    Ok(entries)
}

fn flatten(name: String, value: Value, entries: &mut BTreeMap<String, String>) -> Result<(), String> {
    let text = match value {
        // Not given.
        Value::Null => return Ok(()),
        Value::Object(members) => {
            for (key, value) in members {
                let key = key.trim().to_uppercase();
                let inner = if name.is_empty() { key } else { format!("{name}_{key}") };
                flatten(inner, value, entries)?;
            }
            return Ok(());
        }
        Value::Array(items) => {
            Value::Array(items.into_iter().map(|item| as_text(&name, item)).collect::<Result<_, _>>()?).to_string()
        }
        one => match as_text(&name, one)? {
            Value::String(text) => text,
            other => other.to_string(),
        },
    };
    if entries.insert(name.clone(), text).is_some() {
        return Err(format!("gives {name} twice"));
    }
    Ok(())
}

fn as_text(name: &str, value: Value) -> Result<Value, String> {
    match value {
        Value::String(_) => Ok(value),
        Value::Bool(_) | Value::Number(_) => Ok(value.to_string().into()),
        _ => Err(format!("has a list in {name} that holds more than texts")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(text: &str) -> Vec<(String, String)> {
        parse(text, false).unwrap().into_iter().collect()
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn nested_keys_are_joined_and_upper_cased() {
        let nested = "log:\n  level: DEBUG\n  format: json\nhttp: {retry: {base_delay: 0.5}}\nLOGS_DIR: /logs\n";
        let flat =
            [("HTTP_RETRY_BASE_DELAY", "0.5"), ("LOGS_DIR", "/logs"), ("LOG_FORMAT", "json"), ("LOG_LEVEL", "DEBUG")];
        assert_eq!(entries(nested), pairs(&flat));
        assert_eq!(
            parse(r#"{"log": {"level": "DEBUG"}}"#, true).unwrap().into_iter().collect::<Vec<_>>(),
            entries("LOG_LEVEL: DEBUG")
        );
    }

    #[test]
    fn values_become_the_texts_the_environment_would_have() {
        assert_eq!(
            entries("a: true\nb: 7\nc: null\nd: [GET, 1, true]\ne: ''\n"),
            pairs(&[("A", "true"), ("B", "7"), ("D", r#"["GET","1","true"]"#), ("E", "")])
        );
        assert_eq!(entries(""), pairs(&[]));
    }

    #[test]
    fn what_has_no_single_reading_is_refused() {
        for (text, why) in [
            ("[1]", "is not a mapping"),
            ("just text", "is not a mapping"),
            ("a: {b: 1}\nA_B: 2", "gives A_B twice"),
            ("a: [[1]]", "more than texts"),
            ("a: [", "is not YAML"),
        ] {
            let problem = parse(text, false).unwrap_err();
            assert!(problem.contains(why), "{text:?}: {problem}");
        }
        assert!(parse("a: 1", true).unwrap_err().starts_with("is not JSON"));
    }
}
